//! Builds the load of the benchmarks, which this crate carries: a static program of the package `tripath-load`.

use guest_build::{GuestProgram, build_guest_program};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    build_guest_program(&GuestProgram {
        package: "load",
        bin: "tripath-load",
        sources: &[],
        profile: "guest-load",
    })
}
