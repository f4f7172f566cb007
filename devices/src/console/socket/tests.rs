//! Tests of the listening socket with clients in this process.

use super::*;
use crate::testing::readable;
use std::io::Write;
use std::net::Shutdown;
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
        assert_eq!(self.read(), b"");
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
fn expect(client: &mut UnixStream, expected: &[u8]) {
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
fn a_client_that_does_not_read_blocks_nothing_and_loses_the_oldest() {
    let mut f = Fixture::new();
    let mut client = f.connect();
    for _ in 0..1024 {
        f.backend.write(&[b'x'; 1024]).unwrap();
    }
    f.backend.write(b"END").unwrap();
    assert!(!f.is_ready(), "the client takes nothing");
    client
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"END") {
        let mut data = [0; 65536];
        let len = client.read(&mut data).unwrap();
        seen.extend(&data[..len]);
        if f.is_ready() {
            f.read();
        }
    }
    assert!(seen.len() < 1024 * 1024);
    assert!(!f.is_ready());
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
    f.read();
    assert!(!f.is_ready());
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
