//! A VMM under test: describing a run, starting it, and waiting for what it says.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, kill_process};

use super::{Ctx, Kernel, cpio, sys};

/// Long enough for a guest to reach its job, or to power off, on the slowest machine.
pub const BOOT: Duration = Duration::from_secs(60);

/// What a guest reaches a network through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// `if=virtio`.
    Virtio,
    /// `if=e1000`; the generic kernel has its driver.
    E1000,
}

/// A run that is being described.
pub struct Vm<'a> {
    ctx: &'a Ctx,
    command: &'static str,
    kernel: Kernel,
    words: Vec<String>,
    modules: Vec<String>,
    job: Option<String>,
    init: Option<String>,
    args: Vec<OsString>,
    under: Vec<String>,
}

impl<'a> Vm<'a> {
    /// A guest with the 6.1 cloud kernel that powers off at once; the rest as `tripath run` has it by default.
    pub fn new(ctx: &'a Ctx) -> Self {
        Vm {
            ctx,
            command: "run",
            kernel: Kernel::Cloud61,
            words: vec!["console=ttyS0".to_owned(), "quiet".to_owned()],
            modules: Vec::new(),
            job: None,
            init: None,
            args: Vec::new(),
            under: Vec::new(),
        }
    }

    /// Another command than `run` that takes its options.
    pub fn command(mut self, command: &'static str) -> Self {
        self.command = command;
        self
    }

    /// The VMM is run by another command, such as `setpriv --reuid 1000`, whose last arguments it and its own are.
    pub fn under(mut self, command: &[&str]) -> Self {
        self.under = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Another kernel.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// `--cpus`.
    pub fn cpus(self, count: u32) -> Self {
        self.option("--cpus", count.to_string())
    }

    /// `--memory`.
    pub fn memory(self, size: &str) -> Self {
        self.option("--memory", size)
    }

    /// `--disk path=FILE` and what follows, which starts with a comma if it is not empty.
    pub fn disk(mut self, path: &Path, more: &str) -> Self {
        let modules: &[&str] = match (more.contains("if=ide"), more.contains("media=cdrom")) {
            (false, _) => &["virtio_blk"],
            (true, false) => &["ata_piix", "sd_mod"],
            (true, true) => &["ata_piix", "sr_mod", "isofs"],
        };
        for module in modules {
            self = self.module(module);
        }
        self.option("--disk", format!("path={}{more}", path.display()))
    }

    /// `--net tap=NAME`, and the guest's address on it.
    pub fn net(self, tap: &str, address: &str) -> Self {
        self.net_as(Nic::Virtio, tap, address)
    }

    /// `--net tap=NAME,if=…`, and the guest's address on it.
    pub fn net_as(self, nic: Nic, tap: &str, address: &str) -> Self {
        self.nic(nic, tap).word(format!("net={address}"))
    }

    /// `--net tap=NAME,if=…`.
    pub fn nic(self, nic: Nic, tap: &str) -> Self {
        let (module, interface) = match nic {
            Nic::Virtio => ("virtio_net", "virtio"),
            Nic::E1000 => ("e1000", "e1000"),
        };
        self.module(module)
            .option("--net", format!("tap={tap},if={interface}"))
    }

    /// An option of `tripath run` with its value.
    pub fn option(self, name: &str, value: impl Into<OsString>) -> Self {
        let mut vm = self.arg(name);
        vm.args.push(value.into());
        vm
    }

    /// An option of `tripath run` without a value.
    pub fn arg(mut self, name: &str) -> Self {
        self.args.push(name.into());
        self
    }

    /// One more word on the kernel's command line.
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// In place of `console=ttyS0 quiet`.
    pub fn console(mut self, device: &str) -> Self {
        self.words[0] = format!("console={device}");
        self
    }

    /// A module that the guest loads before its job, after those that virtio always needs.
    pub fn module(mut self, name: &str) -> Self {
        if name.starts_with("virtio") && !self.modules.iter().any(|module| module == "virtio_pci") {
            self.modules.push("virtio_pci".to_owned());
        }
        if !self.modules.iter().any(|module| module == name) {
            self.modules.push(name.to_owned());
        }
        self
    }

    /// Shell commands for the guest, which powers off after them.
    pub fn job(mut self, script: &str) -> Self {
        self.job = Some(script.to_owned());
        self
    }

    /// Another first process than the usual one: a whole script, with busybox at /bin/busybox.
    pub fn init(mut self, script: &str) -> Self {
        self.init = Some(script.to_owned());
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Running> {
        let initrd = self.write_initrd()?;
        let mut words = self.words;
        if !self.modules.is_empty() {
            words.push(format!("drv={}", self.modules.join(",")));
        }
        let mut args: Vec<OsString> = vec!["--kernel".into()];
        args.push(self.ctx.kernel(self.kernel).into());
        args.extend(["--initrd".into(), initrd.into(), "--cmdline".into()]);
        args.push(words.join(" ").into());
        args.extend(self.args);
        let Some((wrapper, wrapper_args)) = self.under.split_first() else {
            return Running::start(self.ctx, self.command, &args);
        };
        let mut command = Command::new(wrapper);
        command
            .args(wrapper_args)
            .arg(&self.ctx.binary)
            .arg(self.command)
            .args(&args);
        Running::spawn(command, self.ctx)
    }

    /// The kernel, and the initramfs that is made for it.
    pub fn files(&self) -> Result<(PathBuf, PathBuf)> {
        Ok((self.ctx.kernel(self.kernel), self.write_initrd()?))
    }

    fn write_initrd(&self) -> Result<PathBuf> {
        let base = self.ctx.testbed.join("guest.cpio.gz");
        let mut image = std::fs::read(&base).with_context(|| format!("{}", base.display()))?;
        if !self.modules.is_empty() {
            image.resize(image.len().next_multiple_of(4), 0);
            image.extend(std::fs::read(self.ctx.modules(self.kernel))?);
        }
        let job = self.job.as_deref().unwrap_or("true");
        let mut files = vec![("job", job)];
        files.extend(self.init.as_deref().map(|init| ("init", init)));
        cpio::append(&mut image, &files);
        // Tests with several guests start them one after another, so each keeps its own file.
        let file = tempfile::Builder::new()
            .prefix("initrd.")
            .tempfile_in(&self.ctx.folder)?;
        std::fs::write(file.path(), image)?;
        // The VMM need not run as the user that the test is.
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644))?;
        Ok(file.into_temp_path().keep()?)
    }
}

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The guest's console, unless it goes elsewhere.
    Stdout,
    /// The VMM's own messages.
    Stderr,
}

/// One line that the VMM or its guest wrote.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was complete.
    pub at: Instant,
    /// Where it came from.
    pub source: Source,
    /// Without the end of the line.
    pub text: String,
}

#[derive(Default)]
struct Output {
    lines: Vec<Line>,
    open_streams: u32,
}

/// A VMM that was started. It is killed when this is dropped.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<(Mutex<Output>, Condvar)>,
    readers: Vec<JoinHandle<()>>,
    /// How many lines have been waited for already.
    seen: usize,
}

/// How a VMM ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its exit status.
    pub status: ExitStatus,
    /// When.
    pub at: Instant,
    /// Everything it and its guest wrote.
    pub lines: Vec<Line>,
}

impl Running {
    /// Starts `tripath COMMAND ARGS…`.
    pub fn start(ctx: &Ctx, subcommand: &str, args: &[OsString]) -> Result<Self> {
        let mut command = Command::new(&ctx.binary);
        command.arg(subcommand).args(args);
        Self::spawn(command, ctx)
    }

    /// Starts any command; its streams are pipes.
    pub fn spawn(mut command: Command, ctx: &Ctx) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        sys::die_with_parent(&mut command, Signal::KILL);
        println!("+ {command:?}");
        let mut child = command
            .spawn()
            .with_context(|| format!("{}", ctx.binary.display()))?;
        let output = Arc::new((
            Mutex::new(Output {
                lines: Vec::new(),
                open_streams: 2,
            }),
            Condvar::new(),
        ));
        let stdout = child.stdout.take().context("no stdout")?;
        let stderr = child.stderr.take().context("no stderr")?;
        let readers = vec![
            read_lines(stdout, Source::Stdout, output.clone()),
            read_lines(stderr, Source::Stderr, output.clone()),
        ];
        Ok(Running {
            stdin: child.stdin.take(),
            child,
            output,
            readers,
            seen: 0,
        })
    }

    /// The VMM's process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains `text`, after those that earlier calls have found.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<Line> {
        let deadline = Instant::now() + limit;
        let mut output = lock(&self.output.0);
        loop {
            while let Some(line) = output.lines.get(self.seen) {
                self.seen += 1;
                if line.text.contains(text) {
                    return Ok(line.clone());
                }
            }
            ensure!(
                output.open_streams > 0,
                "it ended without a line with {text:?}"
            );
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no line with {text:?} within {limit:?}");
            output = self
                .output
                .1
                .wait_timeout(output, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for a line with `name`, and returns what follows on it.
    pub fn value(&mut self, name: &str, limit: Duration) -> Result<String> {
        let line = self.wait_for(name, limit)?.text;
        let (_, value) = line.split_once(name).context("the name is gone")?;
        Ok(value.trim().to_owned())
    }

    /// Types on the guest's console.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Sends the VMM a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(sys::pid_of(&self.child)?, signal)?)
    }

    /// Whether it ends within that time.
    pub fn ends_within(&self, limit: Duration) -> Result<bool> {
        Ok(sys::wait_ended(sys::pid_of(&self.child)?, limit)?)
    }

    /// Waits until it has ended.
    pub fn wait_exit(mut self, limit: Duration) -> Result<Exit> {
        ensure!(self.ends_within(limit)?, "still running after {limit:?}");
        let at = Instant::now();
        let status = self.child.wait()?;
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                bail!("a reader of the output panicked");
            }
        }
        let lines = std::mem::take(&mut lock(&self.output.0).lines);
        println!("+ {status}");
        Ok(Exit { status, at, lines })
    }

    /// Waits until it has ended with exit code 0.
    pub fn wait_success(self, limit: Duration) -> Result<Exit> {
        let exit = self.wait_exit(limit)?;
        exit.expect_code(0)?;
        Ok(exit)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Exit {
    /// Fails unless it ended with that exit code.
    pub fn expect_code(&self, code: i32) -> Result<()> {
        if let Some(signal) = self.status.signal() {
            bail!("killed by signal {signal}; exit code {code} was expected");
        }
        let got = self.status.code();
        ensure!(got == Some(code), "exit code {got:?} in place of {code}");
        Ok(())
    }

    /// Whether a line contains `text`, without regard to case.
    pub fn says(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.lines
            .iter()
            .any(|line| line.text.to_lowercase().contains(&text))
    }

    /// The lines that the VMM itself wrote.
    pub fn messages(&self) -> Vec<&str> {
        self.lines
            .iter()
            .filter(|line| line.source == Source::Stderr)
            .map(|line| line.text.as_str())
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects a stream's lines, which also go to the test's log.
fn read_lines(
    stream: impl Read + Send + 'static,
    source: Source,
    output: Arc<(Mutex<Output>, Condvar)>,
) -> JoinHandle<()> {
    let begun = Instant::now();
    std::thread::spawn(move || {
        let mark = if source == Source::Stdout { "|" } else { "!" };
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            println!("{:7.3} {mark} {text}", begun.elapsed().as_secs_f64());
            let line = Line {
                at: Instant::now(),
                source,
                text,
            };
            lock(&output.0).lines.push(line);
            output.1.notify_all();
        }
        lock(&output.0).open_streams -= 1;
        output.1.notify_all();
    })
}
