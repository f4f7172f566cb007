//! Setting up a network interface (netdevice(7)).
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket};

/// `IFF_UP` and `IFF_RUNNING` as an `ifreq` holds them.
const UP: libc::c_short = 1;
const RUNNING: libc::c_short = 0x40;
/// Bytes of an Ethernet address.
const MAC_BYTES: usize = 6;

/// An interface of this network namespace, by its name.
pub struct Interface {
    socket: OwnedFd,
    request: libc::ifreq,
}

impl Interface {
    /// The one with that name, in the caller's network namespace.
    pub fn named(name: &str) -> io::Result<Self> {
        // SAFETY: plain numbers and arrays of them, of which zeros are values.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // The last byte stays zero.
        if name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(Self { socket, request })
    }

    /// One of the requests that take an `ifreq`, with `value` in it; what is in it afterwards.
    fn call(&self, number: u64, value: libc::__c_anonymous_ifr_ifru) -> io::Result<libc::ifreq> {
        let mut request = self.request;
        request.ifr_ifru = value;
        // SAFETY: all numbers given below are of requests that take an `ifreq`, which outlives the call.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), number, &raw mut request) } {
            0 => Ok(request),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn flags(&self) -> io::Result<libc::c_short> {
        let nothing = libc::__c_anonymous_ifr_ifru { ifru_flags: 0 };
        let answer = self.call(libc::SIOCGIFFLAGS, nothing)?;
        // SAFETY: SIOCGIFFLAGS has filled in this member.
        Ok(unsafe { answer.ifr_ifru.ifru_flags })
    }

    /// Takes it up.
    pub fn up(&self) -> io::Result<()> {
        let flags = libc::__c_anonymous_ifr_ifru {
            ifru_flags: self.flags()? | UP,
        };
        self.call(libc::SIOCSIFFLAGS, flags).map(drop)
    }

    /// Whether it has a link.
    pub fn has_link(&self) -> io::Result<bool> {
        Ok(self.flags()? & RUNNING != 0)
    }

    /// Its Ethernet address, as in `52:54:00:00:00:0a`.
    pub fn mac(&self) -> io::Result<String> {
        let nothing = libc::__c_anonymous_ifr_ifru { ifru_flags: 0 };
        let answer = self.call(libc::SIOCGIFHWADDR, nothing)?;
        // SAFETY: SIOCGIFHWADDR has filled in this member.
        let address = unsafe { answer.ifr_ifru.ifru_hwaddr };
        let bytes = &address.sa_data[..MAC_BYTES];
        let digits = bytes
            .iter()
            .map(|byte| format!("{:02x}", byte.cast_unsigned()));
        Ok(digits.collect::<Vec<_>>().join(":"))
    }

    /// Sets its MTU, in bytes.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let ifru_mtu = mtu.try_into().map_err(io::Error::other)?;
        let mtu = libc::__c_anonymous_ifr_ifru { ifru_mtu };
        self.call(libc::SIOCSIFMTU, mtu).map(drop)
    }

    /// Gives it this address in place of any other.
    pub fn set_address(&self, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        for (number, address) in [
            (libc::SIOCSIFADDR, address),
            (libc::SIOCSIFNETMASK, Ipv4Addr::from_bits(mask)),
        ] {
            let ifru_addr = socket_address(address);
            let address = libc::__c_anonymous_ifr_ifru { ifru_addr };
            self.call(number, address)?;
        }
        Ok(())
    }
}

/// A `sockaddr_in` (ip(7)), in the form that all addresses have there: the family, then port and address in the
/// network's order.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut sa_data = [0; 14];
    for (to, from) in sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    let sa_family = AddressFamily::INET.as_raw();
    libc::sockaddr { sa_family, sa_data }
}
