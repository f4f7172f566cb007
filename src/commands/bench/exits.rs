//! `tripath bench exits`: what one exit costs.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use bench::environment::Environment;
use bench::exits::{ExitCost, ExitOptions, ExitReport, measure};
use bench::rounds::any_seed;
use comfy_table::{CellAlignment, Table, presets};
use vmm_core::config::CpuAffinity;
use vmm_core::exit_cost::{CPUS, ExitKind};
use vmm_core::machine::check_affinity;

use super::{check_build, check_kvm};
use crate::cli::BenchExitsArgs;
use crate::commands::{check_writable, doctor};
use crate::exit_code::{Exit, UserError};

/// How long the operations of one sample take.
const SAMPLE: Duration = Duration::from_millis(20);

/// Runs the command.
///
/// # Errors
/// [`UserError`] for the user's mistakes; anything else is our failure.
pub fn run(arguments: BenchExitsArgs) -> anyhow::Result<Exit> {
    check(&arguments)?;
    let options = ExitOptions {
        rounds: arguments.rounds,
        seed: arguments.seed.unwrap_or_else(any_seed),
        sample: SAMPLE,
        affinity: arguments.pin,
        counted: arguments.stats,
    };
    let mut progress = Progress::default();
    let mut report = measure(&options, &mut |done, all| progress.show(done, all))?;
    progress.clear();
    report.notes.extend(doctor::software_kvm());
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // Where standard output is gone, nobody reads it.
    let _ = io::stdout().write_all(render(&report).as_bytes());
    Ok(Exit::Success)
}

/// Everything that can be wrong before the first measurement.
fn check(arguments: &BenchExitsArgs) -> Result<(), UserError> {
    check_build(arguments.force)?;
    if let Some(CpuAffinity { vcpu, .. }) = arguments.pin.iter().find(|pin| pin.vcpu >= CPUS) {
        return Err(UserError::from_text(format!(
            "--pin names vCPU {vcpu}: there are vCPUs 0 and 1"
        )));
    }
    check_affinity(&arguments.pin).map_err(UserError::new)?;
    check_kvm()?;
    match &arguments.json {
        // What was measured is not to be lost for want of a folder.
        Some(path) => check_writable(path),
        None => Ok(()),
    }
}

/// A line on a terminal that says how far it is.
#[derive(Default)]
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, done: u32, all: u32) {
        if io::stderr().is_terminal() {
            eprint!("\r{done} of {all} samples");
            self.shown = true;
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

fn render(report: &ExitReport) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "exit",
        "median ns",
        "MAD",
        "min",
        "max",
        "operations",
        "",
    ]);
    for column in table.column_iter_mut().skip(1).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let results = ExitKind::ALL.map(|kind| (kind.name(), report.results.get(kind.name())));
    let mut failed = Vec::new();
    for (name, cost) in results {
        match cost {
            Some(ExitCost::Measured { ns, operations, .. }) => {
                let [median, mad, min, max] =
                    [ns.median, ns.mad, ns.min, ns.max].map(|ns| format!("{ns:.0}"));
                // One sample has no spread.
                let mad = ns.spread().map_or("-".to_owned(), |_| mad);
                let unsteady = if ns.is_unsteady() { "unsteady" } else { "" };
                let mut row = vec![name.to_owned()];
                row.extend([median, mad, min, max]);
                row.push(operations.to_string());
                row.push(unsteady.to_owned());
                table.add_row(row);
            }
            Some(ExitCost::Failed { error }) => failed.push(format!("{name}: {error}\n")),
            None => {}
        }
    }
    let mut text = format!("{}\n\n", table.trim_fmt());
    text.push_str(&failed.concat());
    text.push_str(&about(report));
    text
}

fn about(report: &ExitReport) -> String {
    let Environment {
        cpu,
        cpus,
        kernel,
        kvm_module,
        is_guest,
        build,
        ..
    } = &report.environment;
    let unknown = || "unknown".to_owned();
    let mut lines = vec![
        format!(
            "{} rounds, each kind once a round, order by --seed {}; {build} build",
            report.rounds, report.seed
        ),
        format!(
            "{cpus} CPUs: {}; Linux {kernel}, {}{}",
            cpu.clone().unwrap_or_else(unknown),
            kvm_module.clone().unwrap_or_else(|| "kvm".to_owned()),
            if *is_guest {
                ", in a guest (nested)"
            } else {
                ""
            }
        ),
    ];
    if !report.pins.is_empty() {
        lines.push(format!("vCPUs pinned: {}", report.pins.join(", ")));
    }
    if report.counted {
        lines.push("counted meanwhile (--stats)".to_owned());
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.iter().map(|line| format!("{line}\n")).collect()
}
