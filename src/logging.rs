//! Log lines on standard error.

use std::io::{self, Write};
use std::time::Instant;

use log::LevelFilter;

use crate::terminal;

/// Tells the user a line. A standard error that is gone changes nothing: the exit code still tells.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "tripath: {line}");
}

/// Starts logging: warnings, with `verbosity` 1 information, with 2 debug messages, with 3 everything. `RUST_LOG`
/// says it by module and wins.
pub fn start(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    // What vfio-ioctls cannot do it tells us, too; and it warns of interrupts that a conventional function need not
    // have, and of a group that is released with its first function rather than with its last.
    let vfio_ioctls = if verbosity < 2 {
        LevelFilter::Off
    } else {
        level
    };
    let started = Instant::now();
    env_logger::Builder::new()
        .filter_level(level)
        .filter_module("vfio_ioctls", vfio_ioctls)
        .parse_default_env()
        .format(move |out, record| {
            let seconds = started.elapsed().as_secs_f64();
            let line = format!(
                "[{seconds:11.6}] {:5} {}: {}\n",
                record.level(),
                record.target(),
                record.args()
            );
            out.write_all(for_terminal(line, terminal::is_raw()).as_bytes())
        })
        .init();
}

/// A raw terminal does not return the carriage by itself.
fn for_terminal(line: String, raw: bool) -> String {
    if raw {
        line.replace('\n', "\r\n")
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::for_terminal;

    #[test]
    fn every_line_returns_the_carriage_on_a_raw_terminal() {
        assert_eq!(for_terminal("a\nb\n".into(), true), "a\r\nb\r\n");
        assert_eq!(for_terminal("a\nb\n".into(), false), "a\nb\n");
    }
}
