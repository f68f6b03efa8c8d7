//! Settings that live with a volume, in its description, and beat the configuration of whoever serves it: so every host serves it the same way.
//!
//! They are what a volume is, and what it costs: [`KEYS`], named as in the configuration. What is a matter of the host stays with its
//! configuration: memory, disk, the link to the store, paths, keys. A server that does not know one of them, or cannot keep it beside its own
//! configuration, does not open the volume: FLUSH might promise less than somebody relies on.
//!
//! Most take effect on an open volume at once; those in [`LATER`] when it is next opened.

use serde::{Deserialize, Serialize};

use crate::engine::options::{BadOption, Options};
use crate::engine::purse::{self, Allowance, OwnAllowance};
use crate::format::meta::Settings;

/// What a volume can have settings of, in the order in which the configuration has them.
pub const KEYS: [&str; 21] = [
    "volume.durability",
    "volume.segment_size",
    "volume.segment_size_max",
    "volume.writeback_delay",
    "volume.checkpoint_bytes",
    "volume.checkpoint_interval",
    "volume.max_snapshots",
    "volume.dedup",
    "volume.gc.busy_percent",
    "volume.gc.quiet_percent",
    "volume.gc.limit_percent",
    "volume.gc.hold_percent",
    "volume.gc.quiet_after",
    "volume.gc.share_percent",
    "volume.gc.garbage_min",
    "volume.gc.merge_count",
    "volume.gc.delete_rate",
    "volume.gc.sweep_interval",
    "volume.gc.sweep_grace",
    REQUESTS,
    DOLLARS,
];

/// Those that an open volume does not take over.
const LATER: [&str; 4] = ["volume.durability", "volume.segment_size", "volume.segment_size_max", "volume.dedup"];

const REQUESTS: &str = "budget.volume.requests_per_second";
const DOLLARS: &str = "budget.volume.dollars_per_day";

/// The part of a configuration that holds [`KEYS`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Tree {
    volume: Options,
    budget: OfVolume,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfVolume {
    volume: Allowance,
}

/// What holds for one volume.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// The server's options with its own in their place.
    pub options: Options,
    /// What it may spend, where it says so itself.
    pub allowance: OwnAllowance,
}

/// Why a volume cannot have a setting, or this server cannot keep it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// No such setting.
    #[error(
        "{key} = {value}: a volume has no such setting of its own; it can have {}; all else is of the server's configuration",
        KEYS.join(", ")
    )]
    Unknown {
        /// What was named.
        key: String,
        /// Its value.
        value: String,
    },
    /// Its value is none.
    #[error("{key} = {value}: {why}")]
    Value {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
        /// What is accepted.
        why: String,
    },
    /// Together with another setting, or with the configuration, it cannot be.
    #[error("{settings} cannot be beside the configuration's {key} = {value}: accepted is {accepted}")]
    Beside {
        /// The volume's own settings.
        settings: String,
        /// What is out of bounds then.
        key: String,
        /// Its value.
        value: String,
        /// Its bounds.
        accepted: String,
    },
}

/// The options of a server, for a volume with these settings.
pub fn tuned(configured: &Options, settings: &Settings) -> Result<Tuned, BadSetting> {
    let tree = Tree { volume: configured.clone(), budget: OfVolume::default() };
    let mut json = serde_json::to_value(&tree).unwrap_or_default();
    let mut tree = tree;
    for (key, text) in settings {
        tree = put(&mut json, key, text)?;
    }
    let Tree { volume: options, budget: OfVolume { volume: allowed } } = tree;
    let bounds = purse::Options { volume: allowed, ..purse::Options::default() };
    if let Err((key, accepted)) = bounds.check() {
        return Err(out_of_bounds(&json, settings, format!("budget.{key}"), accepted.to_owned()));
    }
    if let Err(BadOption { key, accepted }) = options.check() {
        return Err(out_of_bounds(&json, settings, format!("volume.{key}"), accepted));
    }
    let allowance = OwnAllowance {
        requests_per_second: settings.contains_key(REQUESTS).then_some(allowed.requests_per_second),
        dollars_per_day: settings.contains_key(DOLLARS).then_some(allowed.dollars_per_day),
    };
    Ok(Tuned { options, allowance })
}

/// The value of a setting in the spelling of the configuration's defaults.
pub fn spelled(key: &str, text: &str) -> Result<String, BadSetting> {
    let mut json = serde_json::to_value(Tree::default()).unwrap_or_default();
    let tree = put(&mut json, key, text)?;
    let json = serde_json::to_value(&tree).unwrap_or_default();
    Ok(shown(&json, key))
}

/// What of these options a volume takes over that is open with others.
pub fn at_once(open: &Options, tuned: &Options) -> Options {
    let Options { durability, segment_size, segment_size_max, dedup, .. } = *open;
    Options { durability, segment_size, segment_size_max, dedup, ..tuned.clone() }
}

/// The keys of those that it takes over when it is next opened.
pub fn later(open: &Options, tuned: &Options) -> Vec<String> {
    let differs = [
        open.durability != tuned.durability,
        open.segment_size != tuned.segment_size,
        open.segment_size_max != tuned.segment_size_max,
        open.dedup != tuned.dedup,
    ];
    LATER.iter().zip(differs).filter(|(_, differs)| *differs).map(|(key, _)| (*key).to_owned()).collect()
}

/// Settings as people read them, for one line.
pub fn listed(settings: &Settings) -> String {
    settings.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join(", ")
}

/// Puts one setting into the tree.
fn put(json: &mut serde_json::Value, key: &str, text: &str) -> Result<Tree, BadSetting> {
    let unknown = || BadSetting::Unknown { key: key.to_owned(), value: text.to_owned() };
    let bad = |why: String| BadSetting::Value { key: key.to_owned(), value: text.to_owned(), why };
    let place = Some(key).filter(|key| KEYS.contains(key)).and_then(|key| json.pointer_mut(&pointer(key)));
    let place = place.ok_or_else(unknown)?;
    let number = if key == DOLLARS { "a number of US dollars, such as 1.5" } else { "a whole number" };
    *place = match place {
        serde_json::Value::Number(_) => {
            let parsed: Option<serde_json::Number> = text.parse().ok();
            parsed.ok_or_else(|| bad(format!("accepted is {number}")))?.into()
        }
        serde_json::Value::Bool(_) => {
            let parsed: Option<bool> = text.parse().ok();
            parsed.ok_or_else(|| bad("accepted is true or false".into()))?.into()
        }
        _ => text.into(),
    };
    Tree::deserialize(&*json).map_err(|error| bad(accepted(&error.to_string(), number)))
}

/// What serde says of a value, as people say it.
fn accepted(error: &str, number: &str) -> String {
    match error.split_once(", expected ") {
        Some((_, "u32" | "u64" | "f64")) => format!("accepted is {number}"),
        Some((_, expected)) => format!("accepted is {}", expected.replace('`', "")),
        None => error.to_owned(),
    }
}

/// If what is out of bounds is a setting of the volume, that alone is named.
fn out_of_bounds(json: &serde_json::Value, settings: &Settings, key: String, accepted: String) -> BadSetting {
    let value = shown(json, &key);
    match settings.contains_key(&key) {
        true => BadSetting::Value { key, value, why: format!("accepted is {accepted}") },
        false => BadSetting::Beside { settings: listed(settings), key, value, accepted },
    }
}

fn shown(json: &serde_json::Value, key: &str) -> String {
    match json.pointer(&pointer(key)) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::format::segment::Durability;

    fn settings(set: &[(&str, &str)]) -> Settings {
        set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn error(set: &[(&str, &str)]) -> String {
        tuned(&Options::default(), &settings(set)).unwrap_err().to_string()
    }

    #[test]
    fn what_a_volume_sets_beats_the_configuration_and_the_rest_stays() {
        let configured = Options { writeback_delay: Duration::from_secs(9), ..Options::default() };
        let set = [
            ("volume.durability", "journal"),
            ("volume.segment_size", "16MiB"),
            ("volume.gc.busy_percent", "120"),
            (DOLLARS, "0.5"),
        ];
        let Tuned { options, allowance } = tuned(&configured, &settings(&set)).unwrap();
        let mut expected = Options { durability: Durability::Journal, segment_size: 16 << 20, ..configured.clone() };
        expected.gc.busy_percent = 120;
        assert_eq!(options, expected);
        assert_eq!(allowance, OwnAllowance { requests_per_second: None, dollars_per_day: Some(0.5) });
        assert_eq!(tuned(&configured, &Settings::new()).unwrap().options, configured);
        // Weaker than the server's, too.
        let strict = Options { durability: Durability::Journal, ..Options::default() };
        let weaker = tuned(&strict, &settings(&[("volume.durability", "store")])).unwrap();
        assert_eq!(weaker.options.durability, Durability::Store);
    }

    /// Whoever adds an option decides whose it is.
    #[test]
    fn every_option_is_of_the_volume_or_of_the_host() {
        let of_host = BTreeSet::from([
            "dirty_bytes",
            "total_dirty_bytes",
            "upload_window",
            "total_upload_bytes",
            "map_memory",
            "total_map_memory",
            "total_dedup_memory",
            "read_parallel",
            "read_gap",
            "read_max",
            "read_ahead",
            "gc.batch",
            "gc.rounds",
            "retry_pause_max",
        ]);
        let json = serde_json::to_value(Options::default()).unwrap();
        let all = json.as_object().unwrap().iter().flat_map(|(key, value)| match value.as_object() {
            Some(inner) => inner.keys().map(|inner| format!("{key}.{inner}")).collect(),
            None => vec![key.clone()],
        });
        let mut of_volume = BTreeSet::new();
        for key in all.filter(|key| !of_host.contains(key.as_str())) {
            of_volume.insert(format!("volume.{key}"));
        }
        of_volume.extend([REQUESTS.to_owned(), DOLLARS.to_owned()]);
        assert_eq!(KEYS.map(str::to_owned).into_iter().collect::<BTreeSet<_>>(), of_volume);
    }

    #[test]
    fn what_cannot_be_is_one_sentence_with_key_value_and_way_out() {
        assert_eq!(
            error(&[("volume.segment_size", "much")]),
            "volume.segment_size = much: \"much\" is not a size; accepted is a number with a unit, such as 4096, 64KiB, 8MiB, 10G or 1.5T (K, M, G, T count in 1024)"
        );
        assert_eq!(
            error(&[("volume.durability", "x")]),
            "volume.durability = x: accepted is one of store, journal, peer"
        );
        assert_eq!(error(&[("volume.gc.busy_percent", "x")]), "volume.gc.busy_percent = x: accepted is a whole number");
        assert_eq!(error(&[("volume.gc.merge_count", "-3")]), "volume.gc.merge_count = -3: accepted is a whole number");
        assert_eq!(
            error(&[(DOLLARS, "-1")]),
            "budget.volume.dollars_per_day = -1: accepted is a number of US dollars, such as 1.5, or 0 for any amount"
        );
        assert_eq!(
            error(&[("volume.gc.busy_percent", "90")]),
            "volume.gc.busy_percent = 90: accepted is gc.quiet_percent or more"
        );
        assert_eq!(
            error(&[("volume.segment_size", "256MiB")]),
            "volume.segment_size = 256MiB cannot be beside the configuration's volume.total_upload_bytes = 512 MiB: accepted is 4 times volume.segment_size or more"
        );
        let unknown = error(&[("volume.dirty_bytes", "1G")]);
        assert!(
            unknown.starts_with("volume.dirty_bytes = 1G: a volume has no such setting of its own; it can have volume.durability, volume.segment_size,"),
            "{unknown}"
        );
    }

    #[test]
    fn values_are_kept_in_one_spelling() {
        assert_eq!(spelled("volume.segment_size", "8388608").unwrap(), "8 MiB");
        assert_eq!(spelled("volume.writeback_delay", "90s").unwrap(), "1m 30s");
        assert_eq!(spelled("volume.max_snapshots", "7").unwrap(), "7");
        assert_eq!(spelled("volume.durability", "journal").unwrap(), "journal");
        assert_eq!(spelled(DOLLARS, "1").unwrap(), "1.0");
    }

    /// Each key is one or the other.
    #[test]
    fn an_open_volume_takes_over_what_is_not_for_later() {
        let open = Options::default();
        let other = [
            ("volume.durability", "journal"),
            ("volume.segment_size", "4MiB"),
            ("volume.segment_size_max", "128MiB"),
            ("volume.gc.limit_percent", "150"),
            ("volume.gc.hold_percent", "160"),
            ("volume.dedup", "true"),
        ];
        for key in KEYS.into_iter().filter(|key| key.starts_with("volume.")) {
            let value = other.iter().find(|(other, _)| *other == key).map(|(_, value)| (*value).to_owned());
            let value = value.unwrap_or_else(|| match shown(&serde_json::to_value(Tree::default()).unwrap(), key) {
                number if number.parse::<u32>().is_ok() => (number.parse::<u32>().unwrap() - 1).to_string(),
                text if text.ends_with('B') => "3MiB".to_owned(),
                _ => "7s".to_owned(),
            });
            let tuned = tuned(&open, &settings(&[(key, &value)])).unwrap().options;
            assert_ne!(tuned, open, "{key}");
            let is_later = LATER.contains(&key);
            assert_eq!(at_once(&open, &tuned) == open, is_later, "{key}");
            assert_eq!(later(&open, &tuned), if is_later { vec![key.to_owned()] } else { vec![] });
        }
    }
}
