//! What can go wrong before the command runs.

use std::io;

use thiserror::Error;

/// Why the command is not run. The text reaches the user.
#[derive(Debug, Error)]
pub enum InitError {
    /// The kernel refused something.
    #[error("cannot {action} {object} in the guest: {source}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// With what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The host and this program do not agree on the configuration.
    #[error("the configuration in the guest's initramfs: {0}")]
    Config(#[from] serde_json::Error),
    /// There is no virtio console.
    #[error("the guest has no virtio console to talk to the host")]
    NoChannel,
    /// There is no disk with the serial number.
    #[error("the guest has no disk with the serial number {0}: its driver found none")]
    NoDisk(String),
    /// The disk lacks the partition.
    #[error("the guest's disk {disk} has no partition {number}")]
    NoPartition {
        /// The kernel's name of it.
        disk: String,
        /// Which.
        number: u32,
    },
    /// The program is not there.
    #[error("there is no {0} in the guest's root")]
    NoProgram(String),
    /// The script's first line names an interpreter that is not there.
    #[error("there is no {interpreter} in the guest's root, which {script} asks for")]
    NoInterpreter {
        /// What it asks for.
        interpreter: String,
        /// Who.
        script: String,
    },
}

/// For `map_err`: what was tried with what.
pub fn io<E: Into<io::Error>>(
    action: &'static str,
    object: impl Into<String>,
) -> impl FnOnce(E) -> InitError {
    let object = object.into();
    move |source| InitError::Kernel {
        action,
        object,
        source: source.into(),
    }
}
