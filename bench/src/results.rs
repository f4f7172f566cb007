//! What a benchmark of I/O paths found: the form of its JSON file, each sample included. Summaries are made from the
//! samples by whoever shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tripath_load::spec::{LoadResult, LoadSpec};

use crate::environment::Environment;

/// The version of this format.
pub const VERSION: u32 = 1;

/// A whole benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`VERSION`].
    pub version: u32,
    /// `io`.
    pub benchmark: String,
    /// When it began: RFC 3339, in UTC.
    pub date: String,
    /// Where.
    pub environment: Environment,
    /// The guest.
    pub guest: GuestFacts,
    /// For the order within the rounds.
    pub seed: u64,
    /// How many there were.
    pub rounds: u32,
    /// What is to be known about the numbers before they are used.
    pub notes: Vec<String>,
    /// The user has ended it before all was measured.
    #[serde(default)]
    pub interrupted: bool,
    /// Median cost of one exit by kind in nanoseconds, with the names of `tripath bench exits`, taken just before.
    pub exit_cost_ns: BTreeMap<String, f64>,
    /// Everything that was measured.
    pub variants: Vec<VariantResult>,
}

/// What the guest was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFacts {
    /// Its kernel's release, and command line.
    pub kernel: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// vCPUs.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// What the disks and networks lead to, a line each.
    pub backends: Vec<String>,
    /// Where threads were made to run, as in `vcpu=2-3`; empty if anywhere.
    #[serde(default)]
    pub pins: Vec<String>,
}

/// What kind of I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Disks.
    Block,
    /// Networks.
    Net,
    /// Consoles.
    Console,
}

/// How the load reaches the backend, from the least between to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// A process on the host.
    Direct,
    /// The same in fresh namespaces and a control group.
    Container,
    /// The same under a seccomp filter that is evaluated on each call.
    Sandbox,
    /// A guest with the real function.
    Passthrough,
    /// A guest with a virtio device.
    Paravirtual,
    /// A guest with an emulated device.
    Emulated,
}

/// One load on one path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantResult {
    /// `block/rand-read-4k-d1/virtio-blk`: subject, workload and device; unique.
    pub name: String,
    /// The kind of I/O.
    pub subject: Subject,
    /// The load, as in `rand-read-4k-d1`; the same on all devices.
    pub workload: String,
    /// `ide`, `virtio-blk`, `nvme`, `e1000`, `virtio-net`, `igbvf`, `uart`, `virtio-console`; of a baseline what it runs
    /// on: `file`, `nvme`, `loopback`, `veth`, `igbvf`.
    pub device: String,
    /// The kind of path.
    pub path: PathKind,
    /// The [`name`](Self::name) of the direct variant on the same backend, with which this one is compared.
    pub direct: Option<String>,
    /// The load of each sample, but for its seed.
    pub spec: LoadSpec,
    /// One a round, in the order of the rounds.
    pub samples: Vec<Sample>,
    /// Why there are no more samples, if there are not.
    pub failure: Option<String>,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// From 0.
    pub round: u32,
    /// What the load found.
    pub load: LoadResult,
    /// What the guest cost in that time; absent for baselines.
    pub guest: Option<GuestCost>,
    /// CPU time of the host in that time, of the guest's process or of the load.
    pub cpu: CpuTime,
}

/// Exits and interrupts of the guest during one sample.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCost {
    /// Exits to user space by reason, as in `io-out`.
    pub exits: BTreeMap<String, u64>,
    /// Accesses by device and register or queue.
    pub accesses: Vec<AccessCount>,
    /// Interrupts by the guest's own count, timers and those between its CPUs included. KVM's `irq_injections` has those
    /// twice that it takes back, and lacks those that the processor delivers by itself (APICv, AVIC).
    #[serde(default)]
    pub interrupts: Option<u64>,
    /// KVM's own counters of all vCPUs: `exits` and `irq_injections`, and the others that changed (`io_exits`,
    /// `mmio_exits`...).
    pub kvm: BTreeMap<String, u64>,
}

/// How often one register or queue was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessCount {
    /// The device, as in `e1000.0`.
    pub device: String,
    /// The register, as in `mmio+0x3818`, or the queue.
    pub what: String,
    /// How often, by an exit to user space.
    pub count: u64,
    /// Writes that KVM kept for later: exits, but none to user space.
    #[serde(default)]
    pub posted: u64,
    /// Nanoseconds in user space.
    pub user_space_ns: u64,
}

/// CPU time on the host, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTime {
    /// Running guest code.
    pub guest_ns: u64,
    /// In the host's kernel.
    pub kernel_ns: u64,
    /// In user space, by the name of the thread.
    pub user_ns: BTreeMap<String, u64>,
}

impl CpuTime {
    /// All of it.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        let user = self
            .user_ns
            .values()
            .fold(0_u64, |sum, ns| sum.saturating_add(*ns));
        user.saturating_add(self.guest_ns)
            .saturating_add(self.kernel_ns)
    }
}
