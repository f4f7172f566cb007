//! `tripath test --exec` and `--script`: commands in guests that have nothing of their own.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::runner::tells_of_double_delivery;
use crate::harness::vm::{BOOT, Exit, Running};
use crate::harness::{Ctx, E2eTest, tap, test};

/// The suite that is shipped has twenty tests.
const SUITE: Duration = Duration::from_secs(900);

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("test_exec::status_and_output", status_and_output).limit(200),
        test("test_exec::script_in_a_folder", script_in_a_folder),
        test("test_exec::image_keeps_what_is_written", image).limit(200),
        test("test_exec::panic_under_the_command", panic_under_command),
        test("test_exec::flood_and_leftovers", flood),
        test("test_exec::usage", usage),
        test("test_exec::shipped_suite", shipped_suite).limit(1000),
    ]
}

/// A kernel of the test bed, and its modules.
fn kernel(ctx: &Ctx, name: &str) -> Vec<OsString> {
    let folder = ctx.testbed.join(name);
    vec![
        "--kernel".into(),
        folder.join("vmlinuz").into(),
        "--modules".into(),
        folder.join("tree").into(),
    ]
}

struct Ran {
    exit: Exit,
    result: Value,
}

impl Ran {
    fn stdout(&self) -> &str {
        self.result["command"]["stdout"]
            .as_str()
            .unwrap_or_default()
    }
}

/// Runs a test of that kernel, and reads what it wrote down.
fn run(ctx: &Ctx, kernel_name: &str, options: &[&str]) -> Result<Ran> {
    let report = ctx.path("report.json");
    let mut args = kernel(ctx, kernel_name);
    args.extend(options.iter().map(Into::into));
    args.extend(["--json".into(), report.clone().into()]);
    let exit = Running::start(ctx, "test", &args)?.wait_exit(BOOT)?;
    let text = fs::read(&report).context("no report")?;
    let mut report: Value = serde_json::from_slice(&text)?;
    let result = report["tests"][0].take();
    Ok(Ran { exit, result })
}

/// With nothing but a kernel: the host's own files are there, and cannot be changed.
fn status_and_output(ctx: &Ctx) -> Result<()> {
    let mark = ctx.path("mark");
    fs::write(&mark, "of the host")?;
    for name in ["cloud61", "cloud612", "generic612"] {
        let release = fs::read_to_string(ctx.testbed.join(name).join("release"))?;
        let script = "uname -r; echo to stderr >&2; echo x >/etc/tripath-was-here && cat /etc/tripath-was-here; exit 7";
        let ran = run(ctx, name, &["--exec", script])?;
        ran.exit.expect_code(23)?;
        ensure!(ran.exit.says("the guest's command exited with status 7"));
        ensure!(
            ran.stdout() == format!("{}\nx\n", release.trim()),
            "{:?}",
            ran.stdout()
        );
        ensure!(ran.result["command"]["stderr"] == "to stderr\n");
        ensure!(
            !Path::new("/etc/tripath-was-here").exists(),
            "the host was changed"
        );
    }
    Ok(())
}

/// A folder with busybox in it.
fn small_root(ctx: &Ctx) -> Result<PathBuf> {
    let root = ctx.path("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(
        ctx.testbed.join("tools/bin/busybox"),
        root.join("bin/busybox"),
    )?;
    for applet in ["sh", "cat", "sync", "echo", "dd", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(root)
}

fn script_in_a_folder(ctx: &Ctx) -> Result<()> {
    let root = small_root(ctx)?;
    let script = ctx.path("check me.sh");
    fs::write(
        &script,
        "#!/bin/busybox sh\necho $0 says $(cat /new || echo nothing >/new; cat /new)\n",
    )?;
    let (root_text, script) = (root.display().to_string(), script.display().to_string());
    for _ in 0..2 {
        // What the first guest wrote, the second does not see.
        let ran = run(
            ctx,
            "cloud612",
            &["--rootfs", &root_text, "--script", &script],
        )?;
        ran.exit.expect_code(0)?;
        ensure!(
            ran.stdout() == "/run/tripath/check me.sh says nothing\n",
            "{:?}",
            ran.stdout()
        );
    }
    ensure!(!root.join("new").exists(), "the folder was changed");
    Ok(())
}

/// Written into the image by one guest, read from it by the next.
fn image(ctx: &Ctx) -> Result<()> {
    let root = small_root(ctx)?;
    let image = ctx.path("root.img");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-L", "ROOT", "-d"])
        .args([&root, &image])
        .arg("32M")
        .env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin")
        .status()
        .context("mke2fs")?;
    ensure!(made.success(), "mke2fs: {made}");
    let image = image.display().to_string();
    let writable = format!("{image},writable=on");
    let write = ["--rootfs", &writable, "--exec", "echo kept >/kept"];
    run(ctx, "generic612", &write)?.exit.expect_code(0)?;
    let read = ["--rootfs", &image, "--exec", "cat /kept; echo lost >/kept"];
    for _ in 0..2 {
        let ran = run(ctx, "generic612", &read)?;
        ran.exit.expect_code(0)?;
        ensure!(ran.stdout() == "kept\n", "{:?}", ran.stdout());
    }
    Ok(())
}

fn panic_under_command(ctx: &Ctx) -> Result<()> {
    let script = "echo before; echo c >/proc/sysrq-trigger; sleep 1000";
    let ran = run(ctx, "cloud61", &["--exec", script, "--timeout", "600s"])?;
    ran.exit.expect_code(11)?;
    ensure!(ran.exit.says("the guest panicked") && ran.exit.says("sysrq triggered crash"));
    ensure!(ran.stdout() == "before\n", "{:?}", ran.stdout());
    Ok(())
}

/// All of the output comes, binary as it is; a process that is left over holds nothing up.
fn flood(ctx: &Ctx) -> Result<()> {
    let script = "dd if=/dev/zero bs=1k count=300 2>/dev/null; echo END; sleep 1000 & exit 3";
    let mut args = kernel(ctx, "cloud612");
    args.extend(["--exec", script].map(Into::into));
    let mut command = Command::new(&ctx.binary);
    let output = command.arg("test").args(args).output()?;
    ensure!(output.status.code() == Some(23), "{}", output.status);
    let (zeros, end) = output.stdout.split_at(output.stdout.len().min(300 << 10));
    ensure!(zeros.iter().all(|byte| *byte == 0) && end == b"END\n");
    Ok(())
}

fn usage(ctx: &Ctx) -> Result<()> {
    let cloud = ctx.testbed.join("cloud61/vmlinuz").display().to_string();
    let kernel = ["--kernel", cloud.as_str()];
    for (options, text) in [
        (
            &["--exec", "true", "--modules", "/nowhere"][..],
            "--modules /nowhere",
        ),
        (
            &[
                "--exec",
                "true",
                "--modules",
                "none",
                "--rootfs",
                "/nowhere",
            ],
            "/nowhere",
        ),
        (
            &["--exec", "true", "--cmdline", "console=hvc0"],
            "console=hvc0, which is the command's own channel",
        ),
        (
            &["--rootfs", "host"],
            "--rootfs is for a command in the guest",
        ),
        (&["--exec", "a", "--script", "b"], "--script"),
        (
            &["--exec", "true", "--rootfs", "a,part=1"],
            "unknown key \"part\"",
        ),
    ] {
        let args: Vec<OsString> = kernel.iter().chain(options).map(Into::into).collect();
        let exit = Running::start(ctx, "test", &args)?.wait_exit(BOOT)?;
        exit.expect_code(2)?;
        ensure!(
            exit.says(text) && exit.messages().len() == 1,
            "{:?}",
            exit.messages()
        );
    }
    Ok(())
}

/// Three stock kernels, two machines, one CPU and two.
fn shipped_suite(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let disk = ctx.disk("disk.img", 2)?;
    let junit = ctx.path("junit.xml");
    let mut args: Vec<OsString> =
        vec![crate::harness::paths::source("resources/suites/boot.toml").into()];
    for (name, value) in [("KERNELS", &ctx.testbed), ("DISK", &disk)] {
        args.extend(["--set".into(), format!("{name}={}", value.display()).into()]);
    }
    args.extend(["--log".into(), ctx.path("logs").into()]);
    args.extend(["--jobs".into(), "2".into()]);
    args.extend(["--junit".into(), junit.clone().into()]);
    let report = ctx.path("report.json");
    args.extend(["--json".into(), report.clone().into()]);
    let exit = Running::start(ctx, "test", &args)?.wait_exit(SUITE)?;
    let crashed = crashed_in_tcg(&report)?;
    if crashed.is_empty() {
        exit.expect_code(0)?;
        ensure!(exit.says("20 of 20 tests passed"), "{:?}", exit.messages());
    }
    for name in &crashed {
        let again = [args.as_slice(), &["--filter".into(), name.into()]].concat();
        let exit = Running::start(ctx, "test", &again)?.wait_exit(SUITE)?;
        exit.expect_code(0)?;
        ensure!(exit.says("1 of 1 tests passed"), "{:?}", exit.messages());
    }
    let xml = fs::read_to_string(junit)?;
    ensure!(xml.contains("failures=\"0\""), "{xml}");
    Ok(())
}

/// The tests that failed by what an emulated L1 may do to its guests, see `harness::l1`. Any other that failed is an error.
fn crashed_in_tcg(report: &Path) -> Result<Vec<String>> {
    let report: Value = serde_json::from_slice(&fs::read(report)?)?;
    let mut names = Vec::new();
    for test in report["tests"].as_array().context("no tests")? {
        if test["passed"] == true {
            continue;
        }
        // The reason, and the console's lines around it.
        let failure = test["failure"].to_string();
        ensure!(
            tells_of_double_delivery(&failure),
            "{}: {failure}",
            test["name"]
        );
        names.push(test["name"].as_str().context("no name")?.to_owned());
    }
    Ok(names)
}
