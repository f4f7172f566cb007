//! Serial ports, virtio-console, virtio-rng, and the user's terminal.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::harness::measure::cpu_time;
use crate::harness::vm::{BOOT, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, sys, test};

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("console::serial_input", serial_input),
        test("console::serial_to_file", serial_to_file),
        test("console::second_serial_port", second_serial_port),
        test("console::serial_on_pty", serial_on_pty),
        test("console::serial_null", serial_null),
        test("console::virtio_on_socket", virtio_on_socket),
        test(
            "console::virtio_as_kernel_console",
            virtio_as_kernel_console,
        ),
        test("console::virtio_bulk", virtio_bulk),
        test("console::virtio_rng", virtio_rng),
        test("console::late_tcp_client", late_tcp_client),
        test("console::serial_through_a_slow_reader", |ctx| {
            slow_reader(ctx, Port::Serial)
        }),
        test("console::virtio_through_a_slow_reader", |ctx| {
            slow_reader(ctx, Port::Virtio)
        }),
        test("console::serial_reader_that_stopped", |ctx| {
            stopped_reader(ctx, Port::Serial)
        }),
        test("console::virtio_reader_that_stopped", |ctx| {
            stopped_reader(ctx, Port::Virtio)
        }),
        test("console::ctrl_a_x_quits", |ctx| {
            terminal(ctx, Leave::CtrlAX)
        }),
        test("console::terminal_after_poweroff", |ctx| {
            terminal(ctx, Leave::PowerOff)
        }),
        test("console::terminal_after_sigterm", |ctx| {
            terminal(ctx, Leave::SigTerm)
        }),
    ]
}

fn serial_input(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .job(
            "stty -echo; echo READY; while read line; do echo GOT $(echo $line | tr a-z A-Z); done",
        )
        .spawn()?;
    vm.wait_for("READY", BOOT)?;
    for word in ["first", "second"] {
        vm.send(&format!("{word}\n"))?;
        let got = vm.value("GOT", BOOT)?;
        ensure!(got == word.to_uppercase(), "the guest read {got}");
    }
    // More than the UART's FIFO holds, at once.
    let long = "x".repeat(1000);
    vm.send(&format!("{long}\n"))?;
    let got = vm.value("GOT", BOOT)?;
    ensure!(
        got.len() == long.len(),
        "the guest read {} bytes",
        got.len()
    );
    // The terminal's end of input.
    vm.send("\u{4}")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn serial_to_file(ctx: &Ctx) -> Result<()> {
    let path = ctx.path("serial");
    let vm = Vm::new(ctx)
        .option("--serial", format!("file={}", path.display()))
        .job("echo IN-THE-FILE")
        .spawn()?;
    let exit = vm.wait_success(BOOT)?;
    ensure!(!exit.says("IN-THE-FILE"), "it went to stdout, too");
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains("IN-THE-FILE"), "not in the file");
    Ok(())
}

fn second_serial_port(ctx: &Ctx) -> Result<()> {
    let path = ctx.path("com2");
    let mut vm = Vm::new(ctx)
        .option("--serial", "stdio")
        .option("--serial", format!("file={}", path.display()))
        .job("echo ON-COM2 >/dev/ttyS1; echo ON-COM1")
        .spawn()?;
    vm.wait_for("ON-COM1", BOOT)?;
    vm.wait_success(BOOT)?;
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains("ON-COM2"), "COM2's file has {text:?}");
    Ok(())
}

fn serial_on_pty(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .option("--serial", "pty")
        .job("echo READY; read line; echo GOT $line; read line")
        .spawn()?;
    // The VMM says which pseudo-terminal it is.
    let name = format!("/dev/pts/{}", vm.value("/dev/pts/", BOOT)?);
    let name: String = name
        .chars()
        .take_while(|&c| c.is_ascii_alphanumeric() || c == '/')
        .collect();
    let mut pty = File::options().read(true).write(true).open(&name)?;
    wait_for_text(&mut pty, "READY").with_context(|| name.clone())?;
    pty.write_all(b"hello\n")?;
    wait_for_text(&mut pty, "GOT hello")?;
    pty.write_all(b"\n")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn serial_null(ctx: &Ctx) -> Result<()> {
    let vm = Vm::new(ctx)
        .option("--serial", "null")
        .job("echo NOWHERE")
        .spawn()?;
    let exit = vm.wait_success(BOOT)?;
    ensure!(!exit.says("NOWHERE"), "it was shown");
    Ok(())
}

fn virtio_on_socket(ctx: &Ctx) -> Result<()> {
    let path = ctx.path("hvc0");
    let mut vm = Vm::new(ctx)
        .module("virtio_console")
        .option("--console", format!("socket={}", path.display()))
        .job(
            // It forgets its settings when nobody has it open.
            "exec 3<>/dev/hvc0
             stty -echo <&3
             echo READY
             read line <&3
             echo GOT $line >&3
             echo READ-BY-GUEST $line
             read line",
        )
        .spawn()?;
    vm.wait_for("READY", BOOT)?;
    let mut socket = UnixStream::connect(&path)?;
    socket.set_read_timeout(Some(BOOT))?;
    socket.write_all(b"hello through virtio\n")?;
    let mut answer = String::new();
    BufReader::new(&socket).read_line(&mut answer)?;
    ensure!(
        answer.trim() == "GOT hello through virtio",
        "the answer is {answer:?}"
    );
    vm.wait_for("READ-BY-GUEST hello through virtio", BOOT)?;
    vm.send("\n")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn virtio_as_kernel_console(ctx: &Ctx) -> Result<()> {
    // 6.12 has the driver built in, so that it can be the console from the start.
    let mut vm = Vm::new(ctx)
        .kernel(Kernel::Generic612)
        .console("hvc0")
        .option("--serial", "null")
        .option("--console", "stdio")
        .job("stty -echo; echo READY; read line; echo GOT $line")
        .spawn()?;
    vm.wait_for("READY", BOOT)?;
    vm.send("typed\n")?;
    ensure!(vm.value("GOT", BOOT)? == "typed", "other input");
    vm.wait_success(BOOT)?;
    Ok(())
}

fn virtio_bulk(ctx: &Ctx) -> Result<()> {
    let path = ctx.path("hvc0");
    let vm = Vm::new(ctx)
        .module("virtio_console")
        .option("--console", format!("file={}", path.display()))
        .job("exec 3<>/dev/hvc0; stty -onlcr <&3; seq 1 10000 >&3")
        .spawn()?;
    vm.wait_success(BOOT)?;
    let expected: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    let got = std::fs::read_to_string(&path)?;
    ensure!(got == expected, "{} bytes of {}", got.len(), expected.len());
    Ok(())
}

fn late_tcp_client(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .option("--serial", "tcp=127.0.0.1:0")
        .option("--serial", "stdio")
        .job("stty -echo; echo EARLY; echo READY >/dev/ttyS1; read line; echo GOT $line; read line")
        .spawn()?;
    let address = vm.value("com1 is ", BOOT)?;
    vm.wait_for("READY", BOOT)?;
    let mut client = TcpStream::connect(&address)?;
    client.set_read_timeout(Some(BOOT))?;
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let mut wait_for = |text: &str| loop {
        let line = lines.next().context("the connection has ended")??;
        if line.contains(text) {
            return anyhow::Ok(());
        }
    };
    wait_for("EARLY")?;
    client.write_all(b"hello\n")?;
    wait_for("GOT hello")?;
    client.write_all(b"\n")?;
    vm.wait_success(BOOT)?;
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Serial,
    Virtio,
}

/// A guest whose standard output is a small pipe that nobody reads yet.
struct Piped {
    child: Child,
    stdout: ChildStdout,
    messages: Lines<BufReader<ChildStderr>>,
}

impl Piped {
    fn start(ctx: &Ctx, port: Port, script: &str) -> Result<Self> {
        let mut image = std::fs::read(ctx.testbed.join("guest.cpio.gz"))?;
        crate::harness::cpio::append(&mut image, &[("job", script)]);
        let initrd = ctx.path("pipe.cpio");
        std::fs::write(&initrd, image)?;
        let (kernel, console, options) = match port {
            Port::Serial => (Kernel::Cloud61, "ttyS0", &[][..]),
            Port::Virtio => (Kernel::Generic612, "hvc0", &["--console", "stdio"][..]),
        };
        let mut command = Command::new(&ctx.binary);
        command
            .args(["run", "--cmdline"])
            .arg(format!("console={console} quiet reboot=k"))
            .arg("--kernel")
            .arg(ctx.kernel(kernel))
            .arg("--initrd")
            .arg(initrd)
            .args(options)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        sys::die_with_parent(&mut command, Signal::KILL);
        println!("+ {command:?}");
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        fcntl_setpipe_size(&stdout, 4096)?;
        let messages = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        Ok(Self {
            child,
            stdout,
            messages,
        })
    }

    /// Waits until the pipe is full and all that the VMM holds.
    fn wait_until_stuck(&mut self) -> Result<()> {
        for message in self.messages.by_ref() {
            let message = message?;
            println!("! {message}");
            if message.contains("the guest has to wait") {
                return Ok(());
            }
        }
        bail!("it ended before that")
    }
}

/// Nothing of what is printed is lost though the reader comes late and rests once more.
fn slow_reader(ctx: &Ctx, port: Port) -> Result<()> {
    // Twice as much as the pipe and the VMM hold. In large blocks: a line at a time would be far slower.
    let last = 25_000;
    let script = format!("stty -onlcr; echo FROM-HERE; seq 1 {last} | cat; echo TO-HERE");
    let mut vm = Piped::start(ctx, port, &script)?;
    vm.wait_until_stuck()?;
    // Enough for the guest to go on.
    let mut text = vec![0; 40 << 10];
    vm.stdout.read_exact(&mut text)?;
    vm.wait_until_stuck()?;
    vm.stdout.read_to_end(&mut text)?;
    let status = vm.child.wait()?;
    ensure!(status.success(), "{status}");
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.split_once("FROM-HERE\n").context("no beginning")?;
    let (numbers, _) = rest.split_once("TO-HERE").context("no end")?;
    let expected: String = (1..=last).map(|n| format!("{n}\n")).collect();
    ensure!(
        numbers == expected,
        "{} bytes of {}",
        numbers.len(),
        expected.len()
    );
    Ok(())
}

/// Signals end the run at once although its output is stuck.
fn stopped_reader(ctx: &Ctx, port: Port) -> Result<()> {
    let mut vm = Piped::start(
        ctx,
        port,
        match port {
            // The kernel's own messages: it polls, and in the end writes though there is no room.
            Port::Serial => {
                "echo 8 >/proc/sys/kernel/printk; while true; do echo t >/proc/sysrq-trigger; done"
            }
            Port::Virtio => "stty -opost; while true; do cat /bin/busybox; done",
        },
    )?;
    vm.wait_until_stuck()?;
    let pid = sys::pid_of(&vm.child)?;
    if port == Port::Serial {
        wait_until_idle(vm.child.id())?;
    }
    // Asks the guest to power off, which may not listen, then ends it.
    kill_process(pid, Signal::TERM)?;
    if !sys::wait_ended(pid, Duration::from_secs(1))? {
        kill_process(pid, Signal::TERM)?;
    }
    ensure!(
        sys::wait_ended(pid, Duration::from_secs(5))?,
        "still running"
    );
    let status = vm.child.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Waits until the process uses little CPU: neither the guest nor the VMM spins until there is room.
fn wait_until_idle(pid: u32) -> Result<()> {
    let deadline = Instant::now() + BOOT;
    let mut before = cpu_time(pid)?;
    loop {
        // The span that is measured: there is no event for what does not happen.
        std::thread::sleep(Duration::from_secs(1));
        let now = cpu_time(pid)?;
        println!("{:?} of CPU in a second", now.saturating_sub(before));
        if now.saturating_sub(before) <= Duration::from_millis(250) {
            return Ok(());
        }
        before = now;
        ensure!(Instant::now() < deadline, "it spins for ever");
    }
}

fn virtio_rng(ctx: &Ctx) -> Result<()> {
    let mut vm = Vm::new(ctx)
        .module("virtio-rng")
        .arg("--rng")
        .arg("on")
        .job(
            "echo SOURCE $(cat /sys/class/misc/hw_random/rng_current)
             for i in 1 2; do echo BYTES $(head -c 32 /dev/hwrng | xxd -p -c 64); done",
        )
        .spawn()?;
    let source = vm.value("SOURCE", BOOT)?;
    ensure!(source.starts_with("virtio_rng"), "the source is {source:?}");
    let (first, second) = (vm.value("BYTES", BOOT)?, vm.value("BYTES", BOOT)?);
    ensure!(
        first.len() == 64 && second.len() == 64 && first != second,
        "{first} and {second} are not two times 32 random bytes"
    );
    vm.wait_success(BOOT)?;
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    CtrlAX,
    PowerOff,
    SigTerm,
}

/// The terminal is raw while the guest owns it, and as before afterwards, whatever ends the run.
fn terminal(ctx: &Ctx, leave: Leave) -> Result<()> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?.into_string()?;
    let slave: OwnedFd = File::options().read(true).write(true).open(name)?.into();
    let before = tcgetattr(&slave)?;

    let mut command = Command::new(&ctx.binary);
    command
        .args(["run", "--cmdline", "console=ttyS0 quiet", "--kernel"])
        .arg(ctx.kernel(Kernel::Cloud61))
        .arg("--initrd")
        .arg(write_terminal_initrd(ctx)?)
        .stdin(Stdio::from(slave.try_clone()?))
        .stdout(Stdio::from(slave.try_clone()?))
        .stderr(Stdio::from(slave.try_clone()?));
    sys::die_with_parent(&mut command, Signal::KILL);
    let mut child = command.spawn()?;
    drop(command);

    let mut terminal = File::from(master);
    wait_for_text(&mut terminal, "GUEST-UP")?;
    let during = tcgetattr(&slave)?;
    ensure!(
        !during
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG),
        "the terminal is not raw while the guest runs"
    );
    match leave {
        Leave::CtrlAX => terminal.write_all(b"\x01x")?,
        Leave::PowerOff => terminal.write_all(b"off\n")?,
        Leave::SigTerm => {
            // This guest does not listen to its power button: the second signal at the latest ends it.
            let pid = sys::pid_of(&child)?;
            kill_process(pid, Signal::TERM)?;
            if !sys::wait_ended(pid, Duration::from_secs(2))? {
                kill_process(pid, Signal::TERM)?;
            }
        }
    }
    // Whatever it still writes must be read, or it would wait for that.
    let drain = std::thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = terminal.read_to_end(&mut rest);
    });
    ensure!(
        sys::wait_ended(sys::pid_of(&child)?, BOOT)?,
        "still running"
    );
    let status = child.wait()?;
    let after = tcgetattr(&slave)?;
    ensure!(status.code().is_some(), "{status}");
    if leave == Leave::PowerOff {
        ensure!(status.success(), "{status}");
    }
    ensure!(
        modes(&before) == modes(&after),
        "the terminal is not as before: {after:?}"
    );
    drop(slave);
    drain.join().ok().context("the drain panicked")?;
    Ok(())
}

fn modes(termios: &Termios) -> [String; 4] {
    [
        format!("{:?}", termios.input_modes),
        format!("{:?}", termios.output_modes),
        format!("{:?}", termios.control_modes),
        format!("{:?}", termios.local_modes),
    ]
}

fn write_terminal_initrd(ctx: &Ctx) -> Result<std::path::PathBuf> {
    let mut image = std::fs::read(ctx.testbed.join("guest.cpio.gz"))?;
    crate::harness::cpio::append(&mut image, &[("job", "echo GUEST-UP; read line")]);
    let path = ctx.path("terminal.cpio");
    std::fs::write(&path, image)?;
    Ok(path)
}

/// Reads from a terminal until the text has come.
fn wait_for_text(terminal: &mut File, text: &str) -> Result<()> {
    use std::os::fd::AsFd;
    let deadline = Instant::now() + BOOT.max(Duration::from_secs(1));
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(text) {
        ensure!(
            sys::wait_readable(terminal.as_fd(), deadline)?,
            "no {text:?} in {:?}",
            String::from_utf8_lossy(&seen)
        );
        let count = terminal.read(&mut buffer)?;
        ensure!(count > 0, "the terminal was closed");
        print!("{}", String::from_utf8_lossy(&buffer[..count]));
        seen.extend(&buffer[..count]);
    }
    Ok(())
}
