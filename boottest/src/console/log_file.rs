//! The log of a console: a line of text per line, with its time, and of bounded size.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// What the beginning of a log may take.
const HEAD_BYTES: u64 = 8 << 20;
/// What its end may take, once the beginning is full. It is in memory until then.
const TAIL_BYTES: usize = 1 << 20;

/// How much was printed, and how much of it is not in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogTotals {
    /// Lines, those left out included.
    pub lines: u64,
    /// Lines that are not in the log.
    pub left_out_lines: u64,
    /// Bytes of text that are not in the log.
    pub left_out_bytes: u64,
}

/// Writes lines with their times. When there are too many, those in the middle are left out, and a line says so.
pub struct ConsoleLog<W: Write = BufWriter<File>> {
    out: W,
    head_left: u64,
    tail: VecDeque<String>,
    tail_bytes: usize,
    tail_limit: usize,
    totals: LogTotals,
    failed: Option<io::Error>,
}

impl ConsoleLog {
    /// Creates the file.
    ///
    /// # Errors
    /// What the host said.
    pub fn create(path: &Path) -> io::Result<Self> {
        let out = BufWriter::new(File::create(path)?);
        Ok(Self::new(out, HEAD_BYTES, TAIL_BYTES))
    }
}

impl<W: Write> ConsoleLog<W> {
    fn new(out: W, head_bytes: u64, tail_limit: usize) -> Self {
        Self {
            out,
            head_left: head_bytes,
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_limit,
            totals: LogTotals::default(),
            failed: None,
        }
    }

    /// Adds a line that began at `time` since the start.
    pub fn add(&mut self, time: Duration, line: &str) {
        self.totals.lines += 1;
        let entry = format!("[{:11.6}] {line}\n", time.as_secs_f64());
        let bytes = entry.len() as u64;
        if self.head_left >= bytes {
            self.head_left -= bytes;
            self.write(&entry);
            return;
        }
        self.head_left = 0;
        self.tail_bytes += entry.len();
        self.tail.push_back(entry);
        while self.tail_bytes > self.tail_limit {
            let Some(oldest) = self.tail.pop_front() else {
                break;
            };
            self.tail_bytes -= oldest.len();
            self.totals.left_out_lines += 1;
            self.totals.left_out_bytes += oldest.len() as u64;
        }
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// The first that a write gave: the log is not complete.
    pub fn finish(mut self) -> io::Result<LogTotals> {
        if self.totals.left_out_lines > 0 {
            let note = format!(
                "[...] {} lines ({} bytes) are left out here\n",
                self.totals.left_out_lines, self.totals.left_out_bytes
            );
            self.write(&note);
        }
        for entry in std::mem::take(&mut self.tail) {
            self.write(&entry);
        }
        match self.failed {
            Some(error) => Err(error),
            None => self.out.flush().map(|()| self.totals),
        }
    }

    fn write(&mut self, entry: &str) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(entry.as_bytes()).err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: u32) -> (String, LogTotals) {
        let mut out = Vec::new();
        let mut log = ConsoleLog::new(&mut out, 100, 60);
        for number in 0..lines {
            log.add(
                Duration::from_millis(number.into()),
                &format!("line {number}"),
            );
        }
        let totals = log.finish().unwrap();
        (String::from_utf8(out).unwrap(), totals)
    }

    #[test]
    fn each_line_has_its_time() {
        let (text, totals) = log(2);
        assert_eq!(text, "[   0.000000] line 0\n[   0.001000] line 1\n");
        assert_eq!((totals.lines, totals.left_out_lines), (2, 0));
    }

    #[test]
    fn the_middle_of_a_flood_is_left_out() {
        let (text, totals) = log(1000);
        assert_eq!(totals.lines, 1000);
        assert!(text.starts_with("[   0.000000] line 0\n"));
        assert!(text.ends_with("line 999\n"));
        assert!(text.contains(&format!("[...] {} lines (", totals.left_out_lines)));
        assert!(text.len() < 250, "{text}");
        let kept = text
            .lines()
            .filter(|line| !line.starts_with("[...]"))
            .count() as u64;
        assert_eq!(kept + totals.left_out_lines, totals.lines);
    }

    #[test]
    fn a_full_disk_is_told_at_the_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut log = ConsoleLog::new(Full, 100, 60);
        log.add(Duration::ZERO, "x");
        assert_eq!(log.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
