//! What the init is to do: a file of JSON in the initramfs, written by the host.

use serde::{Deserialize, Serialize};

/// The init itself, as the kernel's `rdinit=` names it.
pub const INIT_PATH: &str = "/tripath/init";
/// The [`GuestConfig`] as JSON.
pub const CONFIG_PATH: &str = "/tripath/config.json";
/// The script that is to be run, if one is.
pub const SCRIPT_PATH: &str = "/tripath/script";

/// Everything that the init is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Kernel modules, in the order in which they are loaded.
    pub modules: Vec<GuestModule>,
    /// What becomes `/`.
    pub root: GuestRoot,
    /// A folder of that root, with the modules of the running kernel. It is shown at `/lib/modules/VERSION`, where
    /// `modprobe` looks for them.
    pub modules_folder: Option<String>,
    /// What is run.
    pub command: GuestCommand,
}

/// A kernel module in the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestModule {
    /// Its file, not compressed.
    pub path: String,
    /// Whether the guest is of no use without it.
    pub required: bool,
}

/// What becomes `/` of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestRoot {
    /// The initramfs, as it is.
    Initramfs,
    /// A folder of the host by virtio-fs, below a layer in memory that takes what is written.
    Share {
        /// The share's tag.
        tag: String,
    },
    /// A file system on a disk.
    Disk {
        /// The serial number of the virtio-blk disk.
        serial: String,
        /// The partition, from 1; the whole disk if absent.
        partition: Option<u32>,
        /// The kernel's name of the file system.
        file_system: String,
        /// Write to it. If not, a layer in memory takes what is written.
        writable: bool,
    },
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestCommand {
    /// `/bin/sh -c` with this.
    Shell(String),
    /// The program at [`SCRIPT_PATH`], under this name.
    Script(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_writes_is_what_the_init_reads() {
        let config = GuestConfig {
            modules: vec![GuestModule {
                path: "/tripath/modules/overlay.ko".to_owned(),
                required: true,
            }],
            root: GuestRoot::Disk {
                serial: "root".to_owned(),
                partition: Some(1),
                file_system: "ext4".to_owned(),
                writable: false,
            },
            modules_folder: None,
            command: GuestCommand::Shell("echo \"\u{e9}\n\"".to_owned()),
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<GuestConfig>(&text).unwrap(), config);
    }
}
