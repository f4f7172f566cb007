//! The machine file on disk: TOML in, TOML out.

use std::path::Path;

use anyhow::Context;
use vmm_core::config::{MachineConfig, MachineFile};

use crate::exit_code::UserError;

/// Reads a machine file; relative paths in it are made relative to its folder.
///
/// # Errors
/// [`UserError`] with the file's name, and the line where there is one.
pub fn load(path: &Path) -> Result<MachineFile, UserError> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| UserError::from_text(format!("cannot read machine file {name}: {e}")))?;
    let mut file = parse(&text)
        .map_err(|(line, message)| UserError::from_text(format!("{name}:{line}: {message}")))?;
    if let Some(folder) = path.parent() {
        file.resolve_paths(folder);
    }
    Ok(file)
}

/// The machine, or the number of the line that is wrong and what is wrong with it.
fn parse(text: &str) -> Result<MachineFile, (usize, String)> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..offset]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        (line, error.message().replace('`', "\""))
    })
}

/// Writes a machine as [`load`] reads it, its paths absolute so that it means the same in any folder.
///
/// # Errors
/// A path that is not UTF-8, or relative to a current directory that is gone.
pub fn dump(config: &MachineConfig) -> anyhow::Result<String> {
    let mut file = MachineFile::from(config.clone());
    let here = std::path::absolute(".").context("cannot find the current directory")?;
    file.resolve_paths(&here);
    toml::to_string(&file)
        .map_err(|e| UserError::from_text(format!("cannot write the machine as TOML: {e}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        std::fs::write(&path, text).unwrap();
        let message = load(&path).unwrap_err().to_string();
        let prefix = format!("{}:", path.display());
        message.strip_prefix(&prefix).unwrap().to_owned()
    }

    #[test]
    fn an_error_names_file_and_line() {
        assert_eq!(
            error_of("kernel = \"k\"\n\ncpu = 2\n"),
            "3: unknown field \"cpu\", expected one of \"kernel\", \"initrd\", \"cmdline\", \"kernel-cache\", \
             \"on-reboot\", \"on-panic\", \"serial\", \"console\", \"rng\", \"cpus\", \"memory\", \"disk\", \"net\", \
             \"share\", \"device\""
        );
        assert_eq!(
            error_of("[[disk]]\npath = \"a\"\n\n[[disk]]\npath = \"b\"\nreadonly = \"on\"\n"),
            "6: invalid type: string \"on\", expected a boolean"
        );
        assert!(
            error_of("kernel = \"k\"\nmemory = \"64X\"\n").starts_with("2: \"64X\" is not a size")
        );
        assert!(
            error_of("kernel = \"k\"\ncpus = { count = 1, affinity = [\"0\"] }")
                .starts_with("2: \"0\" is not an")
        );
    }

    #[test]
    fn an_error_of_syntax_is_one_line() {
        for text in [
            "kernel",
            "kernel = ",
            "a = 1\nkernel = \"x\n",
            "cpus = 1\ncpus = 2",
            "[disk\n",
            "\u{0}",
        ] {
            let message = error_of(text);
            assert!(!message.contains('\n') && message.len() > 5, "{message}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let message = load(Path::new("/nowhere/m.toml")).unwrap_err().to_string();
        assert_eq!(
            message,
            "cannot read machine file /nowhere/m.toml: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_dump_gives_the_same_machine_in_any_folder() {
        let folder = tempfile::tempdir().unwrap();
        let config = MachineFile {
            kernel: Some("k".into()),
            initrd: Some("/i".into()),
            ..MachineFile::default()
        };
        let text = dump(&config.complete().unwrap()).unwrap();
        let path = folder.path().join("m.toml");
        std::fs::write(&path, &text).unwrap();
        let again = load(&path).unwrap().complete().unwrap();
        assert_eq!(
            again.boot.kernel,
            std::env::current_dir().unwrap().join("k")
        );
        assert_eq!(again.boot.initrd.as_deref(), Some(Path::new("/i")));
        assert_eq!(dump(&again).unwrap(), text);
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        std::fs::write(&path, "kernel = \"sub/k\"\n").unwrap();
        let file = load(&path).unwrap();
        assert_eq!(file.kernel, Some(folder.path().join("sub/k")));
    }
}
