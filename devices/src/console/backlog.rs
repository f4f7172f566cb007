//! Output that a reader has not taken, or may want to see again.

use std::collections::VecDeque;
use std::io;

/// Output kept for a reader, at most.
pub(super) const BACKLOG_BYTES: usize = 64 << 10;

/// The last bytes of an output, and how many of them the reader still lacks. What exceeds the limit goes, oldest
/// first, sent or not.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: VecDeque<u8>,
    /// How many at the end of `bytes` are unsent.
    unsent: usize,
    limit: usize,
}

impl Backlog {
    /// Keeps up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            unsent: 0,
            limit,
        }
    }

    /// Appends output.
    pub(super) fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(self.limit)..];
        let excess = (self.bytes.len() + data.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.bytes.extend(data);
        self.unsent = (self.unsent + data.len()).min(self.bytes.len());
    }

    /// How many bytes can be pushed before any goes that the reader lacks.
    pub(super) fn room(&self) -> usize {
        self.limit - self.unsent
    }

    /// Whether the reader lacks something.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// A new reader gets all that is kept.
    pub(super) fn rewind(&mut self) {
        self.unsent = self.bytes.len();
    }

    /// Sends what is unsent, as far as `send` takes it without blocking.
    ///
    /// # Errors
    /// Those of `send`, but for `WouldBlock`; what it did not take remains unsent.
    pub(super) fn flush(
        &mut self,
        mut send: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while self.unsent > 0 {
            match send(self.next_slice()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.unsent -= len.min(self.unsent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn next_slice(&self) -> &[u8] {
        let start = self.bytes.len() - self.unsent;
        let (first, second) = self.bytes.as_slices();
        match start.checked_sub(first.len()) {
            None => &first[start..],
            Some(start) => &second[start..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(backlog: &mut Backlog, at_most: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        backlog
            .flush(|data| {
                let len = data.len().min(at_most - taken.len());
                if len == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                taken.extend(&data[..len]);
                Ok(len)
            })
            .unwrap();
        taken
    }

    #[test]
    fn sends_in_order_across_the_wrap() {
        let mut backlog = Backlog::new(8);
        let mut sent = Vec::new();
        for chunk in b"abcdefghijklmnopqrstuvwxyz".chunks(3) {
            backlog.push(chunk);
            sent.extend(take(&mut backlog, 2));
        }
        while backlog.has_unsent() {
            sent.extend(take(&mut backlog, 1));
        }
        // One byte more comes than goes each time, until the oldest unsent one must make way.
        assert_eq!(sent, b"abcdefghijklnoqrstuvwxyz");
    }

    #[test]
    fn drops_the_oldest() {
        let mut backlog = Backlog::new(4);
        backlog.push(b"ab");
        backlog.push(b"cdef");
        assert_eq!(take(&mut backlog, 9), b"cdef");
        backlog.push(b"0123456789");
        assert_eq!(take(&mut backlog, 9), b"6789");
        assert!(!backlog.has_unsent());
    }

    #[test]
    fn rewind_sends_all_that_is_kept_again() {
        let mut backlog = Backlog::new(4);
        backlog.push(b"abc");
        assert_eq!(take(&mut backlog, 9), b"abc");
        backlog.push(b"de");
        backlog.rewind();
        assert_eq!(take(&mut backlog, 9), b"bcde");
    }

    #[test]
    fn an_error_leaves_the_rest_unsent() {
        let mut backlog = Backlog::new(8);
        backlog.push(b"abc");
        assert!(
            backlog
                .flush(|_| Err(io::ErrorKind::BrokenPipe.into()))
                .is_err()
        );
        assert!(backlog.flush(|_| Ok(0)).is_err());
        assert_eq!(take(&mut backlog, 9), b"abc");
    }
}
