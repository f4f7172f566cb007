//! The host's IOMMU: whether it is there and on, whether it remaps interrupts and posts them to running guests, and
//! the groups it makes.

use std::fs;

use serde::Serialize;

use super::address::PciAddress;
use super::function::is_vfio_driver;
use super::root::{Host, link_name};

/// Whose IOMMU, and so which kernel parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuVendor {
    /// VT-d.
    Intel,
    /// AMD-Vi.
    Amd,
    /// Unknown to this program.
    Other,
}

impl CpuVendor {
    /// The firmware knows best; a processor of either can be emulated with the other's IOMMU.
    fn of(host: &Host) -> Self {
        if host.has("sys/firmware/acpi/tables/DMAR") {
            return Self::Intel;
        }
        if host.has("sys/firmware/acpi/tables/IVRS") {
            return Self::Amd;
        }
        let text = host.read("proc/cpuinfo").unwrap_or_default();
        if text.contains("GenuineIntel") {
            Self::Intel
        } else if text.contains("AuthenticAMD") || text.contains("HygonGenuine") {
            Self::Amd
        } else {
            Self::Other
        }
    }
}

/// Whether interrupts reach a running guest without a host CPU's help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterruptBypass {
    /// Intel's posted interrupts.
    Posted,
    /// AMD's virtual interrupt controller.
    Avic,
    /// The IOMMU could, and KVM does not: `kvm_intel.enable_apicv`, `kvm_amd.avic`.
    OffInKvm,
    /// The hardware cannot, or it is switched off.
    None,
}

/// What the host's IOMMU is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Iommu {
    /// The units, as `dmar0` or `ivhd0`; empty if it is off or absent.
    pub units: Vec<String>,
    /// The firmware describes one (ACPI's DMAR or IVRS).
    pub in_firmware: bool,
    /// Whose.
    pub vendor: CpuVendor,
    /// A device's interrupt reaches only what it was given: it can be assigned without trusting the guest.
    pub interrupt_remapping: bool,
    /// The kernel is told not to (`intremap=off`).
    pub remapping_switched_off: bool,
    /// VFIO is told to do without.
    pub unsafe_interrupts: bool,
    /// Interrupts that wake no host CPU.
    pub interrupt_bypass: InterruptBypass,
}

impl Iommu {
    /// Looks at the host's.
    #[must_use]
    pub fn read(host: &Host) -> Self {
        let vendor = CpuVendor::of(host);
        let units = host.list("sys/class/iommu");
        let parameter = |path: &str| {
            let text = host.read(&format!("sys/module/{path}"));
            text.is_some_and(|text| text.starts_with(['Y', '1']))
        };
        let interrupt_remapping = remaps_interrupts(host);
        let can_post = interrupt_remapping
            && !units.is_empty()
            && units.iter().all(|unit| can_post(host, unit));
        let interrupt_bypass = if !can_post || has_intremap(host, "nopost") {
            InterruptBypass::None
        } else if parameter("kvm_intel/parameters/enable_apicv") {
            InterruptBypass::Posted
        } else if parameter("kvm_amd/parameters/avic") {
            InterruptBypass::Avic
        } else {
            InterruptBypass::OffInKvm
        };
        Self {
            in_firmware: ["DMAR", "IVRS"]
                .iter()
                .any(|table| host.has(&format!("sys/firmware/acpi/tables/{table}"))),
            vendor,
            units,
            interrupt_remapping,
            remapping_switched_off: has_intremap(host, "off"),
            unsafe_interrupts: parameter("vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
            interrupt_bypass,
        }
    }
}

/// Linux names the chips of interrupts that go through remapping `IR-…`; no other file tells.
fn remaps_interrupts(host: &Host) -> bool {
    let text = host.read("proc/interrupts").unwrap_or_default();
    text.split_whitespace().any(|word| word.starts_with("IR-"))
}

/// Whether a unit has the hardware for it: VT-d 4.1, 11.4.2, capability bit 59; AMD-Vi 3.08, 3.4.11, GASup.
fn can_post(host: &Host, unit: &str) -> bool {
    let bit = |path: &str, bit: u32| {
        let text = host.read(&format!("sys/class/iommu/{unit}/{path}"));
        // AMD's may have a second word behind a colon.
        let word = text.and_then(|text| u64::from_str_radix(text.split(':').next()?, 16).ok());
        word.is_some_and(|word| word & (1 << bit) != 0)
    };
    bit("intel-iommu/cap", 59) || bit("amd-iommu/features", 7)
}

/// Whether the kernel's parameter `intremap` has this value.
fn has_intremap(host: &Host, wanted: &str) -> bool {
    let line = host.read("proc/cmdline").unwrap_or_default();
    line.split_whitespace()
        .filter_map(|word| word.strip_prefix("intremap="))
        .any(|value| value.split(',').any(|value| value == wanted))
}

/// A device in a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name in sysfs: a PCI address, for others whatever their bus has.
    pub name: String,
    /// Its driver.
    pub driver: Option<String>,
    /// Whether it is a PCI bridge.
    pub bridge: bool,
    /// What stands in the way of assigning the group, if it is this.
    pub blocks: bool,
}

/// An IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its number, as in `/dev/vfio/N`.
    pub number: u32,
    /// What is in it, by name.
    pub members: Vec<Member>,
}

impl Group {
    /// Reads a group.
    #[must_use]
    pub fn read(host: &Host, number: u32) -> Self {
        let at = format!("sys/kernel/iommu_groups/{number}/devices");
        let members = host.list(&at).into_iter().map(|name| {
            let folder = host.path(&at).join(&name);
            let driver = link_name(&folder.join("driver"));
            let config = fs::read(folder.join("config")).unwrap_or_default();
            let bridge = super::config_space::ConfigSpace::new(config).is_bridge();
            let blocks = driver
                .as_deref()
                .is_some_and(|driver| !leaves_dma_alone(driver, bridge));
            Member {
                name,
                driver,
                bridge,
                blocks,
            }
        });
        Self {
            number,
            members: members.collect(),
        }
    }

    /// All groups, by number.
    #[must_use]
    pub fn all(host: &Host) -> Vec<Self> {
        let mut numbers: Vec<u32> = host
            .list("sys/kernel/iommu_groups")
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers
            .into_iter()
            .map(|number| Self::read(host, number))
            .collect()
    }

    /// The members that a host driver has, without the functions that are to be assigned themselves.
    pub fn blockers<'a>(&'a self, wanted: &'a [PciAddress]) -> impl Iterator<Item = &'a Member> {
        self.members.iter().filter(|member| {
            let own = member
                .name
                .parse()
                .is_ok_and(|address| wanted.contains(&address));
            member.blocks && !own
        })
    }
}

/// The drivers beside which a group can be assigned: those that do no DMA of their own (`driver_managed_dma` in
/// Linux). Without a driver a function is always tolerated.
fn leaves_dma_alone(driver: &str, bridge: bool) -> bool {
    is_vfio_driver(driver) || driver == "pci-stub" || (bridge && driver == "pcieport")
}
