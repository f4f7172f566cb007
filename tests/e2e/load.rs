//! The load program of the benchmarks beside fio and iperf3, on the same device and the same network.
//!
//! All in a machine whose clock counts instructions, 2 ns each: the processor is never taken away, and figures repeat
//! within 0.3 %. By the world's clock they differ by a factor of 2 from one second to the next on a busy host.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ::bench::program::{LoadProgram, load_program};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tripath_load::peer::PeerAnswer;
use tripath_load::spec::{Answer, BlockOperation, Load, LoadResult, LoadSpec, Pattern, Request};

use crate::harness::measure::note;
use crate::harness::{Ctx, E2eTest, host, sys, test};

/// How far a figure may be from that of fio or iperf3.
const MOST: f64 = 0.1;
/// How often both are measured in turn.
const TURNS: usize = 3;
const WARM_UP_MS: u64 = 50;
const TIME_MS: u64 = 250;
const DISK: &str = "/dev/nullb0";
const SPAN_BYTES: u64 = 64 << 20;

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("load::disks_as_fio", disks).counted().limit(400),
        test("load::streams_as_iperf3", streams)
            .counted()
            .own_network()
            .limit(400),
        test("load::datagrams_are_counted", datagrams)
            .own_network()
            .limit(120),
    ]
}

/// A child that does not outlive the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<(Self, Lines<BufReader<ChildStdout>>)> {
        command.stdout(Stdio::piped());
        sys::die_with_parent(command, Signal::KILL);
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        let output = child.stdout.take().context("no standard output")?;
        Ok((Self(child), BufReader::new(output).lines()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A conversation with the load program.
struct Agent {
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Running,
}

impl Agent {
    fn start(program: &LoadProgram) -> Result<Self> {
        let mut command = Command::new(program.path());
        let (mut child, answers) = Running::start(command.arg("agent").stdin(Stdio::piped()))?;
        let requests = child.0.stdin.take().context("no standard input")?;
        let mut agent = Self {
            requests,
            answers,
            _child: child,
        };
        match agent.answer()? {
            Answer::Hello { .. } => Ok(agent),
            other => bail!("{other:?}"),
        }
    }

    fn answer(&mut self) -> Result<Answer> {
        let line = self.answers.next().context("the load has ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, request: &Request) -> Result<Answer> {
        use std::io::Write;
        writeln!(self.requests, "{}", serde_json::to_string(request)?)?;
        self.answer()
    }

    fn measure(&mut self, load: Load, warm_up_ms: u64, time_ms: u64) -> Result<LoadResult> {
        let spec = LoadSpec {
            load,
            warm_up_ms,
            time_ms,
            seed: 1,
        };
        match self.ask(&Request::Prepare { spec })? {
            Answer::Ready => {}
            other => bail!("{other:?}"),
        }
        match self.ask(&Request::Go)? {
            Answer::Over { .. } => {}
            other => bail!("{other:?}"),
        }
        match self.answer()? {
            Answer::Done { result } => Ok(result),
            other => bail!("{other:?}"),
        }
    }
}

/// The other end of the network, on the loopback interface.
fn peer(program: &LoadProgram) -> Result<(Running, std::net::SocketAddr)> {
    let mut command = Command::new(program.path());
    command.args(["serve", "127.0.0.1:0"]).stdin(Stdio::piped());
    let (child, mut lines) = Running::start(&mut command)?;
    let line = lines.next().context("no peer")??;
    match serde_json::from_str(&line)? {
        PeerAnswer::Listening { address } => Ok((child, address)),
        other => bail!("{other:?}"),
    }
}

/// The median of `TURNS` figures of both in turn: ours, theirs.
fn in_turn<const N: usize>(
    mut ours: impl FnMut() -> Result<[f64; N]>,
    mut theirs: impl FnMut() -> Result<[f64; N]>,
) -> Result<[[f64; 2]; N]> {
    let mut found = [const { [const { Vec::new() }; 2] }; N];
    for _ in 0..TURNS {
        for (who, figures) in [theirs()?, ours()?].iter().enumerate() {
            for (all, figure) in found.iter_mut().zip(figures) {
                all[1 - who].push(*figure);
            }
        }
    }
    Ok(found.map(|both| {
        both.map(|mut all| {
            all.sort_by(f64::total_cmp);
            all[TURNS / 2]
        })
    }))
}

/// How a figure is to be, beside theirs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// Within `MOST`.
    Same,
    /// Not lower by more.
    NotLess,
}

fn compare(what: &str, unit: &str, [ours, theirs]: [f64; 2], bound: Bound) -> Result<()> {
    let ratio = ours / theirs;
    note(&format!(
        "{what}: {ours:.0} {unit}, {theirs:.0} by others: {ratio:.3}"
    ));
    let is_good = ratio >= 1.0 - MOST && (ratio <= 1.0 + MOST || bound == Bound::NotLess);
    ensure!(is_good, "{what}: {ours} {unit}, {theirs} by others");
    Ok(())
}

/// A disk that does nothing, in a known time.
struct NullDisk;

impl NullDisk {
    fn new(options: &str) -> Result<Self> {
        let words: Vec<&str> = options.split_whitespace().collect();
        let usual = ["null_blk", "nr_devices=1", "gb=1", "submit_queues=1"];
        host::run("modprobe", &[&usual, words.as_slice()].concat())?;
        host::wait_until(DISK, || Path::new(DISK).exists())?;
        Ok(Self)
    }
}

impl Drop for NullDisk {
    fn drop(&mut self) {
        let _ = host::run("modprobe", &["-r", "null_blk"]);
    }
}

/// What is done with a disk.
#[derive(Clone, Copy)]
struct Job {
    operation: BlockOperation,
    pattern: Pattern,
    size_bytes: u32,
    depth: u32,
}

impl Job {
    /// Operations a second, and the median of their latency in nanoseconds.
    fn by_ours(self, agent: &mut Agent) -> Result<[f64; 2]> {
        let load = Load::Block {
            path: DISK.into(),
            operation: self.operation,
            pattern: self.pattern,
            size_bytes: self.size_bytes,
            depth: self.depth,
            span_bytes: SPAN_BYTES,
            direct: true,
        };
        let result = agent.measure(load, WARM_UP_MS, TIME_MS)?;
        let latency = result.latency.context("no latency")?;
        let per_second = result.operations as f64 * 1e9 / result.elapsed_ns as f64;
        Ok([per_second, latency.p50_ns as f64])
    }

    fn by_fio(self) -> Result<[f64; 2]> {
        let (order, way) = match (self.pattern, self.operation) {
            (Pattern::Random, BlockOperation::Read) => ("randread", "read"),
            (Pattern::Random, _) => ("randwrite", "write"),
            (Pattern::Sequential, BlockOperation::Read) => ("read", "read"),
            (Pattern::Sequential, _) => ("write", "write"),
        };
        let text = format!(
            "--name=load --filename={DISK} --ioengine=io_uring --direct=1 --thread --rw={order} --bs={} --iodepth={} \
             --size={SPAN_BYTES} --norandommap --time_based --ramp_time={WARM_UP_MS}ms --runtime={TIME_MS}ms \
             --lat_percentiles=1 --output-format=json",
            self.size_bytes, self.depth
        );
        let words: Vec<&str> = text.split_whitespace().collect();
        let said = host::output("fio", &words)?;
        // There may be a remark before.
        let start = said.find('{').with_context(|| said.clone())?;
        let report: Value = serde_json::from_str(&said[start..])?;
        let found = &report["jobs"][0][way];
        let figures = [&found["iops"], &found["lat_ns"]["percentile"]["50.000000"]];
        let [per_second, median] = figures.map(Value::as_f64);
        Ok([
            per_second.context("no operations a second")?,
            median.context("no median")?,
        ])
    }
}

fn disks(_: &Ctx) -> Result<()> {
    let program = load_program()?;
    let job = |operation, size_bytes, depth| Job {
        operation,
        pattern: if size_bytes == 4096 {
            Pattern::Random
        } else {
            Pattern::Sequential
        },
        size_bytes,
        depth,
    };
    let (read, write) = (BlockOperation::Read, BlockOperation::Write);
    for (name, disk, jobs) in [
        (
            "a quick disk",
            "irqmode=2 completion_nsec=100000 hw_queue_depth=64",
            &[
                job(read, 4096, 1),
                job(write, 4096, 1),
                job(read, 131_072, 1),
            ][..],
        ),
        // 32,000 operations a second: with less time for each the processor would be what is measured.
        (
            "a disk that takes many at once",
            "irqmode=2 completion_nsec=1000000 hw_queue_depth=64",
            &[job(read, 4096, 32), job(write, 4096, 32)],
        ),
        (
            "a disk that takes one at a time",
            "irqmode=2 completion_nsec=100000 hw_queue_depth=1",
            &[job(read, 4096, 32)],
        ),
        // Only what the program and the kernel do themselves: ours is to be no dearer than fio.
        (
            "a disk of no time",
            "irqmode=0 hw_queue_depth=64",
            &[job(read, 4096, 1), job(read, 4096, 32)],
        ),
    ] {
        let _disk = NullDisk::new(disk)?;
        let mut agent = Agent::start(&program)?;
        for job in jobs {
            let is_write = if job.operation == write {
                "writes"
            } else {
                "reads"
            };
            let what = format!(
                "{is_write} of {} bytes at depth {}, {name}",
                job.size_bytes, job.depth
            );
            let [per_second, median] = in_turn(|| job.by_ours(&mut agent), || job.by_fio())?;
            if disk.contains("irqmode=0") {
                compare(&what, "a second", per_second, Bound::NotLess)?;
                continue;
            }
            compare(&what, "a second", per_second, Bound::Same)?;
            if job.depth == 1 {
                compare(&what, "ns", median, Bound::Same)?;
            }
        }
    }
    Ok(())
}

/// Bytes a second, received.
fn by_iperf3(options: &[&str]) -> Result<[f64; 1]> {
    let usual = ["--client", "127.0.0.1", "--time", "1", "--json"];
    let said = host::output("iperf3", &[&usual, options].concat())?;
    let report: Value = serde_json::from_str(&said)?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok([bits.with_context(|| said.clone())? / 8.0])
}

fn streams(_: &Ctx) -> Result<()> {
    let program = load_program()?;
    let (_peer, peer) = peer(&program)?;
    let mut command = Command::new("iperf3");
    command.args(["--server", "--bind", "127.0.0.1", "--forceflush"]);
    let (_server, mut said) = Running::start(&mut command)?;
    ensure!(
        said.any(|line| line.is_ok_and(|line| line.contains("listening"))),
        "iperf3 does not listen"
    );
    let mut agent = Agent::start(&program)?;
    for (what, load, options) in [
        ("TCP, sent", Load::TcpSend { peer }, &[][..]),
        ("TCP, received", Load::TcpReceive { peer }, &["--reverse"]),
    ] {
        let ours = || {
            let result = agent.measure(load.clone(), WARM_UP_MS, 1000)?;
            Ok([result.bytes as f64 * 1e9 / result.elapsed_ns as f64])
        };
        let [rate] = in_turn(ours, || by_iperf3(options))?;
        compare(what, "bytes a second", rate, Bound::Same)?;
    }
    // Ours sends many by one system call, iperf3 one: ours is to be no dearer.
    let size_bytes = 1472;
    let ours = || {
        let load = Load::UdpSend { peer, size_bytes };
        let result = agent.measure(load, WARM_UP_MS, 1000)?;
        Ok([result.bytes as f64 * 1e9 / result.elapsed_ns as f64])
    };
    let options = ["--udp", "--bitrate", "0", "--length", "1472"];
    let [rate] = in_turn(ours, || by_iperf3(&options))?;
    compare("UDP, sent", "bytes a second", rate, Bound::NotLess)
}

/// The kernel's own counts of datagrams in this network namespace: received, thrown away for lack of room, sent.
fn kernel_counts() -> Result<[u64; 3]> {
    let text = fs::read_to_string("/proc/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (
        lines.next().context("no UDP")?,
        lines.next().context("no UDP")?,
    );
    let all: Vec<(&str, &str)> = names.split(' ').zip(values.split(' ')).collect();
    let count = |name: &str| -> Result<u64> {
        let found = all.iter().find(|(this, _)| *this == name);
        Ok(found.with_context(|| name.to_owned())?.1.parse()?)
    };
    Ok([
        count("InDatagrams")?,
        count("RcvbufErrors")?,
        count("OutDatagrams")?,
    ])
}

/// What the load counts is what the kernel does.
fn datagrams(_: &Ctx) -> Result<()> {
    let program = load_program()?;
    let (_peer, peer) = peer(&program)?;
    let mut agent = Agent::start(&program)?;
    for size_bytes in [64, 1472] {
        let loads = [
            Load::UdpSend { peer, size_bytes },
            Load::UdpReceive { peer, size_bytes },
            Load::UdpRoundTrip { peer, size_bytes },
        ];
        for load in loads {
            let before = kernel_counts()?;
            // None are sent for a warm-up.
            let result = agent.measure(load.clone(), 0, TIME_MS)?;
            let after = kernel_counts()?;
            let [received, dropped, sent] = [0, 1, 2].map(|which| after[which] - before[which]);
            let (arrived, lost) = (result.operations, result.lost);
            println!(
                "{load:?}: {arrived} arrived, {lost} lost; the kernel: {received}, {dropped} of {sent}"
            );
            ensure!(arrived > 0 && result.bytes == arrived * u64::from(size_bytes));
            ensure!(received + dropped == sent);
            match load {
                Load::UdpSend { .. } => ensure!(arrived == received && lost == dropped),
                // Those of before and after the measured time are among what the kernel has counted.
                Load::UdpReceive { .. } => ensure!(arrived <= received && lost == dropped),
                // There and back.
                _ => ensure!(2 * arrived == received && lost == 0),
            }
        }
    }
    Ok(())
}
