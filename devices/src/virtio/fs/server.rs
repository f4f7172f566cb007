//! What the guest's FUSE requests do (`linux/fuse.h`). They only look and read; whatever would change something is
//! answered with `EROFS`.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use fuse_abi::linux::fuse_opcode as op;
use fuse_abi::linux::{
    FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FUSE_ASYNC_DIO, FUSE_ASYNC_READ,
    FUSE_AUTO_INVAL_DATA, FUSE_CACHE_SYMLINKS, FUSE_DO_READDIRPLUS, FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION, FUSE_MAX_PAGES, FUSE_PARALLEL_DIROPS, FUSE_READDIRPLUS_AUTO,
    fuse_attr_out, fuse_batch_forget_in, fuse_entry_out, fuse_forget_in, fuse_forget_one,
    fuse_in_header, fuse_init_in, fuse_init_out, fuse_lseek_in, fuse_lseek_out, fuse_open_in,
    fuse_open_out, fuse_read_in, fuse_statfs_out,
};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, Statx, fstatfs, readlinkat, seek};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::attributes::{InodeNumbers, attributes, file_system};
use super::directory::{Entry, Listing};
use super::nodes::{MAX_NODES, Nodes};
use super::open_files::OpenFiles;
use super::share::{Found, SharedDirectory, status_of};

/// How long the guest may believe what it knows of names and attributes, in seconds, without asking again: what the host
/// changes is seen that much later.
const VALID_SECONDS: u64 = 1;
/// Longest name (`NAME_MAX`), in bytes.
const MAX_NAME_BYTES: usize = 255;
/// The oldest protocol spoken: 7.31 is that of Linux 5.4, the first with virtio-fs.
const MIN_MINOR_VERSION: u32 = 31;
/// Pages in one request: 1 MiB, the most that Linux asks for.
const MAX_PAGES: u16 = 256;
/// As many in bytes; no honest guest asks for more.
pub(super) const MAX_READ_BYTES: u32 = MAX_PAGES as u32 * 4096;
/// Unused, but Linux wants at least a page.
const MAX_WRITE_BYTES: u32 = 4096;
/// Most bytes of directory entries in one reply: to look that many files up takes a millisecond or so.
const MAX_LISTING_BYTES: usize = 64 << 10;
/// `SEEK_DATA` and `SEEK_HOLE` of `linux/fs.h`.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// Features that are offered, of those that the guest has.
const FEATURES: u32 = FUSE_ASYNC_READ
    | FUSE_ASYNC_DIO
    // What was cached of a file is dropped when its time or size has changed.
    | FUSE_AUTO_INVAL_DATA
    | FUSE_CACHE_SYMLINKS
    | FUSE_DO_READDIRPLUS
    | FUSE_READDIRPLUS_AUTO
    | FUSE_PARALLEL_DIROPS
    | FUSE_MAX_PAGES;

/// What a request leads to.
#[derive(Debug)]
pub(super) enum Reply<'a> {
    /// The guest expects none.
    None,
    /// It failed.
    Error(Errno),
    /// It succeeded, with this after the header.
    Data(Vec<u8>),
    /// It succeeds with what `file` has at `offset_bytes`: `len_bytes` of it, or up to its end.
    Read {
        file: &'a File,
        offset_bytes: u64,
        len_bytes: u32,
    },
}

/// One shared directory and what the guest has of it.
pub(super) struct Server {
    share: SharedDirectory,
    nodes: Nodes,
    files: OpenFiles,
    numbers: InodeNumbers,
    /// The guest has said `FUSE_INIT`.
    session: bool,
}

impl Server {
    /// A server without a session yet.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn new(share: SharedDirectory) -> Result<Self, Errno> {
        Self::with_most_nodes(share, MAX_NODES)
    }

    fn with_most_nodes(share: SharedDirectory, most: usize) -> Result<Self, Errno> {
        let root = share.find(&[])?.identity;
        let mut numbers = InodeNumbers::default();
        numbers.number(root.device, 0);
        Ok(Self {
            nodes: Nodes::new(root, most),
            files: OpenFiles::new(),
            numbers,
            share,
            session: false,
        })
    }

    /// Ends the session: the guest has nothing of the share any more.
    pub fn reset(&mut self) {
        self.nodes.clear();
        self.files.clear();
        self.session = false;
    }

    /// Closes every file on the host, as if there were no room for any.
    #[cfg(test)]
    pub fn close_all(&mut self) {
        self.files.clear();
    }

    /// How many files the guest knows.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.nodes.len()
    }

    /// Answers the request of that header with what follows it, `body`. There is room for `room_bytes` of data in the
    /// answer.
    pub fn serve(&mut self, header: &fuse_in_header, body: &[u8], room_bytes: usize) -> Reply<'_> {
        let Ok(opcode) = op::try_from(header.opcode) else {
            return Reply::Error(Errno::NOSYS);
        };
        if !self.session && !matches!(opcode, op::FUSE_INIT | op::FUSE_DESTROY) {
            return match opcode {
                op::FUSE_FORGET | op::FUSE_BATCH_FORGET | op::FUSE_INTERRUPT => Reply::None,
                _ => Reply::Error(Errno::IO),
            };
        }
        let result = match opcode {
            op::FUSE_FORGET | op::FUSE_BATCH_FORGET => {
                self.forget(opcode, header.nodeid, body);
                return Reply::None;
            }
            // Every request is finished when the next one is looked at.
            op::FUSE_INTERRUPT | op::FUSE_NOTIFY_REPLY => return Reply::None,
            op::FUSE_READ => {
                return match self.read(header.nodeid, body, room_bytes) {
                    Ok(reply) => reply,
                    Err(errno) => Reply::Error(errno),
                };
            }
            _ => self.answer(opcode, header.nodeid, body, room_bytes),
        };
        match result {
            Ok(data) if data.len() <= room_bytes => Reply::Data(data),
            Ok(_) => Reply::Error(Errno::IO),
            Err(errno) => Reply::Error(errno),
        }
    }

    fn answer(
        &mut self,
        opcode: op,
        node: u64,
        body: &[u8],
        room_bytes: usize,
    ) -> Result<Vec<u8>, Errno> {
        match opcode {
            op::FUSE_INIT => self.init(body),
            op::FUSE_DESTROY => {
                self.reset();
                Ok(Vec::new())
            }
            op::FUSE_LOOKUP => self.lookup(node, body),
            op::FUSE_GETATTR => self.getattr(node),
            op::FUSE_READLINK => self.readlink(node),
            op::FUSE_OPEN => self.open(node, body, FileType::RegularFile),
            op::FUSE_OPENDIR => self.open(node, body, FileType::Directory),
            op::FUSE_RELEASE | op::FUSE_RELEASEDIR => self.release(node),
            op::FUSE_READDIR => self.readdir(node, body, room_bytes, false),
            op::FUSE_READDIRPLUS => self.readdir(node, body, room_bytes, true),
            op::FUSE_LSEEK => self.lseek(node, body),
            op::FUSE_STATFS => self.statfs(node),
            op::FUSE_SETATTR
            | op::FUSE_SYMLINK
            | op::FUSE_MKNOD
            | op::FUSE_MKDIR
            | op::FUSE_UNLINK
            | op::FUSE_RMDIR
            | op::FUSE_RENAME
            | op::FUSE_RENAME2
            | op::FUSE_LINK
            | op::FUSE_WRITE
            | op::FUSE_SETXATTR
            | op::FUSE_REMOVEXATTR
            | op::FUSE_CREATE
            | op::FUSE_TMPFILE
            | op::FUSE_FALLOCATE
            | op::FUSE_COPY_FILE_RANGE => Err(Errno::ROFS),
            // The guest asks once and does without: there is nothing to flush, and extended attributes are unsupported
            // to it, file capabilities and ACLs among them. Permissions it checks by itself, by modes and owners.
            _ => Err(Errno::NOSYS),
        }
    }

    /// A new session: what was in the last one is forgotten.
    fn init(&mut self, body: &[u8]) -> Result<Vec<u8>, Errno> {
        // Guests older than 7.36 send the first four fields.
        let mut bytes = [0; size_of::<fuse_init_in>()];
        let len = body.len().min(bytes.len());
        if len < 16 {
            return Err(Errno::INVAL);
        }
        bytes[..len].copy_from_slice(&body[..len]);
        let wish: fuse_init_in = zerocopy::transmute!(bytes);
        self.reset();
        let mut out = fuse_init_out {
            major: FUSE_KERNEL_VERSION,
            minor: FUSE_KERNEL_MINOR_VERSION,
            ..fuse_init_out::default()
        };
        if wish.major > FUSE_KERNEL_VERSION {
            // It asks again, with our version.
            return Ok(out.as_bytes().to_vec());
        }
        if wish.major < FUSE_KERNEL_VERSION || wish.minor < MIN_MINOR_VERSION {
            return Err(Errno::PROTO);
        }
        out.max_readahead = wish.max_readahead;
        out.flags = wish.flags & FEATURES;
        out.max_write = MAX_WRITE_BYTES;
        out.max_pages = MAX_PAGES;
        out.time_gran = 1;
        self.session = true;
        Ok(out.as_bytes().to_vec())
    }

    fn forget(&mut self, opcode: op, node: u64, body: &[u8]) {
        if opcode == op::FUSE_FORGET {
            if let Ok((one, _)) = fuse_forget_in::read_from_prefix(body) {
                self.forget_one(node, one.nlookup);
            }
            return;
        }
        let Ok((batch, mut rest)) = fuse_batch_forget_in::read_from_prefix(body) else {
            return;
        };
        for _ in 0..batch.count {
            let Ok((one, more)) = fuse_forget_one::read_from_prefix(rest) else {
                break;
            };
            self.forget_one(one.nodeid, one.nlookup);
            rest = more;
        }
    }

    fn forget_one(&mut self, node: u64, count: u64) {
        self.nodes.forget(node, count);
        if self.nodes.get(node).is_err() {
            self.files.close(node);
        }
    }

    fn lookup(&mut self, parent: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let name = name(body)?;
        if self.nodes.get(parent)?.hollow {
            return Ok(no_entry());
        }
        let mut path = self.nodes.path(parent)?;
        path.push(name);
        let found = match retried(&mut self.files, || self.share.find(&path)) {
            Err(Errno::NOENT) => return Ok(no_entry()),
            // The parent is no directory any more.
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(Errno::STALE),
            result => result?,
        };
        match self.enter(parent, name, &found) {
            Err(Errno::NOENT) => Ok(no_entry()),
            result => Ok(result?.as_bytes().to_vec()),
        }
    }

    /// Gives the guest what was found.
    ///
    /// # Errors
    /// `ENOENT` for a file on a file system that shows the kernel.
    fn enter(&mut self, parent: u64, name: &[u8], found: &Found) -> Result<fuse_entry_out, Errno> {
        let parent_device = self.nodes.get(parent)?.identity.device;
        let hollow = found.identity.device != parent_device && found.shows_kernel()?;
        if hollow && found.file_type() != FileType::Directory {
            return Err(Errno::NOENT);
        }
        let nodeid = self.nodes.enter(parent, name, found.identity, hollow)?;
        let number = self.number(&found.status);
        Ok(fuse_entry_out {
            nodeid,
            entry_valid: VALID_SECONDS,
            attr_valid: VALID_SECONDS,
            attr: attributes(&found.status, number),
            ..fuse_entry_out::default()
        })
    }

    fn number(&mut self, status: &Statx) -> u64 {
        let device = (status.stx_dev_major, status.stx_dev_minor);
        self.numbers.number(device, status.stx_ino)
    }

    /// The file of node `id`, looked up again.
    ///
    /// # Errors
    /// `ESTALE`: it is not where it was.
    fn find(&mut self, id: u64) -> Result<Found, Errno> {
        let path = self.nodes.path(id)?;
        let found = retried(&mut self.files, || self.share.find(&path));
        let found = match found {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(Errno::STALE),
            result => result?,
        };
        if found.identity != self.nodes.get(id)?.identity {
            return Err(Errno::STALE);
        }
        Ok(found)
    }

    /// The file of node `id`, open for reading.
    ///
    /// # Errors
    /// As [`Server::find`] and [`SharedDirectory::open_for_reading`]; `EACCES` where the guest is to see nothing.
    fn opened(&mut self, id: u64) -> Result<&File, Errno> {
        if self.nodes.get(id)?.hollow {
            return Err(Errno::ACCESS);
        }
        if self.files.get(id).is_none() {
            let found = self.find(id)?;
            let file = retried(&mut self.files, || self.share.open_for_reading(&found))?;
            self.files.insert(id, file);
        }
        self.files.get(id).ok_or(Errno::IO)
    }

    fn getattr(&mut self, node: u64) -> Result<Vec<u8>, Errno> {
        self.nodes.get(node)?;
        let status = match self.files.get(node) {
            Some(file) => status_of(file.as_fd())?,
            None => self.find(node)?.status,
        };
        let number = self.number(&status);
        let out = fuse_attr_out {
            attr_valid: VALID_SECONDS,
            attr: attributes(&status, number),
            ..fuse_attr_out::default()
        };
        Ok(out.as_bytes().to_vec())
    }

    fn readlink(&mut self, node: u64) -> Result<Vec<u8>, Errno> {
        let found = self.find(node)?;
        if found.file_type() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(readlinkat(&found, c"", Vec::new())?.into_bytes())
    }

    fn open(&mut self, node: u64, body: &[u8], kind: FileType) -> Result<Vec<u8>, Errno> {
        let (wish, _) = fuse_open_in::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
        let flags = OFlags::from_bits_retain(wish.flags);
        if flags.intersects(OFlags::ACCMODE | OFlags::TRUNC) {
            return Err(Errno::ROFS);
        }
        if !self.nodes.get(node)?.hollow {
            let file = self.opened(node)?;
            if FileType::from_raw_mode(status_of(file.as_fd())?.stx_mode.into()) != kind {
                return Err(Errno::INVAL);
            }
        }
        let node = self.nodes.get_mut(node)?;
        node.opens = node.opens.saturating_add(1);
        let more = match kind {
            FileType::Directory => FOPEN_CACHE_DIR,
            _ => FOPEN_NOFLUSH,
        };
        let out = fuse_open_out {
            open_flags: FOPEN_KEEP_CACHE | more,
            ..fuse_open_out::default()
        };
        Ok(out.as_bytes().to_vec())
    }

    fn release(&mut self, id: u64) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.get_mut(id)?;
        node.opens = node.opens.saturating_sub(1);
        if node.opens == 0 {
            self.files.close(id);
        }
        Ok(Vec::new())
    }

    fn read(&mut self, node: u64, body: &[u8], room_bytes: usize) -> Result<Reply<'_>, Errno> {
        let (wish, _) = fuse_read_in::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
        if i64::try_from(wish.offset).is_err() {
            return Err(Errno::INVAL);
        }
        let room = u32::try_from(room_bytes).unwrap_or(u32::MAX);
        self.nodes.get(node)?;
        Ok(Reply::Read {
            file: self.opened(node)?,
            offset_bytes: wish.offset,
            len_bytes: wish.size.min(room).min(MAX_READ_BYTES),
        })
    }

    fn lseek(&mut self, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let (wish, _) = fuse_lseek_in::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
        let target = match wish.whence {
            SEEK_DATA => SeekFrom::Data(wish.offset),
            SEEK_HOLE => SeekFrom::Hole(wish.offset),
            _ => return Err(Errno::INVAL),
        };
        if i64::try_from(wish.offset).is_err() {
            return Err(Errno::NXIO);
        }
        let offset = seek(self.opened(node)?, target)?;
        Ok(fuse_lseek_out { offset }.as_bytes().to_vec())
    }

    fn statfs(&mut self, node: u64) -> Result<Vec<u8>, Errno> {
        let status = fstatfs(self.find(node)?)?;
        let out = fuse_statfs_out {
            st: file_system(&status),
        };
        Ok(out.as_bytes().to_vec())
    }

    fn readdir(
        &mut self,
        id: u64,
        body: &[u8],
        room_bytes: usize,
        plus: bool,
    ) -> Result<Vec<u8>, Errno> {
        let (wish, _) = fuse_read_in::read_from_prefix(body).map_err(|_| Errno::INVAL)?;
        // A u32 fits into a usize on x86-64.
        let room = room_bytes.min(wish.size as usize).min(MAX_LISTING_BYTES);
        if self.nodes.get(id)?.hollow {
            return Ok(Vec::new());
        }
        if i64::try_from(wish.offset).is_err() {
            return Err(Errno::INVAL);
        }
        self.opened(id)?;
        // Looking the entries up may close the files that the guest has open, but not this one.
        let folder = self.files.take(id).ok_or(Errno::IO)?;
        let listing = self.list(id, &folder, wish.offset, Listing::new(room, plus));
        self.files.insert(id, folder);
        listing.map(Listing::into_bytes)
    }

    /// Fills `listing` with the entries of node `id` from `offset` on.
    fn list(
        &mut self,
        id: u64,
        folder: &File,
        offset: u64,
        mut listing: Listing,
    ) -> Result<Listing, Errno> {
        let device = self.nodes.get(id)?.identity.device;
        seek(folder, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); listing.host_bytes()];
        let mut entries = RawDir::new(folder, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !listing.fits(name.len()) {
                if listing.is_empty() {
                    return Err(Errno::INVAL);
                }
                break;
            }
            let mut about = fuse_entry_out::default();
            let mut number = self.numbers.number(device, entry.ino());
            if listing.is_plus() && name != b"." && name != b".." {
                // Without attributes the guest looks it up when it is used, and gets the error then.
                about = self.entry_of(id, folder, name).unwrap_or_default();
                if about.nodeid != 0 {
                    number = about.attr.ino;
                }
            }
            listing.push(
                Entry {
                    number,
                    next_offset: entry.next_entry_cookie(),
                    kind: entry.file_type().as_raw_mode() >> 12,
                    name,
                },
                about,
            );
        }
        Ok(listing)
    }

    fn entry_of(
        &mut self,
        parent: u64,
        folder: &File,
        name: &[u8],
    ) -> Result<fuse_entry_out, Errno> {
        let below = || self.share.find_below(folder.as_fd(), name);
        let found = retried(&mut self.files, below)?;
        self.enter(parent, name, &found)
    }
}

/// Tries again with all files of the guest closed, if no more can be opened.
fn retried<T>(
    files: &mut OpenFiles,
    mut open: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match open() {
        Err(Errno::MFILE | Errno::NFILE) => {
            files.clear();
            // To the guest it is the machine's limit, not its process's.
            open().map_err(|errno| match errno {
                Errno::MFILE => Errno::NFILE,
                other => other,
            })
        }
        result => result,
    }
}

/// The name in a request: the bytes up to the NUL at its end.
///
/// # Errors
/// `EINVAL`, `ENAMETOOLONG`: it is none.
fn name(body: &[u8]) -> Result<&[u8], Errno> {
    let name = body.strip_suffix(b"\0").ok_or(Errno::INVAL)?;
    if name.len() > MAX_NAME_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    let bad = matches!(name, b"" | b"." | b"..") || name.contains(&0) || name.contains(&b'/');
    if bad { Err(Errno::INVAL) } else { Ok(name) }
}

/// There is no such file, and will not be for the usual time.
fn no_entry() -> Vec<u8> {
    let out = fuse_entry_out {
        entry_valid: VALID_SECONDS,
        ..fuse_entry_out::default()
    };
    out.as_bytes().to_vec()
}
