//! Each load, done by the program as the benchmark has it done: with lines on its standard input and output.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use rustix::pty::OpenptFlags;
use tripath_load::peer::PeerAnswer;
use tripath_load::spec::{
    Answer, BlockOperation, Load, LoadResult, LoadSpec, Pattern, Request, STREAM_OPERATION_BYTES,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tripath-load");

/// The program, as either of its two.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn agent(options: &[&str]) -> Self {
        let mut agent = Self::start(&[&["agent"], options].concat());
        let hello = agent.answer();
        assert!(matches!(hello, Answer::Hello { .. }), "{hello:?}");
        agent
    }

    fn serve() -> (Self, SocketAddr) {
        let mut server = Self::start(&["serve", "127.0.0.1:0"]);
        let answer = serde_json::from_str(&server.line()).unwrap();
        let PeerAnswer::Listening { address } = answer else {
            panic!("{answer:?}");
        };
        (server, address)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn answer(&mut self) -> Answer {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn ask(&mut self, request: &Request) -> Answer {
        let line = serde_json::to_string(request).unwrap();
        writeln!(self.stdin.as_ref().unwrap(), "{line}").unwrap();
        self.answer()
    }

    fn prepare(&mut self, load: &Load) -> Answer {
        let spec = LoadSpec {
            load: load.clone(),
            warm_up_ms: 20,
            time_ms: 100,
            seed: 7,
        };
        self.ask(&Request::Prepare { spec })
    }

    fn measure(&mut self, load: &Load) -> LoadResult {
        assert_eq!(self.prepare(load), Answer::Ready, "{load:?}");
        self.go()
    }

    /// Measures what was prepared.
    fn go(&mut self) -> LoadResult {
        let over = self.ask(&Request::Go);
        assert_eq!(over, Answer::Over { interrupts: None });
        match self.answer() {
            Answer::Done { result } => result,
            other => panic!("{other:?}"),
        }
    }

    /// The failure of a load.
    fn fail(&mut self, load: &Load) -> String {
        let answer = match self.prepare(load) {
            Answer::Ready => self.ask(&Request::Go),
            answer => answer,
        };
        match answer {
            Answer::Failed { error } => error,
            other => panic!("{load:?}: {other:?}"),
        }
    }

    /// Its standard input ends; its exit code.
    fn end(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const FILE_BYTES: usize = 4 << 20;

/// A file with `FILE_BYTES` zeros. In the target folder: not every `/tmp` knows `O_DIRECT`.
fn file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(&vec![0; FILE_BYTES]).unwrap();
    file.as_file().sync_all().unwrap();
    file
}

fn block(path: &Path, operation: BlockOperation, pattern: Pattern, size: u32, depth: u32) -> Load {
    Load::Block {
        path: path.to_owned(),
        operation,
        pattern,
        size_bytes: size,
        depth,
        span_bytes: FILE_BYTES as u64 / 2,
        direct: true,
    }
}

fn check(result: &LoadResult, size: u64) {
    assert!(result.operations > 0, "{result:?}");
    assert_eq!(result.bytes, result.operations * size);
    assert!(result.elapsed_ns >= 100_000_000, "{result:?}");
    assert!(result.cpu.user_ns + result.cpu.kernel_ns > 0, "{result:?}");
    if let Some(latency) = &result.latency {
        assert_eq!(latency.histogram().unwrap().len(), result.operations);
        assert!(latency.p50_ns > 0 && latency.p50_ns <= latency.max_ns);
    }
}

/// Every load on a disk.
fn blocks(agent: &mut Program) {
    use BlockOperation::{Flush, Read, Write};
    use Pattern::{Random, Sequential};
    let file = file();
    for (operation, pattern, size, depth) in [
        (Read, Random, 4096, 1),
        (Read, Random, 512, 32),
        (Read, Sequential, 131_072, 4),
        (Write, Random, 4096, 32),
        (Write, Sequential, 131_072, 1),
        (Flush, Random, 4096, 1),
    ] {
        let result = agent.measure(&block(file.path(), operation, pattern, size, depth));
        check(&result, size.into());
        assert!(result.latency.is_some());
    }
}

/// Every load on a network, with that peer.
fn networks(agent: &mut Program, peer: SocketAddr) {
    for size_bytes in [1, 64, 1472] {
        let result = agent.measure(&Load::UdpRoundTrip { peer, size_bytes });
        check(&result, size_bytes.into());
        assert_eq!(result.latency.as_ref().unwrap().p50_ns.min(1), 1);
    }
    for size_bytes in [64, 1472] {
        for load in [
            Load::UdpSend { peer, size_bytes },
            Load::UdpReceive { peer, size_bytes },
        ] {
            let result = agent.measure(&load);
            check(&result, size_bytes.into());
            assert_eq!(result.latency, None);
        }
    }
    for load in [Load::TcpSend { peer }, Load::TcpReceive { peer }] {
        let result = agent.measure(&load);
        let operations = result.bytes.div_ceil(STREAM_OPERATION_BYTES as u64);
        assert_eq!(result.operations, operations);
        assert!(result.bytes > 0 && result.elapsed_ns >= 100_000_000);
    }
}

/// A terminal, and how much has come out of its other end when `work` is over.
fn pty<T>(work: impl FnOnce(PathBuf) -> T) -> (T, u64) {
    let main = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&main).unwrap();
    rustix::pty::unlockpt(&main).unwrap();
    let name = rustix::pty::ptsname(&main, Vec::new()).unwrap();
    let path = PathBuf::from(name.to_str().unwrap());
    // As long as it is open here, the other end does not see an end.
    let held = File::options().read(true).write(true).open(&path).unwrap();
    let mut main = File::from(main);
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut count = 0;
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = main.read(&mut buffer) {
                count += read as u64;
            }
            count
        });
        let result = work(path);
        drop(held);
        (result, reader.join().unwrap())
    })
}

#[test]
fn disks() {
    blocks(&mut Program::agent(&[]));
}

#[test]
fn networks_with_a_peer() {
    let (server, peer) = Program::serve();
    networks(&mut Program::agent(&[]), peer);
    assert_eq!(server.end(), Some(0));
}

#[test]
fn a_console_gets_every_byte_that_is_counted() {
    let (result, came_out) = pty(|path| {
        let mut agent = Program::agent(&[]);
        let spec = LoadSpec {
            load: Load::Console { path },
            warm_up_ms: 0,
            time_ms: 100,
            seed: 0,
        };
        assert_eq!(agent.ask(&Request::Prepare { spec }), Answer::Ready);
        agent.go()
    });
    check(&result, 64);
    assert_eq!(came_out, result.bytes);
}

#[test]
fn the_agent_talks_on_a_terminal_in_raw_mode() {
    let main = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&main).unwrap();
    rustix::pty::unlockpt(&main).unwrap();
    let name = rustix::pty::ptsname(&main, Vec::new()).unwrap();
    let mut agent = Program::start(&["agent", "--terminal", name.to_str().unwrap()]);
    let main = File::from(main);
    let mut lines = BufReader::new(&main).lines();
    let mut answer =
        || -> Answer { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert!(matches!(answer(), Answer::Hello { .. }));
    // Were there an echo, it would be the next line.
    let tell = |request: &Request| {
        writeln!(&main, "{}", serde_json::to_string(request).unwrap()).unwrap();
    };
    tell(&Request::Go);
    assert!(matches!(answer(), Answer::Failed { .. }));
    // As the guest's only program it counts interrupts.
    let file = file();
    let load = block(file.path(), BlockOperation::Read, Pattern::Random, 512, 1);
    let spec = LoadSpec {
        load,
        warm_up_ms: 0,
        time_ms: 100,
        seed: 0,
    };
    tell(&Request::Prepare { spec });
    assert_eq!(answer(), Answer::Ready);
    tell(&Request::Go);
    let over = answer();
    assert!(
        matches!(over, Answer::Over { interrupts: Some(count) } if count > 0),
        "{over:?}"
    );
    assert!(matches!(answer(), Answer::Done { .. }));
    tell(&Request::Quit);
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
}

#[test]
fn writes_are_within_the_span_and_all_different() {
    let file = file();
    let mut agent = Program::agent(&[]);
    let load = block(
        file.path(),
        BlockOperation::Write,
        Pattern::Sequential,
        131_072,
        4,
    );
    agent.measure(&load);
    let mut content = vec![0; FILE_BYTES];
    file.as_file().read_exact_at(&mut content, 0).unwrap();
    let (span, rest) = content.split_at(FILE_BYTES / 2);
    assert!(rest.iter().all(|&byte| byte == 0));
    // Each page was written, with something that does not compress.
    for page in span.chunks(4096) {
        let mut seen = [false; 256];
        page.iter().for_each(|&byte| seen[usize::from(byte)] = true);
        assert!(seen.iter().filter(|&&seen| seen).count() > 200);
    }
}

#[test]
fn one_seed_gives_one_order() {
    let file = file();
    let mut agent = Program::agent(&[]);
    let load = block(file.path(), BlockOperation::Write, Pattern::Random, 512, 1);
    let mut written = || {
        file.as_file()
            .write_all_at(&vec![0; FILE_BYTES], 0)
            .unwrap();
        file.as_file().sync_all().unwrap();
        let spec = LoadSpec {
            load: load.clone(),
            warm_up_ms: 0,
            time_ms: 0,
            seed: 11,
        };
        assert_eq!(agent.ask(&Request::Prepare { spec }), Answer::Ready);
        assert_eq!(agent.go().operations, 1);
        let mut content = vec![0; FILE_BYTES];
        file.as_file().read_exact_at(&mut content, 0).unwrap();
        content
    };
    let first = written();
    assert!(first.iter().any(|&byte| byte != 0));
    assert!(first == written());
}

#[test]
fn a_load_that_makes_no_sense_has_failed_and_the_next_goes_on() {
    use BlockOperation::{Flush, Read};
    let file = file();
    let mut agent = Program::agent(&[]);
    let mut too_long = block(file.path(), Read, Pattern::Random, 4096, 1);
    if let Load::Block { span_bytes, .. } = &mut too_long {
        *span_bytes = FILE_BYTES as u64 + 4096;
    }
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    for load in [
        too_long,
        block(file.path(), Read, Pattern::Random, 100, 1),
        block(file.path(), Read, Pattern::Random, 0, 1),
        block(file.path(), Read, Pattern::Random, 4096, 0),
        block(file.path(), Flush, Pattern::Random, 4096, 2),
        block(Path::new("/no/such/file"), Read, Pattern::Random, 4096, 1),
        Load::Console {
            path: file.path().to_owned(),
        },
        Load::TcpSend { peer },
        Load::UdpSend {
            peer,
            size_bytes: 0,
        },
    ] {
        assert!(!agent.fail(&load).is_empty());
    }
    let load = block(file.path(), Read, Pattern::Random, 4096, 1);
    check(&agent.measure(&load), 4096);
}

#[test]
fn a_peer_that_hangs_up_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = listener.local_addr().unwrap();
    let accepting = thread::spawn(move || drop(listener.accept()));
    let error = Program::agent(&[]).fail(&Load::TcpReceive { peer });
    assert!(error.contains("peer"), "{error}");
    accepting.join().unwrap();
}

#[test]
fn a_peer_that_dies_is_a_failure() {
    let (server, peer) = Program::serve();
    let mut agent = Program::agent(&[]);
    for load in [Load::TcpReceive { peer }, Load::TcpSend { peer }] {
        let (other, peer) = Program::serve();
        let load = match load {
            Load::TcpReceive { .. } => Load::TcpReceive { peer },
            _ => Load::TcpSend { peer },
        };
        assert_eq!(agent.prepare(&load), Answer::Ready);
        drop(other);
        let answer = agent.ask(&Request::Go);
        assert!(matches!(answer, Answer::Failed { .. }), "{answer:?}");
    }
    // Who is left still serves.
    agent.measure(&Load::TcpSend { peer });
    drop(server);
}

/// A peer that answers as it should and sends back every other datagram: those are lost, and nothing waits for them.
#[test]
fn a_lost_datagram_is_counted_and_hangs_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        writeln!(&stream, "{{\"answer\":\"opened\",\"port\":{port}}}").unwrap();
        let mut datagram = [0; 64];
        for number in 0_u64.. {
            let Ok((size, from)) = socket.recv_from(&mut datagram) else {
                break;
            };
            if number % 2 == 0 {
                socket.send_to(&datagram[..size], from).unwrap();
            }
        }
        drop(stream);
    });
    let mut agent = Program::agent(&[]);
    let spec = LoadSpec {
        load: Load::UdpRoundTrip {
            peer,
            size_bytes: 64,
        },
        warm_up_ms: 0,
        time_ms: 300,
        seed: 0,
    };
    assert_eq!(agent.ask(&Request::Prepare { spec }), Answer::Ready);
    let result = agent.go();
    assert!(result.lost >= 1 && result.operations >= 1, "{result:?}");
    assert!(result.operations.abs_diff(result.lost) <= 1, "{result:?}");
}

#[test]
fn every_load_runs_in_the_sandbox() {
    let mut agent = Program::agent(&["--isolate", "sandbox"]);
    let status = format!("/proc/{}/status", agent.child.id());
    let status = fs::read_to_string(status).unwrap();
    assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    let (_server, peer) = Program::serve();
    blocks(&mut agent);
    networks(&mut agent, peer);
    let (result, _) = pty(|path| agent.measure(&Load::Console { path }));
    check(&result, 64);
    assert_eq!(agent.end(), Some(0));
}

#[test]
fn a_container_has_namespaces_of_its_own() {
    let mut agent = Program::agent(&["--isolate", "container"]);
    let outer = agent.child.id();
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    let inner: u32 = children.trim().parse().unwrap();
    for kind in ["mnt", "pid", "uts", "ipc", "net", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(of("self"), of(&inner.to_string()), "{kind}");
    }
    let status = fs::read_to_string(format!("/proc/{inner}/status")).unwrap();
    let ids = status
        .lines()
        .find(|line| line.starts_with("NSpid:"))
        .unwrap();
    assert_eq!(
        ids.split_whitespace().collect::<Vec<_>>(),
        ["NSpid:", &inner.to_string(), "1"]
    );
    // An interface is moved there by the id of the process that the benchmark knows.
    let net = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(net(outer), net(inner));

    blocks(&mut agent);
    // All it has is a loopback, which it may set up as it likes.
    let addressed = agent.ask(&Request::Address {
        mac: "00:00:00:00:00:00".to_owned(),
        address: "192.168.77.2/24".to_owned(),
        mtu: Some(9000),
    });
    let interface = "lo".to_owned();
    assert_eq!(addressed, Answer::Addressed { interface });
    let interfaces = fs::read_to_string(format!("/proc/{inner}/net/dev")).unwrap();
    assert_eq!(interfaces.lines().count(), 3, "{interfaces}");
    let routes = fs::read_to_string(format!("/proc/{inner}/net/fib_trie")).unwrap();
    assert!(routes.contains("192.168.77.2"), "{routes}");
    let ours = fs::read_to_string("/proc/net/fib_trie").unwrap();
    assert!(!ours.contains("192.168.77.2"), "{ours}");
    let unknown = agent.ask(&Request::Address {
        mac: "52:54:00:00:00:ff".to_owned(),
        address: "192.168.77.3/24".to_owned(),
        mtu: None,
    });
    assert!(matches!(unknown, Answer::Failed { .. }), "{unknown:?}");
    assert_eq!(agent.end(), Some(0));
}

#[test]
fn killing_the_outer_process_of_a_container_ends_the_inner_one() {
    let mut agent = Program::agent(&["--isolate", "container"]);
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    // The inner one holds the pipe, too: this is the end when it is gone, though its input is still open.
    let mut rest = Vec::new();
    agent.stdout.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    assert!(agent.stdin.is_some());
}

#[test]
fn the_command_line_is_checked() {
    for arguments in [
        &["serve", "nowhere"][..],
        &["dance"],
        &["agent", "--isolate", "x"],
    ] {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("usage:"));
    }
}
