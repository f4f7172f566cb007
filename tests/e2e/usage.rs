//! What the user can get wrong on the command line: one clear line, exit code 2, nothing left behind.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::harness::vm::{BOOT, Exit, Running, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

/// A mistake is found before anything is created, so it does not take long, not even under emulation.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Name, options beside a good kernel, and what the message has to name.
type Mistake = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const MISTAKES: &[Mistake] = &[
    ("cpus_zero", &["--cpus", "0"], &["cpu", "0"]),
    ("cpus_too_many", &["--cpus", "100000"], &["cpu", "100000"]),
    ("cpus_no_number", &["--cpus", "many"], &["cpu", "many"]),
    ("memory_zero", &["--memory", "0"], &["memory"]),
    ("memory_too_little", &["--memory", "1M"], &["memory", "64"]),
    ("memory_too_much", &["--memory", "1000000G"], &["memory"]),
    ("memory_no_size", &["--memory", "12Q"], &["memory", "12Q"]),
    (
        "disk_unknown_key",
        &["--disk", "path=x,colour=red"],
        &["colour", "readonly"],
    ),
    (
        "disk_unknown_value",
        &["--disk", "path=x,readonly=maybe"],
        &["readonly", "maybe"],
    ),
    (
        "disk_unknown_kind",
        &["--disk", "path=x,if=floppy"],
        &["floppy", "virtio"],
    ),
    ("disk_without_path", &["--disk", "readonly=on"], &["path"]),
    ("disk_key_twice", &["--disk", "path=a,path=b"], &["path"]),
    (
        "net_unknown_key",
        &["--net", "tap=t0,speed=9"],
        &["speed", "mac"],
    ),
    (
        "net_bad_mac",
        &["--net", "tap=t0,mac=12:34"],
        &["mac", "12:34"],
    ),
    (
        "net_without_tap",
        &["--net", "mac=52:54:00:00:00:01"],
        &["tap"],
    ),
    (
        "serial_unknown",
        &["--serial", "teletype"],
        &["teletype", "stdio"],
    ),
    (
        "console_unknown",
        &["--console", "teletype"],
        &["teletype", "stdio"],
    ),
    (
        "on_reboot_unknown",
        &["--on-reboot", "dance"],
        &["dance", "restart"],
    ),
    (
        "on_panic_unknown",
        &["--on-panic", "dance"],
        &["dance", "hang"],
    ),
    (
        "option_unknown",
        &["--no-such-option"],
        &["--no-such-option"],
    ),
    (
        "five_serial_ports",
        &[
            "--serial", "null", "--serial", "null", "--serial", "null", "--serial", "null",
            "--serial", "null",
        ],
        &["serial"],
    ),
    (
        "stdio_twice",
        &["--serial", "stdio", "--console", "stdio"],
        &["stdio"],
    ),
    (
        "config_missing",
        &["--config", "nowhere.toml"],
        &["nowhere.toml"],
    ),
];

pub fn tests() -> Vec<E2eTest> {
    let mut tests: Vec<E2eTest> = MISTAKES
        .iter()
        .map(|(name, options, named)| {
            test(format!("usage::{name}"), move |ctx| {
                let mut args = vec!["--kernel".into(), ctx.kernel(Kernel::Cloud61).into()];
                args.extend(options.iter().map(OsString::from));
                mistake(ctx, &args, named)
            })
        })
        .collect();
    tests.extend([
        test("usage::no_kernel", |ctx| mistake(ctx, &[], &["--kernel"])),
        test("usage::config_is_no_toml", config_is_no_toml),
        test("usage::config_unknown_key", config_unknown_key),
        test("usage::config_says_the_same", config_says_the_same),
        test("usage::doctor", doctor),
        test("usage::stats", stats),
    ]);
    tests
}

/// Runs `tripath run ARGS` in an empty folder, and checks what it says and leaves behind.
pub fn mistake(ctx: &Ctx, args: &[OsString], named: &[&str]) -> Result<()> {
    let exit = run_in_empty_folder(ctx, args)?;
    exit.expect_code(2)?;
    let messages: Vec<&str> = exit
        .messages()
        .into_iter()
        .filter(|m| !m.is_empty())
        .collect();
    ensure!(messages.len() == 1, "not one line: {messages:#?}");
    for name in named {
        ensure!(exit.says(name), "the message does not name {name:?}");
    }
    Ok(())
}

fn run_in_empty_folder(ctx: &Ctx, args: &[OsString]) -> Result<Exit> {
    let folder = ctx.path("empty");
    std::fs::create_dir(&folder)?;
    let mut command = std::process::Command::new(&ctx.binary);
    command
        .arg("run")
        .args(args)
        .current_dir(&folder)
        // All places where a program may want to leave something.
        .env("HOME", &folder)
        .env("XDG_CACHE_HOME", &folder)
        .env("XDG_RUNTIME_DIR", &folder)
        .env("TMPDIR", &folder)
        .env_remove("RUST_BACKTRACE");
    let exit = Running::spawn(command, ctx)?.wait_exit(AT_ONCE)?;
    let left: Vec<_> = std::fs::read_dir(&folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    std::fs::remove_dir(&folder)?;
    Ok(exit)
}

fn config_with(ctx: &Ctx, text: &str) -> Result<Vec<OsString>> {
    let path = ctx.path("machine.toml");
    std::fs::write(&path, text)?;
    Ok(vec![
        "--kernel".into(),
        ctx.kernel(Kernel::Cloud61).into(),
        "--config".into(),
        path.into(),
    ])
}

fn config_is_no_toml(ctx: &Ctx) -> Result<()> {
    mistake(
        ctx,
        &config_with(ctx, "this is = = no toml")?,
        &["machine.toml"],
    )
}

fn config_unknown_key(ctx: &Ctx) -> Result<()> {
    mistake(
        ctx,
        &config_with(ctx, "colour = \"red\"\n")?,
        &["machine.toml", "colour"],
    )
}

/// What `--dump-config` prints is a machine file of the same machine.
fn config_says_the_same(ctx: &Ctx) -> Result<()> {
    let disk = ctx.disk("disk", 1)?;
    let dump = |args: &[OsString]| -> Result<String> {
        let mut args = args.to_vec();
        args.push("--dump-config".into());
        let exit = Running::start(ctx, "run", &args)?.wait_success(AT_ONCE)?;
        Ok(exit
            .lines
            .iter()
            .map(|line| line.text.clone() + "\n")
            .collect())
    };
    let first = dump(&[
        "--kernel".into(),
        ctx.kernel(Kernel::Cloud61).into(),
        "--cpus".into(),
        "3".into(),
        "--memory".into(),
        "300M".into(),
        "--disk".into(),
        format!("path={},readonly=on,serial=S1", disk.display()).into(),
        "--on-reboot".into(),
        "exit".into(),
    ])?;
    let path = ctx.path("machine.toml");
    std::fs::write(&path, &first)?;
    let config: [OsString; 2] = ["--config".into(), path.into()];
    let second = dump(&config)?;
    ensure!(first == second, "{first}\nbecame\n{second}");
    // Options win over the file.
    let mut args = config.to_vec();
    args.extend(["--cpus".into(), "1".into()]);
    let third = dump(&args)?;
    ensure!(third != first, "--cpus 1 did not win over the file's 3");
    Ok(())
}

fn doctor(ctx: &Ctx) -> Result<()> {
    let exit = Running::start(ctx, "doctor", &[])?.wait_exit(AT_ONCE)?;
    // Whatever it finds, it says it: a host without VFIO is no failure of the doctor's.
    exit.expect_code(0)?;
    for subject in [
        "/dev/kvm",
        "virtualisation",
        "vfio",
        "iommu",
        "locked",
        "tap",
    ] {
        ensure!(exit.says(subject), "nothing about {subject}");
    }
    Ok(())
}

fn stats(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx).arg("--stats").job("echo GUEST-UP").spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    let exit = vm.wait_success(BOOT)?;
    let up = exit
        .lines
        .iter()
        .position(|line| line.text.contains("GUEST-UP"))
        .context("no GUEST-UP")?;
    let table: String = exit.lines[up + 1..]
        .iter()
        .map(|line| line.text.to_lowercase() + "\n")
        .collect();
    for word in ["io-in", "io-out", "com1"] {
        ensure!(table.contains(word), "no {word} in the statistics");
    }
    Ok(())
}
