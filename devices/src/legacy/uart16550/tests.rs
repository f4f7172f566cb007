//! Tests of the port as a device: wire, backend, event loop.

use super::*;
use crate::testing::{FakeLine, FakePin, Random};
use event_manager::{EventManager, SubscriberOps};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

struct Fixture {
    uart: Arc<Uart16550>,
    pin: Arc<FakePin>,
    /// The far end of the line; none once it has been closed.
    far_end: Option<UnixStream>,
    events: EventManager<UartInput>,
}

impl Fixture {
    fn new() -> Self {
        let (line, pin) = FakePin::line();
        let (backend, far_end) = FakeLine::pair();
        let uart = Arc::new(Uart16550::new("com1", line, Box::new(backend)).unwrap());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(uart.subscriber());
        Self {
            uart,
            pin,
            far_end: Some(far_end),
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

#[test]
fn a_blocked_writer_does_not_block_the_event_loop() {
    let mut f = Fixture::new();
    f.open();
    f.send(b"in");
    let blocked = lock(&f.uart.backend);
    let uart = Arc::clone(&f.uart);
    assert_eq!(uart.take_input(), Intake::Pause);
    assert_eq!(lock(&uart.state).waiting, Some(Waiting::Backend));
    drop(blocked);
    // The end of any write wakes the loop.
    f.write(0, b'x');
    assert_eq!(lock(&f.uart.state).waiting, None);
    f.run();
    assert_eq!(f.drain(), b"in");
}

#[test]
fn a_port_without_input() {
    struct Sink;
    impl CharBackend for Sink {
        fn write(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("there is nothing to read")
        }
        fn poll_fd(&self) -> Option<i32> {
            None
        }
    }
    let (line, _) = FakePin::line();
    let uart = Arc::new(Uart16550::new("com2", line, Box::new(Sink)).unwrap());
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(uart.subscriber());
    uart.resume.write(1).unwrap();
    assert_eq!(events.run_with_timeout(0), Ok(1));
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
