//! KEY=VALUE: a setting of one volume, as `ashlar set` and `ashlar create` take it.

use std::str::FromStr;

use super::failure::Failure;
use crate::config::Effective;
use crate::volume::{Settings, settings};

/// The section of the configuration in which most settings of a volume stand, and which need not be said.
const SECTION: &str = "volume.";

/// The name of a setting, such as `volume.durability`, or `durability` for short.
#[derive(Clone, Debug)]
pub struct SettingKey(pub String);

impl FromStr for SettingKey {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<SettingKey, Self::Err> {
        let long = format!("{SECTION}{text}");
        Ok(SettingKey(if settings::KEYS.contains(&long.as_str()) { long } else { text.to_owned() }))
    }
}

/// One setting with its value, in the spelling of the configuration.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key, whole.
    pub key: String,
    /// The value.
    pub value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Setting, String> {
        let (key, value) = text.split_once('=').ok_or("accepted is KEY=VALUE, such as durability=journal")?;
        let Ok(SettingKey(key)) = key.trim().parse();
        let value = settings::spelled(&key, value.trim()).map_err(|bad| bad.to_string())?;
        Ok(Setting { key, value })
    }
}

/// Those settings and these, of which the latter count, if they can be together and beside the configuration here.
pub fn with(were: &Settings, set: &[Setting], config: &Effective) -> Result<Settings, Failure> {
    let mut all = were.clone();
    all.extend(set.iter().map(|Setting { key, value }| (key.clone(), value.clone())));
    if !set.is_empty() {
        settings::tuned(&config.volume, &all).map_err(Failure::usage)?;
    }
    Ok(all)
}
