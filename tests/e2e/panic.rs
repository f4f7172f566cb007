//! A guest's panic is known at once.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("panic::exits_within_a_second_6_1", |ctx| {
            exits_at_once(ctx, Kernel::Cloud61)
        })
        .alone(),
        test("panic::exits_within_a_second_6_12", |ctx| {
            exits_at_once(ctx, Kernel::Generic612)
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

fn exits_at_once(ctx: &Ctx, kernel: Kernel) -> Result<()> {
    let mut vm = panicking(ctx).kernel(kernel).spawn()?;
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
