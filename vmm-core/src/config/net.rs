//! The written form of a network interface: a flat table of keys, of which not all go together.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::text::ValueError;
use super::{HostForward, NetConfig, NetInterface, Network, Protocol};

/// The name that stands for a TAP to be created.
const AUTO: &str = "auto";

/// A network interface as it is written, on the command line and in the machine file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetTable {
    /// The network without root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
    /// Name of a TAP, or `auto` for a new one.
    pub tap: Option<String>,
    /// Bridge that the new TAP joins.
    pub bridge: Option<String>,
    /// Ports of the host that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostfwd: Vec<HostForward>,
    /// See [`NetConfig::interface`].
    #[serde(default, rename = "if")]
    pub interface: NetInterface,
    /// See [`NetConfig::mac`].
    pub mac: Option<String>,
}

/// Keys that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetTableError {
    /// Nothing says where the frames go.
    #[error(
        "a network interface lacks its network: give it \"user\" (no root needed), tap=NAME (a TAP that exists) or \
         tap=auto (a new one)"
    )]
    NoNetwork,
    /// Two networks for one interface.
    #[error(
        "a network interface has either \"user\" or a TAP: give two interfaces for both networks"
    )]
    TwoNetworks,
    /// A bridge for something else than a new TAP.
    #[error(
        "bridge={bridge} goes with tap=auto only: to put a TAP that exists on it, type 'ip link set NAME master \
         {bridge}'"
    )]
    BridgeWithoutNewTap {
        /// The bridge.
        bridge: String,
    },
    /// Forwarded ports for a TAP.
    #[error(
        "hostfwd={0} goes with \"user\" only: a guest on a TAP is reached at its own address, without forwarding"
    )]
    ForwardWithoutUser(HostForward),
}

impl TryFrom<NetTable> for NetConfig {
    type Error = NetTableError;

    fn try_from(table: NetTable) -> Result<Self, NetTableError> {
        let NetTable {
            user,
            tap,
            bridge,
            hostfwd,
            interface,
            mac,
        } = table;
        let network = match (user, tap) {
            (true, Some(_)) => return Err(NetTableError::TwoNetworks),
            (false, None) => return Err(NetTableError::NoNetwork),
            (true, None) => match bridge {
                Some(bridge) => return Err(NetTableError::BridgeWithoutNewTap { bridge }),
                None => Network::User { hostfwd },
            },
            (false, Some(tap)) => {
                if let Some(forward) = hostfwd.into_iter().next() {
                    return Err(NetTableError::ForwardWithoutUser(forward));
                }
                match bridge {
                    bridge if tap == AUTO => Network::NewTap { bridge },
                    Some(bridge) => return Err(NetTableError::BridgeWithoutNewTap { bridge }),
                    None => Network::Tap(tap),
                }
            }
        };
        Ok(Self {
            network,
            interface,
            mac,
        })
    }
}

impl From<NetConfig> for NetTable {
    fn from(config: NetConfig) -> Self {
        let NetConfig {
            network,
            interface,
            mac,
        } = config;
        let table = Self {
            interface,
            mac,
            ..Self::default()
        };
        match network {
            Network::Tap(name) => Self {
                tap: Some(name),
                ..table
            },
            Network::NewTap { bridge } => Self {
                tap: Some(AUTO.into()),
                bridge,
                ..table
            },
            Network::User { hostfwd } => Self {
                user: true,
                hostfwd,
                ..table
            },
        }
    }
}

impl HostForward {
    /// Whether one socket of the host would have to serve both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let any = |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
        (self.protocol, self.host_port) == (other.protocol, other.host_port)
            && (self.host_address == other.host_address
                || any(self.host_address)
                || any(other.host_address))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for HostForward {
    type Err = ValueError;

    /// `PROTOCOL:[[ADDRESS]:]HOST-[:]GUEST`; the colons with nothing before them are how QEMU's users write it.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let malformed = || ValueError::NotAForward(text.into());
        let port = |digits: &str| {
            let port: u16 = match digits.bytes().all(|byte| byte.is_ascii_digit()) {
                true => digits.parse().map_err(|_| malformed())?,
                false => return Err(malformed()),
            };
            if port == 0 {
                Err(malformed())
            } else {
                Ok(port)
            }
        };
        let (protocol, ports) = text.split_once(':').ok_or_else(malformed)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(malformed()),
        };
        let (host, guest) = ports.split_once('-').ok_or_else(malformed)?;
        let guest_port = match guest.rsplit_once(':') {
            None | Some(("", _)) => port(guest.trim_start_matches(':'))?,
            Some(_) => return Err(ValueError::ForwardToGuestAddress(text.into())),
        };
        let (address, host_port) = host.rsplit_once(':').unwrap_or(("", host));
        let unbracketed = address
            .strip_prefix('[')
            .and_then(|address| address.strip_suffix(']'));
        let host_address = match unbracketed {
            Some(v6) => Some(IpAddr::V6(v6.parse().map_err(|_| malformed())?)),
            None if address.is_empty() => None,
            None => Some(IpAddr::V4(address.parse().map_err(|_| malformed())?)),
        };
        Ok(Self {
            protocol,
            host_address,
            host_port: port(host_port)?,
            guest_port,
        })
    }
}

impl fmt::Display for HostForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.protocol)?;
        match self.host_address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}-{}", self.host_port, self.guest_port)
    }
}

impl Serialize for HostForward {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostForward {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> HostForward {
        text.parse().unwrap()
    }

    #[test]
    fn forwards_are_written_as_users_of_qemu_write_them() {
        for (text, canonical) in [
            ("tcp:8080-80", "tcp:8080-80"),
            ("tcp::8080-:80", "tcp:8080-80"),
            ("udp:5353-53", "udp:5353-53"),
            ("tcp:127.0.0.1:2222-:22", "tcp:127.0.0.1:2222-22"),
            ("tcp:[::1]:8080-80", "tcp:[::1]:8080-80"),
            ("tcp:1-65535", "tcp:1-65535"),
        ] {
            assert_eq!(forward(text).to_string(), canonical);
            assert_eq!(forward(canonical), forward(text));
        }
        assert_eq!(
            forward("tcp:127.0.0.1:2222-22"),
            HostForward {
                protocol: Protocol::Tcp,
                host_address: Some([127, 0, 0, 1].into()),
                host_port: 2222,
                guest_port: 22
            }
        );
    }

    #[test]
    fn what_is_no_forward_is_refused() {
        for text in [
            "",
            "tcp",
            "tcp:",
            "tcp:80",
            "8080-80",
            "sctp:1-2",
            "TCP:1-2",
            "tcp:0-80",
            "tcp:80-0",
            "tcp:65536-1",
            "tcp:+1-1",
            "tcp: 1-1",
            "tcp:1-2-3",
            "tcp:-",
            "tcp:1-::2",
            "tcp:::1:8080-80",
            "tcp:localhost:1-2",
            "tcp:[127.0.0.1]:1-2",
        ] {
            let error = text.parse::<HostForward>().unwrap_err();
            let refused = match &error {
                ValueError::NotAForward(what) | ValueError::ForwardToGuestAddress(what) => what,
                _ => panic!("{error}"),
            };
            assert_eq!(refused, text);
        }
        assert_eq!(
            "tcp::8080-10.0.2.15:80"
                .parse::<HostForward>()
                .unwrap_err()
                .to_string(),
            "\"tcp::8080-10.0.2.15:80\" names an address of the guest: it has only one, so leave it out, as in \
             tcp:8080-80"
        );
    }

    #[test]
    fn overlapping_forwards() {
        for (a, b, overlap) in [
            ("tcp:1-1", "tcp:1-2", true),
            ("tcp:1-1", "udp:1-1", false),
            ("tcp:1-1", "tcp:2-1", false),
            ("tcp:127.0.0.1:1-1", "tcp:1-1", true),
            ("tcp:127.0.0.1:1-1", "tcp:0.0.0.0:1-1", true),
            ("tcp:127.0.0.1:1-1", "tcp:127.0.0.2:1-1", false),
        ] {
            assert_eq!(forward(a).overlaps(&forward(b)), overlap, "{a} {b}");
            assert_eq!(forward(b).overlaps(&forward(a)), overlap, "{b} {a}");
        }
    }

    #[test]
    fn keys_that_do_not_go_together() {
        let table = NetTable::default;
        let tap = |name: &str| Some(name.to_owned());
        let bridge = || Some("br0".to_owned());
        let hostfwd = || vec![forward("tcp:1-1")];
        for (table, start) in [
            (table(), "a network interface lacks its network"),
            (
                NetTable {
                    user: true,
                    tap: tap("auto"),
                    ..table()
                },
                "a network interface has either",
            ),
            (
                NetTable {
                    tap: tap("t"),
                    bridge: bridge(),
                    ..table()
                },
                "bridge=br0 goes with tap=auto only",
            ),
            (
                NetTable {
                    user: true,
                    bridge: bridge(),
                    ..table()
                },
                "bridge=br0 goes with tap=auto only",
            ),
            (
                NetTable {
                    tap: tap("auto"),
                    hostfwd: hostfwd(),
                    ..table()
                },
                "hostfwd=tcp:1-1 goes with \"user\" only",
            ),
        ] {
            let error = NetConfig::try_from(table).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
