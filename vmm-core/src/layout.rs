//! Every guest address, port and GSI, in one table.
//!
//! ```text
//! 0000_0000 .. 0009_fc00   RAM: boot structures below 0x9_0000
//! 0009_fc00 .. 0010_0000   EBDA, BIOS area: the RSDP, the ACPI tables, real-mode services
//! 0010_0000 .. C000_0000   RAM, the kernel first (up to 3 GiB)
//! C000_0000 .. E000_0000   32-bit PCI memory window
//! E000_0000 .. E010_0000   ECAM, bus 0
//! FEC0_0000, FEE0_0000     IOAPIC, local APIC
//! FFFB_C000, FFFB_D000     KVM's identity map page and TSS (Intel)
//! 1_0000_0000 ..           RAM above 4 GiB, then the 64-bit PCI window
//! ```

/// Start of the zero page (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial GDT.
pub const GDT: u64 = 0x500;
/// Start of PVH's `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH's memory map.
pub const PVH_MEMMAP: u64 = 0x6100;
/// PVH's module list.
pub const PVH_MODLIST: u64 = 0x6040;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables for 64-bit entry: PML4, PDPT, then four page directories for the first 4 GiB.
pub const PAGE_TABLES: u64 = 0x9000;
/// Boot sector, setup code, heap and stack of a kernel that starts in real mode, 64 KiB.
pub const REAL_MODE_KERNEL: u64 = 0x1_0000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of the kernel command line, NUL included.
pub const CMDLINE_MAX_BYTES: u64 = 0x1_0000;
/// End of conventional RAM; the EBDA follows.
pub const EBDA: u64 = 0x9_fc00;
/// The RSDP, in the area where firmware puts it; the other ACPI tables follow it.
pub const RSDP: u64 = 0xe_0000;
/// Where ACPI tables go that do not fit behind the RSDP, as those of thousands of CPUs.
pub const ACPI_OVERFLOW: u64 = 0xc_0000;
/// End of the ACPI tables' area.
pub const ACPI_END: u64 = REAL_MODE_SERVICES.start;
/// The services for kernels that start in real mode, up to the reset vector at F000:FFF0.
pub const REAL_MODE_SERVICES: std::ops::Range<u64> = 0xf_f000..0x10_0000;
/// Start of RAM above the legacy hole; where kernels are loaded.
pub const HIGH_RAM: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM above 4 GiB starts here.
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;

/// 32-bit PCI memory window.
pub const PCI_MMIO32: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
/// ECAM base (MCFG), one bus.
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of ECAM for one bus.
pub const ECAM_BYTES: u64 = 1 << 20;
/// Size of the 64-bit PCI memory window, which lies above all RAM, aligned to its size.
pub const PCI_MMIO64_BYTES: u64 = 1 << 34;
/// PCI I/O port window.
pub const PCI_IO: std::ops::Range<u64> = 0xc000..0xe000;

/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// KVM's identity map page, needed on Intel without unrestricted guest.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// KVM's TSS, three pages.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Ports of COM1 to COM4; eight each.
pub const COM_PORTS: [u64; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
/// GSIs of COM1 to COM4.
pub const COM_GSIS: [u32; 4] = [4, 3, 4, 3];
/// i8042 data port.
pub const I8042_DATA: u64 = 0x60;
/// i8042 keyboard GSI.
pub const I8042_GSI: u32 = 1;
/// CMOS index and data ports.
pub const CMOS: u64 = 0x70;
/// RTC GSI.
pub const CMOS_GSI: u32 = 8;
/// pvpanic port (QEMU's `pvpanic` ISA device, `QEMU0001`).
pub const PVPANIC: u64 = 0x505;
/// Ports of the primary and the secondary IDE channel's command blocks; eight each.
pub const IDE_COMMAND_PORTS: [u64; 2] = [0x1f0, 0x170];
/// Ports of their control blocks; one each.
pub const IDE_CONTROL_PORTS: [u64; 2] = [0x3f6, 0x376];
/// GSIs of the IDE channels.
pub const IDE_GSIS: [u32; 2] = [14, 15];
/// PM1a event block, 4 bytes: status and enable.
pub const PM1A_EVENT: u64 = 0x600;
/// PM1a control block, 2 bytes.
pub const PM1A_CONTROL: u64 = 0x604;
/// ACPI PM timer, 4 bytes.
pub const PM_TIMER: u64 = 0x608;
/// ACPI system control interrupt.
pub const SCI_GSI: u32 = 9;
/// PCI configuration address port; the data port is at 0xcfc. 0xcf9 is the reset control register.
pub const PCI_CONFIG_ADDRESS: u64 = 0xcf8;
/// Reset control register, within the PCI configuration ports.
pub const RESET_CONTROL: u64 = 0xcf9;

/// First IOAPIC input of the PCI interrupt lines; there are eight, by device number modulo eight.
pub const PCI_INTX_GSI: u32 = 16;
/// How many PCI interrupt lines there are.
pub const PCI_INTX_COUNT: u32 = 8;
/// First GSI for message-signalled interrupts' routes.
pub const MSI_GSI: u32 = 24;
