//! The rules between the layers, as far as a machine can check them: what `devices` may depend on, who names KVM's
//! crates, and who starts threads.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The direct dependencies of a crate of this workspace, those of its tests included.
fn dependencies(package: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|p| p["name"] == package).unwrap();
    package["dependencies"].as_array().unwrap().clone()
}

/// Why a direct dependency of `devices` breaks the rules, if it does.
fn objection(dependency: &Value) -> Option<String> {
    let name = dependency["name"].as_str().unwrap();
    let has_kvm = dependency["features"]
        .as_array()
        .unwrap()
        .iter()
        .any(|feature| feature == "kvm");
    let defaults = dependency["uses_default_features"] == true;
    match name {
        "kvm-ioctls" | "kvm-bindings" => {
            Some(format!("devices depends on {name}: devices know no KVM"))
        }
        "clap" | "vmm-core" | "tripath" => Some(format!(
            "devices depends on {name}: arrows point from the binary to devices"
        )),
        // Its default features bring in KVM's device handle.
        "vfio-ioctls" if has_kvm || defaults => Some(
            "devices depends on vfio-ioctls with KVM: take it without default features".to_owned(),
        ),
        _ => None,
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// A file's lines without comments, with their numbers, up to its tests if it has any at its end.
fn code_lines(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap().to_owned()))
        .collect()
}

/// Where in `folder` the code contains one of `words`.
fn mentions(folder: &str, words: &[&str], allowed: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for file in rust_files(&root().join(folder)) {
        if allowed(&file) {
            continue;
        }
        for (number, line) in code_lines(&file) {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {}", file.display(), line.trim()));
            }
        }
    }
    found
}

#[test]
fn devices_depends_on_no_kvm() {
    let objections: Vec<String> = dependencies("devices")
        .iter()
        .filter_map(objection)
        .collect();
    assert!(objections.is_empty(), "{objections:#?}");
}

#[test]
fn boottest_and_bench_know_neither_devices_nor_the_command_line() {
    for package in ["boottest", "bench"] {
        let dependencies = dependencies(package);
        for above_or_below in ["devices", "kvm-ioctls", "kvm-bindings", "clap", "anyhow"] {
            let there = dependencies.iter().any(|one| one["name"] == above_or_below);
            assert!(!there, "{package} depends on {above_or_below}");
        }
    }
}

#[test]
fn the_check_of_dependencies_finds_breaches() {
    let dependency = |name: &str, features: &[&str], defaults: bool| serde_json::json!({ "name": name, "features": features, "uses_default_features": defaults });
    for bad in [
        dependency("kvm-ioctls", &[], true),
        dependency("kvm-bindings", &[], true),
        dependency("clap", &[], true),
        dependency("vmm-core", &[], true),
        dependency("vfio-ioctls", &["kvm"], false),
        dependency("vfio-ioctls", &[], true),
    ] {
        assert!(objection(&bad).is_some(), "{bad}");
    }
    assert!(objection(&dependency("vfio-ioctls", &["vfio_cdev"], false)).is_none());
    assert!(objection(&dependency("vm-memory", &[], true)).is_none());
}

#[test]
fn only_the_kvm_module_names_kvm_ioctls() {
    let kvm = root().join("vmm-core/src/kvm");
    let breaches: Vec<String> = [
        "src",
        "bench/src",
        "boottest/src",
        "vmm-core/src",
        "devices/src",
    ]
    .into_iter()
    .flat_map(|folder| mentions(folder, &["kvm_ioctls"], |file| file.starts_with(&kvm)))
    .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn devices_start_no_threads() {
    let words = ["thread::spawn", "thread::Builder", "thread::scope"];
    // Tests may: a device is to stand several threads.
    let is_test = |file: &Path| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        stem == "tests" || stem.ends_with("_tests")
    };
    let breaches = mentions("devices/src", &words, is_test);
    assert!(breaches.is_empty(), "{breaches:#?}");
}
