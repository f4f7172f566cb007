//! A function of the host that is none: a configuration space in memory, regions without registers, and interrupts
//! that a test fires.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;

use super::host_function::{HostFunction, IrqInfo, IrqKind, RegionInfo};
use crate::pci::HostPages;
use crate::sync::lock;

/// What the host was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    ConfigWrite(u16, Vec<u8>),
    RegionWrite(u8, u64, Vec<u8>),
    /// First interrupt, and which have a trigger.
    Triggers(IrqKind, u32, Vec<bool>),
    Resample,
    Disable(IrqKind),
    Reset,
}

/// Offsets of the capabilities of [`FakeHost::nic`].
pub const PM: u16 = 0x40;
pub const MSI: u16 = 0x50;
pub const VENDOR: u16 = 0x68;
pub const MSIX: u16 = 0x70;
pub const HIDDEN: u16 = 0x7c;
pub const EXPRESS: u16 = 0xa0;
pub const AER: u16 = 0x100;
pub const SERIAL_NUMBER: u16 = 0x140;
pub const ARI: u16 = 0x150;
pub const SRIOV: u16 = 0x160;
pub const DVSEC: u16 = 0x1a0;

pub struct FakeHost {
    config: Mutex<Vec<u8>>,
    regions: [RegionInfo; 7],
    pub resizable: bool,
    pub intx: u32,
    /// Most messages of MSI that are to be had.
    pub msi_limit: usize,
    pub reset_fails: bool,
    calls: Mutex<Vec<Call>>,
    triggers: Mutex<BTreeMap<(u32, u32), EventFd>>,
}

impl FakeHost {
    /// 256 bytes of configuration space without capabilities, and no regions.
    pub fn bare() -> Self {
        Self {
            config: Mutex::new(vec![0; 256]),
            regions: Default::default(),
            resizable: true,
            intx: 1,
            msi_limit: 32,
            reset_fails: false,
            calls: Mutex::default(),
            triggers: Mutex::default(),
        }
    }

    /// A network card with one of everything: BAR 0 of 16 KiB with MSI-X (5 vectors) in its third page, I/O BAR 2,
    /// a small BAR 3, a 64-bit prefetchable BAR 4 of 64 KiB, a ROM.
    pub fn nic() -> Self {
        let mut host = Self::bare();
        host.config = Mutex::new(vec![0; 4096]);
        host.put(0x00, &[0x86, 0x80, 0xd3, 0x10]);
        host.put(0x06, &[0x10, 0]);
        host.put(0x08, &[0x02, 0x00, 0x00, 0x02]);
        host.put(0x0e, &[0x80]);
        host.put(0x18, &1u32.to_le_bytes());
        host.put(0x20, &0b1100u32.to_le_bytes());
        host.put(0x2c, &[0x34, 0x12, 0x78, 0x56]);
        host.put(0x34, &[0x40]);
        host.put(0x3d, &[2]);
        host.put(PM, &[0x01, 0x50, 0x03, 0xfe, 0x00, 0x00, 0x00, 0x00]);
        // 4 messages, 64 bits, maskable.
        host.put(MSI, &[0x05, 0x68, 0x84, 0x01]);
        host.put(VENDOR, &[0x09, 0x70, 0x08, 0xaa, 0xbb, 0xcc, 0xdd, 0xee]);
        host.put(MSIX, &[0x11, 0x7c, 0x04, 0x00]);
        host.put(MSIX + 4, &0x2000u32.to_le_bytes());
        host.put(MSIX + 8, &0x2800u32.to_le_bytes());
        host.put(HIDDEN, &[0x07, 0xa0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        // An endpoint's, second version, with a link, LTR and OBFF.
        host.put(EXPRESS, &[0x10, 0x00, 0x02, 0x00, 0xc1, 0x80, 0x00, 0x10]);
        host.put(EXPRESS + 0x08, &[0x10, 0x28, 0x00, 0x00]);
        host.put(EXPRESS + 0x0c, &[0xff; 8]);
        host.put(EXPRESS + 0x24, &[0x1f, 0x08, 0x0c, 0x00]);
        host.put(EXPRESS + 0x2c, &[0xff; 4]);
        for (offset, id, next) in [
            (AER, 0x0001, SERIAL_NUMBER),
            (SERIAL_NUMBER, 0x0003, ARI),
            (ARI, 0x000e, SRIOV),
            (SRIOV, 0x0010, DVSEC),
            (DVSEC, 0x0023, 0),
        ] {
            let header = 0x0001_0000 | u32::from(next) << 20 | id;
            host.put(offset, &header.to_le_bytes());
            host.put(offset + 4, &[0x5a; 12]);
        }
        host.add_region(0, 0x4000, true);
        host.add_region(2, 0x20, false);
        host.add_region(3, 0x80, true);
        host.add_region(4, 0x1_0000, true);
        host.add_region(6, 0x1_0000, false);
        host
    }

    fn add_region(&mut self, index: usize, size: u64, mapped: bool) {
        self.regions[index] = RegionInfo {
            size,
            readable: true,
            writable: index != 6,
            areas: if mapped { vec![(0, size)] } else { Vec::new() },
        };
    }

    /// Sets bytes of configuration space.
    pub fn put(&self, offset: u16, data: &[u8]) {
        let at = usize::from(offset);
        lock(&self.config)[at..at + data.len()].copy_from_slice(data);
    }

    pub fn u16(&self, offset: u16) -> u16 {
        let at = usize::from(offset);
        let config = lock(&self.config);
        u16::from_le_bytes([config[at], config[at + 1]])
    }

    /// What was asked for since the last call.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *lock(&self.calls))
    }

    /// The interrupts of a kind that the host would signal.
    pub fn triggers(&self, kind: IrqKind) -> Vec<u32> {
        let triggers = lock(&self.triggers);
        let ours = triggers.keys().filter(|(of, _)| *of == number(kind));
        ours.map(|(_, index)| *index).collect()
    }

    /// The function interrupts; false if nobody would hear of it.
    pub fn fire(&self, kind: IrqKind, index: u32) -> bool {
        let triggers = lock(&self.triggers);
        let trigger = triggers.get(&(number(kind), index));
        trigger.is_some_and(|trigger| trigger.write(1).is_ok())
    }

    fn call(&self, call: Call) {
        lock(&self.calls).push(call);
    }
}

fn number(kind: IrqKind) -> u32 {
    kind as u32
}

impl HostFunction for FakeHost {
    fn config_size(&self) -> u64 {
        lock(&self.config).len() as u64
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        let config = lock(&self.config);
        let at = usize::from(offset);
        let bytes = config.get(at..at + data.len());
        data.copy_from_slice(bytes.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> io::Result<()> {
        if usize::from(offset) + data.len() > lock(&self.config).len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.put(offset, data);
        self.call(Call::ConfigWrite(offset, data.to_vec()));
        Ok(())
    }

    fn region(&self, region: u8) -> RegionInfo {
        self.regions[usize::from(region)].clone()
    }

    fn region_read(&self, region: u8, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > self.regions[usize::from(region)].size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        data.fill(offset.to_le_bytes()[0]);
        Ok(())
    }

    fn region_write(&self, region: u8, offset: u64, data: &[u8]) -> io::Result<()> {
        self.region_read(region, offset, &mut data.to_vec())?;
        self.call(Call::RegionWrite(region, offset, data.to_vec()));
        Ok(())
    }

    fn map(&self, _region: u8, _offset: u64, len_bytes: u64) -> io::Result<HostPages> {
        HostPages::anonymous(usize::try_from(len_bytes).unwrap())
    }

    fn irq(&self, kind: IrqKind) -> IrqInfo {
        let count = match kind {
            IrqKind::Intx => self.intx,
            IrqKind::Msi => 4,
            IrqKind::Msix => 5,
            IrqKind::Error | IrqKind::Request => 1,
        };
        IrqInfo {
            count,
            resizable: self.resizable,
        }
    }

    fn set_triggers(
        &self,
        kind: IrqKind,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> io::Result<()> {
        if kind == IrqKind::Msi && triggers.len() > self.msi_limit {
            return Err(io::Error::other("too many"));
        }
        let some = triggers.iter().map(Option::is_some).collect();
        self.call(Call::Triggers(kind, start, some));
        let mut ours = lock(&self.triggers);
        for (index, trigger) in (start..).zip(triggers) {
            match trigger {
                Some(event) => ours.insert((number(kind), index), event.try_clone()?),
                None => ours.remove(&(number(kind), index)),
            };
        }
        Ok(())
    }

    fn set_resample(&self, _resample: &EventFd) -> io::Result<()> {
        self.call(Call::Resample);
        Ok(())
    }

    fn disable(&self, kind: IrqKind) -> io::Result<()> {
        self.call(Call::Disable(kind));
        lock(&self.triggers).retain(|(of, _), _| *of != number(kind));
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.call(Call::Reset);
        if self.reset_fails {
            return Err(io::Error::other("no reset"));
        }
        Ok(())
    }
}
