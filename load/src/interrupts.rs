//! Interrupts that this kernel has served.

use std::io;

/// On all CPUs since its start, timers and those between CPUs included: the first number after `intr` in `/proc/stat`.
pub fn served() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    served_by(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn served_by(stat: &str) -> Option<u64> {
    let counts = stat.lines().find_map(|line| line.strip_prefix("intr "))?;
    counts.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_comes_first() {
        let stat = "cpu  1 2 3\nintr 4711 10 0 7\nctxt 8\n";
        assert_eq!(served_by(stat), Some(4711));
        assert_eq!(served_by("cpu  1 2 3\n"), None);
        assert_eq!(served_by("intr many\n"), None);
    }

    #[test]
    fn there_are_some_here() {
        assert!(served().unwrap() > 0);
    }
}
