//! A machine: built in numbered steps (`builder`), devices joined to their configuration in `wiring`, and run
//! from start to end in `lifecycle`.
//!
//! [`Machine::build`] opens what the user named and makes the machine; [`Machine::run`] runs it to its end.

mod assigned;
mod builder;
pub mod claims;
mod crash;
mod drain;
mod error;
mod events;
mod lifecycle;
mod panic_probe;
mod passt;
mod wiring;

use std::sync::Arc;
use std::thread::JoinHandle;

use devices::dma::GuestRam;

use crate::arch::acpi::AcpiTables;
use crate::boot::BootSource;
use crate::config::{OnPanic, OnReboot};
use crate::event_loop::EventLoop;
use crate::kvm::{IrqchipState, ResetState};
use crate::stats::Report;
use crate::vcpu::VcpuThreads;

pub use assigned::AssignError;
pub(crate) use builder::affinity;
pub use builder::check_affinity;
pub use crash::CrashReport;
pub use devices::vfio::FunctionLoss;
pub use error::MachineError;
pub use passt::PasstError;

use assigned::Claimed;
use events::{Countdown, EventQueue};
use panic_probe::PanicProbe;
use wiring::Devices;

/// What a run does beyond what the machine is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Count exits and events and measure their time.
    pub stats: bool,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset, and resets end the run.
    Reset,
    /// The user ended it, from the console or by a signal that the guest did not follow in time.
    Ended,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest crashed.
    Crashed(Box<CrashReport>),
    /// A function of the host that the guest had is lost.
    DeviceLost {
        /// Which.
        device: String,
        /// Why.
        loss: FunctionLoss,
    },
}

/// A run that is over.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// What it cost; none unless [`Options::stats`] was set.
    pub report: Option<Report>,
    /// Still at work keeping the unpacked kernel for later runs; to be joined before the process ends, once the
    /// terminal is the user's again.
    pub cache_filler: Option<JoinHandle<()>>,
}

/// A machine that is ready to run: everything the user named is open, nothing of the guest has run.
pub struct Machine {
    vcpus: VcpuThreads,
    devices: Devices,
    events: EventLoop,
    queue: Arc<EventQueue>,
    grace: Countdown,
    panic: PanicProbe,
    ram: Arc<GuestRam>,
    boot: Arc<BootSource>,
    acpi: AcpiTables,
    at_reset: AtReset,
    on_reboot: OnReboot,
    on_panic: OnPanic,
    stats: bool,
    endpoints: Vec<(String, String)>,
    taps: Vec<(String, String)>,
    /// Held to the end, when the devices are gone.
    claimed: Vec<Claimed>,
}

impl Machine {
    /// `(port, place)` of each serial port or console whose place the user cannot know: the path of a pseudo-terminal
    /// that was made, the address of a TCP port that the host chose.
    #[must_use]
    pub fn endpoints(&self) -> &[(String, String)] {
        &self.endpoints
    }

    /// `(network interface, name)` of each TAP that was created.
    #[must_use]
    pub fn taps(&self) -> &[(String, String)] {
        &self.taps
    }
}

/// State of the in-kernel devices and the vCPUs from before the guest ran.
struct AtReset {
    irqchip: IrqchipState,
    vcpus: Vec<ResetState>,
}
