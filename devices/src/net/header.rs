//! The header before each frame (virtio 1.3, 5.1.6), for devices that write and read it themselves.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::{VNET_HEADER_BYTES, checksum};

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM.to_le_bytes()[0];
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID.to_le_bytes()[0];
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4.to_le_bytes()[0];
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6.to_le_bytes()[0];
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN.to_le_bytes()[0];

/// A checksum that is left to whoever needs it: the sum from `start` to the end of the frame goes to `offset` behind
/// `start`, where the sum of the pseudo-header is already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Offset in the frame, in bytes.
    pub start: u16,
    /// Offset from `start`, in bytes.
    pub offset: u16,
}

impl PartialChecksum {
    /// Computes it and fills it in; false if it would lie outside the frame.
    #[must_use]
    pub fn complete(self, frame: &mut [u8]) -> bool {
        let start = usize::from(self.start);
        let field = start + usize::from(self.offset);
        let sum = frame.get(start..).map(|data| !checksum::add(0, data));
        let (Some(sum), Some(room)) = (sum, frame.get_mut(field..field + 2)) else {
            return false;
        };
        // To UDP, zero says that there is no checksum; the other zero of ones' complement means the same sum.
        let sum = if sum == 0 { u16::MAX } else { sum };
        room.copy_from_slice(&sum.to_be_bytes());
        true
    }
}

/// A frame that is to be cut into TCP segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
    /// The first segment alone carries CWR.
    pub ecn: bool,
    /// Length of all headers, in bytes.
    pub header_bytes: u16,
    /// Payload of a segment, in bytes.
    pub segment_bytes: u16,
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// The checksum that is still to be filled in.
    pub checksum: Option<PartialChecksum>,
    /// The checksum was checked and is right.
    pub checksum_valid: bool,
    /// To be segmented; only sent, never received, unless asked for with the offloads.
    pub segmentation: Option<Segmentation>,
}

impl VnetHeader {
    /// As it stands before the frame.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_HEADER_BYTES] {
        let mut bytes = [0; VNET_HEADER_BYTES];
        if self.checksum_valid {
            bytes[0] |= DATA_VALID;
        }
        if let Some(gso) = self.segmentation {
            let kind = if gso.ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
            bytes[1] = kind | if gso.ecn { GSO_ECN } else { 0 };
            bytes[2..4].copy_from_slice(&gso.header_bytes.to_le_bytes());
            bytes[4..6].copy_from_slice(&gso.segment_bytes.to_le_bytes());
        }
        if let Some(checksum) = self.checksum {
            bytes[0] |= NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&checksum.start.to_le_bytes());
            bytes[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
        }
        bytes
    }

    /// The checksums of a received frame; segmentation is not looked at.
    #[must_use]
    pub fn checksums_of(bytes: &[u8; VNET_HEADER_BYTES]) -> Self {
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: u16::from_le_bytes([bytes[6], bytes[7]]),
            offset: u16::from_le_bytes([bytes[8], bytes[9]]),
        });
        Self {
            checksum,
            checksum_valid: bytes[0] & DATA_VALID != 0,
            segmentation: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_survive_the_way_through_the_header() {
        for header in [
            VnetHeader::default(),
            VnetHeader {
                checksum: Some(PartialChecksum {
                    start: 0x1234,
                    offset: 16,
                }),
                ..VnetHeader::default()
            },
            VnetHeader {
                checksum_valid: true,
                ..VnetHeader::default()
            },
        ] {
            assert_eq!(VnetHeader::checksums_of(&header.to_bytes()), header);
        }
    }

    fn partial(start: u16, offset: u16) -> PartialChecksum {
        PartialChecksum { start, offset }
    }

    #[test]
    fn a_completed_checksum_checks() {
        for len in 20..24 {
            let mut frame: Vec<u8> = (0..len).map(|i: u8| i.wrapping_mul(37)).collect();
            let pseudo_header = [frame[10], frame[11]];
            assert!(partial(4, 6).complete(&mut frame));
            // With what the field held before, the sum is all ones.
            let sum = checksum::add(checksum::add(0, &pseudo_header), &frame[4..]);
            assert_eq!(sum, 0xffff, "{len}");
        }
    }

    #[test]
    fn the_sum_is_never_written_as_zero() {
        let mut frame = [0xff, 0xff, 0, 0];
        assert!(partial(0, 2).complete(&mut frame));
        assert_eq!(frame, [0xff; 4]);
    }

    #[test]
    fn a_field_outside_the_frame_is_refused() {
        let mut frame = [0; 20];
        for (start, offset, fits) in [
            (0, 18, true),
            (0, 19, false),
            (18, 0, true),
            (19, 0, false),
            (20, 0, false),
            (u16::MAX, u16::MAX, false),
        ] {
            let complete = partial(start, offset).complete(&mut frame);
            assert_eq!(complete, fits, "{start} {offset}");
        }
    }

    #[test]
    fn layout() {
        let header = VnetHeader {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 16,
            }),
            checksum_valid: false,
            segmentation: Some(Segmentation {
                ipv6: true,
                ecn: true,
                header_bytes: 0x102,
                segment_bytes: 0x304,
            }),
        };
        assert_eq!(header.to_bytes(), [1, 0x84, 2, 1, 4, 3, 34, 0, 16, 0, 0, 0]);
    }
}
