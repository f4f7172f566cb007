//! Datagrams.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tripath_load::latency::new_histogram;
use tripath_load::peer::Flow;

use super::{Outcome, Work, nanoseconds, random_bytes};
use crate::client::{OVERTIME, Peer, is_passing, udp_socket};
use crate::error::{LoadError, io};
use crate::mmsg::Batch;

/// The largest payload of a datagram in IPv4.
const MAX_BYTES: u32 = 65507;

/// A datagram that has not come back after that time is lost.
const RESEND: Duration = Duration::from_millis(200);

/// For how long nothing must have arrived until nothing more does.
const QUIET: Duration = Duration::from_millis(200);

/// For the first datagram of a source to come.
const FIRST: Duration = Duration::from_secs(5);

/// A data socket that is connected, and its control connection.
struct Link {
    socket: UdpSocket,
    peer: Peer,
    size: usize,
}

impl Link {
    fn open(peer: SocketAddr, size: u32, flow: fn(u16, u32) -> Flow) -> Result<Self, LoadError> {
        if size == 0 || size > MAX_BYTES {
            return Err(LoadError::Spec(format!(
                "datagrams of {size} bytes; 1 to {MAX_BYTES} are possible"
            )));
        }
        let failed = |error| io("open", "a socket")(error);
        let mut control = Peer::connect(peer)?;
        let socket = udp_socket(control.local).map_err(failed)?;
        let port = socket.local_addr().map_err(failed)?.port();
        let port = control.open(flow(port, size))?;
        socket.connect((peer.ip(), port)).map_err(failed)?;
        Ok(Self {
            socket,
            peer: control,
            size: size as usize,
        })
    }
}

/// There and back, one at a time.
pub struct RoundTrip {
    link: Link,
    datagram: Vec<u8>,
    number: u64,
}

impl RoundTrip {
    /// Opens a [`tripath_load::spec::Load::UdpRoundTrip`].
    pub fn open(peer: SocketAddr, size: u32) -> Result<Self, LoadError> {
        let link = Link::open(peer, size, |port, _| Flow::UdpEcho { port })?;
        link.socket
            .set_read_timeout(Some(RESEND))
            .map_err(io("set up", "a socket"))?;
        let datagram = random_bytes(1, link.size);
        Ok(Self {
            link,
            datagram,
            number: 0,
        })
    }

    /// Sends the next one. Whether it came back.
    fn once(&mut self, reply: &mut [u8]) -> Result<bool, LoadError> {
        // What comes back late is told from what comes back now, by its number or what there is room for of it.
        self.number += 1;
        let number = self.number.to_le_bytes();
        let len = number.len().min(self.datagram.len());
        self.datagram[..len].copy_from_slice(&number[..len]);
        let socket = &self.link.socket;
        match socket.send(&self.datagram) {
            Ok(_) => {}
            Err(error) if is_passing(&error) => return Ok(false),
            Err(error) => return Err(io("send", "a datagram")(error)),
        }
        let sent = Instant::now();
        loop {
            match socket.recv(reply) {
                Ok(size) if reply[..size] == self.datagram[..] => return Ok(true),
                Ok(_) if sent.elapsed() < RESEND => {}
                Ok(_) => return Ok(false),
                Err(error) if is_passing(&error) => return Ok(false),
                Err(error) => return Err(io("receive", "a datagram")(error)),
            }
        }
    }
}

impl Work for RoundTrip {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        let mut latency = new_histogram()?;
        let mut outcome = Outcome::default();
        let mut reply = vec![0; self.link.size + 1];
        let start = Instant::now();
        let mut now = start;
        while now.duration_since(start) < time {
            let is_back = self.once(&mut reply)?;
            let then = Instant::now();
            if is_back {
                outcome.operations += 1;
                latency.saturating_record(nanoseconds(then - now));
            } else {
                outcome.lost += 1;
            }
            now = then;
        }
        if outcome.operations == 0 {
            return Err(LoadError::NothingArrived(now - start));
        }
        outcome.bytes = outcome.operations * self.link.size as u64;
        outcome.elapsed = now - start;
        outcome.latency = Some(latency);
        Ok(outcome)
    }
}

/// As many as go, counted where they arrive.
pub struct Sender {
    link: Link,
    batch: Batch,
}

impl Sender {
    /// Opens a [`tripath_load::spec::Load::UdpSend`].
    pub fn open(peer: SocketAddr, size: u32) -> Result<Self, LoadError> {
        let link = Link::open(peer, size, |port, _| Flow::UdpSink { port })?;
        let batch = Batch::to_send(random_bytes(2, link.size));
        Ok(Self { link, batch })
    }
}

impl Work for Sender {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        self.link.peer.start(time + OVERTIME)?;
        let mut sent = 0_u64;
        let start = Instant::now();
        while start.elapsed() < time {
            match self.batch.send(&self.link.socket) {
                Ok(count) => sent += count as u64,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(io("send", "datagrams")(error)),
            }
        }
        let elapsed = start.elapsed();
        let count = self
            .link
            .peer
            .arrived(QUIET, |count| count.datagrams >= sent)?;
        if count.datagrams == 0 {
            return Err(LoadError::NothingArrived(elapsed));
        }
        Ok(Outcome {
            operations: count.datagrams,
            bytes: count.bytes,
            lost: sent.saturating_sub(count.datagrams),
            // With what was still under way at the end.
            elapsed: elapsed.max(Duration::from_nanos(count.until_last_ns)),
            latency: None,
        })
    }
}

/// As many as come.
pub struct Receiver {
    link: Link,
    batch: Batch,
}

impl Receiver {
    /// Opens a [`tripath_load::spec::Load::UdpReceive`].
    pub fn open(peer: SocketAddr, size: u32) -> Result<Self, LoadError> {
        let link = Link::open(peer, size, |port, size_bytes| Flow::UdpSource {
            port,
            size_bytes,
        })?;
        let batch = Batch::to_receive(link.size);
        Ok(Self { link, batch })
    }

    /// None if nothing has come in the time of one call.
    fn receive(&mut self) -> Result<Option<(u64, u64)>, LoadError> {
        match self.batch.receive(&self.link.socket) {
            Ok(received) => Ok(Some(received)),
            Err(error) if is_passing(&error) => Ok(None),
            Err(error) => Err(io("receive", "datagrams")(error)),
        }
    }
}

impl Work for Receiver {
    fn run(&mut self, time: Duration) -> Result<Outcome, LoadError> {
        self.link.peer.start(time + OVERTIME)?;
        let asked = Instant::now();
        // The time begins with the first that come.
        let first = loop {
            match self.receive()? {
                Some((count, _)) => break count,
                None if asked.elapsed() > FIRST => {
                    return Err(LoadError::NothingArrived(asked.elapsed()));
                }
                None => {}
            }
        };
        let mut outcome = Outcome::default();
        let start = Instant::now();
        while start.elapsed() < time {
            if let Some((count, bytes)) = self.receive()? {
                outcome.operations += count;
                outcome.bytes += bytes;
            }
        }
        outcome.elapsed = start.elapsed();
        let sent = self.link.peer.stop()?.datagrams;
        // With what was still under way at the end: it costs something, too.
        while first + outcome.operations < sent
            && let Some((count, bytes)) = self.receive()?
        {
            outcome.operations += count;
            outcome.bytes += bytes;
            outcome.elapsed = start.elapsed();
        }
        outcome.lost = sent.saturating_sub(first + outcome.operations);
        Ok(outcome)
    }
}
