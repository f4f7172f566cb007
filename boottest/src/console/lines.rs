//! A console's bytes as lines of clean text.

use vte::{Parser, Perform};

/// A line that never ends is cut after so many characters.
pub const LINE_LIMIT_CHARS: usize = 8 << 10;
/// A control sequence that never ends is given up after so many bytes.
const SEQUENCE_LIMIT_BYTES: usize = 4 << 10;

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The line so far; more may follow.
    Growing(&'a str),
    /// The line is complete, or was cut at [`LINE_LIMIT_CHARS`].
    Complete(&'a str),
}

/// Makes lines of bytes, however they are cut into pieces.
///
/// The text has no control characters but tabs: terminal control sequences are removed (ECMA-48, by the `vte` crate), and
/// what is not UTF-8 becomes U+FFFD. A line ends with LF, CR or CR LF, and whatever sequence was open ends with it, so
/// that no sequence hides what the kernel says. Memory is bounded whatever comes.
pub struct LineReader {
    parser: Parser,
    line: Line,
    /// The parser is in its first state: plain text need not pass through it.
    idle: bool,
    /// Bytes the parser has had since it was in its first state.
    parsed_bytes: usize,
    /// Characters of the line that were told as growing.
    told_chars: usize,
}

impl Default for LineReader {
    fn default() -> Self {
        Self {
            parser: Parser::new(),
            line: Line::default(),
            idle: true,
            parsed_bytes: 0,
            told_chars: 0,
        }
    }
}

/// The line at work. What the parser finds in it is put here.
#[derive(Default)]
struct Line {
    text: String,
    chars: usize,
    /// CR has ended a line: LF that follows belongs to it.
    after_cr: bool,
    /// The parser came upon LF.
    broken: bool,
    returned: bool,
}

impl Line {
    fn push(&mut self, character: char) {
        self.text.push(character);
        self.chars += 1;
        self.after_cr = false;
    }
}

impl Perform for Line {
    fn print(&mut self, character: char) {
        // C1 controls (ECMA-48, 5.3) come as UTF-8 here, and are DEL's like. U+FFFE and U+FFFF are not for XML.
        match character {
            '\u{7f}'..='\u{9f}' => {}
            '\u{fffe}' | '\u{ffff}' => self.push(char::REPLACEMENT_CHARACTER),
            _ => self.push(character),
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\t' => self.push('\t'),
            b'\n' => self.broken = true,
            b'\r' => self.returned = true,
            _ => {}
        }
    }
}

impl LineReader {
    /// Takes `bytes` and tells `sink` of each line that they complete, and last of the one that they leave unfinished if
    /// it has grown.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(Piece<'_>)) {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let plain = if self.idle {
                let room = LINE_LIMIT_CHARS - self.line.chars;
                let is_plain = |byte: &u8| matches!(byte, b' '..=b'~');
                rest.iter()
                    .take(room)
                    .take_while(|byte| is_plain(byte))
                    .count()
            } else {
                0
            };
            if plain > 0 {
                for &byte in &rest[..plain] {
                    self.line.push(char::from(byte));
                }
                rest = &rest[plain..];
            } else {
                self.feed_byte(byte, sink);
                rest = &rest[1..];
            }
            if self.line.chars >= LINE_LIMIT_CHARS {
                self.complete(sink);
            }
        }
        if self.line.chars > self.told_chars {
            self.told_chars = self.line.chars;
            sink(Piece::Growing(&self.line.text));
        }
    }

    /// The stream is over: what is unfinished is a line.
    pub fn finish(&mut self, sink: &mut dyn FnMut(Piece<'_>)) {
        if self.line.chars > 0 {
            self.complete(sink);
        }
    }

    fn feed_byte(&mut self, byte: u8, sink: &mut dyn FnMut(Piece<'_>)) {
        match byte {
            b'\n' => {
                // For the parser to give up a character that is not complete.
                self.parse(byte);
                self.reset_parser();
                self.line.broken = false;
                if !std::mem::take(&mut self.line.after_cr) {
                    self.complete(sink);
                }
            }
            b'\r' if self.idle => self.carriage_return(sink),
            _ => {
                self.parse(byte);
                if std::mem::take(&mut self.line.returned) {
                    self.carriage_return(sink);
                }
                self.line.broken = false;
                if self.parsed_bytes >= SEQUENCE_LIMIT_BYTES {
                    self.reset_parser();
                }
            }
        }
    }

    /// An empty line is left for LF to end.
    fn carriage_return(&mut self, sink: &mut dyn FnMut(Piece<'_>)) {
        if self.line.chars > 0 {
            self.complete(sink);
            self.line.after_cr = true;
        }
    }

    fn parse(&mut self, byte: u8) {
        if self.idle && matches!(byte, b'\n' | b'\t') {
            self.line.execute(byte);
            return;
        }
        self.idle = false;
        self.parsed_bytes += 1;
        // One by one: how the stream is cut cannot matter then.
        self.parser.advance(&mut self.line, &[byte]);
    }

    fn reset_parser(&mut self) {
        if !self.idle {
            self.parser = Parser::new();
            self.idle = true;
            self.parsed_bytes = 0;
        }
    }

    fn complete(&mut self, sink: &mut dyn FnMut(Piece<'_>)) {
        sink(Piece::Complete(&self.line.text));
        self.line.text.clear();
        self.line.chars = 0;
        self.told_chars = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut reader = LineReader::default();
        let mut lines = Vec::new();
        let mut sink = |piece: Piece<'_>| {
            if let Piece::Complete(line) = piece {
                lines.push(line.to_owned());
            }
        };
        for piece in pieces {
            reader.feed(piece, &mut sink);
        }
        reader.finish(&mut sink);
        lines
    }

    const STREAM: &[u8] = b"plain\r\n\r\ntab\there\n\x1b[1;31mred\x1b[0m \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\r\n\
        bad \xff\xc3\x28 \xe2\x82\n50%\r100%\r\r\n\x1b]0;title\x07after\x1b]0;open\nnext\x1b[2\rmore\x00\x08\n\
        \x1bPdcs\nC1 \xc2\x9b31m \xef\xbf\xbf\nlast\x1b[K";

    #[test]
    fn text_is_what_a_terminal_would_show() {
        assert_eq!(
            lines([STREAM]),
            [
                "plain",
                "",
                "tab\there",
                "red é€😀",
                "bad \u{fffd}\u{fffd}( \u{fffd}",
                "50%",
                "100%",
                "after",
                "next",
                "ore",
                "",
                "C1 31m \u{fffd}",
                "last"
            ]
        );
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_lines() {
        let whole = lines([STREAM]);
        for first in 0..=STREAM.len() {
            for second in first..=STREAM.len() {
                let cut = [&STREAM[..first], &STREAM[first..second], &STREAM[second..]];
                assert_eq!(lines(cut), whole, "cut at {first} and {second}");
            }
        }
        assert_eq!(lines(STREAM.chunks(1)), whole);
    }

    #[test]
    fn a_line_is_told_while_it_grows() {
        let mut reader = LineReader::default();
        let mut told = Vec::new();
        for piece in [&b"log"[..], b"in: ", b"\x1b[0m", b"\xe2", b"\x82\xac"] {
            reader.feed(piece, &mut |piece| told.push(format!("{piece:?}")));
        }
        assert_eq!(
            told,
            [
                "Growing(\"log\")",
                "Growing(\"login: \")",
                "Growing(\"login: €\")"
            ]
        );
    }

    #[test]
    fn what_never_ends_takes_no_memory() {
        let mut reader = LineReader::default();
        let mut longest = 0;
        let mut sink = |piece: Piece<'_>| {
            if let Piece::Complete(line) = piece {
                longest = longest.max(line.len());
            }
        };
        for byte in [&b"x"[..], b"\xff", b"\x1b]x"] {
            for _ in 0..50_000 {
                reader.feed(byte, &mut sink);
            }
            assert!(reader.line.text.capacity() <= 64 << 10);
        }
        assert!(longest > 0 && longest <= 4 * LINE_LIMIT_CHARS, "{longest}");
    }

    #[test]
    fn a_kernels_words_are_not_hidden_by_a_sequence_that_stays_open() {
        for opening in ["\x1b]0;", "\x1bP", "\x1b_", "\x1b[12"] {
            let stream = format!("{opening}lost\nKernel panic\n");
            assert_eq!(lines([stream.as_bytes()])[1], "Kernel panic", "{opening:?}");
        }
    }
}
