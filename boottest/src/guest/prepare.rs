//! From a plan to what the machine gets.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};
use tripath_init::config::{
    CONFIG_PATH, GuestCommand as InitCommand, GuestConfig, GuestModule, GuestRoot, INIT_PATH,
    SCRIPT_PATH,
};
use vmm_core::config::{DiskConfig, DiskInterface, DiskMedia, MachineConfig, ShareConfig};

use super::drivers::{self, RootKind};
use super::error::{self, GuestError};
use super::initramfs::{Archive, padding_bytes};
use super::modules::{self, Module, ModuleFolder};
use super::{GuestCommand, GuestPlan, MAX_SCRIPT_BYTES, Rootfs, image};

/// The init, built by this package's build script.
static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tripath-init"));

/// How the guest tells the root's share and disk from others.
const ROOT_NAME: &str = "tripath-root";
/// What the archive's folders are; those of the modules' files are among them.
const FOLDERS: [&str; 3] = ["/dev", "/tripath", "/tripath/modules"];

/// What has to be added to the machine, besides a virtio console for the channel, which has to be its last.
#[derive(Debug)]
pub struct Prepared {
    initrd: File,
    /// Words for the end of the kernel's command line.
    pub cmdline: Vec<String>,
    /// Folders, to come after the machine's own.
    pub shares: Vec<ShareConfig>,
    /// Disks, to come after the machine's own.
    pub disks: Vec<DiskConfig>,
    /// Drivers of the machine's devices that the kernel does not have: the guest does without.
    pub missing_drivers: Vec<&'static str>,
}

impl Prepared {
    /// The path to boot from instead of the plan's initrd. The file has no name, and is gone with this value or with
    /// this process.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        let (process, number) = (std::process::id(), self.initrd.as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{number}"))
    }
}

/// The root as the three who have to do with it see it.
struct Root {
    kind: RootKind,
    for_init: GuestRoot,
    share: Option<ShareConfig>,
    disk: Option<DiskConfig>,
}

/// Makes the initramfs for `plan` on `machine`, whose kernel, initrd and devices it takes into account.
///
/// # Errors
/// [`GuestError`]; nothing is left behind.
pub fn prepare(plan: &GuestPlan, machine: &MachineConfig) -> Result<Prepared, GuestError> {
    let root = root(&plan.rootfs)?;
    let script = match &plan.command {
        GuestCommand::Exec(_) => None,
        GuestCommand::Script(path) => Some(read_script(path)?),
    };
    let folder = modules::locate(&plan.modules, &machine.boot.kernel)?;
    let needed = drivers::needed(machine, &root.kind, &plan.drivers);
    let (modules, missing_drivers) = match &folder {
        Some(folder) => modules::in_order(folder, &needed)?,
        None => (Vec::new(), Vec::new()),
    };
    let config = GuestConfig {
        modules: modules.iter().map(guest_module).collect(),
        root: root.for_init,
        modules_folder: shown_modules(&plan.rootfs, folder.as_ref()),
        command: init_command(&plan.command),
    };
    let initrd = initramfs(
        machine.boot.initrd.as_deref(),
        &config,
        &modules,
        script.as_deref(),
    )?;
    Ok(Prepared {
        initrd,
        cmdline: vec![format!("rdinit={INIT_PATH}")],
        shares: root.share.into_iter().collect(),
        disks: root.disk.into_iter().collect(),
        missing_drivers,
    })
}

fn root(rootfs: &Rootfs) -> Result<Root, GuestError> {
    match rootfs {
        Rootfs::Host => shared_root(Path::new("/")),
        Rootfs::Directory(path) => shared_root(path),
        Rootfs::Image {
            path,
            partition,
            writable,
        } => disk_root(path, partition, *writable),
        Rootfs::Initramfs => Ok(Root {
            kind: RootKind::Initramfs,
            for_init: GuestRoot::Initramfs,
            share: None,
            disk: None,
        }),
    }
}

fn shared_root(path: &Path) -> Result<Root, GuestError> {
    let metadata = fs::metadata(path).map_err(error::read(path))?;
    if !metadata.is_dir() {
        return Err(GuestError::NoRootfs(path.to_owned()));
    }
    let tag = ROOT_NAME.to_owned();
    Ok(Root {
        kind: RootKind::Share,
        for_init: GuestRoot::Share { tag: tag.clone() },
        share: Some(ShareConfig {
            path: path.to_owned(),
            tag,
        }),
        disk: None,
    })
}

fn disk_root(
    path: &Path,
    partition: &image::Partition,
    writable: bool,
) -> Result<Root, GuestError> {
    let kind = fs::metadata(path).map_err(error::read(path))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(GuestError::NoRootfs(path.to_owned()));
    }
    let found = image::find_root(path, partition)?;
    let writable = writable && !found.file_system.is_always_read_only();
    Ok(Root {
        kind: RootKind::Disk {
            file_system: found.file_system,
            layer: !writable,
        },
        for_init: GuestRoot::Disk {
            serial: ROOT_NAME.to_owned(),
            partition: found.number,
            file_system: found.file_system.name().to_owned(),
            writable,
        },
        share: None,
        disk: Some(DiskConfig {
            path: path.to_owned(),
            interface: DiskInterface::Virtio,
            media: DiskMedia::Disk,
            readonly: !writable,
            direct: false,
            serial: Some(ROOT_NAME.to_owned()),
        }),
    })
}

fn read_script(path: &Path) -> Result<Vec<u8>, GuestError> {
    let size_bytes = fs::metadata(path).map_err(error::read(path))?.len();
    if size_bytes > MAX_SCRIPT_BYTES {
        return Err(GuestError::LargeScript {
            path: path.to_owned(),
            size_bytes,
        });
    }
    fs::read(path).map_err(error::read(path))
}

fn init_command(command: &GuestCommand) -> InitCommand {
    match command {
        GuestCommand::Exec(text) => InitCommand::Shell(text.clone()),
        GuestCommand::Script(path) => {
            let name = path.file_name().unwrap_or(SCRIPT_NAME.as_ref());
            InitCommand::Script(name.to_string_lossy().into_owned())
        }
    }
}

/// A script whose path ends with none.
const SCRIPT_NAME: &str = "script";

fn guest_module(module: &Module) -> GuestModule {
    GuestModule {
        path: module_path(module),
        required: module.required,
    }
}

fn module_path(module: &Module) -> String {
    format!("/tripath/modules/{}.ko", module.name)
}

/// With the host's root, the folder of modules is in it, and can be shown where programs look for it.
fn shown_modules(rootfs: &Rootfs, folder: Option<&ModuleFolder>) -> Option<String> {
    if *rootfs != Rootfs::Host {
        return None;
    }
    let path = folder?.path().canonicalize().ok()?;
    path.into_os_string().into_string().ok()
}

fn initramfs(
    users: Option<&Path>,
    config: &GuestConfig,
    modules: &[Module],
    script: Option<&[u8]>,
) -> Result<File, GuestError> {
    let mut file = memory_file().map_err(GuestError::Initramfs)?;
    if let Some(path) = users {
        let mut users = File::open(path).map_err(error::read(path))?;
        let len = io::copy(&mut users, &mut file).map_err(error::read(path))?;
        let zeros = [0; 4];
        // No more than three.
        let padding = usize::try_from(padding_bytes(len)).unwrap_or_default();
        file.write_all(&zeros[..padding])
            .map_err(GuestError::Initramfs)?;
    }
    write_archive(&file, config, modules, script)
        .and_then(|()| file.rewind())
        .map_err(GuestError::Initramfs)?;
    Ok(file)
}

/// A few megabytes, and there need not be a folder that can be written to.
fn memory_file() -> io::Result<File> {
    let file = memfd_create("initramfs", MemfdFlags::CLOEXEC)?;
    Ok(file.into())
}

fn write_archive(
    file: &File,
    config: &GuestConfig,
    modules: &[Module],
    script: Option<&[u8]>,
) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(file));
    for folder in FOLDERS {
        archive.folder(folder)?;
    }
    // What the kernel gives its first process to write to.
    archive.character_device("/dev/console", 5, 1)?;
    archive.file(INIT_PATH, 0o755, INIT)?;
    archive.file(CONFIG_PATH, 0o644, &serde_json::to_vec(config)?)?;
    if let Some(script) = script {
        archive.file(SCRIPT_PATH, 0o755, script)?;
    }
    for module in modules {
        archive.file(&module_path(module), 0o644, &module.content)?;
    }
    archive.finish()?.flush()
}

#[cfg(test)]
mod tests;
