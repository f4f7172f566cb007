//! A PF that is ready for one guest after another.

use super::super::claim::{Lease, Request, Target, take};
use super::super::hold::{Hold, hold};
use super::super::netlink::VfSettings;
use super::super::recover::{recover, recover_in_passing};
use super::super::testing::{Fake, PF, stat};
use super::*;

const UP: &str = "0x1003";
const DOWN: &str = "0x1002";

fn fake() -> Fake {
    let fake = Fake::new();
    fake.put("sys/class/net/eth0/flags", DOWN);
    fake
}

fn held(fake: &Fake) -> Option<Hold> {
    hold(&fake.host, &fake.state(), address(PF), 1).unwrap()
}

fn guest(fake: &Fake) -> Vec<Lease> {
    let request = Request {
        target: Target::Vf {
            pf: PF.into(),
            vf: Some(0),
            settings: VfSettings::default(),
        },
        force: false,
    };
    take(&fake.host, &fake.state(), &[request], 64 << 20).unwrap()
}

fn how_it_is(fake: &Fake) -> (usize, String) {
    let vfs = read(fake, PF).sriov.unwrap().vfs.len();
    let flags = fake.host.read("sys/class/net/eth0/flags").unwrap();
    (vfs, flags)
}

#[test]
fn guests_come_and_go_and_the_vf_stays() {
    let fake = fake();
    let hold = held(&fake);
    assert!(hold.is_some());
    for _ in 0..2 {
        let lease = guest(&fake);
        assert_eq!(
            fake.driver("0000:01:10.0").as_deref(),
            Some("vfio-pci"),
            "not taken"
        );
        drop(lease);
        recover_in_passing(&fake.host, &fake.state());
        assert_eq!(how_it_is(&fake), (1, UP.into()));
        assert_eq!(fake.driver("0000:01:10.0").as_deref(), Some("igbvf"));
    }
    drop(hold);
    assert_eq!(how_it_is(&fake), (0, DOWN.into()));
    assert_eq!(fake.host.list("run/tripath/vfio"), ["lock"]);
}

#[test]
fn what_is_ready_is_left_alone() {
    let fake = fake();
    fake.put("sys/class/net/eth0/flags", UP);
    let first = held(&fake);
    assert!(held(&fake).is_none());
    drop(first);
    assert_eq!(how_it_is(&fake), (0, UP.into()));
}

#[test]
fn a_guest_that_outlives_the_holder_removes_the_vf() {
    let fake = fake();
    let hold = held(&fake);
    let lease = guest(&fake);
    drop(hold);
    assert_eq!(how_it_is(&fake), (1, UP.into()));
    drop(lease);
    assert_eq!(how_it_is(&fake), (0, DOWN.into()));
}

#[test]
fn whenever_the_holder_is_killed_everything_comes_back() {
    for changes in 0.. {
        let fake = fake();
        fake.inner().dies_after = Some(changes);
        let finished = hold(&fake.host, &fake.state(), address(PF), 1)
            .map(std::mem::forget)
            .is_ok();
        fake.inner().dies_after = None;
        let pid = std::process::id();
        fake.put(&format!("proc/{pid}/stat"), &stat(pid, "S", 2000));
        let state = fake.state();
        let recovered = recover(&fake.host, &state, &state.lock().unwrap()).unwrap();
        assert!(recovered.problems.is_empty(), "{changes}: {recovered:?}");
        assert_eq!(how_it_is(&fake), (0, DOWN.into()), "{changes}");
        assert_eq!(fake.host.list("run/tripath/vfio"), ["lock"], "{changes}");
        if finished {
            assert!(changes > 1, "only {changes} changes were interrupted");
            break;
        }
    }
}
