//! The chip: its register file, and the blocks behind it.

use super::Complaints;
use super::eeprom::Eeprom;
use super::filter::Filter;
use super::moderation::Interrupts;
use super::phy::Phy;
use super::registers::*;
use super::ring::RingRegister;
use super::rx::{Receiver, RxEnvironment, RxOutcome};
use super::stats::Statistics;
use super::tx::{Transmitter, TxEnvironment, TxOutcome};
use crate::dma::GuestRam;
use crate::net::{MacAddr, NetBackend};

/// Registers that only store: offset, value after a reset, writable bits.
const PLAIN: [(u32, u32, u32); 24] = [
    (FCAL, 0, 0xffff_ffff),
    (FCAH, 0, 0x0000_ffff),
    (FCT, 0, 0x0000_ffff),
    (VET, 0x8100, 0x0000_ffff),
    (FCTTV, 0, 0x0000_ffff),
    (TXCW, 0, 0xc000_ffff),
    (LEDCTL, 0x0706_8302, 0xcfcf_cfcf),
    (PBA, 0x0010_0030, 0x0000_ffff),
    (TIPG, 0x0060_2008, 0x3fff_ffff),
    (AIFS, 0, 0x0000_ffff),
    (FCRTL, 0, 0x8000_fff8),
    (FCRTH, 0, 0x0000_fff8),
    (RXDCTL, 0x0101_0000, 0x013f_3f3f),
    (RSRPD, 0, 0x0000_0fff),
    (TXDMAC, 0x0000_0001, 0x0000_0001),
    (TSPMT, 0x0100_0400, 0xffff_ffff),
    (WUC, 0, 0x0000_000f),
    (WUFC, 0, 0x000f_80ff),
    (IPAV, 0, 0x0001_000f),
    (MANC, 0, 0xffff_ffff),
    (FFLT, 0, 0x0000_07ff),
    (FFLT + 8, 0, 0x0000_07ff),
    (FFLT + 16, 0, 0x0000_07ff),
    (FFLT + 24, 0, 0x0000_07ff),
];
/// CTRL after a reset: full duplex, 1000 Mb/s, link up, as the EEPROM has it.
const CTRL_RESET: u32 = CTRL_FD | CTRL_SLU | CTRL_SPEED_1000;
/// Bits of CTRL that stay; the resets clear themselves.
const CTRL_MASK: u32 = !(CTRL_RST | CTRL_PHY_RST);
/// Bits of RCTL, TCTL and TXDCTL that the chip has.
const RCTL_MASK: u32 = 0x06df_b3fe;
const TCTL_MASK: u32 = 0x01ff_fffa;
const TXDCTL_MASK: u32 = 0xff3f_3f3f;
const RXCSUM_MASK: u32 = 0x0000_07ff;

/// What follows from a write to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but what the interrupt block says.
    None,
    /// The transmitter may have work.
    Transmit,
    /// The receiver may go on.
    Receive,
}

/// The chip.
pub struct Chip {
    ctrl: u32,
    ctrl_ext: u32,
    plain: [u32; PLAIN.len()],
    eeprom: Eeprom,
    phy: Phy,
    filter: Filter,
    /// Causes, mask, moderation.
    pub interrupts: Interrupts,
    tx: Transmitter,
    rx: Receiver,
    stats: Statistics,
}

fn low_word(value: u32) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

fn index(offset: u32, base: u32) -> usize {
    (offset.wrapping_sub(base) / 4) as usize
}

/// The transmit or receive ring's register at `offset` from the ring's first one.
fn ring_register(offset: u32) -> Option<RingRegister> {
    match offset {
        0x00 => Some(RingRegister::BaseLow),
        0x04 => Some(RingRegister::BaseHigh),
        0x08 => Some(RingRegister::Length),
        0x10 => Some(RingRegister::Head),
        0x18 => Some(RingRegister::Tail),
        _ => None,
    }
}

impl Chip {
    /// A chip after power-on whose EEPROM holds `mac`.
    pub fn new(mac: MacAddr) -> Self {
        let eeprom = Eeprom::new(mac, super::SUBSYSTEM, super::DEVICE);
        Self {
            ctrl: CTRL_RESET,
            ctrl_ext: 0,
            plain: PLAIN.map(|(_, reset, _)| reset),
            filter: Filter::new(eeprom.mac()),
            eeprom,
            phy: Phy::new(),
            interrupts: Interrupts::default(),
            tx: Transmitter::default(),
            rx: Receiver::new(),
            stats: Statistics::new(),
        }
    }

    /// CTRL.RST (14.3): everything but PHY and EEPROM is as after power-on, in whatever state it was.
    pub fn reset(&mut self) {
        self.ctrl = CTRL_RESET;
        self.ctrl_ext = 0;
        self.plain = PLAIN.map(|(_, reset, _)| reset);
        self.eeprom.reset();
        self.phy.reset_mdic();
        self.filter = Filter::new(self.eeprom.mac());
        self.interrupts = Interrupts::default();
        self.tx = Transmitter::default();
        self.rx.reset();
        self.stats = Statistics::new();
    }

    /// The reset of the machine: the PHY too.
    pub fn power_on(&mut self) {
        self.reset();
        self.phy.reset();
    }

    /// The link comes up or goes down.
    pub fn set_link(&mut self, up: bool) {
        self.follow_link(|phy| phy.set_cable(up));
    }

    /// Does something to the PHY; the driver hears of it when the link changes.
    fn follow_link<T>(&mut self, change: impl FnOnce(&mut Phy) -> T) -> T {
        let before = self.phy.link();
        let result = change(&mut self.phy);
        if self.phy.take_negotiated() || self.phy.link() != before {
            self.interrupts.raise(ICR_LSC);
        }
        result
    }

    /// Whether what is sent comes back.
    pub fn loopback(&self) -> bool {
        self.rx.rctl & RCTL_LBM != 0 || self.phy.loopback()
    }

    /// Whether frames pass the wire.
    pub fn connected(&self) -> bool {
        self.phy.link() || self.loopback()
    }

    /// Whether the receiver is on.
    pub fn receives(&self) -> bool {
        self.rx.rctl & RCTL_EN != 0
    }

    /// Whether the transmitter waits for the backend.
    pub fn tx_blocked(&self) -> bool {
        self.tx.blocked()
    }

    /// Reads the register at `offset`, a multiple of 4. Registers that the chip does not have read as 0.
    pub fn read(&mut self, offset: u32) -> u32 {
        match offset {
            CTRL => self.ctrl,
            STATUS => self.status(),
            EECD => self.eeprom.eecd(),
            EERD => self.eeprom.eerd(),
            CTRL_EXT => self.ctrl_ext,
            MDIC => self.phy.mdic(),
            ICR => self.interrupts.take_icr(),
            ICS => self.interrupts.causes(),
            ITR => self.interrupts.itr().into(),
            IMS => self.interrupts.mask(),
            RCTL => self.rx.rctl,
            TCTL => self.tx.tctl,
            RDBAL..=RDT => ring_register(offset - RDBAL).map_or(0, |r| self.rx.ring.read(r)),
            RDTR => self.interrupts.rdtr.into(),
            RADV => self.interrupts.radv.into(),
            TDBAL..=TDT => ring_register(offset - TDBAL).map_or(0, |r| self.tx.ring.read(r)),
            TIDV => self.interrupts.tidv.into(),
            TXDCTL => self.tx.txdctl,
            TADV => self.interrupts.tadv.into(),
            STATISTICS..STATISTICS_END => self.stats.read(offset),
            RXCSUM => self.rx.rxcsum,
            MTA..RAL => self.filter.multicast(index(offset, MTA)),
            RAL..RAL_END => self.filter.address(index(offset, RAL)),
            VFTA..WUC => self.filter.vlan(index(offset, VFTA)),
            _ => self.plain_place(offset).map_or(0, |at| self.plain[at]),
        }
    }

    /// Writes the register at `offset`, a multiple of 4. What is read-only or not there takes nothing.
    pub fn write(&mut self, offset: u32, value: u32) -> Effect {
        match offset {
            CTRL => self.write_ctrl(value),
            EECD => self.eeprom.write_eecd(value),
            EERD => self.eeprom.write_eerd(value),
            CTRL_EXT => {
                self.ctrl_ext = value & !CTRL_EXT_EE_RST;
                if value & CTRL_EXT_EE_RST != 0 {
                    self.filter = Filter::new(self.eeprom.mac());
                }
            }
            MDIC => {
                if self.follow_link(|phy| phy.write_mdic(value)) {
                    self.interrupts.raise(ICR_MDAC);
                }
            }
            ICR => self.interrupts.clear_causes(value),
            ICS => self.interrupts.raise(value),
            ITR => self.interrupts.set_itr(low_word(value)),
            IMS => self.interrupts.unmask(value),
            IMC => self.interrupts.mask_off(value),
            RCTL => {
                self.rx.rctl = value & RCTL_MASK;
                return Effect::Receive;
            }
            TCTL => {
                self.tx.tctl = value & TCTL_MASK;
                return Effect::Transmit;
            }
            RDBAL..=RDT => {
                if let Some(register) = ring_register(offset - RDBAL) {
                    self.rx.ring.write(register, value);
                }
                return Effect::Receive;
            }
            RDTR => {
                self.interrupts.rdtr = low_word(value);
                if value & RDTR_FPD != 0 {
                    self.interrupts.flush_received();
                }
            }
            RADV => self.interrupts.radv = low_word(value),
            TDBAL..=TDT => {
                let register = ring_register(offset - TDBAL);
                if let Some(register) = register {
                    self.tx.ring.write(register, value);
                }
                if register == Some(RingRegister::Tail) {
                    return Effect::Transmit;
                }
            }
            TIDV => self.interrupts.tidv = low_word(value),
            TXDCTL => self.tx.txdctl = value & TXDCTL_MASK,
            TADV => self.interrupts.tadv = low_word(value),
            RXCSUM => self.rx.rxcsum = value & RXCSUM_MASK,
            MTA..RAL => self.filter.set_multicast(index(offset, MTA), value),
            RAL..RAL_END => self.filter.set_address(index(offset, RAL), value),
            VFTA..WUC => self.filter.set_vlan(index(offset, VFTA), value),
            _ => {
                if let Some(at) = self.plain_place(offset) {
                    self.plain[at] = value & PLAIN[at].2;
                }
            }
        }
        Effect::None
    }

    fn plain_place(&self, offset: u32) -> Option<usize> {
        PLAIN.iter().position(|(at, ..)| *at == offset)
    }

    fn status(&self) -> u32 {
        STATUS_FD_1000 | if self.phy.link() { STATUS_LU } else { 0 }
    }

    fn write_ctrl(&mut self, value: u32) {
        if value & CTRL_RST != 0 {
            self.reset();
        } else {
            self.ctrl = value & CTRL_MASK;
        }
        if value & CTRL_PHY_RST != 0 {
            self.follow_link(Phy::reset);
        }
    }

    fn vlan_ethertype(&self) -> u16 {
        self.plain_place(VET)
            .map_or(0, |at| low_word(self.plain[at]))
    }

    /// Sends what the driver gave, through `backend`; `now_ns` is of the clock that the interrupt block knows.
    pub fn transmit(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        log: &Complaints,
        now_ns: impl FnOnce() -> u64,
    ) -> TxOutcome {
        let mut env = TxEnvironment {
            ctrl: self.ctrl,
            vlan_ethertype: self.vlan_ethertype(),
            segments_can_be_left: !self.loopback(),
            stats: &mut self.stats,
            log,
        };
        let (outcome, report) = self.tx.run(ram, backend, &mut env);
        if report.reported != 0 {
            let ring = self.tx.ring.count();
            self.interrupts
                .transmitted(now_ns(), report.reported, report.delayed, ring);
        }
        self.interrupts.raise(report.causes);
        outcome
    }

    /// Receives what `backend` has and the driver has room for.
    pub fn receive(
        &mut self,
        ram: &GuestRam,
        backend: &mut dyn NetBackend,
        log: &Complaints,
        now_ns: impl FnOnce() -> u64,
    ) -> RxOutcome {
        let mut env = RxEnvironment {
            ctrl: self.ctrl,
            vlan_ethertype: self.vlan_ethertype(),
            filter: &self.filter,
            stats: &mut self.stats,
            log,
        };
        let (outcome, report) = self.rx.run(ram, backend, &mut env);
        if report.received {
            self.interrupts.received(now_ns());
        }
        self.interrupts.raise(report.causes);
        outcome
    }
}
