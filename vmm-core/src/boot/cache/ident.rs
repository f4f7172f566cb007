//! Telling whether a file is the one seen before, without reading it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What changes when a file's content does. The change time cannot be set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ident {
    pub dev: u64,
    pub ino: u64,
    pub len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Ident {
    /// That of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            dev: meta.dev(),
            ino: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Whether the file's last change is so far from `now` that another change would show: file systems' clocks tick
    /// in milliseconds, some in seconds. A change in the future, by a clock that was set back since, shows as well.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        const COARSEST_TICK: Duration = Duration::from_secs(2);
        let Ok(seconds) = u64::try_from(self.changed.0) else {
            return true;
        };
        let changed = UNIX_EPOCH + Duration::from_secs(seconds);
        // The tick that the change was rounded down to is one more.
        let ahead = changed
            .duration_since(now)
            .is_ok_and(|ahead| ahead > COARSEST_TICK);
        ahead || is_older(self.changed.0, COARSEST_TICK, now)
    }

    /// Whether the file was last modified more than `age` before `now`.
    pub fn older_than(&self, age: Duration, now: SystemTime) -> bool {
        is_older(self.modified.0, age, now)
    }
}

/// Whether a file's time, in seconds, is more than `age` before `now`; all that is before 1970 is.
fn is_older(seconds: i64, age: Duration, now: SystemTime) -> bool {
    u64::try_from(seconds).is_ok_and(|seconds| {
        now.duration_since(UNIX_EPOCH + Duration::from_secs(seconds))
            .is_ok_and(|since| since > age)
    }) || seconds < 0
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:x}:{:x}:{:x}:{}.{:09}:{}.{:09}",
            self.dev,
            self.ino,
            self.len,
            self.modified.0,
            self.modified.1,
            self.changed.0,
            self.changed.1
        )
    }
}
