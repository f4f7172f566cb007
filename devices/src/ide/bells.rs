//! The writes that ring in place of exiting.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bus_master::TO_MEMORY;

/// A write of one value to one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bell {
    /// To the engine's command register, of a value that does not start it.
    Stop(u8),
    /// To the Command register: READ DMA or READ DMA EXT, with which the drive waits for the engine.
    DmaRead(u8),
}

/// All there are.
const BELLS: [Bell; 4] = [
    Bell::Stop(0),
    Bell::Stop(TO_MEMORY),
    Bell::DmaRead(0xc8),
    Bell::DmaRead(0x25),
];

/// The bells of a channel.
pub struct Bells {
    /// The events are only ever written: each time is an edge, which this set tells once.
    set: Epoll,
    events: [(Bell, Arc<EventFd>); BELLS.len()],
}

impl Bells {
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let set = Epoll::new()?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        let [a, b, c, d] = BELLS;
        let events = [(a, event()?), (b, event()?), (c, event()?), (d, event()?)];
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (index, (_, event)) in (0..).zip(&events) {
            let interest = EpollEvent::new(edges, index);
            set.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        }
        Ok(Self { set, events })
    }

    /// Those that have rung since the last call, in that order.
    pub fn rung(&self) -> impl Iterator<Item = Bell> + use<> {
        let mut ready = [EpollEvent::default(); BELLS.len()];
        // It can only fail for want of a call that was not interrupted, and does not wait.
        let count = self.set.wait(0, &mut ready).unwrap_or(0);
        ready
            .into_iter()
            .take(count)
            .filter_map(|event| BELLS.get(usize::try_from(event.data()).ok()?).copied())
    }

    /// Each, and what it signals.
    pub fn iter(&self) -> impl Iterator<Item = (Bell, &Arc<EventFd>)> {
        self.events.iter().map(|(bell, event)| (*bell, event))
    }

    /// Rings it, as the guest does.
    #[cfg(test)]
    pub fn ring(&self, bell: Bell) {
        let (_, event) = self.iter().find(|(one, _)| *one == bell).unwrap();
        event.write(1).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ring_is_told_once_and_in_order() {
        let bells = Bells::new().unwrap();
        let rung = || bells.rung().collect::<Vec<_>>();
        assert_eq!(rung(), []);
        for _ in 0..3 {
            bells.ring(Bell::DmaRead(0x25));
            bells.ring(Bell::Stop(0));
            bells.ring(Bell::DmaRead(0x25));
            assert_eq!(rung(), [Bell::DmaRead(0x25), Bell::Stop(0)]);
            assert_eq!(rung(), []);
        }
    }
}
