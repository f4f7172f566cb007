//! A report, rendered by a browser: the charts are there, nothing is said on the console, nothing is loaded.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bench::results::BenchReport;

mod synthetic;

/// What a browser made of a page.
struct Rendered {
    /// The document, as it is after loading.
    dom: String,
    /// What the browser logged.
    log: String,
    /// Everything about the network that it did.
    net_log: serde_json::Value,
}

/// Renders a page in a browser with a fresh profile. The browser gives up by itself.
fn render(folder: &Path, page: &str) -> Rendered {
    let file = folder.join("report.html");
    let net_log = folder.join("net.json");
    fs::write(&file, page).unwrap();
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync"])
        .args([
            "--enable-logging=stderr",
            "--v=0",
            "--timeout=60000",
            "--dump-dom",
        ])
        // It has no network: neither the page's requests nor its own get further than the log.
        .args(["--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND"])
        .arg(format!(
            "--user-data-dir={}",
            folder.join("profile").display()
        ))
        .arg(format!("--log-net-log={}", net_log.display()))
        .arg(format!("file://{}", file.display()))
        .stdin(Stdio::null())
        .output()
        .expect("tests/testbed/setup installs chromium");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {log}", output.status);
    let net_log = fs::read_to_string(&net_log).unwrap();
    Rendered {
        dom: String::from_utf8(output.stdout).unwrap(),
        log,
        net_log: serde_json::from_str(&net_log).unwrap(),
    }
}

impl Rendered {
    /// Messages on the page's console, those of a violated content policy included.
    fn console(&self) -> Vec<&str> {
        let lines = self.log.lines();
        lines.filter(|line| line.contains("CONSOLE")).collect()
    }

    /// URLs that the page asked for. What the browser asks for itself has "not an origin" as its initiator.
    fn requests(&self) -> Vec<String> {
        let events = self.net_log["events"].as_array().unwrap().iter();
        let of_page = events.filter_map(|event| {
            let initiator = event["params"]["initiator"].as_str()?;
            (initiator != "not an origin").then_some(&event["params"]["url"])
        });
        of_page
            .map(|url| url.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Ids of the elements of a kind, with how many elements are within each.
    fn charts(&self) -> Vec<(&str, usize)> {
        let svgs = self.dom.split("<svg id=\"").skip(1);
        svgs.filter_map(|svg| {
            let (id, rest) = svg.split_once('"')?;
            let (content, _) = rest.split_once("</svg>")?;
            Some((
                id,
                content.matches("<rect").count() + content.matches("<polyline").count(),
            ))
        })
        .collect()
    }
}

/// `data/nested.json` is two rounds of a run with all paths, in a nested guest.
#[test]
fn a_browser_shows_all_charts_of_a_real_run() {
    let text = include_str!("data/nested.json");
    let report = serde_json::from_str(text).unwrap();
    let all = &["throughput", "overhead", "latency", "exits", "cpu"][..];
    let stream = &["throughput", "overhead", "exits", "cpu"][..];
    shows_charts(
        &report,
        &[
            ("block", "rand-read-4k-d1", all),
            ("block", "rand-read-4k-d32", all),
            ("block", "rand-write-4k-d32", all),
            ("block", "seq-read-128k", all),
            ("net", "udp-rr-1", all),
            ("net", "tcp-send", stream),
            ("net", "tcp-receive", stream),
            ("console", "write", &["throughput", "exits", "cpu"]),
        ],
    );
}

#[test]
fn a_browser_shows_all_charts_and_loads_nothing() {
    let all = &["throughput", "overhead", "latency", "exits", "cpu"][..];
    let rendered = shows_charts(
        &synthetic::report(),
        &[
            ("block", "rand-read-4k-d1", all),
            ("net", "udp-rtt-1", all),
            (
                "net",
                "tcp-send",
                &["throughput", "overhead", "exits", "cpu"],
            ),
            ("console", "write-64", &["throughput", "exits", "cpu"]),
        ],
    );
    assert!(rendered.dom.contains("the function did not answer"));
}

/// The page of `report` has the `charts` of each subject and workload, and does nothing that it should not.
fn shows_charts(report: &BenchReport, wanted: &[(&str, &str, &[&str])]) -> Rendered {
    let folder = tempfile::tempdir().unwrap();
    let rendered = render(folder.path(), &bench::report::html(report).unwrap());
    assert_eq!(rendered.console(), Vec::<&str>::new());
    assert_eq!(rendered.requests(), Vec::<String>::new());
    let charts = rendered.charts();
    for (subject, workload, kinds) in wanted {
        for kind in *kinds {
            let id = format!("{kind}-{subject}-{workload}");
            let shapes = charts.iter().find(|(one, _)| *one == id);
            let (_, shapes) = shapes.unwrap_or_else(|| panic!("{id} is not there: {charts:?}"));
            assert!(*shapes >= 2, "{id} has {shapes} shapes");
        }
    }
    rendered
}

#[test]
fn markup_in_a_report_stays_text() {
    let mut report = synthetic::report();
    let hostile = "</style><script>console.error('ran')</script><img src=http://192.0.2.1/x>";
    report.environment.kernel = hostile.to_owned();
    report.notes.push(hostile.to_owned());
    for one in &mut report.variants {
        one.device.push_str(hostile);
    }
    let folder = tempfile::tempdir().unwrap();
    let rendered = render(folder.path(), &bench::report::html(&report).unwrap());
    assert_eq!(rendered.console(), Vec::<&str>::new());
    assert_eq!(rendered.requests(), Vec::<String>::new());
    assert!(!rendered.dom.contains("<script"));
}

#[test]
fn the_check_finds_errors_and_requests() {
    let folder = tempfile::tempdir().unwrap();
    let page =
        "<!DOCTYPE html><script>console.error('seen')</script><img src=http://127.0.0.1:9/x>";
    let rendered = render(folder.path(), page);
    assert!(
        rendered.console().iter().any(|line| line.contains("seen")),
        "{}",
        rendered.log
    );
    assert!(
        rendered
            .requests()
            .iter()
            .any(|url| url.contains("127.0.0.1:9"))
    );
}
