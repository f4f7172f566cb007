//! What a function may reach by DMA: the guest's RAM at the guest's own addresses, and nothing else. No ROM, no other
//! device's registers, no page of ours.

use std::sync::Arc;

use thiserror::Error;
use vfio_ioctls::{VfioError, VfioOps};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::host_function::HostFunction;
use crate::dma::GuestRam;

/// The host does not map guest RAM for DMA.
#[derive(Debug, Error)]
pub enum GuestDmaError {
    /// It may not be locked in memory, or there is not so much.
    #[error(
        "{len_mib} MiB of guest RAM cannot be locked in memory for the devices: raise the limit on locked memory \
         (`ulimit -l`) or give --memory less"
    )]
    Locking {
        /// What was to be locked.
        len_mib: u64,
    },
    /// Something else.
    #[error("guest RAM at {start:#x} cannot be mapped for the devices: {source}")]
    Mapping {
        /// Guest-physical address.
        start: u64,
        /// What the kernel said.
        source: VfioError,
    },
}

impl GuestDmaError {
    fn of(start: u64, len_bytes: u64, source: VfioError) -> Self {
        match source {
            VfioError::IommuDmaMap(errno) if errno.errno() == libc::ENOMEM => Self::Locking {
                len_mib: len_bytes >> 20,
            },
            source => Self::Mapping { start, source },
        }
    }
}

/// Guest RAM as the functions of a machine reach it, until it is dropped. All its pages are locked in memory
/// meanwhile: a device does not wait for a page.
pub struct GuestDma {
    ops: Arc<dyn VfioOps>,
    /// `(address, length)` of what is mapped.
    mapped: Vec<(u64, usize)>,
    ram: Arc<GuestRam>,
    /// The address space is there as long as they are.
    _functions: Vec<Arc<dyn HostFunction>>,
}

impl GuestDma {
    /// Lets `functions`, of which there is at least one, and which were opened with `ops`, reach `ram`. They stay open
    /// until it is unmapped.
    ///
    /// # Errors
    /// [`GuestDmaError`].
    #[allow(unsafe_code)]
    pub fn map(
        ops: Arc<dyn VfioOps>,
        ram: Arc<GuestRam>,
        functions: Vec<Arc<dyn HostFunction>>,
    ) -> Result<Self, GuestDmaError> {
        let mut dma = Self {
            ops,
            mapped: Vec::new(),
            ram,
            _functions: functions,
        };
        for region in dma.ram.iter() {
            let start = region.start_addr().raw_value();
            let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
            // SAFETY: `self` keeps the RAM alive until it has unmapped it, and guest RAM is only ever accessed as
            // memory that others change at any time, which the guest's CPUs do too.
            unsafe { dma.ops.vfio_dma_map(start, len, region.as_ptr()) }
                .map_err(|source| GuestDmaError::of(start, region.len(), source))?;
            dma.mapped.push((start, len));
        }
        Ok(dma)
    }
}

impl Drop for GuestDma {
    fn drop(&mut self) {
        for (start, len) in self.mapped.drain(..).rev() {
            if let Err(error) = self.ops.vfio_dma_unmap(start, len) {
                log::error!("guest RAM at {start:#x} stays mapped for DMA: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::lock;
    use crate::testing::test_ram;
    use std::any::Any;
    use std::sync::Mutex;

    #[derive(Default)]
    struct FakeOps {
        mapped: Mutex<Vec<(u64, usize, usize)>>,
        errno: Option<i32>,
    }

    #[allow(unsafe_code)]
    impl VfioOps for FakeOps {
        unsafe fn vfio_dma_map(
            &self,
            iova: u64,
            size: usize,
            user_addr: *mut u8,
        ) -> Result<(), VfioError> {
            if let Some(errno) = self.errno {
                let errno = vmm_sys_util::errno::Error::new(errno);
                return Err(VfioError::IommuDmaMap(errno));
            }
            lock(&self.mapped).push((iova, size, user_addr as usize));
            Ok(())
        }

        fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
            lock(&self.mapped).retain(|(start, len, _)| (*start, *len) != (iova, size));
            Ok(())
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    #[test]
    fn ram_and_nothing_else_until_the_end() {
        let ops = Arc::new(FakeOps::default());
        let ram = test_ram(0x20_0000);
        let host = ram.iter().next().unwrap().as_ptr() as usize;
        let dma = GuestDma::map(ops.clone(), ram, Vec::new()).unwrap();
        assert_eq!(*lock(&ops.mapped), [(0, 0x20_0000, host)]);
        drop(dma);
        assert!(lock(&ops.mapped).is_empty());
    }

    #[test]
    fn what_to_do_about_locked_memory() {
        let fail = |errno| {
            let ops = Arc::new(FakeOps {
                errno: Some(errno),
                ..FakeOps::default()
            });
            GuestDma::map(ops, test_ram(0x20_0000), Vec::new())
                .err()
                .unwrap()
                .to_string()
        };
        assert!(fail(libc::ENOMEM).starts_with("2 MiB of guest RAM cannot be locked"));
        assert!(fail(libc::EINVAL).starts_with("guest RAM at 0x0 cannot be mapped"));
    }
}
