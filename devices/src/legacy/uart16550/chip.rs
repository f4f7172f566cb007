//! The registers of the NS16550AF (National Semiconductor datasheet, section 8, table II), without the wire and
//! without the backend.
//!
//! The line is infinitely fast: a character is sent when the port has taken it, and the receiver's character
//! time-out has always elapsed. There are no parity, framing or break errors.

use std::collections::VecDeque;

use bitflags::bitflags;

bitflags! {
    /// Interrupt enable register (8.7), RW.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Ier: u8 {
        /// ERBFI: received data available, and character time-out.
        const RECEIVED_DATA = 1 << 0;
        /// ETBEI: transmitter holding register empty.
        const THR_EMPTY = 1 << 1;
        /// ELSI: receiver line status.
        const LINE_STATUS = 1 << 2;
        /// EDSSI: modem status.
        const MODEM_STATUS = 1 << 3;
    }
}

bitflags! {
    /// FIFO control register (8.5), WO. The resets clear themselves.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Fcr: u8 {
        /// FIFO enable; must be set for the other bits to count.
        const ENABLE = 1 << 0;
        /// RCVR FIFO reset.
        const RECEIVER_RESET = 1 << 1;
        /// XMIT FIFO reset. The transmitter holds nothing that could be cleared.
        const TRANSMITTER_RESET = 1 << 2;
        /// DMA mode select. There is no DMA on a PC's port.
        const DMA_MODE = 1 << 3;
        /// RCVR trigger, two bits.
        const TRIGGER = 0b11 << 6;
    }
}

bitflags! {
    /// Modem control register (8.8), RW.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Mcr: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        /// On a PC the gate of the interrupt.
        const OUT2 = 1 << 3;
        /// The transmitter is connected to the receiver, the outputs to the inputs.
        const LOOP = 1 << 4;
    }
}

bitflags! {
    /// Line status register (8.4), RO.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Lsr: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN_ERROR = 1 << 1;
        /// Transmitter holding register (or FIFO) empty.
        const THR_EMPTY = 1 << 5;
        /// That and the shift register empty.
        const TRANSMITTER_EMPTY = 1 << 6;
    }
}

bitflags! {
    /// Modem status register (8.9), RO. The lower half tells what changed since the last read.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Msr: u8 {
        const DELTA_CTS = 1 << 0;
        const DELTA_DSR = 1 << 1;
        /// RI went from on to off.
        const TRAILING_EDGE_RI = 1 << 2;
        const DELTA_DCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
    }
}

/// The lines as the far end drives them: it is always there.
const FAR_END: Msr = Msr::CTS.union(Msr::DSR).union(Msr::DCD);
/// The delta bits of the modem status register.
const DELTAS: Msr = Msr::DELTA_CTS
    .union(Msr::DELTA_DSR)
    .union(Msr::TRAILING_EDGE_RI)
    .union(Msr::DELTA_DCD);

/// Line control (8.1): divisor latch access.
const LCR_DLAB: u8 = 1 << 7;

/// Interrupt identification (8.6), lower four bits, by falling priority.
const IIR_LINE_STATUS: u8 = 0b0110;
const IIR_RECEIVED_DATA: u8 = 0b0100;
const IIR_CHARACTER_TIMEOUT: u8 = 0b1100;
const IIR_THR_EMPTY: u8 = 0b0010;
const IIR_MODEM_STATUS: u8 = 0b0000;
const IIR_NONE: u8 = 0b0001;
/// Both set while the FIFOs are enabled.
const IIR_FIFOS_ENABLED: u8 = 0xc0;

/// Depth of the receiver's FIFO.
pub(super) const FIFO_BYTES: usize = 16;

/// Register offsets (table II).
const RBR_THR_DLL: u8 = 0;
const IER_DLM: u8 = 1;
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
pub(super) const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;

/// The chip.
#[derive(Debug)]
pub(super) struct Chip {
    ier: Ier,
    fcr: Fcr,
    lcr: u8,
    mcr: Mcr,
    /// Input lines as last seen, and their deltas.
    msr: Msr,
    scratch: u8,
    divisor: [u8; 2],
    /// The receiver's FIFO, of one character while the FIFOs are disabled.
    received: VecDeque<u8>,
    overrun: bool,
    /// The transmitter holding register became empty, or its interrupt was enabled while it was, and neither a
    /// read of IIR nor a new character has answered that.
    thre_pending: bool,
    /// The transmitter is not empty: the port has not taken what it holds, or wants no more.
    busy: bool,
}

impl Chip {
    /// The chip after master reset (table I). The divisor, undefined there, is that of 115200 baud.
    pub(super) fn new() -> Self {
        Self {
            ier: Ier::empty(),
            fcr: Fcr::empty(),
            lcr: 0,
            mcr: Mcr::empty(),
            msr: FAR_END,
            scratch: 0,
            divisor: 1u16.to_le_bytes(),
            received: VecDeque::with_capacity(FIFO_BYTES),
            overrun: false,
            thre_pending: false,
            busy: false,
        }
    }

    /// Master reset. A transmitter that is busy stays so until [`Chip::transmitted`].
    pub(super) fn reset(&mut self) {
        *self = Self {
            busy: self.busy,
            ..Self::new()
        };
    }

    /// The level of the interrupt at the ISA slot: INTR, through the gate that OUT2 controls. In loopback the output
    /// pins are inactive (8.8), so the gate is closed.
    pub(super) fn interrupt(&self) -> bool {
        self.mcr.contains(Mcr::OUT2)
            && !self.mcr.contains(Mcr::LOOP)
            && self.identification() != IIR_NONE
    }

    /// How many characters the far end may send now.
    ///
    /// The far end honours RTS: before a driver has opened the port, its probing of the chip clears the receiver,
    /// and what has come by then is lost. A guest with interrupts on and without any use for the modem control lines
    /// is taken to be open too.
    pub(super) fn receiver_space(&self) -> usize {
        let listens = self.mcr.contains(Mcr::RTS)
            || (self.mcr.is_empty() && self.ier.contains(Ier::RECEIVED_DATA));
        if listens && !self.mcr.contains(Mcr::LOOP) {
            self.receiver_depth().saturating_sub(self.received.len())
        } else {
            0
        }
    }

    /// A character from the line. One for which there is no space is lost and counts as an overrun.
    pub(super) fn receive(&mut self, byte: u8) {
        if self.received.len() < self.receiver_depth() {
            self.received.push_back(byte);
            return;
        }
        self.overrun = true;
        if !self.fifos_enabled() {
            // The one-character buffer is overwritten; a full FIFO is not (8.4, bit 1).
            self.received.clear();
            self.received.push_back(byte);
        }
    }

    /// Reads the register at `offset`, 0 to 7.
    pub(super) fn read(&mut self, offset: u8) -> u8 {
        match offset {
            RBR_THR_DLL if self.dlab() => self.divisor[0],
            IER_DLM if self.dlab() => self.divisor[1],
            RBR_THR_DLL => self.received.pop_front().unwrap_or(0),
            IER_DLM => self.ier.bits(),
            IIR_FCR => self.read_iir(),
            LCR => self.lcr,
            MCR => self.mcr.bits(),
            LSR => self.read_lsr(),
            MSR => self.read_msr(),
            SCR => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes the register at `offset`, 0 to 7. A character for the line is returned; until
    /// [`Chip::transmitted`] the transmitter is busy with it.
    #[must_use]
    pub(super) fn write(&mut self, offset: u8, value: u8) -> Option<u8> {
        match offset {
            RBR_THR_DLL if self.dlab() => self.divisor[0] = value,
            IER_DLM if self.dlab() => self.divisor[1] = value,
            RBR_THR_DLL => return self.transmit(value),
            IER_DLM => self.write_ier(Ier::from_bits_truncate(value)),
            IIR_FCR => self.write_fcr(Fcr::from_bits_truncate(value)),
            LCR => self.lcr = value,
            MCR => {
                self.mcr = Mcr::from_bits_truncate(value);
                self.update_modem_status();
            }
            SCR => self.scratch = value,
            // The line and modem status registers are for factory tests only.
            _ => {}
        }
        None
    }

    /// The characters that [`Chip::write`] returned are sent, and there is room for more.
    pub(super) fn transmitted(&mut self) {
        self.busy = false;
        self.thre_pending = true;
    }

    /// Whether the transmitter is busy.
    pub(super) fn is_transmitting(&self) -> bool {
        self.busy
    }

    /// Whether there are characters for the guest to read.
    pub(super) fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    /// Whether a write to the first register sends a character.
    pub(super) fn sends_characters(&self) -> bool {
        !self.dlab() && !self.mcr.contains(Mcr::LOOP)
    }

    /// Whether an interrupt asks for characters when the transmitter is empty.
    pub(super) fn asks_for_characters(&self) -> bool {
        self.ier.contains(Ier::THR_EMPTY)
    }

    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn fifos_enabled(&self) -> bool {
        self.fcr.contains(Fcr::ENABLE)
    }

    fn receiver_depth(&self) -> usize {
        if self.fifos_enabled() { FIFO_BYTES } else { 1 }
    }

    /// At how many characters the data-available interrupt comes (8.5, bits 6 and 7).
    fn trigger_level(&self) -> usize {
        if !self.fifos_enabled() {
            return 1;
        }
        match (self.fcr & Fcr::TRIGGER).bits() >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn identification(&self) -> u8 {
        let received = self.received.len();
        if self.ier.contains(Ier::LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if self.ier.contains(Ier::RECEIVED_DATA) && received >= self.trigger_level() {
            IIR_RECEIVED_DATA
        } else if self.ier.contains(Ier::RECEIVED_DATA) && received > 0 {
            IIR_CHARACTER_TIMEOUT
        } else if self.ier.contains(Ier::THR_EMPTY) && self.thre_pending {
            IIR_THR_EMPTY
        } else if self.ier.contains(Ier::MODEM_STATUS) && self.msr.intersects(DELTAS) {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn read_iir(&mut self) -> u8 {
        let identification = self.identification();
        // Reading it answers the THRE interrupt, if that is what it shows (table IV).
        if identification == IIR_THR_EMPTY {
            self.thre_pending = false;
        }
        if self.fifos_enabled() {
            identification | IIR_FIFOS_ENABLED
        } else {
            identification
        }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut lsr = Lsr::empty();
        lsr.set(Lsr::DATA_READY, !self.received.is_empty());
        lsr.set(Lsr::OVERRUN_ERROR, self.overrun);
        lsr.set(Lsr::THR_EMPTY | Lsr::TRANSMITTER_EMPTY, !self.busy);
        self.overrun = false;
        lsr.bits()
    }

    fn read_msr(&mut self) -> u8 {
        let msr = self.msr;
        self.msr.remove(DELTAS);
        msr.bits()
    }

    fn write_ier(&mut self, ier: Ier) {
        // Enabling the interrupt while the register is empty raises it (8.6, IIR bit 1), each time anew: Linux
        // tests for that.
        if ier.contains(Ier::THR_EMPTY) && !self.ier.contains(Ier::THR_EMPTY) && !self.busy {
            self.thre_pending = true;
        }
        self.ier = ier;
    }

    fn write_fcr(&mut self, fcr: Fcr) {
        let enable = fcr.contains(Fcr::ENABLE);
        if enable != self.fifos_enabled() || (enable && fcr.contains(Fcr::RECEIVER_RESET)) {
            self.received.clear();
        }
        self.fcr = if enable {
            fcr - (Fcr::RECEIVER_RESET | Fcr::TRANSMITTER_RESET)
        } else {
            Fcr::empty()
        };
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        if self.mcr.contains(Mcr::LOOP) {
            self.receive(byte);
            self.thre_pending = !self.busy;
            None
        } else {
            self.thre_pending = false;
            self.busy = true;
            Some(byte)
        }
    }

    /// Takes over the input lines and notes what changed.
    fn update_modem_status(&mut self) {
        let lines = if self.mcr.contains(Mcr::LOOP) {
            let mut lines = Msr::empty();
            lines.set(Msr::CTS, self.mcr.contains(Mcr::RTS));
            lines.set(Msr::DSR, self.mcr.contains(Mcr::DTR));
            lines.set(Msr::RI, self.mcr.contains(Mcr::OUT1));
            lines.set(Msr::DCD, self.mcr.contains(Mcr::OUT2));
            lines
        } else {
            FAR_END
        };
        let before = self.msr;
        let changed = |line: Msr| before.contains(line) != lines.contains(line);
        let mut deltas = before & DELTAS;
        for (line, delta) in [
            (Msr::CTS, Msr::DELTA_CTS),
            (Msr::DSR, Msr::DELTA_DSR),
            (Msr::DCD, Msr::DELTA_DCD),
        ] {
            if changed(line) {
                deltas |= delta;
            }
        }
        if changed(Msr::RI) && before.contains(Msr::RI) {
            deltas |= Msr::TRAILING_EDGE_RI;
        }
        self.msr = lines | deltas;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(chip: &mut Chip, offset: u8, value: u8) {
        assert_eq!(chip.write(offset, value), None, "a character went out");
    }

    /// A chip with its FIFOs on, RTS, DTR and OUT2 set, and the given interrupts enabled.
    fn open(ier: Ier) -> Chip {
        let mut chip = Chip::new();
        write(&mut chip, IIR_FCR, 0x01);
        write(&mut chip, MCR, 0x0b);
        write(&mut chip, IER_DLM, ier.bits());
        chip
    }

    #[test]
    fn registers_after_master_reset() {
        let mut chip = Chip::new();
        let values: Vec<u8> = (0..8).map(|offset| chip.read(offset)).collect();
        assert_eq!(values, [0, 0, 0x01, 0, 0, 0x60, 0xb0, 0]);
        assert!(!chip.interrupt());
    }

    #[test]
    fn divisor_latch_hides_two_registers() {
        let mut chip = Chip::new();
        write(&mut chip, IER_DLM, 0x0f);
        write(&mut chip, LCR, 0x83);
        assert_eq!([chip.read(0), chip.read(1)], [1, 0]);
        write(&mut chip, RBR_THR_DLL, 0x0c);
        write(&mut chip, IER_DLM, 0x34);
        assert_eq!([chip.read(0), chip.read(1)], [0x0c, 0x34]);
        write(&mut chip, LCR, 0x03);
        assert_eq!([chip.read(0), chip.read(1)], [0, 0x0f]);
        assert_eq!(chip.read(LCR), 0x03);
    }

    #[test]
    fn scratch_holds_and_reserved_bits_read_zero() {
        let mut chip = Chip::new();
        for value in [0x5a, 0xa5] {
            write(&mut chip, SCR, value);
            assert_eq!(chip.read(SCR), value);
        }
        write(&mut chip, IER_DLM, 0xff);
        assert_eq!(chip.read(IER_DLM), 0x0f);
        write(&mut chip, MCR, 0xff);
        assert_eq!(chip.read(MCR), 0x1f);
    }

    /// What Linux's `autoconfig` looks at, in its order.
    #[test]
    fn linux_detects_a_16550a() {
        let mut chip = Chip::new();
        write(&mut chip, IER_DLM, 0);
        assert_eq!(chip.read(IER_DLM) & 0x0f, 0);
        write(&mut chip, IER_DLM, 0x0f);
        assert_eq!(chip.read(IER_DLM) & 0x0f, 0x0f);
        write(&mut chip, IER_DLM, 0);
        write(&mut chip, MCR, 0x1a);
        assert_eq!(chip.read(MSR) & 0xf0, 0x90, "loopback test");
        write(&mut chip, MCR, 0);
        write(&mut chip, LCR, 0xbf);
        // With DLAB set, offset 2 is still FCR and IIR: there is no enhanced feature register.
        write(&mut chip, IIR_FCR, 0);
        write(&mut chip, LCR, 0);
        write(&mut chip, IIR_FCR, 0x01);
        assert_eq!(chip.read(IIR_FCR) >> 6, 3);
        // No 64-byte FIFO as in a 16750.
        write(&mut chip, IIR_FCR, 0x21);
        assert_eq!(chip.read(IIR_FCR) >> 5, 6);
        // The test for a THRE interrupt that is not raised again.
        for _ in 0..2 {
            write(&mut chip, IER_DLM, 0x02);
            assert_eq!(chip.read(IIR_FCR) & 0x0f, IIR_THR_EMPTY);
            write(&mut chip, IER_DLM, 0);
        }
        assert_eq!(chip.read(IIR_FCR) & 0x0f, IIR_NONE);
    }

    #[test]
    fn transmission_and_its_interrupt() {
        let mut chip = open(Ier::THR_EMPTY);
        assert!(chip.interrupt());
        assert_eq!(chip.read(IIR_FCR), 0xc0 | IIR_THR_EMPTY);
        assert!(!chip.interrupt(), "reading IIR answers it");
        assert_eq!(chip.write(RBR_THR_DLL, b'x'), Some(b'x'));
        assert_eq!(chip.read(LSR), 0, "the port has not taken it");
        assert!(!chip.interrupt());
        assert_eq!(chip.write(RBR_THR_DLL, b'y'), Some(b'y'));
        chip.transmitted();
        assert_eq!(chip.read(LSR), 0x60);
        assert!(chip.interrupt());
        write(&mut chip, IER_DLM, 0x02);
        write(&mut chip, IER_DLM, 0);
        assert!(!chip.interrupt());
    }

    #[test]
    fn enabling_an_enabled_thre_interrupt_raises_nothing() {
        let mut chip = open(Ier::THR_EMPTY);
        chip.read(IIR_FCR);
        write(&mut chip, IER_DLM, 0x02);
        assert!(!chip.interrupt());
        assert_eq!(chip.write(RBR_THR_DLL, b'x'), Some(b'x'));
        write(&mut chip, IER_DLM, 0);
        write(&mut chip, IER_DLM, 0x02);
        assert!(!chip.interrupt(), "the transmitter is busy");
    }

    #[test]
    fn reception_below_at_and_above_the_trigger_level() {
        for (code, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
            let mut chip = open(Ier::RECEIVED_DATA);
            write(&mut chip, IIR_FCR, code << 6 | 1);
            assert_eq!(chip.receiver_space(), 16);
            for count in 1..=16 {
                chip.receive(count);
                let expected = if count < level {
                    IIR_CHARACTER_TIMEOUT
                } else {
                    IIR_RECEIVED_DATA
                };
                assert_eq!(chip.read(IIR_FCR), 0xc0 | expected, "{count} of {level}");
                assert!(chip.interrupt(), "reading IIR does not answer it");
            }
            assert_eq!(chip.receiver_space(), 0);
            for count in 1..=16 {
                assert_eq!(chip.read(LSR), 0x61);
                assert_eq!(chip.read(RBR_THR_DLL), count);
            }
            assert!(!chip.interrupt());
            assert_eq!(chip.read(LSR), 0x60);
            assert_eq!(chip.read(RBR_THR_DLL), 0, "nothing there");
        }
    }

    #[test]
    fn without_fifos_one_character() {
        let mut chip = open(Ier::RECEIVED_DATA);
        write(&mut chip, IIR_FCR, 0xc0);
        assert_eq!(chip.receiver_space(), 1);
        chip.receive(b'a');
        assert_eq!(chip.receiver_space(), 0);
        assert_eq!(chip.read(IIR_FCR), IIR_RECEIVED_DATA);
        assert_eq!(chip.read(RBR_THR_DLL), b'a');
    }

    #[test]
    fn fifo_resets() {
        let mut chip = open(Ier::empty());
        chip.receive(b'a');
        write(&mut chip, IIR_FCR, 0x05);
        assert_eq!(chip.read(LSR) & 1, 1, "the transmitter's reset only");
        write(&mut chip, IIR_FCR, 0x03);
        assert_eq!(chip.read(LSR) & 1, 0);
        assert_eq!(chip.read(IIR_FCR), 0xc1, "the reset bit clears itself");
        chip.receive(b'b');
        write(&mut chip, IIR_FCR, 0xc1);
        assert_eq!(chip.read(LSR) & 1, 1, "a trigger level clears nothing");
        write(&mut chip, IIR_FCR, 0x00);
        assert_eq!(chip.read(LSR) & 1, 0, "a change of mode clears");
    }

    #[test]
    fn the_far_end_waits_for_rts() {
        let mut chip = Chip::new();
        assert_eq!(chip.receiver_space(), 0);
        write(&mut chip, MCR, Mcr::DTR.bits());
        write(&mut chip, IER_DLM, 1);
        assert_eq!(chip.receiver_space(), 0);
        write(&mut chip, MCR, Mcr::RTS.bits());
        assert_eq!(chip.receiver_space(), 1);
        write(&mut chip, MCR, (Mcr::RTS | Mcr::LOOP).bits());
        assert_eq!(chip.receiver_space(), 0);
        write(&mut chip, MCR, 0);
        assert_eq!(chip.receiver_space(), 1, "no use for modem control");
        write(&mut chip, IER_DLM, 0);
        assert_eq!(chip.receiver_space(), 0);
    }

    #[test]
    fn out2_gates_the_interrupt_and_loopback_closes_the_gate() {
        let mut chip = open(Ier::THR_EMPTY);
        write(&mut chip, MCR, 0x03);
        assert!(!chip.interrupt());
        write(&mut chip, MCR, 0x1b);
        assert!(!chip.interrupt());
        write(&mut chip, MCR, 0x0b);
        assert!(chip.interrupt());
    }

    #[test]
    fn loopback_overrun_with_and_without_fifos() {
        let mut chip = open(Ier::LINE_STATUS);
        write(&mut chip, MCR, 0x18);
        for count in 0..17 {
            write(&mut chip, RBR_THR_DLL, count);
        }
        assert_eq!(chip.read(IIR_FCR), 0xc0 | IIR_LINE_STATUS);
        assert_eq!(chip.read(LSR), 0x63);
        assert_eq!(chip.read(LSR), 0x61, "cleared by the read");
        assert_eq!(chip.read(IIR_FCR), 0xc0 | IIR_NONE);
        assert!((0..16).all(|count| chip.read(RBR_THR_DLL) == count));
        write(&mut chip, IIR_FCR, 0);
        write(&mut chip, RBR_THR_DLL, b'a');
        write(&mut chip, RBR_THR_DLL, b'b');
        assert_eq!(chip.read(LSR), 0x63);
        assert_eq!(chip.read(RBR_THR_DLL), b'b', "overwritten");
    }

    #[test]
    fn modem_status_deltas_and_interrupt() {
        let mut chip = Chip::new();
        write(&mut chip, IER_DLM, Ier::MODEM_STATUS.bits());
        write(&mut chip, MCR, 0x10);
        assert_eq!(chip.read(IIR_FCR), IIR_MODEM_STATUS);
        assert_eq!(chip.read(MSR), 0x0b, "CTS, DSR and DCD fell");
        assert_eq!(chip.read(MSR), 0x00);
        assert_eq!(chip.read(IIR_FCR), IIR_NONE);
        write(&mut chip, MCR, 0x14);
        assert_eq!(chip.read(MSR), 0x40, "a rising RI is no event");
        write(&mut chip, MCR, 0x10);
        assert_eq!(chip.read(MSR), 0x04);
        write(&mut chip, MCR, 0x08);
        assert!(chip.interrupt());
        assert_eq!(chip.read(MSR), 0xbb);
    }

    #[test]
    fn interrupts_by_priority() {
        let mut chip = open(Ier::all());
        write(&mut chip, MCR, 0x18);
        for _ in 0..17 {
            write(&mut chip, RBR_THR_DLL, 1);
        }
        assert_eq!(chip.read(IIR_FCR) & 0xf, IIR_LINE_STATUS);
        chip.read(LSR);
        assert_eq!(chip.read(IIR_FCR) & 0xf, IIR_RECEIVED_DATA);
        write(&mut chip, IIR_FCR, 0x03);
        assert_eq!(chip.read(IIR_FCR) & 0xf, IIR_THR_EMPTY);
        assert_eq!(chip.read(IIR_FCR) & 0xf, IIR_MODEM_STATUS);
        chip.read(MSR);
        assert_eq!(chip.read(IIR_FCR) & 0xf, IIR_NONE);
    }

    #[test]
    fn a_reset_sends_nothing() {
        let mut chip = open(Ier::all());
        assert_eq!(chip.write(RBR_THR_DLL, b'x'), Some(b'x'));
        chip.receive(b'y');
        chip.reset();
        assert_eq!(chip.read(LSR), 0);
        chip.transmitted();
        assert_eq!(chip.read(LSR), 0x60);
        assert!(!chip.interrupt());
    }
}
