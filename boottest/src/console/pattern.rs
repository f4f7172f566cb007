//! Regular expressions on lines that grow.

use std::fmt;

use regex_automata::Input;
use regex_automata::meta::{BuildError, Regex};
use regex_automata::util::syntax;
use thiserror::Error;

/// What may follow a line that is still growing, by kind: a character of a word, and one that is none.
const CONTINUATIONS: [char; 2] = ['x', ' '];

/// A regular expression that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{pattern:?} is not a regular expression: {reason}")]
pub struct PatternError {
    /// The expression.
    pub pattern: String,
    /// What is wrong with it, in one line.
    pub reason: String,
}

/// A regular expression to be looked for in lines; its syntax is that of the `regex` crate.
///
/// `(?i)` is for ASCII letters, and `\w` and `.` are for ASCII text beside it: Unicode's table of cases would be relocated
/// memory of every guest's process.
#[derive(Clone)]
pub struct Pattern {
    regex: Regex,
    source: String,
    /// As it was compiled.
    compiled: String,
}

/// A line, as far as it is there.
#[derive(Debug)]
pub struct Text {
    /// The line, and while it grows each of [`CONTINUATIONS`] behind it.
    variants: Vec<String>,
    len: usize,
}

impl Text {
    /// A line that is complete.
    #[must_use]
    pub fn complete(line: &str) -> Self {
        Self {
            variants: vec![line.to_owned()],
            len: line.len(),
        }
    }

    /// A line that may grow.
    #[must_use]
    pub fn growing(line: &str) -> Self {
        let continued = |next| format!("{line}{next}");
        Self {
            variants: CONTINUATIONS.map(continued).to_vec(),
            len: line.len(),
        }
    }

    /// What is there of the line.
    #[must_use]
    pub fn line(&self) -> &str {
        self.variants
            .first()
            .map_or("", |variant| &variant[..self.len])
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

impl Pattern {
    /// Compiles `source`.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn new(source: &str) -> Result<Self, PatternError> {
        let with_unicode = compile(&[source]).map(|regex| (regex, source.to_owned()));
        let (regex, compiled) = with_unicode.or_else(|error| {
            let ascii = format!("(?-u){source}");
            let regex = compile(&[&ascii]).map_err(|_| PatternError {
                pattern: source.to_owned(),
                reason: reason(&error),
            })?;
            Ok((regex, ascii))
        })?;
        Ok(Self {
            regex,
            source: source.to_owned(),
            compiled,
        })
    }

    /// One that is found where any of `patterns` is. What each of them accepts was compiled before; together they may be
    /// too large, and then there is none.
    #[must_use]
    pub fn any_of<'a>(patterns: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let compiled = patterns.into_iter().map(|pattern| &*pattern.compiled);
        let compiled: Vec<&str> = compiled.collect();
        let regex = compile(&compiled).ok()?;
        Some(Self {
            regex,
            source: compiled.join("|"),
            compiled: String::new(),
        })
    }

    /// The expression as it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it is found in `text` from the byte `from` on, whatever the line becomes.
    #[must_use]
    pub fn is_in(&self, text: &Text, from: usize) -> bool {
        self.is_within(text, from, text.len)
    }

    /// Where the earliest match ends that begins at the byte `from` of `text` or after. The same however the line has
    /// grown: a match that a longer line would prolong ends where it first is one, and `$` and `\b` wait until it is
    /// known what follows.
    #[must_use]
    pub fn earliest_end(&self, text: &Text, from: usize) -> Option<usize> {
        if !self.is_within(text, from, text.len) {
            return None;
        }
        // Found within a prefix means found within each longer one.
        let (mut without, mut with) = (from, text.len);
        if self.is_within(text, from, from) {
            return Some(from);
        }
        while without + 1 < with {
            let middle = without + (with - without) / 2;
            if self.is_within(text, from, middle) {
                with = middle;
            } else {
                without = middle;
            }
        }
        Some(with)
    }

    fn is_within(&self, text: &Text, from: usize, to: usize) -> bool {
        from <= to
            && text.variants.iter().all(|variant| {
                let input = Input::new(variant).span(from..to).earliest(true);
                self.regex.is_match(input)
            })
    }
}

fn compile(sources: &[&str]) -> Result<Regex, Box<BuildError>> {
    // Places within a line are bytes.
    let configuration = Regex::config().utf8_empty(false);
    Regex::builder()
        .configure(configuration)
        .syntax(syntax::Config::new().utf8(false))
        .build_many(sources)
        .map_err(Box::new)
}

/// The last line of the error is what is wrong; those before it show where.
fn reason(error: &BuildError) -> String {
    let text = match error.syntax_error() {
        Some(error) => error.to_string(),
        None if error.size_limit().is_some() => "it is too large".to_owned(),
        None => error.to_string(),
    };
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(pattern: &str, text: &Text) -> Option<usize> {
        Pattern::new(pattern).unwrap().earliest_end(text, 0)
    }

    #[test]
    fn a_match_ends_at_the_same_place_however_the_line_has_grown() {
        for (pattern, line) in [
            ("login:", "debian login: "),
            ("a.*", "xxaaaa"),
            ("^a+$", "aaa"),
            (r"foo\b", "foo bar"),
            (r"foo\b", "foo"),
            ("foo$", "foobar"),
            ("é+", "caféé"),
            ("", "x"),
            ("[^x]$", "ab"),
            ("b[^y]", "abx"),
            ("(?i)READY", "is ready now"),
            ("(?i)ÉTÉ", "ÉTÉ"),
        ] {
            let complete = end(pattern, &Text::complete(line));
            let growing = line
                .char_indices()
                .map(|(index, character)| index + character.len_utf8())
                .find_map(|len| end(pattern, &Text::growing(&line[..len])));
            if growing.is_some() {
                assert_eq!(growing, complete, "{pattern} in {line}");
            }
        }
    }

    #[test]
    fn what_follows_matters_only_where_the_pattern_asks() {
        assert_eq!(end("login: ", &Text::growing("login: ")), Some(7));
        assert_eq!(end("login: $", &Text::growing("login: ")), None);
        assert_eq!(end("login: $", &Text::complete("login: ")), Some(7));
        assert_eq!(end(r"in\b", &Text::growing("login")), None);
        assert_eq!(end(r"in\b", &Text::growing("login:")), Some(5));
        assert_eq!(end("n[^x]", &Text::growing("login")), None);
    }

    #[test]
    fn a_search_begins_where_it_is_told() {
        let pattern = Pattern::new("^a|b").unwrap();
        let text = Text::complete("abab");
        assert_eq!(pattern.earliest_end(&text, 0), Some(1));
        assert_eq!(pattern.earliest_end(&text, 1), Some(2));
        assert_eq!(pattern.earliest_end(&text, 2), Some(4));
        assert_eq!(pattern.earliest_end(&text, 4), None);
    }

    #[test]
    fn a_mistake_is_told_in_one_line() {
        let error = Pattern::new("a(b").unwrap_err().to_string();
        assert_eq!(error, "\"a(b\" is not a regular expression: unclosed group");
    }

    #[test]
    fn case_may_be_ignored_in_ascii() {
        assert_eq!(end("(?i)kernel", &Text::complete("a KERNEL")), Some(8));
        assert_eq!(end(r"(?i)a\d", &Text::complete("é A1")), Some(5));
        assert_eq!(end(r"\w+é", &Text::complete("éé")), Some(4));
    }

    #[test]
    fn any_of_several() {
        let patterns = ["^a", "b$"].map(|source| Pattern::new(source).unwrap());
        let any = Pattern::any_of(&patterns).unwrap();
        assert!(any.is_in(&Text::complete("ax"), 0));
        assert!(any.is_in(&Text::complete("xb"), 0));
        assert!(!any.is_in(&Text::complete("xbx"), 0));
    }
}
