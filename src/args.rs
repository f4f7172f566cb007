//! "key=value,key=value" into the types of `vmm_core::config`.
//!
//! A comma within a value is written twice. The keys and values are those of the machine file, except that a
//! boolean is `on` or `off` (`true` and `false` are taken too).

use bench::run::Pins;
use thiserror::Error;
use vmm_core::config::text::{ByteSize, ValueError};
use vmm_core::config::{
    CpuAffinity, CpuConfig, DeviceConfig, DeviceTable, DeviceTableError, DiskConfig, DiskInterface,
    DiskMedia, HostForward, MemoryConfig, NetConfig, NetInterface, NetTable, NetTableError,
    ShareConfig,
};

/// What is wrong with an option's value.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ArgError {
    /// Not `key=value`.
    #[error("{text:?} is not KEY=VALUE (the keys are {}; a comma within a value is written twice)", known.join(", "))]
    NotAPair {
        /// What was written.
        text: String,
        /// The option's keys.
        known: &'static [&'static str],
    },
    /// A key that the option does not have.
    #[error("unknown key {key:?} (the keys are {})", known.join(", "))]
    UnknownKey {
        /// What was written.
        key: String,
        /// The option's keys.
        known: &'static [&'static str],
    },
    /// A key given twice.
    #[error("key {0:?} is given twice")]
    DuplicateKey(String),
    /// A key that must be given.
    #[error("key {0:?} is missing")]
    MissingKey(&'static str),
    /// A key without a value.
    #[error("key {0:?} has no value")]
    EmptyValue(String),
    /// A value that the key does not take.
    #[error("key {key:?} does not take {value:?} (it takes {})", accepted.join(", "))]
    UnknownValue {
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
        /// What is accepted.
        accepted: Vec<&'static str>,
    },
    /// Not a number of CPUs.
    #[error("{0:?} is not a number of CPUs: write N or N,affinity=VCPU@CPUS[:VCPU@CPUS]...")]
    NotACount(String),
    /// A value of a form of its own.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Keys of a network interface that do not go together.
    #[error(transparent)]
    Net(#[from] NetTableError),
    /// A device that does not exist in this form.
    #[error(transparent)]
    Device(#[from] DeviceTableError),
}

/// The value of `--disk`.
pub fn disk(text: &str) -> Result<DiskConfig, ArgError> {
    let mut pairs = Pairs::parse(
        split_at_commas(text),
        &["path", "if", "media", "readonly", "direct", "serial"],
    )?;
    Ok(DiskConfig {
        path: pairs.required("path")?.into(),
        interface: pairs
            .choice(
                "if",
                &[
                    ("virtio", DiskInterface::Virtio),
                    ("ide", DiskInterface::Ide),
                ],
            )?
            .unwrap_or_default(),
        media: pairs
            .choice(
                "media",
                &[("disk", DiskMedia::Disk), ("cdrom", DiskMedia::Cdrom)],
            )?
            .unwrap_or_default(),
        readonly: pairs.on_off("readonly")?.unwrap_or(false),
        direct: pairs.on_off("direct")?.unwrap_or(false),
        serial: pairs.take("serial"),
    })
}

/// The value of `--pin` of the benchmark of I/O paths: lists of host CPUs, each as in an affinity.
pub fn pins(text: &str) -> Result<Pins, ArgError> {
    let mut pairs = Pairs::parse(split_at_commas(text), &["vcpu", "io", "load"])?;
    let mut cpus = |key| match pairs.take(key) {
        Some(list) => {
            let pin: CpuAffinity = format!("0@{list}").parse()?;
            Ok::<_, ArgError>(pin.host_cpus)
        }
        None => Ok(Vec::new()),
    };
    Ok(Pins {
        vcpu: cpus("vcpu")?,
        io: cpus("io")?,
        load: cpus("load")?,
    })
}

/// The value of `--net`. `user` may stand for `user=on`, and `hostfwd=` may be repeated.
pub fn net(text: &str) -> Result<NetConfig, ArgError> {
    let mut forwards = Vec::new();
    let mut parts = split_at_commas(text);
    parts.retain_mut(|part| {
        if part == "user" {
            part.push_str("=on");
        }
        let forward = part.strip_prefix("hostfwd=").map(str::parse::<HostForward>);
        let is_forward = forward.is_some();
        forwards.extend(forward);
        !is_forward
    });
    let mut pairs = Pairs::parse(parts, &["user", "tap", "bridge", "hostfwd", "if", "mac"])?;
    let table = NetTable {
        user: pairs.on_off("user")?.unwrap_or(false),
        tap: pairs.take("tap"),
        bridge: pairs.take("bridge"),
        hostfwd: forwards.into_iter().collect::<Result<_, _>>()?,
        interface: pairs
            .choice(
                "if",
                &[
                    ("virtio", NetInterface::Virtio),
                    ("e1000", NetInterface::E1000),
                ],
            )?
            .unwrap_or_default(),
        mac: pairs.take("mac"),
    };
    Ok(table.try_into()?)
}

/// The value of `--share`.
pub fn share(text: &str) -> Result<ShareConfig, ArgError> {
    let mut pairs = Pairs::parse(split_at_commas(text), &["path", "tag"])?;
    Ok(ShareConfig {
        path: pairs.required("path")?.into(),
        tag: pairs.required("tag")?,
    })
}

/// The value of `--device`. `trap=` may be repeated.
pub fn device(text: &str) -> Result<DeviceConfig, ArgError> {
    let (traps, parts) = split_at_commas(text)
        .into_iter()
        .partition::<Vec<_>, _>(|part| part.starts_with("trap="));
    let mut pairs = Pairs::parse(parts, DeviceTable::KEYS)?;
    let mut table = DeviceTable::default();
    for key in DeviceTable::KEYS {
        if let Some(value) = pairs.take(key) {
            table.set(key, &value)?;
        }
    }
    for trap in &traps {
        table.set("trap", trap.trim_start_matches("trap="))?;
    }
    Ok(table.try_into()?)
}

/// The value of `--cpus`.
pub fn cpus(text: &str) -> Result<CpuConfig, ArgError> {
    let mut parts = split_at_commas(text);
    let count = parts.remove(0);
    let mut pairs = Pairs::parse(parts, &["affinity"])?;
    let affinity = pairs.take("affinity");
    let affinity = affinity
        .iter()
        .flat_map(|list| list.split(':'))
        .map(str::parse);
    Ok(CpuConfig {
        count: count.parse().map_err(|_| ArgError::NotACount(count))?,
        affinity: affinity.collect::<Result<_, _>>()?,
    })
}

/// The value of `--memory`.
pub fn memory(text: &str) -> Result<MemoryConfig, ArgError> {
    let mut parts = split_at_commas(text);
    let size: ByteSize = parts.remove(0).parse()?;
    let mut pairs = Pairs::parse(parts, &["memfd", "thp"])?;
    let default = MemoryConfig::of_size(size.0);
    Ok(MemoryConfig {
        memfd: pairs.on_off("memfd")?.unwrap_or(default.memfd),
        thp: pairs.on_off("thp")?.unwrap_or(default.thp),
        ..default
    })
}

/// Splits at single commas; two in a row stand for one within a part. There is always a first part.
fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// The pairs of one option, not yet asked for.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn parse(parts: Vec<String>, known: &'static [&'static str]) -> Result<Self, ArgError> {
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(parts.len());
        for text in parts {
            let Some((key, value)) = text.split_once('=') else {
                return Err(ArgError::NotAPair { text, known });
            };
            let (key, value) = (key.to_owned(), value.to_owned());
            if !known.contains(&key.as_str()) {
                return Err(ArgError::UnknownKey { key, known });
            }
            if value.is_empty() {
                return Err(ArgError::EmptyValue(key));
            }
            if pairs.iter().any(|(other, _)| *other == key) {
                return Err(ArgError::DuplicateKey(key));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let index = self.0.iter().position(|(other, _)| other == key)?;
        Some(self.0.swap_remove(index).1)
    }

    fn required(&mut self, key: &'static str) -> Result<String, ArgError> {
        self.take(key).ok_or(ArgError::MissingKey(key))
    }

    fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<Option<T>, ArgError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match choices.iter().find(|(name, _)| *name == value) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => Err(ArgError::UnknownValue {
                key,
                value,
                accepted: choices.iter().map(|(name, _)| *name).collect(),
            }),
        }
    }

    fn on_off(&mut self, key: &'static str) -> Result<Option<bool>, ArgError> {
        self.choice(
            key,
            &[
                ("on", true),
                ("off", false),
                ("true", true),
                ("false", false),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_core::config::{CpuAffinity, MachineFile};

    #[test]
    fn a_disk_with_every_key() {
        assert_eq!(
            disk("path=/a=b,,c,if=virtio,readonly=on,direct=off,serial=S1"),
            Ok(DiskConfig {
                path: "/a=b,c".into(),
                interface: DiskInterface::Virtio,
                media: DiskMedia::Disk,
                readonly: true,
                direct: false,
                serial: Some("S1".into()),
            })
        );
    }

    #[test]
    fn options_say_the_same_as_the_machine_file() {
        let file: MachineFile = toml::from_str(
            r#"
            cpus = { count = 4, affinity = ["0@0-1", "1@2"] }
            memory = { size = "1G", memfd = true, thp = false }
            disk = [{ path = "d", if = "virtio", readonly = true, direct = true, serial = "S" }, { path = "e" },
                { path = "f", if = "ide", media = "cdrom" }]
            net = [
                { tap = "t", if = "virtio", mac = "m" },
                { tap = "u", if = "e1000" },
                { tap = "auto" },
                { tap = "auto", bridge = "br0" },
                { user = true },
                { user = true, hostfwd = ["tcp:8080-80", "udp:127.0.0.1:53-53"], mac = "m" },
            ]
            share = [{ path = "d,e", tag = "t" }]
            device = [
                { host = "01:00.0" },
                { host = "0000:01:10.0", rombar = false, trap = ["0", "2:0x10+0x20"] },
                { pf = "eth0", vf = "auto", mac = "m", vlan = 7, trust = true, force = true },
            ]
            "#,
        )
        .unwrap();
        assert_eq!(file.cpus, cpus("4,affinity=0@0-1:1@2").ok());
        assert_eq!(file.memory, memory("1G,memfd=on,thp=off").ok());
        let disks = [
            "path=d,if=virtio,readonly=on,direct=on,serial=S",
            "path=e",
            "path=f,if=ide,media=cdrom",
        ]
        .map(|text| disk(text).unwrap());
        assert_eq!(file.disk.unwrap(), disks);
        let nets = [
            "tap=t,if=virtio,mac=m",
            "tap=u,if=e1000",
            "tap=auto",
            "bridge=br0,tap=auto",
            "user",
            "user,hostfwd=tcp:8080-80,mac=m,hostfwd=udp:127.0.0.1:53-:53",
        ]
        .map(|text| net(text).unwrap());
        assert_eq!(file.net.unwrap(), nets);
        assert_eq!(file.share.unwrap(), [share("path=d,,e,tag=t").unwrap()]);
        let devices = [
            "host=01:00.0,rombar=on",
            "host=0000:01:10.0,trap=0,rombar=off,trap=2:16+32",
            "pf=eth0,vf=auto,mac=m,vlan=7,trust=on,force=on",
        ]
        .map(|text| device(text).unwrap());
        assert_eq!(file.device.unwrap(), devices);
    }

    #[test]
    fn booleans() {
        for (text, readonly) in [
            ("on", true),
            ("true", true),
            ("off", false),
            ("false", false),
        ] {
            assert_eq!(
                disk(&format!("path=a,readonly={text}")).unwrap().readonly,
                readonly
            );
        }
    }

    #[test]
    fn cpus_and_memory_alone() {
        assert_eq!(cpus("3").unwrap().count, 3);
        assert_eq!(
            cpus("2,affinity=1@0-1+3").unwrap().affinity,
            [CpuAffinity {
                vcpu: 1,
                host_cpus: vec![0, 1, 3]
            }]
        );
        assert_eq!(memory("512M"), Ok(MemoryConfig::of_size(512 << 20)));
    }

    #[test]
    fn commas_are_escaped_by_doubling() {
        for (text, parts) in [
            ("", vec![""]),
            ("a,b", vec!["a", "b"]),
            ("a,,b", vec!["a,b"]),
            ("a,,,b", vec!["a,", "b"]),
            ("a,,,,b", vec!["a,,b"]),
            ("a,", vec!["a", ""]),
            ("é,ü", vec!["é", "ü"]),
        ] {
            assert_eq!(split_at_commas(text), parts, "{text}");
        }
    }

    #[test]
    fn every_mistake_has_its_line() {
        let disk_keys = "path, if, media, readonly, direct, serial";
        for (result, message) in [
            (
                disk("a.img").map(drop),
                format!(
                    "\"a.img\" is not KEY=VALUE (the keys are {disk_keys}; a comma within a value is written twice)"
                ),
            ),
            (
                disk("path=a,").map(drop),
                format!(
                    "\"\" is not KEY=VALUE (the keys are {disk_keys}; a comma within a value is written twice)"
                ),
            ),
            (
                disk("path=a,ro=on").map(drop),
                format!("unknown key \"ro\" (the keys are {disk_keys})"),
            ),
            (
                disk("path=a,path=b").map(drop),
                "key \"path\" is given twice".into(),
            ),
            (
                disk("readonly=on").map(drop),
                "key \"path\" is missing".into(),
            ),
            (
                share("path=/a").map(drop),
                "key \"tag\" is missing".into(),
            ),
            (
                share("path=/a,tag=t,readonly=off").map(drop),
                "unknown key \"readonly\" (the keys are path, tag)".into(),
            ),
            (disk("path=").map(drop), "key \"path\" has no value".into()),
            (
                disk("path=a,readonly=yes").map(drop),
                "key \"readonly\" does not take \"yes\" (it takes on, off, true, false)".into(),
            ),
            (
                disk("path=a,if=scsi").map(drop),
                "key \"if\" does not take \"scsi\" (it takes virtio, ide)".into(),
            ),
            (
                disk("path=a,media=floppy").map(drop),
                "key \"media\" does not take \"floppy\" (it takes disk, cdrom)".into(),
            ),
            (
                net("mac=a").map(drop),
                "a network interface lacks its network: give it \"user\" (no root needed), tap=NAME (a TAP that \
                 exists) or tap=auto (a new one)"
                    .into(),
            ),
            (
                device("rombar=off").map(drop),
                "a device lacks its function: give it host=ADDRESS, or pf=PF,vf=auto for a virtual function".into(),
            ),
            (
                device("host=01:00.0,trap=7").map(drop),
                "trap=\"7\" is not part of a BAR: write BAR or BAR:OFFSET+LENGTH with a BAR from 0 to 5, such as \
                 0:0x1000+0x100"
                    .into(),
            ),
            (
                net("user,user").map(drop),
                "key \"user\" is given twice".into(),
            ),
            (
                net("user,tap=a").map(drop),
                "a network interface has either \"user\" or a TAP: give two interfaces for both networks".into(),
            ),
            (
                net("usr").map(drop),
                "\"usr\" is not KEY=VALUE (the keys are user, tap, bridge, hostfwd, if, mac; a comma within a value \
                 is written twice)"
                    .into(),
            ),
            (
                net("user,hostfwd=80").map(drop),
                "\"80\" is not a forwarded port: write tcp:HOST-GUEST or udp:HOST-GUEST with ports from 1 to 65535, \
                 such as tcp:8080-80 or, for one address of the host, tcp:127.0.0.1:8080-80"
                    .into(),
            ),
            (
                net("tap=a,if=ne2000").map(drop),
                "key \"if\" does not take \"ne2000\" (it takes virtio, e1000)".into(),
            ),
            (
                cpus("two").map(drop),
                "\"two\" is not a number of CPUs: write N or N,affinity=VCPU@CPUS[:VCPU@CPUS]..."
                    .into(),
            ),
            (
                cpus("2,pin=0").map(drop),
                "unknown key \"pin\" (the keys are affinity)".into(),
            ),
            (
                cpus("2,affinity=0@0:").map(drop),
                "\"\" is not an affinity: write VCPU@CPUS, such as 0@2, 0@2-3 or 0@2+5".into(),
            ),
            (
                memory("lots").map(drop),
                "\"lots\" is not a size: write a whole number with K, M, G or T, such as 512M"
                    .into(),
            ),
            (
                memory("1G,shared=on").map(drop),
                "unknown key \"shared\" (the keys are memfd, thp)".into(),
            ),
        ] {
            assert_eq!(result.unwrap_err().to_string(), message);
        }
    }
}
