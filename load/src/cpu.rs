//! CPU time of this process.
#![allow(unsafe_code)]

use std::io;

use tripath_load::spec::LoadCpu;

/// What all the threads of this process have used since it began.
pub fn used() -> io::Result<LoadCpu> {
    // SAFETY: plain numbers, of which zeros are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it fills in a `rusage`, which outlives the call.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let nanoseconds = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let rest = u64::try_from(time.tv_usec).unwrap_or(0);
        seconds * 1_000_000_000 + rest * 1000
    };
    Ok(LoadCpu {
        user_ns: nanoseconds(usage.ru_utime),
        kernel_ns: nanoseconds(usage.ru_stime),
    })
}
