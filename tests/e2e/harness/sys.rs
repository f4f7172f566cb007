//! The few system calls that std has no safe form of, and waiting with a deadline.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The command will get `signal` when the thread that starts it ends: nothing may outlive a test, however that ends.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    // SAFETY: the closure runs between fork and exec and makes one system call, which allocates nothing and takes no
    // lock.
    unsafe {
        command.pre_exec(move || Ok(set_parent_process_death_signal(Some(signal))?));
    }
}

/// Puts this process, which must have one thread, into a network and a mount namespace of its own. Without root it is
/// root there, and in a user namespace.
pub fn enter_own_network() -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let user = if uid.is_root() {
        UnshareFlags::empty()
    } else {
        UnshareFlags::NEWUSER
    };
    // SAFETY: no file descriptor table is unshared, which is what the function is unsafe for.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | user)? };
    if !uid.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
        fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))?;
    }
    Ok(())
}

/// Waits until `fd` is readable or at its end; false when the deadline comes first.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until the child has ended, without reaping it; false when the time is over first.
pub fn wait_ended(pid: Pid, limit: Duration) -> io::Result<bool> {
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    wait_readable(fd.as_fd(), Instant::now() + limit)
}

/// A child's process number, in the type that signals are sent with.
pub fn pid_of(child: &std::process::Child) -> io::Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("no process number"))
}
