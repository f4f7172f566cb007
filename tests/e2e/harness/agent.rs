//! `e2e --agent`: runs in L1 and does what the harness on the host asks for, over a virtio port.
//!
//! Both directions carry one JSON value a line.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::E2eTest;
use super::runner::{self, Outcome};

/// How often the agent says that it is alive.
pub const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The harness asks for a test to be run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    /// The test's name.
    pub name: String,
}

/// What the agent says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// It is there.
    Ready,
    /// It is still there: said every [`ALIVE_EVERY`].
    Alive,
    /// A test has ended.
    Done {
        /// The request's number.
        id: u64,
        /// How it ended.
        outcome: Outcome,
    },
}

/// Serves until the harness goes away.
pub fn main(tests: &[E2eTest]) -> ExitCode {
    match serve(tests) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("agent: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn serve(tests: &[E2eTest]) -> Result<()> {
    let port = open_port("tripath.channel")?;
    let writer = Mutex::new(&port);
    say(&writer, &Message::Ready)?;
    std::thread::scope(|scope| {
        // For as long as the harness listens; the process ends with it.
        scope.spawn(|| {
            while say(&writer, &Message::Alive).is_ok() {
                std::thread::sleep(ALIVE_EVERY);
            }
        });
        for line in BufReader::new(&port).lines() {
            let request: Request = serde_json::from_str(&line?)?;
            let writer = &writer;
            scope.spawn(move || {
                println!("agent: {} starts", request.name);
                let outcome = match tests.iter().find(|test| test.name == request.name) {
                    Some(test) => runner::run(test),
                    None => Outcome::failed("the agent has no such test".to_owned(), String::new()),
                };
                let end = outcome.failure.as_deref().unwrap_or("passed");
                let end = end.lines().next().unwrap_or_default();
                println!("agent: {} ended: {end}", request.name);
                let id = request.id;
                if let Err(error) = say(writer, &Message::Done { id, outcome }) {
                    println!("agent: cannot answer: {error:?}");
                }
            });
        }
        Ok(())
    })
}

fn say(writer: &Mutex<&File>, message: &Message) -> Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    let mut port = writer.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    Ok(port.write_all(line.as_bytes())?)
}

/// Opens the virtio port of that name; there is no udev in L1 that would make links with the names.
fn open_port(name: &str) -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim_end() == name {
            let path = std::path::Path::new("/dev").join(entry.file_name());
            return Ok(OpenOptions::new().read(true).write(true).open(path)?);
        }
    }
    None.with_context(|| format!("L1 has no virtio port {name}"))
}
