//! What is x86-64 about the machine: tables and initial state that the guest finds.

pub mod acpi;
