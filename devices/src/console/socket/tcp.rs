//! TCP addresses and the options of a console's connection.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
};

use crate::console::CharError;

/// A client that is silent is asked for a sign of life after this long, then this often, so many times: one whose
/// machine is gone makes way for another within two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 6;

/// Listens on `address`, `HOST:PORT`, and says where that is.
pub(super) fn listen(address: &str) -> Result<(OwnedFd, SocketAddr), CharError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let local = listener.local_addr()?;
        Ok((listener.into(), local))
    };
    bind().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => CharError::TcpInUse {
            address: address.to_string(),
        },
        _ => CharError::Tcp {
            address: address.to_string(),
            source,
        },
    })
}

/// Options of a new connection. Without them it works as well, only less promptly; a Unix socket has none of them.
pub(super) fn tune(stream: &OwnedFd) {
    // Keys and prompts are single small segments.
    let _ = set_tcp_nodelay(stream, true);
    let _ = set_socket_keepalive(stream, true);
    let _ = set_tcp_keepidle(stream, KEEPALIVE_IDLE);
    let _ = set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL);
    let _ = set_tcp_keepcnt(stream, KEEPALIVE_COUNT);
}
