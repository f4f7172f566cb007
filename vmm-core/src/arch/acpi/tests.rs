use super::*;

fn config(cpus: u32) -> AcpiConfig {
    AcpiConfig {
        apic_ids: (0..cpus).collect(),
        ioapic_id: 0,
        com_ports: [true; 4],
        i8042: true,
        cmos_rtc: true,
        pvpanic: true,
        ide: true,
        pci_slots: vec![1, 2, 31],
        pci_mmio64: 0x4_0000_0000..0x8_0000_0000,
        s5_sleep_type: 5,
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(table: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(table[at..at + 2].try_into().unwrap())
}

fn u32_at(table: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(table[at..at + 4].try_into().unwrap())
}

fn u64_at(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

impl AcpiTables {
    fn at(&self, addr: u64) -> &[u8] {
        let found = self.tables.iter().find(|table| table.0 == addr);
        &found.unwrap_or_else(|| panic!("no table at {addr:#x}")).1
    }

    /// Follows RSDP and XSDT, as a guest does.
    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        let xsdt = self.at(u64_at(self.at(self.rsdp), 24));
        (36..xsdt.len())
            .step_by(8)
            .map(|at| self.at(u64_at(xsdt, at)))
            .find(|table| &table[..4] == signature)
            .unwrap()
    }
}

fn contains(table: &[u8], needle: &[u8]) -> bool {
    table.windows(needle.len()).any(|window| window == needle)
}

/// Writes the DSDT where `iasl -d` can read it: `TRIPATH_DUMP_DSDT=/tmp/dsdt.aml cargo test -p vmm-core dsdt`.
fn dump_dsdt(dsdt: &[u8]) {
    if let Some(path) = std::env::var_os("TRIPATH_DUMP_DSDT") {
        std::fs::write(path, dsdt).unwrap();
    }
}

#[test]
fn every_table_has_its_length_and_checksum() {
    for cpus in [1, 4, 300] {
        let built = build(&config(cpus)).unwrap();
        let rsdp = built.at(built.rsdp);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(rsdp[15], 2, "revision");
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        for (addr, table) in &built.tables[1..] {
            assert_eq!(u32_at(table, 4) as usize, table.len(), "{addr:#x}");
            if &table[..4] != b"FACS" {
                assert_eq!(sum(table), 0, "{addr:#x}");
            }
        }
    }
}

#[test]
fn tables_are_aligned_apart_and_in_their_area() {
    for cpus in [1, 300, MAX_CPUS as u32] {
        let built = build(&config(cpus)).unwrap();
        assert_eq!(built.rsdp, layout::RSDP);
        let mut ranges: Vec<_> = built
            .tables
            .iter()
            .map(|(addr, table)| (*addr, addr + table.len() as u64))
            .collect();
        ranges.sort_unstable();
        assert!(ranges[0].0 >= layout::ACPI_OVERFLOW);
        assert!(ranges.last().unwrap().1 <= layout::ACPI_END);
        assert!(ranges.iter().all(|range| range.0 % TABLE_ALIGN == 0));
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }
}

#[test]
fn tables_are_written_where_they_say() {
    let ram = devices::testing::test_ram(1 << 20);
    let built = build(&config(2)).unwrap();
    built.write(&ram).unwrap();
    for (addr, table) in &built.tables {
        let mut found = vec![0; table.len()];
        ram.read_slice(&mut found, GuestAddress(*addr)).unwrap();
        assert_eq!(&found, table, "{addr:#x}");
    }
    assert!(built.write(&devices::testing::test_ram(0x1000)).is_err());
}

#[test]
fn a_small_machine_leaves_the_option_rom_area_alone() {
    let built = build(&config(256)).unwrap();
    assert!(built.tables.iter().all(|table| table.0 >= layout::RSDP));
}

#[test]
fn too_many_cpus_are_refused() {
    let error = build(&config(MAX_CPUS as u32 + 1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the ACPI tables of 4097 CPUs do not fit below 1 MiB; those of 4096 do"
    );
}

#[test]
fn fadt_names_the_registers() {
    let built = build(&config(1)).unwrap();
    let fadt = built.find(b"FACP");
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let facs = built.at(u32_at(fadt, 36).into());
    assert_eq!(&facs[..4], b"FACS");
    assert_eq!(&built.at(u64_at(fadt, 140))[..4], b"DSDT");
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
    assert_eq!(u16_at(fadt, 46), 9, "SCI_INT");
    assert_eq!(u32_at(fadt, 48), 0, "SMI_CMD: always in ACPI mode");
    assert_eq!(u32_at(fadt, 56), 0x600);
    assert_eq!(u32_at(fadt, 64), 0x604);
    assert_eq!(u32_at(fadt, 76), 0x608);
    assert_eq!((fadt[88], fadt[89], fadt[91]), (4, 2, 4));
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & 1 << 4, 0, "fixed power button");
    assert_ne!(flags & 1 << 5, 0, "no fixed sleep button");
    assert_ne!(flags & 1 << 8, 0, "32-bit PM timer");
    assert_ne!(flags & 1 << 10, 0, "reset register");
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    // Generic address structures: space, width, offset, access size, address.
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6));
    assert_eq!(
        (fadt[148..152].to_vec(), u64_at(fadt, 152)),
        (vec![1, 32, 0, 2], 0x600)
    );
    assert_eq!(
        (fadt[172..176].to_vec(), u64_at(fadt, 176)),
        (vec![1, 16, 0, 2], 0x604)
    );
    assert_eq!(
        (fadt[208..212].to_vec(), u64_at(fadt, 212)),
        (vec![1, 32, 0, 3], 0x608)
    );
}

#[test]
fn fadt_says_which_legacy_devices_there_are() {
    let mut config = config(1);
    let arch = |config: &AcpiConfig| u16_at(build(config).unwrap().find(b"FACP"), 109);
    assert_eq!(arch(&config), 0b00_0111);
    config.i8042 = false;
    config.cmos_rtc = false;
    assert_eq!(arch(&config), 0b10_0101);
}

/// Type and content of each structure of a MADT.
fn madt_entries(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut at = 44;
    while at < madt.len() {
        let len = usize::from(madt[at + 1]);
        entries.push((madt[at], madt[at + 2..at + len].to_vec()));
        at += len;
    }
    assert_eq!(at, madt.len());
    entries
}

#[test]
fn madt_lists_cpus_and_interrupt_sources() {
    let mut config = config(0);
    config.apic_ids = vec![0, 2];
    config.ioapic_id = 7;
    let built = build(&config).unwrap();
    let madt = built.find(b"APIC");
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    assert_eq!(
        madt_entries(madt),
        vec![
            (0, vec![0, 0, 1, 0, 0, 0]),
            (0, vec![1, 2, 1, 0, 0, 0]),
            (1, vec![7, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
            (2, vec![0, 0, 2, 0, 0, 0, 0, 0]),
            (2, vec![0, 9, 9, 0, 0, 0, 13, 0]),
            (4, vec![255, 0, 0, 1]),
        ]
    );
}

#[test]
fn cpus_beyond_xapic_ids_are_x2apic() {
    let mut config = config(0);
    config.apic_ids = vec![0, 254, 255, 0x1_0000];
    let built = build(&config).unwrap();
    let entries = madt_entries(built.find(b"APIC"));
    let kinds: Vec<_> = entries.iter().map(|entry| entry.0).collect();
    assert_eq!(kinds, [0, 0, 9, 9, 1, 2, 2, 4, 10]);
    assert_eq!(entries[3].1, [0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
}

#[test]
fn mcfg_names_one_bus() {
    let built = build(&config(1)).unwrap();
    let mcfg = built.find(b"MCFG");
    assert_eq!(mcfg.len(), 60);
    assert_eq!(u64_at(mcfg, 44), layout::ECAM);
    assert_eq!(mcfg[52..56], [0, 0, 0, 0], "segment 0, bus 0 to 0");
}

#[test]
fn dsdt_lists_what_is_there_and_nothing_else() {
    let full = dsdt::dsdt(&config(2));
    dump_dsdt(&full);
    for name in [
        &b"PCI0"[..],
        b"MBRD",
        b"COM1",
        b"COM4",
        b"RTC_",
        b"PEVT",
        b"C000",
        b"C001",
        b"_S5_",
    ] {
        assert!(contains(&full, name), "{}", name.escape_ascii());
    }
    assert!(!contains(&full, b"C002"));

    let mut bare = config(1);
    bare.com_ports = [false, true, false, false];
    bare.cmos_rtc = false;
    bare.pvpanic = false;
    let bare = dsdt::dsdt(&bare);
    assert!(contains(&bare, b"COM2"));
    for name in [&b"COM1"[..], b"COM3", b"RTC_", b"PEVT", b"C001"] {
        assert!(!contains(&bare, name), "{}", name.escape_ascii());
    }
}

#[test]
fn dsdt_routes_populated_slots_only() {
    let routing = |slot: u8, pin: u8, gsi: u8| {
        let mut package = vec![0x12, 0x0b, 4, 0x0c, 0xff, 0xff, slot, 0];
        match pin {
            0 | 1 => package.push(pin),
            _ => package.extend([0x0a, pin]),
        }
        package.extend([0, 0x0a, gsi]);
        package[1] = package.len() as u8 - 1;
        package
    };
    let dsdt = dsdt::dsdt(&config(1));
    for (slot, pin, gsi) in [(1, 0, 17), (1, 3, 20), (2, 1, 19), (31, 0, 23), (31, 1, 16)] {
        assert!(contains(&dsdt, &routing(slot, pin, gsi)), "{slot}/{pin}");
    }
    assert!(!contains(&dsdt, &[0x0c, 0xff, 0xff, 3, 0]));
}

#[test]
fn dsdt_gives_the_64_bit_window_only_when_there_is_one() {
    let mut config = config(1);
    const QWORD_ADDRESS_SPACE: [u8; 4] = [0x8a, 43, 0, 0];
    assert!(contains(&dsdt::dsdt(&config), &QWORD_ADDRESS_SPACE));
    config.pci_mmio64 = 0..0;
    assert!(!contains(&dsdt::dsdt(&config), &QWORD_ADDRESS_SPACE));
}

#[test]
fn sleep_type_is_the_callers() {
    let mut config = config(1);
    config.s5_sleep_type = 3;
    assert!(contains(
        &dsdt::dsdt(&config),
        b"_S5_\x12\x06\x02\x0a\x03\x0a\x03"
    ));
}
