use super::*;
use crate::synthetic;

/// What would be markup if it were not escaped.
const HOSTILE: &str = "</style></svg><script>alert(1)</script><img src=x onerror=\"x\">\0'";

#[test]
fn all_charts_are_there() {
    let page = html(&synthetic::report()).unwrap();
    for id in [
        "throughput-block-rand-read-4k-d1",
        "overhead-block-rand-read-4k-d1",
        "latency-block-rand-read-4k-d1",
        "exits-block-rand-read-4k-d1",
        "cpu-block-rand-read-4k-d1",
        "throughput-net-tcp-send",
        "throughput-console-write-64",
    ] {
        assert!(
            page.contains(&format!("<svg id=\"{id}\" role=\"img\"")),
            "{id}"
        );
    }
    // A stream has no latency, a console no direct path.
    assert!(!page.contains("latency-net-tcp-send"));
    assert!(!page.contains("overhead-console"));
    assert!(
        page.contains("net/udp-rtt-1/igbvf failed after 0 rounds: the function did not answer")
    );
}

#[test]
fn a_hostile_report_is_text() {
    let mut report = synthetic::report();
    report.notes.push(HOSTILE.to_owned());
    report.date = HOSTILE.to_owned();
    report.environment.kernel = HOSTILE.to_owned();
    report.environment.cpu = Some(HOSTILE.to_owned());
    report.environment.kvm_parameters = vec![HOSTILE.to_owned()];
    report.environment.build = HOSTILE.to_owned();
    report.guest.cmdline = HOSTILE.to_owned();
    report.guest.backends = vec![HOSTILE.to_owned()];
    report.exit_cost_ns.insert(HOSTILE.to_owned(), 1.0);
    for one in &mut report.variants {
        one.name.push_str(HOSTILE);
        one.workload.push_str(HOSTILE);
        one.device.push_str(HOSTILE);
        one.failure = Some(HOSTILE.to_owned());
        for sample in &mut one.samples {
            sample.cpu.user_ns.insert(HOSTILE.to_owned(), 1_000_000);
            if let Some(guest) = &mut sample.guest {
                guest.exits.insert(HOSTILE.to_owned(), 1_000_000);
                for access in &mut guest.accesses {
                    access.what = HOSTILE.to_owned();
                    access.device = HOSTILE.to_owned();
                }
            }
            if let Some(latency) = &mut sample.load.latency {
                latency.histogram = HOSTILE.to_owned();
            }
        }
    }
    let page = html(&report).unwrap();
    assert!(
        !page.contains("<script") && !page.contains("<img"),
        "markup"
    );
    assert!(!page.contains('\0'));
    // One of ours, at the end of the head.
    assert_eq!(page.matches("</style>").count(), 1);
    assert_eq!(
        page.matches("<svg ").count(),
        page.matches("</svg>").count()
    );
    assert!(page.contains("is left out: a latency is damaged"));
}

#[test]
fn figures_at_their_limits_draw_something() {
    let mut report = synthetic::report();
    for (index, one) in report.variants.iter_mut().enumerate() {
        for sample in &mut one.samples {
            let figure = if index % 2 == 0 { 0 } else { u64::MAX };
            sample.load.operations = figure;
            sample.load.bytes = figure;
            sample.load.elapsed_ns = 1;
            sample.cpu.guest_ns = u64::MAX;
        }
    }
    let page = html(&report).unwrap();
    assert!(
        !page.contains("NaN") && !page.contains("inf"),
        "not a number"
    );
    report.variants.clear();
    report.exit_cost_ns.clear();
    assert!(html(&report).unwrap().contains("was not measured"));
}

#[test]
fn every_element_has_an_id_of_its_own() {
    let page = html(&synthetic::report()).unwrap();
    let mut ids: Vec<&str> = page
        .split(" id=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    // Links within the page lead somewhere.
    for rest in page.split("href=\"#").skip(1) {
        let target = rest.split('"').next().unwrap();
        assert!(ids.binary_search(&target).is_ok(), "{target}");
    }
}
