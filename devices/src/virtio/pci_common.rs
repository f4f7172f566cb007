//! The common configuration structure of the PCI transport (virtio 1.3, 4.1.4.3): status machine, feature
//! negotiation, queue registers. Pure: a write returns what the transport has to do about it.

use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::bus::AccessError;
use crate::dma::GuestRam;

/// Length of the structure without the fields of optional features that we do not offer.
pub(super) const COMMON_CONFIG_BYTES: usize = 0x38;
/// A vector register that stands for no interrupt (4.1.5.1.2).
pub(super) const VIRTIO_MSI_NO_VECTOR: u16 = 0xffff;

/// Feature bits that the transport and the queues offer for every device.
pub(super) const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

// Device status (2.1). The bindings have them as 32-bit numbers; the register has eight bits.
const ACKNOWLEDGE: u8 = status_bit(VIRTIO_CONFIG_S_ACKNOWLEDGE);
const DRIVER: u8 = status_bit(VIRTIO_CONFIG_S_DRIVER);
const DRIVER_OK: u8 = status_bit(VIRTIO_CONFIG_S_DRIVER_OK);
const FEATURES_OK: u8 = status_bit(VIRTIO_CONFIG_S_FEATURES_OK);
const DEVICE_NEEDS_RESET: u8 = status_bit(VIRTIO_CONFIG_S_NEEDS_RESET);
const FAILED: u8 = status_bit(VIRTIO_CONFIG_S_FAILED);

const fn status_bit(bit: u32) -> u8 {
    bit.to_le_bytes()[0]
}

// Offsets of the fields.
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_MSIX_VECTOR: usize = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: usize = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;

/// What the transport has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The driver wrote 0 to the status: reset before the write completes.
    Reset,
    /// The driver enabled a queue.
    QueueEnabled(u16),
    /// The driver is ready: activate the device.
    DriverOk,
    /// A vector register changed.
    Vectors,
}

/// A queue that cannot be used as the driver set it up.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum QueueSetupError {
    /// The size is zero, not a power of two, or more than was offered.
    #[error("a queue size of {size} when {max_size} was offered")]
    Size {
        /// What the driver wrote.
        size: u16,
        /// What was offered.
        max_size: u16,
    },
    /// A part of the queue is unaligned or outside guest RAM.
    #[error("{part} at {address:#x} is unaligned or outside guest RAM")]
    Address {
        /// Which part.
        part: &'static str,
        /// What the driver wrote.
        address: u64,
    },
}

/// The registers of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    max_size: u16,
    size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    desc: u64,
    avail: u64,
    used: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: VIRTIO_MSI_NO_VECTOR,
            enabled: false,
            desc: 0,
            avail: 0,
            used: 0,
        }
    }

    /// The queue as a device works with it; one that is not enabled is not ready.
    pub(super) fn build(&self, ram: &GuestRam, features: u64) -> Result<Queue, QueueSetupError> {
        let bad_size = |_| QueueSetupError::Size {
            size: self.size,
            max_size: self.max_size,
        };
        let mut queue = Queue::new(self.max_size).map_err(bad_size)?;
        if !self.enabled {
            return Ok(queue);
        }
        queue.try_set_size(self.size).map_err(bad_size)?;
        // Sizes and alignments are those of 2.7.
        let entries = usize::from(self.size);
        let check = |part, address, bytes, align, access| {
            let aligned = address != 0 && address % align == 0;
            if aligned && GuestMemory::check_range(ram, GuestAddress(address), bytes, access) {
                Ok(GuestAddress(address))
            } else {
                Err(QueueSetupError::Address { part, address })
            }
        };
        let desc = check(
            "descriptor table",
            self.desc,
            16 * entries,
            16,
            Permissions::Read,
        )?;
        let avail = check(
            "available ring",
            self.avail,
            6 + 2 * entries,
            2,
            Permissions::Read,
        )?;
        let used = check(
            "used ring",
            self.used,
            6 + 8 * entries,
            4,
            Permissions::Write,
        )?;
        let set = |part, address: GuestAddress, result: Result<(), virtio_queue::Error>| {
            result.map_err(|_| QueueSetupError::Address {
                part,
                address: address.0,
            })
        };
        set(
            "descriptor table",
            desc,
            queue.try_set_desc_table_address(desc),
        )?;
        set(
            "available ring",
            avail,
            queue.try_set_avail_ring_address(avail),
        )?;
        set("used ring", used, queue.try_set_used_ring_address(used))?;
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// The registers.
pub(super) struct CommonConfig {
    offered: u64,
    vector_count: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    /// Four words, so that bits we never offer are remembered as accepted.
    accepted: [u32; 4],
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl CommonConfig {
    /// The registers of a device that offers `device_features` besides [`TRANSPORT_FEATURES`], has queues of at
    /// most `queue_sizes`, and `vector_count` MSI-X vectors.
    pub(super) fn new(device_features: u64, queue_sizes: &[u16], vector_count: u16) -> Self {
        Self {
            offered: device_features | TRANSPORT_FEATURES,
            vector_count,
            device_feature_select: 0,
            driver_feature_select: 0,
            accepted: [0; 4],
            config_vector: VIRTIO_MSI_NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queue_sizes
                .iter()
                .copied()
                .map(QueueRegisters::new)
                .collect(),
        }
    }

    /// Back to the state after power-on (2.4).
    pub(super) fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.accepted = [0; 4];
        self.config_vector = VIRTIO_MSI_NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
    }

    /// The negotiated features.
    pub(super) fn features(&self) -> u64 {
        u64::from(self.accepted[1]) << 32 | u64::from(self.accepted[0])
    }

    pub(super) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// Reads at `offset`, any width: reading has no side effects. `generation` and `needs_reset` are the device's.
    pub(super) fn read(
        &self,
        offset: u64,
        data: &mut [u8],
        generation: u8,
        needs_reset: bool,
    ) -> Result<(), AccessError> {
        let image = self.image(generation, needs_reset);
        let start = usize::try_from(offset).map_err(|_| AccessError::InvalidRegister)?;
        let end = start
            .checked_add(data.len())
            .ok_or(AccessError::InvalidRegister)?;
        let bytes = image.get(start..end).ok_or(AccessError::InvalidRegister)?;
        data.copy_from_slice(bytes);
        Ok(())
    }

    fn image(&self, generation: u8, needs_reset: bool) -> [u8; COMMON_CONFIG_BYTES] {
        let mut image = [0; COMMON_CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(
            DEVICE_FEATURE_SELECT,
            &self.device_feature_select.to_le_bytes(),
        );
        let offered = match self.device_feature_select {
            0 => self.offered,
            1 => self.offered >> 32,
            _ => 0,
        };
        put(DEVICE_FEATURE, &offered.to_le_bytes()[..4]);
        put(
            DRIVER_FEATURE_SELECT,
            &self.driver_feature_select.to_le_bytes(),
        );
        let accepted = usize::try_from(self.driver_feature_select)
            .ok()
            .and_then(|select| self.accepted.get(select))
            .copied()
            .unwrap_or(0);
        put(DRIVER_FEATURE, &accepted.to_le_bytes());
        put(CONFIG_MSIX_VECTOR, &self.config_vector.to_le_bytes());
        put(NUM_QUEUES, &self.queues.len().to_le_bytes()[..2]);
        let failed = if needs_reset { DEVICE_NEEDS_RESET } else { 0 };
        put(DEVICE_STATUS, &[self.status | failed]);
        put(CONFIG_GENERATION, &[generation]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            put(QUEUE_MSIX_VECTOR, &queue.vector.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(QUEUE_DESC, &queue.desc.to_le_bytes());
            put(QUEUE_DRIVER, &queue.avail.to_le_bytes());
            put(QUEUE_DEVICE, &queue.used.to_le_bytes());
        } else {
            put(QUEUE_MSIX_VECTOR, &VIRTIO_MSI_NO_VECTOR.to_le_bytes());
        }
        image
    }

    /// Writes a field, with its own width (4.1.3.1); the 64-bit ones also by halves. What the driver may not write
    /// in the present state is ignored.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<Effect, AccessError> {
        let at = usize::try_from(offset).map_err(|_| AccessError::InvalidRegister)?;
        match *data {
            [value] => self.write_u8(at, value),
            [a, b] => self.write_u16(at, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_u32(at, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if at >= QUEUE_DESC && at.is_multiple_of(8) => {
                self.write_u32(at, u32::from_le_bytes([a, b, c, d]))?;
                self.write_u32(at + 4, u32::from_le_bytes([e, f, g, h]))
            }
            _ => Err(AccessError::InvalidWidth),
        }
    }

    fn write_u8(&mut self, at: usize, value: u8) -> Result<Effect, AccessError> {
        match at {
            DEVICE_STATUS => Ok(self.write_status(value)),
            _ => Err(misplaced(at)),
        }
    }

    fn write_u16(&mut self, at: usize, value: u16) -> Result<Effect, AccessError> {
        match at {
            CONFIG_MSIX_VECTOR => {
                self.config_vector = self.valid_vector(value);
                Ok(Effect::Vectors)
            }
            QUEUE_SELECT => {
                self.queue_select = value;
                Ok(Effect::None)
            }
            QUEUE_MSIX_VECTOR => {
                let vector = self.valid_vector(value);
                Ok(match self.selected() {
                    Some(queue) => {
                        queue.vector = vector;
                        Effect::Vectors
                    }
                    None => Effect::None,
                })
            }
            QUEUE_SIZE => {
                if let Some(queue) = self.selected_for_setup() {
                    queue.size = value;
                }
                Ok(Effect::None)
            }
            QUEUE_ENABLE => {
                let index = self.queue_select;
                Ok(match self.selected_for_setup() {
                    Some(queue) if value == 1 => {
                        queue.enabled = true;
                        Effect::QueueEnabled(index)
                    }
                    _ => Effect::None,
                })
            }
            _ => Err(misplaced(at)),
        }
    }

    fn write_u32(&mut self, at: usize, value: u32) -> Result<Effect, AccessError> {
        match at {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE => {
                let select = usize::try_from(self.driver_feature_select).unwrap_or(usize::MAX);
                if self.status & FEATURES_OK == 0
                    && let Some(word) = self.accepted.get_mut(select)
                {
                    *word = value;
                }
            }
            QUEUE_DESC..COMMON_CONFIG_BYTES if at.is_multiple_of(4) => {
                if let Some(queue) = self.selected_for_setup() {
                    let field = match at & !0b111 {
                        QUEUE_DESC => &mut queue.desc,
                        QUEUE_DRIVER => &mut queue.avail,
                        _ => &mut queue.used,
                    };
                    let (low, high) = (*field & 0xffff_ffff, *field >> 32);
                    *field = if at.is_multiple_of(8) {
                        high << 32 | u64::from(value)
                    } else {
                        u64::from(value) << 32 | low
                    };
                }
            }
            _ => return Err(misplaced(at)),
        }
        Ok(Effect::None)
    }

    /// The driver only adds bits, in the order of 3.1.1; bits it may not set yet stay clear, which is how it
    /// learns that its features were refused.
    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let wanted = value & !self.status;
        self.status |= wanted & (ACKNOWLEDGE | DRIVER | FAILED);
        let driver_there = ACKNOWLEDGE | DRIVER;
        if wanted & FEATURES_OK != 0
            && self.status & driver_there == driver_there
            && self.features_acceptable()
        {
            self.status |= FEATURES_OK;
        }
        if wanted & DRIVER_OK != 0 && self.status & (FEATURES_OK | FAILED) == FEATURES_OK {
            self.status |= DRIVER_OK;
            return Effect::DriverOk;
        }
        Effect::None
    }

    fn features_acceptable(&self) -> bool {
        let features = self.features();
        features & !self.offered == 0
            && self.accepted[2..] == [0, 0]
            && features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn selected(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The selected queue while the driver may still set it up: not once it is enabled or the device is live.
    fn selected_for_setup(&mut self) -> Option<&mut QueueRegisters> {
        let live = self.status & DRIVER_OK != 0;
        self.selected().filter(|queue| !live && !queue.enabled)
    }

    fn valid_vector(&self, value: u16) -> u16 {
        if value < self.vector_count {
            value
        } else {
            VIRTIO_MSI_NO_VECTOR
        }
    }
}

/// Why a write went wrong that met no writable field of its width.
fn misplaced(at: usize) -> AccessError {
    if at < COMMON_CONFIG_BYTES {
        AccessError::InvalidWidth
    } else {
        AccessError::InvalidRegister
    }
}
