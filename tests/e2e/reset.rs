//! Each way in which Linux resets a PC, with both answers to it.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, test};

/// Does what is typed on the console, once per boot.
const JOB: &str = "echo GUEST-UP; read what; case $what in reset) reboot -f ;; *) poweroff -f ;; esac; sleep 1000";

pub fn tests() -> Vec<E2eTest> {
    let mut tests = Vec::new();
    // The kernel's reboot= option: ACPI's register, the keyboard controller, port 0xcf9, a triple fault.
    for (name, how) in [("acpi", 'a'), ("i8042", 'k'), ("cf9", 'p'), ("triple", 't')] {
        let restart = test(format!("reset::{name}_restarts"), move |ctx| {
            restarts(ctx, how)
        });
        let exit = test(format!("reset::{name}_exits"), move |ctx| {
            exits(ctx, how, if how == 't' { 12 } else { 0 })
        });
        tests.extend([restart, exit].map(|test| test.triple_faults(how == 't')));
    }
    tests.push(test("reset::four_cpus_restart", four_cpus_restart));
    tests.push(test("reset::sigterm_asks_guest", sigterm_asks_guest));
    tests.push(test(
        "reset::sigterm_ends_deaf_guest",
        sigterm_ends_deaf_guest,
    ));
    tests
}

fn restarts(ctx: &Ctx, how: char) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .word(format!("reboot={how}"))
        .job(JOB)
        .spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    vm.send("reset\n")?;
    vm.wait_for("GUEST-UP", BOOT)?;
    vm.send("off\n")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn exits(ctx: &Ctx, how: char, code: i32) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .word(format!("reboot={how}"))
        .option("--on-reboot", "exit")
        .job(JOB)
        .spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    vm.send("reset\n")?;
    let exit = vm.wait_exit(BOOT)?;
    exit.expect_code(code)?;
    if code == 12 {
        for register in ["rip", "rsp", "cr3"] {
            ensure!(
                exit.says(register),
                "no {register} in the report of the crash"
            );
        }
    }
    Ok(())
}

fn four_cpus_restart(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .cpus(4)
        .job(&format!("echo CPUS $(nproc); {JOB}"))
        .spawn()?;
    for command in ["reset\n", "reset\n", "off\n"] {
        let cpus = vm.value("CPUS", BOOT)?;
        ensure!(cpus == "4", "{cpus} CPUs");
        vm.wait_for("GUEST-UP", BOOT)?;
        vm.send(command)?;
    }
    vm.wait_success(BOOT)?;
    Ok(())
}

fn sigterm_asks_guest(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .module("button")
        .module("evdev")
        .job(
            "event=$(grep -A 5 'Power Button' /proc/bus/input/devices | grep -o 'event[0-9]*' | head -n 1)
             # Events go to those who have it open already.
             exec 3</dev/input/$event
             echo GUEST-UP
             dd of=/dev/null bs=24 count=1 <&3 2>/dev/null
             echo BUTTON-PRESSED",
        )
        .spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    vm.signal(Signal::TERM)?;
    vm.wait_for("BUTTON-PRESSED", Duration::from_secs(20))?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn sigterm_ends_deaf_guest(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx).job("echo GUEST-UP; sleep 1000").spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    // The first asks; where it is plain that nobody listens, it may end the guest. The second insists.
    vm.signal(Signal::TERM)?;
    if !vm.ends_within(Duration::from_secs(2))? {
        vm.signal(Signal::TERM)?;
    }
    let exit = vm.wait_exit(Duration::from_secs(20))?;
    ensure!(
        exit.status.code().is_some(),
        "ended by the signal itself, without cleaning up: {}",
        exit.status
    );
    Ok(())
}
