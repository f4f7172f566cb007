//! The keyboard controller: an 8042 with the PC/AT's program (IBM PC AT Technical Reference, "Keyboard Controller";
//! PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller").
//!
//! No keyboard is plugged in and there is no auxiliary port: what is sent to the keyboard times out, which the
//! controller reports with data 0xFE and the time-out bit, as hardware does. What remains of use is the output
//! port's reset line, by which many kernels restart the machine.
//!
//! `vm-superio`'s i8042 answers every read with zero, which a driver takes for a controller that never replies; so
//! the chip is written here.

use std::sync::{Arc, Mutex};

use bitflags::bitflags;

use super::{PowerControl, PowerEvent, Reset, ResetSource};
use crate::bus::{AccessError, BusDevice};
use crate::irq::IrqLine;
use crate::sync::lock;

bitflags! {
    /// The status register, RO at port 0x64.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Status: u8 {
        /// OBF: a byte waits at port 0x60.
        const OUTPUT_FULL = 1 << 0;
        /// SYS: the self-test has passed.
        const SYSTEM = 1 << 2;
        /// A2: the last write was to port 0x64.
        const COMMAND = 1 << 3;
        /// INH: the keyboard lock is open.
        const UNLOCKED = 1 << 4;
        /// General time-out: the byte that waits is no answer of the keyboard's.
        const TIMEOUT = 1 << 6;
    }
}

bitflags! {
    /// The command byte, RAM byte 0.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct CommandByte: u8 {
        /// Interrupt when the output buffer is filled.
        const KEYBOARD_INTERRUPT = 1 << 0;
        /// Becomes the status register's SYS.
        const SYSTEM = 1 << 2;
        /// The keyboard's clock is held low.
        const KEYBOARD_DISABLED = 1 << 4;
        /// The auxiliary device's clock is held low.
        const AUX_DISABLED = 1 << 5;
        /// Scan codes are translated to set 1.
        const TRANSLATE = 1 << 6;
        /// Bits without a meaning here hold what is written.
        const _ = !0;
    }
}

/// What a PC's firmware leaves in the command byte.
const COMMAND_BYTE_AT_RESET: CommandByte = CommandByte::KEYBOARD_INTERRUPT
    .union(CommandByte::SYSTEM)
    .union(CommandByte::AUX_DISABLED)
    .union(CommandByte::TRANSLATE);

/// Output port, bit 0: low holds the CPU in reset.
const OUT_RESET_N: u8 = 1 << 0;
/// Output port, bit 4: the state of the keyboard's interrupt.
const OUT_OUTPUT_FULL: u8 = 1 << 4;
/// The output port as firmware leaves it: reset high, A20 open, clock and data released.
const OUT_AT_RESET: u8 = 0xcf;
/// Output port, bit 1: the A20 gate. It is remembered; the line is always open.
const OUT_A20: u8 = 1 << 1;
/// The input port: not manufacturing mode, colour display, keyboard unlocked.
const INPUT_PORT: u8 = 0xa0;

/// Self-test passed.
const SELF_TEST_OK: u8 = 0x55;
/// Interface test: no error.
const INTERFACE_OK: u8 = 0x00;
/// Interface test: the clock line is stuck high, as one with nothing at its end is.
const CLOCK_STUCK_HIGH: u8 = 0x02;
/// Resend: what the controller itself puts in the buffer when the keyboard does not answer.
const RESEND: u8 = 0xfe;

/// What the byte that follows a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameter {
    /// To a byte of the controller's RAM.
    Ram(u8),
    /// To the output port.
    OutputPort,
    /// To the output buffer, as if the keyboard had sent it.
    OutputBuffer,
    /// To the auxiliary device, which is not there.
    AuxDevice,
}

/// The controller.
#[derive(Debug)]
struct Chip {
    ram: [u8; 32],
    output_port: u8,
    /// The output buffer while OBF, and the last byte read after that.
    output: u8,
    output_full: bool,
    timed_out: bool,
    last_was_command: bool,
    parameter: Option<Parameter>,
}

impl Chip {
    fn new() -> Self {
        let mut ram = [0; 32];
        ram[0] = COMMAND_BYTE_AT_RESET.bits();
        Self {
            ram,
            output_port: OUT_AT_RESET,
            output: 0,
            output_full: false,
            timed_out: false,
            last_was_command: false,
            parameter: None,
        }
    }

    fn command_byte(&self) -> CommandByte {
        CommandByte::from_bits_retain(self.ram[0])
    }

    fn status(&self) -> Status {
        let mut status = Status::UNLOCKED;
        status.set(Status::OUTPUT_FULL, self.output_full);
        status.set(
            Status::SYSTEM,
            self.command_byte().contains(CommandByte::SYSTEM),
        );
        status.set(Status::COMMAND, self.last_was_command);
        status.set(Status::TIMEOUT, self.timed_out);
        status
    }

    fn interrupt(&self) -> bool {
        self.output_full
            && self
                .command_byte()
                .contains(CommandByte::KEYBOARD_INTERRUPT)
    }

    fn read_data(&mut self) -> u8 {
        self.output_full = false;
        self.timed_out = false;
        self.output
    }

    /// Fills the output buffer. A byte that was not read is lost, as the buffer holds one.
    fn put(&mut self, byte: u8) {
        self.output = byte;
        self.output_full = true;
        self.timed_out = false;
    }

    /// A device that does not answer.
    fn time_out(&mut self) {
        self.put(RESEND);
        self.timed_out = true;
    }

    fn set_command_bits(&mut self, bits: CommandByte, on: bool) {
        let mut command_byte = self.command_byte();
        command_byte.set(bits, on);
        self.ram[0] = command_byte.bits();
    }

    /// A write to port 0x60. True for a reset.
    fn write_data(&mut self, byte: u8) -> bool {
        self.last_was_command = false;
        match self.parameter.take() {
            Some(Parameter::Ram(index)) => self.ram[usize::from(index)] = byte,
            Some(Parameter::OutputPort) => return self.write_output_port(byte),
            Some(Parameter::OutputBuffer) => self.put(byte),
            Some(Parameter::AuxDevice) => self.time_out(),
            None => {
                // Sending to the keyboard releases its clock.
                self.set_command_bits(CommandByte::KEYBOARD_DISABLED, false);
                self.time_out();
            }
        }
        false
    }

    /// A write to port 0x64. True for a reset.
    fn write_command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.parameter = None;
        match command {
            0x20..=0x3f => self.put(self.ram[usize::from(command - 0x20)]),
            0x60..=0x7f => self.parameter = Some(Parameter::Ram(command - 0x60)),
            0xa7 => self.set_command_bits(CommandByte::AUX_DISABLED, true),
            0xa8 => self.set_command_bits(CommandByte::AUX_DISABLED, false),
            0xa9 => self.put(CLOCK_STUCK_HIGH),
            0xaa => {
                self.set_command_bits(CommandByte::SYSTEM, true);
                self.put(SELF_TEST_OK);
            }
            0xab => self.put(INTERFACE_OK),
            0xad => self.set_command_bits(CommandByte::KEYBOARD_DISABLED, true),
            0xae => self.set_command_bits(CommandByte::KEYBOARD_DISABLED, false),
            0xc0 => self.put(INPUT_PORT),
            0xd0 => self.put(self.read_output_port()),
            0xd1 => self.parameter = Some(Parameter::OutputPort),
            // 0xD3 would put the byte in the buffer as if the auxiliary device had sent it. Without that port the
            // byte comes back as the keyboard's: a driver that looks for the port sees at once that it is not
            // there, where silence would have it poll the status for half a second.
            0xd2 | 0xd3 => self.parameter = Some(Parameter::OutputBuffer),
            0xd4 => self.parameter = Some(Parameter::AuxDevice),
            0xdd => self.output_port &= !OUT_A20,
            0xdf => self.output_port |= OUT_A20,
            // Test inputs: keyboard clock and data, both high.
            0xe0 => self.put(0x03),
            // Pulses low the lines of the output port whose bits in the command are 0.
            0xf0..=0xff => return command & OUT_RESET_N == 0,
            // The rest has no meaning in the AT's program, which ignores it.
            _ => {}
        }
        false
    }

    fn read_output_port(&self) -> u8 {
        if self.output_full {
            self.output_port | OUT_OUTPUT_FULL
        } else {
            self.output_port & !OUT_OUTPUT_FULL
        }
    }

    fn write_output_port(&mut self, value: u8) -> bool {
        // The reset line is not kept low: the reset that follows raises it again.
        self.output_port = value | OUT_RESET_N;
        value & OUT_RESET_N == 0
    }
}

/// Offset of the data port, 0x60, in the device's range.
const DATA: u64 = 0;
/// Offset of the status and command port, 0x64.
const COMMAND: u64 = 4;

/// The device: the chip and its interrupt (ISA, high while a byte waits). Its range is ports 0x60 to 0x64; 0x61 to
/// 0x63 are not its own and are refused.
pub struct I8042 {
    chip: Mutex<Chip>,
    irq: IrqLine,
    power: Arc<dyn PowerControl>,
}

impl I8042 {
    /// Ports from the data port to the command port.
    pub const PORT_COUNT: u64 = 5;

    /// A controller with its keyboard interrupt on `irq`; a pulse on the reset line goes to `power`.
    #[must_use]
    pub fn new(irq: IrqLine, power: Arc<dyn PowerControl>) -> Self {
        Self {
            chip: Mutex::new(Chip::new()),
            irq,
            power,
        }
    }
}

impl BusDevice for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let [byte] = data else {
            return Err(AccessError::InvalidWidth);
        };
        let mut chip = lock(&self.chip);
        *byte = match offset {
            DATA => chip.read_data(),
            COMMAND => chip.status().bits(),
            _ => return Err(AccessError::InvalidRegister),
        };
        self.irq.set(chip.interrupt());
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let &[byte] = data else {
            return Err(AccessError::InvalidWidth);
        };
        let reset = {
            let mut chip = lock(&self.chip);
            let reset = match offset {
                DATA => chip.write_data(byte),
                COMMAND => chip.write_command(byte),
                _ => return Err(AccessError::InvalidRegister),
            };
            self.irq.set(chip.interrupt());
            reset
        };
        if reset {
            self.power.request(PowerEvent::Reset(ResetSource::I8042));
        }
        Ok(())
    }
}

impl Reset for I8042 {
    fn reset(&self) {
        let mut chip = lock(&self.chip);
        *chip = Chip::new();
        self.irq.set(chip.interrupt());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakePin, FakePower};

    const RESET: PowerEvent = PowerEvent::Reset(ResetSource::I8042);

    struct Fixture {
        device: I8042,
        pin: Arc<FakePin>,
        power: Arc<FakePower>,
    }

    impl Fixture {
        fn new() -> Self {
            let (line, pin) = FakePin::line();
            let power = Arc::new(FakePower::default());
            Self {
                device: I8042::new(line, power.clone()),
                pin,
                power,
            }
        }

        fn command(&self, byte: u8) {
            self.device.write(COMMAND, &[byte]).unwrap();
        }

        fn data(&self, byte: u8) {
            self.device.write(DATA, &[byte]).unwrap();
        }

        fn status(&self) -> Status {
            let mut byte = [0];
            self.device.read(COMMAND, &mut byte).unwrap();
            Status::from_bits(byte[0]).expect("a reserved status bit")
        }

        fn read(&self) -> u8 {
            let mut byte = [0];
            self.device.read(DATA, &mut byte).unwrap();
            byte[0]
        }

        /// Sends a command and takes its answer.
        fn ask(&self, command: u8) -> u8 {
            self.command(command);
            assert!(
                self.status().contains(Status::OUTPUT_FULL),
                "no answer to {command:#x}"
            );
            let answer = self.read();
            assert!(!self.status().contains(Status::OUTPUT_FULL));
            answer
        }
    }

    #[test]
    fn tests_and_ports_answer() {
        let f = Fixture::new();
        assert_eq!(f.status(), Status::UNLOCKED | Status::SYSTEM);
        assert_eq!(f.ask(0xaa), 0x55);
        assert_eq!(f.ask(0xab), 0x00);
        assert_eq!(f.ask(0xa9), 0x02);
        assert_eq!(f.ask(0xc0), INPUT_PORT);
        assert_eq!(f.ask(0xd0), OUT_AT_RESET);
        assert_eq!(f.ask(0xe0), 0x03);
        assert_eq!(f.status() & Status::COMMAND, Status::COMMAND);
    }

    #[test]
    fn command_byte_and_ram_read_back() {
        let f = Fixture::new();
        assert_eq!(f.ask(0x20), COMMAND_BYTE_AT_RESET.bits());
        for index in 0..32u8 {
            f.command(0x60 + index);
            f.data(0x80 | index);
        }
        for index in 0..32u8 {
            assert_eq!(f.ask(0x20 + index), 0x80 | index);
        }
        assert!(!f.status().contains(Status::SYSTEM), "bit 2 was written 0");
        f.ask(0xaa);
        assert!(f.status().contains(Status::SYSTEM));
    }

    #[test]
    fn interfaces_are_switched_in_the_command_byte() {
        let f = Fixture::new();
        for (command, bit, on) in [
            (0xad, 0x10, true),
            (0xae, 0x10, false),
            (0xa7, 0x20, true),
            (0xa8, 0x20, false),
        ] {
            f.command(command);
            assert_eq!(f.ask(0x20) & bit != 0, on, "{command:#x}");
        }
        f.command(0xad);
        f.data(0xf4);
        f.read();
        assert_eq!(f.ask(0x20) & 0x10, 0, "sending enables the keyboard");
    }

    #[test]
    fn the_keyboard_times_out_with_an_interrupt() {
        let f = Fixture::new();
        f.data(0xf2);
        assert!(f.pin.level());
        assert_eq!(
            f.status(),
            Status::OUTPUT_FULL | Status::TIMEOUT | Status::SYSTEM | Status::UNLOCKED
        );
        assert_eq!(f.read(), RESEND);
        assert!(!f.pin.level());
        assert_eq!(
            f.status() & (Status::TIMEOUT | Status::OUTPUT_FULL),
            Status::empty()
        );
    }

    #[test]
    fn no_interrupt_when_the_command_byte_says_so() {
        let f = Fixture::new();
        f.command(0x60);
        f.data(0x44);
        f.command(0xaa);
        assert!(!f.pin.level());
        f.command(0x60);
        f.data(0x45);
        assert!(f.pin.level(), "the byte still waits");
    }

    #[test]
    fn there_is_no_auxiliary_port() {
        let f = Fixture::new();
        f.command(0xd3);
        f.data(0x5a);
        // Bit 5 of the status would say "from the auxiliary device"; it is not one of `Status`.
        assert!(f.status().contains(Status::OUTPUT_FULL));
        assert_eq!(f.read(), 0x5a);
        f.command(0xd4);
        f.data(0xff);
        assert!(f.status().contains(Status::TIMEOUT));
        assert_eq!(f.read(), RESEND);
    }

    #[test]
    fn output_buffer_can_be_written() {
        let f = Fixture::new();
        f.command(0xd2);
        f.data(0x1c);
        assert_eq!(f.ask(0xd0) & OUT_OUTPUT_FULL, OUT_OUTPUT_FULL);
        f.command(0xd2);
        f.data(0x1c);
        assert_eq!(f.read(), 0x1c);
    }

    #[test]
    fn reset_by_pulse_and_by_output_port() {
        let f = Fixture::new();
        for command in 0xf0..=0xffu8 {
            f.command(command);
            let expected = if command & 1 == 0 {
                vec![RESET]
            } else {
                vec![]
            };
            assert_eq!(f.power.take(), expected, "{command:#x}");
        }
        f.command(0xd1);
        f.data(0xdd);
        assert!(f.power.take().is_empty());
        assert_eq!(f.ask(0xd0), 0xcd, "A20 is off");
        f.command(0xdf);
        assert_eq!(f.ask(0xd0), 0xcf);
        f.command(0xdd);
        assert_eq!(f.ask(0xd0), 0xcd);
        f.command(0xd1);
        f.data(0xfe);
        assert_eq!(f.power.take(), [RESET]);
    }

    #[test]
    fn a_command_cancels_the_parameter_of_the_one_before() {
        let f = Fixture::new();
        f.command(0xd1);
        f.command(0xae);
        f.data(0x00);
        assert!(f.power.take().is_empty());
        assert_eq!(f.read(), RESEND);
    }

    #[test]
    fn every_command_and_byte_is_survived() {
        let f = Fixture::new();
        for command in 0..=u8::MAX {
            f.command(command);
            f.data(command);
            f.data(!command);
            f.read();
            f.read();
        }
        f.device.reset();
        assert_eq!(f.ask(0x20), COMMAND_BYTE_AT_RESET.bits());
        assert_eq!(f.ask(0xd0), OUT_AT_RESET);
    }

    #[test]
    fn wrong_widths_and_ports_are_refused() {
        let f = Fixture::new();
        for offset in [1, 2, 3, 5, u64::MAX] {
            assert_eq!(
                f.device.write(offset, &[0]),
                Err(AccessError::InvalidRegister)
            );
            assert_eq!(
                f.device.read(offset, &mut [0]),
                Err(AccessError::InvalidRegister)
            );
        }
        assert_eq!(
            f.device.write(4, &[0xfe, 0]),
            Err(AccessError::InvalidWidth)
        );
        assert_eq!(f.device.read(0, &mut []), Err(AccessError::InvalidWidth));
        assert!(f.power.take().is_empty());
    }
}
