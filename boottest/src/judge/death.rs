//! What a Linux guest prints when it is dead or dying.
//!
//! The texts are those of Linux 6.1 and 6.12, and of the initramfs of Debian and of dracut. They count at the beginning
//! of a line only, behind what printk puts there: a guest that quotes them elsewhere in a line is not dead.

use std::fmt;
use std::sync::LazyLock;

use crate::console::{Pattern, Text};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeathKind {
    /// The root file system cannot be mounted, and the kernel panics.
    NoRoot,
    /// There is nothing to run as init, and the kernel panics.
    NoInit,
    /// Init ended, and the kernel panics.
    InitEnded,
    /// Any other panic.
    Panic,
    /// An oops, a BUG, a fault in the kernel.
    Oops,
    /// A task hangs.
    HungTask,
    /// A CPU does not schedule any more.
    SoftLockup,
    /// A CPU does not take interrupts any more.
    HardLockup,
    /// RCU waits for a CPU or a task.
    RcuStall,
    /// The initramfs or systemd gave up and offers a shell.
    EmergencyShell,
}

impl DeathKind {
    /// Whether it is the kernel's panic, not what may lead to one.
    #[must_use]
    pub fn is_panic(self) -> bool {
        matches!(
            self,
            Self::NoRoot | Self::NoInit | Self::InitEnded | Self::Panic
        )
    }

    /// Whether all there is to say is in one line.
    #[must_use]
    pub(super) fn is_one_line(self) -> bool {
        self == Self::EmergencyShell
    }
}

impl fmt::Display for DeathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoot => "the guest panicked: it cannot mount its root file system",
            Self::NoInit => "the guest panicked: it found no working init",
            Self::InitEnded => "the guest panicked: its init has ended",
            Self::Panic => "the guest panicked",
            Self::Oops => "a fault in the guest's kernel (oops)",
            Self::HungTask => "a task of the guest hangs",
            Self::SoftLockup => "a CPU of the guest is stuck (soft lockup)",
            Self::HardLockup => "a CPU of the guest is stuck (hard lockup)",
            Self::RcuStall => "a CPU of the guest is stuck (RCU stall)",
            Self::EmergencyShell => {
                "the guest did not get to its system: it offers an emergency shell"
            }
        })
    }
}

/// What printk puts before a line: a level, a time, a CPU or task.
const PREFIX: &str = r"^(?:<\d+>)?(?:\[ *\d+\.\d+\] ?)?(?:\[ *[TC]\d+\] ?)?";

/// The first that matches counts.
const DEATHS: [(DeathKind, &str); 12] = [
    (
        DeathKind::NoRoot,
        r"Kernel panic - not syncing: VFS: Unable to mount root fs",
    ),
    (
        DeathKind::NoInit,
        r"Kernel panic - not syncing: (?:No working init found|Requested init )",
    ),
    (
        DeathKind::InitEnded,
        r"Kernel panic - not syncing: Attempted to kill init!",
    ),
    (DeathKind::Panic, r"Kernel panic - not syncing\b"),
    (
        DeathKind::SoftLockup,
        r"(?:watchdog: )?BUG: (?:soft lockup|workqueue lockup)\b",
    ),
    (
        DeathKind::HardLockup,
        r"(?:NMI )?[wW]atchdog: Watchdog detected hard LOCKUP\b",
    ),
    (
        DeathKind::Oops,
        r"(?:BUG: |Oops: |kernel BUG at |general protection fault\b|invalid opcode: |divide error: |stack segment: |int3: |double fault: |PANIC: double fault)",
    ),
    (
        DeathKind::HungTask,
        r"INFO: task .{1,80} blocked for more than \d+ seconds",
    ),
    (
        DeathKind::RcuStall,
        r"(?:rcu: )?INFO: rcu\w* (?:self-)?detected (?:expedited )?stalls?\b",
    ),
    (
        DeathKind::EmergencyShell,
        r"(?:\(initramfs\)|dracut:/#|ALERT! .*Dropping to a shell)",
    ),
    (
        DeathKind::EmergencyShell,
        r"(?:You are in emergency mode|Entering emergency mode)",
    ),
    (
        DeathKind::EmergencyShell,
        r"Gave up waiting for (?:root|suspend/resume)? ?(?:file system )?device",
    ),
];

/// What a line says of life and death.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signs {
    /// Where the first text of a death ends, and which it is as far as the line says.
    pub(super) death: Option<(usize, DeathKind)>,
    /// A panic is through.
    pub(super) panic_end: bool,
    /// The trace of an oops is through.
    pub(super) trace_end: bool,
    /// The kernel starts init.
    pub(super) init: bool,
}

/// Compiled once.
static BUILT_IN: LazyLock<Deaths> = LazyLock::new(Deaths::default);

/// The built-in patterns.
#[derive(Debug)]
pub(super) struct Deaths {
    deaths: Vec<(DeathKind, Pattern)>,
    panic_end: Pattern,
    trace_end: Pattern,
    init: Pattern,
}

impl Default for Deaths {
    fn default() -> Self {
        let prefixed = |text: &str| built_in(&format!("{PREFIX}{text}"));
        let deaths = DEATHS.map(|(kind, text)| (kind, prefixed(&format!("(?:{text})"))));
        Self {
            deaths: deaths.into(),
            panic_end: prefixed(r"---\[ end Kernel panic"),
            trace_end: prefixed(r"---\[ end trace"),
            init: prefixed(r"Run \S+ as init process"),
        }
    }
}

#[allow(clippy::expect_used)]
fn built_in(text: &str) -> Pattern {
    Pattern::new(text).expect("a test compiles each built-in pattern")
}

impl Deaths {
    /// Them all, ready for use.
    pub(super) fn built_in() -> &'static Self {
        &BUILT_IN
    }

    /// All of them.
    pub(super) fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        let deaths = self.deaths.iter().map(|(_, pattern)| pattern);
        deaths.chain([&self.panic_end, &self.trace_end, &self.init])
    }

    /// What `text` says.
    pub(super) fn signs(&self, text: &Text) -> Signs {
        let mut death = None;
        for (kind, pattern) in &self.deaths {
            if let Some(end) = pattern.earliest_end(text, 0) {
                let (first, kind) = death.unwrap_or((end, *kind));
                death = Some((first.min(end), kind));
            }
        }
        Signs {
            death,
            panic_end: self.panic_end.is_in(text, 0),
            trace_end: self.trace_end.is_in(text, 0),
            init: self.init.is_in(text, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(line: &str) -> Option<DeathKind> {
        let signs = Deaths::built_in().signs(&Text::complete(line));
        signs.death.map(|(_, kind)| kind)
    }

    #[test]
    fn what_kernels_and_initramfs_print() {
        use DeathKind::*;
        for (line, expected) in [
            (
                "[    1.523456] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
                NoRoot,
            ),
            (
                "[    1.5][    T1] Kernel panic - not syncing: No working init found.  Try passing init= option",
                NoInit,
            ),
            (
                "Kernel panic - not syncing: Requested init /x failed (error -2).",
                NoInit,
            ),
            (
                "[    2.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
                InitEnded,
            ),
            (
                "<0>[    2.1] Kernel panic - not syncing: sysrq triggered crash",
                Panic,
            ),
            (
                "[    2.1] BUG: kernel NULL pointer dereference, address: 0000000000000000",
                Oops,
            ),
            (
                "[    2.1] BUG: unable to handle page fault for address: ffffffffc0000000",
                Oops,
            ),
            ("[    2.1] Oops: 0002 [#1] PREEMPT SMP NOPTI", Oops),
            (
                "[    2.1] kernel BUG at drivers/misc/lkdtm/bugs.c:105!",
                Oops,
            ),
            (
                "[    2.1] general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
                Oops,
            ),
            (
                "[    2.1] Oops: general protection fault, probably for non-canonical address",
                Oops,
            ),
            (
                "[  242.1] INFO: task cat:123 blocked for more than 120 seconds.",
                HungTask,
            ),
            (
                "[   28.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [cat:77]",
                SoftLockup,
            ),
            (
                "[   28.0] watchdog: Watchdog detected hard LOCKUP on cpu 1",
                HardLockup,
            ),
            (
                "[   21.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
                RcuStall,
            ),
            (
                "[   21.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
                RcuStall,
            ),
            (
                "[   21.0] rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: {",
                RcuStall,
            ),
            ("(initramfs) ", EmergencyShell),
            (
                "ALERT!  UUID=1 does not exist.  Dropping to a shell!",
                EmergencyShell,
            ),
            (
                "Gave up waiting for root file system device.  Common problems:",
                EmergencyShell,
            ),
            (
                "You are in emergency mode. After logging in, type \"journalctl -xb\"",
                EmergencyShell,
            ),
            ("dracut:/# ", EmergencyShell),
        ] {
            assert_eq!(kind(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn what_only_looks_so() {
        for line in [
            "",
            "[    0.1] Linux version 6.12.0 (debian-kernel@lists.debian.org)",
            "# grep 'Kernel panic - not syncing' /var/log/old",
            "[    2.1] traps: a.out[77] general protection fault ip:401000 sp:7ffd error:0",
            "[    2.1] WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2",
            "[    0.5] NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
            "[    0.0] rcu: RCU calculated value of scheduler-enlistment delay is 25 jiffies.",
            "systemd[1]: emergency.target: not started",
        ] {
            assert_eq!(kind(line), None, "{line}");
        }
    }

    #[test]
    fn markers() {
        let deaths = Deaths::built_in();
        let signs = |line| deaths.signs(&Text::complete(line));
        let end = "[    2.1] ---[ end Kernel panic - not syncing: x ]---";
        assert!(signs(end).panic_end && signs(end).death.is_none());
        assert!(signs("[    2.1] ---[ end trace 0000000000000000 ]---").trace_end);
        assert!(signs("[    2.1] Run /init as init process").init);
    }
}
