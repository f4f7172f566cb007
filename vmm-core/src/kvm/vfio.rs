//! The address space that all assigned functions of a machine share for their DMA, and KVM's handle on them.
//!
//! KVM is told of each IOMMU group or device (`KVM_DEV_TYPE_VFIO`), so that it knows whether their DMA heeds the
//! caches, and where the hardware can, delivers their interrupts without the host's help.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iommufd_ioctls::{IommuFd, IommufdError};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use thiserror::Error;
use vfio_ioctls::{VfioContainer, VfioDeviceFd, VfioIommufd, VfioOps};

use super::{Doing, KvmError, KvmVm};

/// Where iommufd is, in kernels that have it.
const DEV_IOMMU: &str = "/dev/iommu";

/// Why functions cannot be assigned here.
#[derive(Debug, Error)]
pub enum VfioError {
    /// KVM's side.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The container of groups.
    #[error("/dev/vfio/vfio cannot be used: {0}; load the modules vfio-pci and vfio_iommu_type1")]
    Container(#[source] vfio_ioctls::VfioError),
    /// The other kind of container.
    #[error("/dev/iommu cannot be used: {0}")]
    Iommufd(#[source] IommufdError),
    /// The same.
    #[error("/dev/iommu cannot be used: {0}")]
    IommufdSpace(#[source] vfio_ioctls::VfioError),
}

/// What all assigned functions of a machine share.
#[derive(Clone)]
pub struct VfioSharing(Arc<dyn VfioOps>);

impl VfioSharing {
    /// For `vm`. With iommufd if the kernel has it and every function, by its folder in sysfs, has a character device
    /// of its own; through their groups otherwise.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn new(vm: &KvmVm, functions: &[&Path]) -> Result<Self, VfioError> {
        let handle = vfio_device(vm)?;
        if functions.iter().all(|sysfs| vfio_cdev(sysfs).is_some()) {
            let iommufd = Arc::new(IommuFd::new().map_err(VfioError::Iommufd)?);
            let space = VfioIommufd::new(iommufd, None, Some(handle));
            return Ok(Self(Arc::new(space.map_err(VfioError::IommufdSpace)?)));
        }
        let container = VfioContainer::new(Some(handle)).map_err(VfioError::Container)?;
        Ok(Self(Arc::new(container)))
    }

    /// What functions are opened with.
    #[must_use]
    pub fn ops(&self) -> Arc<dyn VfioOps> {
        Arc::clone(&self.0)
    }
}

/// The character device of the function whose folder in sysfs is `sysfs`, if the kernel has iommufd and such devices.
#[must_use]
pub fn vfio_cdev(sysfs: &Path) -> Option<PathBuf> {
    if !Path::new(DEV_IOMMU).exists() {
        return None;
    }
    let mut entries = fs::read_dir(sysfs.join("vfio-dev")).ok()?;
    let name = entries.next()?.ok()?.file_name();
    Some(Path::new("/dev/vfio/devices").join(name))
}

/// KVM's handle on assigned functions.
fn vfio_device(vm: &KvmVm) -> Result<Arc<VfioDeviceFd>, KvmError> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        fd: 0,
        flags: 0,
    };
    let fd = vm
        .fd()
        .create_device(&mut device)
        .doing("create the device for assigned functions")?;
    Ok(Arc::new(VfioDeviceFd::new_from_kvm(fd)))
}
