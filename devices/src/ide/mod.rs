//! IDE: a PIIX3-like PCI function in compatibility mode with two channels of two drives, disks and CD-ROMs.
//!
//! After ATA/ATAPI-6 (T13/1410D), "Programming Interface for Bus Master IDE Controller" 1.0, and the datasheet of the
//! 82371SB (PIIX3). The channels have the PC's fixed ports and ISA interrupts, which the caller wires; the bus-master
//! registers are in BAR 4.
//!
//! Costs: most writes of a driver only store, and cost no exit to this process. The task file except for the Command
//! register ([`Ide::POSTED_PORTS`]), and the status and table registers of BAR 4 are posted. Two registers need a closer
//! look: of the engine's command register all values that do not start it, and of the Command register READ DMA, with
//! which the drive only waits for the engine, are doorbells, at which the next access looks first. So a 4 KiB read by
//! Linux's `ata_piix` costs 14 exits in place of 26: its 13 register reads, and the start of the engine.
//!
//! The start is an exit because the read is made in it if the host has the data in memory
//! ([`BlockBackend::read_now`]): the guest has data and interrupt when it goes on, does not go to sleep, and no other
//! thread takes part. What must wait for the medium, and all that is not a short read, goes to the backends and is
//! waited for on the event loop.
//!
//! So the event loop has nothing to do with a READ DMA. Only when a driver starts the engine first, and writes the command
//! then, would nobody look: from such a start on, the event loop watches the doorbell.
//!
//! A doorbell's signal is no part of the order of posted writes, so it takes effect after all those that are delivered
//! with it. It matters only to who writes the task file for another command with not one access between it and a READ
//! DMA, while the drive must be taken to be busy; no driver does that.
//!
//! A guest's write that puts an end to a request under way (software reset, stop of the engine, bus mastering off) waits
//! until it has finished, and takes effect then: as if it had been made a little later. So nothing is lost or done
//! twice, and no memory is touched afterwards.

mod bells;
mod bus_master;
mod cdrom;
mod channel;
mod disk;
mod drive;
mod identify;
mod registers;
mod subscriber;

#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use thiserror::Error;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::block::{BlockBackend, BlockCompletion, BlockError, BlockInfo, BlockOp, BlockRequest};
use crate::bus::{AccessError, BusDevice, Region};
use crate::dma::{DmaMem, GuestRam};
use crate::irq::IrqLine;
use crate::pci::config::COMMAND_IO_SPACE;
use crate::pci::{
    BarChange, BarKind, DoorbellSpec, PciConfig, PciConfigError, PciDevice, PciIds, PortDoorbell,
};
use crate::ratelimit::RateLimiter;
use crate::sync::lock;
use bells::{Bell, Bells};
use bus_master::CHANNEL_BYTES;
use channel::Channel;
use drive::{BUFFER_BYTES, Drive, Kind};

pub use subscriber::IdeSubscriber;

/// An 82371SB's IDE function, in compatibility mode, with bus mastering.
const IDS: PciIds = PciIds {
    vendor: 0x8086,
    device: 0x7010,
    revision: 0,
    class: 0x01_01_80,
    subsystem_vendor: 0,
    subsystem: 0,
};
/// The bus-master registers' BAR.
const BAR: u8 = 4;
const BAR_BYTES: u64 = CHANNELS as u64 * CHANNEL_BYTES as u64;
const CHANNELS: usize = 2;
/// What statistics call them.
const CHANNEL_NAMES: [&str; CHANNELS] = ["primary", "secondary"];
const DRIVES: usize = 2;
/// IDE timing, 16 bits for each channel, and slave timing, 8 bits (PIIX3, 2.3.14 and 2.3.15).
const IDETIM: u16 = 0x40;
const SIDETIM: u16 = 0x44;
/// IDETIM: the channel's ports are decoded.
const DECODE: u16 = 1 << 15;
/// The longest read that a vCPU thread makes itself.
const SHORT_BYTES: u64 = 128 << 10;
/// What a drive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdeDriveKind {
    /// A hard disk, with sectors of 512 bytes.
    Disk,
    /// A CD-ROM, with blocks of 2048 bytes.
    Cdrom,
}

/// Why a disk or image cannot be an IDE drive. Each text continues a line that names it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdeMediumError {
    /// Its blocks are larger than a sector.
    #[error("has blocks of {0} bytes, and IDE has 512: use if=virtio, or leave out direct=on")]
    BlockSize(u32),
    /// Not whole blocks of a CD.
    #[error(
        "is {0} bytes long, which no image of a CD is: those are multiples of 2048; is it complete?"
    )]
    CdromSize(u64),
    /// More blocks than a CD-ROM can address.
    #[error("is {0} bytes long: a CD-ROM has at most 8T")]
    CdromTooLarge(u64),
}

impl IdeDriveKind {
    /// Whether a medium described by `info` will do.
    ///
    /// # Errors
    /// [`IdeMediumError`].
    pub fn check(self, info: &BlockInfo) -> Result<(), IdeMediumError> {
        if u64::from(info.logical_block_bytes) > registers::SECTOR_BYTES {
            return Err(IdeMediumError::BlockSize(info.logical_block_bytes));
        }
        let size = info.size_bytes;
        match self {
            Self::Disk => Ok(()),
            Self::Cdrom if !size.is_multiple_of(cdrom::BLOCK_BYTES) => {
                Err(IdeMediumError::CdromSize(size))
            }
            Self::Cdrom if size / cdrom::BLOCK_BYTES > u64::from(u32::MAX) => {
                Err(IdeMediumError::CdromTooLarge(size))
            }
            Self::Cdrom => Ok(()),
        }
    }
}

/// Why the function could not be made.
#[derive(Debug, Error)]
pub enum IdeError {
    /// The PCI configuration space cannot be built.
    #[error("ide: {0}")]
    Config(#[from] PciConfigError),
    /// The host refused memory or descriptors.
    #[error("ide: {0}")]
    Host(#[from] io::Error),
}

/// A drive and what is behind it.
pub struct IdeDrive {
    /// What it is. [`IdeDriveKind::check`] has nothing against the backend.
    pub kind: IdeDriveKind,
    /// Its sectors.
    pub backend: Box<dyn BlockBackend>,
    /// What it says its serial number is, cut to 20 characters.
    pub serial: String,
}

/// A channel with its backends.
struct Unit {
    chip: Channel,
    backends: [Option<Box<dyn BlockBackend>>; DRIVES],
    done: Vec<BlockCompletion>,
}

/// The function. Locks: a channel's is not held together with the other's or with that of configuration space.
pub struct Ide {
    name: String,
    config: Mutex<PciConfig>,
    /// Whether each channel's ports are decoded.
    decoded: [AtomicBool; CHANNELS],
    units: [Mutex<Unit>; CHANNELS],
    lines: [IrqLine; CHANNELS],
    dma: DmaMem,
    /// Signalled on vCPU threads when a channel has work for the event loop.
    work: [EventFd; CHANNELS],
    /// Rung by the guest.
    bells: [Bells; CHANNELS],
    /// The event loop is to watch for a [`Bell::DmaRead`].
    watch_reads: [AtomicBool; CHANNELS],
    host_errors: RateLimiter,
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

fn unit(drives: [Option<IdeDrive>; DRIVES]) -> io::Result<Unit> {
    let mut chips = [None, None];
    let mut backends = [None, None];
    for (index, drive) in drives.into_iter().enumerate() {
        let Some(IdeDrive {
            kind,
            backend,
            serial,
        }) = drive
        else {
            continue;
        };
        let kind = match kind {
            IdeDriveKind::Disk => Kind::Disk,
            IdeDriveKind::Cdrom => Kind::Cdrom(cdrom::Cdrom::default()),
        };
        let buffer =
            GuestRam::from_ranges(&[(GuestAddress(0), BUFFER_BYTES)]).map_err(io::Error::other)?;
        let info = backend.info().clone();
        chips[index] = Some(Drive::new(kind, info, serial, Arc::new(buffer)));
        backends[index] = Some(backend);
    }
    Ok(Unit {
        chip: Channel::new(chips),
        backends,
        done: Vec::new(),
    })
}

impl Ide {
    /// Ports of a channel's command block.
    pub const COMMAND_PORTS: u64 = 8;
    /// Ports of a channel's control block.
    pub const CONTROL_PORTS: u64 = 1;
    /// Where in the command block writes only store and may be posted ([`crate::posted`]). Who then lets a drive with
    /// an interrupt pending be selected sees the wire rise with the next access; every driver makes one, as it must
    /// give the drive time.
    pub const POSTED_PORTS: Range<u32> = 1..7;
    /// Most drives.
    pub const MAX_DRIVES: usize = CHANNELS * DRIVES;

    /// A function called `name` with `drives` as primary master, primary slave, secondary master, secondary slave, in
    /// that order, its DMA in `ram`, and the interrupts of the two channels on `lines`.
    ///
    /// # Errors
    /// [`IdeError`].
    pub fn new(
        name: String,
        drives: [Option<IdeDrive>; Self::MAX_DRIVES],
        ram: Arc<GuestRam>,
        lines: [IrqLine; CHANNELS],
    ) -> Result<Arc<Self>, IdeError> {
        let [a, b, c, d] = drives;
        let units = [unit([a, b])?, unit([c, d])?];
        let mut config = PciConfig::new(IDS);
        config.add_bar(BAR, BarKind::Io, BAR_BYTES)?;
        // As firmware would leave it: the ports of a channel without drives are not decoded, and no driver looks there.
        let timing = |unit: &Unit| if unit.chip.populated() { DECODE } else { 0 };
        for (offset, unit) in [IDETIM, IDETIM + 2].into_iter().zip(&units) {
            config.add_registers(offset, &timing(unit).to_le_bytes(), &[0xff; 2]);
        }
        config.add_registers(SIDETIM, &[0], &[0xff]);
        Ok(Arc::new(Self {
            name,
            dma: DmaMem::new(ram, config.bus_master()),
            config: Mutex::new(config),
            decoded: Default::default(),
            units: units.map(Mutex::new),
            lines,
            work: [event()?, event()?],
            bells: [Bells::new()?, Bells::new()?],
            watch_reads: Default::default(),
            host_errors: RateLimiter::default(),
        }))
    }

    /// What the event loop is to run.
    #[must_use]
    pub fn subscriber(self: &Arc<Self>) -> IdeSubscriber {
        IdeSubscriber::new(Arc::clone(self))
    }

    /// The command block of channel `index` (0 or 1), for the PC's ports 0x1f0 or 0x170: [`Ide::COMMAND_PORTS`].
    #[must_use]
    pub fn command_block(self: &Arc<Self>, index: usize) -> Arc<dyn BusDevice> {
        Arc::new(CommandBlock {
            ide: Arc::clone(self),
            channel: index % CHANNELS,
        })
    }

    /// The control block of channel `index` (0 or 1), for the PC's ports 0x3f6 or 0x376: [`Ide::CONTROL_PORTS`].
    #[must_use]
    pub fn control_block(self: &Arc<Self>, index: usize) -> Arc<dyn BusDevice> {
        Arc::new(ControlBlock {
            ide: Arc::clone(self),
            channel: index % CHANNELS,
        })
    }

    /// The commands that channel `index` (0 or 1) takes by events in place of exits: the offset in its command block
    /// at which a byte is written, its value, and what that write is to signal. The order among these and other
    /// accesses is kept, however late the event is looked at: each access looks first.
    pub fn doorbells(&self, index: usize) -> impl Iterator<Item = (u64, u8, &EventFd)> {
        let bells = self.bells[index % CHANNELS].iter();
        bells.filter_map(|(bell, event)| match bell {
            Bell::DmaRead(command) => Some((u64::from(registers::STATUS), command, &**event)),
            Bell::Stop(_) => None,
        })
    }

    /// The end of a run: what is under way finishes. Any thread.
    pub fn shutdown(&self) {
        for channel in 0..CHANNELS {
            self.settle(&mut lock(&self.units[channel]));
        }
    }

    fn unit(&self, channel: usize) -> MutexGuard<'_, Unit> {
        lock(&self.units[channel])
    }

    fn decodes(&self, channel: usize) -> bool {
        self.decoded[channel].load(Ordering::Acquire)
    }

    /// Follows configuration space, whose lock is held.
    fn update_decoding(&self, config: &PciConfig) {
        for (offset, decoded) in [IDETIM, IDETIM + 2].into_iter().zip(&self.decoded) {
            let on = config.command() & COMMAND_IO_SPACE != 0;
            decoded.store(
                on && config.read_u16(offset) & DECODE != 0,
                Ordering::Release,
            );
        }
    }

    /// The end of each access: the wire, and work for the event loop.
    fn sync(&self, channel: usize, unit: &mut Unit) {
        if self.begin(unit) {
            // It fails only when the counter is full, and then the event is there already.
            let _ = self.work[channel].write(1);
        }
        self.lines[channel].set(unit.chip.sync());
    }

    /// Hands what a channel wants to its backends. A short read is done here and now if it can be, so that the guest
    /// has its data and the interrupt before it goes on; says whether there is anything left for the event loop.
    fn begin(&self, unit: &mut Unit) -> bool {
        let Unit { chip, backends, .. } = unit;
        let (mut may_read, mut submitted) = (true, false);
        while let Some((index, request)) = chip.next_request(&self.dma) {
            let Some(backend) = backends.get_mut(index).and_then(Option::as_mut) else {
                chip.complete(index, Err(BlockError::Unsupported));
                continue;
            };
            if std::mem::take(&mut may_read) && short_read(&request) && backend.read_now(&request) {
                chip.complete(index, Ok(()));
            } else {
                backend.submit(request);
                submitted = true;
            }
        }
        submitted
    }

    /// Event loop: starts what a channel wants and takes what has finished.
    fn run(&self, channel: usize) {
        let mut unit = self.access(channel);
        let Unit {
            chip,
            backends,
            done,
        } = &mut *unit;
        loop {
            while let Some((index, request)) = chip.next_request(&self.dma) {
                match backends.get_mut(index).and_then(Option::as_mut) {
                    Some(backend) => backend.submit(request),
                    None => chip.complete(index, Err(BlockError::Unsupported)),
                }
            }
            for backend in backends.iter_mut().flatten() {
                backend.poll(done);
            }
            if done.is_empty() {
                break;
            }
            self.finish(chip, done);
        }
        self.lines[channel].set(chip.sync());
    }

    fn finish(&self, chip: &mut Channel, done: &mut Vec<BlockCompletion>) {
        for completion in done.drain(..) {
            if let Err(error @ BlockError::Io(_)) = &completion.result
                && self.host_errors.allow()
            {
                log::warn!("{}: drive {}: {error}", self.name, completion.token);
            }
            if let Ok(index) = usize::try_from(completion.token) {
                chip.complete(index, completion.result);
            }
        }
    }

    /// Waits until nothing is with a backend.
    fn settle(&self, unit: &mut Unit) {
        if !unit.chip.running() {
            return;
        }
        for backend in unit.backends.iter_mut().flatten() {
            backend.drain(&mut unit.done);
        }
        let mut done = std::mem::take(&mut unit.done);
        self.finish(&mut unit.chip, &mut done);
        unit.done = done;
    }

    /// The channel, with all that its doorbells told done to its registers.
    fn access(&self, channel: usize) -> MutexGuard<'_, Unit> {
        let mut unit = self.unit(channel);
        for bell in self.bells[channel].rung() {
            match bell {
                Bell::Stop(value) => {
                    self.engine_write(channel, &mut unit, bus_master::COMMAND, value);
                }
                Bell::DmaRead(command) if self.decodes(channel) => {
                    unit.chip.write(registers::STATUS, command);
                }
                Bell::DmaRead(_) => {}
            }
        }
        unit
    }

    fn engine_write(&self, channel: usize, unit: &mut Unit, offset: u8, value: u8) {
        if offset == bus_master::COMMAND && unit.chip.engine_ends(value) {
            self.settle(unit);
            // The wire rises before the stop, for the engine to see.
            self.lines[channel].set(unit.chip.sync());
        }
        unit.chip.engine.write(offset, value);
        if unit.chip.engine_is_first() && !self.watch_reads[channel].swap(true, Ordering::AcqRel) {
            let _ = self.work[channel].write(1);
        }
    }
}

/// Whether copying is all that a read of data in memory takes.
fn short_read(request: &BlockRequest) -> bool {
    let lens = request.segments.iter().map(|&(_, len)| u64::from(len));
    request.op == BlockOp::Read && lens.sum::<u64>() <= SHORT_BYTES
}

/// The channel and register of byte `index` of an access at `offset` of BAR 4.
fn engine_register(offset: u64, index: usize) -> Result<(usize, u8), AccessError> {
    let at = offset
        .checked_add(index as u64)
        .filter(|at| *at < BAR_BYTES)
        .and_then(|at| u8::try_from(at).ok())
        .ok_or(AccessError::InvalidRegister)?;
    Ok((usize::from(at / CHANNEL_BYTES), at % CHANNEL_BYTES))
}

impl PciDevice for Ide {
    fn name(&self) -> &str {
        &self.name
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<BarChange> {
        for channel in 0..CHANNELS {
            // What came before is done as things were.
            let mut unit = self.access(channel);
            self.sync(channel, &mut unit);
        }
        let mut config = lock(&self.config);
        let was_master = self.dma.ram().is_ok();
        let changes = config.write(offset, data);
        self.update_decoding(&config);
        drop(config);
        let is_master = self.dma.ram().is_ok();
        if was_master != is_master {
            for channel in 0..CHANNELS {
                let mut unit = self.unit(channel);
                if !is_master {
                    self.settle(&mut unit);
                }
                self.sync(channel, &mut unit);
            }
        }
        changes
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        for (index, byte) in data.iter_mut().enumerate() {
            let (channel, register) = engine_register(offset, index)?;
            let mut unit = self.access(channel);
            self.sync(channel, &mut unit);
            *byte = unit.chip.engine.read(register);
        }
        Ok(())
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        for (index, byte) in data.iter().enumerate() {
            let (channel, register) = engine_register(offset, index)?;
            let mut unit = self.access(channel);
            self.engine_write(channel, &mut unit, register, *byte);
            self.sync(channel, &mut unit);
        }
        Ok(())
    }

    fn doorbells(&self, _bar: u8) -> Vec<DoorbellSpec> {
        Vec::new()
    }

    fn port_doorbells(&self, _bar: u8) -> Vec<PortDoorbell> {
        let command = u64::from(bus_master::COMMAND);
        let bases = (0..).step_by(CHANNEL_BYTES.into());
        let stop = |base, (bell, event): (_, &Arc<EventFd>)| match bell {
            Bell::Stop(value) => Some(PortDoorbell {
                offset: base + command,
                value,
                event: Arc::clone(event),
            }),
            Bell::DmaRead(_) => None,
        };
        bases
            .zip(&self.bells)
            .flat_map(|(base, bells)| bells.iter().filter_map(move |bell| stop(base, bell)))
            .collect()
    }

    fn posted(&self, _bar: u8) -> Vec<Range<u32>> {
        (0..)
            .step_by(CHANNEL_BYTES.into())
            .take(CHANNELS)
            .flat_map(|base: u32| {
                let registers = [
                    u32::from(bus_master::STATUS)..u32::from(bus_master::STATUS) + 1,
                    u32::from(bus_master::TABLE)..u32::from(CHANNEL_BYTES),
                ];
                registers.map(|range| base + range.start..base + range.end)
            })
            .collect()
    }

    fn reset(&self) {
        for channel in 0..CHANNELS {
            let mut unit = self.access(channel);
            self.settle(&mut unit);
            unit.chip.power_on();
            self.sync(channel, &mut unit);
        }
        let mut config = lock(&self.config);
        config.reset();
        self.update_decoding(&config);
    }
}

struct CommandBlock {
    ide: Arc<Ide>,
    channel: usize,
}

fn command_register(offset: u64, index: usize) -> Result<u8, AccessError> {
    offset
        .checked_add(index as u64)
        .filter(|at| *at < Ide::COMMAND_PORTS)
        .and_then(|at| u8::try_from(at).ok())
        .ok_or(AccessError::InvalidRegister)
}

impl BusDevice for CommandBlock {
    fn name(&self) -> &str {
        &self.ide.name
    }

    fn region(&self, _offset: u64) -> Region {
        Region::Part(CHANNEL_NAMES[self.channel].into())
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if !self.ide.decodes(self.channel) {
            data.fill(0xff);
            return Ok(());
        }
        let mut unit = self.ide.access(self.channel);
        if offset == u64::from(registers::DATA) {
            unit.chip.read_data(data);
        } else {
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = unit.chip.read(command_register(offset, index)?);
            }
        }
        self.ide.sync(self.channel, &mut unit);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if !self.ide.decodes(self.channel) {
            return Ok(());
        }
        let mut unit = self.ide.access(self.channel);
        if offset == u64::from(registers::DATA) {
            unit.chip.write_data(data);
        } else {
            for (index, byte) in data.iter().enumerate() {
                let register = command_register(offset, index)?;
                if register == registers::STATUS && unit.chip.command_ends(*byte) {
                    self.ide.settle(&mut unit);
                }
                unit.chip.write(register, *byte);
            }
        }
        self.ide.sync(self.channel, &mut unit);
        Ok(())
    }
}

struct ControlBlock {
    ide: Arc<Ide>,
    channel: usize,
}

impl BusDevice for ControlBlock {
    fn name(&self) -> &str {
        &self.ide.name
    }

    fn region(&self, _offset: u64) -> Region {
        Region::Part(format!("{}-control", CHANNEL_NAMES[self.channel]))
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let [byte] = data else {
            return Err(AccessError::InvalidWidth);
        };
        if offset != 0 {
            return Err(AccessError::InvalidRegister);
        }
        *byte = if self.ide.decodes(self.channel) {
            let mut unit = self.ide.access(self.channel);
            self.ide.sync(self.channel, &mut unit);
            unit.chip.alternate_status()
        } else {
            0xff
        };
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let [byte] = data else {
            return Err(AccessError::InvalidWidth);
        };
        if offset != 0 {
            return Err(AccessError::InvalidRegister);
        }
        if self.ide.decodes(self.channel) {
            let mut unit = self.ide.access(self.channel);
            if unit.chip.control_ends(*byte) {
                self.ide.settle(&mut unit);
            }
            unit.chip.write_control(*byte);
            self.ide.sync(self.channel, &mut unit);
        }
        Ok(())
    }
}
