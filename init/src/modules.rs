//! Kernel modules, in the order of the host's list.

use std::fs::File;

use rustix::io::Errno;
use tripath_init::config::GuestModule;

use crate::error::{InitError, io};

/// Loads them all, or up to the first that is required and fails.
pub fn load(modules: &[GuestModule]) -> Result<(), InitError> {
    for module in modules {
        if let Err(error) = load_one(&module.path) {
            if module.required {
                return Err(error);
            }
            eprintln!("tripath-init: {error}");
        }
    }
    Ok(())
}

fn load_one(path: &str) -> Result<(), InitError> {
    let file = File::open(path).map_err(io("open", path))?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(io("load", path)(error)),
    }
}
