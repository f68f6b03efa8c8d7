//! What is wrong with a configuration, in one sentence that names the place, the key, the value and the way out.

use std::fmt;
use std::io;
use std::path::PathBuf;

use figment::Figment;
use figment::error::Kind;
use figment::value::{Dict, Value};

use super::ENVIRONMENT_PREFIX;
use super::layers::known_keys;
use super::show::{Origin, leaves, shown};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that `--config` names, or `ashlar.toml`, cannot be read.
    #[error("configuration file {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("configuration file {path}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key that does not exist.
    #[error("{assignment}: there is no such key{}{section} has {accepted}", did_you_mean(near))]
    UnknownKey {
        /// Place, key and value, as they were written.
        assignment: String,
        /// The nearest key that exists, written as it would be in the same place.
        near: Option<String>,
        /// The section in which the key was looked for.
        section: String,
        /// The keys of that section.
        accepted: String,
    },
    /// A value that is not accepted.
    #[error("{assignment}: {reason}")]
    Value {
        /// Place, key and value, as they were written.
        assignment: String,
        /// What is accepted.
        reason: String,
    },
    /// The defaults cannot be represented; a test proves that this does not happen.
    #[error("the built-in defaults are broken; this is a fault of the program")]
    Defaults,
}

/// Where a value was written.
#[derive(Clone, Debug)]
pub(super) enum Place {
    File(PathBuf),
    Variable(String),
    Flag(String),
    Default,
}

impl Place {
    /// How a key is written there.
    fn spelling(&self, key: &str) -> String {
        match self {
            Place::Variable(_) => format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "__").to_ascii_uppercase()),
            Place::Flag(name) => name.clone(),
            Place::File(_) | Place::Default => key.to_owned(),
        }
    }

    /// `ashlar.toml: serve.listen = "x"`.
    fn assignment(&self, key: &str, value: impl fmt::Display) -> String {
        match self {
            Place::File(path) => format!("{}: {key} = {value}", path.display()),
            Place::Variable(name) => format!("environment variable {name} = {value}"),
            Place::Flag(name) => format!("flag {name} {value}"),
            Place::Default => format!("built-in default: {key} = {value}"),
        }
    }
}

impl ConfigError {
    /// `path` is not a key; `known` are the keys of the section that it names.
    pub(super) fn unknown_key(place: &Place, path: &[String], value: &Value, known: &Dict) -> ConfigError {
        let key = path.join(".");
        let section = match path.split_last() {
            Some((_, [])) | None => "the top level".to_owned(),
            Some((_, sections)) => format!("[{}]", sections.join(".")),
        };
        ConfigError::UnknownKey {
            assignment: place.assignment(&key, shown(&key, value)),
            near: nearest(&key).map(|key| place.spelling(&key)),
            section,
            accepted: known.keys().cloned().collect::<Vec<_>>().join(", "),
        }
    }

    /// A value stands where a section is.
    pub(super) fn section(place: &Place, path: &[String], value: &Value, known: &Dict) -> ConfigError {
        let key = path.join(".");
        let keys = known.keys().cloned().collect::<Vec<_>>().join(", ");
        ConfigError::Value {
            assignment: place.assignment(&key, shown(&key, value)),
            reason: format!("{key} is a section; its keys are {keys}"),
        }
    }

    /// A variable's value is not UTF-8.
    pub(super) fn not_text(place: Place, key: String) -> ConfigError {
        ConfigError::Value {
            assignment: place.assignment(&key, "(not UTF-8)"),
            reason: "accepted is UTF-8 text".into(),
        }
    }

    /// A value has the wrong type or meaning.
    pub(super) fn of_value(figment: &Figment, error: &figment::Error) -> ConfigError {
        let reason = reason(&error.kind);
        // figment does not look into lists: the numbers of items, and the keys of tables in a list, go into the reason.
        let (mut key, mut inside) = (error.path.clone(), Vec::new());
        while figment.find_value(&key.join(".")).is_err() {
            let Some(part) = key.pop() else { break };
            inside.insert(0, part.parse::<usize>().map_or(part, |index| format!("item {}", index + 1)));
        }
        let place = if inside.is_empty() { String::new() } else { inside.join(", ") + ": " };
        ConfigError::refused(figment, &key.join("."), format!("{place}{reason}"))
    }

    /// A value is of the right type, but means something that cannot be; found after loading.
    pub(super) fn refused(figment: &Figment, key: &str, reason: impl Into<String>) -> ConfigError {
        let value = figment.find_value(key).map(|value| shown(key, &value)).unwrap_or_default();
        ConfigError::Value {
            assignment: Origin::of(figment, key).place().assignment(key, value),
            reason: reason.into(),
        }
    }
}

fn did_you_mean(near: &Option<String>) -> String {
    near.as_ref().map_or("; ".to_owned(), |key| format!("; did you mean {key}? "))
}

fn reason(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.clone(),
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => format!("accepted is {}", plain(expected)),
        Kind::UnknownVariant(_, accepted) => format!("accepted is {}", accepted.join(" or ")),
        Kind::UnknownField(_, accepted) => format!("there is no such key; accepted are {}", accepted.join(", ")),
        other => other.to_string(),
    }
}

/// What serde calls a type, as people call it.
fn plain(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "a string" | "path string" => "a text in quotes",
        "a sequence" => "a list of texts, such as [\"a\", \"b\"]",
        "a boolean" => "true or false",
        other => other,
    }
}

/// The key that was probably meant.
fn nearest(key: &str) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let defaults = known_keys().ok()?;
    let distance = |known: &str| {
        // The right name in the wrong section is a near miss, too.
        let elsewhere = strsim::damerau_levenshtein(&last(key), &last(known)) + 1;
        let here = strsim::damerau_levenshtein(key, known);
        // Of two as near, the one of [serve], and then the one whose whole name is nearer.
        (elsewhere.min(here), !known.starts_with("serve."), here)
    };
    let ((distance, ..), known) = leaves(&defaults).into_iter().map(|(known, _)| (distance(&known), known)).min()?;
    (distance <= 1 + last(key).len() / 4).then_some(known)
}
