//! The options of `tripath test`.

use std::convert::Infallible;
use std::path::PathBuf;

use boottest::guest::{WrittenModules, WrittenRootfs};
use boottest::judge::End;
use boottest::spec::{Asked, GuestSpec, Span};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueHint};

use super::RunArgs;

/// Behind the help of `tripath test`.
pub const TEST_NOTES: &str = "\
The guest's consoles are what goes to stdio: COM1, unless --serial says
otherwise, and the virtio console with --console stdio. Text is matched line by
line, without terminal control sequences, and also while a line still grows: a
prompt is found. ^ is the beginning of a line, $ its end, which a prompt does not
have.

A kernel panic, an oops or BUG, a hung task, a lockup, an RCU stall, an emergency
shell, a triple fault, an internal error of KVM, or too many resets end the run
at once, and it has failed whatever was seen before; the lines around are shown.
With --end panic a panic is what is asked for, and all expectations must have
been met when the guest has told of it.

The run passes when all expectations were met, none of the rejected patterns was
seen, the command has exited with 0, and the guest has ended as --end says. With
--end none it is over when the last expectation is met: what the guest would have
done after is not seen.

A suite:

    [variables]                 # ${NAME} below; --set NAME=VALUE and the environment win
    KERNELS = \"/boot\"
    [defaults]                  # keys as the options, for all tests
    timeout = \"60s\"
    [[kernel]]                  # each test runs with each kernel,
    name = \"6.12\"
    kernel = \"${KERNELS}/vmlinuz-6.12\"
    [[machine]]                 # with each machine,
    name = \"virtio\"
    disk = [{ path = \"disk.img\", readonly = true }]
    [matrix]                    # with each number of CPUs and size of memory,
    cpus = [1, 2]
    memory = [\"256M\"]
    exclude = [{ test = \"login\", machine = \"virtio\", cpus = 2 }]
    [[test]]
    name = \"login\"
    kernels = [\"6.12\"]          # on these only
    steps = [{ expect = \"login: \", send = \"root\\n\" }]
    expect = [\"# \"]

Exit codes:
   0  passed
   1  tripath or the host failed, or the run was interrupted
   2  a mistake in the options or in what they name; nothing was started
  11  the guest panicked, or its kernel reported a fault, or it got no further than an emergency shell
  12  the guest crashed, or is in a reset loop
  20  an expectation was not met, or the guest ended otherwise
  21  time ran out
  22  a rejected pattern was seen
  23  the guest's command failed
With a suite: 0 if all tests passed, else that of the first that did not.";

/// The options of `tripath test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Suite of tests in TOML, in place of --kernel and the other options of one test
    #[arg(value_name = "SUITE.toml", value_hint = ValueHint::FilePath)]
    pub suite: Option<PathBuf>,
    /// The machine.
    #[command(flatten)]
    pub machine: RunArgs,
    /// What makes the verdict.
    #[command(flatten)]
    pub verdict: VerdictArgs,
    /// What runs in the guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Logs and reports.
    #[command(flatten)]
    pub reports: ReportArgs,
    /// For a suite.
    #[command(flatten)]
    pub suite_options: SuiteArgs,
    /// Runs the test that is described in this folder, and leaves its result there
    #[arg(long, hide = true, value_name = "DIR")]
    pub worker: Option<PathBuf>,
}

/// What makes the verdict.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Verdict")]
pub struct VerdictArgs {
    /// Regular expression to appear on a console; repeat for more, one after the other
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    pub expect: Vec<String>,
    /// Regular expression not to appear; may be repeated
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    pub reject: Vec<String>,
    /// A line with this regular expression is not taken for the guest's death; may be repeated
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    pub ignore: Vec<String>,
    /// How the guest is to end [default: poweroff; none with --expect and without a command]
    #[arg(long, value_name = "poweroff|reboot|panic|none", hide_possible_values = true, value_parser = end())]
    pub end: Option<End>,
    /// How long the run may take, as in 90s or 2m [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// How long the guest may print nothing [default: as long as the run may take]
    #[arg(long, value_name = "TIME")]
    pub quiet_timeout: Option<Span>,
    /// How often the guest may be reset [default: 1]; once more is a reset loop
    #[arg(long, value_name = "N")]
    pub resets: Option<u32>,
}

/// What runs in the guest.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "In the guest")]
pub struct GuestArgs {
    /// Command that a shell in the guest runs, whose status decides
    #[arg(
        long,
        value_name = "COMMAND",
        conflicts_with = "script",
        allow_hyphen_values = true
    )]
    pub exec: Option<String>,
    /// Script or program of the host that runs in the guest
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Root file system for the command [default: initrd with --initrd, else host]
    ///
    /// A folder is shared read-only, with an overlay in the guest's memory for what the guest writes; `host` is the
    /// folder /. Of a raw disk image, PARTITION is a number, LABEL=..., UUID=... or PARTUUID=..., not needed if only one
    /// has a file system; what the guest writes stays in its memory, too, unless writable=on. With `initrd`, the
    /// command runs in the initrd's own files.
    #[arg(
        long,
        value_name = "host|initrd|DIR|IMAGE[,partition=PARTITION][,writable=on]"
    )]
    pub rootfs: Option<WrittenRootfs>,
    /// Where the kernel's modules are, or none if all is built in [default: the host's or, beside the kernel, its package's]
    #[arg(long, value_name = "DIR|none", value_parser = |text: &str| Ok::<_, Infallible>(WrittenModules::from(text)))]
    pub modules: Option<WrittenModules>,
}

/// Logs and reports.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Reports")]
pub struct ReportArgs {
    /// Folder for the logs; of a suite, with a folder for each test [default: none; tripath-logs for a suite]
    #[arg(long, value_name = "DIR")]
    pub log: Option<PathBuf>,
    /// Write a JUnit XML report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the same facts as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print what the guest prints, on standard error
    #[arg(long)]
    pub show_console: bool,
}

/// For a suite.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Suites")]
pub struct SuiteArgs {
    /// Tests at once, at most [default: as many as the host has CPUs and, at the tests' sizes, memory]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Run only the test of this name, or those whose names contain it; may be repeated
    #[arg(long, value_name = "NAME")]
    pub filter: Vec<String>,
    /// List the tests and run none
    #[arg(long)]
    pub list: bool,
    /// Value for one of the suite's variables; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub set: Vec<(String, String)>,
}

impl VerdictArgs {
    /// What is asked of the guest.
    pub fn asked(&self) -> Asked {
        let Self {
            expect,
            reject,
            ignore,
            end,
            timeout,
            quiet_timeout,
            resets,
        } = self.clone();
        Asked {
            steps: Vec::new(),
            expect,
            reject,
            ignore,
            end,
            timeout,
            quiet_timeout,
            resets,
        }
    }
}

impl GuestArgs {
    /// What runs in the guest.
    pub fn spec(&self) -> GuestSpec {
        let Self {
            exec,
            script,
            rootfs,
            modules,
        } = self.clone();
        GuestSpec {
            exec,
            script,
            rootfs,
            modules,
        }
    }
}

fn end() -> impl TypedValueParser<Value = End> {
    PossibleValuesParser::new(["poweroff", "reboot", "panic", "none"]).map(|name| {
        match name.as_str() {
            "reboot" => End::Reboot,
            "panic" => End::Panic,
            "none" => End::None,
            _ => End::PowerOff,
        }
    })
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use boottest::suite::{Suite, Variables};

    #[test]
    fn the_suite_in_the_help_is_one() {
        let lines = TEST_NOTES.lines().filter(|line| line.starts_with("    "));
        let text: Vec<_> = lines.collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        std::fs::write(&path, text.join("\n")).unwrap();
        let suite = Suite::load(&path, &Variables::default()).unwrap();
        let names: Vec<_> = suite.tests.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(names, ["login/6.12/virtio/1cpu/256M"]);
    }

    #[test]
    fn the_suite_that_is_shipped_is_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/suites/boot.toml");
        let names = ["KERNELS", "DISK"];
        let set = names.map(|name| (name.to_owned(), "/x".to_owned()));
        let suite = Suite::load(path.as_ref(), &Variables::new(set, [])).unwrap();
        assert_eq!(suite.tests.len(), 12 + 8);
    }
}
