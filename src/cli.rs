//! The command line.

mod bench_args;
mod test_args;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use vmm_core::config::{
    CharTarget, CpuConfig, DeviceConfig, DiskConfig, MachineFile, MemoryConfig, NetConfig, OnPanic,
    OnReboot, ShareConfig,
};

use crate::args;
use crate::exit_code::{Exit, UserError};

pub use bench_args::{BenchArgs, BenchCommand, BenchExitsArgs, IoArgs};
pub use test_args::{ReportArgs, TestArgs};

/// A virtual machine monitor for x86-64 Linux on KVM that shows what each I/O path costs.
#[derive(Debug, Parser)]
#[command(name = "tripath", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Log more: -v what is done, -vv how, -vvv everything; RUST_LOG=vmm_core=debug says it by module
    #[arg(short, long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a Linux kernel in a guest
    #[command(after_help = EXIT_CODES, after_long_help = RUN_NOTES)]
    Run(Box<RunArgs>),
    /// Boot a guest, or a suite of guests, and give a verdict
    #[command(after_help = EXIT_CODES, after_long_help = test_args::TEST_NOTES)]
    Test(Box<TestArgs>),
    /// Prepare and explain passthrough of real PCI functions
    #[command(subcommand)]
    Vfio(VfioCommand),
    /// Measure what I/O costs on this host
    #[command(after_help = EXIT_CODES, after_long_help = bench_args::BENCH_NOTES)]
    Bench(Box<BenchArgs>),
    /// Ask a guest that runs
    #[command(subcommand)]
    Ctl(CtlCommand),
    /// Say what this host can do for guests, and what to change
    ///
    /// One line for each thing looked at, with "ok", "warn" (a guest runs without it) or "fail" (no guest can run).
    /// The exit code is 0 if a guest can run here, 1 if not.
    Doctor,
}

/// What `tripath ctl` asks.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// What the guest has cost up to now, as --stats has it at the end
    Stats {
        /// The path that the guest's run was given with --control
        #[arg(value_name = "SOCKET")]
        socket: PathBuf,
        /// Everything, KVM's own counters included, for programs
        #[arg(long)]
        json: bool,
    },
}

/// What `tripath vfio` does.
#[derive(Debug, Subcommand)]
pub enum VfioCommand {
    /// List PCI functions by IOMMU group, and whether each could be assigned now
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Explain one function: its group and why that is so large, resets, interrupts, what stands in the way
    Show {
        /// The function, as in 0000:01:10.0
        #[arg(value_name = "ADDRESS")]
        function: String,
        /// The guest's RAM, all of which is to be locked
        #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = args::memory)]
        memory: MemoryConfig,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Make or remove virtual functions, and list them
    Sriov {
        /// The physical function: its network interface or its address
        #[arg(value_name = "PF")]
        pf: String,
        /// How many there are to be; 0 removes them. Refused while one is in use
        #[arg(long, value_name = "N")]
        vfs: Option<u32>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Put back what runs that were killed have left
    Recover,
}

const EXIT_CODES: &str = "\
Exit codes: 0 the guest powered off, 1 tripath or the host failed, 2 a mistake in the options,
11 the guest panicked, 12 the guest crashed; of a test: 20 an expectation was not met, 21 time ran out,
22 a rejected pattern was seen, 23 the guest's command failed; of a comparison of benchmarks: 24 something got slower.";

const RUN_NOTES: &str = "\
The machine file has the same keys and values as the options, without the dashes:

    kernel = \"vmlinuz\"             # paths are relative to the file's folder
    cmdline = \"console=ttyS0 root=/dev/vda\"
    kernel-cache = false           # --no-kernel-cache
    cpus = 2                       # or { count = 2, affinity = [\"0@2\", \"1@3\"] }
    memory = \"1G\"                  # or { size = \"1G\", memfd = true, thp = false }
    serial = [\"stdio\", \"file=com2.log\"]
    on-reboot = \"exit\"
    [[disk]]
    path = \"root.img\"
    readonly = true
    [[net]]
    tap = \"tap0\"
    [[share]]
    path = \"tree\"
    tag = \"data\"
    [[device]]
    host = \"01:00.0\"

An option replaces the file's key of the same name as a whole: --disk replaces
all the file's disks, --cpus its affinities too.

Within the value of --cpus, --memory, --disk, --net, --share and --device a
comma is written twice:
--disk path=a,,b is the file \"a,b\". On and off may be written true and false.

On a terminal, the guest has the keyboard, Ctrl-C included; Ctrl-A x ends the
guest. SIGTERM asks the guest to power off, and a second one ends it.

Exit codes:
   0  the guest powered off, was reset with --on-reboot exit, or was ended with Ctrl-A x
   1  tripath or the host failed
   2  a mistake in the options or in what they name; nothing was started
  11  the guest panicked
  12  the guest crashed: a triple fault with --on-reboot exit, or an internal error of KVM";

/// The options of `tripath run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Kernel to boot: a bzImage (vmlinuz), an ELF vmlinux, or a PVH kernel; told apart by content
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0, or console=hvc0 if only --console is heard]
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Virtual CPUs [default: 1]; affinity=0@2:1@4-5 runs vCPU 0 on host CPU 2 and vCPU 1 on 4 and 5
    ///
    /// CPUS is a host CPU or a range, and several of them joined with '+', as in 0@0-1+4. A vCPU that is not named
    /// runs anywhere.
    #[arg(long, value_name = "N[,affinity=VCPU@CPUS[:VCPU@CPUS]...]", value_parser = args::cpus)]
    pub cpus: Option<CpuConfig>,
    /// Guest RAM with K, M, G or T [default: 512M], at least 64M
    ///
    /// A multiple of 2M. memfd=on backs it with a memfd, which other processes can map; thp=off does not ask for
    /// transparent huge pages.
    #[arg(long, value_name = "SIZE[,memfd=on|off][,thp=on|off]", value_parser = args::memory)]
    pub memory: Option<MemoryConfig>,
    /// Disk from a raw file or a block device; may be repeated
    ///
    /// The file is locked: shared with readonly=on, exclusive otherwise. direct=on bypasses the host's page cache.
    /// The guest sees the disks in the order given, as /dev/vda, /dev/vdb...
    #[arg(
        long,
        value_name = "path=FILE[,if=virtio|ide][,media=disk|cdrom][,readonly=on|off][,direct=on|off][,serial=STRING]",
        value_parser = args::disk
    )]
    pub disk: Vec<DiskConfig>,
    /// Network interface on an existing TAP; may be repeated
    ///
    /// Without mac= an address is made up.
    #[arg(long, value_name = "tap=NAME[,if=virtio|e1000][,mac=MAC]", value_parser = args::net)]
    pub net: Vec<NetConfig>,
    /// Directory of the host that the guest can mount and only read; may be repeated
    ///
    /// In the guest: mount -t virtiofs TAG /mnt
    #[arg(long, value_name = "path=DIR,tag=TAG", value_parser = args::share)]
    pub share: Vec<ShareConfig>,
    /// PCI function of the host that the guest gets; may be repeated
    ///
    /// host= is its address, pf= a network interface or address of a physical function one of whose virtual functions
    /// the guest gets, with the MAC address and the other settings. It is taken from its driver, and goes back at the
    /// end unless keep=on; force=on takes it even if the host uses it. rombar=off hides its expansion ROM. trap= has accesses to a BAR, or to a
    /// part of it, passed on one by one, after all writes to memory before them, instead of straight to the hardware;
    /// it may be repeated.
    #[arg(
        long,
        value_name = "host=ADDRESS[,keep=on]|pf=PF,vf=auto|N[,mac=MAC][,vlan=ID][,spoofchk=on|off][,trust=on|off][,force=on][,rombar=off][,trap=BAR[:OFFSET+LEN]]",
        value_parser = args::device
    )]
    pub device: Vec<DeviceConfig>,
    /// Serial port; repeat for COM1 to COM4 [default: stdio on COM1, unless --console takes stdio]
    ///
    /// pty makes a pseudo-terminal and prints its name; file= is output only; socket= listens on a Unix socket,
    /// tcp= on a TCP port, for one client at a time, without a password.
    #[arg(
        long,
        value_name = "stdio|null|pty|file=PATH|socket=PATH|tcp=HOST:PORT"
    )]
    pub serial: Vec<CharTarget>,
    /// virtio console, /dev/hvc0 in the guest [default: none]
    #[arg(
        long,
        value_name = "stdio|null|pty|file=PATH|socket=PATH|tcp=HOST:PORT"
    )]
    pub console: Option<CharTarget>,
    /// virtio entropy device [default: on if there is another virtio device]
    #[arg(long, value_name = "on|off", value_parser = on_off())]
    pub rng: Option<bool>,
    /// What a reset by the guest does [default: restart]
    #[arg(long, value_name = "restart|exit", hide_possible_values = true, value_parser = on_reboot())]
    pub on_reboot: Option<OnReboot>,
    /// What a panic of the guest does [default: exit]
    #[arg(long, value_name = "exit|hang", hide_possible_values = true, value_parser = on_panic())]
    pub on_panic: Option<OnPanic>,
    /// Neither use nor keep the unpacked kernel in the user's cache folder
    #[arg(long)]
    pub no_kernel_cache: bool,
    /// Machine file in TOML that says the same as the options; options win
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the machine that results, as a machine file, and start nothing
    #[arg(long)]
    pub dump_config: bool,
    /// At the end, print exits by reason and accesses by device and register, with their time in user space, on
    /// standard error
    #[arg(long)]
    pub stats: bool,
    /// Listen on a Unix socket for "tripath ctl", which asks for the same while the guest runs
    ///
    /// Only the user who runs the guest, and root, may connect.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

impl RunArgs {
    /// What the options say about the machine.
    pub fn into_machine(self) -> MachineFile {
        MachineFile {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            kernel_cache: self.no_kernel_cache.then_some(false),
            on_reboot: self.on_reboot,
            on_panic: self.on_panic,
            serial: given(self.serial),
            console: self.console,
            rng: self.rng,
            cpus: self.cpus,
            memory: self.memory,
            disk: given(self.disk),
            net: given(self.net),
            share: given(self.share),
            device: given(self.device),
        }
    }
}

/// An option that may be repeated says nothing when it is not there.
fn given<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn on_off() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["on", "off"]).map(|word| word == "on")
}

fn on_reboot() -> impl TypedValueParser<Value = OnReboot> {
    PossibleValuesParser::new(["restart", "exit"]).map(|name| match name.as_str() {
        "exit" => OnReboot::Exit,
        _ => OnReboot::Restart,
    })
}

fn on_panic() -> impl TypedValueParser<Value = OnPanic> {
    PossibleValuesParser::new(["exit", "hang"]).map(|name| match name.as_str() {
        "hang" => OnPanic::Hang,
        _ => OnPanic::Exit,
    })
}

impl Cli {
    /// Parses, or prints help or the mistake and says how to exit.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        Self::try_parse_from(arguments).map_err(|error| {
            if is_help(&error) {
                // Nobody is left to be told that the help could not be printed.
                let _ = error.print();
            } else {
                eprintln!("tripath: {}", one_line(&error));
            }
            if error.use_stderr() {
                Exit::UserError
            } else {
                Exit::Success
            }
        })
    }
}

fn is_help(error: &clap::Error) -> bool {
    let not_asked_for = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    not_asked_for || !error.use_stderr()
}

/// clap's error in one line of ours.
fn one_line(error: &clap::Error) -> UserError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    // "--disk <path=FILE...>" as clap has it
    let option = context(ContextKind::InvalidArg)
        .split(' ')
        .next()
        .unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    match (error.kind(), std::error::Error::source(error)) {
        (ErrorKind::ValueValidation, Some(source)) => {
            UserError::from_text(format!("{option} {value}: {source}"))
        }
        (ErrorKind::InvalidValue, _) => {
            let accepted = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(accepted)) if !accepted.is_empty() => {
                    accepted.join(", ")
                }
                _ => return UserError::from_text(format!("{option} needs a value")),
            };
            UserError::from_text(format!(
                "{option} does not take {value:?} (it takes {accepted})"
            ))
        }
        (ErrorKind::InvalidSubcommand, _) => {
            let name = context(ContextKind::InvalidSubcommand);
            let command = Cli::command();
            let known: Vec<_> = command
                .get_subcommands()
                .map(clap::Command::get_name)
                .collect();
            UserError::from_text(format!(
                "unknown command {name:?} (the commands are {})",
                known.join(", ")
            ))
        }
        _ => {
            let text = error.render().to_string();
            let told = text.split("\n\nUsage:").next().unwrap_or_default();
            let told = told.split("\n\nFor more").next().unwrap_or_default().trim();
            let told = told.strip_prefix("error: ").unwrap_or(told);
            UserError::from_text(format!("{told}\nsee --help"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_args(options: &[&str]) -> Result<RunArgs, String> {
        let arguments = ["tripath", "run"].iter().chain(options);
        match Cli::try_parse_from(arguments)
            .map_err(|error| one_line(&error).to_string())?
            .command
        {
            Command::Run(arguments) => Ok(*arguments),
            _ => panic!("not run"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_reaches_the_machine() {
        let arguments = run_args(&[
            "--kernel=k",
            "--initrd=i",
            "--cmdline",
            "-x y",
            "--cpus=2,affinity=0@1",
            "--memory=1G,memfd=on",
            "--disk=path=a",
            "--disk=path=b,readonly=on",
            "--net=tap=t",
            "--share=path=s,tag=u",
            "--serial=null",
            "--serial=file=f,g",
            "--console=pty",
            "--rng=off",
            "--on-reboot=exit",
            "--on-panic=hang",
            "--no-kernel-cache",
        ]);
        let file: MachineFile = toml::from_str(
            r#"
            kernel = "k"
            initrd = "i"
            cmdline = "-x y"
            kernel-cache = false
            on-reboot = "exit"
            on-panic = "hang"
            serial = ["null", "file=f,g"]
            console = "pty"
            rng = false
            cpus = { count = 2, affinity = ["0@1"] }
            memory = { size = "1G", memfd = true }
            disk = [{ path = "a" }, { path = "b", readonly = true }]
            net = [{ tap = "t" }]
            share = [{ path = "s", tag = "u" }]
            "#,
        )
        .unwrap();
        assert_eq!(arguments.unwrap().into_machine(), file);
    }

    #[test]
    fn options_that_are_not_given_say_nothing() {
        assert_eq!(
            run_args(&[]).unwrap().into_machine(),
            MachineFile::default()
        );
    }

    #[test]
    fn every_mistake_is_one_line() {
        for (options, message) in [
            (
                &["--disk", "pth=a"][..],
                "--disk pth=a: unknown key \"pth\" (the keys are path, if, media, readonly, direct, serial)",
            ),
            (
                &["--serial", "tty"],
                "--serial tty: \"tty\" is not a target: the targets are stdio, null, pty, file=PATH, socket=PATH and tcp=HOST:PORT",
            ),
            (
                &["--memory", "1.5G"],
                "--memory 1.5G: \"1.5G\" is not a size: write a whole number with K, M, G or T, such as 512M",
            ),
            (
                &["--on-reboot", "stop"],
                "--on-reboot does not take \"stop\" (it takes restart, exit)",
            ),
            (&["--kernel"], "--kernel needs a value"),
            (
                &["--kernel=a", "--kernel=b"],
                "the argument '--kernel <PATH>' cannot be used multiple times; see --help",
            ),
            (
                &["--kernl", "a"],
                "unexpected argument '--kernl' found; tip: a similar argument exists: '--kernel'; see --help",
            ),
            (
                &["vmlinuz"],
                "unexpected argument 'vmlinuz' found; see --help",
            ),
        ] {
            assert_eq!(run_args(options).unwrap_err(), message);
        }
    }

    #[test]
    fn an_unknown_command_is_told_the_known_ones() {
        let error = Cli::try_parse_from(["tripath", "rn"]).unwrap_err();
        assert_eq!(
            one_line(&error).to_string(),
            "unknown command \"rn\" (the commands are run, test, vfio, bench, ctl, doctor)"
        );
    }

    #[test]
    fn help_that_was_asked_for_is_no_mistake() {
        for (arguments, help, mistake) in [
            (&["tripath", "run", "--help"][..], true, false),
            (&["tripath", "--version"], true, false),
            (&["tripath"], true, true),
            (&["tripath", "run", "--memory=x"], false, true),
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(
                (is_help(&error), error.use_stderr()),
                (help, mistake),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn the_machine_file_in_the_help_is_one() {
        let example: Vec<_> = RUN_NOTES
            .lines()
            .filter(|line| line.starts_with("    "))
            .collect();
        let file: MachineFile = toml::from_str(&example.join("\n")).unwrap();
        assert_eq!(file.complete().unwrap().validate(), Ok(()));
    }

    #[test]
    fn verbosity_is_counted() {
        let cli = Cli::try_parse_from(["tripath", "run", "-vv"]).unwrap();
        assert_eq!(cli.verbose, 2);
    }
}
