//! Finding out whether a store keeps what everything rests on: that of many create-only PUTs of one key exactly one
//! succeeds, and that an object is there whole or not at all.
//!
//! Some stores accept the condition and overwrite all the same; some honour it one PUT after the other, and let several
//! win that come at once. Two servers that open one volume there would destroy it. So this is tried with real objects
//! before the first write, and not believed from a name or a version:
//!
//! 1. One after the other: create a key, create it again. The second fails, and the first's object is unchanged.
//! 2. In a race: [`WRITERS`] writers create the same key at once, over as many connections, for each of [`KEYS`] keys.
//!    One succeeds, and the object is its. (If answers are lost, none may be told so; the object must be one of theirs.)
//! 3. Meanwhile, where the backend can: a PUT whose body stops half way. Until the connection breaks nothing may be seen of
//!    it: a store that shows objects while they are uploaded is refused, because what one server takes for torn may
//!    become another's segment. What is left of it afterwards is noted; volumes live with a half (`engine/slot.rs`).
//!
//! 4. Where that fails: whether everybody who writes and looks afterwards sees the others. In each of [`LOOK_ROUNDS`] rounds
//!    [`WRITERS`] writers put a key of their own at once, and then list them all. Each sees its own key; of any two, at
//!    least one sees the other's. That is all that volumes in *verified* mode need (`opening/verified.rs`).
//!
//! A race that was won by one is evidence, no proof. It costs some 320 requests, of which 16 are under way at once: about 25
//! round trips, half a second on a store that is 20 ms away. So what a store passed is remembered (`cli/probes.rs`).
//!
//! Two things make it slow on small servers. They close connections after each refusal, and drop what connects beyond their
//! backlog, so that a writer comes a second late and is no rival; when that is seen, connections are opened a few at a time
//! before each key ([`Pace`]). And they may just be slow: after [`RACE_LASTS`] no further key is raced for, but for
//! [`KEYS_LEAST`]. What is found then is believed for this time, and not remembered.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join, join_all};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::debug;

use super::{ErrorKind, Key, Result, Store, StoreError, list_all};
use crate::outside::Random;

/// The version of the probe: what an earlier one found is not believed.
pub const VERSION: u32 = 4;

/// Writers that want one key.
pub const WRITERS: usize = 16;
/// Keys that are raced for.
pub const KEYS: usize = 16;
/// Keys that are raced for however long it takes.
pub const KEYS_LEAST: usize = 4;
/// How long it may take to race for more than these.
pub const RACE_LASTS: Duration = Duration::from_secs(15);
/// As many GETs are under way, one such number after the other, before the race: each needs a few connections more than
/// the one before, at most 4. Small servers have a backlog of 5.
const WARM_UP: [usize; 5] = [2, 4, 8, 12, WRITERS];
/// A connection that was dropped is tried again by the system after a second. PUTs that take so much longer than as many GETs
/// over open connections had to open some.
const LATE: Duration = Duration::from_millis(800);
/// Bytes of an object that is raced for.
const BODY_BYTES: usize = 4096;

/// Rounds of writing and looking.
pub const LOOK_ROUNDS: usize = 4;

/// Bytes of the broken-off PUT that are sent, and that are not.
const HALF_BYTES: usize = 64 << 10;
/// How long a store has to show what it received of an upload that has stopped, and how long to notice that it broke.
const LOOK_AFTER: Duration = Duration::from_millis(150);

/// What a store did with create-only PUTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CreateOnly {
    /// Exactly one succeeded each time.
    Honoured,
    /// A later PUT succeeded, or changed the object.
    Ignored,
    /// The condition is refused: PUTs go without it.
    Refused,
    /// Exactly one succeeded each time, but the store is too slow to race for all keys.
    Unfinished {
        /// For how many it was.
        keys: usize,
    },
    /// One after the other they were honoured; in the race several succeeded for some keys.
    Raced {
        /// For how many of the keys.
        keys: usize,
        /// How many for one key, at most.
        most: usize,
    },
}

/// What those see who write and look afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Looks {
    /// It was not tried: create-only PUTs are enough.
    NotTried,
    /// Of any two at least one saw the other, and everybody saw itself.
    Seen,
    /// Not all did.
    Missed,
}

/// What a store did with a PUT that broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutPut {
    /// It was not tried: only an S3 store can be asked.
    NotTried,
    /// It kept nothing.
    Nothing,
    /// It kept the part that came.
    Half,
    /// It showed the part while more could come.
    ShownEarly,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether create-only PUTs are honoured.
    pub create_only: CreateOnly,
    /// What becomes of a PUT that breaks off.
    pub cut_put: CutPut,
    /// Whether writing and looking afterwards would do.
    pub looks: Looks,
}

impl Finding {
    /// Whether one server can fence another off there.
    pub fn is_good(&self) -> bool {
        let is_honoured = matches!(self.create_only, CreateOnly::Honoured | CreateOnly::Unfinished { .. });
        is_honoured && self.cut_put != CutPut::ShownEarly
    }

    /// Whether servers of a volume in verified mode see each other there. What is kept of a PUT that broke off must not replace
    /// what was whole.
    pub fn is_good_to_look(&self) -> bool {
        self.looks == Looks::Seen && matches!(self.cut_put, CutPut::NotTried | CutPut::Nothing)
    }

    /// Whether everything was tried: only that may be remembered.
    pub fn is_whole(&self) -> bool {
        !matches!(self.create_only, CreateOnly::Unfinished { .. })
    }

    /// What was seen, in words.
    pub fn seen(&self) -> String {
        let race = |keys| format!("{WRITERS} create-only PUTs at once of each of {keys}");
        let create_only = match self.create_only {
            CreateOnly::Honoured => format!("{} keys: one succeeded each time", race(KEYS)),
            CreateOnly::Unfinished { keys } => {
                format!("{} keys (of {KEYS}: the store is slow): one succeeded each time", race(keys))
            }
            CreateOnly::Ignored => "a create-only PUT (If-None-Match: *) of a taken key succeeded".to_owned(),
            CreateOnly::Refused => "create-only PUTs (If-None-Match: *) are refused".to_owned(),
            CreateOnly::Raced { keys, most } => {
                format!("{} keys: several succeeded for {keys} of the keys, {most} for one of them", race(KEYS))
            }
        };
        let cut_put = match self.cut_put {
            CutPut::NotTried => "",
            CutPut::Nothing => "; a PUT that broke off left nothing",
            CutPut::Half => "; a PUT that broke off left its first part under the key",
            CutPut::ShownEarly => "; a PUT could be read in part while it was under way",
        };
        let looks = match self.looks {
            Looks::NotTried => String::new(),
            Looks::Seen => format!("; who wrote and looked afterwards saw the others, {LOOK_ROUNDS} times"),
            Looks::Missed => "; of two that wrote and looked afterwards, neither saw the other".to_owned(),
        };
        format!("{create_only}{cut_put}{looks}")
    }
}

/// The top of the keys of probes; a name that no volume can have.
pub(super) const PROBE: &str = ".ashlar-probe";

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Create-only PUTs (steps 1 to 3), and step 4 if they fail.
    CreateOnly,
    /// Steps 3 and 4, of a store that refuses the condition.
    Looks,
    /// All steps.
    All,
}

/// Tries the store, and deletes what that leaves; `backend` is what is at its bottom. Fails only if the store cannot be
/// written to or read.
pub async fn probe(store: &dyn Store, backend: &dyn Store, random: &Random, trial: Trial) -> Result<Finding> {
    let run = random.uuid();
    let key = |what: &str| Key::new(format!("{PROBE}/{run}/{what}"));
    let keys: Vec<Key> = (0..KEYS).map(|n| key(&n.to_string())).collect::<Result<_>>()?;
    let (single, cut) = (key("single")?, key("cut")?);
    let looked = |round: usize| (0..WRITERS).map(move |writer| format!("look-{round}/{writer}"));
    let looked: Vec<Vec<Key>> = (0..LOOK_ROUNDS)
        .map(|round| looked(round).map(|what| key(&what)).collect::<Result<_>>())
        .collect::<Result<_>>()?;
    let tried = async {
        let one_by_one = match trial {
            Trial::Looks => CreateOnly::Refused,
            _ => one_by_one(store, &single).await?,
        };
        let race = async {
            if one_by_one == CreateOnly::Honoured { race(store, &keys, &single).await } else { Ok(one_by_one) }
        };
        let (create_only, cut_put) = join(race, break_off(store, backend, &cut)).await;
        let mut found = Finding { create_only: create_only?, cut_put: cut_put?, looks: Looks::NotTried };
        if !found.is_good() || trial != Trial::CreateOnly {
            found.looks = look(store, &looked).await?;
        }
        Ok(found)
    };
    let found = tried.await;
    let all: Vec<Key> = keys.into_iter().chain([single, cut]).chain(looked.into_iter().flatten()).collect();
    if let Err(error) = store.delete(&all).await {
        debug!("what the probe {run} put is left behind: {error}"); // some KiB; who may not delete is told soon enough
    }
    found
}

/// Step 1 alone, with four requests: for a store that passed before. There are servers that honour the condition until the
/// bucket's versioning is switched on, and overwrite from then on (radosgw 16.2).
pub async fn glance(store: &dyn Store, random: &Random) -> Result<Finding> {
    let key = Key::new(format!("{PROBE}/{}/single", random.uuid()))?;
    let create_only = one_by_one(store, &key).await;
    if let Err(error) = store.delete(std::slice::from_ref(&key)).await {
        debug!("{key} is left behind: {error}");
    }
    Ok(Finding { create_only: create_only?, cut_put: CutPut::NotTried, looks: Looks::NotTried })
}

/// Step 1.
async fn one_by_one(store: &dyn Store, key: &Key) -> Result<CreateOnly> {
    let (first, second) = (Bytes::from(format!("first {key}")), Bytes::from(format!("second {key}")));
    // If the reply to our own first attempt was lost, it says that the key is taken; the comparison below tells.
    let is_put = put(store, key, &first).await?;
    if put(store, key, &second).await? {
        return Ok(CreateOnly::Ignored);
    }
    match store.get(key).await {
        Err(error) if error.kind == ErrorKind::NotFound && !is_put => Err(StoreError::invalid(format!(
            "store {} refuses create-only PUTs (If-None-Match: *): of {key} it says that it is taken, and nothing is there; set \
             store.fencing = \"verified\", or leave it out",
            store.url()
        ))),
        there => Ok(if there? == first { CreateOnly::Honoured } else { CreateOnly::Ignored }),
    }
}

/// Whether a create-only PUT succeeded.
async fn put(store: &dyn Store, key: &Key, body: &Bytes) -> Result<bool> {
    match store.put(key, vec![body.clone()]).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Step 2. `there` is a key that is taken.
async fn race(store: &dyn Store, keys: &[Key], there: &Key) -> Result<CreateOnly> {
    let began = Instant::now();
    let mut pace = Pace::default();
    let mut raced = Vec::with_capacity(keys.len());
    for key in keys {
        if !pace.goes_on(raced.len(), began.elapsed()) {
            break;
        }
        if pace.opens_connections() {
            pace.even = Some(open_connections(store, there).await?);
        }
        let began = Instant::now();
        raced.push(race_for(store, key).await?);
        pace.raced(began.elapsed());
    }
    if pace.opens_connections() {
        open_connections(store, there).await?;
    }
    let found = join_all(keys[..raced.len()].iter().map(|key| store.get(key))).await;
    let found: Vec<Bytes> = found.into_iter().collect::<Result<_>>()?;
    let counts = keys.iter().zip(raced.iter().zip(&found)).map(|(key, (won, found))| winners(key, won, found));
    let winners: Vec<usize> = counts.collect();
    let several = winners.iter().filter(|count| **count > 1).count();
    Ok(match winners.into_iter().max() {
        Some(most) if most > 1 => CreateOnly::Raced { keys: several, most },
        _ if raced.len() < keys.len() => CreateOnly::Unfinished { keys: raced.len() },
        _ => CreateOnly::Honoured,
    })
}

/// How fast a store is raced.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// How long the GETs of all writers took last, over connections that were open.
    even: Option<Duration>,
    /// Whether PUTs were seen to be late.
    is_late: bool,
}

impl Pace {
    /// Whether to race for another key, after so many and so long.
    fn goes_on(self, keys: usize, elapsed: Duration) -> bool {
        keys < KEYS_LEAST || elapsed < RACE_LASTS
    }

    /// Whether to open connections before the next key.
    fn opens_connections(self) -> bool {
        self.is_late || self.even.is_none()
    }

    /// The PUTs for a key took so long.
    fn raced(&mut self, took: Duration) {
        self.is_late |= self.even.is_some_and(|even| took > even + LATE);
    }
}

/// Opens as many connections as there are writers, a few at a time. How long the last step took.
async fn open_connections(store: &dyn Store, there: &Key) -> Result<Duration> {
    let mut last = Duration::ZERO;
    for readers in WARM_UP {
        let began = Instant::now();
        let looks = (0..readers).map(|_| is_there(store, there));
        join_all(looks).await.into_iter().collect::<Result<Vec<bool>>>()?;
        last = began.elapsed();
    }
    Ok(last)
}

/// Who was told that it won the key.
async fn race_for(store: &dyn Store, key: &Key) -> Result<Vec<bool>> {
    let bodies: Vec<Bytes> = (0..WRITERS).map(|writer| body(key, writer)).collect();
    join_all(bodies.iter().map(|body| put(store, key, body))).await.into_iter().collect()
}

/// How many won the key. An object that is not the winner's counts as one more winner.
fn winners(key: &Key, won: &[bool], there: &Bytes) -> usize {
    let is_whose = |writer: usize| body(key, writer) == *there;
    let is_a_winners = won.iter().enumerate().any(|(writer, won)| *won && is_whose(writer));
    match won.iter().filter(|won| **won).count() {
        // Nobody was told that it won: the answer was lost, or that to an earlier attempt of the same writer.
        0 if (0..WRITERS).any(is_whose) => 1,
        1 if is_a_winners => 1,
        count => count.max(1) + usize::from(!is_a_winners),
    }
}

/// What a writer wants to put: different for each, from the first byte on.
fn body(key: &Key, writer: usize) -> Bytes {
    let mut body = vec![0; BODY_BYTES];
    blake3::Hasher::new().update(key.as_str().as_bytes()).update(&writer.to_le_bytes()).finalize_xof().fill(&mut body);
    body.into()
}

/// Step 3.
async fn break_off(store: &dyn Store, backend: &dyn Store, key: &Key) -> Result<CutPut> {
    {
        let mut upload = pin!(backend.begin_put(key, Bytes::from(vec![0x5a; HALF_BYTES]), HALF_BYTES as u64));
        tokio::select! {
            biased;
            tried = &mut upload => {
                if !tried {
                    return Ok(CutPut::NotTried);
                }
            }
            () = tokio::time::sleep(LOOK_AFTER) => {
                if is_there(store, key).await? {
                    return Ok(CutPut::ShownEarly);
                }
            }
        }
        // Dropped here, and with it the connection.
    }
    tokio::time::sleep(LOOK_AFTER).await;
    Ok(if is_there(store, key).await? { CutPut::Half } else { CutPut::Nothing })
}

/// Step 4: the keys of one round after the other.
async fn look(store: &dyn Store, rounds: &[Vec<Key>]) -> Result<Looks> {
    for keys in rounds {
        let looks = keys.iter().map(|key| put_and_look(store, key));
        let seen: Vec<Vec<Key>> = join_all(looks).await.into_iter().collect::<Result<_>>()?;
        let sees = |one: usize, other: usize| seen[one].contains(&keys[other]);
        let all_seen =
            (0..keys.len()).all(|one| sees(one, one) && (0..one).all(|other| sees(one, other) || sees(other, one)));
        if !all_seen {
            return Ok(Looks::Missed);
        }
    }
    Ok(Looks::Seen)
}

/// Puts a key, and returns all that are beside it then.
async fn put_and_look(store: &dyn Store, key: &Key) -> Result<Vec<Key>> {
    // A store that remembers that the key was not there is no good either.
    let was_there = is_there(store, key).await?;
    put(store, key, &Bytes::from_static(b"here")).await?;
    let folder = key.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
    let listed = list_all(store, &format!("{folder}/")).await?;
    let keys = listed.into_iter().map(|entry| entry.key);
    Ok(if was_there || !is_there(store, key).await? { Vec::new() } else { keys.collect() })
}

async fn is_there(store: &dyn Store, key: &Key) -> Result<bool> {
    match store.get_range(key, 0..1).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The refusal to write to a store that cannot keep two servers apart.
pub fn refusal(url: &str, finding: &Finding) -> StoreError {
    let verified = if finding.is_good_to_look() { ", or set store.fencing = \"verified\"" } else { "" };
    StoreError::invalid(format!(
        "store {url} cannot keep two servers apart, so nothing would stop them from destroying each other's volumes \
         (seen: {}); use another store{verified}, or set store.fencing = \"unsafe\" if you make sure yourself that only one server \
         ever opens a volume [A10]",
        finding.seen()
    ))
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use async_trait::async_trait;
    use parking_lot::Mutex;

    use super::*;
    use crate::store::ListPage;
    use crate::store::faults::{Counted, FaultOptions, FaultyStore, Trap};
    use crate::store::limit::{LimitOptions, LimitStore};
    use crate::store::memory::MemoryStore;
    use crate::store::retry::{RetryOptions, RetryStore};

    async fn probe_of(store: &dyn Store) -> Finding {
        probe(store, store, &Random::seeded(3), Trial::CreateOnly).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_store_passes_and_keeps_nothing_even_if_replies_are_lost_and_puts_are_cut() {
        for trap in [Trap::FailAfter, Trap::FailBefore] {
            for lost in (0..=40).chain([258]) {
                let memory = MemoryStore::new();
                let faulty = FaultyStore::new(Arc::new(memory.clone()), FaultOptions::default(), Random::seeded(1));
                faulty.faults().set_trap(Counted::Mutations, lost, trap);
                let store = RetryStore::new(Arc::new(faulty), RetryOptions::default(), Random::seeded(2));
                let found = probe_of(&store).await;
                assert!(found.is_good() && found.cut_put == CutPut::NotTried, "{lost}: {found:?}");
                assert_eq!(memory.object_count(), 0);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_of_a_store_20_ms_away_takes_half_a_second() {
        let delay = FaultOptions { delay_min: Duration::from_millis(20), ..FaultOptions::default() };
        let faulty = FaultyStore::new(Arc::new(MemoryStore::new()), delay, Random::seeded(1));
        let faults = faulty.faults();
        let store = LimitStore::new(Arc::new(faulty), LimitOptions::default());
        let began = Instant::now();
        assert!(probe_of(&store).await.is_good());
        let took = began.elapsed(); // virtual time
        assert!((Duration::from_millis(300)..=Duration::from_millis(560)).contains(&took), "{took:?}");
        assert!(faults.operations() <= 322, "{faults:?}");
    }

    /// A server with a backlog of five: of more connections that come at once, the rest comes a second later (Linux asks
    /// again then). It closes a connection after any refusal, as Python's `http.server` and many small servers do.
    #[derive(Debug, Default)]
    struct SmallServer {
        memory: MemoryStore,
        idle: Mutex<usize>,
        opened_at: Mutex<Option<(Instant, usize)>>,
        /// What a PUT and a GET take.
        pace: (Duration, Duration),
    }

    impl SmallServer {
        async fn serve<T>(&self, takes: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
            let left = self.idle.lock().checked_sub(1);
            match left {
                Some(left) => *self.idle.lock() = left,
                None => self.connect().await,
            }
            tokio::time::sleep(takes).await;
            let done = work.await;
            *self.idle.lock() += usize::from(done.is_ok());
            done
        }

        async fn connect(&self) {
            loop {
                let now = Instant::now();
                let fits = {
                    let mut opened = self.opened_at.lock();
                    let before = opened.filter(|(at, _)| *at == now).map_or(0, |(_, count)| count);
                    *opened = Some((now, before + 1));
                    before < 5
                };
                if fits {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    #[async_trait]
    impl Store for SmallServer {
        fn url(&self) -> String {
            "small://".into()
        }

        async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
            self.serve(self.pace.0, self.memory.put(key, body)).await
        }

        async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
            self.serve(self.pace.1, self.memory.get_range(key, range)).await
        }

        async fn get(&self, key: &Key) -> Result<Bytes> {
            self.serve(self.pace.1, self.memory.get(key)).await
        }

        async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
            self.memory.list(prefix, start_after).await
        }

        async fn list_top(&self) -> Result<Vec<String>> {
            self.memory.list_top().await
        }

        async fn delete(&self, keys: &[Key]) -> Result<()> {
            self.memory.delete(keys).await
        }
    }

    async fn probe_of_a_small_server(put: Duration, get: Duration) -> (Finding, Duration) {
        let server = SmallServer { pace: (put, get), ..SmallServer::default() };
        let began = Instant::now();
        let found = probe_of(&server).await;
        assert_eq!(server.memory.object_count(), 0);
        (found, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_server_that_drops_connections_is_asked_before_it_is_raced() {
        let (found, took) = probe_of_a_small_server(Duration::from_millis(5), Duration::from_millis(5)).await;
        assert_eq!(found.create_only, CreateOnly::Honoured);
        assert!(took < Duration::from_secs(4), "{took:?}"); // virtual time
    }

    #[tokio::test(start_paused = true)]
    async fn a_race_that_takes_too_long_stops_early_and_says_so() {
        let (found, took) = probe_of_a_small_server(Duration::from_secs(2), Duration::from_millis(5)).await;
        let CreateOnly::Unfinished { keys } = found.create_only else { panic!("{found:?}") };
        assert!((KEYS_LEAST..KEYS).contains(&keys), "{keys}");
        assert!(found.is_good() && !found.is_whole());
        assert!(took < RACE_LASTS + Duration::from_secs(10), "{took:?}"); // virtual time
        assert!(
            found.seen().contains(&format!("of each of {keys} keys (of 16: the store is slow)")),
            "{}",
            found.seen()
        );
        // However slow, some keys are raced for, by all writers.
        let (found, _) = probe_of_a_small_server(Duration::from_secs(60), Duration::from_secs(60)).await;
        assert_eq!(found.create_only, CreateOnly::Unfinished { keys: KEYS_LEAST });
    }

    /// A store that looks whether a key is free, and then puts: it passes one by one, and several win at once.
    #[derive(Clone, Debug, Default)]
    struct LooksFirst {
        memory: MemoryStore,
        /// Does not even look.
        overwrites: bool,
        /// Lets everybody believe that it won, and keeps the first.
        lies: bool,
    }

    #[async_trait]
    impl Store for LooksFirst {
        fn url(&self) -> String {
            "looks-first://".into()
        }

        async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
            let is_taken = self.memory.get(key).await.is_ok();
            tokio::task::yield_now().await;
            if self.lies {
                let _ = self.memory.put(key, body).await;
                return if is_taken { Err(StoreError::already_exists(key)) } else { Ok(()) };
            }
            if is_taken && !self.overwrites {
                return Err(StoreError::already_exists(key));
            }
            self.memory.replace(key, Bytes::from(body.concat()));
            Ok(())
        }

        async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
            self.memory.get_range(key, range).await
        }

        async fn get(&self, key: &Key) -> Result<Bytes> {
            self.memory.get(key).await
        }

        async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
            self.memory.list(prefix, start_after).await
        }

        async fn list_top(&self) -> Result<Vec<String>> {
            self.memory.list_top().await
        }

        async fn delete(&self, keys: &[Key]) -> Result<()> {
            self.memory.delete(keys).await
        }
    }

    #[tokio::test]
    async fn a_store_that_several_win_at_once_is_caught_though_it_passes_one_by_one() {
        let store = LooksFirst::default();
        let single = Key::new("a/single").unwrap();
        assert_eq!(one_by_one(&store, &single).await.unwrap(), CreateOnly::Honoured);
        let found = probe_of(&store).await;
        assert_eq!(found.create_only, CreateOnly::Raced { keys: KEYS, most: WRITERS });
        assert!(!found.is_good());
        let said = refusal("s3://disks", &found).message;
        assert!(said.contains("16 create-only PUTs at once of each of 16 keys: several succeeded for 16"), "{said}");
        assert!(said.starts_with("store s3://disks ") && said.contains("store.fencing = \"unsafe\""), "{said}");
        let lies = LooksFirst { lies: true, ..LooksFirst::default() };
        assert!(matches!(probe_of(&lies).await.create_only, CreateOnly::Raced { .. }));
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_caught_at_once() {
        let store = LooksFirst { overwrites: true, ..LooksFirst::default() };
        let found = probe_of(&store).await;
        assert_eq!(found, Finding { create_only: CreateOnly::Ignored, cut_put: CutPut::NotTried, looks: Looks::Seen });
        assert!(found.is_good_to_look());
        assert!(refusal("s3://disks", &found).message.contains("of a taken key succeeded"));
    }

    #[test]
    fn halves_are_lived_with_and_what_is_shown_early_is_refused() {
        let found = |cut_put| Finding { create_only: CreateOnly::Honoured, cut_put, looks: Looks::NotTried };
        assert!(found(CutPut::Nothing).is_good() && found(CutPut::Half).is_good());
        assert!(!found(CutPut::ShownEarly).is_good());
        assert!(found(CutPut::ShownEarly).seen().ends_with("a PUT could be read in part while it was under way"));
    }
}
