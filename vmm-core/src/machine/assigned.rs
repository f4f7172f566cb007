//! Functions of the host that the guest gets, from the user's words to open devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::dma::GuestRam;
use devices::vfio::host::claim::{self, ClaimError, Lease};
use devices::vfio::host::recover::recover_in_passing;
use devices::vfio::host::state::StateFolder;
use devices::vfio::host::{Host, PciAddress};
use devices::vfio::{GuestDma, HostFunction, Trap, VfioHost, VfioOptions};
use thiserror::Error;

use super::MachineError;
use super::claims::{ClaimConfigError, requests};
use crate::config::{DeviceConfig, TrapRange};
use crate::kvm::{KvmVm, VfioSharing};

const SYSFS_DEVICES: &str = "/sys/bus/pci/devices";

/// Why the user's functions cannot be assigned, and what to do.
#[derive(Debug, Error)]
pub enum AssignError {
    /// Their description.
    #[error("--device {0}")]
    Config(#[from] ClaimConfigError),
    /// They are not to be had.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

impl AssignError {
    /// Whether the user can change it.
    #[must_use]
    pub fn is_users(&self) -> bool {
        match self {
            Self::Config(_) => true,
            Self::Claim(error) => error.is_users_mistake(),
        }
    }
}

/// A function that is ours to assign. Dropping it gives the function back to whom it was taken from.
pub struct Claimed {
    /// Where it is on the host.
    pub address: PciAddress,
    /// Its folder in sysfs.
    pub sysfs: PathBuf,
    /// How the user wants it.
    pub options: VfioOptions,
    /// Bytes of its 64-bit BARs.
    pub bars_bytes: u64,
    _lease: Lease,
}

/// Claims the user's functions for a guest with so much RAM: all or none. Nothing of the machine exists yet; what is
/// returned must outlive all that opens the functions. What killed runs had goes back, whether this one wants any or
/// not.
///
/// # Errors
/// [`AssignError`].
pub fn claim(devices: &[DeviceConfig], ram_bytes: u64) -> Result<Vec<Claimed>, AssignError> {
    let requests = requests(devices)?;
    let host = Arc::new(Host::this());
    let state = StateFolder::of_caller(&host);
    if requests.is_empty() {
        recover_in_passing(&host, &state);
        return Ok(Vec::new());
    }
    let leases = claim::take(&host, &state, &requests, ram_bytes)?;
    let claimed = devices.iter().zip(leases);
    Ok(claimed
        .map(|(device, lease)| {
            let address = lease.address();
            let sysfs = Path::new(SYSFS_DEVICES).join(address.to_string());
            let resource = fs::read_to_string(sysfs.join("resource"));
            Claimed {
                address,
                options: options(device),
                bars_bytes: bars_bytes(&resource.unwrap_or_default()),
                sysfs,
                _lease: lease,
            }
        })
        .collect())
}

/// Finds out whether a guest with so much RAM could have these functions, as far as that is known before anything is
/// changed.
///
/// # Errors
/// [`AssignError`].
pub fn check_devices(devices: &[DeviceConfig], ram_bytes: u64) -> Result<(), AssignError> {
    let requests = requests(devices)?;
    if requests.is_empty() {
        return Ok(());
    }
    let host = Arc::new(Host::this());
    let state = StateFolder::of_caller(&host);
    Ok(claim::check(&host, &state, &requests, ram_bytes)?)
}

fn options(device: &DeviceConfig) -> VfioOptions {
    let trap = |trap: &TrapRange| Trap {
        bar: trap.bar,
        range: trap.range.clone(),
    };
    VfioOptions {
        rom: device.rombar,
        traps: device.trap.iter().map(trap).collect(),
    }
}

/// The bytes of a function's 64-bit BARs, from its file `resource` in sysfs: a line `start end flags` for each.
fn bars_bytes(resource: &str) -> u64 {
    const BARS: usize = 6;
    // IORESOURCE_MEM and IORESOURCE_MEM_64 of the kernel's linux/ioport.h.
    const MEMORY_64: u64 = 0x0000_0200 | 0x0010_0000;
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    resource
        .lines()
        .take(BARS)
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map_while(number);
            let (start, end, flags) = (numbers.next()?, numbers.next()?, numbers.next()?);
            (flags & MEMORY_64 == MEMORY_64).then(|| end.saturating_sub(start).saturating_add(1))
        })
        .fold(0, u64::saturating_add)
}

/// The functions, open, with guest RAM mapped for their DMA.
pub struct Assigned {
    /// To be kept until the functions have been reset for the last time.
    pub dma: Option<GuestDma>,
    /// In the order of the configuration.
    pub functions: Vec<(PciAddress, Arc<dyn HostFunction>, VfioOptions)>,
}

/// Opens what was claimed for `vm`.
///
/// # Errors
/// [`MachineError`].
pub fn open(
    claimed: &[Claimed],
    vm: &KvmVm,
    ram: &Arc<GuestRam>,
) -> Result<Assigned, MachineError> {
    if claimed.is_empty() {
        return Ok(Assigned {
            dma: None,
            functions: Vec::new(),
        });
    }
    let folders: Vec<&Path> = claimed.iter().map(|one| one.sysfs.as_path()).collect();
    let sharing = VfioSharing::new(vm, &folders)?;
    let functions = claimed
        .iter()
        .map(|one| {
            let host = VfioHost::open(&one.sysfs, sharing.ops())?;
            let host: Arc<dyn HostFunction> = Arc::new(host);
            Ok((one.address, host, one.options.clone()))
        })
        .collect::<Result<Vec<_>, MachineError>>()?;
    let open = functions
        .iter()
        .map(|(_, host, _)| Arc::clone(host))
        .collect();
    // A container has an address space once it has a function.
    let dma = GuestDma::map(sharing.ops(), Arc::clone(ram), open)?;
    Ok(Assigned {
        dma: Some(dma),
        functions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_bit_memory_counts() {
        let resource = "0x00000000fe800000 0x00000000fe803fff 0x0000000000140204\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                        0x0000000000006000 0x000000000000601f 0x0000000000040101\n\
                        0x00000000fe840000 0x00000000fe85ffff 0x0000000000040200\n\
                        0x0000008000000000 0x00000083ffffffff 0x000000000014220c\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                        0x0000009000000000 0x00000093ffffffff 0x000000000014220c\n";
        assert_eq!(bars_bytes(resource), 0x4000 + (16 << 30));
        assert_eq!(bars_bytes("nonsense\n0x1\n"), 0);
    }
}
