//! What a running VMM costs, from the kernel's own books.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A test's figure: the harness shows such lines at the end of a run.
pub const FIGURE_MARK: &str = "FIGURE ";

/// KVM's counters of one VM, summed over its vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmExits {
    /// All exits, most of which KVM handles itself.
    pub all: u64,
    /// Exits for port I/O.
    pub port_io: u64,
    /// Exits for memory-mapped I/O.
    pub mmio: u64,
    /// Exits for interrupts of the host.
    pub host_interrupts: u64,
    /// Interrupts given to the guest, not exits themselves.
    pub injected: u64,
}

impl KvmExits {
    /// Exits that do not grow with the time that passes: on a busy machine the guest has more ticks. Each costs an
    /// exit for the host's timer interrupt and one in which the guest sets its timer anew.
    pub fn besides_ticks(self) -> u64 {
        self.all
            .saturating_sub(self.host_interrupts)
            .saturating_sub(self.injected)
    }
}

/// Reads the counters of the VM that process `pid` runs.
pub fn kvm_exits(pid: u32) -> Result<KvmExits> {
    let root = Path::new("/sys/kernel/debug/kvm");
    let prefix = format!("{pid}-");
    let vm = fs::read_dir(root)
        .context("KVM's counters need root and debugfs on /sys/kernel/debug")?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .with_context(|| format!("KVM has no VM of process {pid}"))?
        .path();
    // At the level of the VM, the kernel sums the counters of its vCPUs.
    let counter = |name: &str| -> Result<u64> {
        let path = vm.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        Ok(text.trim().parse()?)
    };
    Ok(KvmExits {
        all: counter("exits")?,
        port_io: counter("io_exits")?,
        mmio: counter("mmio_exits")?,
        host_interrupts: counter("irq_exits")?,
        injected: counter("irq_injections")?,
    })
}

/// Memory of a process in KiB, told apart by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The guest's RAM, as far as it is touched.
    pub guest_kib: u64,
    /// Everything else: the VMM's code, libraries, heap and stacks.
    pub own_kib: u64,
}

/// Reads what of `pid`'s memory is resident. The guest's RAM are the mappings of 32 MiB and more that hold anything:
/// the VMM's own are smaller, or reserved and empty.
pub fn memory(pid: u32) -> Result<Memory> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut memory = Memory {
        guest_kib: 0,
        own_kib: 0,
    };
    let mut size_kib = 0;
    for line in smaps.lines() {
        let kib = |rest: &str| rest.trim().trim_end_matches(" kB").parse::<u64>();
        if let Some(rest) = line.strip_prefix("Size:") {
            size_kib = kib(rest)?;
        } else if let Some(rest) = line.strip_prefix("Rss:") {
            let resident = kib(rest)?;
            if size_kib >= 32 << 10 {
                memory.guest_kib += resident;
            } else {
                memory.own_kib += resident;
            }
        }
    }
    ensure!(
        memory.guest_kib > 0,
        "process {pid} has no mapping like a guest's RAM"
    );
    Ok(memory)
}

/// CPU time that a process has used so far, its guest's included. Scheduler ticks do not matter: from
/// `/proc/PID/task/*/schedstat`, in which threads that have ended are missing.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let running = text.split_whitespace().next().context("no time")?;
        total += Duration::from_nanos(running.parse()?);
    }
    Ok(total)
}

/// Notes a figure for the end of the run.
pub fn note(text: &str) {
    println!("{FIGURE_MARK}{text}");
}
