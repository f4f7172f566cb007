//! IDE disks and CD-ROMs with the stock `ata_piix`, `sd_mod` and `sr_mod`.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::blk::{file_system, fsync_survives_kill, sha256};
use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, iso, test};

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("ide::file_system", |ctx| {
            file_system(ctx, Kernel::Generic612, ",if=ide")
        }),
        test("ide::fsync_survives_kill", |ctx| {
            fsync_survives_kill(ctx, Kernel::Generic612, ",if=ide")
        }),
        test("ide::file_system_survives_kill", file_system_survives_kill),
        test("ide::cdrom", cdrom),
        test("ide::three_kinds_of_disk", three_kinds),
        test("ide::user_errors", user_errors),
    ]
}

fn vm(ctx: &Ctx) -> Vm<'_> {
    Vm::new(ctx).kernel(Kernel::Generic612)
}

/// A file that was synced is there after the VMM was killed.
fn file_system_survives_kill(ctx: &Ctx) -> Result<()> {
    let disk = ctx.disk("disk", 32)?;
    let mut first = vm(ctx)
        .disk(&disk, ",if=ide")
        .module("ext4")
        .job(
            "mke2fs -q /dev/sda >/dev/null
             mount -t ext4 /dev/sda /mnt || exit
             dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null
             sync
             echo SYNCED $(sha256sum </mnt/file)
             sleep 1000",
        )
        .spawn()?;
    let written = first.value("SYNCED", BOOT)?;
    // Dropping it sends SIGKILL, and waits for the end.
    drop(first);
    let mut second = vm(ctx)
        .disk(&disk, ",if=ide,readonly=on")
        .module("ext4")
        .job("mount -t ext4 -o ro,noload /dev/sda /mnt; echo FOUND $(sha256sum </mnt/file)")
        .spawn()?;
    let found = second.value("FOUND", BOOT)?;
    second.wait_success(BOOT)?;
    ensure!(found == written, "{written} was written, {found} is there");
    Ok(())
}

/// An image with one large file, and that file on its own.
fn image(ctx: &Ctx) -> Result<(PathBuf, PathBuf)> {
    let mut content = vec![0; (5 << 20) + 1234];
    for (index, byte) in content.iter_mut().enumerate() {
        *byte = (index.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0];
    }
    let (cd, file) = (ctx.path("cd.iso"), ctx.path("data.bin"));
    iso::write(&cd, &[("DATA.BIN", &content), ("HELLO.TXT", b"hello\n")])?;
    std::fs::write(&file, content)?;
    Ok((cd, file))
}

fn cdrom(ctx: &Ctx) -> Result<()> {
    let (cd, file) = image(ctx)?;
    let mut vm = vm(ctx)
        .disk(&cd, ",if=ide,media=cdrom")
        .job(
            "mount -t iso9660 -o ro /dev/sr0 /mnt || exit
             echo HELLO $(cat /mnt/hello.txt)
             echo SHA256 $(sha256sum </mnt/data.bin)
             # The kernel opens the tray at the end of the last use, and closes it only when it may.
             cd /proc/sys/dev/cdrom
             echo 1 >autoeject; echo 0 >autoclose
             umount /mnt
             cat /dev/sr0 >/dev/null || echo EMPTY
             echo 0 >autoeject; echo 1 >autoclose
             # The open that closes the tray finds the medium changed, and reads wait for the next one.
             true </dev/sr0
             echo AGAIN $(dd if=/dev/sr0 bs=2048 skip=16 count=1 2>/dev/null | head -c 6 | tail -c 5)",
        )
        .spawn()?;
    let hello = vm.value("HELLO", BOOT)?;
    ensure!(hello == "hello", "the guest reads {hello:?}");
    let in_guest = vm.value("SHA256", BOOT)?;
    vm.wait_for("EMPTY", BOOT)?;
    let again = vm.value("AGAIN", BOOT)?;
    ensure!(again == "CD001", "the closed tray holds {again:?}");
    vm.wait_success(BOOT)?;
    ensure!(in_guest.starts_with(&sha256(&file)?), "other data");
    Ok(())
}

fn three_kinds(ctx: &Ctx) -> Result<()> {
    let (cd, file) = image(ctx)?;
    let (virtio, ide) = (ctx.disk("virtio", 8)?, ctx.disk("ide", 8)?);
    let mut vm = vm(ctx)
        .disk(&virtio, "")
        .disk(&ide, ",if=ide,serial=IDE-0042")
        .disk(&cd, ",if=ide,media=cdrom")
        .job(
            "mount -t iso9660 -o ro /dev/sr0 /mnt || exit
             for disk in vda sda; do dd if=/mnt/data.bin of=/dev/$disk bs=64k conv=fsync 2>/dev/null; done
             echo 3 >/proc/sys/vm/drop_caches
             for disk in vda sda; do echo READ $(head -c $(stat -c %s /mnt/data.bin) /dev/$disk | sha256sum); done
             echo MODEL $(cat /sys/block/sda/device/model)",
        )
        .spawn()?;
    let expected = sha256(&file)?;
    for _ in 0..2 {
        let read = vm.value("READ", BOOT)?;
        ensure!(read.starts_with(&expected), "other data in the guest");
    }
    let model = vm.value("MODEL", BOOT)?;
    ensure!(model == "tripath disk", "the disk is called {model:?}");
    vm.wait_success(BOOT)?;
    let content = std::fs::read(&file)?;
    for disk in [virtio, ide] {
        let on_host = std::fs::read(&disk)?;
        ensure!(on_host.starts_with(&content), "{}", disk.display());
    }
    Ok(())
}

/// Each mistake is one line, and nothing is started.
fn user_errors(ctx: &Ctx) -> Result<()> {
    let odd = ctx.path("odd.iso");
    std::fs::write(&odd, [0; 2560])?;
    for (options, message) in [
        (",if=ide,media=cdrom", "multiples of 2048"),
        (",media=cdrom", "add if=ide"),
        (",if=scsi", "it takes virtio, ide"),
    ] {
        let exit = vm(ctx).disk(&odd, options).spawn()?.wait_exit(BOOT)?;
        exit.expect_code(2)?;
        ensure!(exit.says(message), "{options}: {:?}", exit.messages());
    }
    Ok(())
}
