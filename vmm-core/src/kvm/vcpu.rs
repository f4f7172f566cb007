//! One vCPU: running it, kicking it out of the guest, its registers.

use std::cell::Cell;
use std::ptr;

use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, KVM_STATE_NESTED_GUEST_MODE, Msrs, kvm_cpuid_entry2,
    kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{KvmNestedStateBuffer, VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::{Doing, KvmError, WriteRing};
use crate::vcpu::Exit;

/// Added to `SIGRTMIN`: the signal that takes a vCPU thread out of the guest.
const KICK_SIGNAL_OFFSET: i32 = 0;

/// `IA32_TIME_STAMP_COUNTER`: 0 after a reset (SDM volume 3A, table 11-1). KVM takes the zeros of all vCPUs as one
/// event and keeps their counters together. It must be written: on AMD, KVM clears the offset that the processor adds
/// to the counter at a triple fault but remembers the old one, and the guest's timers would fire late by as much.
const MSR_IA32_TSC: u32 = 0x10;

const MSR_IA32_FEATURE_CONTROL: u32 = 0x3a;

thread_local! {
    /// The `kvm_run` of the vCPU that this thread runs, for the signal handler.
    static CURRENT_RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// A vCPU.
pub struct KvmVcpu {
    fd: VcpuFd,
}

/// All of a vCPU's state that a guest can change, as it was when the vCPU was new.
pub struct ResetState {
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    xcrs: Option<kvm_xcrs>,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
    debug: kvm_debugregs,
    msrs: Vec<kvm_msr_entry>,
}

/// What a parked vCPU does when it is let run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Nothing, until an interrupt: it halted, or was not started.
    Waiting,
    /// User code, or a guest of the guest's own.
    User,
    /// Kernel code.
    Kernel {
        /// Linear address of the next instruction.
        linear_rip: u64,
    },
}

/// The signal that takes a vCPU thread out of the guest.
#[must_use]
pub fn kick_signal() -> i32 {
    SIGRTMIN() + KICK_SIGNAL_OFFSET
}

/// Installs the handler of [`kick_signal`]. Once per process, before the first vCPU runs.
///
/// # Errors
/// [`KvmError::Ioctl`] when the handler cannot be installed.
pub fn install_kick_handler() -> Result<(), KvmError> {
    register_signal_handler(kick_signal(), on_kick).doing("install the signal handler")
}

#[allow(unsafe_code)]
extern "C" fn on_kick(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    let run = CURRENT_RUN.get();
    if !run.is_null() {
        // SAFETY: the pointer was set by this thread to the mapping of the vCPU it runs, and is cleared before
        // the thread lets go of the vCPU. A volatile byte write is async-signal-safe.
        unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd) -> Self {
        Self { fd }
    }

    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The ring of coalesced writes of the vCPU's VM.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn write_ring(&self) -> Result<WriteRing, KvmError> {
        WriteRing::map(&self.fd)
    }

    /// Makes kicks of the calling thread reach this vCPU. Called by the vCPU's thread before its first
    /// [`KvmVcpu::run`].
    pub fn attach_to_thread(&mut self) {
        CURRENT_RUN.set(ptr::from_mut(self.fd.get_kvm_run()));
    }

    /// Undoes [`KvmVcpu::attach_to_thread`]. Called by the vCPU's thread before it ends.
    pub fn detach_from_thread(&mut self) {
        CURRENT_RUN.set(ptr::null_mut());
    }

    /// Runs the guest until it exits. vCPU thread only.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`] for what is not an exit of the guest.
    #[allow(unsafe_code)]
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                // SAFETY: `run` is this vCPU's mapping; the signal handler writes the same byte, on this thread.
                unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(0) };
                return Ok(Exit::Interrupted);
            }
            Err(e) => return Err(e).doing("run a vCPU"),
        };
        // SAFETY: `run` is the vCPU's mapping, which lives as long as `self.fd`; the kernel writes it only during
        // KVM_RUN, and the fields read here overlap none that `exit` borrows mutably.
        let item_bytes = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size }.max(1));
        Ok(match exit {
            VcpuExit::IoIn(port, data) => Exit::IoIn {
                port,
                item_bytes: item_bytes(),
                data,
            },
            VcpuExit::IoOut(port, data) => Exit::IoOut {
                port,
                item_bytes: item_bytes(),
                data,
            },
            VcpuExit::MmioRead(addr, data) => Exit::MmioRead { addr, data },
            VcpuExit::MmioWrite(addr, data) => Exit::MmioWrite { addr, data },
            VcpuExit::Hlt => Exit::Hlt,
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::SystemEvent(kind, _) => Exit::SystemEvent { kind },
            VcpuExit::InternalError => {
                // SAFETY: as above; the exit reason says that `internal` is the valid member.
                let internal = unsafe { (*run).__bindgen_anon_1.internal };
                Exit::InternalError {
                    suberror: internal.suberror,
                }
            }
            VcpuExit::FailEntry(reason, cpu) => Exit::FailEntry { reason, cpu },
            VcpuExit::Intr => Exit::Interrupted,
            other => Exit::Unexpected {
                description: format!("{other:?}"),
            },
        })
    }

    /// Finishes the access of the last exit, which may be an exit again; [`Exit::Interrupted`] when all is done. No
    /// further instruction runs. vCPU thread only.
    ///
    /// # Errors
    /// As [`KvmVcpu::run`].
    pub fn finish_access(&mut self) -> Result<Exit<'_>, KvmError> {
        self.fd.set_kvm_immediate_exit(1);
        self.run()
    }

    /// The CPUID that the guest sees.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_cpuid(&self, entries: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
        let cpuid = CpuId::from_entries(entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
            .doing("set CPUID")?;
        self.fd.set_cpuid2(&cpuid).doing("set CPUID")
    }

    /// General registers.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn regs(&self) -> Result<kvm_regs, KvmError> {
        self.fd.get_regs().doing("read registers")
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), KvmError> {
        self.fd.set_regs(regs).doing("set registers")
    }

    /// Segment and control registers.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn sregs(&self) -> Result<kvm_sregs, KvmError> {
        self.fd.get_sregs().doing("read segment registers")
    }

    /// Sets segment and control registers.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), KvmError> {
        self.fd.set_sregs(sregs).doing("set segment registers")
    }

    /// Sets the x87 and SSE state.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<(), KvmError> {
        self.fd.set_fpu(fpu).doing("set FPU registers")
    }

    /// Sets model-specific registers.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`], also when one of them is refused.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
        let msrs = msr_list(entries).doing("set MSRs")?;
        let set = self.fd.set_msrs(&msrs).doing("set MSRs")?;
        if set == entries.len() {
            Ok(())
        } else {
            Err(kvm_ioctls::Error::new(libc::EINVAL)).doing("set MSRs")
        }
    }

    /// Local APIC registers.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn lapic(&self) -> Result<kvm_lapic_state, KvmError> {
        self.fd.get_lapic().doing("read the local APIC")
    }

    /// Sets the local APIC registers.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_lapic(&self, lapic: &kvm_lapic_state) -> Result<(), KvmError> {
        self.fd.set_lapic(lapic).doing("set the local APIC")
    }

    /// Lets a vCPU other than the first run from its registers, without waiting to be started by another.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_runnable(&self) -> Result<(), KvmError> {
        let state = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        self.fd.set_mp_state(state).doing("set the run state")
    }

    /// What the vCPU, which is parked, is at.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn activity(&self) -> Result<Activity, KvmError> {
        // With the APIC in the kernel, HLT is a run state and no exit; a kick leaves it as it is.
        let state = self.fd.get_mp_state().doing("read the run state")?;
        if state.mp_state != KVM_MP_STATE_RUNNABLE {
            return Ok(Activity::Waiting);
        }
        let sregs = self.sregs()?;
        // SS holds the privilege level, in real mode too; CS may be a conforming segment.
        if sregs.ss.dpl != 0 || self.runs_nested_guest() {
            return Ok(Activity::User);
        }
        let rip = self.regs()?.rip;
        Ok(Activity::Kernel {
            linear_rip: if sregs.cs.l != 0 {
                rip
            } else {
                sregs.cs.base.wrapping_add(rip)
            },
        })
    }

    /// Whether the registers are those of a guest's guest. A KVM that cannot say so runs none.
    fn runs_nested_guest(&self) -> bool {
        let mut state = KvmNestedStateBuffer::empty();
        self.fd
            .nested_state(&mut state)
            .is_ok_and(|_| u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE != 0)
    }

    /// The physical address behind a linear one, by the guest's page tables now; none if it has none.
    #[must_use]
    pub fn translate(&self, linear: u64) -> Option<u64> {
        self.fd
            .translate_gva(linear)
            .ok()
            .filter(|t| t.valid != 0)
            .map(|t| t.physical_address)
    }

    /// Keeps the state to reset to. Called on a vCPU that has not run.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn reset_state(&self, msr_indices: &[u32]) -> Result<ResetState, KvmError> {
        let mut msrs = Vec::new();
        for &index in msr_indices {
            // One by one: the kernel stops at the first it refuses, and lists some that this CPU lacks.
            let mut one = msr_list(&[kvm_msr_entry {
                index,
                ..Default::default()
            }])
            .doing("read MSRs")?;
            if self.fd.get_msrs(&mut one).is_ok_and(|n| n == 1) {
                msrs.extend_from_slice(one.as_slice());
            }
        }
        for tsc in msrs.iter_mut().filter(|msr| msr.index == MSR_IA32_TSC) {
            tsc.data = 0;
        }
        Ok(ResetState {
            sregs: self.sregs()?,
            fpu: self.fd.get_fpu().doing("read FPU registers")?,
            xcrs: self.fd.get_xcrs().ok(),
            lapic: self.lapic()?,
            mp_state: self.fd.get_mp_state().doing("read the run state")?,
            events: self.fd.get_vcpu_events().doing("read pending events")?,
            debug: self.fd.get_debug_regs().doing("read debug registers")?,
            msrs,
        })
    }

    /// Puts back the state that [`KvmVcpu::reset_state`] kept; the general registers are the caller's.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn reset(&self, state: &ResetState) -> Result<(), KvmError> {
        let ResetState {
            sregs,
            fpu,
            xcrs,
            lapic,
            mp_state,
            events,
            debug,
            msrs,
        } = state;
        // Writing its 0 leaves VMX operation; while in it, KVM refuses CR0 and CR4 as they are at reset.
        if let Some(msr) = msrs
            .iter()
            .find(|msr| msr.index == MSR_IA32_FEATURE_CONTROL)
        {
            let one = msr_list(&[*msr]).doing("reset MSRs")?;
            if self.fd.set_msrs(&one).is_err() {
                log::debug!("VMX operation was not left");
            }
        }
        self.set_sregs(sregs)?;
        self.set_fpu(fpu)?;
        if let Some(xcrs) = xcrs {
            self.fd
                .set_xcrs(xcrs)
                .doing("reset extended control registers")?;
        }
        for msr in msrs {
            // Some that can be read cannot be written back: those the guest could not change either.
            let one = msr_list(&[*msr]).doing("reset MSRs")?;
            if !self.fd.set_msrs(&one).is_ok_and(|n| n == 1) {
                log::debug!("MSR {:#x} was not reset", msr.index);
            }
        }
        self.set_lapic(lapic)?;
        self.fd
            .set_mp_state(*mp_state)
            .doing("reset the run state")?;
        self.fd
            .set_vcpu_events(events)
            .doing("reset pending events")?;
        self.fd.set_debug_regs(debug).doing("reset debug registers")
    }
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, kvm_ioctls::Error> {
    Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}
