//! The guest of a test that runs a command: what it boots from, and what comes out of it.
//!
//! [`prepare`] makes an initramfs with an init of ours, the modules that the guest needs, and the command. The init
//! makes the [`Rootfs`] its `/`, runs the command, and says what happens on the last virtio console of the machine;
//! [`Channel`] understands it.

mod channel;
mod drivers;
mod error;
mod image;
mod initramfs;
mod kernel;
mod modules;
mod prepare;
mod written;

pub use channel::{Channel, ChannelEvent, Stream};
pub use error::GuestError;
pub use image::{Partition, PartitionError};
pub use modules::ModuleSource;
pub use prepare::{Prepared, prepare};
pub use written::{WrittenModules, WrittenRootfs, WrittenRootfsError};

use std::path::PathBuf;

/// The largest script, in bytes.
pub const MAX_SCRIPT_BYTES: u64 = 16 << 20;

/// What the guest is to do, and what it is made from. The kernel, the initrd and the devices are the machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPlan {
    /// Where the kernel's modules are.
    pub modules: ModuleSource,
    /// What becomes `/`.
    pub rootfs: Rootfs,
    /// What is run.
    pub command: GuestCommand,
    /// Modules of drivers beside those of the machine's own devices: those of functions of the host that the guest
    /// gets.
    pub drivers: Vec<&'static str>,
}

/// What becomes the guest's `/`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Rootfs {
    /// The host's own root folder, as [`Directory`](Self::Directory).
    #[default]
    Host,
    /// A folder, shared read-only: what the guest writes stays in its memory.
    Directory(PathBuf),
    /// The raw image of a disk.
    Image {
        /// Its file.
        path: PathBuf,
        /// Where on it the root is.
        partition: Partition,
        /// Whether the guest's writes go to it; if not they stay in its memory.
        writable: bool,
    },
    /// The user's initrd, with our files in `/tripath`; if there is none, nothing else.
    Initramfs,
}

/// What is run in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestCommand {
    /// `/bin/sh -c` with this text.
    Exec(String),
    /// This file of the host's: a script, by its `#!` or else by `/bin/sh`, or a program.
    Script(PathBuf),
}
