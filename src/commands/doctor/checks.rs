//! The checks, each of one thing.

use rustix::io::Errno;
use vmm_core::config::text::ByteSize;

use super::Finding;
use super::host::Host;

/// The test bed of this project's repository, where a stock guest runs on any host.
const TEST_BED: &str = "use a host with VT-x or AMD-V, or the test bed in tests/testbed";

/// Every finding, the ones that a guest cannot do without first.
pub fn all(host: &Host) -> Vec<Finding> {
    [
        kvm_device,
        virtualisation,
        nested,
        huge_pages,
        io_uring,
        tap,
        locked_memory,
        iommu,
        vfio,
    ]
    .map(|check| check(host))
    .into()
}

/// Is `/dev/kvm` there, and may this user use it?
fn kvm_device(host: &Host) -> Finding {
    let subject = "kvm";
    match host.live.kvm {
        Ok(()) => Finding::ok(subject, "/dev/kvm is there and usable by this user"),
        Err(Errno::NOENT) => Finding::fail(subject, "there is no /dev/kvm", how_to_get_kvm(host)),
        // The kernel has the device, but not its driver.
        Err(Errno::NODEV | Errno::NXIO) => {
            Finding::fail(subject, "/dev/kvm has no driver", how_to_get_kvm(host))
        }
        Err(Errno::ACCESS) => {
            let advice = match host.group_with_access("dev/kvm") {
                Some(group) => format!("sudo usermod -aG {group} $USER, then log in anew"),
                None => "sudo setfacl -m u:$USER:rw /dev/kvm".into(),
            };
            Finding::fail(subject, "this user may not use /dev/kvm", advice)
        }
        Err(Errno::PERM) => Finding::fail(
            subject,
            "opening /dev/kvm is forbidden",
            "a container must be given the device, as with docker run --device /dev/kvm",
        ),
        Err(errno) => Finding::fail(
            subject,
            format!("/dev/kvm cannot be opened ({errno})"),
            "see dmesg for what KVM says",
        ),
    }
}

fn how_to_get_kvm(host: &Host) -> String {
    match Cpu::of(host).vendor() {
        Some(vendor) => format!(
            "sudo modprobe {}; if that fails, switch {} on in the firmware's set-up, and in a container ask for the \
             device (docker run --device /dev/kvm)",
            vendor.module, vendor.name
        ),
        None => no_hardware_advice(host).into(),
    }
}

fn no_hardware_advice(host: &Host) -> &'static str {
    match Cpu::of(host).has("hypervisor") {
        true => {
            "this is a virtual machine: have nested virtualisation switched on for it, or use the test bed in \
                 tests/testbed"
        }
        false => {
            "switch VT-x or AMD-V (SVM) on in the firmware's set-up, or use the test bed in tests/testbed"
        }
    }
}

/// One vendor's hardware virtualisation.
struct Vendor {
    name: &'static str,
    /// The CPU's flag for it.
    flag: &'static str,
    module: &'static str,
    /// The CPU's flag and the module's parameter for nested paging.
    paging: &'static str,
}

const VENDORS: [Vendor; 2] = [
    Vendor {
        name: "Intel VT-x",
        flag: "vmx",
        module: "kvm_intel",
        paging: "ept",
    },
    Vendor {
        name: "AMD-V",
        flag: "svm",
        module: "kvm_amd",
        paging: "npt",
    },
];

/// The first CPU, as `/proc/cpuinfo` has it.
struct Cpu(Vec<String>);

impl Cpu {
    fn of(host: &Host) -> Self {
        let text = host.read("proc/cpuinfo").unwrap_or_default();
        let first = text.split("\n\n").next().unwrap_or_default();
        // "flags", and since Linux 5.9 "vmx flags" for what VMX itself can do.
        let lines = first.lines().filter_map(|line| line.split_once(':'));
        let lines = lines.filter(|(key, _)| matches!(key.trim(), "flags" | "vmx flags"));
        Self(
            lines
                .flat_map(|(_, flags)| flags.split_whitespace().map(Into::into))
                .collect(),
        )
    }

    fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|other| other == flag)
    }

    fn vendor(&self) -> Option<&'static Vendor> {
        VENDORS.iter().find(|vendor| self.has(vendor.flag))
    }
}

/// A parameter of a loaded module that is a switch; none if it cannot be told.
fn module_switch(host: &Host, module: &str, parameter: &str) -> Option<bool> {
    match host
        .read(&format!("sys/module/{module}/parameters/{parameter}"))?
        .as_str()
    {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

/// Hardware or software virtualisation?
pub(super) fn virtualisation(host: &Host) -> Finding {
    let subject = "virtualisation";
    let cpu = Cpu::of(host);
    let Some(vendor) = cpu.vendor() else {
        if !host.has("dev/kvm") {
            return Finding::fail(
                subject,
                "the CPU has neither VT-x nor AMD-V",
                no_hardware_advice(host),
            );
        }
        let modules = host.list("sys/module");
        let backends: Vec<_> = modules
            .iter()
            .filter(|name| name.starts_with("kvm_"))
            .map(String::as_str)
            .collect();
        let name = match backends.as_slice() {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        };
        return Finding::fail(
            subject,
            format!("this is a software KVM{name}, which stock kernels do not run on"),
            TEST_BED,
        );
    };
    let (name, module, paging) = (vendor.name, vendor.module, vendor.paging.to_uppercase());
    if !host.has(&format!("sys/module/{module}")) {
        return Finding::warn(
            subject,
            format!("{name}, but the module {module} is not loaded"),
            format!("sudo modprobe {module}; in a container this cannot be seen"),
        );
    }
    if module_switch(host, module, vendor.paging) == Some(false) {
        let (advice, found) = match cpu.has(vendor.paging) {
            true => (
                format!("load {module} with {}=1", vendor.paging),
                format!("{name} with {paging} switched off, which makes guests slow"),
            ),
            false => (
                "use a newer CPU, or have it offered to this virtual machine".into(),
                format!("{name} without {paging}, which makes guests slow"),
            ),
        };
        return Finding::warn(subject, found, advice);
    }
    Finding::ok(subject, format!("{name} with {paging}, module {module}"))
}

/// Can a guest run guests?
fn nested(host: &Host) -> Finding {
    let subject = "nested guests";
    let Some(vendor) = Cpu::of(host).vendor() else {
        return Finding::warn(subject, "not without hardware virtualisation", TEST_BED);
    };
    match module_switch(host, vendor.module, "nested") {
        Some(true) => Finding::ok(subject, "a guest may use KVM itself"),
        _ => Finding::warn(
            subject,
            "a guest cannot use KVM itself",
            format!("if it should, load {} with nested=1", vendor.module),
        ),
    }
}

/// Does asking for transparent huge pages help?
fn huge_pages(host: &Host) -> Finding {
    let subject = "huge pages";
    let advice =
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled makes guests faster";
    let Some(modes) = host.read("sys/kernel/mm/transparent_hugepage/enabled") else {
        return Finding::warn(
            subject,
            "the kernel has no transparent huge pages",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE for faster guests",
        );
    };
    let chosen = modes
        .split_whitespace()
        .find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some(mode @ ("always" | "madvise")) => {
            Finding::ok(subject, format!("transparent huge pages: {mode}"))
        }
        _ => Finding::warn(subject, "transparent huge pages are off", advice),
    }
}

/// Is io_uring there, for fast disks?
fn io_uring(host: &Host) -> Finding {
    let subject = "io_uring";
    match host.live.io_uring {
        Ok(()) => Finding::ok(subject, "available"),
        Err(Errno::NOSYS) => {
            Finding::warn(subject, "the kernel has none", "use Linux 5.10 or newer")
        }
        Err(Errno::PERM | Errno::ACCESS) => {
            let advice = match host.read("proc/sys/kernel/io_uring_disabled").as_deref() {
                Some("1" | "2") => "sudo sysctl kernel.io_uring_disabled=0",
                _ => "allow it in the container's seccomp profile",
            };
            Finding::warn(subject, "forbidden to this process", advice)
        }
        Err(Errno::NOMEM) => Finding::warn(
            subject,
            "refused for the locked-memory limit",
            "raise it with ulimit -l",
        ),
        Err(errno) => Finding::warn(subject, format!("not usable ({errno})"), "see dmesg"),
    }
}

/// Can a guest be given a network?
fn tap(host: &Host) -> Finding {
    let subject = "tap";
    let create = "sudo ip tuntap add dev tap0 mode tap user $USER vnet_hdr";
    match host.live.tun {
        Ok(()) if host.live.net_admin => {
            Finding::ok(subject, "/dev/net/tun is usable, and TAPs can be made")
        }
        Ok(()) => Finding::warn(
            subject,
            "this user may only use TAPs that were made for it",
            format!("make one with {create}"),
        ),
        Err(Errno::NOENT | Errno::NODEV) => {
            Finding::warn(subject, "there is no /dev/net/tun", "sudo modprobe tun")
        }
        Err(Errno::PERM) => Finding::warn(
            subject,
            "opening /dev/net/tun is forbidden",
            "a container must be given the device, as with docker run --device /dev/net/tun",
        ),
        Err(Errno::ACCESS) => Finding::warn(
            subject,
            "this user may not use /dev/net/tun",
            "sudo chmod 666 /dev/net/tun, as udev does; a TAP still needs its owner",
        ),
        Err(errno) => Finding::warn(
            subject,
            format!("/dev/net/tun cannot be opened ({errno})"),
            "see dmesg",
        ),
    }
}

/// How much memory may be pinned for a passthrough device?
fn locked_memory(host: &Host) -> Finding {
    let subject = "locked memory";
    match host.live.locked_memory_bytes {
        None => Finding::ok(subject, "no limit"),
        Some(_) if host.live.ipc_lock => {
            Finding::ok(subject, "no limit for this user (CAP_IPC_LOCK)")
        }
        Some(bytes) => Finding::warn(
            subject,
            format!(
                "at most {}, and a guest with a passthrough device locks all its memory",
                ByteSize(bytes)
            ),
            "raise it with \"$USER - memlock unlimited\" in /etc/security/limits.conf, or LimitMEMLOCK= in a unit",
        ),
    }
}

/// Is there an IOMMU in use?
fn iommu(host: &Host) -> Finding {
    let subject = "iommu";
    let groups = host.list("sys/kernel/iommu_groups").len();
    if groups > 0 {
        return Finding::ok(subject, format!("on, {groups} groups"));
    }
    let advice = match Cpu::of(host).vendor().map(|vendor| vendor.flag) {
        Some("vmx") => {
            "switch VT-d on in the firmware's set-up and add intel_iommu=on to the host's kernel command line"
        }
        Some("svm") => "switch the IOMMU (AMD-Vi) on in the firmware's set-up",
        _ => "passthrough needs a host with VT-d or AMD-Vi",
    };
    Finding::warn(subject, "off or not there, so no passthrough", advice)
}

/// Is VFIO there?
fn vfio(host: &Host) -> Finding {
    let subject = "vfio";
    let loaded = host.has("sys/bus/pci/drivers/vfio-pci");
    if loaded && host.has("dev/vfio/vfio") {
        return Finding::ok(subject, "vfio-pci is loaded");
    }
    if loaded || module_is_available(host, "vfio-pci") {
        return Finding::warn(
            subject,
            "not loaded, so no passthrough",
            "sudo modprobe vfio-pci",
        );
    }
    Finding::warn(
        subject,
        "the kernel has no vfio-pci, so no passthrough",
        "use a kernel with CONFIG_VFIO_PCI, such as the distribution's generic one",
    )
}

/// Whether the running kernel comes with a module.
fn module_is_available(host: &Host, module: &str) -> bool {
    let Some(release) = host.read("proc/sys/kernel/osrelease") else {
        return false;
    };
    // depmod(8): "path/name.ko[.xz]: dependencies"
    let file_name = format!("/{module}.ko");
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        let list = host
            .read(&format!("lib/modules/{release}/{list}"))
            .unwrap_or_default();
        list.lines()
            .filter_map(|line| line.split(':').next())
            .any(|path| path.contains(&file_name))
    })
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
