//! passt, the network that needs no root (passt(1)): a process of its own, which has a stream socket to us in place of
//! a network interface, and does with the sockets of an ordinary program what the guest does with its network.
//!
//! Debian 12's passt (0.0~git20230309) does not consume what the guest acknowledges once the guest has sent its FIN: it
//! looks at the same bytes of its socket again, and delivers them as what comes next. None of its options avoids that;
//! Debian 13's (0.0~git20250503) does it right.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use thiserror::Error;

use crate::config::{HostForward, Protocol};

const PROGRAM: &str = "passt";
/// How long it may take to start, which it does in a few hundredths of a second.
const START: Duration = Duration::from_secs(20);
/// How long it may take to end; then it is left to itself, and ends when it sees that its socket is closed.
const END: Duration = Duration::from_secs(2);
/// So much of what it says on starting is kept.
const SAID_BYTES: u64 = 1 << 16;

/// Why there is no network without root; each says what to do.
#[derive(Debug, Error)]
pub enum PasstError {
    /// The program is not there.
    #[error(
        "the network \"user\" needs the program {PROGRAM}, which is not installed: install the package {PROGRAM} \
         ('apt install {PROGRAM}'), or give the guest a TAP"
    )]
    Missing,
    /// It ended instead of starting.
    #[error("{PROGRAM} cannot start: {0}")]
    Failed(String),
    /// It neither started nor ended.
    #[error("{PROGRAM} did not start within {} s", START.as_secs())]
    Stuck,
    /// Someone else listens there.
    #[error("hostfwd={0}: something listens on that port of the host already: give another one")]
    PortInUse(HostForward),
    /// The user may not listen there.
    #[error(
        "hostfwd={0}: this user may not listen on that port of the host: give one that is not below {first}",
        first = first_unprivileged_port()
    )]
    PortForbidden(HostForward),
    /// The host has no such address.
    #[error("hostfwd={0}: the host does not have that address: see 'ip address'")]
    NoSuchAddress(HostForward),
    /// passt has started, and does not listen there.
    #[error(
        "hostfwd={0}: {PROGRAM} cannot listen on that port of the host: give one that is not below {first}, and see \
         'ip address' for the host's addresses",
        first = first_unprivileged_port()
    )]
    PortNotTaken(HostForward),
    /// Any other failure.
    #[error("{PROGRAM}: {action}: {error}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the host said.
        error: io::Error,
    },
}

/// A passt that runs for as long as its socket is open: it ends by itself when we do, however that happens.
#[derive(Debug)]
pub struct Passt(UnixStream);

impl Passt {
    /// Starts it, and returns the connected socket with its framing (QEMU, `-netdev stream`). The forwarded ports are
    /// listened on when this returns.
    ///
    /// # Errors
    /// [`PasstError`]; then it does not run.
    pub fn start(
        hostfwd: &[HostForward],
        mtu: Option<u16>,
    ) -> Result<(UnixStream, Self), PasstError> {
        for forward in hostfwd {
            check_free(forward)?;
        }
        let (ours, theirs) = UnixStream::pair().map_err(host("making a socket"))?;
        // The one descriptor that is handed down; it is closed here as soon as the program has it.
        fcntl_setfd(&theirs, FdFlags::empty())
            .map_err(|error| host("handing down a socket")(error.into()))?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["--quiet", "--fd", &theirs.as_raw_fd().to_string()])
            .args(arguments(hostfwd, mtu))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        log::info!("starting {command:?}");
        let child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => PasstError::Missing,
            _ => host("starting it")(error),
        })?;
        drop(theirs);
        wait_started(child)?;
        let passt = Self(ours.try_clone().map_err(host("copying a socket"))?);
        for forward in hostfwd {
            if !is_taken(forward) {
                return Err(PasstError::PortNotTaken(forward.clone()));
            }
        }
        Ok((ours, passt))
    }

    /// Ends it, and waits until it has ended, so that its ports are free again.
    pub fn end(mut self) {
        // It may be gone already.
        let _ = self.0.shutdown(Shutdown::Write);
        let _ = self.0.set_nonblocking(true);
        let deadline = Instant::now() + END;
        let mut frames = [0; 4096];
        loop {
            match self.0.read(&mut frames) {
                Ok(0) => return,
                Ok(_) if Instant::now() < deadline => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !readable(&self.0, deadline).unwrap_or(false) {
                        return;
                    }
                }
                Ok(_) | Err(_) => return,
            }
        }
    }
}

fn arguments(hostfwd: &[HostForward], mtu: Option<u16>) -> Vec<String> {
    let mut arguments = Vec::new();
    for (option, protocol) in [
        ("--tcp-ports", Protocol::Tcp),
        ("--udp-ports", Protocol::Udp),
    ] {
        let ports: Vec<String> = hostfwd
            .iter()
            .filter(|forward| forward.protocol == protocol)
            .map(ports)
            .collect();
        // Without the option, a UDP port is forwarded with each TCP port.
        let ports = if ports.is_empty() {
            vec!["none".into()]
        } else {
            ports
        };
        for ports in ports {
            arguments.extend([option.into(), ports]);
        }
    }
    if let Some(mtu) = mtu {
        arguments.extend(["--mtu".into(), mtu.to_string()]);
    }
    arguments
}

/// As passt has it: `[ADDRESS/]HOST:GUEST`.
fn ports(forward: &HostForward) -> String {
    let ports = format!("{}:{}", forward.host_port, forward.guest_port);
    match forward.host_address {
        Some(address) => format!("{address}/{ports}"),
        None => ports,
    }
}

/// passt reports what it finds wrong until it is ready; then it goes into the background: what was started ends, with
/// code 0, and its standard error is closed.
fn wait_started(mut child: Child) -> Result<(), PasstError> {
    let deadline = Instant::now() + START;
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(SAID_BYTES);
        let mut chunk = [0; 1024];
        loop {
            if !readable(stderr.get_ref(), deadline).map_err(host("waiting for it"))? {
                let _ = child.kill();
                let _ = child.wait();
                return Err(PasstError::Stuck);
            }
            match stderr.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => said.extend(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(host("reading its messages")(error)),
            }
        }
    }
    let status = child.wait().map_err(host("waiting for it"))?;
    let said = reasons(&String::from_utf8_lossy(&said));
    if status.success() {
        if !said.is_empty() {
            log::info!("{PROGRAM}: {said}");
        }
        return Ok(());
    }
    Err(PasstError::Failed(match said.is_empty() {
        true => status.to_string(),
        false => said,
    }))
}

/// What it said, in one line, without what is of no interest: that there is no system log, and that it gives up root.
fn reasons(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| {
            let noise = line.contains("bytes to syslog") || line.contains("run as root");
            !noise && !line.is_empty()
        })
        .collect();
    lines.join("; ")
}

/// Whether a port can be listened on: passt itself does not always say when it cannot.
fn check_free(forward: &HostForward) -> Result<(), PasstError> {
    let address = forward
        .host_address
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let error = match listen(forward, address) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let forward = forward.clone();
    Err(match error.kind() {
        ErrorKind::AddrInUse => PasstError::PortInUse(forward),
        ErrorKind::PermissionDenied => PasstError::PortForbidden(forward),
        ErrorKind::AddrNotAvailable => PasstError::NoSuchAddress(forward),
        _ => host("looking for a free port")(error),
    })
}

/// Whether someone listens there.
fn is_taken(forward: &HostForward) -> bool {
    let any = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let addresses = match &forward.host_address {
        Some(address) => std::slice::from_ref(address),
        None => &any[..],
    };
    addresses.iter().any(|address| {
        listen(forward, *address).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    })
}

/// Listens for a moment.
fn listen(forward: &HostForward, address: IpAddr) -> io::Result<()> {
    let address = (address, forward.host_port);
    match forward.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    }
}

fn first_unprivileged_port() -> u16 {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    setting
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

/// Waits until there is something to read, or its end; false when the deadline comes first.
fn readable(fd: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn host(action: &'static str) -> impl Fn(io::Error) -> PasstError {
    move |error| PasstError::Host { action, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> HostForward {
        text.parse().unwrap()
    }

    #[test]
    fn forwards_as_passt_has_them() {
        let forwards = ["tcp:127.0.0.1:80-8080", "udp:5-6", "tcp:[::1]:7-8"].map(forward);
        assert_eq!(
            arguments(&forwards, Some(1500)),
            [
                "--tcp-ports",
                "127.0.0.1/80:8080",
                "--tcp-ports",
                "::1/7:8",
                "--udp-ports",
                "5:6",
                "--mtu",
                "1500"
            ]
        );
        assert_eq!(
            arguments(&[], None),
            ["--tcp-ports", "none", "--udp-ports", "none"]
        );
    }

    #[test]
    fn its_reasons_are_one_line_without_the_noise() {
        let said = "Failed to send 47 bytes to syslog\nDon't run as root. Changing to nobody...\n\
                    Failed to send 35 bytes to syslog\nInvalid port specifier 8099:\n\n";
        assert_eq!(reasons(said), "Invalid port specifier 8099:");
        assert_eq!(reasons("a\nb\n"), "a; b");
    }

    #[test]
    fn a_port_in_use_is_known_before_anything_starts() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (protocol, port) in [
            ("tcp", tcp.local_addr().unwrap().port()),
            ("udp", udp.local_addr().unwrap().port()),
        ] {
            for address in ["", "127.0.0.1:"] {
                let forward = forward(&format!("{protocol}:{address}{port}-80"));
                let error = Passt::start(std::slice::from_ref(&forward), None).unwrap_err();
                assert!(matches!(error, PasstError::PortInUse(_)), "{error}");
                assert!(is_taken(&forward));
            }
        }
    }

    #[test]
    fn an_address_of_another_host_is_refused() {
        // RFC 5737: no host has it.
        let error = Passt::start(&[forward("tcp:203.0.113.9:8080-80")], None).unwrap_err();
        assert!(matches!(error, PasstError::NoSuchAddress(_)), "{error}");
    }
}
