//! Functions of the host in guests, in the L1 that has an IOMMU and devices to give away (`tests/testbed/l1
//! --passthrough`).

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::harness::host::{driver, output, run, sysfs, wait_until};
use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

const KERNEL: Kernel = Kernel::Generic612;

const IGB: &str = "0000:01:00.0";
const NVME: &str = "0000:02:00.0";
const E1000E: &str = "0000:03:00.0";
const AHCI: &str = "0000:04:00.0";
/// Two e1000 on one conventional bus. Neither can be reset without the other.
const BRIDGED: [&str; 2] = ["0000:07:01.0", "0000:07:02.0"];

/// QEMU's user-mode network, behind the e1000e.
const GATEWAY: &str = "10.0.2.2";
/// The physical function's address in L1, and the network of it and its virtual functions.
const PF: &str = "192.168.50.1";

/// Hashing and random numbers take long in a guest of a guest.
const SLOW: Duration = Duration::from_secs(180);
const DATA_MIB: usize = 64;

pub fn tests() -> Vec<E2eTest> {
    let all = [
        test("vfio::e1000e_ping", e1000e_ping),
        test("vfio::e1000e_intx_and_back", e1000e_intx_and_back).limit(240),
        test("vfio::e1000e_reset_by_the_guest", e1000e_reset).limit(240),
        test("vfio::ahci_msi", ahci_msi),
        test("vfio::nvme", nvme).limit(400),
        test("vfio::nvme_trapped", nvme_trapped).limit(240),
        test("vfio::vf_ping", vf_ping),
        test("vfio::two_guests_two_vfs", two_guests).limit(240),
        test("vfio::nvme_vf_and_virtio_disk", together).limit(240),
        test("vfio::dma_outside_ram_is_stopped", dma_containment),
        test("vfio::behind_one_bridge", behind_one_bridge).limit(240),
        test("vfio::a_bar_moves", bar_moves),
        test("vfio::anything_in_configuration_space", anything),
        test("vfio::the_host_wants_it_back", wanted_back),
        test("vfio::killed", killed).limit(400),
        test("vfio::missing", missing),
    ];
    all.into_iter().map(E2eTest::passthrough).collect()
}

fn e1000e_ping(ctx: &Ctx) -> Result<()> {
    let device = E1000E;
    let mut vm = guest(ctx, &[device])
        .module("e1000e")
        .job(&format!(
            "{NIC_JOB}
             start_nic eth0 10.0.2.15/24
             ping -c 5 -w 30 {GATEWAY} >/dev/null && echo ANSWERED
             interrupts eth0"
        ))
        .spawn()?;
    vm.wait_for("ANSWERED", BOOT)?;
    expect_interrupts(&vm.value("IRQS", BOOT)?, "MSIX")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// The driver can be told which kind of interrupts to use, and to let go of the function and take it again.
fn e1000e_intx_and_back(ctx: &Ctx) -> Result<()> {
    let device = E1000E;
    let mut vm = guest(ctx, &[device])
        .job(&format!(
            "{NIC_JOB}
             for mode in 0 2 0; do
               modprobe e1000e IntMode=$mode
               start_nic eth0 10.0.2.15/24
               ping -c 5 -w 30 {GATEWAY} >/dev/null && echo ANSWERED $mode
               interrupts eth0
               rmmod e1000e
             done"
        ))
        .module("button")
        .spawn()?;
    for (mode, kind) in [("0", "IO-APIC"), ("2", "MSIX"), ("0", "IO-APIC")] {
        vm.wait_for(&format!("ANSWERED {mode}"), BOOT)?;
        expect_interrupts(&vm.value("IRQS", BOOT)?, kind)?;
    }
    vm.wait_success(BOOT)?;
    Ok(())
}

/// After a reset of the machine with interrupts and DMA under way, the next kernel finds a function that works.
fn e1000e_reset(ctx: &Ctx) -> Result<()> {
    let device = E1000E;
    let disk = ctx.disk("boots.img", 1)?;
    let mut vm = guest(ctx, &[device])
        .disk(&disk, "")
        .module("e1000e")
        .job(&format!(
            "{NIC_JOB}
             start_nic eth0 10.0.2.15/24
             ping -c 3 -w 30 {GATEWAY} >/dev/null && echo ANSWERED
             interrupts eth0
             if [ $(head -c 1 /dev/vda | tr '\\0' n) = n ]; then
               printf y | dd of=/dev/vda conv=notrunc 2>/dev/null; sync
               reboot -f
             fi"
        ))
        .spawn()?;
    for _ in 0..2 {
        vm.wait_for("ANSWERED", BOOT)?;
        expect_interrupts(&vm.value("IRQS", BOOT)?, "MSIX")?;
    }
    vm.wait_success(BOOT)?;
    Ok(())
}

/// QEMU's e1000e has MSI too, but no driver for it is satisfied with that, in L1 neither.
fn ahci_msi(ctx: &Ctx) -> Result<()> {
    let device = AHCI;
    let mut vm = guest(ctx, &[device])
        .module("ahci")
        .module("sd_mod")
        .job(&format!(
            "{NIC_JOB}
             wait_for /dev/sda
             dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
             dd if=/tmp/data of=/dev/sda bs=1M oflag=direct 2>/dev/null && sync
             dd if=/dev/sda bs=1M count=4 iflag=direct 2>/dev/null | cmp - /tmp/data && echo SAME
             interrupts ahci"
        ))
        .spawn()?;
    vm.wait_for("SAME", BOOT)?;
    expect_interrupts(&vm.value("IRQS", BOOT)?, "MSI-")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn nvme(ctx: &Ctx) -> Result<()> {
    let device = NVME;
    let mut vm = guest(ctx, &[device])
        .module("nvme")
        .job(&format!(
            "{NIC_JOB}
             wait_for /dev/nvme0n1
             dd if=/dev/urandom of=/tmp/data bs=1M count={DATA_MIB} 2>/dev/null
             echo DATA $(sha256sum </tmp/data)
             dd if=/tmp/data of=/dev/nvme0n1 bs=1M oflag=direct 2>/dev/null && sync
             dd if=/dev/nvme0n1 bs=1M count={DATA_MIB} iflag=direct 2>/dev/null | sha256sum >/tmp/read
             echo READ $(cat /tmp/read)
             interrupts nvme0q"
        ))
        .spawn()?;
    let data = vm.value("DATA", SLOW)?;
    ensure!(
        vm.value("READ", SLOW)? == data,
        "read is not what was written"
    );
    expect_interrupts(&vm.value("IRQS", BOOT)?, "MSIX")?;
    vm.wait_success(BOOT)?;
    // L1's own driver sees what is in the drive's image.
    let found = sha256_of_drive(DATA_MIB)?;
    ensure!(
        data.starts_with(&found),
        "{found} is on the drive, {data} was written"
    );
    Ok(())
}

/// The doorbells exit one by one, and the drive works as before.
fn nvme_trapped(ctx: &Ctx) -> Result<()> {
    let device = NVME;
    let job = format!(
        "{NIC_JOB}
         wait_for /dev/nvme0n1
         dd if=/dev/nvme0n1 of=/dev/null bs=4K count=256 iflag=direct 2>/dev/null && echo READ"
    );
    let mut accesses = Vec::new();
    for trap in ["", ",trap=0:0x1000+0x1000"] {
        let mut vm = vm(ctx)
            .option("--device", format!("host={device}{trap}"))
            .arg("--stats")
            .module("nvme")
            .job(&job)
            .spawn()?;
        vm.wait_for("READ", BOOT)?;
        let exit = vm.wait_success(BOOT)?;
        let table = exit.messages().join("\n");
        let row = table.lines().find(|line| line.contains("vfio-"));
        // Device, path, reads, writes, posted, accesses.
        let count = row.and_then(|row| row.split_whitespace().nth(5)?.parse::<u64>().ok());
        accesses.push(count.with_context(|| format!("no accesses in {table}"))?);
    }
    // One doorbell for the command and one for its completion.
    ensure!(
        accesses[1] >= accesses[0] + 512,
        "{} exits with trapped doorbells, {} without",
        accesses[1],
        accesses[0]
    );
    Ok(())
}

fn vf_ping(ctx: &Ctx) -> Result<()> {
    let _igb = start_physical_function()?;
    let mut vm = vm(ctx)
        .option("--device", virtual_function(0))
        .module("igbvf")
        .job(&format!(
            "{NIC_JOB}
             echo MAC $(cat /sys/class/net/eth0/address)
             start_nic eth0 192.168.50.2/24
             ping -c 5 -w 30 {PF} >/dev/null && echo ANSWERED
             interrupts eth0"
        ))
        .spawn()?;
    ensure!(
        vm.value("MAC", BOOT)? == mac_of(0),
        "another MAC address than the one set"
    );
    vm.wait_for("ANSWERED", BOOT)?;
    expect_interrupts(&vm.value("IRQS", BOOT)?, "MSIX")?;
    vm.wait_success(BOOT)?;
    no_virtual_functions()
}

fn two_guests(ctx: &Ctx) -> Result<()> {
    let _igb = start_physical_function()?;
    let mut guests = Vec::new();
    for index in 0..2 {
        let (own, other) = (index + 2, 3 - index);
        guests.push(
            vm(ctx)
                .option("--device", virtual_function(index))
                .module("igbvf")
                .job(&format!(
                    "{NIC_JOB}
                     start_nic eth0 192.168.50.{own}/24
                     echo UP
                     ping -c 3 -w 90 192.168.50.{other} >/dev/null && echo ANSWERED
                     interrupts eth0
                     read line"
                ))
                .spawn()?,
        );
    }
    for vm in &mut guests {
        vm.wait_for("UP", BOOT)?;
    }
    for vm in &mut guests {
        vm.wait_for("ANSWERED", Duration::from_secs(100))?;
        expect_interrupts(&vm.value("IRQS", BOOT)?, "MSIX")?;
    }
    // Neither may leave before the other has its answer.
    for mut vm in guests {
        vm.send("\n")?;
        vm.wait_success(BOOT)?;
    }
    no_virtual_functions()
}

fn together(ctx: &Ctx) -> Result<()> {
    let _igb = start_physical_function()?;
    let disk = ctx.disk("virtio.img", 16)?;
    let mut vm = guest(ctx, &[NVME])
        .option("--device", virtual_function(0))
        .disk(&disk, "")
        .module("nvme")
        .module("igbvf")
        .job(&format!(
            "{NIC_JOB}
             wait_for /dev/nvme0n1
             start_nic eth0 192.168.50.2/24
             dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
             for disk in nvme0n1 vda; do
               dd if=/tmp/data of=/dev/$disk bs=1M oflag=direct 2>/dev/null && sync
               dd if=/dev/$disk bs=1M count=8 iflag=direct 2>/dev/null | cmp - /tmp/data && echo SAME-$disk
             done
             ping -c 5 -w 30 {PF} >/dev/null && echo ANSWERED"
        ))
        .spawn()?;
    for word in ["SAME-nvme0n1", "SAME-vda", "ANSWERED"] {
        vm.wait_for(word, SLOW)?;
    }
    vm.wait_success(BOOT)?;
    no_virtual_functions()
}

/// The guest programs the drive's controller by hand: the admin completion queue is where the guest has no RAM. The
/// controller's write is stopped by the IOMMU, L1's kernel says so, and guest and host live on.
fn dma_containment(ctx: &Ctx) -> Result<()> {
    const OUTSIDE: &str = "0x70000000";
    let device = NVME;
    let mark = format!("a test starts: {:?}", Instant::now());
    fs::write("/dev/kmsg", &mark)?;
    let mut vm = guest(ctx, &[device])
        .module("button")
        .job(&format!(
            "{DRIVE_BY_HAND}
             printf '\\006\\000' | dd of=$function/config bs=1 seek=4 conv=notrunc 2>/dev/null
             poke() {{ devmem $(($bar + $1)) 32 $2; }}
             poke 0x14 0
             poke 0x24 0x00010001
             poke 0x28 0; poke 0x2c 0
             poke 0x30 {OUTSIDE}; poke 0x34 0
             poke 0x14 0x00460001
             for i in $(seq 100); do
               [ $(($(devmem $(($bar + 0x1c)) 32) & 1)) = 1 ] && echo READY && break
             done
             poke 0x1000 1
             sleep 1
             echo LIVES"
        ))
        .spawn()?;
    vm.wait_for("READY", BOOT)?;
    vm.wait_for("LIVES", BOOT)?;
    vm.wait_success(BOOT)?;
    let log = output("dmesg", &[])?;
    let (_, log) = log.split_once(&mark).context("the mark is gone")?;
    let fault = log
        .lines()
        .find(|line| line.contains("DMAR") && line.contains(OUTSIDE));
    let fault = fault.with_context(|| format!("no fault in the kernel's log: {}", log))?;
    println!("{fault}");
    ensure!(fault.contains("DMA Write"), "not a write: {fault}");
    ensure!(fault.contains(&NVME[5..]), "another device: {fault}");
    // The drive is as good as before.
    sha256_of_drive(1)?;
    Ok(())
}

/// Both are ours, so their bus is reset; they have INTx and nothing else.
fn behind_one_bridge(ctx: &Ctx) -> Result<()> {
    // The other one is nobody's: a reset would be behind the host's back.
    let exit = guest(ctx, &BRIDGED[..1]).spawn()?.wait_exit(BOOT)?;
    exit.expect_code(2)?;
    ensure!(exit.says("cannot be reset"), "{:?}", exit.messages());
    ensure!(exit.messages().len() == 1, "{:?}", exit.messages());
    let mut vm = guest(ctx, &BRIDGED)
        .module("e1000")
        .job(&format!(
            "{NIC_JOB}
             for nic in eth0 eth1; do
               start_nic $nic 10.0.2.15/24
               ping -c 3 -w 30 {GATEWAY} >/dev/null && echo ANSWERED $nic
               interrupts $nic
               ip addr flush dev $nic
               ip link set $nic down
             done"
        ))
        .spawn()?;
    for nic in ["eth0", "eth1"] {
        vm.wait_for(&format!("ANSWERED {nic}"), BOOT)?;
        expect_interrupts(&vm.value("IRQS", BOOT)?, "IO-APIC")?;
    }
    let exit = vm.wait_success(BOOT)?;
    ensure!(exit.messages().is_empty(), "{:?}", exit.messages());
    Ok(())
}

/// The guest moves the drive's registers while they are decoded: they are at the new place, and no longer at the old.
fn bar_moves(ctx: &Ctx) -> Result<()> {
    let device = NVME;
    let mut vm = guest(ctx, &[device])
        .module("button")
        .job(&format!(
            "{DRIVE_BY_HAND}
             version() {{ devmem $(($1 + 8)) 32; }}
             echo BEFORE $(version $bar)
             printf '\\000\\000\\000\\330\\000\\000\\000\\000' |
               dd of=$function/config bs=4 seek=4 conv=notrunc 2>/dev/null
             echo AFTER $(version 0xd8000000)
             echo OLD $(version $bar)"
        ))
        .spawn()?;
    let before = vm.value("BEFORE", BOOT)?;
    // NVMe 1.x, as QEMU's drives have it.
    ensure!(before.starts_with("0x0001"), "no version: {before}");
    let after = vm.value("AFTER", BOOT)?;
    ensure!(after == before, "{after} at the new place");
    let old = vm.value("OLD", BOOT)?;
    ensure!(old == "0xFFFFFFFF", "{old} at the old place");
    vm.wait_success(BOOT)?;
    Ok(())
}

/// Random bytes all over the function's configuration space hurt nobody else, and a reset mends the function.
fn anything(ctx: &Ctx) -> Result<()> {
    let device = NVME;
    let mut vm = guest(ctx, &[device])
        .module("button")
        .job(&format!(
            "{DRIVE_BY_HAND}
             for width in 1 2 4 1 2 4; do
               dd if=/dev/urandom of=$function/config bs=$width count=$((4096 / width)) 2>/dev/null
             done
             echo LIVES $(stat -c %s $function/config)"
        ))
        .spawn()?;
    let bytes = vm.value("LIVES", BOOT)?;
    ensure!(bytes == "4096", "configuration space of {bytes} bytes");
    vm.wait_success(BOOT)?;
    sha256_of_drive(1)?;
    Ok(())
}

/// Whoever unbinds the function waits until it is free.
fn wanted_back(ctx: &Ctx) -> Result<()> {
    let device = E1000E;
    let mut vm = guest(ctx, &[device])
        .module("e1000e")
        .job("echo RUNNING; sleep 100")
        .spawn()?;
    vm.wait_for("RUNNING", BOOT)?;
    let unbinding = std::thread::spawn(|| unbind(&sysfs(E1000E)));
    let exit = vm.wait_exit(BOOT)?;
    exit.expect_code(1)?;
    let message = "the host wants device 0000:03:00.0 back: the guest was stopped";
    ensure!(
        exit.says(message) && exit.messages().len() == 1,
        "{:?}",
        exit.messages()
    );
    unbinding
        .join()
        .map_err(|_| anyhow::anyhow!("unbinding panicked"))??;
    ensure!(!sysfs(E1000E).join("driver").exists(), "it is still bound");
    Ok(())
}

/// The VMM is killed while its guest uses a drive and a virtual function. `recover` puts both back, and so does the
/// next start, which wants neither; each time the host's own driver reads the drive.
fn killed(ctx: &Ctx) -> Result<()> {
    let _igb = start_physical_function()?;
    run("modprobe", &["nvme"])?;
    for next_start in [false, true] {
        bind(NVME)?;
        let mut vm = guest(ctx, &[NVME])
            .option("--device", virtual_function(0))
            .module("nvme")
            .module("igbvf")
            .job(&format!(
                "{NIC_JOB}
                 wait_for /dev/nvme0n1
                 start_nic eth0 192.168.50.2/24
                 ping -c 1 -w 30 {PF} >/dev/null
                 echo RUNNING
                 dd if=/dev/nvme0n1 of=/dev/null iflag=direct"
            ))
            .spawn()?;
        vm.wait_for("RUNNING", BOOT)?;
        // Dropping it sends SIGKILL, and waits for the end.
        drop(vm);
        ensure!(driver(NVME).as_deref() == Some("vfio-pci"), "not taken");
        if next_start {
            self::vm(ctx).job("true").spawn()?.wait_success(BOOT)?;
        } else {
            let told = output(&ctx.binary.to_string_lossy(), &["vfio", "recover"])?;
            ensure!(told.contains("back on nvme"), "{told}");
        }
        let driver = driver(NVME);
        ensure!(driver.as_deref() == Some("nvme"), "it is on {driver:?}");
        no_virtual_functions()?;
        sha256_of_drive(1)?;
    }
    Ok(())
}

fn missing(ctx: &Ctx) -> Result<()> {
    let vm = vm(ctx).option("--device", "host=00ff:01:00.0").spawn()?;
    let exit = vm.wait_exit(BOOT)?;
    exit.expect_code(2)?;
    ensure!(
        exit.messages().len() == 1 && exit.says("there is no PCI function 00ff:01:00.0"),
        "{:?}",
        exit.messages()
    );
    Ok(())
}

/// Functions for a guest's job.
const NIC_JOB: &str = "
    wait_for() { for i in $(seq 200); do [ -e $1 ] && return; sleep 0.1; done; echo no $1; }
    start_nic() {
      wait_for /sys/class/net/$1
      ip addr add $2 dev $1
      ip link set $1 up
      for i in $(seq 300); do grep -q 1 /sys/class/net/$1/carrier && return; sleep 0.1; done; echo no link
    }
    interrupts() {
      awk -v name=$1 'index($0, name) { n += $2; kind = kind \" \" $3 } END { print \"IRQS\", n, kind }' /proc/interrupts
    }";

/// Shell commands for a guest without the drive's driver: where the function and its registers are.
const DRIVE_BY_HAND: &str = "
    for found in /sys/bus/pci/devices/*; do
      [ $(cat $found/class) = 0x010802 ] && function=$found
    done
    echo 1 >$function/enable
    bar=$(head -n 1 $function/resource | cut -d ' ' -f 1)";

/// `N KINDS`, as `interrupts` in a guest prints it.
fn expect_interrupts(said: &str, kind: &str) -> Result<()> {
    let (count, kinds) = said.split_once(' ').with_context(|| format!("{said:?}"))?;
    let count: u64 = count.parse().with_context(|| format!("{said:?}"))?;
    ensure!(count > 0, "no interrupts: {said}");
    ensure!(
        kinds.split_whitespace().all(|one| one.contains(kind)),
        "{kind}: {said}"
    );
    Ok(())
}

fn vm(ctx: &Ctx) -> Vm<'_> {
    Vm::new(ctx).kernel(KERNEL).memory("256M")
}

/// A guest with those functions, in that order.
fn guest<'a>(ctx: &'a Ctx, devices: &[&str]) -> Vm<'a> {
    devices.iter().fold(vm(ctx), |vm, address| {
        vm.option("--device", format!("host={address}"))
    })
}

/// One of the igb's, for the guest of that number.
fn virtual_function(guest: usize) -> String {
    format!("pf={IGB},vf=auto,mac={}", mac_of(guest))
}

/// To the driver that is loaded for it.
fn bind(address: &str) -> Result<()> {
    if driver(address).is_none() {
        fs::write("/sys/bus/pci/drivers_probe", address)?;
    }
    Ok(())
}

fn unbind(folder: &Path) -> Result<()> {
    let driver = folder.join("driver");
    if driver.exists() {
        let name = folder.file_name().context("no name")?;
        fs::write(driver.join("unbind"), name.as_encoded_bytes())?;
    }
    Ok(())
}

/// The igb, up and with an address, until it is dropped; it has no virtual functions.
struct PhysicalFunction {
    interface: String,
}

impl Drop for PhysicalFunction {
    fn drop(&mut self) {
        for arguments in [["addr", "flush", "dev"], ["link", "set", "down"]] {
            let down = run("ip", &[&arguments[..], &[self.interface.as_str()]].concat());
            if let Err(error) = down {
                println!("{}: {error:#}", self.interface);
            }
        }
    }
}

fn start_physical_function() -> Result<PhysicalFunction> {
    run("modprobe", &["igb"])?;
    let folder = sysfs(IGB);
    bind(IGB)?;
    let mut interfaces = fs::read_dir(folder.join("net")).context("igb has no interface")?;
    let interface = interfaces
        .next()
        .context("igb has no interface")??
        .file_name();
    let interface = interface.to_str().context("a name")?.to_owned();
    let igb = PhysicalFunction { interface };
    let interface = igb.interface.as_str();
    run("ip", &["link", "set", interface, "up"])?;
    run(
        "ip",
        &["addr", "replace", &format!("{PF}/24"), "dev", interface],
    )?;
    wait_until("the link of igb", || {
        let carrier = format!("/sys/class/net/{interface}/carrier");
        fs::read_to_string(carrier).is_ok_and(|up| up.trim() == "1")
    })?;
    no_virtual_functions()?;
    Ok(igb)
}

/// None were there, so that those that a run makes go with it.
fn no_virtual_functions() -> Result<()> {
    let count = fs::read_to_string(sysfs(IGB).join("sriov_numvfs"))?;
    ensure!(count.trim() == "0", "virtual functions: {}", count.trim());
    Ok(())
}

fn mac_of(guest: usize) -> String {
    format!("52:54:00:00:02:{guest:02x}")
}

/// The SHA-256 of the first mebibytes of the drive, read by L1's own driver.
fn sha256_of_drive(mib: usize) -> Result<String> {
    run("modprobe", &["nvme"])?;
    bind(NVME)?;
    wait_until("/dev/nvme0n1", || Path::new("/dev/nvme0n1").exists())?;
    let mut data = vec![0; mib << 20];
    File::open("/dev/nvme0n1")?.read_exact(&mut data)?;
    unbind(&sysfs(NVME))?;
    let digest = Sha256::digest(&data);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
