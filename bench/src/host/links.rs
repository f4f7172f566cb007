//! Network interfaces of the host, through rtnetlink (rtnetlink(7), `linux/if_link.h`).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, CacheInfo};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily as Family, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use thiserror::Error;

/// Bits of the prefix of each network that is made: two addresses, and two that are not for use.
pub const PREFIX_BITS: u8 = 30;
/// Addresses for benchmarks, which no network uses otherwise (RFC 2544, C.2.2): `198.18.0.0/15`.
const BENCHMARK_NETWORKS: u32 = 0xc612_0000;
/// How many networks of [`PREFIX_BITS`] are in it.
const NETWORKS: u32 = 1 << (30 - 15);

/// The kernel did not do as asked.
#[derive(Debug, Error)]
#[error("cannot {what}: {source}")]
pub struct LinkError {
    /// What was tried.
    what: String,
    /// Its answer.
    source: io::Error,
}

fn failed(what: String) -> impl FnOnce(io::Error) -> LinkError {
    move |source| LinkError { what, source }
}

/// A network of two: the host's end, and the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The host's address.
    pub host: Ipv4Addr,
    /// The other's.
    pub other: Ipv4Addr,
}

impl Network {
    /// Number `index` of the process `pid`: another for each of the processes that run at a time, but by chance.
    #[must_use]
    pub fn of_process(pid: u32, index: u32) -> Self {
        let number = pid.wrapping_mul(8).wrapping_add(index) % NETWORKS;
        let base = BENCHMARK_NETWORKS + number * 4;
        Self {
            host: Ipv4Addr::from_bits(base + 1),
            other: Ipv4Addr::from_bits(base + 2),
        }
    }

    /// The other's address as it is configured.
    #[must_use]
    pub fn other_with_prefix(&self) -> String {
        format!("{}/{PREFIX_BITS}", self.other)
    }
}

/// The number of an interface of this network namespace.
///
/// # Errors
/// There is no such interface.
pub fn index_of(name: &str) -> Result<u32, LinkError> {
    // Not by sysfs: that shows the network namespace it was mounted in.
    let index = || {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(name_to_index(socket, name)?)
    };
    index().map_err(failed(format!("find network interface {name}")))
}

/// Gives an interface an address, or renews it, and takes the interface up. After `lifetime` the kernel takes the
/// address away by itself.
///
/// # Errors
/// [`LinkError`].
pub fn add_address(
    name: &str,
    address: Ipv4Addr,
    lifetime: Option<Duration>,
) -> Result<(), LinkError> {
    let index = index_of(name)?;
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let message = RouteNetlinkMessage::NewAddress(address_message(index, address, lifetime));
    exchange(message, flags).map_err(failed(format!("give {name} the address {address}")))?;
    set_up(name, index)
}

/// Takes an address away.
///
/// # Errors
/// [`LinkError`].
pub fn remove_address(name: &str, address: Ipv4Addr) -> Result<(), LinkError> {
    let message = address_message(index_of(name)?, address, None);
    let message = RouteNetlinkMessage::DelAddress(message);
    exchange(message, NLM_F_REQUEST | NLM_F_ACK)
        .map_err(failed(format!("take the address {address} from {name}")))
}

fn address_message(index: u32, address: Ipv4Addr, lifetime: Option<Duration>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::Inet;
    message.header.prefix_len = PREFIX_BITS;
    message.header.index = index;
    let address = IpAddr::V4(address);
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    if let Some(lifetime) = lifetime {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX - 1);
        let mut info = CacheInfo::default();
        (info.ifa_preferred, info.ifa_valid) = (seconds, seconds);
        message.attributes.push(AddressAttribute::CacheInfo(info));
    }
    message
}

fn set_up(name: &str, index: u32) -> Result<(), LinkError> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.change_mask = LinkFlags::Up;
    link.header.flags = LinkFlags::Up;
    exchange(
        RouteNetlinkMessage::SetLink(link),
        NLM_F_REQUEST | NLM_F_ACK,
    )
    .map_err(failed(format!("switch {name} on")))
}

/// Makes a pair of interfaces, `name` here and `peer` with the Ethernet address `mac` in the network of a process. Both
/// are gone when one is, and so at the end of that network.
///
/// # Errors
/// [`LinkError`].
pub fn create_veth(name: &str, peer: &str, mac: [u8; 6], pid: u32) -> Result<(), LinkError> {
    let mut far = LinkMessage::default();
    far.attributes = vec![
        LinkAttribute::IfName(peer.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::NetNsPid(pid),
    ];
    let mut near = LinkMessage::default();
    near.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]),
    ];
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    exchange(RouteNetlinkMessage::NewLink(near), flags)
        .map_err(failed(format!("make the network interface {name}")))
}

/// Removes an interface that was made.
///
/// # Errors
/// [`LinkError`].
pub fn remove(name: &str) -> Result<(), LinkError> {
    let mut link = LinkMessage::default();
    link.header.index = index_of(name)?;
    exchange(
        RouteNetlinkMessage::DelLink(link),
        NLM_F_REQUEST | NLM_F_ACK,
    )
    .map_err(failed(format!("remove the network interface {name}")))
}

/// Moves an interface into the network of a process. That of hardware comes back at the end of that network.
///
/// # Errors
/// [`LinkError`].
pub fn move_to(name: &str, pid: u32) -> Result<(), LinkError> {
    let mut link = LinkMessage::default();
    link.header.index = index_of(name)?;
    link.attributes.push(LinkAttribute::NetNsPid(pid));
    exchange(
        RouteNetlinkMessage::SetLink(link),
        NLM_F_REQUEST | NLM_F_ACK,
    )
    .map_err(failed(format!("move {name} to another network")))
}

/// Sends a request and waits for its acknowledgement.
fn exchange(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let answer = socket.recv_from_full()?.0;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_for_benchmarks_and_apart() {
        let network = Network::of_process(0, 0);
        assert_eq!(network.host.to_string(), "198.18.0.1");
        assert_eq!(network.other_with_prefix(), "198.18.0.2/30");
        assert_eq!(Network::of_process(1, 1).host.to_string(), "198.18.0.37");
        for pid in [1, 77, 4_194_303, u32::MAX] {
            let [_, second, ..] = Network::of_process(pid, 7).host.octets();
            assert!(second == 18 || second == 19);
        }
    }

    #[test]
    fn what_is_not_there_is_told() {
        let error = add_address("nowhere0", Ipv4Addr::LOCALHOST, None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot find network interface nowhere0: "),
            "{error}"
        );
    }

    #[test]
    fn the_bytes_that_make_an_address() {
        let seconds = Duration::from_secs(60);
        let message = address_message(3, Ipv4Addr::new(198, 18, 0, 1), Some(seconds));
        let header = NetlinkHeader::default();
        let message = RouteNetlinkMessage::NewAddress(message);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        // struct ifaddrmsg: family, bits of the prefix, flags, scope, interface.
        assert_eq!(bytes[16..24], [2, 30, 0, 0, 3, 0, 0, 0]);
        // IFA_LOCAL, IFA_ADDRESS, then IFA_CACHEINFO with its two times.
        assert_eq!(bytes[24..32], [8, 0, 2, 0, 198, 18, 0, 1]);
        assert_eq!(bytes[32..40], [8, 0, 1, 0, 198, 18, 0, 1]);
        assert_eq!(bytes[40..52], [20, 0, 6, 0, 60, 0, 0, 0, 60, 0, 0, 0]);
    }
}
