//! The interrupts of a function: none, INTx, MSI or MSI-X, as the guest has set them, from the host's kernel straight
//! into the guest's.
//!
//! A vector is an eventfd that the host's handler signals and that the hypervisor turns into the guest's message. A
//! vector that the guest never unmasks has neither eventfd nor interrupt on the host. Once it has them it keeps them:
//! masking takes the eventfd from the hypervisor and leaves it with the host, so that what arrives meanwhile is
//! counted in the eventfd, which is the pending bit; and whatever is in it when the guest unmasks the vector is
//! delivered as the hypervisor gets it back. No host interrupt is set up anew for a mask, and nothing is lost.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::host_function::{HostFunction, IrqKind};
use super::overlay::{MsiControl, Overlay};
use crate::bus::AccessError;
use crate::irq::{IrqLine, MsiMessage, MsiSink, MsiVector};
use crate::ratelimit::RateLimiter;
use crate::sync::lock;

/// As [`crate::pci::MSIX_ENTRY_BYTES`].
const ENTRY_BYTES: usize = 16;
const ADDRESS_LOW: usize = 0;
const ADDRESS_HIGH: usize = 4;
const DATA: usize = 8;
const VECTOR_CONTROL: usize = 12;
const VECTOR_CONTROL_MASK: u8 = 1;

/// Which kind of interrupts is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// None: nothing is set up on the host.
    Off,
    /// INTx.
    Intx,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
}

#[derive(Default)]
struct Vector {
    line: Option<Box<dyn MsiVector>>,
    /// What `line` points at; none while it is masked.
    routed: Option<MsiMessage>,
    /// The host signals `line`.
    attached: bool,
}

struct State {
    mode: Mode,
    /// The MSI-X table.
    table: Vec<[u8; ENTRY_BYTES]>,
    function_mask: bool,
    /// Of MSI or MSI-X, whichever is on.
    vectors: Vec<Vector>,
    /// How many vectors the host has room for while MSI-X is on and it cannot make more.
    room: u32,
    /// What INTx is signalled by, and what unmasks it.
    intx: Option<(EventFd, EventFd)>,
}

/// All interrupts of a function.
pub struct Interrupts {
    name: String,
    host: Arc<dyn HostFunction>,
    sink: Arc<dyn MsiSink>,
    line: IrqLine,
    state: Mutex<State>,
    failures: RateLimiter,
}

impl Interrupts {
    /// Off, with an MSI-X table of `msix_count` vectors. `line` is the function's pin, `name` what it is called in
    /// logs.
    #[must_use]
    pub fn new(
        name: String,
        host: Arc<dyn HostFunction>,
        sink: Arc<dyn MsiSink>,
        line: IrqLine,
        msix_count: u16,
    ) -> Self {
        let state = State {
            mode: Mode::Off,
            table: vec![masked_entry(); usize::from(msix_count)],
            function_mask: false,
            vectors: Vec::new(),
            room: 0,
            intx: None,
        };
        Self {
            name,
            host,
            sink,
            line,
            state: Mutex::new(state),
            failures: RateLimiter::default(),
        }
    }

    /// Which kind is on.
    #[must_use]
    pub fn mode(&self) -> Mode {
        lock(&self.state).mode
    }

    /// Follows the guest's configuration space after a write to it. vCPU thread.
    pub fn sync(&self, overlay: &Overlay) {
        let mut state = lock(&self.state);
        let (msix, msi) = (overlay.msix_control(), overlay.msi_control());
        let wanted = if msix.is_some() {
            Mode::Msix
        } else if msi.is_some() {
            Mode::Msi
        } else if overlay.has_intx() && overlay.decodes() {
            Mode::Intx
        } else {
            Mode::Off
        };
        let resized = match (state.mode, msi) {
            (Mode::Msi, Some(msi)) => state.vectors.len() != count_of(&msi),
            _ => false,
        };
        if wanted != state.mode || resized {
            self.switch_off(&mut state);
            let result = match wanted {
                Mode::Off => Ok(()),
                Mode::Intx => self.enable_intx(&mut state),
                Mode::Msi => msi.map_or(Ok(()), |msi| self.enable_msi(&mut state, &msi)),
                Mode::Msix => self.enable_msix(&mut state),
            };
            // Also after an error: it is not tried again at each write to configuration space.
            state.mode = wanted;
            if let Err(error) = result {
                self.complain(&format!("cannot switch to {wanted:?}"), &error);
            }
        }
        if let Some(msix) = msix {
            state.function_mask = msix.function_mask;
            for index in 0..state.vectors.len() {
                self.sync_msix(&mut state, index);
            }
        }
        if let Some(msi) = msi.filter(|_| wanted == Mode::Msi) {
            for (index, vector) in (0..).zip(&mut state.vectors) {
                self.route(vector, msi_message(&msi, index));
            }
        }
    }

    /// Everything off and the table as after power-on. No vCPU runs.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        self.switch_off(&mut state);
        state.function_mask = false;
        state.table.fill(masked_entry());
    }

    /// The messages of MSI that are masked and wait.
    #[must_use]
    pub fn msi_pending(&self) -> u32 {
        let state = lock(&self.state);
        if state.mode != Mode::Msi {
            return 0;
        }
        (0..)
            .zip(&state.vectors)
            .filter(|(_, vector)| vector.pending())
            .fold(0, |bits, (index, _)| bits | 1u32.wrapping_shl(index))
    }

    /// Reads the MSI-X table at `offset`, any width.
    ///
    /// # Errors
    /// [`AccessError::InvalidRegister`] beyond its end.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let state = lock(&self.state);
        let range = range_in(state.table.as_flattened().len(), offset, data.len())?;
        data.copy_from_slice(&state.table.as_flattened()[range]);
        Ok(())
    }

    /// Writes the MSI-X table at `offset`, any width. vCPU thread.
    ///
    /// # Errors
    /// [`AccessError::InvalidRegister`] beyond its end.
    pub fn table_write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut state = lock(&self.state);
        let range = range_in(state.table.as_flattened().len(), offset, data.len())?;
        let entries = range.start / ENTRY_BYTES..range.end.div_ceil(ENTRY_BYTES);
        state.table.as_flattened_mut()[range].copy_from_slice(data);
        for index in entries {
            let entry = &mut state.table[index];
            entry[ADDRESS_LOW] &= !0b11;
            entry[VECTOR_CONTROL] &= VECTOR_CONTROL_MASK;
            entry[VECTOR_CONTROL + 1..].fill(0);
            self.sync_msix(&mut state, index);
        }
        Ok(())
    }

    /// Reads the pending bits of MSI-X at `offset`, any width; zeroes beyond the last vector.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            *byte = 0;
            if state.mode != Mode::Msix {
                continue;
            }
            for (bit, vector) in state.vectors.iter().skip(first).take(8).enumerate() {
                *byte |= u8::from(vector.pending()) << bit;
            }
        }
    }

    fn switch_off(&self, state: &mut State) {
        let result = match std::mem::replace(&mut state.mode, Mode::Off) {
            Mode::Off => Ok(()),
            Mode::Intx => self.disable_intx(state),
            Mode::Msi => self.host.disable(IrqKind::Msi),
            Mode::Msix => self.host.disable(IrqKind::Msix),
        };
        // After the host has let go of their eventfds.
        state.vectors.clear();
        state.room = 0;
        if let Err(error) = result {
            self.complain("cannot switch off", &error);
        }
    }

    fn enable_intx(&self, state: &mut State) -> io::Result<()> {
        let trigger = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let resample = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        self.line.connect(&trigger, &resample)?;
        let (trigger, resample) = state.intx.insert((trigger, resample));
        self.host
            .set_triggers(IrqKind::Intx, 0, &[Some(&*trigger)])?;
        self.host.set_resample(resample)
    }

    fn disable_intx(&self, state: &mut State) -> io::Result<()> {
        let Some((trigger, _)) = state.intx.take() else {
            return Ok(());
        };
        let off = self.host.disable(IrqKind::Intx);
        self.line.disconnect(&trigger)?;
        off
    }

    /// MSI has no vectors to be had later: all are set up now.
    fn enable_msi(&self, state: &mut State, msi: &MsiControl) -> io::Result<()> {
        for index in (0..).take(count_of(msi)) {
            let mut vector = Vector {
                line: Some(self.sink.vector()?),
                ..Vector::default()
            };
            self.route(&mut vector, msi_message(msi, index));
            state.vectors.push(vector);
        }
        let mut count = state.vectors.len();
        loop {
            let triggers: Vec<_> = state.vectors[..count].iter().map(Vector::trigger).collect();
            match self.host.set_triggers(IrqKind::Msi, 0, &triggers) {
                Ok(()) => return Ok(()),
                // The host may have fewer; the function then uses fewer, too.
                Err(error) if count > 1 => {
                    self.complain(&format!("cannot have {count} messages"), &error);
                    count /= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Switches MSI-X on in the hardware without any vector.
    fn enable_msix(&self, state: &mut State) -> io::Result<()> {
        state
            .vectors
            .resize_with(state.table.len(), Vector::default);
        state.room = 1;
        self.host.set_triggers(IrqKind::Msix, 0, &[None])
    }

    /// Follows the mask and the message of an MSI-X vector.
    fn sync_msix(&self, state: &mut State, index: usize) {
        if state.mode != Mode::Msix || index >= state.vectors.len() {
            return;
        }
        let entry = &state.table[index];
        let masked = state.function_mask || entry[VECTOR_CONTROL] & VECTOR_CONTROL_MASK != 0;
        let message = (!masked).then(|| message_in(entry));
        let vector = &mut state.vectors[index];
        if !masked && vector.line.is_none() {
            match self.sink.vector() {
                Ok(line) => vector.line = Some(line),
                Err(error) => {
                    return self.complain(&format!("no route for vector {index}"), &error);
                }
            }
        }
        self.route(vector, message);
        if !masked
            && !vector.attached
            && let Err(error) = self.attach(state, index)
        {
            self.complain(&format!("vector {index} is not to be had"), &error);
        }
    }

    /// Has the host signal a vector of MSI-X.
    fn attach(&self, state: &mut State, index: usize) -> io::Result<()> {
        let number = u32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Not tried again before the guest has switched MSI-X off.
        state.vectors[index].attached = true;
        if number < state.room || self.host.irq(IrqKind::Msix).resizable {
            let trigger = state.vectors[index].trigger();
            return self.host.set_triggers(IrqKind::Msix, number, &[trigger]);
        }
        self.host.disable(IrqKind::Msix)?;
        state.room = number + 1;
        let triggers: Vec<_> = state.vectors[..=index]
            .iter()
            .map(|vector| vector.trigger().filter(|_| vector.attached))
            .collect();
        self.host.set_triggers(IrqKind::Msix, 0, &triggers)
    }

    /// Points a vector at a message, or masks it.
    fn route(&self, vector: &mut Vector, message: Option<MsiMessage>) {
        let Some(line) = &vector.line else {
            return;
        };
        if vector.routed == message {
            return;
        }
        if message.is_none() {
            // What is in it by now has been delivered, though not every kernel takes it out.
            let _ = line.trigger().read();
        }
        match line.route(message) {
            Ok(()) => vector.routed = message,
            Err(error) => {
                vector.routed = None;
                self.complain("cannot route", &error);
            }
        }
    }

    fn complain(&self, what: &str, error: &io::Error) {
        if self.failures.allow() {
            log::warn!("{}: interrupts: {what}: {error}", self.name);
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.reset();
    }
}

impl Vector {
    fn trigger(&self) -> Option<&EventFd> {
        self.line.as_ref().map(|line| line.trigger())
    }

    /// Masked, and signalled since.
    #[allow(unsafe_code)]
    fn pending(&self) -> bool {
        let Some(trigger) = self.trigger().filter(|_| self.routed.is_none()) else {
            return false;
        };
        // SAFETY: the eventfd is open as long as `trigger` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(trigger.as_raw_fd()) };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

fn masked_entry() -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[VECTOR_CONTROL] = VECTOR_CONTROL_MASK;
    entry
}

fn message_in(entry: &[u8; ENTRY_BYTES]) -> MsiMessage {
    let dword =
        |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    MsiMessage {
        address: u64::from(dword(ADDRESS_HIGH)) << 32 | u64::from(dword(ADDRESS_LOW)),
        data: dword(DATA),
    }
}

fn count_of(msi: &MsiControl) -> usize {
    usize::try_from(msi.count).unwrap_or(1)
}

/// Message `index`, whose number the function puts into the low bits of the data; none while it is masked.
fn msi_message(msi: &MsiControl, index: u32) -> Option<MsiMessage> {
    let masked = msi.masked.checked_shr(index).unwrap_or(0) & 1 != 0;
    (!masked).then_some(MsiMessage {
        address: msi.address,
        data: msi.data & !(msi.count - 1) | index,
    })
}

fn range_in(len: usize, offset: u64, wanted: usize) -> Result<std::ops::Range<usize>, AccessError> {
    let start = usize::try_from(offset).map_err(|_| AccessError::InvalidRegister)?;
    let end = start
        .checked_add(wanted)
        .filter(|end| *end <= len)
        .ok_or(AccessError::InvalidRegister)?;
    Ok(start..end)
}
