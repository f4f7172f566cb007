//! Taking, giving back, and what killed runs leave.

use super::super::claim::{ClaimError, Lease, Request, Target, take};
use super::super::netlink::VfSettings;
use super::super::recover::{Recovered, recover, recover_in_passing};
use super::super::sriov::{self, SriovError};
use super::super::testing::{Fake, NVME, PAIR, PF, stat};
use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];
const VF0: &str = "0000:01:10.0";
const VF1: &str = "0000:01:10.1";

fn whole(text: &str) -> Request {
    Request {
        target: Target::Function {
            address: address(text),
            keep: false,
        },
        force: false,
    }
}

fn vf(vf: Option<u32>, settings: VfSettings) -> Request {
    Request {
        target: Target::Vf {
            pf: "eth0".into(),
            vf,
            settings,
        },
        force: false,
    }
}

fn with_mac() -> Request {
    vf(
        None,
        VfSettings {
            mac: Some(MAC),
            vlan: Some(5),
            ..VfSettings::default()
        },
    )
}

fn claim(fake: &Fake, requests: &[Request]) -> Result<Vec<Lease>, ClaimError> {
    take(&fake.host, &fake.state(), requests, 64 << 20)
}

fn recover_now(fake: &Fake) -> Recovered {
    let state = fake.state();
    recover(&fake.host, &state, &state.lock().unwrap()).unwrap()
}

fn files(fake: &Fake) -> Vec<String> {
    fake.host.list("run/tripath/vfio")
}

fn make_vfs(fake: &Fake, count: u32) -> Result<(), SriovError> {
    let (pf, sriov) = sriov::find_pf(&fake.host, "eth0").unwrap();
    let check = Check::new(&fake.host, fake.state().live_claims(&fake.host).unwrap());
    sriov::set_vfs(&fake.host, &check, &pf, &sriov, count)
}

/// As if the process that took them were gone.
fn kill(fake: &Fake) {
    let pid = std::process::id();
    fake.put(&format!("proc/{pid}/stat"), &stat(pid, "S", 2000));
}

#[test]
fn a_whole_function_there_and_back() {
    let fake = Fake::new();
    let leases = claim(&fake, &[whole(NVME)]).unwrap();
    assert_eq!(
        (leases[0].address(), leases[0].group()),
        (address(NVME), 11)
    );
    assert_eq!(fake.driver(NVME).as_deref(), Some("vfio-pci"));
    assert_eq!(files(&fake), ["claim-0000:02:00.0.json", "lock"]);
    drop(leases);
    assert_eq!(fake.driver(NVME).as_deref(), Some("nvme"));
    assert_eq!(files(&fake), ["lock"]);
    assert_eq!(
        fake.inner().changes,
        [
            "modprobe vfio-pci",
            "modprobe vfio_iommu_type1",
            "0000:02:00.0/driver/unbind = 0000:02:00.0",
            "0000:02:00.0/driver_override = vfio-pci",
            "drivers_probe = 0000:02:00.0",
            "0000:02:00.0/driver/unbind = 0000:02:00.0",
            "0000:02:00.0/driver_override = ",
            "drivers/nvme/bind = 0000:02:00.0",
        ]
    );
}

#[test]
fn what_was_without_a_driver_or_on_vfio_stays_so() {
    let fake = Fake::new();
    fake.set_driver(NVME, None);
    drop(claim(&fake, &[whole(NVME)]).unwrap());
    assert_eq!(fake.driver(NVME), None);
    fake.set_driver(NVME, Some("vfio-pci"));
    let before = fake.inner().changes.len();
    drop(claim(&fake, &[whole(NVME)]).unwrap());
    assert_eq!(fake.driver(NVME).as_deref(), Some("vfio-pci"));
    assert_eq!(fake.inner().changes.len(), before);
}

#[test]
fn keep_keeps() {
    let fake = Fake::new();
    let request = Request {
        target: Target::Function {
            address: address(NVME),
            keep: true,
        },
        force: false,
    };
    drop(claim(&fake, std::slice::from_ref(&request)).unwrap());
    assert_eq!(fake.driver(NVME).as_deref(), Some("vfio-pci"));
    assert_eq!(files(&fake), ["lock"]);
    std::mem::forget(claim(&fake, &[request]).unwrap());
    kill(&fake);
    recover_now(&fake);
    assert_eq!(
        (fake.driver(NVME).as_deref(), files(&fake).len()),
        (Some("vfio-pci"), 1)
    );
}

#[test]
fn two_functions_of_one_group_go_together() {
    let fake = Fake::new();
    let refused = claim(&fake, &[whole(PAIR[0])]).unwrap_err();
    assert!(refused.to_string().contains("0000:03:00.1 (") && refused.is_users_mistake());
    assert_eq!(fake.inner().changes, [""; 0]);
    let leases = claim(&fake, &PAIR.map(whole)).unwrap();
    assert_eq!(leases.len(), 2);
    drop(leases);
    assert_eq!(
        PAIR.map(|function| fake.driver(function)),
        [Some("e1000e".into()), Some("e1000e".into())]
    );
    let twice = claim(&fake, &[whole(NVME), whole(NVME)]).unwrap_err();
    assert_eq!(
        twice.to_string(),
        "0000:02:00.0 is given twice: a function goes to a guest once"
    );
}

#[test]
fn all_refusals_are_told_at_once_and_force_goes_over_some() {
    let fake = Fake::new();
    fake.interface(PAIR[0], "eth1", 3, true);
    fake.inner().caller.ipc_lock = false;
    let mut request = whole(PAIR[0]);
    let refused = |request: &Request| {
        claim(&fake, std::slice::from_ref(request))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(refused(&request).lines().count(), 3);
    request.force = true;
    assert_eq!(refused(&request).lines().count(), 2);
    assert!(!refused(&request).contains("eth1"));
    fake.set_driver(PAIR[1], None);
    fake.inner().caller.ipc_lock = true;
    claim(&fake, &[request]).unwrap();
}

#[test]
fn what_is_not_there() {
    let fake = Fake::new();
    let error = claim(&fake, &[whole("0000:0f:00.0")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no PCI function 0000:0f:00.0; to change that: tripath vfio list"
    );
}

#[test]
fn a_vf_is_made_set_up_and_everything_undone() {
    let fake = Fake::new();
    fake.put("sys/class/net/eth0/flags", "0x1002");
    let leases = claim(&fake, &[with_mac()]).unwrap();
    assert_eq!((leases[0].address(), leases[0].group()), (address(VF0), 20));
    assert_eq!(fake.driver(VF0).as_deref(), Some("vfio-pci"));
    // Made for guests: no driver of the host's has seen them.
    assert_eq!(fake.driver(VF1), None);
    assert_eq!(fake.inner().vfs[&2].len(), 7);
    assert_eq!(
        fake.inner().vfs[&2][0],
        VfSettings {
            mac: Some(MAC),
            vlan: Some(5),
            spoofchk: Some(true),
            trust: Some(false)
        }
    );
    assert_eq!(
        files(&fake),
        ["claim-0000:01:10.0.json", "lock", "pf-0000:01:00.0.json"]
    );
    assert_eq!(
        fake.host.read("sys/class/net/eth0/flags").unwrap(),
        "0x1003"
    );
    assert_eq!(
        fake.host
            .read(&format!("sys/bus/pci/devices/{PF}/sriov_drivers_autoprobe"))
            .unwrap(),
        "1"
    );
    drop(leases);
    assert_eq!(read(&fake, PF).sriov.unwrap().vfs, []);
    assert_eq!(
        fake.host.read("sys/class/net/eth0/flags").unwrap(),
        "0x1002"
    );
    assert_eq!(files(&fake), ["lock"]);
}

#[test]
fn a_vf_that_was_there_gets_its_settings_back() {
    for refuses_zero_mac in [false, true] {
        let fake = Fake::new();
        make_vfs(&fake, 2).unwrap();
        fake.inner().refuses_zero_mac = refuses_zero_mac;
        assert_eq!(fake.driver(VF0).as_deref(), Some("igbvf"));
        let leases = claim(&fake, &[with_mac()]).unwrap();
        assert_eq!(files(&fake), ["claim-0000:01:10.0.json", "lock"]);
        drop(leases);
        assert_eq!(fake.driver(VF0).as_deref(), Some("igbvf"));
        let mac = if refuses_zero_mac { MAC } else { [0; 6] };
        assert_eq!(
            fake.inner().vfs[&2][0],
            VfSettings {
                mac: Some(mac),
                vlan: Some(0),
                spoofchk: Some(true),
                trust: Some(false)
            }
        );
        assert_eq!(
            (files(&fake).len(), read(&fake, PF).sriov.unwrap().vfs.len()),
            (1, 2)
        );
    }
}

#[test]
fn two_runs_never_get_the_same_vf() {
    let fake = Fake::new();
    make_vfs(&fake, 2).unwrap();
    let first = claim(&fake, &[with_mac()]).unwrap();
    let second = claim(&fake, &[with_mac()]).unwrap();
    assert_eq!(
        (first[0].address(), second[0].address()),
        (address(VF0), address(VF1))
    );
    let pid = std::process::id();
    let error = claim(&fake, &[with_mac()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "0000:01:00.0 has no free virtual function: 0000:01:10.0: 0000:01:10.0 is used by another tripath run, process {pid}, \
             0000:01:10.1: 0000:01:10.1 is used by another tripath run, process {pid}"
        )
    );
    let error = claim(&fake, &[vf(Some(1), VfSettings::default())]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "0000:01:10.1 (Intel Corporation 82576 Virtual Function, driver vfio-pci) cannot be assigned: 0000:01:10.1 is used by \
             another tripath run, process {pid}; to change that: kill {pid}"
        )
    );
    assert!(error.is_users_mistake());
    let error = make_vfs(&fake, 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the virtual functions of 0000:01:00.0 cannot be changed while 0000:01:10.0 is in use: 0000:01:10.0 is used by another \
             tripath run, process {pid}; to change that: kill {pid}"
        )
    );
}

#[test]
fn one_guest_can_have_two_vfs() {
    let fake = Fake::new();
    let leases = claim(&fake, &[with_mac(), with_mac()]).unwrap();
    assert_eq!(
        (leases[0].address(), leases[1].address()),
        (address(VF0), address(VF1))
    );
    drop(leases);
    assert_eq!(
        (files(&fake), read(&fake, PF).sriov.unwrap().vfs.len()),
        (vec!["lock".into()], 0)
    );
}

#[test]
fn numbers_are_taken_before_any_that_is_free() {
    let fake = Fake::new();
    let leases = claim(&fake, &[with_mac(), vf(Some(0), VfSettings::default())]).unwrap();
    assert_eq!(
        (leases[0].address(), leases[1].address()),
        (address(VF1), address(VF0))
    );
    drop(leases);
    fake.attribute(PF, "sriov_totalvfs", "2");
    let three = [with_mac(), with_mac(), with_mac()];
    let error = claim(&fake, &three).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0000:01:00.0 has at most 2 virtual functions, not 3"
    );
    let both = claim(&fake, &[vf(Some(1), VfSettings::default()), with_mac()]).unwrap();
    assert_eq!(both[0].address(), address(VF1));
}

#[test]
fn a_pf_does_not_go_with_its_vfs() {
    let fake = Fake::new();
    fake.put("sys/class/net/eth0/flags", "0x1002");
    let error = claim(&fake, &[with_mac(), whole(PF)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0000:01:00.0 cannot go to a guest together with its virtual functions: they would vanish with its driver"
    );
    assert_eq!(fake.inner().changes, [""; 0]);
}

#[test]
fn the_last_run_removes_the_vfs() {
    let fake = Fake::new();
    let first = claim(&fake, &[with_mac()]).unwrap();
    let second = claim(&fake, &[with_mac()]).unwrap();
    drop(first);
    assert_eq!(read(&fake, PF).sriov.unwrap().vfs.len(), 7);
    drop(second);
    assert_eq!(read(&fake, PF).sriov.unwrap().vfs, []);
}

#[test]
fn a_vf_that_the_host_uses_is_passed_over() {
    let fake = Fake::new();
    make_vfs(&fake, 2).unwrap();
    fake.interface(VF0, "eth5", 9, true);
    assert_eq!(
        claim(&fake, &[with_mac()]).unwrap()[0].address(),
        address(VF1)
    );
    let error = make_vfs(&fake, 0).unwrap_err().to_string();
    assert!(
        error
            .contains("0000:01:10.0 is in use: the host uses it: its network interface eth5 is up"),
        "{error}"
    );
}

#[test]
fn pf_and_vf_stand_in_each_others_way() {
    let fake = Fake::new();
    fake.put("sys/class/net/eth0/flags", "0x1002");
    make_vfs(&fake, 1).unwrap();
    let told = refusal(&fake, PF);
    assert!(told.ends_with("it has 1 virtual function, which would vanish with its driver; to change that: tripath vfio sriov 0000:01:00.0 --vfs 0"), "{told}");
    let lease = claim(&fake, &[with_mac()]).unwrap();
    let check = Check::new(&fake.host, fake.state().live_claims(&fake.host).unwrap());
    let told = check.function(&read(&fake, PF), &[address(PF)])[0].to_string();
    assert_eq!(told, "its virtual functions 0000:01:10.0 are in use");
    drop(lease);
    fake.set_driver(PF, None);
    assert!(refusal(&fake, VF0).ends_with("its physical function 0000:01:00.0 has no driver, and a VF does nothing without; to change that: echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"));
    let error = make_vfs(&fake, 2).unwrap_err().to_string();
    assert!(
        error.contains("no driver), which makes no virtual functions without its own driver"),
        "{error}"
    );
}

#[test]
fn numbers_that_there_are_not() {
    let fake = Fake::new();
    let error = |number| {
        claim(&fake, &[vf(Some(number), VfSettings::default())])
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(7),
        "0000:01:00.0 has at most 7 virtual functions, not 8"
    );
    assert_eq!(
        error(u32::MAX),
        "0000:01:00.0 has at most 7 virtual functions, not 4294967295"
    );
    make_vfs(&fake, 2).unwrap();
    assert_eq!(
        error(2),
        "0000:01:00.0 has 2 virtual functions, and no number 2: 'tripath vfio sriov 0000:01:00.0 --vfs 3' makes more"
    );
    assert_eq!(
        make_vfs(&fake, 8).unwrap_err().to_string(),
        "0000:01:00.0 has at most 7 virtual functions, not 8"
    );
    assert_eq!(
        claim(&fake, &[vf(Some(1), VfSettings::default())]).unwrap()[0].address(),
        address(VF1)
    );
}

/// A run is killed after each of its changes in turn; afterwards everything is as it was.
#[test]
fn whenever_a_run_is_killed_everything_comes_back() {
    for there in [0, 2] {
        for changes in 0.. {
            let fake = Fake::new();
            fake.put("sys/class/net/eth0/flags", "0x1002");
            make_vfs(&fake, there).unwrap();
            let already = fake.inner().changes.len();
            fake.inner().dies_after = Some(already + changes);
            let finished = claim(&fake, &[whole(NVME), with_mac()])
                .map(std::mem::forget)
                .is_ok();
            fake.inner().dies_after = None;
            kill(&fake);
            recover_in_passing(&fake.host, &fake.state());
            let recovered = recover_now(&fake);
            assert!(
                recovered.problems.is_empty() && recovered.done.is_empty(),
                "{changes}: {recovered:?}"
            );
            assert_eq!(files(&fake), ["lock"], "{changes}");
            assert_eq!(fake.driver(NVME).as_deref(), Some("nvme"), "{changes}");
            assert_eq!(read(&fake, NVME).driver_override, None, "{changes}");
            let vfs = read(&fake, PF).sriov.unwrap();
            assert_eq!(
                (vfs.vfs.len(), vfs.drivers_autoprobe),
                (there as usize, true),
                "{changes}"
            );
            if there > 0 {
                assert_eq!(fake.driver(VF0).as_deref(), Some("igbvf"), "{changes}");
                assert_eq!(fake.inner().vfs[&2][0].mac, Some([0; 6]), "{changes}");
            }
            assert_eq!(
                fake.host.read("sys/class/net/eth0/flags").unwrap(),
                "0x1002",
                "{changes}"
            );
            if finished {
                assert!(changes > 8, "only {changes} changes were interrupted");
                break;
            }
        }
    }
}

#[test]
fn a_start_that_needs_nothing_spares_who_lives() {
    let fake = Fake::new();
    recover_in_passing(&fake.host, &fake.state());
    assert!(files(&fake).is_empty());
    let leases = claim(&fake, &[whole(NVME), with_mac()]).unwrap();
    let changes = fake.inner().changes.len();
    recover_in_passing(&fake.host, &fake.state());
    assert_eq!(fake.inner().changes.len(), changes);
    drop(leases);
    assert_eq!(files(&fake), ["lock"]);
}

/// The same for the recovery itself.
#[test]
fn a_recovery_that_is_killed_is_taken_up() {
    for changes in 0.. {
        let fake = Fake::new();
        std::mem::forget(claim(&fake, &[whole(NVME), with_mac()]).unwrap());
        kill(&fake);
        let already = fake.inner().changes.len();
        fake.inner().dies_after = Some(already + changes);
        let finished = recover_now(&fake).problems.is_empty();
        fake.inner().dies_after = None;
        assert!(recover_now(&fake).problems.is_empty());
        assert_eq!(
            (files(&fake), fake.driver(NVME).as_deref()),
            (vec!["lock".into()], Some("nvme")),
            "{changes}"
        );
        assert_eq!(read(&fake, PF).sriov.unwrap().vfs, []);
        if finished {
            assert!(changes > 3);
            break;
        }
    }
}

#[test]
fn a_later_run_recovers_first_and_spares_who_lives() {
    let fake = Fake::new();
    let lease = claim(&fake, &[whole(NVME)]).unwrap();
    let recovered = recover_now(&fake);
    assert_eq!(
        (recovered.done.len(), recovered.in_use),
        (0, vec![address(NVME)])
    );
    std::mem::forget(lease);
    kill(&fake);
    let lease = claim(&fake, &[whole(NVME)]).unwrap();
    drop(lease);
    assert_eq!(fake.driver(NVME).as_deref(), Some("nvme"));
}

#[test]
fn a_process_that_is_only_waited_for_is_dead() {
    let fake = Fake::new();
    std::mem::forget(claim(&fake, &[whole(NVME)]).unwrap());
    let pid = std::process::id();
    fake.put(&format!("proc/{pid}/stat"), &stat(pid, "Z", 1000));
    assert_eq!(
        recover_now(&fake).done,
        [format!("0000:02:00.0: back on nvme, from process {pid}")]
    );
}

#[test]
fn a_function_that_is_gone_is_forgotten() {
    let fake = Fake::new();
    std::mem::forget(claim(&fake, &[whole(NVME)]).unwrap());
    kill(&fake);
    fake.remove(&format!("sys/bus/pci/devices/{NVME}"));
    assert!(recover_now(&fake).problems.is_empty());
    assert_eq!(files(&fake), ["lock"]);
}

#[test]
fn a_file_that_is_not_understood_is_named() {
    let fake = Fake::new();
    for (text, why) in [
        ("{", "EOF"),
        ("{\"version\":9}", "its version is Some(9), not 1"),
        ("{\"version\":1}", "missing field"),
    ] {
        fake.put("run/tripath/vfio/claim-0000:02:00.0.json", text);
        let error = claim(&fake, &[whole(NVME)]).unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("claim-0000:02:00.0.json is not understood") && told.contains(why),
            "{told}"
        );
        assert!(!error.is_users_mistake());
    }
    // A write that was cut short.
    fake.remove("run/tripath/vfio/claim-0000:02:00.0.json");
    fake.put("run/tripath/vfio/claim-0000:02:00.0.new", "{");
    claim(&fake, &[whole(NVME)]).unwrap();
}

#[test]
fn a_driver_that_does_not_come_is_told_and_undone() {
    let fake = Fake::new();
    fake.inner().modules.remove("vfio_iommu_type1");
    let error = claim(&fake, &[whole(NVME)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot load the module vfio_iommu_type1: FATAL: Module vfio_iommu_type1 not found."
    );
    assert_eq!(
        (fake.driver(NVME).as_deref(), files(&fake)),
        (Some("nvme"), vec!["lock".into()])
    );
}
