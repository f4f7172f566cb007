//! The control socket of a run: lines of JSON, a [`Request`] each, each answered by one line, an [`Answer`].
//!
//! It is served on the event loop. A client that does not read holds up nobody: its answer waits, and nothing more is
//! read from it until it has taken that.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use devices::console::SocketFile;
use event_manager::{EventOps, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::EventSet;

use crate::stats::{Report, StatsHandle};

/// Clients at once.
const CLIENTS_MAX: usize = 8;

/// Bytes of a request, its end of line included.
const LINE_BYTES_MAX: usize = 4096;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// `stats`.
    pub command: String,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What the run has cost up to now.
    Stats(Report),
    /// Why there is no answer, in one line.
    Error(String),
}

/// The event-loop side of the control socket. Its file goes with it.
pub struct Control {
    listener: UnixListener,
    _file: SocketFile,
    stats: StatsHandle,
    clients: BTreeMap<RawFd, Client>,
}

impl Control {
    /// Serves clients of `listener`, which does not wait, with what `stats` counts.
    #[must_use]
    pub fn new(listener: UnixListener, file: SocketFile, stats: StatsHandle) -> Self {
        Self {
            listener,
            _file: file,
            stats,
            clients: BTreeMap::new(),
        }
    }

    /// Takes one client, in place of one that does not read if there are too many. The loop calls again while others
    /// wait.
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let mut stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_passing(&error) => return,
            Err(error) => {
                // It would be the same again at once, and for ever.
                log::warn!("the control socket takes no more clients: {error}");
                let _ = ops.remove(Events::empty(&self.listener));
                return;
            }
        };
        if let Err(error) = stream.set_nonblocking(true) {
            log::warn!("a client of the control socket is turned away: {error}");
            return;
        }
        if self.clients.len() >= CLIENTS_MAX {
            let stuck = self.clients.values().find(|client| client.is_stuck());
            match stuck.map(|client| client.stream.as_raw_fd()) {
                Some(fd) => self.drop_client(fd, ops),
                None => {
                    let text = format!("there are {CLIENTS_MAX} clients already");
                    // One that takes no line is turned away without.
                    let _ = stream.write_all(&line_of(&Answer::Error(text)));
                    return;
                }
            }
        }
        match ops.add(Events::new(&stream, EventSet::IN)) {
            Ok(()) => {
                self.clients.insert(stream.as_raw_fd(), Client::new(stream));
            }
            Err(error) => log::warn!("a client of the control socket cannot be watched: {error}"),
        }
    }

    /// Does for a client what can be done now.
    fn serve(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        let stats = &self.stats;
        let wants = match client.progress(|line| answer(line, stats)) {
            Ok(Some(wants)) => wants,
            Ok(None) => return self.drop_client(fd, ops),
            Err(error) => {
                log::debug!("a client of the control socket is gone: {error}");
                return self.drop_client(fd, ops);
            }
        };
        if let Err(error) = ops.modify(Events::new(&client.stream, wants)) {
            log::warn!("a client of the control socket cannot be watched: {error}");
            self.drop_client(fd, ops);
        }
    }

    fn drop_client(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        if let Some(client) = self.clients.remove(&fd) {
            // It is closed in any case.
            let _ = ops.remove(Events::empty(&client.stream));
        }
    }
}

impl MutEventSubscriber for Control {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.serve(events.fd(), ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            log::error!("the control socket cannot be watched: {error}");
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

/// The answer to one line.
fn answer(line: &[u8], stats: &StatsHandle) -> Answer {
    match serde_json::from_slice::<Request>(line) {
        Ok(request) if request.command == "stats" => Answer::Stats(stats.snapshot()),
        Ok(Request { command }) => {
            Answer::Error(format!("unknown command {command:?} (there is stats)"))
        }
        Err(error) => Answer::Error(format!(
            "not a request such as {{\"command\":\"stats\"}}: {error}"
        )),
    }
}

fn line_of(answer: &Answer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_else(|error| {
        log::error!("an answer of the control socket cannot be written: {error}");
        br#"{"error":"a bug in tripath"}"#.to_vec()
    });
    line.push(b'\n');
    line
}

/// One client.
struct Client {
    stream: UnixStream,
    /// What it has sent and not been answered; at most [`LINE_BYTES_MAX`].
    input: Vec<u8>,
    /// What it has yet to take: one answer at most.
    output: Vec<u8>,
    /// It sends nothing more, or nothing more of it is wanted.
    ended: bool,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            ended: false,
        }
    }

    /// It does not read.
    fn is_stuck(&self) -> bool {
        !self.output.is_empty()
    }

    /// Writes, reads and answers once, and says what to wait for; none if it is done with.
    fn progress(&mut self, answer: impl Fn(&[u8]) -> Answer) -> io::Result<Option<EventSet>> {
        self.write()?;
        if self.output.is_empty() {
            if !self.ended && self.line_end().is_none() {
                self.read()?;
            }
            if let Some(end) = self.line_end() {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                self.output = line_of(&answer(&line));
            } else if self.input.len() >= LINE_BYTES_MAX {
                let text = format!("a request has at most {LINE_BYTES_MAX} bytes");
                self.output = line_of(&Answer::Error(text));
                self.input.clear();
                self.ended = true;
            }
            self.write()?;
        }
        // More lines are answered when others have had their turn.
        Ok(if self.is_stuck() || self.line_end().is_some() {
            Some(EventSet::OUT)
        } else {
            (!self.ended).then_some(EventSet::IN)
        })
    }

    fn line_end(&self) -> Option<usize> {
        self.input.iter().position(|byte| *byte == b'\n')
    }

    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; LINE_BYTES_MAX];
        let room = LINE_BYTES_MAX - self.input.len();
        match self.stream.read(&mut bytes[..room]) {
            Ok(0) => self.ended = true,
            Ok(len) => self.input.extend(&bytes[..len]),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.output.drain(..written);
        if self.output.is_empty() {
            // An answer may have been long.
            self.output = Vec::new();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;
    use devices::console::{SocketAccess, listen_unix};
    use devices::testing::FakePosted;
    use std::io::{BufRead, BufReader};
    use std::net::Shutdown;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;
    use tempfile::TempDir;

    struct Fixture {
        dir: TempDir,
        events: EventLoop,
        stats: StatsHandle,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let stats = StatsHandle::default();
            let (listener, file) = listen_unix(&dir.path().join("c"), SocketAccess::Owner).unwrap();
            let mut events = EventLoop::new(Arc::new(FakePosted::default()), None).unwrap();
            let control = Control::new(listener, file, stats.clone());
            events.add("control", Box::new(control));
            Self { dir, events, stats }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("c")
        }

        /// Serves what there is.
        fn serve(&mut self) {
            while self.events.run_for(Duration::ZERO).unwrap() > 0 {}
        }

        fn connect(&mut self) -> UnixStream {
            let client = UnixStream::connect(self.path()).unwrap();
            self.serve();
            client
        }

        fn ask(&mut self, client: &mut UnixStream, line: &str) -> Answer {
            client.write_all(line.as_bytes()).unwrap();
            self.serve();
            read(client)
        }
    }

    fn read(client: &UnixStream) -> Answer {
        client.set_nonblocking(true).unwrap();
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        client.set_nonblocking(false).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn error_of(answer: Answer) -> String {
        match answer {
            Answer::Error(text) => text,
            other => panic!("{other:?}"),
        }
    }

    const STATS: &str = "{\"command\":\"stats\"}\n";

    #[test]
    fn each_request_has_its_answer() {
        let mut f = Fixture::new();
        let mut client = f.connect();
        assert_eq!(f.ask(&mut client, STATS), Answer::Stats(Report::default()));
        let recorder = f.stats.recorder();
        let mut source = recorder.source("blk0", "queue 0");
        recorder.event(&mut source, recorder.now());
        let Answer::Stats(report) = f.ask(&mut client, STATS) else {
            panic!("no stats")
        };
        assert_eq!(report, f.stats.snapshot());
        assert_eq!(report.devices[0].writes, 1);
        assert_eq!(
            error_of(f.ask(&mut client, "{\"command\":\"dance\"}\n")),
            "unknown command \"dance\" (there is stats)"
        );
        let text = error_of(f.ask(&mut client, "dance\n"));
        assert!(text.starts_with("not a request"), "{text}");
        assert!(matches!(f.ask(&mut client, STATS), Answer::Stats(_)));
    }

    #[test]
    fn requests_come_in_pieces_and_several_at_once() {
        let mut f = Fixture::new();
        let mut client = f.connect();
        client.write_all(b"{\"command\":").unwrap();
        f.serve();
        client
            .write_all(b"\"stats\"}\n{\"command\":\"a\"}\n{\"command\":\"b\"}\n")
            .unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        f.serve();
        let lines: Vec<String> = BufReader::new(client).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("{\"stats\":") && lines[2].contains("\\\"b\\\""));
    }

    #[test]
    fn a_line_that_is_too_long_ends_the_client() {
        let mut f = Fixture::new();
        let mut client = f.connect();
        let text = error_of(f.ask(&mut client, &"x".repeat(LINE_BYTES_MAX)));
        assert_eq!(text, "a request has at most 4096 bytes");
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_client_that_does_not_read_is_not_waited_for_and_makes_way() {
        let mut f = Fixture::new();
        let recorder = f.stats.recorder();
        for source in 0..256 {
            let mut source = recorder.source("blk0", &format!("queue {source}"));
            recorder.event(&mut source, recorder.now());
        }
        let answer_bytes = line_of(&Answer::Stats(f.stats.snapshot())).len();
        let mut greedy = f.connect();
        greedy.set_nonblocking(true).unwrap();
        let mut sent = 0;
        // Until its requests are not read any more.
        loop {
            match greedy.write(STATS.as_bytes()) {
                Ok(len) => sent += len,
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            f.serve();
            assert!(sent < 64 << 20, "it is answered for ever");
        }
        let mut others: Vec<_> = (1..CLIENTS_MAX).map(|_| f.connect()).collect();
        for other in &mut others {
            assert!(matches!(f.ask(other, STATS), Answer::Stats(_)));
        }
        let mut last = f.connect();
        assert!(matches!(f.ask(&mut last, STATS), Answer::Stats(_)));
        let mut taken = Vec::new();
        greedy.set_nonblocking(false).unwrap();
        // It was cut off, with its requests unread.
        let end = greedy.read_to_end(&mut taken);
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
        assert!(taken.len() > answer_bytes);
        let one_more = f.connect();
        assert_eq!(error_of(read(&one_more)), "there are 8 clients already");
        assert!(matches!(f.ask(&mut last, STATS), Answer::Stats(_)));
        drop(others);
        f.serve();
        let mut client = f.connect();
        assert!(matches!(f.ask(&mut client, STATS), Answer::Stats(_)));
    }

    #[test]
    fn a_slow_client_gets_all_of_its_answers() {
        let mut f = Fixture::new();
        let recorder = f.stats.recorder();
        for source in 0..200 {
            let mut source = recorder.source("blk0", &format!("queue {source}"));
            recorder.event(&mut source, recorder.now());
        }
        let mut client = f.connect();
        const ASKED: usize = 60;
        for _ in 0..ASKED {
            client.write_all(STATS.as_bytes()).unwrap();
        }
        client.shutdown(Shutdown::Write).unwrap();
        f.serve();
        client.set_nonblocking(true).unwrap();
        let mut taken = Vec::new();
        let mut bytes = vec![0; 65536];
        loop {
            match client.read(&mut bytes) {
                Ok(0) => break,
                Ok(len) => taken.extend(&bytes[..len]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            f.serve();
        }
        let lines = taken.split_inclusive(|byte| *byte == b'\n');
        let answers: Vec<Answer> = lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(answers.len(), ASKED);
        assert!(
            answers
                .iter()
                .all(|one| *one == Answer::Stats(f.stats.snapshot()))
        );
    }

    #[test]
    fn the_file_goes_with_the_loop() {
        let f = Fixture::new();
        let path = f.path();
        assert!(path.exists());
        let Fixture {
            dir: _dir, events, ..
        } = f;
        drop(events);
        assert!(!path.exists());
    }
}
