//! The load of the benchmarks, the same program in a guest and on the host. As `agent` it does what it is told, line by
//! line; as `serve` it is the other end of the network for such an agent.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod agent;
mod client;
mod cpu;
mod error;
mod interface;
mod interrupts;
mod isolate;
mod lines;
mod loads;
mod mmsg;
mod serve;
mod terminal;

use std::process::ExitCode;

use error::LoadError;
use isolate::Isolation;

/// How the program is called.
const USAGE: &str = "usage: tripath-load agent [--terminal PATH|auto] [--isolate sandbox|container]
       tripath-load serve ADDRESS:PORT
Without arguments: agent --terminal auto, which is how a guest's init starts it.";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Agent {
        /// Standard input and output if absent.
        terminal: Option<String>,
        isolation: Isolation,
    },
    Serve {
        address: String,
    },
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = mode(&arguments).and_then(|mode| match mode {
        Mode::Agent {
            isolation: Isolation::Container,
            ..
        } => isolate::container::enter(&arguments),
        Mode::Agent {
            terminal,
            isolation,
        } => agent::run(terminal.as_deref(), isolation).map(|()| ExitCode::SUCCESS),
        Mode::Serve { address } => serve::run(&address).map(|()| ExitCode::SUCCESS),
    });
    result.unwrap_or_else(|error| {
        eprintln!("tripath-load: {error}");
        ExitCode::from(if matches!(error, LoadError::Usage(_)) {
            2
        } else {
            1
        })
    })
}

fn mode(arguments: &[String]) -> Result<Mode, LoadError> {
    let wrong = |text: String| Err(LoadError::Usage(text));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut options = match arguments.as_slice() {
        [] => {
            return Ok(Mode::Agent {
                terminal: Some(terminal::AUTO.to_owned()),
                isolation: Isolation::None,
            });
        }
        ["serve", address] => {
            let address = (*address).to_owned();
            return Ok(Mode::Serve { address });
        }
        ["agent", options @ ..] => options,
        _ => return wrong("this command is not known".to_owned()),
    };
    let mut terminal = None;
    let mut isolation = Isolation::None;
    while let [name, value, rest @ ..] = options {
        match *name {
            "--terminal" => terminal = Some((*value).to_owned()),
            "--isolate" => match Isolation::named(value) {
                Some(named) => isolation = named,
                None => return wrong(format!("there is no isolation {value:?}")),
            },
            _ => return wrong(format!("there is no option {name:?}")),
        }
        options = rest;
    }
    match options {
        [] => Ok(Mode::Agent {
            terminal,
            isolation,
        }),
        [last, ..] => wrong(format!("{last:?} lacks a value, or is no option")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(text: &str) -> Result<Mode, LoadError> {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        mode(&arguments)
    }

    #[test]
    fn the_command_line() {
        let agent = |terminal: Option<&str>, isolation| Mode::Agent {
            terminal: terminal.map(str::to_owned),
            isolation,
        };
        for (text, expected) in [
            ("", agent(Some("auto"), Isolation::None)),
            ("agent", agent(None, Isolation::None)),
            (
                "agent --terminal /dev/hvc3",
                agent(Some("/dev/hvc3"), Isolation::None),
            ),
            ("agent --isolate sandbox", agent(None, Isolation::Sandbox)),
            (
                "agent --isolate container",
                agent(None, Isolation::Container),
            ),
        ] {
            assert_eq!(mode_of(text).unwrap(), expected, "{text:?}");
        }
        let serve = mode_of("serve 127.0.0.1:0").unwrap();
        assert!(matches!(serve, Mode::Serve { address } if address == "127.0.0.1:0"));
        for text in [
            "serve",
            "serve a b",
            "agent --isolate",
            "agent --isolate prison",
            "agent --speed 3",
            "agent x",
            "run",
        ] {
            assert!(
                matches!(mode_of(text), Err(LoadError::Usage(_))),
                "{text:?}"
            );
        }
    }
}
