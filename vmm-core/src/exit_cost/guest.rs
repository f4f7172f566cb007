//! The guest that is measured: some two hundred bytes of our own code, without a kernel, in long mode, and what it
//! shares with us.

use std::arch::global_asm;
use std::slice;

/// Where its code is, in guest-physical memory.
pub(super) const CODE: u64 = 0x10_0000;
/// Where its interrupt descriptor table is.
pub(super) const IDT: u64 = 0x20_1000;
/// Initial stack pointer of the second CPU.
pub(super) const SECOND_STACK: u64 = 0x20_4000;
/// The variables that it shares with us, below.
pub(super) const SHARED: u64 = 0x20_0000;
/// Set by the guest when it waits for interrupts (32 bits).
pub(super) const READY: u64 = SHARED;
/// Set by us when it is to wait no longer (32 bits).
pub(super) const STOP: u64 = SHARED + 4;
/// Interrupts that it has handled (64 bits).
pub(super) const HANDLED: u64 = SHARED + 8;

/// The port that it takes its orders from: reads give first what to do, then how often; a write is the beginning, and
/// the next one the end.
pub(super) const CONTROL_PORT: u64 = 0x510;
/// A port without a meaning, which the bus answers.
pub(super) const TEST_PORT: u64 = 0x520;
/// A register without a meaning, which the bus answers.
pub(super) const TEST_REGISTER: u64 = 0xd000_0000;
/// A doorbell.
pub(super) const DOORBELL: u64 = TEST_REGISTER + 0x1000;

/// Vector of the interrupt that we send.
pub(super) const INTERRUPT_VECTOR: u8 = 0x40;
/// Vector of the interrupt that its first CPU sends to the second.
pub(super) const IPI_VECTOR: u8 = 0x41;

// Local APIC (Intel SDM, volume 3A, table 11-1): 0xf0 spurious-interrupt vector, with the APIC's enable bit; 0xb0 end
// of interrupt; 0x310 and 0x300 interrupt command.
global_asm!(
    r#"
    .pushsection .rodata.tripath_exit_guest, "a"
    .balign 16
    .globl tripath_exit_guest
    .globl tripath_exit_guest_second
    .globl tripath_exit_guest_interrupt
    .globl tripath_exit_guest_ipi
    .globl tripath_exit_guest_end
tripath_exit_guest:
    mov ebp, 0xfee00000
    mov dword ptr [rbp + 0xf0], 0x1ff
2:
    mov edx, 0x510
    in eax, dx
    mov r12d, eax
    in eax, dx
    mov r13d, eax
    mov edi, 0x200000
    mov esi, 0xd0000000
    out dx, eax
    mov edx, 0x520
    cmp r12d, 0
    je 30f
    cmp r12d, 1
    je 31f
    cmp r12d, 2
    je 32f
    cmp r12d, 3
    je 33f
    cmp r12d, 4
    je 34f
    cmp r12d, 5
    je 35f
    cmp r12d, 6
    je 36f
    cmp r12d, 7
    je 37f
    cmp r12d, 8
    je 38f
    cmp r12d, 9
    je 39f
    cmp r12d, 10
    je 40f
3:
    cli
    hlt
    jmp 3b

30: in al, dx
    dec r13d
    jnz 30b
    jmp 9f
31: out dx, al
    dec r13d
    jnz 31b
    jmp 9f
32: mov eax, dword ptr [rsi]
    dec r13d
    jnz 32b
    jmp 9f
33: mov dword ptr [rsi], eax
    dec r13d
    jnz 33b
    jmp 9f
34: mov dword ptr [rsi + 0x1000], eax
    dec r13d
    jnz 34b
    jmp 9f
35: mov eax, 0x7fff0000
    vmcall
    dec r13d
    jnz 35b
    jmp 9f
36: mov eax, 0x7fff0000
    vmmcall
    dec r13d
    jnz 36b
    jmp 9f
37: xor eax, eax
    cpuid
    dec r13d
    jnz 37b
    jmp 9f

38: mov dword ptr [rdi], 1
    sti
8:  cmp dword ptr [rdi + 4], 0
    je 8b
    cli
    jmp 9f

39: mov dword ptr [rdi], 1
8:  sti
    hlt
    cli
    cmp dword ptr [rdi + 4], 0
    je 8b
    jmp 9f

40: mov dword ptr [rdi + 24], 1
8:  mov rax, qword ptr [rdi + 16]
    mov dword ptr [rbp + 0x310], 0x01000000
    mov dword ptr [rbp + 0x300], 0x41
7:  cmp qword ptr [rdi + 16], rax
    je 7b
    dec r13d
    jnz 8b
    mov dword ptr [rdi + 24], 0

9:  mov edx, 0x510
    out dx, eax
    jmp 2b

tripath_exit_guest_second:
    mov ebp, 0xfee00000
    mov edi, 0x200000
    mov dword ptr [rbp + 0xf0], 0x1ff
    sti
8:  cmp dword ptr [rdi + 24], 0
    jne 8b
    hlt
    jmp 8b

tripath_exit_guest_interrupt:
    push rbx
    mov ebx, 0x200008
    lock inc qword ptr [rbx]
    mov ebx, 0xfee000b0
    mov dword ptr [rbx], 0
    pop rbx
    iretq

tripath_exit_guest_ipi:
    push rbx
    mov ebx, 0x200010
    lock inc qword ptr [rbx]
    mov ebx, 0xfee000b0
    mov dword ptr [rbx], 0
    pop rbx
    iretq
tripath_exit_guest_end:
    .popsection
"#
);

#[allow(unsafe_code)]
mod symbols {
    // SAFETY: the assembly above defines them, in read-only data.
    unsafe extern "C" {
        pub(super) safe static tripath_exit_guest: u8;
        pub(super) safe static tripath_exit_guest_second: u8;
        pub(super) safe static tripath_exit_guest_interrupt: u8;
        pub(super) safe static tripath_exit_guest_ipi: u8;
        pub(super) safe static tripath_exit_guest_end: u8;
    }
}

use symbols::{
    tripath_exit_guest, tripath_exit_guest_end, tripath_exit_guest_interrupt,
    tripath_exit_guest_ipi, tripath_exit_guest_second,
};

/// What the guest's first CPU can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Order {
    PioRead = 0,
    PioWrite = 1,
    MmioRead = 2,
    MmioWrite = 3,
    Doorbell = 4,
    /// Intel's instruction.
    Vmcall = 5,
    /// AMD's.
    Vmmcall = 6,
    Cpuid = 7,
    WaitSpinning = 8,
    WaitHalted = 9,
    Ipi = 10,
}

/// The code.
#[allow(unsafe_code)]
pub(super) fn code() -> &'static [u8] {
    let start = &raw const tripath_exit_guest;
    let len = distance(&tripath_exit_guest_end);
    // SAFETY: between the two symbols are the bytes of the assembly above, in read-only data.
    unsafe { slice::from_raw_parts(start, len) }
}

/// Where the second CPU starts, in guest-physical memory.
pub(super) fn second_entry() -> u64 {
    address(&tripath_exit_guest_second)
}

/// The interrupt descriptor table (Intel SDM, volume 3A, 6.14.1): the two vectors in use, up to the higher one.
pub(super) fn idt() -> Vec<u8> {
    let mut table = vec![0; (usize::from(IPI_VECTOR) + 1) * GATE_BYTES];
    for (vector, handler) in [
        (INTERRUPT_VECTOR, address(&tripath_exit_guest_interrupt)),
        (IPI_VECTOR, address(&tripath_exit_guest_ipi)),
    ] {
        let at = usize::from(vector) * GATE_BYTES;
        table[at..at + GATE_BYTES].copy_from_slice(&gate(handler));
    }
    table
}

const GATE_BYTES: usize = 16;
/// Present, 64-bit interrupt gate.
const INTERRUPT_GATE: u8 = 0x8e;

fn gate(handler: u64) -> [u8; GATE_BYTES] {
    let handler = handler.to_le_bytes();
    let mut gate = [0; GATE_BYTES];
    gate[..2].copy_from_slice(&handler[..2]);
    gate[2..4].copy_from_slice(&crate::boot::BOOT_CS.to_le_bytes());
    gate[5] = INTERRUPT_GATE;
    gate[6..12].copy_from_slice(&handler[2..]);
    gate
}

/// How far a symbol is behind the first.
fn distance(symbol: &'static u8) -> usize {
    (&raw const *symbol).addr() - (&raw const tripath_exit_guest).addr()
}

fn address(symbol: &'static u8) -> u64 {
    CODE + distance(symbol) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_where_the_symbols_say() {
        let code = code();
        assert!(code.len() > 200 && code.len() < 4096, "{}", code.len());
        // mov ebp, 0xfee00000
        assert_eq!(code[..5], [0xbd, 0, 0, 0xe0, 0xfe]);
        let at = usize::try_from(second_entry() - CODE).unwrap();
        assert_eq!(code[at..at + 5], [0xbd, 0, 0, 0xe0, 0xfe]);
        // iretq
        assert_eq!(code[code.len() - 2..], [0x48, 0xcf]);
    }

    /// The assembly has them as numbers.
    #[test]
    fn the_assembly_uses_these_addresses() {
        assert_eq!((READY, STOP, HANDLED), (0x20_0000, 0x20_0004, 0x20_0008));
        assert_eq!((CONTROL_PORT, TEST_PORT), (0x510, 0x520));
        assert_eq!((TEST_REGISTER, DOORBELL), (0xd000_0000, 0xd000_1000));
        assert_eq!(IPI_VECTOR, 0x41);
    }

    #[test]
    fn gates_lead_to_the_handlers() {
        let table = idt();
        assert_eq!(table.len(), 0x42 * 16);
        assert!(table[..0x40 * 16].iter().all(|byte| *byte == 0));
        let gate = &table[0x40 * 16..0x41 * 16];
        let low = u64::from(u16::from_le_bytes([gate[0], gate[1]]));
        let high = u64::from(u16::from_le_bytes([gate[6], gate[7]]));
        assert_eq!(low | high << 16, address(&tripath_exit_guest_interrupt));
        assert_eq!((gate[2], gate[5]), (0x10, 0x8e));
    }
}
