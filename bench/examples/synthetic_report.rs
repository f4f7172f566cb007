//! Writes the HTML page and the JSON of a report with made-up figures, to look at how they are shown:
//! `cargo run -p bench --example synthetic_report -- FOLDER`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

#[expect(dead_code, reason = "tests take a smaller report")]
#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1);
    let folder = PathBuf::from(folder.ok_or("usage: synthetic_report FOLDER")?);
    let report = synthetic::report_of(20_000);
    fs::write(folder.join("report.html"), bench::report::html(&report)?)?;
    fs::write(folder.join("report.json"), serde_json::to_string(&report)?)?;
    print!("{}", bench::text::table(&report));
    Ok(())
}
