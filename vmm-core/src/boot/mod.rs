//! Kernel formats, boot parameters, the command line.
//!
//! [`BootSource::open`] judges what the user gave us before anything is created; [`BootSource::load`] puts it into
//! guest memory, at each start of the guest.
//!
//! A bzImage is unpacked on the host and entered as its `vmlinux` would be, which spares the guest its own
//! decompressor; the unpacked copy is kept in the user's cache. What cannot be unpacked is loaded as it is and entered
//! at the decompressor.

mod bzimage;
mod cache;
mod elf;
mod error;
mod identify;
mod image;
mod le;
mod paging;
mod params;
mod pvh;
mod realmode;
mod scatter;
#[cfg(test)]
mod testing;
mod unpack;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use devices::dma::GuestRam;
use devices::sync::lock;

pub use error::{BootError, BootFile};
pub use image::RamState;
pub use paging::{BOOT_CS, BOOT_CS32, BOOT_DS, BOOT_TSS, GDT_ENTRIES, write_long_mode_tables};

use crate::config::{BootConfig, CMDLINE_FOR_CONSOLE, CMDLINE_FOR_SERIAL};
use crate::layout;
use bzimage::BzImage;
use cache::{Cache, Draft, HashingReader};
use elf::{ElfProblem, Headers};
use image::Image;
use params::Params;
use realmode::RealMode;
use scatter::{Refusal, Scatter};
use unpack::Format;

/// Bytes that are read or unpacked at a time: few system calls, and small beside 5 MiB.
const BUFFER_BYTES: usize = 1 << 18;
const PAGE_BYTES: u64 = 4096;

/// How the first CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// Linux's 64-bit boot protocol: long mode with the page tables at [`layout::PAGE_TABLES`], `rsi` = `zero_page`,
    /// segments [`BOOT_CS`] and [`BOOT_DS`], interrupts off.
    Linux64 {
        /// Where to start.
        rip: u64,
        /// Address of `struct boot_params`.
        zero_page: u64,
    },
    /// PVH: 32-bit protected mode without paging, `ebx` = `start_info`, flat segments [`BOOT_CS32`] and [`BOOT_DS`],
    /// interrupts off.
    Pvh32 {
        /// Where to start.
        eip: u32,
        /// Address of `struct hvm_start_info`.
        start_info: u32,
    },
    /// Real mode, at the code that sets up the machine as a BIOS would and then enters a kernel by Linux's 16-bit boot
    /// protocol; interrupts off.
    RealMode {
        /// Code segment.
        segment: u16,
        /// Instruction pointer.
        offset: u16,
    },
}

/// What to boot: opened, checked, and placed.
#[derive(Debug)]
pub struct BootSource {
    path: PathBuf,
    file: File,
    kernel: Kernel,
    initrd: Option<Initrd>,
    cmdline: String,
    cache: Option<Cache>,
    /// The cached copy of the kernel, once there is one.
    cached: Mutex<Option<cache::Entry>>,
}

#[derive(Debug)]
enum Kernel {
    BzImage(Box<BzImage>),
    Vmlinux(Image),
    Pvh { image: Image, eip: u32 },
    RealMode(Box<RealMode>),
}

#[derive(Debug)]
struct Initrd {
    path: PathBuf,
    file: File,
    /// Guest-physical place; the length is the file's.
    range: Range<u64>,
}

/// RAM of a machine of this size.
struct Ram {
    low_end: u64,
    high_end: u64,
}

impl Ram {
    fn new(memory_bytes: u64) -> Self {
        let low_end = memory_bytes.min(layout::LOW_RAM_END);
        Self {
            low_end,
            high_end: layout::RAM_ABOVE_4G.saturating_add(memory_bytes - low_end),
        }
    }

    /// Whether a kernel may be put there.
    fn has(&self, range: &Range<u64>) -> bool {
        [
            layout::HIGH_RAM..self.low_end,
            layout::RAM_ABOVE_4G..self.high_end,
        ]
        .iter()
        .any(|ram| ram.start <= range.start && range.end <= ram.end)
    }
}

impl BootSource {
    /// Opens the files of `config` and checks all that can be wrong with them in a machine of `memory_bytes`.
    ///
    /// # Errors
    /// [`BootError`], every one the user's to mend.
    pub fn open(config: &BootConfig, memory_bytes: u64) -> Result<Self, BootError> {
        Self::open_with(config, memory_bytes, Cache::of_user)
    }

    /// `cache` is asked only for a kernel that may be cached.
    fn open_with(
        config: &BootConfig,
        memory_bytes: u64,
        cache: impl FnOnce() -> Option<Cache>,
    ) -> Result<Self, BootError> {
        let path = &config.kernel;
        let ram = Ram::new(memory_bytes);
        let (file, file_bytes) = open_file(BootFile::Kernel, path)?;
        let kernel = Kernel::open(&file, file_bytes, path)?;
        kernel.check_place(path, &ram)?;
        check_cmdline(&config.cmdline, kernel.cmdline_max_bytes())?;
        let initrd = match &config.initrd {
            Some(path) => Some(Initrd::open(path, &kernel, &ram)?),
            None => None,
        };
        let cache = match &kernel {
            Kernel::BzImage(_) if config.kernel_cache => cache(),
            _ => None,
        };
        let cached = cache.as_ref().and_then(|cache| cache.find(&file));
        Ok(Self {
            path: path.clone(),
            file,
            initrd,
            cmdline: kernel_cmdline(&kernel, &config.cmdline).to_owned(),
            kernel,
            cache,
            cached: Mutex::new(cached),
        })
    }

    /// Puts kernel, initramfs, command line, boot parameters, page tables and GDT into guest memory.
    ///
    /// `ram` must have the size that [`BootSource::open`] was told; `acpi_rsdp` is the RSDP's address. Called before
    /// the first CPU starts, and again, with [`RamState::Used`], before it starts anew: the kernel then finds the same
    /// memory, whatever the guest before it wrote.
    ///
    /// # Errors
    /// [`BootError::Damaged`] or [`BootError::Read`] for files that turn out bad only now, [`BootError::Write`] when
    /// `ram` is too small.
    pub fn load(
        &self,
        ram: &GuestRam,
        acpi_rsdp: u64,
        state: RamState,
    ) -> Result<EntryPoint, BootError> {
        let entry = match &self.kernel {
            Kernel::RealMode(kernel) => {
                kernel
                    .load(&self.file, ram, state)
                    .map_err(|reason| self.read_error(reason))?;
                layout::HIGH_RAM
            }
            Kernel::BzImage(bzimage) => self.load_bzimage(bzimage, ram, state)?,
            Kernel::Vmlinux(image) | Kernel::Pvh { image, .. } => {
                image
                    .load(&self.file, ram, state)
                    .map_err(|reason| self.read_error(reason))?;
                image.entry
            }
        };
        let initrd = match &self.initrd {
            Some(initrd) => {
                initrd.load(ram)?;
                Some(initrd.range.clone())
            }
            None => None,
        };
        params::write_cmdline(ram, &self.cmdline)?;
        let header = match &self.kernel {
            Kernel::Pvh { eip, .. } => {
                paging::write_gdt(ram)?;
                pvh::write(ram, acpi_rsdp, initrd.as_ref())?;
                return Ok(EntryPoint::Pvh32 {
                    eip: *eip,
                    start_info: PVH_START_INFO,
                });
            }
            Kernel::RealMode(kernel) => return kernel.write_machine(ram, initrd.as_ref()),
            Kernel::BzImage(bzimage) => bzimage.header,
            Kernel::Vmlinux(_) => params::vmlinux_header(),
        };
        paging::write_long_mode_tables(ram)?;
        let params = Params {
            header,
            acpi_rsdp,
            initrd,
        };
        params::write(ram, &params)?;
        Ok(EntryPoint::Linux64 {
            rip: entry,
            zero_page: layout::ZERO_PAGE,
        })
    }

    /// Loads the unpacked kernel if that is possible, else the packed one; says where to enter.
    fn load_bzimage(
        &self,
        bzimage: &BzImage,
        ram: &GuestRam,
        mut state: RamState,
    ) -> Result<u64, BootError> {
        (&self.file)
            .rewind()
            .map_err(|reason| self.read_error(reason))?;
        let mut cached = lock(&self.cached);
        if let (Some(cache), Some(entry)) = (&self.cache, cached.as_mut()) {
            match entry.load(ram, state, &bzimage.memory) {
                Ok(()) => {
                    cache.remember(&self.file, entry);
                    return Ok(entry.entry_point());
                }
                Err(error) => {
                    log::warn!("the cached copy of {} is bad: {error}", self.path.display());
                    cache.discard(entry);
                    *cached = None;
                    state = RamState::Used;
                }
            }
        }
        let memory = bzimage.memory.clone();
        let refusal = match self.unpack(bzimage, &self.file, Scatter::to_ram(ram, state, memory)) {
            Ok((image, _)) => return Ok(image.entry),
            Err(refusal) => refusal,
        };
        match refusal {
            Refusal::NotDirect(reason) => {
                log::info!(
                    "{}: {reason}; the guest unpacks it itself",
                    self.path.display()
                );
                let packed = &bzimage.protected_mode;
                let len = packed.end - packed.start;
                image::read_file(&self.file, packed.start, ram, bzimage.memory.start, len)
                    .map_err(|reason| self.read_error(reason))?;
                Ok(bzimage.decompressor_entry())
            }
            Refusal::Damaged(problem) => Err(BootError::damaged(&self.path, problem)),
        }
    }

    /// Keeps the unpacked kernel for later runs, if that is wanted and not done yet. This unpacks it once more, so that
    /// the guest need not wait for it: call it on a thread of its own, once the guest runs.
    pub fn fill_cache(&self) {
        let (Kernel::BzImage(bzimage), Some(cache)) = (&self.kernel, &self.cache) else {
            return;
        };
        if lock(&self.cached).is_some() {
            return;
        }
        match self.make_entry(bzimage, cache) {
            Ok(entry) => *lock(&self.cached) = Some(entry),
            Err(error) => log::info!("the unpacked kernel is not cached: {error}"),
        }
    }

    fn make_entry(&self, bzimage: &BzImage, cache: &Cache) -> io::Result<cache::Entry> {
        // An open file of its own: a restart of the guest may read the other one meanwhile.
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let mut reader = HashingReader::new(&file)?;
        let scatter = Scatter::to_draft(cache.draft()?, bzimage.memory.clone());
        let (image, draft) = self
            .unpack(bzimage, &mut reader, scatter)
            .map_err(|refusal| io::Error::other(refusal.to_string()))?;
        let draft = draft.ok_or_else(|| io::Error::other("nothing was kept"))?;
        let mut entry = cache.publish(draft, reader.finish()?, &image)?;
        cache.remember(&file, &mut entry);
        Ok(entry)
    }

    /// Unpacks the payload that `file`, read from its start, has.
    fn unpack(
        &self,
        bzimage: &BzImage,
        mut file: impl Read,
        mut scatter: Scatter<'_>,
    ) -> Result<(Image, Option<Draft>), Refusal> {
        let damaged = |error: io::Error| Refusal::Damaged(error.to_string());
        let payload = &bzimage.payload;
        let mut magic = [0; 8];
        let mut declared = [0; 4];
        if payload.end - payload.start < (magic.len() + declared.len()) as u64 {
            return Err(Refusal::NotDirect("it has no payload"));
        }
        self.file
            .read_exact_at(&mut magic, payload.start)
            .and_then(|()| self.file.read_exact_at(&mut declared, payload.end - 4))
            .map_err(damaged)?;
        let Some(format) = Format::detect(&magic) else {
            return Err(Refusal::NotDirect(
                "its payload is in a format that only the kernel unpacks",
            ));
        };
        io::copy(&mut file.by_ref().take(payload.start), &mut io::sink()).map_err(damaged)?;
        let packed = file.take(payload.end - format.trailer_bytes() - payload.start);
        if let Err(error) = format.unpack(packed, &mut |piece| scatter.feed(piece)) {
            return Err(scatter.refusal().unwrap_or_else(|| {
                Refusal::Damaged(format!("its payload does not unpack: {error}"))
            }));
        }
        scatter.finish(u64::from(u32::from_le_bytes(declared)))
    }

    fn read_error(&self, reason: io::Error) -> BootError {
        BootError::read(BootFile::Kernel, &self.path, reason)
    }
}

/// 32-bit, as PVH's entry takes it.
const PVH_START_INFO: u32 = {
    assert!(layout::PVH_START_INFO < 1 << 32);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "asserted above, at compile time"
    )]
    {
        layout::PVH_START_INFO as u32
    }
};

impl Kernel {
    fn open(file: &File, file_bytes: u64, path: &Path) -> Result<Self, BootError> {
        let mut head = vec![0; identify::HEAD_BYTES];
        let len = file
            .read_at(&mut head, 0)
            .map_err(|reason| BootError::read(BootFile::Kernel, path, reason))?;
        head.truncate(len);
        if bzimage::is_bzimage(&head) {
            let header = bzimage::parse_header(&head, file_bytes, path)?;
            if realmode::is_for_real_mode(&header) {
                return RealMode::new(header, file_bytes, path)
                    .map(|kernel| Self::RealMode(Box::new(kernel)));
            }
            return BzImage::new(header, file_bytes, path)
                .map(|bzimage| Self::BzImage(Box::new(bzimage)));
        }
        if !elf::is_elf(&head) {
            return Err(BootError::not_a_kernel(path, identify::looks_like(&head)));
        }
        Self::open_elf(&head, file, file_bytes, path)
    }

    fn open_elf(head: &[u8], file: &File, file_bytes: u64, path: &Path) -> Result<Self, BootError> {
        let truncated = |part, needed_bytes| BootError::Truncated {
            path: path.to_path_buf(),
            part,
            needed_bytes,
            actual_bytes: file_bytes,
        };
        let headers = Headers::parse(head).map_err(|problem| match problem {
            ElfProblem::Unsuitable(problem) => BootError::not_a_kernel(path, problem),
            ElfProblem::Damaged(problem) => BootError::damaged(path, problem),
            ElfProblem::Truncated(part, end) if end > file_bytes => truncated(part, end),
            ElfProblem::Truncated(part, end) => {
                BootError::damaged(path, format!("{part} ends at byte {end}"))
            }
        })?;
        if headers.file_end() > file_bytes {
            return Err(truncated("its last segment", headers.file_end()));
        }
        let notes = headers
            .read_notes(file)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => BootError::damaged(path, "its notes are cut off"),
                _ => BootError::read(BootFile::Kernel, path, error),
            })?;
        let problem = match notes.pvh_entry {
            // Linux has both; its 64-bit entry point gets by without a change of mode.
            Some(eip) if !notes.linux => {
                if headers.contains(eip.into()) {
                    let image = headers.image(eip.into());
                    return Ok(Self::Pvh { image, eip });
                }
                format!("its PVH entry point {eip:#x} is in no segment")
            }
            _ if headers.contains(headers.entry) => {
                return Ok(Self::Vmlinux(headers.image(headers.entry)));
            }
            _ => format!("its entry point {:#x} is in no segment", headers.entry),
        };
        Err(BootError::damaged(path, problem))
    }

    /// Where the kernel's memory ends, as far as it is below 4 GiB.
    fn end(&self) -> u64 {
        match self {
            Self::BzImage(bzimage) => bzimage.memory.end,
            Self::RealMode(kernel) => kernel.memory().end,
            Self::Vmlinux(image) | Self::Pvh { image, .. } => image
                .segments
                .iter()
                .map(|segment| segment.end)
                .filter(|end| *end <= layout::RAM_ABOVE_4G)
                .max()
                .unwrap_or(layout::HIGH_RAM),
        }
    }

    fn check_place(&self, path: &Path, ram: &Ram) -> Result<(), BootError> {
        let too_large = |end| BootError::KernelTooLarge {
            path: path.to_path_buf(),
            end,
            available_end: ram.low_end,
        };
        let real_mode;
        let ranges = match self {
            Self::RealMode(kernel) => {
                real_mode = kernel.memory();
                std::slice::from_ref(&real_mode)
            }
            Self::BzImage(bzimage) => std::slice::from_ref(&bzimage.memory),
            Self::Vmlinux(image) | Self::Pvh { image, .. } => &image.segments,
        };
        match ranges.iter().find(|range| !ram.has(range)) {
            None => Ok(()),
            // More memory would help.
            Some(range) if range.start >= layout::HIGH_RAM && range.end <= layout::LOW_RAM_END => {
                Err(too_large(range.end))
            }
            Some(range) => Err(BootError::OutsideRam {
                path: path.to_path_buf(),
                start: range.start,
                end: range.end,
            }),
        }
    }

    /// Longest command line, without its NUL.
    fn cmdline_max_bytes(&self) -> u64 {
        let ours = layout::CMDLINE_MAX_BYTES - 1;
        match self {
            Self::BzImage(bzimage) => ours.min(u64::from(bzimage.header.cmdline_size)),
            Self::RealMode(kernel) => ours.min(kernel.cmdline_max_bytes()),
            Self::Vmlinux(_) => u64::from(params::LINUX_CMDLINE_MAX_BYTES),
            Self::Pvh { .. } => ours,
        }
    }

    /// Last address at which the kernel finds an initramfs.
    fn initrd_addr_max(&self) -> u32 {
        match self {
            Self::BzImage(bzimage) => bzimage.header.initrd_addr_max,
            Self::RealMode(kernel) => kernel.initrd_addr_max(),
            Self::Vmlinux(_) | Self::Pvh { .. } => params::LINUX_INITRD_ADDR_MAX,
        }
    }
}

impl Initrd {
    /// Opens it, and places it as high as the kernel can reach, where nothing is in its way.
    fn open(path: &Path, kernel: &Kernel, ram: &Ram) -> Result<Self, BootError> {
        let (file, len) = open_file(BootFile::Initramfs, path)?;
        let end = ram.low_end.min(u64::from(kernel.initrd_addr_max()) + 1);
        let end = end - end % PAGE_BYTES;
        let needed_bytes = len.next_multiple_of(PAGE_BYTES);
        let available_bytes = end.saturating_sub(kernel.end().next_multiple_of(PAGE_BYTES));
        if needed_bytes > available_bytes {
            return Err(BootError::InitramfsTooLarge {
                path: path.to_path_buf(),
                needed_bytes,
                available_bytes,
            });
        }
        let start = end - needed_bytes;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            range: start..start + len,
        })
    }

    fn load(&self, ram: &GuestRam) -> Result<(), BootError> {
        let len = self.range.end - self.range.start;
        image::read_file(&self.file, 0, ram, self.range.start, len)
            .map_err(|reason| BootError::read(BootFile::Initramfs, &self.path, reason))
    }
}

/// Opens a file that is there, is a file, and has content; says how long it is.
fn open_file(what: BootFile, path: &Path) -> Result<(File, u64), BootError> {
    let open_error = |reason| BootError::Open {
        what,
        path: path.to_path_buf(),
        reason,
    };
    // Asked before it is opened, as opening a FIFO waits for a writer.
    let kind = fs::metadata(path).map_err(open_error)?.file_type();
    if !kind.is_file() {
        return Err(BootError::NotAFile {
            what,
            path: path.to_path_buf(),
            kind: match () {
                () if kind.is_dir() => "a directory",
                () if kind.is_fifo() => "a FIFO",
                () if kind.is_socket() => "a socket",
                () => "a device",
            },
        });
    }
    let file = File::open(path).map_err(open_error)?;
    match file.metadata().map_err(open_error)?.len() {
        0 => Err(BootError::Empty {
            what,
            path: path.to_path_buf(),
        }),
        len => Ok((file, len)),
    }
}

/// The command line for `kernel`: what is only a default, meant for Linux, says nothing to another program, and iPXE
/// would run it as a command.
fn kernel_cmdline<'a>(kernel: &Kernel, cmdline: &'a str) -> &'a str {
    match (kernel, cmdline) {
        (Kernel::RealMode(_), CMDLINE_FOR_SERIAL | CMDLINE_FOR_CONSOLE) => "",
        _ => cmdline,
    }
}

fn check_cmdline(cmdline: &str, max_bytes: u64) -> Result<(), BootError> {
    if let Some(position) = cmdline.find('\0') {
        return Err(BootError::CommandLineNul { position });
    }
    if cmdline.len() as u64 > max_bytes {
        return Err(BootError::CommandLineTooLong {
            length_bytes: cmdline.len(),
            max_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
