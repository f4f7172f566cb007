//! What a Linux kernel says of its end, found in the output of a console.
//!
//! The texts are those of `kernel/panic.c` and `kernel/reboot.c`, the same in Linux 6.1 and 6.12. They are printed at
//! level "emerg", and `panic()` raises the console's level first: `quiet` does not hide them.

use std::sync::Arc;

/// A message of the kernel that bears on whether it is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelMessage {
    /// `panic()` begins. With `panic=-1` this is its only message before it resets the machine.
    Panic,
    /// `panic()` is through and will spin for ever.
    PanicEnd,
    /// `panic()` is through and will spin for the seconds of `panic=N`, then reset the machine.
    PanicDelay,
    /// The kernel powers off, halts or restarts because it was asked to.
    Shutdown,
}

/// Hears of what a [`PanicWatch`] sees. The text is no proof: anybody in the guest who may write to the console can
/// write it.
///
/// Both are called under the lock of the device, on a vCPU thread (UART) or the event loop (virtio-console), perhaps
/// for every byte: they must be cheap, and must not call into the device.
pub trait PanicWitness: Send + Sync {
    /// There was output of any kind.
    fn printed(&self);

    /// A message of the kernel is complete up to where it varies. Called before [`PanicWitness::printed`] for the
    /// same output.
    fn said(&self, message: KernelMessage);
}

/// Searches an output for [`KernelMessage`]s, however it is cut into pieces.
pub struct PanicWatch {
    witness: Arc<dyn PanicWitness>,
    state: usize,
}

impl PanicWatch {
    /// Tells `witness`.
    #[must_use]
    pub fn new(witness: Arc<dyn PanicWitness>) -> Self {
        Self {
            witness,
            state: ROOT,
        }
    }

    /// The guest has sent `data`.
    pub fn saw(&mut self, data: &[u8]) {
        for &byte in data {
            self.state = step(self.state, byte);
            if let Some(message) = AUTOMATON[self.state].message {
                self.witness.said(message);
            }
        }
        self.witness.printed();
    }
}

/// Each message's constant part. No two begin with the same byte, and none contains another as a whole, which keeps
/// the automaton small. "---[ end Kernel panic" goes on with " - not syncing", so that the end of a panic reads as a
/// panic once more.
const TEXTS: [(&[u8], KernelMessage); 4] = [
    (b"Kernel panic - not syncing", KernelMessage::Panic),
    (b"---[ end Kernel panic", KernelMessage::PanicEnd),
    (b"Rebooting in ", KernelMessage::PanicDelay),
    (b"reboot: ", KernelMessage::Shutdown),
];

/// The state in which no text has begun.
const ROOT: usize = 0;
const STATES: usize = {
    let (mut count, mut text) = (1, 0);
    while text < TEXTS.len() {
        count += TEXTS[text].0.len();
        text += 1;
    }
    count
};

/// A state of the search (Aho and Corasick 1975): a text matched up to some byte.
#[derive(Clone, Copy)]
struct Node {
    /// The byte that leads to the state after this one.
    next: Option<u8>,
    /// Where to go on when another byte comes.
    fallback: usize,
    /// The text that is complete here.
    message: Option<KernelMessage>,
}

static AUTOMATON: [Node; STATES] = build();
/// The state after each first byte.
static FIRST: [usize; 256] = build_first();

fn step(mut state: usize, byte: u8) -> usize {
    while state != ROOT {
        let node = &AUTOMATON[state];
        if node.next == Some(byte) {
            return state + 1;
        }
        state = node.fallback;
    }
    FIRST[usize::from(byte)]
}

const fn build() -> [Node; STATES] {
    let root = Node {
        next: None,
        fallback: ROOT,
        message: None,
    };
    let mut nodes = [root; STATES];
    let (mut text, mut state) = (0, 1);
    while text < TEXTS.len() {
        let (bytes, message) = TEXTS[text];
        let mut matched = 1;
        while matched <= bytes.len() {
            let complete = matched == bytes.len();
            nodes[state] = Node {
                next: if complete { None } else { Some(bytes[matched]) },
                fallback: fallback(bytes, matched),
                message: if complete { Some(message) } else { None },
            };
            matched += 1;
            state += 1;
        }
        text += 1;
    }
    nodes
}

/// The state of the longest text that begins with an end of `bytes[1..matched]`.
const fn fallback(bytes: &[u8], matched: usize) -> usize {
    let mut start = 1;
    while start < matched {
        let (mut text, mut before) = (0, ROOT);
        while text < TEXTS.len() {
            let candidate = TEXTS[text].0;
            if begins_with(candidate, bytes, start, matched) {
                return before + matched - start;
            }
            before += candidate.len();
            text += 1;
        }
        start += 1;
    }
    ROOT
}

const fn begins_with(text: &[u8], bytes: &[u8], start: usize, end: usize) -> bool {
    if text.len() < end - start {
        return false;
    }
    let mut index = start;
    while index < end {
        if text[index - start] != bytes[index] {
            return false;
        }
        index += 1;
    }
    true
}

const fn build_first() -> [usize; 256] {
    let mut first = [ROOT; 256];
    let (mut text, mut state) = (0, 1);
    while text < TEXTS.len() {
        let byte = TEXTS[text].0[0] as usize;
        assert!(first[byte] == ROOT, "two texts begin alike");
        first[byte] = state;
        state += TEXTS[text].0.len();
        text += 1;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::lock;
    use KernelMessage::{Panic, PanicDelay, PanicEnd, Shutdown};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Recorder {
        said: Mutex<Vec<KernelMessage>>,
        printed: AtomicU32,
    }

    impl PanicWitness for Recorder {
        fn printed(&self) {
            self.printed.fetch_add(1, Ordering::Relaxed);
        }
        fn said(&self, message: KernelMessage) {
            lock(&self.said).push(message);
        }
    }

    fn messages<'a>(writes: impl IntoIterator<Item = &'a [u8]>) -> Vec<KernelMessage> {
        let recorder = Arc::new(Recorder::default());
        let mut watch = PanicWatch::new(recorder.clone());
        for data in writes {
            watch.saw(data);
        }
        std::mem::take(&mut *lock(&recorder.said))
    }

    const LOG: &[u8] = b"[    0.9] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n\
        [    0.9] Rebooting in 10 seconds..\r\n\
        [    0.9] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n\
        [    9.9] reboot: Restarting system\r\n";
    const LOG_SAYS: [KernelMessage; 5] = [Panic, PanicDelay, PanicEnd, Panic, Shutdown];

    #[test]
    fn messages_cut_at_every_position() {
        for cut in 0..=LOG.len() {
            assert_eq!(messages([&LOG[..cut], &LOG[cut..]]), LOG_SAYS, "{cut}");
        }
        assert_eq!(messages(LOG.chunks(1)), LOG_SAYS);
    }

    #[test]
    fn a_text_that_begins_anew_within_itself() {
        for (text, says) in [
            (&b"Kernel Kernel panic - not syncing"[..], Panic),
            (b"Kernel panic - not Kernel panic - not syncing", Panic),
            (b"----[ end Kernel panic", PanicEnd),
            (b"---[ end ---[ end Kernel panic", PanicEnd),
            (b"RebootRebooting in ", PanicDelay),
            (b"Rreboot: ", Shutdown),
            (b"rebooreboot: ", Shutdown),
        ] {
            assert_eq!(messages([text]), [says], "{}", text.escape_ascii());
        }
        assert!(messages([&b"Rebooting in"[..]]).is_empty());
    }

    #[test]
    fn agrees_with_a_plain_search() {
        // Pieces of the texts in pseudo-random order: nearly every fallback is taken.
        let mut seed = 1_u32;
        let mut random = |limit: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % limit
        };
        let mut data = Vec::new();
        for _ in 0..20_000 {
            let text = TEXTS[random(TEXTS.len())].0;
            let start = if random(2) == 0 {
                0
            } else {
                random(text.len())
            };
            let len = if random(2) == 0 {
                text.len() - start
            } else {
                random(text.len() - start + 1)
            };
            data.extend_from_slice(&text[start..start + len]);
        }
        let ends_with = |end: usize| TEXTS.iter().find(|(text, _)| data[..end].ends_with(text));
        let expected: Vec<_> = (0..=data.len())
            .filter_map(ends_with)
            .map(|(_, message)| *message)
            .collect();
        assert!(expected.len() > 1000);
        assert_eq!(messages([&data[..]]), expected);
    }

    #[test]
    fn output_is_counted_by_pieces() {
        let recorder = Arc::new(Recorder::default());
        let mut watch = PanicWatch::new(recorder.clone());
        LOG.chunks(1).for_each(|byte| watch.saw(byte));
        let pieces = u32::try_from(LOG.len()).unwrap();
        assert_eq!(recorder.printed.load(Ordering::Relaxed), pieces);
    }
}
