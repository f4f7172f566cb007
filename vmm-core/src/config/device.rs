//! The written form of assigned functions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text::ValueError;
use super::{ConfigError, PciAddress, TrapRange};

/// BAR registers in a function's header.
const BARS: u8 = 6;
const DEVICES: u8 = 32;
const FUNCTIONS: u8 = 8;

impl FromStr for PciAddress {
    type Err = ValueError;

    /// `[DOMAIN:]BUS:DEVICE.FUNCTION`, hexadecimal.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse_address(text).ok_or_else(|| ValueError::NotAPciAddress(text.into()))
    }
}

fn parse_address(text: &str) -> Option<PciAddress> {
    let hex = |digits: &str, most: usize| {
        let valid = (1..=most).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid
            .then(|| u32::from_str_radix(digits, 16).ok())
            .flatten()
    };
    let (place, function) = text.split_once('.')?;
    let mut parts = place.rsplit(':');
    let (device, bus) = (parts.next()?, parts.next()?);
    let domain = parts.next().map_or(Some(0), |digits| hex(digits, 8))?;
    let address = PciAddress {
        domain,
        bus: hex(bus, 2)?.try_into().ok()?,
        device: hex(device, 2)?.try_into().ok()?,
        function: hex(function, 1)?.try_into().ok()?,
    };
    let exists = address.device < DEVICES && address.function < FUNCTIONS;
    (parts.next().is_none() && exists).then_some(address)
}

impl fmt::Display for PciAddress {
    /// As sysfs writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl TryFrom<String> for PciAddress {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl FromStr for TrapRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse_trap(text).ok_or_else(|| ValueError::NotATrap(text.into()))
    }
}

fn parse_trap(text: &str) -> Option<TrapRange> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (bar, range) = match text.split_once(':') {
        None => (text, None),
        Some((bar, range)) => {
            let (offset, len) = range.split_once('+')?;
            let (offset, len) = (number(offset)?, number(len)?);
            let end = offset.checked_add(len).filter(|end| *end > offset)?;
            (bar, Some(offset..end))
        }
    };
    let bar = bar.parse().ok().filter(|bar| *bar < BARS)?;
    Some(TrapRange { bar, range })
}

impl fmt::Display for TrapRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bar)?;
        match &self.range {
            None => Ok(()),
            Some(range) => write!(f, ":{:#x}+{:#x}", range.start, range.end - range.start),
        }
    }
}

impl TryFrom<String> for TrapRange {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<TrapRange> for String {
    fn from(trap: TrapRange) -> Self {
        trap.to_string()
    }
}

/// A function of the host that the guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceConfig {
    /// Where it is on the host.
    pub host: PciAddress,
    /// Show its expansion ROM.
    #[serde(default = "yes")]
    pub rombar: bool,
    /// What of its BARs exits though it need not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trap: Vec<TrapRange>,
}

fn yes() -> bool {
    true
}

/// Finds what is wrong with the functions that the guest is to get.
///
/// # Errors
/// [`ConfigError::DeviceTwice`].
pub(super) fn check(devices: &[DeviceConfig]) -> Result<(), ConfigError> {
    for (i, device) in devices.iter().enumerate() {
        if devices[..i].iter().any(|other| other.host == device.host) {
            return Err(ConfigError::DeviceTwice(device.host));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_short_and_written_whole() {
        for (text, whole) in [
            ("01:00.0", "0000:01:00.0"),
            ("0000:01:10.7", "0000:01:10.7"),
            ("1:2.3", "0000:01:02.3"),
            ("10000:fF:1f.7", "10000:ff:1f.7"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), whole);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "eth0",
            "01:00",
            "00.0",
            "01:00.8",
            "01:20.0",
            "100:00.0",
            "01:00.0.0",
            "+1:00.0",
            "0:0:0:0.0",
            ":00.0",
            "01:.0",
            "01:00.",
            "01:00.0 ",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert_eq!(error, ValueError::NotAPciAddress(text.into()));
        }
    }

    #[test]
    fn a_function_given_twice() {
        let device = |host: &str| DeviceConfig {
            host: host.parse().unwrap(),
            rombar: true,
            trap: Vec::new(),
        };
        check(&[device("01:00.0"), device("01:00.1")]).unwrap();
        let error = check(&[device("01:00.0"), device("0000:01:00.0")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "device 0000:01:00.0 is given twice: the guest gets it once"
        );
    }

    #[test]
    fn traps_are_read_and_written() {
        for (text, bar, range) in [
            ("0", 0, None),
            ("5:0x1000+0x20", 5, Some(0x1000..0x1020)),
            ("2:0x0+0x4", 2, Some(0..4)),
        ] {
            let trap: TrapRange = text.parse().unwrap();
            assert_eq!((trap.bar, &trap.range), (bar, &range));
            assert_eq!(trap.to_string(), text);
        }
        let decimal: TrapRange = "1:4096+16".parse().unwrap();
        assert_eq!(decimal.range, Some(4096..4112));
    }

    #[test]
    fn what_is_no_trap_is_refused() {
        for text in [
            "",
            "6",
            "-1",
            "0:",
            "0:1",
            "0:1+0",
            "0:+",
            "x",
            "0:0x+1",
            "0:1+18446744073709551615",
        ] {
            let error = text.parse::<TrapRange>().unwrap_err();
            assert_eq!(error, ValueError::NotATrap(text.into()));
        }
    }
}
