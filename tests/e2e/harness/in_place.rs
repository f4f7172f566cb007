//! `e2e --in-place NAME`: runs one test here and now.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use super::runner::FAILURE_MARK;
use super::{Ctx, E2eTest, paths, sys};

/// Runs the test of that name; the exit code says how it ended, and the last lines why.
pub fn main(tests: &[E2eTest], name: &str) -> ExitCode {
    let Some(test) = tests.iter().find(|test| test.name == name) else {
        println!("{FAILURE_MARK}\nno test is called {name}");
        return ExitCode::FAILURE;
    };
    match run(test) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{FAILURE_MARK}\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(test: &E2eTest) -> Result<()> {
    if test.own_network {
        sys::enter_own_network().context("cannot make a network namespace")?;
        // A /sys shows the interfaces of the namespace that it was mounted in.
        for command in [
            "ip link set lo up",
            "mount --make-rprivate /",
            "mount -t sysfs sys /sys",
        ] {
            let status = Command::new("sh").args(["-c", command]).status()?;
            ensure!(status.success(), "{command} failed");
        }
    }
    let folder = tempfile::Builder::new().prefix("tripath-e2e.").tempdir()?;
    let testbed = match std::env::var_os("TRIPATH_TESTBED") {
        Some(path) => PathBuf::from(path),
        None => paths::set_up_testbed(&[])?,
    };
    let binary = paths::binary();
    ensure!(binary.exists(), "no VMM at {}", binary.display());
    (test.run)(&Ctx {
        binary,
        folder: folder.path().to_owned(),
        testbed,
    })
}
