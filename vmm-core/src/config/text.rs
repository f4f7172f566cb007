//! The written form of values, the same on the command line and in the machine file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::{CharTarget, CpuAffinity, CpuConfig, MemoryConfig};

/// Host CPUs are numbered below this: the size of the kernel's `cpu_set_t`.
pub const HOST_CPUS: u32 = 1024;

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Not digits and a unit.
    #[error("{0:?} is not a size: write a whole number with K, M, G or T, such as 512M")]
    NotASize(String),
    /// More than 64 bits of bytes.
    #[error("size {0:?} is too large")]
    SizeTooLarge(String),
    /// Zero bytes.
    #[error("size {0:?} is zero")]
    SizeZero(String),
    /// Not one of the targets.
    #[error(
        "{0:?} is not a target: the targets are stdio, null, pty, file=PATH, socket=PATH and tcp=HOST:PORT"
    )]
    NotATarget(String),
    /// `file=` or `socket=` with nothing behind.
    #[error("{0:?} lacks the path: write file=PATH or socket=PATH")]
    TargetWithoutPath(String),
    /// `tcp=` without host or port.
    #[error("{0:?} names no address: write tcp=HOST:PORT, such as tcp=127.0.0.1:4444")]
    TargetWithoutAddress(String),
    /// Not `VCPU@CPUS`.
    #[error("{0:?} is not an affinity: write VCPU@CPUS, such as 0@2, 0@2-3 or 0@2+5")]
    NotAnAffinity(String),
    /// A range that goes down.
    #[error("host CPUs {first}-{last} are the wrong way round: write {last}-{first}")]
    RangeBackwards {
        /// Before the dash.
        first: u32,
        /// After the dash.
        last: u32,
    },
    /// A host CPU number that no host has.
    #[error("host CPU {0} is out of range: host CPUs are numbered 0 to {max}", max = HOST_CPUS - 1)]
    HostCpuTooLarge(u32),
    /// Not `PROTOCOL:[ADDRESS:]HOST-GUEST`.
    #[error(
        "{0:?} is not a forwarded port: write tcp:HOST-GUEST or udp:HOST-GUEST with ports from 1 to 65535, such as \
         tcp:8080-80 or, for one address of the host, tcp:127.0.0.1:8080-80"
    )]
    NotAForward(String),
    /// A forward that names an address in the guest.
    #[error(
        "{0:?} names an address of the guest: it has only one, so leave it out, as in tcp:8080-80"
    )]
    ForwardToGuestAddress(String),
    /// Not `BAR[:OFFSET+LEN]`.
    #[error(
        "{0:?} is not part of a BAR: write BAR or BAR:OFFSET+LENGTH with a BAR from 0 to 5, such as 0:0x1000+0x100"
    )]
    NotATrap(String),
}

/// A number of bytes, written with a binary unit.
///
/// Reads a whole number and one of K, M, G, T (powers of 1024, either case), or a number of bytes without one; prints
/// the largest unit that divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(
    /// Bytes, at least 1.
    pub u64,
);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let unit = UNITS.iter().find_map(|(letter, shift)| {
            Some((
                text.strip_suffix([*letter, letter.to_ascii_lowercase()])?,
                *shift,
            ))
        });
        let (digits, shift) = unit.unwrap_or((text, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ValueError::NotASize(text.into()));
        }
        // All digits, so that the only error left is overflow.
        let bytes = digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(1 << shift));
        match bytes {
            None => Err(ValueError::SizeTooLarge(text.into())),
            Some(0) => Err(ValueError::SizeZero(text.into())),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS
            .iter()
            .find(|(_, shift)| self.0.is_multiple_of(1 << shift))
        {
            Some((letter, shift)) if self.0 != 0 => write!(f, "{}{letter}", self.0 >> shift),
            _ => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                self.visit_str(&bytes.to_string())
            }
            // As JSON has it.
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                self.visit_str(&bytes.to_string())
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl FromStr for CharTarget {
    type Err = ValueError;

    /// Everything after `file=` or `socket=` is the path, commas included.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let path_of = |path: &str| match path {
            "" => Err(ValueError::TargetWithoutPath(text.into())),
            path => Ok(PathBuf::from(path)),
        };
        match text.split_once('=') {
            Some(("file", path)) => path_of(path).map(Self::File),
            Some(("socket", path)) => path_of(path).map(Self::Socket),
            Some(("tcp", address)) if is_address(address) => Ok(Self::Tcp(address.into())),
            Some(("tcp", _)) => Err(ValueError::TargetWithoutAddress(text.into())),
            Some(_) => Err(ValueError::NotATarget(text.into())),
            None => match text {
                "stdio" => Ok(Self::Stdio),
                "null" => Ok(Self::Null),
                "pty" => Ok(Self::Pty),
                "file" | "socket" => Err(ValueError::TargetWithoutPath(text.into())),
                "tcp" => Err(ValueError::TargetWithoutAddress(text.into())),
                _ => Err(ValueError::NotATarget(text.into())),
            },
        }
    }
}

/// Whether it reads as HOST:PORT. An IPv6 address has brackets: without, its end would be taken for the port.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_reads = bracketed.map_or(!host.contains(':'), |host| host.contains(':'));
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    !host.is_empty() && host_reads && digits && port.parse::<u16>().is_ok()
}

impl fmt::Display for CharTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Null => f.write_str("null"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Socket(path) => write!(f, "socket={}", path.display()),
            Self::Tcp(address) => write!(f, "tcp={address}"),
        }
    }
}

impl Serialize for CharTarget {
    /// # Errors
    /// A path that is not UTF-8 cannot be written.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Self::File(path) | Self::Socket(path) = self
            && path.to_str().is_none()
        {
            return Err(serde::ser::Error::custom(format_args!(
                "path {} is not UTF-8",
                path.display()
            )));
        }
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CharTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl FromStr for CpuAffinity {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let malformed = || ValueError::NotAnAffinity(text.into());
        let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => digits.parse::<u32>().map_err(|_| malformed()),
            false => Err(malformed()),
        };
        let (vcpu, cpus) = text.split_once('@').ok_or_else(malformed)?;
        let vcpu = number(vcpu)?;
        let mut host_cpus = Vec::new();
        for range in cpus.split('+') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(ValueError::RangeBackwards { first, last });
            }
            if last >= HOST_CPUS {
                return Err(ValueError::HostCpuTooLarge(last));
            }
            host_cpus.extend(first..=last);
        }
        host_cpus.sort_unstable();
        host_cpus.dedup();
        Ok(Self { vcpu, host_cpus })
    }
}

impl fmt::Display for CpuAffinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.vcpu)?;
        let ranges = self.host_cpus.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        for (i, range) in ranges.enumerate() {
            let plus = if i == 0 { "" } else { "+" };
            match range {
                [first, .., last] => write!(f, "{plus}{first}-{last}")?,
                [one] => write!(f, "{plus}{one}")?,
                [] => (),
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for CpuAffinity {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<CpuAffinity> for String {
    fn from(affinity: CpuAffinity) -> Self {
        affinity.to_string()
    }
}

/// The long form of [`CpuConfig`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CpuTable {
    count: u32,
    #[serde(default)]
    affinity: Vec<CpuAffinity>,
}

impl Serialize for CpuConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.affinity.is_empty() {
            return self.count.serialize(serializer);
        }
        let (count, affinity) = (self.count, self.affinity.clone());
        CpuTable { count, affinity }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CpuConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CpuVisitor;
        impl<'de> Visitor<'de> for CpuVisitor {
            type Value = CpuConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a number of CPUs, or a table { count = 2, affinity = [\"0@2\", \"1@3\"] }",
                )
            }
            fn visit_i64<E: serde::de::Error>(self, count: i64) -> Result<CpuConfig, E> {
                let count = u32::try_from(count)
                    .map_err(|_| E::custom(format_args!("{count} CPUs cannot be had")))?;
                let affinity = Vec::new();
                Ok(CpuConfig { count, affinity })
            }
            // As JSON has it.
            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<CpuConfig, E> {
                let count = i64::try_from(count)
                    .map_err(|_| E::custom(format_args!("{count} CPUs cannot be had")))?;
                self.visit_i64(count)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CpuConfig, A::Error> {
                let CpuTable { count, affinity } =
                    CpuTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(CpuConfig { count, affinity })
            }
        }
        deserializer.deserialize_any(CpuVisitor)
    }
}

/// The long form of [`MemoryConfig`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MemoryTable {
    size: ByteSize,
    #[serde(default)]
    memfd: bool,
    #[serde(default = "yes")]
    thp: bool,
}

pub(super) fn yes() -> bool {
    true
}

impl Serialize for MemoryConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let size = ByteSize(self.size_bytes);
        if *self == Self::of_size(self.size_bytes) {
            return size.serialize(serializer);
        }
        let (memfd, thp) = (self.memfd, self.thp);
        MemoryTable { size, memfd, thp }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MemoryConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MemoryVisitor;
        impl<'de> Visitor<'de> for MemoryVisitor {
            type Value = MemoryConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\", or a table { size = \"512M\", memfd = true, thp = false }")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MemoryConfig, E> {
                let size: ByteSize = text.parse().map_err(E::custom)?;
                Ok(MemoryConfig::of_size(size.0))
            }
            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<MemoryConfig, E> {
                self.visit_str(&bytes.to_string())
            }
            // As JSON has it.
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<MemoryConfig, E> {
                self.visit_str(&bytes.to_string())
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MemoryConfig, A::Error> {
                let MemoryTable { size, memfd, thp } =
                    MemoryTable::deserialize(MapAccessDeserializer::new(map))?;
                Ok(MemoryConfig {
                    size_bytes: size.0,
                    memfd,
                    thp,
                })
            }
        }
        deserializer.deserialize_any(MemoryVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units() {
        for (text, bytes) in [
            ("1", 1),
            ("512M", 512 << 20),
            ("64k", 64 << 10),
            ("3G", 3 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for text in [
            "", "M", "1.5G", "-1", "+1M", "1e9", "1 M", "1MB", "1MiB", "０M", "é",
        ] {
            assert_eq!(
                text.parse::<ByteSize>(),
                Err(ValueError::NotASize(text.into())),
                "{text}"
            );
        }
        assert_eq!(
            "0M".parse::<ByteSize>(),
            Err(ValueError::SizeZero("0M".into()))
        );
        for text in ["18446744073709551616", "16777216T"] {
            assert_eq!(
                text.parse::<ByteSize>(),
                Err(ValueError::SizeTooLarge(text.into()))
            );
        }
    }

    #[test]
    fn sizes_are_printed_in_the_largest_unit_that_divides() {
        for (bytes, text) in [
            (1, "1"),
            (1536, "1536"),
            (1 << 10, "1K"),
            (1536 << 20, "1536M"),
            (1 << 41, "2T"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(ByteSize(0).to_string(), "0");
    }

    #[test]
    fn targets_are_read_and_printed() {
        for text in [
            "stdio",
            "null",
            "pty",
            "file=/a,b=c",
            "socket=s",
            "tcp=localhost:0",
            "tcp=[::1]:65535",
        ] {
            let target: CharTarget = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        assert_eq!(
            "file=/a,b=c".parse(),
            Ok(CharTarget::File(PathBuf::from("/a,b=c")))
        );
    }

    #[test]
    fn targets_that_are_none_are_refused() {
        for text in ["", "tty", "fil=/x", "stdio=1", "=x"] {
            assert_eq!(
                text.parse::<CharTarget>(),
                Err(ValueError::NotATarget(text.into()))
            );
        }
        for text in ["file", "file=", "socket", "socket="] {
            assert_eq!(
                text.parse::<CharTarget>(),
                Err(ValueError::TargetWithoutPath(text.into()))
            );
        }
    }

    #[test]
    fn addresses_that_are_none_are_refused() {
        for text in [
            "tcp",
            "tcp=",
            "tcp=4444",
            "tcp=:4444",
            "tcp=h",
            "tcp=h:",
            "tcp=h:x",
            "tcp=h:+1",
            "tcp=h:65536",
            "tcp=::1:4",
            "tcp=[]:4",
            "tcp=[h]:4",
        ] {
            let error = text.parse::<CharTarget>().unwrap_err();
            assert_eq!(error, ValueError::TargetWithoutAddress(text.into()));
        }
        assert_eq!(
            ValueError::TargetWithoutAddress("tcp=h".into()).to_string(),
            "\"tcp=h\" names no address: write tcp=HOST:PORT, such as tcp=127.0.0.1:4444"
        );
    }

    #[test]
    fn affinities_are_read_and_printed() {
        for (text, vcpu, host_cpus, printed) in [
            ("0@2", 0, vec![2], "0@2"),
            ("1@0-3", 1, vec![0, 1, 2, 3], "1@0-3"),
            ("2@7+0-1", 2, vec![0, 1, 7], "2@0-1+7"),
            ("0@1+1", 0, vec![1], "0@1"),
        ] {
            let affinity: CpuAffinity = text.parse().unwrap();
            assert_eq!(affinity, CpuAffinity { vcpu, host_cpus });
            assert_eq!(affinity.to_string(), printed);
        }
    }

    #[test]
    fn affinities_that_are_none_are_refused() {
        for text in [
            "",
            "0",
            "@",
            "0@",
            "@0",
            "0@1-",
            "0@-1",
            "a@0",
            "0@+1",
            "0@1-2-3",
            "0@99999999999",
        ] {
            assert_eq!(
                text.parse::<CpuAffinity>(),
                Err(ValueError::NotAnAffinity(text.into())),
                "{text}"
            );
        }
        assert_eq!(
            "0@3-1".parse::<CpuAffinity>(),
            Err(ValueError::RangeBackwards { first: 3, last: 1 })
        );
        assert_eq!(
            "0@0-4294967295".parse::<CpuAffinity>(),
            Err(ValueError::HostCpuTooLarge(u32::MAX))
        );
    }

    #[test]
    fn messages_say_what_to_write() {
        for (error, message) in [
            (
                ValueError::NotASize("1.5G".into()),
                "\"1.5G\" is not a size: write a whole number with K, M, G or T, such as 512M",
            ),
            (
                ValueError::SizeTooLarge("99999999T".into()),
                "size \"99999999T\" is too large",
            ),
            (ValueError::SizeZero("0".into()), "size \"0\" is zero"),
            (
                ValueError::NotATarget("tty".into()),
                "\"tty\" is not a target: the targets are stdio, null, pty, file=PATH, socket=PATH and tcp=HOST:PORT",
            ),
            (
                ValueError::TargetWithoutPath("file=".into()),
                "\"file=\" lacks the path: write file=PATH or socket=PATH",
            ),
            (
                ValueError::NotAnAffinity("0".into()),
                "\"0\" is not an affinity: write VCPU@CPUS, such as 0@2, 0@2-3 or 0@2+5",
            ),
            (
                ValueError::RangeBackwards { first: 3, last: 1 },
                "host CPUs 3-1 are the wrong way round: write 1-3",
            ),
            (
                ValueError::HostCpuTooLarge(4096),
                "host CPU 4096 is out of range: host CPUs are numbered 0 to 1023",
            ),
        ] {
            assert_eq!(error.to_string(), message);
        }
    }
}
