//! A DHCP server.

use std::process::{Child, Command};

use anyhow::{Context, Result};

use super::Ctx;
use super::tap::HOST;

/// The one address it gives away.
pub const LEASE: &str = "192.168.77.50";

/// busybox's server on tap0. It ends with the test.
pub struct DhcpServer(Child);

impl DhcpServer {
    /// Starts it; the TAP is there already.
    pub fn start(ctx: &Ctx) -> Result<Self> {
        let (config, leases) = (ctx.path("udhcpd.conf"), ctx.path("leases"));
        std::fs::write(&leases, "")?;
        let text = format!(
            "start {LEASE}\nend {LEASE}\ninterface tap0\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption router {HOST}\n",
            leases.display(),
            ctx.path("pid").display()
        );
        std::fs::write(&config, text)?;
        // The test bed's own: the host need not have one.
        let child = Command::new(ctx.testbed.join("tools/bin/busybox"))
            .args(["udhcpd", "-f"])
            .arg(&config)
            .spawn()
            .context("busybox udhcpd")?;
        Ok(Self(child))
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
