//! The only module that names kvm-ioctls: the VM, its vCPUs, interrupts and doorbells.

mod counters;
mod interrupts;
mod posted;
mod slots;
mod vcpu;
mod vfio;
mod vm;

use std::io;

use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

pub use counters::{KvmCounters, KvmReading};
pub use interrupts::Interrupts;
pub use posted::{WaitingWrite, WriteRing};
pub use vcpu::{Activity, KvmVcpu, ResetState, install_kick_handler, kick_signal};
pub use vfio::{VfioError, VfioSharing, vfio_cdev};
pub use vm::{IrqchipState, KvmVm};

/// Where KVM is.
pub const DEV_KVM: &str = "/dev/kvm";

/// Why KVM cannot be used, or what it refused.
#[derive(Debug, Error)]
pub enum KvmError {
    /// No such device.
    #[error(
        "/dev/kvm does not exist: load kvm_intel or kvm_amd, and enable VT-x or AMD-V in the firmware (see `tripath doctor`)"
    )]
    Missing,
    /// This user may not open it.
    #[error(
        "no permission to use /dev/kvm: add yourself to the group kvm (`usermod -aG kvm $USER`) and log in again"
    )]
    Permission,
    /// It could not be opened for another reason.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// The kernel's KVM is not the stable API.
    #[error("/dev/kvm speaks API version {0}, not 12")]
    ApiVersion(i32),
    /// The kernel's KVM lacks something we need.
    #[error("this kernel's KVM lacks {0}")]
    Lacks(&'static str),
    /// An ioctl failed.
    #[error("KVM: {what}: {source}")]
    Ioctl {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Names what was being done when an ioctl failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, KvmError>;
}

impl<T> Doing<T> for Result<T, kvm_ioctls::Error> {
    fn doing(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|e| KvmError::Ioctl {
            what,
            source: io::Error::from_raw_os_error(e.errno()),
        })
    }
}

/// The KVM of this host.
pub struct KvmSystem(pub(crate) Kvm);

impl KvmSystem {
    /// Opens `/dev/kvm` and checks that it can do what every machine needs.
    ///
    /// # Errors
    /// [`KvmError`], each a line for the user.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
            libc::EACCES | libc::EPERM => KvmError::Permission,
            errno => KvmError::Open(io::Error::from_raw_os_error(errno)),
        })?;
        match kvm.get_api_version() {
            12 => {}
            other => return Err(KvmError::ApiVersion(other)),
        }
        for (cap, name) in [
            (Cap::Irqchip, "an in-kernel interrupt controller"),
            (Cap::Pit2, "an in-kernel PIT"),
            (Cap::Irqfd, "irqfd"),
            (Cap::IoeventfdNoLength, "ioeventfd of any length"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::SetTssAddr, "a settable TSS address"),
            (Cap::ExtCpuid, "CPUID of the host"),
            (Cap::UserMemory, "user memory"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Lacks(name));
            }
        }
        Ok(Self(kvm))
    }

    /// The most vCPUs that one VM can have.
    #[must_use]
    pub fn max_vcpus(&self) -> u32 {
        // The highest APIC id bounds the count too: our ids are consecutive from 0.
        u32::try_from(self.0.get_max_vcpus().min(self.0.get_max_vcpu_id())).unwrap_or(u32::MAX)
    }

    /// Whether the local APIC can have a TSC-deadline timer.
    #[must_use]
    pub fn tsc_deadline_timer(&self) -> bool {
        self.0.check_extension(Cap::TscDeadlineTimer)
    }

    /// The CPUID leaves that KVM can offer.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn supported_cpuid(&self) -> Result<kvm_bindings::CpuId, KvmError> {
        self.0
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .doing("get the supported CPUID")
    }

    /// The MSRs that KVM saves and restores.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn msr_indices(&self) -> Result<Vec<u32>, KvmError> {
        Ok(self
            .0
            .get_msr_index_list()
            .doing("list the MSRs")?
            .as_slice()
            .to_vec())
    }

    /// A new VM with an in-kernel interrupt controller and PIT.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn create_vm(&self) -> Result<KvmVm, KvmError> {
        KvmVm::new(self)
    }
}
