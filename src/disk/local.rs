//! The server's own disk: a directory with real files.
//!
//! **Durability.** [`DiskFile::sync`] is fdatasync. A created or removed name is durable when the call returns: the
//! directory is synced, and so is every parent of a directory that had to be made.
//!
//! **Latency.** A write of some kilobytes into the page cache takes a few microseconds, less than handing it to
//! another thread does, so small writes are done at once on the caller's task. The page cache can be slow, though
//! (dirty limits, a filesystem busy with its own log), and a slow call holds up the reactor. So once such a write took
//! longer than [`SLOW`], the next [`AWAY`] writes go to the workers, as all large writes and reads do.
//!
//! An fdatasync of a few kilobytes takes a tenth of a millisecond on a good disk and tens of them on a bad one, while the
//! way to another thread and back costs as much as the former. So a small sync is done at once where syncs of this file
//! have been [`QUICK`] on average of late, and on the workers otherwise. That holds up one thread of the runtime for
//! less than a slow write may; the others go on.
//!
//! **Exclusion.** [`LocalDisk::lock`] keeps a second server out of the directory. It is advisory (flock), so it also
//! works where the kernel forgets it with the process, however that died; it does not reach across hosts.
//!
//! **Identity.** Once a directory was locked, it and those below it are only used while it is the directory that was
//! locked. If its filesystem is unmounted, what is found or made in the directory that shows below does not count: a
//! journal must not go on there, nor be taken for absent.

use std::fs;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::time::Instant;

use crate::disk::{Disk, DiskFile};
use crate::outside::Workers;
use crate::outside::directory::Numbers;

/// Writes of more than this many bytes always go to the workers. A queue of 32 small writes to a volume is less.
const INLINE_BYTES: usize = 256 << 10;
/// A sync of fewer bytes than this counts as small.
const SMALL_SYNC_BYTES: u64 = 128 << 10;
/// A write that took longer than this was not a mere copy into the page cache.
const SLOW: Duration = Duration::from_millis(1);
/// So many writes go to the workers after a slow one.
const AWAY: u32 = 256;
/// A sync that takes less than this on average is not worth the way to another thread.
const QUICK: Duration = Duration::from_micros(250);
/// A sync weighs as one in so many in that average.
const SYNC_WEIGHT: u64 = 8;
/// Linux takes at most this many parts in one call.
const PARTS_MAX: usize = 1024;

/// A directory of the local filesystem. It is made when the first file is created in it, or at the lock.
#[derive(Clone, Debug)]
pub struct LocalDisk {
    root: PathBuf,
    /// The directory that is locked: this one or one above it.
    home: Arc<Home>,
    workers: Workers,
}

/// A directory that may be locked.
#[derive(Debug)]
struct Home {
    path: PathBuf,
    /// What tells it and the file of its lock from others, once it was locked.
    locked: OnceLock<[Numbers; 2]>,
}

/// The file that is locked.
const LOCK: &str = "lock";

/// Keeps other servers out of a directory until dropped.
#[derive(Debug)]
pub struct DirLock {
    _file: fs::File,
}

impl LocalDisk {
    /// The directory `root`.
    pub fn new(root: impl Into<PathBuf>, workers: Workers) -> LocalDisk {
        let root = root.into();
        let home = Arc::new(Home { path: root.clone(), locked: OnceLock::new() });
        LocalDisk { root, home, workers }
    }

    /// A directory below this one.
    pub fn below(&self, dir: &str) -> LocalDisk {
        LocalDisk { root: self.root.join(dir), home: Arc::clone(&self.home), workers: self.workers }
    }

    /// Takes the directory for this process; `WouldBlock`, naming the other process, if another one has it. The lock is
    /// a file called `lock` beside the others; it ends with the guard or the process and leaves the file behind.
    pub async fn lock(&self) -> io::Result<DirLock> {
        let (root, home) = (self.root.clone(), Arc::clone(&self.home));
        self.workers
            .run(move || {
                let lock = take_lock(&root)?;
                if root == home.path {
                    let numbers = [Numbers::at(&root)?, Numbers::of(&lock._file.metadata()?)];
                    home.locked.get_or_init(|| numbers);
                }
                Ok(lock)
            })
            .await
    }

    /// Does something in the directory, on the workers. What came of it does not count if it is not the one that was locked.
    async fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let home = Arc::clone(&self.home);
        self.workers
            .run(move || {
                home.check()?;
                let done = work();
                home.check()?;
                done
            })
            .await
    }

    /// Names of the directories directly in it, in order; none if it does not exist.
    pub async fn directories(&self) -> io::Result<Vec<String>> {
        let root = self.root.clone();
        self.inside(move || list_kind(&root, fs::FileType::is_dir)).await
    }

    fn find(&self, name: &str) -> io::Result<PathBuf> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        match name.split('/').all(plain) {
            true => Ok(self.root.join(name)),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a name of a file"))),
        }
    }

    fn file(&self, file: fs::File) -> Arc<dyn DiskFile> {
        Arc::new(LocalFile::new(file, self.workers))
    }
}

#[async_trait]
impl Disk for LocalDisk {
    fn path(&self) -> String {
        self.root.display().to_string()
    }

    fn host_life(&self) -> Option<String> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned()).filter(|id| !id.is_empty())
    }

    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = if dir.is_empty() { self.root.clone() } else { self.find(dir)? };
        self.inside(move || list_kind(&path, fs::FileType::is_file)).await
    }

    async fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let (path, root) = (self.find(name)?, self.root.clone());
        let file = self.inside(move || create_file(&root, &path)).await?;
        Ok(self.file(file))
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.find(name)?;
        #[allow(clippy::disallowed_methods)] // this is the door
        let file = self.inside(move || open_options().open(path)).await?;
        Ok(self.file(file))
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.find(name)?;
        self.inside(move || remove_file(&path)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to, root) = (self.find(from)?, self.find(to)?, self.root.clone());
        self.inside(move || rename_file(&root, &from, &to)).await
    }
}

#[derive(Debug)]
struct LocalFile {
    file: Arc<fs::File>,
    workers: Workers,
    /// So many more writes go to the workers.
    away: AtomicU32,
    /// Bytes written since the last sync began.
    unsynced: AtomicU64,
    /// What a sync took of late, on average.
    sync_nanos: AtomicU64,
}

impl LocalFile {
    fn new(file: fs::File, workers: Workers) -> LocalFile {
        LocalFile {
            file: Arc::new(file),
            workers,
            away: AtomicU32::new(0),
            unsynced: AtomicU64::new(0),
            // Not known yet: the first few go to the workers.
            sync_nanos: AtomicU64::new(2 * QUICK.as_nanos() as u64),
        }
    }

    /// Remembers how long a small sync took. Syncs of one file take turns, and a lost one would make no difference.
    fn note_sync(&self, took: Duration) {
        let (average, took) = (self.sync_nanos.load(Ordering::Relaxed), took.as_nanos() as u64);
        let next = average - average / SYNC_WEIGHT + took / SYNC_WEIGHT;
        self.sync_nanos.store(next, Ordering::Relaxed);
    }

    fn syncs_quickly(&self) -> bool {
        self.sync_nanos.load(Ordering::Relaxed) < QUICK.as_nanos() as u64
    }
}

#[async_trait]
impl DiskFile for LocalFile {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        self.workers.run(move || read_up_to(&file, offset, len)).await
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        self.unsynced.fetch_add(bytes as u64, Ordering::Relaxed);
        if bytes > INLINE_BYTES || self.away.load(Ordering::Relaxed) > 0 {
            // Writers of one file take turns, and a lost count would only change where a write is done.
            self.away.store(self.away.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
            let file = Arc::clone(&self.file);
            return self.workers.run(move || write_all(&file, offset, &parts)).await;
        }
        let begun = Instant::now();
        let written = write_all(&self.file, offset, &parts);
        if begun.elapsed() > SLOW {
            self.away.store(AWAY, Ordering::Relaxed);
        }
        written
    }

    async fn write_durably_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        self.workers.run(move || write_all_durably(&file, offset, &parts)).await
    }

    async fn sync(&self) -> io::Result<()> {
        let is_small = self.unsynced.swap(0, Ordering::Relaxed) <= SMALL_SYNC_BYTES;
        let file = Arc::clone(&self.file);
        let timed = move || {
            let begun = Instant::now();
            (file.sync_data(), begun.elapsed())
        };
        let (synced, took) = match is_small && self.syncs_quickly() {
            true => timed(),
            false => self.workers.run(timed).await,
        };
        if is_small {
            self.note_sync(took);
        }
        synced
    }
}

fn open_options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true);
    options
}

fn read_up_to(file: &fs::File, offset: u64, len: usize) -> io::Result<Bytes> {
    // No more than there is: a length from a damaged header must not become an allocation.
    let there = file.metadata()?.len().saturating_sub(offset);
    let mut buffer = vec![0; len.min(usize::try_from(there).unwrap_or(usize::MAX))];
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    buffer.truncate(filled);
    Ok(Bytes::from(buffer))
}

/// Writes all parts, however many calls it takes.
fn write_all(file: &fs::File, offset: u64, parts: &[Bytes]) -> io::Result<()> {
    write_all_with(file, offset, parts, ReadWriteFlags::empty())
}

/// The same, durably.
fn write_all_durably(file: &fs::File, offset: u64, parts: &[Bytes]) -> io::Result<()> {
    match write_all_with(file, offset, parts, ReadWriteFlags::DSYNC) {
        // Not every filesystem knows it: then all of the file goes to the disk.
        Err(err) if matches!(Errno::from_io_error(&err), Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) => {
            write_all(file, offset, parts)?;
            file.sync_data()
        }
        written => written,
    }
}

fn write_all_with(file: &fs::File, mut offset: u64, parts: &[Bytes], flags: ReadWriteFlags) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let now = rest.len().min(PARTS_MAX);
        match rustix::io::pwritev2(file, &rest[..now], offset, flags) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

impl Home {
    /// Whether it is there, if it was ever locked. It counts by itself or by the file of its lock, which somebody may have removed:
    /// not every filesystem keeps the numbers of directories.
    fn check(&self) -> io::Result<()> {
        let Some([directory, lock]) = self.locked.get() else { return Ok(()) };
        let is = |path: &Path, numbers: &Numbers| Numbers::at(path).is_ok_and(|found| found == *numbers);
        if is(&self.path, directory) || is(&self.path.join(LOCK), lock) {
            return Ok(());
        }
        let place = self.path.display();
        Err(io::Error::other(format!(
            "{place} is not the directory that was locked any more: is its filesystem mounted?"
        )))
    }
}

/// Names of what is of one kind directly in `dir`, in order.
fn list_kind(dir: &Path, is_wanted: fn(&fs::FileType) -> bool) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A name that is not text is none of ours.
        if let (true, Some(name)) = (is_wanted(&entry.file_type()?), entry.file_name().to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn create_file(root: &Path, path: &Path) -> io::Result<fs::File> {
    let dir = path.parent().unwrap_or(root);
    make_dir(dir)?;
    #[allow(clippy::disallowed_methods)] // this is the door
    let file = open_options().create_new(true).open(path)?;
    sync_dir(dir)?;
    Ok(file)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // Also when it was not there: an earlier attempt may have got as far as the removal, and not to the sync.
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => match path.parent().map(sync_dir) {
            Some(Err(err)) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        },
    }
}

/// The new name is durable before the old one's absence is: a crash between leaves one of them, or both.
fn rename_file(root: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let (dir, old_dir) = (to.parent().unwrap_or(root), from.parent().unwrap_or(root));
    make_dir(dir)?;
    fs::rename(from, to)?;
    sync_dir(dir)?;
    if dir == old_dir { Ok(()) } else { sync_dir(old_dir) }
}

/// Makes the directory and those above it that are missing, durably.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(above)?;
    match fs::create_dir(dir) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => sync_dir(above),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    #[allow(clippy::disallowed_methods)] // this is the door
    fs::File::open(dir)?.sync_all()
}

fn take_lock(root: &Path) -> io::Result<DirLock> {
    make_dir(root)?;
    let path = root.join(LOCK);
    #[allow(clippy::disallowed_methods)] // this is the door
    let mut file = open_options().create(true).truncate(false).open(&path)?;
    if let Err(err) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        return Err(match err {
            Errno::WOULDBLOCK => taken(root, &file),
            err => io::Error::new(io::Error::from(err).kind(), format!("could not lock {}: {err}", path.display())),
        });
    }
    // For the sentence that the next one gets to read; the lock itself does not depend on it.
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(DirLock { _file: file })
}

fn taken(root: &Path, file: &fs::File) -> io::Error {
    let pid = read_up_to(file, 0, 20).ok().and_then(|text| String::from_utf8(text.to_vec()).ok());
    let holder = match pid.as_deref().map(str::trim) {
        Some(pid) if !pid.is_empty() => format!("process {pid}"),
        _ => "another process".to_owned(),
    };
    let what = format!(
        "{} is in use by {holder}: stop that server, or give this one a state directory of its own [A11]",
        root.display()
    );
    io::Error::new(io::ErrorKind::WouldBlock, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, LocalDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = LocalDisk::new(dir.path().join("a/b"), Workers::Threads);
        (dir, disk)
    }

    #[tokio::test]
    async fn writes_of_many_parts_at_any_offset_read_back_joined() {
        let (_dir, disk) = disk();
        let file = disk.create("x/y").await.unwrap();
        let parts: Vec<Bytes> = (0..3000_u32).map(|i| Bytes::from(vec![i as u8; (i % 7) as usize])).collect();
        file.write_at(5, parts.clone()).await.unwrap();
        file.sync().await.unwrap();
        let joined = parts.concat();
        assert_eq!(file.len().await.unwrap(), 5 + joined.len() as u64);
        assert_eq!(file.read_at(5, joined.len()).await.unwrap(), joined);
        assert_eq!(file.read_at(0, 5).await.unwrap(), vec![0; 5]);
        assert_eq!(file.read_at(6, usize::MAX).await.unwrap(), joined[1..], "short at the end");
        assert_eq!(file.read_at(1 << 40, 10).await.unwrap(), Bytes::new());
    }

    #[tokio::test]
    async fn large_and_small_writes_take_different_ways_to_the_same_result() {
        let (_dir, disk) = disk();
        let file = disk.create("f").await.unwrap();
        for len in [1, INLINE_BYTES, INLINE_BYTES + 1, 3 << 20] {
            let data = Bytes::from(vec![len as u8 | 1; len]);
            file.write_at(0, vec![data.clone()]).await.unwrap();
            assert_eq!(disk.open("f").await.unwrap().read_at(0, len).await.unwrap(), data);
        }
    }

    #[tokio::test]
    async fn a_durable_write_reads_back_like_any_other() {
        let (_dir, disk) = disk();
        let file = disk.create("f").await.unwrap();
        file.write_at(0, vec![Bytes::from(vec![1; 8192])]).await.unwrap();
        file.write_durably_at(4096, vec![Bytes::from(vec![2; 10]), Bytes::from(vec![3; 10])]).await.unwrap();
        assert_eq!(file.read_at(4095, 22).await.unwrap(), [&[1][..], &[2; 10], &[3; 10], &[1]].concat());
    }

    #[tokio::test]
    async fn a_sync_goes_to_the_workers_unless_syncs_have_been_quick() {
        let file = LocalFile::new(tempfile::tempfile().unwrap(), Workers::Threads);
        assert!(!file.syncs_quickly(), "not known yet");
        (0..20).for_each(|_| file.note_sync(QUICK / 2));
        assert!(file.syncs_quickly());
        file.note_sync(QUICK * 10);
        assert!(!file.syncs_quickly(), "a slow one counts");
        (0..20).for_each(|_| file.note_sync(QUICK / 2));
        assert!(file.syncs_quickly(), "and is forgotten");
    }

    #[tokio::test]
    async fn names_are_created_once_listed_in_order_and_removed() {
        let (_dir, disk) = disk();
        assert_eq!(disk.list("").await.unwrap(), Vec::<String>::new(), "no directory yet");
        for name in ["b", "a", "sub/c"] {
            disk.create(name).await.unwrap();
        }
        assert_eq!(disk.create("a").await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(disk.list("").await.unwrap(), ["a", "b"]);
        assert_eq!(disk.list("sub").await.unwrap(), ["c"]);
        disk.remove("a").await.unwrap();
        disk.remove("a").await.unwrap();
        disk.remove("nowhere/a").await.unwrap();
        assert_eq!(disk.open("a").await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.list("").await.unwrap(), ["b"]);
    }

    #[tokio::test]
    async fn a_renamed_file_is_there_under_its_new_name_only_and_replaces_what_was_there() {
        let (_dir, disk) = disk();
        disk.create("a").await.unwrap().write_at(0, vec![Bytes::from_static(b"a")]).await.unwrap();
        disk.create("b").await.unwrap();
        disk.rename("a", "b").await.unwrap();
        assert_eq!(disk.list("").await.unwrap(), ["b"]);
        disk.rename("b", "sub/c").await.unwrap();
        assert_eq!((disk.list("").await.unwrap(), disk.list("sub").await.unwrap()), (vec![], vec!["c".to_owned()]));
        assert_eq!(disk.open("sub/c").await.unwrap().read_at(0, 9).await.unwrap(), "a");
        assert_eq!(disk.rename("a", "b").await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.rename("sub/c", "../c").await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn a_name_cannot_leave_the_directory() {
        let (_dir, disk) = disk();
        for name in ["../x", "/etc/x", "", "a/../../x", "."] {
            assert_eq!(disk.create(name).await.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }

    #[tokio::test]
    async fn a_directory_is_locked_once_and_the_refusal_names_the_holder() {
        let (_dir, disk) = disk();
        let lock = disk.lock().await.unwrap();
        let refused = disk.lock().await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let (path, pid) = (disk.path(), std::process::id());
        let expected = format!(
            "{path} is in use by process {pid}: stop that server, or give this one a state directory of its own [A11]"
        );
        assert_eq!(refused.to_string(), expected);
        drop(lock);
        disk.lock().await.unwrap();
    }

    /// As a filesystem that is unmounted: what shows below is another directory.
    #[tokio::test]
    async fn a_directory_that_was_locked_and_is_another_one_now_is_not_used() {
        let (dir, disk) = disk();
        let (root, away) = (dir.path().join("a/b"), dir.path().join("away"));
        let volume = disk.below("volume");
        volume.create("before").await.unwrap(); // nothing is locked yet
        let _lock = disk.lock().await.unwrap();
        let file = volume.create("1").await.unwrap();
        fs::rename(&root, &away).unwrap();
        for is_mount_point_left in [false, true] {
            if is_mount_point_left {
                fs::create_dir(&root).unwrap();
            }
            for disk in [&disk, &volume] {
                let failures = [
                    disk.list("").await.map(drop).unwrap_err(),
                    disk.directories().await.map(drop).unwrap_err(),
                    disk.create("2").await.map(drop).unwrap_err(),
                    disk.open("1").await.map(drop).unwrap_err(),
                    disk.remove("1").await.unwrap_err(),
                    disk.rename("1", "3").await.unwrap_err(),
                ];
                for failure in failures {
                    assert!(
                        failure.to_string().contains(" is not the directory that was locked any more: "),
                        "{failure}"
                    );
                }
            }
            assert_eq!(root.exists(), is_mount_point_left);
        }
        file.write_at(0, vec![Bytes::from_static(b"still")]).await.unwrap();
        fs::remove_dir(&root).unwrap();
        fs::rename(&away, &root).unwrap();
        fs::remove_file(root.join(LOCK)).unwrap();
        assert_eq!(volume.list("").await.unwrap(), ["1", "before"]);
        assert_eq!(disk.directories().await.unwrap(), ["volume"]);
        assert_eq!(volume.open("1").await.unwrap().read_at(0, 9).await.unwrap(), "still");
    }
}
