//! What can be wrong with what the user asks for.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why no guest can be prepared.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The kernel's messages would go to the channel.
    #[error(
        "the kernel's command line has console=hvc0, which is the command's own channel here: hear it with --console stdio, \
         or leave it out"
    )]
    ConsoleIsChannel,
    /// A file or folder that was named cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The initramfs cannot be written.
    #[error("cannot make the guest's initramfs in memory: {0}")]
    Initramfs(#[source] io::Error),
    /// The kernel does not say its version, which its modules are looked for by.
    #[error(
        "{} does not say which version it is: name the folder of its modules with --modules DIR, or say \
         --modules none if all that the guest needs is built in",
        .0.display()
    )]
    NoVersion(PathBuf),
    /// There are no modules where they are looked for.
    #[error(
        "no modules for kernel {version} in {}: name their folder with --modules DIR, or say --modules none if all \
         that the guest needs is built in",
        list(places)
    )]
    NoModules {
        /// The kernel's.
        version: String,
        /// Where they were looked for.
        places: Vec<PathBuf>,
    },
    /// `--modules` names a folder of something else.
    #[error(
        "--modules {}: expected a folder lib/modules/VERSION, or one that has lib/modules/{} in it",
        folder.display(), version.as_deref().unwrap_or("VERSION")
    )]
    NotModules {
        /// What was named.
        folder: PathBuf,
        /// The kernel's, if it says so.
        version: Option<String>,
    },
    /// The folder that `--modules` names is another kernel's.
    #[error("--modules {}: modules for kernel {found}, but {} is {version}", folder.display(), kernel.display())]
    OtherModules {
        /// What was named.
        folder: PathBuf,
        /// Whose modules are there.
        found: String,
        /// The kernel.
        kernel: PathBuf,
        /// Its version.
        version: String,
    },
    /// A module is missing without which the guest is of no use.
    #[error("{}: no module {name}, which {needed_for} needs, and it is not built in", folder.display())]
    NoModule {
        /// Where it was looked for.
        folder: PathBuf,
        /// Its name.
        name: String,
        /// Who wants it.
        needed_for: String,
    },
    /// A module's file is not one.
    #[error("{}: not a kernel module: {reason}", path.display())]
    BadModule {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The script is too large for an initramfs.
    #[error("--script {}: {size_bytes} bytes are more than a script's {}", path.display(), super::MAX_SCRIPT_BYTES)]
    LargeScript {
        /// Which.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// Neither a folder nor a file.
    #[error("--rootfs {}: neither a folder nor the image of a disk", .0.display())]
    NoRootfs(PathBuf),
    /// An image in a format that is not read.
    #[error("--rootfs {}: a qcow2 image; convert it first: qemu-img convert -O raw IN OUT", .0.display())]
    Qcow2(PathBuf),
    /// No partition is as asked for.
    #[error("--rootfs {}: no {wanted}; there is {found}", image.display())]
    NoPartition {
        /// The image.
        image: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is instead.
        found: String,
    },
    /// Several partitions are as asked for.
    #[error("--rootfs {}: {wanted} may be any of these: {found}", image.display())]
    SeveralPartitions {
        /// The image.
        image: PathBuf,
        /// What was asked for.
        wanted: String,
        /// The candidates.
        found: String,
    },
    /// The partition has nothing that a root could be.
    #[error(
        "--rootfs {}: {partition} has no file system of a known kind (ext2 to ext4, xfs, btrfs, squashfs, erofs)",
        image.display()
    )]
    NoFileSystem {
        /// The image.
        image: PathBuf,
        /// Which.
        partition: String,
    },
}

impl GuestError {
    /// Whether the user can mend it, by what the text says.
    #[must_use]
    pub fn is_users(&self) -> bool {
        !matches!(self, Self::Initramfs(_))
    }
}

/// For `map_err`: what could not be read.
pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.to_owned();
    move |source| GuestError::Read { path, source }
}

fn list(places: &[PathBuf]) -> String {
    let places: Vec<String> = places
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    places.join(" or ")
}
