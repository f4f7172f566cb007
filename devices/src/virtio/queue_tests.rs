//! Virtqueues against an honest and a hostile driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_queue::{Queue, QueueT};

use super::queue::{QueueInterrupt, VirtQueue};
use super::test_ring::{NEXT, TestRing, WRITE};
use crate::dma::DmaMem;
use crate::testing::test_ram;

#[derive(Default)]
struct Count(AtomicU32);

impl Count {
    fn take(&self) -> u32 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl QueueInterrupt for Count {
    fn signal_queue(&self, index: u16) {
        assert_eq!(index, 5);
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn signal_config(&self) {
        panic!("a queue has no configuration");
    }
}

struct Rig {
    ring: TestRing,
    queue: VirtQueue,
    interrupts: Arc<Count>,
    bus_master: Arc<AtomicBool>,
}

fn rig(event_idx: bool) -> Rig {
    let ram = test_ram(0x10000);
    let ring = TestRing::new(&ram, 0x1000, 8);
    let bus_master = Arc::new(AtomicBool::new(true));
    let interrupts = Arc::new(Count::default());
    let queue = VirtQueue::new(
        5,
        ring.queue(event_idx),
        DmaMem::new(ram, bus_master.clone()),
        interrupts.clone(),
    );
    Rig {
        ring,
        queue,
        interrupts,
        bus_master,
    }
}

impl Rig {
    /// One chain of one descriptor, there and back.
    fn round_trip(&mut self, head: u16) {
        self.ring.write_desc(head, 0x8000, 16, 0, 0);
        self.ring.push(head);
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
    rig.ring.push(3);
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
    assert_eq!(rig.ring.pop_used(), Some((3, 32)));
    assert_eq!(rig.queue.size(), 8);
}

#[test]
fn indices_wrap() {
    let mut rig = rig(true);
    for i in 0..=u16::MAX {
        rig.round_trip(i % 8);
        assert_eq!(rig.ring.pop_used(), Some((u32::from(i % 8), 0)));
    }
    rig.round_trip(2);
    assert_eq!(rig.ring.pop_used(), Some((2, 0)));
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
        rig.ring.push(head);
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
    rig.ring.push(0);
    assert!(rig.queue.pop().unwrap().unwrap().count() <= 8);
}

#[test]
fn without_event_idx_the_drivers_flag_decides() {
    let mut rig = rig(false);
    rig.round_trip(0);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 1);
    // Nothing new: nothing said.
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 0);
    rig.ring.set_avail_flags(1);
    rig.round_trip(1);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 0);
    rig.ring.set_avail_flags(0);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 0);
    rig.round_trip(2);
    rig.round_trip(3);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 1);
}

#[test]
fn with_event_idx_a_batch_that_passes_the_event_interrupts_once() {
    let mut rig = rig(true);
    rig.ring.set_used_event(2);
    rig.round_trip(0);
    rig.round_trip(1);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 0);
    // Entries 2 to 4: the event is the first of them.
    for head in 2..5 {
        rig.round_trip(head);
    }
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 1);
    // Behind us now, so no more until the driver moves it.
    rig.round_trip(5);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 0);
    rig.ring.set_used_event(6);
    rig.round_trip(6);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 1);
    // A flag means nothing here.
    rig.ring.set_avail_flags(1);
    rig.ring.set_used_event(7);
    rig.round_trip(7);
    rig.queue.notify().unwrap();
    assert_eq!(rig.interrupts.take(), 1);
}

#[test]
fn notifications_are_asked_for_by_flag_or_by_index() {
    let mut by_flag = rig(false);
    by_flag.queue.disable_notification().unwrap();
    assert_eq!(by_flag.ring.used_flags(), 1);
    assert!(!by_flag.queue.enable_notification().unwrap());
    assert_eq!(by_flag.ring.used_flags(), 0);
    by_flag.ring.push(0);
    assert!(by_flag.queue.enable_notification().unwrap());

    let mut by_index = rig(true);
    by_index.round_trip(0);
    by_index.queue.disable_notification().unwrap();
    // The index stays behind, which disables it.
    assert_eq!(by_index.ring.avail_event(), 0);
    assert!(!by_index.queue.enable_notification().unwrap());
    assert_eq!(by_index.ring.avail_event(), 1);
    by_index.ring.push(1);
    assert!(by_index.queue.enable_notification().unwrap());
    assert!(by_index.queue.pop().unwrap().is_some());
    assert!(!by_index.queue.enable_notification().unwrap());
}

#[test]
fn without_bus_mastering_memory_is_left_alone() {
    let mut rig = rig(true);
    rig.ring.write_desc(0, 0x8000, 16, 0, 0);
    rig.ring.push(0);
    rig.bus_master.store(false, Ordering::Release);
    assert!(rig.queue.pop().unwrap().is_none());
    rig.queue.add_used(0, 0).unwrap();
    rig.queue.notify().unwrap();
    assert!(!rig.queue.enable_notification().unwrap());
    rig.queue.disable_notification().unwrap();
    assert_eq!(rig.ring.used_idx(), 0);
    assert_eq!(rig.interrupts.take(), 0);
    rig.bus_master.store(true, Ordering::Release);
    assert!(rig.queue.pop().unwrap().is_some());
}

#[test]
fn a_queue_that_is_not_ready_yields_nothing() {
    let ram = test_ram(0x1000);
    let mut queue = VirtQueue::new(
        5,
        Queue::new(8).unwrap(),
        DmaMem::always_on(ram),
        Arc::new(Count::default()),
    );
    assert!(queue.pop().unwrap().is_none());
    assert!(!queue.enable_notification().unwrap());
    queue.disable_notification().unwrap();
    queue.notify().unwrap();
}
