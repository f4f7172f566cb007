//! One `lib/modules/VERSION`.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::guest::error::{self, GuestError};

/// More than any module has, unpacked.
const MAX_MODULE_BYTES: u64 = 256 << 20;
/// How a module's file may end, with the name that comes before.
const ENDINGS: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];
/// Deeper than any such tree: a loop of links ends.
const MAX_DEPTH: usize = 16;

/// A folder of modules, with a list of what is in it.
#[derive(Debug)]
pub struct ModuleFolder {
    path: PathBuf,
    /// Names of what the kernel contains.
    built_in: HashSet<String>,
    /// Files by the names of their modules, relative to the folder; compressed or not, as `modules.order` does not say.
    files: HashMap<String, PathBuf>,
}

impl ModuleFolder {
    /// Reads the lists of a folder: `modules.dep`, which `depmod` makes, or `modules.order`, which is there before it;
    /// if there is neither, the folders are looked through.
    pub fn open(path: PathBuf) -> Result<Self, GuestError> {
        let built_in = read_list(&path.join("modules.builtin"))?.unwrap_or_default();
        let built_in = built_in
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = HashMap::new();
        let mut add = |file: PathBuf| {
            if let Some(name) = module_name(&file) {
                files.entry(name).or_insert(file);
            }
        };
        let list = match read_list(&path.join("modules.dep"))? {
            Some(list) if !list.is_empty() => Some(list),
            _ => read_list(&path.join("modules.order"))?,
        };
        match list {
            Some(list) => list
                .lines()
                .filter_map(|line| line.split(':').next())
                .for_each(|file| add(PathBuf::from(file))),
            None => look_through(&path, Path::new(""), 0, &mut add)?,
        }
        Ok(Self {
            path,
            built_in,
            files,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel contains a module.
    pub fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&normal(name))
    }

    /// The file of a module, if there is one.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let listed = self.path.join(self.files.get(&normal(name))?);
        if listed.is_file() {
            return Some(listed);
        }
        // modules.order has names from before the modules were compressed.
        let listed = listed.to_str()?;
        let plain = ENDINGS
            .iter()
            .find_map(|ending| listed.strip_suffix(ending))?;
        ENDINGS
            .iter()
            .map(|ending| PathBuf::from(format!("{plain}{ending}")))
            .find(|file| file.is_file())
    }
}

/// A module's content, unpacked.
pub fn read_module(path: &Path) -> Result<Vec<u8>, GuestError> {
    let packed = File::open(path).map_err(error::read(path))?;
    let mut magic = Vec::new();
    (&packed)
        .take(4)
        .read_to_end(&mut magic)
        .map_err(error::read(path))?;
    let packed = std::io::Cursor::new(magic.clone()).chain(packed);
    let mut reader: Box<dyn Read> = if magic.starts_with(b"\x1f\x8b") {
        Box::new(flate2::read::GzDecoder::new(packed))
    } else if magic.starts_with(b"\xfd7zX") {
        Box::new(liblzma::read::XzDecoder::new(packed))
    } else if magic.starts_with(b"\x28\xb5\x2f\xfd") {
        let decoder = zstd::stream::read::Decoder::new(packed).map_err(error::read(path))?;
        Box::new(decoder)
    } else {
        Box::new(packed)
    };
    let mut content = Vec::new();
    reader
        .by_ref()
        .take(MAX_MODULE_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(error::read(path))?;
    if content.len() as u64 > MAX_MODULE_BYTES {
        return Err(GuestError::BadModule {
            path: path.to_owned(),
            reason: format!("more than {MAX_MODULE_BYTES} bytes"),
        });
    }
    Ok(content)
}

fn read_list(path: &Path) -> Result<Option<String>, GuestError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error::read(path)(error)),
    }
}

fn look_through(
    top: &Path,
    below: &Path,
    depth: usize,
    add: &mut impl FnMut(PathBuf),
) -> Result<(), GuestError> {
    let folder = top.join(below);
    for entry in fs::read_dir(&folder).map_err(error::read(&folder))? {
        let entry = entry.map_err(error::read(&folder))?;
        let path = below.join(entry.file_name());
        let kind = entry.file_type().map_err(error::read(&folder))?;
        // `build` and `source` are links to other places.
        if kind.is_dir() && depth < MAX_DEPTH {
            look_through(top, &path, depth + 1, add)?;
        } else if kind.is_file() {
            add(path);
        }
    }
    Ok(())
}

/// The name of the module in a file; none if it is no module.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let plain = ENDINGS
        .iter()
        .find_map(|ending| name.strip_suffix(ending))?;
    Some(normal(plain))
}

/// `-` and `_` are the same in a module's name.
pub fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn open(folder: &tempfile::TempDir) -> ModuleFolder {
        ModuleFolder::open(folder.path().to_owned()).unwrap()
    }

    #[test]
    fn modules_are_found_by_any_list_or_none() {
        let file: (&str, &[u8]) = ("kernel/drivers/char/virtio-rng.ko.xz", b"");
        let dep: (&str, &[u8]) = (
            "modules.dep",
            b"kernel/drivers/char/virtio-rng.ko.xz: kernel/a.ko.xz\n",
        );
        let order: (&str, &[u8]) = ("modules.order", b"kernel/drivers/char/virtio-rng.ko\n");
        for lists in [&[file][..], &[file, dep], &[file, order]] {
            let folder = folder(lists);
            let expected = folder.path().join(file.0);
            for name in ["virtio-rng", "virtio_rng"] {
                assert_eq!(open(&folder).file(name), Some(expected.clone()));
            }
            assert_eq!(open(&folder).file("overlay"), None);
        }
    }

    #[test]
    fn a_list_of_files_that_are_gone_finds_nothing() {
        let folder = folder(&[("modules.order", b"kernel/fs/overlay.ko\n")]);
        assert_eq!(open(&folder).file("overlay"), None);
    }

    #[test]
    fn what_is_built_in_is_known() {
        let folder = folder(&[("modules.builtin", b"kernel/fs/fuse/virtiofs.ko\n")]);
        assert!(open(&folder).is_built_in("virtiofs"));
        assert!(!open(&folder).is_built_in("overlay"));
    }

    #[test]
    fn modules_are_unpacked() {
        let content = b"\x7fELF and more of it".repeat(1000);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&content).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&content).unwrap();
        let zst = zstd::stream::encode_all(&content[..], 1).unwrap();
        let packed = [
            content.clone(),
            gz.finish().unwrap(),
            xz.finish().unwrap(),
            zst,
        ];
        for (index, packed) in packed.iter().enumerate() {
            let folder = folder(&[("m", packed), ("cut", &packed[..packed.len() / 2])]);
            assert!(read_module(&folder.path().join("m")).unwrap() == content);
            assert_eq!(read_module(&folder.path().join("cut")).is_ok(), index == 0);
        }
    }
}
