//! An encrypted volume against somebody who can read and write its bucket: nothing can be read, nothing can be put in the
//! place of something else, and an old state does not pass for the present one. And what an owner does: rotate, recompress.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, fails

#[path = "support/outside.rs"]
mod outside;

use std::sync::Arc;
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::cache::disk::DiskTier;
use ashlar::check::Report;
use ashlar::codec::frame::Compression;
use ashlar::device::Device;
use ashlar::disk::Disk;
use ashlar::disk::crash::CrashDisk;
use ashlar::gc;
use ashlar::journal;
use ashlar::keyring::slot::Cost;
use ashlar::keyring::unlock::SecretSource;
use ashlar::keyring::{Secret, Secrets};
use ashlar::opening::key_slots::Slots;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::space::Label;
use ashlar::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{Key, Store};
use ashlar::volume::{
    self, CreateOptions, NewEncryption, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError, VolumeName,
};
use async_trait::async_trait;
use bytes::Bytes;

const SIZE: u64 = 64 << 20;
const MIB: usize = 1 << 20;

struct KeyFile(u8);

#[async_trait]
impl SecretSource for KeyFile {
    async fn secrets(&self, _volume: &str) -> Result<Vec<Secret>, String> {
        Ok(vec![secret(self.0)])
    }
}

struct Passphrase(String);

#[async_trait]
impl SecretSource for Passphrase {
    async fn secrets(&self, _volume: &str) -> Result<Vec<Secret>, String> {
        Ok(vec![Secret::Passphrase(self.0.clone().into())])
    }
}

fn secret(byte: u8) -> Secret {
    Secret::key_file(vec![byte; 32].into()).unwrap()
}

fn secrets() -> Secrets {
    Secrets::new(Arc::new(KeyFile(7)), Workers::Inline)
}

/// Volumes of one owner in one bucket.
struct World {
    store: MemoryStore,
    disk: CrashDisk,
    cache: CrashDisk,
    random: Random,
}

impl World {
    async fn new() -> World {
        let world = World {
            store: MemoryStore::new(),
            disk: CrashDisk::new(1),
            cache: CrashDisk::new(2),
            random: Random::seeded(1),
        };
        world.create("v").await;
        world
    }

    async fn create(&self, name: &str) {
        let options = CreateOptions {
            size: SIZE,
            encryption: Some(NewEncryption { secret: secret(7), cost: Cost::LEAST, recovery: true }),
            ..CreateOptions::default()
        };
        volume::create(&self.store, &self.random, &Clock::System, &VolumeName::new(name).unwrap(), options)
            .await
            .unwrap();
    }

    async fn try_open_with(&self, name: &str, secrets: Secrets, flags: OpenFlags) -> Result<Arc<Volume>, VolumeError> {
        // Everything takes a while, so that a rotation can be caught half-way.
        let delay = FaultOptions { delay_min: Duration::from_millis(1), ..FaultOptions::default() };
        let outside = Outside {
            cache: Arc::new(BlockCache::new(MIB as u64, Some(DiskTier::start(Arc::new(self.cache.clone()), 64 << 20)))),
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(1), name: "a-telling-host-name".into() },
            secrets,
            ..outside::plain(
                Arc::new(FaultyStore::new(Arc::new(self.store.clone()), delay, Random::seeded(3))),
                Arc::new(self.disk.clone()),
                self.random.clone(),
            )
        };
        // Small steps, for the same reason.
        let gc = gc::Options { batch: 2 << 20, ..gc::Options::default() };
        let options = Options { segment_size: 256 << 10, gc, ..Options::default() };
        let name = VolumeName::new(name).unwrap();
        Volume::open(outside, &name, options, journal::Options::default(), flags).await
    }

    async fn open(&self) -> Arc<Volume> {
        self.try_open_with("v", secrets(), OpenFlags::default()).await.unwrap()
    }

    async fn write_and_close(&self, text: &[u8]) {
        let volume = self.open().await;
        volume.write(0, repeated(text, MIB), false).await.unwrap();
        volume.close().await.unwrap();
    }

    /// Whether the volume checks out, every frame of it; an error counts as not.
    async fn is_sound(store: &MemoryStore) -> Result<Report, String> {
        let store: Arc<dyn Store> = Arc::new(store.clone());
        let name = VolumeName::new("v").unwrap();
        let report = ashlar::check::check(&store, &name, true, &|_, _| {}, &secrets()).await;
        match report.map_err(|error| error.to_string())? {
            report if report.is_clean() => Ok(report),
            report => Err(report.problems[0].what.clone()),
        }
    }

    fn slots<'a>(&'a self, name: &'a VolumeName, secrets: &'a Secrets) -> Slots<'a> {
        Slots { store: &self.store, name, secrets, random: &self.random, clock: &Clock::System }
    }

    async fn rotate(&self) {
        let name = VolumeName::new("v").unwrap();
        self.slots(&name, &secrets()).rotate(Cost::LEAST).await.unwrap().outcome.unwrap();
    }

    /// The generations that seal what is in the store.
    fn generations(&self) -> Vec<u8> {
        let objects = self.store.objects().into_iter().filter(|(key, _)| !key.as_str().contains("/meta/"));
        let mut generations: Vec<u8> = objects.map(|(_, body)| body[16]).collect();
        generations.sort_unstable();
        generations.dedup();
        generations
    }
}

fn repeated(text: &[u8], len: usize) -> Bytes {
    text.iter().copied().cycle().take(len).collect()
}

fn noise(seed: u64, len: usize) -> Bytes {
    let mut data = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data.into()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(start_paused = true)]
async fn nothing_in_the_bucket_can_be_read_and_thin_compressed_trimmed_stays_so() {
    let world = World::new().await;
    let volume = world.open().await;
    volume.write(0, repeated(b"the quick brown fox. ", 4 * MIB), false).await.unwrap();
    volume.write(8 << 20, noise(1, MIB), false).await.unwrap();
    volume.flush().await.unwrap();
    assert!(world.store.total_bytes() < 2 * MIB as u64, "text is compressed before it is sealed");
    volume.trim(8 << 20, MIB as u64, false).await.unwrap();
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    volume.close().await.unwrap();
    assert!(world.store.total_bytes() < MIB as u64 / 2, "what was trimmed is deleted");
    let noise = noise(1, MIB);
    for (key, body) in world.store.objects() {
        for secret in [&b"quick brown"[..], b"a-telling-host-name", &noise[..16], &[7; 32]] {
            assert!(!contains(&body, secret), "{key}");
        }
    }
    // Nor on the server's own disks: the cache holds what was written and read, the journal what is not in the store.
    let volume = world.open().await;
    volume.write(0, repeated(b"only in the journal. ", MIB), false).await.unwrap();
    for (disk, least) in [(&world.disk, MIB), (&world.cache, MIB / 8)] {
        let mut bytes = 0;
        for name in disk.list("").await.unwrap() {
            let content = disk.open(&name).await.unwrap().read_at(0, 64 << 20).await.unwrap();
            for secret in [&b"in the journal"[..], b"quick brown", &noise[..16]] {
                assert!(!contains(&content, secret), "{name}");
            }
            bytes += content.len();
        }
        assert!(bytes >= least, "{bytes} bytes are worth a look");
    }
}

#[tokio::test]
async fn it_opens_with_its_own_key_only() {
    let world = World::new().await;
    let wrong = Secrets::new(Arc::new(KeyFile(8)), Workers::Inline);
    for secrets in [Secrets::default(), wrong] {
        let error = world.try_open_with("v", secrets, OpenFlags::default()).await.unwrap_err();
        assert!(matches!(error, VolumeError::Locked { .. }), "{error}");
    }
}

/// Every object is put in the place of every other one of its kind, in its own volume and in another of the same owner
/// with the same key, and cut, and changed: none of it goes unnoticed, and no read returns other data than was written.
#[tokio::test]
async fn an_object_passes_only_as_itself() {
    let world = World::new().await;
    world.create("w").await;
    for name in ["v", "w"] {
        let volume = world.try_open_with(name, secrets(), OpenFlags::default()).await.unwrap();
        for part in 0..4 {
            volume.write(part * MIB as u64, noise(part, MIB / 4), true).await.unwrap();
        }
        volume.close().await.unwrap();
        // The next volume has a disk of its own.
        for file in world.disk.list("").await.unwrap() {
            world.disk.remove(&file).await.unwrap();
        }
    }
    World::is_sound(&world.store).await.unwrap();
    let all = world.store.objects();
    let needed: Vec<&(Key, Bytes)> = all.iter().filter(|(key, _)| is_needed(key)).collect();
    let mut tried = 0;
    for (place, good) in &needed {
        let elsewhere =
            all.iter().filter(|(key, _)| key != place && kind(key) == kind(place)).map(|(_, body)| body.clone());
        let cut = [good.slice(..good.len() - 1), good.slice(..good.len() / 2), Bytes::new()];
        let middle = flipped(good, good.len() / 2);
        let spliced = all.iter().find(|(key, body)| key != place && kind(key) == kind(place) && body.len() > 100);
        let spliced = spliced.map(|(_, body)| Bytes::from([&good[..48], &body[48..]].concat()));
        for bad in elsewhere.chain(cut).chain([middle]).chain(spliced) {
            let attacked = world.store.fork();
            attacked.replace(place, bad);
            let found = World::is_sound(&attacked).await;
            assert!(found.is_err(), "{place} was changed, and nobody noticed");
            tried += 1;
        }
        // Without the checkpoint the log tells the same.
        let attacked = world.store.fork();
        attacked.remove(place);
        let is_noticed = World::is_sound(&attacked).await.is_err();
        assert_eq!(is_noticed, kind(place) != "checkpoints", "{place} was removed");
    }
    assert!(tried > 50, "{tried} attacks");
}

/// Of the volume v: its description, its checkpoints, its segments with data. Its fence and its close are covered by the
/// checkpoint.
fn is_needed(key: &Key) -> bool {
    let name = key.as_str();
    let seq = || u64::from_str_radix(name.rsplit('/').next().unwrap(), 16).unwrap();
    name.starts_with("v/") && (kind(key) != "segments" || (2..6).contains(&seq()))
}

fn kind(key: &Key) -> &str {
    key.as_str().split('/').find(|part| ["meta", "segments", "checkpoints"].contains(part)).unwrap()
}

fn flipped(good: &Bytes, at: usize) -> Bytes {
    let mut bad = good.to_vec();
    bad[at] ^= 1;
    bad.into()
}

#[tokio::test]
async fn an_older_state_of_the_bucket_is_noticed_by_a_server_that_saw_a_newer_one() {
    let world = World::new().await;
    world.write_and_close(b"first").await;
    let old = world.store.fork();
    world.write_and_close(b"second").await;
    let put_back =
        World { store: old, disk: world.disk.clone(), cache: CrashDisk::new(3), random: world.random.clone() };
    let error = put_back.try_open_with("v", secrets(), OpenFlags::default()).await.unwrap_err();
    assert!(matches!(error, VolumeError::RolledBack { .. }), "{error}");
    assert!(put_back.store.object_count() > 0, "nothing was changed");
    // The log cut short, as if the last segments had never been.
    let cut = world.store.fork();
    let last = cut.objects().into_iter().filter(|(key, _)| key.as_str().contains("/checkpoints/")).last().unwrap().0;
    cut.remove(&last);
    for (key, _) in cut.objects().into_iter().filter(|(key, _)| key.as_str().contains("/segments/")).rev().take(2) {
        cut.remove(&key);
    }
    let cut = World { store: cut, disk: world.disk.clone(), cache: CrashDisk::new(3), random: world.random.clone() };
    assert!(cut.try_open_with("v", secrets(), OpenFlags::default()).await.is_err());
    // Whoever did it on purpose says so, once.
    let accept = OpenFlags { accept_rollback: true, ..OpenFlags::default() };
    let volume = put_back.try_open_with("v", secrets(), accept).await.unwrap();
    assert!(volume.read(0, 5).await.unwrap().concat() == b"first");
    volume.close().await.unwrap();
    // Its epochs come once more. A device that knew the last one of before must not go on with a later one.
    for _ in 0..3 {
        let volume = put_back.try_open_with("v", secrets(), OpenFlags::default()).await.unwrap();
        let (epoch, _, since) = volume.line();
        assert!(since.0 > 2, "epoch {epoch}, unbroken since {since}, and 2 was seen");
        volume.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_seen_must_be_readable_so_that_nobody_turns_the_notice_off() {
    let world = World::new().await;
    world.write_and_close(b"first").await;
    let old = world.store.fork();
    world.write_and_close(b"second").await;
    let name = world.disk.list("").await.unwrap().into_iter().find(|name| name.starts_with("seen-")).unwrap();
    assert!(world.disk.damage(&name, 10, 1));
    let accept = OpenFlags { accept_rollback: true, ..OpenFlags::default() };
    for store in [old, world.store.fork()] {
        let world = World { store, disk: world.disk.copy(4), cache: CrashDisk::new(3), random: world.random.clone() };
        let error = world.try_open_with("v", secrets(), OpenFlags::default()).await.unwrap_err();
        assert!(matches!(error, VolumeError::SeenUnreadable { .. }), "{error}");
        assert!(error.to_string().contains("--accept-rollback") && error.to_string().contains(&name), "{error}");
        world.try_open_with("v", secrets(), accept).await.unwrap().close().await.unwrap();
        // What was seen now is readable.
        world.try_open_with("v", secrets(), OpenFlags::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_plain_volume_in_the_place_of_an_encrypted_one_is_refused() {
    let world = World::new().await;
    world.write_and_close(b"secret").await;
    for (key, _) in world.store.objects() {
        world.store.remove(&key);
    }
    let options = CreateOptions { size: SIZE, ..CreateOptions::default() };
    volume::create(&world.store, &world.random, &Clock::System, &VolumeName::new("v").unwrap(), options).await.unwrap();
    let required = secrets().requiring_encryption(true);
    let error = world.try_open_with("v", required, OpenFlags::default()).await.unwrap_err();
    assert!(matches!(error, VolumeError::Locked { .. }), "{error}");
    // A server that had it encrypted notices even without that setting.
    let error = world.try_open_with("v", secrets(), OpenFlags::default()).await.unwrap_err();
    assert!(error.to_string().contains("this server saw it"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_seals_everything_anew_goes_on_after_a_crash_and_locks_out_the_old_key() {
    let world = World::new().await;
    let volume = world.open().await;
    for part in 0..16 {
        volume.write(part * MIB as u64, noise(part, MIB), false).await.unwrap();
    }
    volume.close().await.unwrap();
    let before = world.store.fork();
    assert_eq!(world.generations(), [1]);
    world.rotate().await;
    // Killed in the middle of it.
    let volume = world.open().await;
    let all = volume.status().retired_bytes;
    while volume.status().retired_bytes == all {
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    drop(volume);
    tokio::task::yield_now().await;
    assert_eq!(world.generations(), [1, 2]);
    let volume = world.open().await;
    assert!(volume.status().retired_bytes <= all);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(volume.status().retired_bytes, 0);
    assert_eq!(world.generations(), [2], "nothing is left that the old key opens");
    for part in 0..16 {
        assert_eq!(volume.read(part * MIB as u64, MIB as u32).await.unwrap().concat(), noise(part, MIB));
    }
    volume.close().await.unwrap();
    World::is_sound(&world.store).await.unwrap();
    // The description of before, with its slots, does not go with the objects of now: somebody with the old data key
    // and the old slots reads nothing new.
    let mixed = world.store.fork();
    for (key, body) in before.objects().into_iter().filter(|(key, _)| key.as_str().contains("/meta/")) {
        mixed.replace(&key, body);
    }
    for (key, _) in mixed.objects().into_iter().filter(|(key, _)| key.as_str().ends_with("/meta/0000000000000002")) {
        mixed.remove(&key);
    }
    let error = World::is_sound(&mixed).await.unwrap_err();
    assert!(error.contains("data key 2, which the volume's description does not list"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_reaches_an_open_volume_and_what_it_writes() {
    let world = World::new().await;
    let volume = world.open().await;
    volume.write(0, noise(1, MIB), false).await.unwrap();
    volume.flush().await.unwrap();
    world.rotate().await;
    volume.write(MIB as u64, noise(2, MIB), true).await.unwrap();
    assert_eq!(world.generations(), [1], "nobody has told the server");
    volume.reload().await.unwrap();
    volume.write(2 * MIB as u64, noise(3, MIB), true).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(volume.status().retired_bytes, 0);
    assert_eq!(world.generations(), [2]);
    // The journal goes on with both keys.
    volume.write(3 * MIB as u64, noise(4, MIB), false).await.unwrap();
    drop(volume);
    tokio::task::yield_now().await;
    let volume = world.open().await;
    for part in 0..4 {
        assert_eq!(volume.read(part * MIB as u64, MIB as u32).await.unwrap().concat(), noise(part + 1, MIB));
    }
}

/// The PUT of the new description took effect, and its answer was lost: the old recovery key opens nothing any more.
#[tokio::test]
async fn the_recovery_key_of_a_rotation_that_failed_is_there() {
    let world = World::new().await;
    let faulty = FaultyStore::new(Arc::new(world.store.clone()), FaultOptions::default(), Random::seeded(3));
    faulty.faults().set_trap(Counted::Mutations, 1, Trap::FailAfter);
    let (name, with) = (VolumeName::new("v").unwrap(), secrets());
    let slots = Slots { store: &faulty, ..world.slots(&name, &with) };
    let rotation = slots.rotate(Cost::LEAST).await.unwrap();
    assert!(rotation.outcome.is_err());
    let source = Arc::new(Passphrase(rotation.recovery.unwrap().to_text().to_string()));
    let found = volume::description::load(&world.store, &name).await.unwrap();
    found.unlock(&Secrets::new(source, Workers::Inline)).await.unwrap();
}

#[tokio::test]
async fn compression_changes_at_any_time_and_old_frames_are_read() {
    let world = World::new().await;
    let name = VolumeName::new("v").unwrap();
    let mut at = 0;
    for compression in [Compression::Lz4, Compression::Zstd(3), Compression::None, Compression::Zstd(19)] {
        let found = volume::description::load(&world.store, &name).await.unwrap();
        let sealer = found.unlock(&secrets()).await.unwrap();
        let meta = volume::Meta { compression, ..found.meta.clone() };
        found.replace(&world.store, &Random::seeded(9), &meta, sealer.keyring()).await.unwrap();
        let volume = world.open().await;
        volume.write(at, repeated(b"worked stone ", MIB), false).await.unwrap();
        volume.write(at + MIB as u64, noise(at, MIB), false).await.unwrap();
        volume.close().await.unwrap();
        at += 2 * MIB as u64;
    }
    let volume = world.open().await;
    for at in (0..at).step_by(2 * MIB) {
        assert_eq!(volume.read(at, MIB as u32).await.unwrap().concat(), repeated(b"worked stone ", MIB));
        assert_eq!(volume.read(at + MIB as u64, MIB as u32).await.unwrap().concat(), noise(at, MIB));
    }
    volume.close().await.unwrap();
    World::is_sound(&world.store).await.unwrap();
}

/// Who has not the key cannot read which snapshots there are, and deletes none that is to be kept all the same.
#[tokio::test(start_paused = true)]
async fn a_locked_volume_with_a_snapshot_that_is_to_be_kept_is_not_deleted() {
    let world = World::new().await;
    world.write_and_close(b"secret").await;
    let delete = async |now: u64| {
        let (store, name): (Arc<dyn Store>, _) = (Arc::new(world.store.clone()), VolumeName::new("v").unwrap());
        let clock = Clock::Manual(Arc::new(now.into()));
        let server = ServerIdentity { uuid: uuid::Uuid::from_u128(9), name: "nine".into() };
        volume::delete(&store, &world.random, &clock, &server, &name, true, &Secrets::default(), &|_| ()).await
    };
    const FAR: u64 = 4_102_444_800_000;
    let volume = world.open().await;
    let label = Label { name: "audit".into(), taken_unix_millis: 1, keep_until_unix_millis: FAR, ..Label::default() };
    volume.take_snapshot(label).await.unwrap();
    volume.close().await.unwrap();
    let refused = delete(FAR - 1).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("volume v may have snapshots that are to be kept until 2100-01-01T00:00:00Z, "),
        "{refused}"
    );
    delete(FAR).await.unwrap();
}
