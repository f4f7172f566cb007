//! Reports that nobody has measured, with figures as one would find them: for tests, and to look at how they are shown.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::OnceLock;

use bench::environment::Environment;
use bench::results::{
    AccessCount, BenchReport, CpuTime, GuestCost, GuestFacts, PathKind, Sample, Subject, VERSION,
    VariantResult,
};
use fastrand::Rng;
use tripath_load::latency::new_histogram;
use tripath_load::spec::{BlockOperation, Latency, Load, LoadCpu, LoadResult, LoadSpec, Pattern};

/// How long each sample takes.
const SAMPLE_NS: u64 = 500_000_000;
/// Rounds.
const ROUNDS: u32 = 5;

/// What a path does to each operation.
struct Path {
    device: &'static str,
    kind: PathKind,
    /// Nanoseconds beyond the direct path.
    added_ns: f64,
    /// Exits to user space for an operation, by reason.
    exits: &'static [(&'static str, f64)],
    /// Exits that stay in the kernel.
    kernel_exits: f64,
    /// The thread that works.
    thread: &'static str,
}

const BLOCK: [Path; 7] = [
    baseline("file", PathKind::Direct, 0.0),
    baseline("file", PathKind::Container, 150.0),
    baseline("file", PathKind::Sandbox, 1_100.0),
    baseline("nvme", PathKind::Direct, 3_000.0),
    guest("nvme", PathKind::Passthrough, 5_200.0, &[], 2.1),
    guest("virtio-blk", PathKind::Paravirtual, 31_000.0, &[], 5.3),
    guest(
        "ide",
        PathKind::Emulated,
        112_000.0,
        &[("io-out", 13.2), ("io-in", 9.1), ("interrupted", 0.2)],
        6.2,
    ),
];

const NET: [Path; 6] = [
    baseline("loopback", PathKind::Direct, 0.0),
    baseline("veth", PathKind::Container, 1_900.0),
    baseline("loopback", PathKind::Sandbox, 900.0),
    guest("igbvf", PathKind::Passthrough, 5_900.0, &[], 2.4),
    guest("virtio-net", PathKind::Paravirtual, 24_000.0, &[], 5.9),
    guest(
        "e1000",
        PathKind::Emulated,
        55_000.0,
        &[("mmio-read", 2.3), ("mmio-write", 4.2)],
        5.1,
    ),
];

const CONSOLE: [Path; 2] = [
    guest(
        "virtio-console",
        PathKind::Paravirtual,
        24_000.0,
        &[("hlt", 0.1)],
        3.1,
    ),
    guest(
        "uart",
        PathKind::Emulated,
        410_000.0,
        &[("io-out", 64.0), ("io-in", 70.5)],
        3.0,
    ),
];

const fn baseline(device: &'static str, kind: PathKind, added_ns: f64) -> Path {
    Path {
        device,
        kind,
        added_ns,
        exits: &[],
        kernel_exits: 0.0,
        thread: "load",
    }
}

const fn guest(
    device: &'static str,
    kind: PathKind,
    added_ns: f64,
    exits: &'static [(&'static str, f64)],
    kernel_exits: f64,
) -> Path {
    Path {
        device,
        kind,
        added_ns,
        exits,
        kernel_exits,
        thread: "main",
    }
}

/// Where figures come from.
struct Source {
    rng: Rng,
    /// Latencies in each sample.
    latencies: u32,
}

/// A benchmark of all subjects. A virtual function's first workload has failed, and one variant is unsteady.
pub fn report() -> BenchReport {
    static MADE: OnceLock<BenchReport> = OnceLock::new();
    MADE.get_or_init(|| report_of(2_000)).clone()
}

/// The same with so many latencies in each sample.
pub fn report_of(latencies: u32) -> BenchReport {
    let mut source = Source {
        rng: Rng::with_seed(6),
        latencies,
    };
    let mut variants = Vec::new();
    for (workload, operation, size, depth, base) in [
        ("rand-read-4k-d1", BlockOperation::Read, 4096, 1, 82_000.0),
        ("rand-read-4k-d32", BlockOperation::Read, 4096, 32, 9_500.0),
        ("rand-write-4k-d1", BlockOperation::Write, 4096, 1, 24_000.0),
        ("seq-read-128k", BlockOperation::Read, 131_072, 4, 61_000.0),
        ("flush-4k", BlockOperation::Flush, 4096, 1, 1_100_000.0),
    ] {
        let load = Load::Block {
            path: "/dev/vda".into(),
            operation,
            pattern: Pattern::Random,
            size_bytes: size,
            depth,
            span_bytes: 1 << 30,
            direct: true,
        };
        let at_once = f64::from(depth).sqrt();
        for path in &BLOCK {
            variants.push(variant(
                &mut source,
                Subject::Block,
                workload,
                &load,
                path,
                (base, at_once, size),
            ));
        }
    }
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 5001));
    for (workload, load, base, at_once, size) in [
        (
            "udp-rtt-1",
            Load::UdpRoundTrip {
                peer,
                size_bytes: 1,
            },
            21_000.0,
            1.0,
            1,
        ),
        (
            "udp-send-64",
            Load::UdpSend {
                peer,
                size_bytes: 64,
            },
            1_700.0,
            12.0,
            64,
        ),
        (
            "udp-receive-1472",
            Load::UdpReceive {
                peer,
                size_bytes: 1472,
            },
            2_100.0,
            9.0,
            1472,
        ),
        ("tcp-send", Load::TcpSend { peer }, 19_000.0, 4.0, 65_536),
    ] {
        for path in &NET {
            variants.push(variant(
                &mut source,
                Subject::Net,
                workload,
                &load,
                path,
                (base, at_once, size),
            ));
        }
    }
    let load = Load::Console {
        path: "/dev/hvc0".into(),
    };
    for path in &CONSOLE {
        variants.push(variant(
            &mut source,
            Subject::Console,
            "write-64",
            &load,
            path,
            (4_000.0, 1.0, 64),
        ));
    }
    fail(&mut variants);
    BenchReport {
        version: VERSION,
        benchmark: "io".to_owned(),
        date: "2026-01-31T12:34:56Z".to_owned(),
        environment: environment(),
        guest: GuestFacts {
            kernel: "6.1.0-40-cloud-amd64".to_owned(),
            cmdline: "console=ttyS0 quiet".to_owned(),
            cpus: 1,
            memory_bytes: 512 << 20,
            backends: vec!["disks: a file of 1 GiB on ext4, O_DIRECT".to_owned()],
            pins: vec!["vcpu=2+3".to_owned()],
        },
        seed: 4711,
        rounds: ROUNDS,
        notes: vec!["these figures are made up".to_owned()],
        interrupted: false,
        exit_cost_ns: [
            ("pio-read", 2_950.0),
            ("pio-write", 2_810.0),
            ("mmio-read", 3_640.0),
            ("mmio-write", 3_580.0),
            ("ioeventfd", 1_310.0),
        ]
        .map(|(kind, ns)| (kind.to_owned(), ns))
        .into(),
        variants,
    }
}

fn environment() -> Environment {
    Environment {
        tripath: "0.1.0".to_owned(),
        build: "release".to_owned(),
        cpu: Some("Some CPU @ 2.40GHz".to_owned()),
        cpus: 8,
        kernel: "6.12.0".to_owned(),
        kvm_module: Some("kvm_amd".to_owned()),
        kvm_parameters: vec!["avic=N".to_owned(), "halt_poll_ns=200000".to_owned()],
        is_guest: true,
        mitigations: vec!["spectre_v2: Mitigation: Retpolines".to_owned()],
        governor: Some("performance".to_owned()),
    }
}

fn fail(variants: &mut [VariantResult]) {
    let igbvf = |one: &&mut VariantResult| one.name == "net/udp-rtt-1/igbvf";
    if let Some(failed) = variants.iter_mut().find(igbvf) {
        failed.samples.clear();
        failed.failure = Some("the function did not answer".to_owned());
    }
    let unsteady = |one: &&mut VariantResult| one.name == "block/flush-4k/ide";
    if let Some(unsteady) = variants.iter_mut().find(unsteady) {
        for (sample, factor) in unsteady.samples.iter_mut().zip([100, 80, 120, 130, 75]) {
            sample.load.operations = sample.load.operations * factor / 100;
        }
    }
}

fn variant(
    source: &mut Source,
    subject: Subject,
    workload: &str,
    load: &Load,
    path: &Path,
    (base_ns, at_once, size): (f64, f64, u32),
) -> VariantResult {
    let name = |kind: PathKind, device: &str| match kind {
        PathKind::Direct | PathKind::Container | PathKind::Sandbox => {
            format!("{}/{workload}/{}-{device}", subject.name(), kind.name())
        }
        _ => format!("{}/{workload}/{device}", subject.name()),
    };
    let backend = match (subject, path.device) {
        (Subject::Console, _) => None,
        (Subject::Block, "nvme") => Some("nvme"),
        (Subject::Block, _) => Some("file"),
        (Subject::Net, _) => Some("loopback"),
    };
    let is_direct = path.kind == PathKind::Direct;
    let samples =
        (0..ROUNDS).map(|round| sample(source, round, load, path, (base_ns, at_once, size)));
    VariantResult {
        name: name(path.kind, path.device),
        subject,
        workload: workload.to_owned(),
        device: path.device.to_owned(),
        path: path.kind,
        direct: backend
            .filter(|_| !is_direct)
            .map(|device| name(PathKind::Direct, device)),
        spec: LoadSpec {
            load: load.clone(),
            warm_up_ms: 200,
            time_ms: SAMPLE_NS / 1_000_000,
            seed: 0,
        },
        samples: samples.collect(),
        failure: None,
    }
}

fn sample(
    source: &mut Source,
    round: u32,
    load: &Load,
    path: &Path,
    (base_ns, at_once, size): (f64, f64, u32),
) -> Sample {
    // Batching: what is under way at once shares part of what a path adds.
    let each_ns = (base_ns + path.added_ns / at_once) * (1.0 + 0.03 * (source.rng.f64() - 0.5));
    let operations = whole(SAMPLE_NS as f64 / each_ns);
    let is_stream = matches!(
        load,
        Load::TcpSend { .. }
            | Load::UdpSend { .. }
            | Load::UdpReceive { .. }
            | Load::Console { .. }
    );
    let count = |each: f64| whole(each / at_once * operations as f64);
    let cost = whole((path.added_ns * 0.6 / at_once + 2_500.0) * operations as f64);
    let is_guest = path.thread != "load";
    Sample {
        round,
        load: LoadResult {
            operations,
            bytes: operations * u64::from(size),
            elapsed_ns: SAMPLE_NS,
            lost: 0,
            latency: (!is_stream).then(|| latency(source, each_ns * at_once, path.exits.len())),
            cpu: LoadCpu {
                user_ns: cost / 4,
                kernel_ns: cost / 4,
            },
        },
        guest: is_guest.then(|| guest_cost(path, count)),
        cpu: CpuTime {
            guest_ns: if is_guest { cost * 35 / 100 } else { 0 },
            kernel_ns: cost * 40 / 100,
            user_ns: if is_guest {
                BTreeMap::from([
                    (
                        "vcpu0".to_owned(),
                        if path.exits.is_empty() {
                            0
                        } else {
                            cost * 15 / 100
                        },
                    ),
                    (path.thread.to_owned(), cost / 10),
                ])
            } else {
                BTreeMap::from([(path.thread.to_owned(), cost * 60 / 100)])
            },
        },
    }
}

fn guest_cost(path: &Path, count: impl Fn(f64) -> u64) -> GuestCost {
    let exits: BTreeMap<String, u64> = path
        .exits
        .iter()
        .map(|(reason, each)| ((*reason).to_owned(), count(*each)))
        .collect();
    let to_user: f64 = path.exits.iter().map(|(_, each)| each).sum();
    let accesses = path.exits.iter().map(|(reason, each)| AccessCount {
        device: format!("{}.0", path.device),
        what: format!("{reason}+0x1f0"),
        posted: 0,
        count: count(*each),
        user_space_ns: count(*each) * 900,
    });
    GuestCost {
        accesses: accesses.collect(),
        interrupts: Some(count(1.2)),
        kvm: BTreeMap::from([
            ("exits".to_owned(), count(to_user + path.kernel_exits)),
            ("mmio_exits".to_owned(), count(to_user + 1.0)),
            ("irq_injections".to_owned(), count(1.1)),
        ]),
        exits,
    }
}

/// A body with some spread, and a tail of one operation in a few hundred, longer where there is more between.
fn latency(source: &mut Source, median_ns: f64, exits: usize) -> Latency {
    let mut histogram = new_histogram().expect("the bounds are fine");
    for _ in 0..source.latencies {
        let spread = 1.0 + 0.08 * (source.rng.f64() + source.rng.f64() + source.rng.f64() - 1.5);
        let tail = if source.rng.f64() < 0.006 {
            1.0 + (0.8 + exits as f64) * source.rng.f64() / (source.rng.f64() + 0.04)
        } else {
            1.0
        };
        histogram.saturating_record(whole(median_ns * spread * tail));
    }
    Latency::of(&histogram).expect("it is written to memory")
}

/// Rounded down; all figures here are small.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value as u64
}
