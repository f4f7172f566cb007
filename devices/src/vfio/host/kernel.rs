//! What changes the host, and what only a system call can tell. A test puts a pretended kernel here.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::netlink::{self, NetlinkError, VfSettings};

/// Who asks: what the kernel lets this process do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// `CAP_IPC_LOCK`: any amount of memory may be locked.
    pub ipc_lock: bool,
    /// `RLIMIT_MEMLOCK` in bytes; none for no limit.
    pub memlock_bytes: Option<u64>,
}

/// The host's kernel, as far as a file that is read does not do. Called on the main thread, by commands and by `run`
/// before the guest starts and after it ended.
pub trait Kernel: Send + Sync {
    /// Who asks.
    fn caller(&self) -> Caller;

    /// Writes an attribute of sysfs.
    ///
    /// # Errors
    /// The kernel's.
    fn write(&self, path: &Path, value: &str) -> io::Result<()>;

    /// Whether this process may write there.
    fn writable(&self, path: &Path) -> bool;

    /// Opens a file for reading and writing, and closes it. The group files of VFIO can be open once only: `EBUSY`
    /// says that another process has it.
    ///
    /// # Errors
    /// The kernel's.
    fn try_open(&self, path: &Path) -> io::Result<()>;

    /// Whether someone holds a block device exclusively: a mount (in whatever namespace), swap, a device mapping.
    fn block_is_held(&self, path: &Path) -> bool;

    /// Loads a module by `modprobe`.
    ///
    /// # Errors
    /// `modprobe` is not there, or what it said.
    fn load_module(&self, name: &str) -> io::Result<()>;

    /// What the PF with this interface has set for its VFs, in the order of their numbers.
    ///
    /// # Errors
    /// The kernel's.
    fn vf_settings(&self, interface: u32) -> Result<Vec<VfSettings>, NetlinkError>;

    /// Sets what is `Some` for one VF of the PF with this interface.
    ///
    /// # Errors
    /// The kernel's.
    fn set_vf(&self, interface: u32, vf: u32, settings: &VfSettings) -> Result<(), NetlinkError>;

    /// Takes an interface up or down.
    ///
    /// # Errors
    /// The kernel's.
    fn set_link(&self, interface: u32, up: bool) -> Result<(), NetlinkError>;
}

/// The kernel that runs this process.
#[derive(Debug, Clone, Copy)]
pub struct LiveKernel;

impl Kernel for LiveKernel {
    fn caller(&self) -> Caller {
        let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            ipc_lock: effective.contains(CapabilitySet::IPC_LOCK),
            memlock_bytes: getrlimit(Resource::Memlock).current,
        }
    }

    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        // An attribute takes its value in one write.
        file.write_all(value.as_bytes())
    }

    fn writable(&self, path: &Path) -> bool {
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
    }

    fn try_open(&self, path: &Path) -> io::Result<()> {
        File::options().read(true).write(true).open(path).map(drop)
    }

    fn block_is_held(&self, path: &Path) -> bool {
        let flags = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0);
        let opened = File::options().read(true).custom_flags(flags).open(path);
        opened.is_err_and(|error| {
            error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
        })
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        let output = Command::new("modprobe").arg(name).output()?;
        if output.status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr);
        let first = told.lines().next().unwrap_or("modprobe failed");
        Err(io::Error::other(first.to_owned()))
    }

    fn vf_settings(&self, interface: u32) -> Result<Vec<VfSettings>, NetlinkError> {
        netlink::vf_settings(interface)
    }

    fn set_vf(&self, interface: u32, vf: u32, settings: &VfSettings) -> Result<(), NetlinkError> {
        netlink::set_vf(interface, vf, settings)
    }

    fn set_link(&self, interface: u32, up: bool) -> Result<(), NetlinkError> {
        netlink::set_link(interface, up)
    }
}
