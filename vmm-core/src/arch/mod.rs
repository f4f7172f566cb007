//! x86-64: what a processor shows of itself, how it starts, and the tables that describe the machine to it.

pub mod acpi;
pub mod cpuid;
pub mod regs;
