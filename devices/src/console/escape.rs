//! What a user types to us, not to the guest: Ctrl-A and a key.

use std::io;
use std::os::fd::RawFd;

use super::{CharBackend, Interest};

/// Ctrl-A.
const ESCAPE: u8 = 0x01;
const HELP: &[u8] = b"\r\nCtrl-A x quits, Ctrl-A a sends Ctrl-A, Ctrl-A h shows this help.\r\n";

/// A backend whose input is searched for Ctrl-A and a key, however it is cut into reads:
///
/// - `x` calls the quit function;
/// - `a`, or Ctrl-A again, sends one Ctrl-A;
/// - `h` or `?` shows the keys;
/// - any other key is dropped with its Ctrl-A.
///
/// Output passes through untouched.
pub struct EscapeFilter {
    inner: Box<dyn CharBackend>,
    on_quit: Box<dyn Fn() + Send>,
    escaped: bool,
}

impl EscapeFilter {
    /// Filters the input of `inner`. `on_quit` is called on the event loop, inside a read: it may signal, and must
    /// not call into the device or the backend.
    #[must_use]
    pub fn new(inner: Box<dyn CharBackend>, on_quit: Box<dyn Fn() + Send>) -> Self {
        Self {
            inner,
            on_quit,
            escaped: false,
        }
    }

    /// Takes the escapes out of `data`; says how many bytes remain at its start.
    fn filter(&mut self, data: &mut [u8]) -> usize {
        let mut kept = 0;
        for index in 0..data.len() {
            let byte = data[index];
            let keep = if std::mem::take(&mut self.escaped) {
                match byte {
                    b'x' => (self.on_quit)(),
                    // Help that cannot be shown is no reason to lose input.
                    b'h' | b'?' => drop(self.inner.write(HELP)),
                    _ => {}
                }
                match byte {
                    b'a' | ESCAPE => Some(ESCAPE),
                    _ => None,
                }
            } else if byte == ESCAPE {
                self.escaped = true;
                None
            } else {
                Some(byte)
            };
            if let Some(byte) = keep {
                data[kept] = byte;
                kept += 1;
            }
        }
        kept
    }
}

impl CharBackend for EscapeFilter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.inner.write(data)
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = self.inner.read(data)?;
            if len == 0 {
                return Ok(0);
            }
            let kept = self.filter(&mut data[..len]);
            // When all of it was for us there may be more, which nobody would announce again.
            if kept > 0 {
                return Ok(kept);
            }
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.inner.poll_fd()
    }

    fn set_interest(&mut self, interest: Interest) -> io::Result<()> {
        self.inner.set_interest(interest)
    }

    fn progress(&mut self) {
        self.inner.progress();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeLine;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Fixture {
        filter: EscapeFilter,
        terminal: UnixStream,
        quits: Arc<AtomicU32>,
    }

    impl Fixture {
        fn new() -> Self {
            let (line, terminal) = FakeLine::pair();
            let quits = Arc::new(AtomicU32::new(0));
            let counter = Arc::clone(&quits);
            let on_quit = move || {
                counter.fetch_add(1, Ordering::SeqCst);
            };
            Self {
                filter: EscapeFilter::new(Box::new(line), Box::new(on_quit)),
                terminal,
                quits,
            }
        }

        fn type_in(&mut self, keys: &[u8]) -> Vec<u8> {
            self.terminal.write_all(keys).unwrap();
            let mut received = Vec::new();
            let mut data = [0; 64];
            loop {
                match self.filter.read(&mut data) {
                    Ok(len) => {
                        assert!(len > 0, "the input has not ended");
                        received.extend(&data[..len]);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        return received;
                    }
                }
            }
        }
    }

    #[test]
    fn sequences_cut_at_every_position() {
        let keys = b"ab\x01acd\x01x\x01\x01e\x01zf\x01hg";
        for first in 0..=keys.len() {
            for second in first..=keys.len() {
                let mut f = Fixture::new();
                let mut received = f.type_in(&keys[..first]);
                received.extend(f.type_in(&keys[first..second]));
                received.extend(f.type_in(&keys[second..]));
                assert_eq!(received, b"ab\x01cd\x01efg", "cut at {first} and {second}");
                assert_eq!(f.quits.load(Ordering::SeqCst), 1);
                let mut help = vec![0; HELP.len()];
                f.terminal.read_exact(&mut help).unwrap();
                assert_eq!(help, HELP);
            }
        }
    }

    #[test]
    fn input_behind_an_escape_is_read_at_once() {
        let mut fixture = Fixture::new();
        fixture.terminal.write_all(b"\x01xa").unwrap();
        let mut one = [0; 1];
        assert_eq!(fixture.filter.read(&mut one).unwrap(), 1);
        assert_eq!((one, fixture.quits.load(Ordering::SeqCst)), ([b'a'], 1));
    }

    #[test]
    fn all_other_bytes_pass() {
        let mut f = Fixture::new();
        let keys: Vec<u8> = (0..=u8::MAX).filter(|byte| *byte != ESCAPE).collect();
        assert_eq!(f.type_in(&keys), keys);
        assert_eq!(f.quits.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn output_and_the_end_of_input_pass() {
        let mut f = Fixture::new();
        f.filter.write(b"\x01x").unwrap();
        let mut data = [0; 2];
        f.terminal.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"\x01x");
        assert_eq!(f.quits.load(Ordering::SeqCst), 0);
        f.type_in(b"\x01");
        drop(f.terminal);
        assert_eq!(f.filter.read(&mut data).unwrap(), 0);
    }
}
