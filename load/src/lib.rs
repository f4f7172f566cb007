//! The load of the benchmarks: what it is told, and what it answers. The program of this package is the same in a guest
//! and, for the baselines, on the host.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod latency;
pub mod peer;
pub mod spec;
