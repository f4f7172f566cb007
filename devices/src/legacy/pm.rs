//! ACPI fixed hardware (ACPI 6.5, 4.8): the PM1a event and control blocks and the power management timer, in one
//! range of [`Pm::PORT_COUNT`] ports:
//!
//! ```text
//! offset 0   PM1a_STS   2 bytes   RW, write 1 to clear
//! offset 2   PM1a_EN    2 bytes   RW
//! offset 4   PM1a_CNT   2 bytes   SCI_EN RO, SLP_TYP RW, SLP_EN WO
//! offset 8   PM_TMR     4 bytes   RO
//! ```
//!
//! There is no firmware and no SMI command port: the machine is in ACPI mode from power-on, and `SCI_EN` reads 1.
//! The timer counts 32 bits, so the FADT must set `TMR_VAL_EXT`. Its carry (`TMR_STS`) is seen when the guest looks;
//! it does not by itself raise the SCI, since no timer of the host runs for it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{PowerControl, PowerEvent, Reset};
use crate::bus::{AccessError, BusDevice};
use crate::irq::IrqLine;
use crate::sync::lock;

/// `TMR_STS` and `TMR_EN`: the timer's highest bit changed.
const TMR: u16 = 1 << 0;
/// `PWRBTN_STS` and `PWRBTN_EN`: the power button was pressed.
const PWRBTN: u16 = 1 << 8;
/// The enable bits that hold what is written (4.8.3.1.2): timer, global lock, power and sleep buttons, RTC.
const EN_WRITABLE: u16 = TMR | 1 << 5 | PWRBTN | 1 << 9 | 1 << 10;

/// `SCI_EN` in the control register (4.8.3.2.1).
const SCI_EN: u16 = 1 << 0;
/// Where `SLP_TYP` begins.
const SLP_TYP_SHIFT: u32 = 10;
/// `SLP_TYP`, three bits.
const SLP_TYP: u16 = 0b111 << SLP_TYP_SHIFT;
/// `SLP_EN`: enter the sleep state given by `SLP_TYP`.
const SLP_EN: u16 = 1 << 13;

/// The value of `SLP_TYP` that means S5, soft-off: what the DSDT's `\_S5` must say.
pub const SLP_TYP_S5: u8 = 5;

/// Ticks of the timer per second (4.8.3.3).
const TICKS_PER_SECOND: u64 = 3_579_545;

/// Bytes of all the registers.
const IMAGE_BYTES: usize = 12;

/// The registers. `ticks` arguments are the timer's ticks since power-on, more than 32 bits of them.
#[derive(Debug, Default)]
struct Chip {
    status: u16,
    enable: u16,
    control: u16,
    /// Half-periods of the 32-bit timer at which `TMR_STS` was last cleared.
    carry_seen: u64,
}

impl Chip {
    fn status(&self, ticks: u64) -> u16 {
        let carry = if carries(ticks) == self.carry_seen {
            0
        } else {
            TMR
        };
        self.status | carry
    }

    fn image(&self, ticks: u64) -> [u8; IMAGE_BYTES] {
        let mut image = [0; IMAGE_BYTES];
        image[0..2].copy_from_slice(&self.status(ticks).to_le_bytes());
        image[2..4].copy_from_slice(&self.enable.to_le_bytes());
        image[4..6].copy_from_slice(&(self.control | SCI_EN).to_le_bytes());
        // The low half of the count: that is what a 32-bit timer shows.
        image[8..12].copy_from_slice(&ticks.to_le_bytes()[..4]);
        image
    }

    /// Writes one byte; what spans registers is the sum of its bytes. True for a request to enter S5.
    fn write_byte(&mut self, offset: usize, byte: u8, ticks: u64) -> bool {
        let (shift, byte) = (8 * (offset % 2), u16::from(byte));
        let value = byte << shift;
        let keep = !(0xff << shift);
        match offset {
            0 | 1 => {
                self.status &= !value;
                if value & TMR != 0 {
                    self.carry_seen = carries(ticks);
                }
            }
            2 | 3 => self.enable = (self.enable & keep) | (value & EN_WRITABLE),
            4 | 5 => {
                self.control = (self.control & keep) | (value & SLP_TYP);
                return value & SLP_EN != 0
                    && self.control & SLP_TYP == u16::from(SLP_TYP_S5) << SLP_TYP_SHIFT;
            }
            // The timer is read-only.
            _ => {}
        }
        false
    }

    fn interrupt(&self, ticks: u64) -> bool {
        self.status(ticks) & self.enable != 0
    }
}

/// How often bit 31 of the timer has changed.
fn carries(ticks: u64) -> u64 {
    ticks >> 31
}

/// The device: the chip, the SCI wire (level), and the clock.
pub struct Pm {
    chip: Mutex<Chip>,
    sci: IrqLine,
    power: Arc<dyn PowerControl>,
    power_on: Instant,
}

impl Pm {
    /// Ports it takes, from PM1a_STS to the end of the timer.
    pub const PORT_COUNT: u64 = IMAGE_BYTES as u64;
    /// Offset of the PM1a event block, 4 bytes.
    pub const PM1A_EVENT: u64 = 0;
    /// Offset of the PM1a control block, 2 bytes.
    pub const PM1A_CONTROL: u64 = 4;
    /// Offset of the power management timer, 4 bytes.
    pub const PM_TIMER: u64 = 8;

    /// The fixed hardware, with its interrupt on `sci`; S5 goes to `power`.
    #[must_use]
    pub fn new(sci: IrqLine, power: Arc<dyn PowerControl>) -> Self {
        Self {
            chip: Mutex::new(Chip::default()),
            sci,
            power,
            power_on: Instant::now(),
        }
    }

    /// Presses the power button: sets `PWRBTN_STS`, and raises the SCI if the guest has enabled it. Any thread.
    ///
    /// Returns whether the guest listens. If it does not, the press is remembered but nothing will happen soon.
    pub fn press_power_button(&self) -> bool {
        let mut chip = lock(&self.chip);
        chip.status |= PWRBTN;
        self.sync(&chip, self.ticks());
        chip.enable & PWRBTN != 0
    }

    fn ticks(&self) -> u64 {
        ticks_in(self.power_on.elapsed())
    }

    fn sync(&self, chip: &Chip, ticks: u64) {
        self.sci.set(chip.interrupt(ticks));
    }
}

fn ticks_in(elapsed: std::time::Duration) -> u64 {
    elapsed.as_secs() * TICKS_PER_SECOND
        + u64::from(elapsed.subsec_nanos()) * TICKS_PER_SECOND / 1_000_000_000
}

/// The offsets of an access, if it is within the range and touches a register.
fn span(offset: u64, len: usize) -> Result<std::ops::Range<usize>, AccessError> {
    let start = usize::try_from(offset).map_err(|_| AccessError::InvalidRegister)?;
    let end = start
        .checked_add(len)
        .filter(|end| *end <= IMAGE_BYTES)
        .ok_or(AccessError::InvalidRegister)?;
    // Offsets 6 and 7 are no register.
    if start < 8 && end > 6 {
        return Err(AccessError::InvalidRegister);
    }
    Ok(start..end)
}

impl BusDevice for Pm {
    fn name(&self) -> &str {
        "pm"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let span = span(offset, data.len())?;
        let ticks = self.ticks();
        let chip = lock(&self.chip);
        data.copy_from_slice(&chip.image(ticks)[span]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let span = span(offset, data.len())?;
        let ticks = self.ticks();
        let power_off = {
            let mut chip = lock(&self.chip);
            let mut power_off = false;
            for (offset, byte) in span.zip(data) {
                power_off |= chip.write_byte(offset, *byte, ticks);
            }
            self.sync(&chip, ticks);
            power_off
        };
        if power_off {
            self.power.request(PowerEvent::PowerOff);
        }
        Ok(())
    }
}

impl Reset for Pm {
    /// The timer goes on counting, as one may that is only specified to be monotonic.
    fn reset(&self) {
        let ticks = self.ticks();
        let mut chip = lock(&self.chip);
        *chip = Chip {
            carry_seen: carries(ticks),
            ..Chip::default()
        };
        self.sync(&chip, ticks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakePin, FakePower};
    use std::time::Duration;

    fn pm() -> (Pm, Arc<FakePin>, Arc<FakePower>) {
        let (line, pin) = FakePin::line();
        let power = Arc::new(FakePower::default());
        (Pm::new(line, power.clone()), pin, power)
    }

    fn read16(pm: &Pm, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data).unwrap();
        u16::from_le_bytes(data)
    }

    fn write16(pm: &Pm, offset: u64, value: u16) {
        pm.write(offset, &value.to_le_bytes()).unwrap();
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let (pm, pin, _) = pm();
        assert!(!pm.press_power_button(), "not enabled yet");
        assert!(!pin.level());
        write16(&pm, 2, PWRBTN);
        assert!(pin.level(), "a press before the enable is not lost");
        assert_eq!(read16(&pm, 0), PWRBTN);
        write16(&pm, 0, TMR);
        assert!(pin.level(), "clearing another bit changes nothing");
        write16(&pm, 0, PWRBTN);
        assert!(!pin.level());
        assert_eq!(read16(&pm, 0), 0);
        assert!(pm.press_power_button());
        assert_eq!(pin.rising_edges(), 2);
        pm.reset();
        assert!(!pin.level());
        assert_eq!((read16(&pm, 0), read16(&pm, 2)), (0, 0));
    }

    #[test]
    fn s5_powers_off_and_no_other_state_does() {
        for slp_typ in 0..8u16 {
            let (pm, _, power) = pm();
            write16(&pm, 4, slp_typ << SLP_TYP_SHIFT);
            assert!(power.take().is_empty(), "not without SLP_EN");
            write16(&pm, 4, slp_typ << SLP_TYP_SHIFT | SLP_EN);
            let expected = if slp_typ == u16::from(SLP_TYP_S5) {
                vec![PowerEvent::PowerOff]
            } else {
                vec![]
            };
            assert_eq!(power.take(), expected, "SLP_TYP {slp_typ}");
            assert_eq!(read16(&pm, 4), slp_typ << SLP_TYP_SHIFT | SCI_EN);
        }
    }

    #[test]
    fn s5_by_a_byte_write_to_the_high_half() {
        let (pm, _, power) = pm();
        pm.write(5, &[(SLP_TYP_S5 << 2) | 0x20]).unwrap();
        assert_eq!(power.take(), [PowerEvent::PowerOff]);
    }

    #[test]
    fn sci_en_is_always_set_and_reserved_enables_read_zero() {
        let (pm, _, _) = pm();
        write16(&pm, 4, 0);
        assert_eq!(read16(&pm, 4), SCI_EN);
        write16(&pm, 2, 0xffff);
        assert_eq!(read16(&pm, 2), EN_WRITABLE);
        pm.write(3, &[0]).unwrap();
        assert_eq!(read16(&pm, 2), EN_WRITABLE & 0xff);
    }

    #[test]
    fn status_and_enable_can_be_accessed_together() {
        let (pm, pin, _) = pm();
        pm.press_power_button();
        pm.write(0, &[0, 0, 0, 1]).unwrap();
        let mut data = [0; 4];
        pm.read(0, &mut data).unwrap();
        assert_eq!(data, [0, 1, 0, 1]);
        assert!(pin.level());
    }

    #[test]
    fn the_timer_runs_at_its_rate_and_wraps_at_32_bits() {
        assert_eq!(ticks_in(Duration::from_secs(1)), TICKS_PER_SECOND);
        assert_eq!(ticks_in(Duration::from_nanos(280)), 1);
        assert_eq!(ticks_in(Duration::from_millis(500)), TICKS_PER_SECOND / 2);
        let chip = Chip::default();
        assert_eq!(chip.image(0x1_2345_6789)[8..], 0x2345_6789u32.to_le_bytes());
    }

    #[test]
    fn the_timer_moves_and_ignores_writes() {
        let (pm, _, _) = pm();
        let read = || {
            let mut data = [0; 4];
            pm.read(Pm::PM_TIMER, &mut data).unwrap();
            u32::from_le_bytes(data)
        };
        let first = read();
        pm.write(Pm::PM_TIMER, &[0xff; 4]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while read() <= first {
            assert!(Instant::now() < deadline, "the timer stands still");
        }
        assert!(read() < 0x1000_0000);
    }

    #[test]
    fn the_timers_carry_sets_its_status() {
        let mut chip = Chip::default();
        assert_eq!(chip.status((1 << 31) - 1), 0);
        assert_eq!(chip.status(1 << 31), TMR);
        chip.write_byte(2, 1, 1 << 31);
        assert!(chip.interrupt(1 << 31));
        chip.write_byte(0, 1, 1 << 31);
        assert_eq!(chip.status(1 << 31), 0);
        assert_eq!(chip.status(1 << 32), TMR);
    }

    #[test]
    fn accesses_outside_the_registers_are_refused() {
        let (pm, _, power) = pm();
        for (offset, len) in [(6, 1), (7, 2), (4, 4), (12, 1), (11, 2), (u64::MAX, 1)] {
            let mut data = vec![0xff; len];
            assert!(pm.read(offset, &mut data).is_err(), "{offset} {len}");
            assert!(pm.write(offset, &data).is_err(), "{offset} {len}");
        }
        assert!(pm.read(0, &mut []).is_ok());
        assert!(power.take().is_empty());
    }
}
