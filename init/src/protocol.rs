//! The messages that the init sends to the host, over a virtio console in raw mode.
//!
//! A frame is [`MARK`], the message's kind, the payload's length as a 16-bit little-endian number, and the payload.
//! The mark occurs in no UTF-8 text, so that a kernel's log on the wrong console is noticed with its first byte.

use thiserror::Error;

/// The first byte of each frame.
pub const MARK: u8 = 0xf5;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 4;
/// Most bytes of payload in a frame.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 10;

const STARTED: u8 = 1;
const STDOUT: u8 = 2;
const STDERR: u8 = 3;
const EXITED: u8 = 4;
const SIGNALLED: u8 = 5;
const REFUSED: u8 = 6;

/// Where the command wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// What the init says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The command runs from now on.
    Started,
    /// The command wrote this: at least one byte.
    Output {
        /// Where to.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
    },
    /// The command ended by itself.
    Exited {
        /// Its exit code.
        code: u8,
    },
    /// A signal ended the command.
    Signalled {
        /// The signal's number.
        signal: u8,
    },
    /// The command could not be run, for this reason.
    Refused(String),
}

/// Bytes that no init of ours sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the guest sent what is not a message of its init")]
pub struct Malformed;

impl Message {
    /// The frames that carry this message: one, or several if there is more output than fits into one. A reason that
    /// is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut frames = Vec::new();
        match self {
            Self::Started => push_frame(&mut frames, STARTED, &[]),
            Self::Output { stream, bytes } => push_output(&mut frames, *stream, bytes),
            Self::Exited { code } => push_frame(&mut frames, EXITED, &[*code]),
            Self::Signalled { signal } => push_frame(&mut frames, SIGNALLED, &[*signal]),
            Self::Refused(reason) => {
                let end = reason.len().min(MAX_PAYLOAD_BYTES);
                push_frame(&mut frames, REFUSED, &reason.as_bytes()[..end]);
            }
        }
        frames
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, Malformed> {
        let output = |stream| Self::Output {
            stream,
            bytes: payload.to_vec(),
        };
        match (kind, payload) {
            (STARTED, []) => Ok(Self::Started),
            (STDOUT, [_, ..]) => Ok(output(Stream::Stdout)),
            (STDERR, [_, ..]) => Ok(output(Stream::Stderr)),
            (EXITED, &[code]) => Ok(Self::Exited { code }),
            (SIGNALLED, &[signal]) => Ok(Self::Signalled { signal }),
            (REFUSED, reason) => Ok(Self::Refused(String::from_utf8_lossy(reason).into_owned())),
            _ => Err(Malformed),
        }
    }
}

/// Appends the frames for output of the command; none if there is none.
pub fn push_output(frames: &mut Vec<u8>, stream: Stream, bytes: &[u8]) {
    let kind = match stream {
        Stream::Stdout => STDOUT,
        Stream::Stderr => STDERR,
    };
    for payload in bytes.chunks(MAX_PAYLOAD_BYTES) {
        push_frame(frames, kind, payload);
    }
}

fn push_frame(frames: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    // Every caller keeps to MAX_PAYLOAD_BYTES.
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    frames.extend([MARK, kind]);
    frames.extend(len.to_le_bytes());
    frames.extend(&payload[..usize::from(len)]);
}

/// Takes frames out of a stream of bytes that may be cut anywhere. It holds at most one frame.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a frame.
    partial: Vec<u8>,
    malformed: bool,
}

impl Decoder {
    /// Hands the messages that `bytes` complete to `sink`, in order.
    ///
    /// # Errors
    /// [`Malformed`], now and from now on: after it there is no telling where a frame begins.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(Message),
    ) -> Result<(), Malformed> {
        while !bytes.is_empty() && !self.malformed {
            let missing = self.missing_bytes();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.partial.extend_from_slice(now);
            bytes = later;
            match self.step() {
                Ok(Some(message)) => sink(message),
                Ok(None) => {}
                Err(Malformed) => self.malformed = true,
            }
        }
        if self.malformed {
            return Err(Malformed);
        }
        Ok(())
    }

    /// How much the header or, after it, the frame still lacks: at least one byte.
    fn missing_bytes(&self) -> usize {
        let whole = self
            .payload_bytes()
            .map_or(HEADER_BYTES, |payload| HEADER_BYTES + payload);
        whole - self.partial.len()
    }

    /// The payload's length, once the header is there.
    fn payload_bytes(&self) -> Option<usize> {
        match self.partial[..] {
            [_, _, low, high, ..] => Some(usize::from(u16::from_le_bytes([low, high]))),
            _ => None,
        }
    }

    /// Checks what there is, and takes the frame if it is whole.
    fn step(&mut self) -> Result<Option<Message>, Malformed> {
        if self.partial.first().is_some_and(|&mark| mark != MARK) {
            return Err(Malformed);
        }
        let Some(payload_bytes) = self.payload_bytes() else {
            return Ok(None);
        };
        if payload_bytes > MAX_PAYLOAD_BYTES {
            return Err(Malformed);
        }
        if self.partial.len() < HEADER_BYTES + payload_bytes {
            return Ok(None);
        }
        let message = Message::decode(self.partial[1], &self.partial[HEADER_BYTES..])?;
        self.partial.clear();
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<Message> {
        let output = |stream, bytes: &[u8]| Message::Output {
            stream,
            bytes: bytes.to_vec(),
        };
        vec![
            Message::Started,
            output(Stream::Stdout, b"\x00\xf5\xff\r\n"),
            output(Stream::Stderr, &[MARK; 300]),
            Message::Exited { code: 7 },
            Message::Signalled { signal: 9 },
            Message::Refused("no \u{e9}tag\u{e8}re".to_owned()),
            Message::Refused(String::new()),
        ]
    }

    fn encode(messages: &[Message]) -> Vec<u8> {
        messages.iter().flat_map(Message::encode).collect()
    }

    fn decode(pieces: &[&[u8]]) -> Result<Vec<Message>, Malformed> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for piece in pieces {
            decoder.feed(piece, |message| messages.push(message))?;
        }
        Ok(messages)
    }

    #[test]
    fn messages_come_out_as_they_went_in_wherever_the_stream_is_cut() {
        let bytes = encode(&conversation());
        for cut in 0..=bytes.len() {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(decode(&[first, second]), Ok(conversation()), "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(&single), Ok(conversation()));
    }

    #[test]
    fn long_output_is_split_and_long_reasons_are_cut() {
        let bytes: Vec<u8> = (0..2 * MAX_PAYLOAD_BYTES + 1).map(|at| at as u8).collect();
        let stream = Stream::Stdout;
        let frames = Message::Output {
            stream,
            bytes: bytes.clone(),
        }
        .encode();
        let pieces = decode(&[&frames]).unwrap();
        assert_eq!(pieces.len(), 3);
        let joined: Vec<u8> = pieces
            .into_iter()
            .flat_map(|piece| match piece {
                Message::Output { bytes, .. } => bytes,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(joined == bytes);

        let reason = "\u{20ac}".repeat(MAX_PAYLOAD_BYTES);
        let decoded = decode(&[&Message::Refused(reason.clone()).encode()]).unwrap();
        let [Message::Refused(cut)] = &decoded[..] else {
            panic!("{decoded:?}")
        };
        let cut = cut.trim_end_matches(char::REPLACEMENT_CHARACTER);
        assert!(reason.starts_with(cut) && cut.len() > MAX_PAYLOAD_BYTES - 3);
    }

    #[test]
    fn garbage_is_malformed_at_its_first_byte_and_stays_so() {
        let too_long = u16::try_from(MAX_PAYLOAD_BYTES + 1).unwrap().to_le_bytes();
        for garbage in [
            &b"[    0.000000] Linux version"[..],
            &[0],
            &[MARK, 0, 0, 0],
            &[MARK, 7, 0, 0],
            &[MARK, STARTED, 1, 0, 0],
            &[MARK, STDOUT, 0, 0],
            &[MARK, EXITED, 2, 0, 1, 2],
            &[MARK, STDERR, too_long[0], too_long[1]],
        ] {
            let mut decoder = Decoder::default();
            let mut seen = 0;
            decoder
                .feed(&Message::Started.encode(), |_| seen += 1)
                .unwrap();
            assert_eq!(decoder.feed(garbage, |_| seen += 1), Err(Malformed));
            let again = decoder.feed(&Message::Started.encode(), |_| seen += 1);
            assert_eq!((again, seen), (Err(Malformed), 1), "{garbage:x?}");
        }
    }

    #[test]
    fn random_bytes_end_in_an_error_and_hold_little() {
        let mut state = 0x9e37_79b9_u32;
        for _ in 0..2000 {
            let mut decoder = Decoder::default();
            let mut bytes = Vec::new();
            for _ in 0..40 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Marks and small numbers often, so that frames do begin.
                bytes.push(match state >> 28 {
                    0..6 => MARK,
                    6..12 => (state >> 20) as u8 & 7,
                    _ => (state >> 12) as u8,
                });
            }
            let _ = decoder.feed(&bytes, |_| ());
            assert!(decoder.partial.len() <= HEADER_BYTES + MAX_PAYLOAD_BYTES);
        }
    }
}
