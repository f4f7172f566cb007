//! The end of the guest.

use rustix::system::{RebootCommand, reboot};

/// Writes back what is in memory and turns the machine off. The kernel does not return from it; if it does, the end of
/// this process is a panic, which the host sees.
pub fn off() -> ! {
    rustix::fs::sync();
    let answer = reboot(RebootCommand::PowerOff);
    eprintln!("tripath-init: cannot power off: {answer:?}");
    std::process::abort();
}
