//! What a module says of itself: the section `.modinfo`, texts `key=value` that end with a zero byte.

use object::{Object, ObjectSection};

/// The part that the order of loading depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Modules that have to be there before.
    pub depends: Vec<String>,
    /// Modules, or aliases of some, that had better be there before.
    pub soft_before: Vec<String>,
}

/// Reads it from an unpacked module.
///
/// # Errors
/// What is wrong with the file.
pub fn read(module: &[u8]) -> Result<ModInfo, String> {
    let file = object::File::parse(module).map_err(|error| error.to_string())?;
    let section = file
        .section_by_name(".modinfo")
        .ok_or("it has no section .modinfo")?;
    let texts = section.data().map_err(|error| error.to_string())?;
    Ok(parse(texts))
}

fn parse(texts: &[u8]) -> ModInfo {
    let mut info = ModInfo::default();
    let owned = |name: &str| name.to_owned();
    for text in texts.split(|&byte| byte == 0) {
        let text = String::from_utf8_lossy(text);
        if let Some(names) = text.strip_prefix("depends=") {
            let names = names.split(',').filter(|name| !name.is_empty());
            info.depends.extend(names.map(owned));
        } else if let Some(rules) = text.strip_prefix("softdep=") {
            let mut is_before = false;
            for word in rules.split_whitespace() {
                match word {
                    "pre:" => is_before = true,
                    "post:" => is_before = false,
                    name if is_before => info.soft_before.push(owned(name)),
                    _ => {}
                }
            }
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        let info = parse(
            b"license=GPL\0depends=jbd2,mbcache\0softdep=pre: crc32c a-b post: late\0\0depends=\0intree=Y",
        );
        assert_eq!(info.depends, ["jbd2", "mbcache"]);
        assert_eq!(info.soft_before, ["crc32c", "a-b"]);
        assert_eq!(parse(b""), ModInfo::default());
    }

    #[test]
    fn what_is_no_module_is_said_to_be_none() {
        assert!(read(b"").is_err());
        assert!(read(b"\x7fELF\x02\x01\x01").is_err());
        let ourselves = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(read(&ourselves).unwrap_err(), "it has no section .modinfo");
    }
}
