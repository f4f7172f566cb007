//! A filter of system calls as VMMs have it: a list of what is allowed, with what arguments, all else refused.
//!
//! The kernel keeps a list of the calls that a filter allows whatever their arguments are, and does not run the filter
//! for them. So each call that a load makes again and again has a condition here: the filter is evaluated.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::error::LoadError;

/// The highest descriptor that the program uses.
const MAX_FD: u64 = 255;

/// Calls on a descriptor: allowed on those that can be the program's.
const ON_FILES: [c_long; 30] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
];

/// Calls that are allowed with any arguments, none of which a load makes again and again.
const ALWAYS: [c_long; 33] = [
    // Files.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_io_uring_setup,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads. The flags of clone3 are behind a pointer, where no filter sees them.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_tgkill,
    // Signals.
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    // The rest.
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_prlimit64,
];

/// Calls with other conditions: the number of the argument, the bits of it that are looked at, the values they may have.
const ON_ARGUMENTS: [(c_long, u8, u64, &[u64]); 9] = [
    (libc::SYS_mmap, 2, EXECUTABLE, &[0]),
    (libc::SYS_mprotect, 2, EXECUTABLE, &[0]),
    (
        libc::SYS_socket,
        0,
        u64::MAX,
        &[libc::AF_INET as u64, libc::AF_INET6 as u64],
    ),
    (
        libc::SYS_ioctl,
        1,
        u64::MAX,
        &[
            libc::TCGETS,
            libc::TCGETS2,
            libc::TCSETS,
            libc::TCSETS2,
            libc::TCSBRK,
            libc::TIOCGWINSZ,
            libc::FIONBIO,
            libc::SIOCGIFFLAGS,
            libc::SIOCGIFHWADDR,
            libc::SIOCSIFFLAGS,
            libc::SIOCSIFMTU,
            libc::SIOCSIFADDR,
            libc::SIOCSIFNETMASK,
        ],
    ),
    // A new thread, not a new process.
    (libc::SYS_clone, 0, THREAD, &[THREAD]),
    (libc::SYS_prctl, 0, u64::MAX, &[libc::PR_SET_NAME as u64]),
    // Those operations that threads wait and are woken with.
    (libc::SYS_futex, 1, FUTEX_COMMANDS, &[0, 1, 9, 10]),
    (libc::SYS_clock_gettime, 0, !0x0f, &[0]),
    (libc::SYS_gettimeofday, 1, u64::MAX, &[0]),
];

const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
const THREAD: u64 = libc::CLONE_THREAD as u64;
const FUTEX_COMMANDS: u64 = 0x7f;

/// Puts all threads of this process, now and later, under the filter.
pub fn enter() -> Result<(), LoadError> {
    seccompiler::apply_filter_all_threads(&program()?).map_err(cannot)
}

fn cannot(error: impl std::fmt::Display) -> LoadError {
    LoadError::Sandbox(error.to_string())
}

fn program() -> Result<BpfProgram, LoadError> {
    let mut rules = BTreeMap::new();
    for call in ALWAYS {
        rules.insert(call, Vec::new());
    }
    for call in ON_FILES {
        let is_ours = condition(0, SeccompCmpOp::Le, MAX_FD)?;
        let rule = SeccompRule::new(vec![is_ours]).map_err(cannot)?;
        rules.insert(call, vec![rule]);
    }
    for (call, argument, bits, values) in ON_ARGUMENTS {
        let rules_of_call = values.iter().map(|&value| {
            let operator = SeccompCmpOp::MaskedEq(bits);
            let is_it = condition(argument, operator, value)?;
            SeccompRule::new(vec![is_it]).map_err(cannot)
        });
        rules.insert(call, rules_of_call.collect::<Result<Vec<_>, _>>()?);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let target = TargetArch::try_from(ARCH).map_err(cannot)?;
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, target);
    filter.map_err(cannot)?.try_into().map_err(cannot)
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, LoadError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::BorrowedFd;
    use std::thread;

    use rustix::io::Errno;

    /// On a thread of its own, which alone is under the filter.
    fn filtered<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let program = program().unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                seccompiler::apply_filter(&program).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn what_is_not_on_the_list_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        let made = filtered(|| rustix::fs::mkdir(&path, rustix::fs::Mode::RWXU));
        assert_eq!(made, Err(Errno::PERM));
        rustix::fs::mkdir(&path, rustix::fs::Mode::RWXU).unwrap();
        let socket = || {
            let kind = rustix::net::SocketType::STREAM;
            rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).map(drop)
        };
        assert_eq!(filtered(socket), Err(Errno::PERM));
        socket().unwrap();
    }

    #[test]
    #[allow(unsafe_code)]
    fn arguments_are_looked_at() {
        let read = |fd| {
            // SAFETY: no such descriptor is open, which is what is tried.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::read(fd, &mut [0_u8; 1]).map(drop)
        };
        assert_eq!(read(70_000), Err(Errno::BADF));
        assert_eq!(filtered(|| read(70_000)), Err(Errno::PERM));
        assert_eq!(filtered(|| read(255)), Err(Errno::BADF));
    }

    #[test]
    fn what_a_load_does_again_and_again_has_a_condition() {
        for call in [
            libc::SYS_io_uring_enter,
            libc::SYS_sendmmsg,
            libc::SYS_recvmmsg,
            libc::SYS_sendto,
            libc::SYS_recvfrom,
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_pwrite64,
            libc::SYS_fdatasync,
        ] {
            assert!(
                ON_FILES.contains(&call) && !ALWAYS.contains(&call),
                "{call}"
            );
        }
    }
}
