//! What our caller wants of signals.

/// Whether this process ignores `signal`, from 1 on, because it was started so: `nohup`'s SIGHUP, a background job's
/// SIGINT. Such a signal is to be left alone. False if the host does not say.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = signal
        .checked_sub(1)
        .and_then(|bit| u32::try_from(bit).ok());
    match (mask, bit) {
        (Some(mask), Some(bit)) => mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_ignores_broken_pipes_and_nothing_else() {
        assert!(is_ignored(13));
        assert!(!is_ignored(15));
        for signal in [i32::MIN, 0, 65, i32::MAX] {
            assert!(!is_ignored(signal), "{signal}");
        }
    }
}
