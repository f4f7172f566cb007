//! Kernels that start in real mode, by the 16-bit boot protocol (Linux's `Documentation/arch/x86/boot.rst`), such as
//! iPXE's `ipxe.lkrn`: the header is Linux's, but what follows is a program for a PC with a BIOS.
//!
//! There is no firmware here. What such a program asks of a BIOS is answered by one page of 16-bit code, `services.s`,
//! and by the tables that this module writes beside it:
//!
//! ```text
//! 0000_0000   interrupt vectors                  0001_0000   setup code, heap and stack of the kernel (64 KiB)
//! 0000_0400   BIOS data area                     0002_0000   command line
//! 0009_fc00   EBDA                               000f_f000   services and memory map
//! 0010_0000   protected-mode part of the kernel
//! ```

mod services;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use devices::dma::GuestRam;
use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress};

use super::bzimage::{LOADED_HIGH, SECTOR_BYTES, XLF_KERNEL_64, setup_bytes};
use super::image::{self, RamState};
use super::params::memory_map;
use super::{BootError, EntryPoint};
use crate::layout;
use services::Vector;

/// Since this version the header says where the compressed kernel is.
const VERSION_PAYLOAD: u16 = 0x0208;
/// Since this version the header has a pointer to the command line, and a kernel is loaded anywhere below 0x9a000.
const VERSION_CMD_LINE_PTR: u16 = 0x0202;
/// Since this version `initrd_addr_max` is there.
const VERSION_INITRD_ADDR_MAX: u16 = 0x0203;
/// Since this version `cmdline_size` is there.
const VERSION_CMDLINE_SIZE: u16 = 0x0206;
/// The limits of kernels that do not tell theirs.
const OLD_CMDLINE_BYTES: u64 = 255;
const OLD_INITRD_ADDR_MAX: u32 = 0x37ff_ffff;

/// Most bytes of setup code; heap and stack follow, up to [`STACK_END`] ("Sample Boot Configuration").
const SETUP_MAX_BYTES: u64 = 0x8000;
/// Offset of the stack's end in the kernel's segment.
const STACK_END: u16 = 0xe000;
/// What the kernel's heap leaves of the stack.
const STACK_BYTES: u16 = 0x200;

// Fields of the header that a boot loader writes.
const VID_MODE: u64 = 0x1fa;
const TYPE_OF_LOADER: u64 = 0x210;
const LOADFLAGS: u64 = 0x211;
const RAMDISK_IMAGE: u64 = 0x218;
const RAMDISK_SIZE: u64 = 0x21c;
const HEAP_END_PTR: u64 = 0x224;
const CMD_LINE_PTR: u64 = 0x228;
const VID_MODE_NORMAL: u16 = 0xffff;
const LOADER_UNREGISTERED: u8 = 0xff;
const CAN_USE_HEAP: u8 = 1 << 7;

/// Addresses of the BIOS data area (RBIL, `MEMORY.LST`).
mod bda {
    pub const COM1_PORT: u64 = 0x400;
    pub const EBDA_SEGMENT: u64 = 0x40e;
    pub const EQUIPMENT: u64 = 0x410;
    pub const BASE_MEMORY_KIB: u64 = 0x413;
    pub const VIDEO_MODE: u64 = 0x449;
    pub const COLUMNS: u64 = 0x44a;
    pub const VIDEO_PORT: u64 = 0x463;
    pub const LAST_ROW: u64 = 0x484;
    pub const CHARACTER_HEIGHT: u64 = 0x485;
    /// The area's bytes.
    pub const ALL: std::ops::Range<u64> = 0x400..0x500;
}
/// 80x25 in colour (bits 5:4), one serial port (bits 11:9).
const EQUIPMENT: u16 = 2 << 4 | 1 << 9;

/// What a kernel for real mode says about itself.
#[derive(Debug, Clone)]
pub(super) struct RealMode {
    header: setup_header,
    /// Bytes of boot sector and setup code, at the file's start.
    setup_bytes: u64,
    /// The protected-mode part in the file.
    protected_mode: Range<u64>,
}

/// Whether a kernel with this header is entered in real mode: one that is no Linux with a payload, and has no 64-bit
/// entry point.
pub(super) fn is_for_real_mode(header: &setup_header) -> bool {
    header.version < VERSION_PAYLOAD
        || (header.payload_length == 0 && header.xloadflags & XLF_KERNEL_64 == 0)
}

impl RealMode {
    /// Checks the header of a file of `file_bytes`; `path` is for messages.
    pub fn new(header: setup_header, file_bytes: u64, path: &Path) -> Result<Self, BootError> {
        let version = header.version;
        if version < VERSION_CMD_LINE_PTR {
            return Err(BootError::not_a_kernel(
                path,
                format!(
                    "is of boot protocol {}.{:02}, from before Linux 2.4",
                    version >> 8,
                    version & 0xff
                ),
            ));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(BootError::not_a_kernel(path, "is a zImage"));
        }
        let setup_bytes = setup_bytes(&header);
        if setup_bytes > SETUP_MAX_BYTES {
            return Err(BootError::damaged(
                path,
                format!("its setup code has {setup_bytes} bytes, more than {SETUP_MAX_BYTES}"),
            ));
        }
        // The size is in units of 16 bytes, the last of which the file may cut short.
        let end = setup_bytes + u64::from(header.syssize) * 16;
        if setup_bytes >= file_bytes || end >= file_bytes + 16 {
            return Err(BootError::Truncated {
                path: path.to_path_buf(),
                part: "the kernel",
                needed_bytes: end,
                actual_bytes: file_bytes,
            });
        }
        Ok(Self {
            header,
            setup_bytes,
            protected_mode: setup_bytes..end.min(file_bytes),
        })
    }

    /// Memory of the protected-mode part.
    pub fn memory(&self) -> Range<u64> {
        let len = self.protected_mode.end - self.protected_mode.start;
        layout::HIGH_RAM..layout::HIGH_RAM + len
    }

    /// Longest command line, without its NUL.
    pub fn cmdline_max_bytes(&self) -> u64 {
        if self.header.version < VERSION_CMDLINE_SIZE {
            OLD_CMDLINE_BYTES
        } else {
            self.header.cmdline_size.into()
        }
    }

    /// Last address at which the kernel finds an initramfs.
    pub fn initrd_addr_max(&self) -> u32 {
        if self.header.version < VERSION_INITRD_ADDR_MAX {
            OLD_INITRD_ADDR_MAX
        } else {
            self.header.initrd_addr_max
        }
    }

    /// Puts the kernel from `file`, whose offset it moves, into memory.
    pub fn load(&self, file: &File, ram: &GuestRam, state: RamState) -> io::Result<()> {
        if state == RamState::Used {
            image::zero(ram, 0..layout::CMDLINE)?;
        }
        image::read_file(file, 0, ram, layout::REAL_MODE_KERNEL, self.setup_bytes)?;
        let part = &self.protected_mode;
        let len = part.end - part.start;
        image::read_file(file, part.start, ram, layout::HIGH_RAM, len)
    }

    /// Writes what the loaded kernel finds in its header and in a PC; the initramfs is at `initrd`.
    pub fn write_machine(
        &self,
        ram: &GuestRam,
        initrd: Option<&Range<u64>>,
    ) -> Result<EntryPoint, BootError> {
        self.write_header(ram, initrd)?;
        write_bios_data(ram)?;
        services::write(ram, kernel_segment(), &memory_map(ram))?;
        Ok(EntryPoint::RealMode {
            segment: services::SEGMENT,
            offset: services::entry()?,
        })
    }

    /// The fields that the boot loader sets ("Details of Header Fields", type "write" or "modify").
    fn write_header(&self, ram: &GuestRam, initrd: Option<&Range<u64>>) -> Result<(), BootError> {
        let field = |at: u64, bytes: &[u8]| {
            write(
                ram,
                "the setup header",
                layout::REAL_MODE_KERNEL + at,
                bytes,
            )
        };
        let initrd = initrd.cloned().unwrap_or(0..0);
        let low = |value: u64| u32::try_from(value).unwrap_or(0).to_le_bytes();
        field(VID_MODE, &VID_MODE_NORMAL.to_le_bytes())?;
        field(TYPE_OF_LOADER, &[LOADER_UNREGISTERED])?;
        field(LOADFLAGS, &[self.header.loadflags | CAN_USE_HEAP])?;
        field(RAMDISK_IMAGE, &low(initrd.start))?;
        field(RAMDISK_SIZE, &low(initrd.end - initrd.start))?;
        field(HEAP_END_PTR, &(STACK_END - STACK_BYTES).to_le_bytes())?;
        field(CMD_LINE_PTR, &low(layout::CMDLINE))
    }
}

/// The kernel's real-mode segment.
const fn kernel_segment() -> u16 {
    const SEGMENT: u64 = layout::REAL_MODE_KERNEL >> 4;
    assert!(SEGMENT <= 0x9000 && layout::REAL_MODE_KERNEL.is_multiple_of(SECTOR_BYTES));
    #[allow(clippy::cast_possible_truncation)] // Asserted above.
    {
        SEGMENT as u16
    }
}

/// Interrupt vectors and BIOS data area, as a BIOS leaves them.
fn write_bios_data(ram: &GuestRam) -> Result<(), BootError> {
    let what = "the BIOS data area";
    let mut vectors = Vec::with_capacity(1024);
    for number in 0..=u8::MAX {
        vectors.extend(services::offset(Vector::of(number))?.to_le_bytes());
        vectors.extend(services::SEGMENT.to_le_bytes());
    }
    write(ram, "the interrupt vectors", 0, &vectors)?;
    let len = usize::try_from(bda::ALL.end - bda::ALL.start).unwrap_or(0);
    write(ram, what, bda::ALL.start, &vec![0; len])?;
    const { assert!(layout::EBDA >> 10 < 640 && layout::COM_PORTS[0] < 1 << 16) };
    #[allow(clippy::cast_possible_truncation)] // Asserted above.
    let words = [
        (bda::COM1_PORT, layout::COM_PORTS[0] as u16),
        (bda::EBDA_SEGMENT, (layout::EBDA >> 4) as u16),
        (bda::EQUIPMENT, EQUIPMENT),
        (bda::BASE_MEMORY_KIB, (layout::EBDA >> 10) as u16),
        (bda::COLUMNS, 80),
        (bda::VIDEO_PORT, 0x3d4),
        (bda::CHARACTER_HEIGHT, 16),
    ];
    for (at, value) in words {
        write(ram, what, at, &value.to_le_bytes())?;
    }
    write(ram, what, bda::VIDEO_MODE, &[3])?;
    write(ram, what, bda::LAST_ROW, &[24])?;
    // The first byte says how many KiB there are.
    write(ram, "the EBDA", layout::EBDA, &[1])
}

fn write(ram: &GuestRam, what: &'static str, addr: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(addr))
        .map_err(|_| BootError::Write { what, addr })
}

#[cfg(test)]
mod tests;
