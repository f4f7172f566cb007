//! The threads that run vCPUs, and the gate that parks them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::recall::Recall;
use devices::sync::{lock, wait, wait_while_for};
use rustix::thread::{CpuSet, sched_setaffinity};
use vmm_sys_util::signal::Killable;

use super::exit::{BusViews, Buses, Exit, Next, handle_exit};
use crate::kvm::{KvmVcpu, kick_signal};
use crate::stats::{Access, Recorder, StatsHandle};

/// What the machine wants of all vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Park,
    Finish,
}

struct GateState {
    wanted: Wanted,
    parked: usize,
    ended: usize,
}

/// How long the end of the run waits for vCPU threads. No device lets them wait once they are [recalled](Recall), so
/// this is a last resort: a disk that does not answer may hold the write of a console's file. Such a thread never
/// enters the guest again.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Where vCPU threads wait. They start parked. While all are parked, their vCPUs may be read and set, and no guest
/// code runs.
pub struct VcpuGate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// `wanted != Run`, to be looked at before each entry of the guest without a lock.
    closed: AtomicBool,
    recall: Arc<Recall>,
}

impl Default for VcpuGate {
    fn default() -> Self {
        let recall = Arc::new(Recall::default());
        recall.call();
        Self {
            recall,
            state: Mutex::new(GateState {
                wanted: Wanted::Park,
                parked: 0,
                ended: 0,
            }),
            changed: Condvar::new(),
            closed: AtomicBool::new(true),
        }
    }
}

impl VcpuGate {
    /// Where vCPU threads wait in a device: they are called back while the gate is closed.
    #[must_use]
    pub fn recall(&self) -> Arc<Recall> {
        Arc::clone(&self.recall)
    }

    /// Keeps vCPUs from entering the guest again. One that is in the guest stays there until it exits or is kicked.
    /// Any thread; a vCPU thread that calls it parks after the exit it is handling.
    pub fn close(&self) {
        self.want(Wanted::Park);
    }

    /// Lets vCPUs run the guest.
    pub fn open(&self) {
        self.want(Wanted::Run);
    }

    fn want(&self, wanted: Wanted) {
        let mut state = lock(&self.state);
        if state.wanted != Wanted::Finish {
            state.wanted = wanted;
        }
        let closed = state.wanted != Wanted::Run;
        self.closed.store(closed, Ordering::SeqCst);
        if closed {
            self.recall.call();
        } else {
            self.recall.release();
        }
        self.changed.notify_all();
    }

    /// Whether vCPUs are kept from entering the guest.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Parks the calling vCPU thread; false when it is to end.
    fn park(&self) -> bool {
        let mut state = lock(&self.state);
        state.parked += 1;
        self.changed.notify_all();
        while state.wanted == Wanted::Park {
            state = wait(&self.changed, state);
        }
        state.parked -= 1;
        state.wanted == Wanted::Run
    }

    /// The calling vCPU thread ends.
    fn end(&self) {
        lock(&self.state).ended += 1;
        self.changed.notify_all();
    }

    fn wait_ended_for(&self, count: usize, limit: Duration) {
        let state = lock(&self.state);
        drop(wait_while_for(&self.changed, state, limit, |state| {
            state.ended < count
        }));
    }

    fn wait_parked(&self, count: usize) {
        let mut state = lock(&self.state);
        while state.parked < count {
            state = wait(&self.changed, state);
        }
    }

    /// False when not all have parked in time.
    fn wait_parked_for(&self, count: usize, limit: Duration) -> bool {
        let state = lock(&self.state);
        let state = wait_while_for(&self.changed, state, limit, |state| state.parked < count);
        state.parked >= count
    }
}

/// Why a vCPU thread stopped running its guest.
#[derive(Debug)]
pub struct StopReport {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// What the exit said; never [`Next::Run`].
    pub next: Next,
}

/// Takes a [`StopReport`] from a vCPU thread, and closes the gate: the thread parks afterwards.
pub type StopSink = Arc<dyn Fn(StopReport) + Send + Sync>;

/// All vCPU threads of a machine.
pub struct VcpuThreads {
    gate: Arc<VcpuGate>,
    vcpus: Vec<Arc<Mutex<KvmVcpu>>>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuThreads {
    /// Starts one thread per vCPU, named `vcpuN`, parked. `affinity[i]` are the host CPUs of vCPU `i`; empty means
    /// anywhere. With `stats`, exits are counted there.
    ///
    /// # Errors
    /// The host starts no more threads, or refuses an affinity.
    pub fn start(
        vcpus: Vec<KvmVcpu>,
        gate: Arc<VcpuGate>,
        buses: &Buses,
        affinity: &[Vec<u32>],
        stats: Option<&StatsHandle>,
        on_stop: &StopSink,
    ) -> io::Result<Self> {
        let mut this = Self {
            gate,
            vcpus: vcpus
                .into_iter()
                .map(|vcpu| Arc::new(Mutex::new(vcpu)))
                .collect(),
            threads: Vec::new(),
        };
        for (index, vcpu) in (0..).zip(&this.vcpus) {
            let runner = Runner {
                index,
                vcpu: Arc::clone(vcpu),
                gate: Arc::clone(&this.gate),
                buses: BusViews::new(buses),
                on_stop: Arc::clone(on_stop),
                recorder: stats.map(StatsHandle::recorder),
            };
            let cpus = affinity.get(index as usize).cloned().unwrap_or_default();
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || {
                    if let Err(e) = pin(&cpus) {
                        log::warn!("vcpu{index}: cannot pin to host CPUs {cpus:?}: {e}");
                    }
                    runner.run()
                })?;
            this.threads.push(thread);
        }
        Ok(this)
    }

    /// Stops the guest; all vCPUs are parked when it returns.
    pub fn pause(&self) {
        self.gate.close();
        self.kick();
        self.gate.wait_parked(self.threads.len());
    }

    /// Stops the guest if that is soon done: a vCPU whose exit takes long is not waited for longer than `limit`. True when all vCPUs are parked; the gate is closed either way.
    #[must_use]
    pub fn pause_within(&self, limit: Duration) -> bool {
        self.gate.close();
        self.kick();
        self.gate.wait_parked_for(self.threads.len(), limit)
    }

    /// The vCPUs, in order. They are free only while parked; otherwise the lock waits for the next exit.
    #[must_use]
    pub fn vcpus(&self) -> &[Arc<Mutex<KvmVcpu>>] {
        &self.vcpus
    }

    /// Ends all threads.
    pub fn finish(mut self) {
        self.end_threads();
    }

    fn end_threads(&mut self) {
        self.gate.want(Wanted::Finish);
        self.kick();
        self.gate.wait_ended_for(self.threads.len(), END_LIMIT);
        let all_ended = lock(&self.gate.state).ended == self.threads.len();
        for thread in self.threads.drain(..) {
            if all_ended || thread.is_finished() {
                // Its panics were caught, and told.
                let _ = thread.join();
            }
        }
    }

    fn kick(&self) {
        for thread in &self.threads {
            // A thread that has ended cannot be in the guest.
            if let Err(e) = thread.kill(kick_signal()) {
                log::debug!("kick a vCPU: {e}");
            }
        }
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.end_threads();
    }
}

fn pin(cpus: &[u32]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu as usize);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// One vCPU thread.
struct Runner {
    index: u32,
    vcpu: Arc<Mutex<KvmVcpu>>,
    gate: Arc<VcpuGate>,
    buses: BusViews,
    on_stop: StopSink,
    /// None while nothing is counted: reading the clock twice an exit is not free.
    recorder: Option<Recorder>,
}

impl Runner {
    fn run(mut self) {
        lock(&self.vcpu).attach_to_thread();
        while self.gate.park() {
            // A panic of a device must end the run, not leave a machine with a vCPU missing.
            let next = catch_unwind(AssertUnwindSafe(|| self.run_guest()))
                .unwrap_or_else(|_| Next::Failed("a bug in tripath stopped the vCPU".into()));
            if next != Next::Run {
                (self.on_stop)(StopReport {
                    vcpu: self.index,
                    next,
                });
            }
        }
        lock(&self.vcpu).detach_from_thread();
        self.gate.end();
    }

    /// Runs the guest until the gate closes ([`Next::Run`]) or the vCPU cannot go on.
    fn run_guest(&mut self) -> Next {
        let vcpu = Arc::clone(&self.vcpu);
        let mut vcpu = lock(&vcpu);
        // KVM finishes an access only when it is entered again, and that must not happen after a reset has set the
        // registers: with the gate closed it is finished without running a further instruction.
        let mut unfinished_access = false;
        loop {
            let exit = match (self.gate.is_closed(), unfinished_access) {
                (false, _) => vcpu.run(),
                (true, true) => vcpu.finish_access(),
                (true, false) => return Next::Run,
            };
            let exit = match exit {
                Ok(exit) => exit,
                Err(e) => return Next::Failed(e.to_string()),
            };
            unfinished_access = exit.is_access();
            let next = match &mut self.recorder {
                Some(recorder) => handle_counted(exit, &mut self.buses, recorder),
                None => handle_exit(exit, &mut self.buses).next,
            };
            if !matches!(next, Next::Run) {
                return next;
            }
        }
    }
}

/// As [`handle_exit`], which is counted and whose time is taken.
fn handle_counted(exit: Exit<'_>, buses: &mut BusViews, recorder: &mut Recorder) -> Next {
    let (reason, address, start) = (exit.reason(), exit.address(), recorder.now());
    let handled = handle_exit(exit, buses);
    let access = reason.access().map(|(path, action)| Access {
        path,
        action,
        address,
        accessed: handled.accessed,
    });
    recorder.exit(reason, access, start);
    handled.next
}
