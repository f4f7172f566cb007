//! What counting costs: the same exits with and without it, in turn, and the recording alone in a tight loop.
//!
//! `cargo run --release -p vmm-core --example stats_cost [ROUNDS]`

use std::error::Error;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use vmm_core::exit_cost::{ExitKind, ExitMachine};
use vmm_core::stats::{Access, Action, DevicePath, StatsHandle};
use vmm_core::vcpu::ExitReason;

const EXITS: u32 = 2000;

fn median(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args()
        .nth(1)
        .map_or(Ok(50), |text| text.parse())?;
    let mut out = io::stdout();
    writeln!(out, "two clock readings: {:.1} ns", clock_ns())?;
    writeln!(
        out,
        "all that is done more for an exit: {:.1} ns",
        record_ns()
    )?;
    let stats = StatsHandle::default();
    let on = ExitMachine::start(&[], Some(&stats))?;
    let off = ExitMachine::start(&[], None)?;
    for kind in [ExitKind::PioWrite, ExitKind::MmioRead] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut sides = [(&on, &mut with), (&off, &mut without)];
            if round % 2 == 1 {
                sides.reverse();
            }
            for (machine, times) in sides {
                times.extend(machine.measure(kind, EXITS)?);
            }
        }
        let ratios = with.iter().zip(&without).map(|(a, b)| a - b).collect();
        writeln!(
            out,
            "{kind:?}: {:.0} ns with, {:.0} ns without; median difference of a round {:.0} ns",
            median(with),
            median(without),
            median(ratios),
        )?;
    }
    writeln!(out, "{} exits were counted", stats.snapshot().total_exits())?;
    Ok(())
}

/// What is inherent: the time before and after.
fn clock_ns() -> f64 {
    const TIMES: u32 = 1_000_000;
    let recorder = StatsHandle::default().recorder();
    let start = Instant::now();
    for _ in 0..TIMES {
        black_box(recorder.now());
        black_box(recorder.now());
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
}

/// What an exit costs more: the time before and after, and the counting, of accesses to a few ports in turn.
fn record_ns() -> f64 {
    const TIMES: u32 = 3_000_000;
    let mut recorder = StatsHandle::default().recorder();
    let start = Instant::now();
    for turn in 0..TIMES {
        let access = Access {
            path: DevicePath::Pio,
            action: Action::Write,
            address: u64::from(turn % 8),
            accessed: None,
        };
        let begun = recorder.now();
        recorder.exit(ExitReason::IoOut, Some(access), black_box(begun));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
}
