//! Reading what stands in a slot of the log, or in any place of an object: only whole objects count; why a torn one may be passed over is
//! said in [`crate::engine::slot`].

use bytes::Bytes;

use crate::codec::object::Found;
use crate::codec::seal::Sealer;
use crate::error::{Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::places::{FENCE_PLACES_MAX, place};
use crate::format::segment::{self, LogRead};
use crate::reading::again;
use crate::store::{Key, Store, StoreError};
use crate::units::Seq;

/// How much of an object is asked for first: the heads of most segments and small checkpoints are shorter.
const HEAD_GUESS: u64 = 64 << 10;

/// What a store kept of a PUT that broke off.
#[derive(Clone, Debug)]
pub struct Torn {
    /// Where it is: the last place of its slot that is taken.
    pub key: Key,
    /// What it was to be, if its head is there.
    pub head: Option<Box<LogRead>>,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = self.head.as_ref().map_or("an object", |read| read.object.name());
        write!(
            f,
            "the log ends with {}, the first part of {what} whose upload broke off; it was never acknowledged",
            self.key
        )
    }
}

/// What stands in a slot of the log.
#[derive(Clone, Debug)]
pub enum Slot {
    /// Nothing.
    Free,
    /// Nothing that is whole: nobody has the slot yet.
    Torn(Torn),
    /// The object that has the slot, and its place.
    Holds(LogRead, Key),
}

/// What stands in a slot of the log: the first whole object among its places.
pub async fn read_slot(store: &dyn Store, keys: &Keys, sealer: &Sealer, seq: Seq) -> Result<Slot> {
    read_places(store, &keys.segment(seq), sealer, seq).await
}

/// The first whole object among the places of this one.
pub(crate) async fn read_places(store: &dyn Store, own: &Key, sealer: &Sealer, seq: Seq) -> Result<Slot> {
    let mut found = Slot::Free;
    for n in 0..FENCE_PLACES_MAX {
        let key = place(own, n).map_err(VolumeError::store("reading the log"))?;
        match read_log_object(store, key, sealer, seq).await {
            Ok(Slot::Torn(torn)) => found = Slot::Torn(torn),
            Err(error) if error.is_not_found() => break,
            other => return other,
        }
    }
    Ok(found)
}

/// The log object under one key: [`Slot::Holds`] or [`Slot::Torn`], if there is any.
pub(crate) async fn read_log_object(store: &dyn Store, key: Key, sealer: &Sealer, seq: Seq) -> Result<Slot> {
    let read = || read_log_object_once(store, key.clone(), sealer, seq);
    again::until_proven(read, |slot| matches!(slot, Slot::Torn(_))).await
}

async fn read_log_object_once(store: &dyn Store, key: Key, sealer: &Sealer, seq: Seq) -> Result<Slot> {
    let decode = |bytes: &Bytes| segment::decode_log_object(sealer, seq, bytes);
    let (read, have) = match read_head(store, &key, decode).await? {
        Head::There(read, have) => (read, have),
        Head::Torn => return Ok(Slot::Torn(Torn { key, head: None })),
    };
    let total = read.total();
    let is_whole = match have {
        Have::All(len) => len >= total,
        Have::AtLeast(len) if len >= total => true,
        // What is behind the head was not read: the last byte says whether it is there.
        Have::AtLeast(_) => {
            let last = store.get_range(&key, total - 1..total).await;
            !last.map_err(VolumeError::store(format!("reading {key}")))?.is_empty()
        }
    };
    Ok(match is_whole {
        true => Slot::Holds(read, key),
        false => Slot::Torn(Torn { key, head: Some(Box::new(read)) }),
    })
}

/// The beginning of an object.
pub(crate) enum Head<T> {
    /// Its head, and what is known of its length.
    There(T, Have),
    /// It ends before its head does.
    Torn,
}

/// What is known of the length of an object, in bytes.
#[derive(Clone, Copy)]
pub(crate) enum Have {
    All(u64),
    AtLeast(u64),
}

impl Have {
    /// After `got` bytes came of `asked`.
    pub fn of(got: &Bytes, asked: u64) -> Have {
        match got.len() as u64 {
            len if len < asked => Have::All(len),
            len => Have::AtLeast(len),
        }
    }
}

/// Reads as much of an object as its head takes.
pub(crate) async fn read_head<T>(
    store: &dyn Store,
    key: &Key,
    decode: impl Fn(&Bytes) -> std::result::Result<Found<T>, crate::codec::CorruptError>,
) -> Result<Head<T>> {
    let failed = |error: StoreError| VolumeError::Store { doing: format!("reading {key}"), source: error };
    let mut asked = HEAD_GUESS;
    loop {
        let begin = store.get_range(key, 0..asked).await.map_err(failed)?;
        let have = Have::of(&begin, asked);
        match decode(&begin).map_err(VolumeError::corrupt(key))? {
            Found::Whole(it) => return Ok(Head::There(it, have)),
            Found::NeedMore { total } if total > asked && matches!(have, Have::AtLeast(_)) => asked = total,
            Found::NeedMore { .. } => return Ok(Head::Torn),
        }
    }
}
