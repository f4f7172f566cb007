//! `struct boot_params`, the "zero page" (Linux's `Documentation/arch/x86/zero-page.rst`), and the memory map.
//!
//! What is left zero keeps Linux from probing: no video mode (no VGA text console), no EDD, no APM, no EFI.

use std::ops::Range;

use devices::dma::GuestRam;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::BootError;
use super::bzimage::LOADED_HIGH;
use crate::layout;

/// A boot loader without a number of its own.
const LOADER_UNREGISTERED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const PROTOCOL_2_15: u16 = 0x020f;
/// `COMMAND_LINE_SIZE - 1` of every x86 Linux.
pub(super) const LINUX_CMDLINE_MAX_BYTES: u32 = 2047;
/// What Linux sets itself, unless it may be loaded anywhere.
pub(super) const LINUX_INITRD_ADDR_MAX: u32 = 0x7fff_ffff;

/// Use of a part of the guest's physical address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapType {
    /// RAM that the guest may use.
    Ram,
    /// Not RAM, or RAM with firmware's tables in it.
    Reserved,
}

/// The guest's memory map, sorted: what RAM there is, less the BIOS area, plus what must not be given to devices.
pub(super) fn memory_map(ram: &GuestRam) -> Vec<(Range<u64>, MapType)> {
    let bios_area = layout::EBDA..layout::HIGH_RAM;
    let ecam = layout::ECAM..layout::ECAM + layout::ECAM_BYTES;
    // The identity map's page and the three of the TSS behind it.
    let kvm = layout::KVM_IDENTITY_MAP..layout::KVM_TSS as u64 + 0x3000;
    let mut map: Vec<_> = [bios_area.clone(), ecam, kvm]
        .into_iter()
        .map(|range| (range, MapType::Reserved))
        .collect();
    for region in ram.iter() {
        let start = region.start_addr().raw_value();
        let end = start.saturating_add(region.len());
        for part in [
            start..end.min(bios_area.start),
            start.max(bios_area.end)..end,
        ] {
            if !part.is_empty() {
                map.push((part, MapType::Ram));
            }
        }
    }
    map.sort_unstable_by_key(|(range, _)| range.start);
    map
}

/// What the boot parameters say besides the memory map.
pub(super) struct Params {
    /// From a bzImage, or [`vmlinux_header`].
    pub header: setup_header,
    /// Guest-physical address of the RSDP.
    pub acpi_rsdp: u64,
    /// Where the initramfs is.
    pub initrd: Option<Range<u64>>,
}

/// The setup header of a kernel that has none.
pub(super) fn vmlinux_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL_2_15,
        loadflags: LOADED_HIGH,
        initrd_addr_max: LINUX_INITRD_ADDR_MAX,
        cmdline_size: LINUX_CMDLINE_MAX_BYTES,
        ..setup_header::default()
    }
}

/// Writes the boot parameters to [`layout::ZERO_PAGE`].
pub(super) fn write(ram: &GuestRam, params: &Params) -> Result<(), BootError> {
    let initrd = params.initrd.clone().unwrap_or(0..0);
    let mut page = boot_params {
        acpi_rsdp_addr: params.acpi_rsdp,
        hdr: setup_header {
            type_of_loader: LOADER_UNREGISTERED,
            cmd_line_ptr: low(layout::CMDLINE),
            ramdisk_image: low(initrd.start),
            ramdisk_size: low(initrd.end - initrd.start),
            ..params.header
        },
        ..boot_params::default()
    };
    let map = memory_map(ram);
    for (slot, (range, kind)) in page.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: range.start,
            size: range.end - range.start,
            r#type: match kind {
                MapType::Ram => 1,
                MapType::Reserved => 2,
            },
        };
        page.e820_entries += 1;
    }
    ram.write_obj(page, GuestAddress(layout::ZERO_PAGE))
        .map_err(|_| BootError::Write {
            what: "boot parameters",
            addr: layout::ZERO_PAGE,
        })
}

/// Writes the command line and its NUL to [`layout::CMDLINE`].
pub(super) fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<(), BootError> {
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    ram.write_slice(&bytes, GuestAddress(layout::CMDLINE))
        .map_err(|_| BootError::Write {
            what: "the command line",
            addr: layout::CMDLINE,
        })
}

/// An address or size below 4 GiB: all that are passed lie in RAM below the hole.
fn low(value: u64) -> u32 {
    u32::try_from(value).expect("kept below 4 GiB by the layout and the initramfs's placement")
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::testing::test_ram;

    fn sparse_ram(low: usize, high: usize) -> GuestRam {
        GuestRam::from_ranges(&[
            (GuestAddress(0), low),
            (GuestAddress(layout::RAM_ABOVE_4G), high),
        ])
        .unwrap()
    }

    #[test]
    fn memory_map_spares_the_bios_area_and_what_is_not_ram() {
        let map = memory_map(&sparse_ram(64 << 20, 1 << 30));
        let expected = [
            (0..0x9_fc00, MapType::Ram),
            (0x9_fc00..0x10_0000, MapType::Reserved),
            (0x10_0000..64 << 20, MapType::Ram),
            (0xe000_0000..0xe010_0000, MapType::Reserved),
            (0xfffb_c000..0xfffc_0000, MapType::Reserved),
            (0x1_0000_0000..0x1_4000_0000, MapType::Ram),
        ];
        assert_eq!(map, expected);
    }

    #[test]
    fn zero_page_has_its_fields_where_linux_looks() {
        let ram = sparse_ram(1 << 20, 1 << 20);
        ram.write_slice(&[0xff; 4096], GuestAddress(layout::ZERO_PAGE))
            .unwrap();
        let params = Params {
            header: vmlinux_header(),
            acpi_rsdp: layout::RSDP,
            initrd: Some(0x8_0000..0x8_1234),
        };
        write(&ram, &params).unwrap();
        let u8_at = |at: u64| {
            ram.read_obj::<u8>(GuestAddress(layout::ZERO_PAGE + at))
                .unwrap()
        };
        let u32_at = |at: u64| {
            ram.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE + at))
                .unwrap()
        };
        let u64_at = |at: u64| {
            ram.read_obj::<u64>(GuestAddress(layout::ZERO_PAGE + at))
                .unwrap()
        };
        assert_eq!(u64_at(0x70), layout::RSDP);
        assert_eq!(u8_at(0x1e8), 5, "entries: two of RAM, three reserved");
        assert_eq!(u8_at(0x1ef), 0, "sentinel");
        assert_eq!(u32_at(0x202), HEADER_MAGIC);
        assert_eq!((u8_at(0x210), u8_at(0x211)), (0xff, 1));
        assert_eq!((u32_at(0x218), u32_at(0x21c)), (0x8_0000, 0x1234));
        assert_eq!(u32_at(0x228), 0x2_0000);
        assert_eq!(
            (u64_at(0x2d0), u64_at(0x2d8), u32_at(0x2e0)),
            (0, 0x9_fc00, 1)
        );
        assert_eq!(u64_at(0), 0, "no video mode");
        assert_eq!(u64_at(0xff8), 0);
    }

    #[test]
    fn command_line_ends_with_nul() {
        let ram = test_ram(0x3_0000);
        ram.write_slice(&[0xff; 8], GuestAddress(layout::CMDLINE))
            .unwrap();
        write_cmdline(&ram, "quiet").unwrap();
        let mut bytes = [0; 7];
        ram.read_slice(&mut bytes, GuestAddress(layout::CMDLINE))
            .unwrap();
        assert_eq!(&bytes, b"quiet\0\xff");
        assert!(write_cmdline(&test_ram(0x1000), "quiet").is_err());
    }
}
