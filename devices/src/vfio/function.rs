//! An assigned function on the guest's root bus.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};

use rustix::param::page_size;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bars::{Trap, mappable};
use super::host_function::{HostFunction, IrqKind, ROM_REGION, RegionInfo};
use super::interrupts::{Interrupts, Mode};
use super::overlay::{MsixPlace, Overlay, OverlayError};
use super::subscriber::VfioSubscriber;
use crate::bus::AccessError;
use crate::irq::{IrqLine, MsiSink};
use crate::pci::config::BAR_COUNT;
use crate::pci::{BarChange, BarMapping, DoorbellSpec, MSIX_ENTRY_BYTES, PciDevice};
use crate::ratelimit::RateLimiter;
use crate::sync::lock;

/// How the user wants a function to be assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioOptions {
    /// Show the expansion ROM.
    pub rom: bool,
    /// What is trapped though it need not be.
    pub traps: Vec<Trap>,
}

impl Default for VfioOptions {
    /// With the ROM, and no more trapped than must be.
    fn default() -> Self {
        Self {
            rom: true,
            traps: Vec::new(),
        }
    }
}

/// Why a function cannot be given to a guest.
#[derive(Debug, Error)]
pub enum VfioFunctionError {
    /// It is not one that can be shown.
    #[error("{name}: {source}")]
    Overlay {
        /// The function.
        name: String,
        /// Why.
        source: OverlayError,
    },
    /// It cannot be reset, and could hold what its last user left.
    #[error("{name} cannot be reset before the guest gets it: {source}")]
    Reset {
        /// The function.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The user wants to trap what is not there.
    #[error(
        "{name} has no memory at trap={bar}:{start:#x}+{len:#x}: its BAR {bar} has {size:#x} bytes"
    )]
    NoSuchRange {
        /// The function.
        name: String,
        /// BAR.
        bar: u8,
        /// Offset in it.
        start: u64,
        /// Bytes.
        len: u64,
        /// Bytes that the BAR has.
        size: u64,
    },
    /// Something that every function needs.
    #[error("{name}: cannot {what}: {source}")]
    Host {
        /// The function.
        name: String,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a function is lost to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionLoss {
    /// It had an error that it did not correct by itself (AER).
    Error,
    /// The host wants it back: it is being unbound or unplugged.
    Requested,
}

/// A PCI function of the host's in the guest.
///
/// Locks: configuration space, then interrupts. Accesses to BARs take neither, but for the MSI-X table.
pub struct VfioFunction {
    name: String,
    /// They hold the device's file open: gone before `host`, which closes it.
    mappings: Vec<Vec<BarMapping>>,
    overlay: Mutex<Overlay>,
    interrupts: Interrupts,
    msix: Option<MsixPlace>,
    regions: Vec<RegionInfo>,
    error: EventFd,
    request: EventFd,
    stopped: AtomicBool,
    failures: RateLimiter,
    host: Arc<dyn HostFunction>,
}

impl VfioFunction {
    /// Resets the function and readies it for a guest. `sink` and `line` take its interrupts.
    ///
    /// # Errors
    /// [`VfioFunctionError`].
    pub fn new(
        name: String,
        host: Arc<dyn HostFunction>,
        options: &VfioOptions,
        sink: Arc<dyn MsiSink>,
        line: IrqLine,
    ) -> Result<Arc<Self>, VfioFunctionError> {
        let failed = |what| {
            let name = name.clone();
            move |source| VfioFunctionError::Host { name, what, source }
        };
        if let Err(source) = host.reset() {
            return Err(VfioFunctionError::Reset { name, source });
        }
        let overlay = Overlay::new(&name, &*host, options.rom).map_err(|source| {
            VfioFunctionError::Overlay {
                name: name.clone(),
                source,
            }
        })?;
        overlay.start(&*host).map_err(failed("enable it"))?;
        let msix = overlay.msix();
        let regions: Vec<_> = (0..=ROM_REGION).map(|index| host.region(index)).collect();
        check_traps(&name, &options.traps, &regions)?;
        let mappings = (0..)
            .zip(&regions[..usize::from(BAR_COUNT)])
            .map(|(bar, region)| {
                let trapped = trapped(bar, &options.traps, msix);
                map_region(&*host, bar, region, &trapped)
            })
            .collect::<io::Result<_>>()
            .map_err(failed("map its registers"))?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let error = event().map_err(failed("create an event"))?;
        let request = event().map_err(failed("create an event"))?;
        for (kind, event) in [(IrqKind::Error, &error), (IrqKind::Request, &request)] {
            if host.irq(kind).count > 0 {
                host.set_triggers(kind, 0, &[Some(event)])
                    .map_err(failed("watch for errors"))?;
            }
        }
        let vectors = msix.map_or(0, |msix| msix.count);
        Ok(Arc::new(Self {
            interrupts: Interrupts::new(name.clone(), Arc::clone(&host), sink, line, vectors),
            name,
            host,
            overlay: Mutex::new(overlay),
            msix,
            regions,
            mappings,
            error,
            request,
            stopped: AtomicBool::new(false),
            failures: RateLimiter::default(),
        }))
    }

    /// Which kind of interrupts the guest uses now.
    #[must_use]
    pub fn interrupt_mode(&self) -> Mode {
        self.interrupts.mode()
    }

    /// What the event loop serves: `on_loss` is called there when the function is lost.
    #[must_use]
    pub fn subscriber(
        self: &Arc<Self>,
        on_loss: Box<dyn Fn(FunctionLoss) + Send>,
    ) -> VfioSubscriber {
        VfioSubscriber::new(Arc::clone(self), on_loss)
    }

    pub(super) fn loss_events(&self) -> [(&EventFd, FunctionLoss); 2] {
        [
            (&self.error, FunctionLoss::Error),
            (&self.request, FunctionLoss::Requested),
        ]
    }

    /// Stops the function for good: no interrupts, no DMA, and nothing of the guest's left in it. No vCPU runs.
    pub fn shutdown(&self) {
        if self.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        self.quiesce();
        for kind in [IrqKind::Error, IrqKind::Request] {
            if self.host.irq(kind).count > 0
                && let Err(error) = self.host.disable(kind)
            {
                log::warn!("{}: cannot stop watching for errors: {error}", self.name);
            }
        }
    }

    /// Interrupts off first, as the host must not find a function in reset that interrupts; then bus mastering, then
    /// the reset.
    fn quiesce(&self) {
        let mut overlay = lock(&self.overlay);
        self.interrupts.reset();
        overlay.reset(&*self.host);
        match self.host.reset() {
            Ok(()) => {}
            // It is being taken from us, and is reset by the host when we let go.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                log::debug!("{}: left for the host to reset", self.name);
            }
            Err(error) => log::error!("{}: cannot be reset: {error}", self.name),
        }
    }

    /// The part of MSI-X that `offset` of `bar` is in, and the offset there.
    fn msix_part(&self, bar: u8, offset: u64) -> Option<(MsixPart, u64)> {
        let msix = self.msix?;
        if bar == msix.table_bar && table_range(&msix).contains(&offset) {
            return Some((MsixPart::Table, offset - msix.table));
        }
        if bar == msix.pba_bar && pba_range(&msix).contains(&offset) {
            return Some((MsixPart::Pending, offset - msix.pba));
        }
        None
    }

    fn refuse(&self, what: &str, bar: u8, offset: u64, error: &io::Error) -> AccessError {
        if self.failures.allow() {
            log::warn!("{}: {what} of BAR {bar} at {offset:#x}: {error}", self.name);
        }
        if error.kind() == io::ErrorKind::InvalidInput {
            AccessError::InvalidRegister
        } else {
            AccessError::NotReady
        }
    }
}

enum MsixPart {
    Table,
    Pending,
}

fn table_range(msix: &MsixPlace) -> Range<u64> {
    msix.table..msix.table + u64::from(msix.count) * MSIX_ENTRY_BYTES
}

fn pba_range(msix: &MsixPlace) -> Range<u64> {
    msix.pba..msix.pba + u64::from(msix.count).div_ceil(64) * 8
}

/// What of `bar` is not mapped: what the user says, and the tables of MSI-X, which are ours.
fn trapped(bar: u8, traps: &[Trap], msix: Option<MsixPlace>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = traps
        .iter()
        .filter(|trap| trap.bar == bar)
        .map(|trap| trap.range.clone().unwrap_or(0..u64::MAX))
        .collect();
    if let Some(msix) = msix {
        if msix.table_bar == bar {
            ranges.push(table_range(&msix));
        }
        if msix.pba_bar == bar {
            ranges.push(pba_range(&msix));
        }
    }
    ranges
}

fn check_traps(
    name: &str,
    traps: &[Trap],
    regions: &[RegionInfo],
) -> Result<(), VfioFunctionError> {
    for trap in traps {
        let size = regions
            .get(usize::from(trap.bar))
            .map_or(0, |region| region.size);
        let range = trap.range.clone().unwrap_or(0..size);
        if size == 0 || range.end > size {
            return Err(VfioFunctionError::NoSuchRange {
                name: name.to_string(),
                bar: trap.bar,
                start: range.start,
                len: range.end.saturating_sub(range.start),
                size,
            });
        }
    }
    Ok(())
}

fn map_region(
    host: &dyn HostFunction,
    bar: u8,
    region: &RegionInfo,
    trapped: &[Range<u64>],
) -> io::Result<Vec<BarMapping>> {
    mappable(region, trapped, page_size() as u64)
        .into_iter()
        .map(|range| {
            let pages = host.map(bar, range.start, range.end - range.start)?;
            Ok(BarMapping {
                offset: range.start,
                pages: Arc::new(pages),
            })
        })
        .collect()
}

impl PciDevice for VfioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let mut overlay = lock(&self.overlay);
        if overlay.shows_msi_pending(offset, data.len()) {
            overlay.set_msi_pending(self.interrupts.msi_pending());
        }
        overlay.read(&*self.host, offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let mut overlay = lock(&self.overlay);
        let changes = overlay.write(&*self.host, offset, data);
        self.interrupts.sync(&overlay);
        changes
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match self.msix_part(bar, offset) {
            Some((MsixPart::Table, at)) => return self.interrupts.table_read(at, data),
            Some((MsixPart::Pending, at)) => {
                self.interrupts.pba_read(at, data);
                return Ok(());
            }
            None => {}
        }
        if bar > ROM_REGION {
            return Err(AccessError::InvalidRegister);
        }
        self.host
            .region_read(bar, offset, data)
            .map_err(|error| self.refuse("read", bar, offset, &error))
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match self.msix_part(bar, offset) {
            Some((MsixPart::Table, at)) => return self.interrupts.table_write(at, data),
            Some((MsixPart::Pending, _)) => return Ok(()),
            None => {}
        }
        let writable = self
            .regions
            .get(usize::from(bar))
            .is_some_and(|region| region.writable);
        if !writable {
            return Ok(());
        }
        // What the guest wrote to memory before is there when the register hears of it.
        fence(Ordering::SeqCst);
        self.host
            .region_write(bar, offset, data)
            .map_err(|error| self.refuse("write", bar, offset, &error))
    }

    fn doorbells(&self, _bar: u8) -> Vec<DoorbellSpec> {
        Vec::new()
    }

    fn mappings(&self, bar: u8) -> Vec<BarMapping> {
        self.mappings
            .get(usize::from(bar))
            .cloned()
            .unwrap_or_default()
    }

    fn reset(&self) {
        self.quiesce();
    }
}

impl Drop for VfioFunction {
    /// As [`VfioFunction::shutdown`], for a machine that was not finished.
    fn drop(&mut self) {
        self.shutdown();
    }
}
