//! The header of a bzImage (Linux's `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header").
//!
//! linux-loader's `BzImage` loader copies the compressed kernel into guest memory; that is our fall-back only, so the
//! header is parsed here, and its `setup_header` structure used.

use std::ops::Range;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::BootError;

/// Offset of the setup header in a bzImage and in `struct boot_params`.
const HEADER_OFFSET: usize = 0x1f1;
const MAGIC_OFFSET: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
pub(super) const SECTOR_BYTES: u64 = 512;
/// Boot protocol 2.12 (Linux 3.8): `xloadflags` says whether there is a 64-bit entry point.
const MIN_VERSION: u16 = 0x020c;
/// Flag in `xloadflags`: there is a 64-bit entry point.
pub(super) const XLF_KERNEL_64: u16 = 1 << 0;
/// Flag in `loadflags`: the protected-mode kernel is loaded at 1 MiB.
pub(super) const LOADED_HIGH: u8 = 1 << 0;
/// The 64-bit entry point, from the start of the protected-mode kernel.
const ENTRY_64_OFFSET: u64 = 0x200;

/// What a bzImage says about itself.
#[derive(Debug, Clone)]
pub(super) struct BzImage {
    /// To be handed to the kernel, as in the file.
    pub header: setup_header,
    /// The protected-mode kernel in the file: decompressor and payload.
    pub protected_mode: Range<u64>,
    /// The compressed kernel in the file.
    pub payload: Range<u64>,
    /// Guest-physical memory that the kernel needs until it has read its memory map.
    pub memory: Range<u64>,
}

/// Whether this is the start of a bzImage or zImage.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len()) == Some(MAGIC)
}

impl BzImage {
    /// Checks the header of a file of `file_bytes`; `path` is for messages.
    pub fn new(header: setup_header, file_bytes: u64, path: &Path) -> Result<Self, BootError> {
        let version = header.version;
        if version < MIN_VERSION {
            return Err(BootError::not_a_kernel(
                path,
                format!(
                    "is a bzImage of boot protocol {}.{:02}, from before Linux 3.8",
                    version >> 8,
                    version & 0xff
                ),
            ));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(BootError::not_a_kernel(path, "is a zImage"));
        }
        let flags = header.xloadflags;
        if flags & XLF_KERNEL_64 == 0 {
            return Err(BootError::not_a_kernel(path, "is a 32-bit kernel"));
        }
        let start = setup_bytes(&header);
        let end = start + u64::from(header.syssize) * 16;
        if end > file_bytes {
            return Err(BootError::Truncated {
                path: path.to_path_buf(),
                part: "the compressed kernel",
                needed_bytes: end,
                actual_bytes: file_bytes,
            });
        }
        let payload_start = start + u64::from(header.payload_offset);
        let payload = payload_start..payload_start + u64::from(header.payload_length);
        if payload.end > end {
            return Err(BootError::damaged(
                path,
                format!("its payload ends at byte {}, behind it", payload.end),
            ));
        }
        let address = header.pref_address;
        let memory = address
            .checked_add(u64::from(header.init_size))
            .filter(|_| address >= crate::layout::HIGH_RAM)
            .map(|memory_end| address..memory_end.max(address.saturating_add(end - start)))
            .ok_or_else(|| {
                BootError::damaged(path, format!("it asks for the load address {address:#x}"))
            })?;
        Ok(Self {
            header,
            protected_mode: start..end,
            payload,
            memory,
        })
    }

    /// The entry point of the decompressor, when it is loaded at its preferred address.
    pub fn decompressor_entry(&self) -> u64 {
        self.memory.start + ENTRY_64_OFFSET
    }
}

/// Bytes of boot sector and setup code, which the protected-mode kernel follows.
pub(super) fn setup_bytes(header: &setup_header) -> u64 {
    // "If it is 0, the real value is 4"; the boot sector is not counted.
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    (sectors + 1) * SECTOR_BYTES
}

/// The header at the start of a file of `file_bytes`; `path` is for messages.
pub(super) fn parse_header(
    head: &[u8],
    file_bytes: u64,
    path: &Path,
) -> Result<setup_header, BootError> {
    read_header(head).ok_or_else(|| BootError::Truncated {
        path: path.to_path_buf(),
        part: "its setup header",
        needed_bytes: (HEADER_OFFSET + size_of::<setup_header>()) as u64,
        actual_bytes: file_bytes,
    })
}

/// The part of the file that is the setup header; a jump over it, at 0x200, says where it ends.
fn read_header(head: &[u8]) -> Option<setup_header> {
    const JUMP_DISTANCE_OFFSET: usize = 0x201;
    let end = MAGIC_OFFSET + usize::from(*head.get(JUMP_DISTANCE_OFFSET)?);
    let mut header = setup_header::default();
    let len = end
        .saturating_sub(HEADER_OFFSET)
        .min(size_of::<setup_header>());
    header.as_mut_slice()[..len].copy_from_slice(head.get(HEADER_OFFSET..)?.get(..len)?);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::super::testing::BzImageFile;
    use super::*;

    fn parse(bytes: &[u8]) -> Result<BzImage, String> {
        assert!(is_bzimage(bytes));
        let (len, path) = (bytes.len() as u64, Path::new("vmlinuz"));
        parse_header(bytes, len, path)
            .and_then(|header| BzImage::new(header, len, path))
            .map_err(|error| error.to_string())
    }

    fn problem(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut bytes = BzImageFile::new(b"payload").build();
        change(&mut bytes);
        parse(&bytes).unwrap_err()
    }

    #[test]
    fn finds_payload_and_memory() {
        let file = BzImageFile::new(b"payload");
        let bytes = file.build();
        let image = parse(&bytes).unwrap();
        let payload = image.payload.start as usize..image.payload.end as usize;
        assert_eq!(&bytes[payload], b"payload");
        assert_eq!(image.protected_mode.start, 3 * 512);
        assert_eq!(image.memory, 0x10_0000..0x18_0000);
        assert_eq!(image.decompressor_entry(), 0x10_0200);
        let cmdline_size = image.header.cmdline_size;
        assert_eq!(cmdline_size, 2047);
    }

    #[test]
    fn only_the_header_is_copied() {
        let bytes = BzImageFile::new(b"payload").build();
        let image = parse(&bytes).unwrap();
        // The file's header ends before this field, where the decompressor's code begins.
        let beyond = image.header.kernel_info_offset;
        assert_eq!(beyond, 0);
    }

    #[test]
    fn refuses_what_cannot_be_entered_in_64_bits() {
        let advice = "; give a bzImage, an x86-64 ELF vmlinux or a PVH kernel";
        assert_eq!(
            problem(|image| image[0x206] = 0x0b),
            format!(
                "kernel vmlinuz: is a bzImage of boot protocol 2.11, from before Linux 3.8{advice}"
            )
        );
        assert_eq!(
            problem(|image| image[0x211] = 0),
            format!("kernel vmlinuz: is a zImage{advice}")
        );
        assert_eq!(
            problem(|image| image[0x236] = 0),
            format!("kernel vmlinuz: is a 32-bit kernel{advice}")
        );
    }

    #[test]
    fn says_where_a_truncated_file_should_end() {
        let len = BzImageFile::new(b"payload").build().len();
        assert_eq!(
            problem(|image| image.truncate(len - 1)),
            format!(
                "kernel vmlinuz: is truncated: the compressed kernel ends at byte {len}, the file at {}",
                len - 1
            )
        );
        assert_eq!(
            problem(|image| image.truncate(0x210)),
            "kernel vmlinuz: is truncated: its setup header ends at byte 620, the file at 528"
        );
    }

    #[test]
    fn refuses_headers_that_contradict_themselves() {
        assert_eq!(
            problem(|image| image[0x24c..0x250].fill(0xff)),
            format!(
                "kernel vmlinuz: is damaged: its payload ends at byte {}, behind it",
                3 * 512 + 0x40 + u64::from(u32::MAX)
            )
        );
        assert_eq!(
            problem(|image| image[0x258..0x260].fill(0)),
            "kernel vmlinuz: is damaged: it asks for the load address 0x0"
        );
        assert_eq!(
            problem(|image| image[0x258..0x260].fill(0xff)),
            "kernel vmlinuz: is damaged: it asks for the load address 0xffffffffffffffff"
        );
    }
}
