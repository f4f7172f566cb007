//! What a function's configuration space says (PCI 3.0, chapter 6; PCIe 6.0, 7.5 and 7.7 to 7.9).
//!
//! The bytes come from a device, which may be broken: walks are bounded, and what is out of range is not there.

use serde::Serialize;

/// Bytes of the header that everyone may read; only root gets the rest from sysfs.
const HEADER_BYTES: usize = 64;
/// Where extended capabilities begin.
const EXTENDED_BYTES: usize = 256;

/// Message-signalled interrupts of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Vectors {
    /// How many the function can use.
    pub count: u16,
    /// For MSI: each can be masked; always so for MSI-X.
    pub maskable: bool,
}

/// Kinds of PCIe functions (PCIe 6.0, 7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// No PCIe capability.
    Conventional,
    /// An endpoint, legacy or not.
    Endpoint,
    /// A port of the root complex.
    RootPort,
    /// The switch's port towards the root.
    UpstreamPort,
    /// The switch's port towards devices.
    DownstreamPort,
    /// PCIe above, conventional PCI below.
    PcieToPciBridge,
    /// Conventional PCI above, PCIe below.
    PciToPcieBridge,
    /// An endpoint of the root complex itself.
    IntegratedEndpoint,
    /// Anything else.
    Other,
}

impl PortKind {
    /// Whether there is a bus below.
    #[must_use]
    pub fn is_port(self) -> bool {
        use PortKind::{DownstreamPort, PciToPcieBridge, PcieToPciBridge, RootPort, UpstreamPort};
        matches!(
            self,
            RootPort | UpstreamPort | DownstreamPort | PcieToPciBridge | PciToPcieBridge
        )
    }
}

/// Access Control Services, as bits of the capability and of the control register (PCIe 6.0, 7.7.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Acs {
    /// What the function can do.
    pub capability: u16,
    /// What is switched on.
    pub control: u16,
}

/// What Linux requires of a function so that what is behind it is isolated: source validation, request redirection,
/// completion redirection, upstream forwarding.
const ACS_REQUIRED: [(u16, &str); 4] = [
    (1 << 0, "source validation"),
    (1 << 2, "request redirect"),
    (1 << 3, "completion redirect"),
    (1 << 4, "upstream forwarding"),
];

impl Acs {
    /// The required services that are not on although the function has them. What a function cannot do it need not:
    /// Linux takes it that such a path is not there.
    #[must_use]
    pub fn off(&self) -> Vec<&'static str> {
        let lacking = ACS_REQUIRED
            .iter()
            .filter(|(bit, _)| self.capability & bit != 0 && self.control & bit == 0);
        lacking.map(|(_, name)| *name).collect()
    }
}

/// A function's configuration space, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// From the bytes of sysfs' `config`: 64 without root, else 256 or 4096.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Whether capabilities could be read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes.len() > HEADER_BYTES
    }

    fn u8(&self, offset: usize) -> Option<u8> {
        self.bytes.get(offset).copied()
    }

    fn u16(&self, offset: usize) -> Option<u16> {
        let bytes = self.bytes.get(offset..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    }

    fn u32(&self, offset: usize) -> Option<u32> {
        let bytes = self.bytes.get(offset..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }

    /// Whether it is a bridge to another bus: header type 1 (or 2, CardBus).
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.u8(0x0e)
            .is_some_and(|kind| matches!(kind & 0x7f, 1 | 2))
    }

    /// Whether the device has other functions.
    #[must_use]
    pub fn is_multifunction(&self) -> bool {
        self.u8(0x0e).is_some_and(|kind| kind & 0x80 != 0)
    }

    /// The interrupt pin: `A` to `D`.
    #[must_use]
    pub fn interrupt_pin(&self) -> Option<char> {
        match self.u8(0x3d)? {
            pin @ 1..=4 => Some(char::from(b'A' + pin - 1)),
            _ => None,
        }
    }

    /// Where the capability with that ID is.
    fn capability(&self, id: u8) -> Option<usize> {
        // Status register, bit 4: there is a list.
        if self.u16(0x06)? & (1 << 4) == 0 {
            return None;
        }
        let mut offset = usize::from(self.u8(0x34)? & 0xfc);
        for _ in 0..48 {
            if offset < HEADER_BYTES {
                return None;
            }
            if self.u8(offset)? == id {
                return Some(offset);
            }
            offset = usize::from(self.u8(offset + 1)? & 0xfc);
        }
        None
    }

    /// Where the extended capability with that ID is.
    fn extended(&self, id: u16) -> Option<usize> {
        let mut offset = EXTENDED_BYTES;
        for _ in 0..(4096 - EXTENDED_BYTES) / 8 {
            let header = self.u32(offset)?;
            if header == 0 || header == u32::MAX {
                return None;
            }
            if header & 0xffff == u32::from(id) {
                return Some(offset);
            }
            offset = usize::try_from(header >> 20).ok()? & 0xffc;
            if offset < EXTENDED_BYTES {
                return None;
            }
        }
        None
    }

    /// MSI, if there is any.
    #[must_use]
    pub fn msi(&self) -> Option<Vectors> {
        let control = self.u16(self.capability(0x05)? + 2)?;
        Some(Vectors {
            count: 1 << (control >> 1 & 7).min(5),
            maskable: control & (1 << 8) != 0,
        })
    }

    /// MSI-X, if there is any.
    #[must_use]
    pub fn msix(&self) -> Option<Vectors> {
        let control = self.u16(self.capability(0x11)? + 2)?;
        Some(Vectors {
            count: (control & 0x7ff) + 1,
            maskable: true,
        })
    }

    /// What kind of PCIe function this is.
    #[must_use]
    pub fn port_kind(&self) -> PortKind {
        let Some(flags) = self
            .capability(0x10)
            .and_then(|offset| self.u16(offset + 2))
        else {
            return PortKind::Conventional;
        };
        match flags >> 4 & 0xf {
            0 | 1 => PortKind::Endpoint,
            4 => PortKind::RootPort,
            5 => PortKind::UpstreamPort,
            6 => PortKind::DownstreamPort,
            7 => PortKind::PcieToPciBridge,
            8 => PortKind::PciToPcieBridge,
            9 => PortKind::IntegratedEndpoint,
            _ => PortKind::Other,
        }
    }

    /// Function-level reset, by PCIe's capability or by Advanced Features'.
    #[must_use]
    pub fn has_flr(&self) -> bool {
        let by_pcie = self
            .capability(0x10)
            .and_then(|offset| self.u32(offset + 4));
        let by_af = self.capability(0x13).and_then(|offset| self.u8(offset + 3));
        by_pcie.is_some_and(|capabilities| capabilities & (1 << 28) != 0)
            || by_af.is_some_and(|capabilities| capabilities & 0b10 != 0)
    }

    /// ACS, if the function has it.
    #[must_use]
    pub fn acs(&self) -> Option<Acs> {
        let offset = self.extended(0x000d)?;
        Some(Acs {
            capability: self.u16(offset + 4)?,
            control: self.u16(offset + 6)?,
        })
    }
}

/// Builds configuration spaces for tests.
#[cfg(test)]
pub(super) mod testing {
    /// Header type and interrupt pin, then capabilities as bytes (ID, then what follows the pointer), then extended
    /// ones (ID, then what follows the header).
    pub fn space(
        kind: u8,
        pin: u8,
        capabilities: &[(u8, &[u8])],
        extended: &[(u16, &[u8])],
    ) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        (bytes[0x0e], bytes[0x3d]) = (kind, pin);
        let (mut link, mut at) = (0x34, 0x40);
        for (id, body) in capabilities {
            bytes[0x06] = 0x10;
            bytes[link] = at;
            let offset = usize::from(at);
            bytes[offset] = *id;
            bytes[offset + 2..offset + 2 + body.len()].copy_from_slice(body);
            link = offset + 1;
            at += 0x20;
        }
        let mut at = 0x100_usize;
        for (index, (id, body)) in extended.iter().enumerate() {
            let next = if index + 1 == extended.len() {
                0
            } else {
                at + 0x40
            };
            let header = u32::from(*id) | 1 << 16 | u32::try_from(next).unwrap() << 20;
            bytes[at..at + 4].copy_from_slice(&header.to_le_bytes());
            bytes[at + 4..at + 4 + body.len()].copy_from_slice(body);
            at += 0x40;
        }
        bytes
    }

    /// The PCIe capability of a port of that kind.
    pub fn pcie(kind: u8, flr: bool) -> [u8; 6] {
        [kind << 4 | 2, 0, 0, 0, 0, u8::from(flr) << 4]
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{pcie, space};
    use super::*;

    #[test]
    fn an_endpoint() {
        let bytes = space(
            0x80,
            1,
            &[(0x10, &pcie(0, true)), (0x05, &[0x86, 1]), (0x11, &[4, 0])],
            &[(0x0001, &[]), (0x000d, &[0x1d, 0, 0x1d, 0])],
        );
        let config = ConfigSpace::new(bytes);
        assert!(config.is_whole() && !config.is_bridge() && config.is_multifunction());
        assert_eq!(config.interrupt_pin(), Some('A'));
        assert_eq!(
            config.msi(),
            Some(Vectors {
                count: 8,
                maskable: true
            })
        );
        assert_eq!(
            config.msix(),
            Some(Vectors {
                count: 5,
                maskable: true
            })
        );
        assert_eq!(config.port_kind(), PortKind::Endpoint);
        assert!(config.has_flr());
        assert_eq!(
            config.acs(),
            Some(Acs {
                capability: 0x1d,
                control: 0x1d
            })
        );
        assert!(config.acs().unwrap().off().is_empty());
    }

    #[test]
    fn a_bridge_without_much() {
        let config = ConfigSpace::new(space(1, 0, &[], &[]));
        assert!(config.is_bridge() && !config.has_flr());
        assert_eq!(config.port_kind(), PortKind::Conventional);
        assert_eq!(
            (config.msi(), config.msix(), config.acs()),
            (None, None, None)
        );
        assert_eq!(config.interrupt_pin(), None);
    }

    #[test]
    fn services_that_are_off() {
        let acs = Acs {
            capability: 0x5f,
            control: 0x05,
        };
        assert_eq!(acs.off(), ["completion redirect", "upstream forwarding"]);
        // What it does not have is not required.
        assert!(
            Acs {
                capability: 0x01,
                control: 0x01
            }
            .off()
            .is_empty()
        );
    }

    #[test]
    fn the_header_alone_is_enough_for_what_it_says() {
        let config = ConfigSpace::new(space(0x81, 2, &[(0x05, &[0, 0])], &[])[..64].to_vec());
        assert!(!config.is_whole() && config.is_bridge());
        assert_eq!(config.msi(), None);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let mut seed = 1_u32;
        for length in [0, 3, 0x35, 64, 200, 256, 300, 4096] {
            for _ in 0..200 {
                let bytes = (0..length).map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 24) as u8
                });
                let config = ConfigSpace::new(bytes.collect());
                let _ = (
                    config.msi(),
                    config.msix(),
                    config.acs(),
                    config.has_flr(),
                    config.port_kind(),
                );
            }
        }
    }

    #[test]
    fn a_list_that_runs_in_circles_ends() {
        let mut bytes = space(0, 0, &[(0x01, &[])], &[(0x0001, &[])]);
        bytes[0x41] = 0x40;
        bytes[0x102..0x104].copy_from_slice(&[0x01, 0x10]);
        let config = ConfigSpace::new(bytes);
        assert_eq!((config.msi(), config.acs()), (None, None));
    }
}
