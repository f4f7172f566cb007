//! Guests that do what no driver does.

use super::*;
use crate::testing::Random;

#[test]
fn rings_outside_ram() {
    for base in [RAM_BYTES as u64 - 16, 0xffff_fff0, 0xffff_ffff_ffff_fff0] {
        let mut bench = Bench::new();
        for ring in [TDBAL, RDBAL] {
            bench.write(ring, (base & 0xffff_ffff) as u32);
            bench.write(ring + 4, (base >> 32) as u32);
        }
        // The first descriptor may be in RAM, the second never is.
        bench.send(&[[0; 16]; 3]);
        bench.arrive(&frame_to(MAC, 60));
        bench.arrive(&frame_to(MAC, 60));
        assert!(bench.read(TDBAL + 0x10) <= 1);
        assert!(bench.read(RDBAL + 0x10) <= 1);
    }
}

#[test]
fn rings_of_no_length() {
    let bench = Bench::new();
    for ring in [TDBAL, RDBAL] {
        bench.write(ring + 8, 0);
        bench.write(ring + 0x18, 5);
    }
    bench.arrive(&frame_to(MAC, 60));
    assert!(bench.peer.take_sent().is_empty());
    assert_eq!(bench.read(RDBAL + 0x10), 0);
}

#[test]
fn the_longest_ring_in_small_steps() {
    let bench = Bench::new();
    // All of it: 65,528 descriptors, most of them not in RAM, and those there are zeros.
    bench.write(TDBAL + 8, 0xf_ff80);
    bench.write(TDT, 65_000);
    let first = bench.read(TDBAL + 0x10);
    assert!((1..=256).contains(&first), "{first}");
    let mut turns = 0;
    while bench.again() {
        turns += 1;
    }
    assert_eq!(bench.read(TDBAL + 0x10), 65_000);
    assert_eq!(turns, 65_000_u32.div_ceil(256) - 1);
    assert!(bench.peer.take_sent().is_empty());
}

#[test]
fn head_or_tail_out_of_range() {
    for (head, tail) in [(0, 16), (0, 0xffff), (16, 3), (0xffff, 0), (0xffff, 0xfffe)] {
        let bench = Bench::new();
        for ring in [TDBAL, RDBAL] {
            bench.write(ring + 0x10, head);
            bench.write(ring + 0x18, tail);
        }
        bench.arrive(&frame_to(MAC, 60));
        assert!(!bench.nic.rerun.is_asked() || bench.again());
        assert_eq!(bench.read(TDBAL + 0x10), head);
        assert_eq!(bench.read(RDBAL + 0x10), head);
    }
}

#[test]
fn buffers_outside_ram() {
    let mut bench = Bench::new();
    bench.send(&[
        tx::legacy(RAM_BYTES as u64 - 10, 60, tx::EOP | tx::RS),
        tx::legacy(u64::MAX, 60, tx::EOP | tx::RS),
        tx::legacy(TX_DATA, 60, 0),
        tx::legacy(u64::MAX - 5, 10, tx::EOP | tx::RS),
        tx::legacy(TX_DATA, 60, tx::EOP | tx::RS),
    ]);
    // The good one passes; all are given back.
    assert_eq!(bench.peer.take_sent().len(), 1);
    assert_eq!(bench.read(TDBAL + 0x10), 5);
    for (i, addr) in [RAM_BYTES as u64 - 10, u64::MAX].into_iter().enumerate() {
        bench.put(RX_RING + i as u64 * 16, &addr.to_le_bytes());
        bench.arrive(&frame_to(MAC, 60));
    }
    assert_eq!(bench.read(RDBAL + 0x10), 2);
}

#[test]
fn a_frame_without_end() {
    let mut bench = Bench::new();
    for _ in 0..200 {
        bench.send(&[tx::data(TX_DATA, 0xf_ffff, 0, 0); 8]);
        bench.send(&[tx::legacy(TX_DATA, 0xffff, 0); 7]);
    }
    assert!(bench.peer.take_sent().is_empty());
    bench.send(&[tx::legacy(TX_DATA, 60, tx::EOP)]);
    assert!(bench.peer.take_sent().is_empty(), "the end of the bad one");
    bench.send(&[tx::legacy(TX_DATA, 60, tx::EOP)]);
    assert_eq!(bench.peer.take_sent().len(), 1);
}

#[test]
fn segmentation_that_cannot_be() {
    const TSE: u8 = 4;
    let contexts = [
        // A header longer than the frame, and none.
        tx::context([14, 24, 33], [34, 50, 0], TSE | 3, 255, 1460),
        tx::context([14, 24, 33], [34, 50, 0], TSE | 3, 0, 1460),
        // Segments of no bytes, and of one.
        tx::context([14, 24, 33], [34, 50, 0], TSE | 3, 54, 0),
        // Offsets beyond the header, or anywhere.
        tx::context([200, 250, 1], [34, 50, 0], TSE | 3, 54, 100),
        tx::context([14, 24, 33], [50, 50, 0], TSE | 3, 54, 100),
        tx::context([14, 24, 33], [34, 254, 0], TSE | 3, 54, 100),
        tx::context([14, 24, 33], [255, 255, 255], TSE, 54, 100),
    ];
    for context in contexts {
        let mut bench = Bench::new();
        bench.send(&[context, tx::data(TX_DATA, 200, tx::EOP | TSE | tx::RS, 3)]);
        assert!(bench.peer.take_sent().is_empty());
        assert_eq!(bench.get(TX_RING + 16 + 12, 1), [1]);
        assert_eq!(bench.read(0x40fc), 1);
    }
    let mut bench = Bench::new();
    bench.send(&[
        tx::context([14, 24, 33], [34, 50, 0], TSE | 3, 54, 1),
        tx::data(TX_DATA, 60_000, tx::EOP | TSE, 3),
    ]);
    assert!(bench.peer.take_sent().is_empty());
}

#[test]
fn every_width_everywhere() {
    let bench = Bench::new();
    for bar in 0..6 {
        for offset in (0..0x2_0000_u64)
            .step_by(0x1e7)
            .chain([0x1_ffff, 0x2_0000, u64::MAX])
        {
            for len in [0, 1, 2, 3, 4, 8, 16] {
                let mut data = vec![0xff; len];
                let _ = bench.nic.bar_read(bar, offset, &mut data);
                // A write of what was read keeps the rings where they are.
                let _ = bench.nic.bar_write(bar, offset, &data);
            }
        }
    }
}

/// Registers, descriptors and frames at random: whatever comes, the device stays within RAM and its turns, and does not
/// panic.
#[test]
fn random_drivers() {
    const REGISTERS: [u32; 24] = [
        CTRL, EECD, EERD, MDIC, VET, ICR, ITR, ICS, IMS, IMC, RCTL, TCTL, RDTR, RADV, TIDV, TADV,
        TXDCTL, RXCSUM, MTA, RAL, VFTA, RDT, TDT, CTRL_EXT,
    ];
    let mut random = Random::new(0x0082_540e);
    for round in 0..300 {
        let mut bench = Bench::new();
        for step in 0..60 {
            match random.below(6) {
                0 => {
                    let register = REGISTERS[random.below(24) as usize];
                    bench.write(register, random.number() as u32 & !CTRL_RST);
                }
                1 => {
                    let offset = random.below(0x2_0000) as u32 & !3;
                    bench.write(offset, random.number() as u32);
                    bench.read(offset);
                }
                2 | 3 => {
                    let mut descriptor = [0; 16];
                    descriptor[..8].copy_from_slice(&random.number().to_le_bytes());
                    descriptor[8..].copy_from_slice(&random.number().to_le_bytes());
                    // Often in RAM, often short.
                    if random.below(4) != 0 {
                        let addr = random.below(RAM_BYTES as u64);
                        descriptor[..8].copy_from_slice(&addr.to_le_bytes());
                        descriptor[9] &= 0x0f;
                        descriptor[10] &= 0x10;
                    }
                    bench.send(&[descriptor]);
                }
                4 => {
                    let len = 1 + random.below(3000) as usize;
                    let mut bytes = vec![0; len];
                    bytes.fill_with(|| random.number() as u8);
                    if len > 26 && random.below(2) == 0 {
                        bytes[12..18].copy_from_slice(&MAC);
                        bytes[24..26].copy_from_slice(&[8, 0]);
                    }
                    bench.peer.push(&bytes);
                    bench.nic.process_backend(EventSet::IN | EventSet::OUT);
                }
                _ => {
                    bench.write(TCTL, TCTL_EN);
                    bench.write(RCTL, random.number() as u32 | RCTL_EN);
                    bench.nic.process_timer();
                }
            }
            let mut turns = 0;
            while bench.again() {
                turns += 1;
                assert!(turns < 1000, "round {round}, step {step}: no end");
            }
        }
    }
}
