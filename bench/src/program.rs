//! shim
use std::io;
use std::path::{Path, PathBuf};
/// The load program.
#[derive(Debug)]
pub struct LoadProgram(PathBuf);
impl LoadProgram {
    /// Path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}
/// Shim.
///
/// # Errors
/// None.
pub fn load_program() -> io::Result<LoadProgram> {
    std::env::var_os("TRIPATH_LOAD")
        .map(|path| LoadProgram(path.into()))
        .ok_or(io::ErrorKind::NotFound.into())
}
