//! What a machine is, as plain data.
//!
//! The command line and the TOML machine file both end here, by way of [`MachineFile`]; nothing in this module opens
//! anything. The written form of the values (`512M`, `file=PATH`, `0@2-3`) is in [`text`], and is the same on the
//! command line and in the machine file.

mod file;
pub mod text;
mod validate;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use file::{MachineFile, NoKernel};
pub use validate::ConfigError;

/// Least guest RAM, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Guest RAM comes in multiples of this, in bytes: one huge page.
pub const MEMORY_STEP_BYTES: u64 = 2 << 20;
/// Guest RAM when none is asked for, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// Most serial ports: COM1 to COM4.
pub const MAX_SERIALS: usize = 4;
/// Longest serial number of a disk, in bytes (virtio 1.3, 5.2.6.2: `VIRTIO_BLK_ID_BYTES`).
pub const MAX_DISK_SERIAL_BYTES: usize = 20;

/// A whole machine. Its serialized form is that of [`MachineFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MachineFile", into = "MachineFile")]
pub struct MachineConfig {
    /// What to boot.
    pub boot: BootConfig,
    /// Virtual CPUs.
    pub cpus: CpuConfig,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// Disks, in the order the guest sees them.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order the guest sees them.
    pub nets: Vec<NetConfig>,
    /// COM1 to COM4.
    pub serials: Vec<CharTarget>,
    /// The virtio console; none when absent.
    pub console: Option<CharTarget>,
    /// A virtio entropy device.
    pub rng: bool,
    /// What a reset by the guest does.
    pub on_reboot: OnReboot,
    /// What a panic of the guest does.
    pub on_panic: OnPanic,
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// bzImage, ELF `vmlinux` or PVH kernel, told apart by content.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Keep the unpacked kernel in the user's cache directory, and use the one that is there.
    pub kernel_cache: bool,
}

/// Virtual CPUs. Written as a count, or as a table `{ count = 2, affinity = ["0@2", "1@3"] }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuConfig {
    /// How many, from 1 to what KVM allows.
    pub count: u32,
    /// Host CPUs that each vCPU may run on; a vCPU without an entry runs anywhere.
    pub affinity: Vec<CpuAffinity>,
}

impl Default for CpuConfig {
    /// One vCPU, anywhere.
    fn default() -> Self {
        Self {
            count: 1,
            affinity: Vec::new(),
        }
    }
}

/// Where one vCPU may run. Written as `VCPU@CPUS`, `0@2-3` for example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuAffinity {
    /// Index of the vCPU, from 0.
    pub vcpu: u32,
    /// Host CPU numbers, each below [`text::HOST_CPUS`].
    pub host_cpus: Vec<u32>,
}

/// Guest RAM. Written as a size, or as a table `{ size = "512M", memfd = false, thp = true }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Size in bytes; a multiple of [`MEMORY_STEP_BYTES`], at least [`MIN_MEMORY_BYTES`].
    pub size_bytes: u64,
    /// Back it with a memfd, so that another process can map it.
    pub memfd: bool,
    /// Ask for transparent huge pages.
    pub thp: bool,
}

impl MemoryConfig {
    /// RAM of that size, with the defaults for everything else.
    pub fn of_size(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            memfd: false,
            thp: true,
        }
    }
}

impl Default for MemoryConfig {
    /// [`DEFAULT_MEMORY_BYTES`].
    fn default() -> Self {
        Self::of_size(DEFAULT_MEMORY_BYTES)
    }
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

/// Where a serial port or console goes. Written as `stdio`, `null`, `pty`, `file=PATH` or `socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
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
