//! Real files, both engines.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::block::BlockError;
use crate::dma::GuestRam;
use crate::testing::test_ram;

const SIZE: u64 = 1 << 20;

/// A disk of `SIZE` bytes in which each block of 512 is filled with its number.
fn image(dir: &TempDir) -> std::path::PathBuf {
    let path = dir.path().join("disk.img");
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n / 512) as u8).collect();
    fs::write(&path, bytes).unwrap();
    path
}

/// The disk, once per engine.
fn with_engines(options: RawOptions, test: impl Fn(&mut RawFile, &Path)) {
    // Without io_uring on this host, the second engine is tried twice.
    for ring in [uring::ring(), Err(std::io::ErrorKind::Unsupported.into())] {
        // Beside the test's executable: /tmp may be a tmpfs without direct I/O.
        let exe = std::env::current_exe().unwrap();
        let dir = TempDir::new_in(exe.parent().unwrap()).unwrap();
        let path = image(&dir);
        let mut disk = RawFile::open_with(&path, options, ring).unwrap();
        test(&mut disk, &path);
    }
}

fn request(
    ram: &Arc<GuestRam>,
    op: BlockOp,
    offset_bytes: u64,
    segments: &[(u64, u32)],
) -> BlockRequest {
    BlockRequest {
        op,
        offset_bytes,
        segments: segments.to_vec(),
        ram: Arc::clone(ram),
        token: 7,
    }
}

fn run(disk: &mut RawFile, request: BlockRequest) -> Result<(), BlockError> {
    disk.submit(request);
    let mut done = Vec::new();
    disk.drain(&mut done);
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].token, 7);
    done.remove(0).result
}

fn guest_bytes(ram: &GuestRam, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

const MODES: [RawOptions; 2] = [
    RawOptions {
        read_only: false,
        direct: false,
    },
    RawOptions {
        read_only: false,
        direct: true,
    },
];

#[test]
fn reads_and_writes_scatter_and_gather_at_any_address() {
    // Aligned, misaligned addresses, lengths that are no sectors, empty segments, more than one bounce buffer.
    let cases: [&[(u64, u32)]; 6] = [
        &[(0x1000, 4096)],
        &[(0x1000, 512), (0x8000, 3584)],
        &[(0x1003, 4096)],
        &[(0x1001, 100), (0x3000, 0), (0x2001, 412)],
        &[(0x1001, 1), (0x2000, 511), (0x3005, 512)],
        &[(0x1001, 300_000), (0x80000, 2080), (0x90000, 0)],
    ];
    for options in MODES {
        with_engines(options, |disk, path| {
            for segments in cases {
                let len: u32 = segments.iter().map(|s| s.1).sum();
                let len = len.next_multiple_of(4096);
                let mut segments = segments.to_vec();
                let short = len - segments.iter().map(|s| s.1).sum::<u32>();
                segments.push((0xa0000, short));
                let ram = test_ram(0x100000);
                run(disk, request(&ram, BlockOp::Read, 8192, &segments)).unwrap();
                let expected = fs::read(path).unwrap()[8192..8192 + len as usize].to_vec();
                let mut got = Vec::new();
                for &(addr, len) in &segments {
                    got.extend(guest_bytes(&ram, addr, len as usize));
                }
                assert!(got == expected, "read {segments:?} {options:?}");

                let bytes: Vec<u8> = (0..len).map(|n| (n * 7 % 251) as u8).collect();
                let mut rest = &bytes[..];
                for &(addr, len) in &segments {
                    let (chunk, more) = rest.split_at(len as usize);
                    ram.write_slice(chunk, GuestAddress(addr)).unwrap();
                    rest = more;
                }
                run(disk, request(&ram, BlockOp::Write, 8192, &segments)).unwrap();
                let file = fs::read(path).unwrap();
                assert!(
                    file[8192..8192 + len as usize] == bytes,
                    "write {segments:?} {options:?}"
                );
                assert_eq!(file[8191], 15);
                assert_eq!(file.len() as u64, SIZE);
            }
        });
    }
}

#[test]
fn more_requests_than_the_ring_holds_complete_once_each() {
    for options in MODES {
        with_engines(options, |disk, _| {
            let ram = test_ram(0x200000);
            for n in 0..400u64 {
                disk.submit(BlockRequest {
                    token: n,
                    ..request(&ram, BlockOp::Read, n % 256 * 4096, &[(n * 4096, 4096)])
                });
            }
            let mut done = Vec::new();
            disk.poll(&mut done);
            disk.drain(&mut done);
            let mut tokens: Vec<u64> = done.iter().map(|d| d.token).collect();
            tokens.sort_unstable();
            assert!(tokens.into_iter().eq(0..400));
            assert!(done.iter().all(|d| d.result.is_ok()));
            for n in 0..400 {
                let byte = (n % 256 * 8) as u8;
                assert_eq!(guest_bytes(&ram, n * 4096, 1), [byte], "{n}");
            }
        });
    }
}

#[test]
fn the_completion_fd_is_readable_exactly_while_completions_wait() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    with_engines(MODES[1], |disk, _| {
        let Some(fd) = disk.completion_fd() else {
            return;
        };
        let wait = |seconds: i64| {
            #[allow(unsafe_code)]
            // SAFETY: the descriptor belongs to `disk`, which outlives the call.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            let timeout = Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            };
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            loop {
                match poll(&mut fds, Some(&timeout)) {
                    Ok(ready) => return ready == 1,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        };
        assert!(!wait(0));
        let ram = test_ram(0x10000);
        disk.submit(request(&ram, BlockOp::Write, 0, &[(0, 4096)]));
        disk.submit(request(&ram, BlockOp::Flush, 0, &[]));
        let mut done = Vec::new();
        disk.poll(&mut done);
        while done.len() < 2 {
            assert!(wait(30), "no completion");
            disk.poll(&mut done);
        }
        assert!(!wait(0));
    });
}

#[test]
fn a_drain_on_another_thread_sees_everything_finished() {
    with_engines(MODES[1], |disk, _| {
        let ram = test_ram(0x10000);
        let mut done = Vec::new();
        for n in 0..8 {
            disk.submit(request(&ram, BlockOp::Read, n * 4096, &[(n * 4096, 4096)]));
        }
        disk.poll(&mut done);
        std::thread::scope(|scope| {
            scope.spawn(|| disk.drain(&mut done));
        });
        assert_eq!(done.len(), 8);
    });
}

#[test]
fn flush_discard_and_zeroes() {
    for options in MODES {
        with_engines(options, |disk, path| {
            let ram = test_ram(0x1000);
            let blocks = |path| fs::metadata(path).unwrap().blocks();
            run(disk, request(&ram, BlockOp::Flush, 0, &[])).unwrap();
            let before = blocks(path);
            let len_bytes = 64 << 10;
            let discard = BlockOp::Discard { len_bytes };
            run(disk, request(&ram, discard, 128 << 10, &[])).unwrap();
            assert!(blocks(path) < before, "a hole was made");
            for (unmap, offset) in [(true, 256 << 10), (false, 512 << 10)] {
                let zeroes = BlockOp::WriteZeroes { len_bytes, unmap };
                run(disk, request(&ram, zeroes, offset, &[])).unwrap();
                let file = fs::read(path).unwrap();
                let (start, end) = (offset as usize, (offset + len_bytes) as usize);
                assert!(file[start..end].iter().all(|&b| b == 0));
                assert_eq!(file[start - 1], ((start - 1) / 512) as u8);
                assert_eq!(file[end + 512], ((end + 512) / 512) as u8);
            }
            assert_eq!(fs::metadata(path).unwrap().len(), SIZE);
        });
    }
}

#[test]
fn bad_requests_are_refused_and_touch_nothing() {
    with_engines(RawOptions::default(), |disk, path| {
        let ram = test_ram(0x1000);
        let before = fs::read(path).unwrap();
        for (op, offset, segment) in [
            (BlockOp::Write, SIZE, (0, 512)),
            (BlockOp::Write, SIZE - 512, (0, 1024)),
            (BlockOp::Write, u64::MAX - 511, (0, 512)),
            (BlockOp::Write, 1, (0, 512)),
            (BlockOp::Write, 0, (0, 100)),
            (BlockOp::Write, 0, (0xf00, 512)),
            (BlockOp::Read, 0, (u64::MAX, 512)),
            (BlockOp::Discard { len_bytes: SIZE }, 512, (0, 0)),
        ] {
            assert!(run(disk, request(&ram, op, offset, &[segment])).is_err());
        }
        run(disk, request(&ram, BlockOp::Write, 0, &[])).unwrap();
        assert!(fs::read(path).unwrap() == before);
    });
}

#[test]
fn a_file_cut_short_is_an_error_not_a_short_read() {
    with_engines(RawOptions::default(), |disk, path| {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(4096).unwrap();
        let ram = test_ram(0x4000);
        let result = run(disk, request(&ram, BlockOp::Read, 0, &[(0, 0x2000)]));
        assert!(
            matches!(&result, Err(BlockError::Io(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof),
            "{result:?}"
        );
    });
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let options = RawOptions {
        read_only: true,
        direct: false,
    };
    with_engines(options, |disk, _| {
        let ram = test_ram(0x1000);
        assert!(disk.info().read_only && !disk.info().discard);
        run(disk, request(&ram, BlockOp::Read, 0, &[(0, 512)])).unwrap();
        run(disk, request(&ram, BlockOp::Flush, 0, &[])).unwrap();
        assert!(matches!(
            run(disk, request(&ram, BlockOp::Write, 0, &[(0, 512)])),
            Err(BlockError::ReadOnly)
        ));
    });
}

fn open_error(path: &Path, options: RawOptions) -> String {
    match RawFile::open(path, options) {
        Ok(_) => panic!("{} opened", path.display()),
        Err(e) => e.to_string(),
    }
}

#[test]
fn locks_are_shared_by_readers_only_and_go_with_the_disk() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    let read_only = RawOptions {
        read_only: true,
        direct: false,
    };
    let writer = RawFile::open(&path, RawOptions::default()).unwrap();
    let name = path.display();
    let start = format!("{name}: is in use: another process holds");
    let error = open_error(&path, RawOptions::default());
    assert_eq!(
        error,
        format!("{start} an exclusive lock on it and this run needs an exclusive one")
    );
    let error = open_error(&path, read_only);
    assert_eq!(
        error,
        format!("{start} an exclusive lock on it and this run needs a shared one")
    );
    drop(writer);
    let reader = RawFile::open(&path, read_only).unwrap();
    let other = RawFile::open(&path, read_only).unwrap();
    let error = open_error(&path, RawOptions::default());
    assert_eq!(
        error,
        format!(
            "{start} a shared lock on it and this run needs an exclusive one; with readonly=on both can use it"
        )
    );
    drop((reader, other));
    RawFile::open(&path, RawOptions::default()).unwrap();
}

#[test]
fn each_mistake_has_its_message() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let plain = RawOptions::default();
    let missing = at("missing");
    assert_eq!(
        open_error(&missing, plain),
        format!("{}: no such file", missing.display())
    );
    assert!(open_error(dir.path(), plain).contains("is a directory; a disk is"));
    assert!(open_error(Path::new("/dev/null"), plain).contains("is a character device;"));
    let fifo = at("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(open_error(&fifo, plain).contains("is a named pipe;"));
    let empty = at("empty");
    fs::write(&empty, b"").unwrap();
    assert!(open_error(&empty, plain).contains("is empty; give it a size with `truncate -s SIZE "));
    let odd = at("odd");
    fs::write(&odd, [0; 1000]).unwrap();
    assert_eq!(
        open_error(&odd, plain),
        format!(
            "{0}: is 1000 bytes long, not a multiple of 512; extend it with `truncate -s 1024 {0}`",
            odd.display()
        )
    );
}

#[test]
fn a_file_that_may_only_be_read_says_so() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let error = if rustix::process::geteuid().is_root() {
        // Root may write it all the same: what the message says is all there is to check.
        DiskError::NotWritable { path }.to_string()
    } else {
        open_error(&path, RawOptions::default())
    };
    assert!(error.contains("can be read but not written; add readonly=on"));
}

#[test]
fn what_the_page_cache_holds_is_read_at_once() {
    with_engines(MODES[0], |disk, path| {
        let expected = fs::read(path).unwrap();
        let ram = test_ram(0x10000);
        let read = request(&ram, BlockOp::Read, 4096, &[(0x1003, 1000), (0x3000, 24)]);
        assert!(disk.read_now(&read));
        assert!(guest_bytes(&ram, 0x1003, 1000) == expected[4096..5096]);
        assert!(guest_bytes(&ram, 0x3000, 24) == expected[5096..5120]);
        for (op, offset, segment) in [
            (BlockOp::Write, 0, (0x1000, 512)),
            (BlockOp::Flush, 0, (0x1000, 0)),
            (BlockOp::Read, SIZE, (0x1000, 512)),
            (BlockOp::Read, 100, (0x1000, 512)),
            (BlockOp::Read, 0, (0x1_0000, 512)),
        ] {
            assert!(!disk.read_now(&request(&ram, op, offset, &[segment])));
        }
        assert!(fs::read(path).unwrap() == expected);
        // Cut short behind our back: what is left is not enough.
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(4608)
            .unwrap();
        assert!(!disk.read_now(&read));
    });
}

#[test]
fn direct_reads_are_not_made_at_once() {
    with_engines(MODES[1], |disk, _| {
        let ram = test_ram(0x10000);
        assert!(!disk.read_now(&request(&ram, BlockOp::Read, 0, &[(0x1000, 4096)])));
    });
}

#[test]
fn a_file_in_memory_is_read_at_once() {
    let memory = File::from(rustix::fs::memfd_create(c"disk", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len(SIZE).unwrap();
    memory.write_all_at(&[5; 512], 1024).unwrap();
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let mut disk = RawFile::open(Path::new(&path), MODES[0]).unwrap();
    let ram = test_ram(0x10000);
    assert!(disk.read_now(&request(&ram, BlockOp::Read, 1024, &[(0x1000, 512)])));
    assert_eq!(guest_bytes(&ram, 0x1000, 512), [5; 512]);
}
