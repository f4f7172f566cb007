//! The device driven through rings in test RAM, with a terminal in memory.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::console::{CharBackend, OUTPUT_BYTES, READ_AHEAD_BYTES};
use crate::sync::lock;
use crate::testing::test_ram;
use crate::virtio::test_driver::{
    DriverQueue, FakeInterrupts, NEXT, RING_BYTES, readable, writable,
};

const RAM_BYTES: usize = 1 << 20;
/// First address after the rings.
const DATA: u64 = 0x1_0000;

#[derive(Default)]
struct Terminal {
    input: VecDeque<u8>,
    ended: bool,
    read_error: Option<io::ErrorKind>,
    reads: usize,
    output: Vec<u8>,
    write_error: bool,
    /// Takes no output.
    stopped: bool,
}

struct TerminalEnd(Arc<Mutex<Terminal>>, EventFd);

impl CharBackend for TerminalEnd {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut terminal = lock(&self.0);
        if terminal.write_error {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if terminal.stopped {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert!(!data.is_empty());
        terminal.output.extend(data);
        Ok(data.len())
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let mut terminal = lock(&self.0);
        terminal.reads += 1;
        if let Some(error) = terminal.read_error.take() {
            return Err(error.into());
        }
        if terminal.input.is_empty() {
            return if terminal.ended {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        io::Read::read(&mut terminal.input, data)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.1.as_raw_fd())
    }
}

struct Bench {
    ram: Arc<GuestRam>,
    terminal: Arc<Mutex<Terminal>>,
    terminal_fd: RawFd,
    interrupts: Arc<FakeInterrupts>,
    receive: DriverQueue,
    transmit: DriverQueue,
    console: Console,
}

impl Bench {
    fn new() -> Self {
        let ram = test_ram(RAM_BYTES);
        let terminal = Arc::<Mutex<Terminal>>::default();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let terminal_fd = event.as_raw_fd();
        let backend = TerminalEnd(Arc::clone(&terminal), event);
        let port = Port::new("console", Box::new(backend));
        let console = Console::new("virtio-console0".to_string(), port).unwrap();
        let mut bench = Self {
            receive: DriverQueue::new(&ram, 0, 128),
            transmit: DriverQueue::new(&ram, RING_BYTES, 128),
            interrupts: Arc::default(),
            ram,
            terminal,
            terminal_fd,
            console,
        };
        bench.activate();
        bench
    }

    fn activate(&mut self) {
        let dma = DmaMem::always_on(Arc::clone(&self.ram));
        let queues = [(RECEIVE, &self.receive), (TRANSMIT, &self.transmit)]
            .map(|(i, queue)| queue.device_side(i, &dma, &self.interrupts, false));
        let activation = Activation {
            dma,
            queues: queues.into(),
            features: 0,
        };
        self.console.activate(activation).unwrap();
        assert!(self.again());
    }

    fn again(&mut self) -> bool {
        let asked = self.console.rerun.is_asked();
        if asked {
            let (fd, events) = self.console.rerun.event();
            self.console.process_backend(fd, events).unwrap();
        }
        asked
    }

    fn type_in(&mut self, text: &[u8]) {
        lock(&self.terminal).input.extend(text);
        self.terminal_event();
    }

    /// The terminal has something, or has room.
    fn terminal_event(&mut self) {
        let fd = self.terminal_fd;
        self.console.process_backend(fd, EventSet::IN).unwrap();
    }

    fn output(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.terminal).output)
    }

    fn write(&self, addr: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(addr)).unwrap();
    }

    fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }
}

#[test]
fn identity_and_configuration() {
    let bench = Bench::new();
    let info = bench.console.info();
    assert_eq!((info.device_id, info.features, info.config_len), (3, 0, 12));
    assert_eq!(info.queue_sizes, [128, 128]);
    let mut config = [0xaa; 12];
    bench.console.read_config(0, &mut config);
    assert_eq!(config, [0; 12]);
}

#[test]
fn output_of_several_chains_raises_one_interrupt() {
    let mut bench = Bench::new();
    bench.write(DATA, b"hello, world\n");
    bench
        .transmit
        .add(&[readable(DATA, 5), readable(DATA + 5, 0)]);
    bench.transmit.add(&[
        readable(DATA + 5, 2),
        writable(DATA, 4),
        readable(DATA + 7, 6),
    ]);
    bench.console.process_queue(TRANSMIT).unwrap();
    assert_eq!(bench.output(), b"hello, world\n");
    assert_eq!(bench.transmit.take_used(), [(0, 0), (2, 0)]);
    assert_eq!(bench.interrupts.take(TRANSMIT), 1);
}

#[test]
fn long_output_is_written_piece_by_piece() {
    let mut bench = Bench::new();
    let text: Vec<u8> = (0..300_000_u32).map(|i| (i / 7) as u8).collect();
    bench.write(DATA, &text);
    let buffers = [readable(DATA, 200_000), readable(DATA + 200_000, 100_000)];
    bench.transmit.add(&buffers);
    bench.console.process_queue(TRANSMIT).unwrap();
    let mut output = bench.output();
    assert!((1..=WORK_PER_CALL + CHUNK_BYTES).contains(&output.len()));
    assert_eq!(bench.transmit.take_used(), []);
    while bench.again() {
        output.extend(bench.output());
    }
    assert!(output == text);
    assert_eq!(bench.transmit.take_used(), [(0, 0)]);
}

#[test]
fn output_goes_on_without_its_backend() {
    let mut bench = Bench::new();
    lock(&bench.terminal).write_error = true;
    bench.transmit.add(&[readable(DATA, 5)]);
    bench.console.process_queue(TRANSMIT).unwrap();
    assert_eq!(bench.transmit.take_used(), [(0, 0)]);
}

#[test]
fn a_terminal_that_stopped_keeps_output_in_the_queue() {
    let mut bench = Bench::new();
    lock(&bench.terminal).stopped = true;
    let text: Vec<u8> = (0..120_000_u32).map(|i| (i / 7) as u8).collect();
    bench.write(DATA, &text);
    for part in 0..6 {
        bench
            .transmit
            .add(&[readable(DATA + 20_000 * part, 20_000)]);
    }
    bench.console.process_queue(TRANSMIT).unwrap();
    while bench.again() {}
    let used = bench.transmit.take_used().len();
    assert_eq!(used, OUTPUT_BYTES / 20_000);
    // The guest's notifications and the terminal's spurious events change nothing.
    bench.console.process_queue(TRANSMIT).unwrap();
    bench.terminal_event();
    assert!(!bench.again());
    assert_eq!(bench.transmit.take_used(), []);
    lock(&bench.terminal).stopped = false;
    bench.terminal_event();
    while bench.again() {}
    assert!(bench.output() == text);
    assert_eq!(used + bench.transmit.take_used().len(), 6);
}

#[test]
fn hostile_output() {
    let mut bench = Bench::new();
    bench.write(DATA, b"ok");
    bench
        .transmit
        .add(&[readable(RAM_BYTES as u64, 5), readable(DATA, 2)]);
    bench.transmit.add(&[readable(u64::MAX, u32::MAX)]);
    bench.transmit.add(&[writable(DATA, 5)]);
    bench.transmit.write_desc(100, DATA, 0, NEXT, 100);
    bench.transmit.make_available(100);
    bench.console.process_queue(TRANSMIT).unwrap();
    assert_eq!(bench.output(), b"ok");
    let heads: Vec<u16> = bench
        .transmit
        .take_used()
        .iter()
        .map(|used| used.0)
        .collect();
    assert_eq!(heads, [0, 2, 3, 100]);
    bench.transmit.make_available(128);
    assert!(bench.console.process_queue(TRANSMIT).is_err());
}

#[test]
fn an_endless_table_of_nothing_takes_bounded_work() {
    let mut bench = Bench::new();
    let nothing = vec![readable(DATA, 0); 20_000];
    bench.transmit.add_indirect(DATA, &nothing);
    bench.console.process_queue(TRANSMIT).unwrap();
    assert_eq!(bench.transmit.take_used(), []);
    let mut calls = 1;
    while bench.again() {
        calls += 1;
    }
    assert!((2..100).contains(&calls), "{calls}");
    assert_eq!(bench.transmit.take_used(), [(0, 0)]);
}

#[test]
fn input_fills_the_buffers_there_are_and_waits_for_more() {
    let mut bench = Bench::new();
    bench.type_in(b"early");
    assert_eq!(bench.receive.take_used(), []);
    assert!(!bench.receive.no_notify());

    bench
        .receive
        .add(&[writable(DATA, 2), readable(DATA, 9), writable(DATA + 2, 1)]);
    bench.console.process_queue(RECEIVE).unwrap();
    assert_eq!(bench.receive.take_used(), [(0, 3)]);
    assert_eq!(bench.read(DATA, 4), b"ear\0");

    bench.receive.add(&[writable(DATA, 100)]);
    bench.receive.add(&[writable(DATA + 100, 100)]);
    bench.console.process_queue(RECEIVE).unwrap();
    assert_eq!(bench.receive.take_used(), [(3, 2)]);
    assert_eq!(bench.interrupts.take(RECEIVE), 2);

    // The chain that stayed empty is the next to be filled.
    bench.type_in(b"late");
    assert_eq!(bench.receive.take_used(), [(4, 4)]);
    assert_eq!(bench.read(DATA + 100, 4), b"late");
}

#[test]
fn buffers_without_input_are_not_touched() {
    let mut bench = Bench::new();
    bench.receive.add(&[writable(DATA, 100)]);
    bench.console.process_queue(RECEIVE).unwrap();
    assert_eq!(lock(&bench.terminal).reads, 0, "the terminal will tell");
    assert_eq!(bench.receive.take_used(), []);
    assert_eq!(bench.interrupts.take(RECEIVE), 0);
}

#[test]
fn input_is_read_ahead_of_the_driver() {
    let mut bench = Bench::new();
    bench.console.deactivate();
    // Ctrl-A x among it reaches the escape filter, which sits below.
    bench.type_in(b"patience");
    assert_eq!(lock(&bench.terminal).input.len(), 0);
    bench.type_in(&[b'x'; 2 * READ_AHEAD_BYTES]);
    bench.terminal_event();
    let rest = READ_AHEAD_BYTES + 8;
    assert_eq!(
        lock(&bench.terminal).input.len(),
        rest,
        "but not without end"
    );
}

#[test]
fn after_the_end_of_input_nothing_is_read() {
    let mut bench = Bench::new();
    bench.receive.add(&[writable(DATA, 100)]);
    lock(&bench.terminal).ended = true;
    bench.type_in(b"bye");
    assert_eq!(bench.receive.take_used(), [(0, 3)]);
    bench.receive.add(&[writable(DATA, 100)]);
    bench.terminal_event();
    let reads = lock(&bench.terminal).reads;
    bench.terminal_event();
    assert_eq!(lock(&bench.terminal).reads, reads);
    assert_eq!(bench.receive.take_used(), []);
    // Output is not affected.
    bench.transmit.add(&[readable(DATA, 3)]);
    bench.console.process_queue(TRANSMIT).unwrap();
    assert_eq!(bench.output(), b"bye");
}

#[test]
fn an_interrupted_read_is_tried_again() {
    let mut bench = Bench::new();
    bench.receive.add(&[writable(DATA, 100)]);
    lock(&bench.terminal).read_error = Some(io::ErrorKind::Interrupted);
    bench.type_in(b"a");
    bench.terminal_event();
    assert_eq!(bench.receive.take_used(), [(0, 1)]);
}

#[test]
fn an_input_error_ends_the_input_and_nothing_else() {
    let mut bench = Bench::new();
    bench.receive.add(&[writable(DATA, 100)]);
    lock(&bench.terminal).read_error = Some(io::ErrorKind::ConnectionReset);
    bench.type_in(b"a");
    bench.terminal_event();
    assert_eq!(bench.receive.take_used(), []);
    bench.transmit.add(&[readable(DATA, 3)]);
    bench.console.process_queue(TRANSMIT).unwrap();
    assert_eq!(bench.output().len(), 3);
}

#[test]
fn hostile_input_buffers() {
    let mut bench = Bench::new();
    bench.receive.add(&[readable(DATA, 5)]);
    bench.receive.add(&[writable(DATA, 0)]);
    bench.receive.write_desc(100, DATA, 0, NEXT, 100);
    bench.receive.make_available(100);
    let good = bench.receive.add(&[writable(DATA, 1 << 20)]);
    bench.receive.add(&[writable(RAM_BYTES as u64 - 1, 2)]);
    bench.type_in(b"x");
    let expected = [(0, 0), (1, 0), (100, 0), (good, 1)];
    assert_eq!(bench.receive.take_used(), expected);
    bench.type_in(b"yz");
    assert_eq!(bench.receive.take_used(), [(3, 0)]);
    bench.receive.set_avail_idx(1000);
    lock(&bench.terminal).input.push_back(1);
    let fd = bench.terminal_fd;
    assert!(bench.console.process_backend(fd, EventSet::IN).is_err());
}

#[test]
fn much_input_takes_bounded_work() {
    let mut bench = Bench::new();
    for i in 0..100 {
        bench.receive.add(&[writable(DATA + 4096 * i, 4096)]);
    }
    bench.type_in(&[7; 400_000]);
    let first = bench.receive.take_used().len();
    assert!(
        (1..=WORK_PER_CALL / CHUNK_BYTES).contains(&first),
        "{first}"
    );
    let mut received = first;
    while !lock(&bench.terminal).input.is_empty() {
        bench.terminal_event();
        received += bench.receive.take_used().len();
    }
    assert_eq!(received, 98);
}

#[test]
fn input_waits_for_a_driver_and_survives_its_reset() {
    let mut bench = Bench::new();
    bench.console.deactivate();
    bench.type_in(b"patience");
    bench.console.process_queue(RECEIVE).unwrap();
    bench.console.process_queue(TRANSMIT).unwrap();
    assert_eq!(bench.receive.take_used(), []);
    bench.receive = DriverQueue::new(&bench.ram, 2 * RING_BYTES, 128);
    bench.receive.add(&[writable(DATA, 100)]);
    bench.activate();
    assert_eq!(bench.receive.take_used(), [(0, 8)]);
}

#[test]
fn wrong_number_of_queues_fails_the_activation() {
    let mut bench = Bench::new();
    let activation = Activation {
        dma: DmaMem::always_on(Arc::clone(&bench.ram)),
        queues: Vec::new(),
        features: 0,
    };
    assert!(bench.console.activate(activation).is_err());
}
