//! x86-64: what a processor shows of itself and how it starts.

pub mod cpuid;
pub mod regs;
