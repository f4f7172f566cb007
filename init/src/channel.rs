//! The way out to the host: the last virtio console of the machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};
use tripath_init::protocol::Message;

use crate::error::{InitError, io as failed};

const CONSOLES: &str = "/sys/bus/virtio/drivers/virtio_console";

/// A terminal in raw mode. Writing waits for the host, which is how a command that floods is slowed down.
pub struct Channel(File);

impl Channel {
    /// Opens the last of the virtio consoles: the kernel numbers their terminals as it finds them.
    pub fn open() -> Result<Self, InitError> {
        let entries = fs::read_dir(CONSOLES).map_err(|_| InitError::NoChannel)?;
        let consoles = entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                name.to_string_lossy()
                    .strip_prefix("virtio")
                    .is_some_and(|number| number.parse::<u32>().is_ok())
            })
            .count();
        let last = consoles.checked_sub(1).ok_or(InitError::NoChannel)?;
        let path = format!("/dev/hvc{last}");
        let terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(&path)
            .map_err(failed("open", &path))?;
        let mut settings = tcgetattr(&terminal).map_err(failed("ask for the mode of", &path))?;
        settings.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &settings)
            .map_err(failed("set the mode of", &path))?;
        Ok(Self(terminal))
    }

    /// Sends one message, and waits until it is out.
    pub fn send(&self, message: &Message) -> io::Result<()> {
        self.write(&message.encode())?;
        Ok(tcdrain(&self.0)?)
    }

    /// Sends frames.
    pub fn write(&self, frames: &[u8]) -> io::Result<()> {
        (&self.0).write_all(frames)
    }
}
