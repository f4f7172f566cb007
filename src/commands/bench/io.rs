//! `tripath bench`: what each I/O path costs, side by side.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bench::compare::{Comparison, compare};
use bench::guest::machine::GuestMachine;
use bench::host::files::{check_folder, default_folder};
use bench::host::functions::{self, DiskOnHost, Functions};
use bench::host::process::Interrupt;
use bench::plan::{DiskFunction, NicFunction, PlanOptions, plan};
use bench::results::{BenchReport, Subject, VERSION};
use bench::rounds::any_seed;
use bench::run::{CommandMaker, IoBenchError, IoOptions, Pins, check, measure};
use bench::{report, text};
use devices::vfio::host::Host;
use devices::vfio::host::hold::{Hold, hold};
use devices::vfio::host::state::StateFolder;
use rustix::system::uname;
use rustix::thread::{CapabilitySet, CpuSet, capabilities, sched_getaffinity};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm_core::config::CpuAffinity;
use vmm_core::machine::{check_affinity, check_devices};
use vmm_core::signals::is_ignored;

use super::progress::Progress;
use super::{check_build, check_kvm};
use crate::cli::IoArgs;
use crate::commands::{check_writable, doctor};
use crate::exit_code::{Exit, UserError};

/// Where a distribution has its kernels.
const KERNELS: &str = "/boot";
const KERNEL_PREFIX: &str = "vmlinuz-";
/// Rounds of which a difference can be told from chance.
const ROUNDS: u32 = 5;
const QUICK_ROUNDS: u32 = 4;
const TIME_MS: u64 = 1000;
const QUICK_TIME_MS: u64 = 200;
/// A quick run is to end within two minutes; giving all back takes some seconds.
const QUICK_BUDGET: Duration = Duration::from_secs(110);
const DISK_BYTES: u64 = 256 << 20;
const QUICK_DISK_BYTES: u64 = 64 << 20;
/// Of the time of a measurement, what is warm-up before it.
const WARM_UP_PART: u64 = 4;

/// Runs the command.
///
/// # Errors
/// [`UserError`] for the user's mistakes; anything else is our failure.
pub fn run(arguments: &IoArgs) -> anyhow::Result<Exit> {
    if arguments.list {
        return list(arguments);
    }
    check_build(arguments.force)?;
    let old = arguments.compare.as_deref().map(read_report).transpose()?;
    let mut options = self::options(arguments)?;
    check(&options).map_err(mistake)?;
    for path in arguments.json.iter().chain(&arguments.html) {
        check_writable(path)?;
    }
    let interrupt = watch_signals().context("cannot watch signals")?;
    // To the end of all guests.
    let held = hold_nic(&options.functions)?;
    if held.is_some() {
        options = self::options(arguments)?;
    }
    let mut progress = Progress::new(options.rounds);
    let measured = measure(&options, &interrupt, &mut |event, report| {
        progress.on_event(&event, report);
    });
    progress.finish();
    let report = measured.map_err(mistake)?;
    let old = old.filter(|_| !report.interrupted);
    let comparison = old.map(|old| compare(&old, &report));
    // If it cannot be written, it has been seen.
    show(&report, comparison.as_ref());
    write(arguments, &report)?;
    if report.interrupted {
        return Err(IoBenchError::Interrupted.into());
    }
    Ok(exit_of(&report, comparison.as_ref()))
}

/// What the network function needs on the host: it is made if there is none, and its physical function is switched on.
fn hold_nic(functions: &Functions) -> anyhow::Result<Option<Hold>> {
    let Some(nic) = &functions.nic else {
        return Ok(None);
    };
    let host = Arc::new(Host::this());
    let state = StateFolder::of_caller(&host);
    let pf = nic.pf.parse().context("a physical function's address")?;
    let count = u16::try_from(nic.number.saturating_add(1)).unwrap_or(u16::MAX);
    hold(&host, &state, pf, count).map_err(|error| match error {
        error if error.is_users_mistake() => UserError::new(error).into(),
        error => error.into(),
    })
}

fn mistake(error: IoBenchError) -> anyhow::Error {
    if error.is_users() {
        UserError::new(error).into()
    } else {
        error.into()
    }
}

fn exit_of(report: &BenchReport, comparison: Option<&Comparison>) -> Exit {
    if report.variants.iter().all(|one| one.samples.is_empty()) {
        Exit::Failure
    } else if comparison.is_some_and(Comparison::is_worse) {
        Exit::Slower
    } else {
        Exit::Success
    }
}

fn list(arguments: &IoArgs) -> anyhow::Result<Exit> {
    let functions = functions::find(&arguments.device).map_err(UserError::new)?;
    let plan_options = plan_options(arguments, &functions, disk_bytes(arguments)?, false);
    let variants = plan(&plan_options);
    if variants.is_empty() {
        return Err(mistake(IoBenchError::Nothing));
    }
    let mut output = io::stdout().lock();
    for variant in variants {
        writeln!(output, "{}", variant.result.name)?;
    }
    Ok(Exit::Success)
}

fn read_report(path: &Path) -> Result<BenchReport, UserError> {
    let cannot = |error: &dyn std::fmt::Display| {
        UserError::from_text(format!("--compare {}: {error}", path.display()))
    };
    let text = fs::read(path).map_err(|error| cannot(&error))?;
    let report: BenchReport = serde_json::from_slice(&text)
        .map_err(|error| cannot(&format!("not what --json has written: {error}")))?;
    if report.version != VERSION {
        return Err(cannot(&format!(
            "its form is version {}, this program's is {VERSION}: measure again",
            report.version
        )));
    }
    Ok(report)
}

/// Everything that can be wrong is said here.
fn options(arguments: &IoArgs) -> anyhow::Result<IoOptions> {
    let kernel = kernel(arguments.kernel.as_deref())?;
    let has_nets = arguments.subjects.contains(&Subject::Net);
    if has_nets && !may(CapabilitySet::NET_ADMIN) {
        return Err(UserError::from_text(
            "networks are made by root only (CAP_NET_ADMIN): run as root, or give --subjects block,console",
        )
        .into());
    }
    let pins = arguments.pin.clone().unwrap_or_default();
    check_pins(&pins)?;
    let functions = functions::find(&arguments.device).map_err(UserError::new)?;
    check_devices(&functions.devices, arguments.memory.size_bytes).map_err(UserError::new)?;
    let disk_bytes = disk_bytes(arguments)?;
    let (disk_folder, can_be_direct) = disks(arguments, &functions, disk_bytes)?;
    let direct = arguments.direct.unwrap_or(can_be_direct);
    check_kvm()?;
    let plan = plan_options(arguments, &functions, disk_bytes, direct);
    let notes = notes(arguments, &functions, &plan, can_be_direct);
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let again = |command: &'static str| -> CommandMaker {
        let program = program.clone();
        Box::new(move || {
            let mut again = Command::new(&program);
            again.args(["bench", command]);
            again
        })
    };
    let quick_rounds = arguments.quick && arguments.rounds.is_none();
    let rounds = if arguments.quick {
        QUICK_ROUNDS
    } else {
        ROUNDS
    };
    Ok(IoOptions {
        plan,
        rounds: arguments.rounds.unwrap_or(rounds),
        // Who asks for rounds gets them.
        budget: quick_rounds.then_some(QUICK_BUDGET),
        seed: arguments.seed.unwrap_or_else(any_seed),
        guest: GuestMachine {
            kernel,
            cpus: arguments.cpus,
            vcpu_cpus: vcpu_cpus(&pins).context("cannot ask for our CPUs")?,
            memory: arguments.memory.clone(),
            direct,
            devices: functions.devices.clone(),
        },
        modules: arguments
            .modules
            .as_ref()
            .map(|written| written.source())
            .unwrap_or_default(),
        functions,
        pins,
        disk_folder,
        disk_bytes,
        notes,
        worker: again("guest"),
        janitor: again("janitor"),
    })
}

fn plan_options(
    arguments: &IoArgs,
    functions: &Functions,
    disk_bytes: u64,
    direct: bool,
) -> PlanOptions {
    let default_ms = if arguments.quick {
        QUICK_TIME_MS
    } else {
        TIME_MS
    };
    let time_ms = arguments.time.unwrap_or(default_ms);
    PlanOptions {
        subjects: arguments.subjects.clone(),
        quick: arguments.quick,
        only: arguments.only.clone(),
        warm_up_ms: time_ms / WARM_UP_PART,
        time_ms,
        span_bytes: disk_bytes,
        file_direct: direct,
        containers: arguments.list || may(CapabilitySet::SYS_ADMIN),
        disk: functions.disk.as_ref().map(|disk| DiskFunction {
            host_path: disk.path.clone(),
            overwrite: arguments.overwrite,
        }),
        nic: functions.nic.as_ref().map(|nic| NicFunction {
            driver: nic.driver.to_owned(),
            on_host: nic.on_host,
        }),
    }
}

/// What is to be known about the numbers beforehand.
fn notes(
    arguments: &IoArgs,
    functions: &Functions,
    plan: &PlanOptions,
    can_be_direct: bool,
) -> Vec<String> {
    let mut notes: Vec<String> = doctor::software_kvm().into_iter().collect();
    let mut add = |text: &str| notes.push(text.to_owned());
    if !plan.containers {
        add("there is no container: only root may make one (CAP_SYS_ADMIN)");
    }
    if arguments.subjects.contains(&Subject::Block) && arguments.direct.is_none() && !can_be_direct
    {
        add("the files of disks do not bypass the host's page cache: their file system cannot");
    }
    if let Some(disk) = &functions.disk {
        if !arguments.overwrite {
            add("the passed through disk is only read: --overwrite lets loads write to it");
        }
        if disk.path.is_none() {
            add("the passed through disk has no baseline: the host has no driver on it");
        }
    }
    notes
}

/// A thread has the CPUs of the one that has started it: where only `io` is given, vCPUs are told that theirs are all.
fn vcpu_cpus(pins: &Pins) -> io::Result<Vec<u32>> {
    if !pins.vcpu.is_empty() || pins.io.is_empty() {
        return Ok(pins.vcpu.clone());
    }
    let ours = sched_getaffinity(None)?;
    let all = 0..u32::try_from(CpuSet::MAX_CPU).unwrap_or(u32::MAX);
    Ok(all.filter(|cpu| ours.is_set(*cpu as usize)).collect())
}

fn may(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// The kernel that the user names, else the one that runs here, else the newest in `/boot`.
fn kernel(named: Option<&Path>) -> Result<PathBuf, UserError> {
    if let Some(path) = named {
        return match File::open(path) {
            Ok(_) => Ok(path.to_owned()),
            Err(error) => Err(UserError::from_text(format!(
                "--kernel {}: {error}",
                path.display()
            ))),
        };
    }
    let own = format!("{KERNEL_PREFIX}{}", uname().release().to_string_lossy());
    let own = Path::new(KERNELS).join(own);
    if File::open(&own).is_ok() {
        return Ok(own);
    }
    let newest = fs::read_dir(KERNELS)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(KERNEL_PREFIX)
        })
        .map(|entry| entry.path())
        .filter(|path| File::open(path).is_ok())
        .max_by_key(|path| {
            path.metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
        });
    newest.ok_or_else(|| {
        UserError::from_text(format!(
            "there is no kernel for the guest in {KERNELS} that can be read: name one with --kernel PATH"
        ))
    })
}

fn check_pins(pins: &Pins) -> Result<(), UserError> {
    for (name, cpus) in [("vcpu", &pins.vcpu), ("io", &pins.io), ("load", &pins.load)] {
        let pin = CpuAffinity {
            vcpu: 0,
            host_cpus: cpus.clone(),
        };
        check_affinity(&[pin])
            .map_err(|error| UserError::from_text(format!("--pin {name}: {error}")))?;
    }
    Ok(())
}

/// The size of each disk.
fn disk_bytes(arguments: &IoArgs) -> Result<u64, UserError> {
    let size = match &arguments.disk_size {
        Some(size) => size.0,
        None if arguments.quick => QUICK_DISK_BYTES,
        None => DISK_BYTES,
    };
    if size < 1 << 20 || !size.is_multiple_of(1 << 20) {
        return Err(UserError::from_text(format!(
            "--disk-size {size}: write a multiple of 1M"
        )));
    }
    Ok(size)
}

/// The folder for the files of disks, and whether they can bypass the page cache there.
fn disks(
    arguments: &IoArgs,
    functions: &Functions,
    disk_bytes: u64,
) -> Result<(PathBuf, bool), UserError> {
    let folder = arguments.disk_folder.clone().unwrap_or_else(default_folder);
    if !arguments.subjects.contains(&Subject::Block) {
        return Ok((folder, false));
    }
    check_disk_holds(functions, disk_bytes)?;
    let can = check_folder(&folder, 2, disk_bytes).map_err(UserError::new)?;
    if arguments.direct == Some(true) && !can {
        return Err(UserError::from_text(format!(
            "--direct on: no direct I/O is possible on files in {}: name another folder with --disk-folder DIR, or leave \
             it out",
            folder.display()
        )));
    }
    Ok((folder, can))
}

/// All disks are used alike: the one that is passed through must have as much as the files.
fn check_disk_holds(functions: &Functions, size_bytes: u64) -> Result<(), UserError> {
    let Some(DiskOnHost {
        path: Some(path),
        size_bytes: Some(has_bytes),
    }) = &functions.disk
    else {
        return Ok(());
    };
    if *has_bytes >= size_bytes {
        return Ok(());
    }
    Err(UserError::from_text(format!(
        "{}, which is to be passed through, has {} MiB, and {} MiB of each disk are to be used: give a smaller --disk-size",
        path.display(),
        has_bytes >> 20,
        size_bytes >> 20
    )))
}

/// Signals that end us end the measurement, in order.
fn watch_signals() -> io::Result<Interrupt> {
    let (near, far) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| !is_ignored(*signal))
    {
        signal_hook::low_level::pipe::register(signal, far.try_clone()?)?;
    }
    Ok(Interrupt::new(near))
}

fn write(arguments: &IoArgs, report: &BenchReport) -> anyhow::Result<()> {
    let write = |path: &Path, text: String| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &arguments.json {
        write(path, serde_json::to_string_pretty(report)? + "\n")?;
    }
    if let Some(path) = &arguments.html {
        write(path, report::html(report)?)?;
    }
    Ok(())
}

fn show(report: &BenchReport, comparison: Option<&Comparison>) {
    let mut shown = text::table(report);
    let order = format!(
        "{} rounds, each variant once a round, order by --seed {}\n",
        report.rounds, report.seed
    );
    shown.push_str(&order);
    if let Some(comparison) = comparison {
        shown.push('\n');
        shown.push_str(&comparison.table());
    }
    // Where standard output is gone, nobody reads it.
    let _ = io::stdout().write_all(shown.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_do_not_inherit_the_cpus_of_the_rest() {
        let io = Pins {
            io: vec![0],
            ..Pins::default()
        };
        let ours = sched_getaffinity(None).unwrap().count();
        assert_eq!(vcpu_cpus(&io).unwrap().len(), ours as usize);
        let both = Pins {
            vcpu: vec![1],
            ..io
        };
        assert_eq!(vcpu_cpus(&both).unwrap(), [1]);
        assert!(vcpu_cpus(&Pins::default()).unwrap().is_empty());
    }
}
