//! The serial port: a 16550A chip, its interrupt, and the port at the other end of the line.
//!
//! `vm-superio`'s serial port is not used as the chip: it has no FIFO control register (so no trigger level and no
//! FIFO reset), no overrun, no gate by OUT2, answers an interrupt by whichever register is read first, and tells
//! only of rising edges, while the wire here has a level.
//!
//! Output goes to the [`Port`] on the vCPU thread, which never blocks there. When the port is full, the transmitter
//! is busy until there is room: a driver that looks waits, as at a slow line. Linux's kernel console looks ten thousand
//! times at the line status and then writes all the same; real hardware would lose that character. Here the vCPU
//! rests at each of these looks, so that it does not use up a host CPU, and is held in its write until there is room,
//! or until it is [called back](Recall): nothing is lost.
//!
//! While much is sent, characters are [posted](posting): written without an exit each.
//!
//! Input is read ahead on the event loop and moves into the chip's FIFO as the guest empties it.

mod chip;
mod posting;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Reset;
use crate::bus::{AccessError, BusDevice};
use crate::console::Port;
use crate::irq::IrqLine;
use crate::posted::PostedWrites;
use crate::recall::Recall;
use crate::sync::lock;
use chip::{Chip, LSR};
use posting::Posting;

/// So many looks in a row at the line status of a port that is full are a driver that polls.
const QUICK_LOOKS: u32 = 32;
/// How long each further look takes, unless there is room before.
const REST: Duration = Duration::from_millis(10);

struct State {
    chip: Chip,
    port: Port,
    posting: Option<Posting>,
    /// A vCPU waits for room.
    held: bool,
    /// Looks in a row at the line status while the port is full and there is no input.
    looks: u32,
}

/// A serial port. Eight ports, interrupt level high while the chip asks for service and OUT2 is set.
pub struct Uart16550 {
    name: String,
    state: Mutex<State>,
    irq: IrqLine,
    recall: Arc<Recall>,
}

impl State {
    /// An access other than a character to be sent has been made.
    fn accessed(&mut self) {
        if let Some(posting) = &mut self.posting {
            posting.accessed();
            if !self.chip.sends_characters() {
                posting.close();
            }
        }
    }

    fn stop_posting(&mut self) {
        if let Some(posting) = &mut self.posting {
            posting.close();
        }
    }
}

impl Uart16550 {
    /// Ports it takes.
    pub const PORT_COUNT: u64 = 8;

    /// A port called `name` (`com1`), with its interrupt on `irq` and its line connected to `port`. vCPUs for whose
    /// output there is no room wait at `recall`.
    #[must_use]
    pub fn new(name: impl Into<String>, irq: IrqLine, port: Port, recall: Arc<Recall>) -> Self {
        Self {
            name: name.into(),
            state: Mutex::new(State {
                chip: Chip::new(),
                port,
                posting: None,
                held: false,
                looks: 0,
            }),
            irq,
            recall,
        }
    }

    /// Lets characters be posted in `writes` while many are sent; the port's first address is `start`.
    ///
    /// # Errors
    /// No timerfd is to be had.
    pub fn with_posting(self, writes: Arc<dyn PostedWrites>, start: u64) -> io::Result<Self> {
        let posting = Posting::new(writes, start)?;
        lock(&self.state).posting = Some(posting);
        Ok(self)
    }

    /// The event-loop side, to be added to the event loop once.
    #[must_use]
    pub fn subscriber(self: &Arc<Self>) -> UartEvents {
        UartEvents(Arc::clone(self))
    }

    /// Moves input into the chip and recomputes the wire.
    fn sync(&self, state: &mut State) {
        while state.port.has_input() && state.chip.receiver_space() > 0 {
            if let Some(byte) = state.port.receive_byte() {
                state.chip.receive(byte);
            }
        }
        self.irq.set(state.chip.interrupt());
    }

    /// The guest is about to read a register. Lets a driver that polls for room rest. vCPU thread.
    fn lock_to_read(&self, register: u8) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        if register != LSR || !state.port.is_full() || state.chip.has_received() {
            state.looks = 0;
            return state;
        }
        if state.looks < QUICK_LOOKS {
            state.looks += 1;
            return state;
        }
        let since = self.recall.now();
        state.held = true;
        drop(state);
        self.recall.wait_for(since, REST);
        lock(&self.state)
    }

    /// Sends a character that the chip has handed out. vCPU thread.
    fn transmit<'a>(&'a self, mut state: MutexGuard<'a, State>, byte: u8) {
        while state.port.send(&[byte]) == 0 {
            // Not here while characters are posted, of which some may be delivered on the event loop: the port has
            // room for those that wait when it becomes full.
            let since = self.recall.now();
            state.held = true;
            drop(state);
            let go_on = self.recall.wait(since);
            state = lock(&self.state);
            if !go_on {
                state.port.force(&[byte]);
                break;
            }
        }
        if state.port.is_full() {
            state.stop_posting();
        } else {
            state.chip.transmitted();
            if let Some(posting) = &mut state.posting {
                posting.sent();
            }
        }
        self.sync(&mut state);
    }

    /// The timer of the posted characters, which have been delivered. Event loop.
    fn tick(&self) {
        let state = &mut *lock(&self.state);
        if let Some(posting) = &mut state.posting {
            posting.tick(state.chip.asks_for_characters());
        }
    }

    /// Serves the port. Event loop.
    fn serve(&self) {
        let mut state = lock(&self.state);
        state.port.serve();
        if !state.port.is_full() {
            if state.chip.is_transmitting() {
                state.chip.transmitted();
            }
            if std::mem::take(&mut state.held) {
                self.recall.tell();
            }
        }
        self.sync(&mut state);
    }
}

/// The register that byte `index` of an access at `offset` is for: a wide access goes out as bytes on an 8-bit bus.
fn register(offset: u64, index: usize) -> Result<u8, AccessError> {
    offset
        .checked_add(index as u64)
        .and_then(|offset| u8::try_from(offset).ok())
        .filter(|offset| u64::from(*offset) < Uart16550::PORT_COUNT)
        .ok_or(AccessError::InvalidRegister)
}

impl BusDevice for Uart16550 {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        for (index, byte) in data.iter_mut().enumerate() {
            let register = register(offset, index)?;
            let mut state = self.lock_to_read(register);
            *byte = state.chip.read(register);
            state.accessed();
            self.sync(&mut state);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        for (index, byte) in data.iter().enumerate() {
            let register = register(offset, index)?;
            let mut state = lock(&self.state);
            state.looks = 0;
            match state.chip.write(register, *byte) {
                // The wire is left as it is until the character is sent: it would fall and rise again.
                Some(byte) => self.transmit(state, byte),
                None => {
                    state.accessed();
                    self.sync(&mut state);
                }
            }
        }
        Ok(())
    }
}

impl Reset for Uart16550 {
    /// Input that the guest has not read yet stays on the line, and so does output.
    fn reset(&self) {
        let mut state = lock(&self.state);
        state.chip.reset();
        if let Some(posting) = &mut state.posting {
            posting.reset();
        }
        self.sync(&mut state);
    }
}

/// What an event is of.
const PORT: u32 = 0;
const TIMER: u32 = 1;

/// The event-loop side of a [`Uart16550`].
pub struct UartEvents(Arc<Uart16550>);

impl UartEvents {
    /// What statistics call the source of events with this number. Any thread.
    #[must_use]
    pub fn source(data: u32) -> String {
        match data {
            TIMER => "timer",
            _ => "port",
        }
        .into()
    }
}

impl MutEventSubscriber for UartEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let state = lock(&self.0.state);
        let port = state.port.poll_fd().map(|fd| (fd, PORT));
        let timer = state.posting.as_ref().map(|p| (p.timer_fd(), TIMER));
        for (fd, data) in port.into_iter().chain(timer) {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
                log::error!("{}: input and output may stop: {error}", self.0.name);
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data() {
            TIMER => self.0.tick(),
            _ => self.0.serve(),
        }
    }
}

#[cfg(test)]
mod tests;
