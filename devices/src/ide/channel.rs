//! One channel: two drives on a cable, and the bus-master engine that serves them. Pure.

use super::bus_master::{BusMaster, Regions};
use super::drive::{Drive, Want};
use super::registers::{DATA, DEV, DEVICE, HOB, NIEN, SRST, STATUS};
use crate::block::{BlockError, BlockOp, BlockRequest};
use crate::dma::{DmaError, DmaMem};

/// DEVICE RESET and EXECUTE DEVICE DIAGNOSTIC, the commands that are not for one drive that is ready.
const DEVICE_RESET: u8 = 0x08;
const EXECUTE_DIAGNOSTIC: u8 = 0x90;

/// A channel. Its registers are written by the host to both drives and answered by the selected one.
pub struct Channel {
    drives: [Option<Drive>; 2],
    selected: usize,
    control: u8,
    /// The engine.
    pub engine: BusMaster,
    /// The transfer under way uses up the engine's table.
    exact: bool,
    line: bool,
}

impl Channel {
    /// With these drives, master first.
    pub fn new(drives: [Option<Drive>; 2]) -> Self {
        Self {
            drives,
            selected: 0,
            control: 0,
            engine: BusMaster::default(),
            exact: false,
            line: false,
        }
    }

    /// Whether there is any drive.
    pub fn populated(&self) -> bool {
        self.drives.iter().any(Option::is_some)
    }

    /// Back to power-on. Nothing is with a backend.
    pub fn power_on(&mut self) {
        for drive in self.drives.iter_mut().flatten() {
            drive.power_on();
        }
        self.selected = 0;
        self.control = 0;
        self.engine = BusMaster::default();
    }

    fn drive(&mut self) -> Option<&mut Drive> {
        self.drives[self.selected].as_mut()
    }

    /// What reads give where no drive answers: device 0 answers zeroes for a device 1 that is not there
    /// (ATA/ATAPI-6, 9.16.1); a cable without drives floats.
    fn absent(&self) -> u8 {
        if self.populated() { 0 } else { 0xff }
    }

    /// Reads the command block register at `offset`, 1 to 7.
    pub fn read(&mut self, offset: u8) -> u8 {
        let absent = self.absent();
        let high_order = self.control & HOB != 0;
        self.drive()
            .map_or(absent, |drive| drive.read(offset, high_order))
    }

    /// Writes the command block register at `offset`, 1 to 7.
    pub fn write(&mut self, offset: u8, value: u8) {
        self.control &= !HOB;
        if offset == STATUS {
            return self.command(value);
        }
        // A busy drive does not listen, and then neither does the other: it might be deselected.
        if offset == DATA || self.drive().is_some_and(|drive| drive.busy()) {
            return;
        }
        for drive in self.drives.iter_mut().flatten() {
            drive.write(offset, value);
        }
        if offset == DEVICE {
            self.selected = usize::from(value & DEV != 0);
        }
    }

    fn command(&mut self, command: u8) {
        if command == EXECUTE_DIAGNOSTIC {
            if self.drives.iter().flatten().any(Drive::busy) {
                return;
            }
            for drive in self.drives.iter_mut().flatten() {
                drive.diagnosed();
            }
            self.selected = 0;
        } else if let Some(drive) = self.drive()
            && (!drive.busy() || command == DEVICE_RESET && drive.accepts_reset())
        {
            drive.command(command);
        }
    }

    /// Reads the data register.
    pub fn read_data(&mut self, data: &mut [u8]) {
        let absent = self.absent();
        match self.drive() {
            Some(drive) => drive.read_data(data),
            None => data.fill(absent),
        }
    }

    /// Writes the data register.
    pub fn write_data(&mut self, data: &[u8]) {
        if let Some(drive) = self.drive() {
            drive.write_data(data);
        }
    }

    /// Alternate Status.
    pub fn alternate_status(&mut self) -> u8 {
        let absent = self.absent();
        self.drive()
            .map_or(absent, |drive| drive.alternate_status())
    }

    /// Device Control. When it begins a software reset, nothing is with a backend.
    pub fn write_control(&mut self, value: u8) {
        let was_held = self.control & SRST != 0;
        let held = value & SRST != 0;
        self.control = value;
        for drive in self.drives.iter_mut().flatten() {
            if held && !was_held {
                drive.hold_reset();
            } else if was_held && !held {
                drive.reset();
            }
        }
        if held {
            self.selected = 0;
        }
    }

    /// Whether writing `value` to the Command register ends what is with a backend, which must be waited for first.
    pub fn command_ends(&self, value: u8) -> bool {
        let selected = &self.drives[self.selected];
        value == DEVICE_RESET
            && selected
                .as_ref()
                .is_some_and(|drive| drive.running() && drive.accepts_reset())
    }

    /// Whether writing `value` to Device Control does.
    pub fn control_ends(&self, value: u8) -> bool {
        value & !self.control & SRST != 0 && self.running()
    }

    /// Whether writing `value` to the engine's command register does.
    pub fn engine_ends(&self, value: u8) -> bool {
        self.engine.started() && value & super::bus_master::START == 0 && self.running()
    }

    /// Whether the engine has been started, towards memory, and no drive has anything for it yet.
    pub fn engine_is_first(&self) -> bool {
        let mut drives = self.drives.iter().flatten();
        self.engine.ready(true) && !drives.any(|drive| drive.wants_engine())
    }

    /// Whether a backend works for a drive.
    pub fn running(&self) -> bool {
        self.drives.iter().flatten().any(Drive::running)
    }

    /// The level of the interrupt wire; tells the engine when it rises. At the end of every access and event.
    pub fn sync(&mut self) -> bool {
        let enabled = self.control & NIEN == 0;
        let level = enabled && self.drive().is_some_and(|drive| drive.interrupt());
        if level && !self.line {
            self.engine.interrupt();
        }
        self.line = level;
        level
    }

    /// The next request for a backend, and the drive it is for.
    pub fn next_request(&mut self, dma: &DmaMem) -> Option<(usize, BlockRequest)> {
        for index in 0..self.drives.len() {
            let Some(drive) = &mut self.drives[index] else {
                continue;
            };
            let request = match drive.wanted() {
                None => None,
                Some(Want::Dma) => self.dma_request(index, dma),
                Some(want) => {
                    let (ram, len) = drive.run(want);
                    let op = match want {
                        Want::Fill | Want::Verify | Want::Dma => BlockOp::Read,
                        Want::Store => BlockOp::Write,
                        Want::Flush => BlockOp::Flush,
                    };
                    let (offset_bytes, segments) = match (op, u32::try_from(len)) {
                        (BlockOp::Flush, _) | (_, Err(_)) => (0, Vec::new()),
                        (_, Ok(len)) => (drive.transfer.offset_bytes, vec![(0, len)]),
                    };
                    Some(BlockRequest {
                        op,
                        offset_bytes,
                        segments,
                        ram,
                        token: index as u64,
                    })
                }
            };
            if let Some(request) = request {
                return Some((index, request));
            }
        }
        None
    }

    /// The request for a transfer by the engine, if that is ready. What needs no backend is done on the spot.
    fn dma_request(&mut self, index: usize, dma: &DmaMem) -> Option<BlockRequest> {
        let drive = self.drives[index].as_mut()?;
        let transfer = drive.transfer;
        if !self.engine.ready(!transfer.write) {
            return None;
        }
        let ram = dma.ram().ok()?;
        match self.engine.regions(dma, transfer.left_bytes) {
            Ok(Regions::Enough { segments, exact }) => {
                self.exact = exact;
                drive.run(Want::Dma);
                if transfer.medium {
                    return Some(BlockRequest {
                        op: if transfer.write {
                            BlockOp::Write
                        } else {
                            BlockOp::Read
                        },
                        offset_bytes: transfer.offset_bytes,
                        segments,
                        ram: ram.clone(),
                        token: index as u64,
                    });
                }
                let reply = drive.reply();
                let mut rest = &reply[..];
                let mut result = Ok(());
                for (addr, len) in segments {
                    let (part, more) = rest.split_at(rest.len().min(len as usize));
                    if dma.write(addr, part).is_err() {
                        result = Err(BlockError::BadBuffer);
                    }
                    rest = more;
                }
                self.complete(index, result);
            }
            // The engine stops, and the drive waits for it to be started again.
            Ok(Regions::Short) => self.engine.end(),
            Err(DmaError::BusMasterOff) => {}
            Err(DmaError::OutsideRam(_)) => {
                drive.run(Want::Dma);
                self.complete(index, Err(BlockError::BadBuffer));
            }
        }
        None
    }

    /// What was asked of the backend of drive `index` is done.
    pub fn complete(&mut self, index: usize, result: Result<(), BlockError>) {
        let Some(drive) = self.drives.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if drive.transferring() {
            match &result {
                Err(BlockError::BadBuffer) => self.engine.fail(),
                Ok(()) if self.exact => self.engine.end(),
                _ => {}
            }
        }
        drive.complete(result);
    }
}
