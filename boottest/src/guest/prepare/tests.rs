use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;

use cpio::newc::Reader;

use super::*;
use crate::guest::{ModuleSource, Partition};

fn machine(folder: &Path, more: &str) -> MachineConfig {
    let kernel = folder.join("vmlinuz");
    fs::write(&kernel, b"no version").unwrap();
    toml::from_str(&format!("kernel = {kernel:?}\n{more}")).unwrap()
}

fn plan(rootfs: Rootfs, command: GuestCommand) -> GuestPlan {
    GuestPlan {
        modules: ModuleSource::BuiltIn,
        rootfs,
        command,
        drivers: Vec::new(),
    }
}

fn exec() -> GuestCommand {
    GuestCommand::Exec("true".to_owned())
}

/// Files of the archive that begins at `offset` of the initrd.
fn files(prepared: &Prepared, offset: u64) -> BTreeMap<String, Vec<u8>> {
    let mut file = File::open(prepared.initrd()).unwrap();
    file.seek(io::SeekFrom::Start(offset)).unwrap();
    let mut rest = BufReader::new(file);
    let mut files = BTreeMap::new();
    loop {
        let mut entry = Reader::new(rest).unwrap();
        if entry.entry().is_trailer() {
            return files;
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.entry().name().to_owned(), content);
        rest = entry.finish().unwrap();
    }
}

fn config(files: &BTreeMap<String, Vec<u8>>) -> GuestConfig {
    serde_json::from_slice(&files["tripath/config.json"]).unwrap()
}

#[test]
fn the_initramfs_has_the_init_and_what_it_is_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine(folder.path(), "");
    let prepared = prepare(&plan(Rootfs::Host, exec()), &machine).unwrap();
    assert_eq!(prepared.cmdline, ["rdinit=/tripath/init"]);
    let share = ShareConfig {
        path: PathBuf::from("/"),
        tag: "tripath-root".to_owned(),
    };
    assert_eq!(prepared.shares, [share]);
    let files = files(&prepared, 0);
    let init = &files["tripath/init"];
    assert!(init.starts_with(b"\x7fELF"));
    let elf = object::File::parse(&init[..]).unwrap();
    assert!(
        object::Object::section_by_name(&elf, ".interp").is_none(),
        "not static"
    );
    let expected = GuestConfig {
        modules: Vec::new(),
        root: GuestRoot::Share {
            tag: "tripath-root".to_owned(),
        },
        modules_folder: None,
        command: InitCommand::Shell("true".to_owned()),
    };
    assert_eq!(config(&files), expected);
}

#[test]
fn the_users_initrd_comes_first_and_is_padded() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("users"), b"12345").unwrap();
    let initrd = format!("initrd = {:?}", folder.path().join("users"));
    let machine = machine(folder.path(), &initrd);
    let script = folder.path().join("check.sh");
    fs::write(&script, "#!/bin/sh\nexit 7\n").unwrap();
    let plan = plan(Rootfs::Initramfs, GuestCommand::Script(script));
    let prepared = prepare(&plan, &machine).unwrap();
    let mut start = [0; 8];
    let initrd = File::open(prepared.initrd()).unwrap();
    initrd.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, *b"12345\0\0\0");
    let files = files(&prepared, 8);
    assert_eq!(files["tripath/script"], b"#!/bin/sh\nexit 7\n");
    assert_eq!(
        config(&files).command,
        InitCommand::Script("check.sh".to_owned())
    );
}

#[test]
fn a_disk_is_found_by_its_serial_number() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine(folder.path(), "");
    let path = folder.path().join("disk.img");
    let mut image = vec![0; 1 << 20];
    image[..4].copy_from_slice(b"XFSB");
    fs::write(&path, &image).unwrap();
    for writable in [false, true] {
        let rootfs = Rootfs::Image {
            path: path.clone(),
            partition: Partition::Automatic,
            writable,
        };
        let prepared = prepare(&plan(rootfs, exec()), &machine).unwrap();
        let [disk] = &prepared.disks[..] else {
            panic!("{:?}", prepared.disks)
        };
        assert_eq!((disk.readonly, &disk.path), (!writable, &path));
        let root = GuestRoot::Disk {
            serial: disk.serial.clone().unwrap(),
            partition: None,
            file_system: "xfs".to_owned(),
            writable,
        };
        assert_eq!(config(&files(&prepared, 0)).root, root);
    }
}

#[test]
fn the_users_mistakes_name_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine(folder.path(), "");
    let missing = folder.path().join("missing");
    let error = |plan: &GuestPlan| prepare(plan, &machine).unwrap_err().to_string();
    let named = [
        plan(Rootfs::Directory(missing.clone()), exec()),
        plan(Rootfs::Host, GuestCommand::Script(missing.clone())),
    ];
    for plan in named {
        let text = error(&plan);
        assert!(text.starts_with(&missing.display().to_string()), "{text}");
    }
    let file = Rootfs::Directory(machine.boot.kernel.clone());
    assert!(error(&plan(file, exec())).contains("neither a folder nor"));
    let mut searching = plan(Rootfs::Host, exec());
    searching.modules = ModuleSource::Search;
    assert!(error(&searching).contains("does not say which version it is"));
}
