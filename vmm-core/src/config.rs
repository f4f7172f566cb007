//! What a machine is, as plain data.
//!
//! The command line and the TOML machine file both end here; nothing in this module opens anything.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A whole machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MachineConfig {
    /// What to boot.
    pub boot: BootConfig,
    /// Virtual CPUs.
    pub cpus: CpuConfig,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// Disks, in the order the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order the guest sees them.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// COM1 to COM4.
    #[serde(default)]
    pub serials: Vec<CharTarget>,
    /// The virtio console; none when absent.
    #[serde(default)]
    pub console: Option<CharTarget>,
    /// What a reset by the guest does.
    #[serde(default)]
    pub on_reboot: OnReboot,
    /// What a panic of the guest does.
    #[serde(default)]
    pub on_panic: OnPanic,
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BootConfig {
    /// bzImage, ELF `vmlinux` or PVH kernel, told apart by content.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// Keep the unpacked kernel in the user's cache directory, and use the one that is there.
    #[serde(default = "yes")]
    pub kernel_cache: bool,
}

/// Virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CpuConfig {
    /// How many, from 1 to what KVM allows.
    pub count: u32,
    /// Host CPUs that each vCPU may run on; a vCPU without an entry runs anywhere.
    #[serde(default)]
    pub affinity: Vec<CpuAffinity>,
}

/// Where one vCPU may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CpuAffinity {
    /// Index of the vCPU, from 0.
    pub vcpu: u32,
    /// Host CPU numbers.
    pub host_cpus: Vec<u32>,
}

/// Guest RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MemoryConfig {
    /// Size in bytes; a multiple of 2 MiB, at least 64 MiB.
    pub size_bytes: u64,
    /// Back it with a memfd, so that another process can map it.
    #[serde(default)]
    pub memfd: bool,
    /// Ask for transparent huge pages.
    #[serde(default = "yes")]
    pub thp: bool,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskInterface {
    /// virtio-blk over PCI.
    #[default]
    Virtio,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// A raw file or a block device.
    pub path: PathBuf,
    /// What the guest sees.
    #[serde(default, rename = "if")]
    pub interface: DiskInterface,
    /// Refuse writes; the file is locked shared instead of exclusive.
    #[serde(default)]
    pub readonly: bool,
    /// Bypass the host's page cache.
    #[serde(default)]
    pub direct: bool,
    /// Serial number the guest sees, at most 20 bytes of ASCII.
    #[serde(default)]
    pub serial: Option<String>,
}

/// How a network interface is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetInterface {
    /// virtio-net over PCI.
    #[default]
    Virtio,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetConfig {
    /// Name of an existing TAP interface.
    pub tap: String,
    /// What the guest sees.
    #[serde(default, rename = "if")]
    pub interface: NetInterface,
    /// `02:…`-style address; one is made up when absent.
    #[serde(default)]
    pub mac: Option<String>,
}

/// Where a serial port or console goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CharTarget {
    /// Our own standard input and output.
    Stdio,
    /// Nowhere.
    Null,
    /// A new pseudo-terminal, whose name is printed.
    Pty,
    /// A file; output only.
    File(PathBuf),
    /// A Unix socket that we listen on.
    Socket(PathBuf),
}

/// What a reset by the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// The guest starts anew.
    #[default]
    Restart,
    /// The run ends.
    Exit,
}

/// What a panic of the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPanic {
    /// The run ends.
    #[default]
    Exit,
    /// The guest is left as it is.
    Hang,
}

fn yes() -> bool {
    true
}
