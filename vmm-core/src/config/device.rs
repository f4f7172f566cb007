//! The written form of a function of the host that the guest gets: `host=ADDRESS[,keep=on]`, or a virtual function,
//! `pf=PF,vf=auto|N[,mac=MAC][,vlan=ID][,spoofchk=on|off][,trust=on|off]`; with either `force=on`, `rombar=off` and
//! `trap=BAR[:OFFSET+LEN]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::TrapRange;
use super::text::ValueError;

/// Highest VLAN ID: 4095 is reserved (IEEE 802.1Q, table 9-2).
const MAX_VLAN: u16 = 4094;

/// A function of the host that the guest gets. Addresses, of functions and of interfaces, are checked with the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DeviceTable", into = "DeviceTable")]
pub struct DeviceConfig {
    /// Which function.
    pub source: DeviceSource,
    /// Take it even if the host uses it.
    pub force: bool,
    /// Show its expansion ROM.
    pub rombar: bool,
    /// What of its BARs exits though it need not.
    pub trap: Vec<TrapRange>,
}

/// Which function is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSource {
    /// One that is there.
    Function {
        /// Its PCI address.
        address: String,
        /// It stays with vfio-pci afterwards.
        keep: bool,
    },
    /// A virtual function.
    Vf {
        /// The physical function, by its network interface or its PCI address.
        pf: String,
        /// Which.
        vf: VfChoice,
        /// Ethernet address that the PF gives it.
        mac: Option<String>,
        /// VLAN that the PF puts it into; 0 for none.
        vlan: Option<u16>,
        /// Whether the PF drops frames from other addresses.
        spoofchk: Option<bool>,
        /// Whether the PF lets it change its address and be promiscuous.
        trust: Option<bool>,
    },
}

/// Which VF of a PF. Written as `auto` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "VfWritten", into = "String")]
pub enum VfChoice {
    /// Any that is free.
    #[default]
    Auto,
    /// That one, counted from 0.
    Number(u32),
}

/// In a machine file a number may be written as one.
#[derive(Deserialize)]
#[serde(untagged)]
enum VfWritten {
    Number(u32),
    Text(String),
}

/// Keys that do not go together, or a value that there is not.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceTableError {
    /// Nothing says which function.
    #[error(
        "a device lacks its function: give it host=ADDRESS, or pf=PF,vf=auto for a virtual function"
    )]
    NoFunction,
    /// Both ways to say it.
    #[error(
        "a device is either host=ADDRESS or a virtual function (pf=PF,vf=auto): give two devices for both"
    )]
    TwoFunctions,
    /// A setting of VFs for something else.
    #[error("{0}= goes with pf=PF only: it is set through the physical function")]
    NeedsPf(&'static str),
    /// A VF that is to stay.
    #[error(
        "keep= goes with host=ADDRESS only: a virtual function goes back to its physical function"
    )]
    KeepsVf,
    /// Neither `auto` nor a number.
    #[error("vf={0} is neither 'auto' nor the number of a virtual function")]
    NotAVf(String),
    /// No VLAN ID.
    #[error("vlan={0} is not a VLAN: write 1 to {MAX_VLAN}, or 0 for none")]
    NotAVlan(String),
    /// Not part of a BAR.
    #[error("trap={0}")]
    NotATrap(#[from] ValueError),
    /// Neither on nor off.
    #[error("{key}={value}: it takes on, off")]
    NotOnOff {
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
    },
}

impl FromStr for VfChoice {
    type Err = DeviceTableError;

    fn from_str(text: &str) -> Result<Self, DeviceTableError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let number = text
            .parse()
            .map_err(|_| DeviceTableError::NotAVf(text.to_owned()))?;
        Ok(Self::Number(number))
    }
}

impl fmt::Display for VfChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl TryFrom<VfWritten> for VfChoice {
    type Error = DeviceTableError;

    fn try_from(written: VfWritten) -> Result<Self, DeviceTableError> {
        match written {
            VfWritten::Number(number) => Ok(Self::Number(number)),
            VfWritten::Text(text) => text.parse(),
        }
    }
}

impl From<VfChoice> for String {
    fn from(choice: VfChoice) -> Self {
        choice.to_string()
    }
}

/// A flat table of keys, of which not all go together, on the command line and in the machine file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceTable {
    /// See [`DeviceSource::Function`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// See [`DeviceSource::Vf`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pf: Option<String>,
    /// See [`DeviceSource::Vf`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<VfChoice>,
    /// See [`DeviceSource::Vf`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// See [`DeviceSource::Vf`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// See [`DeviceSource::Vf`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoofchk: Option<bool>,
    /// See [`DeviceSource::Vf`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// See [`DeviceSource::Function`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// See [`DeviceConfig::force`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// See [`DeviceConfig::rombar`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rombar: Option<bool>,
    /// See [`DeviceConfig::trap`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trap: Vec<TrapRange>,
}

impl DeviceTable {
    /// The keys of the command line.
    pub const KEYS: &'static [&'static str] = &[
        "host", "pf", "vf", "mac", "vlan", "spoofchk", "trust", "keep", "force", "rombar", "trap",
    ];

    /// Takes one `key=value`; false for a key that is not one of [`Self::KEYS`]. Each `trap` is one more.
    ///
    /// # Errors
    /// The value is not one that the key takes.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, DeviceTableError> {
        match key {
            "host" => self.host = Some(value.to_owned()),
            "pf" => self.pf = Some(value.to_owned()),
            "vf" => self.vf = Some(value.parse()?),
            "mac" => self.mac = Some(value.to_owned()),
            "vlan" => {
                let vlan = value.parse();
                self.vlan = Some(vlan.map_err(|_| DeviceTableError::NotAVlan(value.to_owned()))?);
            }
            "spoofchk" => self.spoofchk = Some(on_off("spoofchk", value)?),
            "trust" => self.trust = Some(on_off("trust", value)?),
            "keep" => self.keep = on_off("keep", value)?,
            "force" => self.force = on_off("force", value)?,
            "rombar" => self.rombar = Some(on_off("rombar", value)?),
            "trap" => self.trap.push(value.parse()?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn on_off(key: &'static str, value: &str) -> Result<bool, DeviceTableError> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(DeviceTableError::NotOnOff {
            key,
            value: value.to_owned(),
        }),
    }
}

impl TryFrom<DeviceTable> for DeviceConfig {
    type Error = DeviceTableError;

    fn try_from(table: DeviceTable) -> Result<Self, DeviceTableError> {
        let DeviceTable {
            host,
            pf,
            vf,
            mac,
            vlan,
            spoofchk,
            trust,
            keep,
            force,
            rombar,
            trap,
        } = table;
        let source = match (host, pf) {
            (Some(_), Some(_)) => return Err(DeviceTableError::TwoFunctions),
            (Some(address), None) => {
                let of_vf = [
                    ("vf", vf.is_some()),
                    ("mac", mac.is_some()),
                    ("vlan", vlan.is_some()),
                    ("spoofchk", spoofchk.is_some()),
                    ("trust", trust.is_some()),
                ];
                if let Some((key, _)) = of_vf.iter().find(|(_, given)| *given) {
                    return Err(DeviceTableError::NeedsPf(key));
                }
                DeviceSource::Function { address, keep }
            }
            (None, Some(_)) if keep => return Err(DeviceTableError::KeepsVf),
            (None, Some(pf)) => {
                if let Some(vlan) = vlan.filter(|vlan| *vlan > MAX_VLAN) {
                    return Err(DeviceTableError::NotAVlan(vlan.to_string()));
                }
                let vf = vf.unwrap_or_default();
                DeviceSource::Vf {
                    pf,
                    vf,
                    mac,
                    vlan,
                    spoofchk,
                    trust,
                }
            }
            (None, None) => return Err(DeviceTableError::NoFunction),
        };
        Ok(Self {
            source,
            force,
            rombar: rombar.unwrap_or(true),
            trap,
        })
    }
}

impl From<DeviceConfig> for DeviceTable {
    fn from(config: DeviceConfig) -> Self {
        let DeviceConfig {
            source,
            force,
            rombar,
            trap,
        } = config;
        let table = Self {
            force,
            rombar: (!rombar).then_some(false),
            trap,
            ..Self::default()
        };
        match source {
            DeviceSource::Function { address, keep } => Self {
                host: Some(address),
                keep,
                ..table
            },
            DeviceSource::Vf {
                pf,
                vf,
                mac,
                vlan,
                spoofchk,
                trust,
            } => Self {
                pf: Some(pf),
                vf: Some(vf),
                mac,
                vlan,
                spoofchk,
                trust,
                ..table
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<DeviceConfig, DeviceTableError> {
        let mut table = DeviceTable::default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap();
            assert!(table.set(key, value)? && DeviceTable::KEYS.contains(&key));
        }
        table.try_into()
    }

    #[test]
    fn a_function() {
        let config = parsed("host=0000:01:00.0,keep=on,force=on").unwrap();
        let source = DeviceSource::Function {
            address: "0000:01:00.0".into(),
            keep: true,
        };
        assert_eq!(
            config,
            DeviceConfig {
                source,
                force: true,
                rombar: true,
                trap: Vec::new(),
            }
        );
        let text = toml::to_string(&config).unwrap();
        assert_eq!(text, "host = \"0000:01:00.0\"\nkeep = true\nforce = true\n");
        assert_eq!(toml::from_str::<DeviceConfig>(&text).unwrap(), config);
    }

    #[test]
    fn a_vf() {
        let config =
            parsed("pf=eth0,vf=3,mac=52:54:00:00:00:01,vlan=7,spoofchk=off,trust=on").unwrap();
        let DeviceSource::Vf {
            pf,
            vf,
            mac,
            vlan,
            spoofchk,
            trust,
        } = config.source.clone()
        else {
            panic!()
        };
        assert_eq!(
            (&*pf, vf, vlan, spoofchk, trust),
            (
                "eth0",
                VfChoice::Number(3),
                Some(7),
                Some(false),
                Some(true)
            )
        );
        assert_eq!(mac.as_deref(), Some("52:54:00:00:00:01"));
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<DeviceConfig>(&text).unwrap(), config);
        assert_eq!(
            toml::from_str::<DeviceConfig>("pf = \"eth0\"\nvf = 3\n")
                .unwrap()
                .source,
            DeviceSource::Vf {
                pf,
                vf,
                mac: None,
                vlan: None,
                spoofchk: None,
                trust: None
            }
        );
        assert_eq!(
            parsed("pf=eth0").unwrap(),
            parsed("pf=eth0,vf=auto").unwrap()
        );
    }

    #[test]
    fn every_mistake_has_its_line() {
        for (text, message) in [
            (
                "",
                "a device lacks its function: give it host=ADDRESS, or pf=PF,vf=auto for a virtual function",
            ),
            (
                "vf=auto",
                "a device lacks its function: give it host=ADDRESS, or pf=PF,vf=auto for a virtual function",
            ),
            (
                "host=a,pf=b",
                "a device is either host=ADDRESS or a virtual function (pf=PF,vf=auto): give two devices for both",
            ),
            (
                "host=a,mac=b",
                "mac= goes with pf=PF only: it is set through the physical function",
            ),
            (
                "host=a,vf=auto",
                "vf= goes with pf=PF only: it is set through the physical function",
            ),
            (
                "pf=a,keep=on",
                "keep= goes with host=ADDRESS only: a virtual function goes back to its physical function",
            ),
            (
                "pf=a,vf=any",
                "vf=any is neither 'auto' nor the number of a virtual function",
            ),
            (
                "pf=a,vf=-1",
                "vf=-1 is neither 'auto' nor the number of a virtual function",
            ),
            (
                "pf=a,vlan=4095",
                "vlan=4095 is not a VLAN: write 1 to 4094, or 0 for none",
            ),
            (
                "pf=a,vlan=blue",
                "vlan=blue is not a VLAN: write 1 to 4094, or 0 for none",
            ),
            ("pf=a,trust=maybe", "trust=maybe: it takes on, off"),
            (
                "host=a,trap=7",
                "trap=\"7\" is not part of a BAR: write BAR or BAR:OFFSET+LENGTH with a BAR from 0 to 5, such as \
                 0:0x1000+0x100",
            ),
        ] {
            assert_eq!(parsed(text).unwrap_err().to_string(), message, "{text}");
        }
        assert_eq!(DeviceTable::default().set("bus", "1"), Ok(false));
    }
}
