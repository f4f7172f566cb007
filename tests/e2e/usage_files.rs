//! Files that cannot be what they are given as: one clear line, exit code 2, nothing left behind.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::harness::vm::{BOOT, Running, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};
use crate::usage::mistake;

/// Makes a bad file at that path, or nothing.
type Spoil = fn(&Ctx, &Path) -> Result<()>;

pub fn tests() -> Vec<E2eTest> {
    let kernels: [(&str, Spoil); 7] = [
        ("missing", |_, _| Ok(())),
        ("empty", |_, path| write(path, b"")),
        ("directory", |_, path| Ok(std::fs::create_dir(path)?)),
        ("text", |_, path| {
            write(path, b"This is no kernel.\n".repeat(1000).as_slice())
        }),
        ("truncated_bzimage", |ctx, path| {
            truncate(ctx, Kernel::Cloud61, path, 2)
        }),
        ("only_a_boot_sector", |ctx, path| {
            truncate(ctx, Kernel::Cloud61, path, 20_000)
        }),
        ("truncated_vmlinux", |ctx, path| {
            truncate(ctx, Kernel::Cloud61Elf, path, 2)
        }),
    ];
    let initrds: [(&str, Spoil); 3] = [
        ("missing", |_, _| Ok(())),
        ("directory", |_, path| Ok(std::fs::create_dir(path)?)),
        ("too_large", |_, path| {
            Ok(std::fs::File::create(path)?.set_len(400 << 20)?)
        }),
    ];
    let disks: [(&str, Spoil); 3] = [
        ("missing", |_, _| Ok(())),
        ("directory", |_, path| Ok(std::fs::create_dir(path)?)),
        ("not_whole_sectors", |_, path| write(path, &[0; 1000])),
    ];
    let shares: [(&str, Spoil); 2] = [
        ("missing", |_, _| Ok(())),
        ("file", |_, path| write(path, b"")),
    ];
    let mut tests = Vec::new();
    for (name, spoil) in kernels {
        tests.push(test(format!("usage::kernel_{name}"), move |ctx| {
            let path = spoiled(ctx, "the-kernel", spoil)?;
            mistake(ctx, &["--kernel".into(), path.into()], &["the-kernel"])
        }));
    }
    for (name, spoil) in initrds {
        tests.push(test(format!("usage::initrd_{name}"), move |ctx| {
            let path = spoiled(ctx, "the-initrd", spoil)?;
            beside_good_kernel(ctx, "--initrd", path.into(), "the-initrd")
        }));
    }
    for (name, spoil) in disks {
        tests.push(test(format!("usage::disk_{name}"), move |ctx| {
            let path = spoiled(ctx, "the-disk", spoil)?;
            beside_good_kernel(
                ctx,
                "--disk",
                format!("path={}", path.display()).into(),
                "the-disk",
            )
        }));
    }
    for (name, spoil) in shares {
        tests.push(test(format!("usage::share_{name}"), move |ctx| {
            let path = spoiled(ctx, "the-share", spoil)?;
            beside_good_kernel(
                ctx,
                "--share",
                format!("path={},tag=t", path.display()).into(),
                "the-share",
            )
        }));
    }
    tests.push(test("usage::serial_file_in_missing_folder", |ctx| {
        let path = ctx.path("no-such-folder/serial");
        beside_good_kernel(
            ctx,
            "--serial",
            format!("file={}", path.display()).into(),
            "no-such-folder",
        )
    }));
    tests.push(test("usage::serial_file_of_another_run", |ctx| {
        let target = format!("file={}", ctx.path("the-log").display());
        let _other = other_run(ctx, &target)?;
        beside_good_kernel(ctx, "--serial", target.into(), "another run")
    }));
    tests.push(test("usage::serial_socket_of_another_run", |ctx| {
        let target = format!("socket={}", ctx.path("the-socket").display());
        let _other = other_run(ctx, &target)?;
        beside_good_kernel(ctx, "--serial", target.into(), "another process")
    }));
    tests.push(test("usage::serial_port_in_use", |ctx| {
        let other = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = other.local_addr()?.to_string();
        let target = format!("tcp={address}");
        beside_good_kernel(ctx, "--serial", target.into(), &address)
    }));
    tests.push(test("usage::serial_address_of_another_host", |ctx| {
        beside_good_kernel(ctx, "--serial", "tcp=192.0.2.1:4444".into(), "192.0.2.1")
    }));
    tests
}

/// A run whose COM1 is that target and whose COM2 has said that it is up.
fn other_run(ctx: &Ctx, target: &str) -> Result<Running> {
    let mut vm = Vm::new(ctx)
        .option("--serial", target)
        .option("--serial", "stdio")
        .job("echo UP >/dev/ttyS1; sleep 1000")
        .spawn()?;
    vm.wait_for("UP", BOOT)?;
    Ok(vm)
}

fn spoiled(ctx: &Ctx, name: &str, spoil: Spoil) -> Result<PathBuf> {
    let path = ctx.path(name);
    spoil(ctx, &path)?;
    Ok(path)
}

fn beside_good_kernel(ctx: &Ctx, option: &str, value: OsString, named: &str) -> Result<()> {
    let args = [
        "--kernel".into(),
        ctx.kernel(Kernel::Cloud61).into(),
        "--memory".into(),
        "256M".into(),
        option.into(),
        value,
    ];
    mistake(ctx, &args, &[named])
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    Ok(std::fs::write(path, content)?)
}

/// The first 1/`part` of a good kernel.
fn truncate(ctx: &Ctx, kernel: Kernel, path: &Path, part: usize) -> Result<()> {
    let whole = std::fs::read(ctx.kernel(kernel))?;
    write(path, &whole[..whole.len() / part])
}
