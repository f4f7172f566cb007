//! What a CPU needs to start in long mode: an identity map of the first 4 GiB and a GDT (Linux's
//! `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol").

use devices::dma::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, PAGE_BYTES};
use crate::layout;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
/// One page directory maps 1 GiB; four of them reach 4 GiB.
const DIRECTORIES: u64 = 4;

/// Selector of the 64-bit code segment (`__BOOT_CS`).
pub const BOOT_CS: u16 = 0x10;
/// Selector of the flat data segment (`__BOOT_DS`).
pub const BOOT_DS: u16 = 0x18;
/// Selector of the 32-bit code segment, for PVH.
pub const BOOT_CS32: u16 = 0x20;
/// Selector of the task state segment (base 0, limit 0x67, busy).
pub const BOOT_TSS: u16 = 0x28;

/// The initial GDT, at [`layout::GDT`] (Intel SDM, volume 3, 3.4.5): indexed by selector divided by eight.
pub const GDT_ENTRIES: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // code: long mode, present, accessed
    0x00cf_9300_0000_ffff, // data: 4 GiB, writable, accessed
    0x00cf_9b00_0000_ffff, // code: 32 bits, 4 GiB
    0x0000_8b00_0000_0067, // TSS, busy
];

/// Writes the GDT and the page tables.
///
/// The PML4 is at [`layout::PAGE_TABLES`]; pages of 2 MiB, which every x86-64 CPU has.
///
/// # Errors
/// [`BootError::Write`].
pub fn write_long_mode_tables(ram: &GuestRam) -> Result<(), BootError> {
    write_gdt(ram)?;
    let pointer = |page: u64| (layout::PAGE_TABLES + page * PAGE_BYTES) | PRESENT | WRITABLE;
    let mut tables = vec![0u64; usize::try_from((2 + DIRECTORIES) * ENTRIES).unwrap_or(0)];
    let (pml4, rest) = tables.split_at_mut(512);
    let (pdpt, directories) = rest.split_at_mut(512);
    pml4[0] = pointer(1);
    for (directory, entry) in (2..).zip(&mut pdpt[..4]) {
        *entry = pointer(directory);
    }
    for (page, entry) in (0u64..).zip(directories) {
        *entry = (page << 21) | PRESENT | WRITABLE | LARGE;
    }
    write_entries(ram, "page tables", layout::PAGE_TABLES, &tables)
}

/// Writes the GDT alone, which is all that PVH's entry needs.
///
/// # Errors
/// [`BootError::Write`].
pub fn write_gdt(ram: &GuestRam) -> Result<(), BootError> {
    write_entries(ram, "the GDT", layout::GDT, &GDT_ENTRIES)
}

fn write_entries(
    ram: &GuestRam,
    what: &'static str,
    addr: u64,
    entries: &[u64],
) -> Result<(), BootError> {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    ram.write_slice(&bytes, GuestAddress(addr))
        .map_err(|_| BootError::Write { what, addr })
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::testing::test_ram;

    /// Walks the tables as the CPU does.
    fn translate(ram: &GuestRam, addr: u64) -> Option<u64> {
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30, 21] {
            let index = (addr >> shift) & 511;
            let entry: u64 = ram.read_obj(GuestAddress(table + index * 8)).unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            let target = entry & 0x000f_ffff_ffff_f000;
            if entry & LARGE != 0 {
                return Some(target | (addr & ((1 << shift) - 1)));
            }
            table = target;
        }
        panic!("no page of 4 KiB is expected");
    }

    #[test]
    fn first_4_gib_are_mapped_to_themselves() {
        let ram = test_ram(0x1_0000);
        ram.write_slice(&[0xff; 0x1_0000], GuestAddress(0)).unwrap();
        write_long_mode_tables(&ram).unwrap();
        for addr in [0, 0x1234, 0x1f_ffff, 0x20_0000, 0x4000_0000, 0xffff_ffff] {
            assert_eq!(translate(&ram, addr), Some(addr), "{addr:#x}");
        }
        for addr in [0x1_0000_0000, 0x80_0000_0000, 0xffff_8000_0000_0000] {
            assert_eq!(translate(&ram, addr), None, "{addr:#x}");
        }
    }

    #[test]
    fn selectors_name_their_descriptors() {
        let ram = test_ram(0x1000);
        write_gdt(&ram).unwrap();
        let descriptor = |selector: u16| {
            let addr = layout::GDT + u64::from(selector);
            ram.read_obj::<u64>(GuestAddress(addr)).unwrap()
        };
        assert_eq!(descriptor(BOOT_CS) >> 53 & 1, 1, "L bit");
        assert_eq!(descriptor(BOOT_CS32) >> 53 & 3, 2, "D bit without L");
        assert_eq!(descriptor(BOOT_DS) >> 40 & 0xf, 3, "writable data");
        assert_eq!(descriptor(BOOT_TSS) >> 40 & 0x1f, 11, "busy TSS");
    }

    #[test]
    fn too_little_ram_is_an_error() {
        let error = write_long_mode_tables(&test_ram(0x9000)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot write page tables to guest memory at 0x9000"
        );
    }
}
