//! A TAP interface of the host as a backend (Linux `Documentation/networking/tuntap.rst`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::backend::{NetBackend, NetOffloads, VNET_HEADER_BYTES};
use super::netdev;
use crate::iovec::IoVecs;

const TUN_DEVICE: &str = "/dev/net/tun";

/// The kernel puts the lowest free number in place of `%d`.
const NEW_NAME: &str = "tripath%d";

/// Flags of an interface (`/sys/class/net/NAME/flags`).
const IFF_UP: u32 = libc::IFF_UP.cast_unsigned();
/// Flags of a TUN or TAP interface (`/sys/class/net/NAME/tun_flags`, `TUNSETIFF`).
const IFF_TAP: u32 = libc::IFF_TAP.cast_unsigned();
const IFF_MULTI_QUEUE: u32 = libc::IFF_MULTI_QUEUE.cast_unsigned();
const IFF_NO_PI: u32 = libc::IFF_NO_PI.cast_unsigned();
const IFF_VNET_HDR: u32 = libc::IFF_VNET_HDR.cast_unsigned();

/// Why a TAP interface cannot be used; each says what to do.
#[derive(Debug, Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error(
        "'{0}' is not a name of a network interface: 1 to 15 characters, without '/', ':' or blanks"
    )]
    BadName(String),
    /// There is no such interface.
    #[error("TAP interface {0} does not exist: create it with 'ip tuntap add dev {0} mode tap'")]
    Missing(String),
    /// The interface is something else.
    #[error("{0} is not a TAP interface: create one with 'ip tuntap add dev NAME mode tap'")]
    NotTap(String),
    /// The host has no TUN/TAP driver.
    #[error("{TUN_DEVICE} does not exist: load the driver with 'modprobe tun'")]
    NoDriver,
    /// This user may not open the TUN/TAP driver.
    #[error(
        "no permission to open {TUN_DEVICE}: run as root, or make it readable and writable for this user"
    )]
    DriverPermission,
    /// This user may not use the interface.
    #[error(
        "no permission to use TAP interface {0}, which belongs to another user or group: run as root, or delete it \
         and create it with 'ip tuntap add dev {0} mode tap user $USER'"
    )]
    Permission(String),
    /// Another process is attached to it.
    #[error("TAP interface {0} is in use by another run")]
    Busy(String),
    /// This user may not create interfaces.
    #[error(
        "no permission to create a TAP interface, which takes CAP_NET_ADMIN: run as root, or use the network that \
         needs no root (--net user)"
    )]
    CreatePermission,
    /// There is no such bridge.
    #[error(
        "bridge {0} does not exist: create it with 'ip link add {0} type bridge' and 'ip link set {0} up'"
    )]
    BridgeMissing(String),
    /// The interface is something else.
    #[error("{0} is not a bridge: create one with 'ip link add NAME type bridge'")]
    NotBridge(String),
    /// Any other failure.
    #[error("TAP interface {name}: {action}: {error}")]
    Host {
        /// The interface.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the host said.
        error: io::Error,
    },
}

/// A TAP interface, attached until dropped.
pub struct Tap {
    name: String,
    file: File,
    vecs: IoVecs,
}

impl Tap {
    /// Attaches to the existing TAP interface `name`; never creates one. Frames carry the header of
    /// [`VNET_HEADER_BYTES`] from then on, and no offload is on.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        let sysfs = sysfs_dir(name)?;
        let tun_flags = read_hex(&sysfs.join("tun_flags"))
            .filter(|flags| flags & IFF_TAP != 0)
            .ok_or_else(|| TapError::NotTap(name.to_string()))?;
        let file = open_driver(name)?;
        // The queue mode has to be the interface's own. The other flags it takes over from us.
        let multi_queue = tun_flags & IFF_MULTI_QUEUE;
        let attached = ioctl::attach(
            &file,
            name,
            IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multi_queue,
        );
        attached.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy(name.to_string()),
            Some(libc::EPERM) => TapError::Permission(name.to_string()),
            _ => host(name, "attaching", error),
        })?;
        // The driver lets several processes share a multi-queue interface, and each loses frames to the others. The
        // second transmit queue is there only while two are attached.
        if multi_queue != 0 && sysfs.join("queues/tx-1").exists() {
            return Err(TapError::Busy(name.to_string()));
        }
        let tap = Self::attached(name, file)?;
        if read_hex(&sysfs.join("flags")).is_some_and(|flags| flags & IFF_UP == 0) {
            log::warn!("{name} is down: no frame passes until 'ip link set {name} up'");
        }
        Ok(tap)
    }

    /// Creates a TAP interface, puts it on `bridge` if there is to be one, and switches it on. The kernel removes it
    /// when this is dropped, and also when the process is killed.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn create(bridge: Option<&str>) -> Result<Self, TapError> {
        if let Some(bridge) = bridge {
            check_bridge(bridge)?;
        }
        let file = open_driver(NEW_NAME)?;
        let name = ioctl::attach(&file, NEW_NAME, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
        let name = name.map_err(|error| may_create(NEW_NAME, "creating it", error))?;
        let tap = Self::attached(&name, file)?;
        if let Some(bridge) = bridge {
            netdev::join_bridge(&name, bridge)
                .map_err(|error| may_create(&name, "joining the bridge", error))?;
        }
        netdev::set_up(&name).map_err(|error| may_create(&name, "switching it on", error))?;
        Ok(tap)
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn attached(name: &str, file: File) -> Result<Self, TapError> {
        ioctl::set_header(&file)
            .and_then(|()| ioctl::set_offloads(&file, 0))
            .map_err(|error| host(name, "setting up the frame header", error))?;
        Ok(Self {
            name: name.to_string(),
            file,
            vecs: IoVecs::default(),
        })
    }
}

impl NetBackend for Tap {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.vecs.write(&self.file, frame)
    }

    fn recv(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.vecs.read(&self.file, frame)
    }

    fn set_offloads(&mut self, offloads: NetOffloads) -> io::Result<()> {
        let flags = [
            (NetOffloads::CSUM, libc::TUN_F_CSUM),
            (NetOffloads::TSO4, libc::TUN_F_TSO4),
            (NetOffloads::TSO6, libc::TUN_F_TSO6),
            (NetOffloads::ECN, libc::TUN_F_TSO_ECN),
            (NetOffloads::UFO, libc::TUN_F_UFO),
        ];
        let flags = flags
            .into_iter()
            .filter(|(offload, _)| offloads.contains(*offload))
            .fold(0, |all, (_, flag)| all | flag);
        ioctl::set_offloads(&self.file, flags)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

/// The directory of interface `name` in sysfs; none if there is no such interface.
fn find_sysfs_dir(name: &str) -> Result<Option<PathBuf>, TapError> {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    if name.is_empty()
        || name.len() >= libc::IFNAMSIZ
        || name == "."
        || name == ".."
        || name.bytes().any(bad)
    {
        return Err(TapError::BadName(name.to_string()));
    }
    let dir = Path::new("/sys/class/net").join(name);
    Ok(dir.exists().then_some(dir))
}

fn sysfs_dir(name: &str) -> Result<PathBuf, TapError> {
    find_sysfs_dir(name)?.ok_or_else(|| TapError::Missing(name.to_string()))
}

fn check_bridge(name: &str) -> Result<(), TapError> {
    let dir = find_sysfs_dir(name)?.ok_or_else(|| TapError::BridgeMissing(name.to_string()))?;
    if dir.join("bridge").exists() {
        Ok(())
    } else {
        Err(TapError::NotBridge(name.to_string()))
    }
}

/// The error of an action that only an administrator of the network may do.
fn may_create(name: &str, action: &'static str, error: io::Error) -> TapError {
    match error.raw_os_error() {
        Some(libc::EPERM) => TapError::CreatePermission,
        _ => host(name, action, error),
    }
}

/// Reads a `0x…` attribute.
fn read_hex(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

fn open_driver(name: &str) -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(|error| match error.raw_os_error() {
            // ENODEV, ENXIO: the node is there, but no driver is behind it.
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver,
            Some(libc::EACCES | libc::EPERM) => TapError::DriverPermission,
            _ => host(name, "opening /dev/net/tun", error),
        })
}

fn host(name: &str, action: &'static str, error: io::Error) -> TapError {
    TapError::Host {
        name: name.to_string(),
        action,
        error,
    }
}

/// The driver's ioctls (`linux/if_tun.h`).
mod ioctl {
    #![allow(unsafe_code)]

    use std::ffi::c_int;
    use std::fs::File;
    use std::io;

    use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

    use super::VNET_HEADER_BYTES;

    /// `struct ifreq`, as `TUNSETIFF` uses it.
    #[repr(C)]
    struct IfReq {
        name: [u8; libc::IFNAMSIZ],
        flags: u16,
        unused: [u8; 22],
    }

    /// `TUNSETIFF`: attaches `file` to the interface, or creates it if it is not there; returns its name.
    pub fn attach(file: &File, name: &str, flags: u32) -> io::Result<String> {
        let mut request = IfReq {
            name: [0; libc::IFNAMSIZ],
            flags: u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?,
            unused: [0; 22],
        };
        // The last byte stays NUL.
        let room = &mut request.name[..libc::IFNAMSIZ - 1];
        for (to, from) in room.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        // SAFETY: the request reads and writes a `struct ifreq`, which is 40 bytes like ours, within the call.
        check(unsafe { ioctl_with_mut_ref(file, libc::TUNSETIFF, &mut request) })?;
        let name = request.name.split(|byte| *byte == 0).next();
        Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
    }

    /// Frames carry a little-endian `struct virtio_net_hdr_v1`.
    pub fn set_header(file: &File) -> io::Result<()> {
        let header_bytes =
            c_int::try_from(VNET_HEADER_BYTES).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: both requests read one int within the call.
        check(unsafe { ioctl_with_ref(file, libc::TUNSETVNETHDRSZ, &header_bytes) })?;
        let on: c_int = 1;
        // SAFETY: as above.
        check(unsafe { ioctl_with_ref(file, libc::TUNSETVNETLE, &on) })
    }

    /// `TUNSETOFFLOAD`: what we can receive, as `TUN_F_` flags.
    pub fn set_offloads(file: &File, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: the request takes its argument by value.
        check(unsafe { ioctl_with_val(file, libc::TUNSETOFFLOAD, flags.into()) })
    }

    fn check(result: c_int) -> io::Result<()> {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str) -> TapError {
        match Tap::open(name) {
            Ok(_) => panic!("{name} opened"),
            Err(error) => error,
        }
    }

    #[test]
    fn a_missing_interface_is_not_created() {
        let name = "tripath-nosuch";
        assert_eq!(
            error(name).to_string(),
            "TAP interface tripath-nosuch does not exist: create it with \
             'ip tuntap add dev tripath-nosuch mode tap'"
        );
        assert!(!Path::new("/sys/class/net").join(name).exists());
    }

    #[test]
    fn a_new_tap_joins_bridges_only() {
        let error = |bridge| match Tap::create(Some(bridge)) {
            Ok(_) => panic!("on {bridge}"),
            Err(error) => error,
        };
        assert!(matches!(
            error("tripath-nosuch"),
            TapError::BridgeMissing(_)
        ));
        assert!(matches!(error("lo"), TapError::NotBridge(_)));
        assert!(matches!(error("a/b"), TapError::BadName(_)));
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        assert!(matches!(error("lo"), TapError::NotTap(name) if name == "lo"));
    }

    #[test]
    fn impossible_names_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../lo",
            "a b",
            "a:b",
            "sixteen-letters!",
            "nul\0",
        ] {
            assert!(matches!(error(name), TapError::BadName(_)), "{name:?}");
        }
    }
}
