//! iPXE, a guest that is no Linux: it starts in real mode and has its own drivers, DHCP, TCP and HTTP.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::harness::dhcp::{self, DhcpServer};
use crate::harness::tap::{self, HOST};
use crate::harness::vm::{BOOT, Running};
use crate::harness::{Ctx, E2eTest, test};

/// The fetched file has a mark in each of this many pieces.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 1 << 19;
const TRANSFER: Duration = Duration::from_secs(120);

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("ipxe::http_virtio", |ctx| http(ctx, "virtio", "virtio-net"))
            .own_network()
            .limit(240),
        test("ipxe::http_e1000", |ctx| http(ctx, "e1000", "82540em"))
            .own_network()
            .limit(240),
        test("ipxe::exit_powers_off", exit_powers_off),
        test("ipxe::keys_and_restart", keys_and_restart),
    ]
}

/// Starts iPXE with a script and options.
fn start(ctx: &Ctx, script: &str, more: &[&str]) -> Result<Running> {
    let initrd = ctx.path("script.ipxe");
    std::fs::write(&initrd, script)?;
    let mut args = vec!["--kernel".into(), ctx.testbed.join("ipxe/ipxe.lkrn").into()];
    args.extend(["--initrd".into(), initrd.into()]);
    args.extend(["--memory", "128M"].map(Into::into));
    args.extend(more.iter().map(Into::into));
    Running::start(ctx, "run", &args)
}

/// Gets an address by DHCP and fetches 4 MiB over HTTP: a script, which iPXE runs. It says a word of this run's own
/// in each of its pieces, so what is said has come over the network, from all parts of the file.
fn http(ctx: &Ctx, interface: &str, chip: &str) -> Result<()> {
    tap::make("tap0")?;
    let _dhcp = DhcpServer::start(ctx)?;
    let listener = TcpListener::bind((HOST, 0))?;
    let port = listener.local_addr()?.port();
    let word = format!(
        "{:x}",
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_nanos()
    );
    let file = marked_script(&word);
    std::thread::spawn(move || serve(&listener, &file));
    let script = format!(
        "#!ipxe
dhcp || goto failed
echo CHIP ${{net0/chip}}
echo ADDRESS ${{net0/ip}}
chain http://{HOST}:{port}/script || goto failed
echo CHAINED
reboot
:failed
echo FAILED
reboot
"
    );
    let net = format!("tap=tap0,if={interface}");
    let mut vm = start(ctx, &script, &["--net", &net, "--on-reboot", "exit"])?;
    let found = vm.value("CHIP", BOOT)?;
    ensure!(found == chip, "the card is a {found}");
    let address = vm.value("ADDRESS", BOOT)?;
    ensure!(address == dhcp::LEASE, "the guest has {address:?}");
    for piece in 0..PIECES {
        vm.wait_for(&format!("PIECE {piece} {word}"), TRANSFER)?;
    }
    vm.wait_for("CHAINED", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// A script in pieces: a line to be said in each, between comments.
fn marked_script(word: &str) -> Vec<u8> {
    let mut script = String::from("#!ipxe\n");
    for piece in 0..PIECES {
        let end = (piece + 1) * PIECE_BYTES;
        let mut line = 0;
        while script.len() < end {
            line += 1;
            let _ = writeln!(script, "# {:04000}", piece * 1000 + line);
        }
        let _ = writeln!(script, "echo PIECE {piece} {word}");
    }
    script.into_bytes()
}

/// Answers requests, one after another, with the file.
fn serve(listener: &TcpListener, file: &[u8]) -> Result<()> {
    loop {
        answer(listener.accept()?.0, file).context("answering iPXE")?;
    }
}

fn answer(mut stream: TcpStream, file: &[u8]) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        println!("HTTP {}", line.trim_end());
        line.clear();
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        file.len()
    )?;
    Ok(stream.write_all(file)?)
}

/// A script that ends gives the machine back to its firmware, which has nothing else to boot.
fn exit_powers_off(ctx: &Ctx) -> Result<()> {
    let mut vm = start(ctx, "#!ipxe\necho IN-SCRIPT\nexit\n", &[])?;
    vm.wait_for("IN-SCRIPT", BOOT)?;
    vm.wait_for("Nothing else to boot", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}

/// Keys come from the serial port; after a reset it all starts again.
fn keys_and_restart(ctx: &Ctx) -> Result<()> {
    let script = "#!ipxe
echo ASK
prompt --key r --timeout 60000 Press || exit
echo AGAIN
reboot
";
    let mut vm = start(ctx, script, &[])?;
    vm.wait_for("ASK", BOOT)?;
    vm.send("r")?;
    vm.wait_for("AGAIN", BOOT)?;
    vm.wait_for("ASK", BOOT)?;
    vm.send("x")?;
    vm.wait_for("Nothing else to boot", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}
