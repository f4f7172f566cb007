//! The peer: the other end of the network for loads, each with a control connection and a data thread of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use tripath_load::peer::{Count, Flow, PeerAnswer, PeerRequest};
use tripath_load::spec::STREAM_OPERATION_BYTES;

use crate::client::{CALL, is_passing, udp_socket};
use crate::error::{LoadError, io as failed};
use crate::lines::{Lines, send};
use crate::loads::{nanoseconds, random_bytes};
use crate::mmsg::Batch;

/// The largest datagram, with a byte to spare.
const DATAGRAM_BYTES: usize = 65536;

/// For how long a stream for data may be missing, and a source may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until standard input ends, or the process is ended.
pub fn run(address: &str) -> Result<(), LoadError> {
    let address: SocketAddr = address.parse().map_err(|_| {
        LoadError::Usage(format!(
            "{address:?} is no address with a port, as in 192.168.77.1:0"
        ))
    })?;
    let cannot = |error| failed("listen at", address.to_string())(error);
    let listener = TcpListener::bind(address).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    let said = send(io::stdout(), &PeerAnswer::Listening { address });
    said.map_err(failed("write to", "standard output"))?;
    let serve = move || {
        for stream in listener.incoming().flatten() {
            // Whoever asked sees that the connection is closed.
            let _ = thread::Builder::new().spawn(move || connection(stream));
        }
    };
    let spawned = thread::Builder::new().spawn(serve);
    spawned.map_err(failed("start", "a thread"))?;
    // Whoever has started this holds the other end, and is gone when it is.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    Ok(())
}

/// Talks on one control connection.
fn connection(stream: TcpStream) {
    let meter = Arc::new(Meter::new());
    if let Err(error) = converse(&stream, &meter) {
        let _ = send(
            &stream,
            &PeerAnswer::Failed {
                error: error.to_string(),
            },
        );
    }
    // A source that rests waits with this lock.
    let _resting = meter.lock();
    meter.is_over.store(true, Ordering::Relaxed);
    meter.changed.notify_all();
}

fn converse(stream: &TcpStream, meter: &Arc<Meter>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // A guest may vanish without a word.
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    let (local, remote) = (stream.local_addr()?.ip(), stream.peer_addr()?.ip());
    let mut lines = Lines::new(stream);
    let mut is_open = false;
    while let Some(request) = lines.next()? {
        let answer = match request? {
            PeerRequest::Open { flow } if !is_open => {
                is_open = true;
                let port = open(flow, local, remote, meter)?;
                PeerAnswer::Opened { port }
            }
            PeerRequest::Open { .. } => {
                return Err(io::Error::other("there is a flow on this connection"));
            }
            PeerRequest::Start { at_most_ms } => {
                meter.start(Duration::from_millis(at_most_ms));
                PeerAnswer::Started
            }
            PeerRequest::Stop => {
                meter.stop()?;
                let count = meter.count();
                PeerAnswer::Counted { count }
            }
            PeerRequest::Count => {
                let count = meter.count();
                PeerAnswer::Counted { count }
            }
        };
        send(stream, &answer)?;
    }
    Ok(())
}

/// Starts the data thread; the port of its end.
fn open(flow: Flow, local: IpAddr, remote: IpAddr, meter: &Arc<Meter>) -> io::Result<u16> {
    let meter = Arc::clone(meter);
    let udp = |port: u16| -> io::Result<(UdpSocket, u16)> {
        let socket = udp_socket(local)?;
        socket.connect((remote, port))?;
        let port = socket.local_addr()?.port();
        Ok((socket, port))
    };
    let tcp = || -> io::Result<(TcpListener, u16)> {
        let listener = TcpListener::bind((local, 0))?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    };
    let (work, port): (Box<dyn FnOnce() -> io::Result<()> + Send>, u16) = match flow {
        Flow::UdpEcho { port } => {
            let (socket, port) = udp(port)?;
            (Box::new(move || udp_echo(&socket, &meter)), port)
        }
        Flow::UdpSink { port } => {
            let (socket, port) = udp(port)?;
            (Box::new(move || udp_sink(&socket, &meter)), port)
        }
        Flow::UdpSource { port, size_bytes } => {
            let size = size_bytes as usize;
            if size >= DATAGRAM_BYTES {
                return Err(io::Error::other("such datagrams are too large"));
            }
            let (socket, port) = udp(port)?;
            (Box::new(move || udp_source(&socket, size, &meter)), port)
        }
        Flow::TcpSink => {
            let (listener, port) = tcp()?;
            (Box::new(move || tcp_sink(&listener, &meter)), port)
        }
        Flow::TcpSource => {
            let (listener, port) = tcp()?;
            (Box::new(move || tcp_source(&listener, &meter)), port)
        }
    };
    // What fails there is seen by the load: nothing arrives.
    thread::Builder::new().spawn(work)?;
    Ok(port)
}

/// What the control thread and the data thread of a connection share.
struct Meter {
    epoch: Instant,
    /// All in nanoseconds since the epoch.
    started_ns: AtomicU64,
    last_ns: AtomicU64,
    datagrams: AtomicU64,
    bytes: AtomicU64,
    /// The control connection has ended.
    is_over: AtomicBool,
    /// What a source is to do.
    is_sending: AtomicBool,
    /// Until when a source sends; none while it rests.
    until: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Meter {
    fn new() -> Self {
        Self {
            epoch: Instant::now(),
            started_ns: AtomicU64::new(0),
            last_ns: AtomicU64::new(0),
            datagrams: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            is_sending: AtomicBool::new(false),
            until: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, at_most: Duration) {
        let mut until = self.lock();
        self.datagrams.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        let now = self.now_ns();
        self.started_ns.store(now, Ordering::Relaxed);
        self.last_ns.store(now, Ordering::Relaxed);
        // A day is enough for everything.
        *until = Some(Instant::now() + at_most.min(Duration::from_secs(86400)));
        self.is_sending.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Waits until the data thread, if it is a source, rests.
    fn stop(&self) -> io::Result<()> {
        self.is_sending.store(false, Ordering::Relaxed);
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, |until| until.is_some())
            .unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() {
            return Err(io::Error::new(ErrorKind::TimedOut, "it does not stop"));
        }
        Ok(())
    }

    fn add(&self, datagrams: u64, bytes: u64) {
        self.datagrams.fetch_add(datagrams, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    fn count(&self) -> Count {
        let last = self.last_ns.load(Ordering::Relaxed);
        let started = self.started_ns.load(Ordering::Relaxed);
        Count {
            datagrams: self.datagrams.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            until_last_ns: last.saturating_sub(started),
        }
    }

    /// Does `once`, a call that ends soon, whenever and as long as it is to be sent.
    fn source(&self, mut once: impl FnMut() -> io::Result<(u64, u64)>) -> io::Result<()> {
        loop {
            let waited = self
                .changed
                .wait_while(self.lock(), |until| until.is_none() && !self.is_over());
            let until = *waited.unwrap_or_else(PoisonError::into_inner);
            let Some(until) = until.filter(|_| !self.is_over()) else {
                return Ok(());
            };
            while self.is_sending.load(Ordering::Relaxed)
                && !self.is_over()
                && Instant::now() < until
            {
                match once() {
                    Ok((datagrams, bytes)) => self.add(datagrams, bytes),
                    Err(error) if is_passing(&error) => {}
                    Err(error) => {
                        *self.lock() = None;
                        self.changed.notify_all();
                        return Err(error);
                    }
                }
            }
            *self.lock() = None;
            self.changed.notify_all();
        }
    }

    /// Counts what `once`, a call that ends soon, has received; to the end of the connection or of a stream.
    fn sink(&self, mut once: impl FnMut() -> io::Result<(u64, u64)>) -> io::Result<()> {
        while !self.is_over() {
            match once() {
                Ok((0, 0)) => break,
                Ok((datagrams, bytes)) => self.add(datagrams, bytes),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// How long a source may wait for room in its stream: who asks it to stop does not read then, and the time counts.
const SOURCE_CALL: Duration = Duration::from_millis(2);

fn udp_echo(socket: &UdpSocket, meter: &Meter) -> io::Result<()> {
    let mut datagram = vec![0; DATAGRAM_BYTES];
    meter.sink(|| {
        let size = socket.recv(&mut datagram)?;
        socket.send(&datagram[..size])?;
        Ok((1, size as u64))
    })
}

fn udp_sink(socket: &UdpSocket, meter: &Meter) -> io::Result<()> {
    let mut batch = Batch::to_receive(DATAGRAM_BYTES);
    meter.sink(|| batch.receive(socket))
}

fn udp_source(socket: &UdpSocket, size: usize, meter: &Meter) -> io::Result<()> {
    let mut batch = Batch::to_send(random_bytes(4, size));
    meter.source(|| {
        let count = batch.send(socket)?;
        Ok((count as u64, (count * size) as u64))
    })
}

fn tcp_sink(listener: &TcpListener, meter: &Meter) -> io::Result<()> {
    let mut stream = accept(listener)?;
    let mut buffer = vec![0; STREAM_OPERATION_BYTES];
    meter.sink(|| Ok((0, stream.read(&mut buffer)? as u64)))
}

fn tcp_source(listener: &TcpListener, meter: &Meter) -> io::Result<()> {
    let mut stream = accept(listener)?;
    stream.set_write_timeout(Some(SOURCE_CALL))?;
    let content = random_bytes(5, STREAM_OPERATION_BYTES);
    meter.source(|| Ok((0, stream.write(&content)? as u64)))
}

/// The one stream of a connection.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let patience = PATIENCE.try_into().map_err(io::Error::other)?;
    if poll(&mut fds, Some(&patience))? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    let stream = listener.accept()?.0;
    stream.set_read_timeout(Some(CALL))?;
    stream.set_write_timeout(Some(CALL))?;
    Ok(stream)
}
