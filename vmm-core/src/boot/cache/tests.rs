use super::*;
use crate::boot::image::{Extent, RamState};
use devices::testing::test_ram;
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress};

const ALLOWED: Range<u64> = 0x1000..0x4000;
const CONTENT: &[u8] = b"the unpacked kernel";

struct Fixture {
    dir: tempfile::TempDir,
    cache: Cache,
    kernel: File,
}

/// A clock for which files written now have settled.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::at(dir.path().join("kernels"));
        cache.now = later;
        let path = dir.path().join("bzImage");
        fs::write(&path, "the packed kernel").unwrap();
        Self {
            cache,
            kernel: File::open(path).unwrap(),
            dir,
        }
    }

    fn publish(&self) -> Entry {
        let mut draft = self.cache.draft().unwrap();
        draft.write(CONTENT).unwrap();
        let key = hash_file(&self.kernel).unwrap();
        self.cache.publish(draft, key, &image()).unwrap()
    }

    fn path_with(&self, suffix: &str) -> PathBuf {
        let name = self.names().into_iter().find(|name| name.ends_with(suffix));
        self.cache.dir.join(name.unwrap())
    }

    fn names(&self) -> Vec<String> {
        self.cache.names().map(|(name, _)| name).collect()
    }
}

fn image() -> Image {
    Image {
        entry: 0x1000,
        segments: vec![0x1000..0x1800, 0x1800..0x3000],
        extents: vec![
            Extent {
                addr: 0x1000,
                offset: 0,
                len: 3,
            },
            Extent {
                addr: 0x2000,
                offset: 3,
                len: CONTENT.len() as u64 - 3,
            },
        ],
    }
}

fn load(entry: &mut Entry) -> io::Result<()> {
    let ram = test_ram(0x4000);
    ram.write_slice(&[0xaa; 0x4000], GuestAddress(0)).unwrap();
    entry.load(&ram, RamState::Used, &ALLOWED)?;
    let mut memory = vec![0; 0x4000];
    ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
    assert_eq!(memory[0x1000..0x1004], *b"the\0");
    assert_eq!(&memory[0x2000..0x2000 + CONTENT.len() - 3], &CONTENT[3..]);
    assert_eq!(
        (memory[0xfff], memory[0x2fff], memory[0x3000]),
        (0xaa, 0, 0xaa)
    );
    Ok(())
}

#[test]
fn a_published_entry_is_found_by_content() {
    let fixture = Fixture::new();
    assert!(fixture.cache.find(&fixture.kernel).is_none());
    load(&mut fixture.publish()).unwrap();

    // A copy elsewhere is the same kernel.
    let copy = fixture.dir.path().join("copy");
    fs::write(&copy, "the packed kernel").unwrap();
    let mut found = fixture.cache.find(&File::open(&copy).unwrap()).unwrap();
    assert_eq!(found.entry_point(), 0x1000);
    assert_eq!(found.verified, None);
    load(&mut found).unwrap();
    assert!(found.verified.is_some());

    for other in ["the packed kernfl", "the packed kernel2"] {
        fs::write(&copy, other).unwrap();
        assert!(fixture.cache.find(&File::open(&copy).unwrap()).is_none());
    }
}

#[test]
fn damage_anywhere_is_found() {
    let fixture = Fixture::new();
    drop(fixture.publish());
    let path = fixture.path_with(ENTRY_SUFFIX);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        let result = fixture
            .cache
            .try_find(&fixture.kernel)
            .and_then(|entry| load(&mut entry.unwrap()));
        assert!(result.is_err(), "byte {at}");
    }
    for len in 0..good.len() {
        fs::write(&path, &good[..len]).unwrap();
        let result = fixture.cache.try_find(&fixture.kernel);
        assert!(result.is_err(), "cut at {len}");
    }
    fs::write(&path, &good).unwrap();
    load(&mut fixture.cache.find(&fixture.kernel).unwrap()).unwrap();
}

#[test]
fn an_entry_stays_within_the_kernels_memory() {
    let fixture = Fixture::new();
    let mut entry = fixture.publish();
    let ram = test_ram(0x4000);
    for allowed in [0x1000..0x2fff, 0x1001..0x4000] {
        let error = entry.load(&ram, RamState::Fresh, &allowed).unwrap_err();
        assert_eq!(error.to_string(), "leaves the kernel's memory");
    }
    assert!(
        entry
            .load(&test_ram(0x2000), RamState::Fresh, &ALLOWED)
            .is_err()
    );
}

#[test]
fn a_record_spares_reading_kernel_and_entry() {
    let fixture = Fixture::new();
    let mut entry = fixture.publish();
    fixture.cache.remember(&fixture.kernel, &mut entry);
    assert!(entry.recorded);
    let mut found = fixture.cache.find(&fixture.kernel).unwrap();
    assert!(found.recorded && found.verified.is_some());
    load(&mut found).unwrap();
}

#[test]
fn a_kernel_changed_just_now_gets_no_record() {
    let mut fixture = Fixture::new();
    fixture.cache.now = SystemTime::now;
    let mut entry = fixture.publish();
    fixture.cache.remember(&fixture.kernel, &mut entry);
    assert!(!entry.recorded);
    assert_eq!(fixture.names().len(), 1);
}

#[test]
fn an_entry_changed_behind_its_record_is_verified_again() {
    let fixture = Fixture::new();
    let mut entry = fixture.publish();
    fixture.cache.remember(&fixture.kernel, &mut entry);
    let path = fixture.path_with(ENTRY_SUFFIX);
    let mut bad = fs::read(&path).unwrap();
    bad[0] ^= 1;
    fs::write(&path, &bad).unwrap();
    let mut found = fixture.cache.find(&fixture.kernel).unwrap();
    assert!(!found.recorded && found.verified.is_none());
    assert_eq!(load(&mut found).unwrap_err().to_string(), "damaged content");
    // The one that is open notices too, at the guest's next restart.
    assert!(load(&mut entry).is_err());
    fixture.cache.discard(&found);
    assert!(fixture.cache.find(&fixture.kernel).is_none());
}

#[test]
fn records_that_do_not_fit_are_ignored() {
    let fixture = Fixture::new();
    let mut entry = fixture.publish();
    fixture.cache.remember(&fixture.kernel, &mut entry);
    let path = fixture.path_with(RECORD_SUFFIX);
    let good = fs::read_to_string(&path).unwrap();
    let boot = good.split(' ').next().unwrap();
    let other_boot = good.replace(boot, "00000000-0000-0000-0000-000000000000");
    let escaping = "boot kernel ../bzImage entry\n".to_string();
    for bad in [
        other_boot,
        escaping,
        String::new(),
        good[..good.len() - 2].into(),
    ] {
        fs::write(&path, &bad).unwrap();
        let found = fixture.cache.find(&fixture.kernel).unwrap();
        assert!(!found.recorded, "{bad:?}");
    }
}

#[test]
fn the_last_used_entries_are_kept() {
    let fixture = Fixture::new();
    fs::create_dir(&fixture.cache.dir).unwrap();
    let touch = |name: &str, age_secs: u64| {
        let file = File::create(fixture.cache.dir.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age_secs))
            .unwrap();
    };
    for age in 0..12u64 {
        let key = Key {
            len: age,
            hash: age.into(),
        };
        touch(&key.to_string(), 100 + age);
    }
    touch(".draft-1-1", 2 * 3600);
    touch(".draft-1-2", 60);
    touch("1-2.seen", 31 * 24 * 3600);
    touch("1-3.seen", 24 * 3600);
    touch("unrelated", 1 << 30);
    drop(fixture.publish());
    let names = fixture.names();
    let entries = names.iter().filter(|name| name.ends_with(ENTRY_SUFFIX));
    assert_eq!(entries.count(), MAX_ENTRIES);
    let kept = |name: &str| names.iter().any(|other| other == name);
    assert!(kept(&Key { len: 6, hash: 6 }.to_string()));
    assert!(!kept(&Key { len: 7, hash: 7 }.to_string()));
    assert!(!kept(".draft-1-1") && kept(".draft-1-2"));
    assert!(!kept("1-2.seen") && kept("1-3.seen"));
    assert!(kept("unrelated"));
}

#[test]
fn use_is_noted_once_a_day() {
    let fixture = Fixture::new();
    let mut entry = fixture.publish();
    let old = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    entry.file().set_modified(old).unwrap();
    load(&mut entry).unwrap();
    fixture.cache.remember(&fixture.kernel, &mut entry);
    let modified = entry.file().metadata().unwrap().modified().unwrap();
    assert!(modified > old + Duration::from_secs(24 * 3600));
    assert_eq!(entry.verified, Some(entry.ident().unwrap()));
    assert!(fixture.cache.find(&fixture.kernel).unwrap().recorded);
}

#[test]
fn an_unfinished_draft_leaves_nothing() {
    let fixture = Fixture::new();
    let mut draft = fixture.cache.draft().unwrap();
    draft.write(CONTENT).unwrap();
    assert_eq!(fixture.names().len(), 1);
    drop(draft);
    assert_eq!(fixture.names().len(), 0);
}

#[test]
fn a_directory_that_others_may_write_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let cache = Cache::at(dir.path().to_path_buf());
    assert_eq!(
        cache.draft().unwrap_err().to_string(),
        "others may write to it"
    );
    let kernel = File::open("/proc/self/exe").unwrap();
    assert_eq!(
        cache.try_find(&kernel).unwrap_err().to_string(),
        "others may write to it"
    );
}
