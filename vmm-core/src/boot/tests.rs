use super::testing::{BzImageFile, ElfFile, FORMATS, TestSegment, note, pack, real_mode_kernel};
use super::*;
use vm_memory::{Bytes, GuestAddress};

const RAM_BYTES: u64 = 4 << 20;
const KERNEL_MEMORY: Range<u64> = 0x10_0000..0x18_0000;

struct Fixture {
    dir: tempfile::TempDir,
    config: BootConfig,
}

impl Fixture {
    fn new(kernel: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, kernel).unwrap();
        let config = BootConfig {
            kernel: path,
            initrd: None,
            cmdline: "console=ttyS0".into(),
            kernel_cache: true,
        };
        Self { dir, config }
    }

    fn packed(format: Format) -> Self {
        Self::new(&BzImageFile::new(&pack(format, &ElfFile::kernel().build())).build())
    }

    fn with_initrd(mut self, content: &[u8]) -> Self {
        let path = self.dir.path().join("initrd");
        fs::write(&path, content).unwrap();
        self.config.initrd = Some(path);
        self
    }

    fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("kernels")
    }

    fn open(&self) -> Result<BootSource, BootError> {
        BootSource::open_with(&self.config, RAM_BYTES, || {
            Some(Cache::at(self.cache_dir()))
        })
    }

    /// The message, with the test's directory taken out.
    fn problem(&self) -> String {
        let error = match self.open() {
            Err(error) => error,
            Ok(source) => source.load(&ram(), 0, RamState::Fresh).unwrap_err(),
        };
        let dir = format!("{}/", self.dir.path().display());
        error.to_string().replace(&dir, "")
    }

    fn cached_files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.cache_dir())
            .into_iter()
            .flatten()
            .map(|item| item.unwrap().path())
            .collect()
    }
}

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).unwrap()
}

fn used_ram() -> GuestRam {
    let ram = ram();
    ram.write_slice(&vec![0xaa; RAM_BYTES as usize], GuestAddress(0))
        .unwrap();
    ram
}

fn memory(ram: &GuestRam, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    ram.read_slice(&mut bytes, GuestAddress(range.start))
        .unwrap();
    bytes
}

/// Loads, and checks the kernel's segments.
fn load_kernel(source: &BootSource, ram: &GuestRam, state: RamState) {
    let file = ElfFile::kernel();
    let entry = source.load(ram, layout::RSDP, state).unwrap();
    source.fill_cache();
    let expected = EntryPoint::Linux64 {
        rip: file.entry,
        zero_page: layout::ZERO_PAGE,
    };
    assert_eq!(entry, expected);
    let expected = file.memory(KERNEL_MEMORY);
    for segment in &file.segments {
        let range = segment.paddr..segment.paddr + segment.memsz;
        let offset = (range.start - KERNEL_MEMORY.start) as usize;
        let len = segment.memsz as usize;
        assert!(
            memory(ram, range.clone()) == expected[offset..offset + len],
            "{range:#x?}"
        );
    }
}

#[test]
fn every_format_is_entered_directly_and_cached() {
    for format in FORMATS {
        let fixture = Fixture::packed(format);
        let source = fixture.open().unwrap();
        assert!(lock(&source.cached).is_none());
        load_kernel(&source, &ram(), RamState::Fresh);
        assert_eq!(fixture.cached_files().len(), 1, "{format:?}");

        let again = fixture.open().unwrap();
        assert!(lock(&again.cached).is_some(), "{format:?}");
        load_kernel(&again, &ram(), RamState::Fresh);
    }
}

#[test]
fn a_restart_finds_the_same_memory() {
    let initrd = vec![0x17; 5000];
    let packed = Fixture::packed(Format::Zstd).with_initrd(&initrd);
    let mut uncached = Fixture::packed(Format::Lz4Legacy).with_initrd(&initrd);
    uncached.config.kernel_cache = false;
    let vmlinux = Fixture::new(&ElfFile::kernel().build()).with_initrd(&initrd);
    for fixture in [packed, uncached, vmlinux] {
        let source = fixture.open().unwrap();
        let (fresh, used) = (ram(), used_ram());
        load_kernel(&source, &fresh, RamState::Fresh);
        load_kernel(&source, &used, RamState::Used);
        for range in [
            layout::GDT..layout::GDT + 48,
            layout::ZERO_PAGE..layout::ZERO_PAGE + 4096,
            layout::PAGE_TABLES..layout::PAGE_TABLES + 6 * 4096,
            layout::CMDLINE..layout::CMDLINE + 14,
            RAM_BYTES - 8192..RAM_BYTES - 8192 + 5000,
        ] {
            let (fresh, used) = (memory(&fresh, range.clone()), memory(&used, range.clone()));
            assert!(fresh == used, "{range:#x?}");
        }
    }
}

#[test]
fn boot_parameters_carry_the_kernels_header() {
    let fixture = Fixture::packed(Format::Gzip).with_initrd(&[0x17; 5000]);
    let ram = ram();
    load_kernel(&fixture.open().unwrap(), &ram, RamState::Fresh);
    let page = memory(&ram, layout::ZERO_PAGE..layout::ZERO_PAGE + 4096);
    assert_eq!(page[0x202..0x206], *b"HdrS");
    assert_eq!(
        page[0x258..0x260],
        0x10_0000u64.to_le_bytes(),
        "pref_address"
    );
    assert_eq!(page[0x268..0x26c], [0; 4], "not the decompressor's code");
    let start = RAM_BYTES - 8192;
    assert_eq!(page[0x218..0x21c], (start as u32).to_le_bytes());
    assert_eq!(page[0x21c..0x220], 5000u32.to_le_bytes());
    assert_eq!(memory(&ram, start..start + 5000), [0x17; 5000]);
    assert_eq!(
        memory(&ram, layout::CMDLINE..layout::CMDLINE + 14),
        b"console=ttyS0\0"
    );
}

#[test]
fn what_we_cannot_unpack_is_left_to_the_guest() {
    let mut stray = ElfFile::kernel();
    stray.segments.push(TestSegment::new(0x20_0000, vec![1], 1));
    for payload in [
        b"BZh91AY&SY of whatever content".to_vec(),
        pack(Format::Gzip, b"not an ELF file, but long enough"),
        pack(Format::Xz, &stray.build()),
        b"tiny".to_vec(),
    ] {
        let image = BzImageFile::new(&payload).build();
        let fixture = Fixture::new(&image);
        let ram = ram();
        let entry = fixture
            .open()
            .unwrap()
            .load(&ram, 0, RamState::Fresh)
            .unwrap();
        let expected = EntryPoint::Linux64 {
            rip: 0x10_0200,
            zero_page: layout::ZERO_PAGE,
        };
        assert_eq!(entry, expected);
        let packed = &image[0x600..];
        assert!(memory(&ram, 0x10_0000..0x10_0000 + packed.len() as u64) == packed);
        assert_eq!(fixture.cached_files().len(), 0);
    }
}

#[test]
fn a_damaged_payload_is_the_users_to_mend() {
    for format in [Format::Gzip, Format::Xz, Format::Zstd] {
        let mut payload = pack(format, &ElfFile::kernel().build());
        let middle = payload.len() - payload.len() / 3;
        payload[middle..middle + 8].fill(0xff);
        let problem = Fixture::new(&BzImageFile::new(&payload).build()).problem();
        assert!(
            problem.starts_with("kernel kernel: is damaged: its payload "),
            "{format:?}: {problem}"
        );
    }
    // lz4 has no checksum of its own: what shows is structure and length.
    let elf = ElfFile::kernel().build();
    let mut payload = pack(Format::Lz4Legacy, &elf);
    payload[7] = 0xff;
    assert_eq!(
        Fixture::new(&BzImageFile::new(&payload).build()).problem(),
        "kernel kernel: is damaged: its payload does not unpack: an lz4 block is too large"
    );
    payload[7] = 0;
    let end = payload.len();
    payload[end - 4..].copy_from_slice(&7u32.to_le_bytes());
    assert_eq!(
        Fixture::new(&BzImageFile::new(&payload).build()).problem(),
        format!(
            "kernel kernel: is damaged: its payload unpacks to {0} bytes instead of {0}",
            elf.len()
        )
    );
}

#[test]
fn vmlinux_and_pvh_are_told_apart_by_their_notes() {
    let pvh_note = note(b"Xen\0", 18, &0x10_0080u32.to_le_bytes());
    let mut file = ElfFile::kernel();
    file.notes.extend(&pvh_note);
    let linux = Fixture::new(&file.build());
    load_kernel(&linux.open().unwrap(), &ram(), RamState::Fresh);

    file.notes = pvh_note;
    file.entry = 0;
    let fixture = Fixture::new(&file.build()).with_initrd(&[1; 100]);
    let ram = used_ram();
    let entry = fixture
        .open()
        .unwrap()
        .load(&ram, layout::RSDP, RamState::Used)
        .unwrap();
    let expected = EntryPoint::Pvh32 {
        eip: 0x10_0080,
        start_info: 0x6000,
    };
    assert_eq!(entry, expected);
    assert_eq!(memory(&ram, 0x6000..0x6004), 0x336e_c578u32.to_le_bytes());
    assert_eq!(memory(&ram, 0x13_0000..0x13_8000), vec![0; 0x8000]);
}

#[test]
fn entry_points_must_be_in_a_segment() {
    let mut file = ElfFile::kernel();
    file.entry = 0x20_0000;
    assert_eq!(
        Fixture::new(&file.build()).problem(),
        "kernel kernel: is damaged: its entry point 0x200000 is in no segment"
    );
    file.notes = note(b"Xen\0", 18, &0x30_0000u32.to_le_bytes());
    assert_eq!(
        Fixture::new(&file.build()).problem(),
        "kernel kernel: is damaged: its PVH entry point 0x300000 is in no segment"
    );
}

#[test]
fn every_truncation_is_refused() {
    for whole in [
        BzImageFile::new(&pack(Format::Gzip, &ElfFile::kernel().build())).build(),
        ElfFile::kernel().build(),
    ] {
        let fixture = Fixture::new(&[]);
        let edges = [
            1, 63, 64, 65, 0x1f1, 0x202, 0x206, 0x268, 0x26c, 0x5ff, 0x600, 0x601, 0x641,
        ];
        let steps = (0..whole.len()).step_by(whole.len() / 40);
        for len in steps.chain(edges).chain([whole.len() - 1]) {
            fs::write(&fixture.config.kernel, &whole[..len]).unwrap();
            let error = fixture.open().unwrap_err();
            if len > 0x26c {
                assert!(
                    matches!(error, BootError::Truncated { .. }),
                    "{len}: {error}"
                );
            }
        }
    }
}

#[test]
fn bad_kernel_files_are_named() {
    let mut fixture = Fixture::new(b"");
    assert_eq!(fixture.problem(), "kernel kernel: is empty");
    fs::write(&fixture.config.kernel, "#!/bin/sh\n").unwrap();
    assert_eq!(
        fixture.problem(),
        "kernel kernel: is a script; give a bzImage, an x86-64 ELF vmlinux or a PVH kernel"
    );
    let fifo = fixture.dir.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(status.unwrap().success());
    fixture.config.kernel = fifo;
    assert_eq!(fixture.problem(), "kernel fifo: is a FIFO, not a file");
    fixture.config.kernel = fixture.dir.path().join("none");
    assert_eq!(fixture.problem(), "kernel none: does not exist");
    fs::create_dir(&fixture.config.kernel).unwrap();
    assert_eq!(fixture.problem(), "kernel none: is a directory, not a file");
    fixture.config.kernel = "/dev/null".into();
    assert_eq!(
        fixture.problem(),
        "kernel /dev/null: is a device, not a file"
    );
}

#[test]
fn kernels_that_do_not_fit_say_what_they_need() {
    let mut file = ElfFile::kernel();
    file.segments[2].memsz = 3 << 20;
    assert_eq!(
        Fixture::new(&file.build()).problem(),
        "kernel kernel: occupies memory up to 5 MiB, the machine has 4 MiB there; give it more memory"
    );
    file.segments[2].paddr = 0x8000;
    assert_eq!(
        Fixture::new(&file.build()).problem(),
        "kernel kernel: wants to be at 0x8000..0x308000, where the machine has no free memory"
    );
    file.segments[2].paddr = 0xbfff_0000;
    assert!(
        Fixture::new(&file.build())
            .problem()
            .contains("no free memory")
    );
}

#[test]
fn bad_initramfs_files_are_named() {
    let mut fixture = Fixture::packed(Format::Gzip).with_initrd(b"");
    assert_eq!(fixture.problem(), "initramfs initrd: is empty");
    let room = (RAM_BYTES - KERNEL_MEMORY.end) as usize;
    fixture = fixture.with_initrd(&vec![1; room + 1]);
    assert_eq!(
        fixture.problem(),
        "initramfs initrd: needs 3 MiB, the kernel leaves 2 MiB; give the machine more memory"
    );
    fixture = fixture.with_initrd(&vec![1; room]);
    load_kernel(&fixture.open().unwrap(), &ram(), RamState::Fresh);
    fs::remove_file(fixture.dir.path().join("initrd")).unwrap();
    assert_eq!(fixture.problem(), "initramfs initrd: does not exist");
}

#[test]
fn an_initramfs_cut_short_after_it_was_opened_is_an_error() {
    let fixture = Fixture::packed(Format::Gzip).with_initrd(&[1; 5000]);
    let source = fixture.open().unwrap();
    fs::write(fixture.dir.path().join("initrd"), [1; 4999]).unwrap();
    let error = source.load(&ram(), 0, RamState::Fresh).unwrap_err();
    assert!(matches!(
        error,
        BootError::Read {
            what: BootFile::Initramfs,
            ..
        }
    ));
}

#[test]
fn command_lines_are_checked() {
    let mut fixture = Fixture::packed(Format::Gzip);
    fixture.config.cmdline = "a".repeat(2047);
    assert!(fixture.open().is_ok());
    fixture.config.cmdline.push('b');
    assert_eq!(
        fixture.problem(),
        "the kernel command line has 2048 bytes; this kernel takes at most 2047"
    );
    fixture.config.cmdline = "quiet\0".into();
    assert_eq!(
        fixture.problem(),
        "the kernel command line has a NUL character at byte 5"
    );
}

#[test]
fn without_the_cache_nothing_is_kept() {
    let mut fixture = Fixture::packed(Format::Zstd);
    fixture.config.kernel_cache = false;
    let source = BootSource::open_with(&fixture.config, RAM_BYTES, || panic!("asked for")).unwrap();
    load_kernel(&source, &ram(), RamState::Fresh);
    load_kernel(&source, &used_ram(), RamState::Used);
}

#[test]
fn a_cache_that_cannot_be_written_does_not_stop_the_boot() {
    let fixture = Fixture::packed(Format::Zstd);
    fs::write(fixture.cache_dir(), "a file in its way").unwrap();
    load_kernel(&fixture.open().unwrap(), &ram(), RamState::Fresh);
}

#[test]
fn a_corrupted_copy_is_made_again() {
    let fixture = Fixture::packed(Format::Lz4Legacy);
    load_kernel(&fixture.open().unwrap(), &ram(), RamState::Fresh);
    let path = &fixture.cached_files()[0];
    let good = fs::read(path).unwrap();
    for at in [0, good.len() / 2, good.len() - 100, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        fs::write(path, bad).unwrap();
        load_kernel(&fixture.open().unwrap(), &ram(), RamState::Fresh);
        assert!(fs::read(path).unwrap() == good, "byte {at}");
        assert_eq!(fixture.cached_files().len(), 1);
    }
}

#[test]
fn runs_that_race_all_get_their_kernel() {
    let fixture = Fixture::packed(Format::Gzip);
    let start = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let source = fixture.open().unwrap();
                start.wait();
                for _ in 0..8 {
                    let ram = ram();
                    load_kernel(&source, &ram, RamState::Fresh);
                    load_kernel(&fixture.open().unwrap(), &ram, RamState::Used);
                }
            });
        }
    });
    assert_eq!(fixture.cached_files().len(), 1);
}

#[test]
fn a_kernel_for_real_mode_is_told_from_linux_and_gets_its_initramfs() {
    let fixture = Fixture::new(&real_mode_kernel()).with_initrd(b"#!ipxe\n");
    let (source, ram) = (fixture.open().unwrap(), used_ram());
    let entry = source.load(&ram, layout::RSDP, RamState::Used).unwrap();
    assert!(matches!(entry, EntryPoint::RealMode { .. }));
    source.fill_cache();
    assert!(fixture.cached_files().is_empty());
    let header = layout::REAL_MODE_KERNEL;
    let initrd: u32 = ram.read_obj(GuestAddress(header + 0x218)).unwrap();
    assert_eq!(u64::from(initrd), RAM_BYTES - PAGE_BYTES);
    assert_eq!(
        memory(&ram, RAM_BYTES - PAGE_BYTES..RAM_BYTES)[..7],
        *b"#!ipxe\n"
    );
    let cmdline = layout::CMDLINE..layout::CMDLINE + 6;
    assert_eq!(
        memory(&ram, cmdline.clone())[0],
        0,
        "the default is Linux's"
    );
    let mut fixture = fixture;
    fixture.config.cmdline = "shell".into();
    let source = fixture.open().unwrap();
    source.load(&ram, layout::RSDP, RamState::Used).unwrap();
    assert_eq!(memory(&ram, cmdline), b"shell\0");
}

#[test]
fn a_kernel_for_real_mode_must_fit() {
    let mut kernel = real_mode_kernel();
    kernel.resize(0x600 + (4 << 20), 0);
    kernel[0x1f4..0x1f8].copy_from_slice(&((4u32 << 20) / 16).to_le_bytes());
    assert_eq!(
        Fixture::new(&kernel).problem(),
        "kernel kernel: occupies memory up to 5 MiB, the machine has 4 MiB there; give it more memory"
    );
    let initrd = vec![0; 3 << 20];
    let fixture = Fixture::new(&real_mode_kernel()).with_initrd(&initrd);
    assert!(fixture.problem().contains("give the machine more memory"));
    let mut fixture = Fixture::new(&real_mode_kernel());
    fixture.config.cmdline = "x".repeat(2048);
    assert!(fixture.problem().contains("at most 2047"));
}
