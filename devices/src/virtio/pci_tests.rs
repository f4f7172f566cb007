//! The PCI transport under a driver that keeps to the specification.

use event_manager::{EventManager, SubscriberOps};

use super::pci::{VirtioPci, VirtioPciError};
use super::pci_test_guest::*;
use crate::pci::PciDevice;
use crate::pci::config::{BASE_ADDRESS_0, COMMAND, STATUS as PCI_STATUS};
use crate::testing::{FakeMsiSink, FakePin, test_ram};
use std::sync::Arc;

#[test]
fn identity_is_that_of_a_modern_device() {
    let guest = Guest::new();
    assert_eq!(guest.config_u32(0), 0x1042_1af4);
    assert_eq!(guest.config_u32(8), 0x0180_0001);
    assert_eq!(guest.config_u32(0x2c), 0x1042_1af4);
    // INTA#.
    assert_eq!(guest.config_u16(0x3c) >> 8, 1);
    assert_eq!(guest.pci.name(), "echo0");
}

#[test]
fn capabilities_describe_the_bar() {
    let guest = Guest::new();
    let structures: Vec<_> = guest
        .capabilities(0x09)
        .into_iter()
        .map(|at| {
            let [_, _, len, kind] = guest.config_u32(at).to_le_bytes();
            let bar = guest.config_u32(at + 4);
            (
                kind,
                len,
                bar,
                guest.config_u32(at + 8),
                guest.config_u32(at + 12),
            )
        })
        .collect();
    assert_eq!(
        structures,
        [
            (1, 16, 0, 0, 0x38),
            (3, 16, 0, 0x100, 1),
            (2, 20, 0, 0x1000, 8),
            (4, 16, 0, 0x200, 12),
            (5, 20, 0, 0, 0),
        ]
    );
    let notify = guest.capabilities(0x09)[2];
    assert_eq!(guest.config_u32(notify + 16), 4);
    let msix = guest.capabilities(0x11);
    assert_eq!(msix.len(), 1);
    // Three vectors: two queues and the configuration.
    assert_eq!(guest.config_u32(msix[0]) >> 16, 2);
    assert_eq!(guest.config_u32(msix[0] + 4), 0x2000);
    assert_eq!(guest.config_u32(msix[0] + 8), 0x3000);
    guest.config_write_u32(BASE_ADDRESS_0, u32::MAX);
    assert_eq!(guest.config_u32(BASE_ADDRESS_0), 0xffff_c004);
}

#[test]
fn a_device_without_configuration_has_no_such_structure() {
    let mut shape = info();
    shape.device_id = 4;
    shape.config_len = 0;
    let (line, _pin) = FakePin::line();
    let pci = VirtioPci::new(
        Box::new(Shaped(shape)),
        test_ram(0x1000),
        Arc::new(FakeMsiSink::default()),
        line,
    )
    .unwrap();
    let guest = Guest {
        pci,
        ..Guest::new()
    };
    let kinds: Vec<u8> = guest
        .capabilities(0x09)
        .into_iter()
        .map(|at| guest.config_u32(at).to_le_bytes()[3])
        .collect();
    assert_eq!(kinds, [1, 3, 2, 5]);
    assert_eq!(guest.config_u32(8), 0xff00_0001);
    assert!(guest.pci.bar_read(0, DEVICE_CONFIG, &mut [0]).is_err());
}

#[test]
fn devices_that_do_not_fit_are_refused() {
    let new = |shape| {
        let (line, _pin) = FakePin::line();
        VirtioPci::new(
            Box::new(Shaped(shape)),
            test_ram(0x1000),
            Arc::new(FakeMsiSink::default()),
            line,
        )
        .err()
    };
    let mut shape = info();
    shape.queue_sizes = vec![8; 255];
    assert!(new(shape.clone()).is_none());
    shape.queue_sizes.push(8);
    assert!(matches!(
        new(shape),
        Some(VirtioPciError::TooManyQueues { count: 256, .. })
    ));
    let mut shape = info();
    shape.config_len = 0xe01;
    assert!(matches!(
        new(shape),
        Some(VirtioPciError::ConfigTooLong { len: 0xe01, .. })
    ));
    for device_id in [0, 0x40, u16::MAX] {
        let mut shape = info();
        shape.device_id = device_id;
        assert!(matches!(
            new(shape),
            Some(VirtioPciError::BadDeviceId { .. })
        ));
    }
}

#[test]
fn features_are_offered_by_words() {
    let guest = Guest::new();
    assert_eq!(
        guest.offered(),
        FEATURE_ECHO | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    );
    guest.w32(DEVICE_FEATURE_SELECT, 2);
    assert_eq!(guest.r32(DEVICE_FEATURE), 0);
}

#[test]
fn a_driver_echoes_with_msix() {
    let mut guest = Guest::new();
    guest.reset();
    assert!(guest.negotiate(VERSION_1 | FEATURE_ECHO));
    guest.enable_msix();
    guest.w16(CONFIG_VECTOR, 0);
    guest.w16(SELECT, 0);
    guest.w16(VECTOR, 1);
    assert_eq!((guest.r16(CONFIG_VECTOR), guest.r16(VECTOR)), (0, 1));
    guest.set_up_queue();
    guest.add_status(DRIVER_OK);
    assert_eq!(
        guest.status(),
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    );
    assert_eq!(guest.state().features, VERSION_1 | FEATURE_ECHO);
    guest.echo(b"hello");
    guest.echo(b"again");
    assert_eq!(guest.raised(1), 2);
    assert_eq!(guest.raised(0), 0);
    assert!(!guest.pin.level());
    // The queue that was not set up has nothing.
    guest.w16(NOTIFY + 4, 1);
    guest.run_queues();
    assert_eq!(guest.status() & NEEDS_RESET, 0);
    assert_eq!(guest.state().processed, [0, 0, 1]);
}

#[test]
fn queues_with_event_idx_are_told_so() {
    let mut guest = Guest::new();
    guest.start();
    guest.echo(b"x");
    assert_eq!(guest.ring.avail_event(), 1);
    let mut guest = Guest::new();
    guest.reset();
    guest.go_live(VERSION_1);
    guest.echo(b"x");
    assert_eq!(guest.ring.avail_event(), 0);
}

#[test]
fn intx_is_raised_until_the_isr_is_read() {
    let mut guest = Guest::new();
    guest.start();
    guest.echo(b"hello");
    assert!(guest.pin.level());
    assert_eq!(guest.config_u16(PCI_STATUS) & 0x8, 0x8);
    assert_eq!(guest.r8(ISR), 1);
    assert!(!guest.pin.level());
    assert_eq!(guest.r8(ISR), 0);
    assert_eq!(guest.config_u16(PCI_STATUS) & 0x8, 0);
    // Both causes in one interrupt.
    guest.ring.set_used_event(1);
    guest.echo(b"again");
    guest.backend.write(1).unwrap();
    let (fd, events) = guest.pci.backend_events()[0];
    guest.pci.process_backend_event(fd, events);
    assert_eq!(guest.pin.rising_edges(), 2);
    assert_eq!(guest.r32(ISR), 3);
    assert!(!guest.pin.level());
}

#[test]
fn intx_disable_and_msix_hold_the_wire_low() {
    let mut guest = Guest::new();
    guest.start();
    guest.set_command(0x406);
    guest.echo(b"hello");
    assert!(!guest.pin.level());
    // Pending all the same.
    assert_eq!(guest.config_u16(PCI_STATUS) & 0x8, 0x8);
    guest.set_command(0x006);
    assert!(guest.pin.level());
    guest.enable_msix();
    assert!(!guest.pin.level());
    assert_eq!(guest.config_u16(PCI_STATUS) & 0x8, 0);
    let control = guest.capabilities(0x11)[0] + 2;
    let _ = guest.pci.config_write(control, &[0, 0]);
    assert!(guest.pin.level());
    assert_eq!(guest.r8(ISR), 1);
    assert!(!guest.pin.level());
}

#[test]
fn configuration_changes_raise_their_vector_and_the_generation() {
    let guest = Guest::new();
    guest.enable_msix();
    guest.reset();
    guest.w16(CONFIG_VECTOR, 2);
    guest.go_live(VERSION_1);
    let generation = guest.r8(GENERATION);
    guest.backend.write(1).unwrap();
    let (fd, events) = guest.pci.backend_events()[0];
    guest.pci.process_backend_event(fd, events);
    assert_eq!(guest.r8(GENERATION), generation.wrapping_add(1));
    assert_eq!(guest.r8(DEVICE_CONFIG), 1);
    assert_eq!(guest.raised(2), 1);
    assert!(!guest.pin.level());
    assert_eq!(guest.r8(ISR), 2);
}

#[test]
fn device_configuration_is_read_and_written() {
    let guest = Guest::new();
    guest.w32(DEVICE_CONFIG + 4, 0x1234_5678);
    guest.w8(DEVICE_CONFIG + 11, 0x9a);
    assert_eq!(guest.r64(DEVICE_CONFIG + 4), 0x9a00_0000_1234_5678);
    assert_eq!(guest.r16(DEVICE_CONFIG + 6), 0x1234);
}

#[test]
fn every_queue_has_a_doorbell_of_its_own() {
    let guest = Guest::new();
    let doorbells = guest.pci.doorbells(0);
    let offsets: Vec<u64> = doorbells.iter().map(|d| d.offset).collect();
    assert_eq!(offsets, [NOTIFY, NOTIFY + 4]);
    assert!(guest.pci.doorbells(1).is_empty());
    for (index, doorbell) in doorbells.iter().enumerate() {
        // A write that exits is the same event as one that does not.
        guest.w16(doorbell.offset, u16::try_from(index).unwrap());
        assert_eq!(guest.pci.queue_events()[index].read().unwrap(), 1);
        doorbell.event.write(1).unwrap();
        assert_eq!(guest.pci.queue_events()[index].read().unwrap(), 1);
    }
    // The address is the queue's, whatever is written and how wide.
    guest.w32(NOTIFY + 4, u32::MAX);
    assert_eq!(guest.pci.queue_events()[1].read().unwrap(), 1);
}

#[test]
fn reset_works_from_every_state() {
    let steps: [fn(&Guest); 7] = [
        |_| {},
        |guest| guest.add_status(ACKNOWLEDGE),
        |guest| guest.add_status(DRIVER),
        |guest| {
            guest.negotiate(VERSION_1);
        },
        Guest::set_up_queue,
        |guest| guest.add_status(DRIVER_OK),
        |guest| guest.add_status(FAILED),
    ];
    let mut guest = Guest::new();
    guest.enable_msix();
    for last in 0..steps.len() {
        guest.w16(CONFIG_VECTOR, 1);
        for step in &steps[..=last] {
            step(&guest);
        }
        guest.reset();
        assert_eq!(guest.r16(CONFIG_VECTOR), 0xffff);
        guest.w16(SELECT, 0);
        assert_eq!(guest.r16(ENABLE), 0);
        assert_eq!(guest.r16(VECTOR), 0xffff);
        assert_eq!((guest.r64(DESC), guest.r64(AVAIL)), (0, 0));
        guest.ring.clear();
        guest.start();
        guest.echo(b"hello");
        guest.reset();
        guest.ring.clear();
    }
    let state = guest.state();
    assert_eq!(state.activations, state.deactivations);
}

#[test]
fn reset_takes_interrupts_back() {
    let mut guest = Guest::new();
    guest.start();
    guest.echo(b"hello");
    assert!(guest.pin.level());
    guest.reset();
    assert!(!guest.pin.level());
    assert_eq!(guest.r8(ISR), 0);
    assert_eq!(guest.state().deactivations, 1);
}

#[test]
fn reset_forgets_interrupts_that_wait_for_their_mask() {
    let mut guest = Guest::new();
    guest.enable_msix();
    guest.reset();
    guest.w16(VECTOR, 0);
    guest.go_live(VERSION_1);
    guest.w32(MSIX_TABLE + 12, 1);
    guest.echo(b"hello");
    assert_eq!(guest.r64(MSIX_PBA), 1);
    guest.reset();
    assert_eq!(guest.r64(MSIX_PBA), 0);
    guest.w32(MSIX_TABLE + 12, 0);
    assert_eq!(guest.raised(0), 0);
}

#[test]
fn machine_reset_is_power_on() {
    let mut guest = Guest::new();
    guest.enable_msix();
    guest.config_write_u32(BASE_ADDRESS_0, 0xc000_0000);
    guest.start();
    guest.echo(b"hello");
    guest.pci.reset();
    assert_eq!(guest.state().deactivations, 1);
    assert_eq!(guest.config_u16(COMMAND), 0);
    assert_eq!(guest.bar_address(), 0);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.r32(MSIX_TABLE + 12), 1);
    let control = guest.config_u16(guest.capabilities(0x11)[0] + 2);
    assert_eq!(control, 2);
    // And all works again, with INTx.
    guest.set_command(0x6);
    guest.ring.clear();
    guest.start();
    guest.echo(b"hello");
    assert!(guest.pin.level());
}

#[test]
fn a_notification_before_activation_is_not_lost() {
    let mut guest = Guest::new();
    guest.reset();
    assert!(guest.negotiate(VERSION_1));
    guest.set_up_queue();
    guest.ring.write_desc(0, 0x2_0000, 4, 0, 0);
    guest.ring.make_available(0);
    // The event loop sees it before the write of DRIVER_OK has had its effect.
    guest.kick();
    assert!(guest.state().processed.is_empty());
    guest.add_status(DRIVER_OK);
    guest.run_queues();
    assert_eq!(guest.state().processed, [0]);
    assert_eq!(guest.ring.next_used(), Some((0, 0)));
    // One that the event loop had not seen waits in the eventfd; a reset forgets the other kind.
    guest.reset();
    guest.kick();
    guest.reset();
    guest.ring.clear();
    guest.start();
    assert!(guest.pci.queue_events()[0].read().is_err());
}

#[test]
fn bus_mastering_that_comes_back_notifies_again() {
    let mut guest = Guest::new();
    guest.start();
    guest.ring.write_desc(0, 0x2_0000, 4, 0, 0);
    guest.ring.make_available(0);
    guest.set_command(0x2);
    guest.kick();
    assert_eq!(guest.ring.next_used(), None);
    guest.set_command(0x6);
    guest.run_queues();
    assert_eq!(guest.ring.next_used(), Some((0, 0)));
    // Not while there is no driver.
    guest.reset();
    guest.set_command(0x2);
    guest.set_command(0x6);
    assert!(guest.pci.queue_events()[0].read().is_err());
}

#[test]
fn shutdown_stops_the_device_once() {
    let guest = Guest::new();
    guest.pci.shutdown();
    guest.start();
    guest.pci.shutdown();
    guest.pci.shutdown();
    assert_eq!(guest.state().deactivations, 1);
    guest.kick();
    assert!(guest.state().processed.is_empty());
}

#[test]
fn the_event_loop_sees_every_notification() {
    let guest = Guest::new();
    let mut manager = EventManager::<super::VirtioSubscriber>::new().unwrap();
    manager.add_subscriber(guest.pci.subscriber());
    let mut run = || {
        while manager.run_with_timeout(0).unwrap() > 0 {}
    };
    guest.start();
    run();
    assert!(guest.state().processed.is_empty());
    // The eventfds are never read, and still each signal counts.
    for round in 1..=3 {
        guest.w16(NOTIFY, 0);
        run();
        assert_eq!(guest.state().processed.len(), round);
    }
    guest.pci.doorbells(0)[1].event.write(1).unwrap();
    guest.backend.write(1).unwrap();
    run();
    assert_eq!(guest.state().processed, [0, 0, 0, 1]);
    assert_eq!(guest.state().backend_calls, 1);
    // With nobody driving, the backend is still drained.
    guest.reset();
    guest.backend.write(1).unwrap();
    guest.w16(NOTIFY, 0);
    run();
    assert_eq!(guest.state().backend_calls, 2);
    assert_eq!(guest.state().processed.len(), 4);
}
