//! The server, request by request, on real directories.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fuse_abi::linux::fuse_opcode as op;
use fuse_abi::linux::{
    FUSE_DO_READDIRPLUS, FUSE_MAX_PAGES, FUSE_ROOT_ID, FUSE_WRITEBACK_CACHE, fuse_attr,
    fuse_attr_out, fuse_entry_out, fuse_in_header, fuse_init_in, fuse_init_out, fuse_lseek_in,
    fuse_lseek_out, fuse_open_in, fuse_read_in,
};
use rustix::io::Errno;
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

use super::server::{MAX_READ_BYTES, Reply, Server};
use super::share::SharedDirectory;

const ROOM: usize = 1 << 20;

/// A guest's kernel with a session.
struct Client {
    server: Server,
    folder: TempDir,
}

impl Client {
    fn new(fill: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        let server = Server::new(SharedDirectory::open(folder.path()).unwrap()).unwrap();
        let mut client = Self { server, folder };
        client.init(7, 40).unwrap();
        client
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn raw(&mut self, opcode: u32, nodeid: u64, body: &[u8], room: usize) -> Reply<'_> {
        let header = fuse_in_header {
            opcode,
            nodeid,
            ..fuse_in_header::default()
        };
        self.server.serve(&header, body, room)
    }

    fn call(&mut self, opcode: op, nodeid: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        match self.raw(opcode.into(), nodeid, body, ROOM) {
            Reply::None => Ok(Vec::new()),
            Reply::Error(errno) => Err(errno),
            Reply::Data(data) => Ok(data),
            Reply::Read {
                file,
                offset_bytes,
                len_bytes,
            } => {
                let mut data = vec![0; len_bytes as usize];
                let len = file.read_at(&mut data, offset_bytes).unwrap();
                data.truncate(len);
                Ok(data)
            }
        }
    }

    fn init(&mut self, major: u32, minor: u32) -> Result<fuse_init_out, Errno> {
        let wish = fuse_init_in {
            major,
            minor,
            max_readahead: 131_072,
            flags: FUSE_MAX_PAGES | FUSE_DO_READDIRPLUS | FUSE_WRITEBACK_CACHE,
            ..fuse_init_in::default()
        };
        let data = self.call(op::FUSE_INIT, 0, wish.as_bytes())?;
        Ok(fuse_init_out::read_from_bytes(&data).unwrap())
    }

    fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<fuse_entry_out, Errno> {
        let body = [name, b"\0"].concat();
        let data = self.call(op::FUSE_LOOKUP, parent, &body)?;
        Ok(fuse_entry_out::read_from_bytes(&data).unwrap())
    }

    /// The node at a path below the root.
    fn walk(&mut self, path: &str) -> u64 {
        path.split('/').fold(FUSE_ROOT_ID, |node, name| {
            let entry = self.lookup(node, name.as_bytes()).unwrap();
            assert_ne!(entry.nodeid, 0, "{path}");
            entry.nodeid
        })
    }

    fn getattr(&mut self, node: u64) -> Result<fuse_attr, Errno> {
        let data = self.call(op::FUSE_GETATTR, node, &[0; 16])?;
        Ok(fuse_attr_out::read_from_bytes(&data).unwrap().attr)
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<Vec<u8>, Errno> {
        let body = fuse_open_in {
            flags: flags.cast_unsigned(),
            open_flags: 0,
        };
        self.call(op::FUSE_OPEN, node, body.as_bytes())
    }

    fn read(&mut self, node: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.call(op::FUSE_READ, node, read_in(offset, size).as_bytes())
    }

    /// All entries of a directory: name, node (0 without attributes), kind.
    fn list(&mut self, node: u64, size: u32, plus: bool) -> Vec<(String, u64, u32)> {
        let opcode = if plus {
            op::FUSE_READDIRPLUS
        } else {
            op::FUSE_READDIR
        };
        let mut entries = Vec::new();
        let mut offset = 0;
        loop {
            let data = self
                .call(opcode, node, read_in(offset, size).as_bytes())
                .unwrap();
            assert!(data.len() <= size as usize);
            if data.is_empty() {
                return entries;
            }
            let mut rest = &data[..];
            while !rest.is_empty() {
                let mut about = fuse_entry_out::default();
                if plus {
                    (about, rest) = fuse_entry_out::read_from_prefix(rest).unwrap();
                }
                let ([_, next], more) = <[u64; 2]>::read_from_prefix(rest).unwrap();
                let ([len, kind], more) = <[u32; 2]>::read_from_prefix(more).unwrap();
                let len = len as usize;
                let name = String::from_utf8(more[..len].to_vec()).unwrap();
                entries.push((name, about.nodeid, kind));
                rest = &more[len.next_multiple_of(8)..];
                offset = next;
            }
        }
    }

    fn forget(&mut self, node: u64, count: u64) {
        self.call(op::FUSE_FORGET, node, count.as_bytes()).unwrap();
    }
}

fn read_in(offset: u64, size: u32) -> fuse_read_in {
    fuse_read_in {
        offset,
        size,
        ..fuse_read_in::default()
    }
}

fn empty() -> Client {
    Client::new(|_| ())
}

#[test]
fn a_session_is_agreed_upon() {
    let mut client = empty();
    let out = client.init(7, 36).unwrap();
    assert_eq!((out.major, out.minor), (7, 40));
    assert_eq!(out.flags, FUSE_MAX_PAGES | FUSE_DO_READDIRPLUS);
    assert_eq!((out.max_pages, out.max_readahead), (256, 131_072));
    assert_eq!(client.init(8, 0).unwrap().flags, 0);
    assert_eq!(client.getattr(FUSE_ROOT_ID), Err(Errno::IO));
    assert_eq!(client.init(6, 99).unwrap_err(), Errno::PROTO);
    assert_eq!(client.init(7, 30).unwrap_err(), Errno::PROTO);
    let short = [7u32, 31, 0, 0];
    assert!(client.call(op::FUSE_INIT, 0, short.as_bytes()).is_ok());
    assert!(client.getattr(FUSE_ROOT_ID).is_ok());
    let shorter = &short.as_bytes()[..15];
    assert_eq!(
        client.call(op::FUSE_INIT, 0, shorter).unwrap_err(),
        Errno::INVAL
    );
}

#[test]
fn a_new_session_knows_nothing_of_the_last() {
    let mut client = Client::new(|folder| fs::write(folder.join("file"), "data").unwrap());
    let node = client.walk("file");
    client.open(node, libc::O_RDONLY).unwrap();
    client.call(op::FUSE_DESTROY, 0, &[]).unwrap();
    assert_eq!(client.getattr(node), Err(Errno::IO));
    client.init(7, 40).unwrap();
    assert_eq!(client.getattr(node), Err(Errno::STALE));
    assert_eq!(client.read(node, 0, 4), Err(Errno::STALE));
    assert_ne!(client.walk("file"), node);
}

#[test]
fn attributes_are_the_hosts() {
    let mut client = Client::new(|folder| {
        fs::create_dir(folder.join("dir")).unwrap();
        fs::write(folder.join("dir/file"), "12345").unwrap();
        let mode = fs::Permissions::from_mode(0o4750);
        fs::set_permissions(folder.join("dir/file"), mode).unwrap();
    });
    let node = client.walk("dir/file");
    let host = fs::metadata(client.path("dir/file")).unwrap();
    for _ in 0..2 {
        let attr = client.getattr(node).unwrap();
        assert_eq!(attr.mode, host.mode());
        assert_eq!((attr.size, attr.ino), (5, host.ino()));
        assert_eq!((attr.uid, attr.gid), (host.uid(), host.gid()));
        assert_eq!(attr.mtime.cast_signed(), host.mtime());
        assert_eq!(i64::from(attr.mtimensec), host.mtime_nsec());
        assert_eq!(u64::from(attr.nlink), host.nlink());
        // The second time from the open file.
        client.open(node, libc::O_RDONLY).unwrap();
    }
}

#[test]
fn bad_names_are_refused_and_missing_ones_remembered() {
    let mut client = empty();
    let long = [b'x'; 256];
    for (name, errno) in [
        (&b""[..], Errno::INVAL),
        (b".", Errno::INVAL),
        (b"..", Errno::INVAL),
        (b"/", Errno::INVAL),
        (b"/etc", Errno::INVAL),
        (b"a/../..", Errno::INVAL),
        (b"a\0b", Errno::INVAL),
        (&long, Errno::NAMETOOLONG),
    ] {
        assert_eq!(
            client.lookup(FUSE_ROOT_ID, name).unwrap_err(),
            errno,
            "{name:?}"
        );
    }
    for body in [&b""[..], b"no NUL"] {
        let result = client.call(op::FUSE_LOOKUP, FUSE_ROOT_ID, body);
        assert_eq!(result.unwrap_err(), Errno::INVAL);
    }
    let missing = client.lookup(FUSE_ROOT_ID, b"missing").unwrap();
    assert_eq!((missing.nodeid, missing.entry_valid), (0, 1));
    for node in [0, 2, u64::MAX] {
        assert_eq!(client.lookup(node, b"a").unwrap_err(), Errno::STALE);
    }
}

#[test]
fn files_are_read_at_any_offset() {
    let mut client = Client::new(|folder| fs::write(folder.join("file"), "0123456789").unwrap());
    let node = client.walk("file");
    client.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(node, 0, 4096).unwrap(), b"0123456789");
    assert_eq!(client.read(node, 8, 4096).unwrap(), b"89");
    assert_eq!(client.read(node, 10, 4096).unwrap(), b"");
    assert_eq!(client.read(node, 1 << 62, 1).unwrap(), b"");
    for offset in [1 << 63, u64::MAX] {
        assert_eq!(client.read(node, offset, 1), Err(Errno::INVAL));
    }
    let short = client.call(op::FUSE_READ, node, &[0; 39]);
    assert_eq!(short.unwrap_err(), Errno::INVAL);
    let body = read_in(0, u32::MAX);
    for (room, most) in [(usize::MAX, MAX_READ_BYTES), (3, 3), (0, 0)] {
        match client.raw(op::FUSE_READ.into(), node, body.as_bytes(), room) {
            Reply::Read { len_bytes, .. } => assert_eq!(len_bytes, most),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_that_was_closed_to_make_room_is_opened_again() {
    let mut client = Client::new(|folder| fs::write(folder.join("file"), "data").unwrap());
    let node = client.walk("file");
    client.open(node, libc::O_RDONLY).unwrap();
    client.server.close_all();
    assert_eq!(client.read(node, 0, 4).unwrap(), b"data");
    client.server.close_all();
    fs::rename(client.path("file"), client.path("other")).unwrap();
    fs::write(client.path("file"), "another").unwrap();
    assert_eq!(client.read(node, 0, 4), Err(Errno::STALE));
    assert_eq!(client.getattr(node), Err(Errno::STALE));
    // Found again under its new name it is the same node.
    assert_eq!(client.walk("other"), node);
    assert_eq!(client.read(node, 0, 4).unwrap(), b"data");
}

#[test]
fn an_open_file_outlives_its_name() {
    let mut client = Client::new(|folder| fs::write(folder.join("file"), "data").unwrap());
    let node = client.walk("file");
    client.open(node, libc::O_RDONLY).unwrap();
    client.open(node, libc::O_RDONLY).unwrap();
    fs::remove_file(client.path("file")).unwrap();
    client.call(op::FUSE_RELEASE, node, &[0; 24]).unwrap();
    assert_eq!(client.read(node, 0, 4).unwrap(), b"data");
    client.call(op::FUSE_RELEASE, node, &[0; 24]).unwrap();
    assert_eq!(client.read(node, 0, 4), Err(Errno::STALE));
    assert!(client.call(op::FUSE_RELEASE, node, &[0; 24]).is_ok());
}

#[test]
fn links_are_read_and_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let mut client = Client::new(|folder| {
        symlink(outside.path(), folder.join("away")).unwrap();
        symlink(outside.path().join("secret"), folder.join("file")).unwrap();
        fs::write(folder.join("plain"), "").unwrap();
    });
    let link = client.walk("away");
    let target = client.call(op::FUSE_READLINK, link, &[]).unwrap();
    assert_eq!(target, outside.path().as_os_str().as_bytes());
    assert!(client.lookup(link, b"secret").is_err());
    let file = client.walk("file");
    assert!(client.open(file, libc::O_RDONLY).is_err());
    assert!(client.read(file, 0, 10).is_err());
    let plain = client.walk("plain");
    let result = client.call(op::FUSE_READLINK, plain, &[]);
    assert_eq!(result.unwrap_err(), Errno::INVAL);
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "secret").unwrap();
    let mut client = Client::new(|folder| {
        fs::create_dir(folder.join("dir")).unwrap();
        fs::write(folder.join("dir/file"), "public").unwrap();
    });
    let folder = client.walk("dir");
    let file = client.walk("dir/file");
    fs::rename(client.path("dir"), client.path("old")).unwrap();
    symlink(outside.path(), client.path("dir")).unwrap();
    assert_eq!(client.lookup(folder, b"file").unwrap_err(), Errno::STALE);
    assert_eq!(client.read(file, 0, 10), Err(Errno::STALE));
}

#[test]
fn what_writes_is_refused() {
    let mut client = Client::new(|folder| fs::write(folder.join("file"), "data").unwrap());
    let node = client.walk("file");
    let body = [b'a'; 64];
    for opcode in [
        op::FUSE_SETATTR,
        op::FUSE_SYMLINK,
        op::FUSE_MKNOD,
        op::FUSE_MKDIR,
        op::FUSE_UNLINK,
        op::FUSE_RMDIR,
        op::FUSE_RENAME,
        op::FUSE_RENAME2,
        op::FUSE_LINK,
        op::FUSE_WRITE,
        op::FUSE_SETXATTR,
        op::FUSE_REMOVEXATTR,
        op::FUSE_CREATE,
        op::FUSE_TMPFILE,
        op::FUSE_FALLOCATE,
        op::FUSE_COPY_FILE_RANGE,
    ] {
        assert_eq!(client.call(opcode, node, &body).unwrap_err(), Errno::ROFS);
    }
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_ACCMODE] {
        assert_eq!(client.open(node, flags).unwrap_err(), Errno::ROFS);
    }
    assert_eq!(fs::read(client.path("file")).unwrap(), b"data");
}

#[test]
fn what_is_not_there_is_said_to_be_unsupported() {
    let mut client = empty();
    for opcode in [
        op::FUSE_GETXATTR,
        op::FUSE_LISTXATTR,
        op::FUSE_ACCESS,
        op::FUSE_FLUSH,
        op::FUSE_FSYNC,
        op::FUSE_IOCTL,
        op::FUSE_POLL,
        op::FUSE_SETUPMAPPING,
        op::FUSE_STATX,
        op::CUSE_INIT,
    ] {
        let result = client.call(opcode, FUSE_ROOT_ID, &[0; 64]);
        assert_eq!(result.unwrap_err(), Errno::NOSYS);
    }
    for opcode in [0, 7, 19, 53, u32::MAX] {
        let reply = client.raw(opcode, FUSE_ROOT_ID, &[], ROOM);
        assert!(matches!(reply, Reply::Error(Errno::NOSYS)), "{opcode}");
    }
    let reply = client.raw(op::FUSE_INTERRUPT.into(), 0, &[], ROOM);
    assert!(matches!(reply, Reply::None));
}

#[test]
fn directories_are_listed_whole_whatever_the_size_of_the_replies() {
    let mut client = Client::new(|folder| {
        for n in 0..500 {
            fs::write(folder.join(format!("file-{n}")), "").unwrap();
        }
        fs::create_dir(folder.join("dir")).unwrap();
        symlink("x", folder.join("link")).unwrap();
    });
    for (size, plus) in [
        (320, true),
        (4096, true),
        (1 << 20, true),
        (300, false),
        (4096, false),
    ] {
        let mut entries = client.list(FUSE_ROOT_ID, size, plus);
        entries.sort();
        assert_eq!(entries.len(), 504, "{size}");
        for (name, node, kind) in &entries {
            let expected = match name.as_str() {
                "." | ".." | "dir" => 4,
                "link" => 10,
                _ => 8,
            };
            assert_eq!(*kind, expected, "{name}");
            assert_eq!(*node != 0, plus && !name.starts_with('.'), "{name}");
        }
        entries.dedup();
        assert_eq!(entries.len(), 504, "{size}");
    }
    // Given three times each with its attributes, and as often to be forgotten.
    let nodes = client.list(FUSE_ROOT_ID, 4096, true);
    assert_eq!(client.server.known(), 503);
    for (_, node, _) in nodes {
        client.forget(node, 3);
        client.forget(node, 1);
    }
    assert_eq!(client.server.known(), 1);
}

#[test]
fn listings_with_no_room_or_at_no_place_are_refused() {
    let mut client = Client::new(|folder| fs::write(folder.join("file"), "").unwrap());
    for (offset, size) in [(0, 0), (0, 23), (1 << 63, 4096), (u64::MAX, 4096)] {
        let body = read_in(offset, size);
        let result = client.call(op::FUSE_READDIR, FUSE_ROOT_ID, body.as_bytes());
        assert_eq!(result.unwrap_err(), Errno::INVAL, "{offset} {size}");
    }
    let file = client.walk("file");
    let body = read_in(0, 4096);
    let result = client.call(op::FUSE_READDIR, file, body.as_bytes());
    assert_eq!(result.unwrap_err(), Errno::NOTDIR);
    assert!(client.open(FUSE_ROOT_ID, libc::O_RDONLY).is_err());
    let result = client.call(op::FUSE_OPENDIR, file, &[0; 8]);
    assert_eq!(result.unwrap_err(), Errno::INVAL);
}

#[test]
fn holes_are_found() {
    let mut client = Client::new(|folder| {
        let file = fs::File::create(folder.join("file")).unwrap();
        file.write_at(b"data", 1 << 20).unwrap();
    });
    let node = client.walk("file");
    let mut seek = |offset, whence| {
        let body = fuse_lseek_in {
            offset,
            whence,
            ..fuse_lseek_in::default()
        };
        let data = client.call(op::FUSE_LSEEK, node, body.as_bytes())?;
        Ok(fuse_lseek_out::read_from_bytes(&data).unwrap().offset)
    };
    assert_eq!(seek(1 << 20, 4), Ok((1 << 20) + 4));
    assert_eq!(seek(1 << 20, 3), Ok(1 << 20));
    for (offset, whence, errno) in [
        (1 << 21, 3, Errno::NXIO),
        (u64::MAX, 3, Errno::NXIO),
        (0, 0, Errno::INVAL),
        (0, u32::MAX, Errno::INVAL),
    ] {
        assert_eq!(seek(offset, whence), Err(errno));
    }
}

#[test]
fn file_systems_of_the_kernel_are_empty_directories() {
    let share = SharedDirectory::open(Path::new("/")).unwrap();
    let mut client = Client {
        server: Server::new(share).unwrap(),
        folder: tempfile::tempdir().unwrap(),
    };
    client.init(7, 40).unwrap();
    let proc = client.walk("proc");
    assert_eq!(client.lookup(proc, b"self").unwrap().nodeid, 0);
    client.call(op::FUSE_OPENDIR, proc, &[0; 8]).unwrap();
    assert_eq!(client.list(proc, 4096, true), []);
    assert_eq!(client.read(proc, 0, 10), Err(Errno::ACCESS));
    client.call(op::FUSE_STATFS, proc, &[]).unwrap();
    // Other mounts are not, and have inode numbers of their own.
    let root = client.getattr(FUSE_ROOT_ID).unwrap().ino;
    let dev = client.walk("dev");
    assert_ne!(client.lookup(dev, b"null").unwrap().nodeid, 0);
    assert_ne!(client.getattr(dev).unwrap().ino, root);
    let null = client.walk("dev/null");
    assert_eq!(client.open(null, libc::O_RDONLY).unwrap_err(), Errno::NXIO);
    assert_eq!(client.getattr(null).unwrap().rdev, 0x103);
}

#[test]
fn a_batch_is_forgotten_as_far_as_it_goes() {
    let mut client = Client::new(|folder| {
        for name in ["a", "b"] {
            fs::write(folder.join(name), "").unwrap();
        }
    });
    let (a, b) = (client.walk("a"), client.walk("b"));
    let count = u64::from(u32::MAX);
    let body = [count, a, 1, 999, 1, b, 1, 77];
    client
        .call(op::FUSE_BATCH_FORGET, 0, body.as_bytes())
        .unwrap();
    assert_eq!(client.server.known(), 1);
    client.call(op::FUSE_BATCH_FORGET, 0, &[1, 2]).unwrap();
    client.call(op::FUSE_FORGET, a, &[1, 2]).unwrap();
}

#[test]
fn a_reply_without_room_is_an_error() {
    let mut client = Client::new(|folder| fs::write(folder.join("file"), "").unwrap());
    let reply = client.raw(op::FUSE_LOOKUP.into(), FUSE_ROOT_ID, b"file\0", 127);
    assert!(matches!(reply, Reply::Error(Errno::IO)));
}

/// A generator of numbers that look random (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

/// Everything below a folder: path, mode, size, time of the last change, content.
fn everything(folder: &Path) -> Vec<(String, u32, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(path) = todo.pop() {
        let status = fs::symlink_metadata(&path).unwrap();
        let mut content = Vec::new();
        if status.is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if status.is_file() {
            fs::File::open(&path)
                .unwrap()
                .read_to_end(&mut content)
                .unwrap();
        }
        let changed = status.ctime() * 1_000_000_000 + status.ctime_nsec();
        all.push((path.display().to_string(), status.mode(), changed, content));
    }
    all.sort();
    all
}

#[test]
fn random_requests_neither_panic_nor_change_anything() {
    let mut client = Client::new(|folder| {
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        for name in ["x", "a/x", "a/b/x", "a/b/c/x"] {
            fs::write(folder.join(name), name.repeat(1000)).unwrap();
        }
        symlink("../..", folder.join("a/b/up")).unwrap();
        symlink("/", folder.join("root")).unwrap();
    });
    let before = everything(client.folder.path());
    let names: [&[u8]; 9] = [
        b"a\0", b"b\0", b"c\0", b"x\0", b"up\0", b"root\0", b"..\0", b"a/b\0", b"\0",
    ];
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut done = [0u32; 64];
    let mut known = [FUSE_ROOT_ID; 7];
    for _ in 0..200_000 {
        let opcode = u32::try_from(dice.below(56)).unwrap();
        let ends = [op::FUSE_DESTROY, op::FUSE_INIT]
            .map(u32::from)
            .contains(&opcode);
        if ends && dice.below(100) > 0 {
            continue;
        }
        let node = match dice.below(8) {
            0 => dice.roll(),
            n => known[(n as usize - 1) % known.len()],
        };
        let mut body = vec![0; usize::try_from(dice.below(64)).unwrap()];
        match dice.below(4) {
            0 => body.fill_with(|| dice.roll() as u8),
            1 => body = names[usize::try_from(dice.below(9)).unwrap()].to_vec(),
            2 => {
                body = read_in(dice.below(5000), dice.below(9000) as u32)
                    .as_bytes()
                    .to_vec()
            }
            _ => {}
        }
        if opcode == u32::from(op::FUSE_LOOKUP) && dice.below(10) > 0 {
            body = names[usize::try_from(dice.below(9)).unwrap()].to_vec();
        }
        let room = usize::try_from(dice.below(10_000)).unwrap();
        match client.raw(opcode, node, &body, room) {
            Reply::Error(_) => {}
            Reply::Data(data) => {
                assert!(data.len() <= room);
                if opcode == u32::from(op::FUSE_LOOKUP) {
                    let entry = fuse_entry_out::read_from_bytes(&data).unwrap();
                    known[usize::try_from(dice.below(7)).unwrap()] = entry.nodeid;
                }
                done[opcode as usize] += 1;
            }
            Reply::None | Reply::Read { .. } => done[opcode as usize] += 1,
        }
        if ends {
            client.init(7, 40).unwrap();
        }
        known[0] = FUSE_ROOT_ID;
    }
    // The dice did not only make mistakes.
    for opcode in [
        op::FUSE_LOOKUP,
        op::FUSE_GETATTR,
        op::FUSE_READLINK,
        op::FUSE_OPEN,
        op::FUSE_READ,
        op::FUSE_READDIRPLUS,
    ] {
        assert!(done[u32::from(opcode) as usize] > 20, "{opcode:?}");
    }
    assert_eq!(everything(client.folder.path()), before);
}
