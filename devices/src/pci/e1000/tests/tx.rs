//! Transmitting.

use std::io::ErrorKind;

use super::*;
use crate::net::checksum;

pub const EOP: u8 = 1;
const IC: u8 = 4;
const TSE: u8 = 4;
pub const RS: u8 = 8;
const DEXT: u8 = 0x20;
const VLE: u8 = 0x40;
const IDE: u8 = 0x80;
const IXSM: u8 = 1;
const TXSM: u8 = 2;

pub fn legacy(addr: u64, len: u16, command: u8) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&addr.to_le_bytes());
    descriptor[8..10].copy_from_slice(&len.to_le_bytes());
    descriptor[11] = command;
    descriptor
}

pub fn data(addr: u64, len: u32, command: u8, options: u8) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&addr.to_le_bytes());
    descriptor[8..12].copy_from_slice(&(len | 1 << 20).to_le_bytes());
    descriptor[11] = command | DEXT;
    descriptor[13] = options;
    descriptor
}

/// A context: IP and transport offsets, TUCMD, header length, MSS.
pub fn context(ip: [u8; 3], transport: [u8; 3], command: u8, header: u8, mss: u16) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..3].copy_from_slice(&ip);
    descriptor[4..7].copy_from_slice(&transport);
    descriptor[11] = command | DEXT;
    descriptor[13] = header;
    descriptor[14..].copy_from_slice(&mss.to_le_bytes());
    descriptor
}

/// An IPv4 packet in a frame, as a driver prepares it for offloading: no lengths, no IP checksum, the sum of the
/// pseudo-header without the length.
fn ipv4_frame(protocol: u8, payload: usize) -> Vec<u8> {
    let mut frame = frame_to([2; 6], 14);
    frame[12..].copy_from_slice(&[8, 0]);
    frame.extend([
        0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    let pseudo = checksum::add(u16::from(protocol), &frame[26..34]).to_be_bytes();
    if protocol == 6 {
        frame.extend([1, 2, 3, 4, 0, 0, 0, 100, 0, 0, 0, 7, 0x50, 0x19, 0xff, 0xff]);
        frame.extend([pseudo[0], pseudo[1], 0, 0]);
    } else {
        frame.extend([1, 2, 3, 4, 0, 0, pseudo[0], pseudo[1]]);
    }
    frame.extend((0..payload).map(|i| (i * 13 + i / 255) as u8));
    frame
}

/// Whether all checksums of an IPv4 frame are right.
fn all_right(frame: &[u8]) -> bool {
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let pseudo = checksum::add(u16::from(frame[23]), &frame[26..34]);
    let pseudo = checksum::add_word(pseudo, (total - 20) as u16);
    checksum::add(0, &frame[14..34]) == 0xffff
        && total == frame.len() - 14
        && checksum::add(pseudo, &frame[34..]) == 0xffff
}

/// Does what a sent frame's header leaves to the receiver.
fn completed(sent: &[u8]) -> Vec<u8> {
    let mut frame = sent[12..].to_vec();
    if sent[0] & 1 != 0 {
        let start = usize::from(u16::from_le_bytes([sent[6], sent[7]]));
        let field = start + usize::from(u16::from_le_bytes([sent[8], sent[9]]));
        let sum = !checksum::add(0, &frame[start..]);
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

#[test]
fn a_frame_in_pieces() {
    let mut bench = Bench::new();
    let frame = frame_to([2; 6], 1000);
    bench.put(TX_DATA, &frame);
    bench.send(&[
        legacy(TX_DATA, 10, 0),
        legacy(0, 0, RS),
        legacy(TX_DATA + 10, 990, EOP | RS),
    ]);
    let sent = bench.peer.take_sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0], [&[0; 12][..], &frame].concat());
    // Written back where that was asked for.
    let done: Vec<u8> = (0..3)
        .map(|i| bench.get(TX_RING + i * 16 + 12, 1)[0])
        .collect();
    assert_eq!(done, [0, 1, 1]);
    assert_eq!(bench.read(TDBAL + 0x10), 3);
    assert!(bench.pin.level());
    assert_eq!(bench.read(ICR), ICR_TXDW | ICR_TXQE);
}

#[test]
fn without_rs_there_is_no_report() {
    let mut bench = Bench::new();
    bench.send(&[legacy(TX_DATA, 60, EOP)]);
    assert_eq!(bench.read(ICR), ICR_TXQE);
    assert_eq!(bench.get(TX_RING + 12, 1), [0]);
    // A delayed one waits for its timer.
    bench.write(TIDV, 0xffff);
    bench.send(&[legacy(TX_DATA, 60, EOP | RS | IDE)]);
    assert_eq!(bench.read(ICS) & ICR_TXDW, 0);
    assert_eq!(bench.get(TX_RING + 16 + 12, 1), [1]);
}

#[test]
fn the_ring_goes_round() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        bench.send(&[legacy(TX_DATA, 60, EOP); 7]);
        assert_eq!(bench.peer.take_sent().len(), 7);
    }
    assert_eq!(bench.read(TDBAL + 0x10), 35 % RING_SIZE);
}

#[test]
fn a_legacy_checksum() {
    let mut bench = Bench::new();
    let frame = ipv4_frame(17, 32);
    bench.put(TX_DATA, &frame);
    let mut descriptor = legacy(TX_DATA, frame.len() as u16, EOP | IC);
    (descriptor[10], descriptor[13]) = (40, 34);
    bench.send(&[descriptor]);
    let sent = bench.peer.take_sent();
    assert_eq!(sent[0][..10], [1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    // Where none can be, none is put.
    (descriptor[10], descriptor[13]) = (200, 34);
    bench.send(&[descriptor]);
    assert_eq!(bench.peer.take_sent()[0], [&[0; 12][..], &frame].concat());
}

#[test]
fn checksums_by_context() {
    let mut bench = Bench::new();
    let mut frame = ipv4_frame(6, 100);
    // Not segmented: the lengths are the driver's.
    frame[16..18].copy_from_slice(&140_u16.to_be_bytes());
    let sum = u16::from_be_bytes([frame[50], frame[51]]);
    frame[50..52].copy_from_slice(&checksum::add_word(sum, 120).to_be_bytes());
    bench.put(TX_DATA, &frame);
    let context = context([14, 24, 33], [34, 50, 0], 0, 0, 0);
    let data = data(TX_DATA, frame.len() as u32, EOP, IXSM | TXSM);
    bench.send(&[context, data]);
    let sent = bench.peer.take_sent();
    assert_eq!(sent[0][0], 1);
    assert!(all_right(&completed(&sent[0])));
    // A checksum of a part cannot be left to others.
    let last = frame.len() - 1;
    let mut part = context;
    part[6..8].copy_from_slice(&(last as u16).to_le_bytes());
    bench.send(&[part, data]);
    let sent = bench.peer.take_sent();
    assert_eq!(sent[0][0], 0);
    assert!(all_right(&sent[0][12..]));
}

#[test]
fn tcp_segmentation_is_left_to_the_backend() {
    let mut bench = Bench::new();
    let frame = ipv4_frame(6, 5000);
    bench.put(TX_DATA, &frame);
    bench.send(&[
        context([14, 24, 33], [34, 50, 0], TSE | 3, 54, 1460),
        data(TX_DATA, 54, TSE, IXSM | TXSM),
        data(TX_DATA + 54, 5000, EOP | TSE | RS, 0),
    ]);
    let sent = bench.peer.take_sent();
    assert_eq!(sent.len(), 1);
    // NEEDS_CSUM, TCPv4, header of 54, segments of 1460, checksum from 34 at 16.
    assert_eq!(sent[0][..10], [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0]);
    assert!(all_right(&completed(&sent[0])));
    assert_eq!(bench.read(0x4080), 4);
    assert_eq!(bench.read(0x40f8), 1);
}

#[test]
fn segmentation_in_the_device() {
    // UDP; and TCP when it comes back by loopback.
    for protocol in [17_u8, 6] {
        let mut bench = Bench::new();
        let tcp = protocol == 6;
        if tcp {
            bench.write(RCTL, RCTL_EN | RCTL_LBM | RCTL_UPE | RCTL_MPE);
        }
        let frame = ipv4_frame(protocol, 2500);
        bench.put(TX_DATA, &frame);
        let (header, field) = if tcp { (54, 50) } else { (42, 40) };
        bench.send(&[
            context(
                [14, 24, 33],
                [34, field, 0],
                TSE | 2 | u8::from(tcp),
                header,
                1000,
            ),
            data(TX_DATA, frame.len() as u32, EOP | TSE, IXSM | TXSM),
        ]);
        let segments: Vec<Vec<u8>> = if tcp {
            bench.again();
            let mut next = || bench.next_received().map(|received| received.data);
            std::iter::from_fn(&mut next)
                .map(|data| data[..data.len() - 4].to_vec())
                .collect()
        } else {
            bench
                .peer
                .take_sent()
                .iter()
                .map(|sent| completed(sent))
                .collect()
        };
        assert_eq!(segments.len(), 3);
        let mut payload: Vec<u8> = Vec::new();
        for (i, segment) in segments.iter().enumerate() {
            assert!(all_right(segment), "{protocol} {i}");
            assert_eq!(segment[19], 9 + i as u8);
            if tcp {
                let sequence = u32::from_be_bytes(segment[38..42].try_into().unwrap());
                assert_eq!(sequence, 100 + 1000 * i as u32);
                let flags = if i == 2 { 0x19 } else { 0x10 };
                assert_eq!(segment[47], flags);
            } else {
                assert_eq!(segment[38..40], (segment.len() as u16 - 34).to_be_bytes());
            }
            payload.extend(&segment[usize::from(header)..]);
        }
        assert!(payload == frame[usize::from(header)..]);
    }
}

#[test]
fn segments_wait_for_a_full_backend() {
    let mut bench = Bench::new();
    let frame = ipv4_frame(17, 2500);
    bench.put(TX_DATA, &frame);
    bench.peer.refuse_send(Some(ErrorKind::WouldBlock));
    bench.send(&[
        context([14, 24, 33], [34, 40, 0], TSE | 2, 42, 1000),
        data(TX_DATA, frame.len() as u32, EOP | TSE | RS, IXSM | TXSM),
    ]);
    assert_eq!(bench.read(TDBAL + 0x10), 1);
    bench.peer.refuse_send(None);
    bench.nic.process_backend(EventSet::OUT);
    let sent = bench.peer.take_sent();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|sent| all_right(&completed(sent))));
    assert_eq!(bench.read(TDBAL + 0x10), 2);
}

#[test]
fn a_tag_is_inserted() {
    let mut bench = Bench::new();
    bench.write(CTRL, CTRL_VME);
    let mut frame = ipv4_frame(17, 32);
    bench.put(TX_DATA, &frame);
    let mut descriptor = legacy(TX_DATA, frame.len() as u16, EOP | IC | VLE);
    (descriptor[10], descriptor[13]) = (40, 34);
    descriptor[14..].copy_from_slice(&0x6123_u16.to_le_bytes());
    bench.send(&[descriptor]);
    frame.splice(12..12, [0x81, 0, 0x61, 0x23]);
    let sent = bench.peer.take_sent();
    assert_eq!(sent[0][12..], frame);
    assert_eq!(sent[0][6..8], [38, 0]);
    // Not without VLE, nor without VME.
    descriptor[11] &= !VLE;
    bench.send(&[descriptor]);
    bench.write(CTRL, 0);
    descriptor[11] |= VLE;
    bench.send(&[descriptor]);
    assert!(bench.peer.take_sent().iter().all(|sent| sent[24] == 8));
}

#[test]
fn short_frames_are_padded_on_request() {
    let mut bench = Bench::new();
    bench.send(&[legacy(TX_DATA, 20, EOP)]);
    bench.write(TCTL, TCTL_EN | TCTL_PSP);
    bench.send(&[legacy(TX_DATA, 20, EOP)]);
    let lengths: Vec<_> = bench.peer.take_sent().iter().map(Vec::len).collect();
    assert_eq!(lengths, [32, 72]);
}

#[test]
fn a_full_backend_is_waited_for() {
    let mut bench = Bench::new();
    bench.peer.refuse_send(Some(ErrorKind::WouldBlock));
    bench.send(&[legacy(TX_DATA, 60, EOP | RS), legacy(TX_DATA, 70, EOP | RS)]);
    assert_eq!(bench.read(TDBAL + 0x10), 0);
    assert!(!bench.pin.level());
    bench.peer.refuse_send(None);
    bench.nic.process_backend(EventSet::OUT);
    let lengths: Vec<_> = bench.peer.take_sent().iter().map(Vec::len).collect();
    assert_eq!(lengths, [72, 82]);
    assert!(bench.pin.level());
}

#[test]
fn a_frame_refused_by_the_host_is_dropped() {
    let mut bench = Bench::new();
    bench.peer.refuse_send(Some(ErrorKind::InvalidInput));
    bench.send(&[legacy(TX_DATA, 60, EOP | RS)]);
    assert_eq!(bench.get(TX_RING + 12, 1), [1]);
}

#[test]
fn disabled_or_without_bus_mastering_nothing_is_sent() {
    let mut bench = Bench::new();
    bench.write(TCTL, 0);
    bench.send(&[legacy(TX_DATA, 60, EOP)]);
    assert!(bench.peer.take_sent().is_empty());
    bench.set_command(0);
    bench.write(TCTL, TCTL_EN);
    assert!(bench.peer.take_sent().is_empty());
    bench.set_command(COMMAND_BUS_MASTER);
    assert!(bench.again());
    assert_eq!(bench.peer.take_sent().len(), 1);
}
