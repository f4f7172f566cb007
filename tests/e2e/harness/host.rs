//! The machine that the tests run on: its programs, its PCI functions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How often what the kernel does not announce is looked at.
const INTERVAL: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(30);

/// Whether this is L1 under QEMU's TCG, whose guests may have faults that are QEMU's: see `harness::l1`.
pub fn in_emulated_l1() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU TCG"))
}

/// Standard output of a program, which must succeed.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.to_owned())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {error}",
        arguments.join(" ")
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program, which must succeed.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    output(program, arguments).map(drop)
}

/// Waits until `ready`, which looks at something in sysfs or in /dev, or for a file.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !ready() {
        ensure!(
            Instant::now() < deadline,
            "no {what} within {} s",
            LIMIT.as_secs()
        );
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

/// The folder of a PCI function.
pub fn sysfs(address: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(address)
}

/// The driver of a PCI function.
pub fn driver(address: &str) -> Option<String> {
    name_behind(&sysfs(address).join("driver"))
}

/// The last part of what a link points to.
pub fn name_behind(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
