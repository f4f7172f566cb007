//! The terminal on standard input: raw while a guest owns it, restored on every way out.
//!
//! The state is global because so is the terminal, and because a signal handler and the panic hook must reach it.

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// How the terminal was before the first guest.
static SAVED: OnceLock<Termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Gives the terminal on standard input to the guest: every key reaches it, Ctrl-C included. Does nothing if
/// standard input is no terminal.
///
/// Called once SIGTERM, SIGINT and SIGHUP are handled: their default action would leave the terminal raw. Other
/// signals that end the process are seen to here.
///
/// # Errors
/// The terminal is gone.
pub fn make_raw() -> io::Result<()> {
    let stdin = io::stdin();
    if !isatty(&stdin) {
        return Ok(());
    }
    // The first to come saves; a state that a guest had is never taken for the user's.
    if SAVED.get().is_none() {
        let _ = SAVED.set(tcgetattr(&stdin)?);
        fatal_signals::restore_terminal_first()?;
    }
    if let Some(saved) = SAVED.get() {
        RAW.store(true, Ordering::SeqCst);
        set_raw(&stdin, saved)?;
    }
    Ok(())
}

/// Whether the guest has the terminal, so that lines of ours need a carriage return.
pub fn is_raw() -> bool {
    RAW.load(Ordering::SeqCst)
}

/// Gives the terminal back to the user, if a guest has it. Can be called at any time, from any thread and from a
/// signal handler: it loads two atomics and makes one system call.
pub fn restore_now() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
    {
        // A terminal that is gone needs no restoring. Output that waits is not waited for: the terminal may be stopped.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, saved);
    }
}

/// Restores the terminal when a scope is left, by an error too.
#[derive(Debug)]
pub struct RestoreOnDrop;

impl Drop for RestoreOnDrop {
    fn drop(&mut self) {
        restore_now();
    }
}

/// Restores the terminal before a panic's message is printed, on whatever thread.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore_now();
        print(info);
    }));
}

fn set_raw(terminal: impl AsFd, saved: &Termios) -> io::Result<()> {
    let mut raw = saved.clone();
    raw.make_raw();
    Ok(tcsetattr(terminal, OptionalActions::Now, &raw)?)
}

/// Signals that end the process without a way back to `main`.
#[allow(unsafe_code)]
mod fatal_signals {
    use signal_hook::consts::{
        SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL, SIGIO, SIGPROF, SIGQUIT, SIGSYS, SIGTRAP,
        SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU,
    };
    use signal_hook::low_level::{emulate_default_handler, exit};
    use vmm_core::signals;

    /// Those of signal(7) whose default is to end the process. Not here: SIGTERM, SIGINT and SIGHUP, which ask for an
    /// orderly end; SIGPIPE and SIGXFSZ, which are errors of the write; and SIGSEGV, whose handler in Rust's runtime
    /// has a stack of its own, to tell a stack overflow, and then aborts.
    const FATAL: [i32; 14] = [
        SIGABRT, SIGALRM, SIGBUS, SIGFPE, SIGILL, SIGIO, SIGPROF, SIGQUIT, SIGSYS, SIGTRAP,
        SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU,
    ];
    /// SIGSTKFLT and SIGPWR on x86-64, which have no names here.
    const FATAL_UNNAMED: [i32; 2] = [16, 30];
    /// The real-time signals but for the first, which kicks vCPUs.
    const FATAL_REAL_TIME: std::ops::RangeInclusive<i32> = 35..=64;

    /// From now on each of them that our caller does not want ignored restores the terminal, then does what it does
    /// by default.
    pub(super) fn restore_terminal_first() -> std::io::Result<()> {
        let all = FATAL
            .into_iter()
            .chain(FATAL_UNNAMED)
            .chain(FATAL_REAL_TIME);
        for signal in all.filter(|signal| !signals::is_ignored(*signal)) {
            let restore_and_die = move |_: &_| {
                super::restore_now();
                let _ = emulate_default_handler(signal);
                // It is not one that the emulation knows: as a shell would tell it.
                exit(128 + signal);
            };
            // SAFETY: all calls are async-signal-safe: `restore_now` takes no lock and allocates nothing, and the
            // other two are documented so. The handler does not return, so that it may be SIGILL's and SIGFPE's too.
            unsafe { signal_hook_registry::register_unchecked(signal, restore_and_die)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};

    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{LocalModes, OutputModes};

    use super::*;

    /// Tells the test binary, started as a child, which way out to take.
    const WAY_OUT: &str = "TRIPATH_TEST_WAY_OUT";

    /// Both ends of a new terminal; the second is the one to type at.
    fn pty() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        (master, slave)
    }

    fn is_cooked(terminal: &OwnedFd) -> bool {
        let modes = tcgetattr(terminal).unwrap();
        let local = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        modes.local_modes.contains(local) && modes.output_modes.contains(OutputModes::OPOST)
    }

    #[test]
    fn raw_lets_every_byte_through() {
        let (_master, slave) = pty();
        assert!(is_cooked(&slave));
        let saved = tcgetattr(&slave).unwrap();
        set_raw(&slave, &saved).unwrap();
        let modes = tcgetattr(&slave).unwrap();
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
        assert!(!modes.local_modes.intersects(cooked));
        assert!(!modes.output_modes.contains(OutputModes::OPOST));
    }

    /// Runs in a child whose standard input is a terminal; on its own it has nothing to do.
    #[test]
    fn child() {
        let Ok(way_out) = std::env::var(WAY_OUT) else {
            return;
        };
        restore_on_panic();
        let _restore = RestoreOnDrop;
        make_raw().unwrap();
        assert!(is_raw());
        assert!(!is_cooked(
            &rustix::stdio::stdin().try_clone_to_owned().unwrap()
        ));
        match way_out.as_str() {
            "return" => (),
            "panic" => panic!("on purpose"),
            "thread" => {
                std::thread::spawn(|| panic!("on purpose"))
                    .join()
                    .unwrap_err();
                std::process::exit(3);
            }
            "exit" => {
                restore_now();
                std::process::exit(4);
            }
            "abort" => std::process::abort(),
            "again" => {
                restore_now();
                assert!(!is_raw());
                make_raw().unwrap();
            }
            signal => {
                let signal = signal.parse().expect("a way out");
                signal_hook::low_level::raise(signal).unwrap();
            }
        }
    }

    /// How a child left that took this way out, and whether its terminal was restored.
    fn leave_by(way_out: &str) -> (ExitStatus, bool) {
        let (_master, slave) = pty();
        // What our caller ignores, as a shell does for its background, is not ignored here.
        let status = Command::new("env")
            .arg("--default-signal")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "terminal::tests::child"])
            .env(WAY_OUT, way_out)
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        (status, is_cooked(&slave))
    }

    #[test]
    fn restored_on_return() {
        let (status, restored) = leave_by("return");
        assert!(status.success() && restored);
    }

    #[test]
    fn restored_to_the_users_state_after_a_second_guest() {
        let (status, restored) = leave_by("again");
        assert!(status.success() && restored);
    }

    #[test]
    fn restored_on_panic() {
        let (status, restored) = leave_by("panic");
        assert!(!status.success() && restored);
    }

    #[test]
    fn restored_by_the_panic_of_a_thread() {
        let (status, restored) = leave_by("thread");
        assert_eq!(status.code(), Some(3));
        assert!(restored);
    }

    #[test]
    fn restored_before_exit() {
        let (status, restored) = leave_by("exit");
        assert_eq!(status.code(), Some(4));
        assert!(restored);
    }

    #[test]
    fn restored_by_fatal_signals() {
        let (status, restored) = leave_by("abort");
        assert_eq!(status.signal(), Some(6));
        assert!(restored);
        for signal in [3, 4, 5, 7, 8, 10, 12, 14, 24, 26, 27, 31] {
            let (status, restored) = leave_by(&signal.to_string());
            assert_eq!(status.signal(), Some(signal));
            assert!(restored, "{signal}");
        }
        // Those that can only be told by the exit code.
        for signal in [16, 29, 30, 35, 64] {
            let (status, restored) = leave_by(&signal.to_string());
            assert_eq!(status.code(), Some(128 + signal));
            assert!(restored, "{signal}");
        }
    }

    #[test]
    fn standard_input_that_is_no_terminal_is_left_alone() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "terminal::tests::without_terminal"])
            .env(WAY_OUT, "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    /// Like [`child`], without a terminal.
    #[test]
    fn without_terminal() {
        if std::env::var_os(WAY_OUT).is_some() {
            make_raw().unwrap();
            assert!(!is_raw());
        }
    }
}
