//! The root that the command sees.

use std::ffi::CString;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};
use rustix::process::{chdir, chroot};
use tripath_init::config::GuestRoot;

use crate::error::{InitError, io};
use crate::{devices, mounts};

const NEW_ROOT: &str = "/tripath/root";
const LOWER: &str = "/tripath/lower";
const LAYER: &str = "/tripath/layer";

/// Makes it `/`, and goes there.
pub fn enter(root: &GuestRoot) -> Result<(), InitError> {
    match root {
        GuestRoot::Initramfs => return chdir("/").map_err(io("enter", "/")),
        GuestRoot::Share { tag } => {
            mounts::make_folder(LOWER)?;
            mount(tag.as_str(), LOWER, "virtiofs", MountFlags::RDONLY, None)
                .map_err(io("mount", format!("the shared folder {tag}")))?;
            add_layer()?;
        }
        GuestRoot::Disk {
            serial,
            partition,
            file_system,
            writable,
        } => {
            let device = devices::find(serial, *partition)?;
            if *writable {
                mounts::make_folder(NEW_ROOT)?;
                mount(&device, NEW_ROOT, file_system, MountFlags::empty(), None)
                    .map_err(io("mount", disk_text(&device, file_system)))?;
            } else {
                mounts::make_folder(LOWER)?;
                mount_read_only(&device, file_system)?;
                add_layer()?;
            }
        }
    }
    switch()
}

/// Brings what was written to the disk. Nothing is left that could still write.
pub fn leave(root: &GuestRoot) {
    if !matches!(root, GuestRoot::Disk { writable: true, .. }) {
        return;
    }
    rustix::fs::sync();
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, "") {
        eprintln!("tripath-init: the root was not closed in order: {error}");
    }
}

fn disk_text(device: &Path, file_system: &str) -> String {
    format!("{} as {file_system}", device.display())
}

/// A file system that was not closed in order has a journal to replay, and on a disk that cannot be written this is
/// refused: then it is shown as it is.
fn mount_read_only(device: &Path, file_system: &str) -> Result<(), InitError> {
    let without_journal = match file_system {
        "btrfs" => c"rescue=nologreplay",
        _ => c"norecovery",
    };
    let try_with = |options| mount(device, LOWER, file_system, MountFlags::RDONLY, options);
    try_with(None)
        .or_else(|first: Errno| try_with(Some(without_journal)).map_err(|_| first))
        .map_err(io("mount", disk_text(device, file_system)))
}

/// Lays a writable layer in memory over what is mounted at [`LOWER`].
fn add_layer() -> Result<(), InitError> {
    mounts::make_folder(NEW_ROOT)?;
    mounts::make_folder(LAYER)?;
    let layer = "the layer over the root";
    mount("tmpfs", LAYER, "tmpfs", MountFlags::empty(), c"mode=0755")
        .map_err(io("mount", layer))?;
    let [upper, work] = ["upper", "work"].map(|name| format!("{LAYER}/{name}"));
    mounts::make_folder(&upper)?;
    mounts::make_folder(&work)?;
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    // No NUL in it: the parts are constants.
    let options = CString::new(options).unwrap_or_default();
    mount(
        "overlay",
        NEW_ROOT,
        "overlay",
        MountFlags::empty(),
        &*options,
    )
    .map_err(io("mount", layer))
}

/// Puts the new root over the old one; the kernel's own file systems come along.
fn switch() -> Result<(), InitError> {
    for folder in mounts::KERNELS_OWN {
        let target = format!("{NEW_ROOT}{folder}");
        mounts::make_folder(&target)?;
        mount_move(folder, &target).map_err(io("move", folder))?;
    }
    chdir(NEW_ROOT).map_err(io("enter", NEW_ROOT))?;
    mount_move(".", "/").map_err(io("move", NEW_ROOT))?;
    chroot(".").map_err(io("enter", NEW_ROOT))?;
    chdir("/").map_err(io("enter", "/"))
}
