//! What a guest costs: the figures that must not grow.

use anyhow::{Context, Result, ensure};

use crate::harness::measure::{kvm_exits, memory, note};
use crate::harness::vm::{BOOT, Line, Source, Vm};
use crate::harness::{Ctx, E2eTest, test};

/// KVM's exits until init's first line, ticks left out. Firecracker has 2,640 in all, with the same kernel and machine,
/// of which at least 500 are for its ticks.
const MOST_EXITS: u64 = 2100;
const MOST_OWN_MEMORY_KIB: u64 = 5 * 1024;

/// One for the look at the line status, and the characters before a burst is recognised as one: about 1.2. It is 2 where
/// none is posted.
const MOST_EXITS_PER_CHARACTER: f64 = 1.5;

/// Prints a line and then does nothing: what is counted at that line stays true a moment longer.
const INIT: &str = "#!/bin/busybox sh\necho GUEST-UP\nexec /bin/busybox sleep 1000\n";

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("costs::boot_from_cache", |ctx| boot(ctx, true)).alone(),
        test("costs::boot_without_cache", |ctx| boot(ctx, false)).alone(),
        test("costs::verbose_boot", verbose_boot).alone(),
    ]
}

/// The same with and without `quiet`: what a character on the serial port costs in exits that reach the VMM. The
/// kernel looks at the line status before each while nobody has the port open, which is most of a boot: its write is
/// to cost none besides. KVM's own counter of port I/O does not tell, as it has the posted writes too.
fn verbose_boot(ctx: &Ctx) -> Result<()> {
    let boot = |level: &str| -> Result<(u64, u64)> {
        let vm = Vm::new(ctx).cpus(1).memory("256M").arg("--stats");
        let vm = vm.word(format!("loglevel={level}")).spawn()?;
        let lines = vm.wait_success(BOOT)?.lines;
        let shown = lines.iter().filter(|line| line.source == Source::Stdout);
        // Each line ends in CR and LF.
        let characters: usize = shown.map(|line| line.text.len() + 2).sum();
        Ok((port_accesses(&lines)?, characters as u64))
    };
    let (quiet, few) = boot("4")?;
    let (verbose, many) = boot("7")?;
    let (exits, characters) = (verbose.saturating_sub(quiet), many.saturating_sub(few));
    ensure!(
        characters > 10_000,
        "{characters} characters are no verbose boot"
    );
    let each = exits as f64 / characters as f64;
    note(&format!(
        "verbose boot of 6.1 cloud: {exits} exits to the serial port more for {characters} characters, {each:.2} each"
    ));
    ensure!(
        each <= MOST_EXITS_PER_CHARACTER,
        "{each:.2} exits for a character; {MOST_EXITS_PER_CHARACTER} are the most"
    );
    Ok(())
}

/// Exits for COM1 in the table that `--stats` prints: device, path, reads, writes, posted, and reads and writes together.
fn port_accesses(lines: &[Line]) -> Result<u64> {
    lines
        .iter()
        .filter(|line| line.source == Source::Stderr)
        .find_map(|line| {
            let mut words = line.text.split_whitespace();
            (words.next()? == "com1" && words.next()? == "pio").then_some(words.nth(3)?)
        })
        .context("nothing about com1 in the statistics")?
        .parse()
        .context("no number of accesses")
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
