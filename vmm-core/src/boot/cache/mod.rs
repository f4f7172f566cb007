//! The user's cache of unpacked kernels.
//!
//! An **entry** is named by length and XXH3-128 of the whole bzImage, and holds what [`entry`] says. XXH3 is not
//! cryptographic: it finds accidents, and whoever can write here can change the user's kernels anyway, so the directory
//! must be the user's alone. It is the fastest hash there is that does; even so it would cost a start more than all
//! else, so there are **records**: a small file that leads from a bzImage's identity (device, inode, length, times of
//! modification and change) to an entry and its identity. A record is written by a run that has verified both, and
//! counts until the host restarts: in that time what has not changed on a file system is what it was, and the first run
//! after a crash verifies everything anew.
//!
//! Everything is published by rename, so that runs that race see all of a file or none, and the last one wins with the
//! same content. No failure here fails a boot: the kernel is unpacked instead.

mod entry;
mod ident;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::Xxh3;

pub(super) use entry::Entry;
use ident::Ident;

use super::BUFFER_BYTES;
use super::image::Image;

const ENTRY_SUFFIX: &str = ".kernel";
const RECORD_SUFFIX: &str = ".seen";
const DRAFT_PREFIX: &str = ".draft-";
/// Entries kept when another is added.
const MAX_ENTRIES: usize = 8;
/// How exactly the time of last use is kept: writing it changes the file's identity.
const USE_RESOLUTION: Duration = Duration::from_secs(24 * 3600);
/// A draft this old was left by a run that was killed.
const DRAFT_LIFETIME: Duration = Duration::from_secs(3600);
/// A record this old has outlived its entry, its kernel or the host's uptime.
const RECORD_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// A bzImage's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// Its length in bytes.
    pub len: u64,
    /// Its XXH3-128.
    pub hash: u128,
}

impl Key {
    fn parse(name: &str) -> Option<Self> {
        let (len, hash) = name.strip_suffix(ENTRY_SUFFIX)?.split_once('-')?;
        Some(Self {
            len: u64::from_str_radix(len, 16).ok()?,
            hash: u128::from_str_radix(hash, 16).ok()?,
        })
    }
}

/// The entry's file name.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:032x}{ENTRY_SUFFIX}", self.len, self.hash)
    }
}

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
    /// The clock; a test's may be ahead.
    now: fn() -> SystemTime,
}

/// A file that becomes an entry or a record once it is complete; removed when it does not.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    path: PathBuf,
    hash: Xxh3Box,
    published: bool,
}

/// The hasher without a `Debug` of its own; on the heap, as it is large.
struct Xxh3Box(Box<Xxh3>);

impl fmt::Debug for Xxh3Box {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Xxh3")
    }
}

impl Draft {
    /// Appends content.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.0.update(bytes);
        self.file.write_all(bytes)
    }

    fn publish(mut self, path: &Path) -> io::Result<File> {
        fs::rename(&self.path, path)?;
        self.published = true;
        self.file.try_clone()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // Nothing depends on it: the next run that adds an entry tries again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Cache {
    /// The user's cache; none, with a line in the log, when there is no place for it.
    pub fn of_user() -> Option<Self> {
        let Some(base) = dirs::cache_dir() else {
            log::info!("no kernel cache: there is no cache directory, as HOME is not set");
            return None;
        };
        Some(Self::at(base.join("tripath").join("kernels")))
    }

    /// The cache in `dir`, which is made when the first entry is.
    pub fn at(dir: PathBuf) -> Self {
        Self {
            dir,
            now: SystemTime::now,
        }
    }

    /// Checks that `dir` is there and in nobody else's hands.
    fn check_dir(&self) -> io::Result<()> {
        let meta = fs::metadata(&self.dir)?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "others may write to it",
            ));
        }
        Ok(())
    }

    /// The entry made from `kernel`, if there is one. Its content may not be verified yet.
    pub fn find(&self, kernel: &File) -> Option<Entry> {
        self.try_find(kernel)
            .inspect_err(|error| log::debug!("kernel cache: no entry: {error}"))
            .ok()
            .flatten()
    }

    fn try_find(&self, kernel: &File) -> io::Result<Option<Entry>> {
        self.check_dir()?;
        let ident = Ident::of(kernel)?;
        if let Some(entry) = self.recall(&ident) {
            return Ok(Some(entry));
        }
        // Reading the whole kernel can be spared when no entry is of one this long.
        if !self.has_entry_of(ident.len) {
            return Ok(None);
        }
        self.open(hash_file(kernel)?).map(Some)
    }

    fn open(&self, key: Key) -> io::Result<Entry> {
        Entry::open(File::open(self.dir.join(key.to_string()))?, key)
    }

    fn has_entry_of(&self, len: u64) -> bool {
        self.names()
            .any(|(name, _)| Key::parse(&name).is_some_and(|key| key.len == len))
    }

    /// Names and times of modification of all files here.
    fn names(&self) -> impl Iterator<Item = (String, SystemTime)> {
        fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .filter_map(|item| {
                let item = item.ok()?;
                let modified = item.metadata().ok()?.modified().ok()?;
                Some((item.file_name().into_string().ok()?, modified))
            })
    }

    /// Starts a new entry.
    pub fn draft(&self) -> io::Result<Draft> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        self.check_dir()?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self
            .dir
            .join(format!("{DRAFT_PREFIX}{}-{number}", std::process::id()));
        // A process killed long ago may have had our number.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Draft {
            file,
            path,
            hash: Xxh3Box(Box::new(Xxh3::new())),
            published: false,
        })
    }

    /// Makes `draft`, which holds the content of `image`, the entry of `key`.
    pub fn publish(&self, mut draft: Draft, key: Key, image: &Image) -> io::Result<Entry> {
        let hash = draft.hash.0.digest128();
        entry::write_footer(&mut draft.file, key, image, hash)?;
        let file = draft.publish(&self.dir.join(key.to_string()))?;
        let mut entry = Entry::open(file, key)?;
        // What we have just written from verified memory needs no reading back.
        entry.verified = Some(entry.ident()?);
        self.prune();
        Ok(entry)
    }

    /// Notes that `entry`, which has been loaded, was made from `kernel` and is in use.
    pub fn remember(&self, kernel: &File, entry: &mut Entry) {
        if let Err(error) = self.try_remember(kernel, entry) {
            log::info!("kernel cache: {}: {error}", self.dir.display());
        }
    }

    fn try_remember(&self, kernel: &File, entry: &mut Entry) -> io::Result<()> {
        let Some(verified) = entry.verified else {
            return Ok(());
        };
        if verified.older_than(USE_RESOLUTION, (self.now)()) {
            entry.file().set_modified((self.now)())?;
            entry.verified = Some(entry.ident()?);
            entry.recorded = false;
        }
        let ident = Ident::of(kernel)?;
        if entry.recorded || !ident.is_settled((self.now)()) {
            return Ok(());
        }
        if let (Some(boot), Some(verified)) = (boot_id(), entry.verified) {
            let mut draft = self.draft()?;
            draft.write(record(&boot, &ident, entry.key, &verified).as_bytes())?;
            draft.publish(&self.record_path(&ident))?;
            entry.recorded = true;
        }
        Ok(())
    }

    fn record_path(&self, kernel: &Ident) -> PathBuf {
        self.dir
            .join(format!("{:x}-{:x}{RECORD_SUFFIX}", kernel.dev, kernel.ino))
    }

    /// The entry that a record leads to. Entries changed since are not verified.
    fn recall(&self, kernel: &Ident) -> Option<Entry> {
        let line = fs::read_to_string(self.record_path(kernel)).ok()?;
        let key = Key::parse(line.split(' ').nth(2)?)?;
        let mut entry = self.open(key).ok()?;
        let ident = entry.ident().ok()?;
        if line == record(&boot_id()?, kernel, key, &ident) {
            entry.verified = Some(ident);
            entry.recorded = true;
            return Some(entry);
        }
        None
    }

    /// Takes a damaged entry away.
    pub fn discard(&self, entry: &Entry) {
        // It may be gone already, or replaced by a good one, which is then made again.
        let _ = fs::remove_file(self.dir.join(entry.key.to_string()));
    }

    /// Removes all but the entries used last, and what killed runs left behind.
    fn prune(&self) {
        let now = (self.now)();
        let mut entries = Vec::new();
        let mut doomed = Vec::new();
        for (name, modified) in self.names() {
            let older_than = |age| now.duration_since(modified).is_ok_and(|since| since > age);
            if Key::parse(&name).is_some() {
                entries.push((modified, name));
            } else if (name.starts_with(DRAFT_PREFIX) && older_than(DRAFT_LIFETIME))
                || (name.ends_with(RECORD_SUFFIX) && older_than(RECORD_LIFETIME))
            {
                doomed.push(name);
            }
        }
        entries.sort_unstable_by(|a, b| b.cmp(a));
        doomed.extend(entries.into_iter().skip(MAX_ENTRIES).map(|(_, name)| name));
        for name in doomed {
            if let Err(error) = fs::remove_file(self.dir.join(&name)) {
                log::info!("kernel cache: cannot remove {name}: {error}");
            }
        }
    }
}

/// A record's content: one line. The boot's and the kernel's identity need no parsing, only comparing.
fn record(boot_id: &str, kernel: &Ident, key: Key, entry: &Ident) -> String {
    format!("{boot_id} {kernel} {key} {entry}\n")
}

/// What is different after each start of the host.
fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_end().to_string())
}

fn hash_file(file: &File) -> io::Result<Key> {
    HashingReader::new(file)?.finish()
}

/// Hashes a file as it is read from its start.
pub(super) struct HashingReader<'a> {
    file: &'a File,
    hash: Box<Xxh3>,
    len: u64,
}

impl<'a> HashingReader<'a> {
    /// Starts at the file's start.
    pub fn new(mut file: &'a File) -> io::Result<Self> {
        file.rewind()?;
        Ok(Self {
            file,
            hash: Box::new(Xxh3::new()),
            len: 0,
        })
    }

    /// Reads the rest, and says what the whole file is.
    pub fn finish(mut self) -> io::Result<Key> {
        let mut buffer = vec![0; BUFFER_BYTES];
        while super::unpack::fill(&mut self, &mut buffer)? > 0 {}
        Ok(Key {
            len: self.len,
            hash: self.hash.digest128(),
        })
    }
}

impl Read for HashingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(buffer)?;
        self.hash.update(&buffer[..len]);
        self.len += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
