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
use crate::store::{Front, Key, Store, StoreError};
use crate::units::Seq;

/// How much of an object is asked for first: the heads of most segments and small checkpoints are shorter.
const HEAD_GUESS: u64 = 64 << 10;

/// An object with no more bytes than that is asked for whole, if its length is known: a second request takes longer.
const WHOLE_MAX: u64 = 512 << 10;

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
        // The store said so with the same answer.
        Have::Exactly(len) if len == total => true,
        // What is behind the head was not read: the last byte says whether it is there.
        Have::AtLeast(_) | Have::Exactly(_) => {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Have {
    /// All of it came.
    All(u64),
    /// So many came.
    AtLeast(u64),
    /// So long is it, by what the store says; not all of it came.
    Exactly(u64),
}

impl Have {
    /// After this came of `asked` bytes.
    pub fn of(front: &Front, asked: u64) -> Have {
        match (front.bytes.len() as u64, front.total) {
            (len, _) if len < asked => Have::All(len),
            (len, Some(total)) if total >= len => Have::Exactly(total),
            (len, _) => Have::AtLeast(len),
        }
    }
}

/// Reads as much of an object as its head takes.
pub(crate) async fn read_head<T>(
    store: &dyn Store,
    key: &Key,
    decode: impl Fn(&Bytes) -> std::result::Result<Found<T>, crate::codec::CorruptError>,
) -> Result<Head<T>> {
    read_head_of(store, key, 0, decode).await
}

/// The same of an object that has so many bytes, as far as a listing knows.
pub(crate) async fn read_head_of<T>(
    store: &dyn Store,
    key: &Key,
    listed: u64,
    decode: impl Fn(&Bytes) -> std::result::Result<Found<T>, crate::codec::CorruptError>,
) -> Result<Head<T>> {
    let failed = |error: StoreError| VolumeError::Store { doing: format!("reading {key}"), source: error };
    let mut asked = if listed <= WHOLE_MAX { listed.max(HEAD_GUESS) } else { HEAD_GUESS };
    loop {
        let front = store.get_front(key, asked).await.map_err(failed)?;
        let have = Have::of(&front, asked);
        match decode(&front.bytes).map_err(VolumeError::corrupt(key))? {
            Found::Whole(it) => return Ok(Head::There(it, have)),
            Found::NeedMore { total } if total > asked && !matches!(have, Have::All(_)) => asked = total,
            Found::NeedMore { .. } => return Ok(Head::Torn),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use async_trait::async_trait;
    use uuid::Uuid;

    use super::*;
    use crate::codec::frame::Compression;
    use crate::format::segment::{Payload, Stamp, encode_segment};
    use crate::outside::Random;
    use crate::store::memory::MemoryStore;
    use crate::store::meter::{Meter, MeterStore};
    use crate::store::{ListPage, Result as Answer};
    use crate::units::{BlockSize, ChangeNo, Epoch, Extent};

    /// A store that says so of the length of every object.
    #[derive(Debug)]
    struct Says(MemoryStore, Option<u64>);

    #[async_trait]
    impl Store for Says {
        fn url(&self) -> String {
            self.0.url()
        }
        async fn put(&self, key: &Key, body: Vec<Bytes>) -> Answer<()> {
            self.0.put(key, body).await
        }
        async fn get_range(&self, key: &Key, range: Range<u64>) -> Answer<Bytes> {
            self.0.get_range(key, range).await
        }
        async fn get_front(&self, key: &Key, len: u64) -> Answer<Front> {
            Ok(Front { total: self.1, ..self.0.get_front(key, len).await? })
        }
        async fn get(&self, key: &Key) -> Answer<Bytes> {
            self.0.get(key).await
        }
        async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Answer<ListPage> {
            self.0.list(prefix, start_after).await
        }
        async fn list_top(&self) -> Answer<Vec<String>> {
            self.0.list_top().await
        }
        async fn delete(&self, keys: &[Key]) -> Answer<()> {
            self.0.delete(keys).await
        }
    }

    /// A long segment is asked for once if the store says along with its head that it is as long as its head says. Whatever else the store says, or
    /// if it says nothing, the last byte decides.
    #[tokio::test]
    async fn a_segment_is_whole_by_what_the_store_says_or_by_its_last_byte() {
        let (sealer, seq) = (Sealer::new(Uuid::from_u128(1), None), Seq(7));
        let stamp =
            Stamp { epoch: Epoch(1), server: Uuid::from_u128(2), covers: ChangeNo(3), compression: Compression::None };
        let random = Random::seeded(1);
        let data: Vec<u8> = (0..20 * 4096 / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
        let changes = [(Extent::new(0, 20), Payload::Data(data.into()))];
        let object = encode_segment(&sealer, seq, [3; 16], BlockSize::default(), &stamp, &changes).unwrap().object;
        let (whole, key) = (object.parts.concat(), Key::new("v/segment").unwrap());
        let total = whole.len() as u64;
        assert!(total > HEAD_GUESS);
        for is_whole in [true, false] {
            for (says, gets) in [(Some(total), 1), (None, 2), (Some(total + 1), 2), (Some(total - 1), 2), (Some(1), 2)]
            {
                // What lies about a part is not to be helped.
                if !is_whole && says == Some(total) {
                    continue;
                }
                let (memory, meter) = (MemoryStore::new(), Arc::new(Meter::default()));
                let there = if is_whole { &whole[..] } else { &whole[..whole.len() - 1] };
                memory.put(&key, vec![Bytes::copy_from_slice(there)]).await.unwrap();
                let store = MeterStore::new(Arc::new(Says(memory, says)), meter.clone());
                let slot = read_log_object(&store, key.clone(), &sealer, seq).await.unwrap();
                assert_eq!(matches!(slot, Slot::Holds(..)), is_whole, "{says:?} of {total}");
                if is_whole {
                    assert_eq!(meter.snapshot().get.count, gets, "{says:?} of {total}");
                }
            }
        }
    }
}
