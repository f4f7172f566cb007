//! End-to-end tests: each boots guests with the built `tripath` on a real `/dev/kvm`.
//!
//! `cargo test --test e2e [FILTER]` works on any x86-64 Debian or Ubuntu machine. Where the host's own KVM can run a
//! stock kernel, the tests run on the host; otherwise in L1, a machine under QEMU that has one (`tests/testbed/`).
//! Either way each test is a process of its own, `e2e --in-place NAME`, with a time limit; its whole log ends up in
//! `target/e2e-logs`.
//!
//! Environment: `TRIPATH_BIN` is another VMM to test in place of the one just built; `TRIPATH_E2E=host` or `=l1`
//! decides where the tests run. Needed for host and L1 alike: `tests/testbed/setup`, which is run first.

mod bench;
mod bench_io;
mod blk;
mod boot;
mod console;
mod costs;
mod ctl;
mod e1000;
mod harness;
mod ide;
mod ipxe;
mod load;
mod net;
mod net_user;
mod panic;
mod reset;
mod share;
mod test_cmd;
mod test_exec;
mod usage;
mod usage_files;
mod vfio;
mod vfio_host;

use std::process::ExitCode;

use harness::{E2eTest, agent, front, in_place};

/// Every test there is: those that want the machine to themselves late, and those of another machine last.
fn all_tests() -> Vec<E2eTest> {
    let mut tests: Vec<E2eTest> = [
        boot::tests(),
        bench::tests(),
        load::tests(),
        bench_io::tests(),
        reset::tests(),
        panic::tests(),
        test_cmd::tests(),
        test_exec::tests(),
        blk::tests(),
        ide::tests(),
        share::tests(),
        net::tests(),
        ipxe::tests(),
        net_user::tests(),
        e1000::tests(),
        console::tests(),
        usage::tests(),
        usage_files::tests(),
        costs::tests(),
        ctl::tests(),
        vfio::tests(),
        vfio_host::tests(),
    ]
    .into_iter()
    .flatten()
    .collect();
    tests.sort_by_key(|test| (test.flavour(), test.is_alone()));
    tests
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["--agent"] => agent::main(&all_tests()),
        ["--in-place", name] => in_place::main(&all_tests(), name),
        // A part of some tests: another process that has functions of the host.
        ["--hold", wanted @ ..] => vfio_host::hold(wanted),
        _ => front::main(all_tests()),
    }
}
