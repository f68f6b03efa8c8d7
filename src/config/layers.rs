//! The layers, put upon one another: each is a figment provider with a name, so that every value remembers where it
//! was written; keys are checked layer by layer against the defaults, which hold every key there is.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::error::Place;
use super::show::Origin;
use super::{Config, ConfigError, Division, ENVIRONMENT_PREFIX, Effective, FILE, TEST_PREFIX};
use crate::format::segment::Durability;
use crate::memory::Machine;
use crate::metrics;
use crate::pool::beat::{POOL_NAME_MAX, PoolName};

/// What [`load`] reads. The environment comes in as a list, so that a test can hand in its own.
#[derive(Debug, Default)]
pub struct Inputs {
    /// The file that `--config` names.
    pub file: Option<PathBuf>,
    /// All environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// The flags that were given.
    pub flags: Vec<Flag>,
    /// How much memory there is.
    pub machine: Machine,
}

/// The figment source of a value that a variable set; the layer's name is the variable's.
pub(super) const VARIABLE: &str = "variable";
/// The figment source of a value that a flag set; the layer's name is the flag's.
pub(super) const FLAG: &str = "flag";

/// A flag that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As the help calls it: `--listen`.
    pub name: &'static str,
    /// The key: `serve.listen`.
    pub key: &'static str,
    /// What was typed after it.
    pub value: String,
}

/// The effective configuration.
pub fn load(inputs: Inputs) -> Result<Effective, ConfigError> {
    let known = understood_keys()?;
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    if let Some(path) = file_to_read(inputs.file)? {
        figment = figment.merge(file_layer(&path, &known)?);
    }
    for (name, value) in inputs.environment {
        if let Some(layer) = variable_layer(name, value, &known)? {
            figment = figment.merge(layer);
        }
    }
    for flag in inputs.flags {
        let path: Vec<&str> = flag.key.split('.').collect();
        figment = figment.merge(Layer::of_text(FLAG, flag.name, &path, &flag.value, &known));
    }
    let mut config: Config = figment.extract().map_err(|error| ConfigError::of_value(&figment, &error))?;
    let is_set = |key: &str| Origin::of(&figment, key) != Origin::Default;
    let division = Division::of(&mut config, is_set, inputs.machine);
    let effective = Effective::new(config, figment, division);
    check_bounds(&effective)?;
    if let Some(why) = effective.division().fault(&effective) {
        return Err(effective.refuse("memory", why));
    }
    Ok(effective)
}

/// The bounds of `serve.handoff_timeout`.
const HANDOFF_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// The bounds of `serve.claim_beat`, and the most of `serve.claim_patience`, which is three beats at least.
const CLAIM_BEAT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
const CLAIM_PATIENCE_MAX: Duration = Duration::from_secs(3600);

fn check_claim(config: &Effective) -> Result<(), ConfigError> {
    let serve = &config.serve;
    if serve.claim.as_ref().is_some_and(|name| PoolName::new(name).is_none()) {
        let why = format!("the name of a pool is 1 to {POOL_NAME_MAX} letters, digits, - and _");
        return Err(config.refuse("serve.claim", why));
    }
    if !CLAIM_BEAT.contains(&serve.claim_beat) {
        return Err(config.refuse("serve.claim_beat", "accepted is 1s to 5m".to_owned()));
    }
    if !(serve.claim_beat * 3..=CLAIM_PATIENCE_MAX).contains(&serve.claim_patience) {
        return Err(config.refuse("serve.claim_patience", "accepted is three times serve.claim_beat, to 1h".to_owned()));
    }
    Ok(())
}

/// What a room says about its options as a whole.
fn check_bounds(config: &Effective) -> Result<(), ConfigError> {
    if let Err(error) = config.nbd.check() {
        return Err(config.refuse(&format!("nbd.{}", error.key), format!("accepted is {} to {}", error.min, error.max)));
    }
    if let Err(why) = config.nbd.check_access() {
        return Err(config.refuse("nbd.access", why));
    }
    for (at, listener) in config.serve.listeners.iter().enumerate() {
        if let Some(fault) = listener.fault() {
            return Err(config.refuse("serve.listeners", format!("listener {} {fault}", at + 1)));
        }
    }
    if !HANDOFF_TIMEOUT.contains(&config.serve.handoff_timeout) {
        return Err(config.refuse("serve.handoff_timeout", "accepted is 1s to 10m".to_owned()));
    }
    check_claim(config)?;
    if let Err((key, accepted)) = config.store.check_cooling() {
        return Err(config.refuse(&format!("store.{key}"), format!("accepted is {accepted}")));
    }
    if let Err((key, accepted)) = config.mirror.check() {
        return Err(config.refuse(&format!("mirror.{key}"), format!("accepted is {accepted}")));
    }
    if let Err((key, accepted)) = config.prices.check() {
        return Err(config.refuse(&format!("prices.{key}"), format!("accepted is {accepted}")));
    }
    if let Err((key, accepted)) = config.budget.check() {
        return Err(config.refuse(&format!("budget.{key}"), format!("accepted is {accepted}")));
    }
    if let Err(error) = config.volume.check() {
        return Err(config.refuse(&format!("volume.{}", error.key), format!("accepted is {}", error.accepted)));
    }
    if let Err((key, accepted)) = config.peer.check() {
        return Err(config.refuse(&format!("peer.{key}"), format!("accepted is {accepted}")));
    }
    if config.volume.durability == Durability::Peer && config.peer.address.is_none() {
        let why = "peer.address, which says where that is, is not set";
        return Err(config.refuse("volume.durability", why.to_owned()));
    }
    if let Err((key, accepted)) = config.cache.check() {
        return Err(config.refuse(&format!("cache.{key}"), format!("accepted is {accepted}")));
    }
    if let Err((key, accepted)) = config.metrics.check() {
        return Err(config.refuse(&format!("metrics.{key}"), format!("accepted is {accepted}")));
    }
    // A name is looked up at the start, and judged then.
    let address = config.metrics.listen.as_ref().and_then(|address| address.parse().ok());
    if let Some(fault) = address.and_then(|address| metrics::fault(&config.metrics, address)) {
        return Err(config.refuse("metrics.listen", fault));
    }
    if let Err((key, accepted)) = config.log.check() {
        return Err(config.refuse(&format!("log.{key}"), format!("accepted is {accepted}")));
    }
    Ok(())
}

/// The defaults as a tree: every key there is.
pub(super) fn known_keys() -> Result<Dict, ConfigError> {
    let tree = Value::serialize(Config::default()).ok().and_then(Value::into_dict);
    tree.ok_or(ConfigError::Defaults)
}

/// A key that has another name now, and is understood all the same.
const OLDER_KEY: [&str; 2] = ["store", "unsafe_no_fencing"];

/// Every key that is understood.
fn understood_keys() -> Result<Dict, ConfigError> {
    let [section, key] = OLDER_KEY;
    let mut known = known_keys()?;
    if let Some(Value::Dict(_, section)) = known.get_mut(section) {
        section.insert(key.to_owned(), Value::from(false));
    }
    Ok(known)
}

#[allow(clippy::disallowed_methods)] // the configuration file is read before there is a Disk
fn file_to_read(named: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    let path = match named {
        Some(path) => path,
        None if Path::new(FILE).exists() => FILE.into(),
        None => return Ok(None),
    };
    match std::fs::read_to_string(&path) {
        Ok(_) => Ok(Some(path)),
        Err(source) => Err(ConfigError::File { path, source }),
    }
}

fn file_layer(path: &Path, known: &Dict) -> Result<Layer, ConfigError> {
    let data = Toml::file_exact(path)
        .data()
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.kind.to_string() })?;
    for dict in data.values() {
        check_keys(&Place::File(path.to_owned()), dict, known, &mut Vec::new())?;
    }
    Ok(Layer { metadata: Metadata::from("file", path), data })
}

/// The layer of one variable; `None` if it is none of ours.
fn variable_layer(name: OsString, value: OsString, known: &Dict) -> Result<Option<Layer>, ConfigError> {
    let ours = |name: &&str| name.starts_with(ENVIRONMENT_PREFIX) && !name.starts_with(TEST_PREFIX);
    let Some(name) = name.to_str().filter(ours).map(str::to_owned) else { return Ok(None) };
    let key = name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase();
    let path: Vec<&str> = key.split("__").collect();
    let Some(value) = value.to_str() else {
        return Err(ConfigError::not_text(Place::Variable(name), path.join(".")));
    };
    let layer = Layer::of_text(VARIABLE, &name, &path, value, known);
    for dict in layer.data.values() {
        check_keys(&Place::Variable(name.clone()), dict, known, &mut Vec::new())?;
    }
    Ok(Some(layer))
}

/// What one file, variable or flag says, and its name.
struct Layer {
    metadata: Metadata,
    data: Map<Profile, Dict>,
}

impl Layer {
    /// The layer of a variable or a flag, which sets one key.
    fn of_text(kind: &str, name: &str, path: &[&str], text: &str, known: &Dict) -> Layer {
        let mut value = typed_like(lookup(known, path), text);
        for key in path.iter().rev() {
            value = Value::from(Dict::from([((*key).to_owned(), value)]));
        }
        let dict = value.into_dict().unwrap_or_default();
        let metadata = Metadata::from(name.to_owned(), Source::Custom(kind.to_owned()));
        Layer { metadata, data: Map::from([(Profile::Default, dict)]) }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Ok(self.data.clone())
    }
}

/// The default at a path.
fn lookup<'a>(known: &'a Dict, path: &[&str]) -> Option<&'a Value> {
    let (last, sections) = path.split_last()?;
    let mut dict = known;
    for section in sections {
        dict = dict.get(*section)?.as_dict()?;
    }
    dict.get(*last)
}

/// A variable and a flag have only text; what the text means follows from the default's type, so that a bucket may be
/// called `2024`.
fn typed_like(default: Option<&Value>, text: &str) -> Value {
    match default {
        Some(Value::String(..)) | None => Value::from(text),
        // A list of tables is written as in TOML.
        Some(Value::Array(..)) if text.trim_start().starts_with("[{") => {
            text.parse().unwrap_or_else(|_| Value::from(text))
        }
        Some(Value::Array(..)) => {
            let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
            Value::from(items)
        }
        // Numbers, booleans, and options that are not set by default. Parsing a value never fails.
        Some(_) => text.parse().unwrap_or_else(|_| Value::from(text)),
    }
}

/// Refuses the first key that the defaults do not have.
fn check_keys(place: &Place, dict: &Dict, known: &Dict, path: &mut Vec<String>) -> Result<(), ConfigError> {
    for (key, value) in dict {
        path.push(key.clone());
        match (known.get(key), value) {
            (None, _) => return Err(ConfigError::unknown_key(place, path, value, known)),
            (Some(Value::Dict(_, known)), Value::Dict(_, dict)) => check_keys(place, dict, known, path)?,
            (Some(Value::Dict(_, known)), _) => return Err(ConfigError::section(place, path, value, known)),
            (Some(_), _) => {}
        }
        path.pop();
    }
    Ok(())
}
