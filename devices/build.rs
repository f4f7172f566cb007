//! Writes the names of PCI vendors, functions and classes as one text, which stays in the binary's file until it is
//! looked into. The tables of the crate are references, which the loader writes at each start: 3 MB for every guest.
//!
//! A line each: `vVVVV NAME`, `dVVVVDDDD NAME` and `cCCSS NAME`, hexadecimal.

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    for vendor in pci_ids::Vendors::iter() {
        writeln!(text, "v{:04x} {}", vendor.id(), vendor.name())?;
        for device in vendor.devices() {
            let (id, name) = (device.id(), device.name());
            writeln!(text, "d{:04x}{id:04x} {name}", vendor.id())?;
        }
    }
    for class in pci_ids::Classes::iter() {
        for subclass in class.subclasses() {
            let (id, name) = (subclass.id(), subclass.name());
            writeln!(text, "c{:02x}{id:02x} {name}", class.id())?;
        }
    }
    let folder = env::var_os("OUT_DIR").ok_or("no OUT_DIR")?;
    fs::write(PathBuf::from(folder).join("pci-names"), text)?;
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}
