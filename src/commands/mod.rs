//! One file per subcommand.

pub mod bench;
pub mod ctl;
pub mod doctor;
pub mod run;
pub mod test;
pub mod vfio;

use std::fs::File;
use std::path::Path;

use crate::exit_code::UserError;

/// Finds out whether a file can be written at the end, before anything has run. It is made if it is not there.
fn check_writable(path: &Path) -> Result<(), UserError> {
    let opened = File::options().append(true).create(true).open(path);
    opened
        .map(drop)
        .map_err(|e| UserError::from_text(format!("cannot write {}: {e}", path.display())))
}
