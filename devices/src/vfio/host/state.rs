//! What runs have changed on the host, written down before it is changed.
//!
//! A folder (`/run/tripath/vfio` for root) has one JSON file for each function that a run has, one for each PF on which
//! something was changed for the sake of its VFs, and a file `lock`. Who changes anything, or these files, holds the
//! lock. A file names the process that wrote it, with that process' start time, so that a run that was killed is known
//! as such even when its process number is in use again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::address::PciAddress;
use super::netlink::VfSettings;
use super::root::{Host, list};

/// Form of the files.
pub const VERSION: u32 = 1;

/// The state files cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Making, reading, writing or locking one.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Someone else could write what this process then does.
    #[error("{0} belongs to another user: it cannot be trusted")]
    NotOurs(PathBuf),
    /// Not what this version writes.
    #[error(
        "{path} is not understood ({reason}): see what it says, put that back by hand, and remove it"
    )]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), `starttime`).
    pub start: u64,
}

impl Owner {
    /// This process.
    #[must_use]
    pub fn this(host: &Host) -> Self {
        let pid = std::process::id();
        Self {
            pid,
            start: start_of(host, pid).unwrap_or(0),
        }
    }

    /// Whether it still runs.
    #[must_use]
    pub fn lives(&self, host: &Host) -> bool {
        start_of(host, self.pid) == Some(self.start)
    }
}

/// When a process started; none if there is none, or only what is left until its parent has waited for it.
fn start_of(host: &Host, pid: u32) -> Option<u64> {
    let text = host.read(&format!("proc/{pid}/stat"))?;
    // The second field is the program's name, in parentheses, with anything in it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// A VF's part of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VfClaim {
    /// Its PF.
    pub pf: PciAddress,
    /// Its number.
    pub index: u32,
    /// The PF's settings for it that we change, as they were.
    pub before: VfSettings,
}

/// One function that a run has, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// [`VERSION`].
    pub version: u32,
    /// The run.
    pub owner: Owner,
    /// The function.
    pub function: PciAddress,
    /// Its IOMMU group.
    pub group: u32,
    /// Its driver before.
    pub driver: Option<String>,
    /// Its `driver_override` before.
    pub driver_override: Option<String>,
    /// It stays with vfio-pci.
    pub keep: bool,
    /// Set for a VF that was taken through its PF.
    pub vf: Option<VfClaim>,
}

impl Claim {
    /// Whether it is of a VF of that PF.
    #[must_use]
    pub fn is_below(&self, pf: PciAddress) -> bool {
        self.vf.as_ref().is_some_and(|vf| vf.pf == pf)
    }
}

/// What was changed on a PF for the sake of VFs that runs have. The last of these runs undoes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PfChange {
    /// [`VERSION`].
    pub version: u32,
    /// The PF.
    pub pf: PciAddress,
    /// It had no VFs, and we made some.
    pub made_vfs: bool,
    /// `sriov_drivers_autoprobe` was on and is off while VFs are made.
    pub autoprobe_off: bool,
    /// The interface that was down and that we took up.
    pub interface_up: Option<String>,
    /// A process for which it stays so, whoever has VFs meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Owner>,
}

impl PfChange {
    /// A record without changes.
    #[must_use]
    pub fn none(pf: PciAddress) -> Self {
        Self {
            version: VERSION,
            pf,
            made_vfs: false,
            autoprobe_off: false,
            interface_up: None,
            holder: None,
        }
    }

    /// Whether it stays as long as a process lives that does.
    #[must_use]
    pub fn is_held(&self, host: &Host) -> bool {
        self.holder.is_some_and(|holder| holder.lives(host))
    }
}

/// All claims at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims(pub Vec<Claim>);

impl Claims {
    /// The run that has this function.
    #[must_use]
    pub fn owner_of(&self, function: PciAddress) -> Option<Owner> {
        let claim = self.0.iter().find(|claim| claim.function == function);
        claim.map(|claim| claim.owner)
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub struct StateFolder {
    path: PathBuf,
}

impl StateFolder {
    /// The folder of that path, which is made when something is to be written.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// This user's: `/run/tripath/vfio` for root, below `$XDG_RUNTIME_DIR` or `/tmp` for others.
    #[must_use]
    pub fn of_caller(host: &Host) -> Self {
        let uid = host.kernel().caller().uid;
        if uid == 0 {
            return Self::of_root(host);
        }
        match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(folder) => Self::new(PathBuf::from(folder).join("tripath/vfio")),
            None => Self::new(host.path(&format!("tmp/tripath-{uid}/vfio"))),
        }
    }

    /// Root's, which everyone may read.
    #[must_use]
    pub fn of_root(host: &Host) -> Self {
        Self::new(host.path("run/tripath/vfio"))
    }

    /// Waits for the lock, and holds it until the answer is dropped.
    ///
    /// # Errors
    /// The folder cannot be made, or the file not be locked.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.path.join("lock");
        let lock = || -> io::Result<File> {
            fs::create_dir_all(&self.path)?;
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                log::info!("waiting for another tripath that is taking or giving back a device");
                while let Err(error) = flock(&file, FlockOperation::LockExclusive) {
                    if error != rustix::io::Errno::INTR {
                        return Err(error.into());
                    }
                }
            }
            Ok(file)
        };
        let file = lock().map_err(|source| StateError::Io {
            path: path.clone(),
            source,
        })?;
        self.check_owner()?;
        Ok(Lock(file))
    }

    /// A folder in `/tmp` may have been made by anyone.
    fn check_owner(&self) -> Result<(), StateError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.uid() != rustix::process::geteuid().as_raw() => {
                Err(StateError::NotOurs(self.path.clone()))
            }
            _ => Ok(()),
        }
    }

    fn claim_path(&self, function: PciAddress) -> PathBuf {
        self.path.join(format!("claim-{function}.json"))
    }

    fn change_path(&self, pf: PciAddress) -> PathBuf {
        self.path.join(format!("pf-{pf}.json"))
    }

    /// All claims, of dead runs too. Without the lock the answer may be of a moment ago.
    ///
    /// # Errors
    /// A file is not understood.
    pub fn claims(&self) -> Result<Claims, StateError> {
        self.all("claim-").map(Claims)
    }

    /// The claims of runs that live.
    ///
    /// # Errors
    /// A file is not understood.
    pub fn live_claims(&self, host: &Host) -> Result<Claims, StateError> {
        let mut claims = self.claims()?;
        claims.0.retain(|claim| claim.owner.lives(host));
        Ok(claims)
    }

    /// All changes on PFs.
    ///
    /// # Errors
    /// A file is not understood.
    pub fn changes(&self) -> Result<Vec<PfChange>, StateError> {
        self.all("pf-")
    }

    /// The change on that PF.
    ///
    /// # Errors
    /// The file is not understood.
    pub fn change(&self, pf: PciAddress) -> Result<Option<PfChange>, StateError> {
        read(&self.change_path(pf))
    }

    /// Writes a claim down, so that it outlives a crash of ours.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_claim(&self, _lock: &Lock, claim: &Claim) -> Result<(), StateError> {
        self.write(&self.claim_path(claim.function), claim)
    }

    /// Writes a change on a PF down.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_change(&self, _lock: &Lock, change: &PfChange) -> Result<(), StateError> {
        self.write(&self.change_path(change.pf), change)
    }

    /// Forgets a claim.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget_claim(&self, _lock: &Lock, function: PciAddress) -> Result<(), StateError> {
        remove(&self.claim_path(function))
    }

    /// Forgets a change on a PF.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget_change(&self, _lock: &Lock, pf: PciAddress) -> Result<(), StateError> {
        remove(&self.change_path(pf))
    }

    fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>, StateError> {
        let names = list(&self.path);
        let files = names
            .iter()
            .filter(|name| name.starts_with(prefix) && name.ends_with(".json"));
        let mut found = Vec::new();
        for name in files {
            found.extend(read(&self.path.join(name))?);
        }
        Ok(found)
    }

    /// The old file or the new one is there, whole, whatever happens.
    fn write(&self, path: &Path, value: &impl Serialize) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(value).map_err(|error| StateError::Content {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| StateError::Io {
            path: path.to_owned(),
            source,
        })
    }
}

/// The lock on a [`StateFolder`], given up when it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

/// None if the file is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(StateError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    let content = |reason: String| StateError::Content {
        path: path.to_owned(),
        reason,
    };
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| content(error.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        version => {
            return Err(content(format!(
                "its version is {version:?}, not {VERSION}"
            )));
        }
    }
    serde_json::from_value(value)
        .map(Some)
        .map_err(|error| content(error.to_string()))
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::Io {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
