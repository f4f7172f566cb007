//! Ethernet addresses.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

use thiserror::Error;

/// Bit 0 of the first byte: the address names a group (IEEE 802, 8.2.2).
const GROUP: u8 = 0x01;
/// Bit 1 of the first byte: assigned by the local administrator, not by a manufacturer.
const LOCAL: u8 = 0x02;

/// Why a text is not the address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits.
    #[error("'{0}' is not a MAC address: write six bytes as in 52:54:00:12:34:56")]
    Syntax(String),
    /// A multicast address, or broadcast.
    #[error("{0} is a multicast address, which no interface can have: make its first byte even")]
    Multicast(MacAddr),
    /// 00:00:00:00:00:00.
    #[error("the all-zero MAC address is not usable")]
    Zero,
}

/// The Ethernet address of an interface: never zero, never multicast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The address with these bytes, in the order they are sent.
    ///
    /// # Errors
    /// [`MacError::Multicast`], [`MacError::Zero`].
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        if bytes[0] & GROUP != 0 {
            Err(MacError::Multicast(Self(bytes)))
        } else if bytes == [0; 6] {
            Err(MacError::Zero)
        } else {
            Ok(Self(bytes))
        }
    }

    /// A random locally administered address.
    #[must_use]
    pub fn random_local() -> Self {
        // The standard library seeds each hasher from the system's random numbers.
        let random = RandomState::new().hash_one("MAC").to_le_bytes();
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&random[..6]);
        bytes[0] = (bytes[0] & !GROUP) | LOCAL;
        Self(bytes)
    }

    /// The bytes, in the order they are sent.
    #[must_use]
    pub fn bytes(&self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let syntax = || MacError::Syntax(text.to_string());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(syntax)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        Self::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let mac: MacAddr = "52:54:00:12:34:Ff".parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0x12, 0x34, 0xff]);
        assert_eq!(mac.to_string(), "52:54:00:12:34:ff");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "5:54:00:12:34:56",
            "+5:54:00:12:34:56",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:56 ",
            "52:54:00:12:34:é",
        ] {
            assert_eq!(
                text.parse::<MacAddr>(),
                Err(MacError::Syntax(text.to_string()))
            );
        }
    }

    #[test]
    fn group_and_zero_are_refused_with_the_reason() {
        let error = "01:00:5e:00:00:01".parse::<MacAddr>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "01:00:5e:00:00:01 is a multicast address, which no interface can have: make its first byte even"
        );
        assert!(matches!(
            "ff:ff:ff:ff:ff:ff".parse::<MacAddr>(),
            Err(MacError::Multicast(_))
        ));
        assert_eq!("00:00:00:00:00:00".parse::<MacAddr>(), Err(MacError::Zero));
    }

    #[test]
    fn made_up_addresses_are_local_unicast_and_differ() {
        let one = MacAddr::random_local();
        assert_eq!(one.bytes()[0] & (GROUP | LOCAL), LOCAL);
        assert_ne!(one, MacAddr::random_local());
    }
}
