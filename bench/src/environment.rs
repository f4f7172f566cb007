//! What numbers depend on beside what is measured: read from the host, and kept with them.

use std::fs;
use std::path::Path;

use rustix::system::uname;
use serde::{Deserialize, Serialize};

/// The host and its KVM. What cannot be found out is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// This program's version.
    pub tripath: String,
    /// `release` or `debug`.
    pub build: String,
    /// The CPU's name.
    pub cpu: Option<String>,
    /// How many CPUs are online.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The loaded KVM module: `kvm_intel`, `kvm_amd`, or another's name.
    pub kvm_module: Option<String>,
    /// Its parameters, `name=value`, those of `kvm` as well, in alphabetical order.
    pub kvm_parameters: Vec<String>,
    /// The host is itself a guest.
    pub is_guest: bool,
    /// Each vulnerability of the CPU, and what is done about it.
    pub mitigations: Vec<String>,
    /// The frequency governor of the first CPU.
    pub governor: Option<String>,
}

impl Environment {
    /// This host's.
    #[must_use]
    pub fn of_host() -> Self {
        Self::below(Path::new("/"), &uname().release().to_string_lossy())
    }

    fn below(root: &Path, kernel: &str) -> Self {
        let cpuinfo = read(&root.join("proc/cpuinfo")).unwrap_or_default();
        let value = |key: &str| {
            let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            lines
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().to_owned())
        };
        let modules = root.join("sys/module");
        let kvm_module = kvm_module(&modules);
        let mut kvm_parameters = Vec::new();
        for module in [Some("kvm"), kvm_module.as_deref()].into_iter().flatten() {
            kvm_parameters.extend(pairs(&modules.join(module).join("parameters"), "="));
        }
        kvm_parameters.sort_unstable();
        Self {
            tripath: env!("CARGO_PKG_VERSION").to_owned(),
            build: build().to_owned(),
            cpu: value("model name"),
            cpus: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: kernel.to_owned(),
            kvm_module,
            kvm_parameters,
            is_guest: value("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            mitigations: pairs(&root.join("sys/devices/system/cpu/vulnerabilities"), ": "),
            governor: read(&root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        }
    }
}

/// Whether this program was built for speed. Numbers of one that was not say nothing.
#[must_use]
pub fn build() -> &'static str {
    if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    }
}

/// The module beside `kvm` itself that is loaded, or built into the kernel.
fn kvm_module(modules: &Path) -> Option<String> {
    let mut names = names(modules);
    names.retain(|name| name.starts_with("kvm_"));
    // A loaded one has a state.
    names.sort_by_cached_key(|name| (!modules.join(name).join("initstate").exists(), name.clone()));
    names.into_iter().next()
}

/// The files of a folder and what is in them, in alphabetical order.
fn pairs(folder: &Path, between: &str) -> Vec<String> {
    let mut pairs: Vec<String> = names(folder)
        .into_iter()
        .filter_map(|name| {
            let value = read(&folder.join(&name))?;
            Some(format!("{name}{between}{value}"))
        })
        .collect();
    pairs.sort_unstable();
    pairs
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_files() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu hypervisor svm\nprocessor\t: 1\n",
        );
        put("sys/module/kvm/parameters/halt_poll_ns", "200000\n");
        put("sys/module/kvm_aaa/parameters/built_in", "Y\n");
        put("sys/module/kvm_amd/initstate", "live\n");
        put("sys/module/kvm_amd/parameters/avic", "N\n");
        put(
            "sys/devices/system/cpu/vulnerabilities/spectre_v2",
            "Mitigation: Retpolines\n",
        );
        let found = Environment::below(root.path(), "6.12");
        assert_eq!(found.cpu.as_deref(), Some("Some CPU"));
        assert_eq!((found.cpus, found.is_guest), (2, true));
        assert_eq!(found.kvm_module.as_deref(), Some("kvm_amd"));
        assert_eq!(found.kvm_parameters, ["avic=N", "halt_poll_ns=200000"]);
        assert_eq!(found.mitigations, ["spectre_v2: Mitigation: Retpolines"]);
        assert_eq!(found.governor, None);
    }

    #[test]
    fn this_host_has_cpus() {
        assert!(Environment::of_host().cpus > 0);
    }
}
