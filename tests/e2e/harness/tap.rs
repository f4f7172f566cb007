//! TAP and other interfaces, in the test's own network namespace.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The host's address on the first TAP, and the guest's.
pub const HOST: &str = "192.168.77.1";
/// The guest's address, with the length of its network.
pub const GUEST_NET: &str = "192.168.77.2/24";

/// The host's address towards the rest of the world, see [`make_way_out`].
pub const OUTSIDE: &str = "192.0.2.5";
/// Its router.
pub const ROUTER: &str = "192.0.2.1";

/// Makes a TAP with the host's address on it.
pub fn make(name: &str) -> Result<()> {
    make_at(name, HOST)
}

/// Makes a TAP with the address `host` on it, in a network of 24 bits.
pub fn make_at(name: &str, host: &str) -> Result<()> {
    ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
    ip(&format!("addr add {host}/24 dev {name}"))?;
    ip(&format!("link set {name} up"))
}

/// Gives the namespace a way out, which leads nowhere: an address and a router, as passt needs them on the host.
pub fn make_way_out() -> Result<()> {
    ip("tuntap add dev outside mode tap")?;
    ip(&format!("addr add {OUTSIDE}/24 dev outside"))?;
    ip("link set outside up")?;
    ip(&format!("route add default via {ROUTER}"))
}

/// Makes a bridge with the host's address on it.
pub fn make_bridge(name: &str) -> Result<()> {
    // It is built in, or loaded already, or else the next command says that it is missing.
    let _ = Command::new("modprobe").arg("bridge").status();
    ip(&format!("link add {name} type bridge"))?;
    ip(&format!("addr add {HOST}/24 dev {name}"))?;
    ip(&format!("link set {name} up"))
}

/// Whether the namespace has an interface of that name.
pub fn exists(name: &str) -> Result<bool> {
    // /sys shows the network namespace it was mounted in; this shows the process's own.
    let devices = std::fs::read_to_string("/proc/self/net/dev")?;
    Ok(devices
        .lines()
        .any(|line| line.trim_start().starts_with(&format!("{name}:"))))
}

/// `ip` with these arguments, separated by single blanks.
pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {said}");
    Ok(())
}
