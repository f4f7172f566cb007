//! The serial port: a 16550A chip, its interrupt, and the backend at the other end of the line.
//!
//! `vm-superio`'s serial port is not used as the chip: it has no FIFO control register (so no trigger level and no
//! FIFO reset), no overrun, no gate by OUT2, answers an interrupt by whichever register is read first, and tells
//! only of rising edges, while the wire here has a level.
//!
//! Output is written to the backend on the vCPU thread. Input is read ahead on the event loop, up to
//! [`READ_AHEAD_BYTES`], and moves into the chip's FIFO as the guest empties it, without another event. When that
//! much waits, the backend is no longer watched until the guest has read it all, so nothing is ever lost.

mod chip;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Reset;
use crate::bus::{AccessError, BusDevice};
use crate::console::CharBackend;
use crate::irq::IrqLine;
use crate::ratelimit::RateLimiter;
use crate::sync::lock;
use chip::Chip;

/// Input that waits between the backend and the chip, at most.
const READ_AHEAD_BYTES: usize = 4096;

/// Why the event loop does not watch the backend, and so what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The guest must read what waits.
    Guest,
    /// A vCPU thread is in the backend's `write`, perhaps for long.
    Backend,
}

#[derive(Debug)]
struct State {
    chip: Chip,
    read_ahead: VecDeque<u8>,
    waiting: Option<Waiting>,
}

/// What the event loop is to do after it has read input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intake {
    /// Go on watching the backend.
    Watch,
    /// Stop until the resume event.
    Pause,
    /// Stop for good.
    End,
}

/// A serial port. Eight ports, interrupt level high while the chip asks for service and OUT2 is set.
///
/// Locks: the backend's is never taken with the state's held, and the event loop only tries it.
pub struct Uart16550 {
    name: String,
    state: Mutex<State>,
    irq: IrqLine,
    backend: Mutex<Box<dyn CharBackend>>,
    /// Signalled on vCPU threads when what the event loop waits for has come.
    resume: EventFd,
    complaints: RateLimiter,
}

impl Uart16550 {
    /// Ports it takes.
    pub const PORT_COUNT: u64 = 8;

    /// A port called `name` (`com1`), with its interrupt on `irq` and its line connected to `backend`.
    ///
    /// # Errors
    /// No eventfd to be had.
    pub fn new(
        name: impl Into<String>,
        irq: IrqLine,
        backend: Box<dyn CharBackend>,
    ) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            state: Mutex::new(State {
                chip: Chip::new(),
                read_ahead: VecDeque::new(),
                waiting: None,
            }),
            irq,
            backend: Mutex::new(backend),
            resume: EventFd::new(EFD_NONBLOCK)?,
            complaints: RateLimiter::default(),
        })
    }

    /// The input side, to be added to the event loop once.
    #[must_use]
    pub fn subscriber(self: &Arc<Self>) -> UartInput {
        UartInput {
            backend_fd: lock(&self.backend).poll_fd(),
            uart: Arc::clone(self),
            watching: false,
        }
    }

    /// Moves input into the chip, recomputes the wire, and wakes the event loop if it waits for the guest.
    fn sync(&self, state: &mut State) {
        while !state.read_ahead.is_empty() && state.chip.receiver_space() > 0 {
            if let Some(byte) = state.read_ahead.pop_front() {
                state.chip.receive(byte);
            }
        }
        self.irq.set(state.chip.interrupt());
        if state.waiting == Some(Waiting::Guest) && state.read_ahead.is_empty() {
            self.wake(state);
        }
    }

    fn wake(&self, state: &mut State) {
        state.waiting = None;
        // It fails only when the counter is full, and then the event is there already.
        let _ = self.resume.write(1);
    }

    /// Writes a character to the backend and completes its transmission.
    fn transmit(&self, byte: u8) {
        let result = lock(&self.backend).write(&[byte]);
        if let Err(error) = result
            && self.complaints.allow()
        {
            log::warn!("{}: output is lost: {error}", self.name);
        }
        let mut state = lock(&self.state);
        state.chip.transmitted();
        self.sync(&mut state);
        if state.waiting == Some(Waiting::Backend) {
            self.wake(&mut state);
        }
    }

    /// The backend, unless a vCPU thread is using it; that thread then wakes the event loop when it is done.
    fn try_backend(&self) -> Option<MutexGuard<'_, Box<dyn CharBackend>>> {
        let attempt = || match self.backend.try_lock() {
            Ok(backend) => Some(backend),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(backend) = attempt() {
            return Some(backend);
        }
        lock(&self.state).waiting = Some(Waiting::Backend);
        // The thread may have finished before it could see that.
        let backend = attempt()?;
        lock(&self.state).waiting = None;
        Some(backend)
    }

    /// Reads from the backend once. Event loop.
    fn take_input(&self) -> Intake {
        let space = READ_AHEAD_BYTES - lock(&self.state).read_ahead.len();
        if space == 0 {
            return self.wait_for_guest();
        }
        let mut data = [0; READ_AHEAD_BYTES];
        let data = &mut data[..space];
        let Some(mut backend) = self.try_backend() else {
            return Intake::Pause;
        };
        let result = backend.read(data);
        drop(backend);
        match result {
            Ok(0) => Intake::End,
            Ok(len) => {
                let mut state = lock(&self.state);
                state.read_ahead.extend(&data[..len.min(space)]);
                self.sync(&mut state);
                drop(state);
                self.wait_for_guest()
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Intake::Watch,
                _ => {
                    log::warn!("{}: no more input: {error}", self.name);
                    Intake::End
                }
            },
        }
    }

    /// Pauses if no more can be read ahead.
    fn wait_for_guest(&self) -> Intake {
        let mut state = lock(&self.state);
        if state.read_ahead.len() < READ_AHEAD_BYTES {
            return Intake::Watch;
        }
        state.waiting = Some(Waiting::Guest);
        Intake::Pause
    }
}

/// The register that byte `index` of an access at `offset` is for: a wide access goes out as bytes on an 8-bit bus.
fn register(offset: u64, index: usize) -> Result<u8, AccessError> {
    offset
        .checked_add(index as u64)
        .and_then(|offset| u8::try_from(offset).ok())
        .filter(|offset| u64::from(*offset) < Uart16550::PORT_COUNT)
        .ok_or(AccessError::InvalidRegister)
}

impl BusDevice for Uart16550 {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let mut state = lock(&self.state);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = state.chip.read(register(offset, index)?);
            self.sync(&mut state);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        for (index, byte) in data.iter().enumerate() {
            let register = register(offset, index)?;
            let mut state = lock(&self.state);
            if let Some(byte) = state.chip.write(register, *byte) {
                // The wire is left as it is until the character is sent: it would fall and rise again.
                drop(state);
                self.transmit(byte);
            } else {
                self.sync(&mut state);
            }
        }
        Ok(())
    }
}

impl Reset for Uart16550 {
    /// Input that the guest has not read yet stays on the line.
    fn reset(&self) {
        let mut state = lock(&self.state);
        state.chip.reset();
        self.sync(&mut state);
    }
}

/// The event-loop side of a [`Uart16550`].
pub struct UartInput {
    uart: Arc<Uart16550>,
    /// None when input never comes, or has ended.
    backend_fd: Option<RawFd>,
    watching: bool,
}

impl UartInput {
    fn watch(&mut self, watch: bool, ops: &mut EventOps<'_>) {
        let Some(fd) = self.backend_fd.filter(|_| watch != self.watching) else {
            return;
        };
        // Removed, not masked: epoll reports a hang-up even to those who ask for nothing.
        let events = Events::new_raw(fd, EventSet::IN);
        let result = if watch {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        if let Err(error) = result {
            log::error!("{}: input is lost: {error}", self.uart.name);
        }
        self.watching = watch;
    }
}

impl MutEventSubscriber for UartInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.uart.resume, EventSet::IN)) {
            log::error!("{}: input may stop: {error}", self.uart.name);
        }
        self.watch(true, ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.uart.resume.as_raw_fd() {
            // Nothing to read means that it was read before; either way the backend gets its turn.
            let _ = self.uart.resume.read();
        }
        if self.backend_fd.is_none() {
            return;
        }
        match self.uart.take_input() {
            Intake::Watch => self.watch(true, ops),
            Intake::Pause => self.watch(false, ops),
            Intake::End => {
                self.watch(false, ops);
                self.backend_fd = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
