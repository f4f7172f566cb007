//! The backend against a peer in the test's hands. Nothing here waits: both ends do not block.

use std::io::Write;

use super::*;

fn pair() -> (StreamNet, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (StreamNet::new(ours, "peer".into()).unwrap(), theirs)
}

/// A frame of that length, unlike any other of another length.
fn frame(len: usize) -> Vec<u8> {
    let mut seed = len;
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(31).wrapping_add(7);
        seed.to_le_bytes()[1]
    })
    .take(len)
    .collect()
}

fn on_wire(frame: &[u8]) -> Vec<u8> {
    let prefix = u32::try_from(frame.len()).unwrap().to_be_bytes();
    [&prefix[..], frame].concat()
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; VNET_HEADER_BYTES][..], frame].concat()
}

fn send_frame(net: &mut StreamNet, frame: &[u8]) -> io::Result<usize> {
    let mut bytes = with_header(frame);
    net.send(&[VolatileSlice::from(&mut bytes[..])])
}

/// The next frame, without its header; none if none waits.
fn recv_frame(net: &mut StreamNet) -> Option<Vec<u8>> {
    let mut room = vec![0xee; VNET_HEADER_BYTES + MAX_FRAME_BYTES];
    match net.recv(&[VolatileSlice::from(&mut room[..])]) {
        Ok(len) => {
            assert_eq!(room[..VNET_HEADER_BYTES], [0; VNET_HEADER_BYTES]);
            Some(room[VNET_HEADER_BYTES..len].to_vec())
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            None
        }
    }
}

fn read_all(peer: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 1 << 16];
    loop {
        match peer.read(&mut chunk) {
            Ok(0) => return all,
            Ok(count) => all.extend(&chunk[..count]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return all;
            }
        }
    }
}

#[test]
fn frames_sent_are_behind_their_length() {
    let (mut net, mut peer) = pair();
    assert_eq!(send_frame(&mut net, &frame(60)).unwrap(), 72);
    assert_eq!(send_frame(&mut net, &frame(14)).unwrap(), 26);
    let expected = [on_wire(&frame(60)), on_wire(&frame(14))].concat();
    assert_eq!(read_all(&mut peer), expected);
}

#[test]
fn a_frame_may_lie_in_any_pieces() {
    let bytes = with_header(&frame(20));
    for first in 0..=bytes.len() {
        for second in [first, first + 1, first + 5] {
            let second = second.min(bytes.len());
            let (mut net, mut peer) = pair();
            let mut copy = bytes.clone();
            let (a, rest) = copy.split_at_mut(first);
            let (b, c) = rest.split_at_mut(second - first);
            let slices = [a, b, c].map(VolatileSlice::from);
            assert_eq!(net.send(&slices).unwrap(), bytes.len());
            assert_eq!(read_all(&mut peer), on_wire(&frame(20)));

            peer.write_all(&on_wire(&frame(20))).unwrap();
            slices.iter().for_each(|slice| {
                slice.copy_from(&vec![0xee; slice.len()]);
            });
            assert_eq!(net.recv(&slices).unwrap(), bytes.len());
            assert_eq!(copy, bytes);
        }
    }
}

#[test]
fn the_stream_may_be_cut_anywhere() {
    let frames = [frame(14), frame(61), frame(3), frame(15)];
    let wire: Vec<u8> = frames.iter().flat_map(|frame| on_wire(frame)).collect();
    for first in 0..=wire.len() {
        for second in first..=wire.len() {
            let (mut net, mut peer) = pair();
            let mut received = Vec::new();
            for part in [&wire[..first], &wire[first..second], &wire[second..]] {
                peer.write_all(part).unwrap();
                received.extend(std::iter::from_fn(|| recv_frame(&mut net)));
            }
            // What is too short to be a frame is left out.
            let expected = [frame(14), frame(61), frame(15)];
            assert_eq!(received, expected, "cut at {first} and {second}");
            assert!(!net.gone);
        }
    }
}

#[test]
fn the_longest_frames_cross_both_ways() {
    let (mut net, mut peer) = pair();
    let longest = frame(MAX_FRAME_BYTES);
    for _ in 0..5 {
        send_frame(&mut net, &longest).unwrap();
        let wire = read_all(&mut peer);
        assert_eq!(wire, on_wire(&longest));
        peer.write_all(&wire).unwrap();
        // So that the next ones lie across the end of the buffer.
        peer.write_all(&on_wire(&frame(99))).unwrap();
        assert_eq!(recv_frame(&mut net).unwrap(), longest);
        assert_eq!(recv_frame(&mut net).unwrap(), frame(99));
        assert_eq!(recv_frame(&mut net), None);
    }
}

#[test]
fn a_frame_longer_than_the_room_is_cut() {
    let (mut net, mut peer) = pair();
    peer.write_all(&on_wire(&frame(60))).unwrap();
    peer.write_all(&on_wire(&frame(30))).unwrap();
    let mut room = [0; 40];
    assert_eq!(net.recv(&[VolatileSlice::from(&mut room[..])]).unwrap(), 40);
    assert_eq!(room[VNET_HEADER_BYTES..], frame(60)[..28]);
    assert_eq!(recv_frame(&mut net).unwrap(), frame(30));
}

#[test]
fn a_length_beyond_all_frames_cuts_the_link() {
    for len in [65_536_u32, 0x8000_0000, u32::MAX] {
        let (mut net, mut peer) = pair();
        peer.write_all(&on_wire(&frame(60))).unwrap();
        peer.write_all(&len.to_be_bytes()).unwrap();
        peer.write_all(&frame(1000)).unwrap();
        assert_eq!(recv_frame(&mut net).unwrap(), frame(60));
        assert_eq!(recv_frame(&mut net), None);
        assert!(net.gone);
        // The guest goes on, without a network.
        assert_eq!(send_frame(&mut net, &frame(60)).unwrap(), 72);
        assert_eq!(recv_frame(&mut net), None);
        assert_eq!(read_all(&mut peer), b"");
    }
}

#[test]
fn no_length_at_all_is_no_frame() {
    let (mut net, mut peer) = pair();
    peer.write_all(&[0; 40]).unwrap();
    assert_eq!(recv_frame(&mut net), None);
    peer.write_all(&on_wire(&frame(60))).unwrap();
    assert_eq!(recv_frame(&mut net).unwrap(), frame(60));
}

#[test]
fn a_peer_that_ends_is_a_pulled_cable() {
    // Noticed when receiving, after what it sent before.
    let (mut net, mut peer) = pair();
    peer.write_all(&on_wire(&frame(60))).unwrap();
    peer.write_all(&on_wire(&frame(70))[..40]).unwrap();
    drop(peer);
    assert_eq!(recv_frame(&mut net).unwrap(), frame(60));
    assert_eq!(recv_frame(&mut net), None);
    assert!(net.gone);
    assert!(send_frame(&mut net, &frame(60)).is_ok());

    // Noticed when sending.
    let (mut net, peer) = pair();
    drop(peer);
    assert!(send_frame(&mut net, &frame(60)).is_ok());
    assert!(net.gone);
    assert_eq!(recv_frame(&mut net), None);
}

#[test]
fn a_peer_that_does_not_read_holds_frames_up_and_loses_none() {
    let (mut net, mut peer) = pair();
    // Lengths at which the socket is full in the middle of a frame, and between frames.
    for lengths in [&[1514][..], &[MAX_FRAME_BYTES], &[60, MAX_FRAME_BYTES, 999]] {
        let mut expected = Vec::new();
        let mut wire = Vec::new();
        let mut blocked = 0;
        for i in 0..3000_usize {
            let next = frame(lengths[i % lengths.len()]);
            expected.extend(on_wire(&next));
            while let Err(error) = send_frame(&mut net, &next) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                blocked += 1;
                // It reads a little, then everything.
                let mut some = vec![0; 7 * (blocked % 3) + 1];
                let count = peer.read(&mut some).unwrap();
                wire.extend(&some[..count]);
                if blocked % 4 == 0 {
                    wire.extend(read_all(&mut peer));
                }
            }
            if wire.len() > 1 << 20 {
                assert_eq!(wire, expected[..wire.len()]);
                expected.drain(..wire.len());
                wire.clear();
            }
        }
        wire.extend(read_all(&mut peer));
        assert!(wire == expected, "the stream is not that of the frames");
        assert!(blocked > 0);
    }
}

#[test]
fn a_frame_that_was_begun_is_finished_before_another() {
    let (mut net, mut peer) = pair();
    let long = frame(MAX_FRAME_BYTES);
    let mut whole = 0;
    while send_frame(&mut net, &long).is_ok() {
        whole += 1;
    }
    assert!(net.sent > 0, "the socket was full between two frames");
    // The driver was reset: the frame does not come again, another one does.
    let mut wire = read_all(&mut peer);
    send_frame(&mut net, &frame(60)).unwrap();
    wire.extend(read_all(&mut peer));
    let expected = [on_wire(&long).repeat(whole + 1), on_wire(&frame(60))].concat();
    assert!(wire == expected);
}

#[test]
fn what_is_no_frame_is_refused_and_the_next_is_sent() {
    let (mut net, mut peer) = pair();
    for len in [0, 1, MIN_FRAME_BYTES - 1, MAX_FRAME_BYTES + 1, 200_000] {
        let error = send_frame(&mut net, &frame(len)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{len}");
    }
    // A header cut short.
    assert!(net.send(&[VolatileSlice::from(&mut [0; 5][..])]).is_err());
    assert!(net.send(&[]).is_err());
    // A checksum outside.
    let mut bytes = with_header(&frame(60));
    bytes[0] = 1;
    bytes[6] = 59;
    assert!(net.send(&[VolatileSlice::from(&mut bytes[..])]).is_err());
    send_frame(&mut net, &frame(60)).unwrap();
    assert_eq!(read_all(&mut peer), on_wire(&frame(60)));
}

#[test]
fn a_checksum_left_to_us_is_completed() {
    let (mut net, mut peer) = pair();
    let mut bytes = with_header(&frame(60));
    bytes[0] = 1;
    // UDP over IPv4: summed from byte 34, the field at 40.
    bytes[6] = 34;
    bytes[8] = 6;
    let mut expected = frame(60);
    net.send(&[VolatileSlice::from(&mut bytes[..])]).unwrap();
    let words = expected[34..].chunks(2);
    let mut sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    let field = !u16::try_from(sum).unwrap();
    expected[40..42].copy_from_slice(&field.to_be_bytes());
    assert_eq!(read_all(&mut peer), on_wire(&expected));
}
