//! Tests of the listening socket with clients in this process.

use super::*;
use crate::testing::readable;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use tempfile::TempDir;

struct Fixture {
    dir: TempDir,
    backend: SocketBackend,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend = SocketBackend::listen(&dir.path().join("com1")).unwrap();
        Self { dir, backend }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("com1")
    }

    /// A client that the backend has seen.
    fn connect(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        assert!(self.is_ready());
        self.backend.progress();
        client
    }

    fn is_ready(&self) -> bool {
        readable(self.backend.poll_fd().unwrap())
    }

    /// What there is to read; empty if that would block.
    fn read(&mut self) -> Vec<u8> {
        let mut data = [0; 64];
        match self.backend.read(&mut data) {
            Ok(len) => {
                assert!(len > 0, "the input has not ended");
                data[..len].to_vec()
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                Vec::new()
            }
        }
    }
}

/// Reads exactly what is expected.
fn expect(client: &mut impl Read, expected: &[u8]) {
    let mut data = vec![0; expected.len()];
    client.read_exact(&mut data).unwrap();
    assert_eq!(data, expected);
}

#[test]
fn round_trip() {
    let mut f = Fixture::new();
    assert!(!f.is_ready());
    let mut client = f.connect();
    assert!(!f.is_ready());
    client.write_all(b"ls\n").unwrap();
    assert!(f.is_ready());
    assert_eq!(f.read(), b"ls\n");
    f.backend.write(b"file\n").unwrap();
    expect(&mut client, b"file\n");
}

#[test]
fn a_late_client_and_one_that_comes_back_get_what_was_kept() {
    let mut f = Fixture::new();
    f.backend.write(b"boot ").unwrap();
    let mut client = f.connect();
    expect(&mut client, b"boot ");
    drop(client);
    assert!(f.is_ready());
    f.backend.progress();
    assert_eq!(f.read(), b"");
    assert!(!f.is_ready(), "a client that is gone is not reported again");
    f.backend.write(b"more").unwrap();
    let mut client = f.connect();
    expect(&mut client, b"boot more");
    client.write_all(b"x").unwrap();
    assert_eq!(f.read(), b"x");
}

#[test]
fn only_the_end_is_kept() {
    let mut f = Fixture::new();
    f.backend.write(b"the beginning").unwrap();
    let data: Vec<u8> = (0..BACKLOG_BYTES).map(|i| i as u8).collect();
    f.backend.write(&data).unwrap();
    let mut client = f.connect();
    expect(&mut client, &data);
}

#[test]
fn a_client_that_does_not_read_holds_output_back_and_lacks_nothing() {
    let mut f = Fixture::new();
    let mut client = f.connect();
    let mut sent: Vec<u8> = Vec::new();
    let refused = loop {
        let piece: Vec<u8> = (sent.len()..sent.len() + 1000).map(|i| i as u8).collect();
        match f.backend.write(&piece) {
            Ok(len) => sent.extend(&piece[..len]),
            Err(error) => break error,
        }
        assert!(sent.len() < 4 << 20, "it takes everything");
    };
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    assert!(sent.len() >= BACKLOG_BYTES);
    assert!(!f.is_ready(), "the client takes nothing");
    let mut seen = vec![0; sent.len() / 2];
    client.read_exact(&mut seen).unwrap();
    assert!(f.is_ready(), "there is room");
    f.backend.progress();
    assert_eq!(f.backend.write(b"END").unwrap(), 3);
    sent.extend(b"END");
    client
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    while seen.len() < sent.len() {
        let mut data = [0; 65536];
        let len = client.read(&mut data).unwrap();
        seen.extend(&data[..len]);
        f.backend.progress();
    }
    assert!(seen == sent);
    assert!(!f.is_ready());
}

#[test]
fn output_that_was_held_back_goes_on_when_the_client_leaves() {
    let mut f = Fixture::new();
    let client = f.connect();
    while f.backend.write(&[b'x'; 1000]).is_ok() {}
    drop(client);
    assert!(f.is_ready());
    f.backend.progress();
    assert_eq!(f.backend.write(b"more").unwrap(), 4);
}

#[test]
fn a_second_client_is_told_and_turned_away() {
    let mut f = Fixture::new();
    let mut first = f.connect();
    let mut second = f.connect();
    let mut told = Vec::new();
    second.read_to_end(&mut told).unwrap();
    assert_eq!(told, BUSY);
    f.backend.write(b"to the first").unwrap();
    expect(&mut first, b"to the first");
    assert!(!f.is_ready());
}

#[test]
fn a_client_that_only_listens_any_more_stays() {
    let mut f = Fixture::new();
    let mut client = f.connect();
    client.write_all(b"cmd").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(f.read(), b"cmd");
    assert_eq!(f.read(), b"");
    assert!(!f.is_ready());
    f.backend.write(b"answer").unwrap();
    expect(&mut client, b"answer");
    drop(client);
    assert!(f.is_ready());
    f.backend.progress();
    assert!(!f.is_ready());
    assert!(f.backend.client.is_none());
}

#[test]
fn a_client_whose_input_is_not_wanted_is_left_alone() {
    let mut f = Fixture::new();
    let mut client = f.connect();
    client.write_all(b"typed ahead").unwrap();
    let no_input = Interest {
        input: false,
        output: false,
    };
    f.backend.set_interest(no_input).unwrap();
    drop(client);
    assert!(!f.is_ready(), "neither input nor hang-up");
    f.backend.set_interest(Interest::default()).unwrap();
    assert!(f.is_ready());
    assert_eq!(f.read(), b"typed ahead");
    assert_eq!(f.read(), b"");
    assert!(f.backend.client.is_none());
}

#[test]
fn output_alone_finds_a_new_client() {
    let mut f = Fixture::new();
    let first = f.connect();
    drop(first);
    let mut second = UnixStream::connect(f.path()).unwrap();
    f.backend.write(b"hello").unwrap();
    expect(&mut second, b"hello");
}

#[test]
fn the_file_goes_with_the_backend_but_only_if_it_is_its_own() {
    let f = Fixture::new();
    let Fixture { dir, backend } = f;
    let path = dir.path().join("com1");
    drop(backend);
    assert!(!path.exists());
    let backend = SocketBackend::listen(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "someone else's").unwrap();
    drop(backend);
    assert!(path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("com1");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _backend = SocketBackend::listen(&path).unwrap();
    let error = SocketBackend::listen(&path).unwrap_err();
    assert!(matches!(error, CharError::SocketInUse { .. }));
    let message = format!(
        "another process listens on {}; end it or choose another path",
        path.display()
    );
    assert_eq!(error.to_string(), message);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_socket_of_the_owner_is_nobody_elses() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let (_listener, file) = listen_unix(&path, SocketAccess::Owner).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(file);
    assert!(!path.exists());
}

#[test]
fn what_is_in_the_way_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes");
    fs::write(&path, "precious").unwrap();
    let error = SocketBackend::listen(&path).unwrap_err();
    assert!(matches!(error, CharError::NotASocket { .. }));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let error = SocketBackend::listen(dir.path()).unwrap_err();
    assert!(matches!(error, CharError::NotASocket { .. }));
    let error = SocketBackend::listen(&dir.path().join("no/dir")).unwrap_err();
    assert!(matches!(error, CharError::Socket { .. }), "{error}");
    let error = SocketBackend::listen(&dir.path().join("x".repeat(108))).unwrap_err();
    assert!(matches!(
        error,
        CharError::SocketPathTooLong { max: 107, .. }
    ));
}

#[test]
fn tcp_clients_are_served_alike() {
    let (mut backend, address) = SocketBackend::listen_tcp("127.0.0.1:0").unwrap();
    assert_eq!(backend.write(b"boot ").unwrap(), 5);
    let mut client = TcpStream::connect(address).unwrap();
    assert!(readable(backend.poll_fd().unwrap()));
    backend.progress();
    assert_eq!(backend.write(b"log").unwrap(), 3);
    expect(&mut client, b"boot log");
    client.write_all(b"ls\n").unwrap();
    let mut data = [0; 8];
    let read = loop {
        match backend.read(&mut data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            read => break read.unwrap(),
        }
    };
    assert_eq!(&data[..read], b"ls\n");
}

#[test]
fn a_tcp_port_in_use_or_an_address_of_others_is_named() {
    let (_backend, address) = SocketBackend::listen_tcp("127.0.0.1:0").unwrap();
    let error = SocketBackend::listen_tcp(&address.to_string()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{address} is in use; end what listens there or choose another port")
    );
    let error = SocketBackend::listen_tcp("192.0.2.1:4444").unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("cannot listen on 192.0.2.1:4444: "),
        "{text}"
    );
}
