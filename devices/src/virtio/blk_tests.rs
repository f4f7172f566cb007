//! The block device as its driver sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::test_driver::{Buffer, DriverQueue, FakeInterrupts, NEXT, WRITE, readable, writable};
use super::{Activation, Blk, VirtioDevice};
use crate::block::{BlockInfo, MemoryControl, MemoryDisk};
use crate::dma::{DmaMem, GuestRam};
use crate::testing::test_ram;

const DISK_BYTES: u64 = 1 << 20;
const QUEUE: u64 = 0x1000;
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0x10000;
const RAM_BYTES: usize = 0x40000;
/// What the status byte is before the device writes it.
const UNTOUCHED: u8 = 0xee;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const INFO: BlockInfo = BlockInfo {
    size_bytes: DISK_BYTES,
    logical_block_bytes: 512,
    physical_block_bytes: 4096,
    read_only: false,
    discard: true,
    write_zeroes: true,
};

/// A read of one sector, once its header is written.
const READ_512: [Buffer; 3] = [
    readable(HEADER, 16),
    writable(DATA, 512),
    writable(STATUS, 1),
];

struct Bench {
    ram: Arc<GuestRam>,
    blk: Blk,
    disk: MemoryControl,
    driver: DriverQueue,
    interrupts: Arc<FakeInterrupts>,
    bus_master: Arc<AtomicBool>,
}

impl Bench {
    fn new() -> Self {
        Self::with(INFO, 1 << VIRTIO_BLK_F_FLUSH)
    }

    fn with(info: BlockInfo, features: u64) -> Self {
        let ram = test_ram(RAM_BYTES);
        let (disk, control) = MemoryDisk::new(info);
        let blk = Blk::new("virtio-blk0".into(), Box::new(disk), Some("SERIAL-7")).unwrap();
        let driver = DriverQueue::new(&ram, QUEUE, 256);
        let mut bench = Self {
            ram,
            blk,
            disk: control,
            driver,
            interrupts: Arc::default(),
            bus_master: Arc::new(AtomicBool::new(true)),
        };
        bench.activate(features);
        bench
    }

    fn activate(&mut self, features: u64) {
        let dma = DmaMem::new(self.ram.clone(), self.bus_master.clone());
        let queues = vec![self.driver.device_side(0, &dma, &self.interrupts, false)];
        self.blk
            .activate(Activation {
                dma,
                queues,
                features,
            })
            .unwrap();
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn header(&self, kind: u32, sector: u64) {
        self.put(HEADER, &kind.to_le_bytes());
        self.put(HEADER + 4, &[0; 4]);
        self.put(HEADER + 8, &sector.to_le_bytes());
        self.put(STATUS, &[UNTOUCHED]);
    }

    /// Header, `data`, status in their own descriptors; returns the status and the used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let mut buffers = vec![readable(HEADER, 16)];
        buffers.extend(data);
        buffers.push(writable(STATUS, 1));
        self.chain(&buffers)
    }

    fn chain(&mut self, buffers: &[Buffer]) -> (u8, u32) {
        let head = self.driver.add(buffers);
        self.blk.process_queue(0).unwrap();
        self.result(head)
    }

    /// The backend says that requests are complete.
    fn completion_event(&mut self) {
        let (fd, _) = self.blk.backend_events()[0];
        self.blk.process_backend(fd, EventSet::IN).unwrap();
    }

    fn result(&mut self, head: u16) -> (u8, u32) {
        let (used_head, len) = self.driver.next_used().expect("used");
        assert_eq!(used_head, head);
        assert_eq!(self.driver.next_used(), None);
        assert_eq!(self.interrupts.take(0), 1);
        (self.get(STATUS, 1)[0], len)
    }
}

/// `struct virtio_blk_discard_write_zeroes`.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let bench = Bench::new();
    let info = bench.blk.info();
    assert_eq!((info.device_id, info.config_len), (2, 60));
    assert_eq!(info.queue_sizes, [256]);
    assert_eq!(info.features & 1 << VIRTIO_BLK_F_RO, 0);
    let field = |at: u64, len: usize| {
        let mut bytes = vec![0xff; len];
        bench.blk.read_config(at, &mut bytes);
        bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b))
    };
    assert_eq!(field(0, 8), DISK_BYTES / 512);
    assert_eq!(field(12, 4), 254); // seg_max
    assert_eq!(field(20, 4), 512); // blk_size
    assert_eq!(field(24, 1), 3); // physical_block_exp
    assert_eq!(field(26, 2), 8); // min_io_size
    assert_eq!(field(40, 4), 16); // max_discard_seg
    assert_eq!(field(44, 4), 8); // discard_sector_alignment
    assert_eq!(field(56, 1), 1); // write_zeroes_may_unmap
    assert_eq!(field(59, 8), 0);
    assert_eq!(field(u64::MAX, 2), 0);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut bench = Bench::with(
        BlockInfo {
            read_only: true,
            discard: false,
            write_zeroes: false,
            ..INFO
        },
        1 << VIRTIO_BLK_F_FLUSH,
    );
    let features = bench.blk.info().features;
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(features & 1 << VIRTIO_BLK_F_DISCARD, 0);
    assert_eq!(bench.request(IN, 0, &[writable(DATA, 512)]), (OK, 513));
    assert_eq!(bench.request(OUT, 0, &[readable(DATA, 512)]), (IOERR, 1));
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
    bench.put(DATA, &range(0, 8, 0));
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(bench.request(kind, 0, &[readable(DATA, 16)]), (UNSUPP, 1));
    }
}

#[test]
fn data_is_written_and_read_back_in_pieces() {
    let mut bench = Bench::new();
    let bytes: Vec<u8> = (0..2048u32).map(|n| (n % 251) as u8).collect();
    bench.put(DATA, &bytes);
    let out = [readable(DATA, 100), readable(DATA + 100, 1948)];
    assert_eq!(bench.request(OUT, 3, &out), (OK, 1));
    assert_eq!(bench.disk.data()[1536..1536 + 2048], bytes);
    let back = [writable(0x20000, 2000), writable(0x30000, 48)];
    assert_eq!(bench.request(IN, 3, &back), (OK, 2049));
    assert_eq!(bench.get(0x20000, 2000), bytes[..2000]);
    assert_eq!(bench.get(0x30000, 48), bytes[2000..]);
}

#[test]
fn any_framing_will_do() {
    let mut bench = Bench::new();
    bench.disk.put(1024, &[0x5a; 512]);
    // The header in three pieces, the status behind the data.
    bench.header(IN, 2);
    let result = bench.chain(&[
        readable(HEADER, 3),
        readable(HEADER + 3, 0),
        readable(HEADER + 3, 10),
        readable(HEADER + 13, 3),
        writable(STATUS - 512, 513),
    ]);
    assert_eq!(result, (OK, 513));
    assert_eq!(bench.get(STATUS - 512, 512), [0x5a; 512]);
    // The data behind the header.
    bench.header(OUT, 5);
    bench.put(HEADER + 16, &[0xa5; 512]);
    assert_eq!(
        bench.chain(&[readable(HEADER, 528), writable(STATUS, 1)]),
        (OK, 1)
    );
    assert_eq!(bench.disk.data()[2560..3072], [0xa5; 512]);
    // An indirect table.
    bench.header(IN, 5);
    let head = bench.driver.add_indirect(0x7001, &READ_512);
    bench.blk.process_queue(0).unwrap();
    assert_eq!(bench.result(head), (OK, 513));
    assert_eq!(bench.get(DATA, 512), [0xa5; 512]);
}

#[test]
fn the_serial_is_twenty_bytes_padded_with_zeroes() {
    let mut bench = Bench::new();
    bench.put(DATA, &[0xff; 32]);
    assert_eq!(bench.request(GET_ID, 0, &[writable(DATA, 32)]), (OK, 21));
    let mut expected = b"SERIAL-7".to_vec();
    expected.resize(20, 0);
    expected.resize(32, 0xff);
    assert_eq!(bench.get(DATA, 32), expected);
    assert_eq!(bench.request(GET_ID, 0, &[writable(DATA, 19)]), (IOERR, 1));
    assert_eq!(bench.request(GET_ID, 0, &[]), (IOERR, 1));
}

#[test]
fn flush_reaches_the_disk() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(bench.disk.flushes(), 1);
    assert_eq!(bench.request(OUT, 0, &[readable(DATA, 512)]), (OK, 1));
    assert_eq!(bench.disk.flushes(), 1);
}

#[test]
fn without_the_flush_feature_a_finished_write_is_stable() {
    let mut bench = Bench::with(INFO, 0);
    assert_eq!(bench.request(OUT, 0, &[readable(DATA, 512)]), (OK, 1));
    assert_eq!(bench.disk.flushes(), 1);
    bench.disk.fail_next(libc::EIO);
    assert_eq!(bench.request(OUT, 0, &[readable(DATA, 512)]), (IOERR, 1));
    assert_eq!(bench.request(IN, 0, &[writable(DATA, 512)]), (OK, 513));
    assert_eq!(bench.disk.flushes(), 1);
}

#[test]
fn discard_and_write_zeroes_clear_their_ranges() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let mut bench = Bench::new();
        bench.disk.put(0, &[0xff; 16384]);
        bench.put(DATA, &range(1, 2, 0));
        bench.put(DATA + 16, &range(8, 8, 0));
        // A range cut by a buffer's end.
        let data = [readable(DATA, 20), readable(DATA + 20, 12)];
        assert_eq!(bench.request(kind, 0, &data), (OK, 1));
        let disk = bench.disk.data();
        let cleared = |sector: usize| disk[sector * 512..][..512].iter().all(|&b| b == 0);
        let expected: Vec<usize> = [1, 2].into_iter().chain(8..16).collect();
        assert_eq!(
            (0..32).filter(|&s| cleared(s)).collect::<Vec<_>>(),
            expected
        );
    }
}

#[test]
fn bad_ranges_are_refused_whole() {
    let sectors = DISK_BYTES / 512;
    let cases = [
        (range(0, 1, 2), UNSUPP, UNSUPP),
        (range(0, 1, 1), UNSUPP, OK),
        (range(0, 1, u32::MAX), UNSUPP, UNSUPP),
        (range(0, 0, 0), IOERR, IOERR),
        (range(sectors, 1, 0), IOERR, IOERR),
        (range(sectors - 1, 2, 0), IOERR, IOERR),
        (range(u64::MAX, 1, 0), IOERR, IOERR),
        (range(u64::MAX / 512, u32::MAX, 0), IOERR, IOERR),
    ];
    for (bytes, discard, zeroes) in cases {
        for (kind, expected) in [(DISCARD, discard), (WRITE_ZEROES, zeroes)] {
            let mut bench = Bench::new();
            bench.disk.put(0, &[0xff; 1024]);
            bench.put(DATA, &range(0, 1, 0));
            bench.put(DATA + 16, &bytes);
            let got = bench.request(kind, 0, &[readable(DATA, 32)]);
            assert_eq!(got, (expected, 1), "{kind} {bytes:?}");
            assert_eq!(bench.disk.data()[0] == 0xff, expected != OK);
        }
    }
    let mut bench = Bench::new();
    for len in [0, 15, 17, 17 * 16] {
        let got = bench.request(DISCARD, 0, &[readable(DATA, len)]);
        assert_eq!(got, (IOERR, 1), "{len}");
    }
}

#[test]
fn bad_requests_get_their_status() {
    let mut bench = Bench::new();
    let sectors = DISK_BYTES / 512;
    let far = RAM_BYTES as u64;
    for (kind, sector, data, expected) in [
        (99, 0, vec![], UNSUPP),
        (u32::MAX, 0, vec![writable(DATA, 512)], UNSUPP),
        (IN, sectors, vec![writable(DATA, 512)], IOERR),
        (IN, sectors - 1, vec![writable(DATA, 1024)], IOERR),
        (IN, u64::MAX, vec![writable(DATA, 512)], IOERR),
        (IN, u64::MAX / 512, vec![writable(DATA, 512)], IOERR),
        (IN, 0, vec![], IOERR),
        (IN, 0, vec![writable(DATA, 0)], IOERR),
        (IN, 0, vec![writable(DATA, 100)], IOERR),
        (IN, 0, vec![readable(DATA, 512)], IOERR),
        (OUT, 0, vec![writable(DATA, 512)], IOERR),
        (OUT, 0, vec![readable(DATA, 511)], IOERR),
        (IN, 0, vec![writable(far - 256, 512)], IOERR),
        (OUT, 0, vec![readable(u64::MAX - 100, 512)], IOERR),
        (DISCARD, 0, vec![readable(far, 16)], IOERR),
        (GET_ID, 0, vec![writable(far, 20)], IOERR),
    ] {
        let got = bench.request(kind, sector, &data);
        assert_eq!(got, (expected, 1), "{kind} {sector} {data:?}");
    }
    // The header too short.
    assert_eq!(
        bench.chain(&[readable(HEADER, 15), writable(STATUS, 1)]),
        (IOERR, 1)
    );
    assert_eq!(bench.chain(&[writable(STATUS, 1)]), (IOERR, 1));
    // The header outside RAM.
    assert_eq!(
        bench.chain(&[readable(far - 8, 16), writable(STATUS, 1)]),
        (IOERR, 1)
    );
}

#[test]
fn chains_without_a_place_for_the_status_come_back_empty() {
    let mut bench = Bench::new();
    bench.header(IN, 0);
    let bad: [&[Buffer]; 3] = [
        &[readable(HEADER, 16), readable(DATA, 512)],
        &[readable(HEADER, 16), writable(STATUS, 0)],
        &[writable(STATUS, 1), readable(HEADER, 16)],
    ];
    for buffers in bad {
        assert_eq!(bench.chain(buffers), (UNTOUCHED, 0), "{buffers:?}");
    }
    // It leads out of the table; it never ends.
    for next in [256, u16::MAX, 100] {
        bench.driver.write_desc(100, STATUS, 1, WRITE | NEXT, next);
        bench.driver.make_available(100);
        bench.blk.process_queue(0).unwrap();
        assert_eq!(bench.result(100), (UNTOUCHED, 0), "{next}");
    }
    // A longer chain than allowed, in an indirect table.
    let mut long = vec![readable(HEADER, 16)];
    long.extend(vec![writable(DATA, 512); 256]);
    long.push(writable(STATUS, 1));
    let head = bench.driver.add_indirect(0x20000, &long);
    bench.blk.process_queue(0).unwrap();
    assert_eq!(bench.result(head), (UNTOUCHED, 0));
    // A status outside RAM is not written, that is all.
    let head = bench
        .driver
        .add(&[readable(HEADER, 16), writable(u64::MAX, 1)]);
    bench.blk.process_queue(0).unwrap();
    assert_eq!(bench.result(head), (UNTOUCHED, 1));
}

#[test]
fn a_broken_ring_fails_the_device_which_then_rests() {
    let mut bench = Bench::new();
    bench.disk.stall(true);
    bench.header(IN, 0);
    bench.driver.add(&READ_512);
    bench.blk.process_queue(0).unwrap();
    bench.driver.set_avail_idx(300);
    assert!(bench.blk.process_queue(0).is_err());
    bench.disk.stall(false);
    bench.completion_event();
    assert_eq!(bench.driver.next_used(), None);

    let mut bench = Bench::new();
    bench.driver.make_available(256);
    assert!(bench.blk.process_queue(0).is_err());
}

#[test]
fn completions_come_in_batches_with_one_interrupt() {
    let mut bench = Bench::new();
    bench.disk.stall(true);
    bench.header(IN, 0);
    for _ in 0..10 {
        bench.driver.add(&READ_512);
    }
    bench.blk.process_queue(0).unwrap();
    assert_eq!(bench.interrupts.take(0), 0);
    bench.disk.stall(false);
    bench.completion_event();
    assert_eq!(bench.interrupts.take(0), 1);
    for _ in 0..10 {
        assert_eq!(bench.driver.next_used().unwrap().1, 513);
    }
    assert_eq!(bench.driver.next_used(), None);
}

#[test]
fn no_more_in_flight_than_the_queue_holds() {
    let mut bench = Bench::new();
    bench.disk.stall(true);
    bench.header(IN, 0);
    // The same chain again and again: no honest driver does this.
    let head = bench.driver.add(&READ_512);
    for _ in 0..255 {
        bench.driver.make_available(head);
    }
    bench.blk.process_queue(0).unwrap();
    for _ in 0..100 {
        bench.driver.make_available(head);
    }
    bench.blk.process_queue(0).unwrap();
    bench.disk.stall(false);
    bench.completion_event();
    // The used ring holds the last 256 of 356; all have gone through.
    assert_eq!(bench.driver.used_idx(), 356);
}

#[test]
fn a_host_error_is_an_io_error() {
    let mut bench = Bench::new();
    bench.disk.fail_next(libc::EIO);
    assert_eq!(bench.request(IN, 0, &[writable(DATA, 512)]), (IOERR, 1));
    assert_eq!(bench.request(IN, 0, &[writable(DATA, 512)]), (OK, 513));
}

#[test]
fn after_a_reset_in_flight_the_driver_is_not_touched() {
    let mut bench = Bench::new();
    bench.disk.stall(true);
    bench.header(OUT, 0);
    bench.put(DATA, &[7; 512]);
    bench.driver.add(&[
        readable(HEADER, 16),
        readable(DATA, 512),
        writable(STATUS, 1),
    ]);
    bench.blk.process_queue(0).unwrap();
    bench.blk.deactivate();
    assert_eq!(bench.disk.data()[0], 7, "waited for");
    assert_eq!(bench.driver.next_used(), None);
    assert_eq!(bench.get(STATUS, 1), [UNTOUCHED]);
    bench.completion_event();
    assert_eq!(bench.interrupts.take(0), 0);
    // And it works again.
    bench.disk.stall(false);
    bench.driver = DriverQueue::new(&bench.ram, 0x4000, 8);
    bench.activate(1 << VIRTIO_BLK_F_FLUSH);
    assert_eq!(bench.request(IN, 0, &[writable(DATA, 512)]), (OK, 513));
}

#[test]
fn what_finishes_without_bus_mastering_is_told_later() {
    // The second driver takes a finished write for stable: its flush must not get lost either.
    for (features, kind, flushes) in [(1 << VIRTIO_BLK_F_FLUSH, IN, 0), (0, OUT, 1)] {
        let mut bench = Bench::with(INFO, features);
        bench.disk.stall(true);
        bench.header(kind, 0);
        let mut request = READ_512;
        if kind == OUT {
            request[1] = readable(DATA, 512);
        }
        let head = bench.driver.add(&request);
        bench.blk.process_queue(0).unwrap();
        bench.bus_master.store(false, Ordering::Release);
        bench.disk.stall(false);
        bench.completion_event();
        assert_eq!(bench.get(STATUS, 1), [UNTOUCHED]);
        assert_eq!(bench.driver.next_used(), None);
        bench.bus_master.store(true, Ordering::Release);
        bench.blk.process_queue(0).unwrap();
        assert_eq!(bench.result(head).0, OK);
        assert_eq!(bench.disk.flushes(), flushes);
    }
}
