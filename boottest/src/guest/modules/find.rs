//! Where a kernel's modules are.

use std::path::{Path, PathBuf};

use super::folder::ModuleFolder;
use crate::guest::error::{self, GuestError};
use crate::guest::kernel;

/// Where the modules for the guest's kernel are to be looked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ModuleSource {
    /// `/lib/modules/VERSION` of the host, then beside the kernel as in an unpacked package: `lib/modules/VERSION`
    /// next to the folder that the kernel is in.
    #[default]
    Search,
    /// In this folder: a `lib/modules/VERSION`, or one that has `lib/modules/VERSION` in it.
    Folder(PathBuf),
    /// There are none: what the guest needs is built in.
    BuiltIn,
}

/// The host's own.
const HOSTS: &str = "/lib/modules";

/// Finds the folder; none if all is built in.
pub fn locate(source: &ModuleSource, kernel: &Path) -> Result<Option<ModuleFolder>, GuestError> {
    locate_below(source, kernel, Path::new(HOSTS))
}

fn locate_below(
    source: &ModuleSource,
    kernel: &Path,
    hosts: &Path,
) -> Result<Option<ModuleFolder>, GuestError> {
    if *source == ModuleSource::BuiltIn {
        return Ok(None);
    }
    let version = kernel::release(kernel).map_err(error::read(kernel))?;
    let folder = match source {
        ModuleSource::Folder(folder) => named(folder, kernel, version)?,
        _ => {
            let version = version.ok_or_else(|| GuestError::NoVersion(kernel.to_owned()))?;
            searched(kernel, version, hosts)?
        }
    };
    ModuleFolder::open(folder).map(Some)
}

/// The folder that the user names.
fn named(folder: &Path, kernel: &Path, version: Option<String>) -> Result<PathBuf, GuestError> {
    if let Some(version) = &version {
        for tree in ["lib/modules", "usr/lib/modules", ""] {
            let inner = folder.join(tree).join(version);
            if is_of_modules(&inner) {
                return Ok(inner);
            }
        }
    }
    if !is_of_modules(folder) {
        let folder = folder.to_owned();
        return Err(GuestError::NotModules { folder, version });
    }
    // Its name is its version, unless it is a link to it or a copy.
    let real = folder.canonicalize().map_err(error::read(folder))?;
    let found = real.file_name().unwrap_or_default().to_string_lossy();
    match version {
        Some(version)
            if found.starts_with(|first: char| first.is_ascii_digit()) && found != version =>
        {
            Err(GuestError::OtherModules {
                folder: folder.to_owned(),
                found: found.into_owned(),
                kernel: kernel.to_owned(),
                version,
            })
        }
        _ => Ok(folder.to_owned()),
    }
}

fn searched(kernel: &Path, version: String, hosts: &Path) -> Result<PathBuf, GuestError> {
    let mut places = vec![hosts.join(&version)];
    // /x/boot/vmlinuz, and /x/lib/modules/VERSION/vmlinuz of newer packages.
    let kernel = kernel.canonicalize().map_err(error::read(kernel))?;
    if let Some(folder) = kernel.parent() {
        if is_of_modules(folder) && folder.ends_with(&version) {
            return Ok(folder.to_owned());
        }
        let tree = folder.parent().unwrap_or(folder);
        places.push(tree.join("lib/modules").join(&version));
        places.push(tree.join("usr/lib/modules").join(&version));
    }
    match places.iter().find(|place| is_of_modules(place)) {
        Some(place) => Ok(place.clone()),
        None => Err(GuestError::NoModules { version, places }),
    }
}

fn is_of_modules(folder: &Path) -> bool {
    ["modules.builtin", "modules.order", "kernel"]
        .iter()
        .any(|name| folder.join(name).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const VERSION: &str = "6.1.0-test";

    /// An unpacked package of a kernel.
    fn package() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let boot = tree.path().join("boot");
        fs::create_dir(&boot).unwrap();
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = format!("{VERSION} (a@b)");
        image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        fs::write(boot.join("vmlinuz"), image).unwrap();
        let modules = tree.path().join("lib/modules").join(VERSION);
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("modules.builtin"), "").unwrap();
        tree
    }

    fn find(source: &ModuleSource, tree: &Path, hosts: &Path) -> Result<PathBuf, GuestError> {
        let found = locate_below(source, &tree.join("boot/vmlinuz"), hosts)?;
        Ok(found.unwrap().path().to_owned())
    }

    #[test]
    fn the_hosts_come_first_then_those_beside_the_kernel() {
        let (tree, host) = (package(), tempfile::tempdir().unwrap());
        let modules = tree.path().join("lib/modules").join(VERSION);
        let search = ModuleSource::Search;
        assert_eq!(find(&search, tree.path(), host.path()).unwrap(), modules);
        let hosts = host.path().join(VERSION);
        fs::create_dir_all(hosts.join("kernel")).unwrap();
        assert_eq!(find(&search, tree.path(), host.path()).unwrap(), hosts);
        fs::remove_dir_all(&hosts).unwrap();
        fs::remove_dir_all(&modules).unwrap();
        let error = find(&search, tree.path(), host.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no modules for kernel 6.1.0-test in "),
            "{error}"
        );
        assert!(error.contains("--modules DIR"), "{error}");
    }

    #[test]
    fn a_folder_is_one_of_modules_or_has_one() {
        let tree = package();
        let modules = tree.path().join("lib/modules").join(VERSION);
        for named in [tree.path(), &tree.path().join("lib/modules"), &modules] {
            let found = find(
                &ModuleSource::Folder(named.to_owned()),
                tree.path(),
                Path::new("/none"),
            );
            assert_eq!(found.unwrap(), modules);
        }
        let boot = ModuleSource::Folder(tree.path().join("boot"));
        let error = find(&boot, tree.path(), Path::new("/none")).unwrap_err();
        assert!(matches!(error, GuestError::NotModules { .. }), "{error}");
        assert!(
            error
                .to_string()
                .ends_with("one that has lib/modules/6.1.0-test in it")
        );
    }

    #[test]
    fn the_modules_of_another_kernel_are_refused() {
        let tree = package();
        let other = tree.path().join("lib/modules/6.2.0");
        fs::rename(tree.path().join("lib/modules").join(VERSION), &other).unwrap();
        let error = find(
            &ModuleSource::Folder(other),
            tree.path(),
            Path::new("/none"),
        )
        .unwrap_err();
        assert!(matches!(error, GuestError::OtherModules { .. }), "{error}");
    }

    #[test]
    fn none_are_looked_for_if_all_is_built_in() {
        let none = locate(&ModuleSource::BuiltIn, Path::new("/no/such/kernel")).unwrap();
        assert!(none.is_none());
    }
}
