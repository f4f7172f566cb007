use super::*;
use crate::boot::params::MapType;
use crate::boot::testing::real_mode_kernel;
use vm_memory::GuestMemoryBackend;

fn parse(bytes: &[u8]) -> Result<RealMode, String> {
    let (len, path) = (bytes.len() as u64, Path::new("ipxe.lkrn"));
    let header = crate::boot::bzimage::parse_header(bytes, len, path).unwrap();
    assert!(is_for_real_mode(&header));
    RealMode::new(header, len, path).map_err(|error| error.to_string())
}

fn problem(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = real_mode_kernel();
    change(&mut bytes);
    parse(&bytes).unwrap_err()
}

fn ram(bytes: usize) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
}

fn u16_at(ram: &GuestRam, addr: u64) -> u16 {
    ram.read_obj(GuestAddress(addr)).unwrap()
}

fn u32_at(ram: &GuestRam, addr: u64) -> u32 {
    ram.read_obj(GuestAddress(addr)).unwrap()
}

fn load(ram: &GuestRam, state: RamState, initrd: Option<&Range<u64>>) -> EntryPoint {
    use std::io::Write;
    let bytes = real_mode_kernel();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let kernel = parse(&bytes).unwrap();
    kernel.load(&file, ram, state).unwrap();
    kernel.write_machine(ram, initrd).unwrap()
}

#[test]
fn a_linux_is_not_for_real_mode() {
    let is = |version, payload_length, xloadflags| {
        is_for_real_mode(&setup_header {
            version,
            payload_length,
            xloadflags,
            ..setup_header::default()
        })
    };
    assert!(is(0x207, 0, 0));
    assert!(is(0x20f, 0, 0));
    assert!(!is(0x20f, 0, XLF_KERNEL_64));
    assert!(!is(0x20f, 1 << 20, XLF_KERNEL_64));
    assert!(!is(0x20b, 1 << 20, 0), "an old Linux, or one of 32 bits");
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    assert_eq!(
        problem(|image| image[0x206] = 1),
        "kernel ipxe.lkrn: is of boot protocol 2.01, from before Linux 2.4; \
         give a bzImage, an x86-64 ELF vmlinux or a PVH kernel"
    );
    assert!(problem(|image| image[0x211] = 0).contains("is a zImage"));
    assert_eq!(
        problem(|image| image[0x1f1] = 64),
        "kernel ipxe.lkrn: is damaged: its setup code has 33280 bytes, more than 32768"
    );
    assert_eq!(
        problem(|image| image.truncate(0x620)),
        "kernel ipxe.lkrn: is truncated: the kernel ends at byte 1584, the file at 1568"
    );
    assert!(problem(|image| image.truncate(0x600)).contains("is truncated"));
    assert!(problem(|image| image[0x1f4..0x1f8].fill(0xff)).contains("is truncated"));
}

#[test]
fn limits_are_the_headers_where_it_has_them() {
    let new = parse(&real_mode_kernel()).unwrap();
    assert_eq!(
        (new.cmdline_max_bytes(), new.initrd_addr_max()),
        (2047, u32::MAX)
    );
    assert_eq!(new.memory(), 0x10_0000..0x10_0028);
    let mut bytes = real_mode_kernel();
    bytes[0x206] = 2;
    let old = parse(&bytes).unwrap();
    assert_eq!(
        (old.cmdline_max_bytes(), old.initrd_addr_max()),
        (255, 0x37ff_ffff)
    );
}

#[test]
fn header_is_filled_in() {
    let ram = ram(4 << 20);
    load(&ram, RamState::Fresh, Some(&(0x30_0000..0x30_0123)));
    let base = layout::REAL_MODE_KERNEL;
    assert_eq!(u16_at(&ram, base + 0x1fe), 0xaa55);
    assert_eq!(u16_at(&ram, base + 0x1fa), 0xffff);
    assert_eq!(u16_at(&ram, base + 0x210), 0x81ff, "loader, flags");
    assert_eq!(u32_at(&ram, base + 0x218), 0x30_0000);
    assert_eq!(u32_at(&ram, base + 0x21c), 0x123);
    assert_eq!(u16_at(&ram, base + 0x224), 0xde00);
    assert_eq!(u32_at(&ram, base + 0x228), 0x2_0000);
    assert_eq!(u32_at(&ram, layout::HIGH_RAM + 36), 0x6666_6666);
    assert_eq!(u32_at(&ram, layout::HIGH_RAM + 40), 0);
}

#[test]
fn a_restart_finds_the_same_machine() {
    let (fresh, used) = (ram(4 << 20), ram(4 << 20));
    used.write_slice(&[0xaa; 0x10_0000], GuestAddress(0))
        .unwrap();
    let entry = load(&fresh, RamState::Fresh, None);
    assert_eq!(load(&used, RamState::Used, None), entry);
    for range in [
        0..layout::CMDLINE,
        layout::REAL_MODE_SERVICES,
        0x10_0000..0x10_0028,
    ] {
        let read = |ram: &GuestRam| {
            let mut bytes = vec![0u8; (range.end - range.start) as usize];
            ram.read_slice(&mut bytes, GuestAddress(range.start))
                .unwrap();
            bytes
        };
        assert!(read(&fresh) == read(&used), "{range:#x?}");
    }
}

#[test]
fn every_vector_leads_into_the_services() {
    let ram = ram(4 << 20);
    let EntryPoint::RealMode { segment, offset } = load(&ram, RamState::Fresh, None) else {
        panic!("not in real mode");
    };
    let place = |segment: u16, offset: u16| u64::from(segment) * 16 + u64::from(offset);
    // The code begins behind the memory map.
    let code = layout::REAL_MODE_SERVICES.start + 0x380..layout::REAL_MODE_SERVICES.end;
    assert_eq!(place(segment, offset), code.start);
    for number in 0..256 {
        let vector = place(u16_at(&ram, number * 4 + 2), u16_at(&ram, number * 4));
        assert!(code.contains(&vector), "{number:#x}: {vector:#x}");
    }
    let first_byte = |number: u64| {
        let at = place(u16_at(&ram, number * 4 + 2), u16_at(&ram, number * 4));
        ram.read_obj::<u8>(GuestAddress(at)).unwrap()
    };
    assert_eq!(first_byte(0x1c), 0xcf, "iret");
    assert_eq!(first_byte(0x08), 0x1e, "push %ds");
    assert_eq!(
        u16_at(&ram, 0xf_fff0) & 0xff,
        0xe9,
        "a jump at the reset vector"
    );
}

#[test]
fn bios_data_and_memory_services_agree_with_the_memory_map() {
    let low = 64 << 20;
    let ram = GuestRam::from_ranges(&[
        (GuestAddress(0), low),
        (GuestAddress(layout::RAM_ABOVE_4G), 1 << 20),
    ])
    .unwrap();
    load(&ram, RamState::Fresh, None);
    assert_eq!(u16_at(&ram, 0x413), 639);
    assert_eq!(u16_at(&ram, 0x40e), 0x9fc0);
    assert_eq!(u16_at(&ram, 0x400), 0x3f8);
    assert_eq!(u32_at(&ram, 0x46c), 0, "no ticks yet");
    let block = layout::REAL_MODE_SERVICES.start;
    let map = memory_map(&ram);
    assert_eq!(u16_at(&ram, block), 0x1000);
    assert_eq!(usize::from(u16_at(&ram, block + 2)), map.len());
    assert_eq!(u16_at(&ram, block + 4), 15 << 10);
    assert_eq!(u16_at(&ram, block + 6), 48 << 4);
    assert_eq!(u16_at(&ram, block + 8), 63 << 10);
    for (index, (range, kind)) in map.iter().enumerate() {
        let at = block + 0x100 + index as u64 * 20;
        let [start, len] = [at, at + 8].map(|at| ram.read_obj::<u64>(GuestAddress(at)).unwrap());
        assert_eq!(start..start + len, *range);
        let expected = if *kind == MapType::Ram { 1 } else { 2 };
        assert_eq!(u32_at(&ram, at + 16), expected);
    }
}

#[test]
fn a_map_of_any_length_stays_in_its_place() {
    let ram = ram(4 << 20);
    let map: Vec<_> = (0..100)
        .map(|i| (i << 12..(i + 1) << 12, MapType::Ram))
        .collect();
    services::write(&ram, 0x1000, &map).unwrap();
    let block = layout::REAL_MODE_SERVICES.start;
    assert_eq!(u16_at(&ram, block + 2), 32);
    assert_eq!(
        u16_at(&ram, block + 0x380) & 0xff,
        0xfa,
        "cli, the first of the code"
    );
    assert!(ram.check_range(GuestAddress(block), 0x1000));
}
