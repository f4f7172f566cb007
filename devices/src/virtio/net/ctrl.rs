//! The control queue (virtio 1.3, 5.1.6.5).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_OK,
};
use vm_memory::{Bytes, GuestAddress};

use super::{MAX_CHAIN_SEGMENTS, has, offloads};
use crate::dma::GuestRam;
use crate::net::{MacAddr, NetBackend};
use crate::virtio::device::DeviceFailed;
use crate::virtio::queue::{Chain, VirtQueue};

/// Most commands in one call.
const COMMANDS_PER_CALL: usize = 64;
/// The longest command: two address tables of together more than a thousand entries.
const MAX_COMMAND_BYTES: usize = 8192;

const OK: u8 = VIRTIO_NET_OK.to_le_bytes()[0];
const ERR: u8 = VIRTIO_NET_ERR.to_le_bytes()[0];

/// What commands act on.
pub(super) struct Target<'a> {
    pub features: u64,
    pub backend: &'a mut dyn NetBackend,
    pub mac: &'a mut MacAddr,
}

/// The control queue of an active device.
pub(super) struct CtrlQueue {
    queue: VirtQueue,
}

impl CtrlQueue {
    pub fn new(queue: VirtQueue) -> Self {
        Self { queue }
    }

    /// Carries out the commands that the driver made available; true if there may be more.
    pub fn run(&mut self, ram: &GuestRam, target: &mut Target<'_>) -> Result<bool, DeviceFailed> {
        let mut more = true;
        for _ in 0..COMMANDS_PER_CALL {
            let Some(chain) = self.queue.pop()? else {
                if self.queue.enable_notification()? {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            let (command, ack_addr) = read_command(ram, chain);
            let written = match ack_addr {
                Some(addr) => {
                    let ack = command.map_or(ERR, |command| execute(&command, target));
                    u32::from(ram.write_obj(ack, addr).is_ok())
                }
                // Nowhere to put the answer: not a command.
                None => 0,
            };
            self.queue.add_used(head, written)?;
        }
        self.queue.notify()?;
        Ok(more)
    }
}

/// The readable bytes of a chain, none if they are too many or not in RAM, and where the answer goes.
fn read_command(ram: &GuestRam, chain: Chain) -> (Option<Vec<u8>>, Option<GuestAddress>) {
    let mut command = Some(Vec::new());
    for descriptor in chain.take(MAX_CHAIN_SEGMENTS) {
        if descriptor.len() == 0 {
            continue;
        }
        if descriptor.is_write_only() {
            return (command, Some(descriptor.addr()));
        }
        command = command.and_then(|mut bytes: Vec<u8>| {
            let start = bytes.len();
            let end = start.checked_add(descriptor.len() as usize)?;
            if end > MAX_COMMAND_BYTES {
                return None;
            }
            bytes.resize(end, 0);
            ram.read_slice(&mut bytes[start..], descriptor.addr())
                .ok()?;
            Some(bytes)
        });
    }
    (command, None)
}

/// Carries out one command: class, command, data. Answers `VIRTIO_NET_OK` or `VIRTIO_NET_ERR`.
fn execute(command: &[u8], target: &mut Target<'_>) -> u8 {
    let &[class, code, ref data @ ..] = command else {
        return ERR;
    };
    let done = match (u32::from(class), u32::from(code)) {
        (VIRTIO_NET_CTRL_RX, code) => rx_mode(code, data, target.features),
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            has(target.features, VIRTIO_NET_F_CTRL_RX) && is_mac_table_pair(data)
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => set_mac(data, target),
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            set_offloads(data, target)
        }
        _ => false,
    };
    if done { OK } else { ERR }
}

/// Receive filtering is best effort (5.1.6.5.1): every frame of the backend reaches the driver, which filters. So the
/// commands that change it need only be well formed.
fn rx_mode(code: u32, data: &[u8], features: u64) -> bool {
    let known = if code <= VIRTIO_NET_CTRL_RX_ALLMULTI {
        has(features, VIRTIO_NET_F_CTRL_RX)
    } else {
        code <= VIRTIO_NET_CTRL_RX_NOBCAST && has(features, VIRTIO_NET_F_CTRL_RX_EXTRA)
    };
    known && matches!(data, [0 | 1])
}

/// Whether `data` is the unicast table followed by the multicast table, `struct virtio_net_ctrl_mac` each (5.1.6.5.2).
fn is_mac_table_pair(data: &[u8]) -> bool {
    fn table_end(data: &[u8]) -> Option<&[u8]> {
        let (entries, rest) = data.split_first_chunk::<4>()?;
        let entries = usize::try_from(u32::from_le_bytes(*entries)).ok()?;
        rest.get(entries.checked_mul(6)?..)
    }
    table_end(data).and_then(table_end) == Some(&[])
}

fn set_mac(data: &[u8], target: &mut Target<'_>) -> bool {
    if !has(target.features, VIRTIO_NET_F_CTRL_MAC_ADDR) {
        return false;
    }
    let mac = <[u8; 6]>::try_from(data).ok().map(MacAddr::new);
    match mac {
        Some(Ok(mac)) => {
            *target.mac = mac;
            true
        }
        _ => false,
    }
}

/// The bits of the command are those of the features (5.1.6.5.6.1).
fn set_offloads(data: &[u8], target: &mut Target<'_>) -> bool {
    const SETTABLE: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_GUEST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_TSO6
        | 1 << VIRTIO_NET_F_GUEST_ECN;
    let Ok(wanted) = <[u8; 8]>::try_from(data).map(u64::from_le_bytes) else {
        return false;
    };
    has(target.features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
        && wanted & !(target.features & SETTABLE) == 0
        && target.backend.set_offloads(offloads(wanted)).is_ok()
}
