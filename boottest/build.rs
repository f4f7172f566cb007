//! Builds the guest's init, which this crate carries: a static program of the package `tripath-init`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What the init is made from, as seen from this package.
const SOURCES: [&str; 5] = [
    "build.rs",
    "../init/Cargo.toml",
    "../init/src",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let target = env::var("TARGET")?;
    // A target folder of its own: the one of this build is locked while it lasts.
    let target_folder = folder.join("guest-init");
    build(&target, &target_folder)?;
    let program = target_folder.join(target).join("guest-init/tripath-init");
    fs::copy(&program, folder.join("tripath-init"))
        .map_err(|error| format!("{}: {error}", program.display()))?;
    Ok(())
}

fn build(target: &str, target_folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("no CARGO")?);
    cargo
        .args(["build", "--quiet", "--locked", "--profile", "guest-init"])
        .args(["--manifest-path", "../init/Cargo.toml"])
        .args(["--bin", "tripath-init", "--target", target])
        .arg("--target-dir")
        .arg(target_folder);
    // What this build was told is not meant for the guest: flags, clippy in the compiler's place, coverage.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_meant_for_us = text == "RUSTFLAGS"
            || text == "CARGO_ENCODED_RUSTFLAGS"
            || text == "RUSTC_WORKSPACE_WRAPPER"
            || text == "CARGO_BUILD_TARGET_DIR"
            || text == "CARGO_TARGET_DIR"
            || text.starts_with("CARGO_PROFILE_");
        if is_meant_for_us {
            cargo.env_remove(&name);
        }
    }
    // No loader and no libraries in the initramfs; a fixed address needs no relocations.
    let flags = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if !cargo.status()?.success() {
        return Err("the guest's init could not be built: see the messages above".into());
    }
    Ok(())
}
