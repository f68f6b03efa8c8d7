//! Two stores behind one door. Volumes may have their logs in a store that is *near* (or fast, and dear): what a FLUSH waits for goes there. Everything
//! else is in the other one, the *rest*, and so is what has *cooled*: objects of the log that were moved, byte for byte, under the same key.
//!
//! [`BesideStore`] is the rest, and knows of the near one. [`TieredStore`] is what one volume uses: whatever begins with its prefix is of the log.
//!
//! | | of the log | of anything else |
//! | --- | --- | --- |
//! | PUT | near: there alone it is decided who has a slot | rest |
//! | GET | near, then the rest; the other way round if it is known to have cooled | rest |
//! | LIST | both, each key once | rest |
//! | DELETE | near, then the rest | rest |
//!
//! Why nobody misses an object that moves meanwhile: it is in the rest before it goes from the near one, so whoever looks near first, and then in the rest, finds it.
//! Whoever looks in the rest first looks there once more at the end.
//!
//! Why a key has the same bytes in both: they are put near, by one who wins, and copied from there ([`TieredStore::copy`]); who finds other bytes in the rest copies
//! nothing, and nothing goes from the near store. Who may move what, and when, is not known here ([`crate::volume`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{ErrorKind, Front, Key, ListPage, ObjectEntry, Result, Store, StoreError, list_all};

/// A store for logs beside another one.
#[derive(Clone, Debug)]
pub struct Near {
    /// The store.
    pub store: Arc<dyn Store>,
    /// When what is there moves on.
    pub cooling: Cooling,
}

/// When objects of a log move to the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooling {
    /// When they are so old,
    pub after: Duration,
    /// or, the oldest first, when one volume has more bytes there than these.
    pub size: u64,
}

impl Default for Cooling {
    fn default() -> Cooling {
        Cooling { after: Duration::from_secs(600), size: 16 << 30 }
    }
}

/// The rest, for those who do not know of the near store, and a handle of that.
#[derive(Debug)]
pub struct BesideStore {
    rest: Arc<dyn Store>,
    near: Near,
}

impl BesideStore {
    /// The two of them.
    pub fn new(rest: Arc<dyn Store>, near: Near) -> BesideStore {
        BesideStore { rest, near }
    }
}

#[async_trait]
impl Store for BesideStore {
    fn url(&self) -> String {
        self.rest.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.rest.put(key, body).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.rest.get_range(key, range).await
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        self.rest.get_front(key, len).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        self.rest.get(key).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.rest.list(prefix, start_after).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        self.rest.list_top().await
    }

    fn keeps_create_only(&self) -> bool {
        self.rest.keeps_create_only()
    }

    fn background(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(BesideStore::new(self.rest.background()?, self.near.clone())))
    }

    fn near(&self) -> Option<Near> {
        Some(self.near.clone())
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        self.rest.delete(keys).await
    }

    fn retains(&self) -> bool {
        self.rest.retains()
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        self.rest.retain(key, until_unix_millis).await
    }
}

/// What is known of the near store.
#[derive(Debug, Default)]
struct Hot {
    table: Mutex<Table>,
    /// A copy ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct Table {
    objects: BTreeMap<Key, Held>,
    /// Whether the table has all that is there.
    is_whole: bool,
    /// What is being copied, and must not be deleted meanwhile: it would come back in the rest.
    copied: BTreeSet<Key>,
}

/// An object in the near store, or one that may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its bytes.
    pub bytes: u64,
    /// Since when it is there, as far as that is known.
    pub since: Instant,
}

impl Hot {
    fn has_cooled(&self, key: &Key) -> bool {
        let table = self.table.lock();
        table.is_whole && !table.objects.contains_key(key)
    }

    fn put(&self, key: &Key, bytes: u64) {
        self.table.lock().objects.insert(key.clone(), Held { bytes, since: Instant::now() });
    }

    /// Begins to copy an object, unless it is being deleted, or is copied already.
    fn begin_copy(self: &Arc<Self>, key: &Key) -> Option<Copying> {
        let mut table = self.table.lock();
        (table.objects.contains_key(key) && table.copied.insert(key.clone()))
            .then(|| Copying { hot: self.clone(), key: key.clone() })
    }

    /// Nothing of these is copied from here on.
    async fn forget(&self, keys: &[Key]) {
        loop {
            let ended = self.ended.notified();
            {
                let mut table = self.table.lock();
                for key in keys {
                    table.objects.remove(key);
                }
                if !keys.iter().any(|key| table.copied.contains(key)) {
                    return;
                }
            }
            ended.await;
        }
    }
}

/// While this is there, the object is not deleted.
struct Copying {
    hot: Arc<Hot>,
    key: Key,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.hot.table.lock().copied.remove(&self.key);
        self.hot.ended.notify_waiters();
    }
}

/// What came of copying an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The rest has every byte of it.
    Done(u64),
    /// It is not in the near store any more.
    Gone,
    /// It does not prove itself: it stays where it is.
    Unproven,
    /// The rest has something else under its key.
    Differs,
}

/// The store of one volume whose log is in a near one.
#[derive(Clone, Debug)]
pub struct TieredStore {
    near: Near,
    rest: Arc<dyn Store>,
    /// What the keys of the log begin with.
    prefix: String,
    hot: Arc<Hot>,
}

impl TieredStore {
    /// What begins with `prefix` is near, or has cooled.
    pub fn new(near: Near, rest: Arc<dyn Store>, prefix: String) -> TieredStore {
        TieredStore { near, rest, prefix, hot: Arc::default() }
    }

    /// The near store, and when what is there moves on.
    pub fn near_store(&self) -> &Near {
        &self.near
    }

    /// Where everything else is.
    pub fn rest_url(&self) -> String {
        self.rest.url()
    }

    /// The same, for work that nobody waits for.
    #[must_use]
    pub fn for_background(&self) -> TieredStore {
        let near = self.near.store.background().unwrap_or_else(|| self.near.store.clone());
        let rest = self.rest.background().unwrap_or_else(|| self.rest.clone());
        TieredStore { near: Near { store: near, ..self.near }, rest, ..self.clone() }
    }

    fn is_of_log(&self, key: &Key) -> bool {
        key.as_str().starts_with(&self.prefix)
    }

    /// Finds out what is in the near store. From then on what is not is looked for in the rest first.
    pub async fn look(&self) -> Result<()> {
        let listed = list_all(&*self.near.store, &self.prefix).await?;
        let mut table = self.hot.table.lock();
        for ObjectEntry { key, size } in listed {
            table.objects.entry(key).or_insert(Held { bytes: size, since: Instant::now() });
        }
        table.is_whole = true;
        Ok(())
    }

    /// What is in the near store, as far as that is known.
    pub fn held(&self) -> Vec<(Key, Held)> {
        self.hot.table.lock().objects.iter().map(|(key, held)| (key.clone(), *held)).collect()
    }

    /// Puts an object of the near store into the rest, for which it must prove itself. It stays in the near one, too.
    pub async fn copy<F: Future<Output = bool> + Send>(
        &self,
        key: &Key,
        prove: impl FnOnce(Bytes) -> F + Send,
    ) -> Result<Copied> {
        let Some(_copying) = self.hot.begin_copy(key) else { return Ok(Copied::Gone) };
        let bytes = match self.near.store.get(key).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                self.hot.table.lock().objects.remove(key);
                return Ok(Copied::Gone);
            }
            got => got?,
        };
        if !prove(bytes.clone()).await {
            return Ok(Copied::Unproven);
        }
        match self.rest.put(key, vec![bytes.clone()]).await {
            Err(error) if error.kind != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Whatever was answered: what is there counts.
        match self.rest.get(key).await? == bytes {
            true => Ok(Copied::Done(bytes.len() as u64)),
            false => Ok(Copied::Differs),
        }
    }

    /// What the rest has under a key, whatever the near store has.
    pub async fn get_rest(&self, key: &Key) -> Result<Option<Bytes>> {
        match self.rest.get(key).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            got => got.map(Some),
        }
    }

    /// Deletes objects from the near store alone. The caller knows that the rest has them.
    pub async fn delete_near(&self, keys: &[Key]) -> Result<()> {
        self.near.store.delete(keys).await?;
        let mut table = self.hot.table.lock();
        for key in keys {
            table.objects.remove(key);
        }
        Ok(())
    }

    /// Where an object is looked for, one after the other, until one has it.
    fn in_turn(&self, key: &Key) -> impl Iterator<Item = &dyn Store> {
        let (near, rest) = (&*self.near.store, &*self.rest);
        let (first, then, last) = match (self.is_of_log(key), self.hot.has_cooled(key)) {
            (false, _) => (rest, None, None),
            (true, false) => (near, Some(rest), None),
            // It may cool between the two looks, by the hand of another server.
            (true, true) => (rest, Some(near), Some(rest)),
        };
        std::iter::once(first).chain(then).chain(last)
    }
}

fn is_missing<T>(found: &Result<T>) -> bool {
    found.as_ref().is_err_and(|error| error.kind == ErrorKind::NotFound)
}

#[async_trait]
impl Store for TieredStore {
    fn url(&self) -> String {
        self.rest.url()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        if !self.is_of_log(key) {
            return self.rest.put(key, body).await;
        }
        let bytes = body.iter().map(|part| part.len() as u64).sum();
        let put = self.near.store.put(key, body).await;
        // Also one that failed may be there.
        self.hot.put(key, bytes);
        put
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let mut found = Err(StoreError::not_found(key));
        for store in self.in_turn(key) {
            found = store.get_range(key, range.clone()).await;
            if !is_missing(&found) {
                break;
            }
        }
        found
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let mut found = Err(StoreError::not_found(key));
        for store in self.in_turn(key) {
            found = store.get_front(key, len).await;
            if !is_missing(&found) {
                break;
            }
        }
        found
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        let mut found = Err(StoreError::not_found(key));
        for store in self.in_turn(key) {
            found = store.get(key).await;
            if !is_missing(&found) {
                break;
            }
        }
        found
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        if !prefix.starts_with(&self.prefix) && !self.prefix.starts_with(prefix) {
            return self.rest.list(prefix, start_after).await;
        }
        // Of the near store only what is of the log, whatever else may be there.
        let of_log = if prefix.starts_with(&self.prefix) { prefix } else { &self.prefix };
        // The near one first, and only then the other: what moves meanwhile is in one of the two answers.
        let near = self.near.store.list(of_log, start_after).await?;
        let rest = self.rest.list(prefix, start_after).await?;
        Ok(merge(near, rest))
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let near = self.near.store.list_top().await?;
        let rest = self.rest.list_top().await?;
        let is_of_log =
            |top: &String| format!("{top}/").starts_with(&self.prefix) || self.prefix.starts_with(&format!("{top}/"));
        let tops: BTreeSet<String> = near.into_iter().filter(is_of_log).chain(rest).collect();
        Ok(tops.into_iter().collect())
    }

    fn keeps_create_only(&self) -> bool {
        self.near.store.keeps_create_only() && self.rest.keeps_create_only()
    }

    fn background(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::new(self.for_background()))
    }

    fn near(&self) -> Option<Near> {
        Some(self.near.clone())
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let of_log: Vec<Key> = keys.iter().filter(|key| self.is_of_log(key)).cloned().collect();
        if !of_log.is_empty() {
            self.hot.forget(&of_log).await;
            self.near.store.delete(&of_log).await?;
        }
        self.rest.delete(keys).await
    }
}

/// One page of two, which begin at the same key. What one of them does not reach yet is left for the next.
fn merge(near: ListPage, rest: ListPage) -> ListPage {
    let ends = [&near, &rest].into_iter().filter(|page| !page.is_last());
    let end = ends.filter_map(|page| page.last().map(|entry| entry.key.clone())).min();
    let is_last = near.is_last() && rest.is_last();
    let both = rest.into_iter().chain(near).map(|entry| (entry.key, entry.size));
    let merged: BTreeMap<Key, u64> = both.filter(|(key, _)| end.as_ref().is_none_or(|end| key <= end)).collect();
    ListPage::new(merged.into_iter().map(|(key, size)| ObjectEntry { key, size }).collect(), is_last)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::store::list_all;
    use crate::store::memory::{MemoryStore, PAGE_OBJECTS};

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    struct Two {
        near: Arc<MemoryStore>,
        rest: Arc<MemoryStore>,
        both: TieredStore,
    }

    fn two() -> Two {
        let (near, rest) = (Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new()));
        let handle = Near { store: near.clone(), cooling: Cooling::default() };
        let both = TieredStore::new(handle, rest.clone(), "v/f/segments/".into());
        Two { near, rest, both }
    }

    async fn keys(store: &dyn Store) -> Vec<String> {
        list_all(store, "").await.unwrap().into_iter().map(|entry| entry.key.to_string()).collect()
    }

    const HOT: &str = "v/f/segments/01/1";

    #[tokio::test]
    async fn the_log_is_near_and_everything_else_is_not() {
        let Two { near, rest, both } = two();
        for text in ["v/meta/1", "v/f/checkpoints/1", HOT, "v/f/segments/01/1.1", "w/g/segments/01/1"] {
            both.put(&key(text), vec![Bytes::from_static(b"x")]).await.unwrap();
        }
        assert_eq!(keys(&*near).await, [HOT, "v/f/segments/01/1.1"]);
        assert_eq!(keys(&*rest).await, ["v/f/checkpoints/1", "v/meta/1", "w/g/segments/01/1"]);
        assert_eq!(keys(&both).await.len(), 5);
        // What only happens to lie there is nobody's.
        near.put(&key("v/f/other"), vec![]).await.unwrap();
        assert_eq!(keys(&both).await.len(), 5);
        both.delete(&[key(HOT), key("v/meta/1")]).await.unwrap();
        assert_eq!(keys(&both).await, ["v/f/checkpoints/1", "v/f/segments/01/1.1", "w/g/segments/01/1"]);
    }

    #[tokio::test]
    async fn what_cools_has_the_same_bytes_and_goes_only_when_they_are_there() {
        let Two { near, rest, both } = two();
        let (hot, body) = (key(HOT), Bytes::from_static(b"body"));
        both.put(&hot, vec![body.clone()]).await.unwrap();
        assert_eq!(both.copy(&hot, async |_| false).await.unwrap(), Copied::Unproven);
        assert!(keys(&*rest).await.is_empty());
        assert_eq!(both.copy(&hot, async |bytes| bytes == body).await.unwrap(), Copied::Done(4));
        // A server that died before the copy was deleted left both: the next one finds them equal.
        assert_eq!(both.copy(&hot, async |_| true).await.unwrap(), Copied::Done(4));
        assert_eq!(list_all(&both, "").await.unwrap().len(), 1, "each key once");
        both.look().await.unwrap();
        both.delete_near(std::slice::from_ref(&hot)).await.unwrap();
        assert!(keys(&*near).await.is_empty());
        assert_eq!(both.get(&hot).await.unwrap(), body);
        // What lands near once more, late, hides nothing of what cooled.
        near.put(&hot, vec![Bytes::from_static(b"stray")]).await.unwrap();
        assert_eq!(both.get_range(&hot, 0..9).await.unwrap(), body);
        both.look().await.unwrap();
        assert_eq!(both.copy(&hot, async |_| true).await.unwrap(), Copied::Differs);
        both.delete(std::slice::from_ref(&hot)).await.unwrap();
        assert!(keys(&*near).await.is_empty() && keys(&*rest).await.is_empty());
        assert_eq!(both.copy(&hot, async |_| true).await.unwrap(), Copied::Gone);
        assert_eq!(both.get(&hot).await.unwrap_err().kind, ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_key_that_has_cooled_may_be_near_all_the_same() {
        let Two { near, both, .. } = two();
        both.look().await.unwrap();
        near.put(&key(HOT), vec![Bytes::from_static(b"of another server")]).await.unwrap();
        assert_eq!(both.get(&key(HOT)).await.unwrap(), "of another server");
        let taken = both.put(&key(HOT), vec![]).await.unwrap_err();
        assert_eq!(taken.kind, ErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn what_is_deleted_while_it_is_copied_does_not_come_back() {
        let Two { near, rest, both } = two();
        both.put(&key(HOT), vec![Bytes::from_static(b"x")]).await.unwrap();
        let copying = both.hot.begin_copy(&key(HOT)).unwrap();
        let mut deleted = tokio::spawn({
            let both = both.clone();
            async move { both.delete(&[key(HOT)]).await }
        });
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut deleted).is_pending());
        assert!(both.hot.begin_copy(&key(HOT)).is_none());
        rest.put(&key(HOT), vec![Bytes::from_static(b"x")]).await.unwrap();
        drop(copying);
        deleted.await.unwrap().unwrap();
        assert!(keys(&*near).await.is_empty() && keys(&*rest).await.is_empty());
    }

    proptest! {
        /// However the pages of both end, a listing has each key once, in order.
        #[test]
        fn listings_merge(
            near in proptest::collection::btree_set(0..3000u32, 0..2200),
            rest in proptest::collection::btree_set(0..3000u32, 0..2200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let Two { near: n, rest: r, both } = two();
                let name = |number: &u32| key(&format!("v/f/segments/{number:06}"));
                for number in &near {
                    n.put(&name(number), vec![]).await.unwrap();
                }
                for number in &rest {
                    r.put(&name(number), vec![]).await.unwrap();
                }
                let all: BTreeSet<u32> = near.union(&rest).copied().collect();
                let expected: Vec<Key> = all.iter().map(name).collect();
                let listed = list_all(&both, "v/f/").await.unwrap();
                assert!(listed.into_iter().map(|entry| entry.key).eq(expected));
                const { assert!(PAGE_OBJECTS < 2200) };
            });
        }
    }
}
