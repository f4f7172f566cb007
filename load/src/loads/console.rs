//! Writing to a terminal device.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::termios::tcdrain;
use tripath_load::spec::CONSOLE_WRITE_BYTES;

use super::{Outcome, Work};
use crate::error::{LoadError, io};
use crate::terminal;

/// A terminal device in raw mode.
pub struct Console {
    terminal: File,
    name: String,
}

impl Console {
    /// Opens a [`tripath_load::spec::Load::Console`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        Ok(Self {
            terminal: terminal::open(path)?,
            name: path.display().to_string(),
        })
    }
}

impl Work for Console {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        let text: [u8; CONSOLE_WRITE_BYTES] = std::array::from_fn(|index| match index {
            index if index + 1 == CONSOLE_WRITE_BYTES => b'\n',
            index => b'a' + u8::try_from(index % 26).unwrap_or(0),
        });
        let start = Instant::now();
        let mut operations = 0;
        while start.elapsed() < time {
            self.terminal
                .write_all(&text)
                .map_err(io("write to", &self.name))?;
            operations += 1;
        }
        // What is counted is what the device has taken.
        tcdrain(&self.terminal).map_err(io("drain", &self.name))?;
        Ok(Outcome {
            operations,
            bytes: operations * CONSOLE_WRITE_BYTES as u64,
            elapsed: start.elapsed(),
            ..Outcome::default()
        })
    }
}
