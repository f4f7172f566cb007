# Real-mode services: what a kernel that starts in 16 bits expects to find in a PC. Included by mod.rs, which knows how
# this is laid out; AT&T syntax.
#
# The block is loaded as it stands, 4 KiB at F000:F000 (physical 0xff000). Nothing in it is relocated, so it names its
# own addresses as differences of labels plus its offset in the segment. Each service says what it follows: "RBIL" is
# Ralf Brown's Interrupt List, "boot.rst" is Linux's Documentation/arch/x86/boot.rst.
#
# The screen and the keyboard are COM1: there is no other. A service that is not here sets the carry flag and AH=86h.

    .pushsection .rodata.tripath_realmode, "a", @progbits
    .balign 16
    .code16
    .globl tripath_realmode_start
    .hidden tripath_realmode_start
    .globl tripath_realmode_end
    .hidden tripath_realmode_end

tripath_realmode_start:

# --- 000: what the loader fills in (struct of words, see mod.rs) -----------------------------------------------------
.Lkernel_segment:   .word 0     # segment of the kernel's boot sector
.Le820_count:       .word 0     # entries of the table at 100
.Lkib_to_16m:       .word 0     # KiB of RAM from 1 MiB to 16 MiB
.Lblocks_above_16m: .word 0     # 64 KiB blocks of RAM from 16 MiB up
.Lkib_above_1m:     .word 0     # KiB of RAM above 1 MiB, at most 65535
.Lkey:              .byte 0     # a character that was looked at and not taken
.Lkey_waits:        .byte 0     # whether there is one

# --- 010: for the loader: where things are, as offsets in the segment ------------------------------------------------
    .org tripath_realmode_start + 0x10
    .macro tripath_at label
    .word \label - tripath_realmode_start + {rom_offset}
    .endm
    tripath_at .Lentry
    tripath_at .Lnothing
    tripath_at .Lunsupported
    tripath_at .Lmaster_irq
    tripath_at .Lslave_irq
    tripath_at .Ltimer
    tripath_at .Lvideo
    tripath_at .Lequipment
    tripath_at .Lbase_memory
    tripath_at .Lno_disk
    tripath_at .Lsystem
    tripath_at .Lkeyboard
    tripath_at .Lno_boot_device
    tripath_at .Ltime_and_pci

# --- 100: the memory map, 20 bytes for each entry, up to 32 of them --------------------------------------------------
    .purgem tripath_at
    .org tripath_realmode_start + 0x100
.Le820_table:

    .org tripath_realmode_start + 0x380

# Where the first CPU starts: puts the chips into the state that firmware leaves them in, and enters the kernel as
# boot.rst, "Running the Kernel", has it: DS=ES=FS=GS=SS the kernel's segment, CS 20h above it, interrupts off.
.Lentry:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ss
    movw $0x7c00, %sp
    # The PICs (8259A): edge triggered, cascaded at IRQ2, vectors 08h and 70h, all masked but the timer.
    movb $0x11, %al
    outb %al, $0x20
    outb %al, $0xa0
    movb $0x08, %al
    outb %al, $0x21
    movb $0x70, %al
    outb %al, $0xa1
    movb $0x04, %al
    outb %al, $0x21
    movb $0x02, %al
    outb %al, $0xa1
    movb $0x01, %al
    outb %al, $0x21
    outb %al, $0xa1
    movb $0xfa, %al
    outb %al, $0x21
    movb $0xff, %al
    outb %al, $0xa1
    # Channel 0 of the PIT (8254): mode 3, 65536 counts, so 18.2 interrupts a second.
    movb $0x36, %al
    outb %al, $0x43
    xorb %al, %al
    outb %al, $0x40
    outb %al, $0x40
    # COM1 (16550A): 115200 baud, eight bits, no parity, FIFOs on, no interrupts, DTR and RTS.
    movw ${com1} + 3, %dx
    movb $0x80, %al
    outb %al, %dx
    movw ${com1}, %dx
    movb $1, %al
    outb %al, %dx
    incw %dx
    xorb %al, %al
    outb %al, %dx
    movw ${com1} + 3, %dx
    movb $3, %al
    outb %al, %dx
    movw ${com1} + 1, %dx
    xorb %al, %al
    outb %al, %dx
    incw %dx
    movb $7, %al
    outb %al, %dx
    movw ${com1} + 4, %dx
    movb $3, %al
    outb %al, %dx
    # The kernel, with a stack below the end of its heap.
    movw %cs:.Lkernel_segment - tripath_realmode_start + {rom_offset}, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movw ${stack}, %sp
    addw $0x20, %ax
    pushw %ax
    pushw $0
    lretw

# --- Ways back from a service: into the caller's flags, which iret restores ------------------------------------------
.Lunsupported:
    movb $0x86, %ah
.Lreturn_carry:
    pushw %bp
    movw %sp, %bp
    orb $0x01, 6(%bp)
    popw %bp
.Lnothing:
    iretw
.Lreturn_success:
    pushw %bp
    movw %sp, %bp
    andb $0xfe, 6(%bp)
    popw %bp
    iretw

# --- Hardware interrupts ---------------------------------------------------------------------------------------------
# Those that nobody handles are only acknowledged.
.Lslave_irq:
    pushw %ax
    movb $0x20, %al
    outb %al, $0xa0
    jmp .Lacknowledge
.Lmaster_irq:
    pushw %ax
.Lacknowledge:
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iretw

# INT 08h, the timer (RBIL "INT 08"): counts the ticks of the day at 40:6C, notes midnight at 40:70, calls INT 1Ch.
.Ltimer:
    pushw %ds
    pushw %ax
    movw $0x40, %ax
    movw %ax, %ds
    incl 0x6c
    cmpl $0x1800b0, 0x6c
    jb .Ltimer_same_day
    movl $0, 0x6c
    movb $1, 0x70
.Ltimer_same_day:
    int $0x1c
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    popw %ds
    iretw

# --- INT 10h: the screen, on COM1 (RBIL "INT 10/AH=..") --------------------------------------------------------------
.Lvideo:
    cmpb $0x0e, %ah
    je .Lteletype
    cmpb $0x02, %ah
    je .Lset_cursor
    cmpb $0x03, %ah
    je .Lget_cursor
    cmpb $0x06, %ah
    je .Lscroll
    cmpb $0x08, %ah
    je .Lread_character
    cmpb $0x0f, %ah
    je .Lget_mode
    iretw
# AH=0Eh: AL goes out.
.Lteletype:
    call .Lput
    iretw
# AH=02h: to row DH, column DL, counted from 0: ECMA-48's cursor position, which counts from 1.
.Lset_cursor:
    pushw %ax
    call .Lput_csi
    movb %dh, %al
    call .Lput_decimal
    movb $';', %al
    call .Lput
    movb %dl, %al
    call .Lput_decimal
    movb $'H', %al
    call .Lput
    popw %ax
    iretw
# AH=03h: there is no asking a terminal where it is.
.Lget_cursor:
    movw $0x0607, %cx
    xorw %dx, %dx
    iretw
# AH=06h with AL=0 clears; a terminal scrolls by itself.
.Lscroll:
    testb %al, %al
    jnz .Lscroll_done
    pushw %ax
    call .Lput_csi
    movb $'2', %al
    call .Lput
    movb $'J', %al
    call .Lput
    popw %ax
.Lscroll_done:
    iretw
# AH=08h: a space in grey on black.
.Lread_character:
    movw $0x0720, %ax
    iretw
# AH=0Fh: mode 3, 80 columns, page 0.
.Lget_mode:
    movw $0x5003, %ax
    xorb %bh, %bh
    iretw

# Sends "ESC [". Changes AL.
.Lput_csi:
    movb $0x1b, %al
    call .Lput
    movb $'[', %al
    jmp .Lput
# Sends AL + 1 in decimal, two digits. Changes AX.
.Lput_decimal:
    incb %al
    aam
    addw $0x3030, %ax
    xchgb %al, %ah
    call .Lput
    movb %ah, %al
# Sends AL. A port that takes nothing for long loses the character, so that it holds nobody up for ever.
.Lput:
    pushw %ax
    pushw %cx
    pushw %dx
    movb %al, %ah
    movw ${com1} + 5, %dx
    xorw %cx, %cx
.Lput_wait:
    inb %dx, %al
    testb $0x20, %al
    jnz .Lput_ready
    loop .Lput_wait
.Lput_ready:
    movw ${com1}, %dx
    movb %ah, %al
    outb %al, %dx
    popw %dx
    popw %cx
    popw %ax
    retw

# --- INT 11h, INT 12h: the BIOS data area has the answers (RBIL) -----------------------------------------------------
.Lequipment:
    pushw %ds
    movw $0x40, %ax
    movw %ax, %ds
    movw 0x10, %ax
    popw %ds
    iretw
.Lbase_memory:
    pushw %ds
    movw $0x40, %ax
    movw %ax, %ds
    movw 0x13, %ax
    popw %ds
    iretw

# --- INT 13h: no disks of this kind: "invalid function or parameter" (RBIL table 00234) ------------------------------
.Lno_disk:
    movb $0x01, %ah
    jmp .Lreturn_carry

# --- INT 15h: memory (ACPI, "System Address Map Interfaces"; RBIL) ---------------------------------------------------
.Lsystem:
    cmpw $0xe820, %ax
    je .Lmemory_map
    cmpw $0xe801, %ax
    je .Lmemory_sizes
    cmpb $0x88, %ah
    je .Lextended_memory
    cmpw $0x2401, %ax
    je .La20_enable
    cmpw $0x2402, %ax
    je .La20_status
    cmpw $0x2403, %ax
    je .La20_support
    jmp .Lunsupported
# AX=E820h: entry EBX to ES:DI.
.Lmemory_map:
    cmpl $0x534d4150, %edx
    jne .Lunsupported
    cmpl $20, %ecx
    jb .Lunsupported
    movzwl %cs:.Le820_count - tripath_realmode_start + {rom_offset}, %eax
    cmpl %eax, %ebx
    jae .Lunsupported
    pushw %si
    pushw %di
    imulw $20, %bx, %si
    addw $(.Le820_table - tripath_realmode_start + {rom_offset}), %si
    movw $10, %cx
.Lmemory_map_copy:
    movw %cs:(%si), %ax
    movw %ax, %es:(%di)
    addw $2, %si
    addw $2, %di
    loop .Lmemory_map_copy
    popw %di
    popw %si
    incl %ebx
    movzwl %cs:.Le820_count - tripath_realmode_start + {rom_offset}, %eax
    cmpl %eax, %ebx
    jb .Lmemory_map_more
    xorl %ebx, %ebx
.Lmemory_map_more:
    movl $0x534d4150, %eax
    movl $20, %ecx
    jmp .Lreturn_success
# AX=E801h.
.Lmemory_sizes:
    movw %cs:.Lkib_to_16m - tripath_realmode_start + {rom_offset}, %ax
    movw %cs:.Lblocks_above_16m - tripath_realmode_start + {rom_offset}, %bx
    movw %ax, %cx
    movw %bx, %dx
    jmp .Lreturn_success
# AH=88h.
.Lextended_memory:
    movw %cs:.Lkib_above_1m - tripath_realmode_start + {rom_offset}, %ax
    jmp .Lreturn_success
# AX=2401h to 2403h: the A20 gate is always open.
.La20_support:
    movw $3, %bx
.La20_enable:
    xorb %ah, %ah
    jmp .Lreturn_success
.La20_status:
    movw $0x0001, %ax
    jmp .Lreturn_success

# --- INT 16h: the keyboard, on COM1 (RBIL "INT 16/AH=..") ------------------------------------------------------------
# Characters have no scan code.
.Lkeyboard:
    cmpb $0x00, %ah
    je .Ltake_key
    cmpb $0x10, %ah
    je .Ltake_key
    cmpb $0x01, %ah
    je .Llook_for_key
    cmpb $0x11, %ah
    je .Llook_for_key
    xorb %al, %al               # 02h and 12h: no shift keys are down
    iretw
.Ltake_key_wait:
    sti
    hlt                         # for the next tick
.Ltake_key:
    call .Lpoll_key
    jz .Ltake_key_wait
    pushw %ds
    pushw %cs
    popw %ds
    movb $0, .Lkey_waits - tripath_realmode_start + {rom_offset}
    popw %ds
    iretw
.Llook_for_key:
    pushw %bp
    movw %sp, %bp
    orb $0x40, 6(%bp)
    call .Lpoll_key
    jz .Lno_key
    andb $0xbf, 6(%bp)
.Lno_key:
    popw %bp
    iretw
# AX is the waiting character, or ZF is set and AX as it was.
.Lpoll_key:
    pushw %ds
    pushw %dx
    pushw %ax
    pushw %cs
    popw %ds
    cmpb $0, .Lkey_waits - tripath_realmode_start + {rom_offset}
    jne .Lpoll_key_found
    movw ${com1} + 5, %dx
    inb %dx, %al
    testb $0x01, %al
    jz .Lpoll_key_done
    movw ${com1}, %dx
    inb %dx, %al
    movb %al, .Lkey - tripath_realmode_start + {rom_offset}
    movb $1, .Lkey_waits - tripath_realmode_start + {rom_offset}
.Lpoll_key_found:
    popw %ax
    movzbw .Lkey - tripath_realmode_start + {rom_offset}, %ax
    pushw %ax
    orb $1, %dl                 # not zero
.Lpoll_key_done:
    popw %ax
    popw %dx
    popw %ds
    retw

# --- INT 18h, INT 19h: the kernel gives the machine back, and there is nothing else to boot --------------------------
.Lno_boot_device:
    movw $(.Lno_boot_device_text - tripath_realmode_start + {rom_offset}), %si
.Lno_boot_device_put:
    movb %cs:(%si), %al
    incw %si
    testb %al, %al
    jz .Lpower_off
    call .Lput
    jmp .Lno_boot_device_put
.Lpower_off:
    # ACPI 4.8.3.2: SLP_EN with the type of S5.
    movw ${pm1a_control}, %dx
    movw ${soft_off}, %ax
    outw %ax, %dx
.Lhalt:
    cli
    hlt
    jmp .Lhalt
.Lno_boot_device_text:
    .asciz "\r\nNothing else to boot: power off.\r\n"

# --- INT 1Ah: the time of day (RBIL), and PCI configuration (PCI BIOS Specification 2.1) -----------------------------
.Ltime_and_pci:
    cmpb $0x00, %ah
    je .Lticks
    cmpb $0xb1, %ah
    je .Lpci
    jmp .Lunsupported
# AH=00h: ticks since midnight in CX:DX, AL whether midnight has passed since this was asked last.
.Lticks:
    pushw %ds
    movw $0x40, %ax
    movw %ax, %ds
    movw 0x6e, %cx
    movw 0x6c, %dx
    xorb %al, %al
    xchgb %al, 0x70
    xorb %ah, %ah
    popw %ds
    jmp .Lreturn_success
.Lpci:
    cmpb $0x01, %al
    je .Lpci_present
    cmpb $0x08, %al
    jb .Lpci_unsupported
    cmpb $0x0d, %al
    ja .Lpci_unsupported
    cmpw $0x100, %di
    jae .Lpci_bad_register
    # Configuration mechanism 1: bus and function from BX, register from DI.
    pushl %edx
    pushl %eax
    movzwl %bx, %eax
    shll $8, %eax
    orl $0x80000000, %eax
    movw %di, %dx
    movb %dl, %al
    andb $0xfc, %al
    movw ${pci_address}, %dx
    outl %eax, %dx
    movw %di, %dx
    andw $3, %dx
    addw ${pci_address} + 4, %dx
    popl %eax
    pushl %eax
    cmpb $0x08, %al
    je .Lpci_read_byte
    cmpb $0x09, %al
    je .Lpci_read_word
    cmpb $0x0a, %al
    je .Lpci_read_dword
    cmpb $0x0b, %al
    movl %ecx, %eax
    je .Lpci_write_byte
    popl %eax
    pushl %eax
    cmpb $0x0c, %al
    movl %ecx, %eax
    je .Lpci_write_word
    outl %eax, %dx
    jmp .Lpci_done
.Lpci_write_word:
    outw %ax, %dx
    jmp .Lpci_done
.Lpci_write_byte:
    outb %al, %dx
    jmp .Lpci_done
.Lpci_read_byte:
    inb %dx, %al
    movb %al, %cl
    jmp .Lpci_done
.Lpci_read_word:
    inw %dx, %ax
    movw %ax, %cx
    jmp .Lpci_done
.Lpci_read_dword:
    inl %dx, %eax
    movl %eax, %ecx
.Lpci_done:
    popl %eax
    popl %edx
    xorb %ah, %ah
    jmp .Lreturn_success
# B101h: "PCI " in EDX, mechanism 1, version 2.10, the last bus is 0.
.Lpci_present:
    movl $0x20494350, %edx
    movw $0x0001, %ax
    movw $0x0210, %bx
    xorb %cl, %cl
    jmp .Lreturn_success
.Lpci_unsupported:
    movb $0x81, %ah
    jmp .Lreturn_carry
.Lpci_bad_register:
    movb $0x87, %ah
    jmp .Lreturn_carry

# --- The reset vector, F000:FFF0: who jumps here wants the machine to start again ------------------------------------
.Lreset:
    movw ${reset_control}, %dx
    movb $0x02, %al
    outb %al, %dx
    movb $0x06, %al
    outb %al, %dx
    jmp .Lhalt

    .org tripath_realmode_start + 0xff0
    jmp .Lreset
    .org tripath_realmode_start + 0x1000
tripath_realmode_end:

    .code64
    .popsection
