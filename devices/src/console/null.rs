//! Nowhere.

use std::io;

use super::CharBackend;

/// Takes all output and never has input.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullBackend;

impl CharBackend for NullBackend {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_all_and_gives_nothing() {
        let mut backend = NullBackend;
        assert_eq!(backend.write(&[0; 1000]).unwrap(), 1000);
        assert_eq!(backend.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(backend.poll_fd(), None);
    }
}
