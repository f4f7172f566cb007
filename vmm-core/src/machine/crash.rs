//! What is said of a guest that crashed: registers and the instruction's bytes.

use std::fmt;

use devices::dma::GuestRam;
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::KvmVcpu;

/// The longest x86 instruction.
const INSTRUCTION_BYTES: usize = 15;
const PAGE_BYTES: u64 = 4096;
/// Where an x86 processor starts after INIT.
const RESET_RIP: u64 = 0xfff0;

/// A guest's end that it did not choose.
#[derive(Debug, Clone)]
pub struct CrashReport {
    /// What happened, in a line.
    pub reason: String,
    /// Index of the vCPU it happened on.
    pub vcpu: u32,
    state: Option<(kvm_regs, kvm_sregs)>,
    /// Bytes at the instruction pointer, as many as are mapped.
    code: Vec<u8>,
}

impl CrashReport {
    /// Reads the state of `vcpu`, which is parked.
    #[must_use]
    pub fn of(vcpu: &KvmVcpu, index: u32, ram: &GuestRam, reason: String) -> Self {
        let state = vcpu.regs().ok().zip(vcpu.sregs().ok());
        let code = state.as_ref().map_or_else(Vec::new, |(regs, sregs)| {
            let linear = if sregs.cs.l != 0 {
                regs.rip
            } else {
                sregs.cs.base.wrapping_add(regs.rip)
            };
            code_at(linear, INSTRUCTION_BYTES, &|addr| vcpu.translate(addr), ram)
        });
        Self {
            reason,
            vcpu: index,
            state,
            code,
        }
    }

    /// A report for a vCPU 0 whose registers cannot be had.
    #[must_use]
    pub fn without_state(reason: &str) -> Self {
        Self {
            reason: reason.to_string(),
            vcpu: 0,
            state: None,
            code: Vec::new(),
        }
    }
}

/// Up to `count` bytes from `linear` on: those before the first that is not mapped to RAM.
pub(super) fn code_at(
    linear: u64,
    count: usize,
    translate: &dyn Fn(u64) -> Option<u64>,
    ram: &GuestRam,
) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < count {
        let at = linear.wrapping_add(code.len() as u64);
        let in_page = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).unwrap_or(1);
        let mut part = vec![0; in_page.min(count - code.len())];
        let read =
            translate(at).is_some_and(|addr| ram.read_slice(&mut part, GuestAddress(addr)).is_ok());
        if !read {
            break;
        }
        code.append(&mut part);
    }
    code
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on vCPU {}", self.reason, self.vcpu)?;
        if let Some((r, s)) = &self.state {
            writeln!(
                f,
                "rip={:016x} rflags={:08x} cs={:04x} base={:x}",
                r.rip, r.rflags, s.cs.selector, s.cs.base
            )?;
            writeln!(
                f,
                "rax={:016x} rbx={:016x} rcx={:016x} rdx={:016x}",
                r.rax, r.rbx, r.rcx, r.rdx
            )?;
            writeln!(
                f,
                "rsi={:016x} rdi={:016x} rbp={:016x} rsp={:016x}",
                r.rsi, r.rdi, r.rbp, r.rsp
            )?;
            writeln!(
                f,
                "r8 ={:016x} r9 ={:016x} r10={:016x} r11={:016x}",
                r.r8, r.r9, r.r10, r.r11
            )?;
            writeln!(
                f,
                "r12={:016x} r13={:016x} r14={:016x} r15={:016x}",
                r.r12, r.r13, r.r14, r.r15
            )?;
            writeln!(
                f,
                "cr0={:08x} cr2={:016x} cr3={:016x} cr4={:08x} efer={:x}",
                s.cr0, s.cr2, s.cr3, s.cr4, s.efer
            )?;
            writeln!(
                f,
                "gdt={:x}/{:x} idt={:x}/{:x}",
                s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit
            )?;
            if r.rip == RESET_RIP && s.cs.selector == 0xf000 {
                writeln!(
                    f,
                    "(these are the registers after INIT: AMD processors lose the others at a triple fault)"
                )?;
            }
        }
        let code: Vec<String> = self.code.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(
            f,
            "code: {}",
            if code.is_empty() {
                "not mapped".to_string()
            } else {
                code.join(" ")
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::testing::test_ram;

    #[test]
    fn code_bytes_are_read_across_a_page_and_stop_where_nothing_is_mapped() {
        let ram = test_ram(0x4000);
        ram.write_slice(&[0x0f, 0x0b], GuestAddress(0x1ffe))
            .unwrap();
        ram.write_slice(&[0xcc], GuestAddress(0x3000)).unwrap();
        // Linear page 0x8000 is physical 0x1000, the next one physical 0x3000.
        let both = |addr: u64| match addr & !0xfff {
            0x8000 => Some(addr - 0x8000 + 0x1000),
            0x9000 => Some(addr - 0x9000 + 0x3000),
            _ => None,
        };
        let code = code_at(0x8ffe, INSTRUCTION_BYTES, &both, &ram);
        assert_eq!(
            (code.len(), &code[..3]),
            (INSTRUCTION_BYTES, &[0x0f, 0x0b, 0xcc][..])
        );
        let first_only = |addr: u64| (addr < 0x9000).then(|| addr - 0x8000 + 0x1000);
        assert_eq!(code_at(0x8ffe, 9, &first_only, &ram), [0x0f, 0x0b]);
        assert!(code_at(u64::MAX, 9, &|_| None, &ram).is_empty());
        assert!(code_at(0x8000, 9, &|_| Some(u64::MAX - 3), &ram).is_empty());
    }

    #[test]
    fn the_report_names_reason_registers_and_code() {
        let report = CrashReport {
            reason: "triple fault".into(),
            vcpu: 1,
            state: Some((
                kvm_regs {
                    rip: 0xffff_8000_0000_1234,
                    ..Default::default()
                },
                kvm_sregs::default(),
            )),
            code: vec![0x0f, 0x0b],
        };
        let text = report.to_string();
        for part in [
            "triple fault on vCPU 1",
            "rip=ffff800000001234",
            "code: 0f 0b",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
