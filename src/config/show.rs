//! The effective configuration as it is shown: every key, its value, and where that was written; never a secret.

use std::fmt::Write;
use std::ops::Deref;

use figment::value::{Dict, Value};
use figment::{Figment, Source};

use super::error::Place;
use super::layers::{FLAG, VARIABLE};
use super::{Config, ConfigError, Division};

/// The configuration, and where each value came from.
#[derive(Debug)]
pub struct Effective {
    config: Config,
    layers: Figment,
    division: Division,
}

impl Effective {
    pub(super) fn new(config: Config, layers: Figment, division: Division) -> Effective {
        Effective { config, layers, division }
    }

    /// An error that says that the value of `key` cannot be, and where it was written.
    pub fn refuse(&self, key: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError::refused(&self.layers, key, reason)
    }

    /// How memory is divided.
    pub fn division(&self) -> &Division {
        &self.division
    }

    /// Where the value of a key was written.
    pub fn origin(&self, key: &str) -> Origin {
        Origin::of(&self.layers, key)
    }

    /// Whether the value of a key was given with a flag.
    pub fn by_flag(&self, key: &str) -> bool {
        matches!(Origin::of(&self.layers, key), Origin::Flag(_))
    }

    /// How many keys are set somewhere, and are not defaults only because nobody said anything.
    pub fn keys_set(&self) -> usize {
        self.leaves().iter().filter(|(key, _)| self.origin(key) != Origin::Default).count()
    }

    /// Every key with its value.
    pub(super) fn leaves(&self) -> Vec<(String, Value)> {
        leaves(&self.tree())
    }

    /// As a TOML document; each line says in a comment where its value came from, unless it is the default, or of
    /// what it follows.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        self.write_section(&mut text, &self.tree(), "");
        text
    }

    /// As a JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        fn masked(dict: &Dict, section: &str) -> serde_json::Value {
            let entry = |(key, value): (&String, &Value)| {
                let path = join(section, key);
                let json = match value {
                    Value::Dict(_, inner) => masked(inner, &path),
                    _ => serde_json::to_value(mask(&path, value)).unwrap_or_default(),
                };
                (key.clone(), json)
            };
            serde_json::Value::Object(dict.iter().map(entry).collect())
        }
        masked(&self.tree(), "")
    }

    /// The configuration as it was understood, in the spelling of the defaults.
    fn tree(&self) -> Dict {
        Value::serialize(&self.config).ok().and_then(Value::into_dict).unwrap_or_default()
    }

    fn write_section(&self, text: &mut String, dict: &Dict, section: &str) {
        for (key, value) in dict.iter().filter(|(_, value)| value.as_dict().is_none()) {
            let path = join(section, key);
            let origin = match Origin::of(&self.layers, &path) {
                Origin::Default => self.division.note(&path).map_or_else(String::new, |note| format!("  # {note}")),
                origin => format!("  # {origin}"),
            };
            // Writing to a String does not fail.
            let _ = match value {
                Value::Empty(..) => writeln!(text, "# {key} is not set"),
                _ => writeln!(text, "{key} = {}{origin}", shown(&path, value)),
            };
        }
        for (key, inner) in dict.iter().filter_map(|(key, value)| Some((key, value.as_dict()?))) {
            let path = join(section, key);
            let _ = writeln!(text, "\n[{path}]");
            self.write_section(text, inner, &path);
        }
    }
}

impl Deref for Effective {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In this file.
    File(std::path::PathBuf),
    /// In this environment variable.
    Variable(String),
    /// With this flag.
    Flag(String),
}

impl Origin {
    pub(super) fn of(layers: &Figment, key: &str) -> Origin {
        let Some(metadata) = layers.find_metadata(key) else { return Origin::Default };
        let name = metadata.name.to_string();
        match &metadata.source {
            Some(Source::File(path)) => Origin::File(path.clone()),
            Some(Source::Custom(kind)) if kind == VARIABLE => Origin::Variable(name),
            Some(Source::Custom(kind)) if kind == FLAG => Origin::Flag(name),
            _ => Origin::Default,
        }
    }

    pub(super) fn place(self) -> Place {
        match self {
            Origin::Default => Place::Default,
            Origin::File(path) => Place::File(path),
            Origin::Variable(name) => Place::Variable(name),
            Origin::Flag(name) => Place::Flag(name),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Variable(name) | Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// Every key that is no section, with its value.
pub(super) fn leaves(dict: &Dict) -> Vec<(String, Value)> {
    fn walk(dict: &Dict, section: &str, found: &mut Vec<(String, Value)>) {
        for (key, value) in dict {
            match value {
                Value::Dict(_, inner) => walk(inner, &join(section, key), found),
                _ => found.push((join(section, key), value.clone())),
            }
        }
    }
    let mut found = Vec::new();
    walk(dict, "", &mut found);
    found
}

/// A value as TOML writes it, with secrets masked.
pub(super) fn shown(key: &str, value: &Value) -> String {
    match toml::Value::try_from(mask(key, value)) {
        Ok(value) => value.to_string(),
        Err(_) => "(not set)".to_owned(),
    }
}

/// What stands in a secret's place (rule R12).
const MASK: &str = "***";

/// The value without what must not be shown: all of a secret, and user and password of a URL.
fn mask(key: &str, value: &Value) -> Value {
    const SECRET: [&str; 6] = ["secret", "password", "passphrase", "token", "access_key", "private_key"];
    // Of the section of keys only these are none, so that a misspelt passphrase is not shown either.
    const NO_SECRET: [&str; 4] = ["keys.passphrase_file", "keys.key_file", "keys.command", "keys.required"];
    let secret = match key.starts_with("keys.") {
        true => !NO_SECRET.contains(&key),
        // The path of a file is none, as it says.
        false => !key.ends_with("_file") && SECRET.iter().any(|word| key.contains(word)),
    };
    match value {
        Value::Dict(tag, inner) => {
            let masked = inner.iter().map(|(name, value)| (name.clone(), mask(&join(key, name), value)));
            Value::Dict(*tag, masked.collect())
        }
        Value::String(_, text) if text.is_empty() => value.clone(),
        Value::Empty(..) => value.clone(),
        _ if secret => Value::from(MASK),
        Value::String(_, text) => Value::from(mask_url(text)),
        other => other.clone(),
    }
}

fn mask_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{MASK}@{host}{}", &rest[authority.len()..]),
        None => text.to_owned(),
    }
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_whole_and_urls_lose_their_user() {
        assert_eq!(shown("s3.secret_access_key", &Value::from("hunter2")), "\"***\"");
        assert_eq!(shown("s3.secret_access_key", &Value::from("")), "\"\"");
        assert_eq!(shown("keys.passphrase", &Value::from("hunter2")), "\"***\"");
        assert_eq!(shown("keys.pasphrase", &Value::from("hunter2")), "\"***\"");
        let section = Value::from(Dict::from([("passphrase".to_owned(), Value::from("hunter2"))]));
        assert_eq!(shown("key", &section), "{ passphrase = \"***\" }");
        assert_eq!(shown("keys.passphrase_file", &Value::from("/run/key")), "\"/run/key\"");
        assert_eq!(shown("metrics.token_file", &Value::from("/run/token")), "\"/run/token\"");
        assert_eq!(shown("metrics.token", &Value::from("hunter2")), "\"***\"");
        assert_eq!(shown("store", &Value::from("s3://me:hunter2@bucket/a@b")), "\"s3://***@bucket/a@b\"");
        assert_eq!(shown("store", &Value::from("file:///a@b/c")), "\"file:///a@b/c\"");
    }
}
