//! Nowhere.

use std::io;
use std::os::fd::RawFd;

use super::CharBackend;

/// Takes all output and never has input.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullBackend;

impl CharBackend for NullBackend {
    fn write(&mut self, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _data: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_all_and_gives_nothing() {
        let mut backend = NullBackend;
        backend.write(&[0; 1000]).unwrap();
        assert_eq!(backend.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(backend.poll_fd(), None);
    }
}
