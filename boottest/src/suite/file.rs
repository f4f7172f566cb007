//! The file: tables of known keys, each of which says something about the machine, the guest, or what is asked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use vmm_core::config::{MachineFile, MemoryConfig};

use super::Wrong;
use super::variables::{Scope, Variables};
use crate::spec::{Asked, GuestSpec};

/// A suite as it is written.
#[derive(Debug, Default)]
pub(super) struct SuiteFile {
    pub(super) name: Option<String>,
    pub(super) defaults: Layer,
    pub(super) kernels: Vec<Layer>,
    pub(super) machines: Vec<Layer>,
    pub(super) matrix: Matrix,
    pub(super) tests: Vec<TestTable>,
}

/// The file's tables, before they are looked into.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tables {
    name: Option<String>,
    variables: BTreeMap<String, String>,
    defaults: Table,
    kernel: Vec<Table>,
    machine: Vec<Table>,
    matrix: Matrix,
    test: Vec<Table>,
}

/// What one table says of a test.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    /// Its name; none has one in `[defaults]`.
    pub(super) name: String,
    pub(super) machine: MachineFile,
    pub(super) asked: Asked,
    pub(super) guest: GuestSpec,
}

/// The dimensions beside kernels and machines.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Matrix {
    pub(super) cpus: Vec<u32>,
    pub(super) memory: Vec<MemoryConfig>,
    pub(super) exclude: Vec<Exclusion>,
}

/// What is left out: where all that is said holds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Exclusion {
    pub(super) test: Option<String>,
    pub(super) kernel: Option<String>,
    pub(super) machine: Option<String>,
    pub(super) cpus: Option<u32>,
    pub(super) memory: Option<MemoryConfig>,
}

/// One `[[test]]`.
#[derive(Debug, Default)]
pub(super) struct TestTable {
    pub(super) layer: Layer,
    /// The kernels that it runs on; all, if it does not say.
    pub(super) kernels: Option<Vec<String>>,
    /// The machines, likewise.
    pub(super) machines: Option<Vec<String>>,
}

/// Keys of [`Asked`] and of [`GuestSpec`]. All others are the machine's.
const ASKED: [&str; 8] = [
    "steps",
    "expect",
    "reject",
    "ignore",
    "end",
    "timeout",
    "quiet-timeout",
    "resets",
];
const GUEST: [&str; 4] = ["exec", "script", "rootfs", "modules"];
/// Keys in whose values `${` means something else.
const VERBATIM: [&str; 5] = ["exec", "steps", "expect", "reject", "ignore"];

pub(super) fn parse(text: &str, variables: &Variables) -> Result<SuiteFile, Wrong> {
    let tables: Tables = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| {
            let before = text.get(..span.start).unwrap_or_default();
            1 + before.matches('\n').count()
        });
        let place = line.map_or_else(String::new, |line| format!("line {line}: "));
        (place, one_line(error.message()))
    })?;
    let scope = Scope::new(variables, &tables.variables).map_err(whole)?;
    let layers = |kind: &str, tables: Vec<Table>| {
        let named = tables.into_iter().enumerate();
        named
            .map(|(index, mut table)| {
                let place = place(kind, index, &table);
                let in_place = |message| (place.clone(), message);
                let name = name(&mut table).map_err(in_place)?;
                let layer = layer(table, &scope).map_err(in_place)?;
                Ok(Layer { name, ..layer })
            })
            .collect::<Result<Vec<_>, Wrong>>()
    };
    let defaults =
        layer(tables.defaults, &scope).map_err(|message| ("[defaults]: ".to_owned(), message))?;
    let mut tests = Vec::new();
    for (index, mut table) in tables.test.into_iter().enumerate() {
        let place = place("test", index, &table);
        let in_place = |message| (place.clone(), message);
        let only: Restriction = take(&mut table, &["kernels", "machines"]).map_err(in_place)?;
        tests.push(TestTable {
            kernels: only.kernels,
            machines: only.machines,
            layer: Layer {
                name: name(&mut table).map_err(in_place)?,
                ..layer(table, &scope).map_err(in_place)?
            },
        });
    }
    Ok(SuiteFile {
        name: tables.name,
        defaults,
        kernels: layers("kernel", tables.kernel)?,
        machines: layers("machine", tables.machine)?,
        matrix: tables.matrix,
        tests,
    })
}

/// A table's own place in the file.
fn place(kind: &str, index: usize, table: &Table) -> String {
    match table.get("name").and_then(Value::as_str) {
        Some(name) => format!("{kind} {name:?}: "),
        None => format!("{kind} {}: ", index + 1),
    }
}

fn whole(message: String) -> Wrong {
    (String::new(), message)
}

fn name(table: &mut Table) -> Result<String, String> {
    match table.remove("name") {
        Some(Value::String(name)) if is_name(&name) => Ok(name),
        Some(other) => Err(format!(
            "name: {other} cannot be one: take letters, digits and . _ + -"
        )),
        None => Err("name is missing".to_owned()),
    }
}

/// Names are parts of the names of folders.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(allowed)
}

/// Where a test runs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Restriction {
    kernels: Option<Vec<String>>,
    machines: Option<Vec<String>>,
}

/// Takes `keys` out of `table`, and reads them.
fn take<T: DeserializeOwned>(table: &mut Table, keys: &[&str]) -> Result<T, String> {
    let mut taken = Table::new();
    for key in keys {
        if let Some(value) = table.remove(*key) {
            taken.insert((*key).to_owned(), value);
        }
    }
    read(taken)
}

fn layer(mut table: Table, scope: &Scope<'_>) -> Result<Layer, String> {
    for (key, value) in &mut table {
        if !VERBATIM.contains(&key.as_str()) {
            scope
                .fill(value)
                .map_err(|message| format!("{key}: {message}"))?;
        }
    }
    Ok(Layer {
        name: String::new(),
        asked: take(&mut table, &ASKED)?,
        guest: take(&mut table, &GUEST)?,
        machine: read(table).map_err(|message| known_keys(&message))?,
    })
}

/// Reads a table; of a mistake the key is told.
fn read<T: DeserializeOwned>(table: Table) -> Result<T, String> {
    let whole: Result<T, _> = Value::Table(table.clone()).try_into();
    whole.map_err(|error| {
        let key = table.into_iter().find_map(|(key, value)| {
            let alone = Value::Table(Table::from_iter([(key.clone(), value)]));
            alone.try_into::<T>().is_err().then_some(key)
        });
        let message = one_line(error.message());
        match key {
            Some(key) if !message.starts_with("unknown field") => format!("{key}: {message}"),
            _ => message,
        }
    })
}

/// The machine is read last, and knows its own keys only.
fn known_keys(message: &str) -> String {
    let own = || ASKED.iter().chain(&GUEST).map(|key| format!(", \"{key}\""));
    if message.starts_with("unknown field") {
        message.to_owned() + &own().collect::<String>()
    } else {
        message.to_owned()
    }
}

fn one_line(message: &str) -> String {
    message.trim().replace('\n', "; ").replace('`', "\"")
}
