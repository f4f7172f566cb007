//! virtio-net on a TAP, in a network namespace of the test's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};

use crate::harness::tap::{self, GUEST_NET, HOST};
use crate::harness::vm::{BOOT, Nic, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};

/// How much crosses each way.
const TRANSFER_BYTES: usize = 100_000_000;
const GUEST_PORT: u16 = 8080;
/// Long enough for that, one way.
pub const TRANSFER: Duration = Duration::from_secs(120);

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("net::ping", |ctx| ping(ctx, Nic::Virtio, Kernel::Cloud61)).own_network(),
        test("net::mac_address", mac_address).own_network(),
        test("net::tcp_both_ways_6_1", |ctx| {
            tcp(ctx, Nic::Virtio, Kernel::Cloud61, "")
        })
        .own_network()
        .limit(300),
        test("net::tcp_both_ways_6_12", |ctx| {
            tcp(ctx, Nic::Virtio, Kernel::Generic612, "")
        })
        .own_network()
        .limit(300),
        test("net::tap_missing", tap_missing).own_network(),
        test("net::tap_busy", tap_busy).own_network(),
    ]
}

/// The guest pings the host.
pub fn ping(ctx: &Ctx, nic: Nic, kernel: Kernel) -> Result<()> {
    tap::make("tap0")?;
    let mut vm = Vm::new(ctx)
        .kernel(kernel)
        .net_as(nic, "tap0", GUEST_NET)
        .job(&format!(
            "ping -c 5 -i 0.2 -w 20 {HOST} >/tmp/ping && echo ANSWERED || echo LOST; cat /tmp/ping"
        ))
        .spawn()?;
    vm.wait_for("ANSWERED", BOOT)?;
    vm.wait_for(" 0% packet loss", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn mac_address(ctx: &Ctx) -> Result<()> {
    tap::make("tap0")?;
    let mut vm = Vm::new(ctx)
        .module("virtio_net")
        .option("--net", "tap=tap0,mac=52:54:00:12:34:56")
        .job("echo MAC $(cat /sys/class/net/eth0/address)")
        .spawn()?;
    let mac = vm.value("MAC", BOOT)?;
    ensure!(mac == "52:54:00:12:34:56", "the guest sees {mac}");
    vm.wait_success(BOOT)?;
    Ok(())
}

/// 100 MB by TCP to the guest and back, compared. `mtu` is that of both ends, if it is not the usual one.
pub fn tcp(ctx: &Ctx, nic: Nic, kernel: Kernel, mtu: &str) -> Result<()> {
    tap::make("tap0")?;
    let mut set_mtu = String::new();
    if !mtu.is_empty() {
        tap::ip(&format!("link set tap0 mtu {mtu}"))?;
        set_mtu = format!(
            "ip link set eth0 mtu {mtu} && ping -c 3 -s 8000 -w 20 {HOST} >/dev/null && echo LARGE-PASS"
        );
    }
    let to_guest = TcpListener::bind((HOST, 0))?;
    let port_out = to_guest.local_addr()?.port();
    let sent = serve(to_guest, |stream| send_noise(stream, TRANSFER_BYTES));
    let mut vm = Vm::new(ctx)
        .kernel(kernel)
        .memory("512M")
        .net_as(nic, "tap0", GUEST_NET)
        .job(&format!(
            "{set_mtu}
             nc {HOST} {port_out} </dev/null >/data
             echo RECEIVED $(wc -c </data) $(sha256sum </data)
             httpd -p {GUEST_PORT} -h /
             echo SERVING; read line"
        ))
        .spawn()?;
    if !mtu.is_empty() {
        vm.wait_for("LARGE-PASS", BOOT)?;
    }
    let in_guest = vm.value("RECEIVED", TRANSFER)?;
    let sum = finish(sent)?;
    ensure!(
        in_guest.starts_with(&format!("{TRANSFER_BYTES} {sum}")),
        "the host sent {sum}, the guest got {in_guest}"
    );
    vm.wait_for("SERVING", BOOT)?;
    let address = GUEST_NET.split('/').next().unwrap_or_default();
    let back = fetch((address, GUEST_PORT))?;
    ensure!(back == sum, "the guest sent {sum}, the host got {back}");
    vm.send("\n")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// Serves one connection in a thread.
pub fn serve(
    listener: TcpListener,
    work: impl FnOnce(TcpStream) -> Result<String> + Send + 'static,
) -> JoinHandle<Result<String>> {
    std::thread::spawn(move || work(listener.accept()?.0))
}

/// What the thread returned.
pub fn finish(server: JoinHandle<Result<String>>) -> Result<String> {
    server.join().map_err(|_| anyhow!("the server panicked"))?
}

/// Sends so many pseudo-random bytes; returns their SHA-256.
pub fn send_noise(mut stream: TcpStream, bytes: usize) -> Result<String> {
    let mut digest = Sha256::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut left = bytes;
    while left > 0 {
        let mut chunk: Vec<u8> = std::iter::repeat_with(|| {
            // xorshift: no byte is like its neighbours, which is all that is asked of it.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(1 << 14)
        .flatten()
        .collect();
        chunk.truncate(left);
        digest.update(&chunk);
        stream.write_all(&chunk)?;
        left -= chunk.len();
    }
    Ok(hex(&digest.finalize()))
}

/// The SHA-256 of the guest's `/data`, by HTTP: the guest sends large pieces with few system calls, which spares an
/// emulated L1, whose QEMU now and then delivers an interrupt right at a system call.
pub fn fetch(server: (&str, u16)) -> Result<String> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(TRANSFER))?;
    stream.write_all(b"GET /data HTTP/1.0\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(1 << 17, stream);
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {}
    ensure!(header.contains("200 OK"), "the guest answers {header:?}");
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        let count = reader.read(&mut buffer).context("reading from the guest")?;
        if count == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..count]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tap_missing(ctx: &Ctx) -> Result<()> {
    let exit = Vm::new(ctx)
        .option("--net", "tap=nosuchtap")
        .spawn()?
        .wait_exit(BOOT)?;
    exit.expect_code(2)?;
    ensure!(exit.says("nosuchtap"), "the message does not name the TAP");
    ensure!(
        exit.messages().len() == 1,
        "not one line: {:?}",
        exit.messages()
    );
    ensure!(!interfaces()?.contains("nosuchtap"), "the TAP was made");
    Ok(())
}

fn interfaces() -> Result<String> {
    // /sys shows the network namespace it was mounted in; this shows the process's own.
    Ok(std::fs::read_to_string("/proc/self/net/dev")?)
}

fn tap_busy(ctx: &Ctx) -> Result<()> {
    tap::make("tap0")?;
    let mut first = Vm::new(ctx)
        .net("tap0", GUEST_NET)
        .job("echo GUEST-UP; read line")
        .spawn()?;
    first.wait_for("GUEST-UP", BOOT)?;
    let exit = Vm::new(ctx)
        .option("--net", "tap=tap0")
        .spawn()?
        .wait_exit(BOOT)?;
    exit.expect_code(2)?;
    ensure!(exit.says("tap0"), "the message does not name the TAP");
    first.send("\n")?;
    first.wait_success(BOOT)?;
    Ok(())
}
