//! What the volume may be. Clients keep what they sent, byte by byte; the volume only says in which order it took it.
//!
//! So the oracle never learns a byte from the volume. A change of whole blocks that the volume made of a client's partial
//! one counts as the client's bytes and nothing else: where it brought back old bytes of a neighbour, the volume is wrong
//! from then on. A change that no client asked for (a clone takes over what it shows) changes no byte.
//!
//! A volume that is rolled back is from then on what it was in a snapshot, and a clone begins as what it shows: a [`Base`] says so.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ashlar::change::{Change, Numbered};
use ashlar::units::{ChangeNo, Seq};
use ashlar::volume::Witness;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::places::{BLOCK, Places};

tokio::task_local! {
    /// What the client that runs has asked for.
    static ASKED: Arc<Asked>;
}

/// What a client sends: bytes for a range, or zeros.
#[derive(Debug)]
pub struct Asked {
    range: Range<u64>,
    bytes: Option<Bytes>,
    /// Bytes of it that were accepted.
    accepted: AtomicU64,
    /// The last change that was made of it.
    last: AtomicU64,
}

impl Asked {
    /// These bytes are to stand at `offset`.
    pub fn bytes(offset: u64, bytes: Bytes) -> Arc<Asked> {
        Asked::new(offset..offset + bytes.len() as u64, Some(bytes))
    }

    /// The range is to read as zero.
    pub fn zeroes(range: Range<u64>) -> Arc<Asked> {
        Asked::new(range, None)
    }

    fn new(range: Range<u64>, bytes: Option<Bytes>) -> Arc<Asked> {
        Arc::new(Asked { range, bytes, accepted: AtomicU64::new(0), last: AtomicU64::new(0) })
    }

    /// Runs the request that asks for it.
    pub async fn by<T>(self: &Arc<Asked>, request: impl Future<Output = T>) -> T {
        ASKED.scope(self.clone(), request).await
    }

    /// The last change that was made of it, once it is acknowledged: then all of it was accepted.
    pub fn acknowledged(&self) -> ChangeNo {
        let (accepted, asked) = (self.accepted.load(Ordering::Relaxed), self.range.end - self.range.start);
        assert_eq!(accepted, asked, "acknowledged, but not all of it accepted: {self:?}");
        ChangeNo(self.last.load(Ordering::Relaxed))
    }

    /// The part of it that is in a change.
    fn part(&self, change: &Change) -> Sent {
        let extent = change.extent();
        let range = self.range.start.max(extent.start.0 * BLOCK)..self.range.end.min(extent.end().0 * BLOCK);
        assert!(range.start < range.end, "{extent:?} was accepted for {self:?}");
        let bytes = self.bytes.as_ref().map(|bytes| {
            assert!(matches!(change, Change::Write(..)), "{change:?} was accepted for {self:?}");
            bytes.slice((range.start - self.range.start) as usize..(range.end - self.range.start) as usize)
        });
        Sent { range, bytes }
    }
}

/// What one change means to the client that sent it.
#[derive(Clone, Debug)]
struct Sent {
    range: Range<u64>,
    bytes: Option<Bytes>,
}

impl Sent {
    /// Writes its part of `range` into `out`, which stands for `range`.
    fn apply(&self, range: &Range<u64>, out: &mut [u8]) {
        let part = self.range.start.max(range.start)..self.range.end.min(range.end);
        if part.start >= part.end {
            return;
        }
        let out = &mut out[(part.start - range.start) as usize..(part.end - range.start) as usize];
        match &self.bytes {
            Some(bytes) => {
                let from = (part.start - self.range.start) as usize;
                out.copy_from_slice(&bytes[from..from + out.len()]);
            }
            None => out.fill(0),
        }
    }
}

/// What clients sent to one server, in the order in which it was taken, on top of what that server found.
#[derive(Clone)]
pub struct Record {
    places: Arc<Places>,
    kept: Arc<Mutex<Kept>>,
}

/// What clients sent, in the order in which it was taken, since the volume was made.
#[derive(Default)]
struct Kept {
    sent: Vec<Sent>,
    bases: Vec<Base>,
}

/// What the volume was made to be, whatever it was before.
#[derive(Clone)]
struct Base {
    /// After so many changes.
    after: ChangeNo,
    /// Versions of it are younger than this.
    since: Seq,
    /// The watched bytes.
    image: Arc<Vec<u8>>,
}

impl Record {
    /// Of an empty volume.
    pub fn new(places: Arc<Places>) -> Record {
        Record { places, kept: Arc::default() }
    }

    /// Begins with the first `k` changes of an older record.
    pub fn begin_with(&self, older: &Record, k: ChangeNo) {
        let older = older.kept.lock();
        assert!(k.0 as usize <= older.sent.len(), "the volume claims {k} changes, {} were accepted", older.sent.len());
        assert!(
            older.bases.iter().all(|base| base.after <= k),
            "the volume claims {k} changes: it was rolled back later"
        );
        *self.kept.lock() = Kept { sent: older.sent[..k.0 as usize].to_vec(), bases: older.bases.clone() };
    }

    /// After `k` changes, the last ones so far, it was made to be that; versions of it are younger than `since`.
    pub fn is_made(&self, after: ChangeNo, since: Seq, image: Vec<u8>) {
        self.kept.lock().bases.push(Base { after, since, image: Arc::new(image) });
    }

    /// Whether the volume had these watched bytes after some number of changes, `floor` or more, when its version was at `seq`.
    pub fn was(&self, image: &[u8], floor: ChangeNo, seq: Seq) -> bool {
        let mut at = self.image_at(floor, seq);
        let kept = self.kept.lock();
        let mut rest = kept.sent[floor.0 as usize..].iter();
        loop {
            if at == image {
                return true;
            }
            let Some(sent) = rest.next() else { return false };
            self.apply(sent, &mut at);
        }
    }

    /// Learns the order of changes.
    pub fn witness(&self) -> Witness {
        let kept = self.kept.clone();
        Witness(Some(Arc::new(move |numbered: &Numbered| {
            let mut kept = kept.lock();
            assert_eq!(kept.sent.len() as u64 + 1, numbered.no.0, "change numbers are consecutive");
            let part = ASKED.try_with(|asked| {
                let part = asked.part(&numbered.change);
                asked.accepted.fetch_add(part.range.end - part.range.start, Ordering::Relaxed);
                asked.last.store(numbered.no.0, Ordering::Relaxed);
                part
            });
            kept.sent.push(part.unwrap_or(Sent { range: 0..0, bytes: None }));
        })))
    }

    /// How many changes were accepted.
    pub fn len(&self) -> ChangeNo {
        ChangeNo(self.kept.lock().sent.len() as u64)
    }

    /// The watched bytes after all of its changes.
    pub fn image(&self) -> Vec<u8> {
        self.image_at(self.len(), Seq(u64::MAX))
    }

    /// The watched bytes after the first `k` changes, in a version at `seq`.
    pub fn image_at(&self, k: ChangeNo, seq: Seq) -> Vec<u8> {
        let kept = self.kept.lock();
        let base = kept.bases.iter().rfind(|base| base.since < seq);
        let (from, mut image) = match base {
            Some(base) => (base.after.0 as usize, base.image.to_vec()),
            None => (0, vec![0; self.places.watched_bytes()]),
        };
        kept.sent[from..k.0 as usize].iter().for_each(|sent| self.apply(sent, &mut image));
        image
    }

    fn apply(&self, sent: &Sent, image: &mut [u8]) {
        for (at, part) in self.places.watched(&sent.range) {
            let len = (part.end - part.start) as usize;
            sent.apply(&part, &mut image[at..at + len]);
        }
    }

    /// Whether a read may have returned these bytes: each is as the changes up to `seen` left it (those were acknowledged
    /// before the read began), or as a later one that is known by now did.
    pub fn judge_read(&self, offset: u64, got: &[u8], seen: ChangeNo) {
        let range = offset..offset + got.len() as u64;
        let kept = self.kept.lock();
        let mut bytes = vec![0; got.len()];
        let (before, later) = kept.sent.split_at(seen.0 as usize);
        let mut from = 0;
        if let Some(base) = kept.bases.last() {
            from = base.after.0 as usize;
            for (at, part) in self.places.watched(&range) {
                let len = (part.end - part.start) as usize;
                let into = (part.start - range.start) as usize;
                bytes[into..into + len].copy_from_slice(&base.image[at..at + len]);
            }
        }
        before[from..].iter().for_each(|sent| sent.apply(&range, &mut bytes));
        let mut right: Vec<bool> = bytes.iter().zip(got).map(|(byte, got)| byte == got).collect();
        for sent in later.iter().filter(|sent| sent.range.start < range.end && range.start < sent.range.end) {
            sent.apply(&range, &mut bytes);
            right.iter_mut().zip(bytes.iter().zip(got)).for_each(|(right, (byte, got))| *right |= byte == got);
        }
        let wrong = right.iter().position(|right| !right);
        assert_eq!(wrong, None, "a read of {range:?} returned a byte that nobody sent there, or one that is gone");
    }
}

/// How many changes must survive.
#[derive(Clone, Default)]
pub struct Floors(Arc<Mutex<Floor>>);

#[derive(Clone, Copy, Default, Debug)]
pub struct Floor {
    /// Acknowledged: survive a kill.
    pub acknowledged: ChangeNo,
    /// Covered by a FLUSH or FUA: survive as the durability says.
    pub flushed: ChangeNo,
}

impl Floors {
    /// What is promised now.
    pub fn now(&self) -> Floor {
        *self.0.lock()
    }

    /// What is promised when a server begins or has ended.
    pub fn reset(acknowledged: ChangeNo, flushed: ChangeNo) -> Floors {
        Floors(Arc::new(Mutex::new(Floor { acknowledged, flushed })))
    }

    /// A change was acknowledged.
    pub fn acknowledge(&self, no: ChangeNo, fua: bool) {
        let mut floor = self.0.lock();
        floor.acknowledged = floor.acknowledged.max(no);
        if fua {
            floor.flushed = floor.flushed.max(no);
        }
    }

    /// A FLUSH that began when `acknowledged` was promised has returned.
    pub fn flush(&self, acknowledged: ChangeNo) {
        let mut floor = self.0.lock();
        floor.flushed = floor.flushed.max(acknowledged);
    }
}
