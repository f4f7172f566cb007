//! Stock kernels reach user space, see the machine they were given, and power off.

use anyhow::{Result, ensure};

use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

pub fn tests() -> Vec<E2eTest> {
    let mut tests = Vec::new();
    let machines = [
        (Kernel::Cloud61, 1, 128),
        (Kernel::Cloud61, 2, 512),
        (Kernel::Cloud61, 4, 5120),
        (Kernel::Cloud61Elf, 1, 512),
        (Kernel::Cloud61Elf, 2, 5120),
        (Kernel::Cloud61Elf, 4, 128),
        (Kernel::Generic612, 1, 5120),
        (Kernel::Generic612, 2, 128),
        (Kernel::Generic612, 4, 512),
    ];
    for (kernel, cpus, mib) in machines {
        let name = format!("boot::{kernel:?}-{cpus}cpu-{mib}M").to_lowercase();
        tests.push(test(name, move |ctx| boots(ctx, kernel, cpus, mib)));
    }
    tests.push(test("boot::without_kernel_cache", without_cache));
    tests.push(test("boot::twice_from_cache", twice_from_cache));
    tests
}

fn boots(ctx: &Ctx, kernel: Kernel, cpus: u32, mib: u64) -> Result<()> {
    // Where there is no room for the guest's memory, it is overcommitted: the guest does not touch it all.
    let mut vm = Vm::new(ctx)
        .kernel(kernel)
        .cpus(cpus)
        .memory(&format!("{mib}M"))
        .job(
            "echo CPUS $(nproc) of $(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l)
             echo MEMORY $(awk '/^MemTotal/ { print $2 }' /proc/meminfo)
             echo CORES $(cat /sys/devices/system/cpu/cpu*/topology/core_id | sort -u | wc -l)",
        )
        .spawn()?;
    let seen = vm.value("CPUS", BOOT)?;
    ensure!(seen == format!("{cpus} of {cpus}"), "CPUs: {seen}");
    let total_kib: u64 = vm.value("MEMORY", BOOT)?.parse()?;
    // The kernel keeps its own code and the table of pages, 1/64 of all, to itself.
    let (least, most) = (mib * 1024 * 15 / 16 - 60 * 1024, mib * 1024);
    ensure!(
        (least..=most).contains(&total_kib),
        "the guest sees {total_kib} KiB of memory, not {least} to {most}"
    );
    let cores = vm.value("CORES", BOOT)?;
    ensure!(cores == cpus.to_string(), "{cores} distinct core ids");
    vm.wait_success(BOOT)?;
    Ok(())
}

fn without_cache(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .arg("--no-kernel-cache")
        .job("echo GUEST-UP")
        .spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn twice_from_cache(ctx: &Ctx) -> Result<()> {
    for _ in 0..2 {
        let mut vm = Vm::new(ctx).job("echo GUEST-UP").spawn()?;
        vm.wait_for("GUEST-UP", BOOT)?;
        let exit = vm.wait_success(BOOT)?;
        let messages = exit.messages();
        ensure!(messages.is_empty(), "it complains: {messages:#?}");
    }
    Ok(())
}
