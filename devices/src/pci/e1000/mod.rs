//! The Intel 82540EM, 8086:100e ("e1000"), by the PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's
//! Manual, 317453 (sections in this folder are that manual's).
//!
//! # What an access costs, and what is done about it
//!
//! Nearly all of the cost of an emulated NIC is register accesses that exit. Linux's driver makes one to send (TDT), and
//! for an interrupt a read of ICR, a write of IMC, a read of STATUS that only waits for it, writes of RDT and ITR, and
//! a write of IMS with another such read. So:
//!
//! - Frames are sent on the vCPU thread, in the exit that TDT makes: the thread switch that it would take to do so
//!   elsewhere costs more than the system call that sends a frame.
//! - Writes that only store are posted ([`crate::posted`]): EECD, ITR, IMC, RDT and the filter tables.
//!   * IMC takes causes away. A cause arises in an exit or on the event loop, and before both what waits is delivered:
//!     no interrupt can begin that the driver has masked. One whose wire is high already stays high until the driver's
//!     next access, for which its handler has to make one: it reads ICR.
//!   * RDT gives descriptors. They are looked at when a frame comes, on the event loop, after delivery. Only when the
//!     receiver has run out of them and frames wait would nobody look; the device then looks again by a timer.
//!   * ITR, the filter tables and the EEPROM's bus have no effect until something else happens that is no posted write.
//! - IMS is not posted: it must raise an interrupt that is pending at once, and not all drivers read a register
//!   after they wrote it.
//! - Interrupts are moderated as the driver asked for (`moderation`), by a timer on the event loop.
//!
//! # Locks
//!
//! One for the chip and the backend, one for configuration space; they are not held together.

mod chip;
mod eeprom;
mod filter;
mod looped;
mod moderation;
mod offload;
mod phy;
mod registers;
mod ring;
mod rx;
mod stats;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use thiserror::Error;
use vmm_sys_util::timerfd::TimerFd;

use self::chip::{Chip, Effect};
use self::looped::LoopedFrames;
use self::rx::RxOutcome;
use self::tx::TxOutcome;
use super::config::{
    CAP_ID_POWER_MANAGEMENT, COMMAND_INTERRUPT_DISABLE, STATUS as CONFIG_STATUS, overlaps,
};
use super::{BarChange, BarKind, DoorbellSpec, PciConfig, PciConfigError, PciDevice, PciIds};
use crate::bus::AccessError;
use crate::dma::{DmaMem, GuestRam};
use crate::irq::IrqLine;
use crate::net::{MacAddr, NetBackend, NetOffloads};
use crate::ratelimit::RateLimiter;
use crate::rerun::Rerun;
use crate::sync::lock;

const VENDOR: u16 = 0x8086;
const DEVICE: u16 = 0x100e;
/// Vendor and device of the subsystem: the PRO/1000 MT desktop adapter.
const SUBSYSTEM: (u16, u16) = (0x8086, 0x001e);
const REVISION: u8 = 2;

/// The registers in memory space (4.1).
const REGISTERS_BAR: u8 = 0;
const REGISTERS_BYTES: u64 = 0x2_0000;
/// The window to them in I/O space. BAR 1 is that of a Flash memory, which this adapter has not.
const IO_BAR: u8 = 2;
const IO_BYTES: u64 = 64;
const IOADDR: u64 = 0;
const IODATA: u64 = 4;

/// Power management capability (6.3.3): version 2, device-specific initialization; no PME, since nothing here sleeps
/// deeply enough to be woken. PMCSR has the power state.
const POWER_MANAGEMENT: [u8; 6] = [0x22, 0, 0, 0, 0, 0];
const POWER_MANAGEMENT_WRITABLE: [u8; 3] = [0, 0, POWER_STATE];
/// Of the capability's header.
const PMCSR: u16 = 4;
const POWER_STATE: u8 = 0b11;

/// While frames wait for descriptors, the device looks for them this often at first, and ever less.
const FIRST_LOOK_NS: u64 = 500_000;
const LAST_LOOK_NS: u64 = 64_000_000;

/// The device cannot be built.
#[derive(Debug, Error)]
pub enum E1000Error {
    /// The PCI configuration space cannot be built.
    #[error("{name}: {source}")]
    Config {
        /// The device.
        name: String,
        /// Why.
        source: PciConfigError,
    },
    /// The host gives no descriptor or refuses the backend's mode.
    #[error("{name}: cannot {what}: {source}")]
    Host {
        /// The device.
        name: String,
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// Logs what the guest or the host does wrong, within limits.
pub(crate) struct Complaints {
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

/// What the lock guards.
struct State {
    chip: Chip,
    backend: Box<dyn NetBackend>,
    looped: LoopedFrames,
    timer: TimerFd,
    /// When the timer will fire; it may fire earlier than anything is due.
    armed_ns: Option<u64>,
    /// The backend may have frames that it will not announce again.
    frames_waiting: bool,
    /// When to look for descriptors again, and how long after the time before.
    look: Option<(u64, u64)>,
    /// IOADDR.
    io_address: u32,
    /// The function is not in D0.
    asleep: bool,
    /// The interrupt disable bit of the command register.
    intx_disabled: bool,
}

/// An 82540EM as a PCI function.
pub struct E1000 {
    log: Complaints,
    config: Mutex<PciConfig>,
    /// Offset of the power management capability.
    power: u16,
    state: Mutex<State>,
    line: IrqLine,
    dma: DmaMem,
    rerun: Rerun,
    start: Instant,
}

impl E1000 {
    /// A network adapter called `name` with address `mac` between a driver and `backend`: its rings in `ram`, its
    /// interrupt on `line`, wired to pin INTA#.
    ///
    /// # Errors
    /// [`E1000Error`].
    pub fn new(
        name: String,
        mut backend: Box<dyn NetBackend>,
        mac: MacAddr,
        ram: Arc<GuestRam>,
        line: IrqLine,
    ) -> Result<Arc<Self>, E1000Error> {
        let host = |what| {
            let name = name.clone();
            move |source| E1000Error::Host { name, what, source }
        };
        // Checksums that the host has not computed are computed here, in the one pass that checking them takes.
        backend
            .set_offloads(NetOffloads::CSUM)
            .or_else(|_| backend.set_offloads(NetOffloads::empty()))
            .map_err(host("set the offloads"))?;
        let timer = TimerFd::new().map_err(|e| host("create a timer")(e.into()))?;
        let rerun = Rerun::new().map_err(host("create an eventfd"))?;
        let (config, power) = build_config().map_err(|source| E1000Error::Config {
            name: name.clone(),
            source,
        })?;
        Ok(Arc::new(Self {
            log: Complaints {
                device: name,
                limiter: RateLimiter::default(),
            },
            dma: DmaMem::new(ram, config.bus_master()),
            power,
            config: Mutex::new(config),
            state: Mutex::new(State {
                chip: Chip::new(mac),
                backend,
                looped: LoopedFrames::default(),
                timer,
                armed_ns: None,
                frames_waiting: true,
                look: None,
                io_address: 0,
                asleep: false,
                intx_disabled: false,
            }),
            line,
            rerun,
            start: Instant::now(),
        }))
    }

    /// What the event loop is to run for this device.
    #[must_use]
    pub fn subscriber(self: &Arc<Self>) -> E1000Subscriber {
        E1000Subscriber {
            nic: Arc::clone(self),
        }
    }

    /// Plugs the cable in or pulls it: the driver sees the link come up or go down. While it is down, frames from the
    /// backend stay there, and those of the guest are lost. Any thread.
    pub fn set_link(&self, up: bool) {
        let mut state = lock(&self.state);
        state.chip.set_link(up);
        self.sync(&mut state);
        self.rerun.ask();
    }

    /// The backend is ready. Event loop.
    fn process_backend(&self, events: EventSet) {
        let mut state = lock(&self.state);
        if events.contains(EventSet::OUT) && state.chip.tx_blocked() {
            self.transmit(&mut state);
        }
        if events != EventSet::OUT {
            state.frames_waiting = true;
            self.receive(&mut state);
        }
        self.sync(&mut state);
    }

    /// The device asked for another turn. Event loop.
    fn process_rerun(&self) {
        self.rerun.clear(self.rerun.event().0);
        let mut state = lock(&self.state);
        self.receive(&mut state);
        self.transmit(&mut state);
        self.sync(&mut state);
    }

    /// The timer has fired. Event loop.
    fn process_timer(&self) {
        let mut state = lock(&self.state);
        state.armed_ns = None;
        if state.look.is_some_and(|(at, _)| at <= self.now_ns()) {
            self.receive(&mut state);
        }
        self.sync(&mut state);
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Sends what the driver gave. Any thread.
    fn transmit(&self, state: &mut State) {
        let Ok(ram) = self.dma.ram() else {
            return;
        };
        if state.asleep {
            return;
        }
        let loopback = state.chip.loopback();
        let looped_before = state.looped.len();
        let backend: &mut dyn NetBackend = if loopback || !state.chip.connected() {
            &mut state.looped
        } else {
            &mut *state.backend
        };
        let outcome = state
            .chip
            .transmit(ram, backend, &self.log, || self.now_ns());
        if !loopback {
            // Without a link, what was sent is lost.
            state.looped.clear();
        }
        if outcome == TxOutcome::MoreToDo || state.looped.len() > looped_before {
            self.rerun.ask();
        }
    }

    /// Receives what waits. Event loop.
    fn receive(&self, state: &mut State) {
        state.look = state.look.filter(|_| state.frames_waiting);
        let Ok(ram) = self.dma.ram() else {
            return;
        };
        if state.asleep || !state.chip.connected() {
            return;
        }
        let loopback = state.chip.loopback();
        if !loopback && !state.frames_waiting {
            return;
        }
        let backend: &mut dyn NetBackend = if loopback {
            &mut state.looped
        } else {
            &mut *state.backend
        };
        let outcome = state
            .chip
            .receive(ram, backend, &self.log, || self.now_ns());
        if outcome == RxOutcome::MoreToDo {
            self.rerun.ask();
        }
        if loopback {
            return;
        }
        state.frames_waiting = outcome != RxOutcome::Drained;
        state.look = match (outcome, state.look) {
            // A write that gives descriptors may be posted, and nothing else may come to bring it here.
            (RxOutcome::Stalled, look) if state.chip.receives() => {
                let step_ns = look.map_or(FIRST_LOOK_NS, |(_, step_ns)| {
                    step_ns.saturating_mul(2).min(LAST_LOOK_NS)
                });
                Some((self.now_ns().saturating_add(step_ns), step_ns))
            }
            _ => None,
        };
    }

    /// Recomputes the wire and sets the timer.
    fn sync(&self, state: &mut State) {
        let now_ns = if state.chip.interrupts.needs_time() || state.look.is_some() {
            self.now_ns()
        } else {
            0
        };
        let level = state.chip.interrupts.sync(now_ns);
        self.line
            .set(level && !state.intx_disabled && !state.asleep);
        let due = state.chip.interrupts.deadline_ns();
        let look = state.look.map(|(at, _)| at);
        let Some(due_ns) = due.into_iter().chain(look).min() else {
            // An armed timer that nobody needs wakes the event loop once; to stop it costs as much.
            return;
        };
        if state.armed_ns.is_none_or(|armed_ns| due_ns < armed_ns) {
            let delay = Duration::from_nanos(due_ns.saturating_sub(now_ns).max(1));
            match state.timer.reset(delay, None) {
                Ok(()) => state.armed_ns = Some(due_ns),
                Err(error) => self.log.warn(format_args!("timer: {error}")),
            }
        }
    }

    fn read_register(&self, state: &mut State, offset: u32) -> u32 {
        let value = state.chip.read(offset);
        if offset == registers::ICR {
            self.sync(state);
        }
        value
    }

    fn write_register(&self, state: &mut State, offset: u32, value: u32) {
        match state.chip.write(offset, value) {
            Effect::None => {}
            Effect::Transmit => self.transmit(state),
            // The event loop receives; it knows of the descriptors only if it waits for them.
            Effect::Receive if state.frames_waiting || !state.looped.is_empty() => self.rerun.ask(),
            Effect::Receive => {}
        }
        self.sync(state);
    }

    /// The power state changed. Leaving D3 resets the chip (6.3.3.5).
    fn set_power_state(&self, power_state: u8, intx_disabled: bool) {
        let mut state = lock(&self.state);
        state.intx_disabled = intx_disabled;
        let asleep = power_state != 0;
        if std::mem::replace(&mut state.asleep, asleep) && !asleep {
            state.chip.reset();
        }
        self.sync(&mut state);
    }
}

/// Offset of the register, and of the byte in it, that the piece `index` of an access at `offset` is for: `len` bytes
/// within one register.
fn within_register(offset: u64, index: u64, len: usize) -> Result<(u32, usize), AccessError> {
    let offset = offset
        .checked_add(4 * index)
        .filter(|offset| *offset < REGISTERS_BYTES)
        .ok_or(AccessError::InvalidRegister)?;
    let register = u32::try_from(offset & !3).map_err(|_| AccessError::InvalidRegister)?;
    let byte = usize::from(offset.to_le_bytes()[0] & 3);
    if len == 0 || byte + len > 4 {
        return Err(AccessError::InvalidWidth);
    }
    Ok((register, byte))
}

impl E1000 {
    fn registers_read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let mut state = lock(&self.state);
        if state.asleep {
            return Err(AccessError::NotReady);
        }
        // A wider access is a burst of register accesses.
        for (index, part) in (0..).zip(data.chunks_mut(4)) {
            let (register, byte) = within_register(offset, index, part.len())?;
            let value = self.read_register(&mut state, register).to_le_bytes();
            for (to, from) in part.iter_mut().zip(&value[byte..]) {
                *to = *from;
            }
        }
        Ok(())
    }

    fn registers_write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut state = lock(&self.state);
        if state.asleep {
            return Err(AccessError::NotReady);
        }
        for (index, part) in (0..).zip(data.chunks(4)) {
            let (register, _) = within_register(offset, index, part.len())?;
            // Registers are written whole (13.2).
            let value = <[u8; 4]>::try_from(part).map_err(|_| AccessError::InvalidWidth)?;
            self.write_register(&mut state, register, u32::from_le_bytes(value));
        }
        Ok(())
    }

    /// The register that IODATA stands for (13.2.2).
    fn io_target(state: &State) -> Result<u32, AccessError> {
        let target = state.io_address;
        if u64::from(target) < REGISTERS_BYTES && target.is_multiple_of(4) {
            Ok(target)
        } else {
            Err(AccessError::InvalidRegister)
        }
    }

    fn io_read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let mut state = lock(&self.state);
        let value = match (offset, data.len()) {
            (IOADDR, 4) => state.io_address,
            (IODATA, 4) if !state.asleep => {
                let target = Self::io_target(&state)?;
                self.read_register(&mut state, target)
            }
            (IOADDR | IODATA, _) => return Err(AccessError::InvalidWidth),
            _ => return Err(AccessError::InvalidRegister),
        };
        data.copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn io_write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut state = lock(&self.state);
        let value = <[u8; 4]>::try_from(data)
            .map(u32::from_le_bytes)
            .map_err(|_| AccessError::InvalidWidth)?;
        match offset {
            IOADDR => state.io_address = value,
            IODATA if !state.asleep => {
                let target = Self::io_target(&state)?;
                self.write_register(&mut state, target, value);
            }
            _ => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }
}

impl PciDevice for E1000 {
    fn name(&self) -> &str {
        &self.log.device
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let status = overlaps(
            usize::from(offset),
            data.len(),
            usize::from(CONFIG_STATUS),
            2,
        );
        let pending = status && lock(&self.state).chip.interrupts.asserted();
        let mut config = lock(&self.config);
        if status {
            config.set_interrupt_status(pending);
        }
        config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        let mut config = lock(&self.config);
        let bus_master = config.bus_master();
        let was_master = bus_master.load(Ordering::Acquire);
        let changes = config.write(offset, data);
        let disabled = config.command() & COMMAND_INTERRUPT_DISABLE != 0;
        let [power_state, _] = config.read_u16(self.power + PMCSR).to_le_bytes();
        drop(config);
        self.set_power_state(power_state & POWER_STATE, disabled);
        if !was_master && bus_master.load(Ordering::Acquire) {
            // What was given meanwhile was out of reach.
            self.rerun.ask();
        }
        changes
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match bar {
            REGISTERS_BAR => self.registers_read(offset, data),
            IO_BAR => self.io_read(offset, data),
            _ => Err(AccessError::InvalidRegister),
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match bar {
            REGISTERS_BAR => self.registers_write(offset, data),
            IO_BAR => self.io_write(offset, data),
            _ => Err(AccessError::InvalidRegister),
        }
    }

    fn doorbells(&self, _bar: u8) -> Vec<DoorbellSpec> {
        Vec::new()
    }

    fn posted(&self, bar: u8) -> Vec<Range<u32>> {
        if bar != REGISTERS_BAR {
            return Vec::new();
        }
        let one = |offset: u32| offset..offset + 4;
        vec![
            one(registers::EECD),
            one(registers::ITR),
            one(registers::IMC),
            one(registers::RDT),
            registers::MTA..registers::RAL_END,
            registers::VFTA..registers::WUC,
        ]
    }

    fn reset(&self) {
        let mut config = lock(&self.config);
        config.reset();
        drop(config);
        let mut state = lock(&self.state);
        state.chip.power_on();
        state.looped.clear();
        state.frames_waiting = true;
        state.look = None;
        state.io_address = 0;
        state.asleep = false;
        state.intx_disabled = false;
        self.sync(&mut state);
    }
}

/// The configuration space (4.1), and the offset of its power management capability.
fn build_config() -> Result<(PciConfig, u16), PciConfigError> {
    let mut config = PciConfig::new(PciIds {
        vendor: VENDOR,
        device: DEVICE,
        revision: REVISION,
        class: 0x02_00_00,
        subsystem_vendor: SUBSYSTEM.0,
        subsystem: SUBSYSTEM.1,
    });
    config.set_interrupt_pin_a();
    let memory = BarKind::Memory32 {
        prefetchable: false,
    };
    config.add_bar(REGISTERS_BAR, memory, REGISTERS_BYTES)?;
    config.add_bar(IO_BAR, BarKind::Io, IO_BYTES)?;
    let power = config.add_capability(
        CAP_ID_POWER_MANAGEMENT,
        &POWER_MANAGEMENT,
        &POWER_MANAGEMENT_WRITABLE,
    )?;
    Ok((config, power.into()))
}

/// Brings the events of timer and backend to the device. What it watches never changes.
pub struct E1000Subscriber {
    nic: Arc<E1000>,
}

const TIMER: u32 = 0;
const RERUN: u32 = 1;
const BACKEND: u32 = 2;

impl E1000Subscriber {
    /// What statistics call the source of events with this number. Any thread.
    #[must_use]
    pub fn source(data: u32) -> String {
        match data {
            TIMER => "timer",
            RERUN => "rerun",
            _ => "backend",
        }
        .into()
    }
}

impl MutEventSubscriber for E1000Subscriber {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            TIMER => self.nic.process_timer(),
            RERUN => self.nic.process_rerun(),
            _ => self.nic.process_backend(events.event_set()),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let (timer, backend): (RawFd, _) = {
            let state = lock(&self.nic.state);
            (state.timer.as_raw_fd(), state.backend.poll_fd())
        };
        let (rerun, rerun_events) = self.nic.rerun.event();
        let expiry = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let watched = [
            // Each expiry is an edge, read or not: it need never be read.
            Some(Events::with_data_raw(timer, TIMER, expiry)),
            Some(Events::with_data_raw(rerun, RERUN, rerun_events)),
            backend.map(|fd| Events::with_data_raw(fd, BACKEND, edges)),
        ];
        for events in watched.into_iter().flatten() {
            if let Err(error) = ops.add(events) {
                let fd = events.fd();
                log::error!("{}: cannot watch fd {fd}: {error}", self.nic.name());
            }
        }
    }
}
