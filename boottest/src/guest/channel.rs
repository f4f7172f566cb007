//! The host's side of the channel: what the guest's init says.

use tripath_init::protocol::{Decoder, Message};

pub use tripath_init::protocol::Stream;

/// What happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelEvent {
    /// The command runs.
    Started,
    /// The command wrote this: at least one byte.
    Output {
        /// Where to.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
    },
    /// The command ended with that exit code.
    Exited {
        /// From 0 to 255.
        code: u8,
    },
    /// A signal ended the command.
    Signalled {
        /// Its number.
        signal: u8,
    },
    /// The init could not run the command, for that reason.
    Refused(String),
    /// What came is not of the init's making: something else in the guest writes to the channel.
    Malformed,
}

/// How far the conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Nothing was said.
    #[default]
    Silent,
    /// The command runs.
    Running,
    /// The last word has been said; what follows is ignored.
    Over,
}

/// Makes events out of the bytes that come from the guest, which are trusted in nothing: at most one frame is held,
/// events come in an order that makes sense, and nothing comes after the last one.
#[derive(Debug, Default)]
pub struct Channel {
    decoder: Decoder,
    state: State,
}

impl Channel {
    /// Takes what came, in pieces of any size. What it returns is no larger than `bytes` and a frame, but for a
    /// constant factor: pieces of one stream that follow one another are one event.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<ChannelEvent> {
        let mut events = Vec::new();
        if self.state == State::Over {
            return events;
        }
        let state = &mut self.state;
        let result = self
            .decoder
            .feed(bytes, |message| take(state, message, &mut events));
        if result.is_err() && self.state != State::Over {
            self.state = State::Over;
            events.push(ChannelEvent::Malformed);
        }
        events
    }
}

fn take(state: &mut State, message: Message, events: &mut Vec<ChannelEvent>) {
    let (event, next) = match (*state, message) {
        (State::Over, _) => return,
        (State::Silent, Message::Started) => (ChannelEvent::Started, State::Running),
        (State::Running, Message::Output { stream, bytes }) => {
            if let Some(ChannelEvent::Output {
                stream: last,
                bytes: collected,
            }) = events.last_mut()
                && *last == stream
            {
                collected.extend(bytes);
                return;
            }
            (ChannelEvent::Output { stream, bytes }, State::Running)
        }
        (State::Running, Message::Exited { code }) => (ChannelEvent::Exited { code }, State::Over),
        (State::Running, Message::Signalled { signal }) => {
            (ChannelEvent::Signalled { signal }, State::Over)
        }
        (_, Message::Refused(reason)) => (ChannelEvent::Refused(reason), State::Over),
        _ => (ChannelEvent::Malformed, State::Over),
    };
    *state = next;
    events.push(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(stream: Stream, text: &str) -> Message {
        Message::Output {
            stream,
            bytes: text.as_bytes().to_vec(),
        }
    }

    fn seen(text: &str) -> ChannelEvent {
        ChannelEvent::Output {
            stream: Stream::Stdout,
            bytes: text.as_bytes().to_vec(),
        }
    }

    fn feed(messages: &[Message]) -> Vec<ChannelEvent> {
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        Channel::default().feed(&bytes)
    }

    #[test]
    fn a_run_is_told_from_start_to_end() {
        let events = feed(&[
            Message::Started,
            output(Stream::Stdout, "a"),
            output(Stream::Stdout, "b"),
            output(Stream::Stderr, "c"),
            output(Stream::Stdout, "d"),
            Message::Exited { code: 7 },
        ]);
        let stderr = ChannelEvent::Output {
            stream: Stream::Stderr,
            bytes: b"c".to_vec(),
        };
        let exited = ChannelEvent::Exited { code: 7 };
        assert_eq!(
            events,
            [ChannelEvent::Started, seen("ab"), stderr, seen("d"), exited]
        );
    }

    #[test]
    fn nothing_comes_after_the_end() {
        for last in [
            Message::Exited { code: 0 },
            Message::Signalled { signal: 9 },
            Message::Refused("x".to_owned()),
        ] {
            let events = feed(&[
                Message::Started,
                last.clone(),
                output(Stream::Stdout, "late"),
                last,
            ]);
            assert_eq!(events.len(), 2, "{events:?}");
        }
        let mut channel = Channel::default();
        let mut bytes = Message::Refused("x".to_owned()).encode();
        bytes.extend(b"[   1.0] reboot: Power down\r\n");
        let refused = ChannelEvent::Refused("x".to_owned());
        assert_eq!(channel.feed(&bytes), [refused]);
        assert_eq!(channel.feed(b"garbage"), []);
    }

    #[test]
    fn what_makes_no_sense_is_malformed_once() {
        for messages in [
            vec![output(Stream::Stdout, "early")],
            vec![Message::Exited { code: 0 }],
            vec![Message::Signalled { signal: 1 }],
            vec![Message::Started, Message::Started],
        ] {
            let events = feed(&messages);
            assert_eq!(events.last(), Some(&ChannelEvent::Malformed));
        }
        let mut channel = Channel::default();
        assert_eq!(channel.feed(b"[    0.0] Linux"), [ChannelEvent::Malformed]);
        assert_eq!(channel.feed(&Message::Started.encode()), []);
    }
}
