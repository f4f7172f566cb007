//! Builds the guest's init, which this crate carries: a static program of the package `tripath-init`.

use guest_build::{GuestProgram, build_guest_program};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    build_guest_program(&GuestProgram {
        package: "init",
        bin: "tripath-init",
        sources: &[],
        profile: "guest-init",
    })
}
