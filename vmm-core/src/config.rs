//! What a machine is, as plain data.
//!
//! The command line and the TOML machine file both end here, by way of [`MachineFile`]; nothing in this module opens
//! anything. The written form of the values (`512M`, `file=PATH`, `0@2-3`) is in [`text`], and is the same on the
//! command line and in the machine file.

mod device;
mod file;
mod net;
pub mod text;
mod trap;
mod validate;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use device::{DeviceConfig, DeviceSource, DeviceTable, DeviceTableError, VfChoice};
pub use file::{MachineFile, NoKernel};
pub use net::{NetTable, NetTableError};
pub use trap::TrapRange;
pub use validate::ConfigError;

/// Least guest RAM, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Guest RAM comes in multiples of this, in bytes: one huge page.
pub const MEMORY_STEP_BYTES: u64 = 2 << 20;
/// Guest RAM when none is asked for, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// Most serial ports: COM1 to COM4.
pub const MAX_SERIALS: usize = 4;
/// Most IDE drives: master and slave on two channels.
pub const MAX_IDE_DRIVES: usize = 4;
/// Longest serial number of a disk, in bytes (virtio 1.3, 5.2.6.2: `VIRTIO_BLK_ID_BYTES`).
pub const MAX_DISK_SERIAL_BYTES: usize = 20;

/// Longest tag of a share, in bytes (virtio 1.3, 5.11.4).
pub const MAX_SHARE_TAG_BYTES: usize = 36;

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
    /// Directories of the host that the guest can mount.
    pub shares: Vec<ShareConfig>,
    /// Functions of the host that the guest gets, in the order the guest sees them.
    pub devices: Vec<DeviceConfig>,
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

/// The kernel command line where none is given.
pub const CMDLINE_FOR_SERIAL: &str = "console=ttyS0";
/// The same if only a virtio console is heard.
pub const CMDLINE_FOR_CONSOLE: &str = "console=hvc0";

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// bzImage, ELF `vmlinux`, PVH kernel, or what starts in real mode, told apart by content.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line. The two that are defaults are for Linux: a kernel in real mode gets none in their place.
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
    /// A drive of a PIIX3-like IDE controller.
    Ide,
}

/// What kind of drive a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMedia {
    /// A hard disk.
    #[default]
    Disk,
    /// A CD-ROM; read-only whatever else is said.
    Cdrom,
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
    /// Hard disk or CD-ROM.
    #[serde(default)]
    pub media: DiskMedia,
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

impl DiskConfig {
    /// Whether it is never written: because it was said, or because it is a CD-ROM.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.readonly || self.media == DiskMedia::Cdrom
    }
}

/// A directory of the host that the guest can mount, read-only, by its tag (virtio-fs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShareConfig {
    /// The directory.
    pub path: PathBuf,
    /// What the guest mounts it as: 1 to [`MAX_SHARE_TAG_BYTES`] bytes, none of them NUL.
    pub tag: String,
}

/// How a network interface is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetInterface {
    /// virtio-net over PCI.
    #[default]
    Virtio,
    /// An Intel 82540EM.
    E1000,
}

/// One network interface. Its serialized form is that of [`NetTable`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NetTable", into = "NetTable")]
pub struct NetConfig {
    /// Where its frames go.
    pub network: Network,
    /// What the guest sees.
    pub interface: NetInterface,
    /// `02:…`-style address; one is made up when absent.
    pub mac: Option<String>,
}

/// Where the frames of a network interface go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// An existing TAP interface of that name. Written as `tap=NAME`.
    Tap(String),
    /// A TAP interface of our own, which is gone when we are. Written as `tap=auto`.
    NewTap {
        /// The bridge it joins, which exists.
        bridge: Option<String>,
    },
    /// The host's network as any of its programs may use it, by way of passt: no root is needed. Written as `user`.
    User {
        /// Ports of the host that lead to the guest.
        hostfwd: Vec<HostForward>,
    },
}

/// A port of the host that leads to one of the guest. Written as `PROTOCOL:[ADDRESS:]HOST-GUEST`, `tcp:8080-80` for
/// example; an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostForward {
    /// For which protocol.
    pub protocol: Protocol,
    /// Address of the host that is listened on; all of them when absent.
    pub host_address: Option<IpAddr>,
    /// Port that is listened on, from 1.
    pub host_port: u16,
    /// Port of the guest, from 1.
    pub guest_port: u16,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where a serial port or console goes. Written as `stdio`, `null`, `pty`, `file=PATH`, `socket=PATH` or
/// `tcp=HOST:PORT`.
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
    /// A TCP port that we listen on, `HOST:PORT`. With port 0 the host chooses one, which is printed.
    Tcp(String),
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
