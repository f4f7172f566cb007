//! From the first instruction to the end of the run: resets, power, panics, crashes, signals.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::legacy::{PowerEvent, ResetSource};
use devices::sync::lock;
use rustix::process::setpriority_process;
use rustix::thread::gettid;

use super::drain::{self, HASTE, PATIENCE};
use super::events::MachineEvent;
use super::{CrashReport, Finished, Machine, MachineError, Outcome};
use crate::arch::regs;
use crate::boot::{EntryPoint, RamState};
use crate::config::{OnPanic, OnReboot};
use crate::kvm::KvmVcpu;
use crate::stats::StatsHandle;
use crate::vcpu::{Next, StopReport};

/// How long a guest has to power off after it was asked to.
const GRACE: Duration = Duration::from_secs(30);

/// `nice` value of background work.
const LOWEST_PRIORITY: i32 = 19;

impl Machine {
    /// Runs the guest to its end, serving the devices' events on the calling thread.
    ///
    /// # Errors
    /// [`MachineError`], ours every one: what the guest does wrong is an [`Outcome`].
    pub fn run(mut self) -> Result<Finished, MachineError> {
        self.queue.resume_guest();
        let cache_filler = self.fill_kernel_cache();
        let mut terminating = false;
        let outcome = loop {
            self.events.run_once()?;
            if let Some(outcome) = self.serve_queue(&mut terminating)? {
                break outcome;
            }
        };
        // A guest that was quick is not to leave its kernel uncached; one that died is reported at once.
        let orderly = matches!(outcome, Outcome::PoweredOff | Outcome::Reset);
        let asked_for = terminating || matches!(outcome, Outcome::Ended);
        let mut finished = self.finish(outcome, asked_for)?;
        finished.cache_filler = cache_filler.filter(|_| orderly);
        Ok(finished)
    }

    /// Starts the thread that keeps the unpacked kernel for later runs, at the lowest priority: the guest boots
    /// meanwhile.
    fn fill_kernel_cache(&self) -> Option<JoinHandle<()>> {
        let boot = Arc::clone(&self.boot);
        let thread = std::thread::Builder::new()
            .name("kernel-cache".into())
            .spawn(move || {
                // Without it the thread competes with the guest, no more.
                let _ = setpriority_process(Some(gettid()), LOWEST_PRIORITY);
                boot.fill_cache();
            });
        thread
            .inspect_err(|e| log::info!("the unpacked kernel is not cached: {e}"))
            .ok()
    }

    fn serve_queue(&mut self, terminating: &mut bool) -> Result<Option<Outcome>, MachineError> {
        while let Some(event) = self.queue.pop() {
            let outcome = match event {
                MachineEvent::Power(event) => self.on_power(event)?,
                MachineEvent::VcpuStopped(report) => self.on_vcpu_stopped(report)?,
                MachineEvent::Quit | MachineEvent::GraceOver => Some(Outcome::Ended),
                MachineEvent::FunctionLost { device, loss } => {
                    Some(Outcome::DeviceLost { device, loss })
                }
                MachineEvent::PanicSuspected => {
                    self.schedule_panic_sample()?;
                    None
                }
                MachineEvent::PanicSample => self.on_panic_sample()?,
                MachineEvent::Terminate if *terminating || self.signals_end => Some(Outcome::Ended),
                MachineEvent::Terminate => {
                    *terminating = true;
                    self.ask_to_power_off()?
                }
            };
            if outcome.is_some() {
                return Ok(outcome);
            }
        }
        Ok(None)
    }

    /// The vCPUs' gate was closed when the event came.
    fn on_power(&mut self, event: PowerEvent) -> Result<Option<Outcome>, MachineError> {
        match event {
            PowerEvent::PowerOff => Ok(Some(Outcome::PoweredOff)),
            PowerEvent::Reset(ResetSource::I8042 | ResetSource::ResetControl) => self.on_reset(),
            PowerEvent::Panicked if self.on_panic == OnPanic::Exit => Ok(Some(Outcome::Panicked)),
            PowerEvent::Panicked | PowerEvent::CrashLoaded => {
                log::warn!("the guest reports a panic");
                // It is known; and what the kernel does about it is the user's wish.
                self.panic.clear();
                self.queue.resume_guest();
                Ok(None)
            }
        }
    }

    fn on_vcpu_stopped(&mut self, report: StopReport) -> Result<Option<Outcome>, MachineError> {
        let StopReport { vcpu, next } = report;
        match next {
            Next::Run => Ok(None),
            Next::PowerOff => Ok(Some(Outcome::PoweredOff)),
            Next::Reset => self.on_reset(),
            Next::TripleFault if self.resets_from_panic() => Ok(Some(Outcome::Panicked)),
            Next::TripleFault if self.on_reboot == OnReboot::Restart && !self.triple_fault_ends => {
                log::warn!("triple fault on vCPU {vcpu}");
                self.on_reset()
            }
            Next::TripleFault => Ok(Some(self.crashed(vcpu, "triple fault".into()))),
            Next::Broken(reason) => Ok(Some(self.crashed(vcpu, reason))),
            Next::Failed(what) => Err(MachineError::Vcpu { vcpu, what }),
        }
    }

    fn crashed(&self, index: u32, reason: String) -> Outcome {
        // The vCPU itself has parked or is about to; another one whose exit takes long is not waited for.
        let vcpu = &self.vcpus.vcpus()[index as usize];
        let report = CrashReport::of(&lock(vcpu), index, &self.ram, reason);
        Outcome::Crashed(Box::new(report))
    }

    /// Whether a reset now ends the run because the kernel panicked before it.
    fn resets_from_panic(&self) -> bool {
        self.on_panic == OnPanic::Exit && self.panic.is_suspected()
    }

    fn on_reset(&mut self) -> Result<Option<Outcome>, MachineError> {
        if self.resets_from_panic() {
            return Ok(Some(Outcome::Panicked));
        }
        self.resets = self.resets.saturating_add(1);
        let restarts_no_more = self.restarts.is_some_and(|restarts| self.resets > restarts);
        if self.on_reboot == OnReboot::Exit || restarts_no_more {
            return Ok(Some(Outcome::Reset));
        }
        log::info!("the guest restarts");
        self.vcpus.pause();
        self.reset()?;
        self.queue.resume_guest();
        Ok(None)
    }

    /// Everything back to power-on, and the kernel loaded again. All vCPUs are parked.
    fn reset(&mut self) -> Result<(), MachineError> {
        self.devices.reset()?;
        self.queue.forget_guest();
        self.panic.clear();
        for (vcpu, state) in self.vcpus.vcpus().iter().zip(&self.at_reset.vcpus) {
            lock(vcpu).reset(state)?;
        }
        // After the local APICs: an interrupt that a controller still held must not reach them.
        self.devices
            .interrupt_controller()
            .set_irqchip_state(&self.at_reset.irqchip)?;
        self.acpi.write(&self.ram)?;
        let entry = self.boot.load(&self.ram, self.acpi.rsdp, RamState::Used)?;
        start_at(&lock(&self.vcpus.vcpus()[0]), &entry)
    }

    /// Presses the power button. A guest that does not listen to it is ended at once.
    fn ask_to_power_off(&mut self) -> Result<Option<Outcome>, MachineError> {
        if !self.devices.press_power_button() {
            return Ok(Some(Outcome::Ended));
        }
        log::info!(
            "the guest is asked to power off; it has {} s",
            GRACE.as_secs()
        );
        let start = self.grace.start(GRACE);
        start.map_err(|source| MachineError::Host {
            what: "start a timer",
            source,
        })?;
        Ok(None)
    }

    /// `asked_for`: the user wants the end.
    fn finish(self, outcome: Outcome, asked_for: bool) -> Result<Finished, MachineError> {
        let ended_at = Instant::now();
        let Self {
            vcpus,
            resets,
            devices,
            mut events,
            queue,
            stats,
            claimed,
            ..
        } = self;
        vcpus.finish();
        if let Some(stats) = &stats {
            stats.detach_kvm();
        }
        let patience = if asked_for { HASTE } else { PATIENCE };
        drain::output(&devices, &mut events, &queue, patience)?;
        devices.shut_down();
        let report = stats.as_ref().map(StatsHandle::snapshot);
        // The loop's subscribers are the last to hold the devices; what was claimed for those goes back after them.
        drop(events);
        drop(claimed);
        Ok(Finished {
            outcome,
            ended_at,
            resets,
            report,
            cache_filler: None,
        })
    }
}

/// Points the boot processor at the kernel.
pub(super) fn start_at(vcpu: &KvmVcpu, entry: &EntryPoint) -> Result<(), MachineError> {
    vcpu.set_sregs(&regs::special(entry, vcpu.sregs()?))?;
    vcpu.set_regs(&regs::general(entry))?;
    Ok(())
}
