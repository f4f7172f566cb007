use std::collections::BTreeSet;

use super::*;

fn options() -> PlanOptions {
    PlanOptions {
        subjects: vec![Subject::Block, Subject::Net, Subject::Console],
        quick: false,
        only: Vec::new(),
        warm_up_ms: 100,
        time_ms: 1000,
        span_bytes: 1 << 20,
        file_direct: true,
        containers: true,
        disk: None,
        nic: None,
    }
}

fn with_functions(overwrite: bool) -> PlanOptions {
    PlanOptions {
        disk: Some(DiskFunction {
            host_path: Some("/dev/nvme0n1".into()),
            overwrite,
        }),
        nic: Some(NicFunction {
            driver: "igbvf".to_owned(),
            on_host: true,
        }),
        ..options()
    }
}

fn names(variants: &[Variant]) -> Vec<&str> {
    variants
        .iter()
        .map(|one| one.result.name.as_str())
        .collect()
}

fn of_workload(variants: &[Variant], workload: &str) -> Vec<String> {
    let of = variants
        .iter()
        .filter(|one| one.result.workload == workload);
    of.map(|one| {
        let VariantResult {
            name,
            device,
            path,
            direct,
            ..
        } = &one.result;
        let place = name.rsplit('/').next().unwrap();
        let direct = direct
            .as_deref()
            .map(|name| name.rsplit('/').next().unwrap());
        format!("{place} {device} {path:?} {}", direct.unwrap_or("-"))
    })
    .collect()
}

#[test]
fn every_load_on_every_path() {
    let variants = plan(&options());
    // 7 loads on 5 paths, 8 on 5, 1 on 2.
    assert_eq!(variants.len(), 35 + 40 + 2);
    assert_eq!(
        of_workload(&variants, "seq-read-128k"),
        [
            "direct file Direct -",
            "container file Container direct",
            "sandbox file Sandbox direct",
            "virtio-blk virtio-blk Paravirtual direct",
            "ide ide Emulated direct",
        ]
    );
    assert_eq!(
        of_workload(&variants, "tcp-send"),
        [
            "direct loopback Direct -",
            "container veth Container direct",
            "sandbox loopback Sandbox direct",
            "virtio-net virtio-net Paravirtual direct",
            "e1000 e1000 Emulated direct",
        ]
    );
    assert_eq!(
        of_workload(&variants, "write"),
        [
            "virtio-console virtio-console Paravirtual -",
            "uart uart Emulated -"
        ]
    );
}

#[test]
fn functions_bring_baselines_of_their_own() {
    let variants = plan(&with_functions(true));
    assert_eq!(variants.len(), 77 + 7 * 4 + 8 * 4);
    assert_eq!(
        of_workload(&variants, "flush"),
        [
            "direct file Direct -",
            "container file Container direct",
            "sandbox file Sandbox direct",
            "direct-nvme nvme Direct -",
            "container-nvme nvme Container direct-nvme",
            "sandbox-nvme nvme Sandbox direct-nvme",
            "nvme nvme Passthrough direct-nvme",
            "virtio-blk virtio-blk Paravirtual direct",
            "ide ide Emulated direct",
        ]
    );
    assert!(
        of_workload(&variants, "udp-rr-1")
            .contains(&"igbvf igbvf Passthrough direct-igbvf".to_owned())
    );
}

#[test]
fn names_are_unique_and_every_direct_is_there() {
    for options in [options(), with_functions(true)] {
        let variants = plan(&options);
        let unique: BTreeSet<_> = names(&variants).into_iter().collect();
        assert_eq!(unique.len(), variants.len());
        for variant in &variants {
            if let Some(direct) = &variant.result.direct {
                assert!(unique.contains(direct.as_str()), "{direct}");
            }
        }
    }
}

#[test]
fn a_disk_that_is_not_to_be_overwritten_is_only_read() {
    let variants = plan(&with_functions(false));
    for variant in variants.iter().filter(|one| one.result.device == "nvme") {
        let Load::Block { operation, .. } = variant.result.spec.load else {
            panic!()
        };
        assert_eq!(operation, BlockOperation::Read, "{}", variant.result.name);
    }
    assert!(!of_workload(&variants, "rand-read-4k-d1").is_empty());
}

#[test]
fn a_function_without_a_driver_on_the_host_has_no_baselines() {
    let mut options = with_functions(true);
    options.disk.as_mut().unwrap().host_path = None;
    options.nic.as_mut().unwrap().on_host = false;
    let variants = plan(&options);
    let nvme = variants.iter().find(|one| one.target == Target::Nvme);
    // And nothing to be compared with.
    assert_eq!(nvme.unwrap().result.direct, None);
    assert!(!names(&variants).iter().any(|name| name.contains("direct-")));
}

#[test]
fn quick_is_a_part() {
    let quick = plan(&PlanOptions {
        quick: true,
        ..options()
    });
    let all = plan(&options());
    assert!(quick.len() < all.len() / 2);
    let subjects: BTreeSet<Subject> = quick.iter().map(|one| one.result.subject).collect();
    assert_eq!(subjects.len(), 3);
    for name in names(&quick) {
        assert!(names(&all).contains(&name));
    }
}

#[test]
fn only_some() {
    let only = |parts: &[&str]| {
        let only = parts.iter().map(|part| (*part).to_owned()).collect();
        plan(&PlanOptions { only, ..options() })
    };
    let variants = only(&["flush/virtio-blk", "console/"]);
    assert_eq!(
        names(&variants),
        [
            "block/flush/virtio-blk",
            "console/write/virtio-console",
            "console/write/uart"
        ]
    );
    // What it would be compared with is not measured.
    assert_eq!(variants[0].result.direct, None);
    assert!(only(&["nothing"]).is_empty());
}

#[test]
fn without_containers() {
    let variants = plan(&PlanOptions {
        containers: false,
        ..options()
    });
    assert!(variants.iter().all(|one| one.runner != Runner::Container));
    assert_eq!(variants.len(), 77 - 15);
}

#[test]
fn loads_say_where_and_how() {
    let variants = plan(&PlanOptions {
        file_direct: false,
        ..options()
    });
    let load = |name: &str| {
        let found = variants.iter().find(|one| one.result.name == name);
        found.unwrap().result.spec.load.clone()
    };
    let Load::Block {
        path,
        direct,
        depth,
        size_bytes,
        ..
    } = load("block/rand-write-4k-d32/ide")
    else {
        panic!()
    };
    assert_eq!((path.to_str().unwrap(), direct), ("/dev/sda", true));
    assert_eq!((depth, size_bytes), (32, 4096));
    let Load::Block { direct, .. } = load("block/flush/sandbox") else {
        panic!()
    };
    assert!(!direct);
    let mut tcp = load("net/tcp-send/e1000");
    set_peer(&mut tcp, "198.18.0.1:5".parse().unwrap());
    assert_eq!(
        tcp,
        Load::TcpSend {
            peer: "198.18.0.1:5".parse().unwrap()
        }
    );
}

#[test]
fn a_seed_repeats_the_orders_and_groups_stay_together() {
    let variants = plan(&options());
    let orders = |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..10)
            .map(|_| order(&variants, &mut random))
            .collect::<Vec<_>>()
    };
    assert_eq!(orders(3), orders(3));
    assert_ne!(orders(3), orders(4));
    let first: BTreeSet<Runner> = orders(3).iter().map(|order| order[0].0).collect();
    assert!(first.len() > 1, "always the same one first");
    for order in orders(3) {
        let mut seen = BTreeSet::new();
        for (runner, indices) in order {
            for index in indices {
                assert_eq!(variants[index].runner, runner);
                seen.insert(index);
            }
        }
        assert_eq!(seen.len(), variants.len());
    }
}
