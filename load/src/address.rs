//! Giving a network interface an address.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{LoadError, io as failed};
use crate::interface::Interface;

/// The interfaces of our own network. Sysfs shows those of the network that it was mounted in.
const INTERFACES: &str = "/proc/self/net/dev";

/// How long a link may take to be there: adapters negotiate.
const CARRIER: Duration = Duration::from_secs(15);

/// Finds the interface by its MAC address, gives it the address, as in `192.168.77.2/24`, and takes it up; its name,
/// once it has a link.
pub fn configure(mac: &str, address: &str, mtu: Option<u32>) -> Result<String, LoadError> {
    let (address, prefix) = parse(address)?;
    let all = fs::read_to_string(INTERFACES).map_err(failed("read", INTERFACES))?;
    let name = find(&all, mac, |name| Interface::named(name)?.mac())?;
    let interface = Interface::named(&name).map_err(failed("set up", &name))?;
    if let Some(mtu) = mtu {
        interface
            .set_mtu(mtu)
            .map_err(failed("set the MTU of", &name))?;
    }
    interface
        .set_address(address, prefix)
        .map_err(failed("give an address to", &name))?;
    interface.up().map_err(failed("take up", &name))?;
    let start = Instant::now();
    while !interface.has_link().map_err(failed("look at", &name))? {
        if start.elapsed() > CARRIER {
            return Err(LoadError::NoCarrier(name));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(name)
}

fn parse(text: &str) -> Result<(Ipv4Addr, u8), LoadError> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let prefix = prefix.parse().ok().filter(|&prefix: &u8| prefix <= 32)?;
        Some((address.parse().ok()?, prefix))
    });
    parsed.ok_or_else(|| LoadError::Spec(format!("{text:?} is no address as in 192.168.77.2/24")))
}

/// The interface with that address, of those in the text of [`INTERFACES`]: below two lines of titles, a line each that
/// begins with its name.
fn find(
    all: &str,
    mac: &str,
    mac_of: impl Fn(&str) -> io::Result<String>,
) -> Result<String, LoadError> {
    let lines = all.lines().skip(2);
    let mut names = lines.filter_map(|line| Some(line.split_once(':')?.0.trim()));
    names
        .find(|name| mac_of(name).is_ok_and(|found| found.eq_ignore_ascii_case(mac)))
        .map(str::to_owned)
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
        let all =
            "Inter-|   Receive\n face |bytes    packets\n    lo: 90 1\n  eth0: 0 0\n  eth1:12 1\n";
        let mac_of = |name: &str| match name {
            "eth0" => Ok("52:54:00:00:00:0a".to_owned()),
            "eth1" => Ok("52:54:00:00:00:0b".to_owned()),
            _ => Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        let find = |mac| find(all, mac, mac_of);
        assert_eq!(find("52:54:00:00:00:0B").unwrap(), "eth1");
        let error = find("52:54:00:00:00:0c").unwrap_err();
        assert!(error.to_string().ends_with("52:54:00:00:00:0c"), "{error}");
    }
}
