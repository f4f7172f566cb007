//! Tests of the port as a device: wire, backend, event loop.

use super::*;
use crate::console::{NullBackend, OUTPUT_BYTES, OUTPUT_SLACK_BYTES, READ_AHEAD_BYTES};
use crate::testing::{FakeLine, FakePin, FakePosted, Random, readable};
use event_manager::{EventManager, SubscriberOps};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

struct Fixture {
    uart: Arc<Uart16550>,
    pin: Arc<FakePin>,
    /// The far end of the line; none once it has been closed.
    far_end: Option<UnixStream>,
    recall: Arc<Recall>,
    posted: Arc<FakePosted>,
    events: EventManager<UartEvents>,
}

impl Fixture {
    fn new() -> Self {
        let (line, pin) = FakePin::line();
        let (backend, far_end) = FakeLine::pair();
        let port = Port::new("com1", Box::new(backend));
        let recall = Arc::new(Recall::default());
        let posted = Arc::new(FakePosted::default());
        let uart = Uart16550::new("com1", line, port, Arc::clone(&recall));
        let uart = Arc::new(uart.with_posting(posted.clone(), 0x3f8).unwrap());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(uart.subscriber());
        Self {
            uart,
            pin,
            far_end: Some(far_end),
            recall,
            posted,
            events,
        }
    }

    /// What a driver does when it opens the port: FIFOs on, DTR, RTS, OUT2, receive interrupt.
    fn open(&self) {
        self.write(2, 0x81);
        self.write(4, 0x0b);
        self.write(1, 0x01);
    }

    fn write(&self, offset: u64, value: u8) {
        self.uart.write(offset, &[value]).unwrap();
    }

    fn read(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.uart.read(offset, &mut byte).unwrap();
        byte[0]
    }

    /// Runs the event loop until nothing is ready; says how many events there were.
    fn run(&mut self) -> usize {
        let mut total = 0;
        loop {
            let count = self.events.run_with_timeout(0).unwrap();
            if count == 0 {
                return total;
            }
            total += count;
            assert!(total < 10_000, "the event loop spins");
        }
    }

    fn send(&mut self, data: &[u8]) {
        self.far_end.as_mut().unwrap().write_all(data).unwrap();
    }

    /// Reads as a driver does: while there is data.
    fn drain(&self) -> Vec<u8> {
        let mut data = Vec::new();
        while self.read(5) & 1 != 0 {
            data.push(self.read(0));
        }
        data
    }
}

#[test]
fn output_reaches_the_backend_in_order() {
    let mut f = Fixture::new();
    for byte in *b"hello" {
        f.write(0, byte);
        assert_eq!(f.read(5) & 0x60, 0x60);
    }
    let mut data = [0; 5];
    f.far_end.as_mut().unwrap().read_exact(&mut data).unwrap();
    assert_eq!(&data, b"hello");
}

#[test]
fn output_to_a_backend_that_is_gone_does_not_stop_the_guest() {
    let mut f = Fixture::new();
    f.far_end = None;
    for _ in 0..100 {
        f.write(0, b'x');
    }
    assert_eq!(f.read(5) & 0x60, 0x60);
}

#[test]
fn the_thre_interrupt_makes_one_edge_per_answer() {
    let f = Fixture::new();
    f.write(4, 0x08);
    f.write(1, 0x02);
    assert_eq!(f.pin.rising_edges(), 1);
    for _ in 0..16 {
        f.write(0, b'x');
    }
    assert!(f.pin.level());
    assert_eq!(f.pin.rising_edges(), 1, "the wire did not move");
    assert_eq!(f.read(2) & 0xf, 0x2);
    assert!(!f.pin.level());
    f.write(0, b'x');
    assert_eq!(f.pin.rising_edges(), 2);
    f.write(4, 0x00);
    assert!(!f.pin.level());
}

#[test]
fn input_raises_the_interrupt_until_it_is_read() {
    let mut f = Fixture::new();
    f.open();
    f.send(b"ab");
    f.run();
    assert!(f.pin.level());
    assert_eq!(f.read(2) & 0xf, 0xc);
    assert_eq!(f.read(0), b'a');
    assert!(f.pin.level());
    assert_eq!(f.read(0), b'b');
    assert!(!f.pin.level());
}

#[test]
fn input_before_the_guest_opens_the_port_is_kept() {
    let mut f = Fixture::new();
    f.send(b"typed too early");
    f.run();
    assert_eq!(f.read(5) & 1, 0);
    // A driver's probing: FIFOs on, cleared, off, and a read of the receiver.
    for fcr in [0x01, 0x00, 0x01, 0x07, 0x00] {
        f.write(2, fcr);
    }
    f.read(0);
    f.open();
    assert_eq!(f.drain(), b"typed too early");
}

#[test]
fn a_flood_waits_in_the_backend_and_nothing_is_lost() {
    let mut f = Fixture::new();
    let data: Vec<u8> = (0..3 * READ_AHEAD_BYTES + 100).map(|i| i as u8).collect();
    f.send(&data);
    f.run();
    assert_eq!(f.run(), 0, "a full port is not watched");
    f.open();
    let mut received = Vec::new();
    loop {
        let chunk = f.drain();
        if chunk.is_empty() {
            break;
        }
        received.extend(chunk);
        f.run();
    }
    assert!(received == data, "{} bytes came", received.len());
    f.send(b"more");
    f.run();
    assert_eq!(f.drain(), b"more");
}

#[test]
fn end_of_input_stops_the_watch_and_leaves_the_rest_readable() {
    let mut f = Fixture::new();
    f.open();
    f.send(b"last");
    f.far_end = None;
    f.run();
    assert_eq!(f.run(), 0, "the end is not reported again");
    assert_eq!(f.drain(), b"last");
}

/// A number that differs from its neighbours, so that nothing lost goes unseen.
fn pattern(index: usize) -> u8 {
    (index % 251) as u8
}

/// Reads at the far end and runs the event loop until `len` bytes have come, each the right one.
fn expect_pattern(f: &mut Fixture, len: usize) {
    let mut far_end = f.far_end.take().unwrap();
    far_end.set_nonblocking(true).unwrap();
    let (mut seen, mut data) = (0, vec![0; 65536]);
    let begun = Instant::now();
    while seen < len {
        f.run();
        let Ok(count) = far_end.read(&mut data) else {
            // A vCPU thread has it still.
            assert!(begun.elapsed().as_secs() < 10, "{seen} of {len} came");
            std::thread::yield_now();
            continue;
        };
        for byte in &data[..count] {
            assert_eq!(*byte, pattern(seen), "at {seen}");
            seen += 1;
        }
    }
    assert_eq!(seen, len);
    f.run();
    f.far_end = Some(far_end);
}

/// Writes as a driver that looks at the transmitter before every 16 characters.
fn write_until_busy(f: &Fixture, from: usize) -> usize {
    let mut count = from;
    while f.read(5) & 0x20 != 0 {
        for _ in 0..16 {
            f.write(0, pattern(count));
            count += 1;
        }
        assert!(count < from + (4 << 20), "never busy");
    }
    count
}

#[test]
fn a_far_end_that_stopped_makes_the_transmitter_busy_and_loses_nothing() {
    let mut f = Fixture::new();
    f.write(4, 0x08);
    f.write(1, 0x02);
    let written = write_until_busy(&f, 0);
    assert!(written >= OUTPUT_BYTES);
    assert!(!f.pin.level(), "no interrupt asks for more");
    assert_eq!(f.run(), 0, "there is nothing to do until the far end reads");
    let edges = f.pin.rising_edges();
    expect_pattern(&mut f, written);
    assert!(f.pin.level());
    assert_eq!(f.pin.rising_edges(), edges + 1);
    assert_eq!(f.read(5) & 0x60, 0x60);
}

/// Starts a thread that writes `count` characters though the transmitter is busy; waits until it is held.
fn hold_a_vcpu(f: &Fixture, from: usize, count: usize) -> std::thread::JoinHandle<()> {
    let uart = Arc::clone(&f.uart);
    let vcpu = std::thread::spawn(move || {
        for index in from..from + count {
            uart.write(0, &[pattern(index)]).unwrap();
        }
    });
    while !lock(&f.uart.state).held {
        std::thread::yield_now();
    }
    vcpu
}

#[test]
fn a_vcpu_that_writes_all_the_same_is_held_until_there_is_room() {
    let mut f = Fixture::new();
    let written = write_until_busy(&f, 0);
    let more = 2 * OUTPUT_SLACK_BYTES;
    let vcpu = hold_a_vcpu(&f, written, more);
    assert_eq!(f.read(5) & 0x60, 0, "other vCPUs are not held");
    expect_pattern(&mut f, written + more);
    vcpu.join().unwrap();
}

#[test]
fn a_held_vcpu_is_called_back_and_its_character_is_not_lost() {
    let mut f = Fixture::new();
    let written = write_until_busy(&f, 0);
    let vcpu = hold_a_vcpu(&f, written, OUTPUT_SLACK_BYTES + 100);
    f.recall.call();
    vcpu.join().unwrap();
    f.recall.release();
    expect_pattern(&mut f, written + OUTPUT_SLACK_BYTES + 100);
}

#[test]
fn a_driver_that_polls_a_full_port_rests_until_there_is_room() {
    let mut f = Fixture::new();
    let written = write_until_busy(&f, 0);
    // One that does something else in between does not rest.
    for _ in 0..2 * QUICK_LOOKS {
        f.read(5);
        f.read(2);
    }
    assert!(!lock(&f.uart.state).held);
    let uart = Arc::clone(&f.uart);
    let vcpu = std::thread::spawn(move || {
        let mut lsr = [0];
        while lsr[0] & 0x20 == 0 {
            uart.read(5, &mut lsr).unwrap();
        }
    });
    let begun = Instant::now();
    while !lock(&f.uart.state).held {
        assert!(begun.elapsed().as_secs() < 10, "it polls on");
        std::thread::yield_now();
    }
    expect_pattern(&mut f, written);
    vcpu.join().unwrap();
    assert!(!lock(&f.uart.state).held);
}

#[test]
fn output_that_waits_does_not_hold_up_input() {
    let mut f = Fixture::new();
    write_until_busy(&f, 0);
    f.open();
    f.send(b"in");
    f.run();
    assert_eq!(f.drain(), b"in");
}

#[test]
fn a_reset_keeps_output() {
    let mut f = Fixture::new();
    let written = write_until_busy(&f, 0);
    f.uart.reset();
    assert_eq!(f.read(5) & 0x60, 0);
    expect_pattern(&mut f, written);
    assert_eq!(f.read(5) & 0x60, 0x60);
}

#[test]
fn a_port_without_a_descriptor() {
    let (line, _) = FakePin::line();
    let port = Port::new("com2", Box::new(NullBackend));
    let uart = Arc::new(Uart16550::new("com2", line, port, Arc::default()));
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(uart.subscriber());
    assert_eq!(events.run_with_timeout(0), Ok(0));
    uart.write(0, b"x").unwrap();
    let mut lsr = [0];
    uart.read(5, &mut lsr).unwrap();
    assert_eq!(lsr[0] & 0x60, 0x60);
    assert_eq!(uart.name(), "com2");
}

#[test]
fn wide_accesses_are_split_into_bytes() {
    let f = Fixture::new();
    f.uart.write(3, &[0x80]).unwrap();
    f.uart.write(0, &[0x34, 0x12]).unwrap();
    let mut data = [0; 4];
    f.uart.read(0, &mut data).unwrap();
    assert_eq!(data, [0x34, 0x12, 0x01, 0x80]);
    assert!(f.uart.read(7, &mut [0; 2]).is_err());
    assert!(f.uart.read(u64::MAX, &mut [0; 2]).is_err());
    assert!(f.uart.write(8, &[0]).is_err());
    f.uart.write(9, &[]).unwrap();
}

#[test]
fn reset_lowers_the_wire_and_keeps_unread_input() {
    let mut f = Fixture::new();
    f.open();
    f.send(&[b'x'; 20]);
    f.run();
    assert!(f.pin.level());
    f.uart.reset();
    assert!(!f.pin.level());
    assert_eq!(f.read(1), 0);
    f.open();
    assert_eq!(f.drain(), b"xxxx", "what was in the FIFO is gone");
}

#[test]
fn a_hostile_guest_writes_anything_anywhere() {
    let mut f = Fixture::new();
    f.send(&[b'x'; 5000]);
    let mut random = Random::new(0x1234_5678_9abc_def1);
    for _ in 0..20_000 {
        let [value, offset, kind, ..] = random.number().to_le_bytes();
        let offset = u64::from(offset % 8);
        if kind & 1 == 0 && offset != 0 {
            f.write(offset, value);
        } else {
            f.read(offset);
        }
    }
    f.run();
    f.write(3, 0);
    f.write(4, 0x02);
    assert_eq!(f.read(5) & 0x60, 0x60);
}

/// Sends what opens the zone, looking before each character as Linux's console does.
fn burst(f: &Fixture) {
    for _ in 0..32 {
        assert_eq!(f.read(5) & 0x60, 0x60);
        f.write(0, b'x');
    }
}

/// Lets the timer expire once.
fn tick(f: &mut Fixture) {
    let fd = lock(&f.uart.state).posting.as_ref().unwrap().timer_fd();
    while !readable(fd) {
        std::thread::yield_now();
    }
    f.run();
}

#[test]
fn characters_are_posted_while_many_are_sent() {
    let mut f = Fixture::new();
    for _ in 0..31 {
        f.write(0, b'x');
    }
    assert_eq!(f.posted.zones(), [], "a prompt is no burst");
    f.write(0, b'x');
    let zones = f.posted.zones();
    assert_eq!(zones.len(), 1);
    assert_eq!((zones[0].start, zones[0].len_bytes), (0x3f8, 1));
    f.write(0, b'x');
    tick(&mut f);
    assert_eq!(f.posted.zones(), zones, "there was more");
    tick(&mut f);
    assert_eq!(f.posted.zones(), []);
    let ticking = lock(&f.uart.state).posting.as_ref().unwrap().is_ticking();
    assert!(!ticking, "a quiet guest has no timer");
    burst(&f);
    assert_eq!(f.posted.zones(), zones);
}

#[test]
fn other_uses_of_the_register_are_not_posted() {
    let f = Fixture::new();
    for (register, off, on) in [(3, 0x80, 0x03), (4, 0x10, 0x00)] {
        burst(&f);
        assert_eq!(f.posted.zones().len(), 1);
        f.write(register, off);
        assert_eq!(f.posted.zones(), [], "{register}");
        f.write(register, on);
    }
    burst(&f);
    f.uart.reset();
    assert_eq!(f.posted.zones(), []);
}

#[test]
fn a_full_port_takes_no_posted_characters() {
    let mut f = Fixture::new();
    let written = write_until_busy(&f, 0);
    assert_eq!(f.posted.zones(), []);
    expect_pattern(&mut f, written);
    burst(&f);
    assert_eq!(f.posted.zones().len(), 1);
}

#[test]
fn a_driver_that_only_waits_for_its_interrupt_is_not_slowed_down() {
    let mut f = Fixture::new();
    f.write(4, 0x08);
    f.write(1, 0x02);
    burst(&f);
    for _ in 0..4 {
        // As in its handler: it looks, fills the FIFO, and returns.
        f.read(2);
        for _ in 0..16 {
            f.write(0, b'x');
        }
        if !f.posted.zones().is_empty() {
            tick(&mut f);
        }
    }
    assert_eq!(f.posted.zones(), []);
    burst(&f);
    assert_eq!(f.posted.zones(), [], "and for good");
    f.uart.reset();
    burst(&f);
    assert_eq!(f.posted.zones().len(), 1);
}
