//! `tripath ctl`: a guest's costs while it runs, held against what KVM itself counts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::host::output;
use crate::harness::vm::{BOOT, Running, Vm};
use crate::harness::{Ctx, E2eTest, test};

/// By how much two counts of the same thing may differ: they are not read in the same moment.
const TOLERANCE: f64 = 0.02;

/// A mistake is found before anything is created.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Does some I/O each time a line comes, and says when it is done. Configuration space is read by ports, all of which
/// user space answers; of the disk's, KVM answers some itself, its doorbells.
const JOB: &str = "
echo READY
while read line; do
    case $line in
    disk) dd if=/dev/sda of=/dev/null bs=4k count=300 iflag=direct 2>/dev/null ;;
    ports) for i in 0 1 2 3 4 5 6 7 8 9; do cat /sys/bus/pci/devices/*/config >/dev/null; done ;;
    esac
    echo DONE $line
done";

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("ctl::stats_agree_with_kvm", stats_agree_with_kvm).alone(),
        test("ctl::socket_comes_and_goes", socket_comes_and_goes),
        test("ctl::usage", usage),
    ]
}

fn ask(ctx: &Ctx, socket: &Path, more: &[&str]) -> Result<String> {
    let socket = socket.display().to_string();
    let arguments = [&["ctl", "stats", &socket], more].concat();
    output(&ctx.binary.to_string_lossy(), &arguments)
}

fn stats(ctx: &Ctx, socket: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&ask(ctx, socket, &["--json"])?)?)
}

/// A counter of KVM's in debugfs, of all vCPUs.
fn debugfs(vm: &Running, counter: &str) -> Result<u64> {
    let prefix = format!("{}-", vm.id());
    let kvm = Path::new("/sys/kernel/debug/kvm");
    let entries = fs::read_dir(kvm).with_context(|| format!("{}", kvm.display()))?;
    let folder = entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .with_context(|| format!("no {prefix}* in debugfs"))?;
    let path = folder.path().join(counter);
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    Ok(text.trim().parse()?)
}

fn agree(what: &str, ours: u64, kvms: u64) -> Result<()> {
    let difference = ours.abs_diff(kvms) as f64;
    println!("{what}: {ours} by us, {kvms} by KVM");
    ensure!(
        difference <= TOLERANCE * kvms as f64,
        "{what}: {ours} by us, {kvms} by KVM"
    );
    Ok(())
}

/// The sum of a field over rows, of those that match.
fn sum(rows: &Value, field: &str, matches: impl Fn(&Value) -> bool) -> u64 {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = rows.iter().filter(|row| matches(row));
    rows.filter_map(|row| row[field].as_u64()).sum()
}

fn exits(report: &Value, reasons: &[&str]) -> u64 {
    sum(&report["exits"], "count", |row| {
        row["reason"]
            .as_str()
            .is_some_and(|reason| reasons.contains(&reason))
    })
}

/// Accesses without an exit of their own, which KVM counts as exits of the guest.
fn posted(report: &Value, path: &str) -> u64 {
    sum(&report["registers"], "posted", |row| row["path"] == path)
}

fn kvms(report: &Value, counter: &str) -> Result<u64> {
    let found = &report["kvm"][counter];
    found
        .as_u64()
        .with_context(|| format!("{counter}: {found}"))
}

fn stats_agree_with_kvm(ctx: &Ctx) -> Result<()> {
    let disk = ctx.disk("disk", 16)?;
    let socket = ctx.path("control");
    let mut vm = Vm::new(ctx)
        .option("--control", &socket)
        .disk(&disk, ",if=ide")
        .option("--rng", "on")
        .module("virtio-rng")
        .job(JOB)
        .spawn()?;
    vm.wait_for("READY", BOOT)?;
    let mode = fs::metadata(&socket)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "the socket has mode {mode:o}");
    let before = stats(ctx, &socket)?;
    vm.send("ports\n")?;
    vm.wait_for("DONE ports", BOOT)?;
    let all = debugfs(&vm, "exits")?;
    let after = stats(ctx, &socket)?;
    agree("exits", kvms(&after, "exits")?, all)?;

    let pio = |report: &Value| exits(report, &["io-in", "io-out"]) + posted(report, "pio");
    let mmio = |report: &Value| exits(report, &["mmio-read", "mmio-write"]);
    let io = pio(&after) - pio(&before);
    ensure!(io > 1000, "{io} port accesses for ten times all functions");
    let kvms_io = kvms(&after, "io_exits")? - kvms(&before, "io_exits")?;
    let kvms_mmio = kvms(&after, "mmio_exits")? - kvms(&before, "mmio_exits")?;
    let both = io + mmio(&after) - mmio(&before);
    agree("io and mmio", both, kvms_io + kvms_mmio)?;
    // Since the start of the guest: its driver of the virtio device has used memory.
    ensure!(mmio(&after) > 20, "no registers in memory were used");
    agree("mmio", mmio(&after), kvms(&after, "mmio_exits")?)?;

    vm.send("disk\n")?;
    vm.wait_for("DONE disk", BOOT)?;
    let before = after;
    let after = stats(ctx, &socket)?;
    let ide = |report: &Value| sum(&report["registers"], "count", |row| row["device"] == "ide");
    ensure!(
        ide(&after) > ide(&before),
        "the disk's registers are not counted"
    );
    let status = after["registers"]
        .as_array()
        .context("no registers")?
        .iter();
    let status = status
        .clone()
        .find(|row| row["register"] == "pio.primary+0x7" && row["action"] == "read")
        .context("no row of the status register")?;
    let (p50, max) = (&status["times"]["p50_ns"], &status["times"]["max_ns"]);
    ensure!(
        p50.as_u64() > Some(0) && max.as_u64() >= p50.as_u64(),
        "{status}"
    );
    let table = ask(ctx, &socket, &[])?;
    for word in ["io-in", "register or queue", "p99 us", "pio.primary+0x7"] {
        ensure!(table.contains(word), "no {word:?} in the table:\n{table}");
    }
    vm.signal(Signal::TERM)?;
    vm.signal(Signal::TERM)?;
    let exit = vm.wait_success(BOOT)?;
    ensure!(!exit.says("exit reason"), "a table without --stats");
    ensure!(!socket.exists(), "the socket is left");
    Ok(())
}

fn listening(ctx: &Ctx, socket: &Path) -> Result<Running> {
    let vm = Vm::new(ctx).option("--control", socket);
    let mut vm = vm.job("echo READY; read line").spawn()?;
    vm.wait_for("READY", BOOT)?;
    Ok(vm)
}

fn socket_comes_and_goes(ctx: &Ctx) -> Result<()> {
    let socket: PathBuf = ctx.path("control");
    let first = listening(ctx, &socket)?;
    let kernel = ctx.kernel(crate::harness::Kernel::Cloud61);
    let second = [
        "--kernel".into(),
        kernel.into(),
        "--control".into(),
        socket.clone().into(),
    ];
    let exit = Running::start(ctx, "run", &second)?.wait_exit(AT_ONCE)?;
    exit.expect_code(2)?;
    ensure!(exit.messages().len() == 1, "{:?}", exit.messages());
    ensure!(
        exit.says("another process listens on"),
        "{:?}",
        exit.messages()
    );
    ask(ctx, &socket, &[]).context("the first does not answer any more")?;

    first.signal(Signal::KILL)?;
    ensure!(first.ends_within(AT_ONCE)?, "it lives");
    drop(first);
    ensure!(socket.exists(), "who removed it?");
    let mut third = listening(ctx, &socket)?;
    ask(ctx, &socket, &[])?;
    third.send("\n")?;
    third.wait_success(BOOT)?;
    ensure!(!socket.exists(), "the socket is left");
    Ok(())
}

fn usage(ctx: &Ctx) -> Result<()> {
    let nowhere = ctx.path("nowhere");
    let args = ["stats".into(), nowhere.into()];
    let exit = Running::start(ctx, "ctl", &args)?.wait_exit(AT_ONCE)?;
    exit.expect_code(2)?;
    ensure!(exit.messages().len() == 1, "{:?}", exit.messages());
    ensure!(exit.says("no run listens on"), "{:?}", exit.messages());
    let notes = ctx.path("notes");
    fs::write(&notes, "precious")?;
    let kernel = ctx.kernel(crate::harness::Kernel::Cloud61);
    let args = [
        "--kernel".into(),
        kernel.into(),
        "--control".into(),
        notes.clone().into(),
    ];
    let exit = Running::start(ctx, "run", &args)?.wait_exit(AT_ONCE)?;
    exit.expect_code(2)?;
    ensure!(exit.says("is not a socket"), "{:?}", exit.messages());
    ensure!(fs::read(&notes)? == b"precious", "it is overwritten");
    Ok(())
}
