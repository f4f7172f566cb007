//! Virtio over PCI (virtio 1.3, 4.1), modern only.
//!
//! Everything is in one 64-bit BAR of 16 KiB, and the capabilities stand in the order in which Linux asks for
//! them: a driver walks the list from its start for each one it looks for, and every step is an exit. For the same
//! reason there is no PCI Express capability; virtio asks for none.
//!
//! Locks, outermost first: the common configuration, the device, the interrupts. The event loop takes the last two
//! only. The lock of configuration space is not held together with the first two.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use event_manager::EventSet;
use thiserror::Error;
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
use super::pci_common::{COMMON_CONFIG_BYTES, CommonConfig, Effect};
use super::pci_interrupt::Interrupts;
use super::pci_subscriber::VirtioSubscriber;
use super::queue::{QueueInterrupt, VirtQueue};
use crate::bus::AccessError;
use crate::dma::{DmaMem, GuestRam};
use crate::irq::{IrqLine, MsiSink};
use crate::pci::config::{CAP_ID_VENDOR_SPECIFIC, STATUS, overlaps};
use crate::pci::{
    BarChange, BarKind, DoorbellSpec, Msix, MsixLayout, PciConfig, PciConfigError, PciDevice,
    PciIds,
};
use crate::ratelimit::RateLimiter;
use crate::sync::lock;

/// The one BAR.
const BAR: u8 = 0;
const BAR_BYTES: u64 = 0x4000;
// What is in it.
const COMMON_CONFIG: u64 = 0x0000;
const ISR: u64 = 0x0100;
const DEVICE_CONFIG: u64 = 0x0200;
const NOTIFY: u64 = 0x1000;
const MSIX_TABLE: u64 = MSIX.table as u64;
const MSIX_PBA: u64 = MSIX.pba as u64;
const MSIX: MsixLayout = MsixLayout {
    bar: BAR,
    table: 0x2000,
    pba: 0x3000,
};

/// Bytes from one queue's notification address to the next; `notify_off_multiplier`.
const NOTIFY_STRIDE: u64 = 4;
/// One vector for each queue and one for configuration changes fill the page of the MSI-X table.
const MAX_QUEUES: usize = 255;
const MAX_CONFIG_BYTES: u64 = NOTIFY - DEVICE_CONFIG;

// Structure types of the vendor-specific capabilities (4.1.4).
const VIRTIO_PCI_CAP_COMMON_CFG: u8 = 1;
const VIRTIO_PCI_CAP_NOTIFY_CFG: u8 = 2;
const VIRTIO_PCI_CAP_ISR_CFG: u8 = 3;
const VIRTIO_PCI_CAP_DEVICE_CFG: u8 = 4;
const VIRTIO_PCI_CAP_PCI_CFG: u8 = 5;
/// Offsets in the PCI configuration access capability (4.1.4.9).
const PCI_CFG_BAR: u16 = 4;
const PCI_CFG_OFFSET: u16 = 8;
const PCI_CFG_LENGTH: u16 = 12;
const PCI_CFG_DATA: u16 = 16;

const VIRTIO_PCI_VENDOR: u16 = 0x1af4;
const VIRTIO_PCI_DEVICE_BASE: u16 = 0x1040;

/// A virtio device that cannot be put on PCI.
#[derive(Debug, Error)]
pub enum VirtioPciError {
    /// More queues than there are interrupt vectors for.
    #[error("{name}: {count} queues; at most {MAX_QUEUES} are possible")]
    TooManyQueues {
        /// The device.
        name: String,
        /// Its queues.
        count: usize,
    },
    /// The device's configuration space is too long for its place in the BAR.
    #[error(
        "{name}: a configuration space of {len} bytes; at most {MAX_CONFIG_BYTES} are possible"
    )]
    ConfigTooLong {
        /// The device.
        name: String,
        /// Length of its configuration space.
        len: u16,
    },
    /// The device ID has no PCI device ID.
    #[error("{name}: no PCI device ID for virtio device ID {device_id}")]
    BadDeviceId {
        /// The device.
        name: String,
        /// Its virtio device ID.
        device_id: u16,
    },
    /// The PCI configuration space cannot be built.
    #[error("{name}: {source}")]
    Config {
        /// The device.
        name: String,
        /// Why.
        source: PciConfigError,
    },
    /// The host gives no eventfd.
    #[error("{name}: cannot create an eventfd: {source}")]
    EventFd {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// The device, and whether a driver is using it.
struct DeviceSlot {
    device: Box<dyn VirtioDevice>,
    active: bool,
    /// Queues that were notified while the device was not active. The notification may have overtaken the
    /// activation that another vCPU is in the middle of.
    missed: Vec<bool>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    info: DeviceInfo,
    config: Mutex<PciConfig>,
    /// Offset of the PCI configuration access capability.
    pci_cfg: u16,
    common: Mutex<CommonConfig>,
    slot: Mutex<DeviceSlot>,
    interrupts: Arc<Interrupts>,
    queue_events: Vec<EventFd>,
    ram: Arc<GuestRam>,
    dma: DmaMem,
    failures: RateLimiter,
}

impl VirtioPci {
    /// Puts `device` on PCI: its queues in `ram`, its interrupts to `msi`, or to `intx`, wired to pin INTA#, while
    /// the guest does not use MSI-X.
    ///
    /// # Errors
    /// [`VirtioPciError`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        msi: Arc<dyn MsiSink>,
        intx: IrqLine,
    ) -> Result<Arc<Self>, VirtioPciError> {
        let info = device.info();
        let name = || info.name.clone();
        let queue_count = info.queue_sizes.len();
        if queue_count > MAX_QUEUES {
            return Err(VirtioPciError::TooManyQueues {
                name: name(),
                count: queue_count,
            });
        }
        if u64::from(info.config_len) > MAX_CONFIG_BYTES {
            return Err(VirtioPciError::ConfigTooLong {
                name: name(),
                len: info.config_len,
            });
        }
        let (config, msix, pci_cfg) = build_config(&info, msi)?;
        let queue_events = info
            .queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| VirtioPciError::EventFd {
                name: name(),
                source,
            })?;
        let vector_count = u16::try_from(msix.count()).unwrap_or(u16::MAX);
        Ok(Arc::new(Self {
            dma: DmaMem::new(Arc::clone(&ram), config.bus_master()),
            common: Mutex::new(CommonConfig::new(
                info.features,
                &info.queue_sizes,
                vector_count,
            )),
            slot: Mutex::new(DeviceSlot {
                device,
                active: false,
                missed: vec![false; queue_count],
            }),
            interrupts: Arc::new(Interrupts::new(msix, queue_count, intx)),
            config: Mutex::new(config),
            info,
            pci_cfg,
            queue_events,
            ram,
            failures: RateLimiter::default(),
        }))
    }

    /// What the event loop is to run for this device.
    #[must_use]
    pub fn subscriber(self: &Arc<Self>) -> VirtioSubscriber {
        VirtioSubscriber::new(Arc::clone(self))
    }

    /// The end of a run: the device finishes what is in flight and touches guest memory no more. Any thread.
    pub fn shutdown(&self) {
        let mut slot = lock(&self.slot);
        slot.deactivate();
    }

    /// The eventfds that the driver's notifications signal, by queue; the same for the life of the device.
    #[must_use]
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// The file descriptors of the backend to watch.
    pub(super) fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        lock(&self.slot).device.backend_events()
    }

    /// The driver notified queue `index`: the device works on it. Event loop.
    pub fn process_queue_event(&self, index: u16) {
        let mut slot = lock(&self.slot);
        if slot.active {
            if let Err(error) = slot.device.process_queue(index) {
                self.fail(&mut slot, &error);
            }
        } else if let Some(missed) = slot.missed.get_mut(usize::from(index)) {
            *missed = true;
        }
    }

    /// A file descriptor of the backend is ready. Event loop.
    pub fn process_backend_event(&self, fd: RawFd, events: EventSet) {
        let mut slot = lock(&self.slot);
        if let Err(error) = slot.device.process_backend(fd, events) {
            self.fail(&mut slot, &error);
        }
    }

    /// The device has failed under its driver: it stops, and the driver is told to reset it (2.1.2).
    fn fail(&self, slot: &mut DeviceSlot, error: &DeviceFailed) {
        let was_active = slot.active;
        slot.deactivate();
        self.needs_reset(error);
        if was_active {
            self.interrupts.signal_config();
        }
    }

    fn needs_reset(&self, reason: &dyn std::fmt::Display) {
        self.interrupts.set_needs_reset();
        if self.failures.allow() {
            log::warn!("{}: needs a reset: {reason}", self.info.name);
        }
    }

    fn common_write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut common = lock(&self.common);
        match common.write(offset, data)? {
            Effect::None => {}
            Effect::Reset => self.reset_device(&mut common),
            Effect::Vectors => self.interrupts.sync_vectors(&common),
            Effect::QueueEnabled(index) => {
                let queue = &common.queues()[usize::from(index)];
                if let Err(error) = queue.build(&self.ram, common.features()) {
                    self.needs_reset(&format_args!("queue {index}: {error}"));
                }
            }
            Effect::DriverOk => self.activate(&common),
        }
        Ok(())
    }

    /// The driver reset the device. The return tells it that the device touches its memory no more.
    fn reset_device(&self, common: &mut CommonConfig) {
        let mut slot = lock(&self.slot);
        slot.deactivate();
        slot.missed.fill(false);
        self.interrupts.reset();
        common.reset();
    }

    fn activate(&self, common: &CommonConfig) {
        let mut slot = lock(&self.slot);
        if self.interrupts.needs_reset() {
            return;
        }
        let result = self.build_queues(common).and_then(|queues| {
            slot.device.activate(Activation {
                dma: self.dma.clone(),
                queues,
                features: common.features(),
            })
        });
        if let Err(error) = result {
            self.needs_reset(&error);
            self.interrupts.signal_config();
            return;
        }
        slot.active = true;
        for (missed, event) in slot.missed.iter_mut().zip(&self.queue_events) {
            if std::mem::take(missed) {
                signal(event);
            }
        }
    }

    fn build_queues(&self, common: &CommonConfig) -> Result<Vec<VirtQueue>, DeviceFailed> {
        (0..)
            .zip(common.queues())
            .map(|(index, registers)| {
                let queue = registers
                    .build(&self.ram, common.features())
                    .map_err(|error| DeviceFailed(format!("queue {index}: {error}")))?;
                let interrupt = Arc::clone(&self.interrupts) as Arc<dyn QueueInterrupt>;
                Ok(VirtQueue::new(index, queue, self.dma.clone(), interrupt))
            })
            .collect()
    }

    fn notify(&self, offset: u64) -> Result<(), AccessError> {
        let index = usize::try_from(offset / NOTIFY_STRIDE);
        let event = index.ok().and_then(|index| self.queue_events.get(index));
        match event {
            Some(event) if offset.is_multiple_of(NOTIFY_STRIDE) => {
                signal(event);
                Ok(())
            }
            _ => Err(AccessError::InvalidRegister),
        }
    }

    fn check_device_config(&self, offset: u64, len: usize) -> Result<(), AccessError> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= u64::from(self.info.config_len) => Ok(()),
            _ => Err(AccessError::InvalidRegister),
        }
    }

    /// The access that the PCI configuration access capability describes at present: offset in the BAR and length.
    /// None when it is not a possible one.
    fn pci_cfg_access(&self, config: &PciConfig) -> Option<(u64, usize)> {
        let mut bar = [0];
        config.read(self.pci_cfg + PCI_CFG_BAR, &mut bar);
        let offset = u64::from(config.read_u32(self.pci_cfg + PCI_CFG_OFFSET));
        let len = config.read_u32(self.pci_cfg + PCI_CFG_LENGTH);
        let possible = bar == [BAR]
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(u64::from(len))
            && offset + u64::from(len) <= BAR_BYTES;
        possible.then_some((offset, usize::try_from(len).ok()?))
    }

    fn touches_pci_cfg_data(&self, offset: u16, len: usize) -> bool {
        let data = usize::from(self.pci_cfg + PCI_CFG_DATA);
        overlaps(usize::from(offset), len, data, 4)
    }

    /// The driver reads `pci_cfg_data`: fetches from the BAR what it is to see there.
    fn fill_pci_cfg_data(&self) {
        let Some((offset, len)) = self.pci_cfg_access(&lock(&self.config)) else {
            return;
        };
        let mut data = [0; 4];
        if self.bar_read(BAR, offset, &mut data[..len]).is_err() {
            data.fill(0xff);
        }
        lock(&self.config).set_bytes(self.pci_cfg + PCI_CFG_DATA, &data[..len]);
    }
}

impl DeviceSlot {
    fn deactivate(&mut self) {
        if std::mem::take(&mut self.active) {
            self.device.deactivate();
        }
    }
}

impl PciDevice for VirtioPci {
    fn name(&self) -> &str {
        &self.info.name
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.touches_pci_cfg_data(offset, data.len()) {
            self.fill_pci_cfg_data();
        }
        let mut config = lock(&self.config);
        if overlaps(usize::from(offset), data.len(), usize::from(STATUS), 2) {
            config.set_interrupt_status(self.interrupts.intx_pending());
        }
        config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let mut config = lock(&self.config);
        let bus_master = config.bus_master();
        let was_master = bus_master.load(Ordering::Acquire);
        let changes = config.write(offset, data);
        self.interrupts.sync_config(&config);
        let window = self
            .touches_pci_cfg_data(offset, data.len())
            .then(|| self.pci_cfg_access(&config))
            .flatten();
        let window_data = config.read_u32(self.pci_cfg + PCI_CFG_DATA).to_le_bytes();
        drop(config);
        if let Some((offset, len)) = window {
            // A refused write is dropped, as it would be in the BAR.
            let _ = self.bar_write(BAR, offset, &window_data[..len]);
        }
        if !was_master && bus_master.load(Ordering::Acquire) && lock(&self.slot).active {
            // What was notified meanwhile found the rings out of reach.
            self.queue_events.iter().for_each(signal);
        }
        changes
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match offset {
            _ if bar != BAR => Err(AccessError::InvalidRegister),
            COMMON_CONFIG..ISR => lock(&self.common).read(
                offset - COMMON_CONFIG,
                data,
                self.interrupts.generation(),
                self.interrupts.needs_reset(),
            ),
            ISR => {
                data.fill(0);
                if let Some(isr) = data.first_mut() {
                    *isr = self.interrupts.take_isr();
                }
                Ok(())
            }
            DEVICE_CONFIG..NOTIFY => {
                self.check_device_config(offset - DEVICE_CONFIG, data.len())?;
                lock(&self.slot)
                    .device
                    .read_config(offset - DEVICE_CONFIG, data);
                Ok(())
            }
            MSIX_TABLE..MSIX_PBA => self.interrupts.msix.table_read(offset - MSIX_TABLE, data),
            MSIX_PBA.. => self.interrupts.msix.pba_read(offset - MSIX_PBA, data),
            _ => Err(AccessError::InvalidRegister),
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match offset {
            _ if bar != BAR => Err(AccessError::InvalidRegister),
            COMMON_CONFIG..ISR => self.common_write(offset - COMMON_CONFIG, data),
            DEVICE_CONFIG..NOTIFY => {
                self.check_device_config(offset - DEVICE_CONFIG, data.len())?;
                lock(&self.slot)
                    .device
                    .write_config(offset - DEVICE_CONFIG, data);
                Ok(())
            }
            // Only where the doorbell is not bound.
            NOTIFY..MSIX_TABLE => self.notify(offset - NOTIFY),
            MSIX_TABLE..MSIX_PBA => self.interrupts.msix.table_write(offset - MSIX_TABLE, data),
            _ => Err(AccessError::InvalidRegister),
        }
    }

    fn doorbells(&self, bar: u8) -> Vec<DoorbellSpec> {
        let events = if bar == BAR {
            &self.queue_events[..]
        } else {
            &[]
        };
        (0..)
            .zip(events)
            .filter_map(|(index, event)| match event.try_clone() {
                Ok(event) => Some(DoorbellSpec {
                    offset: NOTIFY + index * NOTIFY_STRIDE,
                    event,
                }),
                Err(error) => {
                    if self.failures.allow() {
                        log::warn!("{}: doorbell {index}: {error}", self.info.name);
                    }
                    None
                }
            })
            .collect()
    }

    fn reset(&self) {
        self.reset_device(&mut lock(&self.common));
        self.interrupts.msix.reset();
        let mut config = lock(&self.config);
        config.reset();
        self.interrupts.sync_config(&config);
    }
}

fn signal(event: &EventFd) {
    // It fails only when 2^64 - 2 signals wait: then the device is awake already.
    let _ = event.write(1);
}

/// The configuration space of the function, with its MSI-X and the offset of the PCI configuration access
/// capability.
fn build_config(
    info: &DeviceInfo,
    msi: Arc<dyn MsiSink>,
) -> Result<(PciConfig, Msix, u16), VirtioPciError> {
    let device = VIRTIO_PCI_DEVICE_BASE
        .checked_add(info.device_id)
        .filter(|_| (1..=0x3f).contains(&info.device_id))
        .ok_or_else(|| VirtioPciError::BadDeviceId {
            name: info.name.clone(),
            device_id: info.device_id,
        })?;
    let mut config = PciConfig::new(PciIds {
        vendor: VIRTIO_PCI_VENDOR,
        device,
        revision: 1,
        class: class_code(info.device_id),
        subsystem_vendor: VIRTIO_PCI_VENDOR,
        subsystem: device,
    });
    config.set_interrupt_pin_a();
    add_structures(&mut config, info, msi)
        .map(|(msix, pci_cfg)| (config, msix, pci_cfg))
        .map_err(|source| VirtioPciError::Config {
            name: info.name.clone(),
            source,
        })
}

fn add_structures(
    config: &mut PciConfig,
    info: &DeviceInfo,
    msi: Arc<dyn MsiSink>,
) -> Result<(Msix, u16), PciConfigError> {
    let bar = BarKind::Memory64 {
        prefetchable: false,
    };
    config.add_bar(BAR, bar, BAR_BYTES)?;
    let queue_count = info.queue_sizes.len();
    // First in the list: it is the one that guests look for again and again.
    let vectors = u16::try_from(queue_count + 1).unwrap_or(u16::MAX);
    let msix = Msix::new(config, MSIX, vectors, msi)?;
    let notify_bytes = queue_count as u64 * NOTIFY_STRIDE;
    let add = |config: &mut PciConfig, cfg_type, offset: u64, len: u64, extra: &[u8]| {
        let body = structure_capability(cfg_type, offset, len, extra);
        config.add_capability(CAP_ID_VENDOR_SPECIFIC, &body, &[])
    };
    let common_bytes = COMMON_CONFIG_BYTES as u64;
    add(
        config,
        VIRTIO_PCI_CAP_COMMON_CFG,
        COMMON_CONFIG,
        common_bytes,
        &[],
    )?;
    add(config, VIRTIO_PCI_CAP_ISR_CFG, ISR, 1, &[])?;
    let multiplier = &NOTIFY_STRIDE.to_le_bytes()[..4];
    add(
        config,
        VIRTIO_PCI_CAP_NOTIFY_CFG,
        NOTIFY,
        notify_bytes,
        multiplier,
    )?;
    if info.config_len > 0 {
        let len = u64::from(info.config_len);
        add(config, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_CONFIG, len, &[])?;
    }
    let body = structure_capability(VIRTIO_PCI_CAP_PCI_CFG, 0, 0, &[0; 4]);
    let mut writable = [0xff; 18];
    // Length and type of the capability, the ID and the padding are not the driver's.
    writable[..2].fill(0);
    writable[3..6].fill(0);
    let pci_cfg = config.add_capability(CAP_ID_VENDOR_SPECIFIC, &body, &writable)?;
    Ok((msix, u16::from(pci_cfg)))
}

/// `struct virtio_pci_cap` (4.1.4) without its first two bytes, and what follows it.
fn structure_capability(cfg_type: u8, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    let cap_len = if extra.is_empty() { 16 } else { 20 };
    let mut body = vec![cap_len, cfg_type, BAR, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes()[..4]);
    body.extend_from_slice(&len.to_le_bytes()[..4]);
    body.extend_from_slice(extra);
    body
}

/// The class code that tells a guest without a driver what this is.
fn class_code(device_id: u16) -> u32 {
    match u32::from(device_id) {
        VIRTIO_ID_NET => 0x02_00_00,
        VIRTIO_ID_BLOCK => 0x01_80_00,
        VIRTIO_ID_CONSOLE => 0x07_80_00,
        // Others, the entropy device among them, have no class of their own.
        _ => 0xff_00_00,
    }
}
