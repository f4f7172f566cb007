//! Why a character backend could not be set up.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Each is one line for the user: what is wrong, and where it is in the user's hands, what to do.
#[derive(Debug, Error)]
pub enum CharError {
    /// The output file cannot be created or opened.
    #[error("cannot write to {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Another open file description has locked the output file.
    #[error(
        "{path} is written by another port or another run; give each a file of its own",
        path = path.display()
    )]
    FileLocked {
        /// The file.
        path: PathBuf,
    },
    /// The socket's path does not fit in a socket address.
    #[error("{path}: a socket's path has at most {max} bytes; choose a shorter one", path = path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// Something that is not a socket is in the way.
    #[error("{path} exists and is not a socket; remove it or choose another path", path = path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A process listens on the socket.
    #[error("another process listens on {path}; end it or choose another path", path = path.display())]
    SocketInUse {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be created.
    #[error("cannot listen on {path}: {source}", path = path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Someone else has the TCP port.
    #[error("{address} is in use; end what listens there or choose another port")]
    TcpInUse {
        /// `HOST:PORT`.
        address: String,
    },
    /// The TCP address is none of this host's, or its port is not to be had.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// `HOST:PORT`.
        address: String,
        /// What the host said.
        source: io::Error,
    },
    /// No pseudo-terminal to be had.
    #[error("cannot open a pseudo-terminal: {0}")]
    Pty(#[source] io::Error),
    /// Standard input or output cannot be used.
    #[error("cannot use standard input and output: {0}")]
    Stdio(#[source] io::Error),
}
