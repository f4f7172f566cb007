//! What a run has cost: exits by reason, accesses by device.

/// The figures of one run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// One row per exit reason that occurred, all vCPUs together.
    pub exits: Vec<ExitRow>,
    /// One row per device and path that was used.
    pub devices: Vec<DeviceRow>,
}

/// The exits of one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRow {
    /// KVM's exit reason, `io-out` for example.
    pub reason: String,
    /// How many exits there were.
    pub count: u64,
    /// Time from the return of `KVM_RUN` to its next call, in nanoseconds, summed.
    pub user_space_ns: u64,
}

/// What one device did in user space over one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The device, `COM1` for example.
    pub device: String,
    /// How it was reached.
    pub path: DevicePath,
    /// Reads by the guest; 0 for events.
    pub reads: u64,
    /// Writes by the guest; for events, how many there were.
    pub writes: u64,
    /// Time in the device, in nanoseconds, summed.
    pub user_space_ns: u64,
}

impl DeviceRow {
    /// Reads and writes together; saturating.
    pub fn accesses(&self) -> u64 {
        self.reads.saturating_add(self.writes)
    }
}

/// How a device is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DevicePath {
    /// Port I/O, on a vCPU thread.
    Pio,
    /// Memory-mapped I/O, on a vCPU thread.
    Mmio,
    /// A doorbell or backend event, on the event loop: no exit to user space.
    Event,
}

impl std::fmt::Display for DevicePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pio => "pio",
            Self::Mmio => "mmio",
            Self::Event => "event",
        })
    }
}
