//! `tripath ctl`: asks a run that was given a control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use vmm_core::control::{Answer, Request};
use vmm_core::stats::Report;

use crate::cli::CtlCommand;
use crate::exit_code::{Exit, UserError};
use crate::stats_table;

/// A run answers at once, unless its process is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
///
/// # Errors
/// [`UserError`] if nobody listens there; otherwise what the run answered, or that it did not.
pub fn run(command: CtlCommand) -> anyhow::Result<Exit> {
    let CtlCommand::Stats { socket, json } = command;
    let report = stats(&socket)?;
    let text = match json {
        true => serde_json::to_string(&report)? + "\n",
        false => stats_table::render(&report),
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(Exit::Success)
}

fn stats(socket: &Path) -> anyhow::Result<Report> {
    match ask(socket, "stats")? {
        Answer::Stats(report) => Ok(report),
        Answer::Error(error) => {
            anyhow::bail!("the run on {} answers: {error}", socket.display())
        }
    }
}

fn ask(socket: &Path, command: &str) -> anyhow::Result<Answer> {
    let place = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| {
        UserError::from_text(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!(
                    "no run listens on {place}: give the path that \"tripath run --control\" has"
                )
            }
            _ => format!("cannot connect to {place}: {error}"),
        })
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = Request {
        command: command.to_owned(),
    };
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    // One that turned us away has closed its side, and said why.
    let sent = stream.write_all(line.as_bytes());
    let mut answer = String::new();
    BufReader::new(&stream)
        .read_line(&mut answer)
        .with_context(|| format!("the run on {place} does not answer"))?;
    sent.with_context(|| format!("cannot ask the run on {place}"))
        .or_else(|error| {
            if answer.is_empty() {
                Err(error)
            } else {
                Ok(())
            }
        })?;
    serde_json::from_str(&answer)
        .with_context(|| format!("the run on {place} gives no answer that is understood"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What is said about a listener that answers `line` to anything.
    fn asked_of(line: &'static str) -> Result<Report, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            let mut reader = BufReader::new(&stream);
            reader.read_line(&mut request).unwrap();
            (&stream).write_all(line.as_bytes()).unwrap();
            request
        });
        let found = stats(&path).map_err(|error| crate::exit_code::told(&error));
        assert_eq!(server.join().unwrap(), "{\"command\":\"stats\"}\n");
        let place = path.display().to_string();
        found.map_err(|error| error.replace(&place, "PATH"))
    }

    #[test]
    fn answers_are_understood() {
        let report = asked_of("{\"stats\":{\"exits\":[],\"devices\":[],\"kvm\":{\"exits\":7}}}\n");
        assert_eq!(report.unwrap().kvm["exits"], 7);
        assert_eq!(
            asked_of("{\"error\":\"busy\"}\n").unwrap_err(),
            "the run on PATH answers: busy"
        );
        for nonsense in ["", "hello\n", "{\"stats\":3}\n"] {
            let error = asked_of(nonsense).unwrap_err();
            assert!(
                error.starts_with("the run on PATH gives no answer that is understood: "),
                "{error}"
            );
        }
    }

    #[test]
    fn where_nobody_listens_is_the_users_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let stale = folder.path().join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        for path in [stale, folder.path().join("nothing")] {
            let error = ask(&path, "stats").unwrap_err();
            assert_eq!(Exit::of_error(&error), Exit::UserError);
            let told = error.to_string();
            assert!(told.starts_with("no run listens on /"), "{told}");
            assert_eq!(told.lines().count(), 1);
        }
        let error = ask(folder.path().join("x".repeat(200)).as_path(), "stats").unwrap_err();
        assert_eq!(Exit::of_error(&error), Exit::UserError);
    }
}
