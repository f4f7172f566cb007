//! What the host and the first process of a guest agree on: the configuration that the host puts into the initramfs,
//! and the messages that come out of the guest. The process itself is this package's binary.
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::unwrap_used))]

pub mod config;
pub mod protocol;
