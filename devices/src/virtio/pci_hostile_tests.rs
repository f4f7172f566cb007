//! The PCI transport under drivers that are wrong, and devices that fail.

use super::pci_test_guest::*;
use crate::bus::AccessError;
use crate::pci::PciDevice;
use crate::pci::config::BASE_ADDRESS_0;
use crate::testing::Random;

#[test]
fn features_are_refused_unless_offered_and_modern() {
    let guest = Guest::new();
    for features in [0, EVENT_IDX, VERSION_1 | 1 << 4, VERSION_1 | 1 << 63] {
        guest.reset();
        assert!(!guest.negotiate(features), "{features:#x}");
        // The driver may think again.
        guest.accept(VERSION_1);
        guest.add_status(FEATURES_OK);
        assert_ne!(guest.status() & FEATURES_OK, 0);
    }
}

#[test]
fn features_beyond_64_bits_are_refused() {
    let guest = Guest::new();
    for (select, accepted) in [(2, false), (3, false), (4, true), (u32::MAX, true)] {
        guest.reset();
        guest.w32(DRIVER_FEATURE_SELECT, select);
        guest.w32(DRIVER_FEATURE, 1);
        assert_eq!(guest.negotiate(VERSION_1), accepted, "word {select}");
    }
}

#[test]
fn features_are_settled_by_features_ok() {
    let guest = Guest::new();
    guest.reset();
    assert!(guest.negotiate(VERSION_1));
    guest.accept(VERSION_1 | FEATURE_ECHO);
    guest.w32(DRIVER_FEATURE_SELECT, 0);
    assert_eq!(guest.r32(DRIVER_FEATURE), 0);
    guest.add_status(DRIVER_OK);
    assert_eq!(guest.state().features, VERSION_1);
}

#[test]
fn the_status_takes_its_bits_in_order() {
    let guest = Guest::new();
    guest.accept(VERSION_1);
    guest.w8(STATUS, FEATURES_OK);
    assert_eq!(guest.status(), 0);
    guest.w8(STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
    assert_eq!(guest.state().activations, 0);
    // Bits that do not exist, that are the device's, and that are to go away.
    guest.w8(STATUS, ACKNOWLEDGE | NEEDS_RESET | 0x30);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER);
    // All at once is an order, too.
    guest.reset();
    guest.accept(VERSION_1);
    guest.w8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(guest.state().activations, 1);
    guest.w8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(guest.state().activations, 1);
    // A driver that gave up is not served.
    guest.reset();
    guest.accept(VERSION_1);
    guest.w8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    guest.add_status(DRIVER_OK);
    assert_eq!(guest.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    assert_eq!(guest.state().activations, 1);
}

#[test]
fn queue_registers_are_settled_by_enabling() {
    let guest = Guest::new();
    guest.reset();
    assert!(guest.negotiate(VERSION_1));
    guest.w16(SELECT, 0);
    guest.w16(ENABLE, 0);
    guest.w16(ENABLE, 2);
    assert_eq!(guest.r16(ENABLE), 0);
    guest.set_up_queue();
    assert_eq!(guest.r16(ENABLE), 1);
    let check = |guest: &Guest| {
        guest.w16(SELECT, 0);
        guest.w16(SIZE, 2);
        guest.w64(DESC, 0x10);
        guest.w64(USED, 0x10);
        guest.w16(ENABLE, 0);
        assert_eq!(guest.r16(SIZE), QUEUE_SIZE);
        assert_eq!(guest.r64(DESC), guest.ring.desc());
        assert_eq!(guest.r64(USED), guest.ring.used());
        assert_eq!(guest.r16(ENABLE), 1);
    };
    check(&guest);
    guest.add_status(DRIVER_OK);
    check(&guest);
    // Nor does a queue come to life after DRIVER_OK.
    guest.w16(SELECT, 1);
    guest.w64(DESC, 0x3_0000);
    guest.w16(ENABLE, 1);
    assert_eq!((guest.r16(ENABLE), guest.r64(DESC)), (0, 0));
}

#[test]
fn queues_that_do_not_exist_have_no_registers() {
    let guest = Guest::new();
    for queue in [2, 255, u16::MAX] {
        guest.w16(SELECT, queue);
        guest.w16(SIZE, 8);
        guest.w16(VECTOR, 1);
        guest.w64(DESC, 0x1_0000);
        guest.w16(ENABLE, 1);
        assert_eq!(guest.r16(SELECT), queue);
        assert_eq!((guest.r16(SIZE), guest.r16(ENABLE)), (0, 0));
        assert_eq!((guest.r16(VECTOR), guest.r64(DESC)), (0xffff, 0));
    }
    assert_eq!(guest.status(), 0);
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let guest = Guest::new();
    for vector in [3, 0x7ff, 0xfffe] {
        guest.w16(CONFIG_VECTOR, vector);
        guest.w16(VECTOR, vector);
        assert_eq!(guest.r16(CONFIG_VECTOR), 0xffff);
        assert_eq!(guest.r16(VECTOR), 0xffff);
    }
}

#[test]
fn a_queue_outside_ram_needs_a_reset() {
    let ram_end = RAM_BYTES as u64;
    let cases = [
        (DESC, ram_end - 16 * u64::from(QUEUE_SIZE) + 16),
        (DESC, 0x1_0008),
        (DESC, !0xf),
        (DESC, 0),
        (AVAIL, ram_end - 4),
        (AVAIL, 0x1_1001),
        (AVAIL, 0),
        (AVAIL, u64::MAX - 1),
        (USED, ram_end),
        (USED, 0x1_2002),
        (USED, 0),
        (USED, 0xffff_ffff_0000_0000),
    ];
    let mut guest = Guest::new();
    for (register, address) in cases {
        guest.ring.clear();
        guest.reset();
        assert!(guest.negotiate(VERSION_1));
        guest.w16(SELECT, 0);
        guest.point_queue_at_ring();
        guest.w64(register, address);
        guest.w16(ENABLE, 1);
        assert_eq!(
            guest.status() & NEEDS_RESET,
            NEEDS_RESET,
            "{register:#x}: {address:#x}"
        );
        guest.add_status(DRIVER_OK);
        assert_eq!(guest.state().activations, 0);
        guest.kick();
    }
    guest.start();
    guest.echo(b"hello");
    // Memory that ends with RAM is memory.
    guest.reset();
    guest.ring.clear();
    assert!(guest.negotiate(VERSION_1));
    guest.w16(SELECT, 0);
    guest.w64(DESC, ram_end - 16 * u64::from(QUEUE_SIZE));
    guest.w64(AVAIL, guest.ring.avail());
    guest.w64(USED, guest.ring.used());
    guest.w16(ENABLE, 1);
    assert_eq!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn an_impossible_queue_size_needs_a_reset() {
    let guest = Guest::new();
    for size in [0, 3, 2 * QUEUE_SIZE, u16::MAX] {
        guest.reset();
        assert!(guest.negotiate(VERSION_1));
        guest.w16(SELECT, 0);
        guest.w16(SIZE, size);
        guest.point_queue_at_ring();
        guest.w16(ENABLE, 1);
        assert_ne!(guest.status() & NEEDS_RESET, 0, "{size}");
    }
}

#[test]
fn a_device_that_fails_is_idle_until_reset() {
    let mut guest = Guest::new();
    guest.enable_msix();
    guest.reset();
    guest.w16(CONFIG_VECTOR, 2);
    guest.go_live(VERSION_1);
    guest.state().fail_queue = true;
    guest.kick();
    assert_ne!(guest.status() & NEEDS_RESET, 0);
    assert_eq!(guest.raised(2), 1);
    assert_eq!(guest.state().deactivations, 1);
    guest.kick();
    assert_eq!(guest.state().processed, [0]);
    guest.state().fail_queue = false;
    guest.ring.clear();
    guest.start();
    guest.echo(b"hello");
    // From the backend's side.
    guest.state().fail_backend = true;
    let (fd, events) = guest.pci.backend_events()[0];
    guest.pci.process_backend_event(fd, events);
    assert_ne!(guest.status() & NEEDS_RESET, 0);
    assert_eq!(guest.state().deactivations, 2);
}

#[test]
fn a_broken_ring_fails_the_device_and_not_us() {
    let mut guest = Guest::new();
    guest.start();
    guest.ring.set_avail_idx(1000);
    guest.kick();
    assert_ne!(guest.status() & NEEDS_RESET, 0);
    guest.ring.clear();
    guest.start();
    guest.ring.make_available(QUEUE_SIZE);
    guest.kick();
    assert_ne!(guest.status() & NEEDS_RESET, 0);
}

#[test]
fn a_device_that_does_not_activate_needs_a_reset() {
    let mut guest = Guest::new();
    guest.state().fail_activate = true;
    guest.start();
    assert_ne!(guest.status() & NEEDS_RESET, 0);
    assert_eq!(guest.r8(ISR), 2);
    guest.reset();
    assert_eq!(guest.state().deactivations, 0);
    guest.state().fail_activate = false;
    guest.start();
    guest.echo(b"hello");
}

#[test]
fn a_device_that_failed_before_its_driver_came_is_not_activated() {
    let mut guest = Guest::new();
    guest.state().fail_backend = true;
    let (fd, events) = guest.pci.backend_events()[0];
    guest.pci.process_backend_event(fd, events);
    assert_eq!(guest.status(), NEEDS_RESET);
    assert_eq!(guest.r8(ISR), 0);
    guest.go_live(VERSION_1);
    assert_eq!(guest.state().activations, 0);
    guest.ring.clear();
    guest.start();
    guest.echo(b"hello");
}

#[test]
fn accesses_that_no_register_supports_are_refused() {
    let guest = Guest::new();
    let read = |offset, len: usize| guest.pci.bar_read(0, offset, &mut vec![0; len]).err();
    let write = |offset, len: usize| guest.pci.bar_write(0, offset, &vec![0; len]).err();
    let register = Some(AccessError::InvalidRegister);
    let width = Some(AccessError::InvalidWidth);
    for (offset, len) in [(0x38, 1), (0x36, 4), (0xff, 1)] {
        assert_eq!(read(offset, len), register, "{offset:#x}");
    }
    for (offset, len) in [
        (DEVICE_FEATURE, 4),
        (STATUS, 4),
        (STATUS, 2),
        (GENERATION, 1),
        (0x12, 2),
        (0x1e, 2),
        (DESC, 2),
        (DESC + 4, 8),
        (0, 8),
        (SELECT, 3),
        (SELECT, 0),
    ] {
        assert_eq!(write(offset, len), width, "{offset:#x} {len}");
    }
    for (offset, len) in [
        (0x38, 4),
        (ISR, 1),
        (0x104, 1),
        (DEVICE_CONFIG + 11, 2),
        (DEVICE_CONFIG + 12, 1),
        (NOTIFY - 1, 2),
        (NOTIFY + 1, 1),
        (NOTIFY + 8, 4),
        (0x1ffc, 4),
        (MSIX_TABLE + 48, 4),
        (MSIX_TABLE + 46, 4),
        (0x3000, 4),
        (u64::MAX, 4),
    ] {
        assert_eq!(write(offset, len), register, "{offset:#x} {len}");
    }
    for (offset, len) in [
        (0x104, 1),
        (DEVICE_CONFIG + 9, 4),
        (NOTIFY - 1, 1),
        (NOTIFY, 4),
        (MSIX_TABLE + 48, 4),
        (0x3008, 1),
        (u64::MAX, 8),
    ] {
        assert_eq!(read(offset, len), register, "{offset:#x} {len}");
    }
    for bar in [1, 5, 255] {
        assert!(guest.pci.bar_read(bar, 0, &mut [0]).is_err());
        assert!(guest.pci.bar_write(bar, STATUS, &[1]).is_err());
    }
    // The whole of a 64-bit field at once is fine.
    guest
        .pci
        .bar_write(0, AVAIL, &0x1_0000_2000u64.to_le_bytes())
        .unwrap();
    assert_eq!(guest.r64(AVAIL), 0x1_0000_2000);
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let mut guest = Guest::new();
    let window = *guest.capabilities(0x09).last().unwrap();
    let point = |guest: &Guest, bar: u8, offset: u64, len: u32| {
        let _ = guest.pci.config_write(window + 4, &[bar]);
        guest.config_write_u32(window + 8, u32::try_from(offset).unwrap());
        guest.config_write_u32(window + 12, len);
    };
    point(&guest, 0, DEVICE_FEATURE_SELECT, 4);
    guest.config_write_u32(window + 16, 1);
    point(&guest, 0, DEVICE_FEATURE, 4);
    assert_eq!(guest.config_u32(window + 16), 1);
    point(&guest, 0, STATUS, 1);
    let _ = guest.pci.config_write(window + 16, &[ACKNOWLEDGE]);
    assert_eq!(guest.status(), ACKNOWLEDGE);
    let mut byte = [0];
    guest.pci.config_read(window + 16, &mut byte);
    assert_eq!(byte, [ACKNOWLEDGE]);
    // A whole driver's start may go through it.
    guest.start();
    guest.ring.write_desc(0, 0x2_0000, 4, 0, 0);
    guest.ring.make_available(0);
    point(&guest, 0, NOTIFY, 2);
    let _ = guest.pci.config_write(window + 16, &[0, 0]);
    guest.run_queues();
    assert_eq!(guest.ring.next_used(), Some((0, 0)));
    // The ISR is read, and so cleared, through it.
    point(&guest, 0, ISR, 1);
    assert!(guest.pin.level());
    assert_eq!(guest.config_u16(window + 16) & 0xff, 1);
    assert!(!guest.pin.level());
    // A refused register reads as ones.
    point(&guest, 0, NOTIFY + 8, 4);
    assert_eq!(guest.config_u32(window + 16), u32::MAX);
    // What is no access does none: the register is plain memory.
    let status = guest.status();
    for (bar, offset, len) in [
        (1, STATUS, 1),
        (0, STATUS, 0),
        (0, STATUS, 3),
        (0, STATUS, 8),
        (0, 0x4000, 1),
        (0, 0xffff_fffc, 4),
        (0, STATUS - 2, 4),
    ] {
        point(&guest, bar, offset, len);
        guest.config_write_u32(window + 16, 0);
        assert_eq!(guest.config_u32(window + 16), 0);
        assert_eq!(guest.status(), status, "BAR {bar} {offset:#x} {len}");
    }
}

/// Values that registers mean something by, and others.
fn random_bytes(random: &mut Random) -> [u8; 8] {
    let value = match random.below(4) {
        0 => random.below(4),
        1 => random.below(0x100),
        2 => 0x1_0000 + (random.below(0x30) << 8),
        _ => random.below(u64::MAX),
    };
    value.to_le_bytes()
}

#[test]
fn random_accesses_never_break_the_function() {
    let mut guest = Guest::new();
    let mut random = Random::new(0x0dd0_5eed_1234_5678);
    let (fd, events) = guest.pci.backend_events()[0];
    for round in 0..30_000u32 {
        let len = [1, 2, 4, 4, 8][usize::try_from(random.below(5)).unwrap()];
        let data = random_bytes(&mut random);
        match random.below(8) {
            0 => {
                let offset = u16::try_from(random.below(0x104)).unwrap();
                let _ = guest.pci.config_write(offset, &data[..len]);
                guest.pci.config_read(offset, &mut vec![0; len]);
            }
            1 => {
                let offset = random.below(0x4010);
                let _ = guest.pci.bar_write(0, offset, &data[..len]);
                let _ = guest.pci.bar_read(0, offset, &mut vec![0; len]);
            }
            2 | 3 => {
                let _ = guest.pci.bar_write(0, random.below(0x38), &data[..len]);
            }
            4 => {
                guest.set_command(0x6);
                guest.start();
            }
            5 => {
                // Anything at all in the rings.
                let at = guest.ring.desc() + random.below(0x3000);
                let _ =
                    vm_memory::Bytes::write_slice(&*guest.ram, &data, vm_memory::GuestAddress(at));
            }
            6 => guest.pci.process_backend_event(fd, events),
            _ => guest.kick(),
        }
        if round % 1000 == 999 {
            guest.pci.reset();
            guest.set_command(0x6);
            guest.ring.clear();
            guest.start();
            guest.echo(b"alive");
        }
    }
    assert!(guest.state().activations > 100);
    guest.pci.reset();
    assert_eq!(guest.config_u32(BASE_ADDRESS_0), 4);
    let state = guest.state();
    assert_eq!(state.activations, state.deactivations);
}
