use super::super::iommu::{Group, InterruptBypass, Iommu};
use super::super::isolation::{self, Isolation};
use super::super::testing::{BEHIND_BRIDGE, Fake, NVME, PAIR, PF};
use super::super::{Bar, PciFunction, sriov};
use super::*;

#[test]
fn a_function() {
    let fake = Fake::new();
    let pf = read(&fake, PF);
    assert_eq!(
        (pf.vendor, pf.device, pf.class),
        (0x8086, 0x10c9, 0x02_0000)
    );
    assert_eq!(pf.driver.as_deref(), Some("igb"));
    assert_eq!(
        (pf.group, pf.numa_node, pf.driver_override.clone()),
        (Some(10), None, None)
    );
    assert_eq!(
        pf.name(),
        "Intel Corporation 82576 Gigabit Network Connection"
    );
    assert_eq!(pf.class_name(), "Ethernet controller");
    assert_eq!(pf.upstream, [address("0000:00:02.0")]);
    assert_eq!(pf.interfaces, ["eth0"]);
    assert_eq!(pf.reset_methods, Some(vec!["flr".into(), "bus".into()]));
    assert_eq!(
        pf.bars,
        [Bar {
            index: 0,
            kind: "memory",
            address: 0xfe00_0000,
            size_bytes: 0x4000,
            prefetchable: false,
            is_64_bit: true
        }]
    );
    let sriov = pf.sriov.unwrap();
    assert_eq!(
        (sriov.total_vfs, sriov.vfs.len(), sriov.drivers_autoprobe),
        (7, 0, true)
    );
    assert_eq!(PciFunction::all(&fake.host).len(), 10);
}

#[test]
fn what_has_no_name() {
    let fake = Fake::new();
    fake.attribute(NVME, "device", "0xfff0");
    assert_eq!(read(&fake, NVME).name(), "Intel Corporation device fff0");
    fake.attribute(NVME, "vendor", "0x0bad");
    assert_eq!(read(&fake, NVME).name(), "device 0bad:fff0");
}

#[test]
fn groups() {
    let fake = Fake::new();
    let groups = Group::all(&fake.host);
    assert_eq!(
        groups.iter().map(|group| group.number).collect::<Vec<_>>(),
        [0, 1, 2, 3, 10, 11, 12, 13]
    );
    let pair = &groups[6];
    assert_eq!(
        pair.members
            .iter()
            .map(|member| member.blocks)
            .collect::<Vec<_>>(),
        [true, true]
    );
    let wanted = [address(PAIR[0])];
    assert_eq!(
        pair.blockers(&wanted)
            .map(|member| &*member.name)
            .collect::<Vec<_>>(),
        [PAIR[1]]
    );
    assert_eq!(pair.blockers(&PAIR.map(address)).count(), 0);
}

#[test]
fn which_members_are_tolerated() {
    let fake = Fake::new();
    let blocks = |driver: Option<&str>| {
        fake.set_driver("0000:04:00.0", driver);
        Group::read(&fake.host, 13).members[0].blocks
    };
    assert!(
        !blocks(None)
            && !blocks(Some("pcieport"))
            && !blocks(Some("vfio-pci"))
            && !blocks(Some("pci-stub"))
    );
    assert!(blocks(Some("shpchp")));
    // A driver for ports on what is no bridge.
    fake.set_driver(BEHIND_BRIDGE, Some("pcieport"));
    assert!(Group::read(&fake.host, 13).members[1].blocks);
    fake.set_driver(BEHIND_BRIDGE, Some("mlx5_vfio_pci"));
    assert!(!Group::read(&fake.host, 13).members[1].blocks);
}

#[test]
fn what_makes_a_group_large() {
    let fake = Fake::new();
    let path = |text: &str| isolation::path(&fake.host, &read(&fake, text));
    let steps = path(NVME);
    assert_eq!(
        steps
            .iter()
            .map(|step| step.isolation.clone())
            .collect::<Vec<_>>(),
        [Isolation::On, Isolation::NotNeeded]
    );
    let told = |text: &str| {
        path(text)
            .iter()
            .filter(|step| step.isolation.is_gap())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        told(PAIR[0]),
        ["0000:03:00.0 (endpoint): one of several functions without ACS: they are in one group"]
    );
    assert_eq!(
        told(BEHIND_BRIDGE),
        [
            "0000:04:00.0 (PCIe-to-PCI bridge): conventional PCI has no requester IDs: what is behind it is in one group"
        ]
    );
    let port = |extended: &[(u16, &[u8])]| {
        use super::super::config_space::testing::{pcie, space};
        let config = space(1, 0, &[(0x10, &pcie(4, false))], extended);
        std::fs::write(
            fake.host.path("sys/bus/pci/devices/0000:00:03.0/config"),
            config,
        )
        .unwrap();
        told(NVME)
    };
    assert_eq!(
        port(&[]),
        ["0000:00:03.0 (root port): no ACS: what is behind it is in one group"]
    );
    assert_eq!(
        port(&[(0x0d, &[0x1d, 0, 0x11, 0])]),
        ["0000:00:03.0 (root port): ACS lacks request redirect, completion redirect"]
    );
}

#[test]
fn without_root_the_way_is_unknown() {
    let fake = Fake::new();
    let config = fake
        .host
        .path(&format!("sys/bus/pci/devices/{NVME}/config"));
    let bytes = std::fs::read(&config).unwrap();
    std::fs::write(&config, &bytes[..64]).unwrap();
    let steps = isolation::path(&fake.host, &read(&fake, NVME));
    assert_eq!(steps[1].isolation, Isolation::Unreadable);
}

#[test]
fn interrupt_bypass() {
    let fake = Fake::new();
    let bypass = || Iommu::read(&fake.host).interrupt_bypass;
    assert_eq!(bypass(), InterruptBypass::None);
    fake.put("sys/class/iommu/dmar0/intel-iommu/cap", "8d2008c40660462\n");
    assert_eq!(bypass(), InterruptBypass::OffInKvm);
    fake.put("sys/module/kvm_intel/parameters/enable_apicv", "Y\n");
    assert_eq!(bypass(), InterruptBypass::Posted);
    fake.put("proc/cmdline", "quiet intremap=on,nopost");
    assert_eq!(bypass(), InterruptBypass::None);
    fake.remove("proc/cmdline");
    fake.put("proc/interrupts", "1: 9 IO-APIC 1-edge\n");
    assert_eq!(bypass(), InterruptBypass::None);
}

#[test]
fn avic() {
    let fake = Fake::new();
    fake.remove("sys/class/iommu/dmar0");
    fake.put(
        "sys/class/iommu/ivhd0/amd-iommu/features",
        "f77ef22294ada:0\n",
    );
    fake.put("sys/module/kvm_amd/parameters/avic", "1\n");
    assert_eq!(
        Iommu::read(&fake.host).interrupt_bypass,
        InterruptBypass::Avic
    );
}

#[test]
fn a_pf_by_name_and_by_address() {
    let fake = Fake::new();
    for name in ["eth0", PF, "01:00.0"] {
        assert_eq!(
            sriov::find_pf(&fake.host, name).unwrap().0.address,
            address(PF)
        );
    }
    let error = |name: &str| sriov::find_pf(&fake.host, name).unwrap_err().to_string();
    assert!(error("eth9").starts_with("'eth9' is neither a network interface on a PCI function"));
    assert!(error("../../x").starts_with("'../../x' is neither"));
    assert!(error("0000:0f:00.0").starts_with("'0000:0f:00.0' is neither"));
    assert_eq!(
        error(NVME),
        "0000:02:00.0 (Intel Corporation QEMU NVM Express Controller, driver nvme) has no SR-IOV: it makes no virtual functions"
    );
}
