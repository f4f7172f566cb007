use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;

const UUID: [u8; 16] = [
    0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x01,
];
const UUID_TEXT: &str = "11223344-5566-7788-99AA-BBCCDDEEFF01";
const SECTOR: u64 = 512;

struct Image {
    path: PathBuf,
    file: File,
    _folder: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.set_len(4 << 20).unwrap();
        Self {
            path,
            file,
            _folder: folder,
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn ext(&self, sector: u64, label: &str) {
        let at = sector * SECTOR;
        self.put(at + 0x438, b"\x53\xef");
        self.put(at + 0x468, &UUID);
        self.put(at + 0x478, label.as_bytes());
    }

    /// Slots of a boot record: kind, first sector.
    fn boot_record(&self, sector: u64, slots: &[(u8, u32)]) {
        let at = sector * SECTOR;
        self.put(at + 440, &0x1a2b_3c4d_u32.to_le_bytes());
        self.put(at + 510, &[0x55, 0xaa]);
        for (index, &(kind, first)) in slots.iter().enumerate() {
            let at = at + 446 + 16 * index as u64;
            self.put(at + 4, &[kind]);
            self.put(at + 8, &first.to_le_bytes());
            self.put(at + 12, &64_u32.to_le_bytes());
        }
    }

    fn find(&self, wanted: &str) -> Result<RootPartition, GuestError> {
        let wanted = match wanted {
            "" => Partition::Automatic,
            text => text.parse().unwrap(),
        };
        find_root(&self.path, &wanted)
    }

    fn number(&self, wanted: &str) -> Option<u32> {
        self.find(wanted).unwrap().number
    }

    fn error(&self, wanted: &str) -> String {
        let error = self.find(wanted).unwrap_err().to_string();
        let path = self.path.display().to_string();
        error.replace(&path, "IMAGE")
    }
}

#[test]
fn partitions_are_written_as_numbers_or_names() {
    assert_eq!("2".parse(), Ok(Partition::Number(2)));
    assert_eq!("LABEL=a=b".parse(), Ok(Partition::Label("a=b".to_owned())));
    for text in ["", "0", "-1", "UUID=", "ID=1", "root"] {
        let error = text.parse::<Partition>().unwrap_err();
        assert_eq!(error, PartitionError(text.to_owned()));
    }
}

#[test]
fn each_file_system_is_known_by_its_superblock() {
    for (kind, magic_at, magic) in [
        (FileSystem::Xfs, 0, &b"XFSB"[..]),
        (FileSystem::Btrfs, 0x1_0040, b"_BHRfS_M"),
        (FileSystem::Squashfs, 0, b"hsqs"),
        (FileSystem::Erofs, 0x400, b"\xe2\xe1\xf5\xe0"),
    ] {
        let image = Image::new();
        image.put(magic_at, magic);
        let root = RootPartition {
            number: None,
            file_system: kind,
        };
        assert_eq!(image.find("").unwrap(), root);
    }
    let image = Image::new();
    image.ext(0, "root");
    assert_eq!(
        image.find("LABEL=root").unwrap().file_system,
        FileSystem::Ext
    );
    assert_eq!(image.number(&format!("UUID={UUID_TEXT}")), None);
}

/// Primary partitions 1 and 2, logical ones 5 and 6.
fn with_mbr() -> Image {
    let image = Image::new();
    image.boot_record(0, &[(0x83, 64), (0xef, 200), (0x0f, 300)]);
    image.boot_record(300, &[(0x83, 10), (0x05, 400)]);
    image.boot_record(700, &[(0x83, 20)]);
    image
}

#[test]
fn partitions_of_an_mbr_are_found() {
    let image = with_mbr();
    image.ext(64, "one");
    image.ext(310, "five");
    image.ext(720, "six");
    for (wanted, number) in [
        ("1", 1),
        ("LABEL=five", 5),
        ("6", 6),
        ("PARTUUID=1A2B3C4D-06", 6),
    ] {
        assert_eq!(image.number(wanted), Some(number), "{wanted}");
    }
    assert_eq!(
        image.error(""),
        "--rootfs IMAGE: file system of a known kind (ext2 to ext4, xfs, btrfs, squashfs, erofs) may be any of \
         these: partition 1 (ext4, LABEL=one), partition 5 (ext4, LABEL=five), partition 6 (ext4, LABEL=six)"
    );
    assert!(
        image
            .error("2")
            .starts_with("--rootfs IMAGE: partition 2 has no file system of a known kind")
    );
    assert!(
        image
            .error("LABEL=none")
            .starts_with("--rootfs IMAGE: no partition LABEL=none; there is partition 1")
    );
}

#[test]
fn the_only_file_system_needs_no_name() {
    let image = with_mbr();
    image.ext(720, "");
    assert_eq!(image.number(""), Some(6));
}

#[test]
fn a_chain_of_records_that_is_a_circle_ends() {
    let image = Image::new();
    image.boot_record(0, &[(0x05, 300)]);
    image.boot_record(300, &[(0x83, 10), (0x05, 0)]);
    assert!(
        image
            .error("")
            .contains("there is partition 5, partition 6,")
    );
    image.boot_record(300, &[(0x05, u32::MAX), (0x05, 0)]);
    assert!(image.error("1").ends_with("there is no partition"));
}

/// Moves entry 0 of a GPT to `index`, as the crate writes them without gaps.
fn move_gpt_entry(image: &Image, index: u64) {
    let mut entry = [0; 128];
    image.file.read_exact_at(&mut entry, 2 * SECTOR).unwrap();
    image.put(2 * SECTOR, &[0; 128]);
    image.put(2 * SECTOR + 128 * index, &entry);
}

#[test]
fn partitions_of_a_gpt_are_found() {
    let image = Image::new();
    let config = gpt::GptConfig::new().writable(true);
    let mut disk = config
        .create_from_device(image.file.try_clone().unwrap(), None)
        .unwrap();
    disk.add_partition_at("p", 1, 2048, 1024, gpt::partition_types::LINUX_FS, 0)
        .unwrap();
    let uuid = disk.partitions()[&1].part_guid.to_string();
    disk.write_inplace().unwrap();
    image.ext(2048, "root");
    assert_eq!(image.number(""), Some(1));
    move_gpt_entry(&image, 2);
    assert_eq!(image.number(""), Some(3));
    assert_eq!(image.number("LABEL=root"), Some(3));
    let by_uuid = format!("PARTUUID={}", uuid.to_uppercase());
    assert_eq!(image.number(&by_uuid), Some(3));
    assert!(
        image
            .error("1")
            .ends_with("there is partition 3 (ext4, LABEL=root)")
    );
}

#[test]
fn a_gpt_of_nonsense_has_no_partitions() {
    let image = Image::new();
    image.put(SECTOR, b"EFI PART");
    image.put(SECTOR + 72, &[0xff; 16]);
    assert!(image.error("").ends_with("there is no partition"));
    let header = [2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    image.put(SECTOR + 72, &header);
    image.put(2 * SECTOR, &[0xff; 40]);
    assert!(image.error("").ends_with("there is no partition"));
}

#[test]
fn what_is_no_raw_image_is_said_so() {
    let image = Image::new();
    image.put(0, b"QFI\xfb");
    assert!(image.error("").contains("qemu-img convert -O raw"));
    let image = Image::new();
    assert!(image.error("").ends_with("there is no partition"));
    fs::write(&image.path, b"").unwrap();
    assert!(image.error("").ends_with("there is no partition"));
}
