//! Terminal devices: the one that the agent is talked to on, and those that are measured.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::error::{LoadError, io};

/// In place of a path: the last virtio console but one. The last is the channel of the guest's init.
pub const AUTO: &str = "auto";

/// As the guest's init counts them: the kernel numbers their terminals as it finds them.
const CONSOLES: &str = "/sys/bus/virtio/drivers/virtio_console";

/// Opens it in raw mode, for reading and writing.
pub fn open(path: &Path) -> Result<File, LoadError> {
    let name = path.display().to_string();
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(path)
        .map_err(io("open", &name))?;
    let mut settings = tcgetattr(&terminal).map_err(io("ask for the mode of", &name))?;
    settings.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &settings).map_err(io("set the mode of", &name))?;
    Ok(terminal)
}

/// What [`AUTO`] stands for.
pub fn auto() -> Result<String, LoadError> {
    last_but_one(Path::new(CONSOLES))
}

fn last_but_one(consoles: &Path) -> Result<String, LoadError> {
    let count = fs::read_dir(consoles)
        .map_err(|_| LoadError::NoConsole)?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy()
                .strip_prefix("virtio")
                .is_some_and(|number| number.parse::<u32>().is_ok())
        })
        .count();
    let number = count.checked_sub(2).ok_or(LoadError::NoConsole)?;
    Ok(format!("/dev/hvc{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_console_but_one() {
        let folder = tempfile::tempdir().unwrap();
        let add = |name: &str| fs::create_dir(folder.path().join(name)).unwrap();
        for name in ["module", "virtio_console", "virtio7"] {
            add(name);
        }
        assert!(last_but_one(folder.path()).is_err());
        add("virtio0");
        assert_eq!(last_but_one(folder.path()).unwrap(), "/dev/hvc0");
        add("virtio12");
        assert_eq!(last_but_one(folder.path()).unwrap(), "/dev/hvc1");
        assert!(last_but_one(&folder.path().join("absent")).is_err());
    }
}
