//! TAP interfaces, in the test's own network namespace.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The host's address on the first TAP, and the guest's.
pub const HOST: &str = "192.168.77.1";
/// The guest's address, with the length of its network.
pub const GUEST_NET: &str = "192.168.77.2/24";

/// Makes a TAP with the host's address on it.
pub fn make(name: &str) -> Result<()> {
    ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
    ip(&format!("addr add {HOST}/24 dev {name}"))?;
    ip(&format!("link set {name} up"))
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {said}");
    Ok(())
}
