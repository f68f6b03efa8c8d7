//! What the probe found of stores ([`crate::store::probe`]), remembered in the state directory, so that not every start
//! pays for it: one small JSON file for each store, `probe-<hash of its URL and endpoint>`. Only what passed whole is remembered,
//! and not for ever. To have a store tried again: remove the file, or run `ashlar bench`.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::disk::Disk;
use crate::store::open::StoreOptions;
use crate::store::probe::{CreateOnly, Finding, VERSION};

/// After this a store is tried again: somebody may have put another one behind its address.
const LASTS: Duration = Duration::from_secs(30 * 86_400);

/// The longest file that is read.
const LONGEST: usize = 4096;

/// An outcome of the probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// The store's URL.
    pub url: String,
    /// Its endpoint, if one was named.
    pub endpoint: Option<String>,
    /// The version of the probe.
    pub version: u32,
    /// When: milliseconds since 1970.
    pub unix_millis: u64,
    /// What it found.
    pub found: Finding,
}

impl Probed {
    /// The outcome of now.
    pub fn new(options: &StoreOptions, unix_millis: u64, found: Finding) -> Probed {
        let (url, endpoint) = (options.url.clone(), options.endpoint());
        Probed { url, endpoint, version: VERSION, unix_millis, found }
    }

    /// Whether it says today that the store may be written to, in the way that is configured.
    fn counts(&self, options: &StoreOptions, unix_millis: u64) -> bool {
        let age = unix_millis.checked_sub(self.unix_millis).map(Duration::from_millis);
        *self == Probed::new(options, self.unix_millis, self.found)
            && self.found.is_enough_for(options.fencing())
            && self.found.is_whole()
            && age.is_some_and(|age| age < LASTS)
    }
}

fn file_of(options: &StoreOptions) -> String {
    let place = format!("{}\n{}", options.url, options.endpoint().unwrap_or_default());
    format!("probe-{}", &blake3::hash(place.as_bytes()).to_hex()[..16])
}

/// What is remembered of the store and still counts.
pub async fn recall(disk: &dyn Disk, options: &StoreOptions, unix_millis: u64) -> Option<Probed> {
    let read = async { disk.open(&file_of(options)).await?.read_at(0, LONGEST).await };
    let probed: Probed = serde_json::from_slice(&read.await.ok()?).ok()?;
    probed.counts(options, unix_millis).then_some(probed)
}

/// Whether the store ever passed, however long ago.
pub async fn is_known(disk: &dyn Disk, options: &StoreOptions) -> bool {
    disk.open(&file_of(options)).await.is_ok()
}

/// Remembers what passed; in a state directory that is there already, unless `makes_directory`. That it cannot costs a probe
/// with the next start.
pub async fn remember(disk: &dyn Disk, options: &StoreOptions, probed: &Probed, makes_directory: bool) {
    let file = file_of(options);
    let write = async {
        // A refusal of the condition may have been something else that passes: it is asked for again each time.
        let is_sure = probed.found.is_whole() && probed.found.create_only != CreateOnly::Refused;
        let passed = is_sure && probed.found.is_enough_for(options.fencing());
        if !passed || !makes_directory && disk.list("").await?.is_empty() {
            return Ok(());
        }
        disk.remove(&file).await?;
        let json = serde_json::to_vec(probed).map_err(std::io::Error::other)?;
        let created = disk.create(&file).await?;
        created.write_at(0, vec![Bytes::from(json)]).await?;
        created.sync().await
    };
    if let Err(error) = write.await {
        debug!("what the probe found is not remembered: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::crash::CrashDisk;
    use crate::store::probe::{CutPut, Looks};

    const GOOD: Finding = Finding { create_only: CreateOnly::Honoured, cut_put: CutPut::Half, looks: Looks::NotTried };

    fn options(url: &str) -> StoreOptions {
        StoreOptions { url: url.into(), ..StoreOptions::default() }
    }

    async fn begun() -> CrashDisk {
        let disk = CrashDisk::new(1);
        disk.create("server-id").await.unwrap();
        disk
    }

    #[tokio::test]
    async fn what_passed_is_remembered_for_this_store_this_probe_and_a_month() {
        let (disk, options) = (begun().await, options("s3://disks"));
        let day = |n: u64| n * 86_400_000;
        let probed = Probed::new(&options, day(100), GOOD);
        remember(&disk, &options, &probed, false).await;
        for (now, counts) in [(day(100), true), (day(129), true), (day(130), false), (day(99), false)] {
            assert_eq!(recall(&disk, &options, now).await.is_some(), counts, "{now}");
        }
        assert_eq!(recall(&disk, &self::options("s3://other"), day(100)).await, None);
        let mut elsewhere = options.clone();
        elsewhere.s3.endpoint = Some("http://127.0.0.1:1".into());
        assert_eq!(recall(&disk, &elsewhere, day(100)).await, None);
        let (in_azure, mut of_another) = (self::options("az://disks"), self::options("az://disks"));
        of_another.azure.account = Some("another".into());
        remember(&disk, &in_azure, &Probed::new(&in_azure, day(100), GOOD), false).await;
        assert!(recall(&disk, &in_azure, day(100)).await.is_some());
        assert_eq!(recall(&disk, &of_another, day(100)).await, None);
        let older = Probed { version: VERSION - 1, ..probed.clone() };
        remember(&disk, &options, &older, false).await;
        assert_eq!(recall(&disk, &options, day(100)).await, None);
        remember(&disk, &options, &probed, false).await;
        assert_eq!(recall(&disk, &options, day(100)).await, Some(probed));
    }

    #[tokio::test]
    async fn what_failed_or_was_tried_in_part_is_not_remembered_nor_is_a_directory_made_unasked() {
        let options = options("s3://disks");
        let disk = begun().await;
        for not in [CreateOnly::Raced { keys: 1, most: 2 }, CreateOnly::Unfinished { keys: 15 }] {
            let probed = Probed::new(&options, 1, Finding { create_only: not, ..GOOD });
            remember(&disk, &options, &probed, true).await;
            assert_eq!(disk.list("").await.unwrap(), ["server-id"]);
            assert!(!probed.counts(&options, 2), "{not:?}");
        }
        let none = CrashDisk::new(1);
        remember(&none, &options, &Probed::new(&options, 1, GOOD), false).await;
        assert_eq!(none.list("").await.unwrap().len(), 0);
        remember(&none, &options, &Probed::new(&options, 1, GOOD), true).await;
        assert_eq!(none.list("").await.unwrap().len(), 1);
    }
}
