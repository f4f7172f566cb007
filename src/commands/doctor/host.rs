//! Where the doctor looks: a tree of files, and what only a system call can tell.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use io_uring::IoUring;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// A host to look at.
#[derive(Debug)]
pub struct Host {
    /// Under which `/proc`, `/sys`, `/dev`, `/etc` and `/lib` are.
    root: PathBuf,
    /// What the kernel said.
    pub live: Live,
}

/// What the kernel says to this process.
#[derive(Debug, Clone)]
pub struct Live {
    /// Opening `/dev/kvm` for reading and writing.
    pub kvm: Result<(), Errno>,
    /// The same for `/dev/net/tun`.
    pub tun: Result<(), Errno>,
    /// Making an io_uring.
    pub io_uring: Result<(), Errno>,
    /// `CAP_NET_ADMIN`: may create TAPs.
    pub net_admin: bool,
    /// `CAP_IPC_LOCK`: may lock any amount of memory.
    pub ipc_lock: bool,
    /// `RLIMIT_MEMLOCK` in bytes; none for no limit.
    pub locked_memory_bytes: Option<u64>,
}

impl Live {
    /// Asks the kernel.
    fn ask() -> Self {
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
        let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        Self {
            kvm: errno(open("/dev/kvm")),
            tun: errno(open("/dev/net/tun")),
            io_uring: errno(IoUring::new(1)),
            net_admin: effective.contains(CapabilitySet::NET_ADMIN),
            ipc_lock: effective.contains(CapabilitySet::IPC_LOCK),
            locked_memory_bytes: getrlimit(Resource::Memlock).current,
        }
    }
}

fn errno<T>(result: io::Result<T>) -> Result<(), Errno> {
    result
        .map(drop)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

impl Host {
    /// The host we run on.
    pub fn this() -> Self {
        Self::new("/", Live::ask())
    }

    /// The host whose files are under `root`.
    pub fn new(root: impl Into<PathBuf>, live: Live) -> Self {
        let root = root.into();
        Self { root, live }
    }

    /// A file's text without the white space around it; none if it cannot be read. The path is without the first `/`.
    pub fn read(&self, path: &str) -> Option<String> {
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Whether something is there.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The names in a folder, sorted; none if there is no such folder.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path))
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    /// The name of the group that owns a file, if that group may read and write it.
    pub fn group_with_access(&self, path: &str) -> Option<String> {
        let metadata = std::fs::metadata(self.path(path)).ok()?;
        if metadata.mode() & 0o060 != 0o060 {
            return None;
        }
        let groups = self.read("etc/group")?;
        let mut groups = groups
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>());
        let gid = metadata.gid().to_string();
        // group(5): name:password:GID:members
        groups
            .find(|fields| fields.get(2) == Some(&gid.as_str()))
            .map(|fields| fields[0].to_owned())
    }

    fn path(&self, path: &str) -> PathBuf {
        debug_assert!(
            !Path::new(path).is_absolute(),
            "{path} would leave the tree"
        );
        self.root.join(path)
    }
}
