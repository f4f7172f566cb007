//! Network interfaces: up, without addresses but those of `lo`.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType, socket};

/// Takes up `lo` and what has a device behind it. A command may need none of them: failures are only mentioned.
pub fn links_up() {
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten();
    for interface in interfaces.flatten() {
        let name = interface.file_name();
        let is_real = interface.path().join("device").exists();
        if (name == "lo" || is_real)
            && let Err(error) = link_up(name.as_encoded_bytes())
        {
            eprintln!("tripath-init: {}: {error}", name.display());
        }
    }
}

fn link_up(name: &[u8]) -> io::Result<()> {
    // SAFETY: plain numbers and arrays of them, of which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut call = |number| {
        // SAFETY: both requests take an `ifreq`, which outlives the call.
        match unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut request) } {
            0 => Ok(request),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let answer = call(libc::SIOCGIFFLAGS)?;
    // SAFETY: SIOCGIFFLAGS has filled in this member.
    let flags = unsafe { answer.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | UP;
    // SAFETY: as above.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `IFF_UP` as an `ifreq` holds it.
const UP: libc::c_short = 1;
