use super::*;
use crate::synthetic;

fn find<'a, 'b>(all: &'b [Analysed<'a>], name: &str) -> &'b Analysed<'a> {
    all.iter().find(|one| one.variant.name == name).unwrap()
}

/// Two variants of one workload whose figures are easy to divide.
fn simple() -> BenchReport {
    let mut report = synthetic::report();
    let names = [
        "block/rand-read-4k-d1/direct-file",
        "block/rand-read-4k-d1/ide",
    ];
    report
        .variants
        .retain(|one| names.contains(&one.name.as_str()));
    for one in &mut report.variants {
        let is_guest = one.path == PathKind::Emulated;
        for (sample, operations) in one.samples.iter_mut().zip([98, 99, 100, 101, 102]) {
            sample.load.operations = if is_guest { operations } else { 2 * operations };
            sample.load.bytes = sample.load.operations * 4096;
            sample.load.elapsed_ns = 1_000_000_000;
            sample.cpu.guest_ns = 4_000 * sample.load.operations;
            sample.cpu.kernel_ns = 1_000 * sample.load.operations;
            sample.cpu.user_ns = BTreeMap::new();
            if is_guest {
                let threads = [("vcpu0", 2_000), ("main", 3_000)];
                sample.cpu.user_ns = threads
                    .map(|(name, ns)| (name.to_owned(), ns * operations))
                    .into();
            }
            if let Some(guest) = &mut sample.guest {
                let exits = [("io-in", 2), ("io-out", 3), ("hlt", 1)];
                guest.exits = exits
                    .map(|(name, each)| (name.to_owned(), each * operations))
                    .into();
                guest.interrupts = Some(2 * operations);
                let counters = [("exits", 10), ("io_exits", 7), ("irq_injections", 1)];
                guest.kvm = counters
                    .map(|(name, each)| (name.to_owned(), each * operations))
                    .into();
            }
            let latency = sample.load.latency.as_mut().unwrap();
            latency.p50_ns = if is_guest { 3_000 } else { 1_000 };
        }
    }
    report.exit_cost_ns = [("pio-read", 100.0), ("pio-write", 10.0), ("ioeventfd", 1.0)]
        .map(|(kind, ns)| (kind.to_owned(), ns))
        .into();
    report
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
        "{found}, not {expected}"
    );
}

#[test]
fn costs_of_an_operation() {
    let report = simple();
    let all = analyse(&report);
    let ide = find(&all, "block/rand-read-4k-d1/ide");
    let rate = ide.rate.unwrap();
    assert_eq!((rate.median, rate.mad, rate.samples), (100.0, 1.0, 5));
    assert_eq!(ide.bytes.unwrap().median, 409_600.0);
    let costs = ide.costs.as_ref().unwrap();
    close(costs.time_ns, 1e7);
    close(costs.cpu.total_ns(), 10_000.0);
    close(costs.cpu.user_ns["main"], 3_000.0);
    let guest = costs.guest.as_ref().unwrap();
    close(guest.exits["io-out"], 3.0);
    close(guest.user_exits(), 6.0);
    close(guest.kvm_exits.unwrap(), 10.0);
    close(guest.interrupts.unwrap(), 2.0);
    let counts: Vec<f64> = guest.accesses.iter().map(|access| access.count).collect();
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
}

#[test]
fn against_the_direct_path() {
    let report = simple();
    let all = analyse(&report);
    let against = find(&all, "block/rand-read-4k-d1/ide")
        .against_direct
        .unwrap();
    close(against.overhead, 0.5);
    close(against.latency_overhead.unwrap(), 2.0);
    // 5 µs of work, and 5 µs beyond it.
    close(against.efficiency.unwrap(), 0.5);
    close(against.time_above_ns, 5e6);
    assert_eq!(against.verdict, Verdict::Slower);
    let direct = find(&all, "block/rand-read-4k-d1/direct-file");
    assert_eq!((direct.against_direct, direct.model), (None, None));
}

#[test]
fn the_plain_model() {
    let report = simple();
    let all = analyse(&report);
    let model = find(&all, "block/rand-read-4k-d1/ide").model.unwrap();
    // 2 reads, 3 writes, and 2 of KVM's 7 port exits that did not come to user space.
    close(model.predicted_ns, 2.0 * 100.0 + 3.0 * 10.0 + 2.0 * 1.0);
    // The halt, and what of KVM's 10 exits is neither the 6 in user space nor the 2 doorbells.
    close(model.unpriced, 3.0);

    // One of these 2 is a halt, and the other costs as much as a hypercall.
    let mut report = simple();
    report.exit_cost_ns.insert("hypercall".to_owned(), 5.0);
    for one in &mut report.variants {
        for guest in one.samples.iter_mut().filter_map(|it| it.guest.as_mut()) {
            let halts = guest.kvm["exits"] / 10;
            guest.kvm.insert("halt_exits".to_owned(), halts);
        }
    }
    let all = analyse(&report);
    let model = find(&all, "block/rand-read-4k-d1/ide").model.unwrap();
    close(model.predicted_ns, 232.0 + 5.0);
    close(model.unpriced, 2.0);
}

#[test]
fn streams_are_told_by_the_mebibyte() {
    let mut report = synthetic::report();
    report
        .variants
        .retain(|one| one.name == "net/tcp-send/e1000");
    for sample in &mut report.variants[0].samples {
        sample.load.operations = 77;
        sample.load.bytes = 8 << 20;
        sample.load.elapsed_ns = 1_000_000_000;
        sample.cpu = crate::results::CpuTime::default();
        sample.cpu.kernel_ns = 4_000;
    }
    let all = analyse(&report);
    assert_eq!((all[0].counts, all[0].work), (Rate::Bytes, Work::Mebibyte));
    close(all[0].rate.unwrap().median, 8.0 * STREAM_UNIT_BYTES);
    close(all[0].costs.as_ref().unwrap().cpu.total_ns(), 500.0);
    // Its direct variant is not in the report.
    assert_eq!(all[0].against_direct, None);
}

#[test]
fn lost_datagrams_are_counted() {
    let mut report = synthetic::report();
    let name = "net/udp-send-64/e1000";
    report
        .variants
        .retain(|one| one.name == name || one.workload == "tcp-send");
    for one in &mut report.variants {
        for sample in &mut one.samples {
            sample.load.operations = 300;
            sample.load.lost = 100;
        }
    }
    let all = analyse(&report);
    close(find(&all, name).lost.unwrap(), 0.25);
    assert_eq!(find(&all, "net/tcp-send/e1000").lost, None);
}

#[test]
fn what_failed_has_no_figures() {
    let report = synthetic::report();
    let all = analyse(&report);
    let failed = find(&all, "net/udp-rtt-1/igbvf");
    assert_eq!(
        (failed.rate, failed.latency, &failed.costs),
        (None, None, &None)
    );
    assert_eq!((failed.against_direct, failed.model), (None, None));
    assert!(latency::curve(failed.variant).unwrap().is_empty());
    assert!(find(&all, "block/flush-4k/ide").is_unsteady());
}

#[test]
fn samples_of_no_time_or_nothing_done_divide_by_nothing() {
    let mut report = simple();
    for one in &mut report.variants {
        for sample in &mut one.samples {
            sample.load.elapsed_ns = 0;
            sample.load.operations = 0;
        }
    }
    let all = analyse(&report);
    assert!(
        all.iter()
            .all(|one| one.rate.is_none() && one.costs.is_none())
    );
}

#[test]
fn workloads_begin_with_the_direct_path() {
    let report = synthetic::report();
    let all = analyse(&report);
    let found = workloads(&all, Subject::Net);
    let names: Vec<&str> = found.iter().map(|workload| workload.name).collect();
    assert_eq!(
        names,
        ["udp-rtt-1", "udp-send-64", "udp-receive-1472", "tcp-send"]
    );
    let labels: Vec<String> = found[0].variants.iter().map(|one| one.label()).collect();
    let expected = [
        "direct: loopback",
        "container: veth",
        "sandbox: loopback",
        "igbvf",
        "virtio-net",
        "e1000",
    ];
    assert_eq!(labels, expected);
}

#[test]
fn a_curve_of_all_samples() {
    let report = synthetic::report();
    let one = &report.variants[0];
    let curve = latency::curve(one).unwrap();
    // 10000 operations: the last point has at least 10 beyond it.
    assert_eq!(curve.len(), 61);
    close(curve[60].slower, 1e-3);
    assert!(curve.is_sorted_by(|a, b| a.ns <= b.ns));
    let p50 = curve.iter().find(|point| point.slower < 0.51).unwrap().ns;
    let by_samples = latency::Percentiles::of(one).unwrap().p50;
    assert!((p50 / by_samples - 1.0).abs() < 0.02, "{p50} {by_samples}");
}

#[test]
fn a_damaged_histogram_is_told() {
    for text in ["*", "", "AAAA"] {
        let mut report = synthetic::report();
        report.variants[0].samples[0]
            .load
            .latency
            .as_mut()
            .unwrap()
            .histogram = text.to_owned();
        assert!(latency::curve(&report.variants[0]).is_err(), "{text:?}");
    }
}
