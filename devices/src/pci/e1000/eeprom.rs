//! The EEPROM (manual, chapter 5): 64 words behind a Microwire bus that drivers clock by hand through EECD (5.4.1,
//! 13.4.3), or read through EERD (13.4.4).
//!
//! What a driver writes to it stays until the end of the run.

use crate::net::MacAddr;

const WORDS: usize = 64;
/// The sum of all words, the last included (5.6.35).
const CHECKSUM: u16 = 0xbaba;
const CHECKSUM_WORD: usize = 0x3f;

/// EECD: clock.
const SK: u32 = 1 << 0;
/// EECD: chip select.
const CS: u32 = 1 << 1;
/// EECD: data into the EEPROM.
const DI: u32 = 1 << 2;
/// EECD: data out of the EEPROM, RO.
const DO: u32 = 1 << 3;
/// EECD: Flash writes disabled; of no effect here.
const FWE_DISABLED: u32 = 0b01 << 4;
const FWE: u32 = 0b11 << 4;
/// EECD: software asks for the bus.
const REQ: u32 = 1 << 6;
/// EECD: it is granted, RO.
const GNT: u32 = 1 << 7;
/// EECD: there is an EEPROM, RO.
const PRES: u32 = 1 << 8;

/// EERD: start reading.
const START: u32 = 1 << 0;
/// EERD: done.
const DONE: u32 = 1 << 4;
const ADDRESS_SHIFT: u32 = 8;
const DATA_SHIFT: u32 = 16;

/// Bits of a command: start bit, opcode, address (5.4.1).
const COMMAND_BITS: u8 = 9;
const ADDRESS_MASK: u16 = 0x3f;

/// Where a transaction on the Microwire bus is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bus {
    /// Waiting for the start bit.
    Idle,
    /// So many bits of the command have come.
    Command { bits: u8, value: u16 },
    /// Shifting words out, from this one on; so many bits of it are out.
    Read { address: u16, bits: u8 },
    /// Shifting a word in.
    Write { address: u16, bits: u8, value: u16 },
    /// Nothing more until the chip is deselected.
    Done,
}

/// The EEPROM and the registers through which it is reached.
#[derive(Debug)]
pub struct Eeprom {
    words: [u16; WORDS],
    eecd: u32,
    eerd: u32,
    bus: Bus,
    data_out: bool,
    writable: bool,
}

impl Eeprom {
    /// An EEPROM of a desktop adapter with the address `mac`, whose subsystem is `subsystem` (vendor, device).
    pub fn new(mac: MacAddr, subsystem: (u16, u16), device: u16) -> Self {
        let mut words = [0xffff; WORDS];
        for (word, pair) in words.iter_mut().zip(mac.bytes().chunks_exact(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        // Compatibility, LED settings (the default) and version.
        words[0x03] = 0x0000;
        words[0x04] = 0xffff;
        // The identification that PCI configuration space was loaded from.
        words[0x0a] = 0x4408;
        words[0x0b] = subsystem.1;
        words[0x0c] = subsystem.0;
        words[0x0d] = device;
        words[0x0e] = super::VENDOR;
        // Both directions of pause are advertised; no wake-up by magic packet.
        words[0x0f] = 0x3040;
        words[0x24] = 0x0000;
        let sum = words[..CHECKSUM_WORD]
            .iter()
            .fold(0_u16, |sum, word| sum.wrapping_add(*word));
        words[CHECKSUM_WORD] = CHECKSUM.wrapping_sub(sum);
        Self {
            words,
            eecd: FWE_DISABLED,
            eerd: DONE,
            bus: Bus::Idle,
            data_out: true,
            writable: false,
        }
    }

    /// The registers and the bus as after a reset; the words stay.
    pub fn reset(&mut self) {
        self.eecd = FWE_DISABLED;
        self.eerd = DONE;
        self.bus = Bus::Idle;
        self.data_out = true;
        self.writable = false;
    }

    /// The address in words 0 to 2, in the order it is sent.
    pub fn mac(&self) -> [u8; 6] {
        let [a, b] = self.words[0].to_le_bytes();
        let [c, d] = self.words[1].to_le_bytes();
        let [e, f] = self.words[2].to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// EERD.
    pub fn eerd(&self) -> u32 {
        self.eerd
    }

    /// Writes EERD. Reading takes no time.
    pub fn write_eerd(&mut self, value: u32) {
        let address = (value >> ADDRESS_SHIFT) & 0xff;
        self.eerd = address << ADDRESS_SHIFT | DONE;
        if value & START != 0 {
            let word = usize::try_from(address)
                .ok()
                .and_then(|address| self.words.get(address));
            self.eerd |= u32::from(word.copied().unwrap_or(0xffff)) << DATA_SHIFT;
        }
    }

    /// EECD. The size bit is 0: 64 words.
    pub fn eecd(&self) -> u32 {
        let granted = if self.eecd & REQ != 0 { GNT } else { 0 };
        let data_out = if self.data_out { DO } else { 0 };
        self.eecd | PRES | granted | data_out
    }

    /// Writes EECD: one step of the bus.
    pub fn write_eecd(&mut self, value: u32) {
        let before = std::mem::replace(&mut self.eecd, value & (SK | CS | DI | FWE | REQ));
        if self.eecd & CS == 0 {
            self.bus = Bus::Idle;
            self.data_out = true;
        } else if before & SK == 0 && self.eecd & SK != 0 {
            self.clock(self.eecd & DI != 0);
        }
    }

    /// A rising edge of the clock.
    fn clock(&mut self, bit: bool) {
        self.bus = match self.bus {
            // The start bit is a one; zeros before it only keep the clock running.
            Bus::Idle if bit => Bus::Command { bits: 1, value: 1 },
            Bus::Command { bits, value } => {
                let (bits, value) = (bits + 1, value << 1 | u16::from(bit));
                if bits == COMMAND_BITS {
                    self.command(value)
                } else {
                    Bus::Command { bits, value }
                }
            }
            Bus::Read { address, bits } => {
                self.data_out = self.words[usize::from(address)] & (0x8000 >> bits) != 0;
                match bits {
                    // The next word follows without a pause.
                    15 => Bus::Read {
                        address: (address + 1) & ADDRESS_MASK,
                        bits: 0,
                    },
                    bits => Bus::Read {
                        address,
                        bits: bits + 1,
                    },
                }
            }
            Bus::Write {
                address,
                bits,
                value,
            } => {
                let (bits, value) = (bits + 1, value << 1 | u16::from(bit));
                if bits < 16 {
                    Bus::Write {
                        address,
                        bits,
                        value,
                    }
                } else {
                    if self.writable {
                        self.words[usize::from(address)] = value;
                    }
                    Bus::Done
                }
            }
            state @ (Bus::Idle | Bus::Done) => state,
        };
    }

    /// A whole command: start bit, two bits of opcode, six of address.
    fn command(&mut self, command: u16) -> Bus {
        const READ: u16 = 0b10;
        const WRITE: u16 = 0b01;
        const EXTENDED: u16 = 0b00;
        const WRITE_ENABLE: u16 = 0b11;
        const WRITE_DISABLE: u16 = 0b00;
        let address = command & ADDRESS_MASK;
        match (command >> 6) & 0b11 {
            READ => {
                // The dummy bit before the data.
                self.data_out = false;
                Bus::Read { address, bits: 0 }
            }
            WRITE => Bus::Write {
                address,
                bits: 0,
                value: 0,
            },
            EXTENDED => {
                match address >> 4 {
                    WRITE_ENABLE => self.writable = true,
                    WRITE_DISABLE => self.writable = false,
                    _ => {}
                }
                Bus::Done
            }
            // Erase: a write follows in any driver, and needs none.
            _ => Bus::Done,
        }
    }
}
