//! A suite: each test in a process of its own, which is this program again.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use boottest::report::Report;
use boottest::suite::{Pool, PoolError, Suite, Variables, free_memory_bytes};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmm_core::signals::is_ignored;

use super::progress::Progress;
use super::{check_reports, exit_of, write_reports};
use crate::cli::TestArgs;
use crate::exit_code::{Exit, UserError};
use crate::logging;

/// Where the logs go unless the user says so.
const LOG_FOLDER: &str = "tripath-logs";
/// What is left to the host of its free memory: one part in so many.
const MEMORY_RESERVE: u64 = 8;

/// Runs a suite.
pub fn run(path: &Path, arguments: &TestArgs, started: Instant) -> anyhow::Result<Exit> {
    let options = &arguments.suite_options;
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let variables = Variables::new(options.set.clone(), environment);
    let mut suite = Suite::load(path, &variables).map_err(UserError::new)?;
    suite.keep(&options.filter);
    if options.list {
        for test in &suite.tests {
            writeln!(io::stdout(), "{}", test.name)?;
        }
        return Ok(Exit::Success);
    }
    if suite.tests.is_empty() {
        let mistake = "no test has such a name: see --list";
        return Err(UserError::from_text(mistake).into());
    }
    check_reports(&arguments.reports)?;
    let report = run_tests(path, &suite, arguments, started)?;
    write_reports(&report, &arguments.reports)?;
    let (passed, all) = (report.passed(), report.tests.len());
    let seconds = report.duration_s;
    logging::tell(&format!("{passed} of {all} tests passed in {seconds:.1} s"));
    Ok(exit_of(report.exit_code()))
}

fn run_tests(
    path: &Path,
    suite: &Suite,
    arguments: &TestArgs,
    started: Instant,
) -> anyhow::Result<Report> {
    let logs = arguments.reports.log.clone();
    let logs = logs.unwrap_or_else(|| PathBuf::from(LOG_FOLDER));
    let logs = std::path::absolute(logs).context("cannot find the current directory")?;
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let command = |folder: &Path| {
        let mut command = Command::new(&program);
        command.arg("test").arg("--worker").arg(folder);
        command
    };
    let rerun = |name: &str| rerun(path, name, arguments);
    let progress = Progress::new(suite.tests.len());
    let on_event = |event: boottest::suite::Event<'_>| progress.on_event(event);
    let pool = Pool::new(limits(arguments), &logs, &command, &rerun, &on_event);
    let wanted = [SIGINT, SIGTERM, SIGHUP];
    let wanted = wanted.into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new(wanted).context("cannot watch signals")?;
    let handle = signals.handle();
    let results = std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in signals.forever() {
                pool.interrupt();
            }
        });
        let results = pool.run(&suite.tests);
        handle.close();
        results
    });
    progress.finish();
    let tests = results.map_err(|error: PoolError| UserError::new(error))?;
    Ok(Report {
        name: suite.name.clone(),
        duration_s: started.elapsed().as_secs_f64(),
        tests,
    })
}

/// How many tests at once, and the memory for all of their guests.
fn limits(arguments: &TestArgs) -> (usize, u64) {
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.suite_options.jobs;
    // Who does not say how much there is has no limit to keep.
    let memory = free_memory_bytes().map_or(u64::MAX, |free| free - free / MEMORY_RESERVE);
    (jobs.map_or_else(cpus, usize::from), memory)
}

/// The command that runs one test of the suite again.
fn rerun(path: &Path, name: &str, arguments: &TestArgs) -> String {
    let mut words = vec!["tripath test".to_owned(), quoted(&path.to_string_lossy())];
    words.push(format!("--filter {}", quoted(name)));
    for (name, value) in &arguments.suite_options.set {
        words.push(format!("--set {}", quoted(&format!("{name}={value}"))));
    }
    words.join(" ")
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("a/b-1.toml"), "a/b-1.toml");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
