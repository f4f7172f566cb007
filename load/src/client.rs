//! The load's side of the control connection to its peer.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use tripath_load::peer::{Count, Flow, PeerAnswer, PeerRequest};

use crate::error::{LoadError, io};
use crate::lines::{Lines, send};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How long the way to the peer may take to be there: a link that has just come up, an address to be found.
const WAY: Duration = Duration::from_secs(10);

/// How long one call on a data socket may block: the time is looked at in between.
pub const CALL: Duration = Duration::from_millis(100);

/// How much longer than it is told a peer sends by itself.
pub const OVERTIME: Duration = Duration::from_secs(10);

/// Before it is asked again whether all has arrived.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// A control connection.
pub struct Peer {
    lines: Lines<TcpStream>,
    writer: TcpStream,
    /// This end.
    pub local: IpAddr,
}

impl Peer {
    /// Connects to the peer's control address, once there is a way.
    pub fn connect(peer: SocketAddr) -> Result<Self, LoadError> {
        let name = format!("the peer at {peer}");
        let stream = connect(peer)?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(ANSWER)))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER)))
            .map_err(io("set up the connection to", &name))?;
        let local = stream.local_addr().map_err(io("connect to", &name))?.ip();
        let writer = stream.try_clone().map_err(io("connect to", &name))?;
        Ok(Self {
            lines: Lines::new(stream),
            writer,
            local,
        })
    }

    fn ask(&mut self, request: PeerRequest) -> Result<PeerAnswer, LoadError> {
        send(&self.writer, &request).map_err(io("talk to", "the peer"))?;
        match self.lines.next().map_err(io("listen to", "the peer"))? {
            Some(Ok(PeerAnswer::Failed { error })) => Err(LoadError::Peer(error)),
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(LoadError::Peer(error.to_string())),
            None => Err(LoadError::Peer("it has hung up".to_owned())),
        }
    }

    /// The port for data.
    pub fn open(&mut self, flow: Flow) -> Result<u16, LoadError> {
        match self.ask(PeerRequest::Open { flow })? {
            PeerAnswer::Opened { port } => Ok(port),
            other => Err(unexpected(&other)),
        }
    }

    /// Counts are 0 from here, and a source sends.
    pub fn start(&mut self, at_most: Duration) -> Result<(), LoadError> {
        let at_most_ms = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
        match self.ask(PeerRequest::Start { at_most_ms })? {
            PeerAnswer::Started => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a source's sending; what it has sent.
    pub fn stop(&mut self) -> Result<Count, LoadError> {
        self.counted(PeerRequest::Stop)
    }

    fn counted(&mut self, request: PeerRequest) -> Result<Count, LoadError> {
        match self.ask(request)? {
            PeerAnswer::Counted { count } => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    /// What has arrived, when all of it has, or nothing more comes for `patience`.
    pub fn arrived(
        &mut self,
        patience: Duration,
        is_all: impl Fn(&Count) -> bool,
    ) -> Result<Count, LoadError> {
        let mut count = self.counted(PeerRequest::Count)?;
        let mut changed = Instant::now();
        let mut pause = FIRST_PAUSE;
        while !is_all(&count) && changed.elapsed() < patience {
            std::thread::sleep(pause);
            // Asking costs what is being measured.
            pause = pause.saturating_mul(2).min(patience / 4);
            let now = self.counted(PeerRequest::Count)?;
            if now != count {
                changed = Instant::now();
                pause = FIRST_PAUSE;
            }
            count = now;
        }
        Ok(count)
    }
}

fn unexpected(answer: &PeerAnswer) -> LoadError {
    LoadError::Peer(format!("an answer that does not fit: {answer:?}"))
}

/// Connects, once there is a way.
pub fn connect(address: SocketAddr) -> Result<TcpStream, LoadError> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, WAY) {
            Err(error) if is_no_way(error.kind()) && start.elapsed() < WAY => {
                // These come at once, too.
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result.map_err(io("connect to", address.to_string())),
        }
    }
}

fn is_no_way(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown
    )
}

/// A socket for datagrams at `local`, with room for many and calls that end after [`CALL`].
pub fn udp_socket(local: IpAddr) -> std::io::Result<UdpSocket> {
    const ROOM: usize = 4 << 20;
    let socket = UdpSocket::bind((local, 0))?;
    socket.set_read_timeout(Some(CALL))?;
    socket.set_write_timeout(Some(CALL))?;
    // Without the right to that much, it is what there is.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, ROOM).is_err() {
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, ROOM)?;
    }
    Ok(socket)
}

/// Whether a call on a data socket may be repeated: it took too long, or a datagram before met nobody, or had no room.
pub fn is_passing(error: &std::io::Error) -> bool {
    let no_room = rustix::io::Errno::NOBUFS.raw_os_error();
    matches!(
        error.kind(),
        ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::Interrupted
            | ErrorKind::ConnectionRefused
    ) || error.raw_os_error() == Some(no_room)
}
