//! Kernel formats, boot parameters, the command line.
/// How the boot processor enters the kernel.
pub enum Entry {
    /// The 64-bit boot protocol.
    Linux64 {
        /// Instruction pointer.
        rip: u64,
        /// Address of `boot_params`.
        zero_page: u64,
    },
    /// PVH.
    Pvh32 {
        /// Instruction pointer.
        eip: u64,
        /// Address of `hvm_start_info`.
        start_info: u64,
    },
}
