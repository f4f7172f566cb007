//! Namespaces of its own for the agent, as container runtimes make them.

use std::process::{Command, ExitCode};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::{LoadError, io};
use crate::interface::Interface;

/// Isolation of the process inside: not for users.
pub const INSIDE: &str = "in-container";

/// Leaves the namespaces of the caller, starts this program again as the first process of the new ones, and ends as it
/// ends. Only `lo` is in the new network; the benchmark moves another interface there by the id of either process.
#[allow(unsafe_code)]
pub fn enter(arguments: &[String]) -> Result<ExitCode, LoadError> {
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWCGROUP;
    // SAFETY: no open file is taken away from anyone (CLONE_FILES is not among the flags).
    unsafe { unshare_unsafe(namespaces) }.map_err(io("make", "namespaces"))?;
    let inside = arguments.iter().map(|argument| match argument.as_str() {
        "container" => INSIDE,
        other => other,
    });
    let status = Command::new("/proc/self/exe")
        .args(inside)
        .status()
        .map_err(io("start", "the program in its namespaces"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// What is left to do inside: mounts that show the new namespaces, and `lo`.
pub fn finish() -> Result<(), LoadError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io("tie", "the container"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(io("make private", "the mounts"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, path, kind, flags, None).map_err(io("mount", path))?;
    }
    rustix::system::sethostname(b"tripath-load").map_err(io("set", "the host's name"))?;
    Interface::named("lo")
        .and_then(|lo| lo.up())
        .map_err(io("take up", "lo"))
}
