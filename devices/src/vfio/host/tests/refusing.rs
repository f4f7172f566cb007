//! Each refusal's message.

use super::super::kernel::Caller;
use super::super::memory;
use super::super::testing::{BEHIND_BRIDGE, Fake, NVME, PAIR};
use super::*;

const NVME_TOLD: &str = "0000:02:00.0 (Intel Corporation QEMU NVM Express Controller, driver nvme) cannot be assigned: ";

/// The refusal of the NVMe drive, without its beginning.
fn nvme(fake: &Fake) -> String {
    let told = refusal(fake, NVME);
    told.strip_prefix(NVME_TOLD)
        .unwrap_or_else(|| panic!("{told}"))
        .to_owned()
}

#[test]
fn what_can_be_assigned() {
    let fake = Fake::new();
    assert_eq!(reasons(&fake, NVME), []);
    // The bridge in its group does not matter.
    assert_eq!(reasons(&fake, BEHIND_BRIDGE), []);
    fake.set_driver("0000:04:00.0", Some("pcieport"));
    assert_eq!(reasons(&fake, BEHIND_BRIDGE), []);
}

#[test]
fn iommu_off_and_absent() {
    let fake = Fake::new();
    fake.remove("sys/class/iommu/dmar0");
    fake.remove(&format!("sys/bus/pci/devices/{NVME}/iommu_group"));
    assert_eq!(
        nvme(&fake),
        "the host has no IOMMU, or its firmware hides it; to change that: switch VT-d on in the firmware's settings && add \
         intel_iommu=on to GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub && reboot"
    );
    fake.put("sys/firmware/acpi/tables/IVRS", "");
    assert_eq!(
        nvme(&fake),
        "the IOMMU is off: the firmware describes one, and the kernel does not use it; to change that: add amd_iommu=on to \
         GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub && reboot"
    );
}

#[test]
fn not_covered_by_the_iommu() {
    let fake = Fake::new();
    fake.remove(&format!("sys/bus/pci/devices/{NVME}/iommu_group"));
    assert_eq!(
        nvme(&fake),
        "it is in no IOMMU group: no IOMMU covers it; to change that: dmesg | grep -i -e DMAR -e AMD-Vi"
    );
}

#[test]
fn no_interrupt_remapping() {
    let fake = Fake::new();
    fake.put("proc/interrupts", "1: 9 IO-APIC 1-edge\n");
    let text = "the IOMMU does not remap interrupts: a guest could send the host any interrupt; to change that: ";
    let firmware =
        "switch interrupt remapping on in the firmware's settings, or, for guests that you trust: ";
    assert_eq!(
        nvme(&fake),
        format!("{text}{firmware}modprobe vfio_iommu_type1 allow_unsafe_interrupts=1")
    );
    let parameter = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    fake.put(parameter, "N\n");
    fake.put("proc/cmdline", "quiet intremap=off\n");
    let command_line = "remove intremap=off from the kernel's command line and reboot, or, for guests that you trust: ";
    assert_eq!(
        nvme(&fake),
        format!("{text}{command_line}echo Y > /{parameter}")
    );
    fake.put(parameter, "Y\n");
    assert_eq!(reasons(&fake, NVME), []);
}

#[test]
fn a_member_on_a_host_driver() {
    let fake = Fake::new();
    assert_eq!(
        refusal(&fake, PAIR[0]),
        "0000:03:00.0 (Intel Corporation 82574L Gigabit Network Connection, driver e1000e) cannot be assigned: 0000:03:00.1 \
         (Intel Corporation 82574L Gigabit Network Connection) is in the same IOMMU group 12 and on the host's driver e1000e; to \
         change that: echo 0000:03:00.1 > /sys/kernel/iommu_groups/12/devices/0000:03:00.1/driver/unbind"
    );
    for driver in [None, Some("vfio-pci"), Some("pci-stub")] {
        fake.set_driver(PAIR[1], driver);
        assert_eq!(reasons(&fake, PAIR[0]), []);
    }
}

#[test]
fn a_group_in_use() {
    let fake = Fake::new();
    fake.set_driver(NVME, Some("vfio-pci"));
    fake.inner().busy.insert("dev/vfio/11".into());
    assert_eq!(
        refusal(&fake, NVME),
        "0000:02:00.0 (Intel Corporation QEMU NVM Express Controller, driver vfio-pci) cannot be assigned: its IOMMU group 11 is \
         used by another guest or program; to change that: fuser -v /dev/vfio/11"
    );
}

#[test]
fn a_mounted_partition_and_swap() {
    let fake = Fake::new();
    fake.disk(NVME, "nvme0n1", "259:0");
    assert_eq!(reasons(&fake, NVME), []);
    fake.put(
        "proc/self/mountinfo",
        "36 25 259:9 / /srv/with\\040blank rw - ext4 /dev/nvme0n1p1 rw\n",
    );
    let text = "the host uses it: nvme0n1p1 is mounted on /srv/with blank; to change that: umount /srv/with blank; or take it all the same with force=on";
    assert_eq!(nvme(&fake), text);
    // btrfs has a device number of its own.
    fake.put(
        "proc/self/mountinfo",
        "36 25 0:31 / /srv rw - btrfs /dev/nvme0n1p1 rw\n",
    );
    assert!(nvme(&fake).starts_with("the host uses it: nvme0n1p1 is mounted on /srv;"));
    fake.put(
        "proc/self/mountinfo",
        "36 25 8:1 / / rw - ext4 /dev/sda1 rw\n",
    );
    assert_eq!(reasons(&fake, NVME), []);
    fake.put(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2\n",
    );
    assert_eq!(
        nvme(&fake),
        "the host uses it: nvme0n1 is swap space; to change that: swapoff /dev/nvme0n1; or take it all the same with force=on"
    );
}

#[test]
fn a_mount_upon_a_device_mapping() {
    let fake = Fake::new();
    fake.disk(NVME, "nvme0n1", "259:0");
    fake.put("sys/class/block/nvme0n1p1/holders/dm-0/here", "");
    fake.put("sys/class/block/dm-0/dev", "254:0\n");
    fake.put(
        "proc/self/mountinfo",
        "36 25 254:0 / /home rw - ext4 /dev/mapper/vg-home rw\n",
    );
    assert!(nvme(&fake).starts_with("the host uses it: dm-0 is mounted on /home;"));
}

#[test]
fn a_disk_that_someone_holds() {
    let fake = Fake::new();
    fake.disk(NVME, "nvme0n1", "259:0");
    fake.inner().held.insert("dev/nvme0n1p1".into());
    assert!(nvme(&fake).starts_with(
        "the host uses it: nvme0n1p1 is held by a device mapping, a RAID or a program;"
    ));
}

#[test]
fn a_disk_with_several_paths() {
    let fake = Fake::new();
    fake.attribute(NVME, "nvme/nvme0/nvme0c0n1/here", "");
    fake.put("sys/class/block/nvme0n1/dev", "259:0\n");
    fake.put(
        "proc/self/mountinfo",
        "36 25 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n",
    );
    assert!(nvme(&fake).starts_with("the host uses it: nvme0n1 is mounted on /srv;"));
}

#[test]
fn a_network_interface() {
    let fake = Fake::new();
    fake.set_driver(PAIR[1], None);
    fake.interface(PAIR[0], "eth1", 3, true);
    let told = || {
        refusal(&fake, PAIR[0])
            .split_once(": the host uses it: ")
            .unwrap()
            .1
            .to_owned()
    };
    let end = "; to change that: ip link set eth1 down; or take it all the same with force=on";
    assert_eq!(told(), format!("its network interface eth1 is up{end}"));
    fake.put("proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth1 00000000 0202000A 0003 0 0 0 00000000 0\n");
    assert_eq!(
        told(),
        format!("its network interface eth1 has the default route{end}")
    );
    let zeros = "0".repeat(32);
    fake.put("proc/net/route", "");
    fake.put(
        "proc/net/ipv6_route",
        &format!("{zeros} 00 {zeros} 00 fe80 0400 1 0 3 eth1\n"),
    );
    assert_eq!(
        told(),
        format!("its network interface eth1 has the default route{end}")
    );
    fake.put("proc/net/ipv6_route", "");
    fake.put("sys/class/net/eth1/flags", "0x1002");
    assert_eq!(reasons(&fake, PAIR[0]), []);
    std::os::unix::fs::symlink("../br0", fake.host.path("sys/class/net/eth1/master")).unwrap();
    assert!(told().starts_with(
        "its network interface eth1 is part of br0; to change that: ip link set eth1 nomaster"
    ));
}

#[test]
fn no_vfio_pci() {
    let fake = Fake::new();
    fake.put(
        "lib/modules/6.12.0-test/modules.dep",
        "kernel/drivers/net/igb.ko:\n",
    );
    assert_eq!(
        nvme(&fake),
        "the driver vfio-pci is missing, and kernel 6.12.0-test has no module of that name; to change that: boot a kernel with \
         CONFIG_VFIO_PCI and its modules installed"
    );
    fake.put("sys/bus/pci/drivers/vfio-pci/bind", "");
    assert_eq!(reasons(&fake, NVME), []);
}

#[test]
fn without_permission() {
    let fake = Fake::new();
    fake.inner().caller = Caller {
        uid: 1000,
        ipc_lock: false,
        memlock_bytes: None,
    };
    fake.inner()
        .denied
        .insert(format!("sys/bus/pci/devices/{NVME}/driver_override"));
    assert_eq!(
        nvme(&fake),
        "user 1000 may not take it from its driver nvme; to change that: modprobe vfio-pci && echo vfio-pci > \
         /sys/bus/pci/devices/0000:02:00.0/driver_override && echo 0000:02:00.0 > /sys/bus/pci/devices/0000:02:00.0/driver/unbind \
         && echo 0000:02:00.0 > /sys/bus/pci/drivers_probe && chown 1000 /dev/vfio/11"
    );
    fake.set_driver(NVME, Some("vfio-pci"));
    assert_eq!(reasons(&fake, NVME), []);
    fake.inner().denied.insert("dev/vfio/11".into());
    assert!(
        refusal(&fake, NVME).ends_with(
            "user 1000 may not open /dev/vfio/11; to change that: chown 1000 /dev/vfio/11"
        )
    );
}

#[test]
fn a_bridge_itself() {
    let fake = Fake::new();
    assert!(
        refusal(&fake, "0000:04:00.0")
            .ends_with("it is a bridge: only what is behind it can be assigned")
    );
}

#[test]
fn locked_memory() {
    let fake = Fake::new();
    let told = |guest: u64| {
        memory::check(&fake.host, guest)
            .iter()
            .map(|reason| {
                Refusal {
                    function: None,
                    reason: reason.clone(),
                }
                .to_string()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(told(64 << 20), [""; 0]);
    fake.inner().caller = Caller {
        uid: 1000,
        ipc_lock: false,
        memlock_bytes: Some(8 << 20),
    };
    let line = "64 MiB of memory have to be locked, and the limit is 8192 KiB; to change that: ulimit -l 65536   # or, in \
                /etc/security/limits.conf, for the next login: :1000 - memlock 65536";
    assert_eq!(told(64 << 20), [line]);
    fake.inner().caller.memlock_bytes = Some(64 << 20);
    assert_eq!(told(64 << 20), [""; 0]);
    // What is locked already counts.
    fake.put("proc/self/status", "VmPeak: 1 kB\nVmLck:\t      16 kB\n");
    assert!(told(64 << 20)[0].contains("ulimit -l 66560"));
    fake.inner().caller.memlock_bytes = None;
    assert_eq!(told(64 << 20), [""; 0]);
}

#[test]
fn a_control_groups_limit() {
    let fake = Fake::new();
    let told = |guest: u64| {
        memory::check(&fake.host, guest)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    fake.put("proc/self/cgroup", "0::/user.slice/a.scope\n");
    fake.put("sys/fs/cgroup/user.slice/a.scope/memory.max", "max\n");
    assert_eq!(told(1 << 30), [""; 0]);
    fake.put("sys/fs/cgroup/user.slice/memory.max", "1073741824\n");
    fake.put(
        "sys/fs/cgroup/user.slice/memory.stat",
        "anon 104857600\nfile 900000000\n",
    );
    assert_eq!(
        told(1 << 30),
        [
            "1088 MiB of memory have to be locked, and /sys/fs/cgroup/user.slice/memory.max leaves 924 MiB"
        ]
    );
    assert_eq!(told(512 << 20), [""; 0]);
    fake.put(
        "proc/self/cgroup",
        "5:cpu,memory:/jail\n1:name=systemd:/x\n",
    );
    fake.put(
        "sys/fs/cgroup/memory/jail/memory.limit_in_bytes",
        "67108864\n",
    );
    let remedy = memory::check(&fake.host, 64 << 20)[0].remedy();
    assert_eq!(
        remedy,
        [
            "raise /sys/fs/cgroup/memory/jail/memory.limit_in_bytes by at least 64 MiB, or give the guest less memory"
        ]
    );
}

#[test]
fn all_reasons_are_told_to_programs() {
    let fake = Fake::new();
    let json = serde_json::to_value(reasons(&fake, PAIR[0])).unwrap();
    assert_eq!(json[0]["code"], "member-on-host-driver");
    assert_eq!(json[0]["force"], false);
    assert!(
        json[0]["remedy"][0]
            .as_str()
            .unwrap()
            .ends_with("driver/unbind")
    );
}
