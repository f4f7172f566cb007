//! The host's handle on a function: what the rest of this module asks of `vfio-pci` (`linux/vfio.h`), as a trait, and
//! its implementation on an open VFIO device.
//!
//! Whether the device was opened through its IOMMU group (`/dev/vfio/N`) or through its character device and iommufd
//! makes no difference here: the `VfioOps` that [`VfioHost::open`] is given decides.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use rustix::io::{pread, pwrite};
use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, VFIO_TYPE,
    vfio_device_info,
};
use vfio_ioctls::{VfioDevice, VfioError, VfioOps, VfioRegionInfoCap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr};
use vmm_sys_util::ioctl_io_nr;

use crate::pci::HostPages;

ioctl_io_nr!(VFIO_DEVICE_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);
ioctl_io_nr!(
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
    VFIO_TYPE as u32,
    VFIO_BASE + 12
);
ioctl_io_nr!(VFIO_DEVICE_PCI_HOT_RESET, VFIO_TYPE as u32, VFIO_BASE + 13);

/// The number of the expansion ROM among the regions; 0 to 5 are the BARs.
pub const ROM_REGION: u8 = 6;
/// Most functions that a bus reset may affect, ours among them.
const MAX_RESET_TOGETHER: usize = 256;
/// Most vectors in one call (`MSIX_MAX_VECTORS` of PCI 3.0, 6.8.2.3).
const MAX_VECTORS: usize = 2048;

/// A BAR or the ROM, as the host has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0 if the function has none at that number.
    pub size: u64,
    /// The kernel passes reads on.
    pub readable: bool,
    /// The kernel passes writes on.
    pub writable: bool,
    /// Ranges `(offset, length)` that can be mapped, in bytes.
    pub areas: Vec<(u64, u64)>,
}

/// Kinds of interrupts of a function, the kernel's own events about it included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IrqKind {
    /// INTA# to INTD#.
    Intx,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
    /// An uncorrected error of the function (AER).
    Error,
    /// The host wants the function back.
    Request,
}

impl IrqKind {
    fn index(self) -> u32 {
        match self {
            Self::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Error => VFIO_PCI_ERR_IRQ_INDEX,
            Self::Request => VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

/// What the host can do with one kind of interrupts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many there are; 0 if the function has none of the kind.
    pub count: u32,
    /// Vectors can be added while others are in use. Older kernels must switch all off for it.
    pub resizable: bool,
}

/// The host's handle on one function. Calls come on vCPU threads, and on the owner's thread while no vCPU runs.
pub trait HostFunction: Send + Sync {
    /// Bytes of configuration space: 256 or 4096.
    fn config_size(&self) -> u64;

    /// Reads configuration space.
    ///
    /// # Errors
    /// What the kernel said.
    fn config_read(&self, offset: u16, data: &mut [u8]) -> io::Result<()>;

    /// Writes configuration space. The kernel has its own idea of what may be written.
    ///
    /// # Errors
    /// What the kernel said.
    fn config_write(&self, offset: u16, data: &[u8]) -> io::Result<()>;

    /// BAR 0 to 5, or [`ROM_REGION`].
    fn region(&self, region: u8) -> RegionInfo;

    /// Reads registers, in the width given if that is a natural one.
    ///
    /// # Errors
    /// What the kernel said, or that `offset` is beyond the region.
    fn region_read(&self, region: u8, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes registers, as [`HostFunction::region_read`].
    ///
    /// # Errors
    /// What the kernel said, or that `offset` is beyond the region.
    fn region_write(&self, region: u8, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps part of a region, within one of its areas, by whole pages.
    ///
    /// # Errors
    /// What the kernel said.
    fn map(&self, region: u8, offset: u64, len_bytes: u64) -> io::Result<HostPages>;

    /// How many interrupts of a kind there are.
    fn irq(&self, kind: IrqKind) -> IrqInfo;

    /// Switches interrupts of this kind on, if they are not, and sets what is signalled for those from `start` on;
    /// an interrupt without a trigger takes no resources.
    ///
    /// # Errors
    /// What the kernel said; that there are not so many to be had.
    fn set_triggers(
        &self,
        kind: IrqKind,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> io::Result<()>;

    /// INTx, which masks itself when it is signalled, is unmasked whenever `resample` is. INTx is on.
    ///
    /// # Errors
    /// What the kernel said.
    fn set_resample(&self, resample: &EventFd) -> io::Result<()>;

    /// Switches interrupts of this kind off.
    ///
    /// # Errors
    /// What the kernel said.
    fn disable(&self, kind: IrqKind) -> io::Result<()>;

    /// Resets the function alone, or its bus if all that is on it is ours.
    ///
    /// # Errors
    /// What the kernel said; that there is no way to reset it.
    fn reset(&self) -> io::Result<()>;
}

/// Why the host does not give a function.
#[derive(Debug, Error)]
pub enum VfioHostError {
    /// It cannot be opened.
    #[error("{address} cannot be opened: {source}")]
    Open {
        /// The function.
        address: String,
        /// What VFIO said.
        source: VfioError,
    },
    /// It cannot be asked what it is.
    #[error("{address} does not say what it is: {source}")]
    Info {
        /// The function.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A function that is open for us in the kernel.
pub struct VfioHost {
    device: VfioDevice,
    address: String,
    resettable: bool,
    config_offset: u64,
    config_size: u64,
}

impl VfioHost {
    /// Opens the function whose folder in sysfs is `sysfs`, and lets its DMA go through `ops`, which all functions
    /// of a machine share. It is bound to `vfio-pci`.
    ///
    /// # Errors
    /// [`VfioHostError`].
    pub fn open(sysfs: &Path, ops: Arc<dyn VfioOps>) -> Result<Self, VfioHostError> {
        let address = sysfs
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let device = VfioDevice::new(sysfs, ops, true).map_err(|source| VfioHostError::Open {
            address: address.clone(),
            source,
        })?;
        let info = device_info(&device).map_err(|source| VfioHostError::Info {
            address: address.clone(),
            source,
        })?;
        Ok(Self {
            address,
            resettable: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            config_offset: device.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX),
            config_size: device.get_region_size(VFIO_PCI_CONFIG_REGION_INDEX),
            device,
        })
    }

    /// Its address on the host, `0000:01:00.0` for example.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    #[allow(unsafe_code)]
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the device, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }

    /// Where `len` bytes at `offset` of a region are in the device's file.
    fn locate(&self, region: u8, offset: u64, len: usize) -> io::Result<u64> {
        let region = u32::from(region);
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.device.get_region_size(region)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.device.get_region_offset(region) + offset)
    }

    /// `struct vfio_irq_set` with the descriptors of `triggers`, -1 for none.
    fn set_irqs(&self, flags: u32, index: u32, start: u32, triggers: &[i32]) -> io::Result<()> {
        const HEADER_DWORDS: usize = 5;
        let too_many = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let count = u32::try_from(triggers.len()).map_err(too_many)?;
        let bytes = u32::try_from((HEADER_DWORDS + triggers.len()) * 4).map_err(too_many)?;
        let mut set = vec![bytes, flags, index, start, count];
        set.extend(triggers.iter().map(|fd| fd.cast_unsigned()));
        self.set_irqs_raw(&set)
    }

    #[allow(unsafe_code)]
    fn set_irqs_raw(&self, set: &[u32]) -> io::Result<()> {
        // SAFETY: `set` is a `vfio_irq_set` whose first field says how long it is, and the kernel only reads it.
        match unsafe { ioctl_with_ptr(&self.device, VFIO_DEVICE_SET_IRQS(), set.as_ptr()) } {
            0 => Ok(()),
            fewer @ 1.. => Err(io::Error::other(format!("only {fewer} are to be had"))),
            _ => Err(io::Error::last_os_error()),
        }
    }

    #[allow(unsafe_code)]
    fn reset_function(&self) -> io::Result<()> {
        // SAFETY: the call has no argument.
        if unsafe { ioctl(&self.device, VFIO_DEVICE_RESET()) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Resets the slot or bus. The kernel wants to see, by their open groups, that all that is on it is ours.
    #[allow(unsafe_code)]
    fn reset_bus(&self) -> io::Result<()> {
        const INFO_HEADER_DWORDS: usize = 3;
        const DEPENDENT_DWORDS: usize = 2;
        let mut info = vec![0u32; INFO_HEADER_DWORDS + MAX_RESET_TOGETHER * DEPENDENT_DWORDS];
        info[0] = u32::try_from(info.len() * 4).unwrap_or(u32::MAX);
        let request = VFIO_DEVICE_GET_PCI_HOT_RESET_INFO();
        // SAFETY: a `vfio_pci_hot_reset_info` with room for its devices; its first field says how much.
        if unsafe { ioctl_with_mut_ptr(&self.device, request, info.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let count = usize::try_from(info[2])
            .unwrap_or(usize::MAX)
            .min(MAX_RESET_TOGETHER);
        // `struct vfio_pci_dependent_device` starts with the group, or with the device's number in iommufd.
        let mut groups: Vec<u32> = info[INFO_HEADER_DWORDS..]
            .chunks_exact(DEPENDENT_DWORDS)
            .take(count)
            .map(|dependent| dependent[0])
            .collect();
        groups.sort_unstable();
        groups.dedup();
        let fds = open_groups(&groups)?;
        let bytes = u32::try_from((INFO_HEADER_DWORDS + fds.len()) * 4).unwrap_or(u32::MAX);
        let mut reset = vec![bytes, 0, u32::try_from(fds.len()).unwrap_or(u32::MAX)];
        reset.extend(fds.iter().map(|fd| fd.cast_unsigned()));
        let request = VFIO_DEVICE_PCI_HOT_RESET();
        // SAFETY: a `vfio_pci_hot_reset` with the descriptors it counts, which the kernel only reads.
        if unsafe { ioctl_with_ptr(&self.device, request, reset.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The descriptors of those groups among our own: a group can be open only once, and vfio-ioctls keeps its descriptor
/// to itself. None at all means iommufd, which the kernel recognises by that.
fn open_groups(groups: &[u32]) -> io::Result<Vec<RawFd>> {
    let mut ours: Vec<(u32, RawFd)> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let fd = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let group: Option<u32> = target
            .strip_prefix("/dev/vfio")
            .ok()
            .and_then(|name| name.to_str()?.parse().ok());
        if let (Some(fd), Some(group)) = (fd, group) {
            ours.push((group, fd));
        }
    }
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    groups
        .iter()
        .map(|group| {
            let open = ours.iter().find(|(ours, _)| ours == group);
            open.map(|(_, fd)| *fd).ok_or_else(|| {
                io::Error::other(format!(
                    "a reset would affect IOMMU group {group}, which is not ours"
                ))
            })
        })
        .collect()
}

#[allow(unsafe_code)]
fn device_info(device: &VfioDevice) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info {
        argsz: u32::try_from(size_of::<vfio_device_info>()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    // SAFETY: `info` is what the call fills, and says its size.
    if unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_GET_INFO(), &mut info) } == 0 {
        Ok(info)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn whole(transferred: usize, wanted: usize) -> io::Result<()> {
    if transferred == wanted {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl HostFunction for VfioHost {
    fn config_size(&self) -> u64 {
        self.config_size
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        let wanted = data.len();
        let at = self.config_offset + u64::from(offset);
        whole(pread(self.fd(), data, at)?, wanted)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> io::Result<()> {
        let at = self.config_offset + u64::from(offset);
        whole(pwrite(self.fd(), data, at)?, data.len())
    }

    fn region(&self, region: u8) -> RegionInfo {
        let index = u32::from(region);
        let flags = self.device.get_region_flags(index);
        let size = self.device.get_region_size(index);
        let mut areas = Vec::new();
        if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 {
            let sparse = self
                .device
                .get_region_caps(index)
                .into_iter()
                .find_map(|cap| {
                    let VfioRegionInfoCap::SparseMmap(sparse) = cap else {
                        return None;
                    };
                    Some(sparse.areas.iter().map(|a| (a.offset, a.size)).collect())
                });
            areas = sparse.unwrap_or_else(|| vec![(0, size)]);
        }
        RegionInfo {
            size,
            readable: flags & VFIO_REGION_INFO_FLAG_READ != 0,
            writable: flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
            areas,
        }
    }

    fn region_read(&self, region: u8, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let wanted = data.len();
        let at = self.locate(region, offset, wanted)?;
        whole(pread(self.fd(), data, at)?, wanted)
    }

    fn region_write(&self, region: u8, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = self.locate(region, offset, data.len())?;
        whole(pwrite(self.fd(), data, at)?, data.len())
    }

    fn map(&self, region: u8, offset: u64, len_bytes: u64) -> io::Result<HostPages> {
        let at = self.locate(
            region,
            offset,
            usize::try_from(len_bytes).unwrap_or(usize::MAX),
        )?;
        let flags = self.device.get_region_flags(u32::from(region));
        let writable = flags & VFIO_REGION_INFO_FLAG_WRITE != 0;
        HostPages::map(self.fd(), at, len_bytes, writable)
    }

    fn irq(&self, kind: IrqKind) -> IrqInfo {
        self.device
            .get_irq_info(kind.index())
            .map_or_else(IrqInfo::default, |irq| IrqInfo {
                count: irq.count,
                resizable: irq.flags & VFIO_IRQ_INFO_NORESIZE == 0,
            })
    }

    fn set_triggers(
        &self,
        kind: IrqKind,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> io::Result<()> {
        if triggers.len() > MAX_VECTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fds: Vec<i32> = triggers
            .iter()
            .map(|trigger| trigger.map_or(-1, AsRawFd::as_raw_fd))
            .collect();
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(flags, kind.index(), start, &fds)
    }

    fn set_resample(&self, resample: &EventFd) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        self.set_irqs(flags, VFIO_PCI_INTX_IRQ_INDEX, 0, &[resample.as_raw_fd()])
    }

    fn disable(&self, kind: IrqKind) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(flags, kind.index(), 0, &[])
    }

    fn reset(&self) -> io::Result<()> {
        if self.resettable {
            self.reset_function()
        } else {
            self.reset_bus()
        }
    }
}
