//! One test in this process: the command's own, or one of a suite's.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use boottest::report::{Report, TestResult};
use boottest::run::{Ran, RunError, RunOptions, TestMachine};
use boottest::spec::TestSpec;
use boottest::suite::{RESULT_FILE, SPEC_FILE};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use vmm_core::config::MachineFile;

use super::{check_reports, exit_of, tell_failure, write_reports};
use crate::cli::TestArgs;
use crate::commands::doctor;
use crate::exit_code::{Exit, UserError};
use crate::{logging, machine_file};

/// In a folder of logs: the machine, for `tripath run --config`.
const MACHINE_FILE: &str = "machine.toml";

/// Runs the test that the options describe.
pub fn run(arguments: TestArgs, started: Instant) -> anyhow::Result<Exit> {
    let options = arguments.reports.clone();
    let dump = arguments.machine.dump_config;
    let spec = spec(arguments)?;
    if dump {
        let machine = TestMachine::of(&spec).map_err(told)?;
        io::stdout().write_all(machine_file::dump(&machine.config)?.as_bytes())?;
        return Ok(Exit::Success);
    }
    check_reports(&options)?;
    let on_line = |line: &str| drop(writeln!(io::stderr(), "{line}"));
    let on_command_output = |is_error: bool, bytes: &[u8]| {
        // Whoever closed it does not want to read it.
        drop(match is_error {
            true => io::stderr().write_all(bytes),
            false => io::stdout().write_all(bytes),
        });
    };
    let run_options = RunOptions {
        started,
        logs: options.log.clone(),
        on_note: Box::new(logging::tell),
        on_line: options.show_console.then(|| Box::new(on_line) as _),
        on_command_output: Some(Box::new(on_command_output)),
    };
    let Ran {
        mut result,
        cache_filler,
    } = boottest::run::run(&spec, run_options).map_err(told)?;
    logging::tell(&result.headline());
    tell_failure(&result);
    if !result.passed
        && let Some(note) = doctor::software_kvm()
    {
        logging::tell(&note);
    }
    if let Some(folder) = &options.log {
        result.logs = Some(folder.clone());
        write_logs(folder, &spec, &result)?;
    }
    let exit = exit_of(result.exit_code);
    let report = Report {
        name: "tripath".into(),
        duration_s: result.duration_s,
        tests: vec![result],
    };
    write_reports(&report, &options)?;
    if let Some(thread) = cache_filler {
        // It only saves time of later runs: how it ended is in the log.
        let _ = thread.join();
    }
    Ok(exit)
}

/// Runs the test of a suite that is described in `folder`, for the process that runs the suite.
pub fn work(folder: &Path, started: Instant) -> anyhow::Result<Exit> {
    // Nobody is left to read the result of an orphan.
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() != parent {
        return Ok(Exit::Failure);
    }
    let path = folder.join(SPEC_FILE);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let spec: TestSpec =
        toml::from_str(&text).with_context(|| format!("{} is not a test", path.display()))?;
    let run_options = RunOptions {
        started,
        logs: Some(folder.to_owned()),
        on_note: Box::new(logging::tell),
        on_line: None,
        on_command_output: None,
    };
    let Ran {
        result,
        cache_filler,
    } = boottest::run::run(&spec, run_options).map_err(told)?;
    write_logs(folder, &spec, &result)?;
    if let Some(thread) = cache_filler {
        let _ = thread.join();
    }
    Ok(exit_of(result.exit_code))
}

/// The test that options and machine file describe.
fn spec(arguments: TestArgs) -> Result<TestSpec, UserError> {
    let TestArgs {
        machine,
        verdict,
        guest,
        ..
    } = arguments;
    let end = "say how the guest is to end with --end";
    for (option, given, instead) in [
        ("--on-reboot", machine.on_reboot.is_some(), end),
        ("--on-panic", machine.on_panic.is_some(), end),
        (
            "--stats",
            machine.stats,
            "with --log they are in result.json",
        ),
        (
            "--control",
            machine.control.is_some(),
            "what a test costs is in result.json with --log",
        ),
    ] {
        if given {
            let mistake = format!("{option} is for tripath run: {instead}");
            return Err(UserError::from_text(mistake));
        }
    }
    let file = match &machine.config {
        Some(path) => machine_file::load(path)?,
        None => MachineFile::default(),
    };
    Ok(TestSpec {
        name: "test".into(),
        machine: file.overridden_by(machine.into_machine()),
        asked: verdict.asked(),
        guest: guest.spec(),
    })
}

/// The logs beside the console's.
fn write_logs(folder: &Path, spec: &TestSpec, result: &TestResult) -> anyhow::Result<()> {
    let machine = TestMachine::of(spec).map_err(told)?;
    let files = [
        (MACHINE_FILE, machine_file::dump(&machine.config)?),
        (RESULT_FILE, serde_json::to_string_pretty(result)? + "\n"),
    ];
    for (name, text) in files {
        // Whoever finds the result finds all of it.
        let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn told(error: RunError) -> anyhow::Error {
    if error.is_users() {
        UserError::new(error).into()
    } else {
        error.into()
    }
}
