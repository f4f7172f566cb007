//! Which modules are loaded, in which order: each after those that it depends on.

use std::collections::HashSet;
use std::path::PathBuf;

use super::folder::{ModuleFolder, normal, read_module};
use super::modinfo;
use crate::guest::error::GuestError;

/// A module that is wanted in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Its name.
    pub name: &'static str,
    /// Who cannot do without it; none if the guest is still of use.
    pub needed_for: Option<&'static str>,
}

/// A module to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_` and no `-`.
    pub name: String,
    /// Its content, unpacked.
    pub content: Vec<u8>,
    /// Whether the guest is of no use without it.
    pub required: bool,
}

/// The modules to be loaded for what is `needed`, in order, and the names of those that do not exist and that the
/// guest can do without. What is built in is left out.
///
/// # Errors
/// A module that is required is missing, or a file is not a module.
pub fn in_order(
    folder: &ModuleFolder,
    needed: &[Needed],
) -> Result<(Vec<Module>, Vec<&'static str>), GuestError> {
    let mut modules = Vec::new();
    let mut missing = Vec::new();
    for needed in needed {
        let mut walk = Walk {
            folder,
            loaded: &modules,
            seen: HashSet::new(),
            added: Vec::new(),
            required: needed.needed_for.is_some(),
        };
        match walk.visit(needed.name) {
            Ok(()) => {
                let added = walk.added;
                modules.extend(added);
            }
            Err(Stop::Missing(_)) if needed.needed_for.is_none() => missing.push(needed.name),
            Err(Stop::Missing(name)) => {
                return Err(GuestError::NoModule {
                    folder: folder.path().to_owned(),
                    name,
                    needed_for: needed.needed_for.unwrap_or_default().to_owned(),
                });
            }
            Err(Stop::Failed(error)) => return Err(error),
        }
    }
    Ok((modules, missing))
}

/// Why a module and those before it are not loaded.
enum Stop {
    /// There is no module of that name.
    Missing(String),
    /// What there is cannot be read.
    Failed(GuestError),
}

/// The way through the dependencies of one module.
struct Walk<'a> {
    folder: &'a ModuleFolder,
    /// What earlier ways have brought.
    loaded: &'a [Module],
    /// What was entered. A circle is cut where it closes: among soft dependencies there are some.
    seen: HashSet<String>,
    added: Vec<Module>,
    required: bool,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str) -> Result<(), Stop> {
        let name = normal(name);
        let is_there =
            self.folder.is_built_in(&name) || self.loaded.iter().any(|module| module.name == name);
        if is_there || self.seen.contains(&name) {
            return Ok(());
        }
        let file = self
            .folder
            .file(&name)
            .ok_or_else(|| Stop::Missing(name.clone()))?;
        self.seen.insert(name.clone());
        let content = read_module(&file).map_err(Stop::Failed)?;
        let info = modinfo::read(&content).map_err(|reason| bad(file, reason))?;
        for before in &info.soft_before {
            self.visit_soft(before)?;
        }
        for before in &info.depends {
            self.visit(before)?;
        }
        self.added.push(Module {
            name,
            content,
            required: self.required,
        });
        Ok(())
    }

    /// A soft dependency may be missing, or may fail to load. It may be an alias, as `crypto-crc32c` is that of
    /// `crc32c_generic`: lists of aliases are made by `depmod`, and a package has none.
    fn visit_soft(&mut self, name: &str) -> Result<(), Stop> {
        let plain = name.strip_prefix("crypto-").unwrap_or(name);
        let required = std::mem::replace(&mut self.required, false);
        for candidate in [plain.to_owned(), format!("{plain}_generic")] {
            let (seen, added) = (self.seen.clone(), self.added.len());
            match self.visit(&candidate) {
                Ok(()) => break,
                Err(Stop::Missing(_)) => {
                    self.seen = seen;
                    self.added.truncate(added);
                }
                Err(failed @ Stop::Failed(_)) => return Err(failed),
            }
        }
        self.required = required;
        Ok(())
    }
}

fn bad(path: PathBuf, reason: String) -> Stop {
    Stop::Failed(GuestError::BadModule { path, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::{Object, StandardSegment};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};
    use std::fs;

    /// A module file with that section `.modinfo`.
    fn module(info: &str) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let segment = object.segment_name(StandardSegment::Data).to_vec();
        let section = object.add_section(segment, b".modinfo".to_vec(), SectionKind::ReadOnlyData);
        object.append_section_data(section, info.as_bytes(), 1);
        object.write().unwrap()
    }

    fn folder(modules: &[(&str, &str)], built_in: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("modules.builtin"), built_in).unwrap();
        for (name, info) in modules {
            fs::write(folder.path().join(format!("{name}.ko")), module(info)).unwrap();
        }
        folder
    }

    fn order(
        folder: &tempfile::TempDir,
        needed: &[Needed],
    ) -> Result<(Vec<String>, Vec<&'static str>), GuestError> {
        let folder = ModuleFolder::open(folder.path().to_owned()).unwrap();
        let (modules, missing) = in_order(&folder, needed)?;
        Ok((
            modules.into_iter().map(|module| module.name).collect(),
            missing,
        ))
    }

    fn required(name: &'static str) -> Needed {
        Needed {
            name,
            needed_for: Some("a test"),
        }
    }

    fn wanted(name: &'static str) -> Needed {
        Needed {
            name,
            needed_for: None,
        }
    }

    #[test]
    fn dependencies_come_first_and_each_once() {
        let folder = folder(
            &[
                ("virtiofs", "depends=virtio,fuse\0"),
                ("virtio_blk", "depends=virtio\0"),
                ("virtio", "depends=virtio-ring\0"),
                ("virtio_ring", "depends=\0"),
            ],
            "kernel/fs/fuse/fuse.ko\n",
        );
        let (names, missing) =
            order(&folder, &[required("virtio_blk"), required("virtiofs")]).unwrap();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_blk", "virtiofs"]);
        assert!(missing.is_empty());
    }

    #[test]
    fn soft_dependencies_may_be_aliases_or_missing() {
        let folder = folder(
            &[
                (
                    "ext4",
                    "depends=jbd2\0softdep=pre: crypto-crc32c none\0softdep=pre: sha256\0",
                ),
                ("jbd2", "depends=\0"),
                ("crc32c_generic", "depends=\0"),
                ("sha256", "depends=gone\0"),
            ],
            "",
        );
        let folder = ModuleFolder::open(folder.path().to_owned()).unwrap();
        let (modules, _) = in_order(&folder, &[required("ext4")]).unwrap();
        let modules: Vec<_> = modules
            .iter()
            .map(|module| (module.name.as_str(), module.required))
            .collect();
        let expected = [("crc32c_generic", false), ("jbd2", true), ("ext4", true)];
        assert_eq!(modules, expected);
    }

    #[test]
    fn what_is_missing_is_an_error_only_if_it_is_required() {
        let folder = folder(&[("e1000", "depends=gone\0"), ("rng", "depends=\0")], "");
        let (names, missing) =
            order(&folder, &[wanted("e1000"), wanted("none"), wanted("rng")]).unwrap();
        assert_eq!(
            (names, missing),
            (vec!["rng".to_owned()], vec!["e1000", "none"])
        );
        let error = order(&folder, &[required("e1000")])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no module gone, which a test needs"),
            "{error}"
        );
    }

    #[test]
    fn circles_end() {
        let folder = folder(
            &[("a", "depends=b\0"), ("b", "softdep=pre: a\0depends=a,b\0")],
            "",
        );
        let (names, _) = order(&folder, &[required("a"), required("b")]).unwrap();
        assert_eq!(names, ["b", "a"]);
    }

    #[test]
    fn a_file_that_is_no_module_is_an_error() {
        let folder = folder(&[], "");
        fs::write(folder.path().join("overlay.ko"), "nonsense").unwrap();
        let error = order(&folder, &[wanted("overlay")]).unwrap_err();
        assert!(matches!(error, GuestError::BadModule { .. }), "{error}");
    }
}
