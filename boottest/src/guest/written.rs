//! How users write where the guest's root and modules come from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ModuleSource, Partition, PartitionError, Rootfs};

/// `--rootfs` as it is written: `host`, `initrd`, or `PATH[,partition=PARTITION][,writable=on]`. Whether the path is a
/// folder or an image is seen when it is used. A comma in the path is written twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WrittenRootfs {
    /// The host's own.
    Host,
    /// The user's initrd.
    Initrd,
    /// A folder or an image.
    Path {
        /// Where.
        path: PathBuf,
        /// On an image.
        partition: Option<Partition>,
        /// Writes go to the image.
        writable: bool,
    },
}

/// Why it is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WrittenRootfsError {
    /// No path.
    #[error("it begins with a path, 'host' or 'initrd'")]
    NoPath,
    /// No such key.
    #[error("unknown key {0:?} (the keys are partition, writable)")]
    UnknownKey(String),
    /// Neither on nor off.
    #[error("writable={0}: it takes on, off")]
    NotOnOff(String),
    /// No partition.
    #[error(transparent)]
    Partition(#[from] PartitionError),
}

/// Stands for a comma of the path while the text is split.
const COMMA: &str = "\0";

impl FromStr for WrittenRootfs {
    type Err = WrittenRootfsError;

    fn from_str(text: &str) -> Result<Self, WrittenRootfsError> {
        match text {
            "host" => return Ok(Self::Host),
            "initrd" => return Ok(Self::Initrd),
            _ => {}
        }
        let text = text.replace(",,", COMMA);
        let mut parts = text.split(',').map(|part| part.replace(COMMA, ","));
        let path = parts.next().filter(|path| !path.is_empty());
        let path = path.ok_or(WrittenRootfsError::NoPath)?.into();
        let (mut partition, mut writable) = (None, false);
        for part in parts {
            match part.split_once('=') {
                Some(("partition", value)) => partition = Some(value.parse()?),
                Some(("writable", "on" | "true")) => writable = true,
                Some(("writable", "off" | "false")) => writable = false,
                Some(("writable", value)) => {
                    return Err(WrittenRootfsError::NotOnOff(value.to_owned()));
                }
                _ => {
                    let key = part.split('=').next().unwrap_or_default();
                    return Err(WrittenRootfsError::UnknownKey(key.to_owned()));
                }
            }
        }
        Ok(Self::Path {
            path,
            partition,
            writable,
        })
    }
}

impl fmt::Display for WrittenRootfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Initrd => f.write_str("initrd"),
            Self::Path {
                path,
                partition,
                writable,
            } => {
                let doubled = |text: &str| text.replace(',', ",,");
                f.write_str(&doubled(&path.to_string_lossy()))?;
                if let Some(partition) = partition {
                    write!(f, ",partition={}", doubled(&partition.to_string()))?;
                }
                if *writable {
                    f.write_str(",writable=on")?;
                }
                Ok(())
            }
        }
    }
}

impl TryFrom<String> for WrittenRootfs {
    type Error = WrittenRootfsError;

    fn try_from(text: String) -> Result<Self, WrittenRootfsError> {
        text.parse()
    }
}

impl From<WrittenRootfs> for String {
    fn from(written: WrittenRootfs) -> Self {
        written.to_string()
    }
}

impl WrittenRootfs {
    /// Makes a relative path one below `folder`.
    pub fn resolve_path(&mut self, folder: &Path) {
        if let Self::Path { path, .. } = self {
            *path = folder.join(&*path);
        }
    }

    /// What it stands for.
    #[must_use]
    pub fn rootfs(&self) -> Rootfs {
        match self {
            Self::Host => Rootfs::Host,
            Self::Initrd => Rootfs::Initramfs,
            Self::Path {
                path,
                partition: None,
                writable: false,
            } if path.is_dir() => Rootfs::Directory(path.clone()),
            Self::Path {
                path,
                partition,
                writable,
            } => Rootfs::Image {
                path: path.clone(),
                partition: partition.clone().unwrap_or_default(),
                writable: *writable,
            },
        }
    }
}

/// `--modules` as it is written: a folder, or `none`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum WrittenModules {
    /// All that the guest needs is built in.
    None,
    /// See [`ModuleSource::Folder`].
    Folder(PathBuf),
}

impl From<&str> for WrittenModules {
    fn from(text: &str) -> Self {
        match text {
            "none" => Self::None,
            folder => Self::Folder(folder.into()),
        }
    }
}

impl From<String> for WrittenModules {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<WrittenModules> for String {
    fn from(written: WrittenModules) -> Self {
        match written {
            WrittenModules::None => "none".to_owned(),
            WrittenModules::Folder(folder) => folder.to_string_lossy().into_owned(),
        }
    }
}

impl WrittenModules {
    /// Makes a relative path one below `folder`.
    pub fn resolve_path(&mut self, folder: &Path) {
        if let Self::Folder(path) = self {
            *path = folder.join(&*path);
        }
    }

    /// What it stands for.
    #[must_use]
    pub fn source(&self) -> ModuleSource {
        match self {
            Self::None => ModuleSource::BuiltIn,
            Self::Folder(folder) => ModuleSource::Folder(folder.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_written_as_it_is_read() {
        for text in [
            "host",
            "initrd",
            "/srv/root",
            "a,,b.img,partition=2",
            "a.img,partition=LABEL=x,,y,writable=on",
        ] {
            let written: WrittenRootfs = text.parse().unwrap();
            assert_eq!(written.to_string(), text);
        }
        let written: WrittenRootfs = "a,,b.img,partition=2".parse().unwrap();
        let image = Rootfs::Image {
            path: "a,b.img".into(),
            partition: Partition::Number(2),
            writable: false,
        };
        assert_eq!(written.rootfs(), image);
    }

    #[test]
    fn a_folder_is_seen_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().to_str().unwrap();
        let rootfs = |text: &str| text.parse::<WrittenRootfs>().unwrap().rootfs();
        assert_eq!(rootfs(text), Rootfs::Directory(folder.path().to_owned()));
        // A folder has no partitions: this is an image that is not there, and will be told.
        let with = rootfs(&format!("{text},partition=1"));
        assert!(matches!(with, Rootfs::Image { .. }));
    }

    #[test]
    fn mistakes_are_told() {
        let told = |text: &str| text.parse::<WrittenRootfs>().unwrap_err().to_string();
        assert_eq!(told(""), "it begins with a path, 'host' or 'initrd'");
        assert_eq!(
            told("a,part=1"),
            "unknown key \"part\" (the keys are partition, writable)"
        );
        assert_eq!(told("a,writable=yes"), "writable=yes: it takes on, off");
        assert!(told("a,partition=0").starts_with("partition 0: expected a number from 1"));
    }

    #[test]
    fn modules() {
        let folder: WrittenModules = "m".into();
        assert_eq!(folder.source(), ModuleSource::Folder("m".into()));
        assert_eq!(WrittenModules::from("none").source(), ModuleSource::BuiltIn);
        assert_eq!(String::from(folder), "m");
    }
}
