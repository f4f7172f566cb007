//! Builds the programs that run in guests, for the build scripts of the crates that carry them.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// A program of this workspace that a crate carries.
#[derive(Debug, Clone, Copy)]
pub struct GuestProgram<'a> {
    /// The folder of its package, next to the one of the crate that is being built.
    pub package: &'a str,
    /// The name of its binary, and of the file that is made.
    pub bin: &'a str,
    /// Further files and folders that it is made from, as seen from the crate that is being built.
    pub sources: &'a [&'a str],
    /// The profile of the workspace it is built with.
    pub profile: &'a str,
}

/// Builds a static program and puts it into `OUT_DIR` under the name of its binary; again when what it is made from
/// changes. To be called from a build script.
///
/// # Errors
/// It cannot be built; the compiler's messages are on standard error then.
pub fn build_guest_program(program: &GuestProgram<'_>) -> Result<(), Box<dyn Error>> {
    let package = Path::new("..").join(program.package);
    let own = [package.join("Cargo.toml"), package.join("src")];
    for source in &own {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let common = ["build.rs", "../Cargo.toml", "../Cargo.lock"];
    for source in common.iter().chain(program.sources) {
        println!("cargo::rerun-if-changed={source}");
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let target = env::var("TARGET")?;
    // A target folder of its own: the one of this build is locked while it lasts. One for all profiles of ours, next to
    // theirs: OUT_DIR is PROFILE/build/PACKAGE/out in it.
    let target_folder = folder
        .ancestors()
        .nth(4)
        .map_or_else(|| folder.clone(), Path::to_owned)
        .join("guest-programs");
    run_cargo(program, &own[0], &target, &target_folder)?;
    let built = target_folder
        .join(target)
        .join(program.profile)
        .join(program.bin);
    fs::copy(&built, folder.join(program.bin))
        .map_err(|error| format!("{}: {error}", built.display()))?;
    Ok(())
}

fn run_cargo(
    program: &GuestProgram<'_>,
    manifest: &Path,
    target: &str,
    target_folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("no CARGO")?);
    cargo
        .args(["build", "--quiet", "--locked"])
        .args(["--profile", program.profile])
        .arg("--manifest-path")
        .arg(manifest)
        .args(["--bin", program.bin, "--target", target])
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
        return Err(format!("{} could not be built: see the messages above", program.bin).into());
    }
    Ok(())
}
