//! The keeper: the one task that writes the slabs. It reads the tables of those that are there, then gathers what is
//! offered into bundles, appends them to the newest slab, and deletes the oldest for every new one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout, timeout_at};

use super::bundle::{self, Entry, Head};
use super::index::Place;
use super::{Offer, PATIENCE, Tier, no_answer};
use crate::disk::{Disk, DiskFile};

/// Bytes of frames that are gathered before they are written; in bundles of at most half of it.
const BUNDLE_BYTES: usize = 1 << 20;

/// The longest that a frame waits for others.
const GATHER: Duration = Duration::from_millis(200);

/// Bytes that a frame takes in the average of a slab at least, so that the index stays small: one that holds more frames is
/// full.
const FRAME_BYTES_MEAN: u64 = 4096;

/// Of a table, so much is read at first.
const HEAD_BYTES: usize = 4096;

/// Runs until the tier is dropped or turned off. `reading` is dropped once what is there is known.
pub(super) async fn run(
    tier: Arc<Tier>,
    disk: Arc<dyn Disk>,
    mut offers: UnboundedReceiver<Offer>,
    reading: Option<OwnedSemaphorePermit>,
) {
    let mut keeper = Keeper { tier: tier.clone(), disk: disk.clone(), active: None };
    let result = match keeper.load().await {
        Ok(()) => {
            drop(reading);
            tier.room_made.notify_waiters();
            keeper.serve(&mut offers).await
        }
        Err(error) => Err(("reading what is there failed", error)),
    };
    // Nobody needs to wait for what still waits.
    drop(offers);
    let Err((what, error)) = result else { return tier.room_made.notify_waiters() };
    let slabs = tier.turn_off(&disk.path(), &format!("{what}: {error}"));
    tier.room_made.notify_waiters();
    if error.kind() == io::ErrorKind::StorageFull {
        // Others may need the space more than a cache does.
        for slab in slabs {
            if disk.remove(&name_of(slab)).await.is_err() {
                break;
            }
        }
    }
}

impl Offer {
    fn bytes(&self) -> usize {
        self.frames.iter().map(|(_, frame)| frame.len()).sum()
    }
}

type Failed = (&'static str, io::Error);

struct Keeper {
    tier: Arc<Tier>,
    disk: Arc<dyn Disk>,
    /// The newest slab, and where it goes on.
    active: Option<Active>,
}

struct Active {
    number: u32,
    file: Arc<dyn DiskFile>,
    end: u64,
}

/// A frame that is to be written.
type Kept = (u64, Bytes);

impl Keeper {
    /// Finds what earlier runs left.
    async fn load(&mut self) -> io::Result<()> {
        let mut numbers: Vec<u32> = self.disk.list("").await?.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        for number in numbers {
            let file = self.disk.open(&name_of(number)).await?;
            let bytes = file.len().await?;
            let (entries, end) = tables(&*file, number, bytes).await?;
            {
                let mut index = self.tier.index.lock();
                index.add_slab(number, file.clone(), bytes);
                for entry in entries {
                    index.insert(entry.key, Place::new(number, entry.at));
                }
            }
            self.active = Some(Active { number, file, end });
        }
        // The tier may have been larger.
        while self.tier.index.lock().bytes() > self.tier.size {
            self.let_oldest_go().await?;
        }
        Ok(())
    }

    async fn serve(&mut self, offers: &mut UnboundedReceiver<Offer>) -> Result<(), Failed> {
        while let Some(first) = offers.recv().await {
            let deadline = Instant::now() + GATHER;
            let mut bytes = first.bytes();
            let mut gathered = vec![first];
            while bytes < BUNDLE_BYTES {
                let Ok(Some(offer)) = timeout_at(deadline, offers.recv()).await else { break };
                bytes += offer.bytes();
                gathered.push(offer);
            }
            if self.tier.is_off() {
                return Ok(());
            }
            self.keep(&gathered).await.map_err(|error| ("writing failed", error))?;
            drop(gathered);
            self.tier.room_made.notify_waiters();
        }
        Ok(())
    }

    /// Writes what is not there already.
    async fn keep(&mut self, offers: &[Offer]) -> io::Result<()> {
        let mut bundle: Vec<Kept> = Vec::new();
        let mut bytes = 0;
        for (key, frame) in offers.iter().flat_map(|offer| &offer.frames) {
            if self.tier.index.lock().contains(*key) {
                continue;
            }
            if bytes + frame.len() > BUNDLE_BYTES / 2 && !bundle.is_empty() {
                self.write(&std::mem::take(&mut bundle)).await?;
                bytes = 0;
            }
            bytes += frame.len();
            bundle.push((*key, frame.clone()));
        }
        if bundle.is_empty() { Ok(()) } else { self.write(&bundle).await }
    }

    /// Appends a bundle to the newest slab, or to a new one.
    async fn write(&mut self, bundle: &[Kept]) -> io::Result<()> {
        let len = bundle::head_bytes(bundle.len()) + bundle.iter().map(|(_, frame)| frame.len()).sum::<usize>();
        let full = self.active.as_ref().is_none_or(|active| {
            let frames = u64::from(self.tier.index.lock().frames_in(active.number)) + bundle.len() as u64;
            active.end + len as u64 > self.tier.slab_bytes || frames > self.tier.slab_bytes / FRAME_BYTES_MEAN
        });
        if full {
            self.begin_slab().await?;
        }
        self.append(bundle).await
    }

    /// Makes room for a slab, begins it, and brings over what was asked for in those that went.
    async fn begin_slab(&mut self) -> io::Result<()> {
        let last = self.active.take().map(|active| active.number).or(self.tier.index.lock().newest());
        let number =
            last.unwrap_or(0).checked_add(1).ok_or_else(|| io::Error::other("the slabs' numbers are used up"))?;
        let mut kept = Vec::new();
        while self.tier.index.lock().bytes() + self.tier.slab_bytes > self.tier.size {
            match self.let_oldest_go().await? {
                Some(frames) => kept.extend(frames),
                None => break,
            }
        }
        let file = self.disk.create(&name_of(number)).await?;
        self.tier.index.lock().add_slab(number, file.clone(), 0);
        self.active = Some(Active { number, file, end: 0 });
        let (mut bytes, mut from) = (0, 0);
        for at in 0..kept.len() {
            bytes += kept[at].1.len();
            if bytes >= BUNDLE_BYTES / 4 || at + 1 == kept.len() {
                self.append(&kept[from..=at]).await?;
                (bytes, from) = (0, at + 1);
            }
        }
        Ok(())
    }

    async fn append(&mut self, bundle: &[Kept]) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let table: Vec<(u64, u32)> = bundle.iter().map(|(key, frame)| (*key, frame.len() as u32)).collect();
        let head = bundle::encode_head(active.number, active.end, &table);
        let mut at = active.end + head.len() as u64;
        let end = at + table.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        // It counts before it is there: also a write that fails may have made the file longer.
        self.tier.index.lock().set_slab_bytes(active.number, end);
        let parts = std::iter::once(head).chain(bundle.iter().map(|(_, frame)| frame.clone()));
        let written = timeout(PATIENCE, active.file.write_at(active.end, parts.collect())).await;
        written.unwrap_or_else(|_| Err(no_answer()))?;
        active.end = end;
        // Had it been turned off meanwhile, there would be no slab to find them in.
        let mut index = self.tier.index.lock();
        for (key, len) in table {
            index.insert(key, Place::new(active.number, at));
            at += u64::from(len);
        }
        self.tier.counts.written.fetch_add(bundle.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Deletes the oldest slab. Returns those of its frames that were asked for, up to half a slab; `None` if there is no
    /// slab.
    async fn let_oldest_go(&mut self) -> io::Result<Option<Vec<Kept>>> {
        let oldest = self.tier.index.lock().oldest().map(|(number, slab)| (number, slab.file.clone(), slab.bytes));
        let Some((number, file, bytes)) = oldest else { return Ok(None) };
        if self.active.as_ref().is_some_and(|active| active.number == number) {
            self.active = None;
        }
        let (entries, _) = tables(&*file, number, bytes).await?;
        let asked_for =
            |entry: &Entry| self.tier.index.lock().remove(entry.key, Place::new(number, entry.at)) == Some(true);
        let entries: Vec<Entry> = entries.into_iter().filter(asked_for).collect();
        self.tier.index.lock().remove_slab(number);
        let mut kept = Vec::new();
        let mut left = self.tier.slab_bytes / 2;
        for entry in entries {
            let Some(rest) = left.checked_sub(u64::from(entry.len) + bundle::head_bytes(1) as u64) else { break };
            left = rest;
            kept.push((entry.key, file.read_at(entry.at, entry.len as usize).await?));
        }
        self.disk.remove(&name_of(number)).await?;
        Ok(Some(kept))
    }
}

/// The frames of a slab by its tables, and where the last bundle ends.
async fn tables(file: &dyn DiskFile, number: u32, bytes: u64) -> io::Result<(Vec<Entry>, u64)> {
    let (mut all, mut at) = (Vec::new(), 0);
    let mut need = HEAD_BYTES;
    while at < bytes {
        let head = file.read_at(at, need).await?;
        match bundle::decode_head(number, at, bytes, &head) {
            Head::Whole(entries, end) => {
                all.extend(entries);
                (at, need) = (end, HEAD_BYTES);
            }
            // The file is shorter than it was.
            Head::NeedMore(more) if more <= head.len() || head.len() < need => break,
            Head::NeedMore(more) => need = more,
            Head::None => break,
        }
    }
    Ok((all, at))
}

/// The name of a slab's file.
pub(super) fn name_of(number: u32) -> String {
    format!("slab-{number:08x}")
}

fn number_of(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_prefix("slab-")?, 16).ok()?;
    (name_of(number) == name).then_some(number)
}
