//! Which frames are for the driver (manual, 3.2.1, 9.2, 13.5.2 to 13.5.5).

use super::registers::{
    RAH_AV, RCTL_BAM, RCTL_CFI, RCTL_CFIEN, RCTL_MO_SHIFT, RCTL_MPE, RCTL_UPE, RCTL_VFE,
};

const ADDRESSES: usize = 16;
/// The writable bits of RAH: the address, its select bits, and the valid bit.
const RAH_MASK: u32 = 0x8003_ffff;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Bit 0 of the first byte: a group address (IEEE 802, 8.2.2).
const GROUP: u8 = 1;
/// In a tag: the canonical form indicator.
const TAG_CFI: u16 = 1 << 12;
const TAG_VLAN_ID: u16 = 0xfff;
/// By how much the last 16 bits of an address are shifted to index the MTA, by RCTL.MO.
const MTA_SHIFTS: [u32; 4] = [4, 3, 2, 0];

/// The filter tables.
#[derive(Debug)]
pub struct Filter {
    addresses: [u32; 2 * ADDRESSES],
    multicast: [u32; 128],
    vlans: [u32; 128],
}

impl Filter {
    /// Only `mac` is in the tables.
    pub fn new(mac: [u8; 6]) -> Self {
        let mut addresses = [0; 2 * ADDRESSES];
        let [a, b, c, d, e, f] = mac;
        addresses[0] = u32::from_le_bytes([a, b, c, d]);
        addresses[1] = u32::from_le_bytes([e, f, 0, 0]) | RAH_AV;
        Self {
            addresses,
            multicast: [0; 128],
            vlans: [0; 128],
        }
    }

    /// The receive addresses: register `index` of the pairs, 0 if there is none.
    pub fn address(&self, index: usize) -> u32 {
        self.addresses.get(index).copied().unwrap_or(0)
    }

    /// Writes it.
    pub fn set_address(&mut self, index: usize, value: u32) {
        if let Some(register) = self.addresses.get_mut(index) {
            *register = if index.is_multiple_of(2) {
                value
            } else {
                value & RAH_MASK
            };
        }
    }

    /// Register `index` of the MTA, 0 if there is none.
    pub fn multicast(&self, index: usize) -> u32 {
        self.multicast.get(index).copied().unwrap_or(0)
    }

    /// Writes it.
    pub fn set_multicast(&mut self, index: usize, value: u32) {
        if let Some(register) = self.multicast.get_mut(index) {
            *register = value;
        }
    }

    /// Register `index` of the VFTA, 0 if there is none.
    pub fn vlan(&self, index: usize) -> u32 {
        self.vlans.get(index).copied().unwrap_or(0)
    }

    /// Writes it.
    pub fn set_vlan(&mut self, index: usize, value: u32) {
        if let Some(register) = self.vlans.get_mut(index) {
            *register = value;
        }
    }

    /// How a frame to `to`, with that VLAN tag if it has one, passes; none if it does not.
    pub fn passes(&self, rctl: u32, to: [u8; 6], tag: Option<u16>) -> Option<Match> {
        if let Some(tag) = tag {
            self.vlan_passes(rctl, tag).then_some(())?;
        }
        if self.is_listed(to) {
            return Some(Match::Exact);
        }
        let group = to[0] & GROUP != 0;
        let promiscuous = if group { RCTL_MPE } else { RCTL_UPE };
        if rctl & promiscuous != 0 || (to == BROADCAST && rctl & RCTL_BAM != 0) {
            return Some(Match::Exact);
        }
        (group && self.hash_matches(rctl, to)).then_some(Match::Hash)
    }

    fn vlan_passes(&self, rctl: u32, tag: u16) -> bool {
        if rctl & RCTL_VFE == 0 {
            return true;
        }
        let id = tag & TAG_VLAN_ID;
        let cfi_right = rctl & RCTL_CFIEN == 0 || (rctl & RCTL_CFI != 0) == (tag & TAG_CFI != 0);
        cfi_right && self.vlan(usize::from(id >> 5)) >> (id & 31) & 1 != 0
    }

    fn is_listed(&self, to: [u8; 6]) -> bool {
        let [a, b, c, d, e, f] = to;
        let low = u32::from_le_bytes([a, b, c, d]);
        let high = u32::from_le_bytes([e, f, 0, 0]) | RAH_AV;
        let mut pairs = self.addresses.chunks_exact(2);
        // The select bits do not matter: only destination addresses are compared in this chip.
        pairs.any(|pair| pair[0] == low && pair[1] & (RAH_AV | 0xffff) == high)
    }

    fn hash_matches(&self, rctl: u32, to: [u8; 6]) -> bool {
        let offset = (rctl >> RCTL_MO_SHIFT) & 0b11;
        let shift = MTA_SHIFTS.get(offset as usize).copied().unwrap_or(0);
        let hash = u32::from(u16::from_le_bytes([to[4], to[5]])) >> shift & 0xfff;
        self.multicast((hash >> 5) as usize) >> (hash & 31) & 1 != 0
    }
}

/// How a frame passed the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// By its address, or whatever its address is.
    Exact,
    /// By the hash of its address only: the driver must look.
    Hash,
}
