//! A peer that keeps a copy of the journal: whatever happens to the network, to either server or to the store, what a client was answered for is there when the peer takes the
//! volume over, and nobody is answered by the word of a peer that may have stopped listening.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, stops

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ashlar::cache::BlockCache;
use ashlar::change::{Change, Numbered};
use ashlar::codec::seal::Sealer;
use ashlar::device::{Device, DeviceError};
use ashlar::disk::Disk;
use ashlar::disk::crash::{CrashDisk, DiskFaults};
use ashlar::format::segment::Durability;
use ashlar::journal;
use ashlar::keyring::Secrets;
use ashlar::outside::{Clock, Random, Workers};
use ashlar::peer;
use ashlar::peer::keeper::Keeper;
use ashlar::peer::standby::{Link, Pipe, WaitsFor};
use ashlar::peer::stream::{Origin, Stream};
use ashlar::peer::wire::{self, Message, Role, Secret};
use ashlar::store::memory::MemoryStore;
use ashlar::store::{ErrorKind, Key, ListPage, Result as Answer, Store, StoreError};
use ashlar::units::{BlockSize, ChangeNo, Epoch, Extent};
use ashlar::volume::{
    self, Beside, Budget, CreateOptions, OpenFlags, Options, Outside, ServerIdentity, Volume, VolumeError, VolumeName,
    Witness,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{sleep, timeout};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 16;

fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

/// A store that takes its time for a PUT, and may be away.
#[derive(Debug, Default)]
struct Far {
    objects: MemoryStore,
    is_away: AtomicBool,
    refuses_puts: AtomicBool,
    puts: AtomicU64,
}

impl Far {
    fn away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    fn answer(&self) -> Answer<()> {
        match self.is_away.load(Ordering::Relaxed) {
            true => Err(StoreError::new(ErrorKind::Retryable, "the store is away")),
            false => Ok(()),
        }
    }

    fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for Far {
    fn url(&self) -> String {
        "far://".into()
    }
    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Answer<()> {
        sleep(Duration::from_millis(20)).await;
        self.answer()?;
        if self.refuses_puts.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Retryable, "nothing can be put"));
        }
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.objects.put(key, body).await
    }
    async fn get_range(&self, key: &Key, range: Range<u64>) -> Answer<Bytes> {
        self.answer()?;
        self.objects.get_range(key, range).await
    }
    async fn get(&self, key: &Key) -> Answer<Bytes> {
        self.answer()?;
        self.objects.get(key).await
    }
    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Answer<ListPage> {
        self.answer()?;
        self.objects.list(prefix, start_after).await
    }
    async fn list_top(&self) -> Answer<Vec<String>> {
        self.answer()?;
        self.objects.list_top().await
    }
    async fn delete(&self, keys: &[Key]) -> Answer<()> {
        self.answer()?;
        self.objects.delete(keys).await
    }
}

/// The network between the two servers.
#[derive(Clone, Default)]
struct Net {
    is_cut: Arc<AtomicBool>,
    keeper: Arc<Mutex<Option<Keeper>>>,
}

impl Net {
    fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    /// A connection; nothing goes on over it once the network was cut, and nobody is told.
    fn dial(&self) -> io::Result<Box<dyn Pipe>> {
        let keeper = self.keeper.lock().clone().filter(|_| !self.is_cut.load(Ordering::Relaxed));
        let Some(keeper) = keeper else { return Err(io::Error::other("nobody listens")) };
        let (near, near_far) = duplex(8 << 10);
        let (far_near, far) = duplex(8 << 10);
        let (a, b) = tokio::io::split(near_far);
        let (c, d) = tokio::io::split(far_near);
        tokio::spawn(pump(a, d, self.is_cut.clone()));
        tokio::spawn(pump(c, b, self.is_cut.clone()));
        tokio::spawn(async move { keeper.serve(far, "a").await });
        Ok(Box::new(near))
    }
}

async fn pump(
    mut from: tokio::io::ReadHalf<DuplexStream>,
    mut to: tokio::io::WriteHalf<DuplexStream>,
    is_cut: Arc<AtomicBool>,
) {
    let mut bytes = [0; 1024];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if is_cut.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            drop(to.shutdown().await);
            return;
        }
    }
}

struct World {
    store: Arc<Far>,
    random: Random,
    /// The hosts' disks: of the server, and of its peer.
    disks: [CrashDisk; 2],
    net: Net,
    options: peer::Options,
}

fn secret() -> Secret {
    Secret::of(b"0123456789abcdef0123456789abcdef").unwrap()
}

fn options() -> Options {
    Options {
        durability: Durability::Peer,
        segment_size: 64 << 10,
        segment_size_max: 64 << 10,
        checkpoint_interval: Duration::from_secs(3600),
        writeback_delay: Duration::from_secs(3600),
        ..Options::default()
    }
}

const TAKEOVER: OpenFlags = OpenFlags {
    takeover: true,
    accept_loss: false,
    drop_journal: false,
    accept_rollback: false,
    accept_log_loss: false,
    breaks_line: false,
};

impl World {
    async fn new(seed: u64) -> World {
        let world = World {
            store: Arc::default(),
            random: Random::seeded(seed),
            disks: [CrashDisk::new(seed), CrashDisk::new(seed + 1)],
            net: Net::default(),
            options: peer::Options::default(),
        };
        let options = CreateOptions { size: BLOCKS * BLOCK, ..CreateOptions::default() };
        volume::create(&*world.store, &world.random, &Clock::System, &name(), options).await.unwrap();
        world.start_keeper();
        world
    }

    async fn volume(&self) -> uuid::Uuid {
        volume::description::load(&*self.store, &name()).await.unwrap().meta.uuid
    }

    fn keeper(&self) -> Keeper {
        self.net.keeper.lock().clone().unwrap()
    }

    /// The peer's process begins.
    fn start_keeper(&self) {
        let disk: Arc<dyn Disk> = Arc::new(self.disks[1].clone());
        let disk_of = Arc::new(move |_| Arc::clone(&disk));
        let keeper = Keeper::new(disk_of, secret(), self.random.clone(), self.options.disk_bytes);
        *self.net.keeper.lock() = Some(keeper);
    }

    fn link(&self) -> Link {
        let net = self.net.clone();
        Link {
            address: "b:10810".into(),
            dial: Arc::new(move || {
                let dialled = net.dial();
                async move { dialled }.boxed()
            }),
            secret: secret(),
            random: self.random.clone(),
            options: self.options.clone(),
        }
    }

    async fn open_at(&self, host: usize, flags: OpenFlags) -> Result<Arc<Volume>, VolumeError> {
        let outside = Outside {
            store: self.store.clone(),
            disk: Arc::new(self.disks[host].clone()) as Arc<dyn Disk>,
            cache: Arc::new(BlockCache::in_memory(1 << 20)),
            budget: Budget::default(),
            clock: Clock::System,
            random: self.random.clone(),
            workers: Workers::Inline,
            server: ServerIdentity { uuid: uuid::Uuid::from_u128(host as u128), name: format!("server-{host}") },
            secrets: Secrets::default(),
            witness: Witness::default(),
        };
        let beside = match host {
            0 => Beside { peer: Some(self.link()), ..Beside::default() },
            _ => Beside { keeper: self.net.keeper.lock().clone(), ..Beside::default() },
        };
        Volume::open_beside(outside, &name(), options(), journal::Options::default(), flags, beside).await
    }

    /// The server has the volume, and its peer keeps a copy.
    async fn served(&self) -> Arc<Volume> {
        let volume = self.open_at(0, OpenFlags::default()).await.unwrap();
        until(&volume, WaitsFor::Peer).await;
        volume
    }

    /// The peer takes the volume over.
    async fn take_over(&self) -> Result<Arc<Volume>, VolumeError> {
        self.open_at(1, TAKEOVER).await
    }
}

async fn until(volume: &Volume, waits_for: WaitsFor) {
    let is_so = async {
        while volume.peered().unwrap().waits_for != waits_for {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let patience = timeout(Duration::from_secs(60), is_so).await;
    patience.unwrap_or_else(|_| panic!("{:?}", volume.peered()));
}

async fn write(volume: &Volume, block: u64, value: u8) -> Result<(), DeviceError> {
    volume.write(block * BLOCK, vec![value; BLOCK as usize].into(), false).await
}

async fn value(volume: &Volume, block: u64) -> u8 {
    let read = volume.read(block * BLOCK, BLOCK as u32).await.unwrap();
    let bytes: Vec<u8> = read.into_bytes().flat_map(|part| part.to_vec()).collect();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn block");
    bytes[0]
}

/// How a device sees who has the volume: epoch, and since when nothing is lost.
fn line(volume: &Volume) -> (u64, u64) {
    let (epoch, _, since) = volume.line();
    (epoch.0, since.0)
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_is_at_the_peer_when_the_host_is_gone() {
    let world = World::new(1).await;
    let volume = world.served().await;
    let puts = world.store.puts();
    for block in 0..8 {
        write(&volume, block, 1).await.unwrap();
    }
    volume.flush().await.unwrap();
    volume.write(9 * BLOCK, vec![7; BLOCK as usize].into(), true).await.unwrap();
    // Written and not flushed: a device that goes on counts on it, too.
    write(&volume, 3, 2).await.unwrap();
    assert_eq!(world.store.puts(), puts, "nobody waited for the store");
    let before = line(&volume);
    drop(volume);
    // The host is gone with its disk. Its server may be alive, for all that the peer knows.
    let held = world.open_at(1, OpenFlags::default()).await.unwrap_err();
    assert!(matches!(held, VolumeError::Held { .. }), "{held}");
    let taken = world.take_over().await.unwrap();
    let expected = [1, 1, 1, 2, 1, 1, 1, 1, 0, 7];
    for (block, expected) in expected.into_iter().enumerate() {
        assert_eq!(value(&taken, block as u64).await, expected, "block {block}");
    }
    assert_eq!(line(&taken), (before.0 + 1, before.1), "a device goes on");
    taken.close().await.unwrap();
    // And it is in the store.
    let again = world.open_at(1, OpenFlags::default()).await.unwrap();
    assert_eq!(value(&again, 3).await, 2);
    again.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_the_peer_the_store_answers_and_the_peer_again_when_it_is_back() {
    let world = World::new(2).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    // Nothing is ever heard of it again, and the connection stays.
    world.net.cut(true);
    world.store.away(true);
    let waits = timeout(Duration::from_secs(10), write(&volume, 1, 1)).await;
    assert!(waits.is_err(), "answered by nobody's word");
    let peered = volume.peered().unwrap();
    assert_eq!((peered.waits_for, peered.falls), (WaitsFor::Store, 1));
    assert!(peered.trouble.is_some(), "{peered:?}");
    world.store.away(false);
    let puts = world.store.puts();
    write(&volume, 2, 1).await.unwrap();
    assert!(world.store.puts() > puts);
    // What only the journal had is in the store with the next FLUSH.
    volume.flush().await.unwrap();
    let status = volume.status();
    assert_eq!(status.accepted, status.committed);

    world.net.cut(false);
    until(&volume, WaitsFor::Peer).await;
    let puts = world.store.puts();
    write(&volume, 4, 1).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(world.store.puts(), puts, "the peer answers");
    drop(volume);
    let taken = world.take_over().await.unwrap();
    for (block, expected) in [1, 1, 1, 0, 1].into_iter().enumerate() {
        assert_eq!(value(&taken, block as u64).await, expected, "block {block}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_copy_is_never_the_only_place_of_what_came_before_it() {
    let world = World::new(3).await;
    world.net.cut(true);
    let volume = world.open_at(0, OpenFlags::default()).await.unwrap();
    for block in 0..4 {
        write(&volume, block, 1).await.unwrap();
    }
    world.store.away(true);
    let writer = volume.clone();
    let waits = tokio::spawn(async move { write(&writer, 4, 1).await });
    sleep(Duration::from_secs(1)).await;
    // There is a connection; but what came before is not in the store.
    world.net.cut(false);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(volume.peered().unwrap().waits_for, WaitsFor::Store);
    let flushed = timeout(Duration::from_secs(10), volume.flush()).await;
    assert!(flushed.is_err());
    world.store.away(false);
    waits.await.unwrap().unwrap();
    until(&volume, WaitsFor::Peer).await;
    write(&volume, 5, 1).await.unwrap();
    drop(volume);
    let taken = world.take_over().await.unwrap();
    for block in 0..6 {
        assert_eq!(value(&taken, block).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_taken_over_from_answers_for_nothing_more() {
    let world = World::new(4).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    let taken = world.take_over().await.unwrap();
    // It is alive, and reaches its peer and the store.
    let refused = write(&volume, 1, 9).await.unwrap_err();
    assert!(matches!(refused, DeviceError::Fenced(_)), "{refused}");
    volume.flush().await.unwrap_err();
    assert_eq!((value(&taken, 0).await, value(&taken, 1).await), (1, 0));
    write(&taken, 2, 3).await.unwrap();
    taken.close().await.unwrap();
    drop(volume);
    // Its journal is refused, as that of any server that was displaced.
    let stale = world.open_at(0, OpenFlags::default()).await.unwrap_err();
    assert!(matches!(stale, VolumeError::StaleJournal { .. }), "{stale}");
    let dropped = OpenFlags { drop_journal: true, ..OpenFlags::default() };
    let back = world.open_at(0, dropped).await.unwrap();
    for (block, expected) in [1, 0, 3].into_iter().enumerate() {
        assert_eq!(value(&back, block as u64).await, expected);
    }
    until(&back, WaitsFor::Peer).await;
}

/// The worst sleeper: it stood still with a peer that answered, and wakes up when that has had the volume and closed it.
#[tokio::test(start_paused = true)]
async fn who_wakes_up_when_the_peer_has_closed_the_volume_gets_no_word_of_it() {
    let world = World::new(5).await;
    let sleeper = world.served().await;
    write(&sleeper, 0, 1).await.unwrap();
    // So that it finds nothing to commit, and with that the fence, before it speaks to its peer again.
    sleeper.save().await.unwrap();
    world.net.cut(true);
    let taken = world.take_over().await.unwrap();
    write(&taken, 0, 2).await.unwrap();
    taken.close().await.unwrap();
    drop(taken);
    // The peer's process begins anew, too.
    for anew in [false, true] {
        if anew {
            world.start_keeper();
        }
        world.net.cut(false);
        sleep(Duration::from_secs(20)).await;
        let peered = sleeper.peered().unwrap();
        assert_eq!(peered.waits_for, WaitsFor::Store, "{peered:?}");
        assert!(peered.trouble.unwrap().contains("took the volume over"), "anew: {anew}");
    }
    write(&sleeper, 1, 9).await.unwrap_err();
    sleeper.flush().await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_takeover_that_dies_before_its_fence_leaves_its_server_to_the_store() {
    let mut world = World::new(11).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    let before = line(&volume);
    world.store.refuses_puts.store(true, Ordering::Relaxed);
    let broken = timeout(Duration::from_secs(1), world.take_over()).await;
    assert!(!matches!(broken, Ok(Ok(_))), "its fence is not in the log");
    world.store.refuses_puts.store(false, Ordering::Relaxed);
    world.disks[1] = world.disks[1].kill();
    world.start_keeper();
    sleep(Duration::from_secs(20)).await;
    let peered = volume.peered().unwrap();
    assert!(peered.trouble.as_ref().unwrap().contains("took the volume over"), "{peered:?}");
    write(&volume, 1, 2).await.unwrap();
    write(&volume, 0, 3).await.unwrap();
    // Asking for it takes nothing, although the files are where one's own journal lies.
    let held = world.open_at(1, OpenFlags::default()).await.unwrap_err();
    assert!(matches!(held, VolumeError::Held { .. }), "{held}");
    let taken = world.take_over().await.unwrap();
    assert_eq!((value(&taken, 0).await, value(&taken, 1).await), (3, 2));
    assert_eq!(line(&taken), (before.0 + 1, before.1), "all of it was in the store, or in the copy");
    drop(volume);
}

#[tokio::test(start_paused = true)]
async fn without_the_local_journal_the_peer_alone_answers_for_nothing() {
    let world = World::new(12).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    world.disks[0].set_faults(DiskFaults { sync: 1000, ..DiskFaults::default() });
    let puts = world.store.puts();
    volume.flush().await.unwrap();
    assert!(world.store.puts() > puts, "the store has it");
}

#[tokio::test(start_paused = true)]
async fn what_lies_beyond_the_end_that_the_store_knows_waits_for_the_store() {
    let world = World::new(13).await;
    let volume = world.served().await;
    world.store.away(true);
    assert!(!volume.grow(2 * BLOCKS * BLOCK, Duration::from_secs(1)).await.unwrap(), "the store does not know it");
    assert!(timeout(Duration::from_secs(5), write(&volume, BLOCKS, 1)).await.is_err());
    world.store.away(false);
    sleep(Duration::from_secs(60)).await;
    write(&volume, BLOCKS + 1, 2).await.unwrap();
    drop(volume);
    let taken = world.take_over().await.unwrap();
    assert_eq!((value(&taken, BLOCKS).await, value(&taken, BLOCKS + 1).await), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_takeover_that_is_refused_leaves_the_peer_to_its_server() {
    let world = World::new(6).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    // A client asks the peer for the volume: nobody is disturbed.
    world.open_at(1, OpenFlags::default()).await.unwrap_err();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(volume.peered().unwrap().falls, 0);
    write(&volume, 1, 1).await.unwrap();
    // A takeover that is refused for another reason lets go again.
    let needless = OpenFlags { accept_loss: true, ..TAKEOVER };
    let refused = world.open_at(1, needless).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NeedlessFlag { .. }), "{refused}");
    write(&volume, 2, 1).await.unwrap();
    until(&volume, WaitsFor::Peer).await;
    volume.close().await.unwrap();
    let copies =
        world.disks[1].list("copy-0").await.unwrap().len() + world.disks[1].list("copy-1").await.unwrap().len();
    assert_eq!(copies, 0, "it was closed in good order");
    let at_peer = world.open_at(1, OpenFlags::default()).await.unwrap();
    for block in 0..3 {
        assert_eq!(value(&at_peer, block).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_an_epoch_that_is_over_is_not_taken() {
    let mut world = World::new(7).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    drop(volume);
    // The server starts again on its host, and does not reach its peer.
    world.net.cut(true);
    world.disks[0] = world.disks[0].kill();
    let volume = world.open_at(0, OpenFlags::default()).await.unwrap();
    assert_eq!(value(&volume, 0).await, 1, "nobody took over, so it goes on with its journal");
    write(&volume, 0, 2).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    let owed = world.take_over().await.unwrap_err();
    assert!(matches!(owed, VolumeError::Owed { .. }), "{owed}");
    // With what the store has, if that is accepted; here it was flushed there.
    let accepted = world.open_at(1, OpenFlags { accept_loss: true, ..TAKEOVER }).await.unwrap();
    assert_eq!(value(&accepted, 0).await, 2);
    let (epoch, since) = line(&accepted);
    assert_eq!(epoch, since, "no device goes on");
}

/// From the fence on no copy counts that there is, and the one host alone has what was acknowledged: not for longer than the store takes.
#[tokio::test(start_paused = true)]
async fn what_a_server_finds_in_its_journal_goes_into_the_store_at_once() {
    let mut world = World::new(14).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    volume.flush().await.unwrap();
    drop(volume);
    // The server starts again and does not reach its peer; nobody writes or flushes anything. Then its host is gone for good.
    world.net.cut(true);
    world.disks[0] = world.disks[0].kill();
    let volume = world.open_at(0, OpenFlags::default()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drop(volume);
    let accepted = world.open_at(1, OpenFlags { accept_loss: true, ..TAKEOVER }).await.unwrap();
    assert_eq!(value(&accepted, 0).await, 1);
    drop(accepted);
    // The same of one that took over.
    let mut world = World::new(15).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    drop(volume);
    let taken = world.take_over().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drop(taken);
    world.disks[0] = CrashDisk::new(99);
    let accepted = world.open_at(0, OpenFlags { accept_loss: true, ..TAKEOVER }).await.unwrap();
    assert_eq!(value(&accepted, 0).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_lost_what_was_promised_is_refused_in_words() {
    let world = World::new(8).await;
    let volume = world.served().await;
    for block in 0..4 {
        write(&volume, block, 1).await.unwrap();
    }
    volume.flush().await.unwrap();
    drop(volume);
    let names = world.disks[1].list("copy-0").await.unwrap();
    let records = format!("copy-0/{}", names.last().unwrap());
    let len = world.disks[1].open(&records).await.unwrap().len().await.unwrap();
    assert!(world.disks[1].cut(&records, len - 100));
    let cut = world.take_over().await.unwrap_err();
    assert!(matches!(cut, VolumeError::JournalCut { .. }), "{cut}");
    let taken = world.open_at(1, OpenFlags { accept_loss: true, ..TAKEOVER }).await.unwrap();
    let (epoch, since) = line(&taken);
    assert_eq!(epoch, since, "no device goes on");
    assert_eq!((value(&taken, 2).await, value(&taken, 3).await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_disk_is_full_or_fails_is_away() {
    let mut world = World::new(9).await;
    world.options.disk_bytes = 2 << 20;
    world.start_keeper();
    let volume = world.served().await;
    world.store.away(true);
    // Until it has had enough.
    let mut acknowledged = 0_u64;
    while let Ok(written) = timeout(Duration::from_secs(1), write(&volume, acknowledged % BLOCKS, 1)).await {
        written.unwrap();
        acknowledged += 1;
        assert!(acknowledged < 1000);
    }
    assert!((200..520).contains(&acknowledged), "{acknowledged}");
    assert!(world.keeper().used() <= 2 << 20);
    assert!(volume.peered().unwrap().trouble.unwrap().contains("peer.disk_bytes"));
    world.store.away(false);
    volume.flush().await.unwrap();
    // All of it is in the store, so there is room.
    until(&volume, WaitsFor::Peer).await;
    world.disks[1].set_faults(DiskFaults { write: 1000, ..DiskFaults::default() });
    write(&volume, 0, 5).await.unwrap();
    volume.flush().await.unwrap();
    assert_eq!(volume.peered().unwrap().waits_for, WaitsFor::Store);
    world.disks[1].set_faults(DiskFaults::default());
    until(&volume, WaitsFor::Peer).await;
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_power_at_the_peer_loses_nothing_that_was_flushed_and_no_device_goes_on() {
    let mut world = World::new(10).await;
    let volume = world.served().await;
    write(&volume, 0, 1).await.unwrap();
    volume.flush().await.unwrap();
    write(&volume, 1, 1).await.unwrap();
    let before = line(&volume);
    drop(volume);
    world.disks[1] = world.disks[1].crash();
    world.start_keeper();
    let taken = world.take_over().await.unwrap();
    assert_eq!(value(&taken, 0).await, 1);
    let (epoch, since) = line(&taken);
    assert_eq!((epoch, since), (before.0 + 1, epoch), "what was written and not flushed may be lost");
}

/// Whatever happens on the disk of who takes over, and however often it dies over it.
#[tokio::test(start_paused = true)]
async fn a_takeover_breaks_off_anywhere_and_goes_on() {
    let mut completed = BTreeSet::new();
    for operation in 0..60 {
        let mut world = World::new(100 + operation).await;
        let volume = world.served().await;
        for block in 0..8 {
            write(&volume, block, 1).await.unwrap();
        }
        volume.flush().await.unwrap();
        write(&volume, 8, 1).await.unwrap();
        let before = line(&volume);
        drop(volume);
        world.disks[1].cut_at(world.disks[1].operations() + operation);
        let broken = world.take_over().await;
        completed.insert(broken.is_ok());
        drop(broken);
        for _ in 0..2 {
            // Once with the process, once with the host.
            world.disks[1] = if operation % 2 == 0 { world.disks[1].kill() } else { world.disks[1].crash() };
            world.start_keeper();
            let (taken, by_takeover) = match world.open_at(1, OpenFlags::default()).await {
                // It had the fence in the log already: it is its own. It may not have noted more, and then no device goes on.
                Ok(taken) => (taken, false),
                Err(VolumeError::Held { .. }) => (world.take_over().await.unwrap(), true),
                Err(other) => panic!("operation {operation}: {other}"),
            };
            for block in 0..8 {
                assert_eq!(value(&taken, block).await, 1, "operation {operation}, block {block}");
            }
            if operation % 2 == 0 {
                assert_eq!(value(&taken, 8).await, 1, "operation {operation}");
                assert!(!by_takeover || line(&taken).1 <= before.0, "operation {operation}: a device goes on");
            }
        }
    }
    assert_eq!(completed.len(), 2, "some were completed and some were not");
}

/// Somebody who has the secret, or a sender with a fault, says anything in any order: the peer neither breaks nor takes more than it may, and what it has for others stays.
#[tokio::test(start_paused = true)]
async fn whatever_a_sender_says_the_peer_goes_on() {
    let (mut began, mut refused) = (0, 0);
    for seed in 0..150 {
        let mut world = World::new(2000 + seed).await;
        world.options.disk_bytes = 3 << 20;
        world.start_keeper();
        let random = Random::seeded(seed);
        let (mut near, far) = duplex(64 << 10);
        let keeper = world.keeper();
        let serving = tokio::spawn(async move { keeper.serve(far, "anybody").await });
        let own = random.bytes();
        near.write_all(&wire::greeting(Role::Sender, &own)).await.unwrap();
        let mut theirs = [0; wire::GREETING_BYTES];
        near.read_exact(&mut theirs).await.unwrap();
        let theirs = wire::read_greeting(&theirs, Role::Keeper).unwrap();
        let (mut encoder, _) = wire::ways(&secret(), Role::Sender, &own, &theirs);
        let (mut reads, mut writes) = tokio::io::split(near);
        let listens = tokio::spawn(async move { tokio::io::copy(&mut reads, &mut tokio::io::sink()).await });
        let mut babble = Babble::new(&random, world.volume().await);
        for _ in 0..random.below(40) {
            let mut out = BytesMut::new();
            babble.next().iter().for_each(|message| encoder.put(message, &mut out));
            if writes.write_all(&out).await.is_err() {
                break;
            }
            assert!(world.keeper().used() <= (3 << 20) + (64 << 10), "seed {seed}: {}", world.keeper().used());
        }
        drop(writes.shutdown().await);
        refused += u64::from(serving.await.unwrap().is_err());
        began += u64::from(babble.began);
        drop(listens.await);
        // And it keeps another one's copy, unless a later epoch was made up.
        if !babble.is_of_later {
            let volume = world.served().await;
            write(&volume, 0, 1).await.unwrap();
            volume.flush().await.unwrap();
            drop(volume);
            let taken = world.take_over().await.unwrap();
            assert_eq!(value(&taken, 0).await, 1, "seed {seed}");
        }
    }
    assert!(began > 50 && refused > 50, "{began} {refused}");
}

/// What a sender might say, more or less.
struct Babble<'a> {
    random: &'a Random,
    origin: Origin,
    stream: Option<Stream>,
    no: ChangeNo,
    began: bool,
    is_of_later: bool,
}

impl<'a> Babble<'a> {
    fn new(random: &'a Random, volume: uuid::Uuid) -> Babble<'a> {
        let origin = Origin {
            sealer: Sealer::new(volume, None),
            block_size: BlockSize::new(BLOCK).unwrap(),
            name: random.uuid(),
            epoch: Epoch(1),
            since: Epoch(1),
            random: random.clone(),
        };
        Babble { random, origin, stream: None, no: ChangeNo(1), began: false, is_of_later: false }
    }

    fn number(&self) -> u64 {
        [0, 1, 4096, self.random.below(1 << 20), u64::from(u32::MAX), i64::MAX as u64][self.random.below(6) as usize]
    }

    fn next(&mut self) -> Vec<Message> {
        match self.random.below(12) {
            0 | 1 => {
                let epoch = if self.random.below(8) == 0 { Epoch(self.number()) } else { Epoch(1) };
                self.is_of_later |= epoch > Epoch(1);
                let first = ChangeNo(1 + self.number() / 2);
                let (stream, begin) = Stream::begin(Origin { epoch, ..self.origin.clone() }, first, false);
                (self.stream, self.no, self.began) = (Some(stream), first, true);
                vec![match begin {
                    Message::Begin(begin) if self.random.below(4) == 0 => self.harmed(begin),
                    begin => begin,
                }]
            }
            2..=6 => {
                let Some(stream) = &mut self.stream else { return vec![Message::Sync] };
                let blocks = 1 + self.random.below(60);
                let data = vec![7; (blocks * BLOCK) as usize].into();
                let numbered = Numbered { no: self.no, change: Change::Write(Extent::new(0, blocks), data) };
                self.no = self.no.next();
                stream.records(vec![numbered], ChangeNo(0)).unwrap()
            }
            7 => vec![Message::Sync],
            8 => vec![Message::Covered(ChangeNo(self.number()))],
            9 => vec![Message::Ask],
            10 => vec![
                [Message::End, Message::Ready, Message::Refused("no".into())][self.random.below(3) as usize].clone(),
            ],
            _ => {
                let bytes = Bytes::from(vec![1; self.random.below(9000) as usize]);
                let (at, last) = (self.number(), ChangeNo(self.number()));
                let name = ["", "a", "../x", "0000000000000001-00000001.journal"][self.random.below(4) as usize].into();
                vec![match self.random.below(2) {
                    0 => Message::Records { at, last, bytes },
                    _ => Message::File { name, header: bytes.slice(..bytes.len().min(8192)) },
                }]
            }
        }
    }

    fn harmed(&self, mut begin: wire::Begin) -> Message {
        match self.random.below(4) {
            0 => begin.identity_name = "0000000000000007-00000001.journal".into(),
            1 => begin.identity = begin.identity.slice(..self.random.below(begin.identity.len() as u64) as usize),
            2 => begin.first = ChangeNo(self.number()),
            _ => begin.id = self.random.uuid(),
        }
        Message::Begin(begin)
    }
}

/// What a block may hold.
#[derive(Clone, Debug, Default)]
struct May {
    acknowledged: u8,
    /// Written later, and nobody was answered.
    tried: BTreeSet<u8>,
}

/// Both servers, the network and the store, in any order. Every acknowledged write is there, whoever has the volume next.
#[tokio::test(start_paused = true)]
async fn whatever_stops_or_is_cut_off_every_acknowledged_write_is_there() {
    let (mut takeovers, mut by_peer) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(1000 + seed).await;
        let random = Random::seeded(seed);
        let mut may = vec![May::default(); BLOCKS as usize];
        let mut next_value = 0_u8;
        let mut volume = world.open_at(0, OpenFlags::default()).await.unwrap();
        for _ in 0..60 {
            match random.below(16) {
                0..8 => {
                    let block = random.below(BLOCKS);
                    next_value = next_value % 250 + 1;
                    let counted = volume.peered().is_some_and(|peered| peered.waits_for == WaitsFor::Peer);
                    let may = &mut may[block as usize];
                    match timeout(Duration::from_secs(5), write(&volume, block, next_value)).await {
                        Ok(Ok(())) => {
                            by_peer += u64::from(counted);
                            *may = May { acknowledged: next_value, ..May::default() };
                        }
                        _ => drop(may.tried.insert(next_value)),
                    }
                }
                8 => drop(timeout(Duration::from_secs(5), volume.flush()).await),
                9 => world.net.cut(random.below(3) == 0),
                10 => world.store.away(random.below(4) == 0),
                11 => {
                    // The peer's process is killed.
                    world.net.cut(true);
                    world.disks[1] = world.disks[1].kill();
                    world.start_keeper();
                    world.net.cut(random.below(2) == 0);
                }
                12 | 13 => sleep(Duration::from_millis(random.below(5000))).await,
                14 => {
                    // The server's process is killed, and starts again.
                    world.store.away(false);
                    drop(volume);
                    world.disks[0] = world.disks[0].kill();
                    volume = world.open_at(0, OpenFlags::default()).await.unwrap();
                }
                _ => {
                    // The peer takes over, also from a server that is alive; then the volume goes back.
                    world.store.away(false);
                    let taken = match world.take_over().await {
                        Ok(taken) => taken,
                        Err(VolumeError::Owed { .. }) => continue,
                        Err(other) => panic!("seed {seed}: {other}"),
                    };
                    takeovers += 1;
                    let displaced = std::mem::replace(&mut volume, taken);
                    assert!(timeout(Duration::from_secs(60), write(&displaced, 0, 251)).await.unwrap().is_err());
                    drop(displaced);
                    for (block, may) in may.iter_mut().enumerate() {
                        let found = value(&volume, block as u64).await;
                        assert!(
                            found == may.acknowledged || may.tried.contains(&found),
                            "seed {seed}: block {block} holds {found}, and may hold {may:?}"
                        );
                        *may = May { acknowledged: found, ..May::default() };
                    }
                    volume.close().await.unwrap();
                    let dropped = OpenFlags { drop_journal: true, ..OpenFlags::default() };
                    volume = match world.open_at(0, OpenFlags::default()).await {
                        Err(VolumeError::StaleJournal { .. }) => world.open_at(0, dropped).await.unwrap(),
                        opened => opened.unwrap(),
                    };
                }
            }
        }
    }
    assert!(takeovers > 60 && by_peer > 300, "{takeovers} {by_peer}");
}
