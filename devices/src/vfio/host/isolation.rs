//! Why an IOMMU group is as large as it is.
//!
//! Linux puts into one group what could reach one another without the IOMMU seeing it (`pci_device_group` in
//! `drivers/iommu/iommu.c`): what is behind a bridge to conventional PCI, what is behind a port that does not send
//! everything up (Access Control Services), the functions of one device without ACS. A quirk in the kernel can make up
//! for a port that lacks the capability; sysfs does not tell.

use std::fmt;

use serde::Serialize;

use super::address::PciAddress;
use super::config_space::PortKind;
use super::function::PciFunction;
use super::root::Host;

/// How one function on the way to the root isolates what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "acs")]
pub enum Isolation {
    /// All that Linux asks for is on.
    On,
    /// The capability is there, and these services are off.
    Off {
        /// Their names.
        services: Vec<&'static str>,
    },
    /// There is no such capability.
    Absent,
    /// A bridge to conventional PCI: the devices behind it share one identity towards the IOMMU.
    SharedIdentity,
    /// The function needs none.
    NotNeeded,
    /// This user may not read it.
    Unreadable,
}

impl Isolation {
    /// Whether what is below can only be assigned together.
    #[must_use]
    pub fn is_gap(&self) -> bool {
        matches!(self, Self::Off { .. } | Self::Absent | Self::SharedIdentity)
    }
}

/// One function on the way from the root to a device, the device included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which one.
    pub address: PciAddress,
    /// What it is.
    pub kind: PortKind,
    /// Whether it has others beside it in the same device.
    pub multifunction: bool,
    /// How it isolates.
    #[serde(flatten)]
    pub isolation: Isolation,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.isolation == Isolation::Unreadable {
            return write!(f, "{}: unknown, only root can read it", self.address);
        }
        let kind = match self.kind {
            PortKind::Conventional => "conventional PCI",
            PortKind::Endpoint => "endpoint",
            PortKind::RootPort => "root port",
            PortKind::UpstreamPort => "upstream port",
            PortKind::DownstreamPort => "downstream port",
            PortKind::PcieToPciBridge => "PCIe-to-PCI bridge",
            PortKind::PciToPcieBridge => "PCI-to-PCIe bridge",
            PortKind::IntegratedEndpoint => "integrated endpoint",
            PortKind::Other => "PCIe function",
        };
        write!(f, "{} ({kind}): ", self.address)?;
        match &self.isolation {
            Isolation::On => f.write_str("ACS is on"),
            Isolation::Off { services } => write!(f, "ACS lacks {}", services.join(", ")),
            Isolation::Absent if !self.kind.is_port() => {
                f.write_str("one of several functions without ACS: they are in one group")
            }
            Isolation::Absent => f.write_str("no ACS: what is behind it is in one group"),
            Isolation::SharedIdentity => f.write_str(
                "conventional PCI has no requester IDs: what is behind it is in one group",
            ),
            Isolation::NotNeeded => f.write_str("no ACS needed"),
            Isolation::Unreadable => Ok(()),
        }
    }
}

/// The way from the root to the function, it included.
#[must_use]
pub fn path(host: &Host, function: &PciFunction) -> Vec<Step> {
    let bridges = function
        .upstream
        .iter()
        .filter_map(|address| PciFunction::read(host, *address));
    let mut steps: Vec<Step> = bridges
        .map(|bridge| step(&bridge, is_alone(host, &bridge)))
        .collect();
    steps.push(step(function, is_alone(host, function)));
    steps
}

/// Whether no other function is in the same device. VFs have their own bits elsewhere.
fn is_alone(host: &Host, function: &PciFunction) -> bool {
    let PciAddress {
        domain,
        bus,
        device,
        function: own,
    } = function.address;
    function.physical_function.is_some()
        || !(0..8).any(|other| {
            let there = PciAddress {
                domain,
                bus,
                device,
                function: other,
            };
            other != own && host.has(&super::function::folder(there))
        })
}

fn step(function: &PciFunction, alone: bool) -> Step {
    let config = &function.config;
    let kind = config.port_kind();
    let isolation = match kind {
        _ if !config.is_whole() => Isolation::Unreadable,
        PortKind::PcieToPciBridge => Isolation::SharedIdentity,
        PortKind::Conventional if config.is_bridge() => Isolation::SharedIdentity,
        PortKind::Conventional
        | PortKind::Endpoint
        | PortKind::IntegratedEndpoint
        | PortKind::UpstreamPort
            if alone =>
        {
            Isolation::NotNeeded
        }
        PortKind::PciToPcieBridge => Isolation::Absent,
        _ => match config.acs() {
            None => Isolation::Absent,
            Some(acs) => match acs.off() {
                services if services.is_empty() => Isolation::On,
                services => Isolation::Off { services },
            },
        },
    };
    Step {
        address: function.address,
        kind,
        multifunction: !alone,
        isolation,
    }
}
