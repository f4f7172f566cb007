//! What happens to a machine as a whole, and how its owner's loop hears of it.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::legacy::{PowerControl, PowerEvent};
use devices::sync::lock;
use devices::vfio::FunctionLoss;
use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::signals;
use crate::vcpu::{StopReport, VcpuGate};

/// One thing that happened.
#[derive(Debug)]
pub enum MachineEvent {
    /// The guest used a power or reset register, or reported a panic.
    Power(PowerEvent),
    /// A vCPU cannot go on.
    VcpuStopped(StopReport),
    /// The user asked for the end from the console.
    Quit,
    /// A signal asks for the end.
    Terminate,
    /// The guest had its time to power off.
    GraceOver,
    /// The guest printed what a kernel prints when it panics.
    PanicSuspected,
    /// A function of the host is lost to the guest.
    FunctionLost {
        /// Where it is on the host.
        device: String,
        /// Why.
        loss: FunctionLoss,
    },
    /// It is time to look at the vCPUs of a guest that is suspected to have panicked.
    PanicSample,
}

impl MachineEvent {
    fn stops_guest(&self) -> bool {
        matches!(
            self,
            Self::Power(_) | Self::VcpuStopped(_) | Self::FunctionLost { .. }
        )
    }
}

/// Events on their way from any thread to the owner's loop.
pub struct EventQueue {
    queue: Mutex<VecDeque<MachineEvent>>,
    wake: EventFd,
    /// Closed, with the queue locked, when an event comes after which the guest must not go on.
    gate: Arc<VcpuGate>,
}

impl EventQueue {
    /// An empty queue. `gate` is that of the vCPUs.
    ///
    /// # Errors
    /// No eventfd is to be had.
    pub fn new(gate: Arc<VcpuGate>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            queue: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            gate,
        }))
    }

    /// Adds an event and wakes the loop. If the guest must not go on before it is served, the gate is closed. Any
    /// thread.
    pub fn push(&self, event: MachineEvent) {
        {
            let mut queue = lock(&self.queue);
            if event.stops_guest() {
                self.gate.close();
            }
            queue.push_back(event);
        }
        if let Err(e) = self.wake.write(1) {
            log::error!("cannot wake the event loop: {e}");
        }
    }

    /// Takes the next event.
    pub fn pop(&self) -> Option<MachineEvent> {
        lock(&self.queue).pop_front()
    }

    /// Forgets what the guest did before it was reset; what the user wants stays.
    pub fn forget_guest(&self) {
        lock(&self.queue).retain(|e| {
            let lost = matches!(e, MachineEvent::FunctionLost { .. });
            (lost || !e.stops_guest())
                && !matches!(e, MachineEvent::PanicSuspected | MachineEvent::PanicSample)
        });
    }

    /// Opens the gate, unless an event waits for which it was closed.
    pub fn resume_guest(&self) {
        let queue = lock(&self.queue);
        if !queue.iter().any(MachineEvent::stops_guest) {
            self.gate.open();
        }
    }
}

/// Ends `epoll_wait` when an event was pushed.
pub struct QueueWaker(pub Arc<EventQueue>);

impl MutEventSubscriber for QueueWaker {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Being woken is all; a spurious wake-up has nothing to read.
        let _ = self.0.wake.read();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, Events::new(&self.0.wake, EventSet::IN));
    }
}

/// The devices' way to the machine's power: the guest runs no further until the owner has decided.
pub struct PowerSwitch(pub Arc<EventQueue>);

impl PowerControl for PowerSwitch {
    fn request(&self, event: PowerEvent) {
        self.0.push(MachineEvent::Power(event));
    }
}

/// SIGTERM, SIGINT and SIGHUP become [`MachineEvent::Terminate`].
pub struct Signals {
    pipe: UnixStream,
    queue: Arc<EventQueue>,
}

impl Signals {
    /// Takes over the signals of the process.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new(queue: Arc<EventQueue>) -> io::Result<Self> {
        let (pipe, sender) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        // What our caller wants ignored stays so: `nohup`'s SIGHUP, a background job's SIGINT.
        for signal in [SIGTERM, SIGINT, SIGHUP]
            .into_iter()
            .filter(|signal| !signals::is_ignored(*signal))
        {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self { pipe, queue })
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let mut bytes = [0; 16];
        let Ok(count) = io::Read::read(&mut self.pipe, &mut bytes) else {
            return;
        };
        for _ in 0..count {
            self.queue.push(MachineEvent::Terminate);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, Events::new(&self.pipe, EventSet::IN));
    }
}

/// Counts down once it is started, and then pushes its event.
pub struct Countdown {
    timer: Arc<std::os::fd::OwnedFd>,
    queue: Arc<EventQueue>,
    event: fn() -> MachineEvent,
}

impl Countdown {
    /// A timer that is not running.
    ///
    /// # Errors
    /// No timerfd is to be had.
    pub fn new(queue: Arc<EventQueue>, event: fn() -> MachineEvent) -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        Ok(Self {
            timer: Arc::new(timer),
            queue,
            event,
        })
    }

    /// Another handle on the same timer.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self {
            timer: Arc::clone(&self.timer),
            queue: Arc::clone(&self.queue),
            event: self.event,
        }
    }

    /// Starts it anew. `time` is not zero.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn start(&self, time: Duration) -> io::Result<()> {
        let value = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        timerfd_settime(&*self.timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }
}

impl MutEventSubscriber for Countdown {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let mut count = [0; 8];
        if rustix::io::read(&*self.timer, &mut count).is_ok() {
            self.queue.push((self.event)());
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, Events::new(&self.timer, EventSet::IN));
    }
}

fn watch(ops: &mut EventOps<'_>, events: Events) {
    if let Err(e) = ops.add(events) {
        log::error!("cannot watch a file descriptor: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_to_stop_is_not_resumed() {
        let gate = Arc::new(VcpuGate::default());
        let queue = EventQueue::new(Arc::clone(&gate)).unwrap();
        queue.resume_guest();
        assert!(!gate.is_closed());
        queue.push(MachineEvent::PanicSample);
        assert!(!gate.is_closed());
        PowerSwitch(Arc::clone(&queue)).request(PowerEvent::PowerOff);
        assert!(gate.is_closed());
        queue.resume_guest();
        assert!(gate.is_closed());
        while queue.pop().is_some() {}
        queue.resume_guest();
        assert!(!gate.is_closed());
    }
}
