//! `tripath test`: each verdict, from guests that really do it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::host::wait_until;
use crate::harness::vm::{BOOT, Exit, Running, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

/// From a guest's death to the end of the test that it was in, whatever the time limit. This much is promised.
const DEATH_TO_EXIT: Duration = Duration::from_secs(2);
/// A time limit that no test here reaches.
const LONG: &str = "600s";

pub fn tests() -> Vec<E2eTest> {
    let mut tests = vec![
        test("test_cmd::passes_as_soon_as_expected", passes_at_once).alone(),
        test("test_cmd::ends", ends).limit(240),
        test("test_cmd::panic_without_notifier", |ctx| {
            let vm = job(ctx, "echo c >/proc/sysrq-trigger; sleep 1000");
            dies(
                vm,
                "end Kernel panic",
                11,
                &["the guest panicked", "sysrq triggered crash"],
            )
        })
        .alone(),
        test("test_cmd::panic_with_notifier", |ctx| {
            let vm = job(ctx, "echo c >/proc/sysrq-trigger; sleep 1000");
            let vm = vm.module("pvpanic-mmio").module("pvpanic-pci");
            dies(
                vm,
                "Kernel panic",
                11,
                &["the guest panicked", "sysrq triggered crash"],
            )
        })
        .alone(),
        test("test_cmd::oops", |ctx| {
            dies(
                oops(ctx),
                "Oops: ",
                11,
                &["a fault in the guest's kernel", "RIP: "],
            )
        })
        .alone(),
        test("test_cmd::init_ends", |ctx| {
            let vm = new(ctx).cpus(2).init("#!/bin/busybox sh\nexit 7\n");
            dies(
                vm,
                "end Kernel panic",
                11,
                &["its init has ended", "exitcode=0x00000700"],
            )
        })
        .alone(),
        test("test_cmd::no_root", |ctx| {
            let vm = new(ctx).word("rdinit=/none").word("root=/dev/none");
            dies(
                vm,
                "end Kernel panic",
                11,
                &["it cannot mount its root file system"],
            )
        })
        .alone(),
        test("test_cmd::emergency_shell", |ctx| {
            let vm = job(ctx, "echo DYING; printf '\\r\\n(initramfs) '; sleep 1000");
            dies(vm, "DYING", 11, &["emergency shell", "(initramfs)"])
        })
        .alone(),
        test("test_cmd::triple_fault", |ctx| {
            let vm = job(ctx, "echo DYING; reboot -f; sleep 1000").word("reboot=t");
            dies(
                vm,
                "reboot: Restarting",
                12,
                &["triple fault on vCPU 0", "rip"],
            )
        })
        .alone()
        .triple_faults(true),
        test("test_cmd::reset_loop", reset_loop).alone(),
        test("test_cmd::hung_task", hung_task).alone(),
        test("test_cmd::hung_before_the_first_byte", hung_at_start).alone(),
        test("test_cmd::silent_after_boot", silent_after_boot).alone(),
        test("test_cmd::rejected", |ctx| {
            let vm = job(ctx, "echo one; echo BAD thing; sleep 1000");
            let vm = vm.option("--reject", r"BAD \w+");
            dies(
                vm,
                "BAD thing",
                22,
                &["rejected: /BAD \\w+/", "| one", "| BAD thing"],
            )
        })
        .alone(),
    ];
    tests.extend([
        test("test_cmd::expectation_never_met", |ctx| {
            let vm = job(ctx, "echo GUEST-UP").option("--end", "poweroff");
            let exit = vm.option("--expect", "NEVER").spawn()?.wait_exit(BOOT)?;
            says(
                &exit,
                20,
                &[
                    "the expectation /NEVER/ was not met",
                    "the guest powered off",
                ],
            )
        }),
        test("test_cmd::timeout", timeout).alone(),
        test("test_cmd::flood", flood),
        test("test_cmd::dialogue_and_reports", dialogue),
        test("test_cmd::suite", suite).limit(240),
        test("test_cmd::suite_interrupted", suite_interrupted),
        test("test_cmd::usage", usage),
    ]);
    tests
}

/// A guest under test, whose console is to be seen.
fn new(ctx: &Ctx) -> Vm<'_> {
    Vm::new(ctx).command("test").arg("--show-console")
}

fn job<'a>(ctx: &'a Ctx, script: &str) -> Vm<'a> {
    new(ctx).job(script)
}

fn says(exit: &Exit, code: i32, texts: &[&str]) -> Result<()> {
    exit.expect_code(code)?;
    let messages = exit.messages();
    for text in texts {
        let told = |line: &&&str| line.starts_with("tripath: ") && line.contains(text);
        ensure!(
            messages.iter().find(told).is_some(),
            "no message with {text:?}"
        );
    }
    Ok(())
}

/// The guest dies with a line that contains `death`, long before any limit.
fn dies(vm: Vm<'_>, death: &str, code: i32, texts: &[&str]) -> Result<()> {
    let vm = vm.option("--expect", "NEVER").option("--end", "poweroff");
    let mut vm = vm.option("--timeout", LONG).spawn()?;
    let line = vm.wait_for(death, BOOT)?;
    let exit = vm.wait_exit(BOOT)?;
    let delay = exit.at.saturating_duration_since(line.at);
    println!("ended {delay:?} after the guest's death");
    ensure!(
        delay < DEATH_TO_EXIT,
        "ended {delay:?} after the guest's death"
    );
    says(&exit, code, texts)
}

fn passes_at_once(ctx: &Ctx) -> Result<()> {
    let vm = job(ctx, "printf 'GUEST-UP login: '; sleep 1000");
    let vm = vm
        .option("--expect", "^GUEST-UP")
        .option("--expect", "login: ");
    let exit = vm.option("--timeout", LONG).spawn()?.wait_exit(BOOT)?;
    says(&exit, 0, &["passed in "])
}

fn ends(ctx: &Ctx) -> Result<()> {
    for (end, script, code) in [
        ("poweroff", "echo GUEST-UP", 0),
        ("reboot", "echo GUEST-UP; reboot -f; sleep 1000", 0),
        (
            "panic",
            "echo GUEST-UP; echo c >/proc/sysrq-trigger; sleep 1000",
            0,
        ),
        ("reboot", "echo GUEST-UP", 20),
        (
            "poweroff",
            "echo GUEST-UP; echo c >/proc/sysrq-trigger; sleep 1000",
            11,
        ),
    ] {
        let vm = job(ctx, script).option("--end", end);
        let exit = vm.option("--expect", "GUEST-UP").spawn()?.wait_exit(BOOT)?;
        exit.expect_code(code)
            .with_context(|| format!("{script:?} with --end {end}"))?;
    }
    Ok(())
}

/// A driver is removed by force while a program has its device open: the program's next call finds no code.
fn oops(ctx: &Ctx) -> Vm<'_> {
    job(
        ctx,
        "echo GUEST-UP; exec 3</dev/input/event0; rmmod -f evdev; dd bs=24 count=1 <&3; sleep 1000",
    )
    .kernel(Kernel::Generic612)
    .module("button")
    .module("evdev")
}

fn reset_loop(ctx: &Ctx) -> Result<()> {
    let vm = job(ctx, "echo GUEST-UP; reboot -f; sleep 1000");
    let vm = vm.option("--expect", "NEVER").option("--timeout", LONG);
    let mut vm = vm.spawn()?;
    for _ in 0..2 {
        vm.wait_for("GUEST-UP", BOOT)?;
    }
    let last = vm.wait_for("reboot: Restarting system", BOOT)?;
    let exit = vm.wait_exit(BOOT)?;
    ensure!(exit.at.saturating_duration_since(last.at) < DEATH_TO_EXIT);
    says(&exit, 12, &["reset loop: it was reset 2 times"])
}

/// A file system is frozen, and a program writes to it.
fn hung_task(ctx: &Ctx) -> Result<()> {
    let disk = ctx.disk("ext4.img", 16)?;
    let mkfs = std::process::Command::new("/sbin/mkfs.ext4")
        .args(["-q", "-F"])
        .arg(&disk)
        .env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin")
        .status()
        .context("mkfs.ext4")?;
    ensure!(mkfs.success(), "mkfs.ext4: {mkfs}");
    let vm = job(
        ctx,
        "echo 2 >/proc/sys/kernel/hung_task_timeout_secs; mkdir /m; mount /dev/vda /m; fsfreeze --freeze /m
         echo FROZEN; dmesg -n 8; touch /m/file; sleep 1000",
    );
    let vm = vm.kernel(Kernel::Generic612).module("ext4").disk(&disk, "");
    dies(
        vm,
        "blocked for more than",
        11,
        &["a task of the guest hangs", "touch"],
    )
}

/// The kernel's first instruction jumps to itself.
fn hung_at_start(ctx: &Ctx) -> Result<()> {
    let mut kernel = std::fs::read(ctx.kernel(Kernel::Cloud61Elf))?;
    let entry = entry_offset(&kernel).context("no entry point")?;
    kernel[entry..entry + 2].copy_from_slice(&[0xeb, 0xfe]);
    let path = ctx.path("vmlinux");
    std::fs::write(&path, kernel)?;
    let mut args = vec!["--kernel".into(), path.into()];
    for arg in ["--expect", "x", "--quiet-timeout", "3s", "--timeout", LONG] {
        args.push(arg.into());
    }
    let exit = Running::start(ctx, "test", &args)?.wait_exit(BOOT)?;
    says(&exit, 21, &["printed nothing for 3 s since it was started"])
}

/// Where in an ELF file (System V ABI, chapter 4) its first instruction is.
fn entry_offset(elf: &[u8]) -> Option<usize> {
    let number = |at: usize| {
        let bytes = elf.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (entry, headers) = (number(24)?, number(32)?);
    let count = usize::from(*elf.get(56)?);
    (0..count).find_map(|index| {
        let header = headers + index * 56;
        let (offset, physical, size) = (
            number(header + 8)?,
            number(header + 24)?,
            number(header + 32)?,
        );
        let inside = elf.get(header) == Some(&1) && (physical..physical + size).contains(&entry);
        inside.then(|| offset + entry - physical)
    })
}

fn silent_after_boot(ctx: &Ctx) -> Result<()> {
    let vm = job(ctx, "echo GUEST-UP; sleep 1000").word("ignore_loglevel");
    let vm = vm.option("--expect", "NEVER").option("--timeout", LONG);
    let mut vm = vm.option("--quiet-timeout", "10s").spawn()?;
    let line = vm.wait_for("GUEST-UP", BOOT)?;
    let exit = vm.wait_exit(BOOT)?;
    let silence = exit.at.saturating_duration_since(line.at);
    ensure!(
        silence < Duration::from_secs(10) + DEATH_TO_EXIT,
        "{silence:?}"
    );
    says(
        &exit,
        21,
        &[
            "printed nothing for 10 s: the expectation /NEVER/",
            "| GUEST-UP",
        ],
    )
}

fn timeout(ctx: &Ctx) -> Result<()> {
    let vm = job(ctx, "while sleep 1; do echo tick; done");
    let vm = vm.option("--expect", "NEVER").option("--timeout", "15s");
    let exit = vm.spawn()?.wait_exit(BOOT)?;
    says(
        &exit,
        21,
        &["time ran out after 15 s: the expectation /NEVER/ was not met"],
    )
}

fn json(path: PathBuf) -> Result<Value> {
    let text = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Noise, sequences that stay open, and a line without an end change nothing.
fn flood(ctx: &Ctx) -> Result<()> {
    let logs = ctx.path("logs");
    let junit = ctx.path("junit.xml");
    let vm = Vm::new(ctx).command("test").job(
        "dd if=/dev/urandom bs=1k count=48 2>/dev/null; tr '\\0' x </dev/zero | dd bs=1k count=48 2>/dev/null
         printf '\\033]0;open'; echo; echo DONE",
    );
    let vm = vm.option("--expect", "DONE").option("--end", "poweroff");
    let vm = vm.option("--log", &logs).option("--junit", &junit);
    let exit = vm.spawn()?.wait_exit(BOOT)?;
    exit.expect_code(0)?;
    let console = std::fs::read_to_string(logs.join("console.log"))?;
    let clean = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    ensure!(console.chars().all(clean), "control characters in the log");
    ensure!(std::fs::read_to_string(junit)?.contains("failures=\"0\""));
    let result = json(logs.join("result.json"))?;
    ensure!(
        result["console"]["bytes"].as_u64() > Some(90_000),
        "{}",
        result["console"]
    );
    Ok(())
}

/// What is typed in answer to what appears, in a suite of one; and what the logs say.
fn dialogue(ctx: &Ctx) -> Result<()> {
    let text = format!(
        "[[test]]\nname = 'dialogue'\n{}\nend = 'poweroff'\n\
         steps = [{{ expect = 'name: ', send = \"root\\n\" }}]\nexpect = ['hello root']\n",
        machine(ctx, "printf 'name: '; read name; echo hello $name")?
    );
    let exit = run_suite(ctx, &text, &[])?;
    exit.expect_code(0)?;
    let folder = ctx.path("logs/dialogue");
    let result = json(folder.join("result.json"))?;
    let reached: Vec<_> = result["milestones"]
        .as_array()
        .context("no milestones")?
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    for name in [
        "kernel-entered",
        "first-output",
        "expectation-2",
        "guest-ended",
        "verdict",
    ] {
        ensure!(reached.contains(&name), "{name} is not among {reached:?}");
    }
    ensure!(
        result["stats"]["exits"]
            .as_array()
            .is_some_and(|rows| !rows.is_empty())
    );
    for name in ["console.log", "machine.toml", "test.toml"] {
        ensure!(folder.join(name).exists(), "no {name}");
    }
    Ok(())
}

/// The machine of a guest with that job, as keys of a suite.
fn machine(ctx: &Ctx, script: &str) -> Result<String> {
    let (kernel, initrd) = Vm::new(ctx).job(script).files()?;
    Ok(format!(
        "kernel = '{}'\ninitrd = '{}'\ncmdline = 'console=ttyS0 quiet'\nmemory = '128M'",
        kernel.display(),
        initrd.display()
    ))
}

fn start_suite(ctx: &Ctx, text: &str, options: &[&str]) -> Result<Running> {
    let path = ctx.path("suite.toml");
    std::fs::write(&path, text)?;
    let mut args = vec![path.into(), "--log".into(), ctx.path("logs").into()];
    args.extend(options.iter().map(Into::into));
    Running::start(ctx, "test", &args)
}

fn run_suite(ctx: &Ctx, text: &str, options: &[&str]) -> Result<Exit> {
    start_suite(ctx, text, options)?.wait_exit(Duration::from_secs(200))
}

fn suite(ctx: &Ctx) -> Result<()> {
    let text = format!(
        "[defaults]\n{}\n[matrix]\ncpus = [1, 2]\n\
         [[test]]\nname = 'good'\nexpect = ['GUEST-UP']\n\
         [[test]]\nname = 'bad'\nexpect = ['NEVER']\nend = 'poweroff'\n\
         [[test]]\nname = 'worse'\nreject = ['GUEST']\nexpect = ['NEVER']\n",
        machine(ctx, "echo GUEST-UP; sleep 1")?
    );
    let (junit, report) = (ctx.path("junit.xml"), ctx.path("report.json"));
    let (junit_text, report_text) = (junit.display().to_string(), report.display().to_string());
    let options = [
        "--jobs",
        "2",
        "--junit",
        &junit_text,
        "--json",
        &report_text,
    ];
    let exit = run_suite(ctx, &text, &options)?;
    says(
        &exit,
        20,
        &[
            "2 of 6 tests passed",
            "run it again: tripath test",
            "--filter worse/2cpu",
        ],
    )?;
    let xml = std::fs::read_to_string(&junit)?;
    ensure!(
        xml.contains("tests=\"6\"") && xml.contains("failures=\"4\""),
        "{xml}"
    );
    let codes: Vec<_> = json(report)?["tests"]
        .as_array()
        .context("no tests")?
        .iter()
        .filter_map(|one| one["exit_code"].as_i64())
        .collect();
    ensure!(codes == [0, 0, 20, 20, 22, 22], "{codes:?}");
    let listed = run_suite(ctx, &text, &["--list", "--filter", "2cpu"])?;
    listed.expect_code(0)?;
    ensure!(listed.says("worse/2cpu") && !listed.says("1cpu"));
    let one = run_suite(ctx, &text, &["--filter", "good/2cpu"])?;
    says(&one, 0, &["1 of 1 tests passed"])
}

fn suite_interrupted(ctx: &Ctx) -> Result<()> {
    let text = format!(
        "[defaults]\n{}\ntimeout = '600s'\n[[test]]\nname = 'a'\nexpect = ['NEVER']\n",
        machine(ctx, "sleep 1000")?
    );
    let suite = start_suite(ctx, &text, &[])?;
    // The test's own process shows by its log, which it makes before its guest runs.
    let log = ctx.path("logs/a/console.log");
    wait_until("log of the test", || log.exists())?;
    suite.signal(Signal::TERM)?;
    let exit = suite.wait_exit(Duration::from_secs(20))?;
    says(&exit, 1, &["interrupted"])
}

fn usage(ctx: &Ctx) -> Result<()> {
    let suite = ctx.path("s.toml");
    std::fs::write(&suite, "[[test]]\nname = 'a'\nkernel = 'k'\nexpec = []\n")?;
    let suite = suite.display().to_string();
    for (options, text) in [
        (&["--expect", "x"][..], "no kernel is given"),
        (&["--kernel", "/k", "--expect", "("], "unclosed group"),
        (
            &["--kernel", "/k", "--timeout", "soon"],
            "\"soon\" is not a time",
        ),
        (&["--kernel", "/k", "--jobs", "2"], "--jobs is for a suite"),
        (&["--kernel", "/k", "--on-panic", "hang"], "--end"),
        (
            &["--kernel", "/k", "--serial", "null", "--expect", "x"],
            "no console is heard",
        ),
        (&[&suite], "test \"a\": unknown field \"expec\""),
        (&[&suite, "--expect", "x"], "do not go with a suite"),
        (&["/nowhere.toml"], "/nowhere.toml: cannot be read"),
    ] {
        let args: Vec<_> = options.iter().map(Into::into).collect();
        let exit = Running::start(ctx, "test", &args)?.wait_exit(BOOT)?;
        says(&exit, 2, &[text])?;
        ensure!(exit.messages().len() == 1, "more than one line");
    }
    Ok(())
}
