//! What only the start needed: it leaves memory when the guest starts.

#![allow(unsafe_code)]

use std::fs;

use rustix::mm::{Advice, madvise};

/// Gives back the pages of code, ours and the libraries'. Most of those that are there by now read options and built the
/// machine; what is needed further comes back from its file, a page fault each. Does nothing where that cannot be done.
pub fn leave() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(code_of) {
        let len = end.saturating_sub(start);
        // SAFETY: the range is code as the kernel maps it from a file: read-only, so that every page is as in the file,
        // and comes from there again when it is next used.
        let _ = unsafe { madvise(start as *mut _, len, Advice::LinuxDontNeed) };
    }
}

/// The range of a line of `/proc/PID/maps` (proc_pid_maps(5)) if it is code of a file.
fn code_of(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp" && words.nth(3)?.starts_with('/');
    let address = |text| usize::from_str_radix(text, 16).ok();
    is_code.then_some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_counts() {
        let line = |perms, path| format!("5000-7000 {perms} 00001000 fe:01 12 {path}");
        let code = Some((0x5000, 0x7000));
        assert_eq!(code_of(&line("r-xp", "/usr/bin/tripath")), code);
        assert_eq!(code_of(&line("r-xp", "/usr/lib/libc.so.6")), code);
        assert_eq!(code_of(&line("r--p", "/usr/bin/tripath")), None);
        assert_eq!(code_of(&line("rwxp", "/usr/bin/tripath")), None);
        assert_eq!(code_of(&line("r-xp", "[vdso]")), None);
        assert_eq!(code_of("5000-7000 r-xp 00000000 00:00 0"), None);
        assert_eq!(code_of("nonsense"), None);
        leave();
    }
}
