//! PVH's start information (Xen's `public/arch-x86/hvm/start_info.h`).

use std::ops::Range;

use devices::dma::GuestRam;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::BootError;
use super::params::{MapType, memory_map};
use crate::layout;

const MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const VERSION: u32 = 1;
const MAP_RAM: u32 = 1;
const MAP_RESERVED: u32 = 2;

/// Writes start information, memory map and module list to their places in the layout.
pub(super) fn write(
    ram: &GuestRam,
    acpi_rsdp: u64,
    initrd: Option<&Range<u64>>,
) -> Result<(), BootError> {
    let mut map = Vec::new();
    for (range, kind) in memory_map(ram) {
        map.push(hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: match kind {
                MapType::Ram => MAP_RAM,
                MapType::Reserved => MAP_RESERVED,
            },
            reserved: 0,
        });
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| layout::PVH_MODLIST),
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: acpi_rsdp,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        reserved: 0,
    };
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            cmdline_paddr: 0,
            reserved: 0,
        };
        write_at(ram, layout::PVH_MODLIST, &module)?;
    }
    for (addr, entry) in (layout::PVH_MEMMAP..)
        .step_by(size_of::<hvm_memmap_table_entry>())
        .zip(&map)
    {
        write_at(ram, addr, entry)?;
    }
    write_at(ram, layout::PVH_START_INFO, &info)
}

fn write_at(ram: &GuestRam, addr: u64, object: &impl ByteValued) -> Result<(), BootError> {
    ram.write_slice(object.as_slice(), GuestAddress(addr))
        .map_err(|_| BootError::Write {
            what: "PVH start information",
            addr,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::testing::test_ram;

    #[test]
    fn start_info_leads_to_map_and_module() {
        let ram = test_ram(2 << 20);
        write(&ram, layout::RSDP, Some(&(0x18_0000..0x18_0123))).unwrap();
        let info: hvm_start_info = ram.read_obj(GuestAddress(layout::PVH_START_INFO)).unwrap();
        assert_eq!((info.magic, info.version), (0x336e_c578, 1));
        assert_eq!(
            (info.rsdp_paddr, info.cmdline_paddr),
            (layout::RSDP, layout::CMDLINE)
        );
        let module: hvm_modlist_entry = ram.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!(
            (info.nr_modules, module.paddr, module.size),
            (1, 0x18_0000, 0x123)
        );
        let map: Vec<hvm_memmap_table_entry> = (0..u64::from(info.memmap_entries))
            .map(|index| {
                ram.read_obj(GuestAddress(info.memmap_paddr + index * 24))
                    .unwrap()
            })
            .collect();
        assert_eq!(map.len(), 5);
        assert_eq!(
            (map[2].addr, map[2].size, map[2].type_),
            (0x10_0000, 0x10_0000, 1)
        );
    }

    #[test]
    fn without_initramfs_there_is_no_module() {
        let ram = test_ram(2 << 20);
        write(&ram, layout::RSDP, None).unwrap();
        let info: hvm_start_info = ram.read_obj(GuestAddress(layout::PVH_START_INFO)).unwrap();
        assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    }
}
