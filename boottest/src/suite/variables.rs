//! `${NAME}` in a suite.

use std::collections::BTreeMap;

use toml::Value;

/// Values from outside of a suite.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    set: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
}

impl Variables {
    /// `set` by the user wins over the environment, and that over what the suite says.
    #[must_use]
    pub fn new(
        set: impl IntoIterator<Item = (String, String)>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self {
            set: set.into_iter().collect(),
            environment: environment.into_iter().collect(),
        }
    }

    /// What the user has set.
    pub fn set(&self) -> impl Iterator<Item = (&str, &str)> {
        self.set.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// The values that hold in one suite.
pub(super) struct Scope<'a> {
    outside: &'a Variables,
    defaults: &'a BTreeMap<String, String>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(
        outside: &'a Variables,
        defaults: &'a BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let unknown = outside
            .set
            .keys()
            .find(|name| !defaults.contains_key(*name));
        match unknown {
            Some(name) => Err(format!(
                "--set {name}: there is no such variable; [variables] has {}",
                list(defaults.keys())
            )),
            None => Ok(Self { outside, defaults }),
        }
    }

    fn value(&self, name: &str) -> Result<&str, String> {
        let Some(default) = self.defaults.get(name) else {
            return Err(format!("${{{name}}} is not among the [variables]"));
        };
        let outside = self.outside.set.get(name);
        let value = outside.or_else(|| self.outside.environment.get(name));
        let value = value.unwrap_or(default);
        if value.is_empty() {
            return Err(format!(
                "{name} is not set: give --set {name}=VALUE, or set it in the environment"
            ));
        }
        Ok(value)
    }

    /// Puts the values into all strings of `value`.
    ///
    /// # Errors
    /// What is wrong, with the key.
    pub(super) fn fill(&self, value: &mut Value) -> Result<(), String> {
        match value {
            Value::String(text) => {
                *text = self.filled(text)?;
                Ok(())
            }
            Value::Array(list) => list.iter_mut().try_for_each(|one| self.fill(one)),
            Value::Table(table) => table.iter_mut().try_for_each(|(key, one)| {
                self.fill(one)
                    .map_err(|message| format!("{key}: {message}"))
            }),
            _ => Ok(()),
        }
    }

    fn filled(&self, text: &str) -> Result<String, String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, after)) = after.split_once('}') else {
                return Err(format!("{text:?} has ${{ without a }}"));
            };
            filled.push_str(before);
            filled.push_str(self.value(name)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

/// `a, b`, or that there is none.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
