//! Networks that tripath makes itself: `--net user`, which needs no root, and `--net tap=auto`.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::tap::{self, GUEST_NET, HOST, OUTSIDE, ROUTER};
use crate::harness::vm::{BOOT, Exit, Running, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, sys, test};
use crate::net::{TRANSFER, fetch, finish, send_noise, serve};

/// A forwarded port, in a network namespace that has no other.
const PORT: u16 = 8080;
/// How much crosses each way: several times what passt and the sockets hold.
const BYTES: usize = 20_000_000;
/// passt sees at once that its socket is closed.
const SOON: Duration = Duration::from_secs(10);
/// The guest gets its address as distributions do, the MTU too.
const DHCP: &str = r#"
    echo '[ "$1" = bound ] || exit 0
          ip link set "$interface" mtu "${mtu:-1500}"
          ip addr add "$ip/$mask" dev "$interface"
          ip route add default via "$router"' >/dhcp
    chmod +x /dhcp
    ip link set eth0 up
    udhcpc -i eth0 -n -q -O mtu -s /dhcp >/dev/null 2>&1 || echo no address
    echo ADDRESS $(ip -4 -o addr show dev eth0 | awk '{ print $4 }')
"#;

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("net_user::both_ways", both_ways)
            .own_network()
            .limit(300),
        test("net_user::udp_forwarded", udp_forwarded).own_network(),
        test("net_user::without_root", without_root).own_network(),
        test("net_user::passt_missing", passt_missing).own_network(),
        test("net_user::passt_fails", passt_fails).own_network(),
        test("net_user::passt_dies", passt_dies).own_network(),
        test("net_user::port_in_use", port_in_use).own_network(),
        test("net_user::port_for_root", port_for_root).own_network(),
        test("net_user::nothing_is_left", nothing_is_left).own_network(),
        test("net_user::killed", killed).own_network(),
        test("net_user::tap_on_bridge", tap_on_bridge).own_network(),
        test("net_user::no_bridge", no_bridge).own_network(),
    ]
}

/// DHCP, a service of the host, a forwarded port, and what crosses is what was sent.
///
/// Until it has everything, the guest must not close its side of the connection: from then on Debian 12's passt takes
/// nothing from its socket any more, and delivers the same bytes again and again (see the README). `nc` closes it at the
/// end of its input, so that is a FIFO which it has open for writing itself.
fn both_ways(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let service = TcpListener::bind(("127.0.0.1", 0))?;
    let service_port = service.local_addr()?.port();
    let sent = serve(service, |stream| send_noise(stream, BYTES));
    let mut vm = user_net(ctx, &format!("user,hostfwd=tcp:{PORT}-80"))
        .memory("512M")
        .job(&format!(
            "{DHCP}
             mkfifo /silence
             nc {ROUTER} {service_port} <>/silence >/data
             echo RECEIVED $(wc -c </data) $(sha256sum </data)
             httpd -p 80 -h /
             echo SERVING; read line"
        ))
        .spawn()?;
    // The guest has the host's address, and the router's leads to the host itself.
    let address = vm.value("ADDRESS", BOOT)?;
    ensure!(address == format!("{OUTSIDE}/24"), "it got {address:?}");
    let in_guest = vm.value("RECEIVED", TRANSFER)?;
    let sum = finish(sent)?;
    ensure!(
        in_guest.starts_with(&format!("{BYTES} {sum}")),
        "the host sent {sum}, the guest got {in_guest}"
    );
    vm.wait_for("SERVING", BOOT)?;
    let back = fetch(("127.0.0.1", PORT))?;
    ensure!(back == sum, "the guest sent {sum}, the host got {back}");
    vm.send("\n")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// A datagram to the forwarded port reaches the guest, whose kernel counts it as one that nobody waits for.
fn udp_forwarded(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let mut vm = user_net(ctx, &format!("user,hostfwd=udp:{PORT}-5353"))
        .job(&format!(
            "{DHCP}
             unwanted() {{ awk '/^Udp:/ {{ count = $3 }} END {{ print count }}' /proc/net/snmp; }}
             before=$(unwanted)
             echo LISTENING
             while [ $(unwanted) = $before ]; do usleep 50000; done
             echo CAME"
        ))
        .spawn()?;
    vm.wait_for("LISTENING", BOOT)?;
    UdpSocket::bind(("127.0.0.1", 0))?.send_to(b"datagram", ("127.0.0.1", PORT))?;
    vm.wait_for("CAME", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// Neither tripath nor passt is root's; `/dev/kvm` is all that the user has.
fn without_root(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let readable = copy_for_everyone(ctx)?;
    let vm = user_net(&readable, &format!("user,hostfwd=tcp:{PORT}-80"));
    let vm = as_user(ctx, vm);
    let mut vm = vm
        .job(&format!(
            "{DHCP} echo content >/data; httpd -p 80 -h /; echo SERVING; read line"
        ))
        .spawn()?;
    let address = vm.value("ADDRESS", BOOT)?;
    ensure!(address == format!("{OUTSIDE}/24"), "it got {address:?}");
    vm.wait_for("SERVING", BOOT)?;
    fetch(("127.0.0.1", PORT))?;
    vm.send("\n")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// Runs it as a user who is not root, and has `/dev/kvm`.
fn as_user<'a>(ctx: &Ctx, vm: Vm<'a>) -> Vm<'a> {
    if rustix::process::getuid().is_root() && own_kvm_device(ctx).is_ok() {
        vm.under(&[
            "setpriv",
            "--reuid=1000",
            "--regid=1000",
            "--clear-groups",
            "env",
            "HOME=/nonexistent",
        ])
    } else {
        // No root here in the first place: this is a user namespace.
        vm
    }
}

/// What a run needs, where a user who is not root can read it.
fn copy_for_everyone(ctx: &Ctx) -> Result<Ctx> {
    fs::set_permissions(&ctx.folder, fs::Permissions::from_mode(0o755))?;
    let copy = Ctx {
        binary: ctx.path("tripath"),
        folder: ctx.folder.clone(),
        testbed: ctx.folder.clone(),
    };
    fs::create_dir(ctx.path("cloud61"))?;
    fs::copy(&ctx.binary, &copy.binary)?;
    for (from, to) in [
        (ctx.kernel(Kernel::Cloud61), copy.kernel(Kernel::Cloud61)),
        (ctx.modules(Kernel::Cloud61), copy.modules(Kernel::Cloud61)),
        (
            ctx.testbed.join("guest.cpio.gz"),
            copy.testbed.join("guest.cpio.gz"),
        ),
    ] {
        fs::copy(&from, &to).with_context(|| format!("{}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
    }
    Ok(copy)
}

/// Puts a `/dev/kvm` for everyone over the host's, in this test's mount namespace only.
fn own_kvm_device(ctx: &Ctx) -> Result<()> {
    let node = ctx.path("kvm");
    let script = "mknod \"$0\" c 10 232 && chmod 666 \"$0\" && mount --bind \"$0\" /dev/kvm";
    let status = Command::new("sh").args(["-c", script]).arg(node).status()?;
    ensure!(status.success(), "no /dev/kvm of our own");
    Ok(())
}

fn passt_missing(ctx: &Ctx) -> Result<()> {
    let exit = run_with_path(ctx, &ctx.folder)?;
    one_line(&exit, &["passt", "not installed", "apt install"])
}

/// It is the user's to hear what passt says.
fn passt_fails(ctx: &Ctx) -> Result<()> {
    let program = ctx.path("passt");
    fs::write(&program, "#!/bin/sh\necho there is no way >&2\nexit 1\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let exit = run_with_path(ctx, &ctx.folder)?;
    one_line(&exit, &["passt cannot start", "there is no way"])
}

fn run_with_path(ctx: &Ctx, path: &Path) -> Result<Exit> {
    let mut command = Command::new(&ctx.binary);
    command
        .args(["run", "--net", "user", "--kernel"])
        .arg(ctx.kernel(Kernel::Cloud61))
        .env("PATH", path);
    Running::spawn(command, ctx)?.wait_exit(BOOT)
}

fn passt_dies(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let mut vm = user_net(ctx, "user")
        .job(&format!(
            "{DHCP} echo GUEST-UP; read line; ping -c 3 -w 3 {ROUTER} >/dev/null && echo ANSWERED || echo CUT-OFF"
        ))
        .spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    kill_process(the_passt()?, Signal::KILL)?;
    vm.wait_for("the guest's network is cut off", SOON)?;
    vm.send("\n")?;
    vm.wait_for("CUT-OFF", BOOT)?;
    let exit = vm.wait_success(BOOT)?;
    ensure!(
        exit.messages().len() == 1,
        "not one line: {:?}",
        exit.messages()
    );
    Ok(())
}

fn port_in_use(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let other = TcpListener::bind(("127.0.0.1", 0))?;
    let port = other.local_addr()?.port();
    let exit = user_net(ctx, &format!("user,hostfwd=tcp:{port}-80"))
        .spawn()?
        .wait_exit(BOOT)?;
    one_line(&exit, &[&format!("hostfwd=tcp:{port}-80"), "already"])
}

/// Nothing is started for a port that the user may not listen on.
fn port_for_root(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let readable = copy_for_everyone(ctx)?;
    let exit = as_user(ctx, user_net(&readable, "user,hostfwd=tcp:80-80"))
        .spawn()?
        .wait_exit(BOOT)?;
    one_line(&exit, &["hostfwd=tcp:80-80", "1024"])?;
    ensure!(passts()?.is_empty(), "passt runs on");
    Ok(())
}

/// The next run can have the same port, and at once.
fn nothing_is_left(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    for _ in 0..2 {
        user_net(ctx, &format!("user,hostfwd=tcp:{PORT}-80"))
            .option("--net", "tap=auto")
            .spawn()?
            .wait_success(BOOT)?;
        TcpListener::bind(("127.0.0.1", PORT)).context("the port is not free")?;
        ensure!(!tap::exists("tripath0")?, "the TAP is still there");
    }
    Ok(())
}

/// A tripath that is killed cannot tidy up.
fn killed(ctx: &Ctx) -> Result<()> {
    tap::make_way_out()?;
    let mut vm = user_net(ctx, &format!("user,hostfwd=tcp:{PORT}-80"))
        .option("--net", "tap=auto")
        .job("echo GUEST-UP; read line")
        .spawn()?;
    vm.wait_for("GUEST-UP", BOOT)?;
    ensure!(tap::exists("tripath0")?, "there is no TAP");
    let passt = the_passt()?;
    vm.signal(Signal::KILL)?;
    // Not our child: it may be gone before we look.
    let ended = match sys::wait_ended(passt, SOON) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => true,
        ended => ended?,
    };
    ensure!(ended, "passt outlives tripath");
    vm.wait_exit(SOON)?;
    ensure!(!tap::exists("tripath0")?, "the TAP is still there");
    TcpListener::bind(("127.0.0.1", PORT)).context("the port is not free")?;
    Ok(())
}

fn tap_on_bridge(ctx: &Ctx) -> Result<()> {
    tap::make_bridge("br0")?;
    let mut vm = Vm::new(ctx)
        .module("virtio_net")
        .word(format!("net={GUEST_NET}"))
        .option("--net", "tap=auto,bridge=br0")
        .job(&format!(
            "ping -c 3 -i 0.2 -w 20 {HOST} >/tmp/ping; cat /tmp/ping; echo PINGED; read line"
        ))
        .spawn()?;
    let name = vm.value("net0 is on TAP", BOOT)?;
    vm.wait_for(" 0% packet loss", BOOT)?;
    ensure!(tap::exists(&name)?, "there is no {name}");
    vm.send("\n")?;
    vm.wait_success(BOOT)?;
    ensure!(!tap::exists(&name)?, "{name} is still there");
    Ok(())
}

fn no_bridge(ctx: &Ctx) -> Result<()> {
    for (bridge, says) in [
        ("nosuchbridge", "does not exist"),
        ("lo", "is not a bridge"),
    ] {
        let exit = Vm::new(ctx)
            .option("--net", format!("tap=auto,bridge={bridge}"))
            .spawn()?
            .wait_exit(BOOT)?;
        one_line(&exit, &[bridge, says])?;
        ensure!(!tap::exists("tripath0")?, "a TAP was made");
    }
    Ok(())
}

fn user_net<'a>(ctx: &'a Ctx, value: &str) -> Vm<'a> {
    Vm::new(ctx).module("virtio_net").option("--net", value)
}

fn one_line(exit: &Exit, named: &[&str]) -> Result<()> {
    exit.expect_code(2)?;
    let messages = exit.messages();
    ensure!(messages.len() == 1, "not one line: {messages:?}");
    for name in named {
        ensure!(exit.says(name), "the message does not name {name:?}");
    }
    Ok(())
}

fn the_passt() -> Result<Pid> {
    match passts()?.as_slice() {
        [one] => Ok(*one),
        all => anyhow::bail!("{} passt processes in place of one", all.len()),
    }
}

/// The passt processes in this test's network namespace that have not ended.
fn passts() -> Result<Vec<Pid>> {
    let here = fs::read_link("/proc/self/ns/net")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let number = folder
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        // Processes come and go meanwhile; one that has ended has no namespaces.
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let is_ours = fs::read_link(folder.join("ns/net")).is_ok_and(|namespace| namespace == here);
        if let Some(pid) = number.and_then(Pid::from_raw)
            && name.starts_with("passt")
            && is_ours
        {
            found.push(pid);
        }
    }
    Ok(found)
}
