//! What disks and CD-ROMs have in common: registers, data transfers, the states of a command.
//!
//! Pure: a drive says what it wants of its medium ([`Drive::wanted`]), and is told when that is done.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::cdrom::{Cdrom, PACKET_BYTES, Reply};
use super::identify::{self, Geometry};
use super::registers::{
    ABRT, BSY, CD, DATA, DEV, DEVICE, DF, DIAGNOSTIC_PASSED, DRDY, DRQ, DSC, ERR, ERROR, IO,
    LBA_HIGH, LBA_LOW, LBA_MID, SECTOR_BYTES, SECTOR_COUNT, STATUS, UNC,
};
use crate::block::{BlockError, BlockInfo};
use crate::dma::GuestRam;

/// Bytes that go between the medium and the data register at a time.
pub const BUFFER_BYTES: usize = 128 << 10;

/// What a driver has set; kept over software resets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sectors in a block of READ and WRITE MULTIPLE; 0 is off.
    pub multiple: u8,
    /// Multiword DMA mode.
    pub multiword_mode: Option<u8>,
    /// Ultra DMA mode.
    pub ultra_mode: Option<u8>,
    /// Without it a write is complete when it is stable.
    pub write_cache: bool,
    /// Shown, and of no effect.
    pub look_ahead: bool,
    /// SMART is enabled.
    pub smart: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            multiple: 0,
            multiword_mode: None,
            ultra_mode: None,
            write_cache: true,
            look_ahead: true,
            smart: true,
        }
    }
}

/// What a drive is.
pub enum Kind {
    /// A hard disk.
    Disk,
    /// A CD-ROM, with what its packet commands need.
    Cdrom(Cdrom),
}

/// How a command gives its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// Cylinder, head, sector.
    Chs,
    /// 28 bits.
    Lba28,
    /// 48 bits.
    Lba48,
}

/// What a drive wants done with its medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Read the next chunk into the buffer.
    Fill,
    /// Write the buffer.
    Store,
    /// Read the next chunk and forget it.
    Verify,
    /// Make stable.
    Flush,
    /// Between medium, or buffer, and the regions of the bus master, once that is ready.
    Dma,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// Software reset is held.
    Reset,
    /// Takes a command packet, of which it has so many bytes.
    Packet {
        got: usize,
    },
    /// Data register, to the host.
    In,
    /// Data register, from the host.
    Out,
    /// Busy until it gets it.
    Wanting(Want),
    /// Busy while the backend works.
    Running(Want),
}

/// A transfer of data in chunks that the buffer holds, each in blocks with an interrupt each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Transfer {
    /// From the host.
    pub write: bool,
    /// Whether the data is on the medium; else it is in the buffer.
    pub medium: bool,
    /// Where on the medium the chunk starts, in bytes.
    pub offset_bytes: u64,
    /// What is left, the chunk included.
    pub left_bytes: u64,
    /// Most bytes in a block.
    pub block_bytes: usize,
    /// Bytes in the buffer, how many of them are done, and where the block ends.
    pub(super) chunk_bytes: usize,
    pub(super) at: usize,
    pub(super) block_end: usize,
}

/// One drive.
pub struct Drive {
    pub(super) kind: Kind,
    pub(super) info: BlockInfo,
    pub(super) serial: String,
    /// Current contents of the registers from [`ERROR`] (its Features half) to [`DEVICE`], by offset.
    pub(super) current: [u8; 8],
    /// What [`Drive::current`] held before the last write, for 48-bit commands.
    pub(super) previous: [u8; 8],
    pub(super) settings: Settings,
    pub(super) geometry: Geometry,
    pub(super) standby: bool,
    pub(super) transfer: Transfer,
    status: u8,
    error: u8,
    interrupt: bool,
    state: State,
    packet: [u8; PACKET_BYTES],
    packet_dma: bool,
    /// The command is a PACKET that has been executed.
    by_packet: bool,
    /// How the command gave its address.
    pub(super) addressing: Addressing,
    buffer: Arc<GuestRam>,
}

impl Drive {
    /// A drive after power-on. `buffer` is [`BUFFER_BYTES`] of memory at address 0 that nothing else uses.
    pub fn new(kind: Kind, info: BlockInfo, serial: String, buffer: Arc<GuestRam>) -> Self {
        let geometry = Geometry::default_of(info.size_bytes / SECTOR_BYTES);
        let mut drive = Self {
            kind,
            info,
            serial,
            current: [0; 8],
            previous: [0; 8],
            settings: Settings::default(),
            geometry,
            standby: false,
            transfer: Transfer::default(),
            status: 0,
            error: 0,
            interrupt: false,
            state: State::Idle,
            packet: [0; PACKET_BYTES],
            packet_dma: false,
            by_packet: false,
            addressing: Addressing::Lba28,
            buffer,
        };
        drive.power_on();
        drive
    }

    /// Back to power-on. Nothing is with the backend.
    pub fn power_on(&mut self) {
        self.settings = Settings::default();
        self.geometry = Geometry::default_of(self.info.size_bytes / SECTOR_BYTES);
        self.standby = false;
        if let Kind::Cdrom(cdrom) = &mut self.kind {
            cdrom.power_on();
        }
        self.reset();
    }

    /// Software reset is held (ATA/ATAPI-6, 9.2). Nothing is with the backend.
    pub fn hold_reset(&mut self) {
        self.reset();
        self.state = State::Reset;
        self.status = BSY;
    }

    /// Ends a software reset, or does all of it: the signature, and ready.
    pub fn reset(&mut self) {
        self.state = State::Idle;
        self.interrupt = false;
        self.previous = [0; 8];
        self.sign();
        self.error = DIAGNOSTIC_PASSED;
        self.status = self.ready();
        if let Kind::Cdrom(cdrom) = &mut self.kind {
            // Nothing but PACKET commands make it say ready (9.12).
            self.status = 0;
            cdrom.reset();
        }
    }

    /// The signature by which a driver tells what is there (9.12).
    pub(super) fn sign(&mut self) {
        let (mid, high) = match self.kind {
            Kind::Disk => (0, 0),
            Kind::Cdrom(_) => (0x14, 0xeb),
        };
        self.current = [0, 0, 1, 1, mid, high, 0, 0];
    }

    fn ready(&self) -> u8 {
        DRDY | DSC
    }

    /// Whether registers other than Status mean nothing and cannot be written.
    pub fn busy(&self) -> bool {
        self.status & BSY != 0
    }

    /// Whether the backend works for it.
    pub fn running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Whether the backend moves data between the medium and the engine's regions.
    pub fn transferring(&self) -> bool {
        self.state == State::Running(Want::Dma)
    }

    /// Whether it waits for the engine, or moves data with it.
    pub fn wants_engine(&self) -> bool {
        self.transferring() || self.wanted() == Some(Want::Dma)
    }

    /// Whether it knows DEVICE RESET, which a busy drive obeys too (8.10).
    pub fn accepts_reset(&self) -> bool {
        matches!(self.kind, Kind::Cdrom(_)) && self.state != State::Reset
    }

    /// Whether it asks for attention; seen while it is selected and interrupts are on.
    pub fn interrupt(&self) -> bool {
        self.interrupt
    }

    /// Status without the side effect of reading it.
    pub fn alternate_status(&self) -> u8 {
        self.status
    }

    /// Reads the register at `offset`, not [`DATA`].
    pub fn read(&mut self, offset: u8, high_order: bool) -> u8 {
        let bank = if high_order {
            &self.previous
        } else {
            &self.current
        };
        match offset {
            STATUS => {
                self.interrupt = false;
                self.status
            }
            // While busy, every register reads as Status.
            _ if self.busy() => self.status,
            ERROR => self.error,
            DEVICE => self.current[usize::from(DEVICE)] | 0xa0,
            DATA => 0xff,
            _ => bank.get(usize::from(offset)).copied().unwrap_or(0xff),
        }
    }

    /// Writes the register at `offset`, neither [`DATA`] nor [`STATUS`].
    pub fn write(&mut self, offset: u8, value: u8) {
        let at = usize::from(offset);
        if let (Some(current), Some(previous)) =
            (self.current.get_mut(at), self.previous.get_mut(at))
        {
            *previous = std::mem::replace(current, value);
        }
    }

    /// The Command register is written. The drive is not busy, or the command is DEVICE RESET and nothing is with the
    /// backend.
    pub fn command(&mut self, command: u8) {
        self.interrupt = false;
        self.error = 0;
        self.by_packet = false;
        self.state = State::Idle;
        self.status = self.ready();
        let common = match command {
            0x00 => {
                self.abort();
                true
            }
            0xef => self.set_features(),
            _ => self.power_command(command),
        };
        if common {
            return;
        }
        match (&self.kind, command) {
            (Kind::Disk, _) => self.disk_command(command),
            (Kind::Cdrom(_), 0x08) => {
                self.reset();
                self.current[usize::from(DEVICE)] &= DEV;
            }
            (Kind::Cdrom(_), 0xa0) => self.packet_command(),
            (Kind::Cdrom(_), 0xa1) => {
                let data = identify::cdrom(&self.serial, &self.settings);
                self.send(&data, identify::BYTES);
            }
            (Kind::Cdrom(_), command) => {
                if matches!(command, 0xec | 0x20 | 0x21) {
                    // By the signature the driver sees whom it asked (8.15.5, 8.34.5).
                    self.sign();
                }
                self.abort();
            }
        }
    }

    /// SET FEATURES (8.46).
    fn set_features(&mut self) -> bool {
        let (feature, count) = (self.current[1], self.current[usize::from(SECTOR_COUNT)]);
        let settings = &mut self.settings;
        let known = match feature {
            0x02 => {
                settings.write_cache = true;
                true
            }
            0x82 => {
                settings.write_cache = false;
                self.state = State::Wanting(Want::Flush);
                true
            }
            0x55 | 0xaa => {
                settings.look_ahead = feature == 0xaa;
                true
            }
            // Whether settings survive a software reset: they do.
            0x66 => true,
            0x03 => settings.set_mode(count),
            _ => false,
        };
        match (known, self.state) {
            (false, _) => self.abort(),
            (true, State::Wanting(_)) => self.status = BSY,
            (true, _) => self.finish(),
        }
        true
    }

    /// Power management (6.9): a sleeping disk is one that says so.
    fn power_command(&mut self, command: u8) -> bool {
        match command {
            // STANDBY IMMEDIATE, STANDBY, SLEEP: with the cache written back.
            0xe0 | 0x94 | 0xe2 | 0x96 | 0xe6 | 0x99 => {
                self.standby = true;
                self.want(Want::Flush);
            }
            // IDLE IMMEDIATE, IDLE.
            0xe1 | 0x95 | 0xe3 | 0x97 => {
                self.standby = false;
                self.finish();
            }
            // CHECK POWER MODE.
            0xe5 | 0x98 => {
                let mode = if self.standby { 0 } else { 0xff };
                self.finish();
                self.current[usize::from(SECTOR_COUNT)] = mode;
            }
            _ => return false,
        }
        true
    }

    /// PACKET (8.23).
    fn packet_command(&mut self) {
        const DMA: u8 = 1 << 0;
        const OVERLAP: u8 = 1 << 1;
        let features = self.current[1];
        if features & OVERLAP != 0 {
            return self.abort();
        }
        self.packet_dma = features & DMA != 0;
        self.current[usize::from(SECTOR_COUNT)] = CD;
        self.state = State::Packet { got: 0 };
        self.status = self.ready() | DRQ;
    }

    fn packet_complete(&mut self) {
        let limit = u16::from_le_bytes([
            self.current[usize::from(LBA_MID)],
            self.current[usize::from(LBA_HIGH)],
        ]);
        // An odd limit, of which 0xffff is one, is the even one below; none at all is the most there is.
        let block_bytes = match usize::from(limit & !1) {
            0 => 0xfffe,
            limit => limit,
        };
        self.by_packet = true;
        let packet = self.packet;
        let Kind::Cdrom(cdrom) = &mut self.kind else {
            return self.abort();
        };
        match cdrom.execute(&packet, &self.info) {
            Reply::Done => self.finish(),
            Reply::Check => self.check_condition(),
            Reply::Data(data) if self.packet_dma => {
                self.fill(&data);
                self.start(
                    Want::Dma,
                    Transfer {
                        left_bytes: data.len() as u64,
                        ..Transfer::default()
                    },
                );
            }
            Reply::Data(data) => self.send(&data, block_bytes),
            Reply::Read {
                offset_bytes,
                len_bytes,
            } => {
                let want = if self.packet_dma {
                    Want::Dma
                } else {
                    Want::Fill
                };
                self.start(
                    want,
                    Transfer {
                        medium: true,
                        offset_bytes,
                        left_bytes: len_bytes,
                        block_bytes,
                        ..Transfer::default()
                    },
                );
            }
        }
    }

    fn fill(&mut self, data: &[u8]) {
        // Replies are far shorter than the buffer.
        let _ = self.buffer.write_slice(data, GuestAddress(0));
    }

    /// Sends `data`, at most [`BUFFER_BYTES`], through the data register.
    pub(super) fn send(&mut self, data: &[u8], block_bytes: usize) {
        self.fill(data);
        self.transfer = Transfer {
            left_bytes: data.len() as u64,
            block_bytes,
            chunk_bytes: data.len(),
            ..Transfer::default()
        };
        if data.is_empty() {
            self.finish();
        } else {
            self.begin_block(State::In, true);
        }
    }

    /// Begins `transfer`, whose first step is `want`.
    pub(super) fn start(&mut self, want: Want, transfer: Transfer) {
        self.transfer = transfer;
        if transfer.left_bytes == 0 {
            return self.finish();
        }
        if want == Want::Store {
            return self.begin_chunk_out(false);
        }
        self.want(want);
    }

    pub(super) fn want(&mut self, want: Want) {
        self.state = State::Wanting(want);
        self.status = BSY;
    }

    /// A chunk of data is to come from the host.
    fn begin_chunk_out(&mut self, interrupt: bool) {
        self.transfer.chunk_bytes = self.chunk_len();
        self.transfer.at = 0;
        self.begin_block(State::Out, interrupt);
    }

    fn chunk_len(&self) -> usize {
        usize::try_from(self.transfer.left_bytes)
            .map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES))
    }

    fn begin_block(&mut self, state: State, interrupt: bool) {
        let transfer = &mut self.transfer;
        transfer.block_end = transfer
            .chunk_bytes
            .min(transfer.at.saturating_add(transfer.block_bytes.max(1)));
        let count = transfer.block_end - transfer.at;
        if matches!(self.kind, Kind::Cdrom(_)) {
            let [low, high] = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
            self.current[usize::from(SECTOR_COUNT)] = if state == State::In { IO } else { 0 };
            self.current[usize::from(LBA_MID)] = low;
            self.current[usize::from(LBA_HIGH)] = high;
        }
        self.state = state;
        self.status = self.ready() | DRQ;
        self.interrupt |= interrupt;
    }

    /// The data register is read; zeroes when there is nothing.
    pub fn read_data(&mut self, data: &mut [u8]) {
        data.fill(0);
        if self.state != State::In {
            return;
        }
        let transfer = &mut self.transfer;
        let len = data.len().min(transfer.block_end - transfer.at);
        let _ = self
            .buffer
            .read_slice(&mut data[..len], GuestAddress(transfer.at as u64));
        transfer.at += len;
        if transfer.at < transfer.block_end {
            return;
        }
        if transfer.at < transfer.chunk_bytes {
            return self.begin_block(State::In, true);
        }
        if self.chunk_done() {
            self.want(Want::Fill);
        } else if !self.by_packet {
            // The last block of a PIO command has had its interrupt.
            self.state = State::Idle;
            self.status = self.ready();
        } else {
            self.finish();
        }
    }

    /// The data register is written.
    pub fn write_data(&mut self, data: &[u8]) {
        match self.state {
            State::Packet { got } => {
                let len = data.len().min(PACKET_BYTES - got);
                self.packet[got..got + len].copy_from_slice(&data[..len]);
                self.state = State::Packet { got: got + len };
                if got + len == PACKET_BYTES {
                    self.packet_complete();
                }
            }
            State::Out => {
                let transfer = &mut self.transfer;
                let len = data.len().min(transfer.block_end - transfer.at);
                let _ = self
                    .buffer
                    .write_slice(&data[..len], GuestAddress(transfer.at as u64));
                transfer.at += len;
                if transfer.at < transfer.block_end {
                    return;
                }
                if transfer.at < transfer.chunk_bytes {
                    return self.begin_block(State::Out, true);
                }
                self.want(Want::Store);
            }
            _ => {}
        }
    }

    /// Moves on to the next chunk; says whether there is one.
    fn chunk_done(&mut self) -> bool {
        let transfer = &mut self.transfer;
        let chunk = transfer.chunk_bytes as u64;
        transfer.left_bytes = transfer.left_bytes.saturating_sub(chunk);
        transfer.offset_bytes = transfer.offset_bytes.saturating_add(chunk);
        transfer.at = 0;
        transfer.left_bytes > 0
    }

    /// What it wants of its medium.
    pub fn wanted(&self) -> Option<Want> {
        match self.state {
            State::Wanting(want) => Some(want),
            _ => None,
        }
    }

    /// It gets what it wants. Returns the buffer and how much of it a fill, store or verify is to move.
    pub fn run(&mut self, want: Want) -> (Arc<GuestRam>, usize) {
        self.state = State::Running(want);
        if matches!(want, Want::Fill | Want::Verify) {
            self.transfer.chunk_bytes = self.chunk_len();
        }
        (Arc::clone(&self.buffer), self.transfer.chunk_bytes)
    }

    /// The reply in the buffer that goes to the bus master's regions.
    pub fn reply(&self) -> Vec<u8> {
        let mut data = vec![0; self.chunk_len()];
        let _ = self.buffer.read_slice(&mut data, GuestAddress(0));
        data
    }

    /// What it wanted has been done, or not.
    pub fn complete(&mut self, result: Result<(), BlockError>) {
        let State::Running(want) = self.state else {
            return;
        };
        if let Err(error) = result {
            return self.fail(want, &error);
        }
        match want {
            Want::Fill => {
                self.transfer.at = 0;
                self.begin_block(State::In, true);
            }
            Want::Store => {
                if self.chunk_done() {
                    self.begin_chunk_out(true);
                } else {
                    self.written();
                }
            }
            Want::Verify => {
                if self.chunk_done() {
                    self.want(Want::Verify);
                } else {
                    self.finish();
                }
            }
            Want::Dma if self.transfer.write => self.written(),
            Want::Dma | Want::Flush => self.finish(),
        }
    }

    fn written(&mut self) {
        if self.settings.write_cache {
            self.finish();
        } else {
            self.want(Want::Flush);
        }
    }

    fn fail(&mut self, want: Want, error: &BlockError) {
        if let Kind::Cdrom(cdrom) = &mut self.kind {
            cdrom.medium_error();
            return self.check_condition();
        }
        if matches!(want, Want::Fill | Want::Store | Want::Verify | Want::Dma) {
            self.show_address(self.transfer.offset_bytes / SECTOR_BYTES);
        }
        self.abort();
        match error {
            BlockError::Io(_) if self.transfer.write || want == Want::Flush => self.status |= DF,
            BlockError::Io(_) => self.error = UNC,
            _ => {}
        }
    }

    /// A PACKET command ends with sense data (8.23.6).
    fn check_condition(&mut self) {
        let Kind::Cdrom(cdrom) = &self.kind else {
            return;
        };
        let key = cdrom.sense_key();
        self.finish();
        self.status |= ERR;
        self.error = key << 4 | ABRT;
    }

    /// The command ends without error.
    pub(super) fn finish(&mut self) {
        self.state = State::Idle;
        self.status = self.ready();
        if matches!(self.kind, Kind::Cdrom(_)) {
            self.current[usize::from(SECTOR_COUNT)] = IO | CD;
        }
        self.interrupt = true;
    }

    /// The command ends with an error.
    pub(super) fn fail_with(&mut self, error: u8) {
        self.finish();
        self.status |= ERR;
        self.error = error;
    }

    /// The command is not supported, or its parameters are not.
    pub fn abort(&mut self) {
        self.fail_with(ABRT);
    }

    /// The result of EXECUTE DEVICE DIAGNOSTIC.
    pub fn diagnosed(&mut self) {
        self.reset();
        self.interrupt = true;
    }

    /// Puts the address of a sector into the registers, as the command gave its own.
    pub(super) fn show_address(&mut self, lba: u64) {
        let lba = match self.addressing {
            Addressing::Chs => self.geometry.chs(lba),
            Addressing::Lba28 | Addressing::Lba48 => lba,
        };
        let bytes = lba.to_le_bytes();
        for (at, offset) in [LBA_LOW, LBA_MID, LBA_HIGH].into_iter().enumerate() {
            self.current[usize::from(offset)] = bytes[at];
            if self.addressing == Addressing::Lba48 {
                self.previous[usize::from(offset)] = bytes[at + 3];
            }
        }
        if self.addressing != Addressing::Lba48 {
            let device = &mut self.current[usize::from(DEVICE)];
            *device = *device & 0xf0 | bytes[3] & 0xf;
        }
    }
}

impl Settings {
    /// Sets the transfer mode by its code (8.46.11); says whether there is such a mode.
    fn set_mode(&mut self, code: u8) -> bool {
        let mode = code & 0b111;
        match code >> 3 {
            // PIO, and PIO with flow control, from which DMA is not affected.
            0 => mode <= 1,
            1 => mode <= identify::MAX_PIO_MODE,
            4 if mode <= identify::MAX_MULTIWORD_MODE => {
                self.multiword_mode = Some(mode);
                self.ultra_mode = None;
                true
            }
            8 if mode <= identify::MAX_ULTRA_MODE => {
                self.ultra_mode = Some(mode);
                self.multiword_mode = None;
                true
            }
            _ => false,
        }
    }
}
