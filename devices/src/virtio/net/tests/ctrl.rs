//! Control commands.

use super::*;
use crate::virtio::test_driver::{NEXT, readable, writable};

const ACK: u64 = DATA + 0x8000;
const OK: u8 = 0;
const ERR: u8 = 1;
/// `CTRL_VQ`, `CTRL_RX`, `CTRL_RX_EXTRA`, `CTRL_MAC_ADDR`, `CTRL_GUEST_OFFLOADS`, `GUEST_CSUM`, `GUEST_TSO4`.
const ALL: u64 = 1 << 17 | 1 << 18 | 1 << 20 | 1 << 23 | 1 << 2 | 1 << 1 | 1 << 7;

/// Sends a command in one buffer and returns the answer.
fn command(bench: &mut Bench, bytes: &[u8]) -> u8 {
    bench.write(DATA, bytes);
    bench.write(ACK, &[0xee]);
    let len = u32::try_from(bytes.len()).unwrap();
    let head = bench.ctrl.add(&[readable(DATA, len), writable(ACK, 1)]);
    bench.net.process_queue(CTRL).unwrap();
    assert_eq!(bench.ctrl.take_used(), [(head, 1)]);
    assert_eq!(bench.interrupts.take(CTRL), 1);
    bench.read(ACK, 1)[0]
}

#[test]
fn receive_modes() {
    let mut bench = Bench::new(ALL);
    for mode in 0..=5 {
        assert_eq!(command(&mut bench, &[0, mode, 1]), OK, "{mode}");
        assert_eq!(command(&mut bench, &[0, mode, 0]), OK, "{mode}");
        assert_eq!(command(&mut bench, &[0, mode, 2]), ERR, "{mode}");
        assert_eq!(command(&mut bench, &[0, mode]), ERR, "{mode}");
        assert_eq!(command(&mut bench, &[0, mode, 1, 1]), ERR, "{mode}");
    }
    assert_eq!(command(&mut bench, &[0, 6, 1]), ERR);
    let mut bench = Bench::new(1 << 17 | 1 << 18);
    assert_eq!(command(&mut bench, &[0, 1, 1]), OK);
    assert_eq!(command(&mut bench, &[0, 2, 1]), ERR);
}

#[test]
fn mac_tables() {
    let mut bench = Bench::new(ALL);
    let table = |counts: [u32; 2], bytes: usize| {
        let mut command = vec![1, 0];
        command.extend(counts[0].to_le_bytes());
        command.extend(vec![2; 6 * counts[0].min(10) as usize]);
        command.extend(counts[1].to_le_bytes());
        command.extend(vec![2; bytes]);
        command
    };
    assert_eq!(command(&mut bench, &table([0, 0], 0)), OK);
    assert_eq!(command(&mut bench, &table([3, 2], 12)), OK);
    assert_eq!(command(&mut bench, &table([3, 2], 11)), ERR);
    assert_eq!(command(&mut bench, &table([3, 2], 13)), ERR);
    assert_eq!(command(&mut bench, &table([u32::MAX, 0], 0)), ERR);
    assert_eq!(command(&mut bench, &table([0, u32::MAX], 0)), ERR);
    assert_eq!(command(&mut bench, &[1, 0, 0, 0]), ERR);
}

#[test]
fn the_address_is_set_until_reset() {
    let mut bench = Bench::new(ALL);
    assert_eq!(command(&mut bench, &[1, 1, 2, 4, 6, 8, 10, 12]), OK);
    let mut mac = [0; 6];
    bench.net.read_config(0, &mut mac);
    assert_eq!(mac, [2, 4, 6, 8, 10, 12]);
    // Multicast, zero, too short, too long.
    for bad in [
        &[1, 1, 3, 4, 6, 8, 10, 12][..],
        &[1, 1, 0, 0, 0, 0, 0, 0],
        &[1, 1, 2, 4, 6, 8, 10],
        &[1, 1, 2, 4, 6, 8, 10, 12, 14],
    ] {
        assert_eq!(command(&mut bench, bad), ERR);
    }
    bench.net.read_config(0, &mut mac);
    assert_eq!(mac, [2, 4, 6, 8, 10, 12]);
    bench.net.deactivate();
    bench.net.read_config(0, &mut mac);
    assert_eq!(mac, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
}

#[test]
fn offloads_can_be_changed_within_what_was_negotiated() {
    fn set(offloads: u64) -> Vec<u8> {
        let mut command = vec![5, 0];
        command.extend(offloads.to_le_bytes());
        command
    }
    let mut bench = Bench::new(ALL);
    assert_eq!(bench.peer.offloads(), NetOffloads::CSUM | NetOffloads::TSO4);
    assert_eq!(command(&mut bench, &set(1 << 1)), OK);
    assert_eq!(bench.peer.offloads(), NetOffloads::CSUM);
    assert_eq!(command(&mut bench, &set(0)), OK);
    assert_eq!(bench.peer.offloads(), NetOffloads::empty());
    // TSO6 was not negotiated; MRG_RXBUF is no offload.
    for bad in [1 << 8, 1 << 15, u64::MAX] {
        assert_eq!(command(&mut bench, &set(bad)), ERR);
    }
    assert_eq!(command(&mut bench, &set(0)[..9]), ERR);
    assert_eq!(bench.peer.offloads(), NetOffloads::empty());
    bench.peer.refuse_offloads();
    assert_eq!(command(&mut bench, &set(1 << 1)), ERR);
}

#[test]
fn commands_of_features_not_negotiated_and_unknown_ones_are_refused() {
    let mut bench = Bench::new(1 << 17);
    for bad in [
        &[0, 0, 1][..],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 2, 4, 6, 8, 10, 12],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // VLAN, announce, multiqueue, one that does not exist, one cut short.
        &[2, 0, 1, 0],
        &[3, 0],
        &[4, 0, 1, 0],
        &[255, 255, 1],
        &[0],
    ] {
        assert_eq!(command(&mut bench, bad), ERR, "{bad:?}");
    }
}

#[test]
fn a_command_in_pieces() {
    let mut bench = Bench::new(ALL);
    bench.write(DATA, &[1, 1, 2, 4, 6, 8, 10, 12]);
    bench.write(ACK, &[0xee]);
    bench.ctrl.add(&[
        readable(DATA, 1),
        readable(DATA + 1, 0),
        readable(DATA + 1, 4),
        readable(DATA + 5, 3),
        writable(ACK, 0),
        writable(ACK, 4),
    ]);
    bench.net.process_queue(CTRL).unwrap();
    assert_eq!(bench.ctrl.take_used(), [(0, 1)]);
    assert_eq!(bench.read(ACK, 2), [OK, 0]);
    assert_eq!(bench.net.mac.bytes(), [2, 4, 6, 8, 10, 12]);
}

#[test]
fn chains_that_hold_no_command() {
    let mut bench = Bench::new(ALL);
    bench.write(ACK, &[0xee; 4]);
    // No room for the answer, no command, too long, outside RAM, an answer outside RAM.
    bench.ctrl.add(&[readable(DATA, 3)]);
    bench.ctrl.add(&[writable(ACK, 1)]);
    bench
        .ctrl
        .add(&[readable(DATA, 1 << 20), writable(ACK + 1, 1)]);
    bench
        .ctrl
        .add(&[readable(1 << 40, 3), writable(ACK + 2, 1)]);
    bench.ctrl.add(&[readable(DATA, 3), writable(1 << 40, 1)]);
    let at = 9;
    bench.ctrl.write_desc(at, DATA, 8, NEXT, at);
    bench.ctrl.make_available(at);
    bench.net.process_queue(CTRL).unwrap();
    let written: Vec<u32> = bench.ctrl.take_used().iter().map(|used| used.1).collect();
    assert_eq!(written, [0, 1, 1, 1, 0, 0]);
    assert_eq!(bench.read(ACK, 4), [ERR, ERR, ERR, 0xee]);
}
