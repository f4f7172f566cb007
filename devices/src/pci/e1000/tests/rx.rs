//! Receiving.

use super::*;

const EOP: u8 = 2;
const IXSM: u8 = 4;
const VP: u8 = 8;
const TCPCS: u8 = 0x20;
const IPCS: u8 = 0x40;
const PIF: u8 = 0x80;
const TCPE: u8 = 0x20;
const IPE: u8 = 0x40;

#[test]
fn a_frame_and_its_interrupt() {
    let mut bench = Bench::new();
    let frame = frame_to(MAC, 200);
    bench.arrive(&frame);
    assert!(bench.pin.level());
    assert_eq!(bench.read(ICR), ICR_RXT0);
    let received = bench.next_received().unwrap();
    assert_eq!(received.data, [&frame[..], &[0; 4]].concat());
    assert_eq!((received.status & 3, received.errors), (3, 0));
    assert_eq!(bench.read(RDBAL + 0x10), 1);
    bench.write(RCTL, RCTL_EN | RCTL_SECRC);
    bench.arrive(&frame);
    assert_eq!(bench.next_received().unwrap().data, frame);
    // Short ones are padded.
    bench.arrive(&frame[..20]);
    let padded = bench.next_received().unwrap().data;
    assert_eq!((padded.len(), &padded[20..]), (60, &[0; 40][..]));
}

#[test]
fn a_long_frame_in_many_buffers() {
    let mut bench = Bench::new();
    let frame = frame_to(MAC, 9014);
    bench.arrive(&frame);
    assert!(bench.next_received().is_none(), "long packets are off");
    assert_eq!(bench.read(0x40ac), 1);
    bench.write(RCTL, RCTL_EN | RCTL_LPE | RCTL_SECRC);
    bench.arrive(&frame);
    let mut all = Vec::new();
    for i in 0..5 {
        let part = bench.next_received().unwrap();
        assert_eq!(part.status & EOP != 0, i == 4);
        all.extend(part.data);
    }
    assert!(all == frame);
    // In one buffer of 16 KiB; and one byte too many.
    let size_16k = RCTL_BSEX | 1 << RCTL_BSIZE_SHIFT;
    bench.write(RCTL, RCTL_EN | RCTL_LPE | RCTL_SECRC | size_16k);
    bench.arrive(&frame_to(MAC, 16_380));
    assert_eq!(bench.next_received().unwrap().data.len(), 16_380);
    bench.arrive(&frame_to(MAC, 16_381));
    assert!(bench.next_received().is_none());
}

#[test]
fn the_standard_limit_is_1522() {
    let mut bench = Bench::new();
    bench.arrive(&frame_to(MAC, 1518));
    bench.arrive(&frame_to(MAC, 1519));
    assert_eq!(bench.next_received().unwrap().data.len(), 1522);
    assert!(bench.next_received().is_none());
}

#[test]
fn buffer_sizes() {
    for (extended, code, size) in [
        (false, 0, 2048),
        (false, 1, 1024),
        (false, 2, 512),
        (false, 3, 256),
        (true, 1, 16_384),
        (true, 2, 8192),
        (true, 3, 4096),
    ] {
        let mut bench = Bench::new();
        let bsex = if extended { RCTL_BSEX } else { 0 };
        bench.write(RCTL, RCTL_EN | RCTL_LPE | bsex | code << RCTL_BSIZE_SHIFT);
        bench.arrive(&frame_to(MAC, 3000));
        let mut left: usize = 3004;
        while left > 0 {
            let part = bench.next_received().unwrap().data.len();
            assert_eq!(part, left.min(size));
            left -= part;
        }
    }
}

/// Whether a frame to `to` gets through.
fn passes(bench: &mut Bench, to: [u8; 6]) -> bool {
    bench.arrive(&frame_to(to, 60));
    let next = bench.read(RDBAL + 0x10);
    bench.write(RDT, (next + RING_SIZE - 1) % RING_SIZE);
    bench.next_received().is_some()
}

#[test]
fn address_filters() {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 0xfb];
    const ALL: [u8; 6] = [0xff; 6];
    let mut bench = Bench::new();
    for (rctl, expected) in [
        (0, [true, false, false, false]),
        (RCTL_BAM, [true, false, false, true]),
        (RCTL_UPE, [true, true, false, false]),
        (RCTL_MPE, [true, false, true, true]),
    ] {
        bench.write(RCTL, RCTL_EN | rctl);
        let got = [MAC, OTHER, GROUP, ALL].map(|to| passes(&mut bench, to));
        assert_eq!(got, expected, "{rctl:#x}");
    }
    bench.write(RCTL, RCTL_EN);
    // A second address, and the same one not valid.
    bench.write(RAL + 8, 2);
    bench.write(RAL + 12, 0x8000_0100);
    assert!(passes(&mut bench, OTHER));
    bench.write(RAL + 12, 0x0000_0100);
    assert!(!passes(&mut bench, OTHER));
}

#[test]
fn the_hash_of_multicast_addresses() {
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0x00, 0x12, 0xab];
    for (offset, shift) in [(0_u32, 4), (1, 3), (2, 2), (3, 0)] {
        let mut bench = Bench::new();
        bench.write(RCTL, RCTL_EN | offset << RCTL_MO_SHIFT);
        assert!(!passes(&mut bench, GROUP));
        let hash = 0xab12_u32 >> shift & 0xfff;
        bench.write(MTA + (hash >> 5) * 4, 1 << (hash & 31));
        bench.arrive(&frame_to(GROUP, 60));
        assert_ne!(bench.next_received().unwrap().status & PIF, 0, "{offset}");
    }
}

fn tagged(id: u16) -> Vec<u8> {
    let mut frame = frame_to(MAC, 100);
    frame[12..14].copy_from_slice(&[0x81, 0]);
    frame[14..16].copy_from_slice(&id.to_be_bytes());
    frame
}

#[test]
fn tags_are_stripped_and_filtered() {
    let mut bench = Bench::new();
    bench.arrive(&tagged(0x6123));
    let whole = bench.next_received().unwrap();
    assert_eq!((whole.data.len(), whole.status & VP), (104, 0));
    bench.write(CTRL, CTRL_VME);
    bench.arrive(&tagged(0x6123));
    let stripped = bench.next_received().unwrap();
    assert_eq!((stripped.data.len(), stripped.tag), (100, 0x6123));
    assert_ne!(stripped.status & VP, 0);
    assert_eq!(stripped.data[12..96], tagged(0)[16..]);

    bench.write(RCTL, RCTL_EN | RCTL_VFE);
    bench.arrive(&tagged(0x123));
    assert!(bench.next_received().is_none());
    bench.write(VFTA + (0x123 >> 5) * 4, 1 << (0x123 & 31));
    bench.arrive(&tagged(0x123));
    assert!(bench.next_received().is_some());
    bench.write(RCTL, RCTL_EN | RCTL_VFE | RCTL_CFIEN | RCTL_CFI);
    bench.arrive(&tagged(0x123));
    assert!(bench.next_received().is_none());
    bench.arrive(&tagged(0x1123));
    assert!(bench.next_received().is_some());
}

/// A UDP datagram over IPv4 with right checksums.
fn datagram() -> Vec<u8> {
    use crate::net::checksum::{add, add_word};
    let mut frame = frame_to(MAC, 14);
    frame[12..].copy_from_slice(&[8, 0]);
    frame.extend([
        0x45, 0, 0, 40, 0, 9, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame.extend([
        1, 2, 3, 4, 0, 20, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
    ]);
    let sum = !add(0, &frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let pseudo = add_word(add(17, &frame[26..34]), 20);
    let sum = !add(pseudo, &frame[34..]);
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn checksums_are_looked_at_when_asked() {
    let mut bench = Bench::new();
    let good = datagram();
    let mut receive = |header: [u8; 12], frame: &[u8]| {
        bench.arrive_with(header, frame);
        let received = bench.next_received().unwrap();
        (received.status & !3, received.errors, received.data)
    };
    assert_eq!(receive([0; 12], &good).0, IXSM);
    bench.write(RXCSUM, RXCSUM_IPOFL | RXCSUM_TUOFL);
    let mut receive = |header: [u8; 12], frame: &[u8]| {
        bench.arrive_with(header, frame);
        let received = bench.next_received().unwrap();
        (received.status & !3, received.errors, received.data)
    };
    let (status, errors, _) = receive([0; 12], &good);
    assert_eq!((status, errors), (IPCS | TCPCS, 0));
    let mut bad = good.clone();
    bad[50] ^= 1;
    assert_eq!(receive([0; 12], &bad).1, TCPE);
    // The host says that it has looked.
    assert_eq!(receive([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &bad).1, 0);
    bad[15] ^= 1;
    assert_eq!(receive([0; 12], &bad).1, TCPE | IPE);
    // No checksum, no IP, a fragment.
    let mut none = good.clone();
    none[40..42].fill(0);
    assert_eq!(receive([0; 12], &none).0, IPCS);
    assert_eq!(receive([0; 12], &frame_to(MAC, 100)).0, IXSM);
    let mut fragment = good.clone();
    fragment[20] = 0x20;
    assert_eq!(receive([0; 12], &fragment).0, IPCS);
    // Lengths that lie.
    let mut cut = good.clone();
    cut[16] = 0xff;
    assert_eq!(receive([0; 12], &cut).0, IPCS);
    cut[14] = 0x4f;
    assert_eq!(receive([0; 12], &cut[..40]).0, IXSM);
}

#[test]
fn a_checksum_that_the_host_left_out_is_filled_in() {
    let mut bench = Bench::new();
    bench.write(RXCSUM, RXCSUM_TUOFL);
    let good = datagram();
    let mut partial = good.clone();
    let pseudo = crate::net::checksum::add_word(crate::net::checksum::add(17, &good[26..34]), 20);
    partial[40..42].copy_from_slice(&pseudo.to_be_bytes());
    bench.arrive_with([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], &partial);
    let received = bench.next_received().unwrap();
    assert_eq!((received.status & TCPCS, received.errors), (TCPCS, 0));
    assert_eq!(received.data[..good.len()], good);
    // Beyond the frame: nothing is touched.
    bench.arrive_with([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], &partial);
    assert_eq!(bench.next_received().unwrap().errors, TCPE);
}

#[test]
fn the_packet_checksum_starts_where_it_is_told() {
    let mut bench = Bench::new();
    bench.write(RXCSUM, 14);
    let frame = frame_to(MAC, 100);
    bench.arrive(&frame);
    let expected = crate::net::checksum::add(0, &frame[14..]);
    assert_eq!(bench.next_received().unwrap().checksum, expected);
}

#[test]
fn out_of_descriptors() {
    let mut bench = Bench::new();
    for _ in 0..RING_SIZE + 4 {
        bench.arrive(&frame_to(MAC, 60));
    }
    // Half of the ring left raises RXDMT0 once.
    let causes = bench.read(ICR);
    assert_eq!(causes & (ICR_RXDMT0 | ICR_RXT0), ICR_RXDMT0 | ICR_RXT0);
    let received = std::iter::from_fn(|| bench.next_received()).count();
    assert_eq!(received, RING_SIZE as usize - 1);
    assert_eq!(bench.peer.waiting(), 5);
    // The device looks again by itself, in case a write is posted.
    assert!(lock(&bench.nic.state).look.is_some());
    bench.write(RDT, 3);
    assert!(bench.again());
    assert_eq!(std::iter::from_fn(|| bench.next_received()).count(), 4);
    assert_eq!(bench.peer.waiting(), 1);
    bench.write(RDT, 10);
    assert!(bench.again());
    assert_eq!(bench.peer.waiting(), 0);
    assert!(lock(&bench.nic.state).look.is_none());
    // With nothing waiting, giving descriptors costs no turn of the event loop.
    bench.write(RDT, 12);
    assert!(!bench.again());
}

#[test]
fn a_frame_waits_until_it_fits_as_a_whole() {
    let mut bench = Bench::new();
    bench.write(RCTL, RCTL_EN | RCTL_LPE);
    // It takes five descriptors.
    bench.write(RDT, 4);
    bench.arrive(&frame_to(MAC, 9000));
    assert!(bench.next_received().is_none());
    assert_eq!(bench.read(ICR), ICR_RXO);
    assert_eq!(bench.read(0x40a0), 1);
    bench.write(RDT, 5);
    assert!(bench.again());
    assert_eq!(std::iter::from_fn(|| bench.next_received()).count(), 5);
}

#[test]
fn disabled_or_without_bus_mastering_frames_stay() {
    let mut bench = Bench::new();
    bench.write(RCTL, 0);
    bench.arrive(&frame_to(MAC, 60));
    assert_eq!(bench.peer.waiting(), 1);
    bench.set_command(0);
    bench.write(RCTL, RCTL_EN);
    bench.again();
    assert_eq!(bench.peer.waiting(), 1);
    bench.set_command(COMMAND_BUS_MASTER);
    assert!(bench.again());
    assert!(bench.next_received().is_some());
}

#[test]
fn work_is_bounded_and_goes_on() {
    let bench = Bench::new();
    // Not for this adapter, so that no descriptor is used.
    for _ in 0..200 {
        bench
            .peer
            .push(&[&[0; 12][..], &frame_to([2; 6], 60)].concat());
    }
    bench.nic.process_backend(EventSet::IN);
    assert!((1..200).contains(&bench.peer.waiting()));
    while bench.again() {}
    assert_eq!(bench.peer.waiting(), 0);
}
