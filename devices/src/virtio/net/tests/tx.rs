//! Transmitting.

use std::io::ErrorKind;

use super::*;
use crate::virtio::test_driver::{NEXT, readable, writable};

fn kick(bench: &mut Bench) {
    bench.net.process_queue(TX).unwrap();
}

#[test]
fn any_framing_of_header_and_data() {
    let mut bench = Bench::new(MERGE);
    let data = frame(1, 1000);
    bench.write(DATA, &data);
    let whole = [readable(DATA, 1000)];
    let usual = [readable(DATA, 12), readable(DATA + 12, 988)];
    let odd = [
        readable(DATA, 5),
        readable(DATA + 5, 0),
        readable(DATA + 5, 8),
        writable(DATA + 0x10000, 50),
        readable(DATA + 13, 987),
    ];
    let heads = [
        bench.tx.add(&whole),
        bench.tx.add(&usual),
        bench.tx.add(&odd),
        bench.tx.add_indirect(DATA + 0x20000, &odd),
    ];
    kick(&mut bench);
    assert_eq!(bench.tx.take_used(), heads.map(|head| (head, 0)));
    assert!(bench.peer.take_sent() == vec![data; 4]);
    assert_eq!(bench.interrupts.take(TX), 1);
    assert_eq!(bench.read(DATA + 0x10000, 50), [0; 50]);
}

#[test]
fn the_largest_frame_passes_and_one_byte_more_does_not() {
    let mut bench = Bench::new(MERGE);
    bench.tx.add(&[readable(DATA, 65_562)]);
    bench.tx.add(&[readable(DATA, 65_563)]);
    bench
        .tx
        .add(&[readable(DATA, u32::MAX), readable(DATA, u32::MAX)]);
    kick(&mut bench);
    let lengths: Vec<_> = bench.peer.take_sent().iter().map(Vec::len).collect();
    assert_eq!(lengths, [65_562]);
    assert_eq!(bench.tx.take_used().len(), 3);
}

#[test]
fn what_is_no_frame_is_dropped() {
    let mut bench = Bench::new(MERGE);
    bench.tx.add(&[readable(DATA, 0)]);
    // Only a header.
    bench.tx.add(&[readable(DATA, 12)]);
    bench.tx.add(&[writable(DATA, 100)]);
    bench.tx.add(&[readable(RAM_BYTES as u64 - 50, 100)]);
    bench.tx.add(&[readable(u64::MAX - 50, 100)]);
    let good = bench.tx.add(&[readable(DATA, 100)]);
    kick(&mut bench);
    assert_eq!(bench.peer.take_sent().len(), 1);
    let used = bench.tx.take_used();
    assert_eq!(used.len(), 6);
    assert_eq!(used[5], (good, 0));
}

#[test]
fn a_descriptor_loop_is_dropped() {
    let mut bench = Bench::new(MERGE);
    bench.tx.write_desc(0, DATA, 4096, NEXT, 1);
    bench.tx.write_desc(1, DATA, 4096, NEXT, 0);
    bench.tx.make_available(0);
    kick(&mut bench);
    assert_eq!(bench.peer.take_sent().len(), 0);
    assert_eq!(bench.tx.take_used(), [(0, 0)]);
}

#[test]
fn an_indirect_table_longer_than_any_queue_is_dropped() {
    let mut bench = Bench::new(MERGE);
    let buffers = vec![readable(DATA, 1); 300];
    bench.tx.add_indirect(DATA + 0x10000, &buffers);
    bench.tx.add_indirect(DATA + 0x10000, &buffers[..0]);
    kick(&mut bench);
    assert_eq!(bench.peer.take_sent().len(), 0);
    assert_eq!(bench.tx.take_used().len(), 2);
}

#[test]
fn work_is_bounded_and_goes_on() {
    let mut bench = Bench::new(MERGE | EVENT_IDX);
    bench.tx.set_used_event(199);
    for _ in 0..200 {
        bench.tx.add(&[readable(DATA, 76)]);
    }
    kick(&mut bench);
    let first = bench.peer.take_sent().len();
    assert!((1..200).contains(&first), "{first}");
    let mut rest = 0;
    while bench.again() {
        rest += bench.peer.take_sent().len();
    }
    assert_eq!(first + rest, 200);
    assert_eq!(bench.tx.take_used().len(), 200);
    // The driver wanted one interrupt, after the last.
    assert_eq!(bench.interrupts.take(TX), 1);
    assert_eq!(bench.tx.avail_event(), 200);
}

#[test]
fn a_full_backend_is_waited_for() {
    let mut bench = Bench::new(MERGE);
    bench.peer.refuse_send(Some(ErrorKind::WouldBlock));
    bench.tx.add(&[readable(DATA, 76)]);
    bench.tx.add(&[readable(DATA, 80)]);
    kick(&mut bench);
    assert_eq!(bench.tx.take_used(), []);
    assert!(!bench.again());
    bench.peer.refuse_send(None);
    let fd = bench.wire_fd;
    bench.net.process_backend(fd, EventSet::OUT).unwrap();
    let lengths: Vec<_> = bench.peer.take_sent().iter().map(Vec::len).collect();
    assert_eq!(lengths, [76, 80]);
    assert_eq!(bench.tx.take_used().len(), 2);
}

#[test]
fn a_frame_refused_by_the_host_is_dropped() {
    let mut bench = Bench::new(MERGE);
    bench.peer.refuse_send(Some(ErrorKind::InvalidInput));
    bench.tx.add(&[readable(DATA, 76)]);
    kick(&mut bench);
    assert_eq!(bench.tx.take_used(), [(0, 0)]);
    assert!(!bench.again());
}

#[test]
fn a_broken_queue_is_reported() {
    let mut bench = Bench::new(MERGE);
    bench.tx.set_avail_idx(257);
    assert!(bench.net.process_queue(TX).is_err());
}
