//! Virtqueues against an honest and a hostile driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{Queue, QueueT};

use super::queue::VirtQueue;
use super::test_driver::{DriverQueue, FakeInterrupts, NEXT, WRITE};
use crate::dma::DmaMem;
use crate::testing::test_ram;

const INDEX: u16 = 5;

struct Rig {
    ring: DriverQueue,
    queue: VirtQueue,
    interrupts: Arc<FakeInterrupts>,
    bus_master: Arc<AtomicBool>,
}

fn rig(event_idx: bool) -> Rig {
    let ram = test_ram(0x10000);
    let ring = DriverQueue::new(&ram, 0x1000, 8);
    let bus_master = Arc::new(AtomicBool::new(true));
    let interrupts = Arc::default();
    let dma = DmaMem::new(ram, bus_master.clone());
    let queue = ring.device_side(INDEX, &dma, &interrupts, event_idx);
    Rig {
        ring,
        queue,
        interrupts,
        bus_master,
    }
}

impl Rig {
    /// Interrupts since the last call.
    fn interrupts(&self) -> u32 {
        assert_eq!(
            self.interrupts.take_config(),
            0,
            "a queue has no configuration"
        );
        self.interrupts.take(INDEX)
    }

    /// One chain of one descriptor, there and back.
    fn round_trip(&mut self, head: u16) {
        self.ring.write_desc(head, 0x8000, 16, 0, 0);
        self.ring.make_available(head);
        let chain = self.queue.pop().unwrap().unwrap();
        self.queue.add_used(chain.head_index(), 0).unwrap();
    }
}

#[test]
fn a_chain_goes_there_and_back() {
    let mut rig = rig(false);
    assert!(rig.queue.pop().unwrap().is_none());
    rig.ring.write_desc(3, 0x8000, 16, NEXT, 1);
    rig.ring.write_desc(1, 0x9000, 32, WRITE, 0);
    rig.ring.make_available(3);
    let chain = rig.queue.pop().unwrap().unwrap();
    assert_eq!(chain.head_index(), 3);
    let parts: Vec<_> = chain
        .map(|d| (d.addr().0, d.len(), d.is_write_only()))
        .collect();
    assert_eq!(parts, [(0x8000, 16, false), (0x9000, 32, true)]);
    assert!(rig.queue.pop().unwrap().is_none());
    rig.queue.undo_pop();
    assert_eq!(rig.queue.pop().unwrap().unwrap().head_index(), 3);
    rig.queue.add_used(3, 32).unwrap();
    assert_eq!(rig.ring.next_used(), Some((3, 32)));
    assert_eq!(rig.queue.size(), 8);
}

#[test]
fn indices_wrap() {
    let mut rig = rig(true);
    for i in 0..=u16::MAX {
        rig.round_trip(i % 8);
        assert_eq!(rig.ring.next_used(), Some((i % 8, 0)));
    }
    rig.round_trip(2);
    assert_eq!(rig.ring.next_used(), Some((2, 0)));
    assert_eq!(rig.ring.used_idx(), 1);
}

#[test]
fn an_impossible_available_index_fails_the_queue() {
    let mut rig = rig(true);
    rig.ring.set_avail_idx(9);
    assert!(rig.queue.pop().is_err());
    rig.ring.set_avail_idx(u16::MAX);
    assert!(rig.queue.pop().is_err());
    // As many as the ring holds are possible.
    rig.ring.set_avail_idx(8);
    assert!(rig.queue.pop().unwrap().is_some());
}

#[test]
fn a_head_outside_the_table_is_empty_and_fails_the_queue() {
    let mut rig = rig(true);
    for head in [8, u16::MAX] {
        rig.ring.make_available(head);
        let chain = rig.queue.pop().unwrap().unwrap();
        assert_eq!(chain.head_index(), head);
        assert_eq!(chain.count(), 0);
        assert!(rig.queue.add_used(head, 0).is_err());
    }
    assert_eq!(rig.ring.used_idx(), 0);
}

#[test]
fn a_looping_chain_ends() {
    let mut rig = rig(true);
    rig.ring.write_desc(0, 0x8000, 1, NEXT, 1);
    rig.ring.write_desc(1, 0x8000, 1, NEXT, 0);
    rig.ring.make_available(0);
    assert!(rig.queue.pop().unwrap().unwrap().count() <= 8);
}

#[test]
fn without_event_idx_the_drivers_flag_decides() {
    let mut rig = rig(false);
    rig.round_trip(0);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 1);
    // Nothing new: nothing said.
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 0);
    rig.ring.set_no_interrupt(true);
    rig.round_trip(1);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 0);
    rig.ring.set_no_interrupt(false);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 0);
    rig.round_trip(2);
    rig.round_trip(3);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn with_event_idx_a_batch_that_passes_the_event_interrupts_once() {
    let mut rig = rig(true);
    rig.ring.set_used_event(2);
    rig.round_trip(0);
    rig.round_trip(1);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 0);
    // Entries 2 to 4: the event is the first of them.
    for head in 2..5 {
        rig.round_trip(head);
    }
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 1);
    // Behind us now, so no more until the driver moves it.
    rig.round_trip(5);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 0);
    rig.ring.set_used_event(6);
    rig.round_trip(6);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 1);
    // A flag means nothing here.
    rig.ring.set_no_interrupt(true);
    rig.ring.set_used_event(7);
    rig.round_trip(7);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts(), 1);
}

#[test]
fn notifications_are_asked_for_by_flag_or_by_index() {
    let mut by_flag = rig(false);
    by_flag.queue.disable_notification().unwrap();
    assert!(by_flag.ring.no_notify());
    assert!(!by_flag.queue.enable_notification().unwrap());
    assert!(!by_flag.ring.no_notify());
    by_flag.ring.make_available(0);
    assert!(by_flag.queue.enable_notification().unwrap());

    let mut by_index = rig(true);
    by_index.round_trip(0);
    by_index.queue.disable_notification().unwrap();
    // The index stays behind, which disables it.
    assert_eq!(by_index.ring.avail_event(), 0);
    assert!(!by_index.queue.enable_notification().unwrap());
    assert_eq!(by_index.ring.avail_event(), 1);
    by_index.ring.make_available(1);
    assert!(by_index.queue.enable_notification().unwrap());
    assert!(by_index.queue.pop().unwrap().is_some());
    assert!(!by_index.queue.enable_notification().unwrap());
}

#[test]
fn without_bus_mastering_memory_is_left_alone() {
    let mut rig = rig(true);
    rig.ring.write_desc(0, 0x8000, 16, 0, 0);
    rig.ring.make_available(0);
    rig.bus_master.store(false, Ordering::Release);
    assert!(rig.queue.pop().unwrap().is_none());
    rig.queue.add_used(0, 0).unwrap();
    rig.queue.notify().unwrap();
    assert!(!rig.queue.enable_notification().unwrap());
    rig.queue.disable_notification().unwrap();
    assert_eq!(rig.ring.used_idx(), 0);
    assert_eq!(rig.interrupts(), 0);
    rig.bus_master.store(true, Ordering::Release);
    assert!(rig.queue.pop().unwrap().is_some());
}

#[test]
fn a_queue_that_is_not_ready_yields_nothing() {
    let ram = test_ram(0x1000);
    let mut queue = VirtQueue::new(
        INDEX,
        Queue::new(8).unwrap(),
        DmaMem::always_on(ram),
        Arc::<FakeInterrupts>::default(),
    );
    assert!(queue.pop().unwrap().is_none());
    assert!(!queue.enable_notification().unwrap());
    queue.disable_notification().unwrap();
    queue.notify().unwrap();
}
