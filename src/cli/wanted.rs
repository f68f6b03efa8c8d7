//! What a server is to serve, as far as the configuration says: pure.

use super::export_name::ExportName;
use super::exports::ReadOnlyVolumes;
use super::failure::Failure;
use crate::config::{ALL, Effective};
use crate::volume::{OpenFlags, VolumeName};

/// The volumes and snapshots that the configuration names; none means every volume of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(Vec<ExportName>);

impl Wanted {
    /// Those of the configuration.
    pub fn of(config: &Effective) -> Result<Wanted, Failure> {
        let name = |name: &String| name.parse().map_err(|why: String| config.refuse("serve.volumes", why));
        Ok(Wanted(config.serve.volumes.iter().map(name).collect::<Result<_, _>>()?))
    }

    /// Whether it is every volume of the store.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// What is named.
    pub fn names(&self) -> &[ExportName] {
        &self.0
    }

    /// Whether it is snapshots and volumes to read alone: then nothing is opened for writing, and nothing is written.
    pub fn is_only_read(&self, read_only: &ReadOnlyVolumes) -> bool {
        let is_read = |name: &ExportName| name.snapshot.is_some() || read_only.contains(name.volume.as_str());
        if self.is_all() { read_only.is_all() } else { self.0.iter().all(is_read) }
    }

    /// The volumes of what is named, each once.
    pub fn volumes(&self) -> Vec<VolumeName> {
        let mut volumes: Vec<VolumeName> = self.0.iter().map(|name| name.volume.clone()).collect();
        volumes.sort();
        volumes.dedup();
        volumes
    }

    /// Whether that volume is named itself.
    pub fn has(&self, volume: &VolumeName) -> bool {
        self.0.iter().any(|name| name.volume == *volume && name.snapshot.is_none())
    }

    /// Refuses flags for the opening of volumes where none is opened.
    pub fn check_flags(&self, read_only: &ReadOnlyVolumes, flags: OpenFlags, wait: bool) -> Result<(), Failure> {
        if !self.is_only_read(read_only) || flags == OpenFlags::default() && !wait {
            return Ok(());
        }
        Err(Failure::usage(
            "--takeover, --accept-loss, --drop-journal, --accept-rollback, --accept-log-loss and --wait are for volumes that are written: what is only read is taken \
             from nobody, so leave them out",
        ))
    }
}

/// What no client may change, of what is served. A name that is not there is a slip: whatever was meant would be open to changes.
pub fn read_only(config: &Effective, served: &[ExportName]) -> Result<ReadOnlyVolumes, Failure> {
    let read_only = ReadOnlyVolumes::new(&config.serve.read_only);
    let names: Vec<String> = served.iter().map(ExportName::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match read_only.stranger(&names) {
        None => Ok(read_only),
        Some(name) => {
            let why = format!("{name} is none of the volumes that are served; name those, or give \"{ALL}\" for all");
            Err(config.refuse("serve.read_only", why).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(names: &[&str]) -> Wanted {
        Wanted(names.iter().map(|name| name.parse().unwrap()).collect())
    }

    #[test]
    fn what_is_only_read_is_not_written_and_needs_no_flags_for_that() {
        let takeover = OpenFlags { takeover: true, ..OpenFlags::default() };
        for (names, read_only, is_read) in [
            (&[][..], &[][..], false),
            (&[], &["a"], false),
            (&[], &[ALL], true),
            (&["a"], &[], false),
            (&["a"], &["a"], true),
            (&["a", "b"], &["a"], false),
            (&["a", "b"], &[ALL], true),
            (&["a@s", "b"], &[], false),
            (&["a@s", "b"], &["b"], true),
            (&["a@s", "a@t"], &[], true),
        ] {
            let read_only: Vec<String> = read_only.iter().map(|name| (*name).to_owned()).collect();
            let (wanted, read_only) = (wanted(names), ReadOnlyVolumes::new(&read_only));
            assert_eq!(wanted.is_only_read(&read_only), is_read, "{names:?}");
            assert_eq!(wanted.check_flags(&read_only, takeover, false).is_err(), is_read, "{names:?}");
            assert_eq!(wanted.check_flags(&read_only, OpenFlags::default(), true).is_err(), is_read, "{names:?}");
            assert!(wanted.check_flags(&read_only, OpenFlags::default(), false).is_ok(), "{names:?}");
        }
    }

    #[test]
    fn a_volume_of_which_only_a_snapshot_is_named_is_not_named_itself() {
        let wanted = wanted(&["b@s", "a", "b@t"]);
        let name = |name| VolumeName::new(name).unwrap();
        assert_eq!(wanted.volumes(), [name("a"), name("b")]);
        assert_eq!([name("a"), name("b"), name("c")].map(|name| wanted.has(&name)), [true, false, false]);
    }
}
