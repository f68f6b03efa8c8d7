//! How people name a snapshot, and what is served: `VOLUME@SNAPSHOT`, or just `VOLUME`.

use std::fmt;
use std::str::FromStr;

use crate::device::AT;
use crate::volume::VolumeName;

/// A volume, or a snapshot of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportName {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot, by the rules for names of volumes.
    pub snapshot: Option<VolumeName>,
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
        let snapshot = snapshot.map(parse_snapshot).transpose()?;
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

/// A snapshot of a volume.
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
            ExportName { volume, snapshot: Some(name) } => Ok(SnapshotName { volume, name }),
            ExportName { volume, snapshot: None } => Err(format!(
                "{text:?} names a volume and no snapshot; accepted is VOLUME{AT}NAME, and `ashlar snapshot list {volume}` shows which there \
                 are"
            )),
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
        for good in ["db", "db@monday", "db@20261128T021500Z-002"] {
            assert_eq!(good.parse::<ExportName>().unwrap().to_string(), good);
        }
        let refused = |text: &str| text.parse::<ExportName>().unwrap_err();
        assert_eq!(refused("@monday"), "a volume needs a name");
        assert!(refused("db@").starts_with("a snapshot cannot be named so: "), "{}", refused("db@"));
        assert!(refused("db@a@b").contains("contains '@'"), "{}", refused("db@a@b"));
    }

    #[test]
    fn a_snapshot_is_named_with_its_volume() {
        assert_eq!("db@monday".parse::<SnapshotName>().unwrap().to_string(), "db@monday");
        let refused = "db".parse::<SnapshotName>().unwrap_err();
        assert!(refused.contains("accepted is VOLUME@NAME"), "{refused}");
    }
}
