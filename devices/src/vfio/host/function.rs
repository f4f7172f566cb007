//! One PCI function as sysfs shows it (`Documentation/ABI/testing/sysfs-bus-pci` in Linux).

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::address::PciAddress;
use super::config_space::{ConfigSpace, Vectors};
use super::names;
use super::root::{Host, link_name};

/// Flags of a region in `resource` (`linux/ioport.h`).
const REGION_IO: u64 = 0x100;
const REGION_MEMORY: u64 = 0x200;
const REGION_PREFETCHABLE: u64 = 0x2000;
const REGION_64_BIT: u64 = 0x0010_0000;
/// Six BARs and the ROM come first in `resource`.
const ROM_INDEX: usize = 6;

/// A Base Address Register, or the expansion ROM's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// 0 to 5; 6 is the ROM.
    pub index: usize,
    /// `memory`, `io` or `rom`.
    pub kind: &'static str,
    /// Where the host has it.
    pub address: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Reads have no side effects.
    pub prefetchable: bool,
    /// It takes two registers.
    pub is_64_bit: bool,
}

/// A physical function's SR-IOV capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sriov {
    /// Most VFs there can be.
    pub total_vfs: u16,
    /// How many there are.
    pub vfs: Vec<PciAddress>,
    /// Linux offers new VFs to the host's drivers.
    pub drivers_autoprobe: bool,
}

/// The interrupts a function can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Interrupts {
    /// The pin, `A` to `D`.
    pub intx: Option<char>,
    /// Message-signalled.
    pub msi: Option<Vectors>,
    /// By a table in a BAR.
    pub msix: Option<Vectors>,
}

/// One function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID; for a VF, Linux takes it from its PF.
    pub device: u16,
    /// Base class, subclass and programming interface, as in `0x020000`.
    pub class: u32,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// Which driver alone may take it.
    pub driver_override: Option<String>,
    /// The IOMMU group; none without an IOMMU.
    pub group: Option<u32>,
    /// The NUMA node; none where there is only one.
    pub numa_node: Option<u32>,
    /// Set for a physical function with SR-IOV.
    pub sriov: Option<Sriov>,
    /// Set for a virtual function: its physical function.
    pub physical_function: Option<PciAddress>,
    /// Bridges from the root bus down to this function.
    pub upstream: Vec<PciAddress>,
    /// Its BARs that are not empty.
    pub bars: Vec<Bar>,
    /// How Linux can reset it, in the order it tries; none if the kernel does not tell (before 5.15).
    pub reset_methods: Option<Vec<String>>,
    /// Its configuration space.
    pub config: ConfigSpace,
    /// The network interfaces it has, by the host's driver.
    pub interfaces: Vec<String>,
}

/// The folder of a function, from the root of the host.
pub(super) fn folder(address: PciAddress) -> String {
    format!("sys/bus/pci/devices/{address}")
}

impl PciFunction {
    /// Reads one function; none if it is not there.
    #[must_use]
    pub fn read(host: &Host, address: PciAddress) -> Option<Self> {
        let at = folder(address);
        let hex = |name: &str| {
            let text = host.read(&format!("{at}/{name}"))?;
            u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
        };
        let id = |name: &str| u16::try_from(hex(name)?).ok();
        let path = host.path(&at);
        let link = |name: &str| link_name(&path.join(name));
        let config = fs::read(path.join("config")).unwrap_or_default();
        let number = host.read(&format!("{at}/numa_node"));
        Some(Self {
            address,
            vendor: id("vendor")?,
            device: id("device")?,
            class: hex("class")?,
            driver: link("driver"),
            driver_override: host
                .read(&format!("{at}/driver_override"))
                .filter(|text| !text.is_empty() && text != "(null)"),
            group: link("iommu_group").and_then(|group| group.parse().ok()),
            // -1 stands for none.
            numa_node: number.and_then(|node| node.parse().ok()),
            sriov: sriov(host, &at),
            physical_function: link("physfn").and_then(|name| name.parse().ok()),
            upstream: upstream(host, address),
            bars: host
                .read(&format!("{at}/resource"))
                .map_or_else(Vec::new, |text| bars(&text)),
            reset_methods: host
                .read(&format!("{at}/reset_method"))
                .map(|text| text.split_whitespace().map(str::to_owned).collect()),
            config: ConfigSpace::new(config),
            interfaces: host.list(&format!("{at}/net")),
        })
    }

    /// Every function of the host, by address.
    #[must_use]
    pub fn all(host: &Host) -> Vec<Self> {
        let names = host.list("sys/bus/pci/devices");
        let mut functions: Vec<Self> = names
            .iter()
            .filter_map(|name| Self::read(host, name.parse().ok()?))
            .collect();
        functions.sort_by_key(|function| function.address);
        functions
    }

    /// Whether a driver of VFIO's has it: `vfio-pci`, or a variant for one family of devices.
    #[must_use]
    pub fn is_on_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio_driver)
    }

    /// The number of a VF under its PF.
    #[must_use]
    pub fn vf_index(&self, host: &Host) -> Option<u32> {
        let siblings = vf_links(host, &folder(self.physical_function?));
        let own = siblings
            .into_iter()
            .find(|(_, address)| *address == self.address);
        own.map(|(index, _)| index)
    }

    /// The interrupts it can send.
    #[must_use]
    pub fn interrupts(&self) -> Interrupts {
        Interrupts {
            intx: self.config.interrupt_pin(),
            msi: self.config.msi(),
            msix: self.config.msix(),
        }
    }

    /// `Intel Corporation 82576 Virtual Function`, or the numbers where the database has no name.
    #[must_use]
    pub fn name(&self) -> String {
        let device = names::device(self.vendor, self.device);
        match (names::vendor(self.vendor), device) {
            (Some(vendor), Some(device)) => format!("{vendor} {device}"),
            (Some(vendor), None) => format!("{vendor} device {:04x}", self.device),
            (None, _) => format!("device {:04x}:{:04x}", self.vendor, self.device),
        }
    }

    /// What it is: `Ethernet controller`.
    #[must_use]
    pub fn class_name(&self) -> String {
        let [_, class, subclass, _] = self.class.to_be_bytes();
        match names::subclass(class, subclass) {
            Some(name) => name.to_owned(),
            None => format!("class {class:02x}{subclass:02x}"),
        }
    }
}

/// Whether that driver is VFIO's: then the function is for a guest, or free.
pub(super) fn is_vfio_driver(name: &str) -> bool {
    name.ends_with("vfio-pci") || name.ends_with("vfio_pci")
}

fn sriov(host: &Host, at: &str) -> Option<Sriov> {
    let read = |name: &str| host.read(&format!("{at}/{name}"));
    Some(Sriov {
        total_vfs: read("sriov_totalvfs")?.parse().ok()?,
        vfs: vf_links(host, at)
            .into_iter()
            .map(|(_, address)| address)
            .collect(),
        drivers_autoprobe: read("sriov_drivers_autoprobe").as_deref() != Some("0"),
    })
}

/// The VFs of a PF with their numbers, in that order.
fn vf_links(host: &Host, at: &str) -> Vec<(u32, PciAddress)> {
    let mut vfs: Vec<(u32, PciAddress)> = host
        .list(at)
        .iter()
        .filter_map(|name| {
            let index = name.strip_prefix("virtfn")?.parse().ok()?;
            let target = link_name(&host.path(at).join(name))?;
            Some((index, target.parse().ok()?))
        })
        .collect();
    vfs.sort_unstable();
    vfs
}

/// The bridges above a function: the folders of sysfs nest as the buses do.
fn upstream(host: &Host, address: PciAddress) -> Vec<PciAddress> {
    let path = fs::canonicalize(host.path(&folder(address))).unwrap_or_else(|_| PathBuf::new());
    let parts = path.iter().filter_map(|part| part.to_str()?.parse().ok());
    parts.filter(|part| *part != address).collect()
}

fn bars(text: &str) -> Vec<Bar> {
    let bar = |(index, line): (usize, &str)| {
        let mut numbers = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
        let (start, end, flags) = (
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        );
        let kind = match flags {
            _ if flags & (REGION_IO | REGION_MEMORY) == 0 => return None,
            _ if index == ROM_INDEX => "rom",
            _ if flags & REGION_IO != 0 => "io",
            _ => "memory",
        };
        Some(Bar {
            index,
            kind,
            address: start,
            size_bytes: end.checked_sub(start)?.checked_add(1)?,
            prefetchable: flags & REGION_PREFETCHABLE != 0,
            is_64_bit: flags & REGION_64_BIT != 0,
        })
    };
    text.lines()
        .enumerate()
        .take(ROM_INDEX + 1)
        .filter_map(bar)
        .collect()
}
