//! Writes the HTML page of a benchmark's JSON file anew, as from another machine:
//! `cargo run -p bench --example render_report -- REPORT.json REPORT.html`.

use std::error::Error;
use std::fs;

use bench::results::BenchReport;

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = std::env::args_os().skip(1);
    let (Some(json), Some(html), None) = (paths.next(), paths.next(), paths.next()) else {
        return Err("usage: render_report REPORT.json REPORT.html".into());
    };
    let report: BenchReport = serde_json::from_slice(&fs::read(json)?)?;
    fs::write(html, bench::report::html(&report)?)?;
    print!("{}", bench::text::table(&report));
    Ok(())
}
