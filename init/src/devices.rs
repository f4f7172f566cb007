//! Disks as the kernel shows them.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::InitError;

/// How long a disk or its partitions may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);

/// The device file of a disk with that serial number, or of one of its partitions.
pub fn find(serial: &str, partition: Option<u32>) -> Result<PathBuf, InitError> {
    let disk = wait_for(|| disk(serial)).ok_or_else(|| InitError::NoDisk(serial.to_owned()))?;
    let device = match partition {
        None => disk,
        Some(number) => wait_for(|| partition_of(&disk, number))
            .ok_or(InitError::NoPartition { disk, number })?,
    };
    Ok(PathBuf::from("/dev").join(device))
}

/// The kernel looks for partitions before it shows a disk, and virtio's disks while their driver loads: as a rule
/// there is nothing to wait for.
fn wait_for(probe: impl Fn() -> Option<String>) -> Option<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = probe();
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        sleep(Duration::from_millis(20));
    }
}

/// Entries of a folder of sysfs: file names of the kernel's, without surprises.
fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn disk(serial: &str) -> Option<String> {
    names("/sys/block").into_iter().find(|name| {
        fs::read_to_string(format!("/sys/block/{name}/serial"))
            .is_ok_and(|text| text.trim_end() == serial)
    })
}

fn partition_of(disk: &str, number: u32) -> Option<String> {
    names(&format!("/sys/block/{disk}"))
        .into_iter()
        .find(|name| {
            fs::read_to_string(format!("/sys/block/{disk}/{name}/partition"))
                .is_ok_and(|text| text.trim_end() == number.to_string())
        })
}
