//! Fakes for tests: wires, an MSI sink, doorbells, RAM.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::CharBackend;
use crate::dma::GuestRam;
use crate::irq::{Doorbell, IrqLine, IrqPin, MsiMessage, MsiSink, MsiVector};
use crate::legacy::{PowerControl, PowerEvent};

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
}

impl FakePin {
    /// A wire and the fake pin at its end.
    #[must_use]
    pub fn line() -> (IrqLine, Arc<Self>) {
        let pin = Arc::new(Self::default());
        (IrqLine::new(Box::new(PinRef(Arc::clone(&pin)))), pin)
    }

    /// The level now.
    #[must_use]
    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }

    /// How often the wire went from low to high.
    #[must_use]
    pub fn rising_edges(&self) -> u32 {
        self.edges.load(Ordering::SeqCst)
    }
}

struct PinRef(Arc<FakePin>);

impl IrqPin for PinRef {
    fn set_level(&self, high: bool) {
        if !self.0.level.swap(high, Ordering::SeqCst) && high {
            self.0.edges.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Collects messages sent, and hands out vectors whose eventfds a test can read.
#[derive(Default)]
pub struct FakeMsiSink {
    sent: Mutex<Vec<MsiMessage>>,
    vectors: Mutex<Vec<Arc<FakeVector>>>,
}

impl FakeMsiSink {
    /// All messages sent directly so far.
    #[must_use]
    pub fn sent(&self) -> Vec<MsiMessage> {
        self.sent.lock().expect("lock").clone()
    }

    /// The vectors handed out, in order.
    #[must_use]
    pub fn vectors(&self) -> Vec<Arc<FakeVector>> {
        self.vectors.lock().expect("lock").clone()
    }
}

/// One vector of a [`FakeMsiSink`].
pub struct FakeVector {
    route: Mutex<Option<MsiMessage>>,
    event: EventFd,
}

impl FakeVector {
    /// Where it points now; none when masked.
    #[must_use]
    pub fn message(&self) -> Option<MsiMessage> {
        *self.route.lock().expect("lock")
    }

    /// How often it was raised since the last call.
    #[must_use]
    pub fn take_raised(&self) -> u64 {
        self.event.read().unwrap_or(0)
    }
}

struct VectorRef(Arc<FakeVector>);

impl MsiVector for VectorRef {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.0.route.lock().expect("lock") = message;
        Ok(())
    }

    fn trigger(&self) -> &EventFd {
        &self.0.event
    }
}

impl MsiSink for FakeMsiSink {
    fn send(&self, message: MsiMessage) -> io::Result<()> {
        self.sent.lock().expect("lock").push(message);
        Ok(())
    }

    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        let vector = Arc::new(FakeVector {
            route: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        self.vectors.lock().expect("lock").push(Arc::clone(&vector));
        Ok(Box::new(VectorRef(vector)))
    }
}

/// Remembers which addresses are bound.
#[derive(Default)]
pub struct FakeDoorbell(Mutex<Vec<u64>>);

impl FakeDoorbell {
    /// The addresses bound now, sorted.
    #[must_use]
    pub fn bound(&self) -> Vec<u64> {
        let mut addrs = self.0.lock().expect("lock").clone();
        addrs.sort_unstable();
        addrs
    }
}

impl Doorbell for FakeDoorbell {
    fn bind(&self, addr: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().expect("lock").push(addr);
        Ok(())
    }

    fn unbind(&self, addr: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().expect("lock").retain(|bound| *bound != addr);
        Ok(())
    }
}

/// Remembers what devices asked of the machine.
#[derive(Default)]
pub struct FakePower(Mutex<Vec<PowerEvent>>);

impl FakePower {
    /// The requests since the last call, in order.
    #[must_use]
    pub fn take(&self) -> Vec<PowerEvent> {
        std::mem::take(&mut *self.0.lock().expect("lock"))
    }
}

impl PowerControl for FakePower {
    fn request(&self, event: PowerEvent) {
        self.0.lock().expect("lock").push(event);
    }
}

/// One end of a line; a test holds the other. Output that the test does not take fills the line's buffer, and is
/// then an error.
pub struct FakeLine(UnixStream);

impl FakeLine {
    /// A backend and the far end of its line. Dropping the far end ends the input and breaks the output.
    ///
    /// # Panics
    /// When the host has no sockets left.
    #[must_use]
    pub fn pair() -> (Self, UnixStream) {
        let (near, far) = UnixStream::pair().expect("socket pair");
        near.set_nonblocking(true).expect("non-blocking");
        (Self(near), far)
    }
}

impl CharBackend for FakeLine {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.write_all(data)
    }

    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.0.read(data)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
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
