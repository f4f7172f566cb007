//! `tripath test`: boots a guest, or a suite of guests, and gives a verdict.

mod one;
mod progress;
mod suite;

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use boottest::report::{Report, TestResult, junit};
use vmm_core::config::MachineFile;

use super::check_writable;
use crate::cli::{ReportArgs, TestArgs};
use crate::exit_code::{Exit, UserError};
use crate::logging;

/// Runs the command. `started` is when this process began.
///
/// # Errors
/// [`UserError`] for the user's mistakes; anything else is our failure.
pub fn run(arguments: TestArgs, started: Instant) -> anyhow::Result<Exit> {
    // A log at the limit of `ulimit -f` is an error of the write, not the end of the test.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default())?;
    if let Some(folder) = &arguments.worker {
        return one::work(folder, started);
    }
    match arguments.suite.clone() {
        Some(path) => {
            refuse_beside_suite(&arguments)?;
            suite::run(&path, &arguments, started)
        }
        None => {
            refuse_without_suite(&arguments)?;
            one::run(arguments, started)
        }
    }
}

/// What a suite says itself.
fn refuse_beside_suite(arguments: &TestArgs) -> Result<(), UserError> {
    let TestArgs {
        machine,
        verdict,
        guest,
        ..
    } = arguments;
    let machine_said = machine.clone().into_machine() != MachineFile::default()
        || machine.config.is_some()
        || machine.dump_config
        || machine.stats
        || machine.control.is_some();
    let other_said = verdict.asked() != Default::default() || guest.spec() != Default::default();
    if machine_said || other_said {
        return Err(UserError::from_text(
            "options of one test do not go with a suite: write them into it, under [defaults] or [[test]]",
        ));
    }
    Ok(())
}

fn refuse_without_suite(arguments: &TestArgs) -> Result<(), UserError> {
    let options = &arguments.suite_options;
    let given = [
        ("--jobs", options.jobs.is_some()),
        ("--filter", !options.filter.is_empty()),
        ("--list", options.list),
        ("--set", !options.set.is_empty()),
    ];
    let guest = arguments.guest.spec();
    let for_command = [
        ("--rootfs", guest.rootfs.is_some()),
        ("--modules", guest.modules.is_some()),
    ];
    if let Some((option, _)) = for_command.into_iter().find(|(_, given)| *given)
        && !guest.has_command()
    {
        return Err(UserError::from_text(format!(
            "{option} is for a command in the guest: give --exec or --script"
        )));
    }
    match given.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(UserError::from_text(format!(
            "{option} is for a suite: give tripath test SUITE.toml {option}"
        ))),
        None => Ok(()),
    }
}

/// Writes the reports that are asked for.
fn write_reports(report: &Report, options: &ReportArgs) -> anyhow::Result<()> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &options.json {
        write(path, serde_json::to_string_pretty(report)? + "\n")?;
    }
    if let Some(path) = &options.junit {
        write(path, junit(report)?)?;
    }
    Ok(())
}

/// That the reports can be written is known before anything has run.
fn check_reports(options: &ReportArgs) -> Result<(), UserError> {
    for path in options.json.iter().chain(&options.junit) {
        check_writable(path)?;
    }
    Ok(())
}

/// Tells the user of a test that did not pass: why, and the lines around.
fn tell_failure(result: &TestResult) {
    let Some(failure) = &result.failure else {
        return;
    };
    for line in &failure.quote {
        logging::tell(&format!("  | {line}"));
    }
}

/// The exit code of a verdict.
fn exit_of(code: u8) -> Exit {
    Exit::of_code(code).unwrap_or(Exit::Failure)
}
