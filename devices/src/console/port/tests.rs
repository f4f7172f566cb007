//! Tests of the port with a line whose far end is in this process.

use super::*;
use crate::console::{KernelMessage, PanicWitness};
use crate::sync::lock;
use crate::testing::{FakeLine, readable};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

fn port() -> (Port, UnixStream) {
    let (line, far_end) = FakeLine::pair();
    (Port::new("com1", Box::new(line)), far_end)
}

/// Serves the port while it asks for that.
fn run(port: &mut Port) -> usize {
    let mut turns = 0;
    while readable(port.poll_fd().unwrap()) {
        port.serve();
        turns += 1;
        assert!(turns < 10_000, "it never rests");
    }
    turns
}

/// What there is at the far end now.
fn received(far_end: &mut UnixStream) -> Vec<u8> {
    far_end.set_nonblocking(true).unwrap();
    let mut data = Vec::new();
    let end = far_end.read_to_end(&mut data);
    assert!(end.is_ok() || end.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
    data
}

/// Sends until the port is full, and says what.
fn fill_up(port: &mut Port) -> Vec<u8> {
    let mut sent = Vec::new();
    while !port.is_full() {
        let piece: Vec<u8> = (sent.len()..sent.len() + 100)
            .map(|i| (i % 251) as u8)
            .collect();
        assert_eq!(port.send(&piece), piece.len());
        sent.extend(piece);
    }
    sent
}

#[test]
fn output_goes_through_at_once_while_the_line_takes_it() {
    let (mut port, mut far_end) = port();
    assert_eq!(port.send(b"hello"), 5);
    assert_eq!(received(&mut far_end), b"hello");
    assert_eq!(port.gauge().waiting_bytes(), 0);
    assert_eq!(run(&mut port), 0);
}

#[test]
fn output_waits_in_order_for_a_line_that_stopped() {
    let (mut port, mut far_end) = port();
    let gauge = port.gauge();
    let mut sent = fill_up(&mut port);
    assert!(gauge.waiting_bytes() >= OUTPUT_BYTES);
    assert_eq!(run(&mut port), 0, "nothing to do");
    // What may be taken beyond that has an end.
    let mut over = 0;
    while port.send(b"y") == 1 {
        sent.push(b'y');
        over += 1;
    }
    assert!((OUTPUT_SLACK_BYTES - 100..=OUTPUT_SLACK_BYTES).contains(&over));
    port.force(b"z");
    sent.push(b'z');
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        let part = received(&mut far_end);
        assert!(!part.is_empty());
        seen.extend(part);
        run(&mut port);
        assert_eq!(port.is_full(), gauge.waiting_bytes() > OUTPUT_RESUME_BYTES);
    }
    assert!(seen == sent);
    assert_eq!(gauge.waiting_bytes(), 0);
    assert_eq!(run(&mut port), 0);
}

#[test]
fn what_is_forced_has_an_end_too() {
    let (mut port, _far_end) = port();
    fill_up(&mut port);
    for _ in 0..100 {
        port.force(&[0; 1000]);
    }
    let most = OUTPUT_BYTES + OUTPUT_SLACK_BYTES + FORCED_BYTES;
    assert_eq!(port.gauge().waiting_bytes(), most);
}

#[test]
fn output_to_a_line_that_is_gone_is_not_waited_for() {
    let (mut port, far_end) = port();
    fill_up(&mut port);
    drop(far_end);
    run(&mut port);
    assert!(!port.is_full());
    assert_eq!(port.gauge().waiting_bytes(), 0);
    assert_eq!(port.send(b"into the void"), 13);
    assert_eq!(run(&mut port), 0);
}

#[test]
fn input_is_read_ahead_so_far_and_then_waits() {
    let (mut port, mut far_end) = port();
    let data: Vec<u8> = (0..READ_AHEAD_BYTES + 100).map(|i| i as u8).collect();
    far_end.write_all(&data).unwrap();
    run(&mut port);
    let mut seen = vec![0; 10_000];
    assert_eq!(port.receive(&mut seen[..96]), 96);
    assert_eq!(run(&mut port), 0, "not before all is read");
    let len = port.receive(&mut seen[96..]);
    assert_eq!(96 + len, READ_AHEAD_BYTES);
    run(&mut port);
    assert_eq!(port.receive(&mut seen[READ_AHEAD_BYTES..]), 100);
    assert!(!port.has_input());
    assert_eq!(seen[..data.len()], data);
}

#[test]
fn the_end_of_input_is_seen_once() {
    let (mut port, mut far_end) = port();
    far_end.write_all(b"bye").unwrap();
    drop(far_end);
    assert!(run(&mut port) <= 2);
    let bytes: Vec<u8> = std::iter::from_fn(|| port.receive_byte()).collect();
    assert_eq!(bytes, b"bye");
    assert_eq!(run(&mut port), 0);
}

#[derive(Default)]
struct Recorder(Mutex<Vec<KernelMessage>>);

impl PanicWitness for Recorder {
    fn printed(&self) {}
    fn said(&self, message: KernelMessage) {
        lock(&self.0).push(message);
    }
}

#[test]
fn a_panic_is_seen_though_the_line_stopped() {
    let (port, _far_end) = port();
    let recorder = Arc::new(Recorder::default());
    let mut port = port.watched_by(PanicWatch::new(recorder.clone()));
    fill_up(&mut port);
    for byte in b"Kernel panic - not syncing" {
        assert_eq!(port.send(&[*byte]), 1);
    }
    assert_eq!(*lock(&recorder.0), [KernelMessage::Panic]);
}
