//! Tests of the clock, with the host's time given.

use super::*;

/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP_DAY_NS: i128 = 1_709_251_198 * NS_PER_SECOND;

fn chip() -> Chip {
    Chip::new(MemorySizes::default(), LEAP_DAY_NS)
}

fn get(chip: &mut Chip, index: usize, host_ns: i128) -> u8 {
    chip.index = u8::try_from(index).unwrap();
    chip.read(host_ns)
}

fn put(chip: &mut Chip, index: usize, value: u8, host_ns: i128) {
    chip.index = u8::try_from(index).unwrap();
    chip.write(value, host_ns);
}

fn time(chip: &mut Chip, host_ns: i128) -> [u8; 8] {
    TIME_REGISTERS.map(|index| get(chip, index, host_ns))
}

#[test]
fn bcd_24_hours_by_default() {
    let mut chip = chip();
    assert_eq!(get(&mut chip, REGISTER_B, LEAP_DAY_NS), B_24_HOURS);
    assert_eq!(
        time(&mut chip, LEAP_DAY_NS),
        [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]
    );
    assert_eq!(
        time(&mut chip, LEAP_DAY_NS + 2 * NS_PER_SECOND),
        [0x00, 0x00, 0x00, 0x06, 0x01, 0x03, 0x24, 0x20]
    );
}

#[test]
fn binary_and_12_hours() {
    let mut chip = chip();
    put(&mut chip, REGISTER_B, B_BINARY, LEAP_DAY_NS);
    assert_eq!(
        time(&mut chip, LEAP_DAY_NS),
        [58, 59, 11 | PM, 5, 29, 2, 24, 20]
    );
    let midnight = LEAP_DAY_NS + 2 * NS_PER_SECOND;
    let hour_ns = 3600 * NS_PER_SECOND;
    for (hour, expected) in [(0, 12), (1, 1), (11, 11), (12, 12 | PM), (13, 1 | PM)] {
        assert_eq!(
            get(&mut chip, HOURS, midnight + hour * hour_ns),
            expected,
            "{hour}"
        );
    }
    put(&mut chip, REGISTER_B, 0, LEAP_DAY_NS);
    assert_eq!(get(&mut chip, HOURS, midnight + 22 * hour_ns), 0x10 | PM);
}

#[test]
fn uip_only_just_before_the_update() {
    let mut chip = chip();
    for (ns, uip) in [
        (0, 0),
        (500_000_000, 0),
        (NS_PER_SECOND - UIP_NS - 1, 0),
        (NS_PER_SECOND - UIP_NS, A_UIP),
        (NS_PER_SECOND - 1, A_UIP),
        (NS_PER_SECOND, 0),
    ] {
        let a = get(&mut chip, REGISTER_A, LEAP_DAY_NS + ns);
        assert_eq!(a, A_AT_RESET | uip, "{ns}");
    }
    put(&mut chip, REGISTER_B, B_SET, LEAP_DAY_NS);
    assert_eq!(
        get(&mut chip, REGISTER_A, LEAP_DAY_NS + NS_PER_SECOND - 1),
        A_AT_RESET,
        "no update while SET"
    );
    put(&mut chip, REGISTER_A, 0xff, LEAP_DAY_NS);
    assert_eq!(get(&mut chip, REGISTER_A, LEAP_DAY_NS), 0x7f, "UIP is RO");
}

/// The order in which Linux's `mc146818_set_time` writes.
#[test]
fn setting_the_time_with_set_and_divider_reset() {
    let mut chip = chip();
    let now = LEAP_DAY_NS + 300_000_000;
    put(&mut chip, REGISTER_B, B_24_HOURS | B_SET, now);
    put(&mut chip, REGISTER_A, A_AT_RESET | 0x70, now);
    for (index, value) in [
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY_OF_MONTH, 0x31),
        (HOURS, 0x01),
        (MINUTES, 0x02),
        (SECONDS, 0x03),
        (CENTURY, 0x19),
    ] {
        put(&mut chip, index, value, now);
    }
    let later = now + 100 * NS_PER_SECOND;
    assert_eq!(get(&mut chip, SECONDS, later), 0x03, "stopped");
    put(&mut chip, REGISTER_B, B_24_HOURS, later);
    assert_eq!(get(&mut chip, SECONDS, later + NS_PER_SECOND), 0x03);
    put(&mut chip, REGISTER_A, A_AT_RESET, later);
    let half = NS_PER_SECOND / 2;
    assert_eq!(
        time(&mut chip, later + half - 1),
        [0x03, 0x02, 0x01, 0x06, 0x31, 0x12, 0x99, 0x19]
    );
    assert_eq!(get(&mut chip, SECONDS, later + half), 0x04);
}

#[test]
fn set_alone_keeps_the_fraction_of_the_second() {
    let mut chip = chip();
    let now = LEAP_DAY_NS + 900_000_000;
    put(&mut chip, REGISTER_B, B_24_HOURS | B_SET | B_UIE, now);
    assert_eq!(
        get(&mut chip, REGISTER_B, now),
        B_24_HOURS | B_SET,
        "SET clears UIE"
    );
    put(&mut chip, MINUTES, 0x10, now);
    put(&mut chip, REGISTER_B, B_24_HOURS, now);
    assert_eq!(get(&mut chip, MINUTES, now), 0x10);
    assert_eq!(get(&mut chip, SECONDS, now + 99_999_999), 0x58);
    assert_eq!(get(&mut chip, SECONDS, now + 100_000_000), 0x59);
}

#[test]
fn a_single_register_can_be_set_while_running() {
    let mut chip = chip();
    put(&mut chip, HOURS, 0x07, LEAP_DAY_NS);
    assert_eq!(
        time(&mut chip, LEAP_DAY_NS + NS_PER_SECOND)[..3],
        [0x59, 0x59, 0x07]
    );
}

#[test]
fn a_time_that_does_not_exist_is_dropped() {
    for (index, value) in [
        (MONTH, 0x13),
        (MONTH, 0x00),
        (DAY_OF_MONTH, 0x30),
        (HOURS, 0x24),
        (MINUTES, 0x60),
        (SECONDS, 0x7a),
        (YEAR, 0xff),
        (CENTURY, 0xa0),
    ] {
        let mut chip = chip();
        put(&mut chip, index, value, LEAP_DAY_NS);
        assert_eq!(chip.offset_ns, 0, "{index:#x} {value:#x}");
    }
    let mut chip = chip();
    put(&mut chip, REGISTER_B, 0, LEAP_DAY_NS);
    for hour in [0x00, 0x13, 0x80, 0xff] {
        put(&mut chip, HOURS, hour, LEAP_DAY_NS);
        assert_eq!(chip.offset_ns, 0, "{hour:#x}");
    }
}

#[test]
fn the_end_of_time_is_survived() {
    let mut chip = chip();
    put(&mut chip, REGISTER_B, B_24_HOURS | B_SET, LEAP_DAY_NS);
    for (index, value) in TIME_REGISTERS
        .into_iter()
        .zip([0x59, 0x59, 0x23, 1, 0x31, 0x12, 0x99, 0x99])
    {
        put(&mut chip, index, value, LEAP_DAY_NS);
    }
    put(&mut chip, REGISTER_B, B_24_HOURS, LEAP_DAY_NS);
    assert_eq!(time(&mut chip, LEAP_DAY_NS)[6..], [0x99, 0x99]);
    let after = time(&mut chip, LEAP_DAY_NS + 10 * NS_PER_SECOND);
    assert_eq!(after[6..], [0x70, 0x19]);
    put(&mut chip, REGISTER_B, B_BINARY, LEAP_DAY_NS);
    put(&mut chip, CENTURY, 0xff, LEAP_DAY_NS);
    assert_eq!(get(&mut chip, CENTURY, LEAP_DAY_NS), 99);
}

#[test]
fn alarms_ram_and_index() {
    let mut chip = chip();
    let fixed: Vec<usize> = (0x0a..=0x0d).chain(TIME_REGISTERS).collect();
    for index in (0..0x80).filter(|index| !fixed.contains(index)) {
        put(&mut chip, index, 0xc0 ^ index as u8, LEAP_DAY_NS);
    }
    for index in (0..0x80).filter(|index| !fixed.contains(index)) {
        assert_eq!(get(&mut chip, index, LEAP_DAY_NS), 0xc0 ^ index as u8);
    }
}

#[test]
fn registers_c_and_d_are_read_only() {
    let mut chip = chip();
    put(&mut chip, REGISTER_C, 0xff, LEAP_DAY_NS);
    put(&mut chip, REGISTER_D, 0x00, LEAP_DAY_NS);
    assert_eq!(get(&mut chip, REGISTER_C, LEAP_DAY_NS), 0);
    assert_eq!(get(&mut chip, REGISTER_D, LEAP_DAY_NS), D_VRT);
}

#[test]
fn register_c_tells_what_passed_since_it_was_read() {
    let mut chip = chip();
    put(&mut chip, REGISTER_A, 0x2f, LEAP_DAY_NS);
    assert_eq!(get(&mut chip, REGISTER_C, LEAP_DAY_NS + 1), 0);
    // 2 Hz.
    let half = LEAP_DAY_NS + NS_PER_SECOND / 2;
    assert_eq!(get(&mut chip, REGISTER_C, half), C_PF);
    assert_eq!(get(&mut chip, REGISTER_C, half), 0, "cleared by the read");
    put(&mut chip, REGISTER_B, B_24_HOURS | B_UIE, half);
    let second = LEAP_DAY_NS + NS_PER_SECOND;
    assert_eq!(get(&mut chip, REGISTER_C, second), C_IRQF | C_PF | C_UF);
    put(&mut chip, REGISTER_A, 0x20, second);
    put(&mut chip, REGISTER_B, B_24_HOURS, second);
    assert_eq!(
        get(&mut chip, REGISTER_C, second + NS_PER_SECOND),
        C_UF,
        "rate 0 is off, and nothing is enabled"
    );
    put(&mut chip, REGISTER_B, B_24_HOURS | B_SET, second);
    assert_eq!(get(&mut chip, REGISTER_C, second + 9 * NS_PER_SECOND), 0);
}

#[test]
fn periodic_rates() {
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (8, 256), (15, 2)] {
        assert_eq!(periods(NS_PER_SECOND, rate), hz, "rate {rate}");
    }
}

#[test]
fn memory_sizes() {
    const MIB: u64 = 1 << 20;
    let cmos = |below, above| {
        let mut chip = Chip::new(
            MemorySizes {
                below_4g_bytes: below,
                above_4g_bytes: above,
            },
            LEAP_DAY_NS,
        );
        [0x15, 0x17, 0x30, 0x34, 0x5b].map(|index| {
            u16::from_le_bytes([get(&mut chip, index, 0), get(&mut chip, index + 1, 0)])
        })
    };
    assert_eq!(cmos(64 * MIB, 0), [640, 64512, 64512, 768, 0]);
    assert_eq!(cmos(3072 * MIB, 0), [640, 65535, 65535, 48896, 0]);
    assert_eq!(cmos(3072 * MIB, 2048 * MIB)[4], 32768);
    let mut chip = Chip::new(
        MemorySizes {
            below_4g_bytes: 3072 * MIB,
            above_4g_bytes: (8 << 30) + 4096 * MIB,
        },
        0,
    );
    assert_eq!(get(&mut chip, 0x5d, 0), 3);
}

#[test]
fn ports() {
    let cmos = Cmos::new(MemorySizes::default());
    let mut byte = [0];
    // The NMI bit is no part of the index.
    cmos.write(INDEX, &[0x80 | 0x0d]).unwrap();
    cmos.read(DATA, &mut byte).unwrap();
    assert_eq!(byte, [D_VRT]);
    cmos.read(INDEX, &mut byte).unwrap();
    assert_eq!(byte, [0xff]);
    cmos.write(INDEX, &[0x40, 0xab]).unwrap();
    cmos.read(DATA, &mut byte).unwrap();
    assert_eq!(byte, [0xab]);
    assert!(cmos.write(DATA, &[0, 0]).is_err());
    assert!(cmos.write(INDEX, &[0; 4]).is_err());
    assert!(cmos.write(2, &[0]).is_err());
    assert!(cmos.read(DATA, &mut [0; 2]).is_err());
    assert!(cmos.read(u64::MAX, &mut [0]).is_err());
}

#[test]
fn a_reset_keeps_time_format_and_ram_but_no_interrupt_enables() {
    let cmos = Cmos::new(MemorySizes::default());
    cmos.write(INDEX, &[0x40, 0xab]).unwrap();
    cmos.write(INDEX, &[0x0b, 0x70 | B_BINARY]).unwrap();
    cmos.reset();
    let read = |index: u8| {
        let mut byte = [0];
        cmos.write(INDEX, &[index]).unwrap();
        cmos.read(DATA, &mut byte).unwrap();
        byte[0]
    };
    assert_eq!(read(0x0b), B_BINARY);
    assert_eq!(read(0x40), 0xab);
}

#[test]
fn the_time_is_the_hosts() {
    let cmos = Cmos::new(MemorySizes::default());
    let mut ram = [0; 128];
    ram[REGISTER_B] = B_24_HOURS;
    let before = host_ns();
    for index in TIME_REGISTERS {
        let mut byte = [0];
        cmos.write(INDEX, &[index as u8]).unwrap();
        cmos.read(DATA, &mut byte).unwrap();
        ram[index] = byte[0];
    }
    let read_ns = i128::from(decode(&ram).unwrap()) * NS_PER_SECOND;
    // A second may have begun between the registers, so allow a minute.
    assert!((read_ns - before).abs() < 60 * NS_PER_SECOND);
}
