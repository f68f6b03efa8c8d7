//! How people name a snapshot, and what is served: `VOLUME@SNAPSHOT`, or just `VOLUME`. Whoever only reads may give a time in the place of the
//! snapshot's name.

use std::fmt;
use std::str::FromStr;

use crate::device::AT;
use crate::human::parse_date;
use crate::volume::VolumeName;

/// A volume, or a snapshot of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportName {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot.
    pub snapshot: Option<Which>,
}

impl From<VolumeName> for ExportName {
    fn from(volume: VolumeName) -> ExportName {
        ExportName { volume, snapshot: None }
    }
}

impl FromStr for ExportName {
    type Err = String;

    fn from_str(text: &str) -> Result<ExportName, String> {
        let (volume, snapshot) = text.split_once(AT).map_or((text, None), |(volume, name)| (volume, Some(name)));
        let volume = VolumeName::new(volume).map_err(|bad| bad.to_string())?;
        let snapshot = snapshot.map(Which::from_str).transpose()?;
        Ok(ExportName { volume, snapshot })
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Some(snapshot) => write!(f, "{}{AT}{snapshot}", self.volume),
            None => self.volume.fmt(f),
        }
    }
}

/// The name of a snapshot, by the rules for names of volumes; or a time, which means the newest that was not taken later. Some texts are
/// both: then a snapshot of that name is meant, if there is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Which(String);

impl Which {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Which, String> {
        // What has a colon can be no name.
        match text.contains(':') {
            true => parse_date(text).map(drop).map_err(|bad| bad.to_string())?,
            false => parse_snapshot(text).map(drop)?,
        }
        Ok(Which(text.to_owned()))
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A snapshot of a volume, by name or by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOrTime {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot.
    pub which: Which,
}

impl FromStr for SnapshotOrTime {
    type Err = String;

    fn from_str(text: &str) -> Result<SnapshotOrTime, String> {
        match text.parse()? {
            ExportName { volume, snapshot: Some(which) } => Ok(SnapshotOrTime { volume, which }),
            ExportName { volume, snapshot: None } => Err(no_name(text, &volume)),
        }
    }
}

fn no_name(text: &str, volume: &VolumeName) -> String {
    format!(
        "{text:?} names a volume and no snapshot; accepted is VOLUME{AT}NAME, and `ashlar snapshot list {volume}` shows which there are"
    )
}

/// A snapshot of a volume, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot.
    pub name: VolumeName,
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<SnapshotName, String> {
        match text.parse()? {
            ExportName { volume, snapshot: Some(name) } => {
                Ok(SnapshotName { volume, name: parse_snapshot(name.as_str())? })
            }
            ExportName { volume, snapshot: None } => Err(no_name(text, &volume)),
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{AT}{}", self.volume, self.name)
    }
}

/// The name of a snapshot alone.
pub fn parse_snapshot(text: &str) -> Result<VolumeName, String> {
    VolumeName::new(text).map_err(|bad| format!("a snapshot cannot be named so: {bad}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_a_volume_or_a_snapshot_of_it_and_is_written_as_it_is_read() {
        for good in ["db", "db@monday", "db@20261128T021500Z-002", "db@2026-11-27T04:00", "db@2026-11-27T04:00:30Z"] {
            assert_eq!(good.parse::<ExportName>().unwrap().to_string(), good);
        }
        let refused = |text: &str| text.parse::<ExportName>().unwrap_err();
        assert_eq!(refused("@monday"), "a volume needs a name");
        assert!(refused("db@").starts_with("a snapshot cannot be named so: "), "{}", refused("db@"));
        assert!(refused("db@04:00").starts_with("\"04:00\" is not a time; "), "{}", refused("db@04:00"));
        assert!(refused("db@a@b").contains("contains '@'"), "{}", refused("db@a@b"));
    }

    #[test]
    fn a_snapshot_is_named_with_its_volume() {
        assert_eq!("db@monday".parse::<SnapshotName>().unwrap().to_string(), "db@monday");
        // A time names none: what is renamed or deleted is to be exactly what was meant.
        let refused = "db@2026-11-27T04:00".parse::<SnapshotName>().unwrap_err();
        assert!(refused.contains("contains ':'"), "{refused}");
        assert_eq!("db@2026-11-27T04:00".parse::<SnapshotOrTime>().unwrap().which.as_str(), "2026-11-27T04:00");
        assert!("db".parse::<SnapshotOrTime>().unwrap_err().contains("accepted is VOLUME@NAME"));
        let refused = "db".parse::<SnapshotName>().unwrap_err();
        assert!(refused.contains("accepted is VOLUME@NAME"), "{refused}");
    }
}
