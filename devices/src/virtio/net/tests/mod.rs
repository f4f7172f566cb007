//! The device driven through rings in test RAM, with a wire in memory.

mod ctrl;
mod rx;
mod tx;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::dma::GuestRam;
use crate::net::{PipeNet, PipePeer};
use crate::testing::test_ram;
use crate::virtio::test_driver::{DriverQueue, FakeInterrupts, RING_BYTES};

const RAM_BYTES: usize = 4 << 20;
/// First address after the rings.
const DATA: u64 = 0x10_0000;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;

/// A device, its driver and its wire.
struct Bench {
    ram: Arc<GuestRam>,
    bus_master: Arc<AtomicBool>,
    interrupts: Arc<FakeInterrupts>,
    peer: PipePeer,
    rx: DriverQueue,
    tx: DriverQueue,
    ctrl: DriverQueue,
    net: Net,
    wire_fd: RawFd,
}

impl Bench {
    /// With queues of 256 descriptors, activated.
    fn new(features: u64) -> Self {
        Self::with_rx_size(features, 256)
    }

    fn with_rx_size(features: u64, rx_size: u16) -> Self {
        let mut bench = Self::not_activated(rx_size);
        bench.activate(features).unwrap();
        // The device asked to be called once; nothing is there yet.
        bench.again();
        bench
    }

    fn not_activated(rx_size: u16) -> Self {
        let ram = test_ram(RAM_BYTES);
        let (wire, peer) = PipeNet::pair().unwrap();
        let wire_fd = wire.poll_fd().unwrap();
        let mac = "52:54:00:12:34:56".parse().unwrap();
        let net = Net::new("virtio-net0".to_string(), Box::new(wire), mac).unwrap();
        Self {
            rx: DriverQueue::new(&ram, 0, rx_size),
            tx: DriverQueue::new(&ram, RING_BYTES, 256),
            ctrl: DriverQueue::new(&ram, 2 * RING_BYTES, 64),
            bus_master: Arc::new(AtomicBool::new(true)),
            interrupts: Arc::default(),
            ram,
            peer,
            net,
            wire_fd,
        }
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFailed> {
        let dma = DmaMem::new(Arc::clone(&self.ram), Arc::clone(&self.bus_master));
        let event_idx = features & EVENT_IDX != 0;
        let queues = [(RX, &self.rx), (TX, &self.tx), (CTRL, &self.ctrl)]
            .map(|(i, queue)| queue.device_side(i, &dma, &self.interrupts, event_idx));
        self.net.activate(Activation {
            dma,
            queues: queues.into(),
            features,
        })
    }

    /// Frames are on the wire.
    fn wire_event(&mut self) {
        self.net
            .process_backend(self.wire_fd, EventSet::IN | EventSet::OUT)
            .unwrap();
    }

    /// Whether the device had asked to be called again; if so, it is.
    fn again(&mut self) -> bool {
        let asked = self.net.rerun.is_asked();
        if asked {
            let (fd, events) = self.net.rerun.event();
            self.net.process_backend(fd, events).unwrap();
        }
        asked
    }

    fn write(&self, addr: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(addr)).unwrap();
    }

    fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }
}

/// A frame with its header, `len` bytes in all, recognisable by `seed`.
fn frame(seed: u8, len: usize) -> Vec<u8> {
    let body = (0..len).map(|i| (i * 7 + i / 251) as u8 ^ seed);
    let mut frame: Vec<u8> = body.collect();
    // A plain frame; the backend leaves `num_buffers` as rubbish.
    frame[..10].fill(0);
    frame
}

#[test]
fn configuration_space() {
    let bench = Bench::new(MERGE);
    let mut config = [0xaa; 8];
    bench.net.read_config(0, &mut config);
    assert_eq!(config, [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0]);
    let mut part = [0; 2];
    bench.net.read_config(5, &mut part);
    assert_eq!(part, [0x56, 1]);
    for offset in [8, u64::MAX] {
        bench.net.read_config(offset, &mut part);
        assert_eq!(part, [0, 0], "{offset:#x}");
    }
}

#[test]
fn identity() {
    let info = Bench::not_activated(256).net.info();
    assert_eq!((info.device_id, info.config_len), (1, 8));
    assert_eq!(info.queue_sizes, [256, 256, 64]);
    for bit in [5, 15, 16, 17] {
        assert_ne!(info.features & 1 << bit, 0, "{bit}");
    }
    // Neither UFO nor multiqueue.
    assert_eq!(info.features & (1 << 10 | 1 << 14 | 1 << 22), 0);
}

#[test]
fn offloads_follow_the_features() {
    let cases = [
        (0, NetOffloads::empty()),
        (1 << 1, NetOffloads::CSUM),
        // Segmentation without checksums is not a thing, nor ECN without segmentation.
        (1 << 7 | 1 << 8 | 1 << 9, NetOffloads::empty()),
        (1 << 1 | 1 << 9, NetOffloads::CSUM),
        (
            1 << 1 | 1 << 8 | 1 << 9,
            NetOffloads::CSUM | NetOffloads::TSO6 | NetOffloads::ECN,
        ),
    ];
    for (features, expected) in cases {
        assert_eq!(Bench::new(features).peer.offloads(), expected);
    }
}

#[test]
fn a_backend_without_the_offloads_fails_the_activation() {
    let mut bench = Bench::not_activated(256);
    bench.peer.refuse_offloads();
    assert!(bench.activate(1 << 1).is_err());
}

#[test]
fn wrong_number_of_queues_fails_the_activation() {
    let mut bench = Bench::not_activated(256);
    let activation = Activation {
        dma: DmaMem::always_on(Arc::clone(&bench.ram)),
        queues: Vec::new(),
        features: 0,
    };
    assert!(bench.net.activate(activation).is_err());
}

#[test]
fn nothing_happens_without_a_driver_or_bus_mastering() {
    let mut bench = Bench::not_activated(256);
    bench.peer.push(&frame(1, 60));
    bench.wire_event();
    for queue in [RX, TX, CTRL, 3] {
        bench.net.process_queue(queue).unwrap();
    }
    assert_eq!(bench.peer.waiting(), 1);

    bench.activate(MERGE).unwrap();
    bench.bus_master.store(false, Ordering::Release);
    let buffer = crate::virtio::test_driver::writable(DATA, 2048);
    bench.rx.add(&[buffer]);
    assert!(bench.again());
    bench.wire_event();
    assert_eq!(bench.peer.waiting(), 1);
    bench.bus_master.store(true, Ordering::Release);
    bench.net.process_queue(RX).unwrap();
    assert_eq!(bench.rx.take_used().len(), 1);
}
