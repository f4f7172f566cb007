//! What a function may reach by DMA: the guest's RAM at the guest's own addresses, and nothing else. No ROM, no other
//! device's registers, no page of ours.

use std::sync::Arc;

use thiserror::Error;
use vfio_ioctls::{VfioError, VfioOps};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::dma::GuestRam;

/// The host does not map guest RAM for DMA.
#[derive(Debug, Error)]
#[error(
    "{len_mib} MiB of guest RAM at {start:#x} cannot be locked in memory for the device: {source} (is the limit on \
     locked memory, `ulimit -l`, too small?)"
)]
pub struct GuestDmaError {
    start: u64,
    len_mib: u64,
    source: VfioError,
}

/// Guest RAM as the functions of a machine reach it, until it is dropped. All its pages are locked in memory
/// meanwhile: a device does not wait for a page.
pub struct GuestDma {
    ops: Arc<dyn VfioOps>,
    /// `(address, length)` of what is mapped.
    mapped: Vec<(u64, usize)>,
    ram: Arc<GuestRam>,
}

impl GuestDma {
    /// Lets the functions behind `ops`, of which there is at least one, reach `ram`.
    ///
    /// # Errors
    /// [`GuestDmaError`].
    #[allow(unsafe_code)]
    pub fn map(ops: Arc<dyn VfioOps>, ram: Arc<GuestRam>) -> Result<Self, GuestDmaError> {
        let mut dma = Self {
            ops,
            mapped: Vec::new(),
            ram,
        };
        for region in dma.ram.iter() {
            let start = region.start_addr().raw_value();
            let len_mib = region.len() >> 20;
            let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
            // SAFETY: `self` keeps the RAM alive until it has unmapped it, and guest RAM is only ever accessed as
            // memory that others change at any time, which the guest's CPUs do too.
            unsafe { dma.ops.vfio_dma_map(start, len, region.as_ptr()) }.map_err(|source| {
                GuestDmaError {
                    start,
                    len_mib,
                    source,
                }
            })?;
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
