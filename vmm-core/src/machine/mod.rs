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

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use devices::dma::GuestRam;

use crate::arch::acpi::AcpiTables;
use crate::boot::BootSource;
use crate::config::{OnPanic, OnReboot};
use crate::event_loop::EventLoop;
use crate::kvm::{IrqchipState, ResetState};
use crate::stats::{Report, StatsHandle};
use crate::vcpu::VcpuThreads;

pub use assigned::{AssignError, check_devices};
pub(crate) use builder::affinity;
pub use builder::check_affinity;
pub use crash::CrashReport;
pub use devices::vfio::FunctionLoss;
pub use error::MachineError;
pub use passt::PasstError;

use assigned::Claimed;
use events::{Countdown, EventQueue, MachineEvent};
use panic_probe::PanicProbe;
use wiring::Devices;

/// What a run does beyond what the machine is.
#[derive(Debug, Default)]
pub struct Options {
    /// Count exits and events and measure their time.
    pub stats: bool,
    /// The path of a Unix socket on which the run can be asked, see [`crate::control`]. It counts, too.
    pub control: Option<PathBuf>,
    /// Ports that are connected to the caller instead of to what the configuration says of them. They are closed when
    /// the run is over. While nobody reads, a stream holds back the guest, and at the end of the run our caller.
    pub streams: Vec<(ConsolePort, UnixStream)>,
    /// The caller's own virtio consoles, the last ones, in this order, which the kernel's command line does not name.
    pub channels: Vec<UnixStream>,
    /// How often a reset starts the guest again before the next ends the run; without a limit if none.
    pub restarts: Option<u32>,
    /// A triple fault ends the run even where a reset would not.
    pub triple_fault_ends: bool,
    /// A signal ends the run without asking the guest.
    pub signals_end: bool,
}

/// A port of the guest's that prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsolePort {
    /// A serial port that the configuration has, from 0 on.
    Serial(usize),
    /// The virtio console, if the configuration has it.
    Virtio,
}

/// Stops a machine from any thread.
#[derive(Clone)]
pub struct StopHandle(Arc<EventQueue>);

impl StopHandle {
    /// Ends the run, with [`Outcome::Ended`] unless it has ended already.
    pub fn stop(&self) {
        self.0.push(MachineEvent::Quit);
    }
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
    /// When it ended: what is left is to take the machine apart.
    pub ended_at: Instant,
    /// How often the guest was reset, the reset that ended the run included.
    pub resets: u32,
    /// What it cost; none unless [`Options::stats`] or [`Options::control`] was set.
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
    stats: Option<StatsHandle>,
    restarts: Option<u32>,
    triple_fault_ends: bool,
    signals_end: bool,
    resets: u32,
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

    /// What stops the machine once it runs.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::clone(&self.queue))
    }

    /// What counts while the machine runs; none unless [`Options::stats`] or [`Options::control`] was set.
    #[must_use]
    pub fn stats_handle(&self) -> Option<StatsHandle> {
        self.stats.clone()
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
