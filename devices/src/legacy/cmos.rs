//! The real-time clock and its battery-backed RAM: Motorola MC146818A (datasheet, "Address Map", "Time, Calendar, and
//! Alarm Locations", "Registers"), behind an index and a data port.
//!
//! The clock gives UTC. It is not stepped by a timer: each read works the time out from the host's clock and an
//! offset, which is what a guest changes by setting the time. The flags of register C are worked out likewise when
//! it is read. No timer of the host runs for the clock, so it never raises its interrupt: the alarm, the periodic and
//! the update-ended interrupt can be set up and read back, but `AF` stays 0 and no wire is driven. Guests then poll.
//!
//! The update-in-progress bit is set in the last 244 µs of each second, as the datasheet promises, so that a
//! driver which finds it clear has that long to read a consistent time; at any other moment it need not wait.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, Month, OffsetDateTime, Time};

use super::Reset;
use crate::bus::{AccessError, BusDevice};
use crate::sync::lock;

const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const DAY_OF_WEEK: usize = 0x06;
const DAY_OF_MONTH: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REGISTER_A: usize = 0x0a;
const REGISTER_B: usize = 0x0b;
const REGISTER_C: usize = 0x0c;
const REGISTER_D: usize = 0x0d;
/// Outside the chip's own registers; where ACPI's FADT says the century is.
const CENTURY: usize = 0x32;
/// The registers that hold the time.
const TIME_REGISTERS: [usize; 8] = [
    SECONDS,
    MINUTES,
    HOURS,
    DAY_OF_WEEK,
    DAY_OF_MONTH,
    MONTH,
    YEAR,
    CENTURY,
];

/// A: update in progress, RO.
const A_UIP: u8 = 1 << 7;
/// A: the two upper divider bits, which hold the divider in reset when both are set.
const A_DIVIDER_RESET: u8 = 0b11 << 5;
/// A: periodic rate.
const A_RATE: u8 = 0xf;
/// A: 32.768 kHz time base, 1024 Hz periodic rate.
const A_AT_RESET: u8 = 0x26;
/// B: the guest is setting the time; updates stop.
const B_SET: u8 = 1 << 7;
/// B: update-ended interrupt enable; its place is also that of `UF` in C.
const B_UIE: u8 = 1 << 4;
/// B: binary rather than BCD.
const B_BINARY: u8 = 1 << 2;
/// B: 24-hour rather than 12-hour.
const B_24_HOURS: u8 = 1 << 1;
/// C: an interrupt is requested.
const C_IRQF: u8 = 1 << 7;
/// C: a periodic interrupt is due; its place is also that of `PIE` in B.
const C_PF: u8 = 1 << 6;
/// C: an update has ended.
const C_UF: u8 = 1 << 4;
/// D: the battery is good. All other bits are 0.
const D_VRT: u8 = 1 << 7;
/// In 12-hour mode the hours' highest bit.
const PM: u8 = 1 << 7;

const NS_PER_SECOND: i128 = 1_000_000_000;
/// From the rise of UIP to the update (datasheet, "Update Cycle": t_BUC).
const UIP_NS: i128 = 244_000;
/// The first update after the divider leaves reset comes half a second later.
const DIVIDER_START_NS: i128 = NS_PER_SECOND / 2;
/// Ticks of the time base per second, of which the periodic rates are powers of two.
const BASE_HZ: i128 = 32_768;

/// How much RAM the guest has, as firmware records it in CMOS RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemorySizes {
    /// Bytes of RAM below 4 GiB, the first MiB included.
    pub below_4g_bytes: u64,
    /// Bytes of RAM above 4 GiB.
    pub above_4g_bytes: u64,
}

impl MemorySizes {
    /// The CMOS RAM bytes that tell them, as `(index, value)`.
    fn bytes(self) -> Vec<(usize, u8)> {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let word = |units: u64| u16::try_from(units).unwrap_or(u16::MAX).to_le_bytes();
        // Conventional memory, in KiB: the EBDA is not counted off.
        let base = word(640);
        // From 1 MiB up, in KiB.
        let extended = word(self.below_4g_bytes.saturating_sub(MIB) / KIB);
        // From 16 MiB up to 4 GiB, in 64 KiB.
        let above_16m = word(self.below_4g_bytes.saturating_sub(16 * MIB) / (64 * KIB));
        // From 4 GiB up, in 64 KiB, 24 bits.
        let above_4g = (self.above_4g_bytes / (64 * KIB))
            .min(0xff_ffff)
            .to_le_bytes();
        vec![
            (0x15, base[0]),
            (0x16, base[1]),
            (0x17, extended[0]),
            (0x18, extended[1]),
            (0x30, extended[0]),
            (0x31, extended[1]),
            (0x34, above_16m[0]),
            (0x35, above_16m[1]),
            (0x5b, above_4g[0]),
            (0x5c, above_4g[1]),
            (0x5d, above_4g[2]),
        ]
    }
}

/// The chip. Every `host_ns` is the host's time in nanoseconds since 1970.
#[derive(Debug)]
struct Chip {
    index: u8,
    /// All registers; those of the time are current only while the clock is stopped.
    ram: [u8; 128],
    /// Guest's time minus host's.
    offset_ns: i128,
    /// Guest's time when register C was last read.
    flags_read_ns: i128,
}

impl Chip {
    fn new(memory: MemorySizes, host_ns: i128) -> Self {
        let mut ram = [0; 128];
        ram[REGISTER_A] = A_AT_RESET;
        ram[REGISTER_B] = B_24_HOURS;
        for (index, byte) in memory.bytes() {
            ram[index] = byte;
        }
        Self {
            index: 0,
            ram,
            offset_ns: 0,
            flags_read_ns: host_ns,
        }
    }

    fn guest_ns(&self, host_ns: i128) -> i128 {
        host_ns + self.offset_ns
    }

    fn divider_in_reset(&self) -> bool {
        self.ram[REGISTER_A] & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// Whether the time registers hold still.
    fn stopped(&self) -> bool {
        self.ram[REGISTER_B] & B_SET != 0 || self.divider_in_reset()
    }

    fn read(&mut self, host_ns: i128) -> u8 {
        let index = usize::from(self.index);
        match index {
            REGISTER_A => self.ram[REGISTER_A] | self.update_in_progress(host_ns),
            REGISTER_C => self.take_flags(host_ns),
            REGISTER_D => D_VRT,
            _ if TIME_REGISTERS.contains(&index) && !self.stopped() => {
                let mut ram = self.ram;
                encode(&mut ram, self.guest_ns(host_ns));
                ram[index]
            }
            _ => self.ram[index],
        }
    }

    fn write(&mut self, value: u8, host_ns: i128) {
        let index = usize::from(self.index);
        match index {
            REGISTER_A => self.change_control(host_ns, |ram| ram[REGISTER_A] = value & !A_UIP),
            REGISTER_B => self.change_control(host_ns, |ram| {
                ram[REGISTER_B] = value;
                if value & B_SET != 0 {
                    ram[REGISTER_B] &= !B_UIE;
                }
            }),
            REGISTER_C | REGISTER_D => {}
            _ if TIME_REGISTERS.contains(&index) && !self.stopped() => {
                let now_ns = self.guest_ns(host_ns);
                encode(&mut self.ram, now_ns);
                self.ram[index] = value;
                self.set_time(host_ns, now_ns.rem_euclid(NS_PER_SECOND));
            }
            _ => self.ram[index] = value,
        }
    }

    /// Changes A or B, and stops or starts the clock as that implies.
    fn change_control(&mut self, host_ns: i128, change: impl FnOnce(&mut [u8; 128])) {
        let was_stopped = self.stopped();
        let was_in_reset = self.divider_in_reset();
        if !was_stopped {
            let now_ns = self.guest_ns(host_ns);
            encode(&mut self.ram, now_ns);
        }
        change(&mut self.ram);
        if was_stopped && !self.stopped() {
            let subsecond_ns = if was_in_reset {
                DIVIDER_START_NS
            } else {
                self.guest_ns(host_ns).rem_euclid(NS_PER_SECOND)
            };
            self.set_time(host_ns, subsecond_ns);
        }
    }

    /// Takes the time in the registers as the time now. One that does not exist is dropped: the clock goes on from
    /// the time it had.
    fn set_time(&mut self, host_ns: i128, subsecond_ns: i128) {
        if let Some(seconds) = decode(&self.ram) {
            let guest_ns = i128::from(seconds) * NS_PER_SECOND + subsecond_ns;
            self.offset_ns = guest_ns - host_ns;
            self.flags_read_ns = guest_ns;
        }
    }

    fn update_in_progress(&self, host_ns: i128) -> u8 {
        let into_second_ns = self.guest_ns(host_ns).rem_euclid(NS_PER_SECOND);
        if !self.stopped() && into_second_ns >= NS_PER_SECOND - UIP_NS {
            A_UIP
        } else {
            0
        }
    }

    /// Register C, cleared by the read.
    fn take_flags(&mut self, host_ns: i128) -> u8 {
        let now_ns = self.guest_ns(host_ns);
        let since_ns = std::mem::replace(&mut self.flags_read_ns, now_ns);
        if self.stopped() {
            return 0;
        }
        let rate = self.ram[REGISTER_A] & A_RATE;
        let seconds = |ns: i128| ns.div_euclid(NS_PER_SECOND);
        let mut flags = 0;
        if seconds(since_ns) != seconds(now_ns) {
            flags |= C_UF;
        }
        if rate != 0 && periods(since_ns, rate) != periods(now_ns, rate) {
            flags |= C_PF;
        }
        if flags & self.ram[REGISTER_B] != 0 {
            flags |= C_IRQF;
        }
        flags
    }
}

/// How many periods of `rate`, 1 to 15, have passed at `ns` (datasheet, "Periodic Interrupt Selection", at 32.768 kHz).
fn periods(ns: i128, rate: u8) -> i128 {
    // The two fastest codes repeat the rates of codes 8 and 9.
    let shift = if rate < 3 { rate + 6 } else { rate - 1 };
    (ns * BASE_HZ).div_euclid(NS_PER_SECOND) >> shift
}

/// Puts the time in the registers, in the format that register B asks for.
fn encode(ram: &mut [u8; 128], guest_ns: i128) {
    let seconds = i64::try_from(guest_ns.div_euclid(NS_PER_SECOND)).unwrap_or(0);
    // Beyond the year 9999 the clock starts again from 1970; it has room for four digits only.
    let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let control = ram[REGISTER_B];
    let number = |value: u8| {
        if control & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    };
    let hours = if control & B_24_HOURS != 0 {
        number(now.hour())
    } else {
        let (is_pm, hour) = (now.hour() >= 12, now.hour() % 12);
        number(if hour == 0 { 12 } else { hour }) | if is_pm { PM } else { 0 }
    };
    let two_digits = |value: i32| number(u8::try_from(value.rem_euclid(100)).unwrap_or(0));
    ram[SECONDS] = number(now.second());
    ram[MINUTES] = number(now.minute());
    ram[HOURS] = hours;
    ram[DAY_OF_WEEK] = number(now.weekday().number_from_sunday());
    ram[DAY_OF_MONTH] = number(now.day());
    ram[MONTH] = number(now.month().into());
    ram[YEAR] = two_digits(now.year());
    ram[CENTURY] = two_digits(now.year().div_euclid(100));
}

/// The time in the registers, in seconds since 1970; none if it does not exist. The day of the week is not looked
/// at: it follows from the date.
fn decode(ram: &[u8; 128]) -> Option<i64> {
    let control = ram[REGISTER_B];
    let number = |value: u8| {
        if control & B_BINARY != 0 {
            return Some(value);
        }
        let (tens, ones) = (value >> 4, value & 0xf);
        (tens <= 9 && ones <= 9).then_some(tens * 10 + ones)
    };
    let hour = if control & B_24_HOURS != 0 {
        number(ram[HOURS])?
    } else {
        let hour = number(ram[HOURS] & !PM)?;
        if !(1..=12).contains(&hour) {
            return None;
        }
        hour % 12 + if ram[HOURS] & PM != 0 { 12 } else { 0 }
    };
    let year = number(ram[YEAR]).filter(|year| *year < 100)?;
    let year = i32::from(number(ram[CENTURY])?) * 100 + i32::from(year);
    let month = Month::try_from(number(ram[MONTH])?).ok()?;
    let date = Date::from_calendar_date(year, month, number(ram[DAY_OF_MONTH])?).ok()?;
    let time = Time::from_hms(hour, number(ram[MINUTES])?, number(ram[SECONDS])?).ok()?;
    Some(OffsetDateTime::new_utc(date, time).unix_timestamp())
}

/// Offset of the index port, 0x70. Its bit 7 masks NMIs on a PC; there are none here.
const INDEX: u64 = 0;
/// Offset of the data port, 0x71.
const DATA: u64 = 1;

/// The device: the chip and the host's clock.
pub struct Cmos {
    chip: Mutex<Chip>,
}

impl Cmos {
    /// Ports: index and data.
    pub const PORT_COUNT: u64 = 2;
    /// The register that the FADT must name as the century's.
    pub const CENTURY: u8 = 0x32;

    /// A clock that gives the host's UTC time, with `memory` recorded in its RAM.
    #[must_use]
    pub fn new(memory: MemorySizes) -> Self {
        Self {
            chip: Mutex::new(Chip::new(memory, host_ns())),
        }
    }
}

fn host_ns() -> i128 {
    let ns = |since: std::time::Duration| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => ns(since),
        Err(before) => -ns(before.duration()),
    }
}

impl BusDevice for Cmos {
    fn name(&self) -> &str {
        "cmos"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match (offset, data) {
            // Write-only: nothing drives the bus.
            (INDEX, [byte]) => *byte = 0xff,
            (DATA, [byte]) => *byte = lock(&self.chip).read(host_ns()),
            (INDEX | DATA, _) => return Err(AccessError::InvalidWidth),
            _ => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut chip = lock(&self.chip);
        match (offset, data) {
            (INDEX, &[index]) => chip.index = index & 0x7f,
            (DATA, &[value]) => chip.write(value, host_ns()),
            // A word goes out as two bytes on an 8-bit bus.
            (INDEX, &[index, value]) => {
                chip.index = index & 0x7f;
                chip.write(value, host_ns());
            }
            (INDEX | DATA, _) => return Err(AccessError::InvalidWidth),
            _ => return Err(AccessError::InvalidRegister),
        }
        Ok(())
    }
}

impl Reset for Cmos {
    /// The battery keeps the time and the RAM; the RESET pin clears the interrupt enables (datasheet, "RESET").
    fn reset(&self) {
        let mut chip = lock(&self.chip);
        chip.index = 0;
        let now_ns = host_ns();
        chip.change_control(now_ns, |ram| {
            ram[REGISTER_A] = A_AT_RESET;
            ram[REGISTER_B] &= B_BINARY | B_24_HOURS;
        });
    }
}

#[cfg(test)]
mod tests;
