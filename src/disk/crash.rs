//! A disk in memory that fails as disks do, from a seed.
//!
//! | what is injected | why it happens | why we should survive it |
//! | --- | --- | --- |
//! | at a [`CrashDisk::crash`] each unsynced 512-byte sector holds any of the versions written since the last sync, or the old one | the host loses power; its kernel had written back some pages, in any order, and a sector is what a disk writes whole | only what was synced is promised, and what is read back must prove itself |
//! | a file's length after a crash lies anywhere between the synced and the last one | size and data are written back separately | as above |
//! | sectors of that length that never reached the disk hold zeros, noise, or what a removed file had there | delayed allocation; filesystems that do not order data and metadata | a record proves itself only at its place in its file |
//! | a [`CrashDisk::kill`] keeps all that was written | the page cache outlives the process | it is the easy case, and the one that acknowledged writes are promised to survive |
//! | the operation that is cut short is done not at all, partly or wholly; nothing after it is done | that is what being killed is | only door operations are visible afterwards, so cutting after each one covers each crash of a schedule |
//! | writes, syncs, creations and removals fail | bad sectors, a lost device | the journal is suspended; commits in the store go on |
//! | after a failed sync the written data is still read back, but no later sync makes it durable | Linux marks the pages clean after reporting the error once | the file is not used again |
//! | a write beyond [`CrashDisk::limit_bytes`] is done in part and fails | the disk is full | as for any failed write |
//! | operations take time, and their effect falls somewhere within it | so do real ones | nothing counts before its operation has returned |
//! | handles from before a crash or kill fail for ever | that host, or process, is no more | whatever still runs in the test cannot touch the next life |
//!
//! Not injected: damage to what was synced (see [`CrashDisk::damage`], [`CrashDisk::cut`] and
//! [`CrashDisk::break_reads_of`] for tests of that), a creation or removal that
//! is forgotten after it returned (the [`Disk`] promises those), tearing inside a sector.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// How often things fail, in parts of a thousand, and how long they take.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// Writes that fail, having been done in part.
    pub write: u32,
    /// Syncs that fail.
    pub sync: u32,
    /// Creations that fail.
    pub create: u32,
    /// Removals that fail.
    pub remove: u32,
    /// Each operation takes up to this long, by tokio's clock; zero: none ever waits.
    pub delay_max: Duration,
}

/// One life of the disk: a handle that works until the next crash or kill.
#[derive(Clone)]
pub struct CrashDisk {
    world: Arc<Mutex<World>>,
    life: u64,
}

struct World {
    random: StdRng,
    life: u64,
    /// One sign more with each death of the host.
    host_life: String,
    files: BTreeMap<String, Arc<Mutex<FileState>>>,
    /// Files that were removed: their sectors may show up in new ones.
    graves: Vec<Arc<Mutex<FileState>>>,
    faults: DiskFaults,
    limit_bytes: u64,
    operations: u64,
    /// The operation with this number is the last, and is cut short.
    cut_at: Option<u64>,
    writes: u64,
    /// Files on a bad place of the disk.
    unreadable: BTreeSet<String>,
}

/// How far an operation gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Whole,
    /// Done in part (the number says how much) or not at all, and failed.
    Fails(u64),
    /// As [`Fate::Fails`] or [`Fate::Whole`], but nobody hears of it, and nothing works from now on.
    Cut(u64),
}

#[derive(Clone, Default)]
struct FileState {
    len: u64,
    synced_len: u64,
    sectors: Vec<Sector>,
}

type Image = Arc<[u8; SECTOR]>;

#[derive(Clone, Default)]
struct Sector {
    /// On the disk for sure.
    synced: Option<Image>,
    /// Written since, oldest first.
    later: Vec<Version>,
}

#[derive(Clone)]
struct Version {
    write: u64,
    /// A sync of it failed: no later one will make it durable.
    abandoned: bool,
    image: Image,
}

impl CrashDisk {
    /// An empty disk without limits and faults, in its first life.
    pub fn new(seed: u64) -> CrashDisk {
        let world = World {
            random: StdRng::seed_from_u64(seed),
            life: 0,
            host_life: seed.to_string(),
            files: BTreeMap::new(),
            graves: Vec::new(),
            faults: DiskFaults::default(),
            limit_bytes: u64::MAX,
            operations: 0,
            cut_at: None,
            writes: 0,
            unreadable: BTreeSet::new(),
        };
        CrashDisk { world: Arc::new(Mutex::new(world)), life: 0 }
    }

    /// Power is lost. All handles are dead; the result is the disk as it comes back.
    pub fn crash(&self) -> CrashDisk {
        let world = &mut *self.world.lock();
        // Some crashes lose all, some nothing; most something.
        let loses = world.random.next_u32() % 5;
        for file in world.files.values() {
            let graves = &world.graves;
            file.lock().lose(loses, &mut world.random, graves);
        }
        world.host_life.push('+');
        self.next_life(world)
    }

    /// The process dies. All handles are dead; the result is the disk as the next process finds it.
    pub fn kill(&self) -> CrashDisk {
        self.next_life(&mut self.world.lock())
    }

    /// Sets how often things fail from now on.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.world.lock().faults = faults;
    }

    /// The disk is full at so many bytes of files.
    pub fn limit_bytes(&self, bytes: u64) {
        self.world.lock().limit_bytes = bytes;
    }

    /// Another disk with the same files as they are now: what a backup, or a clone of the machine, is.
    pub fn copy(&self, seed: u64) -> CrashDisk {
        let copy = CrashDisk::new(seed);
        {
            let (from, to) = (self.world.lock(), &mut *copy.world.lock());
            to.operations = from.operations;
            for (name, file) in &from.files {
                to.files.insert(name.clone(), Arc::new(Mutex::new(file.lock().clone())));
            }
        }
        copy
    }

    /// A file's last bytes are gone, as a program that meddles leaves it; false if it is not longer.
    pub fn cut(&self, name: &str, len: u64) -> bool {
        let world = self.world.lock();
        let Some(file) = world.files.get(name) else { return false };
        let mut file = file.lock();
        if len >= file.len {
            return false;
        }
        (file.len, file.synced_len) = (len, len.min(file.synced_len));
        file.sectors.truncate((len as usize).div_ceil(SECTOR));
        true
    }

    /// Reading this file fails from now on, in all lives.
    pub fn break_reads_of(&self, name: &str) {
        self.world.lock().unreadable.insert(name.to_owned());
    }

    /// Operations begun so far, in all lives.
    pub fn operations(&self) -> u64 {
        self.world.lock().operations
    }

    /// Operation number `operation` (the first ever is 1) will be cut short, and no later one will work in this life.
    pub fn cut_at(&self, operation: u64) {
        self.world.lock().cut_at = Some(operation);
    }

    /// Whether the cut has happened.
    pub fn is_cut(&self) -> bool {
        let world = self.world.lock();
        world.cut_at.is_some_and(|at| world.operations >= at)
    }

    /// Bytes of all files.
    pub fn stored_bytes(&self) -> u64 {
        self.world.lock().files.values().map(|file| file.lock().len).sum()
    }

    /// Flips bits of a synced byte, as a decaying disk does. False if there is no such byte.
    pub fn damage(&self, name: &str, offset: u64, flip: u8) -> bool {
        let world = self.world.lock();
        let Some(file) = world.files.get(name) else { return false };
        let mut file = file.lock();
        if offset >= file.len {
            return false;
        }
        let sector = &mut file.sectors[offset as usize / SECTOR];
        let mut image = *sector.current().unwrap_or_else(|| Arc::new([0; SECTOR]));
        image[offset as usize % SECTOR] ^= flip;
        *sector = Sector { synced: Some(Arc::new(image)), later: Vec::new() };
        true
    }

    fn next_life(&self, world: &mut World) -> CrashDisk {
        for file in world.files.values() {
            file.lock().settle();
        }
        world.life += 1;
        world.cut_at = None;
        CrashDisk { world: Arc::clone(&self.world), life: world.life }
    }

    /// The beginning of an operation: counts it, takes time, decides its fate.
    async fn begin(&self, chance: impl Fn(&DiskFaults) -> u32) -> io::Result<Fate> {
        let (fate, delay) = {
            let world = &mut *self.world.lock();
            self.alive(world)?;
            world.operations += 1;
            let (part, roll) = (world.random.next_u64(), world.random.next_u32() % 1000);
            let fate = match world.cut_at {
                Some(at) if world.operations == at => Fate::Cut(part),
                _ if roll < chance(&world.faults) => Fate::Fails(part),
                _ => Fate::Whole,
            };
            (fate, world.delay())
        };
        // What the cut leaves of its operation it leaves now: the next life may begin at once.
        if !matches!(fate, Fate::Cut(_)) {
            wait(delay).await;
            // Whoever died while the operation was on its way did not get it done.
            self.alive(&self.world.lock())?;
        }
        Ok(fate)
    }

    /// The end of an operation: takes time, and tells the caller only if it lives.
    async fn end<T>(&self, fate: Fate, result: io::Result<T>) -> io::Result<T> {
        let delay = self.world.lock().delay();
        wait(delay).await;
        self.alive(&self.world.lock())?;
        match fate {
            Fate::Whole => result,
            Fate::Fails(_) | Fate::Cut(_) => result.and(Err(io::Error::other("injected disk failure"))),
        }
    }

    fn alive(&self, world: &World) -> io::Result<()> {
        if world.life != self.life || world.cut_at.is_some_and(|at| world.operations >= at) {
            return Err(io::Error::other("this life of the disk is over"));
        }
        Ok(())
    }
}

impl World {
    fn delay(&mut self) -> Duration {
        let most = self.faults.delay_max.as_micros() as u64;
        match most {
            0 => Duration::ZERO,
            most => Duration::from_micros(self.random.next_u64() % (most + 1)),
        }
    }

    fn free_bytes(&self) -> u64 {
        let used: u64 = self.files.values().map(|file| file.lock().len).sum();
        self.limit_bytes.saturating_sub(used)
    }
}

impl Fate {
    /// How much of `all` is done.
    fn part_of(self, all: u64) -> u64 {
        match self {
            Fate::Whole => all,
            // Often nothing or all of it, otherwise any part.
            Fate::Fails(part) | Fate::Cut(part) => match part % 3 {
                0 => 0,
                1 => all,
                _ => (part / 3) % (all + 1),
            },
        }
    }

    /// Whether what cannot be done in part is done.
    fn done(self) -> bool {
        self.part_of(1) == 1
    }
}

async fn wait(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

#[async_trait]
impl Disk for CrashDisk {
    fn path(&self) -> String {
        "/crash-disk".to_owned()
    }

    fn host_life(&self) -> Option<String> {
        Some(self.world.lock().host_life.clone())
    }

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let fate = self.begin(|_| 0).await?;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let names = {
            let world = self.world.lock();
            let below = world.files.keys().filter_map(|name| name.strip_prefix(&prefix));
            below.filter(|name| !name.contains('/')).map(str::to_owned).collect()
        };
        self.end(fate, Ok(names)).await
    }

    async fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let fate = self.begin(|faults| faults.create).await?;
        let file = {
            let world = &mut *self.world.lock();
            let file = Arc::new(Mutex::new(FileState::default()));
            match world.files.contains_key(name) {
                true => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
                false => {
                    if fate.done() {
                        world.files.insert(name.to_owned(), Arc::clone(&file));
                    }
                    Ok(file)
                }
            }
        };
        self.end(fate, file.map(|file| self.handle(file))).await
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let fate = self.begin(|_| 0).await?;
        let file = {
            let world = self.world.lock();
            match world.unreadable.contains(name) {
                true => Err(io::Error::from_raw_os_error(5)), // EIO
                false => world.files.get(name).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)),
            }
        };
        self.end(fate, file.map(|file| self.handle(file))).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let fate = self.begin(|faults| faults.remove).await?;
        if fate.done() {
            let world = &mut *self.world.lock();
            if let Some(file) = world.files.remove(name) {
                world.graves.push(file);
                // The oldest are overwritten by now.
                let old = world.graves.len().saturating_sub(4);
                world.graves.drain(..old);
            }
        }
        self.end(fate, Ok(())).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let fate = self.begin(|faults| faults.remove).await?;
        let renamed = {
            let world = &mut *self.world.lock();
            match fate.done() {
                false => Ok(()),
                true => match world.files.remove(from) {
                    Some(file) => {
                        world.files.insert(to.to_owned(), file);
                        Ok(())
                    }
                    None => Err(io::Error::from(io::ErrorKind::NotFound)),
                },
            }
        };
        self.end(fate, renamed).await
    }
}

impl CrashDisk {
    fn handle(&self, state: Arc<Mutex<FileState>>) -> Arc<dyn DiskFile> {
        Arc::new(CrashFile { disk: self.clone(), state })
    }
}

struct CrashFile {
    disk: CrashDisk,
    state: Arc<Mutex<FileState>>,
}

#[async_trait]
impl DiskFile for CrashFile {
    async fn len(&self) -> io::Result<u64> {
        let fate = self.disk.begin(|_| 0).await?;
        let len = self.state.lock().len;
        self.disk.end(fate, Ok(len)).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let fate = self.disk.begin(|_| 0).await?;
        let bytes = self.state.lock().read(offset, len);
        self.disk.end(fate, Ok(bytes)).await
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let fate = self.disk.begin(|faults| faults.write).await?;
        let result = self.write_now(fate, offset, &parts.concat());
        self.disk.end(fate, result).await
    }

    async fn write_durably_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let fate = self.disk.begin(|faults| faults.write.max(faults.sync)).await?;
        let result = self.write_now(fate, offset, &parts.concat());
        let write = self.disk.world.lock().writes;
        match (fate, &result) {
            (Fate::Whole, Ok(())) => self.state.lock().sync_only(write),
            // The kernel reports it once and marks the pages clean, as with a sync.
            (Fate::Fails(_), _) | (_, Err(_)) => self.state.lock().abandon_only(write),
            (Fate::Cut(_), Ok(())) => {}
        }
        self.disk.end(fate, result).await
    }

    async fn sync(&self) -> io::Result<()> {
        let before = self.disk.world.lock().writes;
        let fate = self.disk.begin(|faults| faults.sync).await?;
        match fate {
            Fate::Whole => self.state.lock().sync(before),
            Fate::Fails(_) => self.state.lock().abandon(before),
            // Cut: it had done its work, or nothing of it; what it had done in part, the crash decides anyway.
            Fate::Cut(_) if fate.done() => self.state.lock().sync(before),
            Fate::Cut(_) => {}
        }
        self.disk.end(fate, Ok(())).await
    }
}

impl CrashFile {
    /// As far as `fate` and the room on the disk allow.
    fn write_now(&self, fate: Fate, offset: u64, data: &[u8]) -> io::Result<()> {
        let world = &mut *self.disk.world.lock();
        world.writes += 1;
        let (write, free) = (world.writes, world.free_bytes());
        let mut state = self.state.lock();
        let fitting = state.len.saturating_add(free).saturating_sub(offset).min(data.len() as u64);
        let done = fate.part_of(fitting) as usize;
        state.write(write, offset, &data[..done]);
        match fitting < data.len() as u64 {
            true => Err(io::Error::from_raw_os_error(28)), // ENOSPC
            false => Ok(()),
        }
    }
}

impl Sector {
    fn current(&self) -> Option<Image> {
        self.later.last().map(|version| &version.image).or(self.synced.as_ref()).cloned()
    }
}

impl FileState {
    fn read(&self, offset: u64, len: usize) -> Bytes {
        let end = self.len.min(offset.saturating_add(len as u64));
        let mut out = BytesMut::new();
        let mut at = offset;
        while at < end {
            let (index, from) = (at as usize / SECTOR, at as usize % SECTOR);
            let take = (SECTOR - from).min((end - at) as usize);
            match self.sectors.get(index).and_then(Sector::current) {
                Some(image) => out.extend_from_slice(&image[from..from + take]),
                None => out.resize(out.len() + take, 0),
            }
            at += take as u64;
        }
        out.freeze()
    }

    fn write(&mut self, write: u64, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let (index, from) = (at as usize / SECTOR, at as usize % SECTOR);
            let take = (SECTOR - from).min(data.len());
            if self.sectors.len() <= index {
                self.sectors.resize(index + 1, Sector::default());
            }
            let sector = &mut self.sectors[index];
            let mut image = sector.current().map_or([0; SECTOR], |image| *image);
            image[from..from + take].copy_from_slice(&data[..take]);
            sector.later.push(Version { write, abandoned: false, image: Arc::new(image) });
            at += take as u64;
            data = &data[take..];
            self.len = self.len.max(at);
        }
    }

    /// What was written up to `write` is on the disk, except what an earlier failure has abandoned.
    fn sync(&mut self, write: u64) {
        let mut end = self.synced_len;
        for (index, sector) in self.sectors.iter_mut().enumerate() {
            let reaches = |version: &Version| version.write <= write && !version.abandoned;
            if let Some(last) = sector.later.iter().rposition(reaches) {
                sector.synced = Some(Arc::clone(&sector.later[last].image));
                sector.later.drain(..=last);
                end = end.max(((index + 1) * SECTOR) as u64);
            }
        }
        self.synced_len = end.min(self.len);
    }

    /// The sectors that the newest write, `write`, has touched are on the disk as they are now.
    fn sync_only(&mut self, write: u64) {
        let mut end = self.synced_len;
        for (index, sector) in self.sectors.iter_mut().enumerate() {
            if let Some(last) = sector.later.last().filter(|version| version.write == write) {
                sector.synced = Some(Arc::clone(&last.image));
                sector.later.clear();
                end = end.max(((index + 1) * SECTOR) as u64);
            }
        }
        self.synced_len = end.min(self.len);
    }

    /// What `write` wrote is on the disk or not, for ever.
    fn abandon_only(&mut self, write: u64) {
        let versions = self.sectors.iter_mut().flat_map(|sector| sector.later.iter_mut());
        versions.filter(|version| version.write == write).for_each(|version| version.abandoned = true);
    }

    /// A sync failed: what was written up to `write` is on the disk or not, for ever.
    fn abandon(&mut self, write: u64) {
        let versions = self.sectors.iter_mut().flat_map(|sector| sector.later.iter_mut());
        versions.filter(|version| version.write <= write).for_each(|version| version.abandoned = true);
    }

    /// The power fails. `loses`: 0 everything unsynced, 1 nothing, otherwise each sector for itself.
    fn lose(&mut self, loses: u32, random: &mut StdRng, graves: &[Arc<Mutex<FileState>>]) {
        self.len = match loses {
            0 => self.synced_len,
            1 => self.len,
            _ => self.synced_len + random.next_u64() % (self.len - self.synced_len + 1),
        };
        self.sectors.truncate((self.len as usize).div_ceil(SECTOR));
        for (index, sector) in self.sectors.iter_mut().enumerate() {
            let versions = sector.later.len() as u64;
            let kept = match loses {
                0 => 0,
                1 => versions,
                _ => random.next_u64() % (versions + 1),
            };
            let image = match kept {
                0 => sector.synced.clone().or_else(|| never_written(index, random, graves)),
                kept => Some(Arc::clone(&sector.later[kept as usize - 1].image)),
            };
            *sector = Sector { synced: image, later: Vec::new() };
        }
    }

    /// The next life sees what is there; after a kill it is still not synced.
    fn settle(&mut self) {
        if self.sectors.iter().all(|sector| sector.later.is_empty()) {
            self.synced_len = self.len;
        }
    }
}

/// What lies in a sector that belongs to the file and was never written.
fn never_written(index: usize, random: &mut StdRng, graves: &[Arc<Mutex<FileState>>]) -> Option<Image> {
    let mut noise = [0; SECTOR];
    match (random.next_u32() % 3, graves.len()) {
        (0, _) => return None,
        (1, graves_there) if graves_there > 0 => {
            let grave = graves[random.next_u64() as usize % graves_there].lock();
            return grave.sectors.get(index).and_then(Sector::current);
        }
        _ => random.fill_bytes(&mut noise),
    }
    Some(Arc::new(noise))
}

impl fmt::Debug for CrashDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CrashDisk(life {})", self.life)
    }
}

impl fmt::Debug for CrashFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CrashFile(life {})", self.disk.life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(byte: u8, len: usize) -> Bytes {
        Bytes::from(vec![byte; len])
    }

    /// For each seed: writes `a`, syncs or fails to, writes `b` over a part of it, ends the life; what is read then?
    async fn survivors(sync_fails: bool, end: fn(&CrashDisk) -> CrashDisk) -> Vec<Bytes> {
        let mut survivors = Vec::new();
        for seed in 0..60 {
            let disk = CrashDisk::new(seed);
            let file = disk.create("f").await.unwrap();
            file.write_at(0, vec![data(b'a', 2048)]).await.unwrap();
            disk.set_faults(DiskFaults { sync: if sync_fails { 1000 } else { 0 }, ..DiskFaults::default() });
            assert_eq!(file.sync().await.is_err(), sync_fails);
            disk.set_faults(DiskFaults::default());
            file.write_at(1000, vec![data(b'b', 1500)]).await.unwrap();
            assert_eq!(file.read_at(999, 3).await.unwrap(), "abb", "read back at once");
            let disk = end(&disk);
            assert!(file.read_at(0, 1).await.is_err() && file.sync().await.is_err(), "an old handle");
            survivors.push(disk.open("f").await.unwrap().read_at(0, 9999).await.unwrap());
        }
        survivors
    }

    #[tokio::test]
    async fn a_kill_loses_nothing_and_a_crash_only_what_was_not_synced() {
        for file in survivors(false, CrashDisk::kill).await {
            assert_eq!(file, [data(b'a', 1000), data(b'b', 1500)].concat());
        }
        let files = survivors(false, CrashDisk::crash).await;
        for file in &files {
            assert!(file.len() >= 2048 && file[..512] == data(b'a', 512), "{file:?}");
        }
        let torn = |file: &&Bytes| file[1000..1024] == data(b'a', 24) && file[1024..1536] == data(b'b', 512);
        assert!(files.iter().filter(torn).count() > 2, "a later sector without an earlier one");
        assert!(files.iter().any(|file| file.len() == 2048) && files.iter().any(|file| file.len() == 2500));
    }

    #[tokio::test]
    async fn what_a_failed_sync_was_about_may_be_lost_for_ever() {
        let files = survivors(true, |disk| disk.crash()).await;
        assert!(files.iter().any(|file| !file.starts_with(&data(b'a', 512))));
    }

    #[tokio::test]
    async fn a_sync_after_a_failed_one_does_not_bring_it_back() {
        let mut lost = 0;
        for seed in 0..60 {
            let disk = CrashDisk::new(seed);
            let file = disk.create("f").await.unwrap();
            file.write_at(0, vec![data(b'a', 512)]).await.unwrap();
            disk.set_faults(DiskFaults { sync: 1000, ..DiskFaults::default() });
            file.sync().await.unwrap_err();
            disk.set_faults(DiskFaults::default());
            file.sync().await.unwrap();
            assert_eq!(file.read_at(0, 512).await.unwrap(), data(b'a', 512), "the page cache has it");
            let file = disk.crash().open("f").await.unwrap();
            lost += u32::from(file.read_at(0, 512).await.unwrap() != data(b'a', 512));
        }
        assert!((10..60).contains(&lost), "{lost}");
    }

    #[tokio::test]
    async fn a_durable_write_is_about_its_own_bytes_only() {
        let mut others_lost = 0;
        for seed in 0..60 {
            let disk = CrashDisk::new(seed);
            let file = disk.create("f").await.unwrap();
            file.write_at(0, vec![data(b'a', 4096)]).await.unwrap();
            file.write_durably_at(1024, vec![data(b'b', 500), data(b'b', 12)]).await.unwrap();
            let file = disk.crash().open("f").await.unwrap().read_at(0, 9999).await.unwrap();
            assert_eq!(file[1024..1536], data(b'b', 512), "{seed}");
            others_lost += u32::from(file[..512] != data(b'a', 512));
        }
        assert!((10..60).contains(&others_lost), "{others_lost}");
    }

    #[tokio::test]
    async fn a_full_disk_takes_what_fits_and_says_so() {
        let disk = CrashDisk::new(1);
        disk.limit_bytes(100);
        let file = disk.create("f").await.unwrap();
        let full = file.write_at(0, vec![data(1, 60), data(2, 60)]).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().await.unwrap(), 100);
        file.write_at(0, vec![data(3, 100)]).await.unwrap();
        disk.remove("f").await.unwrap();
        assert_eq!(disk.stored_bytes(), 0);
    }

    #[tokio::test]
    async fn nothing_works_after_the_cut_until_the_next_life() {
        let mut lens = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let disk = CrashDisk::new(seed);
            let file = disk.create("f").await.unwrap();
            disk.cut_at(2);
            file.write_at(0, vec![data(1, 10)]).await.unwrap_err();
            assert!(disk.is_cut() && disk.operations() == 2);
            disk.create("g").await.unwrap_err();
            assert_eq!(disk.operations(), 2);
            let disk = disk.kill();
            assert_eq!(disk.list("").await.unwrap(), ["f"]);
            lens.insert(disk.open("f").await.unwrap().len().await.unwrap());
        }
        assert!(lens.contains(&0) && lens.contains(&10) && lens.len() > 2, "{lens:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_gives_the_same_run() {
        let run = async |seed| {
            let disk = CrashDisk::new(seed);
            disk.set_faults(DiskFaults { write: 300, delay_max: Duration::from_millis(5), ..DiskFaults::default() });
            let begun = tokio::time::Instant::now();
            let file = disk.create("f").await.unwrap();
            for at in 0..20 {
                let _ = file.write_at(at * 300, vec![data(at as u8, 700)]).await;
            }
            disk.set_faults(DiskFaults::default());
            let file = disk.crash().open("f").await.unwrap();
            (begun.elapsed(), file.read_at(0, 99999).await.unwrap())
        };
        assert_eq!(run(5).await, run(5).await);
        assert_ne!(run(5).await, run(6).await);
    }
}
