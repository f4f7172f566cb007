//! A ring of descriptors of 16 bytes (manual, 3.2.6 and 3.4): base, length, head and tail.

use vm_memory::{Address, Bytes, GuestAddress};

use crate::dma::GuestRam;

/// Length of a descriptor, in bytes.
pub const DESCRIPTOR_BYTES: u32 = 16;
/// The length register counts in 128 bytes.
const LENGTH_MASK: u32 = 0x000f_ff80;
/// The writable bits of head and tail.
const INDEX_MASK: u32 = 0xffff;

/// A register of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingRegister {
    /// Base, low.
    BaseLow,
    /// Base, high.
    BaseHigh,
    /// Length in bytes.
    Length,
    /// Head: the device's next descriptor.
    Head,
    /// Tail: the first that is not the device's.
    Tail,
}

/// A descriptor or the ring itself is where the device cannot go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    /// The head or the tail is not in the ring.
    OutOfRange {
        /// Head.
        head: u32,
        /// Tail.
        tail: u32,
        /// Descriptors in the ring.
        count: u32,
    },
    /// The descriptor is outside guest RAM.
    OutsideRam {
        /// Its address.
        addr: u64,
    },
}

impl std::fmt::Display for RingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfRange { head, tail, count } => {
                write!(
                    f,
                    "head {head} or tail {tail} is not in the ring of {count}"
                )
            }
            Self::OutsideRam { addr } => write!(f, "descriptor at {addr:#x} is outside guest RAM"),
        }
    }
}

/// The registers of a ring.
#[derive(Debug, Default)]
pub struct Ring {
    base: u64,
    length: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    /// Reads a register.
    pub fn read(&self, register: RingRegister) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.base.to_le_bytes();
        match register {
            RingRegister::BaseLow => u32::from_le_bytes([a, b, c, d]),
            RingRegister::BaseHigh => u32::from_le_bytes([e, f, g, h]),
            RingRegister::Length => self.length,
            RingRegister::Head => self.head,
            RingRegister::Tail => self.tail,
        }
    }

    /// Writes a register.
    pub fn write(&mut self, register: RingRegister, value: u32) {
        match register {
            RingRegister::BaseLow => {
                self.base = self.base & !0xffff_ffff | u64::from(value & !0xf);
            }
            RingRegister::BaseHigh => {
                self.base = self.base & 0xffff_ffff | u64::from(value) << 32;
            }
            RingRegister::Length => self.length = value & LENGTH_MASK,
            RingRegister::Head => self.head = value & INDEX_MASK,
            RingRegister::Tail => self.tail = value & INDEX_MASK,
        }
    }

    /// How many descriptors the ring has.
    pub fn count(&self) -> u32 {
        self.length / DESCRIPTOR_BYTES
    }

    /// How many descriptors are the device's.
    ///
    /// # Errors
    /// [`RingError::OutOfRange`].
    pub fn available(&self) -> Result<u32, RingError> {
        let (head, tail, count) = (self.head, self.tail, self.count());
        if head == tail {
            Ok(0)
        } else if head >= count || tail >= count {
            Err(RingError::OutOfRange { head, tail, count })
        } else {
            Ok((tail + count - head) % count)
        }
    }

    /// Fetches the descriptor at the head.
    ///
    /// # Errors
    /// [`RingError::OutsideRam`].
    pub fn fetch(&self, ram: &GuestRam) -> Result<[u8; 16], RingError> {
        let addr = self.head_address()?;
        let mut descriptor = [0; 16];
        ram.read_slice(&mut descriptor, addr)
            .map_err(|_| RingError::OutsideRam { addr: addr.0 })?;
        Ok(descriptor)
    }

    /// Writes back the upper half of the descriptor at the head, in one store: the driver looks at its status first.
    ///
    /// # Errors
    /// [`RingError::OutsideRam`].
    pub fn write_back(&self, ram: &GuestRam, upper: [u8; 8]) -> Result<(), RingError> {
        let addr = self.head_address()?;
        let outside = RingError::OutsideRam { addr: addr.0 };
        let half = addr.checked_add(8).ok_or(outside)?;
        let value = u64::from_ne_bytes(upper);
        ram.store(value, half, std::sync::atomic::Ordering::Release)
            .map_err(|_| outside)
    }

    /// The descriptor at the head is done with.
    pub fn advance(&mut self) {
        self.head += 1;
        if self.head >= self.count() {
            self.head = 0;
        }
    }

    fn head_address(&self) -> Result<GuestAddress, RingError> {
        let offset = u64::from(self.head) * u64::from(DESCRIPTOR_BYTES);
        GuestAddress(self.base)
            .checked_add(offset)
            .ok_or(RingError::OutsideRam { addr: self.base })
    }
}
