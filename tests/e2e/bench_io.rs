//! `tripath bench`: I/O paths.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::host::{self, driver, in_emulated_l1, sysfs, wait_until};
use crate::harness::{Ctx, E2eTest, Kernel, test};

const IGB: &str = "0000:01:00.0";
const NVME: &str = "0000:02:00.0";
/// How far our counts and KVM's may be apart, in per cent.
const TOLERANCE_PERCENT: u64 = 2;
/// The two are not read at the same moment: of fewer, the handful in between would be more than that.
const LEAST: u64 = 1000;

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("bench::io_quick", io_quick)
            .alone()
            .own_network()
            .limit(600),
        test("bench::io_exits_as_kvm_counts", io_exits_as_kvm_counts)
            .own_network()
            .limit(300),
        test("bench::io_killed", io_killed)
            .alone()
            .own_network()
            .limit(400),
        test("bench::io_interrupted", io_interrupted)
            .alone()
            .own_network()
            .limit(300),
        test("bench::io_compared", io_compared).limit(300),
        test("bench::io_usage", io_usage),
        test("bench::io_list", io_list),
        // Not in a network of its own, in which the igb is not.
        test("bench::io_passthrough", io_passthrough)
            .alone()
            .passthrough()
            .limit(300),
        test("bench::io_passthrough_killed", io_passthrough_killed)
            .alone()
            .passthrough()
            .limit(300),
    ]
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
        .arg(ctx.kernel(Kernel::Generic612))
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

/// Measures with these options, and answers what was said, the variants, and the whole report.
fn measure(ctx: &Ctx, options: &[&str]) -> Result<(String, Vec<Value>, Value)> {
    let json = ctx.path("io.json");
    let ended = io_command(ctx, options)?
        .arg("--json")
        .arg(&json)
        .output()?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    println!("{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    ensure!(ended.status.success(), "{}", ended.status);
    let report: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let variants = report["variants"].as_array().context("no variants")?;
    Ok((said, variants.clone(), report))
}

fn expect_names(variants: &[Value], wanted: &[&str]) -> Result<()> {
    let names: Vec<&str> = variants
        .iter()
        .filter_map(|variant| variant["name"].as_str())
        .collect();
    for name in wanted {
        ensure!(names.contains(name), "no {name} in {names:?}");
    }
    Ok(())
}

/// The one sample of a variant, in which something was done.
fn sample(variant: &Value) -> Result<&Value> {
    let name = &variant["name"];
    let failure = &variant["failure"];
    ensure!(failure.is_null(), "{name}: {failure}");
    let samples = variant["samples"].as_array().context("no samples")?;
    ensure!(samples.len() == 1, "{name}: {} samples", samples.len());
    let operations = samples[0]["load"]["operations"].as_u64();
    ensure!(operations > Some(0), "{name}: {}", samples[0]["load"]);
    Ok(&samples[0])
}

fn io_quick(ctx: &Ctx) -> Result<()> {
    let html = ctx.path("io.html");
    let options = ["--rounds", "1", "--time", "100", "--html"];
    let (said, variants, report) =
        measure(ctx, &[&options[..], &[&html.to_string_lossy()]].concat())?;
    expect_names(
        &variants,
        &[
            "block/rand-read-4k-d1/direct",
            "block/rand-read-4k-d32/container",
            "block/seq-read-128k/ide",
            "net/udp-rr-1/sandbox",
            "net/tcp-send/virtio-net",
            "net/tcp-receive/e1000",
            "console/write/uart",
            "console/write/virtio-console",
        ],
    )?;
    for variant in &variants {
        let name = &variant["name"];
        let sample = sample(variant)?;
        let is_guest = !["direct", "container", "sandbox"]
            .contains(&variant["path"].as_str().unwrap_or_default());
        // Not all exits are to user space: virtio's doorbells stay in the kernel.
        let exits = sample["guest"]["kvm"]["exits"].as_u64();
        ensure!((exits > Some(0)) == is_guest, "{name}: {exits:?} exits");
        let device = variant["device"].as_str().unwrap_or_default();
        if ["ide", "e1000", "uart"].contains(&device) {
            let accesses = sample["guest"]["accesses"].as_array();
            ensure!(
                accesses.is_some_and(|rows| !rows.is_empty()),
                "{name}: no registers"
            );
        }
        let cpu = &sample["cpu"];
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

/// For as long as it takes that there are many.
fn io_exits_as_kvm_counts(ctx: &Ctx) -> Result<()> {
    let only = [
        "--only",
        "net/udp-rr-1/e1000",
        "--only",
        "console/write/uart",
    ];
    let options = ["--rounds", "1", "--time", "2000"];
    let (_, variants, _) = measure(ctx, &[&only[..], &options].concat())?;
    ensure!(variants.len() == 2, "{} variants", variants.len());
    for variant in &variants {
        let sample = sample(variant)?;
        exits_agree_with_kvm(variant, sample)?;
        interrupts_agree_with_kvm(variant, sample)?;
    }
    Ok(())
}

/// Our exits are KVM's own count. That of MMIO has only what goes to user space; that of ports has also writes that KVM
/// keeps for later, and doorbells, as IDE has one.
fn exits_agree_with_kvm(variant: &Value, sample: &Value) -> Result<()> {
    let name = &variant["name"];
    let guest = &sample["guest"];
    let rows = guest["accesses"].as_array().context("no accesses")?;
    let mut most = 0;
    for (posted_in, reasons, counter) in [
        (None, ["mmio-read", "mmio-write"], "mmio_exits"),
        (Some("pio"), ["io-in", "io-out"], "io_exits"),
    ] {
        let exits = reasons.iter().map(|reason| &guest["exits"][*reason]);
        let of_space = rows.iter().filter(|row| {
            let what = row["what"].as_str().unwrap_or_default();
            posted_in.is_some_and(|space| what.starts_with(space))
        });
        let posted = of_space.map(|row| &row["posted"]);
        let ours: u64 = exits.chain(posted).filter_map(Value::as_u64).sum();
        let kvms = guest["kvm"][counter].as_u64().unwrap_or_default();
        println!("{name}: {ours} of ours, {kvms} {counter}");
        ensure!(
            ours.abs_diff(kvms) <= tolerance(kvms),
            "{name}: {ours} of ours, {kvms} {counter}"
        );
        most = most.max(kvms);
    }
    ensure!(most >= LEAST, "{name}: only {most} exits");
    Ok(())
}

fn tolerance(of: u64) -> u64 {
    of.max(LEAST) * TOLERANCE_PERCENT / 100
}

/// The guest has served what KVM has given to it. KVM counts once more what it takes back before the guest is entered:
/// 2 to 4 % where all threads share an emulated CPU. A processor that delivers interrupts by itself is not emulated; with
/// one, the guest has served more.
fn interrupts_agree_with_kvm(variant: &Value, sample: &Value) -> Result<()> {
    let name = &variant["name"];
    let guest = &sample["guest"];
    let served = guest["interrupts"].as_u64().context("no interrupts")?;
    let kvms = guest["kvm"]["irq_injections"]
        .as_u64()
        .context("no count")?;
    println!("{name}: {served} interrupts served, {kvms} by KVM");
    let agree = served + kvms.max(LEAST) / 10 >= kvms
        && (!in_emulated_l1() || served <= kvms + tolerance(kvms));
    ensure!(agree, "{name}: {served} interrupts served, {kvms} by KVM");
    // Ticks alone are hundreds in that time.
    ensure!(served >= LEAST / 10, "{name}: only {served} interrupts");
    Ok(())
}

/// Killed while the guest is there, with a disk or a network, and while the container is.
fn io_killed(ctx: &Ctx) -> Result<()> {
    let is_interface = |name: &String| name.starts_with("tripath") && !name.contains("bench");
    for (subject, only, mark) in [
        ("net", "virtio-net", "bench guest"),
        ("net", "container", "--isolate"),
        ("block", "virtio-blk", "bench guest"),
    ] {
        let options = ["--subjects", subject, "--only", only, "--time", "600000"];
        let mut child = io_command(ctx, &options)?.stderr(Stdio::piped()).spawn()?;
        until_round(&mut child, 1)?;
        host::wait_until("processes and interfaces", || {
            leftovers(ctx).is_ok_and(|left| {
                left.iter().any(|one| one.contains(mark))
                    && (subject != "net" || left.iter().any(is_interface))
            })
        })?;
        child.kill()?;
        child.wait()?;
        nothing_is_left(ctx)?;
    }
    Ok(())
}

/// Waits for the one line that is said of each round, just before it begins.
fn until_round(child: &mut Child, round: u32) -> Result<()> {
    let stderr = child.stderr.as_mut().context("no standard error")?;
    let begins = format!("round {round} of");
    let mut lines = BufReader::new(stderr).lines();
    let found = lines.any(|line| line.is_ok_and(|line| line.contains(&begins)));
    ensure!(found, "round {round} has not begun");
    Ok(())
}

/// Ended by Ctrl-C: what was measured is told and written, and nothing stays.
fn io_interrupted(ctx: &Ctx) -> Result<()> {
    let json = ctx.path("interrupted.json");
    let options = ["--subjects", "net,console", "--only", "virtio"];
    let mut child = io_command(ctx, &options)?
        .args(["--rounds", "50", "--time", "100", "--json"])
        .arg(&json)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    until_round(&mut child, 2)?;
    host::run("kill", &["-INT", &child.id().to_string()])?;
    let ended = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stdout);
    ensure!(ended.status.code() == Some(1), "{}", ended.status);
    ensure!(said.contains("note: interrupted in round"), "{said}");
    let report: Value = serde_json::from_slice(&fs::read(&json)?)?;
    ensure!(report["interrupted"] == true, "{}", report["interrupted"]);
    let variants = report["variants"].as_array().context("no variants")?;
    for variant in variants {
        let samples = variant["samples"].as_array().map(Vec::len);
        ensure!(samples >= Some(1), "{}: {samples:?}", variant["name"]);
    }
    nothing_is_left(ctx)
}

/// A thousand times as much was measured once, as an older report says.
fn io_compared(ctx: &Ctx) -> Result<()> {
    let options = ["--only", "console/write/virtio", "--time", "50"];
    let options = [&options[..], &["--rounds", "4"]].concat();
    let json = ctx.path("old.json");
    let first = io_command(ctx, &options)?
        .arg("--json")
        .arg(&json)
        .output()?;
    ensure!(first.status.success(), "{}", first.status);
    let mut old: Value = serde_json::from_slice(&fs::read(&json)?)?;
    let samples = old["variants"][0]["samples"].as_array_mut();
    for sample in samples.context("no samples")? {
        let bytes = sample["load"]["bytes"].as_u64().context("no bytes")?;
        sample["load"]["bytes"] = (bytes * 1000).into();
    }
    fs::write(&json, old.to_string())?;
    let second = io_command(ctx, &options)?
        .arg("--compare")
        .arg(&json)
        .output()?;
    let said = String::from_utf8_lossy(&second.stdout);
    println!("{said}");
    ensure!(second.status.code() == Some(24), "{}", second.status);
    ensure!(said.contains("\n1 slower\n"), "{said}");
    Ok(())
}

fn io_usage(ctx: &Ctx) -> Result<()> {
    let kernel = ctx.kernel(Kernel::Generic612);
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

/// Anyone may ask what would be measured, also where there is no KVM.
fn io_list(ctx: &Ctx) -> Result<()> {
    // In a folder that everyone may enter.
    let program = ctx.path("tripath");
    fs::copy(&ctx.binary, &program)?;
    fs::set_permissions(&ctx.folder, fs::Permissions::from_mode(0o755))?;
    let (namespaces, as_user): (&[&str], _) = if rustix::process::getuid().is_root() {
        let as_user = "setpriv --reuid 1000 --regid 1000 --clear-groups";
        (&["--mount"], as_user)
    } else {
        (&["--mount", "--user", "--map-root-user"], "")
    };
    let script = format!("mount --bind /dev/null /dev/kvm && exec {as_user} \"$0\" bench --list");
    let ended = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", &script])
        .arg(&program)
        .output()?;
    ensure!(ended.status.success(), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    for name in ["block/rand-read-4k-d1/ide", "net/udp-rr-1/direct"] {
        ensure!(said.lines().any(|line| line == name), "no {name}: {said}");
    }
    Ok(())
}

/// The host's drivers for the functions, from now on.
fn load_drivers() -> Result<()> {
    for name in ["nvme", "igb", "igbvf"] {
        host::run("modprobe", &[name])?;
    }
    for function in [NVME, IGB] {
        if driver(function).is_none() {
            fs::write("/sys/bus/pci/drivers_probe", function)?;
        }
    }
    wait_until("network interface of igb", || interface().is_ok())?;
    wait_until("/dev/nvme0n1", || Path::new("/dev/nvme0n1").exists())?;
    // Another test may have left it up.
    host::run("ip", &["link", "set", &interface()?, "down"])
}

fn interface() -> Result<String> {
    let mut names = fs::read_dir(sysfs(IGB).join("net"))?;
    let name = names.next().context("igb has no interface")??.file_name();
    Ok(name.to_string_lossy().into_owned())
}

/// The functions are with the host's drivers, and nothing else is left.
fn functions_are_back(ctx: &Ctx) -> Result<()> {
    for (function, own) in [(NVME, "nvme"), (IGB, "igb")] {
        let driver = driver(function);
        ensure!(driver.as_deref() == Some(own), "{function}: {driver:?}");
    }
    let count = fs::read_to_string(sysfs(IGB).join("sriov_numvfs"))?;
    ensure!(count.trim() == "0", "virtual functions: {}", count.trim());
    let link = host::output("ip", &["address", "show", &interface()?])?;
    ensure!(!link.contains("198.1") && !link.contains(",UP"), "{link}");
    let names = fs::read_dir("/run/tripath/vfio")?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<Result<Vec<_>>>()?;
    ensure!(names == ["lock"], "{names:?}");
    nothing_is_left(ctx)
}

const FUNCTIONS: [&str; 4] = [
    "--device",
    "host=0000:02:00.0",
    "--device",
    "pf=0000:01:00.0,vf=auto",
];

/// An NVMe controller, and a virtual function that is not there yet.
fn io_passthrough(ctx: &Ctx) -> Result<()> {
    load_drivers()?;
    a_disk_too_small_is_told(ctx)?;
    let options = [
        "--rounds",
        "1",
        "--time",
        "100",
        "--only",
        "rand-read-4k-d1/",
        "--only",
        "udp-rr",
    ];
    let (_, variants, report) = measure(ctx, &[&FUNCTIONS[..], &options].concat())?;
    let names = [
        "block/rand-read-4k-d1/nvme",
        "block/rand-read-4k-d1/direct-nvme",
        "block/rand-read-4k-d1/container-nvme",
        "block/rand-read-4k-d1/sandbox-nvme",
        "net/udp-rr-1/igbvf",
        "net/udp-rr-1/direct-igbvf",
        "net/udp-rr-1/container-igbvf",
        "net/udp-rr-1/sandbox-igbvf",
    ];
    expect_names(&variants, &names)?;
    for variant in &variants {
        sample(variant)?;
    }
    let backends = report["guest"]["backends"].to_string();
    ensure!(backends.contains("virtual function 0000:"), "{backends}");
    functions_are_back(ctx)
}

fn a_disk_too_small_is_told(ctx: &Ctx) -> Result<()> {
    let ended = Command::new(&ctx.binary)
        .args(["bench", "--force", "--disk-size", "256M", "--modules"])
        .args(["none", "--device", "host=0000:02:00.0", "--kernel"])
        .arg(ctx.kernel(Kernel::Generic612))
        .output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.code() == Some(2)
            && said.contains("has 128 MiB, and 256 MiB")
            && said.lines().count() == 1,
        "{}: {said}",
        ended.status
    );
    Ok(())
}

/// Killed while the guest has the functions: the next start of another guest puts back what its process did not.
fn io_passthrough_killed(ctx: &Ctx) -> Result<()> {
    load_drivers()?;
    let options = [
        "--only",
        "udp-rr-1/igbvf",
        "--only",
        "rand-read-4k-d1/nvme",
        "--time",
        "600000",
    ];
    let mut child = io_command(ctx, &[&FUNCTIONS[..], &options].concat())?
        .stderr(Stdio::null())
        .spawn()?;
    wait_until("taken function", || {
        driver(NVME).as_deref() == Some("vfio-pci")
    })?;
    child.kill()?;
    child.wait()?;
    nothing_is_left(ctx)?;
    let told = host::output(&ctx.binary.to_string_lossy(), &["vfio", "recover"])?;
    println!("{told}");
    functions_are_back(ctx)
}
