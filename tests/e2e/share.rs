//! virtio-fs: a directory of the host, mounted in the guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::blk::sha256;
use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("share::tree_6_1", |ctx| tree(ctx, Kernel::Cloud61)),
        test("share::tree_6_12", |ctx| tree(ctx, Kernel::Generic612)),
        test("share::writes_are_refused", writes_are_refused),
        test("share::many_files_few_descriptors", few_descriptors),
        test("share::changes_on_the_host_are_seen", changes_are_seen),
        test("share::host_root_under_an_overlay", host_root),
        test("share::two_shares_mounted_again", two_shares),
    ]
}

/// A guest with `folder` as the share `data`.
fn with_share<'a>(ctx: &'a Ctx, folder: &Path) -> Vm<'a> {
    Vm::new(ctx)
        .option("--share", format!("path={},tag=data", folder.display()))
        .module("virtiofs")
}

fn folder(ctx: &Ctx) -> Result<PathBuf> {
    let folder = ctx.path("shared");
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// What the guest sees of a tree is what is there: content, names, links, modes, owners.
fn tree(ctx: &Ctx, kernel: Kernel) -> Result<()> {
    let folder = folder(ctx)?;
    let big: Vec<u8> = (0..16 << 20)
        .flat_map(|n: u32| n.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .collect();
    fs::write(folder.join("big"), &big)?;
    drop(big);
    fs::create_dir(folder.join("many"))?;
    let mut names: Vec<String> = (0..2000).map(|n| format!("entry-{n}")).collect();
    for name in &names {
        fs::write(folder.join("many").join(name), "")?;
    }
    names.sort();
    let deep = "a/".repeat(100);
    fs::create_dir_all(folder.join(&deep))?;
    fs::write(folder.join(&deep).join("file"), "from the deep")?;
    symlink(format!("{deep}file"), folder.join("link"))?;
    fs::write(folder.join("secret"), "of the host")?;
    symlink(folder.join("secret"), folder.join("away"))?;
    fs::write(folder.join("mode"), "12345")?;
    fs::set_permissions(folder.join("mode"), fs::Permissions::from_mode(0o4751))?;
    let mut vm = with_share(ctx, &folder)
        .kernel(kernel)
        .job(
            "mount -t virtiofs data /mnt || exit
             echo MODE $(stat -c '%a %u %g %s' /mnt/mode)
             echo LINK $(cat /mnt/link)
             cat /mnt/away 2>/dev/null && echo FOLLOWED || echo NOT-FOLLOWED
             echo COUNT $(ls /mnt/many | wc -l)
             echo NAMES $(ls /mnt/many | LC_ALL=C sort | sha256sum)
             echo SHA256 $(sha256sum </mnt/big)
             umount /mnt && echo UNMOUNTED",
        )
        .spawn()?;
    let host = fs::metadata(folder.join("mode"))?;
    let expected = format!("4751 {} {} 5", host.uid(), host.gid());
    ensure!(vm.value("MODE", BOOT)? == expected, "another mode or owner");
    ensure!(vm.value("LINK", BOOT)? == "from the deep", "another file");
    vm.wait_for("NOT-FOLLOWED", BOOT)?;
    ensure!(
        vm.value("COUNT", BOOT)? == "2000",
        "another number of names"
    );
    let digest = Sha256::digest(names.join("\n") + "\n");
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(vm.value("NAMES", BOOT)?.starts_with(&digest), "other names");
    let in_guest = vm.value("SHA256", BOOT)?;
    let on_host = sha256(&folder.join("big"))?;
    ensure!(
        in_guest.starts_with(&on_host),
        "the guest read {in_guest}, the host {on_host}"
    );
    vm.wait_for("UNMOUNTED", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// Every way to change something ends with EROFS, and changes nothing.
fn writes_are_refused(ctx: &Ctx) -> Result<()> {
    let folder = folder(ctx)?;
    fs::write(folder.join("file"), "data")?;
    fs::create_dir(folder.join("dir"))?;
    let attempts = [
        "touch /mnt/new",
        "touch /mnt/file",
        "echo x >>/mnt/file",
        "echo x >/mnt/file",
        "truncate -s 1 /mnt/file",
        "rm -f /mnt/file",
        "rmdir /mnt/dir",
        "mkdir /mnt/new",
        "mv /mnt/file /mnt/new",
        "ln /mnt/file /mnt/new",
        "ln -s file /mnt/new",
        "chmod 777 /mnt/file",
        "chown 1 /mnt/file",
        "mkfifo /mnt/new",
    ];
    let mut job = "mount -t virtiofs data /mnt || exit\n".to_owned();
    for attempt in attempts {
        job += &format!("echo RESULT $( ({attempt}) 2>&1)\n");
    }
    let mut vm = with_share(ctx, &folder).job(&job).spawn()?;
    for attempt in attempts {
        let result = vm.value("RESULT", BOOT)?;
        ensure!(
            result.to_lowercase().contains("read-only file system"),
            "{attempt}: {result:?}"
        );
    }
    vm.wait_success(BOOT)?;
    ensure!(fs::read(folder.join("file"))? == b"data", "it was written");
    ensure!(fs::read_dir(&folder)?.count() == 2, "there are other files");
    Ok(())
}

/// A guest may look at more files, and open more, than the VMM can have open.
fn few_descriptors(ctx: &Ctx) -> Result<()> {
    let folder = folder(ctx)?;
    for dir in 0..100 {
        let dir = folder.join(format!("dir-{dir}"));
        fs::create_dir(&dir)?;
        for file in 0..200 {
            fs::write(dir.join(file.to_string()), "x")?;
        }
    }
    let mut vm = with_share(ctx, &folder)
        .under(&["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""])
        .job(
            "mount -t virtiofs data /mnt || exit
             echo FOUND $(find /mnt -type f -size -2 | wc -l)
             for n in $(seq 0 99); do sleep 1000 </mnt/dir-7/$n & done
             echo READ $(cat /mnt/dir-7/* /mnt/dir-8/* | wc -c)",
        )
        .spawn()?;
    ensure!(vm.value("FOUND", BOOT)? == "20000", "files are missing");
    ensure!(vm.value("READ", BOOT)? == "400", "content is missing");
    vm.wait_success(BOOT)?;
    Ok(())
}

/// What changes on the host is seen in the guest, a little later.
fn changes_are_seen(ctx: &Ctx) -> Result<()> {
    let folder = folder(ctx)?;
    for name in ["replaced", "grown", "removed"] {
        fs::write(folder.join(name), "old")?;
    }
    let look = "echo SEEN $(cd /mnt; for f in replaced grown removed new; do cat $f 2>/dev/null || echo none; done)";
    let mut vm = with_share(ctx, &folder)
        .job(&format!(
            "mount -t virtiofs data /mnt || exit
             {look}
             read line
             sleep 2
             {look}"
        ))
        .spawn()?;
    ensure!(vm.value("SEEN", BOOT)? == "oldoldoldnone", "other files");
    fs::write(folder.join("other"), "exchanged")?;
    fs::rename(folder.join("other"), folder.join("replaced"))?;
    fs::write(folder.join("grown"), "older")?;
    fs::remove_file(folder.join("removed"))?;
    fs::write(folder.join("new"), "young")?;
    vm.send("\n")?;
    let seen = vm.value("SEEN", BOOT)?;
    ensure!(
        seen == "exchangedoldernone young",
        "the guest sees {seen:?}"
    );
    vm.wait_success(BOOT)?;
    Ok(())
}

/// The host's whole root serves as a guest's, with what is written kept in memory.
fn host_root(ctx: &Ctx) -> Result<()> {
    let mut vm = with_share(ctx, Path::new("/"))
        .module("overlay")
        .job(
            "mount -t virtiofs data /mnt || exit
             echo PROC $(ls -A /mnt/proc | wc -l) $(ls -A /mnt/sys | wc -l)
             mount -t tmpfs upper /tmp
             mkdir /tmp/upper /tmp/work /tmp/root
             mount -t overlay -o lowerdir=/mnt,upperdir=/tmp/upper,workdir=/tmp/work root /tmp/root || exit
             mount -t proc proc /tmp/root/proc
             chroot /tmp/root /bin/bash -c 'echo written >/etc/written; echo IN-ROOT $(cat /etc/written) $(ls -d /usr)'",
        )
        .spawn()?;
    ensure!(vm.value("PROC", BOOT)? == "0 0", "the host's kernel shows");
    ensure!(
        vm.value("IN-ROOT", BOOT)? == "written /usr",
        "the host's programs do not run"
    );
    vm.wait_success(BOOT)?;
    ensure!(!Path::new("/etc/written").exists(), "the host was written");
    Ok(())
}

/// Two shares do not mix, and can be mounted a second time.
fn two_shares(ctx: &Ctx) -> Result<()> {
    let (first, second) = (folder(ctx)?, ctx.path("second"));
    fs::create_dir(&second)?;
    fs::write(first.join("file"), "one")?;
    fs::write(second.join("file"), "two")?;
    let mut vm = with_share(ctx, &first)
        .option("--share", format!("path={},tag=more", second.display()))
        .job(
            "mkdir /one /two
             for turn in 1 2; do
               mount -t virtiofs data /one; mount -t virtiofs more /two
               echo READ $(cat /one/file) $(cat /two/file)
               umount /one /two
             done",
        )
        .spawn()?;
    for _ in 0..2 {
        ensure!(vm.value("READ", BOOT)? == "one two", "other files");
    }
    vm.wait_success(BOOT)?;
    Ok(())
}
