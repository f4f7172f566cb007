//! The registers that a vCPU starts with.

use kvm_bindings::{kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

use crate::boot::{BOOT_CS, BOOT_CS32, BOOT_DS, BOOT_TSS, EntryPoint, GDT_ENTRIES};
use crate::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;

/// 256 far pointers.
const REAL_MODE_IDT_LIMIT: u16 = 0x3ff;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4 << 8;
const APIC_MODE_EXTINT: u32 = 7 << 8;

#[allow(clippy::cast_possible_truncation)] // 47.
const GDT_LIMIT: u16 = (size_of_val(&GDT_ENTRIES) - 1) as u16;

/// General registers at `entry` (Linux 64-bit boot protocol: RSI holds `boot_params`; PVH: EBX holds the start
/// information).
#[must_use]
pub fn general(entry: &EntryPoint) -> kvm_regs {
    match *entry {
        EntryPoint::Linux64 { rip, zero_page } => kvm_regs {
            rip,
            rsi: zero_page,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rflags: RFLAGS,
            ..Default::default()
        },
        EntryPoint::Pvh32 { eip, start_info } => kvm_regs {
            rip: eip.into(),
            rbx: start_info.into(),
            rflags: RFLAGS,
            ..Default::default()
        },
        EntryPoint::RealMode { offset, .. } => kvm_regs {
            rip: offset.into(),
            rflags: RFLAGS,
            ..Default::default()
        },
    }
}

/// Segment and control registers at `entry`; `sregs` are those of the new vCPU.
#[must_use]
pub fn special(entry: &EntryPoint, mut sregs: kvm_sregs) -> kvm_sregs {
    if let EntryPoint::RealMode { segment, .. } = *entry {
        // The rest is as after a reset, which leaves real mode (SDM volume 3A, table 10-1), but with the vectors at 0.
        sregs.cs.selector = segment;
        sregs.cs.base = u64::from(segment) << 4;
        sregs.idt.base = 0;
        sregs.idt.limit = REAL_MODE_IDT_LIMIT;
        return sregs;
    }
    let long_mode = matches!(entry, EntryPoint::Linux64 { .. });
    sregs.cs = code_segment(long_mode);
    let data = data_segment();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task_segment();
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    if long_mode {
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr4 = 0;
    }
    sregs
}

/// Model-specific registers that firmware would have set.
#[must_use]
pub fn msrs() -> [kvm_msr_entry; 2] {
    [
        (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    })
}

/// The local APIC's inputs as firmware leaves them: LINT0 takes the PICs' interrupts, LINT1 is NMI (SDM volume 3A,
/// 11.5.1).
#[must_use]
pub fn local_apic(mut lapic: kvm_lapic_state) -> kvm_lapic_state {
    for (register, mode) in [
        (APIC_LVT_LINT0, APIC_MODE_EXTINT),
        (APIC_LVT_LINT1, APIC_MODE_NMI),
    ] {
        for (byte, value) in lapic.regs[register..register + 4]
            .iter_mut()
            .zip(mode.to_le_bytes())
        {
            *byte = i8::from_ne_bytes([value]);
        }
    }
    lapic
}

fn flat_segment() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn code_segment(long_mode: bool) -> kvm_segment {
    // Type 11: execute, read, accessed.
    kvm_segment {
        selector: if long_mode { BOOT_CS } else { BOOT_CS32 },
        type_: 11,
        l: u8::from(long_mode),
        db: u8::from(!long_mode),
        ..flat_segment()
    }
}

fn data_segment() -> kvm_segment {
    // Type 3: read, write, accessed.
    kvm_segment {
        selector: BOOT_DS,
        type_: 3,
        db: 1,
        ..flat_segment()
    }
}

fn task_segment() -> kvm_segment {
    // Type 11: busy TSS.
    kvm_segment {
        selector: BOOT_TSS,
        type_: 11,
        limit: 0x67,
        present: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_starts_in_long_mode_with_boot_params_in_rsi() {
        let entry = EntryPoint::Linux64 {
            rip: 0x100_0200,
            zero_page: 0x7000,
        };
        let regs = general(&entry);
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0200, 0x7000, 2));
        let sregs = special(&entry, kvm_sregs::default());
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.selector), (1, 0, 0x10));
        assert_eq!(sregs.efer, 0x500);
        assert_eq!(sregs.cr3, layout::PAGE_TABLES);
    }

    #[test]
    fn pvh_starts_in_protected_mode_with_start_info_in_ebx() {
        let entry = EntryPoint::Pvh32 {
            eip: 0x100_0000,
            start_info: 0x6000,
        };
        assert_eq!(general(&entry).rbx, 0x6000);
        let sregs = special(&entry, kvm_sregs::default());
        assert_eq!((sregs.cs.l, sregs.cs.db), (0, 1));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
    }

    #[test]
    fn real_mode_stays_as_after_a_reset_but_for_the_entry() {
        let entry = EntryPoint::RealMode {
            segment: 0xf000,
            offset: 0xf380,
        };
        assert_eq!(general(&entry).rip, 0xf380);
        let mut reset = kvm_sregs {
            cr0: 0x6000_0010,
            ..kvm_sregs::default()
        };
        reset.cs.base = 0xffff_0000;
        reset.cs.limit = 0xffff;
        let sregs = special(&entry, reset);
        assert_eq!((sregs.cs.selector, sregs.cs.base), (0xf000, 0xf_0000));
        assert_eq!((sregs.cr0, sregs.cs.limit), (0x6000_0010, 0xffff));
        assert_eq!((sregs.idt.base, sregs.idt.limit), (0, 0x3ff));
    }

    #[test]
    fn lint_pins_are_set() {
        let lapic = local_apic(kvm_lapic_state::default());
        assert_eq!(lapic.regs[0x351], 7);
        assert_eq!(lapic.regs[0x361], 4);
    }
}
