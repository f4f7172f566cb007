//! What the benchmark and the process of a guest tell each other: a line of JSON each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tripath_load::spec::{LoadResult, LoadSpec};
use vmm_core::config::MachineConfig;

use crate::results::{CpuTime, GuestCost};

/// The first line: what to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// The machine, without initrd.
    pub machine: MachineConfig,
    /// The folder of the kernel's modules, where they are not to be looked for; see
    /// [`ModuleSource`](boottest::guest::ModuleSource).
    pub modules: Option<PathBuf>,
    /// All that the guest needs is built into its kernel.
    pub built_in: bool,
    /// Drivers of functions that the guest gets.
    pub drivers: Vec<String>,
    /// Host CPUs for all threads but the vCPUs'; all of them if empty.
    pub io_cpus: Vec<u32>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum GuestRequest {
    /// Give the guest's network interface with that Ethernet address an address.
    Address {
        /// As in `52:54:00:00:00:01`.
        mac: String,
        /// As in `192.168.77.2/24`.
        address: String,
    },
    /// Measure one load.
    Measure {
        /// Which.
        spec: LoadSpec,
    },
    /// End the guest.
    Quit,
}

/// What the process says: [`Up`](Self::Up) first, then an answer to each request; [`Lost`](Self::Lost) at any time, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum GuestAnswer {
    /// The guest is up.
    Up {
        /// Its kernel's release.
        kernel: String,
        /// Its kernel's command line.
        cmdline: String,
        /// The names of the TAPs on the host, in the order of the network interfaces.
        taps: Vec<String>,
        /// Drivers that its kernel does not have.
        missing_drivers: Vec<String>,
    },
    /// Done what [`GuestRequest::Address`] asked for.
    Addressed,
    /// A load was measured.
    Measured {
        /// What the load found.
        load: LoadResult,
        /// What the guest cost.
        guest: GuestCost,
        /// The CPU time of the guest's process.
        cpu: CpuTime,
    },
    /// It could not be done. The guest still serves.
    Failed {
        /// Why.
        error: String,
    },
    /// There is no guest, or no longer.
    Lost {
        /// Why.
        error: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let machine = toml_free_machine();
        let spec = GuestSpec {
            machine,
            modules: Some("/lib/modules/6".into()),
            built_in: false,
            drivers: vec!["nvme".to_owned()],
            io_cpus: vec![1],
        };
        let line = serde_json::to_string(&spec).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<GuestSpec>(&line).unwrap(), spec);
        let request: GuestRequest =
            serde_json::from_str(r#"{"request":"address","mac":"a","address":"b"}"#).unwrap();
        assert!(matches!(request, GuestRequest::Address { .. }));
        assert_eq!(
            serde_json::to_string(&GuestRequest::Quit).unwrap(),
            r#"{"request":"quit"}"#
        );
        let lost = serde_json::from_str(r#"{"answer":"lost","error":"panic"}"#).unwrap();
        let error = "panic".to_owned();
        assert_eq!(GuestAnswer::Lost { error }, lost);
        assert!(serde_json::from_str::<GuestAnswer>(r#"{"answer":"won"}"#).is_err());
    }

    fn toml_free_machine() -> MachineConfig {
        serde_json::from_str(
            r#"{"kernel":"/k","cmdline":"quiet","disk":[{"path":"/d","if":"ide"}],"net":[{"tap":"auto"}]}"#,
        )
        .unwrap()
    }
}
