//! Interrupt moderation, in made-up time.

use super::super::moderation::Interrupts;
use super::super::registers::*;

const UNIT_NS: u64 = 1_024;

fn all_on() -> Interrupts {
    let mut interrupts = Interrupts::default();
    interrupts.unmask(ICR_ALL);
    interrupts
}

#[test]
fn itr_spaces_interrupts() {
    let mut interrupts = all_on();
    interrupts.set_itr(100);
    interrupts.raise(ICR_LSC);
    assert!(interrupts.sync(1_000));
    interrupts.take_icr();
    assert!(!interrupts.sync(2_000));
    interrupts.raise(ICR_LSC);
    assert!(!interrupts.sync(3_000));
    let at = interrupts.deadline_ns().unwrap();
    assert_eq!(at, 1_000 + 100 * 256);
    assert!(!interrupts.sync(at - 1));
    assert!(interrupts.sync(at));
    // It stays up until it is dealt with, and then nothing is due.
    assert!(interrupts.sync(at + 1));
    interrupts.take_icr();
    assert!(!interrupts.sync(at + 2));
    assert_eq!(interrupts.deadline_ns(), None);
}

#[test]
fn a_shorter_itr_counts_at_once() {
    let mut interrupts = all_on();
    interrupts.set_itr(1_000);
    interrupts.raise(ICR_LSC);
    assert!(interrupts.sync(1_000));
    interrupts.take_icr();
    interrupts.sync(1_000);
    interrupts.raise(ICR_LSC);
    interrupts.set_itr(10);
    assert!(!interrupts.sync(1_001));
    assert_eq!(interrupts.deadline_ns(), Some(1_000 + 2_560));
    interrupts.set_itr(0);
    assert!(interrupts.sync(1_002));
}

#[test]
fn frames_hold_the_report_back_but_not_for_ever() {
    let mut interrupts = all_on();
    (interrupts.tidv, interrupts.tadv) = (8, 20);
    let mut now_ns = 0;
    let mut reports = 0;
    for _ in 0..100 {
        interrupts.transmitted(now_ns, 1, true, 256);
        now_ns += UNIT_NS;
        if interrupts.sync(now_ns) {
            reports += 1;
            assert_eq!(interrupts.take_icr(), ICR_TXDW);
            interrupts.sync(now_ns);
        }
    }
    // Sixteen frames to a report.
    assert_eq!(reports, 6);
    let due = interrupts.deadline_ns().unwrap();
    assert_eq!(due, now_ns + 7 * UNIT_NS);
    assert!(!interrupts.sync(due - 1));
    assert!(interrupts.sync(due));
}

#[test]
fn delays_follow_the_pace_within_bounds() {
    let held_ns = |gap_ns: u64| {
        let mut interrupts = all_on();
        (interrupts.tidv, interrupts.tadv) = (8, 32);
        let mut now_ns = 0;
        for _ in 0..40 {
            now_ns += gap_ns;
            interrupts.sync(now_ns);
            interrupts.take_icr();
            interrupts.transmitted(now_ns, 1, true, 256);
        }
        interrupts.deadline_ns().map(|at| at - now_ns)
    };
    assert_eq!(held_ns(1), Some(8 * UNIT_NS));
    // One frame in 0.2 ms: some of the 3.2 ms from the first of them are over.
    assert!((100_000..=400_000).contains(&held_ns(200_000).unwrap()));
    // One in a second is no load, but nothing tells it from the first of many.
    assert_eq!(held_ns(1_000_000_000), Some(2_000_000));
}

#[test]
fn a_small_ring_is_reported_by_quarters() {
    let mut interrupts = all_on();
    interrupts.tidv = 8;
    interrupts.transmitted(0, 1, true, 8);
    assert!(!interrupts.sync(0));
    interrupts.transmitted(1, 1, true, 8);
    assert!(interrupts.sync(1));
}

#[test]
fn a_frame_without_delay_reports_all() {
    let mut interrupts = all_on();
    interrupts.tidv = 100;
    interrupts.transmitted(0, 1, true, 256);
    assert!(!interrupts.sync(0));
    interrupts.transmitted(1, 1, false, 256);
    assert!(interrupts.sync(1));
    interrupts.take_icr();
    assert!(!interrupts.sync(1_000_000_000));
}

#[test]
fn receive_delays_and_their_flush() {
    let mut interrupts = all_on();
    interrupts.received(0);
    assert!(interrupts.sync(0));
    assert_eq!(interrupts.take_icr(), ICR_RXT0);
    (interrupts.rdtr, interrupts.radv) = (50, 0);
    interrupts.received(0);
    assert!(!interrupts.sync(10));
    assert_eq!(interrupts.deadline_ns(), Some(50 * UNIT_NS));
    interrupts.flush_received();
    assert!(interrupts.sync(11));
}

#[test]
fn an_interrupt_takes_along_what_is_held_back() {
    let mut interrupts = all_on();
    interrupts.tidv = 8;
    interrupts.transmitted(0, 1, true, 256);
    // No interrupt is up: the driver that polls learns nothing early.
    assert_eq!(interrupts.take_icr(), 0);
    interrupts.received(1);
    assert_eq!(interrupts.take_icr(), ICR_RXT0 | ICR_TXDW);
    assert_eq!(interrupts.deadline_ns(), None);
}

#[test]
fn a_report_that_has_gone_with_answers_waits_longer_for_the_next() {
    const PERIOD_NS: u64 = 1_000_000;
    let mut interrupts = all_on();
    interrupts.tidv = 8;
    let mut now_ns = 0;
    let mut held_ns = |interrupts: &mut Interrupts, answered: bool| {
        now_ns += PERIOD_NS;
        interrupts.transmitted(now_ns, 1, true, 256);
        let due_ns = interrupts.deadline_ns().unwrap();
        let sent_ns = now_ns;
        if answered {
            now_ns += 1;
            interrupts.received(now_ns);
        } else {
            now_ns = due_ns;
        }
        assert!(interrupts.sync(now_ns));
        assert_ne!(interrupts.take_icr() & ICR_TXDW, 0);
        assert!(!interrupts.sync(now_ns));
        due_ns - sent_ns
    };
    for _ in 0..8 {
        assert!(held_ns(&mut interrupts, true) <= 2_000_000);
    }
    assert_eq!(held_ns(&mut interrupts, true), 8_000_000);
    // The answer does not come: the report is late once.
    assert_eq!(held_ns(&mut interrupts, false), 8_000_000);
    assert!(held_ns(&mut interrupts, true) <= 2_000_000);
}
