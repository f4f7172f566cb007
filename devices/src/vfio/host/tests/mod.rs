//! Tests on a host made of files.

mod claiming;
mod holding;
mod looking;
mod refusing;

use super::check::Check;
use super::reason::{Reason, Refusal};
use super::state::Claims;
use super::testing::Fake;
use super::{PciAddress, PciFunction};

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn read(fake: &Fake, text: &str) -> PciFunction {
    PciFunction::read(&fake.host, address(text)).unwrap()
}

/// Every reason against one function alone.
fn reasons(fake: &Fake, text: &str) -> Vec<Reason> {
    let check = Check::new(&fake.host, Claims::default());
    check.function(&read(fake, text), &[address(text)])
}

/// The one refusal of a function, as the user reads it.
fn refusal(fake: &Fake, text: &str) -> String {
    let mut reasons = reasons(fake, text);
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let function = Some(super::check::described(&read(fake, text)));
    Refusal {
        function,
        reason: reasons.remove(0),
    }
    .to_string()
}
