//! What can be seen to be wrong with a machine without opening anything.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::text::ByteSize;
use super::{
    CharTarget, CpuConfig, DiskConfig, DiskInterface, DiskMedia, HostForward,
    MAX_DISK_SERIAL_BYTES, MAX_IDE_DRIVES, MAX_SERIALS, MAX_SHARE_TAG_BYTES, MEMORY_STEP_BYTES,
    MIN_MEMORY_BYTES, MachineConfig, MemoryConfig, NetConfig, Network, ShareConfig,
};
use crate::layout::CMDLINE_MAX_BYTES;

/// Longest name of a network interface, in bytes: `IFNAMSIZ` without the NUL.
const MAX_INTERFACE_NAME_BYTES: usize = 15;
/// Longest path of a Unix socket, in bytes: `sun_path` without the NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// What is wrong with a machine, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// `cpus` is zero.
    #[error("a guest with 0 CPUs cannot run: give it at least 1")]
    NoCpus,
    /// An affinity for a vCPU beyond the last.
    #[error("there is an affinity for vCPU {vcpu}, but the last of {count} vCPUs is number {last}", last = count - 1)]
    AffinityWithoutVcpu {
        /// The vCPU named.
        vcpu: u32,
        /// How many there are, at least 1.
        count: u32,
    },
    /// Two affinities for one vCPU.
    #[error("vCPU {0} has two affinities: join them, as in {0}@0+2")]
    AffinityTwice(u32),
    /// An affinity without a host CPU.
    #[error("the affinity of vCPU {0} names no host CPU: name at least one, or leave it out")]
    AffinityEmpty(u32),
    /// Too little RAM, and the number says that the unit was forgotten.
    #[error("memory of {0} bytes is too little: did you mean {0}M?")]
    MemoryUnitForgotten(u64),
    /// Too little RAM.
    #[error("memory of {size} is too little: give the guest at least {min}", size = ByteSize(*.0), min = ByteSize(MIN_MEMORY_BYTES))]
    MemoryTooSmall(u64),
    /// RAM that is not made of huge pages.
    #[error("memory of {size} is not a multiple of {step}: {less} and {more} are", size = ByteSize(*.0), step = ByteSize(MEMORY_STEP_BYTES), less = ByteSize(.0 - .0 % MEMORY_STEP_BYTES), more = ByteSize(.0.next_multiple_of(MEMORY_STEP_BYTES)))]
    MemoryNotAligned(u64),
    /// An empty path.
    #[error("the path of {0} is empty: give one")]
    EmptyPath(String),
    /// A command line that does not fit.
    #[error("the kernel command line has {0} bytes: at most {max} fit", max = CMDLINE_MAX_BYTES - 1)]
    CmdlineTooLong(usize),
    /// A command line that the kernel would see only the first part of.
    #[error("the kernel command line contains a line break or a NUL: write it as one line")]
    CmdlineNotOneLine,
    /// A disk's serial number that does not fit.
    #[error("disk serial {serial:?} has {len} bytes: at most {MAX_DISK_SERIAL_BYTES} fit", len = serial.len())]
    DiskSerialTooLong {
        /// The serial number.
        serial: String,
    },
    /// A disk's serial number with characters that cannot be shown.
    #[error("disk serial {0:?} may hold printable ASCII characters only")]
    DiskSerialNotAscii(String),
    /// A disk given twice that could be written.
    #[error("disk {path} is given twice: give it once, or readonly=on with both", path = .0.display())]
    DiskTwice(PathBuf),
    /// A CD-ROM on something else than IDE.
    #[error("disk {path} is a CD-ROM, which only IDE has: add if=ide", path = .0.display())]
    CdromNotIde(PathBuf),
    /// More IDE drives than the controller has.
    #[error(
        "{0} disks have if=ide: there are at most {MAX_IDE_DRIVES}; use if=virtio for the others"
    )]
    TooManyIdeDrives(usize),
    /// A name that no network interface can have.
    #[error(
        "{name:?} cannot be the name of a {what}: names have 1 to {MAX_INTERFACE_NAME_BYTES} bytes without spaces, \
         '/', ':' or '%'"
    )]
    BadInterfaceName {
        /// What it is to name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A TAP given twice.
    #[error("TAP {0} is given twice: each network interface needs its own")]
    TapTwice(String),
    /// A port of the host is forwarded twice.
    #[error("hostfwd={0} listens where another one does: each needs its own port or address")]
    HostPortTwice(HostForward),
    /// Not a MAC address.
    #[error(
        "{0:?} is not a MAC address: write six pairs of hexadecimal digits, such as 02:00:00:00:00:01"
    )]
    BadMac(String),
    /// A group address, or no address.
    #[error(
        "MAC address {0} cannot be that of one interface: make the first pair even and not all pairs zero"
    )]
    MacNotUnicast(String),
    /// A MAC address given twice.
    #[error("MAC address {0} is given twice: each network interface needs its own")]
    MacTwice(String),
    /// A tag that virtio-fs has no room for, or that nobody can type.
    #[error(
        "tag {0:?} cannot name a share: give 1 to {MAX_SHARE_TAG_BYTES} bytes without control characters"
    )]
    BadShareTag(String),
    /// Two shares with one tag.
    #[error("two shares have the tag {0:?}: give each its own")]
    ShareTagTwice(String),
    /// More serial ports than a PC has.
    #[error("{0} serial ports are given: there are at most {MAX_SERIALS}, COM1 to COM4")]
    TooManySerials(usize),
    /// A path too long for a socket.
    #[error("socket path {path} has {len} bytes: at most {MAX_SOCKET_PATH_BYTES} fit", path = .0.display(), len = .0.as_os_str().len())]
    SocketPathTooLong(PathBuf),
    /// Two want standard input and output.
    #[error(
        "stdio is wanted by {first} and by {second}: give one of them null, pty, file=PATH, socket=PATH or \
         tcp=HOST:PORT"
    )]
    StdioTwice {
        /// The first to want it.
        first: String,
        /// The second.
        second: String,
    },
    /// Two listen on one TCP port.
    #[error("{address} is used by {first} and by {second}: give each its own")]
    AddressTwice {
        /// `HOST:PORT`.
        address: String,
        /// The first to use it.
        first: String,
        /// The second.
        second: String,
    },
    /// A file that a serial port or console would overwrite is used elsewhere.
    #[error("{path} is used by {first} and by {second}: give each its own", path = path.display())]
    PathTwice {
        /// The path.
        path: PathBuf,
        /// The first to use it.
        first: String,
        /// The second.
        second: String,
    },
}

impl MachineConfig {
    /// Finds what is wrong with the machine in itself. What depends on the host (KVM's limits, whether a file is
    /// there) is found by those who open it.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_cpus(&self.cpus)?;
        check_memory(&self.memory)?;
        self.check_boot()?;
        check_disks(&self.disks)?;
        check_nets(&self.nets)?;
        check_shares(&self.shares)?;
        self.check_targets()
    }

    fn check_boot(&self) -> Result<(), ConfigError> {
        let named = [
            (Some(&self.boot.kernel), "the kernel"),
            (self.boot.initrd.as_ref(), "the initrd"),
        ];
        for (path, name) in named {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                return Err(ConfigError::EmptyPath(name.into()));
            }
        }
        let cmdline = &self.boot.cmdline;
        if cmdline.contains(['\n', '\r', '\0']) {
            return Err(ConfigError::CmdlineNotOneLine);
        }
        match u64::try_from(cmdline.len()) {
            Ok(len) if len < CMDLINE_MAX_BYTES => Ok(()),
            _ => Err(ConfigError::CmdlineTooLong(cmdline.len())),
        }
    }

    fn check_targets(&self) -> Result<(), ConfigError> {
        if self.serials.len() > MAX_SERIALS {
            return Err(ConfigError::TooManySerials(self.serials.len()));
        }
        let mut paths = self.paths_read();
        let mut stdio: Option<String> = None;
        let mut addresses: Vec<(&str, String)> = Vec::new();
        for (user, target) in self.char_targets() {
            let path = match target {
                CharTarget::Stdio => {
                    if let Some(first) = stdio.replace(user.clone()) {
                        return Err(ConfigError::StdioTwice {
                            first,
                            second: user,
                        });
                    }
                    continue;
                }
                CharTarget::Null | CharTarget::Pty => continue,
                CharTarget::Tcp(address) => {
                    if let Some((_, first)) = addresses.iter().find(|(other, _)| other == address) {
                        return Err(ConfigError::AddressTwice {
                            address: address.clone(),
                            first: first.clone(),
                            second: user,
                        });
                    }
                    if !address.ends_with(":0") {
                        addresses.push((address, user));
                    }
                    continue;
                }
                CharTarget::File(path) => path,
                CharTarget::Socket(path) if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES => {
                    return Err(ConfigError::SocketPathTooLong(path.clone()));
                }
                CharTarget::Socket(path) => path,
            };
            if path.as_os_str().is_empty() {
                return Err(ConfigError::EmptyPath(user));
            }
            if let Some((_, first)) = paths.iter().find(|(other, _)| same_path(other, path)) {
                let (path, first) = (path.clone(), first.clone());
                return Err(ConfigError::PathTwice {
                    path,
                    first,
                    second: user,
                });
            }
            // `/dev/null`, terminals and the like can be shared.
            if !path.starts_with("/dev") {
                paths.push((path, user));
            }
        }
        Ok(())
    }

    /// The files the guest starts from, each with the name to call it by.
    fn paths_read(&self) -> Vec<(&Path, String)> {
        let kernel = (self.boot.kernel.as_path(), "the kernel".to_owned());
        let initrd = self
            .boot
            .initrd
            .iter()
            .map(|path| (path.as_path(), "the initrd".to_owned()));
        let disks = self
            .disks
            .iter()
            .map(|disk| (disk.path.as_path(), "a disk".to_owned()));
        std::iter::once(kernel).chain(initrd).chain(disks).collect()
    }

    /// The serial ports and the console, each with the name to call it by.
    fn char_targets(&self) -> impl Iterator<Item = (String, &CharTarget)> {
        let serials = self.serials.iter().enumerate();
        let serials = serials.map(|(i, target)| (format!("serial port COM{}", i + 1), target));
        serials.chain(
            self.console
                .iter()
                .map(|target| ("the console".to_owned(), target)),
        )
    }
}

fn check_cpus(cpus: &CpuConfig) -> Result<(), ConfigError> {
    if cpus.count == 0 {
        return Err(ConfigError::NoCpus);
    }
    for (i, affinity) in cpus.affinity.iter().enumerate() {
        let vcpu = affinity.vcpu;
        if vcpu >= cpus.count {
            return Err(ConfigError::AffinityWithoutVcpu {
                vcpu,
                count: cpus.count,
            });
        }
        if cpus.affinity[..i].iter().any(|other| other.vcpu == vcpu) {
            return Err(ConfigError::AffinityTwice(vcpu));
        }
        if affinity.host_cpus.is_empty() {
            return Err(ConfigError::AffinityEmpty(vcpu));
        }
    }
    Ok(())
}

fn check_memory(memory: &MemoryConfig) -> Result<(), ConfigError> {
    let size = memory.size_bytes;
    let plausible_mib = MIN_MEMORY_BYTES >> 20..=1 << 20;
    if plausible_mib.contains(&size) && !size.is_multiple_of(1 << 20) {
        return Err(ConfigError::MemoryUnitForgotten(size));
    }
    if size < MIN_MEMORY_BYTES {
        return Err(ConfigError::MemoryTooSmall(size));
    }
    if !size.is_multiple_of(MEMORY_STEP_BYTES) {
        return Err(ConfigError::MemoryNotAligned(size));
    }
    Ok(())
}

fn check_disks(disks: &[DiskConfig]) -> Result<(), ConfigError> {
    let is_ide = |disk: &&DiskConfig| disk.interface == DiskInterface::Ide;
    let ide = disks.iter().filter(is_ide).count();
    if ide > MAX_IDE_DRIVES {
        return Err(ConfigError::TooManyIdeDrives(ide));
    }
    for (i, disk) in disks.iter().enumerate() {
        if disk.path.as_os_str().is_empty() {
            return Err(ConfigError::EmptyPath("a disk".into()));
        }
        if let Some(serial) = &disk.serial {
            if !serial.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                return Err(ConfigError::DiskSerialNotAscii(serial.clone()));
            }
            if serial.len() > MAX_DISK_SERIAL_BYTES {
                return Err(ConfigError::DiskSerialTooLong {
                    serial: serial.clone(),
                });
            }
        }
        if disk.media == DiskMedia::Cdrom && disk.interface != DiskInterface::Ide {
            return Err(ConfigError::CdromNotIde(disk.path.clone()));
        }
        let shared = |other: &DiskConfig| other.is_read_only() && disk.is_read_only();
        let mut earlier = disks[..i].iter();
        if earlier.any(|other| same_path(&other.path, &disk.path) && !shared(other)) {
            return Err(ConfigError::DiskTwice(disk.path.clone()));
        }
    }
    Ok(())
}

fn check_nets(nets: &[NetConfig]) -> Result<(), ConfigError> {
    let mut macs = Vec::new();
    let mut taps: Vec<&str> = Vec::new();
    let mut forwards: Vec<&HostForward> = Vec::new();
    for net in nets {
        match &net.network {
            Network::Tap(name) => {
                check_interface_name("TAP interface", name)?;
                if taps.contains(&name.as_str()) {
                    return Err(ConfigError::TapTwice(name.clone()));
                }
                taps.push(name);
            }
            Network::NewTap { bridge } => {
                let mut bridge = bridge.iter();
                bridge.try_for_each(|name| check_interface_name("bridge", name))?;
            }
            Network::User { hostfwd } => {
                for forward in hostfwd {
                    if forwards.iter().any(|other| other.overlaps(forward)) {
                        return Err(ConfigError::HostPortTwice(forward.clone()));
                    }
                    forwards.push(forward);
                }
            }
        }
        let Some(text) = &net.mac else { continue };
        let mac = parse_mac(text).ok_or_else(|| ConfigError::BadMac(text.clone()))?;
        // IEEE 802-2014, 8.2.2: the lowest bit of the first octet marks a group address.
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(ConfigError::MacNotUnicast(text.clone()));
        }
        if macs.contains(&mac) {
            return Err(ConfigError::MacTwice(text.clone()));
        }
        macs.push(mac);
    }
    Ok(())
}

fn check_shares(shares: &[ShareConfig]) -> Result<(), ConfigError> {
    for (i, share) in shares.iter().enumerate() {
        let tag = &share.tag;
        if share.path.as_os_str().is_empty() {
            return Err(ConfigError::EmptyPath("a share".into()));
        }
        let fits = (1..=MAX_SHARE_TAG_BYTES).contains(&tag.len());
        if !fits || tag.contains(char::is_control) {
            return Err(ConfigError::BadShareTag(tag.clone()));
        }
        if shares[..i].iter().any(|other| other.tag == *tag) {
            return Err(ConfigError::ShareTagTwice(tag.clone()));
        }
    }
    Ok(())
}

fn check_interface_name(what: &'static str, name: &str) -> Result<(), ConfigError> {
    if is_interface_name(name) {
        return Ok(());
    }
    let name = name.to_owned();
    Err(ConfigError::BadInterfaceName { what, name })
}

/// What Linux takes as the name of one interface; `%` would ask it to make a name up.
fn is_interface_name(name: &str) -> bool {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':' | '%');
    (1..=MAX_INTERFACE_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && name.chars().all(allowed)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next()?;
        let is_pair = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = is_pair.then(|| u8::from_str_radix(pair, 16).ok())??;
    }
    pairs.next().is_none().then_some(mac)
}

/// Whether two paths are written the same, relative ones being relative to the current directory. Links are not
/// followed: whoever opens the file locks it.
fn same_path(a: &Path, b: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    absolute(a) == absolute(b)
}

#[cfg(test)]
mod tests;
