//! What one exit from the guest means. Pure dispatch: tests feed it fabricated exits.

use std::sync::Arc;

use devices::bus::{Bus, BusView, Register};
use devices::posted::PostedWrites;

use crate::stats::{Action, DevicePath};

/// Types of `KVM_EXIT_SYSTEM_EVENT`.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// One exit from the guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `in`, or `rep ins`: several items of `item_bytes` from the same port.
    IoIn {
        /// The port.
        port: u16,
        /// Width of the instruction: 1, 2 or 4.
        item_bytes: usize,
        /// To be filled; a multiple of `item_bytes`.
        data: &'a mut [u8],
    },
    /// `out`, or `rep outs`.
    IoOut {
        /// The port.
        port: u16,
        /// Width of the instruction: 1, 2 or 4.
        item_bytes: usize,
        /// What was written; a multiple of `item_bytes`.
        data: &'a [u8],
    },
    /// A load from an address that is not RAM.
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// A store to an address that is not RAM.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// What was written.
        data: &'a [u8],
    },
    /// The vCPU halted where KVM does not wait itself.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// The guest asked KVM for a shutdown or reset.
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*`.
        kind: u32,
    },
    /// KVM could not go on.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// The processor refused to enter the guest.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// A signal took the thread out of the guest.
    Interrupted,
    /// An exit that this machine never asks for.
    Unexpected {
        /// Which.
        description: String,
    },
}

/// Kinds of exits, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExitReason {
    /// [`Exit::IoIn`].
    IoIn,
    /// [`Exit::IoOut`].
    IoOut,
    /// [`Exit::MmioRead`].
    MmioRead,
    /// [`Exit::MmioWrite`].
    MmioWrite,
    /// [`Exit::Hlt`].
    Hlt,
    /// [`Exit::Interrupted`].
    Interrupted,
    /// All that end the run of the vCPU.
    Stop,
}

impl ExitReason {
    /// The reason as users read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IoIn => "io-in",
            Self::IoOut => "io-out",
            Self::MmioRead => "mmio-read",
            Self::MmioWrite => "mmio-write",
            Self::Hlt => "hlt",
            Self::Interrupted => "interrupted",
            Self::Stop => "stop",
        }
    }

    /// The reason of the exit for such an access; none if it is no exit.
    #[must_use]
    pub fn of_access(path: DevicePath, action: Action) -> Option<Self> {
        [Self::IoIn, Self::IoOut, Self::MmioRead, Self::MmioWrite]
            .into_iter()
            .find(|reason| reason.access() == Some((path, action)))
    }

    /// How a device is accessed; none if the exit is no access.
    #[must_use]
    pub fn access(self) -> Option<(DevicePath, Action)> {
        match self {
            Self::IoIn => Some((DevicePath::Pio, Action::Read)),
            Self::IoOut => Some((DevicePath::Pio, Action::Write)),
            Self::MmioRead => Some((DevicePath::Mmio, Action::Read)),
            Self::MmioWrite => Some((DevicePath::Mmio, Action::Write)),
            Self::Hlt | Self::Interrupted | Self::Stop => None,
        }
    }
}

impl Exit<'_> {
    /// Whether it is a guest's access to a device, which KVM has yet to finish.
    #[must_use]
    pub fn is_access(&self) -> bool {
        matches!(
            self,
            Self::IoIn { .. } | Self::IoOut { .. } | Self::MmioRead { .. } | Self::MmioWrite { .. }
        )
    }

    /// The port or guest-physical address of an access; 0 otherwise.
    #[must_use]
    pub fn address(&self) -> u64 {
        match self {
            Self::IoIn { port, .. } | Self::IoOut { port, .. } => (*port).into(),
            Self::MmioRead { addr, .. } | Self::MmioWrite { addr, .. } => *addr,
            _ => 0,
        }
    }

    /// Which kind of exit it is.
    #[must_use]
    pub fn reason(&self) -> ExitReason {
        match self {
            Self::IoIn { .. } => ExitReason::IoIn,
            Self::IoOut { .. } => ExitReason::IoOut,
            Self::MmioRead { .. } => ExitReason::MmioRead,
            Self::MmioWrite { .. } => ExitReason::MmioWrite,
            Self::Hlt => ExitReason::Hlt,
            Self::Interrupted => ExitReason::Interrupted,
            Self::Shutdown
            | Self::SystemEvent { .. }
            | Self::InternalError { .. }
            | Self::FailEntry { .. }
            | Self::Unexpected { .. } => ExitReason::Stop,
        }
    }
}

/// The two address spaces of devices.
#[derive(Clone)]
pub struct Buses {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// MMIO.
    pub mmio: Arc<Bus>,
    /// Writes to both that wait.
    pub posted: Arc<dyn PostedWrites>,
}

/// The same as a vCPU's thread has them.
pub struct BusViews {
    pio: BusView,
    mmio: BusView,
    posted: Arc<dyn PostedWrites>,
}

impl BusViews {
    /// Of these.
    #[must_use]
    pub fn new(buses: &Buses) -> Self {
        Self {
            pio: BusView::new(Arc::clone(&buses.pio)),
            mmio: BusView::new(Arc::clone(&buses.mmio)),
            posted: Arc::clone(&buses.posted),
        }
    }
}

/// What the vCPU does after an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Back into the guest, unless the machine wants it to stop.
    Run,
    /// The guest powered off through KVM.
    PowerOff,
    /// The guest reset through KVM.
    Reset,
    /// A triple fault, or a crash that the guest reported to KVM.
    TripleFault,
    /// KVM or the processor cannot go on with this guest.
    Broken(String),
    /// We or the host failed; not the guest's doing.
    Failed(String),
}

/// The result of one exit.
pub struct Handled<'a> {
    /// What comes next.
    pub next: Next,
    /// The register that was accessed, if one was.
    pub accessed: Option<Register<'a>>,
}

/// Handles one exit on the vCPU's thread: delivers the writes that were posted before it, finds the device, calls it,
/// says how to go on.
pub fn handle_exit<'a>(exit: Exit<'_>, buses: &'a mut BusViews) -> Handled<'a> {
    buses.posted.deliver();
    let accessed = match exit {
        Exit::IoIn {
            port,
            item_bytes,
            data,
        } => {
            // Nearly all: the division into items would cost more than the search.
            if data.len() == item_bytes {
                buses.pio.read(u64::from(port), data)
            } else {
                let mut items = data.chunks_mut(item_bytes.max(1));
                let last = items.next_back();
                for item in items {
                    buses.pio.read(u64::from(port), item);
                }
                last.and_then(|item| buses.pio.read(u64::from(port), item))
            }
        }
        Exit::IoOut {
            port,
            item_bytes,
            data,
        } => {
            if data.len() == item_bytes {
                buses.pio.write(u64::from(port), data)
            } else {
                let mut items = data.chunks(item_bytes.max(1));
                let last = items.next_back();
                for item in items {
                    buses.pio.write(u64::from(port), item);
                }
                last.and_then(|item| buses.pio.write(u64::from(port), item))
            }
        }
        Exit::MmioRead { addr, data } => buses.mmio.read(addr, data),
        Exit::MmioWrite { addr, data } => buses.mmio.write(addr, data),
        other => {
            return Handled {
                next: without_access(other),
                accessed: None,
            };
        }
    };
    Handled {
        next: Next::Run,
        accessed,
    }
}

/// How to go on after an exit that is no access.
fn without_access(exit: Exit<'_>) -> Next {
    match exit {
        Exit::IoIn { .. }
        | Exit::IoOut { .. }
        | Exit::MmioRead { .. }
        | Exit::MmioWrite { .. }
        | Exit::Hlt
        | Exit::Interrupted => Next::Run,
        Exit::Shutdown => Next::TripleFault,
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_SHUTDOWN,
        } => Next::PowerOff,
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_RESET,
        } => Next::Reset,
        Exit::SystemEvent {
            kind: SYSTEM_EVENT_CRASH,
        } => Next::TripleFault,
        Exit::SystemEvent { kind } => Next::Broken(format!("KVM system event {kind}")),
        Exit::InternalError { suberror } => Next::Broken(internal_error(suberror)),
        Exit::FailEntry { reason, cpu } => Next::Broken(format!(
            "the processor refused to enter the guest: reason {reason:#x} on host CPU {cpu}"
        )),
        Exit::Unexpected { description } => Next::Broken(format!("unexpected exit: {description}")),
    }
}

fn internal_error(suberror: u32) -> String {
    let meaning = match suberror {
        1 => "an instruction that KVM cannot emulate",
        2 => "exceptions while delivering an exception",
        3 => "an exit while delivering an event",
        4 => "an unexpected exit reason",
        _ => "unknown",
    };
    format!("KVM internal error {suberror}: {meaning}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::testing::{FakeDevice, FakePosted};

    fn machine() -> (Buses, Arc<FakeDevice>) {
        let buses = Buses {
            pio: Arc::new(Bus::new("pio")),
            mmio: Arc::new(Bus::new("mmio")),
            posted: Arc::new(FakePosted::default()),
        };
        let device = Arc::new(FakeDevice::default());
        buses.pio.insert(0x100, 8, device.clone()).unwrap();
        buses.mmio.insert(0x1000, 8, device.clone()).unwrap();
        (buses, device)
    }

    #[test]
    fn what_was_posted_comes_before_the_access() {
        let (mut buses, device) = machine();
        let posted = Arc::new(FakePosted::default());
        buses.posted = posted.clone();
        let (bus, seen) = (Arc::clone(&buses.mmio), device.clone());
        posted.on_deliver(move || {
            if seen.written().is_empty() {
                bus.write(0x1001, &[7]);
            }
        });
        handle_exit(
            Exit::MmioWrite {
                addr: 0x1002,
                data: &[8],
            },
            &mut BusViews::new(&buses),
        );
        assert_eq!(device.written(), [(1, vec![7]), (2, vec![8])]);
    }

    #[test]
    fn port_and_memory_accesses_reach_the_device() {
        let (buses, device) = machine();
        let mut data = [0; 2];
        let mut views = BusViews::new(&buses);
        let handled = handle_exit(
            Exit::IoIn {
                port: 0x103,
                item_bytes: 2,
                data: &mut data,
            },
            &mut views,
        );
        assert_eq!((data, handled.next), ([3, 3], Next::Run));
        assert_eq!(handled.accessed.unwrap().device.name(), "fake");
        handle_exit(
            Exit::MmioRead {
                addr: 0x1001,
                data: &mut data,
            },
            &mut BusViews::new(&buses),
        );
        assert_eq!(data, [1, 1]);
        handle_exit(
            Exit::MmioWrite {
                addr: 0x1000,
                data: &[7; 4],
            },
            &mut BusViews::new(&buses),
        );
        assert_eq!(device.written(), [(0, vec![7; 4])]);
    }

    #[test]
    fn string_instructions_are_one_access_an_item() {
        let (buses, device) = machine();
        handle_exit(
            Exit::IoOut {
                port: 0x100,
                item_bytes: 2,
                data: &[1, 2, 3, 4],
            },
            &mut BusViews::new(&buses),
        );
        assert_eq!(device.written(), [(0, vec![1, 2]), (0, vec![3, 4])]);
    }

    #[test]
    fn what_no_device_claims_reads_as_ones() {
        let (buses, _) = machine();
        let mut data = [0; 4];
        let mut views = BusViews::new(&buses);
        let handled = handle_exit(
            Exit::MmioRead {
                addr: 0x9999,
                data: &mut data,
            },
            &mut views,
        );
        assert_eq!(data, [0xff; 4]);
        assert!(handled.accessed.is_none());
        assert_eq!(handled.next, Next::Run);
    }

    #[test]
    fn the_ends_of_a_run_are_told_apart() {
        let (buses, _) = machine();
        let next = |exit| handle_exit(exit, &mut BusViews::new(&buses)).next;
        assert_eq!(next(Exit::Shutdown), Next::TripleFault);
        assert_eq!(next(Exit::SystemEvent { kind: 1 }), Next::PowerOff);
        assert_eq!(next(Exit::SystemEvent { kind: 2 }), Next::Reset);
        assert_eq!(next(Exit::SystemEvent { kind: 3 }), Next::TripleFault);
        assert_eq!(next(Exit::Interrupted), Next::Run);
        for (exit, word) in [
            (Exit::InternalError { suberror: 1 }, "emulate"),
            (
                Exit::FailEntry {
                    reason: 0x8000_0021,
                    cpu: 3,
                },
                "0x80000021",
            ),
            (
                Exit::Unexpected {
                    description: "Nmi".into(),
                },
                "Nmi",
            ),
            (Exit::SystemEvent { kind: 77 }, "77"),
        ] {
            let Next::Broken(text) = next(exit) else {
                panic!("expected Broken")
            };
            assert!(text.contains(word), "{text}");
        }
    }
}
