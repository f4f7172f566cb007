//! `tripath bench`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::host::{self, output};
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
const MOST: f64 = 1.05;

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("bench::exits", exits).alone(),
        test("bench::exits_beside_a_bare_loop", beside_bare_loop).counted(),
        test("bench::usage", usage),
        test("bench::io_quick", io_quick)
            .alone()
            .own_network()
            .limit(600),
        test("bench::io_killed", io_killed)
            .alone()
            .own_network()
            .limit(400),
        test("bench::io_usage", io_usage),
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
    let (said, report) = measure(ctx, &["--rounds", "3", "--seed", "7"])?;
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
    let mut dear = Vec::new();
    for kind in &KINDS[..4] {
        let ours = median(&report, kind)?;
        let bare: f64 = output(&program.to_string_lossy(), &[kind, COUNT])?
            .trim()
            .parse()?;
        let ratio = ours / bare;
        println!("{kind}: {ours:.0} ns, {bare:.0} ns in the bare loop: {ratio:.3}");
        if ratio > MOST {
            dear.push(format!("{kind}: {ratio:.3} times the bare loop"));
        }
    }
    ensure!(dear.is_empty(), "{}", dear.join(", "));
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

/// The benchmark of I/O paths with a kernel that has a driver for everything, short, in a control group if there may be
/// one.
fn io_command(ctx: &Ctx, options: &[&str]) -> Result<Command> {
    let disks = ctx.path("disks");
    fs::create_dir_all(&disks)?;
    let groups = Path::new(GROUPS);
    if fs::read_dir(groups)?.next().is_none() {
        host::run("mount", &["-t", "cgroup2", "none", GROUPS])?;
    }
    // It is built in, or loaded already, or else the container has no network, which the test sees.
    let _ = Command::new("modprobe").arg("veth").status();
    let tree = ctx.testbed.join("generic612/tree");
    let mut command = Command::new(&ctx.binary);
    command
        .args(["bench", "--quick", "--force", "--seed", "7"])
        .args(["--disk-size", "16M", "--memory", "256M"])
        .arg("--disk-folder")
        .arg(disks)
        .arg("--kernel")
        .arg(ctx.kernel(crate::harness::Kernel::Generic612))
        .arg("--modules")
        .arg(tree)
        .args(options);
    Ok(command)
}

const GROUPS: &str = "/sys/fs/cgroup";

/// What a benchmark has made on the host and that is still there: processes, interfaces, control groups, files.
fn leftovers(ctx: &Ctx) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(words) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        // Run from a file without a name, as is our own process.
        let is_load = words.starts_with("/proc/")
            && [" agent ", " serve "]
                .iter()
                .any(|mode| words.contains(mode));
        let is_ours = ["bench guest", "bench janitor"]
            .iter()
            .any(|command| words.contains(command));
        if is_load || is_ours {
            left.push(words);
        }
    }
    let devices = fs::read_to_string("/proc/self/net/dev")?;
    let names = devices.lines().filter_map(|line| line.split_once(':'));
    left.extend(
        names
            .map(|(name, _)| name.trim().to_owned())
            .filter(|name| name.starts_with("tripath")),
    );
    let groups = fs::read_dir(GROUPS)?.flatten();
    left.extend(
        groups
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("tripath-bench")),
    );
    let files = fs::read_dir(ctx.path("disks"))?.flatten();
    left.extend(files.map(|entry| entry.path().display().to_string()));
    Ok(left)
}

fn nothing_is_left(ctx: &Ctx) -> Result<()> {
    let gone = host::wait_until("end of what was made", || {
        leftovers(ctx).is_ok_and(|left| left.is_empty())
    });
    gone.with_context(|| format!("{:?}", leftovers(ctx)))
}

fn io_quick(ctx: &Ctx) -> Result<()> {
    let json = ctx.path("io.json");
    let html = ctx.path("io.html");
    let ended = io_command(ctx, &["--rounds", "1", "--time", "100"])?
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()?;
    let (said, errors) = (
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr),
    );
    println!("{said}\n{errors}");
    ensure!(ended.status.success(), "{}", ended.status);
    let report: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let variants = report["variants"].as_array().context("no variants")?;
    let names: Vec<&str> = variants
        .iter()
        .filter_map(|variant| variant["name"].as_str())
        .collect();
    for name in [
        "block/rand-read-4k-d1/direct",
        "block/rand-read-4k-d32/container",
        "block/seq-read-128k/ide",
        "net/udp-rr-1/sandbox",
        "net/tcp-send/virtio-net",
        "net/tcp-receive/e1000",
        "console/write/uart",
        "console/write/virtio-console",
    ] {
        ensure!(names.contains(&name), "no {name} in {names:?}");
    }
    for variant in variants {
        let name = &variant["name"];
        ensure!(
            variant["failure"].is_null(),
            "{name}: {}",
            variant["failure"]
        );
        let samples = variant["samples"].as_array().context("no samples")?;
        ensure!(samples.len() == 1, "{name}: {} samples", samples.len());
        let operations = samples[0]["load"]["operations"].as_u64();
        ensure!(operations > Some(0), "{name}: {}", samples[0]["load"]);
        let is_guest = !["direct", "container", "sandbox"]
            .contains(&variant["path"].as_str().unwrap_or_default());
        // Not all exits are to user space: virtio's doorbells stay in the kernel.
        let exits = samples[0]["guest"]["kvm"]["exits"].as_u64();
        ensure!((exits > Some(0)) == is_guest, "{name}: {exits:?} exits");
        if ["ide", "e1000", "uart"].contains(&variant["device"].as_str().unwrap_or_default()) {
            let accesses = samples[0]["guest"]["accesses"].as_array();
            ensure!(
                accesses.is_some_and(|rows| !rows.is_empty()),
                "{name}: no registers"
            );
        }
        let cpu = &samples[0]["cpu"];
        let user = cpu["user_ns"].as_object().context("no CPU time")?;
        let user: u64 = user.values().filter_map(Value::as_u64).sum();
        let rest = cpu["kernel_ns"].as_u64().unwrap_or_default()
            + cpu["guest_ns"].as_u64().unwrap_or_default();
        ensure!(user + rest > 0, "{name}: no CPU time");
    }
    ensure!(report["exit_cost_ns"]["pio-read"].as_f64() > Some(0.0));
    ensure!(said.contains("order by --seed 7"), "no seed");
    ensure!(fs::read_to_string(&html)?.contains("<svg"), "no charts");
    nothing_is_left(ctx)
}

/// Killed while the guest is there, and while the container is.
fn io_killed(ctx: &Ctx) -> Result<()> {
    for (only, mark) in [("virtio-net", "bench guest"), ("container", "--isolate")] {
        let mut child = io_command(
            ctx,
            &["--subjects", "net", "--only", only, "--time", "600000"],
        )?
        .stderr(Stdio::piped())
        .spawn()?;
        // The one line that it says of each round, just before it begins.
        let stderr = child.stderr.take().context("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        ensure!(
            lines.any(|line| line.is_ok_and(|line| line.contains("round 1 of"))),
            "no round began"
        );
        let interface = |name: &str| name.starts_with("tripath");
        host::wait_until("interface", || {
            leftovers(ctx).is_ok_and(|left| {
                left.iter().any(|one| interface(one)) && left.iter().any(|one| one.contains(mark))
            })
        })?;
        child.kill()?;
        child.wait()?;
        nothing_is_left(ctx)?;
    }
    Ok(())
}

fn io_usage(ctx: &Ctx) -> Result<()> {
    let kernel = ctx.kernel(crate::harness::Kernel::Generic612);
    let kernel = kernel.to_string_lossy();
    for (options, text) in [
        (
            &["--kernel", "/nowhere/vmlinuz"][..],
            "--kernel /nowhere/vmlinuz: No such file",
        ),
        (&["--only", "tape"], "no variant has such a name"),
        (&["--pin", "load=4000"], "4000"),
        (&["--pin", "disk=1"], "unknown key"),
        (
            &["--device", "host=7f:1f.7"],
            "--device 0000:7f:1f.7: the host has no such PCI function",
        ),
        (
            &["--disk-folder", "/nowhere"],
            "cannot make files in /nowhere",
        ),
        (
            &["--disk-size", "1T"],
            "--disk-folder DIR, or make the disks smaller",
        ),
        (&["--json", "/nowhere/x.json"], "/nowhere/x.json"),
        (
            &["--compare", "/nowhere/x.json"],
            "--compare /nowhere/x.json",
        ),
        (&["--subjects", "tape"], "it takes block, net, console"),
        (&["--modules", "/nowhere"], "--modules /nowhere"),
    ] {
        // What is under test is not given twice.
        let usual = [
            ["--kernel", &*kernel],
            ["--modules", "none"],
            ["--disk-size", "1M"],
        ];
        let usual = usual.iter().filter(|usual| usual[0] != options[0]);
        let ended = Command::new(&ctx.binary)
            .args(["bench", "--force"])
            .args(usual.flatten())
            .args(options)
            .output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(
            ended.status.code() == Some(2) && said.contains(text) && said.lines().count() == 1,
            "{options:?}: {}: {said}",
            ended.status
        );
    }
    Ok(())
}
