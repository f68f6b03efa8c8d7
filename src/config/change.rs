//! What two configurations differ in.

use super::Effective;
use super::show::shown;

/// A key that has another value, as it is shown: without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its value before, as TOML writes it.
    pub from: String,
    /// Its value afterwards.
    pub to: String,
}

impl Effective {
    /// Every key that has another value there, in the order of the keys.
    pub fn changes_to(&self, newer: &Effective) -> Vec<Change> {
        let newer = newer.leaves();
        let changed = |(key, value): (String, figment::value::Value)| {
            let (_, to) = newer.iter().find(|(other, _)| *other == key).filter(|(_, to)| *to != value)?;
            Some(Change { from: shown(&key, &value), to: shown(&key, to), key })
        };
        self.leaves().into_iter().filter_map(changed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flag, Inputs, load};

    fn with(flags: &[(&'static str, &str)]) -> Effective {
        let flags = flags.iter().map(|(key, value)| Flag { name: "--x", key, value: (*value).to_owned() });
        load(Inputs { flags: flags.collect(), ..Inputs::default() }).unwrap()
    }

    #[test]
    fn what_differs_is_named_with_both_values_and_no_secret() {
        let before = with(&[("log.level", "info"), ("keys.passphrase", "hunter2"), ("volume.dirty_bytes", "64MiB")]);
        assert_eq!(before.changes_to(&with(&[("keys.passphrase", "hunter2"), ("volume.dirty_bytes", "64 MiB")])), []);
        let after = with(&[("log.level", "debug"), ("keys.passphrase", "hunter3"), ("volume.dirty_bytes", "65MiB")]);
        let changes = before.changes_to(&after);
        let said = changes.iter().map(|change| format!("{} {} {}", change.key, change.from, change.to));
        assert_eq!(
            said.collect::<Vec<_>>(),
            [
                "keys.passphrase \"***\" \"***\"",
                "log.level \"info\" \"debug\"",
                "volume.dirty_bytes \"64 MiB\" \"65 MiB\""
            ]
        );
        let listening = before.changes_to(&with(&[
            ("metrics.listen", "127.0.0.1:1"),
            ("keys.passphrase", "hunter2"),
            ("volume.dirty_bytes", "64MiB"),
        ]));
        assert_eq!(listening.len(), 1, "what was not set is a value too: {listening:?}");
    }
}
