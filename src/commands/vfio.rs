//! `tripath vfio`: prepares and explains passthrough.

mod list;
mod show;
mod sriov;

use std::io::{self, Write};

use comfy_table::{Table, presets};
use devices::vfio::host::Host;
use devices::vfio::host::check::Check;
use devices::vfio::host::recover::{self, Recovered};
use devices::vfio::host::state::{StateError, StateFolder};
use serde::Serialize;

use crate::cli::VfioCommand;
use crate::exit_code::Exit;

/// Runs the command.
///
/// # Errors
/// What the user has to change, or the host's failure.
pub fn run(command: VfioCommand) -> anyhow::Result<Exit> {
    let host = Host::this();
    match command {
        VfioCommand::List { json } => list::run(&host, json),
        VfioCommand::Show {
            function,
            memory,
            json,
        } => show::run(&host, &function, memory.size_bytes, json),
        VfioCommand::Sriov { pf, vfs, json } => sriov::run(&host, &pf, vfs, json),
        VfioCommand::Recover => recover_now(&host),
    }
}

fn recover_now(host: &Host) -> anyhow::Result<Exit> {
    let state = StateFolder::of_caller(host);
    let lock = state.lock()?;
    let recovered = recover::recover(host, &state, &lock)?;
    print(&told(&recovered))?;
    for problem in &recovered.problems {
        crate::logging::tell(&problem.to_string());
    }
    Ok(if recovered.problems.is_empty() {
        Exit::Success
    } else {
        Exit::Failure
    })
}

fn told(recovered: &Recovered) -> String {
    let mut lines = recovered.done.clone();
    if !recovered.in_use.is_empty() {
        let functions: Vec<String> = recovered.in_use.iter().map(ToString::to_string).collect();
        lines.push(format!("in use, and left alone: {}", functions.join(", ")));
    }
    if lines.is_empty() && recovered.problems.is_empty() {
        lines.push("nothing to put back".to_owned());
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The host now, with the runs that live on it: this user's and root's.
fn look(host: &Host) -> Result<Check<'_>, StateError> {
    let mut claims = StateFolder::of_root(host).live_claims(host)?;
    if host.kernel().caller().uid != 0 {
        let own = StateFolder::of_caller(host).live_claims(host)?;
        claims.0.extend(own.0);
    }
    Ok(Check::new(host, claims))
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.iter().copied());
    table
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_recovery_did() {
        let mut recovered = Recovered::default();
        assert_eq!(told(&recovered), "nothing to put back\n");
        recovered.done.push("0000:01:10.0: back on igbvf".into());
        recovered.in_use.push("0000:02:00.0".parse().unwrap());
        assert_eq!(
            told(&recovered),
            "0000:01:10.0: back on igbvf\nin use, and left alone: 0000:02:00.0\n"
        );
    }

    #[test]
    fn this_host_is_looked_at_without_a_panic() {
        let host = Host::this();
        list::render(&list::rows(&look(&host).unwrap(), &host));
    }
}
