//! Receiving.

use super::*;
use crate::virtio::test_driver::{NEXT, WRITE, readable, writable};

/// Adds `count` buffers of `len` bytes each, at intervals of `len`; returns their heads.
fn add_buffers(bench: &mut Bench, count: u64, len: u32) -> Vec<u16> {
    (0..count)
        .map(|i| bench.rx.add(&[writable(DATA + i * u64::from(len), len)]))
        .collect()
}

/// What `frame` looks like in the driver's memory.
fn with_num_buffers(mut frame: Vec<u8>, num_buffers: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&num_buffers.to_le_bytes());
    frame
}

#[test]
fn a_frame_in_one_buffer() {
    let mut bench = Bench::new(MERGE);
    let heads = add_buffers(&mut bench, 2, 1536);
    bench.peer.push(&frame(1, 76));
    bench.wire_event();
    assert_eq!(bench.rx.take_used(), [(heads[0], 76)]);
    assert_eq!(bench.read(DATA, 76), with_num_buffers(frame(1, 76), 1));
    assert_eq!(bench.interrupts.take(RX), 1);
}

#[test]
fn a_frame_merged_over_many_buffers() {
    let mut bench = Bench::new(MERGE | EVENT_IDX);
    let heads = add_buffers(&mut bench, 16, 400);
    // The event index lies in the middle of the batch: the interrupt must not be missed.
    bench.rx.set_used_event(2);
    bench.peer.push(&frame(2, 2001));
    bench.wire_event();
    let expected: Vec<_> = heads
        .into_iter()
        .zip([400, 400, 400, 400, 400, 1])
        .collect();
    assert_eq!(bench.rx.take_used(), expected);
    assert_eq!(bench.read(DATA, 2001), with_num_buffers(frame(2, 2001), 6));
    assert_eq!(bench.interrupts.take(RX), 1);
}

#[test]
fn merged_buffers_wrap_around_the_used_ring() {
    let mut bench = Bench::with_rx_size(MERGE, 8);
    for round in 0..20 {
        let heads = add_buffers(&mut bench, 3, 64);
        bench.peer.push(&frame(round, 190));
        bench.wire_event();
        let expected: Vec<_> = heads.into_iter().zip([64, 64, 62]).collect();
        assert_eq!(bench.rx.take_used(), expected, "round {round}");
        let expected = with_num_buffers(frame(round, 190), 3);
        assert_eq!(bench.read(DATA, 190), expected, "round {round}");
    }
}

#[test]
fn large_frames_go_direct_once_they_are_expected() {
    let mut bench = Bench::new(MERGE);
    add_buffers(&mut bench, 256, 1536);
    let mut at = DATA;
    let mut receive = |bench: &mut Bench, seed: u8, len: usize| {
        bench.peer.push(&frame(seed, len));
        bench.wire_event();
        let used = bench.rx.take_used();
        let num_buffers = len.div_ceil(1536);
        assert_eq!(used.len(), num_buffers);
        let expected = with_num_buffers(frame(seed, len), num_buffers as u16);
        assert!(bench.read(at, len) == expected, "frame {seed}");
        at += 1536 * num_buffers as u64;
    };
    receive(&mut bench, 1, 60_000);
    let few = 3;
    receive(&mut bench, 2, 65_562);
    assert!(bench.peer.slices_offered() >= 43);
    for seed in 0..SMALL_FRAMES {
        receive(&mut bench, seed, 60);
    }
    assert!(bench.peer.slices_offered() <= few);
}
const SMALL_FRAMES: u8 = 64;

#[test]
fn a_large_frame_waits_for_buffers() {
    let mut bench = Bench::new(MERGE | EVENT_IDX);
    bench.rx.set_used_event(0);
    add_buffers(&mut bench, 2, 1500);
    bench.peer.push(&frame(3, 5000));
    bench.peer.push(&frame(4, 60));
    bench.wire_event();
    assert_eq!(bench.rx.take_used(), []);
    assert_eq!(bench.interrupts.take(RX), 0);
    // The device asks to be told about the next buffer.
    assert_eq!(bench.rx.avail_event(), 2);

    for i in 2..5 {
        bench.rx.add(&[writable(DATA + i * 1500, 1500)]);
    }
    bench.net.process_queue(RX).unwrap();
    let used: Vec<u32> = bench.rx.take_used().iter().map(|used| used.1).collect();
    assert_eq!(used, [1500, 1500, 1500, 500, 60]);
    assert!(bench.read(DATA, 5000) == with_num_buffers(frame(3, 5000), 4));
    assert_eq!(
        bench.read(DATA + 6000, 60),
        with_num_buffers(frame(4, 60), 1)
    );
    assert_eq!(bench.interrupts.take(RX), 1);
}

#[test]
fn a_frame_that_no_ring_full_can_hold_is_dropped() {
    let mut bench = Bench::with_rx_size(MERGE, 4);
    add_buffers(&mut bench, 4, 100);
    bench.peer.push(&frame(1, 500));
    bench.peer.push(&frame(2, 70));
    bench.wire_event();
    assert_eq!(bench.rx.take_used(), [(0, 70)]);
    assert_eq!(bench.read(DATA, 70), with_num_buffers(frame(2, 70), 1));
}

#[test]
fn without_merging_each_frame_has_its_chain() {
    let mut bench = Bench::new(0);
    // The header is divided, and the number of buffers in it too.
    let chain = [
        writable(DATA, 11),
        writable(DATA + 11, 3),
        writable(DATA + 14, 2000),
    ];
    let head = bench.rx.add(&chain);
    let short = bench.rx.add(&[writable(DATA + 0x1000, 100)]);
    bench.peer.push(&frame(1, 1500));
    // Too long for the next chain, which the third then gets.
    bench.peer.push(&frame(2, 101));
    bench.peer.push(&frame(3, 100));
    bench.wire_event();
    assert_eq!(bench.rx.take_used(), [(head, 1500), (short, 100)]);
    assert_eq!(bench.read(DATA, 1500), with_num_buffers(frame(1, 1500), 1));
    assert_eq!(
        bench.read(DATA + 0x1000, 100),
        with_num_buffers(frame(3, 100), 1)
    );
}

#[test]
fn header_flags_are_for_drivers_that_know_them() {
    for (features, expected) in [(MERGE, 0), (MERGE | 1 << 1, 2)] {
        let mut bench = Bench::new(features);
        add_buffers(&mut bench, 1, 1536);
        let mut valid = frame(1, 60);
        valid[0] = 2;
        bench.peer.push(&valid);
        bench.wire_event();
        assert_eq!(bench.read(DATA, 1), [expected]);
    }
}

#[test]
fn a_batch_raises_one_interrupt() {
    let mut bench = Bench::new(MERGE);
    add_buffers(&mut bench, 32, 1536);
    for seed in 0..10 {
        bench.peer.push(&frame(seed, 80));
    }
    bench.wire_event();
    assert_eq!(bench.rx.take_used().len(), 10);
    assert_eq!(bench.interrupts.take(RX), 1);
    bench.wire_event();
    assert_eq!(bench.interrupts.take(RX), 0);
}

#[test]
fn interrupts_only_when_wanted() {
    let mut bench = Bench::new(MERGE | EVENT_IDX);
    add_buffers(&mut bench, 8, 1536);
    bench.rx.set_used_event(1);
    let mut raised = Vec::new();
    for seed in 0..4 {
        bench.peer.push(&frame(seed, 80));
        bench.wire_event();
        raised.push(bench.interrupts.take(RX));
    }
    assert_eq!(raised, [0, 1, 0, 0]);

    let mut bench = Bench::new(MERGE);
    add_buffers(&mut bench, 8, 1536);
    bench.rx.set_no_interrupt(true);
    bench.peer.push(&frame(1, 80));
    bench.wire_event();
    assert_eq!(bench.rx.take_used().len(), 1);
    assert_eq!(bench.interrupts.take(RX), 0);
}

#[test]
fn notifications_are_wanted_only_without_buffers() {
    let mut bench = Bench::new(MERGE);
    assert!(!bench.rx.no_notify());
    add_buffers(&mut bench, 8, 1536);
    bench.net.process_queue(RX).unwrap();
    assert!(bench.rx.no_notify());
    let calls = bench.peer.recv_calls();
    // Nothing waits on the wire, and the device knows.
    bench.net.process_queue(RX).unwrap();
    assert_eq!(bench.peer.recv_calls(), calls);
}

#[test]
fn work_is_bounded_and_goes_on() {
    let mut bench = Bench::new(MERGE);
    add_buffers(&mut bench, 250, 2048);
    for seed in 0..250 {
        bench.peer.push(&frame(seed, 100));
    }
    bench.wire_event();
    let first = bench.rx.take_used().len();
    assert!((1..250).contains(&first), "{first}");
    let mut calls = 0;
    while bench.again() {
        calls += 1;
        assert!(calls < 10);
    }
    assert_eq!(first + bench.rx.take_used().len(), 250);
    assert_eq!(bench.peer.waiting(), 0);
}

#[test]
fn frames_wait_for_a_driver_and_survive_its_reset() {
    let mut bench = Bench::new(MERGE);
    bench.peer.push(&frame(1, 80));
    bench.wire_event();
    bench.net.deactivate();
    bench.rx = DriverQueue::new(&bench.ram, 0x4_0000, 256);
    bench.activate(MERGE).unwrap();
    add_buffers(&mut bench, 1, 1536);
    // No event comes for a frame that was announced before.
    assert!(bench.again());
    assert_eq!(bench.rx.take_used(), [(0, 80)]);
}

#[test]
fn useless_chains_are_handed_back() {
    for features in [0, MERGE] {
        let mut bench = Bench::new(features);
        bench.rx.add(&[readable(DATA, 2048)]);
        bench.rx.add(&[writable(DATA, 0)]);
        bench.rx.add(&[writable(RAM_BYTES as u64 - 4, 5)]);
        bench.rx.add(&[writable(u64::MAX - 1, 2048)]);
        bench.rx.add(&[writable(DATA, 64), writable(1 << 40, 64)]);
        let good = bench.rx.add(&[readable(DATA, 9), writable(DATA, 2048)]);
        bench.peer.push(&frame(5, 90));
        bench.wire_event();
        let expected = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (good, 90)];
        assert_eq!(bench.rx.take_used(), expected);
        assert_eq!(bench.read(DATA, 90), with_num_buffers(frame(5, 90), 1));
    }
}

#[test]
fn a_descriptor_loop_ends() {
    let mut bench = Bench::new(MERGE);
    bench.rx.write_desc(0, DATA, 16, WRITE | NEXT, 1);
    bench.rx.write_desc(1, DATA + 16, 16, WRITE | NEXT, 0);
    bench.rx.make_available(0);
    bench.peer.push(&frame(1, 60));
    bench.wire_event();
    assert_eq!(bench.rx.take_used(), [(0, 60)]);
}

#[test]
fn an_indirect_table_of_many_small_buffers() {
    let mut bench = Bench::new(0);
    let buffers: Vec<_> = (0..200).map(|i| writable(DATA + 8 * i, 8)).collect();
    let head = bench.rx.add_indirect(DATA + 0x10000, &buffers);
    bench.peer.push(&frame(9, 1500));
    bench.wire_event();
    assert_eq!(bench.rx.take_used(), [(head, 1500)]);
    assert_eq!(bench.read(DATA, 1500), with_num_buffers(frame(9, 1500), 1));
}

#[test]
fn merged_buffers_smaller_than_the_header() {
    let mut bench = Bench::new(MERGE);
    for i in 0..64 {
        bench.rx.add(&[writable(DATA + i, 1)]);
    }
    bench.peer.push(&frame(1, 60));
    bench.wire_event();
    assert_eq!(bench.rx.take_used().len(), 60);
    assert_eq!(bench.read(DATA, 60), with_num_buffers(frame(1, 60), 60));
}

#[test]
fn a_broken_queue_is_reported() {
    let mut bench = Bench::new(MERGE);
    bench.rx.set_avail_idx(300);
    bench.peer.push(&frame(1, 60));
    let fd = bench.wire_fd;
    assert!(bench.net.process_backend(fd, EventSet::IN).is_err());

    let mut bench = Bench::new(MERGE);
    bench.rx.make_available(999);
    bench.peer.push(&frame(1, 60));
    let fd = bench.wire_fd;
    assert!(bench.net.process_backend(fd, EventSet::IN).is_err());
}

#[test]
fn a_frame_shorter_than_its_header_is_dropped() {
    let mut bench = Bench::new(MERGE);
    add_buffers(&mut bench, 4, 1536);
    bench.peer.push(&[0; 5]);
    bench.peer.push(&frame(1, 60));
    bench.wire_event();
    assert_eq!(bench.rx.take_used(), [(0, 60)]);
}
