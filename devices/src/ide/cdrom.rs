//! The packet commands of a CD-ROM (SPC-3; MMC-4; the ATAPI transport is that of ATA/ATAPI-6, 8.23).

use crate::block::BlockInfo;

/// Bytes of a command packet.
pub const PACKET_BYTES: usize = 12;
/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 2048;
/// What the drive is called.
pub const MODEL: &str = "tripath CD-ROM";

/// Largest medium that is taken for a CD; beyond it is a DVD: 80 minutes of 75 blocks a second.
const CD_BLOCKS: u64 = 80 * 60 * 75;
/// Bytes of sense data, of a mode parameter header (10) and of a mode page's own header.
const SENSE_BYTES: usize = 18;

/// Sense key, additional sense code and its qualifier (SPC-3, 4.5.6).
type Sense = (u8, u8, u8);
const NO_SENSE: Sense = (0, 0, 0);
const NO_MEDIUM: Sense = (2, 0x3a, 0x02);
const UNRECOVERED_READ: Sense = (3, 0x11, 0);
const INVALID_COMMAND: Sense = (5, 0x20, 0);
const OUT_OF_RANGE: Sense = (5, 0x21, 0);
const INVALID_FIELD: Sense = (5, 0x24, 0);
const SAVING_NOT_SUPPORTED: Sense = (5, 0x39, 0);
const REMOVAL_PREVENTED: Sense = (5, 0x53, 0x02);
const MEDIUM_CHANGED: Sense = (6, 0x28, 0);
const RESET_OCCURRED: Sense = (6, 0x29, 0);

/// What a packet leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is complete.
    Done,
    /// It is complete with an error, of which the sense data tells.
    Check,
    /// These bytes go to the host; at least one.
    Data(Vec<u8>),
    /// This part of the medium goes to the host; at least one block.
    Read {
        /// Where, in bytes.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
    },
}

/// What a CD-ROM drive knows beside its registers.
#[derive(Debug)]
pub struct Cdrom {
    sense: Sense,
    /// To be told with the next command.
    attention: Option<Sense>,
    open: bool,
    locked: bool,
    /// To be told when the host polls for events: event code of the media class (MMC-4, 6.6.3.5).
    event: u8,
}

impl Default for Cdrom {
    fn default() -> Self {
        Self {
            sense: NO_SENSE,
            attention: Some(RESET_OCCURRED),
            open: false,
            locked: false,
            event: 0,
        }
    }
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// What fits of `data` in what the host has allocated.
fn reply(mut data: Vec<u8>, allocated: usize) -> Reply {
    data.truncate(allocated);
    if data.is_empty() {
        Reply::Done
    } else {
        Reply::Data(data)
    }
}

/// `lba` as minute, second and frame (MMC-4, 4.2.3).
fn msf(lba: u32) -> [u8; 4] {
    let frames = lba.saturating_add(150);
    let part = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
    [
        0,
        part(frames / 75 / 60),
        part(frames / 75 % 60),
        part(frames % 75),
    ]
}

impl Cdrom {
    /// Back to power-on: the tray is closed.
    pub fn power_on(&mut self) {
        *self = Self::default();
    }

    /// A reset by its driver: the medium is free, and the next command hears of it.
    pub fn reset(&mut self) {
        self.sense = NO_SENSE;
        self.locked = false;
        self.attention = Some(RESET_OCCURRED);
    }

    /// The sense key of the last command.
    pub fn sense_key(&self) -> u8 {
        self.sense.0
    }

    /// The medium could not be read.
    pub fn medium_error(&mut self) {
        self.sense = UNRECOVERED_READ;
    }

    fn check(&mut self, sense: Sense) -> Reply {
        self.sense = sense;
        Reply::Check
    }

    /// Carries out one packet; `info` tells of the medium.
    pub fn execute(&mut self, packet: &[u8; PACKET_BYTES], info: &BlockInfo) -> Reply {
        const REQUEST_SENSE: u8 = 0x03;
        const INQUIRY: u8 = 0x12;
        const GET_CONFIGURATION: u8 = 0x46;
        const GET_EVENT_STATUS: u8 = 0x4a;
        let command = packet[0];
        // These do not report attentions (MMC-4, 4.1.6.1).
        let exempt = [REQUEST_SENSE, INQUIRY, GET_CONFIGURATION, GET_EVENT_STATUS];
        if !exempt.contains(&command)
            && let Some(sense) = self.attention.take()
        {
            return self.check(sense);
        }
        if command == REQUEST_SENSE {
            return self.request_sense(packet);
        }
        self.sense = NO_SENSE;
        let blocks = info.size_bytes / BLOCK_BYTES;
        match command {
            INQUIRY => self.inquiry(packet),
            GET_CONFIGURATION => self.configuration(packet, blocks),
            GET_EVENT_STATUS => self.event_status(packet),
            0x1a => self.mode_sense(packet, false),
            0x5a => self.mode_sense(packet, true),
            0x1b => self.start_stop(packet),
            0x1e => {
                self.locked = packet[4] & 1 != 0;
                Reply::Done
            }
            0xbd => reply(vec![0; 8], be16(&packet[8..]).into()),
            0x00 | 0x25 | 0x28 | 0xa8 | 0x43 | 0x2b | 0x51 | 0xbe if self.open => {
                self.check(NO_MEDIUM)
            }
            0x00 => Reply::Done,
            0x25 => Self::capacity(blocks),
            0x28 => self.read(be32(&packet[2..]), be16(&packet[7..]).into(), blocks),
            0xa8 => self.read(be32(&packet[2..]), be32(&packet[6..]), blocks),
            0xbe => self.read_cd(packet, blocks),
            0x2b if u64::from(be32(&packet[2..])) < blocks => Reply::Done,
            0x2b => self.check(OUT_OF_RANGE),
            0x43 => self.toc(packet, blocks),
            0x51 => Self::disc_information(packet),
            _ => self.check(INVALID_COMMAND),
        }
    }

    /// REQUEST SENSE (SPC-3, 6.27), which also clears it.
    fn request_sense(&mut self, packet: &[u8; PACKET_BYTES]) -> Reply {
        let mut sense = std::mem::replace(&mut self.sense, NO_SENSE);
        if sense == NO_SENSE
            && let Some(attention) = self.attention.take()
        {
            sense = attention;
        }
        let mut data = vec![0; SENSE_BYTES];
        (data[0], data[2], data[7]) = (0x70, sense.0, 10);
        (data[12], data[13]) = (sense.1, sense.2);
        reply(data, packet[4].into())
    }

    /// INQUIRY (SPC-3, 6.4): a removable CD/DVD device.
    fn inquiry(&mut self, packet: &[u8; PACKET_BYTES]) -> Reply {
        if packet[1] & 1 != 0 || packet[2] != 0 {
            // No vital product data.
            return self.check(INVALID_FIELD);
        }
        let mut data = vec![5, 0x80, 0, 0x21, 31, 0, 0, 0];
        data.extend_from_slice(b"tripath CD-ROM          1   ");
        reply(data, be16(&packet[3..]).into())
    }

    /// READ CAPACITY (MMC-4, 6.25).
    fn capacity(blocks: u64) -> Reply {
        let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
        let block: [u8; 4] = [0, 0, 8, 0];
        Reply::Data([last.to_be_bytes(), block].concat())
    }

    fn read(&mut self, lba: u32, count: u32, blocks: u64) -> Reply {
        if u64::from(lba) + u64::from(count) > blocks {
            return self.check(OUT_OF_RANGE);
        }
        if count == 0 {
            return Reply::Done;
        }
        Reply::Read {
            offset_bytes: u64::from(lba) * BLOCK_BYTES,
            len_bytes: u64::from(count) * BLOCK_BYTES,
        }
    }

    /// READ CD (MMC-4, 6.24), user data of mode 1 only.
    fn read_cd(&mut self, packet: &[u8; PACKET_BYTES], blocks: u64) -> Reply {
        const USER_DATA: u8 = 0x10;
        let count = u32::from_be_bytes([0, packet[6], packet[7], packet[8]]);
        match packet[9] & 0xf8 {
            0 => Reply::Done,
            USER_DATA => self.read(be32(&packet[2..]), count, blocks),
            _ => self.check(INVALID_FIELD),
        }
    }

    /// START STOP UNIT (MMC-4, 6.49): here, the tray.
    fn start_stop(&mut self, packet: &[u8; PACKET_BYTES]) -> Reply {
        const LOAD_EJECT: u8 = 0b10;
        const START: u8 = 0b01;
        match packet[4] & 0b11 {
            LOAD_EJECT if self.locked && !self.open => self.check(REMOVAL_PREVENTED),
            LOAD_EJECT => {
                if !self.open {
                    self.event = 3;
                }
                self.open = true;
                Reply::Done
            }
            bits if bits == LOAD_EJECT | START => {
                if std::mem::take(&mut self.open) {
                    self.event = 2;
                    self.attention = Some(MEDIUM_CHANGED);
                }
                Reply::Done
            }
            START if self.open => self.check(NO_MEDIUM),
            _ => Reply::Done,
        }
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-4, 6.6): polled, class media.
    fn event_status(&mut self, packet: &[u8; PACKET_BYTES]) -> Reply {
        const POLLED: u8 = 1;
        const MEDIA: u8 = 4;
        const NO_EVENT_AVAILABLE: u8 = 1 << 7;
        if packet[1] & POLLED == 0 {
            return self.check(INVALID_FIELD);
        }
        let allocated = usize::from(be16(&packet[7..]));
        let supported = 1 << MEDIA;
        let data = if packet[4] & 1 << MEDIA == 0 {
            vec![0, 2, NO_EVENT_AVAILABLE, supported]
        } else {
            let state = if self.open { 0b01 } else { 0b10 };
            // Told only to a host that has room for it.
            let event = if allocated > 4 {
                std::mem::take(&mut self.event)
            } else {
                0
            };
            vec![0, 6, MEDIA, supported, event, state, 0, 0]
        };
        reply(data, allocated)
    }

    /// GET CONFIGURATION (MMC-4, 6.5).
    fn configuration(&mut self, packet: &[u8; PACKET_BYTES], blocks: u64) -> Reply {
        const CD_ROM: u16 = 0x08;
        const DVD_ROM: u16 = 0x10;
        let current = match blocks {
            _ if self.open => 0,
            blocks if blocks > CD_BLOCKS => DVD_ROM,
            _ => CD_ROM,
        };
        let profile = |number: u16| {
            let [high, low] = number.to_be_bytes();
            vec![high, low, u8::from(number == current), 0]
        };
        let present = u8::from(!self.open);
        // (feature, version and flags, data): the persistent ones, then those of what is loaded.
        let features = [
            (0x00, 0b11, [profile(DVD_ROM), profile(CD_ROM)].concat()),
            // Core: ATAPI.
            (0x01, 0b1011, vec![0, 0, 0, 2, 1, 0, 0, 0]),
            // Removable medium: a tray that ejects and locks.
            (0x03, 0b11, vec![0x29, 0, 0, 0]),
            // Random readable: blocks of 2048 bytes, one at a time.
            (0x10, present, vec![0, 0, 8, 0, 0, 1, 0, 0]),
            // CD read, DVD read.
            (0x1e, 0b1000 | u8::from(current == CD_ROM), vec![0; 4]),
            (0x1f, u8::from(current == DVD_ROM), Vec::new()),
        ];
        let (kind, start) = (packet[1] & 0b11, be16(&packet[2..]));
        if kind == 0b11 {
            return self.check(INVALID_FIELD);
        }
        let mut list = Vec::new();
        for (code, flags, body) in features {
            let wanted = match kind {
                0 => code >= start,
                1 => code >= start && flags & 1 != 0,
                _ => code == start,
            };
            if wanted {
                list.extend_from_slice(&code.to_be_bytes());
                list.extend_from_slice(&[flags, u8::try_from(body.len()).unwrap_or(0)]);
                list.extend_from_slice(&body);
            }
        }
        let len = u32::try_from(list.len() + 4).unwrap_or(4);
        let mut data = len.to_be_bytes().to_vec();
        data.extend_from_slice(&[0, 0]);
        data.extend_from_slice(&current.to_be_bytes());
        data.extend_from_slice(&list);
        reply(data, be16(&packet[7..]).into())
    }

    /// MODE SENSE (6) and (10) (SPC-3, 6.9 and 6.10).
    fn mode_sense(&mut self, packet: &[u8; PACKET_BYTES], ten: bool) -> Reply {
        const ERROR_RECOVERY: u8 = 0x01;
        const CAPABILITIES: u8 = 0x2a;
        const ALL: u8 = 0x3f;
        let (control, code) = (packet[2] >> 6, packet[2] & 0x3f);
        if control == 0b11 {
            return self.check(SAVING_NOT_SUPPORTED);
        }
        let mut pages = Vec::new();
        if matches!(code, ERROR_RECOVERY | ALL) {
            pages.extend_from_slice(&[ERROR_RECOVERY, 6, 0, 5, 0, 0, 0, 0]);
        }
        if matches!(code, CAPABILITIES | ALL) {
            // Reads DVD-ROM and mode 2; a tray that locks and ejects, and whether it is locked; 8 x 176 KB/s.
            let tray = 0x29 | u8::from(self.locked) << 1;
            let mut page = vec![CAPABILITIES, 20, 0x08, 0, 0x70, 0, tray, 0];
            page.extend_from_slice(&[5, 0x80, 0, 0, 2, 0, 5, 0x80, 0, 0, 0, 0, 0, 0]);
            if control == 0b01 {
                // Nothing can be changed.
                page[2..].fill(0);
            }
            pages.extend(page);
        }
        if pages.is_empty() {
            return self.check(INVALID_FIELD);
        }
        let medium = if self.open { 0x71 } else { 0x01 };
        let (data, allocated) = if ten {
            let len = u16::try_from(pages.len() + 6).unwrap_or(0).to_be_bytes();
            let header = vec![len[0], len[1], medium, 0, 0, 0, 0, 0];
            (header, be16(&packet[7..]).into())
        } else {
            let len = u8::try_from(pages.len() + 3).unwrap_or(0);
            (vec![len, medium, 0, 0], packet[4].into())
        };
        reply([data, pages].concat(), allocated)
    }

    /// READ TOC (MMC-4, 6.30): one session, one data track.
    fn toc(&mut self, packet: &[u8; PACKET_BYTES], blocks: u64) -> Reply {
        const DATA_TRACK: u8 = 0x14;
        const LEAD_OUT: u8 = 0xaa;
        let in_msf = packet[1] & 0b10 != 0;
        // In old drivers' packets the format is in the last byte.
        let format = match packet[2] & 0xf {
            0 => packet[9] >> 6,
            format => format,
        };
        let start = packet[6];
        let end = u32::try_from(blocks).unwrap_or(u32::MAX);
        let place = |lba: u32| if in_msf { msf(lba) } else { lba.to_be_bytes() };
        let entry = |track: u8, lba: u32| [[0, DATA_TRACK, track, 0], place(lba)].concat();
        let body = match format {
            0 if start > 1 && start != LEAD_OUT => return self.check(INVALID_FIELD),
            0 if start == LEAD_OUT => entry(LEAD_OUT, end),
            0 => [entry(1, 0), entry(LEAD_OUT, end)].concat(),
            // The first track of the last session.
            1 => entry(1, 0),
            2 => {
                let full = |point: u8, at: [u8; 3]| {
                    vec![1, DATA_TRACK, 0, point, 0, 0, 0, 0, at[0], at[1], at[2]]
                };
                let [_, minute, second, frame] = msf(end);
                [
                    full(0xa0, [1, 0, 0]),
                    full(0xa1, [1, 0, 0]),
                    full(0xa2, [minute, second, frame]),
                    full(1, [0, 2, 0]),
                ]
                .concat()
            }
            _ => return self.check(INVALID_FIELD),
        };
        let [high, low] = u16::try_from(body.len() + 2).unwrap_or(0).to_be_bytes();
        let data = [vec![high, low, 1, 1], body].concat();
        reply(data, be16(&packet[7..]).into())
    }

    /// READ DISC INFORMATION (MMC-4, 6.26): complete, one session, one track, not erasable.
    fn disc_information(packet: &[u8; PACKET_BYTES]) -> Reply {
        let mut data = vec![0; 34];
        data[..8].copy_from_slice(&[0, 32, 0x0e, 1, 1, 1, 1, 0x20]);
        reply(data, be16(&packet[7..]).into())
    }
}
