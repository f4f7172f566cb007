//! Exits and I/O by reason and by device: counted where they happen, added up at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use devices::bus::BusDevice;

use crate::vcpu::ExitReason;

/// What one run cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Exits of all vCPUs to user space, by reason.
    pub exits: Vec<ExitRow>,
    /// The devices' share.
    pub devices: Vec<DeviceRow>,
}

/// Exits for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRow {
    /// The reason, as in `io-out`.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// Time spent handling them in user space, in nanoseconds.
    pub user_space_ns: u64,
}

/// One device on one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// The device's name.
    pub device: String,
    /// How it was reached.
    pub path: DevicePath,
    /// Reads by the guest; 0 for events.
    pub reads: u64,
    /// Writes by the guest; for events, how many were handled.
    pub writes: u64,
    /// Time spent in the device, in nanoseconds.
    pub user_space_ns: u64,
}

impl DeviceRow {
    /// Reads and writes together; saturating.
    #[must_use]
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

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    count: u64,
    time: Duration,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.time += other.time;
    }
}

/// The counters of one vCPU thread, or of several added up.
#[derive(Debug, Default)]
pub struct ExitStats {
    enabled: bool,
    exits: BTreeMap<ExitReason, Tally>,
    devices: BTreeMap<String, BTreeMap<ExitReason, Tally>>,
}

impl ExitStats {
    /// Counters; `enabled` says whether the owner is to measure.
    #[must_use]
    pub fn new(enabled: bool) -> Self {
        Self {
            enabled,
            ..Self::default()
        }
    }

    /// Whether to measure: reading the clock twice an exit is not free.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Adds one exit.
    pub fn record(&mut self, reason: ExitReason, device: Option<&dyn BusDevice>, time: Duration) {
        let one = Tally { count: 1, time };
        self.exits.entry(reason).or_default().add(one);
        let io = matches!(
            reason,
            ExitReason::IoIn | ExitReason::IoOut | ExitReason::MmioRead | ExitReason::MmioWrite
        );
        if !io {
            return;
        }
        let name = device.map_or("(none)", BusDevice::name);
        match self.devices.get_mut(name) {
            Some(row) => row.entry(reason).or_default().add(one),
            None => {
                self.devices
                    .insert(name.to_string(), BTreeMap::from([(reason, one)]));
            }
        }
    }

    /// Adds another thread's counters.
    pub fn merge(&mut self, other: Self) {
        for (reason, tally) in other.exits {
            self.exits.entry(reason).or_default().add(tally);
        }
        for (device, reasons) in other.devices {
            let row = self.devices.entry(device).or_default();
            for (reason, tally) in reasons {
                row.entry(reason).or_default().add(tally);
            }
        }
    }

    /// The rows for the user, with the event loop's added: `(device, events, time)`.
    #[must_use]
    pub fn report(&self, events: &[(String, u64, Duration)]) -> Report {
        let exits = self
            .exits
            .iter()
            .map(|(reason, tally)| ExitRow {
                reason: reason.name().to_string(),
                count: tally.count,
                user_space_ns: nanos(tally.time),
            })
            .collect();
        let mut devices = Vec::new();
        for (device, reasons) in &self.devices {
            for (path, read, write) in [
                (DevicePath::Pio, ExitReason::IoIn, ExitReason::IoOut),
                (
                    DevicePath::Mmio,
                    ExitReason::MmioRead,
                    ExitReason::MmioWrite,
                ),
            ] {
                let get = |reason| reasons.get(reason).copied().unwrap_or_default();
                let (reads, writes) = (get(&read), get(&write));
                if reads.count + writes.count > 0 {
                    devices.push(DeviceRow {
                        device: device.clone(),
                        path,
                        reads: reads.count,
                        writes: writes.count,
                        user_space_ns: nanos(reads.time + writes.time),
                    });
                }
            }
        }
        devices.extend(events.iter().filter(|(_, count, _)| *count > 0).map(
            |(device, count, time)| DeviceRow {
                device: device.clone(),
                path: DevicePath::Event,
                reads: 0,
                writes: *count,
                user_space_ns: nanos(*time),
            },
        ));
        Report { exits, devices }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::bus::AccessError;

    struct Named(&'static str);

    impl BusDevice for Named {
        fn name(&self) -> &str {
            self.0
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), AccessError> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
            Ok(())
        }
    }

    #[test]
    fn threads_add_up_by_reason_and_device() {
        let (mut a, mut b) = (ExitStats::new(true), ExitStats::new(true));
        let us = Duration::from_micros;
        a.record(ExitReason::IoOut, Some(&Named("com1")), us(2));
        a.record(ExitReason::IoIn, Some(&Named("com1")), us(3));
        b.record(ExitReason::IoOut, Some(&Named("com1")), us(4));
        b.record(ExitReason::MmioRead, None, us(1));
        b.record(ExitReason::Interrupted, None, us(1));
        a.merge(b);
        let report = a.report(&[("blk0".into(), 5, us(10)), ("idle".into(), 0, us(0))]);
        let row = |device: &str, path: DevicePath, reads, writes, us: u64| DeviceRow {
            device: device.into(),
            path,
            reads,
            writes,
            user_space_ns: us * 1000,
        };
        assert_eq!(
            report.devices,
            [
                row("(none)", DevicePath::Mmio, 1, 0, 1),
                row("com1", DevicePath::Pio, 1, 2, 9),
                row("blk0", DevicePath::Event, 0, 5, 10)
            ]
        );
        let out = report.exits.iter().find(|e| e.reason == "io-out").unwrap();
        assert_eq!((out.count, out.user_space_ns), (2, 6000));
        assert_eq!(report.exits.len(), 4);
    }
}
