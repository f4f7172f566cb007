//! The machine: KVM, memory, CPUs, boot, and the wiring of devices.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]

pub mod arch;
pub mod boot;
pub mod config;
pub mod control;
pub mod event_loop;
pub mod exit_cost;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod signals;
pub mod stats;
pub mod vcpu;
