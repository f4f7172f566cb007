//! Where everything is read from: the host's `/sys`, `/proc`, `/dev` and `/lib`, or a tree of a test's.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::kernel::{Kernel, LiveKernel};

/// A host to look at and to change.
pub struct Host {
    root: PathBuf,
    kernel: Box<dyn Kernel>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// The host that this process runs on.
    #[must_use]
    pub fn this() -> Self {
        Self::new("/", Box::new(LiveKernel))
    }

    /// The host whose files are under `root`, and whose changes go through `kernel`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, kernel: Box<dyn Kernel>) -> Self {
        Self {
            root: root.into(),
            kernel,
        }
    }

    /// What changes things, and answers what no file tells.
    #[must_use]
    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// Where a path of the host is; the path starts without `/`.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        debug_assert!(!path.starts_with('/'), "{path} would leave the tree");
        self.root.join(path)
    }

    /// A file's text without the white space around it; none if it cannot be read.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<String> {
        read(&self.path(path))
    }

    /// The names in a folder, sorted; none if there is no such folder.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        list(&self.path(path))
    }

    /// Whether something is there.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}

/// A file's text without the white space around it; none if it cannot be read.
pub(super) fn read(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// The names in a folder, sorted.
pub(super) fn list(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

/// The last part of what a symbolic link points at.
pub(super) fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
