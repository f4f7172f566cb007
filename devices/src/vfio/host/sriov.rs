//! Virtual functions: finding their PF, making and removing them.

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use super::address::PciAddress;
use super::bind::{self, ActionError};
use super::check::{Check, described};
use super::function::{PciFunction, Sriov, folder};
use super::netlink::VfSettings;
use super::reason::Reason;
use super::root::{Host, link_name};

/// VFs appear while their number is being written; only their last links may come later.
const APPEAR_LIMIT: Duration = Duration::from_secs(10);

/// VFs cannot be made or removed.
#[derive(Debug, Error)]
pub enum SriovError {
    /// No such PF.
    #[error(
        "'{0}' is neither a network interface on a PCI function nor the address of a function ('tripath vfio list' shows them)"
    )]
    NoSuchPf(String),
    /// A VF was named in place of its PF.
    #[error("{vf} is itself a virtual function: name its physical function, {pf}")]
    IsVf {
        /// The VF.
        vf: PciAddress,
        /// Its PF.
        pf: PciAddress,
    },
    /// Not a PF.
    #[error("{0} has no SR-IOV: it makes no virtual functions")]
    NoSriov(String),
    /// The PF's driver makes VFs, and there is none.
    #[error(
        "{described}, which makes no virtual functions without its own driver; to change that: echo {pf} > /sys/bus/pci/drivers_probe"
    )]
    NoDriver {
        /// The PF.
        pf: PciAddress,
        /// With name and driver.
        described: String,
    },
    /// More than there can be.
    #[error("{pf} has at most {most} virtual functions, not {wanted}")]
    TooMany {
        /// The PF.
        pf: PciAddress,
        /// How many there can be.
        most: u16,
        /// How many there were to be.
        wanted: u32,
    },
    /// A VF would be taken from who uses it.
    #[error(
        "the virtual functions of {pf} cannot be changed while {vf} is in use: {reason}{}",
        remedy(reason)
    )]
    InUse {
        /// The PF.
        pf: PciAddress,
        /// The VF.
        vf: PciAddress,
        /// By whom.
        reason: Reason,
    },
    /// It did not work.
    #[error(transparent)]
    Action(#[from] ActionError),
}

fn remedy(reason: &Reason) -> String {
    let lines = reason.remedy();
    if lines.is_empty() {
        String::new()
    } else {
        format!("; to change that: {}", lines.join(" && "))
    }
}

/// A VF as `tripath vfio sriov` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VfInfo {
    /// Its number under its PF.
    pub index: u32,
    /// Its address.
    pub address: PciAddress,
    /// Its driver.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// What the PF has set for it; nothing if it has no interface.
    pub settings: VfSettings,
    /// Who uses it.
    pub used: Option<Reason>,
}

/// Finds a PF by its network interface or its address.
///
/// # Errors
/// [`SriovError::NoSuchPf`], [`SriovError::IsVf`], [`SriovError::NoSriov`].
pub fn find_pf(host: &Host, name: &str) -> Result<(PciFunction, Sriov), SriovError> {
    let function = find(host, name).ok_or_else(|| SriovError::NoSuchPf(name.to_owned()))?;
    if let Some(pf) = function.physical_function {
        return Err(SriovError::IsVf {
            vf: function.address,
            pf,
        });
    }
    match function.sriov.clone() {
        Some(sriov) => Ok((function, sriov)),
        None => Err(SriovError::NoSriov(described(&function))),
    }
}

fn find(host: &Host, name: &str) -> Option<PciFunction> {
    let address = match name.parse() {
        Ok(address) => address,
        Err(_) if name.contains('/') => return None,
        Err(_) => {
            let device = host.path(&format!("sys/class/net/{name}/device"));
            link_name(&device)?.parse().ok()?
        }
    };
    PciFunction::read(host, address)
}

/// The VFs of a PF.
#[must_use]
pub fn vfs(host: &Host, check: &Check<'_>, pf: &PciFunction, sriov: &Sriov) -> Vec<VfInfo> {
    let interface = bind::interface_of(host, pf.address);
    let settings = interface.and_then(|(_, index)| host.kernel().vf_settings(index).ok());
    let settings = settings.unwrap_or_default();
    let mut used = check.used_vfs(&sriov.vfs);
    let mut infos = Vec::new();
    for address in &sriov.vfs {
        let Some(function) = PciFunction::read(host, *address) else {
            continue;
        };
        let index = function.vf_index(host).unwrap_or(0);
        let position = used.iter().position(|(vf, _)| vf == address);
        infos.push(VfInfo {
            index,
            address: *address,
            driver: function.driver,
            group: function.group,
            settings: usize::try_from(index)
                .ok()
                .and_then(|index| settings.get(index).copied())
                .unwrap_or_default(),
            used: position.map(|position| used.swap_remove(position).1),
        });
    }
    infos
}

/// Gives a PF that number of VFs; 0 removes them.
///
/// # Errors
/// One is in use, the PF cannot have so many, or the kernel refuses.
pub fn set_vfs(
    host: &Host,
    check: &Check<'_>,
    pf: &PciFunction,
    sriov: &Sriov,
    wanted: u32,
) -> Result<(), SriovError> {
    let count = u16::try_from(wanted)
        .ok()
        .filter(|wanted| *wanted <= sriov.total_vfs);
    let Some(count) = count else {
        return Err(SriovError::TooMany {
            pf: pf.address,
            most: sriov.total_vfs,
            wanted,
        });
    };
    if usize::from(count) == sriov.vfs.len() {
        return Ok(());
    }
    if pf.driver.is_none() || pf.is_on_vfio() {
        return Err(SriovError::NoDriver {
            pf: pf.address,
            described: described(pf),
        });
    }
    if let Some((vf, reason)) = check.used_vfs(&sriov.vfs).into_iter().next() {
        return Err(SriovError::InUse {
            pf: pf.address,
            vf,
            reason,
        });
    }
    // The kernel changes the number by way of none only.
    if !sriov.vfs.is_empty() {
        write_count(host, pf.address, 0)?;
    }
    if count > 0 {
        write_count(host, pf.address, count)?;
    }
    Ok(())
}

/// Writes the number of VFs, and waits until they are there.
pub(super) fn write_count(host: &Host, pf: PciAddress, count: u16) -> Result<(), ActionError> {
    bind::write(
        host,
        &format!("{}/sriov_numvfs", folder(pf)),
        &count.to_string(),
    )?;
    let found = || {
        let sriov = PciFunction::read(host, pf).and_then(|function| function.sriov);
        sriov.map_or(0, |sriov| sriov.vfs.len())
    };
    if bind::wait_until(APPEAR_LIMIT, || found() == usize::from(count)) {
        Ok(())
    } else {
        Err(ActionError::VfCount {
            pf,
            wanted: count.into(),
            found: found(),
        })
    }
}
