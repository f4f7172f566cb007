//! Giving a network interface an address.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{LoadError, io};
use crate::interface::Interface;

const INTERFACES: &str = "/sys/class/net";

/// How long a link may take to be there: adapters negotiate.
const CARRIER: Duration = Duration::from_secs(15);

/// Finds the interface by its MAC address, gives it the address, as in `192.168.77.2/24`, and takes it up; its name,
/// once it has a link.
pub fn configure(mac: &str, address: &str, mtu: Option<u32>) -> Result<String, LoadError> {
    let (address, prefix) = parse(address)?;
    let name = find(Path::new(INTERFACES), mac)?;
    let folder = Path::new(INTERFACES).join(&name);
    let interface = Interface::named(&name).map_err(io("set up", &name))?;
    if let Some(mtu) = mtu {
        interface
            .set_mtu(mtu)
            .map_err(io("set the MTU of", &name))?;
    }
    interface
        .set_address(address, prefix)
        .map_err(io("give an address to", &name))?;
    interface.up().map_err(io("take up", &name))?;
    let start = Instant::now();
    // An interface that is just coming up gives an error.
    while read(&folder.join("carrier")).ok().as_deref() != Some("1") {
        if start.elapsed() > CARRIER {
            return Err(LoadError::NoCarrier(name));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(name)
}

fn read(path: &Path) -> Result<String, LoadError> {
    let text = fs::read_to_string(path).map_err(io("read", path.display().to_string()))?;
    Ok(text.trim().to_owned())
}

fn parse(text: &str) -> Result<(Ipv4Addr, u8), LoadError> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let prefix = prefix.parse().ok().filter(|&prefix: &u8| prefix <= 32)?;
        Some((address.parse().ok()?, prefix))
    });
    parsed.ok_or_else(|| LoadError::Spec(format!("{text:?} is no address as in 192.168.77.2/24")))
}

fn find(interfaces: &Path, mac: &str) -> Result<String, LoadError> {
    let entries = fs::read_dir(interfaces).map_err(io("read", interfaces.display().to_string()))?;
    entries
        .flatten()
        .find(|entry| {
            read(&entry.path().join("address")).is_ok_and(|text| text.eq_ignore_ascii_case(mac))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .ok_or_else(|| LoadError::NoInterface(mac.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address = Ipv4Addr::new(192, 168, 77, 2);
        assert_eq!(parse("192.168.77.2/24").unwrap(), (address, 24));
        for text in [
            "192.168.77.2",
            "192.168.77.2/33",
            "192.168.77/24",
            "a/24",
            "/",
            "",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_interface_is_found_by_its_mac() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mac) in [("eth0", "52:54:00:00:00:0a"), ("eth1", "52:54:00:00:00:0b")] {
            let interface = folder.path().join(name);
            fs::create_dir(&interface).unwrap();
            fs::write(interface.join("address"), format!("{mac}\n")).unwrap();
        }
        assert_eq!(find(folder.path(), "52:54:00:00:00:0B").unwrap(), "eth1");
        let error = find(folder.path(), "52:54:00:00:00:0c").unwrap_err();
        assert!(error.to_string().ends_with("52:54:00:00:00:0c"), "{error}");
    }
}
