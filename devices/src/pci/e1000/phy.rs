//! The PHY behind MDIC: the integrated one, an M88E1000 in all that drivers look at (manual, 13.4.8, and IEEE 802.3,
//! clauses 22 and 40).
//!
//! Auto-negotiation takes no time here: its result stands as soon as it is restarted.

/// Address of the internal PHY.
const PHY_ADDRESS: u32 = 1;

const MDIC_REGISTER_SHIFT: u32 = 16;
const MDIC_PHY_SHIFT: u32 = 21;
const MDIC_OP: u32 = 0b11 << 26;
const MDIC_OP_WRITE: u32 = 0b01 << 26;
const MDIC_OP_READ: u32 = 0b10 << 26;
const MDIC_READY: u32 = 1 << 28;
const MDIC_INTERRUPT: u32 = 1 << 29;
const MDIC_ERROR: u32 = 1 << 30;

const CONTROL: usize = 0;
const STATUS: usize = 1;
const SPECIFIC_STATUS: usize = 17;

/// Control: software reset; clears itself.
const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_LOOPBACK: u16 = 1 << 14;
const CONTROL_POWER_DOWN: u16 = 1 << 11;
/// Control: restart auto-negotiation; clears itself.
const CONTROL_RESTART: u16 = 1 << 9;

/// Status: the link is up, latched low until read.
const STATUS_LINK: u16 = 1 << 2;
const STATUS_NEGOTIATED: u16 = 1 << 5;

/// Specific status: speed and duplex are resolved, and the link is up.
const SPECIFIC_RESOLVED: u16 = 1 << 11;
const SPECIFIC_LINK: u16 = 1 << 10;

/// Register values after a reset. The rest are 0.
const RESET: [(usize, u16); 9] = [
    // Auto-negotiation, full duplex, 1000 Mb/s.
    (CONTROL, 0x1140),
    // 10 and 100 Mb/s of all kinds, extended status and capabilities.
    (STATUS, 0x7949),
    // The identifier.
    (2, 0x0141),
    (3, 0x0c20),
    // What we and the link partner advertise.
    (4, 0x0de1),
    (5, 0x41e0),
    (9, 0x0e00),
    (10, 0x3c00),
    // PHY specific control.
    (16, 0x0360),
];
/// Speed 1000 Mb/s, full duplex.
const SPECIFIC_1000_FULL: u16 = 0xa000;
const EXTENDED_STATUS: usize = 15;
/// 1000BASE-T, both duplexes.
const EXTENDED_1000_T: u16 = 0x3000;
const EXTENDED_SPECIFIC_CONTROL: usize = 20;
const EXTENDED_SPECIFIC_RESET: u16 = 0x0d60;

/// Registers that take what is written.
const WRITABLE: [usize; 10] = [CONTROL, 4, 7, 9, 16, 18, 20, 24, 29, 30];

/// The PHY and MDIC.
#[derive(Debug)]
pub struct Phy {
    registers: [u16; 32],
    mdic: u32,
    /// The cable is plugged in, and its other end is up.
    cable: bool,
    /// The link was down since STATUS was last read.
    link_was_down: bool,
    /// Auto-negotiation has ended since that was last asked.
    negotiated: bool,
}

impl Phy {
    /// A PHY whose cable is plugged in.
    pub fn new() -> Self {
        let mut phy = Self {
            registers: [0; 32],
            mdic: MDIC_READY,
            cable: true,
            link_was_down: false,
            negotiated: false,
        };
        phy.reset();
        phy
    }

    /// Registers as after a reset of the PHY. The cable stays.
    pub fn reset(&mut self) {
        self.registers = [0; 32];
        for (register, value) in RESET {
            self.registers[register] = value;
        }
        self.registers[EXTENDED_STATUS] = EXTENDED_1000_T;
        self.registers[EXTENDED_SPECIFIC_CONTROL] = EXTENDED_SPECIFIC_RESET;
    }

    /// MDIC as after a reset of the MAC.
    pub fn reset_mdic(&mut self) {
        self.mdic = MDIC_READY;
    }

    /// Plugs the cable in or pulls it.
    pub fn set_cable(&mut self, plugged: bool) {
        self.cable = plugged;
        self.link_was_down |= !plugged;
    }

    /// Whether the link is up.
    pub fn link(&self) -> bool {
        self.cable && self.registers[CONTROL] & CONTROL_POWER_DOWN == 0
    }

    /// Whether auto-negotiation has ended since the last call.
    pub fn take_negotiated(&mut self) -> bool {
        std::mem::take(&mut self.negotiated)
    }

    /// Whether the PHY sends back what it is given.
    pub fn loopback(&self) -> bool {
        self.registers[CONTROL] & CONTROL_LOOPBACK != 0
    }

    /// MDIC.
    pub fn mdic(&self) -> u32 {
        self.mdic
    }

    /// Writes MDIC: an access to a register, which is complete at once. Says whether it asked for an interrupt.
    pub fn write_mdic(&mut self, value: u32) -> bool {
        let [low, high, ..] = value.to_le_bytes();
        let data = u16::from_le_bytes([low, high]);
        let register = usize::from(value.to_le_bytes()[2] & 0x1f);
        debug_assert_eq!(register, (value >> MDIC_REGISTER_SHIFT & 0x1f) as usize);
        self.mdic = value & !MDIC_ERROR | MDIC_READY;
        let ours = (value >> MDIC_PHY_SHIFT) & 0x1f == PHY_ADDRESS;
        match value & MDIC_OP {
            // The bus floats high where nobody drives it.
            MDIC_OP_READ if !ours => self.mdic |= 0xffff | MDIC_ERROR,
            MDIC_OP_READ => self.mdic = self.mdic & !0xffff | u32::from(self.read(register)),
            MDIC_OP_WRITE if !ours => self.mdic |= MDIC_ERROR,
            MDIC_OP_WRITE => self.write(register, data),
            _ => self.mdic |= MDIC_ERROR,
        }
        value & MDIC_INTERRUPT != 0
    }

    fn read(&mut self, register: usize) -> u16 {
        let value = self.registers[register];
        let link = self.link();
        match register {
            STATUS => {
                let latched = link && !std::mem::take(&mut self.link_was_down);
                let negotiated = if link { STATUS_NEGOTIATED } else { 0 };
                value | negotiated | if latched { STATUS_LINK } else { 0 }
            }
            SPECIFIC_STATUS if link => SPECIFIC_1000_FULL | SPECIFIC_RESOLVED | SPECIFIC_LINK,
            SPECIFIC_STATUS => SPECIFIC_1000_FULL,
            _ => value,
        }
    }

    fn write(&mut self, register: usize, value: u16) {
        if !WRITABLE.contains(&register) {
            return;
        }
        let up = self.link();
        self.registers[register] = value;
        if register == CONTROL {
            if value & CONTROL_RESET != 0 {
                // The mode bits stay as written: a software reset puts them into effect.
                self.registers[CONTROL] &= !CONTROL_RESET;
            }
            self.negotiated |= value & CONTROL_RESTART != 0 && self.link();
            self.registers[CONTROL] &= !CONTROL_RESTART;
            self.link_was_down |= up && !self.link();
        }
    }
}
