//! ACPI tables: RSDP, XSDT, FADT, FACS, MADT, MCFG and DSDT (ACPI 6.5, chapter 5).
//!
//! The machine is not hardware-reduced: it has PM1 registers, a PM timer and the two 8259s, and ACPI mode is always
//! on (`SMI_CMD` is 0, ACPI 6.5, 4.8.2.5). The guest interprets the DSDT early and slowly, so it holds what is there
//! and nothing else: only the serial ports and PCI slots that are populated.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use devices::dma::GuestRam;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;

const OEM_ID: [u8; 6] = *b"TRIPTH";
const OEM_TABLE_ID: [u8; 8] = *b"TRIPATH ";
const OEM_REVISION: u32 = 1;

/// Alignment of every table; the FACS needs it (ACPI 6.5, 5.2.10).
const TABLE_ALIGN: u64 = 64;
/// Length of the header that all tables but RSDP and FACS share (ACPI 6.5, 5.2.6).
const HEADER_BYTES: u32 = 36;

/// The reset register's value for a full reset.
pub const RESET_VALUE: u8 = 0x06;

/// FADT, `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11).
mod boot_arch {
    /// User-visible devices on an ISA bus.
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    /// A keyboard controller at ports 0x60 and 0x64.
    pub const I8042: u16 = 1 << 1;
    /// No VGA: the guest must not probe for it.
    pub const NO_VGA: u16 = 1 << 2;
    /// No CMOS RTC at ports 0x70 and 0x71.
    pub const NO_CMOS_RTC: u16 = 1 << 5;
}

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiConfig {
    /// APIC id of each CPU; the index is the processor's `_UID`.
    pub apic_ids: Vec<u32>,
    /// Id of the IOAPIC, whose inputs are GSIs 0 to 23.
    pub ioapic_id: u8,
    /// Which of COM1 to COM4 are there.
    pub com_ports: [bool; 4],
    /// Whether the guest may look for a keyboard controller.
    pub i8042: bool,
    /// Whether there is a CMOS RTC.
    pub cmos_rtc: bool,
    /// Whether there is a pvpanic port.
    pub pvpanic: bool,
    /// Whether there is an IDE controller, whose fixed ports belong to PCI bus 0.
    pub ide: bool,
    /// Populated slots of PCI bus 0, for the interrupt routing.
    pub pci_slots: Vec<u8>,
    /// 64-bit PCI memory window; none when empty. Must lie above all RAM.
    pub pci_mmio64: std::ops::Range<u64>,
    /// `SLP_TYP` value, 0 to 7, with which the PM1 control register powers the machine off.
    pub s5_sleep_type: u8,
}

/// Most CPUs that the tables can describe, which is KVM's own limit at this writing.
pub const MAX_CPUS: usize = 4096;

/// Why there are no tables.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// The area below 1 MiB is too small.
    #[error("the ACPI tables of {count} CPUs do not fit below 1 MiB; those of {MAX_CPUS} do")]
    TooManyCpus {
        /// CPUs asked for.
        count: usize,
    },
}

/// Tables with the guest-physical addresses they are made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcpiTables {
    /// Address of the RSDP, for the boot parameters.
    pub rsdp: u64,
    /// Each table with its address; none overlap.
    pub tables: Vec<(u64, Vec<u8>)>,
}

impl AcpiTables {
    /// Writes the tables to guest memory: before each start of the guest, as the one before may have changed them.
    ///
    /// # Errors
    /// That `ram` has no memory below 1 MiB.
    pub fn write(&self, ram: &GuestRam) -> Result<(), GuestMemoryError> {
        for (addr, table) in &self.tables {
            ram.write_slice(table, GuestAddress(*addr))?;
        }
        Ok(())
    }
}

/// Builds the tables of `config`.
///
/// The caller routes KVM's GSI 0 to IOAPIC input 2 (the timer's override in the MADT) and every other GSI below 24 to the
/// input of its number.
///
/// # Errors
/// [`AcpiError::TooManyCpus`].
pub fn build(config: &AcpiConfig) -> Result<AcpiTables, AcpiError> {
    let count = config.apic_ids.len();
    if count > MAX_CPUS {
        return Err(AcpiError::TooManyCpus { count });
    }
    place_all(config).ok_or(AcpiError::TooManyCpus { count })
}

/// Builds and places; none when there is no room.
fn place_all(config: &AcpiConfig) -> Option<AcpiTables> {
    let mut area = Area::new();
    // The RSDP's place is fixed; its content needs the XSDT's address.
    let rsdp = area.place(vec![0; Rsdp::len()])?;
    let facs = area.place(bytes(&FACS::new()))?;
    let dsdt = area.place(dsdt::dsdt(config))?;
    let fadt = area.place(fadt(config, low(facs), dsdt))?;
    let madt = area.place(madt(config))?;
    let mcfg = area.place(mcfg())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = area.place(bytes(&xsdt))?;
    let mut tables = area.tables;
    tables[0].1 = bytes(&Rsdp::new(OEM_ID, xsdt));
    Some(AcpiTables { rsdp, tables })
}

/// First-fit placement: the BIOS area from the RSDP upwards, then, for hundreds of CPUs, the option ROM area.
struct Area {
    free: [std::ops::Range<u64>; 2],
    tables: Vec<(u64, Vec<u8>)>,
}

impl Area {
    fn new() -> Self {
        Self {
            free: [
                layout::RSDP..layout::ACPI_END,
                layout::ACPI_OVERFLOW..layout::RSDP,
            ],
            tables: Vec::new(),
        }
    }

    fn place(&mut self, content: Vec<u8>) -> Option<u64> {
        let size = (content.len() as u64).next_multiple_of(TABLE_ALIGN);
        let range = self
            .free
            .iter_mut()
            .find(|range| size <= range.end - range.start)?;
        let addr = range.start;
        range.start += size;
        self.tables.push((addr, content));
        Some(addr)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table from its body. `Sdt` sums the whole table at each append, so there is one append.
fn sdt(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(
        signature,
        HEADER_BYTES,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// An address or port known to fit its field: all come from the layout, below 1 MiB or 64 Ki.
fn low(value: u64) -> u32 {
    u32::try_from(value).expect("the layout puts it below 4 GiB")
}

/// Fixed ACPI description table (ACPI 6.5, 5.2.9).
fn fadt(config: &AcpiConfig, facs: u32, dsdt: u64) -> Vec<u8> {
    let port = |addr: u64, bits: u8, access: AccessSize| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, addr)
    };
    let mut arch = boot_arch::LEGACY_DEVICES | boot_arch::NO_VGA;
    if config.i8042 {
        arch |= boot_arch::I8042;
    }
    if !config.cmos_rtc {
        arch |= boot_arch::NO_CMOS_RTC;
    }
    // No SLP_BUTTON register behind the sleep button: flag set means absent. PWR_BUTTON clear: a fixed-hardware
    // power button, which is how SIGTERM asks the guest to power off.
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // Both, since a 32-bit DSDT pointer of zero is not understood everywhere.
    table.dsdt = low(dsdt).into();
    table.x_dsdt = dsdt.into();
    table.sci_int = 9.into();
    table.pm1a_evt_blk = low(layout::PM1A_EVENT).into();
    table.pm1_evt_len = 4;
    table.x_pm1a_evt_blk = port(layout::PM1A_EVENT, 32, AccessSize::WordAccess);
    table.pm1a_cnt_blk = low(layout::PM1A_CONTROL).into();
    table.pm1_cnt_len = 2;
    table.x_pm1a_cnt_blk = port(layout::PM1A_CONTROL, 16, AccessSize::WordAccess);
    table.pm_tmr_blk = low(layout::PM_TIMER).into();
    table.pm_tmr_len = 4;
    table.x_pm_tmr_blk = port(layout::PM_TIMER, 32, AccessSize::DwordAccess);
    // No C2 or C3 through P_LVLx registers (5.2.9: latencies above 100 and 1000).
    table.p_lvl2_lat = 0xfff.into();
    table.p_lvl3_lat = 0xfff.into();
    table.reset_reg = port(layout::RESET_CONTROL, 8, AccessSize::ByteAccess);
    table.reset_value = RESET_VALUE;
    table.iapc_boot_arch = arch.into();
    bytes(&table.finalize())
}

/// Multiple APIC description table (ACPI 6.5, 5.2.12).
fn madt(config: &AcpiConfig) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ISA_BUS: u8 = 0;
    const CONFORMS: u16 = 0;
    const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
    const EVERY_UID: u32 = u32::MAX;
    const LINT1: u8 = 1;

    let mut body = Vec::new();
    body.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    let mut x2apic = false;
    for (uid, &id) in (0u32..).zip(&config.apic_ids) {
        // Id 255 is xAPIC's broadcast.
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(id)) if id < u8::MAX => {
                body.extend_from_slice(&[0, 8, uid, id]); // 5.2.12.2, processor local APIC
                body.extend_from_slice(&ENABLED.to_le_bytes());
            }
            _ => {
                x2apic = true;
                body.extend_from_slice(&[9, 16, 0, 0]); // 5.2.12.12, processor local x2APIC
                for field in [id, ENABLED, uid] {
                    body.extend_from_slice(&field.to_le_bytes());
                }
            }
        }
    }
    body.extend_from_slice(&[1, 12, config.ioapic_id, 0]); // 5.2.12.3, I/O APIC
    body.extend_from_slice(&layout::IOAPIC.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    // 5.2.12.5, interrupt source overrides: the timer is at input 2, and the SCI is a level.
    for (irq, gsi, flags) in [(0, 2, CONFORMS), (9, layout::SCI_GSI, LEVEL_ACTIVE_HIGH)] {
        body.extend_from_slice(&[2, 10, ISA_BUS, irq]);
        body.extend_from_slice(&gsi.to_le_bytes());
        body.extend_from_slice(&flags.to_le_bytes());
    }
    body.extend_from_slice(&[4, 6, u8::MAX, 0, 0, LINT1]); // 5.2.12.7, local APIC NMI on every CPU
    if x2apic {
        body.extend_from_slice(&[10, 12, 0, 0]); // 5.2.12.13, local x2APIC NMI
        body.extend_from_slice(&EVERY_UID.to_le_bytes());
        body.extend_from_slice(&[LINT1, 0, 0, 0]);
    }
    sdt(*b"APIC", 5, &body)
}

/// PCI Express memory-mapped configuration space (PCI Firmware Specification 3.3, 4.1.2): one bus.
fn mcfg() -> Vec<u8> {
    let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.add_ecam(layout::ECAM, 0, 0, 0);
    bytes(&table)
}

#[cfg(test)]
mod tests;
