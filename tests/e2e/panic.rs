//! A guest's panic is known at once.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("panic::exits_within_a_second_6_1", |ctx| {
            exits_at_once(panicking(ctx))
        })
        .alone(),
        test("panic::exits_within_a_second_6_12", |ctx| {
            exits_at_once(panicking(ctx).kernel(Kernel::Generic612))
        })
        .alone(),
        test("panic::known_without_a_notifier", |ctx| {
            exits_at_once(without_init(ctx))
        })
        .alone(),
        test("panic::hangs_when_told_to", hangs),
    ]
}

fn panicking(ctx: &Ctx) -> Vm<'_> {
    Vm::new(ctx)
        .module("pvpanic-mmio")
        .module("pvpanic-pci")
        .job("echo GUEST-UP; echo c >/proc/sysrq-trigger; sleep 1000")
}

/// Its panic comes before any module of a panic notifier could be loaded.
fn without_init(ctx: &Ctx) -> Vm<'_> {
    Vm::new(ctx)
        .cpus(2)
        .init("#!/bin/busybox sh\necho GUEST-UP; exit 7\n")
}

fn exits_at_once(vm: Vm<'_>) -> Result<()> {
    let mut vm = vm.spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    let panic = vm.wait_for("Kernel panic - not syncing", BOOT)?;
    let exit = vm.wait_exit(BOOT)?;
    exit.expect_code(11)?;
    let delay = exit.at.saturating_duration_since(panic.at);
    ensure!(
        delay < Duration::from_secs(1),
        "ended {delay:?} after the panic"
    );
    Ok(())
}

fn hangs(ctx: &Ctx) -> Result<()> {
    let mut vm = panicking(ctx).option("--on-panic", "hang").spawn()?;
    vm.wait_for("Kernel panic - not syncing", BOOT)?;
    ensure!(
        !vm.ends_within(Duration::from_secs(3))?,
        "it ended although it was told to hang"
    );
    Ok(())
}
