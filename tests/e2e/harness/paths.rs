//! Where things are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A file of the source tree.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The VMM under test.
pub fn binary() -> PathBuf {
    std::env::var_os("TRIPATH_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_tripath").into(), PathBuf::from)
}

/// Where the tests' logs go.
pub fn logs() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("e2e-logs")
}

/// Runs `tests/testbed/setup` and returns the folder it fills. Its progress is the user's to see: the first run
/// downloads kernels.
pub fn set_up_testbed(options: &[&str]) -> Result<PathBuf> {
    let setup = source("tests/testbed/setup");
    let output = Command::new(&setup)
        .args(options)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{}", setup.display()))?;
    ensure!(output.status.success(), "{} failed", setup.display());
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}
