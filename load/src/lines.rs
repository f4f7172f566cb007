//! Lines of JSON, in and out.

use std::io::{self, BufRead, BufReader, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest line that is read, in bytes: none is nearly as long.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// What comes in.
pub struct Lines<R>(BufReader<R>);

impl<R: Read> Lines<R> {
    /// The lines of what `reader` reads.
    pub fn new(reader: R) -> Self {
        Self(BufReader::new(reader))
    }

    /// The next line, `None` at the end; empty lines are passed over. The inner error is one of the line's content,
    /// after which the next line may follow.
    pub fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<serde_json::Result<T>>> {
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut self.0).take(MAX_LINE_BYTES);
            if limited.read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            if !line.ends_with(b"\n") && limited.limit() == 0 {
                let text = "a line of more than a MiB";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(serde_json::from_slice(&line)));
            }
        }
    }
}

/// Writes one line.
pub fn send(mut writer: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tripath_load::spec::Request;

    #[test]
    fn one_bad_line_does_not_take_the_next_with_it() {
        let text = b"{\"request\":\"go\"}\n\nnonsense\n\xff\n{\"request\":\"quit\"}".as_slice();
        let mut lines = Lines::new(text);
        assert_eq!(
            lines.next::<Request>().unwrap().unwrap().unwrap(),
            Request::Go
        );
        assert!(lines.next::<Request>().unwrap().unwrap().is_err());
        assert!(lines.next::<Request>().unwrap().unwrap().is_err());
        assert_eq!(
            lines.next::<Request>().unwrap().unwrap().unwrap(),
            Request::Quit
        );
        assert!(lines.next::<Request>().unwrap().is_none());
    }

    #[test]
    fn a_line_without_end_is_an_error() {
        let mut lines = Lines::new(io::repeat(b'x'));
        assert!(lines.next::<Request>().is_err());
    }
}
