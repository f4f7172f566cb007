//! What the configuration wants from the host, in the terms of `devices`.

use devices::net::{MacAddr, MacError};
use devices::vfio::host::claim::{Request, Target};
use devices::vfio::host::netlink::VfSettings;
use devices::vfio::host::{NotAnAddress, PciAddress};
use thiserror::Error;

use crate::config::{DeviceConfig, DeviceSource, VfChoice};

/// A value that no host can have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClaimConfigError {
    /// Not the address of a function.
    #[error("host={0}")]
    Address(#[from] NotAnAddress),
    /// Not the address of an interface.
    #[error("mac={0}")]
    Mac(#[from] MacError),
}

/// The requests to `devices::vfio::host::claim::take`, in the same order.
///
/// # Errors
/// An address, of a function or an interface, is none.
pub fn requests(configs: &[DeviceConfig]) -> Result<Vec<Request>, ClaimConfigError> {
    configs.iter().map(request).collect()
}

fn request(config: &DeviceConfig) -> Result<Request, ClaimConfigError> {
    let target = match &config.source {
        DeviceSource::Function { address, keep } => Target::Function {
            address: address.parse::<PciAddress>()?,
            keep: *keep,
        },
        DeviceSource::Vf {
            pf,
            vf,
            mac,
            vlan,
            spoofchk,
            trust,
        } => Target::Vf {
            pf: pf.clone(),
            vf: match vf {
                VfChoice::Auto => None,
                VfChoice::Number(number) => Some(*number),
            },
            settings: VfSettings {
                mac: match mac {
                    Some(mac) => Some(mac.parse::<MacAddr>()?.bytes()),
                    None => None,
                },
                vlan: *vlan,
                spoofchk: *spoofchk,
                trust: *trust,
            },
        },
    };
    Ok(Request {
        target,
        force: config.force,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told() {
        let function = |address: &str| DeviceConfig {
            source: DeviceSource::Function {
                address: address.into(),
                keep: false,
            },
            force: false,
            rombar: true,
            trap: Vec::new(),
        };
        let vf = |mac: &str| DeviceConfig {
            source: DeviceSource::Vf {
                pf: "eth0".into(),
                vf: VfChoice::Auto,
                mac: Some(mac.into()),
                vlan: None,
                spoofchk: None,
                trust: None,
            },
            force: true,
            rombar: true,
            trap: Vec::new(),
        };
        let told = |config| requests(&[config]).unwrap_err().to_string();
        assert!(
            told(function("eth0")).starts_with("host='eth0' is not the address of a PCI function")
        );
        assert!(
            told(vf("01:00:00:00:00:00"))
                .starts_with("mac=01:00:00:00:00:00 is a multicast address")
        );
        let good = requests(&[function("01:00.0"), vf("52:54:00:00:00:01")]).unwrap();
        assert!(!good[0].force && good[1].force);
    }
}
