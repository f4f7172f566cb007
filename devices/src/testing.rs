//! Fakes for tests: wires, an MSI sink, doorbells, RAM.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{AccessError, BusDevice};
use crate::console::poll_set::{EventFlags, PollSet, Watched};
use crate::console::{CharBackend, Interest};
use crate::dma::GuestRam;
use crate::irq::{Doorbell, IrqLine, IrqPin, MsiMessage, MsiSink, MsiVector};
use crate::legacy::{PowerControl, PowerEvent};
use crate::pci::{BarMapper, HostPages};
use crate::posted::{PostedWrites, PostedZone};
use crate::sync::lock;

/// `len` bytes of guest RAM at address 0.
///
/// # Panics
/// When the host has no memory left.
#[must_use]
pub fn test_ram(len: usize) -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), len)]).expect("test RAM"))
}

/// What a fake wire saw.
#[derive(Default)]
pub struct FakePin {
    level: AtomicBool,
    edges: AtomicU32,
    connected: AtomicBool,
}

impl FakePin {
    /// A wire and the fake pin at its end.
    #[must_use]
    pub fn line() -> (IrqLine, Arc<Self>) {
        let pin = Arc::new(Self::default());
        (IrqLine::new(Box::new(Arc::clone(&pin))), pin)
    }

    /// The level now.
    #[must_use]
    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }

    /// Whether events drive it.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::SeqCst)
    }

    /// How often the wire went from low to high.
    #[must_use]
    pub fn rising_edges(&self) -> u32 {
        self.edges.load(Ordering::SeqCst)
    }
}

impl IrqPin for Arc<FakePin> {
    fn set_level(&self, high: bool) {
        if !self.level.swap(high, Ordering::SeqCst) && high {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn connect(&self, _trigger: &EventFd, _resample: &EventFd) -> io::Result<()> {
        self.connected.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn disconnect(&self, _trigger: &EventFd) -> io::Result<()> {
        self.connected.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// What a [`FakeMsiSink`] refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MsiRefusal {
    /// Nothing.
    #[default]
    None,
    /// To hand out vectors.
    Vectors,
    /// To route vectors, and to send; it remembers messages all the same.
    Messages,
}

/// Collects messages sent, and hands out vectors whose eventfds a test can read.
#[derive(Default)]
pub struct FakeMsiSink {
    refusal: MsiRefusal,
    asked: AtomicU32,
    sent: Mutex<Vec<MsiMessage>>,
    vectors: Mutex<Vec<Arc<FakeVector>>>,
}

impl FakeMsiSink {
    /// One that refuses something.
    #[must_use]
    pub fn refusing(refusal: MsiRefusal) -> Self {
        Self {
            refusal,
            ..Self::default()
        }
    }

    /// All messages sent directly so far.
    #[must_use]
    pub fn sent(&self) -> Vec<MsiMessage> {
        lock(&self.sent).clone()
    }

    /// How many vectors it was asked for.
    #[must_use]
    pub fn vectors_asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    /// The vectors handed out, in order.
    #[must_use]
    pub fn vectors(&self) -> Vec<Arc<FakeVector>> {
        lock(&self.vectors).clone()
    }
}

/// One vector of a [`FakeMsiSink`].
pub struct FakeVector {
    refusing: bool,
    routings: AtomicU32,
    message: Mutex<Option<MsiMessage>>,
    event: EventFd,
}

impl FakeVector {
    /// Where it points now; none when masked.
    #[must_use]
    pub fn message(&self) -> Option<MsiMessage> {
        *lock(&self.message)
    }

    /// How often it was pointed elsewhere, or was to be.
    #[must_use]
    pub fn routings(&self) -> u32 {
        self.routings.load(Ordering::SeqCst)
    }

    /// How often it was raised since the last call.
    #[must_use]
    pub fn take_raised(&self) -> u64 {
        self.event.read().unwrap_or(0)
    }
}

impl MsiVector for Arc<FakeVector> {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.routings.fetch_add(1, Ordering::SeqCst);
        if self.refusing {
            return Err(io::Error::other("refused"));
        }
        *lock(&self.message) = message;
        Ok(())
    }

    fn trigger(&self) -> &EventFd {
        &self.event
    }
}

impl MsiSink for FakeMsiSink {
    fn send(&self, message: MsiMessage) -> io::Result<()> {
        lock(&self.sent).push(message);
        match self.refusal {
            MsiRefusal::Messages => Err(io::Error::other("refused")),
            _ => Ok(()),
        }
    }

    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.refusal == MsiRefusal::Vectors {
            return Err(io::Error::other("no routes left"));
        }
        let vector = Arc::new(FakeVector {
            refusing: self.refusal == MsiRefusal::Messages,
            routings: AtomicU32::new(0),
            message: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        lock(&self.vectors).push(Arc::clone(&vector));
        Ok(Box::new(vector))
    }
}

/// Remembers which addresses are bound.
#[derive(Default)]
pub struct FakeDoorbell {
    addrs: Mutex<Vec<u64>>,
    ports: Mutex<Vec<(u64, u8)>>,
}

impl FakeDoorbell {
    /// The addresses bound now, sorted.
    #[must_use]
    pub fn bound(&self) -> Vec<u64> {
        let mut addrs = lock(&self.addrs).clone();
        addrs.sort_unstable();
        addrs
    }

    /// The ports bound now with their values, sorted.
    #[must_use]
    pub fn ports(&self) -> Vec<(u64, u8)> {
        let mut ports = lock(&self.ports).clone();
        ports.sort_unstable();
        ports
    }
}

impl Doorbell for FakeDoorbell {
    fn bind(&self, addr: u64, _event: &EventFd) -> io::Result<()> {
        lock(&self.addrs).push(addr);
        Ok(())
    }

    fn unbind(&self, addr: u64, _event: &EventFd) -> io::Result<()> {
        lock(&self.addrs).retain(|bound| *bound != addr);
        Ok(())
    }

    fn bind_port(&self, port: u64, value: u8, _event: &EventFd) -> io::Result<()> {
        lock(&self.ports).push((port, value));
        Ok(())
    }

    fn unbind_port(&self, port: u64, value: u8, _event: &EventFd) -> io::Result<()> {
        lock(&self.ports).retain(|bound| *bound != (port, value));
        Ok(())
    }
}

/// Remembers which pages are mapped where.
#[derive(Default)]
pub struct FakeMapper(Mutex<BTreeMap<u64, u64>>);

impl FakeMapper {
    /// `(address, length)` of what is mapped now, sorted.
    #[must_use]
    pub fn mapped(&self) -> Vec<(u64, u64)> {
        lock(&self.0)
            .iter()
            .map(|(addr, len)| (*addr, *len))
            .collect()
    }
}

impl BarMapper for FakeMapper {
    fn map(&self, addr: u64, pages: &Arc<HostPages>) -> io::Result<()> {
        match lock(&self.0).insert(addr, pages.len_bytes()) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn unmap(&self, addr: u64) -> io::Result<()> {
        let was_there = lock(&self.0).remove(&addr).is_some();
        was_there
            .then_some(())
            .ok_or(io::ErrorKind::NotFound.into())
    }
}

/// Remembers which zones are open; what waits is the test's to say.
#[derive(Default)]
pub struct FakePosted {
    zones: Mutex<Vec<PostedZone>>,
    on_deliver: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl FakePosted {
    /// The zones open now, in the order of their opening.
    #[must_use]
    pub fn zones(&self) -> Vec<PostedZone> {
        lock(&self.zones).clone()
    }

    /// Calls `deliver` at each delivery.
    pub fn on_deliver(&self, deliver: impl Fn() + Send + 'static) {
        *lock(&self.on_deliver) = Some(Box::new(deliver));
    }
}

impl PostedWrites for FakePosted {
    fn open(&self, zone: PostedZone) -> io::Result<()> {
        lock(&self.zones).push(zone);
        Ok(())
    }

    fn close(&self, zone: PostedZone) -> io::Result<()> {
        lock(&self.zones).retain(|open| *open != zone);
        Ok(())
    }

    fn deliver(&self) -> usize {
        if let Some(deliver) = &*lock(&self.on_deliver) {
            deliver();
        }
        0
    }
}

/// Remembers what devices asked of the machine.
#[derive(Default)]
pub struct FakePower(Mutex<Vec<PowerEvent>>);

impl FakePower {
    /// The requests since the last call, in order.
    #[must_use]
    pub fn take(&self) -> Vec<PowerEvent> {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl PowerControl for FakePower {
    fn request(&self, event: PowerEvent) {
        lock(&self.0).push(event);
    }
}

/// A device that answers reads with the low byte of their offset, refuses those at [`FakeDevice::REFUSED`], and
/// remembers writes.
#[derive(Default)]
pub struct FakeDevice(Mutex<Vec<(u64, Vec<u8>)>>);

impl FakeDevice {
    /// The offset that cannot be read.
    pub const REFUSED: u64 = 7;

    /// The writes so far: offset and bytes.
    #[must_use]
    pub fn written(&self) -> Vec<(u64, Vec<u8>)> {
        lock(&self.0).clone()
    }
}

impl BusDevice for FakeDevice {
    fn name(&self) -> &str {
        "fake"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if offset == Self::REFUSED {
            return Err(AccessError::InvalidRegister);
        }
        data.fill(offset.to_le_bytes()[0]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        lock(&self.0).push((offset, data.to_vec()));
        Ok(())
    }
}

/// A backend at one end of a line; a test holds the other. Output that the test does not take fills the line's
/// buffer, and is then refused.
pub struct FakeLine {
    stream: UnixStream,
    poll: PollSet,
    watched: Watched,
}

impl FakeLine {
    /// A backend and the far end of its line. Dropping the far end ends the input and breaks the output.
    ///
    /// # Panics
    /// When the host has no sockets left.
    #[must_use]
    pub fn pair() -> (Self, UnixStream) {
        let (stream, far) = UnixStream::pair().expect("socket pair");
        stream.set_nonblocking(true).expect("non-blocking");
        let mut line = Self {
            stream,
            poll: PollSet::new().expect("epoll"),
            watched: Watched::default(),
        };
        line.set_interest(Interest::default()).expect("epoll");
        (line, far)
    }
}

impl CharBackend for FakeLine {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.write(data)
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.stream.read(data)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.poll.fd())
    }

    fn set_interest(&mut self, interest: Interest) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, interest.input);
        flags.set(EventFlags::OUT, interest.output);
        let flags = (!flags.is_empty()).then_some(flags);
        self.poll.watch(&self.stream, &mut self.watched, flags)
    }
}

/// Whether epoll finds `fd` readable now.
///
/// # Panics
/// When `fd` is not one that epoll takes.
#[must_use]
pub fn readable(fd: RawFd) -> bool {
    let epoll = Epoll::new().expect("epoll");
    epoll
        .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
        .expect("a descriptor to watch");
    let mut events = [EpollEvent::default()];
    epoll.wait(0, &mut events).expect("wait") > 0
}

/// Marsaglia's xorshift64: the same sequence in every run.
pub struct Random(u64);

impl Random {
    /// The sequence that follows `seed`, which is not 0.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number; any but 0.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    ///
    /// # Panics
    /// When `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }
}
