//! What becomes of each capability of a function, in one table, with the reason.

use crate::pci::config::{
    CAP_ID_MSIX, CAP_ID_PCI_EXPRESS, CAP_ID_POWER_MANAGEMENT, CAP_ID_VENDOR_SPECIFIC,
};

/// Capability ID of MSI.
pub const CAP_ID_MSI: u8 = 0x05;

/// What the guest sees of a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The hardware's registers, as far as the host's kernel lets them be written.
    Pass,
    /// Registers of ours.
    Emulate,
    /// Nothing: the list leads past it, and zeroes are in its place.
    Hide,
}

/// Where a capability is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// From 0x34, in the first 256 bytes (PCI 3.0, appendix H).
    Standard,
    /// From 0x100 (PCI Express Base 5.0, 7.6).
    Extended,
}

/// One row: what becomes of a capability, and why.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Which list it is in.
    pub list: List,
    /// Capability ID.
    pub id: u16,
    /// The specification's name.
    pub name: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
    /// Why.
    pub reason: &'static str,
}

const fn standard(id: u8, name: &'static str, treatment: Treatment, reason: &'static str) -> Rule {
    Rule {
        list: List::Standard,
        id: id as u16,
        name,
        treatment,
        reason,
    }
}

const fn extended(id: u16, name: &'static str, treatment: Treatment, reason: &'static str) -> Rule {
    Rule {
        list: List::Extended,
        id,
        name,
        treatment,
        reason,
    }
}

use Treatment::{Emulate, Hide, Pass};

/// Every capability that is not simply unknown. Those are hidden: what a register does must be known before a guest
/// may write it.
pub const RULES: &[Rule] = &[
    standard(
        CAP_ID_POWER_MANAGEMENT,
        "power management",
        Emulate,
        "in D3 the host takes the mapped registers away; the power state is ours, and the function stays in D0",
    ),
    standard(0x03, "vital product data", Pass, "the function's own"),
    standard(
        CAP_ID_MSI,
        "MSI",
        Emulate,
        "addresses are the guest's; the host programs the hardware with its own",
    ),
    standard(
        CAP_ID_VENDOR_SPECIFIC,
        "vendor-specific",
        Pass,
        "the driver knows what it is",
    ),
    standard(
        CAP_ID_PCI_EXPRESS,
        "PCI Express",
        Emulate,
        "on the root bus the function is an integrated endpoint, without the link that it has on the host",
    ),
    standard(
        CAP_ID_MSIX,
        "MSI-X",
        Emulate,
        "addresses are the guest's; the host programs the hardware with its own",
    ),
    standard(0x12, "SATA", Pass, "the function's own"),
    standard(
        0x13,
        "advanced features",
        Pass,
        "the host carries out the function-level reset that it offers",
    ),
    standard(
        0x07,
        "PCI-X",
        Hide,
        "about a bus that the guest does not have",
    ),
    standard(
        0x14,
        "enhanced allocation",
        Hide,
        "about addresses on the host",
    ),
    extended(0x03, "device serial number", Pass, "the function's own"),
    extended(0x0b, "vendor-specific", Pass, "the driver knows what it is"),
    extended(
        0x23,
        "designated vendor-specific",
        Pass,
        "the driver knows what it is",
    ),
    extended(
        0x01,
        "advanced error reporting",
        Hide,
        "errors go to the host's root port; the host tells us of them",
    ),
    extended(0x02, "virtual channel", Hide, "about the host's fabric"),
    extended(0x04, "power budgeting", Hide, "about the host's platform"),
    extended(0x08, "multi-function VC", Hide, "about the host's fabric"),
    extended(0x09, "virtual channel", Hide, "about the host's fabric"),
    extended(
        0x0d,
        "access control services",
        Hide,
        "isolation is the host's to arrange",
    ),
    extended(
        0x0e,
        "ARI",
        Hide,
        "the next function's number is that of the host; in the guest the function is alone in its device",
    ),
    extended(
        0x0f,
        "ATS",
        Hide,
        "there is no IOMMU in the guest; requests that claim to be translated would pass the host's",
    ),
    extended(
        0x10,
        "SR-IOV",
        Hide,
        "virtual functions appear on the host, outside any guest",
    ),
    extended(
        0x12,
        "multicast",
        Hide,
        "other functions of the host would hear it",
    ),
    extended(
        0x13,
        "page request",
        Hide,
        "there is no IOMMU in the guest; guest RAM is all there",
    ),
    extended(
        0x15,
        "resizable BAR",
        Hide,
        "the host's resources and our mappings have the size of the start",
    ),
    extended(
        0x16,
        "dynamic power allocation",
        Hide,
        "about the host's platform",
    ),
    extended(
        0x17,
        "TPH requester",
        Hide,
        "steering tags name caches of the host",
    ),
    extended(
        0x18,
        "latency tolerance reporting",
        Hide,
        "about the host's fabric",
    ),
    extended(
        0x19,
        "secondary PCI Express",
        Hide,
        "about a link that the guest does not see",
    ),
    extended(
        0x1b,
        "PASID",
        Hide,
        "there is no IOMMU in the guest to give the numbers meaning",
    ),
    extended(
        0x1d,
        "downstream port containment",
        Hide,
        "about a port of the host",
    ),
    extended(
        0x1e,
        "L1 PM substates",
        Hide,
        "about a link that the guest does not see",
    ),
    extended(
        0x1f,
        "precision time measurement",
        Hide,
        "time comes from the host's root",
    ),
    extended(0x24, "VF resizable BAR", Hide, "as for SR-IOV itself"),
    extended(
        0x25,
        "data link feature",
        Hide,
        "about a link that the guest does not see",
    ),
    extended(
        0x26,
        "physical layer 16 GT/s",
        Hide,
        "about a link that the guest does not see",
    ),
    extended(
        0x27,
        "lane margining",
        Hide,
        "about a link that the guest does not see",
    ),
];

/// What becomes of the capability `id`; those that are not in the table are hidden.
#[must_use]
pub fn treatment(list: List, id: u16) -> Treatment {
    RULES
        .iter()
        .find(|rule| rule.list == list && rule.id == id)
        .map_or(Hide, |rule| rule.treatment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_is_in_the_table_once() {
        for (index, rule) in RULES.iter().enumerate() {
            assert!(!rule.name.is_empty() && !rule.reason.is_empty());
            let twice = RULES[..index]
                .iter()
                .any(|other| other.list == rule.list && other.id == rule.id);
            assert!(!twice, "{rule:?}");
            assert!(rule.list == List::Standard || rule.treatment != Emulate);
        }
    }

    #[test]
    fn what_reaches_beyond_the_guest_and_what_is_unknown_is_hidden() {
        for id in [0x0e, 0x0f, 0x10, 0x13, 0x15, 0x1b, 0x24, 0x7777] {
            assert_eq!(treatment(List::Extended, id), Hide, "{id:#x}");
        }
        assert_eq!(treatment(List::Standard, 0xee), Hide);
        assert_eq!(treatment(List::Extended, 0x03), Pass);
        assert_eq!(treatment(List::Standard, 0x10), Emulate);
    }
}
