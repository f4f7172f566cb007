//! What a PF's driver sets for its VFs, through rtnetlink (rtnetlink(7); `IFLA_VFINFO_LIST` in `linux/if_link.h`).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage, LinkVfInfo, VfInfo, VfInfoMac,
    VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a PF has set, or is to set, for one VF. What is `None` is unknown, or stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VfSettings {
    /// Ethernet address; all zeros for one of the VF's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<[u8; 6]>,
    /// VLAN ID that the PF puts on and takes off, 1 to 4094; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Frames from another address than the VF's are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoofchk: Option<bool>,
    /// The VF may change its address and be promiscuous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
}

impl VfSettings {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The values of `self` for those fields that `other` sets, too.
    #[must_use]
    pub fn of_those_in(&self, other: &Self) -> Self {
        Self {
            mac: other.mac.and(self.mac),
            vlan: other.vlan.and(self.vlan),
            spoofchk: other.spoofchk.and(self.spoofchk),
            trust: other.trust.and(self.trust),
        }
    }

    /// Each setting by itself: some drivers know only some of them.
    pub(super) fn one_by_one(&self) -> impl Iterator<Item = (&'static str, Self)> {
        let none = Self::default();
        let Self {
            mac,
            vlan,
            spoofchk,
            trust,
        } = *self;
        [
            ("MAC address", Self { mac, ..none }),
            ("VLAN", Self { vlan, ..none }),
            ("spoofchk", Self { spoofchk, ..none }),
            ("trust", Self { trust, ..none }),
        ]
        .into_iter()
        .filter(|(_, one)| !one.is_empty())
    }
}

/// The kernel did not do as asked by rtnetlink.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No socket, or no answer from it.
    #[error("rtnetlink cannot be used: {0}")]
    Socket(#[source] io::Error),
    /// The kernel or the interface's driver refused.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// The answer makes no sense.
    #[error("the kernel's answer is not understood: {0}")]
    Answer(String),
}

/// See [`super::Kernel::vf_settings`].
///
/// # Errors
/// No such interface, or no answer.
pub fn vf_settings(interface: u32) -> Result<Vec<VfSettings>, NetlinkError> {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]));
    match exchange(&request(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST))? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(settings_in(&link)),
        other => Err(NetlinkError::Answer(format!("{other:?}"))),
    }
}

/// See [`super::Kernel::set_vf`].
///
/// # Errors
/// The driver does not take the settings, or this process may not set them.
pub fn set_vf(interface: u32, vf: u32, settings: &VfSettings) -> Result<(), NetlinkError> {
    exchange(&request(
        vf_message(interface, vf, settings),
        NLM_F_REQUEST | NLM_F_ACK,
    ))
    .map(drop)
}

/// See [`super::Kernel::set_link`].
///
/// # Errors
/// No such interface, or this process may not.
pub fn set_link(interface: u32, up: bool) -> Result<(), NetlinkError> {
    exchange(&request(
        link_message(interface, up),
        NLM_F_REQUEST | NLM_F_ACK,
    ))
    .map(drop)
}

fn vf_message(interface: u32, vf: u32, settings: &VfSettings) -> RouteNetlinkMessage {
    let VfSettings {
        mac,
        vlan,
        spoofchk,
        trust,
    } = settings;
    let list = [
        mac.map(|mac| VfInfo::Mac(VfInfoMac::new(vf, &mac))),
        vlan.map(|vlan| VfInfo::Vlan(VfInfoVlan::new(vf, vlan.into(), 0))),
        spoofchk.map(|on| VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, on))),
        trust.map(|on| VfInfo::Trust(VfInfoTrust::new(vf, on))),
    ];
    let mut link = LinkMessage::default();
    link.header.index = interface;
    let info = LinkVfInfo(list.into_iter().flatten().collect());
    link.attributes.push(LinkAttribute::VfInfoList(vec![info]));
    RouteNetlinkMessage::SetLink(link)
}

fn link_message(interface: u32, up: bool) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.header.change_mask = LinkFlags::Up;
    if up {
        link.header.flags = LinkFlags::Up;
    }
    RouteNetlinkMessage::SetLink(link)
}

fn request(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Sends a request and takes its one answer: none for an acknowledgement.
fn exchange(request: &[u8]) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
    let answer = || -> io::Result<Vec<u8>> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(request, 0)?;
        Ok(socket.recv_from_full()?.0)
    };
    understand(&answer().map_err(NetlinkError::Socket)?)
}

fn understand(bytes: &[u8]) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
        .map_err(|error| NetlinkError::Answer(error.to_string()))?;
    match message.payload {
        NetlinkPayload::Error(error) => match error.code {
            Some(_) => Err(NetlinkError::Refused(error.to_io())),
            None => Ok(None),
        },
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        other => Err(NetlinkError::Answer(format!("{other:?}"))),
    }
}

fn settings_in(link: &LinkMessage) -> Vec<VfSettings> {
    let lists = link
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::VfInfoList(list) => Some(list),
            _ => None,
        });
    lists.flatten().map(settings_of).collect()
}

fn settings_of(info: &LinkVfInfo) -> VfSettings {
    let mut settings = VfSettings::default();
    for info in &info.0 {
        match info {
            VfInfo::Mac(mac) => settings.mac = mac.mac.first_chunk().copied(),
            VfInfo::Vlan(vlan) => settings.vlan = u16::try_from(vlan.vlan_id).ok(),
            VfInfo::SpoofCheck(check) => settings.spoofchk = Some(check.enabled),
            VfInfo::Trust(trust) => settings.trust = Some(trust.enabled),
            _ => {}
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    /// The header of rtnetlink's messages about links: nlmsghdr, then ifinfomsg.
    fn header(length: u32, kind: u16, flags: u16, interface: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(interface.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    }

    #[test]
    fn the_bytes_that_set_a_vf() {
        let settings = VfSettings {
            mac: Some(MAC),
            vlan: Some(7),
            spoofchk: Some(false),
            trust: Some(true),
        };
        let bytes = request(vf_message(5, 2, &settings), NLM_F_REQUEST | NLM_F_ACK);
        let vf = 2_u32.to_ne_bytes();
        // struct ifla_vf_mac: 32 bytes of address.
        let mac = attribute(1, &[&vf[..], &MAC, &[0; 26]].concat());
        let vlan = attribute(2, &[vf, 7_u32.to_ne_bytes(), [0; 4]].concat());
        let spoofchk = attribute(4, &[vf, [0; 4]].concat());
        let trust = attribute(9, &[vf, 1_u32.to_ne_bytes()].concat());
        // IFLA_VF_INFO in IFLA_VFINFO_LIST
        let list = attribute(22, &attribute(1, &[mac, vlan, spoofchk, trust].concat()));
        let length = u32::try_from(32 + list.len()).unwrap();
        // RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK
        assert_eq!(bytes, [header(length, 19, 5, 5), list].concat());
    }

    #[test]
    fn what_is_not_asked_for_is_not_sent() {
        let settings = VfSettings {
            vlan: Some(0),
            ..VfSettings::default()
        };
        let bytes = request(vf_message(5, 0, &settings), NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(bytes.len(), 32 + 4 + 4 + 16);
    }

    #[test]
    fn up_and_down_touch_that_flag_only() {
        for (up, flag) in [(true, 1_u32), (false, 0)] {
            let bytes = request(link_message(9, up), NLM_F_REQUEST);
            assert_eq!(bytes[24..28], flag.to_ne_bytes());
            assert_eq!(bytes[28..32], 1_u32.to_ne_bytes());
        }
    }

    #[test]
    fn an_answer_is_read() {
        let settings = VfSettings {
            mac: Some(MAC),
            vlan: Some(9),
            spoofchk: Some(true),
            trust: Some(false),
        };
        let RouteNetlinkMessage::SetLink(link) = vf_message(5, 0, &settings) else {
            panic!()
        };
        let bytes = request(RouteNetlinkMessage::NewLink(link), 0);
        let Some(RouteNetlinkMessage::NewLink(link)) = understand(&bytes).unwrap() else {
            panic!()
        };
        assert_eq!(settings_in(&link), [settings]);
    }

    #[test]
    fn a_refusal_is_an_error_and_an_acknowledgement_is_not() {
        // struct nlmsgerr: the error, then the request's header
        let answer = |error: i32| {
            let mut bytes = Vec::new();
            bytes.extend(36_u32.to_ne_bytes());
            bytes.extend(2_u16.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(error.to_ne_bytes());
            bytes.extend(request(link_message(1, true), 0)[..16].iter());
            bytes
        };
        assert!(understand(&answer(0)).unwrap().is_none());
        let error = understand(&answer(-1)).unwrap_err();
        assert!(error.to_string().contains("not permitted"), "{error}");
        assert!(understand(&[1, 2, 3]).is_err());
    }

    #[test]
    fn loopback_has_no_vfs() {
        assert_eq!(vf_settings(1).unwrap(), []);
    }

    #[test]
    fn one_by_one() {
        let settings = VfSettings {
            mac: Some(MAC),
            trust: Some(true),
            ..VfSettings::default()
        };
        let names: Vec<_> = settings.one_by_one().map(|(name, _)| name).collect();
        assert_eq!(names, ["MAC address", "trust"]);
        assert_eq!(
            settings.of_those_in(&VfSettings {
                mac: Some([0; 6]),
                vlan: Some(1),
                ..VfSettings::default()
            }),
            VfSettings {
                mac: Some(MAC),
                ..VfSettings::default()
            }
        );
    }
}
