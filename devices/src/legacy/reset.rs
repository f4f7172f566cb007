//! The reset control register at port 0xcf9 (PIIX3 datasheet, `RC`; ICH9 datasheet, 13.7.5, `RST_CNT`).
//!
//! It lies inside the dword at 0xcf8 that addresses PCI configuration space: a byte access to 0xcf9 means this
//! register, a dword access to 0xcf8 the other. So the device at 0xcf8 owns one of these and decides.

/// `SYS_RST`: the coming reset is of the whole platform, not of the CPUs only.
const SYS_RST: u8 = 1 << 1;
/// `RST_CPU`: going from 0 to 1 resets.
const RST_CPU: u8 = 1 << 2;
/// `FULL_RST`: the coming reset also cycles the power.
const FULL_RST: u8 = 1 << 3;

/// The register, zero after power-on. Every kind of reset it knows is the same here: the machine starts anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ResetControl {
    value: u8,
}

impl ResetControl {
    /// What a byte read of 0xcf9 gives: the kind of reset last written. `RST_CPU` always reads as 0.
    #[must_use]
    pub fn read(self) -> u8 {
        self.value
    }

    /// A byte write to 0xcf9. True when the machine is to be reset: the caller asks for that after releasing its
    /// lock.
    #[must_use]
    pub fn write(&mut self, value: u8) -> bool {
        // RST_CPU is not kept: the reset that it starts clears it, so every write of 1 is a rising edge.
        self.value = value & (SYS_RST | FULL_RST);
        value & RST_CPU != 0
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_reset_sequence() {
        let mut register = ResetControl::default();
        assert_eq!(register.read(), 0);
        assert!(!register.write(SYS_RST));
        assert_eq!(register.read(), SYS_RST);
        assert!(register.write(SYS_RST | RST_CPU));
        assert_eq!(register.read(), SYS_RST, "RST_CPU is not kept");
        assert!(register.write(SYS_RST | RST_CPU | FULL_RST));
        register.reset();
        assert_eq!(register.read(), 0);
    }

    #[test]
    fn only_rst_cpu_resets_and_reserved_bits_read_zero() {
        let mut register = ResetControl::default();
        for value in 0..=u8::MAX {
            assert_eq!(register.write(value), value & RST_CPU != 0, "{value:#x}");
            assert_eq!(register.read(), value & (SYS_RST | FULL_RST));
        }
    }
}
