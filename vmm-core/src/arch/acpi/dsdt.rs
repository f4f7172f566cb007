//! The differentiated system description table: devices that cannot be enumerated otherwise.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, IO, Interrupt, Memory32Fixed,
    Method, Name, Package, PackageBuilder, Path, ResourceTemplate, Return, Scope,
};
use acpi_tables::{Aml, AmlSink};

use super::{AcpiConfig, bytes, low, sdt};
use crate::layout;

/// Pins INTA to INTD.
const PCI_PINS: u8 = 4;
/// `_STA`: present, enabled, shown, functioning (ACPI 6.5, 6.3.7).
const PRESENT: u8 = 0xf;

/// AML that is built already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The whole table.
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::new();
    devices.extend(pci_host_bridge(config));
    devices.extend(motherboard());
    for (port, _) in (0u8..).zip(config.com_ports).filter(|(_, there)| *there) {
        devices.extend(com_port(port));
    }
    if config.cmos_rtc {
        devices.extend(rtc());
    }
    if config.pvpanic {
        devices.extend(pvpanic());
    }
    for (uid, _) in (0u16..).zip(&config.apic_ids) {
        devices.extend(processor(uid));
    }
    let mut body = bytes(&Scope::new("_SB_".into(), vec![&Raw(devices)]));
    let sleep_type = config.s5_sleep_type;
    body.extend(bytes(&name(
        "_S5_",
        &Package::new(vec![&sleep_type, &sleep_type]),
    )));
    // Revision 2: integers have 64 bits.
    sdt(*b"DSDT", 2, &body)
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

fn device(path: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    bytes(&Device::new(Path::new(path), children))
}

/// `length` I/O ports from `base`.
fn ports(base: u64, length: u8) -> IO {
    let base = port(base);
    IO::new(base, base, 1, length)
}

fn port(addr: u64) -> u16 {
    u16::try_from(addr).expect("the layout keeps ports below 64 Ki")
}

/// An ISA interrupt: edge, active high, exclusive.
fn isa_irq(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// The root of PCI bus 0 (PCI Firmware Specification 3.3, chapter 4).
fn pci_host_bridge(config: &AcpiConfig) -> Vec<u8> {
    let bus = AddressSpace::new_bus_number(0u16, 0);
    let config_ports = ports(layout::PCI_CONFIG_ADDRESS, 8);
    let io = AddressSpace::new_io(
        port(layout::PCI_IO.start),
        port(layout::PCI_IO.end - 1),
        None,
    );
    // Ports that an IDE function has without BARs. The guest uses only what a window of the bridge holds; Linux takes no
    // window of a single port.
    let ide: Vec<_> = layout::IDE_COMMAND_PORTS
        .into_iter()
        .chain(layout::IDE_CONTROL_PORTS)
        .filter(|_| config.ide)
        .map(|start| AddressSpace::new_io(port(start & !7), port(start | 7), None))
        .collect();
    let uncached = AddressSpaceCacheable::NotCacheable;
    let mmio32 = AddressSpace::new_memory(
        uncached,
        true,
        low(layout::PCI_MMIO32.start),
        low(layout::PCI_MMIO32.end - 1),
        None,
    );
    let window = &config.pci_mmio64;
    let mmio64 = (window.start < window.end)
        .then(|| AddressSpace::new_memory(uncached, true, window.start, window.end - 1, None));
    let mut resources: Vec<&dyn Aml> = vec![&bus, &config_ports, &io, &mmio32];
    resources.extend(ide.iter().map(|window| window as &dyn Aml));
    if let Some(mmio64) = &mmio64 {
        resources.push(mmio64);
    }
    // _OSC: the guest gets every PCI Express feature it asks for, as no firmware keeps one for itself.
    let granted = Arg(3);
    let grant = Return::new(&granted);
    device(
        "PCI0",
        vec![
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &0u8),
            &name("_SEG", &0u8),
            &name("_BBN", &0u8),
            &name("_CRS", &ResourceTemplate::new(resources)),
            &Method::new("_OSC".into(), 4, false, vec![&grant]),
            &name("_PRT", &interrupt_routing(&config.pci_slots)),
        ],
    )
}

/// `_PRT` (ACPI 6.5, 6.2.13): each pin of each slot, hard-wired to a GSI. Its form implies level-triggered and
/// active-low, of which KVM's IOAPIC heeds the first.
fn interrupt_routing(slots: &[u8]) -> PackageBuilder {
    const EVERY_FUNCTION: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    for &slot in slots {
        for pin in 0..PCI_PINS {
            let address = u32::from(slot) << 16 | EVERY_FUNCTION;
            let line = (u32::from(slot) + u32::from(pin)) % layout::PCI_INTX_COUNT;
            let gsi = layout::PCI_INTX_GSI + line;
            table.add_element(&Package::new(vec![&address, &pin, &0u8, &gsi]));
        }
    }
    table
}

/// What no other device claims: configuration space and the PM registers.
fn motherboard() -> Vec<u8> {
    let ecam = Memory32Fixed::new(true, low(layout::ECAM), low(layout::ECAM_BYTES));
    let events = ports(layout::PM1A_EVENT, 4);
    let control = ports(layout::PM1A_CONTROL, 2);
    let timer = ports(layout::PM_TIMER, 4);
    device(
        "MBRD",
        vec![
            &name("_HID", &EISAName::new("PNP0C02")),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&ecam, &events, &control, &timer]),
            ),
        ],
    )
}

fn com_port(index: u8) -> Vec<u8> {
    let registers = ports(layout::COM_PORTS[usize::from(index)], 8);
    let interrupt = isa_irq(layout::COM_GSIS[usize::from(index)]);
    device(
        &format!("COM{}", index + 1),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &(index + 1)),
            &name("_CRS", &ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    )
}

fn rtc() -> Vec<u8> {
    let registers = ports(layout::CMOS, 2);
    let interrupt = isa_irq(layout::CMOS_GSI);
    device(
        "RTC_",
        vec![
            &name("_HID", &EISAName::new("PNP0B00")),
            &name("_CRS", &ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    )
}

fn pvpanic() -> Vec<u8> {
    device(
        "PEVT",
        vec![
            &name("_HID", &"QEMU0001"),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&ports(layout::PVPANIC, 1)]),
            ),
            &name("_STA", &PRESENT),
        ],
    )
}

/// A processor device (ACPI 6.5, 8.4), named by its number in hexadecimal: `C000`, `C001` and so on.
fn processor(uid: u16) -> Vec<u8> {
    device(
        &format!("C{uid:03X}"),
        vec![&name("_HID", &"ACPI0007"), &name("_UID", &uid)],
    )
}
