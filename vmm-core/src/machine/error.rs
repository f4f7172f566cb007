//! Why a machine could not be built or run on.

use std::io;
use std::path::PathBuf;

use devices::block::DiskError;
use devices::bus::BusError;
use devices::console::CharError;
use devices::ide::{IdeError, IdeMediumError};
use devices::net::{MacError, TapError};
use devices::pci::{E1000Error, RootBusError};
use devices::vfio::{GuestDmaError, VfioFunctionError, VfioHostError};
use devices::virtio::{ShareError, VirtioPciError};
use thiserror::Error;
use vm_memory::GuestMemoryError;

use super::assigned::AssignError;
use super::passt::PasstError;
use crate::arch::acpi::AcpiError;
use crate::boot::BootError;
use crate::config::ConfigError;
use crate::event_loop::EventLoopError;
use crate::kvm::{KvmError, VfioError};
use crate::memory::MemoryError;

/// Why a machine could not be built or run on.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// More vCPUs than KVM runs.
    #[error(
        "{asked} CPUs are too many: KVM runs at most {limit} in a guest here; give --cpus less"
    )]
    TooManyCpus {
        /// What was asked for.
        asked: u32,
        /// What is possible.
        limit: u32,
    },
    /// An affinity names a CPU that this process cannot run on.
    #[error("vCPU {vcpu} cannot be pinned to host CPU {cpu}: the CPUs here are {available}")]
    NoSuchHostCpu {
        /// The vCPU.
        vcpu: u32,
        /// The host CPU named.
        cpu: u32,
        /// Those that exist, as a list.
        available: String,
    },
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk or image that cannot be an IDE drive.
    #[error("{}: {source}", path.display())]
    IdeMedium {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: IdeMediumError,
    },
    /// The IDE controller.
    #[error(transparent)]
    Ide(#[from] IdeError),
    /// A shared directory.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A network interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The network without root.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// A network interface's MAC address.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// A virtio device does not fit its transport.
    #[error(transparent)]
    Virtio(#[from] VirtioPciError),
    /// An e1000.
    #[error(transparent)]
    E1000(#[from] E1000Error),
    /// A function of the host that is not to be had.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// What assigned functions share.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// A function of the host that cannot be opened.
    #[error(transparent)]
    VfioHost(#[from] VfioHostError),
    /// A function of the host that cannot be shown to the guest.
    #[error(transparent)]
    VfioFunction(#[from] VfioFunctionError),
    /// Guest RAM for assigned functions.
    #[error(transparent)]
    GuestDma(#[from] GuestDmaError),
    /// A serial port or console.
    #[error(transparent)]
    Char(#[from] CharError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// ACPI tables.
    #[error("ACPI tables: {0}")]
    Acpi(#[from] AcpiError),
    /// A table does not fit into guest RAM.
    #[error("guest memory: {0}")]
    Ram(#[from] GuestMemoryError),
    /// Two devices at one address.
    #[error("wiring: {0}")]
    Bus(#[from] BusError),
    /// No room on the PCI bus.
    #[error("PCI: {0}")]
    Pci(#[from] RootBusError),
    /// The event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// A vCPU thread cannot go on, through no fault of the guest.
    #[error("vCPU {vcpu}: {what}")]
    Vcpu {
        /// Index of the vCPU.
        vcpu: u32,
        /// What happened.
        what: String,
    },
    /// Something else the host refused.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl MachineError {
    /// Whether the user can change it, in the configuration or on the host; otherwise the failure is ours.
    #[must_use]
    pub fn is_users(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::TooManyCpus { .. }
            | Self::NoSuchHostCpu { .. }
            | Self::Boot(_)
            | Self::Disk(_)
            | Self::IdeMedium { .. }
            | Self::Share(_)
            | Self::Tap(_)
            | Self::Passt(_)
            | Self::Mac(_)
            | Self::Char(_)
            | Self::Vfio(VfioError::Container(_))
            | Self::VfioHost(_)
            | Self::VfioFunction(_)
            | Self::GuestDma(_)
            | Self::Pci(_)
            | Self::Memory(MemoryError::TooMuch { .. } | MemoryError::Refused { .. })
            | Self::Kvm(
                KvmError::Missing
                | KvmError::Permission
                | KvmError::Lacks(_)
                | KvmError::ApiVersion(_),
            ) => true,
            Self::Assign(error) => error.is_users(),
            Self::Memory(_)
            | Self::Kvm(_)
            | Self::Vfio(_)
            | Self::Acpi(_)
            | Self::Ram(_)
            | Self::Virtio(_)
            | Self::E1000(_)
            | Self::Ide(_)
            | Self::Bus(_)
            | Self::EventLoop(_)
            | Self::Vcpu { .. }
            | Self::Host { .. } => false,
        }
    }
}
