//! What is asked of the host's network interfaces (netdevice(7)).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use libc::{c_char, c_int, c_short, ifreq};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// Adds an interface to a bridge (`linux/sockios.h`); the libc crate lacks it.
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

/// Switches an interface on.
///
/// # Errors
/// What the host said; `EPERM` without `CAP_NET_ADMIN`.
pub fn set_up(name: &str) -> io::Result<()> {
    let socket = any_socket()?;
    let mut request = request(name);
    // SAFETY: SIOCGIFFLAGS reads the name of the request and writes its flags, within the call.
    check(unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: the call above has set the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: SIOCSIFFLAGS reads name and flags of the request, within the call.
    check(unsafe { ioctl_with_mut_ref(&socket, libc::SIOCSIFFLAGS, &mut request) })
}

/// Makes an interface a port of a bridge.
///
/// # Errors
/// What the host said; `EPERM` without `CAP_NET_ADMIN`, `EOPNOTSUPP` if `bridge` is none.
pub fn join_bridge(name: &str, bridge: &str) -> io::Result<()> {
    let socket = any_socket()?;
    let mut port = request(name);
    // SAFETY: SIOCGIFINDEX reads the name of the request and writes its index, within the call.
    check(unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFINDEX, &mut port) })?;
    let mut request = request(bridge);
    // SAFETY: the call above has set the index.
    request.ifr_ifru.ifru_ifindex = unsafe { port.ifr_ifru.ifru_ifindex };
    // SAFETY: SIOCBRADDIF reads name and index of the request, within the call.
    check(unsafe { ioctl_with_mut_ref(&socket, SIOCBRADDIF, &mut request) })
}

/// The kernel takes such requests on a socket of any kind.
fn any_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A request for the interface `name`, of which at most 15 bytes count.
fn request(name: &str) -> ifreq {
    // SAFETY: all its fields are integers, arrays and pointers, for which zeros are valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL.
    let room = &mut request.ifr_name[..libc::IFNAMSIZ - 1];
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_reported() {
        for error in [
            set_up("tripath-nosuch").unwrap_err(),
            join_bridge("tripath-nosuch", "lo").unwrap_err(),
        ] {
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        }
    }
}
