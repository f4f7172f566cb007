//! virtio-blk: what the guest writes is what is in the file.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use crate::harness::vm::{BOOT, Running, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("blk::file_system_6_1", |ctx| {
            file_system(ctx, Kernel::Cloud61, "")
        }),
        test("blk::file_system_6_12", |ctx| {
            file_system(ctx, Kernel::Generic612, "")
        }),
        test("blk::file_system_direct_io", |ctx| {
            file_system(ctx, Kernel::Cloud61, ",direct=on")
        }),
        test("blk::fsync_survives_kill", |ctx| {
            fsync_survives_kill(ctx, Kernel::Cloud61, "")
        }),
        test("blk::serial_number", serial_number),
        test("blk::read_only", read_only),
        test("blk::discard", discard),
        test("blk::two_disks", two_disks),
        test("blk::locked_by_another_run", locked),
        test("blk::read_only_is_shared", read_only_is_shared),
    ]
}

pub fn sha256(path: &Path) -> Result<String> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
    }
    Ok(digest
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect())
}

/// The first disk of these options, as a guest calls it.
fn device(options: &str) -> &'static str {
    if options.contains("if=ide") {
        "/dev/sda"
    } else {
        "/dev/vda"
    }
}

/// A file system is filled; guest and host see the same bytes.
pub fn file_system(ctx: &Ctx, kernel: Kernel, options: &str) -> Result<()> {
    let disk = ctx.disk("disk", 48)?;
    let mut vm = Vm::new(ctx)
        .kernel(kernel)
        .disk(&disk, options)
        .module("ext4")
        .job(&format!(
            "DISK={}
             mke2fs -q $DISK >/dev/null
             mount -t ext4 $DISK /mnt || exit
             dd if=/dev/urandom of=/mnt/random bs=1M count=16 2>/dev/null
             while cp /mnt/random /mnt/copy$((n++)) 2>/dev/null; do :; done
             echo FULL $(df /mnt | awk 'END {{ print $5 }}')
             umount /mnt || exit
             echo 3 >/proc/sys/vm/drop_caches
             echo SHA256 $(sha256sum <$DISK)",
            device(options)
        ))
        .spawn()?;
    let full = vm.value("FULL", BOOT)?;
    ensure!(full == "100%", "the file system is full to {full}");
    let in_guest = vm.value("SHA256", BOOT)?;
    vm.wait_success(BOOT)?;
    let on_host = sha256(&disk)?;
    ensure!(
        in_guest.starts_with(&on_host),
        "the guest read {in_guest}, the host {on_host}"
    );
    Ok(())
}

/// What was synced is in the file, though the VMM is killed.
pub fn fsync_survives_kill(ctx: &Ctx, kernel: Kernel, options: &str) -> Result<()> {
    let disk = ctx.disk("disk", 16)?;
    let mut vm = Vm::new(ctx)
        .kernel(kernel)
        .disk(&disk, options)
        .job(&format!(
            "dd if=/dev/urandom of=/data bs=1M count=16 2>/dev/null
             sum=$(sha256sum </data)
             dd if=/data of={} bs=1M conv=fsync 2>/dev/null
             echo SYNCED $sum
             sleep 1000",
            device(options)
        ))
        .spawn()?;
    let written = vm.value("SYNCED", BOOT)?;
    // Dropping it sends SIGKILL, and waits for the end.
    drop(vm);
    let on_host = sha256(&disk)?;
    ensure!(
        written.starts_with(&on_host),
        "the guest wrote {written}, the host has {on_host}"
    );
    Ok(())
}

fn serial_number(ctx: &Ctx) -> Result<()> {
    let disk = ctx.disk("disk", 4)?;
    let mut vm = Vm::new(ctx)
        .disk(&disk, ",serial=TRIPATH-0042")
        .job("echo SERIAL $(cat /sys/block/vda/serial); echo SIZE $(cat /sys/block/vda/size)")
        .spawn()?;
    let serial = vm.value("SERIAL", BOOT)?;
    ensure!(serial == "TRIPATH-0042", "the guest sees serial {serial:?}");
    let sectors = vm.value("SIZE", BOOT)?;
    ensure!(sectors == "8192", "the guest sees {sectors} sectors");
    vm.wait_success(BOOT)?;
    Ok(())
}

fn read_only(ctx: &Ctx) -> Result<()> {
    let disk = ctx.path("disk");
    std::fs::write(&disk, b"precious".repeat(1 << 17))?;
    let before = sha256(&disk)?;
    let mut vm = Vm::new(ctx)
        .disk(&disk, ",readonly=on")
        .job(
            "echo RO $(cat /sys/block/vda/ro)
             dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null && echo WRITTEN || echo REFUSED
             echo READ $(head -c 8 /dev/vda)",
        )
        .spawn()?;
    ensure!(vm.value("RO", BOOT)? == "1", "the disk is not read-only");
    vm.wait_for("REFUSED", BOOT)?;
    ensure!(vm.value("READ", BOOT)? == "precious", "other data");
    vm.wait_success(BOOT)?;
    ensure!(sha256(&disk)? == before, "a read-only disk has changed");
    Ok(())
}

fn discard(ctx: &Ctx) -> Result<()> {
    let disk = ctx.path("disk");
    std::fs::write(&disk, vec![0xa5; 8 << 20])?;
    let before = std::fs::metadata(&disk)?.blocks();
    let mut vm = Vm::new(ctx)
        .disk(&disk, "")
        .job(
            "blkdiscard -o 0 -l 4194304 /dev/vda && echo DISCARDED || echo FAILED
             echo ZEROS-MAX $(cat /sys/block/vda/queue/write_zeroes_max_bytes)",
        )
        .spawn()?;
    vm.wait_for("DISCARDED", BOOT)?;
    let most: u64 = vm.value("ZEROS-MAX", BOOT)?.parse()?;
    ensure!(most > 0, "no write-zeroes");
    vm.wait_success(BOOT)?;
    let after = std::fs::metadata(&disk)?.blocks();
    // stat counts in units of 512 bytes.
    ensure!(
        after <= before - 8192,
        "4 MiB were discarded, but the file has {after} sectors of {before}"
    );
    let content = std::fs::read(&disk)?;
    ensure!(content.len() == 8 << 20, "the file's size has changed");
    ensure!(
        content[4 << 20..].iter().all(|&byte| byte == 0xa5),
        "more was discarded than asked for"
    );
    Ok(())
}

fn two_disks(ctx: &Ctx) -> Result<()> {
    let (first, second) = (ctx.disk("first", 2)?, ctx.disk("second", 4)?);
    let mut vm = Vm::new(ctx)
        .disk(&first, ",serial=ONE")
        .disk(&second, ",serial=TWO")
        .job(
            "echo SERIALS $(cat /sys/block/vda/serial) $(cat /sys/block/vdb/serial)
             echo one >/dev/vda; echo two >/dev/vdb; sync",
        )
        .spawn()?;
    ensure!(vm.value("SERIALS", BOOT)? == "ONE TWO", "another order");
    vm.wait_success(BOOT)?;
    ensure!(std::fs::read(&first)?.starts_with(b"one\n"), "first disk");
    ensure!(std::fs::read(&second)?.starts_with(b"two\n"), "second disk");
    Ok(())
}

const WAITS: &str = "echo GUEST-UP; read line";

fn holder(ctx: &Ctx, disk: &Path, options: &str) -> Result<Running> {
    let mut vm = Vm::new(ctx).disk(disk, options).job(WAITS).spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    Ok(vm)
}

fn locked(ctx: &Ctx) -> Result<()> {
    let disk = ctx.disk("disk", 4)?;
    let mut first = holder(ctx, &disk, "")?;
    for options in ["", ",readonly=on"] {
        let exit = Vm::new(ctx).disk(&disk, options).spawn()?.wait_exit(BOOT)?;
        exit.expect_code(2)?;
        ensure!(exit.says("disk"), "the message does not name the disk");
        ensure!(
            exit.messages().len() == 1,
            "not one line: {:?}",
            exit.messages()
        );
    }
    first.send("\n")?;
    first.wait_success(BOOT)?;
    // And free again afterwards.
    Vm::new(ctx).disk(&disk, "").spawn()?.wait_success(BOOT)?;
    Ok(())
}

fn read_only_is_shared(ctx: &Ctx) -> Result<()> {
    let disk = ctx.disk("disk", 4)?;
    let mut first = holder(ctx, &disk, ",readonly=on")?;
    // It holds its lock but runs no guest meanwhile: an emulated L1 does not always survive two at once.
    first.signal(Signal::STOP)?;
    let mut second = holder(ctx, &disk, ",readonly=on")?;
    second.send("\n")?;
    second.wait_success(BOOT)?;
    first.signal(Signal::CONT)?;
    first.send("\n")?;
    first.wait_success(BOOT)?;
    Ok(())
}
