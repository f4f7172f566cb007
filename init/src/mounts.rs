//! The file systems that programs expect.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind};

use crate::error::{InitError, io};

/// One mount.
struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// What moves along when there is another root.
pub const KERNELS_OWN: [&str; 3] = ["/dev", "/proc", "/sys"];

const KERNEL: [Mount; 5] = [
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID,
        options: c"mode=0755",
    },
    Mount {
        kind: "proc",
        target: "/proc",
        flags: SAFE,
        options: c"",
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: SAFE,
        options: c"",
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=0620,gid=5,ptmxmode=0666",
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
];

const USERS: [Mount; 2] = [
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=0755",
    },
    Mount {
        kind: "tmpfs",
        target: "/tmp",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
];

/// Mounts what the kernel shows of itself, and the devices.
pub fn kernels_own() -> Result<(), InitError> {
    mount_all(&KERNEL)?;
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (original, link) in links {
        symlink(original, link).map_err(io("make", link))?;
    }
    Ok(())
}

/// Mounts empty folders where programs keep what does not last.
pub fn users() -> Result<(), InitError> {
    mount_all(&USERS)
}

fn mount_all(mounts: &[Mount]) -> Result<(), InitError> {
    for entry in mounts {
        make_folder(entry.target)?;
        mount(
            entry.kind,
            entry.target,
            entry.kind,
            entry.flags,
            entry.options,
        )
        .map_err(io("mount", entry.target))?;
    }
    Ok(())
}

/// Makes a folder where there is none, with those above it.
pub fn make_folder(path: impl AsRef<Path>) -> Result<(), InitError> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(io("make", path.display().to_string()))
}

/// Shows the kernel's modules, which are in `folder`, where `modprobe` looks for them. The command may never need one:
/// a failure is only mentioned.
pub fn show_modules(folder: &str) {
    let version = rustix::system::uname();
    let target = format!("/lib/modules/{}", version.release().to_string_lossy());
    if Path::new(&target).join("modules.builtin").exists() {
        return;
    }
    let shown = make_folder(&target)
        .and_then(|()| mount_bind(folder, &target).map_err(io("show the modules at", &target)));
    if let Err(error) = shown {
        eprintln!("tripath-init: {error}");
    }
}
