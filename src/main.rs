//! `tripath`: a KVM-based virtual machine monitor that shows what each I/O path costs.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod cli;
mod commands;
mod exit_code;
mod logging;
mod machine_file;
mod startup;
mod stats_table;
mod terminal;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

use cli::{Cli, Command};
use exit_code::Exit;

fn main() -> ExitCode {
    terminal::restore_on_panic();
    let started = Instant::now();
    // A panic of ours is our own failure like any other; the panic hook has told about it.
    let exit = catch_unwind(|| run(started)).unwrap_or(Exit::Failure);
    terminal::restore_now();
    exit.into()
}

fn run(started: Instant) -> Exit {
    let cli = match Cli::from_arguments(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    logging::start(cli.verbose);
    let result = match cli.command {
        Command::Run(arguments) => commands::run::run(*arguments),
        Command::Test(arguments) => commands::test::run(*arguments, started),
        Command::Bench(arguments) => commands::bench::run(*arguments),
        Command::Vfio(command) => commands::vfio::run(command),
        Command::Ctl(command) => commands::ctl::run(command),
        Command::Doctor => commands::doctor::run(),
    };
    result.unwrap_or_else(|error| {
        logging::tell(&exit_code::told(&error));
        Exit::of_error(&error)
    })
}
