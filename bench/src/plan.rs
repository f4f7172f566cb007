//! What is measured: each load on each path, and which of them are compared.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tripath_load::spec::{BlockOperation, Load, LoadSpec, Pattern};

use crate::results::{PathKind, Subject, VariantResult};

/// A load, whatever it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Workload {
    name: &'static str,
    /// Whether it is one of the few that tell most.
    quick: bool,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block(BlockOperation, Pattern, u32, u32),
    UdpRoundTrip(u32),
    UdpSend(u32),
    UdpReceive(u32),
    TcpSend,
    TcpReceive,
    Console,
}

/// The payload of a datagram that fills an Ethernet frame, in bytes.
const MTU_PAYLOAD_BYTES: u32 = 1472;

const WORKLOADS: [Workload; 16] = {
    use BlockOperation::{Flush, Read, Write};
    use Pattern::{Random, Sequential};
    const fn work(name: &'static str, quick: bool, kind: Kind) -> Workload {
        Workload { name, quick, kind }
    }
    [
        work("rand-read-4k-d1", true, Kind::Block(Read, Random, 4096, 1)),
        work(
            "rand-read-4k-d32",
            true,
            Kind::Block(Read, Random, 4096, 32),
        ),
        work(
            "rand-write-4k-d1",
            false,
            Kind::Block(Write, Random, 4096, 1),
        ),
        work(
            "rand-write-4k-d32",
            true,
            Kind::Block(Write, Random, 4096, 32),
        ),
        work(
            "seq-read-128k",
            true,
            Kind::Block(Read, Sequential, 128 << 10, 1),
        ),
        work(
            "seq-write-128k",
            false,
            Kind::Block(Write, Sequential, 128 << 10, 1),
        ),
        work("flush", false, Kind::Block(Flush, Random, 4096, 1)),
        work("udp-rr-1", true, Kind::UdpRoundTrip(1)),
        work("udp-rr-64", false, Kind::UdpRoundTrip(64)),
        work("udp-send-64", false, Kind::UdpSend(64)),
        work("udp-send-mtu", false, Kind::UdpSend(MTU_PAYLOAD_BYTES)),
        work("udp-receive-64", false, Kind::UdpReceive(64)),
        work(
            "udp-receive-mtu",
            false,
            Kind::UdpReceive(MTU_PAYLOAD_BYTES),
        ),
        work("tcp-send", true, Kind::TcpSend),
        work("tcp-receive", true, Kind::TcpReceive),
        work("write", true, Kind::Console),
    ]
};

impl Workload {
    fn subject(&self) -> Subject {
        match self.kind {
            Kind::Block(..) => Subject::Block,
            Kind::Console => Subject::Console,
            _ => Subject::Net,
        }
    }

    fn writes(&self) -> bool {
        matches!(
            self.kind,
            Kind::Block(BlockOperation::Write | BlockOperation::Flush, ..)
        )
    }
}

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runner {
    /// The guest of the round.
    Guest,
    /// A process.
    Direct,
    /// A process in namespaces and a control group of its own.
    Container,
    /// A process under a filter of system calls.
    Sandbox,
}

impl Runner {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Guest, Self::Direct, Self::Container, Self::Sandbox];
    const BASELINES: [Self; 3] = [Self::Direct, Self::Container, Self::Sandbox];

    /// As in a variant's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Direct => "direct",
            Self::Container => "container",
            Self::Sandbox => "sandbox",
        }
    }
}

/// What it is done on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The backing file that the virtio disk has as well.
    File,
    /// The disk of the function that the guest gets, by the host's driver.
    HostDisk,
    /// A guest's IDE disk.
    Ide,
    /// A guest's virtio disk.
    VirtioBlk,
    /// A guest's NVMe function.
    Nvme,
    /// The host's loopback; a container's is a veth pair.
    Loopback,
    /// The network function that the guest gets, by the host's driver.
    HostNic,
    /// A guest's e1000.
    E1000,
    /// A guest's virtio network interface.
    VirtioNet,
    /// A guest's network function.
    Nic,
    /// A guest's COM2.
    Uart,
    /// A guest's virtio console.
    VirtioConsole,
}

impl Target {
    /// Modules of the guest's kernel without which it has no such device; those of functions are the functions' own.
    #[must_use]
    pub fn drivers(self) -> &'static [&'static str] {
        match self {
            Self::Ide => &["ata_piix", "sd_mod"],
            Self::VirtioBlk => &["virtio_blk"],
            Self::E1000 => &["e1000"],
            Self::VirtioNet => &["virtio_net"],
            Self::Nvme => &["nvme"],
            _ => &[],
        }
    }

    /// Where the guest has a disk or a console.
    fn guest_path(self) -> Option<&'static str> {
        Some(match self {
            Self::Ide => "/dev/sda",
            Self::VirtioBlk => "/dev/vda",
            Self::Nvme => "/dev/nvme0n1",
            Self::Uart => "/dev/ttyS1",
            Self::VirtioConsole => "/dev/hvc0",
            _ => return None,
        })
    }
}

/// A disk controller that the guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFunction {
    /// Its disk on the host; none if the host has no driver on it.
    pub host_path: Option<PathBuf>,
    /// What is on it may be overwritten.
    pub overwrite: bool,
}

/// A network function that the guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicFunction {
    /// The guest's driver, as in `igbvf`.
    pub driver: String,
    /// Whether the host has an interface for it.
    pub on_host: bool,
}

/// What is to be planned.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// Kinds of I/O.
    pub subjects: Vec<Subject>,
    /// Only the few loads that tell most.
    pub quick: bool,
    /// Parts of names, one of which a variant has to contain; all if there is none.
    pub only: Vec<String>,
    /// Milliseconds before each measurement.
    pub warm_up_ms: u64,
    /// Milliseconds of each measurement.
    pub time_ms: u64,
    /// Bytes of each disk that are used.
    pub span_bytes: u64,
    /// Whether the backing files bypass the host's page cache.
    pub file_direct: bool,
    /// Whether there can be containers.
    pub containers: bool,
    /// The disk controller that is passed through.
    pub disk: Option<DiskFunction>,
    /// The network function that is passed through.
    pub nic: Option<NicFunction>,
}

/// One load on one path, before it has been measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Who does it.
    pub runner: Runner,
    /// What it is done on.
    pub target: Target,
    /// What is known beforehand. The path of a backing file and the address of a peer are not.
    pub result: VariantResult,
}

/// All variants, in the order in which they are shown: by load, from the least between load and backend to the most.
#[must_use]
pub fn plan(options: &PlanOptions) -> Vec<Variant> {
    let mut variants = Vec::new();
    let subjects = WORKLOADS
        .iter()
        .filter(|work| options.subjects.contains(&work.subject()));
    for work in subjects.filter(|work| work.quick || !options.quick) {
        let of_work = places(options, work);
        variants.extend(
            of_work
                .into_iter()
                .map(|(runner, target)| variant(options, work, runner, target)),
        );
    }
    if !options.only.is_empty() {
        let wanted = |name: &str| options.only.iter().any(|part| name.contains(part.as_str()));
        variants.retain(|variant| wanted(&variant.result.name));
    }
    // What is not measured is compared with nothing.
    let names: Vec<String> = variants.iter().map(|one| one.result.name.clone()).collect();
    for variant in &mut variants {
        variant.result.direct.take_if(|name| !names.contains(name));
    }
    variants
}

fn places(options: &PlanOptions, work: &Workload) -> Vec<(Runner, Target)> {
    let mut places = Vec::new();
    let baselines = |target| {
        let runners = Runner::BASELINES.into_iter();
        runners
            .filter(|runner| options.containers || *runner != Runner::Container)
            .map(move |runner| (runner, target))
    };
    let mut guest = Vec::new();
    match work.subject() {
        Subject::Block => {
            places.extend(baselines(Target::File));
            let disk = options.disk.as_ref();
            if let Some(disk) = disk.filter(|disk| disk.overwrite || !work.writes()) {
                if disk.host_path.is_some() {
                    places.extend(baselines(Target::HostDisk));
                }
                guest.push(Target::Nvme);
            }
            guest.extend([Target::VirtioBlk, Target::Ide]);
        }
        Subject::Net => {
            places.extend(baselines(Target::Loopback));
            if let Some(nic) = &options.nic {
                if nic.on_host {
                    places.extend(baselines(Target::HostNic));
                }
                guest.push(Target::Nic);
            }
            guest.extend([Target::VirtioNet, Target::E1000]);
        }
        Subject::Console => guest.extend([Target::VirtioConsole, Target::Uart]),
    }
    places.extend(guest.into_iter().map(|target| (Runner::Guest, target)));
    places
}

fn variant(options: &PlanOptions, work: &Workload, runner: Runner, target: Target) -> Variant {
    let subject = match work.subject() {
        Subject::Block => "block",
        Subject::Net => "net",
        Subject::Console => "console",
    };
    let named = |place: &str| format!("{subject}/{}/{place}", work.name);
    let device = device(options, runner, target);
    let of_function = |runner: Runner| format!("{}-{device}", runner.name());
    let (place, direct) = match (runner, target) {
        (Runner::Guest, Target::Nvme | Target::Nic) => {
            let direct = named(&of_function(Runner::Direct));
            (device.clone(), Some(direct))
        }
        (Runner::Guest, Target::Uart | Target::VirtioConsole) => (device.clone(), None),
        (Runner::Guest, _) => (device.clone(), Some(named("direct"))),
        (_, Target::HostDisk | Target::HostNic) => {
            let direct = named(&of_function(Runner::Direct));
            (of_function(runner), Some(direct))
        }
        _ => (runner.name().to_owned(), Some(named("direct"))),
    };
    let spec = LoadSpec {
        load: load(options, work.kind, target),
        warm_up_ms: options.warm_up_ms,
        time_ms: options.time_ms,
        seed: 0,
    };
    let name = named(&place);
    Variant {
        runner,
        target,
        result: VariantResult {
            direct: direct.filter(|direct| *direct != name),
            name,
            subject: work.subject(),
            workload: work.name.to_owned(),
            device,
            path: path_kind(runner, target),
            spec,
            samples: Vec::new(),
            failure: None,
        },
    }
}

fn device(options: &PlanOptions, runner: Runner, target: Target) -> String {
    match target {
        Target::File => "file",
        Target::HostDisk | Target::Nvme => "nvme",
        Target::Ide => "ide",
        Target::VirtioBlk => "virtio-blk",
        Target::Loopback if runner == Runner::Container => "veth",
        Target::Loopback => "loopback",
        Target::HostNic | Target::Nic => {
            let driver = options.nic.as_ref().map(|nic| nic.driver.as_str());
            driver.unwrap_or("nic")
        }
        Target::E1000 => "e1000",
        Target::VirtioNet => "virtio-net",
        Target::Uart => "uart",
        Target::VirtioConsole => "virtio-console",
    }
    .to_owned()
}

fn path_kind(runner: Runner, target: Target) -> PathKind {
    match (runner, target) {
        (Runner::Direct, _) => PathKind::Direct,
        (Runner::Container, _) => PathKind::Container,
        (Runner::Sandbox, _) => PathKind::Sandbox,
        (Runner::Guest, Target::Nvme | Target::Nic) => PathKind::Passthrough,
        (Runner::Guest, Target::Ide | Target::E1000 | Target::Uart) => PathKind::Emulated,
        (Runner::Guest, _) => PathKind::Paravirtual,
    }
}

fn load(options: &PlanOptions, kind: Kind, target: Target) -> Load {
    let path = match (target, &options.disk) {
        (Target::HostDisk, Some(disk)) => disk.host_path.clone().unwrap_or_default(),
        _ => target.guest_path().unwrap_or_default().into(),
    };
    let peer = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    match kind {
        Kind::Block(operation, pattern, size_bytes, depth) => Load::Block {
            path,
            operation,
            pattern,
            size_bytes,
            depth,
            span_bytes: options.span_bytes,
            // A guest's own page cache is none of the paths.
            direct: target != Target::File || options.file_direct,
        },
        Kind::UdpRoundTrip(size_bytes) => Load::UdpRoundTrip { peer, size_bytes },
        Kind::UdpSend(size_bytes) => Load::UdpSend { peer, size_bytes },
        Kind::UdpReceive(size_bytes) => Load::UdpReceive { peer, size_bytes },
        Kind::TcpSend => Load::TcpSend { peer },
        Kind::TcpReceive => Load::TcpReceive { peer },
        Kind::Console => Load::Console { path },
    }
}

/// The order of one round, as indices of `variants`: the runners shuffled, and within each its loads.
pub fn order(variants: &[Variant], random: &mut fastrand::Rng) -> Vec<(Runner, Vec<usize>)> {
    let mut runners = Runner::ALL;
    random.shuffle(&mut runners);
    let of = |runner| {
        let all = variants.iter().enumerate();
        all.filter(move |(_, variant)| variant.runner == runner)
            .map(|(index, _)| index)
    };
    let mut order: Vec<_> = runners
        .into_iter()
        .map(|runner| (runner, of(runner).collect::<Vec<_>>()))
        .collect();
    for (_, indices) in &mut order {
        random.shuffle(indices);
    }
    order.retain(|(_, indices)| !indices.is_empty());
    order
}

/// `load` with that peer, if it has one.
pub fn set_peer(load: &mut Load, address: SocketAddr) {
    match load {
        Load::UdpRoundTrip { peer, .. }
        | Load::UdpSend { peer, .. }
        | Load::UdpReceive { peer, .. }
        | Load::TcpSend { peer }
        | Load::TcpReceive { peer } => *peer = address,
        Load::Block { .. } | Load::Console { .. } => {}
    }
}

#[cfg(test)]
mod tests;
