//! virtio-net (virtio 1.3, 5.1): one receive queue, one transmit queue, the control queue.

mod ctrl;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::os::fd::RawFd;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::epoll::EventSet;

use self::ctrl::CtrlQueue;
use self::rx::{RxOutcome, RxQueue};
use self::tx::{TxOutcome, TxQueue};
use super::device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice, copy_config};
use crate::dma::DmaMem;
use crate::net::{MacAddr, NetBackend, NetOffloads};
use crate::ratelimit::RateLimiter;
use crate::rerun::Rerun;

/// Network device (5.1.1).
const DEVICE_ID: u16 = 1;
/// The largest frame with its header: 65,550 bytes of Ethernet behind 12 of header (5.1.6.3.1).
const MAX_FRAME_BYTES: usize = 65_562;
/// Most descriptors of a chain that are looked at. No honest chain is longer than its queue (2.7.5.3.1).
const MAX_CHAIN_SEGMENTS: usize = QUEUE_SIZE as usize;
const QUEUE_SIZE: u16 = 256;
const CTRL_QUEUE_SIZE: u16 = 64;

const RX: u16 = 0;
const TX: u16 = 1;
const CTRL: u16 = 2;

/// The features offered. UDP fragmentation offload is not: TAP has lost it.
const FEATURES: &[u32] = &[
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
];

/// The link is always up.
const LINK_UP: u8 = VIRTIO_NET_S_LINK_UP.to_le_bytes()[0];

/// `mac` and `status` of `struct virtio_net_config` (5.1.4); the other fields' features are not offered.
const CONFIG_BYTES: u16 = 8;

/// A virtio network device.
pub struct Net {
    log: Complaints,
    backend: Box<dyn NetBackend>,
    /// The address after a reset.
    permanent_mac: MacAddr,
    mac: MacAddr,
    rerun: Rerun,
    /// The backend may have frames that it will not announce again.
    frames_waiting: bool,
    active: Option<Active>,
}

/// What a driver has set up.
struct Active {
    dma: DmaMem,
    features: u64,
    rx: RxQueue,
    tx: TxQueue,
    ctrl: CtrlQueue,
}

impl Net {
    /// A network device `name` with address `mac`, between a driver and `backend`.
    ///
    /// # Errors
    /// The host has no eventfd left.
    pub fn new(name: String, backend: Box<dyn NetBackend>, mac: MacAddr) -> io::Result<Self> {
        Ok(Self {
            log: Complaints {
                device: name,
                limiter: RateLimiter::default(),
            },
            backend,
            permanent_mac: mac,
            mac,
            rerun: Rerun::new()?,
            frames_waiting: true,
            active: None,
        })
    }

    fn receive(&mut self) -> Result<(), DeviceFailed> {
        if let Some(active) = &mut self.active
            && let Ok(ram) = active.dma.ram()
        {
            let outcome = active.rx.run(ram, &mut *self.backend, &self.log)?;
            self.frames_waiting = outcome != RxOutcome::Drained;
            if outcome == RxOutcome::MoreToDo {
                self.rerun.ask();
            }
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), DeviceFailed> {
        if let Some(active) = &mut self.active
            && let Ok(ram) = active.dma.ram()
            && active.tx.run(ram, &mut *self.backend, &self.log)? == TxOutcome::MoreToDo
        {
            self.rerun.ask();
        }
        Ok(())
    }

    fn control(&mut self) -> Result<(), DeviceFailed> {
        if let Some(active) = &mut self.active
            && let Ok(ram) = active.dma.ram()
        {
            let mut target = ctrl::Target {
                features: active.features,
                backend: &mut *self.backend,
                mac: &mut self.mac,
            };
            if active.ctrl.run(ram, &mut target)? {
                self.rerun.ask();
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: DEVICE_ID,
            name: self.log.device.clone(),
            features: FEATURES.iter().fold(0, |all, bit| all | 1 << bit),
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE, CTRL_QUEUE_SIZE],
            config_len: CONFIG_BYTES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES as usize];
        config[..6].copy_from_slice(&self.mac.bytes());
        // The low byte of `status`.
        config[6] = LINK_UP;
        copy_config(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailed> {
        let Activation {
            dma,
            queues,
            features,
        } = activation;
        let Ok([rx, tx, ctrl]) = <[_; 3]>::try_from(queues) else {
            return Err(DeviceFailed("not three queues".to_string()));
        };
        self.backend
            .set_offloads(offloads(features))
            .map_err(|e| DeviceFailed(format!("setting offloads: {e}")))?;
        self.active = Some(Active {
            dma,
            features,
            rx: RxQueue::new(rx, features),
            tx: TxQueue::new(tx),
            ctrl: CtrlQueue::new(ctrl),
        });
        // Frames that came before the driver are not announced again, and the driver may have filled its queues
        // already.
        self.frames_waiting = true;
        self.rerun.ask();
        Ok(())
    }

    fn deactivate(&mut self) {
        self.active = None;
        self.mac = self.permanent_mac;
    }

    fn process_queue(&mut self, index: u16) -> Result<(), DeviceFailed> {
        match index {
            // New receive buffers matter only if there is something to put in them.
            RX if self.frames_waiting => self.receive(),
            TX => self.transmit(),
            CTRL => self.control(),
            _ => Ok(()),
        }
    }

    fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        let mut events = vec![self.rerun.event()];
        if let Some(fd) = self.backend.poll_fd() {
            events.push((fd, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED));
        }
        events
    }

    fn process_backend(&mut self, fd: RawFd, events: EventSet) -> Result<(), DeviceFailed> {
        if self.rerun.clear(fd) {
            if self.frames_waiting {
                self.receive()?;
            }
            self.transmit()?;
            return self.control();
        }
        if events.contains(EventSet::OUT)
            && self
                .active
                .as_ref()
                .is_some_and(|active| active.tx.blocked())
        {
            self.transmit()?;
        }
        if events != EventSet::OUT {
            self.frames_waiting = true;
            self.receive()?;
        }
        Ok(())
    }
}

/// Logs what goes wrong with frames, within limits.
struct Complaints {
    device: String,
    limiter: RateLimiter,
}

impl Complaints {
    fn warn(&self, text: std::fmt::Arguments<'_>) {
        if self.limiter.allow() {
            log::warn!("{}: {text}", self.device);
        }
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// What a driver with these features can receive. A feature without the one it requires (5.1.3.1) does not count.
fn offloads(features: u64) -> NetOffloads {
    let mut offloads = NetOffloads::empty();
    if has(features, VIRTIO_NET_F_GUEST_CSUM) {
        offloads |= NetOffloads::CSUM;
        if has(features, VIRTIO_NET_F_GUEST_TSO4) {
            offloads |= NetOffloads::TSO4;
        }
        if has(features, VIRTIO_NET_F_GUEST_TSO6) {
            offloads |= NetOffloads::TSO6;
        }
        if offloads != NetOffloads::CSUM && has(features, VIRTIO_NET_F_GUEST_ECN) {
            offloads |= NetOffloads::ECN;
        }
    }
    offloads
}
