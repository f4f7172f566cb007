//! Whether a function could be assigned now. Nothing is changed by asking.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use rustix::io::Errno;

use super::address::PciAddress;
use super::function::{PciFunction, folder};
use super::iommu::{Group, Iommu, Member};
use super::reason::{Reason, Refusal};
use super::root::Host;
use super::state::{Claims, Owner};
use super::usage;

/// The base class of bridges (PCI Code and ID Assignment, 1.7).
const BRIDGE_CLASS: u32 = 0x06;

/// The host at one moment, for several questions.
#[derive(Debug)]
pub struct Check<'a> {
    host: &'a Host,
    iommu: Iommu,
    claims: Claims,
}

impl<'a> Check<'a> {
    /// Looks at the host. `claims` are those of runs that live.
    #[must_use]
    pub fn new(host: &'a Host, claims: Claims) -> Self {
        Self {
            host,
            iommu: Iommu::read(host),
            claims,
        }
    }

    /// The host's IOMMU.
    #[must_use]
    pub fn iommu(&self) -> &Iommu {
        &self.iommu
    }

    /// The run that has this function.
    #[must_use]
    pub fn owner(&self, function: PciAddress) -> Option<Owner> {
        self.claims.owner_of(function)
    }

    /// Every reason why the function cannot be assigned. `wanted` are all functions that the same guest is to have:
    /// those of one group do not stand in each other's way.
    #[must_use]
    pub fn function(&self, function: &PciFunction, wanted: &[PciAddress]) -> Vec<Reason> {
        // Host and ISA bridges have the header of a device.
        if function.config.is_bridge() || function.class >> 16 == BRIDGE_CLASS {
            return vec![Reason::Bridge];
        }
        let mut reasons = self.platform(Some(function));
        if let Some(number) = function.group {
            reasons.extend(self.group(number, wanted));
        }
        reasons.extend(self.relatives(function));
        if !function.is_on_vfio() {
            let usages = usage::of(self.host, function);
            reasons.extend(usages.into_iter().map(Reason::InUse));
        }
        reasons.extend(self.binding(function));
        reasons
    }

    /// The reasons that hold for every function: IOMMU and interrupt remapping.
    #[must_use]
    pub fn platform(&self, function: Option<&PciFunction>) -> Vec<Reason> {
        let Iommu {
            units,
            in_firmware,
            vendor,
            interrupt_remapping,
            unsafe_interrupts,
            ..
        } = &self.iommu;
        let grouped = function.is_none_or(|function| function.group.is_some());
        if units.is_empty() && (function.is_none() || !grouped) {
            return vec![Reason::NoIommu {
                in_firmware: *in_firmware,
                vendor: *vendor,
            }];
        }
        if !grouped {
            return vec![Reason::NoGroup];
        }
        if !interrupt_remapping && !unsafe_interrupts {
            return vec![Reason::NoInterruptRemapping {
                switched_off: self.iommu.remapping_switched_off,
                module_loaded: self.host.has("sys/module/vfio_iommu_type1"),
            }];
        }
        Vec::new()
    }

    fn group(&self, number: u32, wanted: &[PciAddress]) -> Vec<Reason> {
        let group = Group::read(self.host, number);
        let mut reasons: Vec<Reason> = group
            .blockers(wanted)
            .map(|member| self.on_host_driver(number, member))
            .collect();
        let owned = group.members.iter().find_map(|member| {
            let function = member.name.parse().ok()?;
            Some((function, self.claims.owner_of(function)?))
        });
        // Whoever opens the file for a moment could make a run fail that is about to: a claim is known without.
        match owned {
            Some((function, owner)) => reasons.push(Reason::ClaimedBy {
                function,
                pid: owner.pid,
            }),
            None => reasons.extend(self.open(&format!("dev/vfio/{number}"), Some(number))),
        }
        reasons
    }

    fn on_host_driver(&self, group: u32, member: &Member) -> Reason {
        let function = member.name.parse().ok();
        let name = function.and_then(|address| PciFunction::read(self.host, address));
        Reason::MemberOnHostDriver {
            group,
            member: member.name.clone(),
            name: name.map(|function| function.name()),
            driver: member.driver.clone().unwrap_or_default(),
        }
    }

    /// Why a file of VFIO's cannot be opened, if it is there.
    fn open(&self, path: &str, group: Option<u32>) -> Option<Reason> {
        let error = self.host.kernel().try_open(&self.host.path(path)).err()?;
        match (error.kind(), group) {
            (ErrorKind::PermissionDenied, _) => Some(Reason::NoPermission {
                path: format!("/{path}"),
                uid: self.host.kernel().caller().uid,
            }),
            (_, Some(group)) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                Some(Reason::GroupInUse { group })
            }
            // It appears when the first function of the group is bound; what else there is shows then.
            _ => None,
        }
    }

    /// PF and VFs.
    fn relatives(&self, function: &PciFunction) -> Option<Reason> {
        if let Some(pf) = function.physical_function {
            let driver = PciFunction::read(self.host, pf).map(|pf| (pf.is_on_vfio(), pf.driver));
            return match driver {
                Some((false, Some(_))) => None,
                Some((on_vfio, _)) => Some(Reason::PfWithoutDriver { pf, on_vfio }),
                None => Some(Reason::PfWithoutDriver { pf, on_vfio: false }),
            };
        }
        let sriov = function
            .sriov
            .as_ref()
            .filter(|sriov| !sriov.vfs.is_empty())?;
        Some(Reason::HasVfs {
            function: function.address,
            count: sriov.vfs.len(),
            used: self
                .used_vfs(&sriov.vfs)
                .into_iter()
                .map(|(vf, _)| vf)
                .collect(),
        })
    }

    /// Which of these VFs someone uses, and how.
    #[must_use]
    pub fn used_vfs(&self, vfs: &[PciAddress]) -> Vec<(PciAddress, Reason)> {
        let used = |address: &PciAddress| {
            let function = PciFunction::read(self.host, *address)?;
            let reason = self
                .claims
                .owner_of(*address)
                .map(|owner| Reason::ClaimedBy {
                    function: *address,
                    pid: owner.pid,
                });
            let reason = reason.or_else(|| {
                let group = function.group?;
                let busy = self.open(&format!("dev/vfio/{group}"), Some(group))?;
                matches!(busy, Reason::GroupInUse { .. }).then_some(busy)
            });
            let in_use = || {
                usage::of(self.host, &function)
                    .into_iter()
                    .next()
                    .map(Reason::InUse)
            };
            Some((*address, reason.or_else(in_use)?))
        };
        vfs.iter().filter_map(used).collect()
    }

    /// Whether it can come to vfio-pci, as far as it is not there.
    fn binding(&self, function: &PciFunction) -> Option<Reason> {
        if function.is_on_vfio() {
            return self.open("dev/vfio/vfio", None);
        }
        if let Some(reason) = self.vfio_pci() {
            return Some(reason);
        }
        let may = self.host.kernel().writable(
            &self
                .host
                .path(&format!("{}/driver_override", folder(function.address))),
        );
        (!may).then(|| Reason::MayNotBind {
            function: function.address,
            group: function.group,
            driver: function.driver.clone(),
            uid: self.host.kernel().caller().uid,
        })
    }

    /// Whether vfio-pci is missing and cannot be loaded.
    #[must_use]
    pub fn vfio_pci(&self) -> Option<Reason> {
        if self.host.has("sys/bus/pci/drivers/vfio-pci") {
            return None;
        }
        let release = self
            .host
            .read("proc/sys/kernel/osrelease")
            .unwrap_or_default();
        let modules = self
            .host
            .read(&format!("lib/modules/{release}/modules.dep"));
        let loadable = modules.is_some_and(|text| {
            let files = text.lines().filter_map(|line| line.split(':').next());
            let names: BTreeSet<&str> = files
                .filter_map(|file| file.rsplit('/').next()?.split('.').next())
                .collect();
            names.contains("vfio-pci") || names.contains("vfio_pci")
        });
        (!loadable).then_some(Reason::NoVfioPci { release })
    }
}

/// Name, model and driver of a function, as refusals have it.
#[must_use]
pub fn described(function: &PciFunction) -> String {
    let driver = function.driver.as_ref().map_or_else(
        || "no driver".to_owned(),
        |driver| format!("driver {driver}"),
    );
    format!("{} ({}, {driver})", function.address, function.name())
}

/// Reasons as refusals of one function.
pub(super) fn refusals(
    function: &PciFunction,
    reasons: Vec<Reason>,
) -> impl Iterator<Item = Refusal> {
    let described = described(function);
    reasons.into_iter().map(move |reason| Refusal {
        function: Some(described.clone()),
        reason,
    })
}
