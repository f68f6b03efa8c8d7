//! A server's part in a pool ([`crate::pool`]): it beats, looks who else does, and opens what is its own, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use uuid::Uuid;

use super::exports::{ReadOnlyVolumes, VolumeExports, Volumes};
use super::failure::Failure;
use super::store_volumes::{Obstacle, StoreVolumes};
use super::wanted::Wanted;
use crate::config::Effective;
use crate::nbd::Server;
use crate::pool::beat::{Beat, PoolName};
use crate::pool::roster::{News, Roster};
use crate::pool::sharing::{Sharing, Step};
use crate::store::{ErrorKind, Key, Store, StoreError, list_all};
use crate::volume::{OpenFlags, VolumeName};

/// So many beats apart it is looked which volumes there are: that takes two requests for each.
const LOOK_FOR_VOLUMES: u64 = 6;

/// The pool of the configuration. A pool is about volumes that are written, and shares all of what is served.
pub fn pool_of(config: &Effective, wanted: &Wanted, read_only: &ReadOnlyVolumes) -> Result<Option<PoolName>, Failure> {
    let Some(pool) = config.serve.claim.as_deref().and_then(PoolName::new) else { return Ok(None) };
    let has_snapshots = wanted.names().iter().any(|name| name.snapshot.is_some());
    if has_snapshots || *read_only != ReadOnlyVolumes::default() {
        let why = "a pool shares volumes that are written: what is only read is taken from nobody, so any server may serve it without";
        return Err(config.refuse("serve.claim", why.to_owned()).into());
    }
    Ok(Some(pool))
}

/// A server's part in a pool.
pub struct Claiming {
    task: JoinHandle<()>,
    shared: Arc<Shared>,
}

struct Shared {
    pool: PoolName,
    store: Arc<dyn Store>,
    exports: VolumeExports<StoreVolumes>,
    server: Arc<Server>,
    /// Its newest beat; 0 before the first.
    beat: Mutex<u64>,
}

impl Claiming {
    /// Begins, until the server leaves.
    pub fn begin(
        pool: PoolName,
        store: Arc<dyn Store>,
        exports: VolumeExports<StoreVolumes>,
        server: Arc<Server>,
        config: &Effective,
    ) -> Arc<Claiming> {
        info!("sharing volumes with the servers of pool {pool}");
        let shared = Arc::new(Shared { pool, store, exports, server, beat: Mutex::new(0) });
        let (every, patience) = (config.serve.claim_beat, config.serve.claim_patience);
        let task = tokio::spawn(Arc::clone(&shared).run(every, patience));
        Arc::new(Claiming { task, shared })
    }

    /// Tells the others that this server has nothing any more. To be called when every volume is closed.
    pub async fn leave(&self) {
        self.task.abort();
        let shared = &self.shared;
        let outcome =
            async { shared.delete(shared.beats().await?.remove(&shared.me()).unwrap_or_default()).await }.await;
        if let Err(error) = outcome {
            warn!("the other servers of pool {} learn only in a while that this one has left: {error}", shared.pool);
        }
    }
}

/// What is being done about volumes.
#[derive(Default)]
struct Tasks {
    running: JoinSet<(String, Result<(), Option<Uuid>>)>,
    /// Of which volumes.
    volumes: BTreeSet<String>,
}

impl Shared {
    fn me(&self) -> Uuid {
        self.exports.volumes().server().uuid
    }

    async fn run(self: Arc<Self>, every: Duration, patience: Duration) {
        let (begun, mut round) = (Instant::now(), 0_u64);
        let (mut roster, mut sharing, mut volumes) = (Roster::new(patience), Sharing::of(self.me()), None);
        let (mut read, mut is_away) = (BTreeMap::new(), false);
        let mut tasks = Tasks::default();
        loop {
            while let Some(ended) = tasks.running.try_join_next() {
                let (name, outcome) = match ended {
                    Ok(ended) => ended,
                    Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
                    // The runtime is going down.
                    Err(_) => return,
                };
                tasks.volumes.remove(&name);
                match outcome {
                    Ok(()) => sharing.opened(&name),
                    Err(holder) => sharing.refused(&name, holder, &roster, begun.elapsed()),
                }
            }
            match self.look(&mut roster, &mut read, sharing.unable(), begun).await {
                Ok(()) => {
                    if std::mem::take(&mut is_away) {
                        info!("pool {} can be seen again", self.pool);
                    }
                    if round.is_multiple_of(LOOK_FOR_VOLUMES) || volumes.is_none() {
                        // What went wrong has been said.
                        volumes = self.exports.names().await.ok().or(volumes);
                    }
                    sharing.heard(&roster);
                    self.share(volumes.as_deref().unwrap_or_default(), &roster, &sharing, &mut tasks, begun.elapsed());
                }
                Err(error) if !is_away => {
                    is_away = true;
                    warn!("pool {} cannot be seen, so no volume is taken: {error}", self.pool);
                }
                Err(_) => {}
            }
            round += 1;
            sleep(every).await;
        }
    }

    /// Beats, and sees who else does.
    async fn look(
        &self,
        roster: &mut Roster,
        read: &mut BTreeMap<Uuid, u64>,
        unable: BTreeSet<String>,
        begun: Instant,
    ) -> Result<(), StoreError> {
        self.forget_lost();
        let mut beats = self.beats().await?;
        let older = beats.remove(&self.me()).unwrap_or_default();
        self.beat_after(older.iter().max().copied().unwrap_or(0), unable).await?;
        self.delete(older).await?;
        let newest = beats.iter().filter_map(|(id, beats)| Some((*id, *beats.iter().max()?))).collect();
        for news in roster.listed(&newest, begun.elapsed()) {
            self.say(&news, roster);
        }
        for (id, beat) in roster.unread(read) {
            let Some(key) = self.pool.key(id, beat) else { continue };
            match self.store.get(&key).await {
                Ok(body) => {
                    // Nothing is believed of one that cannot be read: the store says who has a volume when it is opened.
                    let said: Beat = serde_json::from_slice(&body).unwrap_or_else(|error| {
                        warn!("{key} is no beat of a server, and counts as one that says nothing: {error}");
                        Beat::default()
                    });
                    if read.insert(id, beat).is_none() {
                        info!("server {} ({id}) is in pool {}", said.host, self.pool);
                    }
                    roster.told(id, said);
                }
                // There is a newer one.
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        read.retain(|id, _| roster.member(*id).is_some());
        Ok(())
    }

    fn say(&self, news: &News, roster: &Roster) {
        let host = |id: &Uuid| roster.member(*id).map(|member| member.said.host.clone()).unwrap_or_default();
        match news {
            News::Gone(id) => {
                warn!("server {} ({id}) of pool {} is gone: it has not been heard of for too long", host(id), self.pool)
            }
            News::Back(id) => info!("server {} ({id}) of pool {} is back", host(id), self.pool),
            News::Left(id, host) => info!("server {host} ({id}) has left pool {}", self.pool),
        }
    }

    /// The beats that are in the store, by server.
    async fn beats(&self) -> Result<BTreeMap<Uuid, Vec<u64>>, StoreError> {
        let mut beats: BTreeMap<Uuid, Vec<u64>> = BTreeMap::new();
        for entry in list_all(&*self.store, &self.pool.prefix()).await? {
            if let Some((id, beat)) = self.pool.parse(&entry.key) {
                beats.entry(id).or_default().push(beat);
            }
        }
        Ok(beats)
    }

    async fn beat_after(&self, listed: u64, mut unable: BTreeSet<String>) -> Result<(), StoreError> {
        // One that failed may land later: the next has another number.
        let beat = {
            let mut last = self.beat.lock();
            *last = listed.max(*last) + 1;
            *last
        };
        let (host, volumes) = (self.exports.volumes().server().name.clone(), self.exports.claimed());
        // What an operator gave away from here is not taken back.
        unable.extend(self.exports.moved().into_iter().map(|(name, _)| name));
        let said = Beat { host, volumes, unable };
        let body = serde_json::to_vec(&said).map_err(|error| StoreError::invalid(error.to_string()))?;
        match self.store.put(&self.key(beat)?, vec![body.into()]).await {
            // Nobody else puts it: a try that seemed to fail was done.
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    async fn delete(&self, beats: Vec<u64>) -> Result<(), StoreError> {
        let keys: Vec<Key> = beats.into_iter().map(|beat| self.key(beat)).collect::<Result<_, _>>()?;
        match keys.is_empty() {
            true => Ok(()),
            false => self.store.delete(&keys).await,
        }
    }

    fn key(&self, beat: u64) -> Result<Key, StoreError> {
        self.pool.key(self.me(), beat).ok_or_else(|| StoreError::invalid("a beat has no key"))
    }

    /// What another server took is not this one's any more.
    fn forget_lost(&self) {
        for (name, volume) in self.exports.open_volumes() {
            if StoreVolumes::lost(&volume) {
                self.exports.unclaim(&name);
            }
        }
    }

    /// Begins what there is to do about the volumes, each as a task of its own: this server goes on to beat while one takes long to open.
    fn share(
        self: &Arc<Self>,
        volumes: &[String],
        roster: &Roster,
        sharing: &Sharing,
        tasks: &mut Tasks,
        now: Duration,
    ) {
        let clients = self.server.clients();
        let clients_of = |name: &String| clients.iter().filter(|client| client.export == *name).count();
        let mine = self.exports.claimed().into_iter().map(|name| (name.clone(), clients_of(&name))).collect();
        let moved: Vec<String> = self.exports.moved().into_iter().map(|(name, _)| name).collect();
        let is_at_rest = |name: &&String| !moved.contains(name) && !tasks.volumes.contains(*name);
        let volumes: Vec<String> = volumes.iter().filter(is_at_rest).cloned().collect();
        for step in sharing.steps(&volumes, &mine, roster, now) {
            tasks.volumes.insert(step.volume().to_owned());
            tasks.running.spawn(Arc::clone(self).take(step));
        }
    }

    /// Does a step. The error says who has the volume, if that is why it does not open.
    async fn take(self: Arc<Self>, step: Step) -> (String, Result<(), Option<Uuid>>) {
        let (name, from) = match step {
            Step::Open(name) => (name, None),
            Step::TakeOver(name, from) => (name, Some(from)),
            Step::HandOver(name, host) => {
                self.give(&name, &host).await;
                return (name, Ok(()));
            }
        };
        // What the store lists is a name.
        let Ok(volume) = VolumeName::new(name.as_str()) else { return (name, Err(None)) };
        let mut flags = OpenFlags::default();
        let why = loop {
            let volumes = self.exports.volumes();
            volumes.allow_next(&volume, flags);
            let Err(why) = self.exports.claim(&name).await else { return (name, Ok(())) };
            match volumes.obstacle(&volume) {
                Some(Obstacle::Holder(holder)) if Some(holder) == from && !flags.takeover => {
                    warn!("taking volume {name} from server {holder} of pool {}, which has it no more", self.pool);
                    flags.takeover = true;
                }
                Some(Obstacle::Holder(holder)) => {
                    info!("not taken: {why}");
                    return (name, Err(Some(holder)));
                }
                // The other server of the pool that took it went by what was flushed; so does this one, and keeps the files.
                Some(Obstacle::LeftBehind) if !flags.drop_journal => flags.drop_journal = true,
                _ => break why,
            }
        };
        warn!("not taken: {why}");
        (name, Err(None))
    }

    /// Closes a volume that nobody uses for another server of the pool, which opens it when it sees that.
    async fn give(&self, name: &str, host: &str) {
        let part = || drop(self.server.evict(name, None));
        // It has said by itself what goes wrong.
        let _ = self.exports.hand_over(name, host, part).await;
        // If the other one ends, it may come back.
        let _ = self.exports.take_back(name);
    }
}
