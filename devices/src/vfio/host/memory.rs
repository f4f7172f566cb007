//! Whether a guest's RAM can be locked. A device may write anywhere in it at any time, so none of it can be swapped.

use super::reason::Reason;
use super::root::Host;

/// What a process needs beside the guest's RAM under a control group's limit, in bytes.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Why `guest_bytes` of RAM cannot be locked by this process.
#[must_use]
pub fn check(host: &Host, guest_bytes: u64) -> Vec<Reason> {
    let caller = host.kernel().caller();
    let mut reasons = Vec::new();
    // The kernel counts what VFIO pins and what is mlocked together, and spares who has CAP_IPC_LOCK.
    let needed_bytes = guest_bytes.saturating_add(locked_bytes(host));
    if let Some(limit_bytes) = caller
        .memlock_bytes
        .filter(|limit| !caller.ipc_lock && *limit < needed_bytes)
    {
        reasons.push(Reason::LockedMemory {
            needed_bytes,
            limit_bytes,
            uid: caller.uid,
        });
    }
    let needed_bytes = guest_bytes.saturating_add(OVERHEAD_BYTES);
    if let Some((limit_bytes, path)) = group_limit(host).filter(|(limit, _)| *limit < needed_bytes)
    {
        reasons.push(Reason::GroupMemory {
            needed_bytes,
            limit_bytes,
            path,
        });
    }
    reasons
}

/// What this process has locked already (proc(5), `VmLck`).
fn locked_bytes(host: &Host) -> u64 {
    let status = host.read("proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| {
        let value = line.strip_prefix("VmLck:")?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    kib.unwrap_or(0) << 10
}

/// The least that a control group from this process's up to the root leaves, and the file with that limit (cgroups(7);
/// `memory.max` of version 2, `memory.limit_in_bytes` of version 1).
fn group_limit(host: &Host) -> Option<(u64, String)> {
    let text = host.read("proc/self/cgroup").unwrap_or_default();
    let mut least: Option<(u64, String)> = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let (base, limit, anonymous) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max", "anon")
        } else if controllers
            .split(',')
            .any(|controller| controller == "memory")
        {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss")
        } else {
            continue;
        };
        let mut group = group.trim_matches('/');
        loop {
            let at = if group.is_empty() {
                base.to_owned()
            } else {
                format!("{base}/{group}")
            };
            let number = |name: &str| host.read(&format!("{at}/{name}"))?.parse::<u64>().ok();
            if let Some(limit_bytes) = number(limit) {
                // The page cache gives way; what programs have does not.
                let taken = statistic(host, &at, anonymous).unwrap_or(0);
                let left = limit_bytes.saturating_sub(taken);
                if least.as_ref().is_none_or(|(least, _)| left < *least) {
                    least = Some((left, format!("/{at}/{limit}")));
                }
            }
            match group.rsplit_once('/') {
                Some((parent, _)) => group = parent,
                None if group.is_empty() => break,
                None => group = "",
            }
        }
    }
    least
}

/// A value of a control group's `memory.stat`.
fn statistic(host: &Host, at: &str, name: &str) -> Option<u64> {
    let text = host.read(&format!("{at}/memory.stat"))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value?.parse().ok()
}
