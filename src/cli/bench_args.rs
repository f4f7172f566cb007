//! The options of `tripath bench`.

use std::path::PathBuf;

use bench::results::Subject;
use bench::run::Pins;
use boottest::guest::WrittenModules;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueHint};
use vmm_core::config::text::ByteSize;
use vmm_core::config::{CpuAffinity, DeviceConfig, MemoryConfig};

use crate::args;

/// Behind the help of `tripath bench`.
pub const BENCH_NOTES: &str = "\
A guest that is booted anew in each round has all devices at once: an IDE disk
and a virtio disk on a file each, an e1000 and a virtio network interface on a
TAP each, COM2 and a virtio console, and what --device names. The same loads run
on the host, as a process (direct), in namespaces and a control group of its own
(container), and under a filter of system calls (sandbox): on the virtio disk's
file, through the host's loopback, and on the functions as long as the guest does
not have them. Networks lead to a process on this host.

Exit codes:
   0  measured; what could not be is in the table
   1  tripath or the host failed, nothing could be measured, or the run was interrupted
   2  a mistake in the options or in what they name; nothing was started
  24  with --compare: something got slower, or can no longer be measured";

/// The options of `tripath bench`, and its other measurements.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// Another measurement than that of I/O paths.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
    /// That of I/O paths.
    #[command(flatten)]
    pub io: IoArgs,
}

/// What else `tripath bench` measures.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// What one exit from a guest costs, by kind; needs nothing but /dev/kvm
    ///
    /// A guest of some hundred bytes does one thing over and over: it reads and writes ports and registers that user
    /// space answers, rings a doorbell (ioeventfd), calls KVM, executes CPUID, is interrupted (irqfd) while it runs or
    /// halts, and interrupts another of its CPUs. Each kind is measured once a round, in an order that --seed repeats.
    Exits(BenchExitsArgs),
    /// The process of a guest; for tripath itself
    #[command(hide = true)]
    Guest,
    /// Removes control groups at the end; for tripath itself
    #[command(hide = true)]
    Janitor {
        /// Their folders
        folders: Vec<PathBuf>,
    },
}

/// The options of `tripath bench` for I/O paths.
#[derive(Debug, Args)]
pub struct IoArgs {
    /// The guest's kernel [default: the host's, in /boot]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// The folder of its modules, or none if all is built in [default: looked for]
    #[arg(long, value_name = "DIR|none")]
    pub modules: Option<WrittenModules>,
    /// The guest's vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// The guest's RAM
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = args::memory)]
    pub memory: MemoryConfig,
    /// How often each variant is measured [default: 5, with --quick 4, or as many as end within two
    /// minutes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: Option<u32>,
    /// How long each measurement takes, in milliseconds [default: 1000, with --quick 200]; a quarter of it is warm-up
    /// before it
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub time: Option<u64>,
    /// The loads that tell most, in two minutes
    #[arg(long)]
    pub quick: bool,
    /// For the order within the rounds and of offsets [default: another each time, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Only variants with this in their names, as --list shows them; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Kinds of I/O
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "block,net,console", value_parser = subject())]
    pub subjects: Vec<Subject>,
    /// Where the files of disks are made, without names [default: the cache folder]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub disk_folder: Option<PathBuf>,
    /// Size of each disk [default: 256M, with --quick 64M]
    #[arg(long, value_name = "SIZE")]
    pub disk_size: Option<ByteSize>,
    /// Whether files bypass the host's page cache [default: on, if the folder's file system can]
    #[arg(long, value_name = "on|off", value_parser = super::on_off())]
    pub direct: Option<bool>,
    /// A function of the host that is passed through: an NVMe controller, or a virtual function of a network card
    #[arg(
        long,
        value_name = "host=ADDRESS|pf=PF[,vf=auto|N][,mac=MAC][,force=on]",
        value_parser = args::device
    )]
    pub device: Vec<DeviceConfig>,
    /// What is on the passed through disk may be overwritten: without this it is only read
    #[arg(long)]
    pub overwrite: bool,
    /// Host CPUs for vCPUs, for the rest of the guest's process, and for load programs on the host
    #[arg(long, value_name = "vcpu=CPUS,io=CPUS,load=CPUS", value_parser = args::pins)]
    pub pin: Option<Pins>,
    /// Everything, each sample included, for programs
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// A page with charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// An earlier --json to compare with
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Measure with a debug build, whose numbers say little
    #[arg(long)]
    pub force: bool,
    /// Print the names of all variants, and measure none
    #[arg(long)]
    pub list: bool,
}

fn subject() -> impl TypedValueParser<Value = Subject> {
    PossibleValuesParser::new(["block", "net", "console"]).map(|name| match name.as_str() {
        "net" => Subject::Net,
        "console" => Subject::Console,
        _ => Subject::Block,
    })
}

/// The options of `tripath bench exits`.
#[derive(Debug, Args)]
pub struct BenchExitsArgs {
    /// Samples of each kind, of which the median is told
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// For the order within the rounds [default: another each time, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where vCPUs run, as the affinity of --cpus says it: 0@2:1@3 is vCPU 0 on host CPU 2, vCPU 1 on 3
    #[arg(long, value_name = "VCPU@CPUS[:VCPU@CPUS]", value_delimiter = ':')]
    pub pin: Vec<CpuAffinity>,
    /// Count them meanwhile, as tripath run does with --stats: the difference is what counting costs
    #[arg(long)]
    pub stats: bool,
    /// Everything, each sample included, for programs
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Measure with a debug build, whose numbers say little
    #[arg(long)]
    pub force: bool,
}
