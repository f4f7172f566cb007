//! What a guest costs: the figures that must not grow.

use anyhow::{Result, ensure};

use crate::harness::measure::{kvm_exits, memory, note};
use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, test};

/// KVM's exits until init's first line, ticks left out. Firecracker has 2,640 in all, with the same kernel and machine,
/// of which at least 500 are for its ticks.
const MOST_EXITS: u64 = 2100;
const MOST_OWN_MEMORY_KIB: u64 = 5 * 1024;

/// Prints a line and then does nothing: what is counted at that line stays true a moment longer.
const INIT: &str = "#!/bin/busybox sh\necho GUEST-UP\nexec /bin/busybox sleep 1000\n";

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("costs::boot_from_cache", |ctx| boot(ctx, true)).alone(),
        test("costs::boot_without_cache", |ctx| boot(ctx, false)).alone(),
    ]
}

/// 6.1 cloud's bzImage, one CPU, 256 MiB, `console=ttyS0 quiet`, an init that prints a line.
fn boot(ctx: &Ctx, cached: bool) -> Result<()> {
    let machine = || {
        let vm = Vm::new(ctx).cpus(1).memory("256M");
        if cached {
            vm
        } else {
            vm.arg("--no-kernel-cache")
        }
    };
    if cached {
        // A run that ends by itself leaves the unpacked kernel in the cache.
        machine().spawn()?.wait_exit(BOOT)?;
    }
    let begun = std::time::Instant::now();
    let mut vm = machine().init(INIT).spawn()?;
    let up = vm.wait_for("GUEST-UP", BOOT)?;
    let exits = kvm_exits(vm.id())?;
    let memory = memory(vm.id())?;
    note(&format!(
        "boot of 6.1 cloud, {}: {} exits, {} besides ticks, of which {} port I/O and {} MMIO; {:.2} s; {} KiB beyond \
         the guest's {} KiB",
        if cached {
            "from the cache"
        } else {
            "without cache"
        },
        exits.all,
        exits.besides_ticks(),
        exits.port_io,
        exits.mmio,
        up.at.duration_since(begun).as_secs_f64(),
        memory.own_kib,
        memory.guest_kib,
    ));
    ensure!(
        exits.besides_ticks() < MOST_EXITS,
        "{} exits besides ticks until user space; fewer than {MOST_EXITS} are wanted",
        exits.besides_ticks()
    );
    ensure!(
        memory.own_kib <= MOST_OWN_MEMORY_KIB,
        "{} KiB of memory beyond the guest's own; {MOST_OWN_MEMORY_KIB} are the most",
        memory.own_kib
    );
    Ok(())
}
