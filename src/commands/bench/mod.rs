//! `tripath bench`: what I/O costs on this host.

mod exits;
mod io;
mod progress;

use bench::environment::build;
use vmm_core::kvm::KvmSystem;

use crate::cli::{BenchArgs, BenchCommand};
use crate::exit_code::{Exit, UserError};

/// Runs the command.
///
/// # Errors
/// [`UserError`] for the user's mistakes; anything else is our failure.
pub fn run(arguments: BenchArgs) -> anyhow::Result<Exit> {
    match arguments.command {
        None => io::run(&arguments.io),
        Some(BenchCommand::Exits(arguments)) => exits::run(arguments),
        Some(BenchCommand::Guest) => Ok(match bench::guest::worker::serve() {
            true => Exit::Success,
            false => Exit::Failure,
        }),
        Some(BenchCommand::Janitor { folders }) => {
            bench::host::cgroup::clean_up(&folders);
            Ok(Exit::Success)
        }
    }
}

/// Nothing is measured without KVM.
fn check_kvm() -> Result<(), UserError> {
    KvmSystem::open().map(drop).map_err(UserError::new)
}

/// Numbers of a debug build are for those only who ask for them.
fn check_build(force: bool) -> Result<(), UserError> {
    if build() == "debug" && !force {
        return Err(UserError::from_text(
            "this is a debug build, whose numbers say little: measure with a release build, or give --force",
        ));
    }
    Ok(())
}
