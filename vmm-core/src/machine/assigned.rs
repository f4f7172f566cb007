//! Functions of the host that the guest gets, from the user's words to open devices.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::dma::GuestRam;
use devices::vfio::{GuestDma, HostFunction, Trap, VfioHost, VfioOptions};
use thiserror::Error;

use super::MachineError;
use crate::config::{DeviceConfig, PciAddress};
use crate::kvm::{KvmVm, VfioSharing, vfio_cdev};

const SYSFS_DEVICES: &str = "/sys/bus/pci/devices";
const VFIO_DRIVER: &str = "vfio-pci";

/// Why the user's function cannot be assigned, and what to do.
#[derive(Debug, Error)]
pub enum AssignError {
    /// Not there.
    #[error("device {0}: there is no such PCI function on this host; `lspci -D` lists them")]
    Missing(PciAddress),
    /// Another driver has it, or none.
    #[error("device {address} is bound to {driver}, not to vfio-pci: bind it to vfio-pci first")]
    Driver {
        /// The function.
        address: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// There is no IOMMU for it.
    #[error(
        "device {0} is in no IOMMU group: enable the IOMMU, in the firmware and on the kernel's command line \
         (intel_iommu=on)"
    )]
    NoGroup(PciAddress),
    /// The file of its group, or its own.
    #[error("device {address}: {} cannot be opened: {source}", path.display())]
    File {
        /// The function.
        address: PciAddress,
        /// `/dev/vfio/N` or `/dev/vfio/devices/vfioN`.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A function that is ours to assign.
pub struct Claimed {
    /// Where it is on the host.
    pub address: PciAddress,
    /// Its folder in sysfs.
    pub sysfs: PathBuf,
    /// How the user wants it.
    pub options: VfioOptions,
    /// Bytes of its 64-bit BARs.
    pub bars_bytes: u64,
}

/// Claims the user's functions, before anything is created. **This is the place** where a function is taken from its
/// driver and what was changed is remembered; giving it back belongs into `Drop` of what is returned, which the
/// machine keeps until its devices are gone. For now it only looks whether each is bound to `vfio-pci` and to be had.
///
/// # Errors
/// [`AssignError`], a line for the user.
pub fn claim(devices: &[DeviceConfig]) -> Result<Vec<Claimed>, AssignError> {
    devices.iter().map(claim_one).collect()
}

fn claim_one(device: &DeviceConfig) -> Result<Claimed, AssignError> {
    let address = device.host;
    let sysfs = Path::new(SYSFS_DEVICES).join(address.to_string());
    if !sysfs.exists() {
        return Err(AssignError::Missing(address));
    }
    let link_name = |name: &str| {
        let target = fs::read_link(sysfs.join(name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    };
    let driver = link_name("driver").unwrap_or_else(|| "no driver".into());
    if driver != VFIO_DRIVER {
        return Err(AssignError::Driver { address, driver });
    }
    let group = link_name("iommu_group").ok_or(AssignError::NoGroup(address))?;
    let path = vfio_cdev(&sysfs).unwrap_or_else(|| Path::new("/dev/vfio").join(group));
    let opened = File::options().read(true).write(true).open(&path);
    opened.map_err(|source| AssignError::File {
        address,
        path,
        source,
    })?;
    let trap = |trap: &crate::config::TrapRange| Trap {
        bar: trap.bar,
        range: trap.range.clone(),
    };
    Ok(Claimed {
        address,
        options: VfioOptions {
            rom: device.rombar,
            traps: device.trap.iter().map(trap).collect(),
        },
        bars_bytes: bars_bytes(&fs::read_to_string(sysfs.join("resource")).unwrap_or_default()),
        sysfs,
    })
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
///
/// The order of the fields is that of the drop: RAM is unmapped once the functions' users have stopped them, and while
/// their container is there.
pub struct Assigned {
    /// Until the functions have been reset for the last time.
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
        .collect::<Result<_, MachineError>>()?;
    // A container has an address space once it has a function.
    let dma = GuestDma::map(sharing.ops(), Arc::clone(ram))?;
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

    #[test]
    fn a_function_that_is_not_there() {
        let device = DeviceConfig {
            host: "ffff:ff:1f.7".parse().unwrap(),
            rombar: true,
            trap: Vec::new(),
        };
        let error = claim(&[device]).err().unwrap();
        assert_eq!(
            error.to_string(),
            "device ffff:ff:1f.7: there is no such PCI function on this host; `lspci -D` lists them"
        );
    }
}
