//! Streams.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tripath_load::peer::Flow;
use tripath_load::spec::STREAM_OPERATION_BYTES;

use super::{Outcome, Work, random_bytes};
use crate::client::{CALL, OVERTIME, Peer, connect, is_passing};
use crate::error::{LoadError, io};

/// For how long a stream may stand still while there is something to come.
const STILL: Duration = Duration::from_secs(10);

/// A stream for data, and its control connection.
struct Link {
    stream: TcpStream,
    peer: Peer,
}

impl Link {
    fn open(peer: SocketAddr, flow: Flow) -> Result<Self, LoadError> {
        let mut control = Peer::connect(peer)?;
        let port = control.open(flow)?;
        let stream = connect(SocketAddr::new(peer.ip(), port))?;
        stream
            .set_read_timeout(Some(CALL))
            .and_then(|()| stream.set_write_timeout(Some(CALL)))
            .map_err(io("set up", "a socket"))?;
        Ok(Self {
            stream,
            peer: control,
        })
    }
}

fn outcome(bytes: u64, elapsed: Duration) -> Result<Outcome, LoadError> {
    if bytes == 0 {
        return Err(LoadError::NothingArrived(elapsed));
    }
    Ok(Outcome {
        operations: bytes.div_ceil(STREAM_OPERATION_BYTES as u64),
        bytes,
        elapsed,
        ..Outcome::default()
    })
}

/// As much as goes, counted where it arrives.
pub struct Sender(Link);

impl Sender {
    /// Opens a [`tripath_load::spec::Load::TcpSend`].
    pub fn open(peer: SocketAddr) -> Result<Self, LoadError> {
        Ok(Self(Link::open(peer, Flow::TcpSink)?))
    }
}

impl Work for Sender {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        let content = random_bytes(3, STREAM_OPERATION_BYTES);
        self.0.peer.start(time + OVERTIME)?;
        let mut sent = 0;
        let start = Instant::now();
        while start.elapsed() < time {
            match self.0.stream.write(&content) {
                Ok(count) => sent += count as u64,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(io("write to", "a stream")(error)),
            }
        }
        let elapsed = start.elapsed();
        let count = self.0.peer.arrived(STILL, |count| count.bytes >= sent)?;
        // With what was still under way at the end.
        let until_last = Duration::from_nanos(count.until_last_ns);
        outcome(count.bytes, elapsed.max(until_last))
    }
}

/// As much as comes.
pub struct Receiver {
    link: Link,
    buffer: Vec<u8>,
}

impl Receiver {
    /// Opens a [`tripath_load::spec::Load::TcpReceive`].
    pub fn open(peer: SocketAddr) -> Result<Self, LoadError> {
        Ok(Self {
            link: Link::open(peer, Flow::TcpSource)?,
            buffer: vec![0; STREAM_OPERATION_BYTES],
        })
    }

    /// 0 if nothing has come in the time of one call.
    fn read(&mut self) -> Result<u64, LoadError> {
        match self.link.stream.read(&mut self.buffer) {
            Ok(0) => Err(LoadError::Peer("its stream has ended".to_owned())),
            Ok(count) => Ok(count as u64),
            Err(error) if is_passing(&error) => Ok(0),
            Err(error) => Err(io("read from", "a stream")(error)),
        }
    }

    /// As [`read`](Self::read), but waits for some.
    fn read_some(&mut self) -> Result<u64, LoadError> {
        let asked = Instant::now();
        loop {
            match self.read()? {
                0 if asked.elapsed() > STILL => return Err(LoadError::NothingArrived(STILL)),
                0 => {}
                count => return Ok(count),
            }
        }
    }
}

impl Work for Receiver {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        self.link.peer.start(time + OVERTIME)?;
        // The time begins with the first that comes.
        let first = self.read_some()?;
        let mut bytes = 0;
        let start = Instant::now();
        while start.elapsed() < time {
            bytes += self.read()?;
        }
        let mut elapsed = start.elapsed();
        let sent = self.link.peer.stop()?.bytes;
        // With what was still under way at the end: it costs something, too, and is nothing for the next run.
        while first + bytes < sent {
            bytes += self.read_some()?;
            elapsed = start.elapsed();
        }
        outcome(bytes, elapsed)
    }
}
