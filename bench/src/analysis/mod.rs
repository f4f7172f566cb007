//! What the samples of a benchmark say: figures for each variant, against the direct path, and against the plain model.
//!
//! Rates are medians over the rounds. What an operation costs (exits, interrupts, CPU time) is the sum over all rounds
//! divided by all operations, so that parts add up to their whole.

pub mod latency;
pub mod significance;

use std::collections::BTreeMap;

use tripath_load::spec::Load;

use crate::results::{BenchReport, GuestCost, PathKind, Sample, Subject, VariantResult};
use crate::stats::Summary;
use latency::Percentiles;
use significance::Verdict;

/// Bytes an operation from which on a load is judged by its bytes a second.
const LARGE_BYTES: u32 = 64 << 10;
/// What costs are told for where operations have no size of their own.
const STREAM_UNIT_BYTES: f64 = 1024.0 * 1024.0;

/// What a rate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Operations of a disk or console.
    Operations,
    /// Datagrams.
    Packets,
    /// Datagrams there and back.
    RoundTrips,
    /// Bytes.
    Bytes,
}

impl Rate {
    /// What counts for this load.
    #[must_use]
    pub fn of(load: &Load) -> Self {
        match load {
            Load::Block { size_bytes, .. } if *size_bytes < LARGE_BYTES => Self::Operations,
            Load::UdpRoundTrip { .. } => Self::RoundTrips,
            Load::UdpSend { .. } | Load::UdpReceive { .. } => Self::Packets,
            Load::Block { .. }
            | Load::TcpSend { .. }
            | Load::TcpReceive { .. }
            | Load::Console { .. } => Self::Bytes,
        }
    }

    /// As in `op/s`.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Operations => "op/s",
            Self::Packets => "packets/s",
            Self::RoundTrips => "round trips/s",
            Self::Bytes => "B/s",
        }
    }

    /// Of one sample; none if it took no time.
    #[must_use]
    pub fn of_sample(self, sample: &Sample) -> Option<f64> {
        let count = match self {
            Self::Bytes => sample.load.bytes,
            Self::Operations | Self::Packets | Self::RoundTrips => sample.load.operations,
        };
        let seconds = sample.load.elapsed_ns as f64 / 1e9;
        (seconds > 0.0).then(|| count as f64 / seconds)
    }
}

/// What costs are told for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// An operation.
    Operation,
    /// A MiB of a stream, whose reads and writes have no fixed size.
    Mebibyte,
}

impl Work {
    /// What fits this load.
    #[must_use]
    pub fn of(load: &Load) -> Self {
        match load {
            Load::TcpSend { .. } | Load::TcpReceive { .. } => Self::Mebibyte,
            _ => Self::Operation,
        }
    }

    /// As in "exits per operation".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::Mebibyte => "MiB",
        }
    }

    /// As in "exits/op".
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Operation => "op",
            Self::Mebibyte => "MiB",
        }
    }

    /// Of all samples.
    fn amount(self, variant: &VariantResult) -> f64 {
        let sends = matches!(variant.spec.load, Load::UdpSend { .. });
        let of_sample = |sample: &Sample| match self {
            // What was lost on the way was sent at the same cost.
            Self::Operation if sends => sample.load.operations as f64 + sample.load.lost as f64,
            Self::Operation => sample.load.operations as f64,
            Self::Mebibyte => sample.load.bytes as f64 / STREAM_UNIT_BYTES,
        };
        variant.samples.iter().map(of_sample).sum()
    }
}

/// What one unit of [`Work`] costs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Costs {
    /// Time that passes, in nanoseconds, with all operations that are under way at once counted.
    pub time_ns: f64,
    /// Of the host's CPUs.
    pub cpu: CpuCost,
    /// Of a guest.
    pub guest: Option<GuestFigures>,
}

/// CPU time of the host, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuCost {
    /// Running guest code.
    pub guest_ns: f64,
    /// In the host's kernel.
    pub kernel_ns: f64,
    /// In user space, by the name of the thread.
    pub user_ns: BTreeMap<String, f64>,
}

impl CpuCost {
    /// All of it.
    #[must_use]
    pub fn total_ns(&self) -> f64 {
        self.guest_ns + self.kernel_ns + self.user_ns.values().sum::<f64>()
    }
}

/// What only guests have, for one unit of [`Work`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuestFigures {
    /// Exits to user space, by reason.
    pub exits: BTreeMap<String, f64>,
    /// Accesses by device and register or queue, the most frequent first.
    pub accesses: Vec<AccessFigure>,
    /// All exits by KVM's own count, those included that it handles itself; none if it did not say.
    pub kvm_exits: Option<f64>,
    /// Interrupts that the guest served; none if it did not count them.
    pub interrupts: Option<f64>,
}

impl GuestFigures {
    /// All exits to user space.
    #[must_use]
    pub fn user_exits(&self) -> f64 {
        self.exits.values().sum()
    }
}

/// How often a register or queue is used.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessFigure {
    /// The device.
    pub device: String,
    /// The register or queue.
    pub what: String,
    /// How often with an exit to user space, for one unit of [`Work`].
    pub count: f64,
    /// How often it was written to without one, for one unit of [`Work`]: KVM keeps such writes for later.
    pub posted: f64,
    /// Nanoseconds in user space, for one unit of [`Work`].
    pub user_space_ns: f64,
}

/// A variant beside the direct one on the same backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AgainstDirect {
    /// 1 - rate / direct rate: the part of the throughput that is lost; below 0 if there is more.
    pub overhead: f64,
    /// Median latency / direct median latency - 1; none where there is no latency.
    pub latency_overhead: Option<f64>,
    /// η = work / (work + overhead): work is the host's CPU time for an operation on the direct path, overhead what
    /// this variant takes beyond it. None if one took none.
    pub efficiency: Option<f64>,
    /// Nanoseconds that pass for an operation beyond those of the direct path.
    pub time_above_ns: f64,
    /// Whether the rates differ.
    pub verdict: Verdict,
}

/// What "exits times the cost of an exit" says that one unit of [`Work`] takes beyond the direct path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model {
    /// Nanoseconds.
    pub predicted_ns: f64,
    /// Exits for which `exit_cost_ns` has no price, as halts.
    pub unpriced: f64,
}

/// A variant and what is to be said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysed<'a> {
    /// The samples.
    pub variant: &'a VariantResult,
    /// What [`rate`](Self::rate) counts.
    pub counts: Rate,
    /// What [`costs`](Self::costs) are for.
    pub work: Work,
    /// The rate of each round.
    pub rates: Vec<f64>,
    /// Of [`rates`](Self::rates); none without samples.
    pub rate: Option<Summary>,
    /// Operations a second.
    pub operations: Option<Summary>,
    /// Bytes a second.
    pub bytes: Option<Summary>,
    /// None where an operation has no latency of its own.
    pub latency: Option<Percentiles>,
    /// The part of all datagrams that did not arrive; none where nothing can be lost.
    pub lost: Option<f64>,
    /// None if nothing was done.
    pub costs: Option<Costs>,
    /// None for the direct variant itself, and where there is none to compare with.
    pub against_direct: Option<AgainstDirect>,
    /// None for baselines, and if no exit's cost is known.
    pub model: Option<Model>,
}

impl Analysed<'_> {
    /// The spread is too wide for the median to say much.
    #[must_use]
    pub fn is_unsteady(&self) -> bool {
        self.rate.is_some_and(|rate| rate.is_unsteady())
    }

    /// How it is called among those of the same workload: the device, with the path where that says nothing of it.
    #[must_use]
    pub fn label(&self) -> String {
        let device = &self.variant.device;
        match self.variant.path {
            PathKind::Direct | PathKind::Container | PathKind::Sandbox => {
                format!("{}: {device}", self.variant.path.name())
            }
            PathKind::Passthrough | PathKind::Paravirtual | PathKind::Emulated => device.clone(),
        }
    }
}

impl PathKind {
    /// All of them, from the least between to the most.
    pub const ALL: [Self; 6] = [
        Self::Direct,
        Self::Container,
        Self::Sandbox,
        Self::Passthrough,
        Self::Paravirtual,
        Self::Emulated,
    ];

    /// As in the JSON file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Container => "container",
            Self::Sandbox => "sandbox",
            Self::Passthrough => "passthrough",
            Self::Paravirtual => "paravirtual",
            Self::Emulated => "emulated",
        }
    }
}

impl Subject {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Block, Self::Net, Self::Console];

    /// As in the JSON file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Net => "net",
            Self::Console => "console",
        }
    }
}

/// Figures of all variants, in the order of the report.
#[must_use]
pub fn analyse(report: &BenchReport) -> Vec<Analysed<'_>> {
    let mut all: Vec<Analysed<'_>> = report.variants.iter().map(alone).collect();
    let compared: Vec<Option<AgainstDirect>> = all
        .iter()
        .map(|one| {
            let name = one.variant.direct.as_deref()?;
            let direct = all.iter().find(|other| other.variant.name == name)?;
            against(one, direct).filter(|_| one.variant.name != name)
        })
        .collect();
    for (one, against_direct) in all.iter_mut().zip(compared) {
        one.against_direct = against_direct;
        one.model = model(one, &report.exit_cost_ns);
    }
    all
}

/// One workload with all its variants.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload<'a, 'b> {
    /// Its name.
    pub name: &'a str,
    /// The direct path first, the emulated last.
    pub variants: Vec<&'b Analysed<'a>>,
}

/// The workloads of a subject, in the order in which the report has them first.
#[must_use]
pub fn workloads<'a, 'b>(all: &'b [Analysed<'a>], subject: Subject) -> Vec<Workload<'a, 'b>> {
    let mut found: Vec<Workload<'a, 'b>> = Vec::new();
    for one in all.iter().filter(|one| one.variant.subject == subject) {
        let name = one.variant.workload.as_str();
        match found.iter_mut().find(|workload| workload.name == name) {
            Some(workload) => workload.variants.push(one),
            None => found.push(Workload {
                name,
                variants: vec![one],
            }),
        }
    }
    for workload in &mut found {
        let key = |one: &&Analysed<'a>| (one.variant.path, one.variant.device.as_str());
        workload.variants.sort_by(|a, b| key(a).cmp(&key(b)));
    }
    found
}

fn alone(variant: &VariantResult) -> Analysed<'_> {
    let counts = Rate::of(&variant.spec.load);
    let work = Work::of(&variant.spec.load);
    let rates = |rate: Rate| -> Vec<f64> {
        let samples = variant.samples.iter();
        samples
            .filter_map(|sample| rate.of_sample(sample))
            .collect()
    };
    Analysed {
        variant,
        counts,
        work,
        rate: Summary::of(&rates(counts)),
        rates: rates(counts),
        operations: Summary::of(&rates(Rate::Operations)),
        bytes: Summary::of(&rates(Rate::Bytes)),
        latency: Percentiles::of(variant),
        lost: lost(&variant.samples, counts),
        costs: costs(variant, work),
        against_direct: None,
        model: None,
    }
}

fn lost(samples: &[Sample], counts: Rate) -> Option<f64> {
    if !matches!(counts, Rate::Packets | Rate::RoundTrips) {
        return None;
    }
    let sum = |pick: fn(&Sample) -> u64| samples.iter().map(|s| pick(s) as f64).sum::<f64>();
    let (arrived, lost) = (sum(|s| s.load.operations), sum(|s| s.load.lost));
    (arrived + lost > 0.0).then(|| lost / (arrived + lost))
}

fn costs(variant: &VariantResult, work: Work) -> Option<Costs> {
    let all = work.amount(variant);
    if all <= 0.0 {
        return None;
    }
    let mut costs = Costs::default();
    let mut guests = Vec::new();
    for sample in &variant.samples {
        costs.time_ns += sample.load.elapsed_ns as f64 / all;
        costs.cpu.guest_ns += sample.cpu.guest_ns as f64 / all;
        costs.cpu.kernel_ns += sample.cpu.kernel_ns as f64 / all;
        for (thread, ns) in &sample.cpu.user_ns {
            *costs.cpu.user_ns.entry(thread.clone()).or_default() += *ns as f64 / all;
        }
        guests.extend(&sample.guest);
    }
    if !guests.is_empty() {
        costs.guest = Some(guest_figures(&guests, all));
    }
    Some(costs)
}

fn guest_figures(guests: &[&GuestCost], all: f64) -> GuestFigures {
    let sum = |count: &dyn Fn(&GuestCost) -> Option<u64>| {
        let counts: Vec<f64> = guests
            .iter()
            .filter_map(|guest| Some(count(guest)? as f64))
            .collect();
        (!counts.is_empty()).then(|| counts.iter().sum::<f64>() / all)
    };
    let mut figures = GuestFigures {
        kvm_exits: sum(&|guest| guest.kvm.get("exits").copied()),
        interrupts: sum(&|guest| guest.interrupts),
        ..GuestFigures::default()
    };
    let mut accesses: BTreeMap<(&str, &str), (f64, f64, f64)> = BTreeMap::new();
    for guest in guests {
        for (reason, count) in &guest.exits {
            *figures.exits.entry(reason.clone()).or_default() += *count as f64 / all;
        }
        for access in &guest.accesses {
            let sum = accesses.entry((&access.device, &access.what)).or_default();
            sum.0 += access.count as f64 / all;
            sum.1 += access.posted as f64 / all;
            sum.2 += access.user_space_ns as f64 / all;
        }
    }
    figures.accesses = accesses
        .into_iter()
        .map(
            |((device, what), (count, posted, user_space_ns))| AccessFigure {
                device: device.to_owned(),
                what: what.to_owned(),
                count,
                posted,
                user_space_ns,
            },
        )
        .collect();
    // Stable: those of the same count stay in the order of their names.
    let often = |access: &AccessFigure| access.count + access.posted;
    figures
        .accesses
        .sort_by(|a, b| often(b).total_cmp(&often(a)));
    figures
}

fn against(one: &Analysed<'_>, direct: &Analysed<'_>) -> Option<AgainstDirect> {
    let (rate, direct_rate) = (one.rate?.median, direct.rate?.median);
    let (costs, direct_costs) = (one.costs.as_ref()?, direct.costs.as_ref()?);
    if direct_rate <= 0.0 {
        return None;
    }
    let latency = one.latency.zip(direct.latency);
    let latency = latency.filter(|(_, direct)| direct.p50 > 0.0);
    let (work, whole) = (direct_costs.cpu.total_ns(), costs.cpu.total_ns());
    Some(AgainstDirect {
        overhead: 1.0 - rate / direct_rate,
        latency_overhead: latency.map(|(one, direct)| one.p50 / direct.p50 - 1.0),
        efficiency: (work > 0.0 && whole > 0.0).then(|| work / whole),
        time_above_ns: costs.time_ns - direct_costs.time_ns,
        verdict: Verdict::of(&direct.rates, &one.rates),
    })
}

/// Which of `tripath bench exits` an exit to user space costs as much as.
fn price_of(reason: &str) -> Option<&'static str> {
    match reason {
        "io-in" => Some("pio-read"),
        "io-out" => Some("pio-write"),
        "mmio-read" => Some("mmio-read"),
        "mmio-write" => Some("mmio-write"),
        _ => None,
    }
}

fn model(one: &Analysed<'_>, prices: &BTreeMap<String, f64>) -> Option<Model> {
    let guest = one.costs.as_ref()?.guest.as_ref()?;
    if prices.is_empty() {
        return None;
    }
    let mut model = Model {
        predicted_ns: 0.0,
        unpriced: 0.0,
    };
    let mut add =
        |count: f64, price: Option<&'static str>| match price.and_then(|price| prices.get(price)) {
            Some(ns) => model.predicted_ns += count * ns,
            None => model.unpriced += count,
        };
    for (reason, count) in &guest.exits {
        add(*count, price_of(reason));
    }
    // Doorbells and posted writes stay in the kernel: port and MMIO exits by KVM's count that did not come to user space.
    let samples = one.variant.samples.iter();
    let guests: Vec<&GuestCost> = samples.filter_map(|sample| sample.guest.as_ref()).collect();
    let all = one.work.amount(one.variant);
    let by_kvm = |name: &str| -> f64 {
        let counts = guests.iter().filter_map(|guest| guest.kvm.get(name));
        counts.map(|count| *count as f64).sum::<f64>() / all
    };
    let accesses: f64 = guest
        .exits
        .iter()
        .filter(|(reason, _)| price_of(reason).is_some())
        .map(|(_, count)| count)
        .sum();
    let doorbells = (by_kvm("io_exits") + by_kvm("mmio_exits") - accesses).max(0.0);
    add(doorbells, Some("ioeventfd"));
    // The rest KVM handles by itself, as it does a hypercall: virtio's doorbells are there, too, which its counters of
    // accesses leave out. A halted guest waits, which is no cost.
    if let Some(exits) = guest.kvm_exits {
        let rest = (exits - guest.user_exits() - doorbells).max(0.0);
        let halts = by_kvm("halt_exits").min(rest);
        add(rest - halts, Some("hypercall"));
        add(halts, None);
    }
    Some(model)
}

#[cfg(test)]
mod tests;
