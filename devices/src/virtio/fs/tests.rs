//! The device, chain by chain.

use std::fs;
use std::sync::Arc;

use fuse_abi::linux::fuse_opcode as op;
use fuse_abi::linux::{FUSE_ROOT_ID, fuse_in_header, fuse_init_in, fuse_out_header, fuse_read_in};
use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use vm_memory::Bytes;
use zerocopy::FromBytes;

use super::*;
use crate::dma::GuestRam;
use crate::testing::test_ram;
use crate::virtio::test_driver::{
    Buffer, DriverQueue, FakeInterrupts, NEXT, RING_BYTES, readable, writable,
};

const RAM_BYTES: usize = 0x80_0000;
/// Where requests and replies are.
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x20_0000;
/// A reply's place, in bytes.
const REPLY_BYTES: u32 = 0x10_0000;

struct Bench {
    ram: Arc<GuestRam>,
    dma: DmaMem,
    fs: Fs,
    hiprio: DriverQueue,
    requests: DriverQueue,
    interrupts: Arc<FakeInterrupts>,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let ram = test_ram(RAM_BYTES);
        let folder = tempfile::tempdir().unwrap();
        let share = SharedDirectory::open(folder.path()).unwrap();
        let mut bench = Self {
            dma: DmaMem::always_on(ram.clone()),
            fs: Fs::new("virtio-fs0".into(), share, "tag").unwrap(),
            hiprio: DriverQueue::new(&ram, 0x1_0000, 64),
            requests: DriverQueue::new(&ram, 0x1_0000 + RING_BYTES, 256),
            interrupts: Arc::default(),
            ram,
            folder,
        };
        bench.activate();
        bench.init();
        bench
    }

    fn activate(&mut self) {
        let (dma, interrupts) = (&self.dma, &self.interrupts);
        let activation = Activation {
            queues: vec![
                self.hiprio.device_side(0, dma, interrupts, false),
                self.requests.device_side(1, dma, interrupts, false),
            ],
            dma: dma.clone(),
            features: 0,
        };
        self.fs.activate(activation).unwrap();
    }

    fn init(&mut self) {
        let wish = fuse_init_in {
            major: 7,
            minor: 38,
            ..fuse_init_in::default()
        };
        let reply = self.call(op::FUSE_INIT, 0, wish.as_bytes());
        assert_eq!(reply.unwrap().len(), 64);
    }

    /// Puts a request into RAM; returns its length.
    fn write_request(&self, opcode: op, nodeid: u64, body: &[u8]) -> u32 {
        let len = u32::try_from(IN_HEADER_BYTES + body.len()).unwrap();
        let header = fuse_in_header {
            len,
            opcode: opcode.into(),
            unique: 42,
            nodeid,
            ..fuse_in_header::default()
        };
        let bytes = [header.as_bytes(), body].concat();
        self.ram.write_slice(&bytes, GuestAddress(REQUEST)).unwrap();
        len
    }

    /// Has the chain served; the bytes written to it.
    fn used_len(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.requests.add(buffers);
        self.fs.process_queue(1).unwrap();
        let (used_head, len) = self.requests.next_used().unwrap();
        assert_eq!(used_head, head);
        assert_eq!(self.interrupts.take(1), 1);
        len
    }

    /// The reply of that length.
    fn reply(&self, len: u32) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len as usize];
        self.ram
            .read_slice(&mut bytes, GuestAddress(REPLY))
            .unwrap();
        let (header, data) = fuse_out_header::read_from_prefix(&bytes).unwrap();
        assert_eq!((header.len, header.unique), (len, 42));
        match header.error {
            0 => Ok(data.to_vec()),
            error => {
                assert!(data.is_empty());
                Err(Errno::from_raw_os_error(-error))
            }
        }
    }

    fn call(&mut self, opcode: op, nodeid: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let len = self.write_request(opcode, nodeid, body);
        let used = self.used_len(&[readable(REQUEST, len), writable(REPLY, REPLY_BYTES)]);
        self.reply(used)
    }

    /// Makes a file and returns its node.
    fn file(&mut self, content: &[u8]) -> u64 {
        fs::write(self.folder.path().join("file"), content).unwrap();
        let entry = self.call(op::FUSE_LOOKUP, FUSE_ROOT_ID, b"file\0").unwrap();
        u64::read_from_prefix(&entry).unwrap().0
    }
}

fn read_in(offset: u64, size: u32) -> fuse_read_in {
    fuse_read_in {
        offset,
        size,
        ..fuse_read_in::default()
    }
}

#[test]
fn tag_and_number_of_queues_are_in_the_configuration() {
    let bench = Bench::new();
    let mut config = [0xff; 40];
    bench.fs.read_config(0, &mut config);
    assert_eq!(&config[..5], b"tag\0\0");
    assert_eq!(&config[36..], &[1, 0, 0, 0]);
    let mut beyond = [0xff; 8];
    bench.fs.read_config(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 8]);
    let info = bench.fs.info();
    assert_eq!((info.device_id, info.queue_sizes), (26, vec![128, 1024]));
}

#[test]
fn tags_that_do_not_fit_are_refused() {
    assert!(config_space(&"t".repeat(36)).is_ok());
    for tag in ["", "a\0b", &"t".repeat(37)] {
        assert_eq!(config_space(tag), Err(TagError(tag.into())));
    }
}

#[test]
fn a_file_is_read_into_buffers_however_they_are_cut() {
    let mut bench = Bench::new();
    let content: Vec<u8> = (0..30_000u32).flat_map(u32::to_le_bytes).collect();
    let node = bench.file(&content);
    assert_eq!(
        bench.call(op::FUSE_READ, node, read_in(0, 1 << 20).as_bytes()),
        Ok(content.clone())
    );
    let len = bench.write_request(op::FUSE_READ, node, read_in(1000, 50_000).as_bytes());
    // One after the other in RAM, so that the reply is in one piece.
    let mut chain = vec![readable(REQUEST, 5), readable(REQUEST + 5, len - 5)];
    let mut at = REPLY;
    for cut in [7, 9, 1, 4096, 30_000, 20_000] {
        chain.push(writable(at, cut));
        at += u64::from(cut);
    }
    let used = bench.used_len(&chain);
    assert_eq!(bench.reply(used).unwrap(), &content[1000..51_000]);
}

#[test]
fn a_read_ends_with_the_file_and_with_the_buffers() {
    let mut bench = Bench::new();
    let node = bench.file(b"0123456789");
    let read = |bench: &mut Bench, offset, size, room| {
        let len = bench.write_request(op::FUSE_READ, node, read_in(offset, size).as_bytes());
        let used = bench.used_len(&[readable(REQUEST, len), writable(REPLY, room)]);
        bench.reply(used)
    };
    assert_eq!(read(&mut bench, 6, 100, 4096), Ok(b"6789".to_vec()));
    assert_eq!(read(&mut bench, 0, 100, 20), Ok(b"0123".to_vec()));
    assert_eq!(read(&mut bench, 0, 3, 4096), Ok(b"012".to_vec()));
    assert_eq!(read(&mut bench, 0, 3, 16), Ok(Vec::new()));
    assert_eq!(read(&mut bench, 99, 3, 4096), Ok(Vec::new()));
    assert_eq!(read(&mut bench, u64::MAX, 3, 4096), Err(Errno::INVAL));
}

#[test]
fn a_greedy_read_gets_a_mebibyte() {
    let mut bench = Bench::new();
    let node = bench.file(b"");
    let file = fs::File::options()
        .write(true)
        .open(bench.folder.path().join("file"))
        .unwrap();
    file.set_len(1 << 33).unwrap();
    let len = bench.write_request(op::FUSE_READ, node, read_in(0, u32::MAX).as_bytes());
    let mut chain = vec![readable(REQUEST, len)];
    chain.extend([writable(REPLY, 0x40_0000); 60]);
    assert_eq!(bench.used_len(&chain), 16 + (1 << 20));
}

#[test]
fn buffers_outside_ram_are_an_error_or_nothing() {
    let mut bench = Bench::new();
    let node = bench.file(b"0123456789");
    let len = bench.write_request(op::FUSE_READ, node, read_in(0, 10).as_bytes());
    let far = RAM_BYTES as u64;
    let request = readable(REQUEST, len);
    let used = bench.used_len(&[request, writable(REPLY, 16), writable(far - 2, 10)]);
    assert_eq!(bench.reply(used), Err(Errno::FAULT));
    let used = bench.used_len(&[request, writable(REPLY, 16), writable(u64::MAX, 10)]);
    assert_eq!(bench.reply(used), Err(Errno::FAULT));
    assert_eq!(bench.used_len(&[request, writable(far, 4096)]), 0);
    assert_eq!(
        bench.used_len(&[readable(far, len), writable(REPLY, 64)]),
        0
    );
    let cut = [
        readable(REQUEST, 40),
        readable(far, 40),
        writable(REPLY, 64),
    ];
    let used = bench.used_len(&cut);
    assert_eq!(bench.reply(used), Err(Errno::INVAL));
}

#[test]
fn requests_of_another_length_than_they_say_are_refused() {
    let mut bench = Bench::new();
    let len = bench.write_request(op::FUSE_LOOKUP, FUSE_ROOT_ID, b"name\0");
    let reply = writable(REPLY, 4096);
    let used = bench.used_len(&[readable(REQUEST, len - 1), reply]);
    assert_eq!(bench.reply(used), Err(Errno::INVAL));
    for len_field in [0u32, 39, u32::MAX] {
        bench
            .ram
            .write_obj(len_field, GuestAddress(REQUEST))
            .unwrap();
        let used = bench.used_len(&[readable(REQUEST, len), reply]);
        assert_eq!(bench.reply(used), Err(Errno::INVAL));
    }
    // No more than it says is looked at.
    bench.ram.write_obj(len, GuestAddress(REQUEST)).unwrap();
    let used = bench.used_len(&[readable(REQUEST, len + 100), reply]);
    assert_eq!(bench.reply(used).unwrap().len(), 128);
}

#[test]
fn chains_without_a_header_or_a_place_for_it_come_back_empty() {
    let mut bench = Bench::new();
    let len = bench.write_request(op::FUSE_GETATTR, FUSE_ROOT_ID, &[0; 16]);
    let (request, reply) = (readable(REQUEST, len), writable(REPLY, 4096));
    for chain in [
        &[reply][..],
        &[readable(REQUEST, 39), reply],
        &[request],
        &[request, writable(REPLY, 15)],
        &[reply, request],
        &[readable(REQUEST, 0), writable(REPLY, 0)],
    ] {
        assert_eq!(bench.used_len(chain), 0, "{chain:?}");
    }
    // A chain that leads in a circle.
    bench.requests.write_desc(200, REQUEST, 1, NEXT, 200);
    bench.requests.make_available(200);
    bench.fs.process_queue(1).unwrap();
    assert_eq!(bench.requests.next_used(), Some((200, 0)));
    assert_eq!(bench.interrupts.take(1), 1);
    let used = bench.used_len(&[request, reply]);
    assert_eq!(bench.reply(used).unwrap().len(), 104);
}

#[test]
fn a_long_request_is_refused_without_being_copied_whole() {
    let mut bench = Bench::new();
    let node = bench.file(b"data");
    let body = vec![0; 0x10_0000 - 40];
    assert_eq!(bench.call(op::FUSE_WRITE, node, &body), Err(Errno::ROFS));
    assert_eq!(bench.fs.scratch.body.len(), MAX_BODY_BYTES);
}

#[test]
fn forgotten_files_come_over_either_queue_without_reply() {
    let mut bench = Bench::new();
    let node = bench.file(b"data");
    let len = bench.write_request(op::FUSE_FORGET, node, &1u64.to_le_bytes());
    let head = bench.hiprio.add(&[readable(REQUEST, len)]);
    bench.fs.process_queue(0).unwrap();
    assert_eq!(bench.hiprio.next_used(), Some((head, 0)));
    assert_eq!(bench.interrupts.take(0), 1);
    assert_eq!(bench.call(op::FUSE_GETATTR, node, &[]), Err(Errno::STALE));
}

#[test]
fn a_greedy_driver_gets_its_turn_and_no_more() {
    let mut bench = Bench::new();
    let node = bench.file(&vec![7; 1 << 20]);
    let len = bench.write_request(op::FUSE_READ, node, read_in(0, 1 << 20).as_bytes());
    let before = bench.requests.used_idx();
    for _ in 0..40 {
        bench
            .requests
            .add(&[readable(REQUEST, len), writable(REPLY, REPLY_BYTES)]);
    }
    bench.fs.process_queue(1).unwrap();
    let first = bench.requests.used_idx() - before;
    assert!((1..=17).contains(&first), "{first}");
    assert!(bench.fs.rerun.is_asked());
    let (fd, _) = bench.fs.backend_events()[0];
    while bench.fs.rerun.is_asked() {
        bench.fs.process_backend(fd, EventSet::IN).unwrap();
    }
    assert_eq!(bench.requests.used_idx() - before, 40);
}

#[test]
fn after_a_reset_the_driver_is_not_touched_and_nothing_is_kept() {
    let mut bench = Bench::new();
    let node = bench.file(b"data");
    let len = bench.write_request(op::FUSE_GETATTR, node, &[]);
    bench
        .requests
        .add(&[readable(REQUEST, len), writable(REPLY, REPLY_BYTES)]);
    let before = bench.requests.used_idx();
    bench.fs.deactivate();
    bench.fs.process_queue(1).unwrap();
    assert_eq!(bench.requests.used_idx(), before);
    bench.hiprio.clear();
    bench.requests.clear();
    bench.activate();
    assert_eq!(bench.call(op::FUSE_GETATTR, node, &[]), Err(Errno::IO));
    bench.init();
    assert_eq!(bench.call(op::FUSE_GETATTR, node, &[]), Err(Errno::STALE));
}

#[test]
fn rings_that_overlap_do_not_keep_the_device_at_work() {
    const USED: u32 = 0x4000;
    let mut bench = Bench::new();
    bench.fs.deactivate();
    // The available index is the used ring's flags: asking for no notification makes a chain available, and asking for
    // them takes it back.
    let mut queue = Queue::new(64).unwrap();
    queue.set_desc_table_address(Some(0x1000), None);
    queue.set_avail_ring_address(Some(USED - 2), None);
    queue.set_used_ring_address(Some(USED), None);
    queue.set_ready(true);
    let interrupts = bench.interrupts.clone();
    let activation = Activation {
        queues: vec![VirtQueue::new(1, queue, bench.dma.clone(), interrupts)],
        dma: bench.dma.clone(),
        features: 0,
    };
    bench.fs.activate(activation).unwrap();
    bench.fs.process_queue(1).unwrap();
    assert!(bench.fs.rerun.is_asked());
}

#[test]
fn a_head_outside_the_table_breaks_the_queue() {
    let mut bench = Bench::new();
    bench.requests.make_available(256);
    assert!(bench.fs.process_queue(1).is_err());
}
