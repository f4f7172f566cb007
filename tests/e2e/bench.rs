//! `tripath bench exits`.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::host::output;
use crate::harness::{Ctx, E2eTest, paths, test};

/// Names that programs rely on.
const KINDS: [&str; 10] = [
    "pio-read",
    "pio-write",
    "mmio-read",
    "mmio-write",
    "ioeventfd",
    "hypercall",
    "cpuid",
    "hlt",
    "irqfd",
    "ipi",
];
/// Ours costs as much as the bare loop but for some per cent.
const RATIOS: RangeInclusive<f64> = 0.95..=1.05;

/// Where time is a count of instructions, see `tests/testbed/l1`.
const NS_PER_INSTRUCTION: f64 = 2.0;
/// Instructions to count one exit, of which there are 300: more than half are two readings of the clock, which there is the
/// kernel's.
const COUNTING_AT_MOST: f64 = 350.0;

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("bench::exits", exits).alone(),
        test("bench::exits_beside_a_bare_loop", beside_bare_loop).counted(),
        test("bench::counting_is_short", counting_is_short).counted(),
        test("bench::usage", usage),
    ]
}

fn measure(ctx: &Ctx, options: &[&str]) -> Result<(String, Value)> {
    let path = ctx.path("exits.json");
    let json = path.display().to_string();
    let said = output(
        &ctx.binary.to_string_lossy(),
        &[&["bench", "exits", "--json", &json], options].concat(),
    )?;
    print!("{said}");
    Ok((said, serde_json::from_slice(&fs::read(path)?)?))
}

fn median(report: &Value, kind: &str) -> Result<f64> {
    let found = &report["results"][kind];
    let ns = found["ns"]["median"].as_f64();
    ns.with_context(|| format!("{kind}: {found}"))
}

fn exits(ctx: &Ctx) -> Result<()> {
    let (said, report) = measure(ctx, &["--rounds", "3", "--seed", "7", "--pin", "0@0"])?;
    for kind in KINDS {
        ensure!(median(&report, kind)? > 0.0, "{kind} costs nothing");
        let samples = &report["results"][kind]["samples_ns"];
        ensure!(
            samples.as_array().is_some_and(|all| all.len() == 3),
            "{samples}"
        );
        ensure!(said.contains(kind), "{kind} is not in the table");
    }
    // What stays in the kernel is cheaper than what leaves it, or doorbells would be of no use.
    for inside in ["ioeventfd", "hypercall", "cpuid"] {
        ensure!(
            median(&report, inside)? < median(&report, "mmio-write")?,
            "{inside} costs more than leaving the kernel"
        );
    }
    ensure!(said.contains("order by --seed 7"), "no seed");
    ensure!(said.contains("vCPUs pinned: 0@0"), "no pins");
    ensure!(report["pins"][0] == "0@0", "{}", report["pins"]);
    let module = report["environment"]["kvm_module"]
        .as_str()
        .context("no module")?;
    ensure!(Path::new("/sys/module").join(module).exists(), "{module}");
    Ok(())
}

/// The same instructions in a loop of C that does nothing but KVM_RUN.
fn beside_bare_loop(ctx: &Ctx) -> Result<()> {
    const COUNT: &str = "5000";
    let program = ctx.path("exit_loop");
    let compiled = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(paths::source("tests/e2e/exit_loop.c"))
        .status()
        .context("cc")?;
    ensure!(compiled.success(), "cc: {compiled}");
    let (_, report) = measure(ctx, &["--rounds", "3"])?;
    let mut others = Vec::new();
    for kind in &KINDS[..4] {
        let ours = median(&report, kind)?;
        let bare: f64 = output(&program.to_string_lossy(), &[kind, COUNT])?
            .trim()
            .parse()?;
        let ratio = ours / bare;
        println!("{kind}: {ours:.0} ns, {bare:.0} ns in the bare loop: {ratio:.3}");
        if !RATIOS.contains(&ratio) {
            others.push(format!("{kind}: {ratio:.3} times the bare loop"));
        }
    }
    ensure!(others.is_empty(), "{}", others.join(", "));
    Ok(())
}

/// The share that counting has of an exit's time depends on the processor, which spends most of that on the way in and
/// out; the instructions for it do not.
fn counting_is_short(ctx: &Ctx) -> Result<()> {
    let (said, with) = measure(ctx, &["--rounds", "3", "--stats"])?;
    ensure!(
        with["counted"] == true && said.contains("(--stats)"),
        "{said}"
    );
    let (said, without) = measure(ctx, &["--rounds", "3"])?;
    ensure!(
        without["counted"] == false && !said.contains("(--stats)"),
        "{said}"
    );
    for kind in &KINDS[..4] {
        let more_ns = median(&with, kind)? - median(&without, kind)?;
        let more = more_ns / NS_PER_INSTRUCTION;
        println!("{kind}: {more:.0} instructions more when counted");
        // Without any it would not be counted.
        ensure!(
            (20.0..=COUNTING_AT_MOST).contains(&more),
            "{kind}: {more:.0} instructions more"
        );
    }
    Ok(())
}

fn usage(ctx: &Ctx) -> Result<()> {
    for (options, text) in [
        (
            &["--pin", "2@0"][..],
            "--pin names vCPU 2: there are vCPUs 0 and 1",
        ),
        (&["--pin", "0@4000"], "4000"),
        (&["--rounds", "0"], "--rounds"),
        (&["--json", "/nowhere/x.json"], "/nowhere/x.json"),
    ] {
        let ended = Command::new(&ctx.binary)
            .args(["bench", "exits"])
            .args(options)
            .output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(
            ended.status.code() == Some(2) && said.contains(text) && said.lines().count() == 1,
            "{}: {said}",
            ended.status
        );
    }
    Ok(())
}
