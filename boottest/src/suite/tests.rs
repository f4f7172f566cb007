//! Suites from their text, and running them with processes that stand in for tests.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::guest::WrittenModules;
use crate::report::TestResult;

fn parse(text: &str) -> Result<Suite, String> {
    let set = [("FROM_SET".to_owned(), "/set".to_owned())];
    let environment = [
        ("FROM_SET".to_owned(), "/environment".to_owned()),
        ("FROM_ENV".to_owned(), "/environment".to_owned()),
    ];
    let set = set.into_iter().filter(|_| text.contains("FROM_SET"));
    let variables = Variables::new(set, environment);
    Suite::parse(text, Path::new("/suites/s.toml"), &variables).map_err(|error| error.to_string())
}

const SUITE: &str = r#"
    [variables]
    FROM_SET = "/default"
    FROM_ENV = "/default"
    FROM_FILE = "/default"

    [defaults]
    timeout = "90s"
    expect = ["${not a variable}"]

    [[kernel]]
    name = "old"
    kernel = "${FROM_SET}/k"

    [[kernel]]
    name = "new"
    kernel = "${FROM_ENV}/k"
    modules = "${FROM_FILE}/modules"

    [[machine]]
    name = "virtio"
    disk = [{ path = "disk.img", readonly = true }]

    [[machine]]
    name = "emulated"
    disk = [{ path = "/disk.img", if = "ide" }]

    [matrix]
    cpus = [1, 2]
    exclude = [{ kernel = "old", machine = "emulated", cpus = 2 }, { test = "one", machine = "emulated" }]

    [[test]]
    name = "boot"

    [[test]]
    name = "one"
    kernels = ["new"]
    cpus = 1
    expect = []
    reject = ["x"]
    timeout = 5
    end = "poweroff"
"#;

#[test]
fn the_matrix_and_its_layers() {
    let suite = parse(&SUITE.replace("${not a variable}", "$[{]")).unwrap();
    let names: Vec<_> = suite.tests.iter().map(|test| test.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "boot/old/virtio/1cpu",
            "boot/old/virtio/2cpu",
            "boot/old/emulated/1cpu",
            "boot/new/virtio/1cpu",
            "boot/new/virtio/2cpu",
            "boot/new/emulated/1cpu",
            "boot/new/emulated/2cpu",
            "one/new/virtio"
        ]
    );
    let first = &suite.tests[0];
    assert_eq!(first.machine.kernel.as_deref(), Some(Path::new("/set/k")));
    let disks = first.machine.disk.as_ref().unwrap();
    assert_eq!(disks[0].path, Path::new("/suites/disk.img"));
    let last = &suite.tests[7];
    assert_eq!(
        last.machine.kernel.as_deref(),
        Some(Path::new("/environment/k"))
    );
    assert_eq!(
        last.guest.modules,
        Some(WrittenModules::Folder("/default/modules".into()))
    );
    assert_eq!(last.asked.timeout.unwrap().to_string(), "5s");
    assert_eq!(first.asked.timeout.unwrap().to_string(), "1m 30s");
    assert_eq!(suite.name, "s");
}

#[test]
fn tests_are_chosen_by_name() {
    let kept = |filters: &[&str]| {
        let mut suite = parse(&SUITE.replace("${not a variable}", "x")).unwrap();
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        suite.keep(&filters);
        suite.tests.len()
    };
    assert_eq!(kept(&[]), 8);
    assert_eq!(kept(&["emulated"]), 3);
    assert_eq!(kept(&["one/new/virtio"]), 1);
    assert_eq!(kept(&["boot/old/virtio/1cpu", "2cpu"]), 4);
    assert_eq!(kept(&["nothing"]), 0);
}

#[test]
fn every_mistake_is_one_line_with_its_place() {
    for (text, message) in [
        ("x", "line 1: "),
        ("[[test]]", "test 1: name is missing"),
        ("", "there is no test: add [[test]] with a name"),
        ("tests = 1", "line 1: unknown field \"tests\""),
        ("[[test]]\nname = \"a/b\"", "test \"a/b\": name: "),
        (
            "[[test]]\nname = \"a\"",
            "test \"a\": no kernel is given: give --kernel PATH",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"k\"\ncpu = 1",
            "test \"a\": unknown field \"cpu\", expected one of ",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"k\"\ntimeout = \"x\"",
            "test \"a\": timeout: \"x\" is not a time: write 60s, 500ms or 2m",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"k\"\nend = \"stop\"",
            "test \"a\": end: unknown variant \"stop\"",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"k\"\nexpect = [\"(\"]",
            "test \"a\": \"(\" is not a regular expression: unclosed group",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"${K}\"",
            "test \"a\": kernel: ${K} is not among the [variables]",
        ),
        (
            "[variables]\nK = \"\"\n[[test]]\nname = \"a\"\nkernel = \"${K}\"",
            "test \"a\": kernel: K is not set: give --set K=VALUE",
        ),
        (
            "[[test]]\nname = \"FROM_SET\"\nkernel = \"k\"",
            "--set FROM_SET: there is no such variable; [variables] has none",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"k\"\nkernels = [\"b\"]",
            "test \"a\": kernels: there is no kernel \"b\"; there are: none",
        ),
        (
            "[matrix]\nexclude = [{ machine = \"m\" }]\n[[test]]\nname = \"a\"\nkernel = \"k\"",
            "[matrix]: exclude: there is no machine \"m\"",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"k\"\n[[test]]\nname = \"a\"",
            "test \"a\": there are two of that name",
        ),
        (
            "[defaults]\nmemory = \"x\"\n[[test]]\nname = \"a\"",
            "[defaults]: memory: \"x\" is not a size",
        ),
        (
            "[[test]]\nname = \"a\"\nkernel = \"k\"\ncpus = 0",
            "test \"a\": a guest with 0 CPUs cannot run",
        ),
    ] {
        let told = parse(text).unwrap_err();
        let told = told.strip_prefix("/suites/s.toml: ").unwrap();
        assert!(told.starts_with(message), "{text}: {told}");
        assert!(!told.contains('\n'), "{told}");
    }
}

fn spec(name: &str, memory: &str) -> TestSpec {
    let text = format!("[[test]]\nname = \"{name}\"\nkernel = \"k\"\nmemory = \"{memory}\"");
    parse(&text).unwrap().tests.remove(0)
}

/// Runs shell scripts in place of tests; each begins in its test's folder.
fn run(tests: &[TestSpec], jobs: usize, memory_bytes: u64, script: &str) -> Vec<TestResult> {
    let logs = tempfile::tempdir().unwrap();
    let script = script.to_owned();
    let command = move |folder: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(folder);
        command
    };
    let rerun = |name: &str| format!("again {name}");
    let events = Mutex::new(Vec::new());
    let on_event = |event: Event<'_>| events.lock().unwrap().push(format!("{event:?}"));
    let limits = (jobs, memory_bytes);
    let pool = Pool::new(limits, logs.path(), &command, &rerun, &on_event);
    let results = pool.run(tests).unwrap();
    assert_eq!(events.lock().unwrap().len(), 2 * tests.len());
    results
}

const PASS: &str = r#"echo '{"name":"t","passed":true,"exit_code":0,"failure":null,"guest_end":"","resets":0,
    "milestones":[],"duration_s":1.0,"console":{"bytes":0,"lines":0,"left_out_lines":0,"last_lines":[]},
    "machine":null,"command":null,"stats":null,"logs":null,"rerun":null}' > result.json"#;

#[test]
fn a_tests_process_leaves_a_result_or_is_told_of() {
    let tests = [spec("a", "64M"), spec("b", "64M")];
    let passed = run(&tests, 2, 1 << 30, PASS);
    assert!(passed.iter().all(|result| result.passed));
    let reason = |script: &str| {
        let mut results = run(&tests[..1], 1, 1 << 30, script);
        let result = results.remove(0);
        assert_eq!(
            (result.exit_code, result.rerun.as_deref()),
            (1, Some("again a"))
        );
        result.failure.unwrap().reason
    };
    assert_eq!(
        reason("echo tripath: no KVM >&2; exit 2"),
        "its process ended with exit code 2 and no result: tripath: no KVM"
    );
    let killed = format!("{PASS}; kill -9 $$");
    assert_eq!(reason(&killed), "its process was killed by signal 9");
    assert!(reason("echo nonsense > result.json").contains("no result"));
}

#[test]
fn memory_limits_how_many_run_at_once() {
    // Each is alone in a folder that all share, or says that it is not.
    let tests: Vec<_> = (0..4).map(|n| spec(&format!("t{n}"), "256M")).collect();
    let script = format!("mkdir ../busy || exit 3; {PASS}; rmdir ../busy");
    let results = run(&tests, 4, 300 << 20, &script);
    assert!(results.iter().all(|result| result.passed), "{results:?}");
    let too_large = run(&tests[..1], 4, 1, PASS);
    assert!(too_large[0].passed);
}

#[test]
fn an_interrupt_ends_what_runs_and_starts_no_more() {
    let logs = tempfile::tempdir().unwrap();
    let tests: Vec<_> = (0..3).map(|n| spec(&format!("t{n}"), "64M")).collect();
    let (reader, writer) = std::io::pipe().unwrap();
    let command = |folder: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", "exec sleep 600"]).current_dir(folder);
        command
    };
    let started = AtomicU32::new(0);
    let on_event = |event: Event<'_>| {
        if matches!(event, Event::Started(_)) {
            started.fetch_add(1, Ordering::SeqCst);
            use std::io::Write;
            (&writer).write_all(b"x").unwrap();
        }
    };
    let rerun = |_: &str| String::new();
    let pool = Pool::new((1, 1 << 30), logs.path(), &command, &rerun, &on_event);
    let results = std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Read;
            (&reader).read_exact(&mut [0]).unwrap();
            pool.interrupt();
        });
        pool.run(&tests).unwrap()
    });
    assert_eq!(started.load(Ordering::SeqCst), 1);
    assert!(results.iter().all(|result| result.exit_code == 1));
}
