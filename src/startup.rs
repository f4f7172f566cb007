//! What only the start needed: it leaves memory when the guest starts.

#![allow(unsafe_code)]

use std::fs;

use rustix::mm::{Advice, madvise};

/// Gives back the pages of our own code. Most of those that are there by now read options and built the machine; what
/// is needed further comes back from the file, a page fault each. Does nothing where that cannot be done.
pub fn leave() {
    let Ok(program) = fs::read_link("/proc/self/exe") else {
        return;
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = program.to_string_lossy();
    for (start, end) in maps.lines().filter_map(|line| code_of(&program, line)) {
        let len = end.saturating_sub(start);
        // SAFETY: the range is our program's code as the kernel maps it from the file: read-only, so that every page is
        // as in the file, and comes from there again when it is next used.
        let _ = unsafe { madvise(start as *mut _, len, Advice::LinuxDontNeed) };
    }
}

/// The range of a line of `/proc/PID/maps` (proc_pid_maps(5)) if it is code of `program`.
fn code_of(program: &str, line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp" && line.ends_with(program);
    let address = |text| usize::from_str_radix(text, 16).ok();
    is_code.then_some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_counts() {
        let line = |perms| format!("5000-7000 {perms} 00001000 fe:01 12 /usr/bin/tripath");
        assert_eq!(
            code_of("/usr/bin/tripath", &line("r-xp")),
            Some((0x5000, 0x7000))
        );
        assert_eq!(code_of("/usr/bin/tripath", &line("r--p")), None);
        assert_eq!(code_of("/usr/lib/libc.so.6", &line("r-xp")), None);
        assert_eq!(code_of("", "nonsense"), None);
        leave();
    }
}
