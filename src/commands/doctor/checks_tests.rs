//! The checks on fabricated hosts.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tempfile::TempDir;

use super::super::Mark;
use super::super::host::Live;
use super::*;

/// A host made of files, on which everything works as long as `live` is not changed.
struct Fake {
    folder: TempDir,
    live: Live,
}

impl Fake {
    fn new() -> Self {
        let live = Live {
            kvm: Ok(()),
            tun: Ok(()),
            io_uring: Ok(()),
            net_admin: true,
            ipc_lock: false,
            locked_memory_bytes: None,
        };
        let folder = tempfile::tempdir().unwrap();
        Self { folder, live }
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn folder(self, path: &str) -> Self {
        std::fs::create_dir_all(self.folder.path().join(path)).unwrap();
        self
    }

    fn live(mut self, change: impl FnOnce(&mut Live)) -> Self {
        change(&mut self.live);
        self
    }

    fn intel() -> Self {
        let cpuinfo =
            "processor\t: 0\nflags\t\t: fpu vmx sse\nvmx flags\t: vnmi ept\n\nprocessor\t: 1\n";
        Self::new()
            .file("proc/cpuinfo", cpuinfo)
            .file("sys/module/kvm_intel/parameters/ept", "Y\n")
            .file("sys/module/kvm_intel/parameters/nested", "Y\n")
            .file("dev/kvm", "")
    }

    fn amd() -> Self {
        Self::new()
            .file("proc/cpuinfo", "flags\t\t: fpu svm npt\n")
            .file("sys/module/kvm_amd/parameters/npt", "1\n")
            .file("sys/module/kvm_amd/parameters/nested", "0\n")
            .file("dev/kvm", "")
    }

    fn without_hardware() -> Self {
        Self::new().file("proc/cpuinfo", "flags\t\t: fpu sse\n")
    }

    fn check(self, check: fn(&Host) -> Finding) -> Finding {
        check(&Host::new(self.folder.path(), self.live))
    }
}

/// Checks the mark and that the line has these words in it.
fn expect(finding: &Finding, mark: Mark, words: &[&str]) {
    let line = finding.to_string();
    assert_eq!(finding.mark, mark, "{line}");
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line:?}");
    }
}

#[test]
fn a_good_host_has_nothing_to_change() {
    let fake = Fake::intel()
        .file(
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        )
        .folder("sys/kernel/iommu_groups/0")
        .folder("sys/bus/pci/drivers/vfio-pci")
        .file("dev/vfio/vfio", "");
    for finding in all(&Host::new(fake.folder.path(), fake.live)) {
        expect(&finding, Mark::Ok, &[]);
    }
}

#[test]
fn an_empty_host_is_told_about_without_a_panic() {
    let fake = Fake::new().live(|live| live.kvm = Err(Errno::NOENT));
    let findings = all(&Host::new(fake.folder.path(), fake.live));
    assert_eq!(
        findings.iter().map(|finding| finding.mark).max(),
        Some(Mark::Fail)
    );
}

#[test]
fn no_kvm_device() {
    let missing = |fake: Fake| {
        fake.live(|live| live.kvm = Err(Errno::NOENT))
            .check(kvm_device)
    };
    expect(
        &missing(Fake::intel()),
        Mark::Fail,
        &["no /dev/kvm", "modprobe kvm_intel", "VT-x"],
    );
    expect(
        &missing(Fake::amd()),
        Mark::Fail,
        &["modprobe kvm_amd", "AMD-V"],
    );
    expect(
        &missing(Fake::without_hardware()),
        Mark::Fail,
        &["firmware", "tests/testbed"],
    );
    let in_vm = Fake::new().file("proc/cpuinfo", "flags : fpu hypervisor\n");
    expect(&missing(in_vm), Mark::Fail, &["nested virtualisation"]);
}

#[test]
fn a_kvm_device_that_this_user_may_not_use() {
    let refused = |mode: u32| {
        let fake = Fake::intel().live(|live| live.kvm = Err(Errno::ACCESS));
        let device = fake.folder.path().join("dev/kvm");
        std::fs::set_permissions(&device, PermissionsExt::from_mode(mode)).unwrap();
        let gid = std::fs::metadata(&device).unwrap().gid();
        fake.file(
            "etc/group",
            &format!("other:x:4242424:\nvirt:x:{gid}:someone\n"),
        )
        .check(kvm_device)
    };
    expect(&refused(0o660), Mark::Fail, &["usermod -aG virt $USER"]);
    expect(
        &refused(0o600),
        Mark::Fail,
        &["setfacl -m u:$USER:rw /dev/kvm"],
    );
}

#[test]
fn other_reasons_why_kvm_does_not_open() {
    for (errno, word) in [
        (Errno::PERM, "docker run --device /dev/kvm"),
        (Errno::NODEV, "modprobe kvm_intel"),
        (Errno::MFILE, "dmesg"),
    ] {
        let finding = Fake::intel()
            .live(|live| live.kvm = Err(errno))
            .check(kvm_device);
        expect(&finding, Mark::Fail, &[word]);
    }
}

#[test]
fn hardware_virtualisation() {
    expect(
        &Fake::intel().check(virtualisation),
        Mark::Ok,
        &["VT-x with EPT", "kvm_intel"],
    );
    expect(
        &Fake::amd().check(virtualisation),
        Mark::Ok,
        &["AMD-V with NPT", "kvm_amd"],
    );
    let unloaded = Fake::new().file("proc/cpuinfo", "flags : svm npt\n");
    expect(
        &unloaded.check(virtualisation),
        Mark::Warn,
        &["modprobe kvm_amd"],
    );
}

#[test]
fn nested_paging_off_or_missing() {
    let off = Fake::intel().file("sys/module/kvm_intel/parameters/ept", "N\n");
    expect(
        &off.check(virtualisation),
        Mark::Warn,
        &["EPT switched off", "ept=1"],
    );
    let missing = Fake::amd()
        .file("proc/cpuinfo", "flags : svm\n")
        .file("sys/module/kvm_amd/parameters/npt", "0\n");
    expect(&missing.check(virtualisation), Mark::Warn, &["without NPT"]);
}

#[test]
fn a_software_kvm() {
    let fake = || Fake::without_hardware().file("dev/kvm", "");
    expect(
        &fake()
            .folder("sys/module/kvm_pvm")
            .folder("sys/module/kvm")
            .check(virtualisation),
        Mark::Fail,
        &["software KVM (kvm_pvm)", "stock kernels", "tests/testbed"],
    );
    expect(
        &fake().check(virtualisation),
        Mark::Fail,
        &["software KVM, which"],
    );
    let none = Fake::without_hardware().check(virtualisation);
    expect(&none, Mark::Fail, &["neither VT-x nor AMD-V"]);
}

#[test]
fn guests_in_guests() {
    expect(&Fake::intel().check(nested), Mark::Ok, &[]);
    expect(
        &Fake::amd().check(nested),
        Mark::Warn,
        &["load kvm_amd with nested=1"],
    );
    expect(&Fake::without_hardware().check(nested), Mark::Warn, &[]);
}

#[test]
fn transparent_huge_pages() {
    let with = |text| {
        Fake::new()
            .file("sys/kernel/mm/transparent_hugepage/enabled", text)
            .check(huge_pages)
    };
    expect(&with("[always] madvise never"), Mark::Ok, &["always"]);
    expect(&with("always [madvise] never"), Mark::Ok, &["madvise"]);
    expect(
        &with("always madvise [never]"),
        Mark::Warn,
        &["echo madvise"],
    );
    expect(
        &Fake::new().check(huge_pages),
        Mark::Warn,
        &["CONFIG_TRANSPARENT_HUGEPAGE"],
    );
}

#[test]
fn io_uring_refused() {
    let refused = |errno| Fake::new().live(|live| live.io_uring = Err(errno));
    let disabled = refused(Errno::PERM).file("proc/sys/kernel/io_uring_disabled", "2\n");
    expect(
        &disabled.check(io_uring),
        Mark::Warn,
        &["sysctl kernel.io_uring_disabled=0"],
    );
    let allowed = refused(Errno::PERM).file("proc/sys/kernel/io_uring_disabled", "0\n");
    expect(&allowed.check(io_uring), Mark::Warn, &["seccomp"]);
    for (errno, word) in [
        (Errno::NOSYS, "5.10"),
        (Errno::NOMEM, "ulimit -l"),
        (Errno::IO, "dmesg"),
    ] {
        expect(&refused(errno).check(io_uring), Mark::Warn, &[word]);
    }
}

#[test]
fn tap_for_root_and_for_users() {
    expect(&Fake::new().check(tap), Mark::Ok, &[]);
    let user = Fake::new().live(|live| live.net_admin = false);
    expect(&user.check(tap), Mark::Warn, &["ip tuntap add", "vnet_hdr"]);
    for (errno, word) in [
        (Errno::NOENT, "modprobe tun"),
        (Errno::ACCESS, "chmod 666"),
        (Errno::PERM, "--device /dev/net/tun"),
        (Errno::IO, "dmesg"),
    ] {
        expect(
            &Fake::new().live(|live| live.tun = Err(errno)).check(tap),
            Mark::Warn,
            &[word],
        );
    }
}

#[test]
fn locked_memory_limit() {
    let limited = || Fake::new().live(|live| live.locked_memory_bytes = Some(8 << 20));
    expect(
        &limited().check(locked_memory),
        Mark::Warn,
        &["at most 8M", "memlock", "LimitMEMLOCK"],
    );
    expect(
        &limited()
            .live(|live| live.ipc_lock = true)
            .check(locked_memory),
        Mark::Ok,
        &["CAP_IPC_LOCK"],
    );
    expect(&Fake::new().check(locked_memory), Mark::Ok, &["no limit"]);
}

#[test]
fn iommu_groups() {
    let on = Fake::intel()
        .folder("sys/kernel/iommu_groups/0")
        .folder("sys/kernel/iommu_groups/1");
    expect(&on.check(iommu), Mark::Ok, &["2 groups"]);
    expect(
        &Fake::intel().folder("sys/kernel/iommu_groups").check(iommu),
        Mark::Warn,
        &["intel_iommu=on"],
    );
    expect(&Fake::amd().check(iommu), Mark::Warn, &["AMD-Vi"]);
    expect(
        &Fake::without_hardware().check(iommu),
        Mark::Warn,
        &["VT-d or AMD-Vi"],
    );
}

#[test]
fn vfio_loaded_available_or_missing() {
    let loaded = || Fake::new().folder("sys/bus/pci/drivers/vfio-pci");
    expect(
        &loaded().file("dev/vfio/vfio", "").check(vfio),
        Mark::Ok,
        &[],
    );
    expect(&loaded().check(vfio), Mark::Warn, &["modprobe vfio-pci"]);
    for (list, text) in [
        (
            "modules.dep",
            "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n",
        ),
        ("modules.builtin", "kernel/drivers/vfio/pci/vfio-pci.ko\n"),
    ] {
        let available = Fake::new()
            .file("proc/sys/kernel/osrelease", "6.12\n")
            .file(&format!("lib/modules/6.12/{list}"), text);
        expect(&available.check(vfio), Mark::Warn, &["modprobe vfio-pci"]);
    }
    let others = Fake::new()
        .file("proc/sys/kernel/osrelease", "6.12\n")
        .file(
            "lib/modules/6.12/modules.dep",
            "kernel/x/nvgrace-vfio-pci.ko: kernel/vfio/pci/vfio-pci-core.ko\n",
        );
    expect(&others.check(vfio), Mark::Warn, &["CONFIG_VFIO_PCI"]);
}
