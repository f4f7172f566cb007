//! What the transmitter does to a frame: checksums, and TCP segmentation (manual, 3.3.5 to 3.6).
//!
//! A checksum that runs to the end of the frame is left to the backend, and so is the segmentation of an ordinary TCP
//! frame: the header before the frame can say both, and the host's stack often needs neither. What the header cannot
//! say (UDP segmentation, checksums of a part, unusual layouts) is done here.

use thiserror::Error;

use crate::net::{PartialChecksum, Segmentation, VnetHeader, checksum};

/// Most segments that one frame is cut into here. A driver's largest makes 64 KiB of at least 64 bytes each.
const MAX_SEGMENTS: usize = 1024;
/// Most bytes of headers: HDRLEN has eight bits.
pub const MAX_HEADER_BYTES: usize = 255;

/// From the start of an IPv4 header.
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_PROTOCOL: usize = 9;
const IPV4_CHECKSUM: usize = 10;
/// From the start of an IPv6 header.
const IPV6_LENGTH: usize = 4;
const IPV6_HEADER_BYTES: usize = 40;
/// From the start of a TCP header.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;
/// From the start of a UDP header.
const UDP_LENGTH: usize = 4;
const IP_PROTOCOL_TCP: u8 = 6;

/// Why a frame cannot be segmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadSegmentation {
    /// HDRLEN is more than the frame, or 0.
    #[error("a header of {header_bytes} bytes in a frame of {frame_bytes}")]
    Header {
        /// HDRLEN.
        header_bytes: usize,
        /// Length of the frame.
        frame_bytes: usize,
    },
    /// MSS is 0.
    #[error("segments of no bytes")]
    NoSegmentSize,
    /// More than any driver wants.
    #[error("more than {MAX_SEGMENTS} segments")]
    TooMany,
    /// A checksum or header offset is outside the headers.
    #[error("an offset beyond the header of {0} bytes")]
    Offset(usize),
}

/// What a checksum covers, and where it goes: offsets in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// First byte.
    pub start: usize,
    /// Where the checksum is put.
    pub field: usize,
    /// Last byte; the end of the frame if 0.
    pub end: usize,
}

impl Sum {
    /// Computes the checksum and puts it in its place; nothing happens when that is outside the frame.
    pub fn insert(&self, frame: &mut [u8]) {
        let end = match self.end {
            0 => frame.len(),
            last => frame.len().min(last + 1),
        };
        let sum = frame
            .get(self.start..end)
            .map(|data| checksum::add(0, data));
        if let Some(sum) = sum {
            put_u16(frame, self.field, !sum);
        }
    }

    /// The same, left to the backend if it can be.
    pub fn leave_or_insert(&self, frame: &mut [u8]) -> Option<PartialChecksum> {
        let fits = self.end == 0 && self.start < self.field && self.field + 2 <= frame.len();
        if fits
            && let (Ok(start), Ok(offset)) = (
                u16::try_from(self.start),
                u16::try_from(self.field - self.start),
            )
        {
            return Some(PartialChecksum { start, offset });
        }
        self.insert(frame);
        None
    }
}

/// A context descriptor (manual, 3.3.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// IPCSS, IPCSO, IPCSE.
    pub ip: Sum,
    /// TUCSS, TUCSO, TUCSE.
    pub transport: Sum,
    /// TUCMD: TCP rather than UDP.
    pub tcp: bool,
    /// TUCMD: IPv4 rather than IPv6.
    pub ipv4: bool,
    /// HDRLEN.
    pub header_bytes: usize,
    /// MSS.
    pub segment_bytes: usize,
}

impl Context {
    /// Decodes a context descriptor.
    pub fn decode(descriptor: &[u8; 16]) -> Self {
        let sum = |at: usize| Sum {
            start: usize::from(descriptor[at]),
            field: usize::from(descriptor[at + 1]),
            end: usize::from(u16::from_le_bytes([descriptor[at + 2], descriptor[at + 3]])),
        };
        let command = descriptor[11];
        Self {
            ip: sum(0),
            transport: sum(4),
            tcp: command & 1 != 0,
            ipv4: command & 2 != 0,
            header_bytes: usize::from(descriptor[13]),
            segment_bytes: usize::from(u16::from_le_bytes([descriptor[14], descriptor[15]])),
        }
    }

    /// How many segments a frame of `frame_bytes` makes.
    ///
    /// # Errors
    /// [`BadSegmentation`].
    pub fn segments(&self, frame_bytes: usize) -> Result<usize, BadSegmentation> {
        if self.header_bytes == 0 || self.header_bytes > frame_bytes {
            return Err(BadSegmentation::Header {
                header_bytes: self.header_bytes,
                frame_bytes,
            });
        }
        if self.segment_bytes == 0 {
            return Err(BadSegmentation::NoSegmentSize);
        }
        let header = self.header_bytes;
        let (ip_field, transport_field) = if self.tcp {
            (IPV6_LENGTH + 2, TCP_FLAGS + 1)
        } else {
            (IPV6_LENGTH + 2, UDP_LENGTH + 2)
        };
        let offsets = [
            self.ip.start + ip_field,
            self.transport.start + transport_field,
            self.transport.field + 2,
        ];
        if offsets.iter().any(|end| *end > header) {
            return Err(BadSegmentation::Offset(header));
        }
        let payload = frame_bytes - header;
        match payload.div_ceil(self.segment_bytes).max(1) {
            count if count > MAX_SEGMENTS => Err(BadSegmentation::TooMany),
            count => Ok(count),
        }
    }

    /// Prepares a whole frame for segmentation by the backend, if its header can say what is wanted.
    pub fn leave_segmentation(
        &self,
        frame: &mut [u8],
        insert_ip: bool,
        insert_transport: bool,
    ) -> Option<VnetHeader> {
        let (ip, tcp, len) = (self.ip.start, self.transport.start, frame.len());
        let version = if self.ipv4 { 4 } else { 6 };
        let tcp_header = usize::from(frame.get(tcp + 12)? >> 4) * 4;
        let ordinary = self.tcp
            && insert_transport
            && self.transport.end == 0
            && self.transport.field == tcp + TCP_CHECKSUM
            && tcp_header >= 20
            && self.header_bytes == tcp + tcp_header
            && frame.get(ip)? >> 4 == version
            && len - self.header_bytes > self.segment_bytes;
        if !ordinary {
            return None;
        }
        let ip_bytes = u16::try_from(len - ip).ok()?;
        if self.ipv4 {
            let whole_ip = insert_ip
                && self.ip.field == ip + IPV4_CHECKSUM
                && self.ip.end + 1 == tcp
                && *frame.get(ip + IPV4_PROTOCOL)? == IP_PROTOCOL_TCP;
            whole_ip.then_some(())?;
            put_u16(frame, ip + IPV4_LENGTH, ip_bytes);
            self.ip.insert(frame);
        } else {
            let payload = (len - ip).checked_sub(IPV6_HEADER_BYTES)?;
            (tcp >= ip + IPV6_HEADER_BYTES).then_some(())?;
            put_u16(frame, ip + IPV6_LENGTH, u16::try_from(payload).ok()?);
        }
        self.add_length(frame, len);
        Some(VnetHeader {
            checksum: Some(PartialChecksum {
                start: u16::try_from(tcp).ok()?,
                offset: u16::try_from(TCP_CHECKSUM).ok()?,
            }),
            checksum_valid: false,
            segmentation: Some(Segmentation {
                ipv6: !self.ipv4,
                ecn: frame.get(tcp + TCP_FLAGS)? & TCP_CWR != 0,
                header_bytes: u16::try_from(self.header_bytes).ok()?,
                segment_bytes: u16::try_from(self.segment_bytes).ok()?,
            }),
        })
    }

    /// Writes the headers of segment `index` of the frame into `header`, which holds those of the whole frame, for a
    /// segment of `frame_bytes` in all.
    pub fn patch_header(&self, header: &mut [u8], index: usize, last: bool, frame_bytes: usize) {
        let (ip, transport) = (self.ip.start, self.transport.start);
        let word = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        // Whoever is here passed `segments`, so that no more than 1,024 comes.
        let index_word = word(index);
        let ip_bytes = frame_bytes.saturating_sub(ip);
        if self.ipv4 {
            put_u16(header, ip + IPV4_LENGTH, word(ip_bytes));
            let id = get_u16(header, ip + IPV4_ID).wrapping_add(index_word);
            put_u16(header, ip + IPV4_ID, id);
        } else {
            let payload = ip_bytes.saturating_sub(IPV6_HEADER_BYTES);
            put_u16(header, ip + IPV6_LENGTH, word(payload));
        }
        if self.tcp {
            let at = transport + TCP_SEQUENCE;
            if let Some(bytes) = header.get_mut(at..at + 4) {
                let mut sequence = [0; 4];
                sequence.copy_from_slice(bytes);
                // Modulo 2^32, as sequence numbers are.
                let step = u32::from(index_word).wrapping_mul(u32::from(word(self.segment_bytes)));
                let sequence = u32::from_be_bytes(sequence).wrapping_add(step);
                bytes.copy_from_slice(&sequence.to_be_bytes());
            }
            if !last && let Some(flags) = header.get_mut(transport + TCP_FLAGS) {
                *flags &= !TCP_FIN_PSH;
            }
        } else {
            let bytes = word(frame_bytes.saturating_sub(transport));
            put_u16(header, transport + UDP_LENGTH, bytes);
        }
        self.add_length(header, frame_bytes);
    }

    /// The driver leaves the length out of the pseudo-header's sum, since each segment has its own.
    fn add_length(&self, header: &mut [u8], frame_bytes: usize) {
        let bytes = frame_bytes.saturating_sub(self.transport.start);
        let sum = get_u16(header, self.transport.field);
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        put_u16(header, self.transport.field, checksum::add_word(sum, bytes));
    }
}

fn get_u16(data: &[u8], at: usize) -> u16 {
    match data.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

fn put_u16(data: &mut [u8], at: usize, value: u16) {
    if let Some(bytes) = data.get_mut(at..at + 2) {
        bytes.copy_from_slice(&value.to_be_bytes());
    }
}
