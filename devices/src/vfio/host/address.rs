//! The address of a PCI function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Domain, bus, device and function, written `0000:01:10.0` as in sysfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// Domain ("segment"); wider than 16 bits behind Intel's VMD.
    pub domain: u32,
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

/// The text is no address of a PCI function.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is not the address of a PCI function: write it as in 0000:01:10.0 ('tripath vfio list' shows them)"
)]
pub struct NotAnAddress(pub String);

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!(
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain, self.bus, self.device, self.function
        );
        f.pad(&text)
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for PciAddress {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    /// Takes the address with its domain or, as `lspci` prints it, without.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        parse(text).ok_or_else(|| NotAnAddress(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (slot, function) = text.split_once('.')?;
    let parts: Vec<&str> = slot.split(':').collect();
    let (domain, bus, device) = match parts.as_slice() {
        [domain, bus, device] => (hex(domain, 4..=8)?, bus, device),
        [bus, device] => (0, bus, device),
        _ => return None,
    };
    Some(PciAddress {
        domain,
        bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
        device: u8::try_from(hex(device, 2..=2)?)
            .ok()
            .filter(|device| *device < 32)?,
        function: u8::try_from(hex(function, 1..=1)?)
            .ok()
            .filter(|function| *function < 8)?,
    })
}

fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let good = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| u32::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["0000:01:10.0", "0000:ff:1f.7", "10000:e1:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!(
            "01:10.0".parse::<PciAddress>().unwrap().to_string(),
            "0000:01:10.0"
        );
    }

    #[test]
    fn what_is_no_address() {
        for text in [
            "",
            "eth0",
            "0000:01:10",
            "0000:01:20.0",
            "0000:01:10.8",
            "1:10.0",
            "0:1:2:3.0",
            "0000:+1:00.0",
            "0000:01:1é.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
