//! A guest driver and an echoing device, for tests of the PCI transport.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::EventSet;
use vm_memory::{Bytes, GuestAddress, Le16, Le32, Le64};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
use super::pci::VirtioPci;
use super::queue::VirtQueue;
use super::test_driver::{DriverQueue, readable, writable};
use crate::dma::GuestRam;
use crate::pci::PciDevice;
use crate::pci::config::{BASE_ADDRESS_0, CAPABILITIES_POINTER, COMMAND};
use crate::sync::lock;
use crate::testing::{FakeMsiSink, FakePin, test_ram};

pub(super) const RAM_BYTES: usize = 0x4_0000;
pub(super) const QUEUE_SIZE: u16 = 16;
pub(super) const CONFIG_BYTES: usize = 12;
/// The echo device's only feature.
pub(super) const FEATURE_ECHO: u64 = 1 << 3;

pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const INDIRECT_DESC: u64 = 1 << 28;

pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;
pub(super) const FAILED: u8 = 128;

// Offsets in the BAR.
pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
pub(super) const DEVICE_FEATURE: u64 = 0x04;
pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub(super) const DRIVER_FEATURE: u64 = 0x0c;
pub(super) const CONFIG_VECTOR: u64 = 0x10;
pub(super) const STATUS: u64 = 0x14;
pub(super) const GENERATION: u64 = 0x15;
pub(super) const SELECT: u64 = 0x16;
pub(super) const SIZE: u64 = 0x18;
pub(super) const VECTOR: u64 = 0x1a;
pub(super) const ENABLE: u64 = 0x1c;
pub(super) const DESC: u64 = 0x20;
pub(super) const AVAIL: u64 = 0x28;
pub(super) const USED: u64 = 0x30;
pub(super) const ISR: u64 = 0x100;
pub(super) const DEVICE_CONFIG: u64 = 0x200;
pub(super) const NOTIFY: u64 = 0x1000;
pub(super) const MSIX_TABLE: u64 = 0x2000;
pub(super) const MSIX_PBA: u64 = 0x3000;

/// What the echo device was asked to do, and what it is to do.
#[derive(Default)]
pub(super) struct EchoState {
    pub(super) activations: u32,
    pub(super) deactivations: u32,
    pub(super) features: u64,
    pub(super) processed: Vec<u16>,
    pub(super) backend_calls: u32,
    pub(super) fail_activate: bool,
    pub(super) fail_queue: bool,
    pub(super) fail_backend: bool,
    pub(super) config: [u8; CONFIG_BYTES],
}

/// Copies what it may read of a chain to what it may write of it.
struct Echo {
    state: Arc<Mutex<EchoState>>,
    backend: EventFd,
    queues: Vec<VirtQueue>,
    ram: Option<Arc<GuestRam>>,
}

impl VirtioDevice for Echo {
    fn info(&self) -> DeviceInfo {
        info()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let at = usize::try_from(offset).unwrap();
        data.copy_from_slice(&lock(&self.state).config[at..at + data.len()]);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        lock(&self.state).config[at..at + data.len()].copy_from_slice(data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailed> {
        let mut state = lock(&self.state);
        if state.fail_activate {
            return Err(DeviceFailed("told to".into()));
        }
        assert!(self.queues.is_empty(), "activated twice");
        state.activations += 1;
        state.features = activation.features;
        self.ram = activation.dma.ram().ok().cloned();
        self.queues = activation.queues;
        Ok(())
    }

    fn deactivate(&mut self) {
        assert!(!self.queues.is_empty(), "not active");
        self.queues.clear();
        lock(&self.state).deactivations += 1;
    }

    fn process_queue(&mut self, index: u16) -> Result<(), DeviceFailed> {
        let mut state = lock(&self.state);
        state.processed.push(index);
        if state.fail_queue {
            return Err(DeviceFailed("told to".into()));
        }
        let queue = &mut self.queues[usize::from(index)];
        // Bounded: what comes while it works comes with a notification.
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = queue.pop()? else { break };
            let head = chain.head_index();
            let written = self.ram.as_ref().map_or(0, |ram| echo(ram, chain));
            queue.add_used(head, written)?;
        }
        queue.enable_notification()?;
        queue.notify()
    }

    fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        vec![(self.backend.as_raw_fd(), EventSet::IN)]
    }

    fn process_backend(&mut self, fd: RawFd, _events: EventSet) -> Result<(), DeviceFailed> {
        assert_eq!(fd, self.backend.as_raw_fd());
        let _ = self.backend.read();
        let mut state = lock(&self.state);
        state.backend_calls += 1;
        if state.fail_backend {
            return Err(DeviceFailed("told to".into()));
        }
        if let Some(queue) = self.queues.first() {
            state.config[0] = state.config[0].wrapping_add(1);
            queue.interrupt().signal_config();
        }
        Ok(())
    }
}

fn echo(ram: &GuestRam, chain: super::Chain) -> u32 {
    let mut data = Vec::new();
    let mut written = 0;
    for desc in chain {
        let len = usize::try_from(desc.len().min(0x1000)).unwrap();
        if desc.is_write_only() {
            let part = data.len().min(len);
            if ram.write_slice(&data[..part], desc.addr()).is_ok() {
                written += u32::try_from(part).unwrap();
            }
        } else {
            data = vec![0; len];
            let _ = ram.read_slice(&mut data, desc.addr());
        }
    }
    written
}

pub(super) fn info() -> DeviceInfo {
    DeviceInfo {
        device_id: 2,
        name: "echo0".into(),
        features: FEATURE_ECHO,
        queue_sizes: vec![QUEUE_SIZE, 8],
        config_len: u16::try_from(CONFIG_BYTES).unwrap(),
    }
}

/// A device of another shape than the echo's, for constructors.
pub(super) struct Shaped(pub(super) DeviceInfo);

impl VirtioDevice for Shaped {
    fn info(&self) -> DeviceInfo {
        self.0.clone()
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    fn activate(&mut self, _activation: Activation) -> Result<(), DeviceFailed> {
        Ok(())
    }
    fn deactivate(&mut self) {}
    fn process_queue(&mut self, _index: u16) -> Result<(), DeviceFailed> {
        Ok(())
    }
    fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        Vec::new()
    }
    fn process_backend(&mut self, _fd: RawFd, _events: EventSet) -> Result<(), DeviceFailed> {
        Ok(())
    }
}

/// The function and everything around it.
pub(super) struct Guest {
    pub(super) pci: Arc<VirtioPci>,
    pub(super) state: Arc<Mutex<EchoState>>,
    pub(super) backend: EventFd,
    pub(super) sink: Arc<FakeMsiSink>,
    pub(super) pin: Arc<FakePin>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) ring: DriverQueue,
}

impl Guest {
    pub(super) fn new() -> Self {
        let ram = test_ram(RAM_BYTES);
        let state = Arc::new(Mutex::new(EchoState::default()));
        let backend = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = Echo {
            state: state.clone(),
            backend: backend.try_clone().unwrap(),
            queues: Vec::new(),
            ram: None,
        };
        let sink = Arc::new(FakeMsiSink::default());
        let (line, pin) = FakePin::line();
        let pci = VirtioPci::new(Box::new(device), ram.clone(), sink.clone(), line).unwrap();
        let guest = Self {
            pci,
            state,
            backend,
            sink,
            pin,
            ring: DriverQueue::new(&ram, 0x1_0000, QUEUE_SIZE),
            ram,
        };
        guest.set_command(0x6);
        guest
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, EchoState> {
        lock(&self.state)
    }

    pub(super) fn set_command(&self, command: u16) {
        let _ = self.pci.config_write(COMMAND, &command.to_le_bytes());
    }

    pub(super) fn config_u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.pci.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub(super) fn config_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.pci.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn config_write_u32(&self, offset: u16, value: u32) {
        let _ = self.pci.config_write(offset, &value.to_le_bytes());
    }

    pub(super) fn bar_address(&self) -> u64 {
        u64::from(self.config_u32(BASE_ADDRESS_0 + 4)) << 32
            | u64::from(self.config_u32(BASE_ADDRESS_0) & !0xf)
    }

    pub(super) fn r8(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.pci.bar_read(0, offset, &mut data).unwrap();
        data[0]
    }

    pub(super) fn r16(&self, offset: u64) -> u16 {
        let mut data = Le16::from(0);
        let bytes = vm_memory::ByteValued::as_mut_slice(&mut data);
        self.pci.bar_read(0, offset, bytes).unwrap();
        data.to_native()
    }

    pub(super) fn r32(&self, offset: u64) -> u32 {
        let mut data = Le32::from(0);
        let bytes = vm_memory::ByteValued::as_mut_slice(&mut data);
        self.pci.bar_read(0, offset, bytes).unwrap();
        data.to_native()
    }

    pub(super) fn r64(&self, offset: u64) -> u64 {
        let mut data = Le64::from(0);
        let bytes = vm_memory::ByteValued::as_mut_slice(&mut data);
        self.pci.bar_read(0, offset, bytes).unwrap();
        data.to_native()
    }

    pub(super) fn w8(&self, offset: u64, value: u8) {
        self.pci.bar_write(0, offset, &[value]).unwrap();
    }

    pub(super) fn w16(&self, offset: u64, value: u16) {
        self.pci.bar_write(0, offset, &value.to_le_bytes()).unwrap();
    }

    pub(super) fn w32(&self, offset: u64, value: u32) {
        self.pci.bar_write(0, offset, &value.to_le_bytes()).unwrap();
    }

    /// As drivers do: the low half, then the high one.
    pub(super) fn w64(&self, offset: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.pci.bar_write(0, offset, &bytes[..4]).unwrap();
        self.pci.bar_write(0, offset + 4, &bytes[4..]).unwrap();
    }

    pub(super) fn status(&self) -> u8 {
        self.r8(STATUS)
    }

    pub(super) fn add_status(&self, bits: u8) {
        self.w8(STATUS, self.status() | bits);
    }

    pub(super) fn reset(&self) {
        self.w8(STATUS, 0);
        assert_eq!(self.status(), 0);
    }

    pub(super) fn offered(&self) -> u64 {
        self.w32(DEVICE_FEATURE_SELECT, 0);
        let low = u64::from(self.r32(DEVICE_FEATURE));
        self.w32(DEVICE_FEATURE_SELECT, 1);
        u64::from(self.r32(DEVICE_FEATURE)) << 32 | low
    }

    pub(super) fn accept(&self, features: u64) {
        for (select, word) in [(0, features), (1, features >> 32)] {
            self.w32(DRIVER_FEATURE_SELECT, select);
            self.w32(DRIVER_FEATURE, u32::try_from(word & 0xffff_ffff).unwrap());
        }
    }

    /// Up to and with `FEATURES_OK`; says whether the device agreed.
    pub(super) fn negotiate(&self, features: u64) -> bool {
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.accept(features);
        self.add_status(FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    pub(super) fn set_up_queue(&self) {
        self.w16(SELECT, 0);
        self.w16(SIZE, QUEUE_SIZE);
        self.point_queue_at_ring();
        self.w16(ENABLE, 1);
    }

    /// Writes the addresses of the ring to the selected queue.
    pub(super) fn point_queue_at_ring(&self) {
        self.w64(DESC, self.ring.desc());
        self.w64(AVAIL, self.ring.avail());
        self.w64(USED, self.ring.used());
    }

    /// From negotiation to a live device with one queue.
    pub(super) fn go_live(&self, features: u64) {
        assert!(self.negotiate(features));
        self.set_up_queue();
        self.add_status(DRIVER_OK);
    }

    /// The whole sequence of 3.1.1.
    pub(super) fn start(&self) {
        self.reset();
        self.go_live(VERSION_1 | EVENT_IDX | FEATURE_ECHO);
    }

    /// Sends bytes and checks that they come back.
    pub(super) fn echo(&mut self, text: &[u8]) {
        let len = u32::try_from(text.len()).unwrap();
        let addr = GuestAddress(0x2_0000);
        self.ram.write_slice(text, addr).unwrap();
        let buffers = [readable(addr.0, len), writable(0x2_1000, len)];
        let head = self.ring.add(&buffers);
        self.kick();
        assert_eq!(self.ring.next_used(), Some((head, len)));
        let mut back = vec![0; text.len()];
        let addr = GuestAddress(0x2_1000);
        self.ram.read_slice(&mut back, addr).unwrap();
        assert_eq!(back, text);
    }

    /// Notifies queue 0 and lets the event loop have its turn.
    pub(super) fn kick(&self) {
        self.w16(NOTIFY, 0);
        self.run_queues();
    }

    /// What the event loop does with the queues that are signalled.
    pub(super) fn run_queues(&self) {
        for (index, event) in (0..).zip(self.pci.queue_events()) {
            if event.read().is_ok() {
                self.pci.process_queue_event(index);
            }
        }
    }

    /// Offsets of the capabilities with this ID, in the order of the list.
    pub(super) fn capabilities(&self, id: u8) -> Vec<u16> {
        let mut found = Vec::new();
        let mut at = self.config_u16(CAPABILITIES_POINTER) & 0xff;
        while at != 0 {
            let [this, next] = self.config_u16(at).to_le_bytes();
            if this == id {
                found.push(at);
            }
            at = u16::from(next);
        }
        found
    }

    /// Turns MSI-X on, with messages `0x40 + vector`, all unmasked.
    pub(super) fn enable_msix(&self) {
        let control = self.capabilities(0x11)[0] + 2;
        let _ = self.pci.config_write(control, &0x8000u16.to_le_bytes());
        let count = u64::from(self.config_u16(control) & 0x7ff) + 1;
        for vector in 0..count {
            let at = MSIX_TABLE + 16 * vector;
            self.w64(at, 0xfee0_0000);
            self.w32(at + 8, 0x40 + u32::try_from(vector).unwrap());
            self.w32(at + 12, 0);
        }
    }

    /// How often vector `index` was raised since the last call.
    pub(super) fn raised(&self, index: usize) -> u64 {
        self.sink.vectors()[index].take_raised()
    }
}
