//! `tripath vfio`, and taking functions from the host and giving them back: on real functions, in the L1 that has them.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, bail, ensure};
use devices::vfio::host::claim::{Lease, take};
use devices::vfio::host::state::StateFolder;
use devices::vfio::host::{Host, PciAddress};
use rustix::fs::OFlags;
use serde_json::Value;
use vmm_core::config::{DeviceConfig, DeviceTable};
use vmm_core::machine::claims::requests;

use crate::harness::host::{driver, name_behind, output, run, sysfs, wait_until};
use crate::harness::{Ctx, E2eTest, sys, test};

static IGB: Place = Place(LazyLock::new(|| find("0x10c9", "")));
static NVME: Place = Place(LazyLock::new(|| find("0x0010", "")));
/// The functions of one device.
static PAIR: [Place; 2] = [
    Place(LazyLock::new(|| find("0x10d3", ".1").replace(".1", ".0"))),
    Place(LazyLock::new(|| find("0x10d3", ".1"))),
];
/// Behind a bridge to conventional PCI.
static BRIDGED: Place = Place(LazyLock::new(|| find("0x100e", "")));
const MAC: &str = "52:54:00:00:03:01";
/// The RAM that claims are made for.
const GUEST_BYTES: u64 = 64 << 20;
const USER: u32 = 1000;

/// The address of a function of L1's, found by what it is: it changes with what else there is.
struct Place(LazyLock<String>);

impl Deref for Place {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<[u8]> for Place {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// The first function with that device ID whose address ends so.
fn find(device: &str, end: &str) -> String {
    let entries = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten();
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| {
            let id = fs::read_to_string(entry.path().join("device"));
            id.is_ok_and(|id| id.trim() == device)
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(end))
        .collect();
    names.sort_unstable();
    // The test fails with that.
    names
        .into_iter()
        .next()
        .unwrap_or_else(|| format!("no {device}"))
}

pub fn tests() -> Vec<E2eTest> {
    let mut tests: Vec<E2eTest> = [
        test("vfio_host::list_and_show", list_and_show),
        test("vfio_host::sriov", sriov),
        test("vfio_host::refusals", refusals),
        test("vfio_host::disk_in_use", disk_in_use),
        test("vfio_host::two_runs_two_vfs", two_runs),
        test("vfio_host::vf_that_was_there", vf_that_was_there),
        test("vfio_host::killed", killed),
        test("vfio_host::without_root", without_root),
    ]
    .into_iter()
    .map(E2eTest::passthrough)
    .collect();
    tests.push(test("vfio_host::no_iommu", no_iommu));
    tests
}

fn list_and_show(ctx: &Ctx) -> Result<()> {
    let _drivers = Drivers::load(&["igb", "e1000e"])?;
    let list: Value = serde_json::from_str(&tripath(ctx, &["list", "--json"])?)?;
    ensure!(
        list["iommu"]["units"][0] == "dmar0" && list["iommu"]["interrupt_remapping"] == true,
        "{}",
        list["iommu"]
    );
    let row = |address: &str| {
        let rows = list["functions"].as_array().into_iter().flatten();
        rows.into_iter()
            .find(|row| row["address"] == address)
            .cloned()
            .context("not listed")
    };
    let igb = row(&IGB)?;
    ensure!(
        igb["assignable"] == true && igb["driver"] == "igb" && igb["sriov"]["vfs"] == 0,
        "{igb}"
    );
    ensure!(
        igb["name"] == "Intel Corporation 82576 Gigabit Network Connection",
        "{igb}"
    );
    let pair = row(&PAIR[0])?;
    ensure!(
        pair["assignable"] == false && pair["reasons"][0]["code"] == "member-on-host-driver",
        "{pair}"
    );
    let table = tripath(ctx, &["list"])?;
    let line = table
        .lines()
        .find(|line| line.contains(&*PAIR[0]))
        .context("not in the table")?;
    ensure!(
        line.contains(&format!("no: {} is on e1000e", &PAIR[1])),
        "{line}"
    );

    let no_acs = function_below("0000:00:1e.0")?;
    for (function, why) in [
        (&*IGB, "the function is alone in its group"),
        (
            &*PAIR[0],
            "one of several functions without ACS: they are in one group",
        ),
        (
            &*BRIDGED,
            "conventional PCI has no requester IDs: what is behind it is in one group",
        ),
        (
            &no_acs,
            "0000:00:1e.0 (root port): no ACS: what is behind it is in one group",
        ),
    ] {
        let shown = tripath(ctx, &["show", function])?;
        ensure!(shown.contains(why), "{function}: {shown}");
    }
    let shown = tripath(ctx, &["show", &BRIDGED])?;
    ensure!(shown.contains("a bridge, tolerated"), "{shown}");
    let shown: Value = serde_json::from_str(&tripath(ctx, &["show", &IGB, "--json"])?)?;
    ensure!(
        shown["interrupts"]["msix"]["count"] == 10 && shown["function_level_reset"] == true,
        "{shown}"
    );
    ensure!(shown["bars"][0]["size_bytes"] == 128 << 10, "{shown}");
    Ok(())
}

fn sriov(ctx: &Ctx) -> Result<()> {
    let _drivers = Drivers::load(&["igb", "igbvf"])?;
    let interface = interface_of(&IGB)?;
    let made = tripath(ctx, &["sriov", &interface, "--vfs", "2"])?;
    ensure!(
        made.starts_with(&format!("{IGB} ({interface}): 2 of 7 virtual functions")),
        "{made}"
    );
    let listed: Value = serde_json::from_str(&tripath(ctx, &["sriov", &IGB, "--json"])?)?;
    let vf = listed["vfs"][0]["address"]
        .as_str()
        .context("no VF")?
        .to_owned();
    ensure!(
        listed["vfs"][0]["driver"] == "igbvf" && listed["vfs"][1]["index"] == 1,
        "{listed}"
    );
    let vf_interface = interface_of(&vf)?;
    run("ip", &["link", "set", &vf_interface, "up"])?;
    mistake(
        ctx,
        &["sriov", &interface, "--vfs", "0"],
        &format!(
            "the virtual functions of {IGB} cannot be changed while {vf} is in use: the host uses it: its network interface \
             {vf_interface} is up; to change that: ip link set {vf_interface} down"
        ),
    )?;
    run("ip", &["link", "set", &vf_interface, "down"])?;
    mistake(
        ctx,
        &["sriov", &vf, "--vfs", "1"],
        &format!("{vf} is itself a virtual function: name its physical function, {IGB}"),
    )?;
    mistake(
        ctx,
        &["sriov", &IGB, "--vfs", "9"],
        &format!("{IGB} has at most 7 virtual functions, not 9"),
    )?;
    tripath(ctx, &["sriov", &IGB, "--vfs", "0"])?;
    ensure!(
        !Path::new(&sysfs(&IGB)).join("virtfn0").exists(),
        "the VFs are still there"
    );
    Ok(())
}

/// With the other function of its group on a driver of the host's, without, and with both wanted.
fn refusals(_ctx: &Ctx) -> Result<()> {
    let _drivers = Drivers::load(&["e1000e"])?;
    let name = "Intel Corporation 82574L Gigabit Network Connection";
    let group = group_of(&PAIR[0])?;
    refused(
        &format!("host={}", &PAIR[0]),
        &format!(
            "{} ({name}, driver e1000e) cannot be assigned: {} ({name}) is in the same IOMMU group {group} and on the host's driver \
             e1000e; to change that: echo {1} > /sys/kernel/iommu_groups/{group}/devices/{1}/driver/unbind",
            &PAIR[0], PAIR[1]
        ),
    )?;
    let both = claim(&[&format!("host={}", &PAIR[0]), &format!("host={}", &PAIR[1])])?;
    ensure!(
        PAIR.iter()
            .all(|function| driver(function).as_deref() == Some("vfio-pci"))
    );
    drop(both);
    ensure!(
        PAIR.iter()
            .all(|function| driver(function).as_deref() == Some("e1000e"))
    );
    // What the message said.
    fs::write(
        format!(
            "/sys/kernel/iommu_groups/{group}/devices/{}/driver/unbind",
            PAIR[1]
        ),
        &PAIR[1],
    )?;
    let lease = claim(&[&format!("host={}", &PAIR[0])])?;
    drop(lease);
    ensure!(driver(&PAIR[1]).is_none());
    fs::write("/sys/bus/pci/drivers_probe", &PAIR[1])?;

    let interface = interface_of(&PAIR[0])?;
    fs::write(sysfs(&PAIR[1]).join("driver/unbind"), &PAIR[1])?;
    run("ip", &["link", "set", &interface, "up"])?;
    let told = claim(&[&format!("host={}", &PAIR[0])])
        .err()
        .context("taken while it is up")?
        .to_string();
    ensure!(
        told.contains(&format!("its network interface {interface} ")) && told.contains("force=on"),
        "{told}"
    );
    drop(claim(&[&format!("host={},force=on", &PAIR[0])])?);
    refused(
        "host=0000:7f:00.0",
        "there is no PCI function 0000:7f:00.0; to change that: tripath vfio list",
    )
}

fn disk_in_use(_ctx: &Ctx) -> Result<()> {
    let _drivers = Drivers::load(&["nvme"])?;
    let disk = Path::new("/dev/nvme0n1");
    wait_until("/dev/nvme0n1", || disk.exists())?;
    let told = |why: &str, end: &str| {
        let model = "Red Hat, Inc. QEMU NVM Express Controller, driver nvme";
        format!(
            "{NVME} ({model}) cannot be assigned: the host uses it: {why}; to change that: {end}; or take it all the same with force=on"
        )
    };
    let wanted = format!("host={NVME}");
    run("mkswap", &["/dev/nvme0n1"])?;
    run("swapon", &["/dev/nvme0n1"])?;
    let swap = refused(
        &wanted,
        &told("nvme0n1 is swap space", "swapoff /dev/nvme0n1"),
    );
    run("swapoff", &["/dev/nvme0n1"])?;
    swap?;
    run("modprobe", &["ext4"])?;
    run("mke2fs", &["-q", "-F", "-t", "ext4", "/dev/nvme0n1"])?;
    let folder = tempfile::tempdir()?;
    let at = folder.path().to_str().context("a path")?;
    run("mount", &["/dev/nvme0n1", at])?;
    let mounted = refused(
        &wanted,
        &told(
            &format!("nvme0n1 is mounted on {at}"),
            &format!("umount {at}"),
        ),
    );
    run("umount", &[at])?;
    mounted?;
    let exclusive = i32::try_from(OFlags::EXCL.bits())?;
    // A mount that is not in this process's namespace, or whatever else: the kernel knows.
    let holder = File::options()
        .read(true)
        .write(true)
        .custom_flags(exclusive)
        .open(disk)?;
    let held = refused(
        &wanted,
        &told(
            "nvme0n1 is held by a device mapping, a RAID or a program",
            "lsblk /dev/nvme0n1   # shows who holds it",
        ),
    );
    drop(holder);
    held?;
    drop(claim(&[&wanted])?);
    wait_until("/dev/nvme0n1 after it was given back", || disk.exists())
}

/// There are no VFs at first, and none afterwards.
fn two_runs(ctx: &Ctx) -> Result<()> {
    let _drivers = Drivers::load(&["igb", "igbvf"])?;
    let interface = interface_of(&IGB)?;
    let wanted = format!("pf={interface},vf=auto,mac={MAC},vlan=7,trust=on");
    let first = claim(&[&wanted])?;
    let second = Holder::start(&[&format!("pf={IGB},vf=auto")])?;
    ensure!(second.functions.len() == 1 && second.functions[0] != first[0].address().to_string());
    let link = output("ip", &["link", "show", &interface])?;
    let vf0 = link
        .lines()
        .find(|line| line.trim_start().starts_with("vf 0 "))
        .context("no vf 0")?;
    ensure!(
        vf0.contains(MAC) && vf0.contains("vlan 7") && vf0.contains("trust on"),
        "{vf0}"
    );
    let pid = second.child.id();
    refused(
        &format!("pf={IGB},vf=1"),
        &format!(
            "{0} (Intel Corporation 82576 Virtual Function, driver vfio-pci) cannot be assigned: {0} is used by another tripath run, \
             process {pid}; to change that: kill {pid}",
            second.functions[0]
        ),
    )?;
    let own = std::process::id();
    mistake(
        ctx,
        &["sriov", &IGB, "--vfs", "0"],
        &format!(
            "the virtual functions of {IGB} cannot be changed while {0} is in use: {0} is used by another tripath run, process {own}; \
             to change that: kill {own}",
            first[0].address()
        ),
    )?;
    drop(first);
    ensure!(
        sysfs(&IGB).join("virtfn0").exists(),
        "the VFs of a run that lives are gone"
    );
    second.end()?;
    ensure!(
        !sysfs(&IGB).join("virtfn0").exists(),
        "the VFs are still there"
    );
    nothing_is_left()
}

fn vf_that_was_there(ctx: &Ctx) -> Result<()> {
    let _drivers = Drivers::load(&["igb", "igbvf"])?;
    let interface = interface_of(&IGB)?;
    run("ip", &["link", "set", &interface, "up"])?;
    wait_until("link", || {
        fs::read_to_string(format!("/sys/class/net/{interface}/carrier"))
            .is_ok_and(|up| up.trim() == "1")
    })?;
    let result = (|| {
        tripath(ctx, &["sriov", &IGB, "--vfs", "2"])?;
        let settings = || -> Result<Value> {
            let listed: Value = serde_json::from_str(&tripath(ctx, &["sriov", &IGB, "--json"])?)?;
            Ok(listed["vfs"][1].clone())
        };
        let before = settings()?;
        let leases = claim(&[&format!("pf={IGB},vf=1,mac={MAC},spoofchk=off")])?;
        let during = settings()?;
        ensure!(
            during["driver"] == "vfio-pci" && during["settings"]["spoofchk"] == false,
            "{during}"
        );
        drop(leases);
        ensure!(settings()? == before, "{} was {before}", settings()?);
        ensure!(before["driver"] == "igbvf", "{before}");
        tripath(ctx, &["sriov", &IGB, "--vfs", "0"])
    })();
    run("ip", &["link", "set", &interface, "down"])?;
    result.map(drop)
}

/// `kill -9`: `recover`, or the next run, puts everything back.
fn killed(ctx: &Ctx) -> Result<()> {
    let _drivers = Drivers::load(&["igb", "nvme"])?;
    let wanted = [
        format!("host={NVME}"),
        format!("pf={IGB},vf=auto,mac={MAC}"),
    ];
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let is_back = || -> Result<()> {
        ensure!(
            driver(&NVME).as_deref() == Some("nvme"),
            "{:?}",
            driver(&NVME)
        );
        ensure!(
            !sysfs(&IGB).join("virtfn0").exists(),
            "the VFs are still there"
        );
        nothing_is_left()
    };
    let holder = Holder::start(&wanted)?;
    ensure!(driver(&NVME).as_deref() == Some("vfio-pci") && sysfs(&IGB).join("virtfn0").exists());
    let told = tripath(ctx, &["recover"])?;
    ensure!(
        told == format!("in use, and left alone: {}, {NVME}\n", holder.functions[1]),
        "{told}"
    );
    let pid = holder.kill()?;
    let told = tripath(ctx, &["recover"])?;
    ensure!(
        told.contains(&format!("{NVME}: back on nvme, from process {pid}")),
        "{told}"
    );
    is_back()?;
    ensure!(tripath(ctx, &["recover"])? == "nothing to put back\n");
    wait_until("/dev/nvme0n1", || Path::new("/dev/nvme0n1").exists())?;
    // The host's driver works with it again.
    File::open("/dev/nvme0n1")?.read_exact(&mut [0; 4096])?;

    Holder::start(&wanted)?.kill()?;
    drop(claim(&[
        &format!("host={}", &PAIR[0]),
        &format!("host={}", &PAIR[1]),
    ])?);
    is_back()
}

/// The limit that the message names is enough.
fn without_root(ctx: &Ctx) -> Result<()> {
    // In a folder that everyone may enter.
    let program = ctx.path("holder");
    fs::copy(std::env::current_exe()?, &program)?;
    fs::set_permissions(&ctx.folder, fs::Permissions::from_mode(0o755))?;
    let host = Arc::new(Host::this());
    let as_user = |limit_bytes: u64| -> Result<String> {
        let mut command = Command::new("prlimit");
        command.arg(format!("--memlock={limit_bytes}:{limit_bytes}"));
        command.args([
            "setpriv",
            "--reuid",
            "1000",
            "--regid",
            "1000",
            "--clear-groups",
        ]);
        command
            .arg(&program)
            .args(["--hold", &format!("host={NVME}")]);
        command.env_remove("XDG_RUNTIME_DIR");
        let output = command.stdin(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let enough = 256 << 20;
    let told = as_user(enough)?;
    ensure!(
        told.contains(
            "user 1000 may not bind it to vfio-pci; to change that: modprobe vfio-pci &&"
        ),
        "{told}"
    );

    let leases = take(
        &host,
        &StateFolder::new(ctx.path("state")),
        &requests(&[config(&format!("host={NVME},keep=on"))?])?,
        GUEST_BYTES,
    )?;
    let file = PathBuf::from(format!("/dev/vfio/{}", leases[0].group()));
    let told = as_user(enough)?;
    let name = format!("{NVME} (Red Hat, Inc. QEMU NVM Express Controller, driver vfio-pci)");
    ensure!(
        told == format!(
            "{name} cannot be assigned: user 1000 may not open {0}; to change that: chown 1000 {0}",
            file.display()
        ),
        "{told}"
    );
    chown(&file, Some(USER), None)?;
    let told = as_user(64 << 10)?;
    ensure!(
        told == "64 MiB of memory have to be locked, and the limit is 64 KiB; to change that: ulimit -l 65536   # or, in \
                 /etc/security/limits.conf, for the next login: :1000 - memlock 65536",
        "{told}"
    );
    let told = as_user(65536 << 10)?;
    ensure!(told == format!("HAVE {NVME}"), "{told}");
    drop(leases);
    fs::write(sysfs(&NVME).join("driver_override"), "\n")?;
    fs::write(sysfs(&NVME).join("driver/unbind"), &NVME)?;
    Ok(())
}

/// In a machine without one; where there is one, the text must not be there.
fn no_iommu(ctx: &Ctx) -> Result<()> {
    let has_iommu = fs::read_dir("/sys/class/iommu").is_ok_and(|mut units| units.next().is_some());
    let text = "the host has no IOMMU, or its firmware hides it";
    let listed = tripath(ctx, &["list"])?;
    ensure!(listed.contains(text) != has_iommu, "{listed}");
    let all: Value = serde_json::from_str(&tripath(ctx, &["list", "--json"])?)?;
    let functions = all["functions"].as_array().context("no functions")?;
    let reasons = functions.iter().filter(|row| row["bridge"] == false);
    let has_reason = |row: &Value| {
        row["reasons"]
            .as_array()
            .is_some_and(|all| all.iter().any(|reason| reason["code"] == "no-iommu"))
    };
    ensure!(has_iommu || reasons.clone().any(has_reason), "{all}");
    mistake(
        ctx,
        &["show", "eth0"],
        "'eth0' is not the address of a PCI function: write it as in 0000:01:10.0 ('tripath vfio list' shows them)",
    )
}

/// Standard output of `tripath vfio`, which must succeed.
fn tripath(ctx: &Ctx, arguments: &[&str]) -> Result<String> {
    let output = Command::new(&ctx.binary)
        .arg("vfio")
        .args(arguments)
        .output()?;
    let (out, error) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8_lossy(&output.stderr),
    );
    print!("$ tripath vfio {}\n{out}{error}", arguments.join(" "));
    ensure!(output.status.success(), "{}: {error}", arguments.join(" "));
    Ok(out)
}

/// `tripath vfio` with exit code 2 and this one line.
fn mistake(ctx: &Ctx, arguments: &[&str], line: &str) -> Result<()> {
    let output = Command::new(&ctx.binary)
        .arg("vfio")
        .args(arguments)
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && error == format!("tripath: {line}\n"),
        "{}: {error}",
        output.status
    );
    Ok(())
}

fn config(text: &str) -> Result<DeviceConfig> {
    let mut table = DeviceTable::default();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').context("no pair")?;
        ensure!(table.set(key, value)?, "{key}");
    }
    Ok(table.try_into()?)
}

fn claim(wanted: &[&str]) -> Result<Vec<Lease>> {
    let configs = wanted
        .iter()
        .map(|text| config(text))
        .collect::<Result<Vec<_>>>()?;
    let host = Arc::new(Host::this());
    let state = StateFolder::of_caller(&host);
    Ok(take(&host, &state, &requests(&configs)?, GUEST_BYTES)?)
}

fn refused(wanted: &str, line: &str) -> Result<()> {
    match claim(&[wanted]) {
        Ok(_) => bail!("{wanted} was taken"),
        Err(error) => {
            ensure!(error.to_string() == line, "{error}\nis not\n{line}");
            Ok(())
        }
    }
}

/// What a [`Holder`]'s process does: takes functions, opens their groups, and waits for a line.
pub fn hold(wanted: &[&str]) -> ExitCode {
    match claim(wanted) {
        Ok(leases) => {
            let mut groups: Vec<u32> = leases.iter().map(Lease::group).collect();
            groups.dedup();
            let open = |group: &u32| {
                File::options()
                    .read(true)
                    .write(true)
                    .open(format!("/dev/vfio/{group}"))
            };
            let files: Vec<_> = groups.iter().map(open).collect();
            if files.iter().all(Result::is_ok) {
                let names: Vec<String> = leases
                    .iter()
                    .map(|lease| lease.address().to_string())
                    .collect();
                println!("HAVE {}", names.join(" "));
            }
            let _ = std::io::stdin().read_line(&mut String::new());
            drop(files);
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::from(2)
        }
    }
}

/// Another process that has functions.
struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    functions: Vec<String>,
}

impl Holder {
    fn start(wanted: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("--hold")
            .args(wanted)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        sys::die_with_parent(&mut command, rustix::process::Signal::KILL);
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let functions = line
            .trim()
            .strip_prefix("HAVE ")
            .with_context(|| line.clone())?;
        let functions = functions.split(' ').map(str::to_owned).collect();
        Ok(Self {
            input: child.stdin.take(),
            child,
            functions,
        })
    }

    fn end(mut self) -> Result<()> {
        self.input.take().context("no input")?.write_all(b"\n")?;
        ensure!(self.child.wait()?.success());
        Ok(())
    }

    /// Kills it, waits, and says which process it was.
    fn kill(mut self) -> Result<u32> {
        self.child.kill()?;
        ensure!(self.child.wait()?.signal() == Some(9));
        Ok(self.child.id())
    }
}

/// Drivers that are loaded for a test only, so that the next one finds functions without.
struct Drivers(Vec<&'static str>);

impl Drivers {
    fn load(names: &[&'static str]) -> Result<Self> {
        for name in names {
            run("modprobe", &[name])?;
        }
        let drivers = Self(names.to_vec());
        // A driver that was loaded before does not look again by itself.
        for function in [&IGB, &NVME, &PAIR[0], &PAIR[1]]
            .iter()
            .filter(|function| driver(function).is_none())
        {
            fs::write("/sys/bus/pci/drivers_probe", function)?;
        }
        Ok(drivers)
    }
}

impl Drop for Drivers {
    fn drop(&mut self) {
        let _ = fs::write(sysfs(&IGB).join("sriov_numvfs"), "0");
        for name in self.0.iter().rev() {
            if let Err(error) = run("rmmod", &[name]) {
                println!("{error:#}");
            }
        }
    }
}

fn nothing_is_left() -> Result<()> {
    let names = fs::read_dir("/run/tripath/vfio")?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<Result<Vec<_>>>()?;
    ensure!(names == ["lock"], "{names:?}");
    Ok(())
}

fn group_of(address: &str) -> Result<String> {
    name_behind(&sysfs(address).join("iommu_group")).context("no group")
}

/// The interface that a driver has made, once it has.
fn interface_of(address: &str) -> Result<String> {
    let mut found = None;
    wait_until("network interface", || {
        let names = fs::read_dir(sysfs(address).join("net"))
            .into_iter()
            .flatten()
            .flatten();
        found = names
            .map(|name| name.file_name().to_string_lossy().into_owned())
            .next();
        found.is_some()
    })?;
    found.context("no interface")
}

fn function_below(port: &str) -> Result<String> {
    for entry in fs::read_dir(sysfs(port))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.parse::<PciAddress>().is_ok() {
            return Ok(name);
        }
    }
    bail!("nothing below {port}")
}
