//! Opening a volume: read what is there, decide, fence, accept the journal's changes again.
//!
//! 1. Scan: newest description, newest checkpoint, the log after it up to the first gap. If this server has seen a newer
//!    state ([`seen`]), refuse.
//! 2. Find the journal, decide by the table in [`verdict`](super::verdict).
//!    A size that this server still owes the store is put there now ([`growth`]).
//! 3. Have a journal: begin one or go on with the one that is here. It must exist, under the name that the fence says, before the
//!    fence does. What is dropped with changes in it is set aside, never removed. Where this server may keep the copy of a peer ([`crate::peer`]), it stops taking
//!    anything for it first, and looks at what there is once more.
//! 4. Put the fence into the first free slot. If something else got there first it counts: scan again. A slot with
//!    nothing but torn objects in it is free (see [`slot`]).
//! 5. List the checkpoints after that of the scan. One at or beyond the fence means that the slot was free only because the volume's
//!    owner had deleted it after that checkpoint: the fence is void, remove it, scan again. One that is
//!    before the fence: the fence holds, but the scan may refer to what was deleted since: scan once more.
//!    And look for a newer description: a volume that is deleted meanwhile is refused ([`removal`](super::removal), step 4); one
//!    that was changed is as it is now, and nobody makes it smaller any more who had it before ([`resize`](super::resize)).
//! 6. Accept the journal's changes after the last committed one. They take their old numbers.
//!
//! In verified mode ([`verified`]) the first scan finds out whether the volume may be had; then comes the claim, and only what a
//! scan after it finds counts. Step 4 does not need the slot, and there are no void fences in step 5.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use uuid::Uuid;

use crate::cache::BlockCache;
use crate::change::Numbered;
use crate::codec::seal::Sealer;
use crate::disk::Disk;
use crate::engine::below::Below;
use crate::engine::budget::Budget;
use crate::engine::digests::Digests;
use crate::engine::doomed::Doomed;
use crate::engine::growth::{self, Growth};
use crate::engine::log::{Log, Origin};
use crate::engine::options::Options;
use crate::engine::purse::OwnAllowance;
use crate::engine::seen::{self, Seen};
use crate::engine::settings::{self, Tuned};
use crate::engine::shared::{Parts, Shared, Witness};
use crate::engine::slot::{self, Put};
use crate::engine::unbroken::{self, Line, Start};
use crate::error::{Flag, Holder, Result, VolumeError};
use crate::format::keys::Keys;
use crate::format::marks::Claim;
use crate::format::meta::{FencedBy, Meta, VolumeName};
use crate::format::segment::{Durability, Fence};
use crate::journal::{self, Doors, Found, Journal, JournalError};
use crate::keyring::Secrets;
use crate::opening::clones;
use crate::opening::description::{self, Description};
use crate::opening::resize;
use crate::opening::scan::{self, Scan, Source};
use crate::opening::verdict::{self, JournalEvidence, JournalHere, LogEvidence, OpenFlags, Refusal, Verdict};
use crate::opening::{near, verified};
use crate::outside::{Clock, Random, Workers};
use crate::peer::copies::{self, FoundCopy};
use crate::peer::keeper::{Held, Keeper};
use crate::store::Store;
use crate::store::meter::{Meter, MeterStore};
use crate::units::{BlockIndex, Epoch, Seq};

/// How often opening begins again because others wrote to the log meanwhile.
const TRIES: usize = 16;

/// Who serves: told to every other server that wants the volume.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    /// Kept in the state directory.
    pub uuid: Uuid,
    /// The host's name.
    pub name: String,
}

/// The doors of a volume (rule R14).
#[derive(Clone, Debug)]
pub struct Outside {
    /// Where the volume's objects are.
    pub store: Arc<dyn Store>,
    /// The journal's directory; the caller holds its lock.
    pub disk: Arc<dyn Disk>,
    /// The server's cache, shared by its volumes.
    pub cache: Arc<BlockCache>,
    /// What the server's volumes may hold in memory together.
    pub budget: Budget,
    /// Wall time.
    pub clock: Clock,
    /// Uuids, salts, jitter.
    pub random: Random,
    /// Where sealing runs.
    pub workers: Workers,
    /// Who we are.
    pub server: ServerIdentity,
    /// What unlocks encrypted volumes.
    pub secrets: Secrets,
    /// Who else learns the order of changes.
    pub witness: Witness,
}

/// Opens the volume for this server alone.
pub(crate) async fn open(
    outside: Outside,
    name: &VolumeName,
    options: Options,
    journal_options: journal::Options,
    flags: OpenFlags,
) -> Result<Shared> {
    Box::pin(open_as_keeper(outside, name, options, journal_options, flags, None)).await
}

/// As [`open`], on a server that keeps copies of other servers' journals.
pub(crate) async fn open_as_keeper(
    outside: Outside,
    name: &VolumeName,
    options: Options,
    journal_options: journal::Options,
    flags: OpenFlags,
    keeper: Option<Keeper>,
) -> Result<Shared> {
    let meter = Arc::new(Meter::default());
    let outside = Outside { store: Arc::new(MeterStore::new(outside.store, meter.clone())), ..outside };
    let (store, cache) = (outside.store.clone(), (outside.cache.clone(), outside.workers));
    let described = description::settled(&*store, &outside.random, name).await?;
    let described = near::reach(&store, &outside.random, &outside.secrets, described, flags.accept_log_loss).await?;
    let source = Source::described(store, described, &options, Some(cache), &outside.secrets).await?;
    let (store, outside) = (source.store.clone(), Outside { store: source.store.clone(), ..outside });
    source.meta.check_store(&*store)?;
    let keys = source.keys.clone();
    let configured = options;
    let Tuned { options, allowance } = tuned(&configured, &source.meta)?;
    let options = options.for_volume(source.meta.size);
    // Records are synced for a FLUSH only if that is what a FLUSH promises.
    let lay_out = options.durability != Durability::Store;
    let journal_options = journal::Options { lay_out, ..journal_options };
    let cache = (outside.cache.clone(), outside.workers);
    let below = clones::below(&source, &options, &outside.budget, cache, None).await?;
    let opening =
        Opening { outside, meter, source, below, options, configured, allowance, journal_options, flags, keeper };
    let mut claim = None;
    // Boxed, as the scans and the journal in it: whoever opens a volume may be deep in the stack.
    let taken = Box::pin(opening.take(name, &mut claim)).await;
    if let (Err(_), Some(claim)) = (&taken, claim) {
        verified::withdraw(&*store, &keys, claim).await;
    }
    taken
}

/// The server's options, and what the volume sets itself.
fn tuned(configured: &Options, meta: &Meta) -> Result<Tuned> {
    let tuned = settings::tuned(configured, &meta.settings);
    tuned.map_err(|bad| VolumeError::Settings { name: meta.name.to_string(), why: bad.to_string() })
}

/// Our fence, in the log.
struct PlacedFence {
    seq: Seq,
    fence: Fence,
    stored_bytes: u32,
    /// The old owner wrote a checkpoint between our scan and our fence, and may have deleted what our scan refers to.
    is_based_on_less: bool,
    /// The volume was described anew between our first look and our fence.
    newer: Option<Newer>,
}

/// A description that took the place of the one with which opening began, and what it unlocks.
type Newer = (Description, Sealer);

/// What [`journal::find`] said.
type FoundJournal = std::result::Result<Option<Found>, JournalError>;

/// What lies on the disk of this server.
struct Here {
    journal: FoundJournal,
    /// A copy of the journal that the newest fence names.
    copy: Option<FoundCopy>,
}

impl Here {
    /// What is in the copy, if that is a journal.
    fn copied(&self) -> Option<&Found> {
        self.copy.as_ref()?.found.as_ref().ok()?.as_ref()
    }
}

/// How the store stands to what was seen before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Past {
    /// As new, or newer.
    IsKept,
    /// Older, or nobody can tell; a flag accepts it.
    IsAccepted,
}

/// What the local disk says of the volume.
struct Remembered {
    past: Past,
    seen: Option<Seen>,
    /// A size that was owed; nothing if a store that went back was accepted.
    growth: Option<Growth>,
}

/// Said if the server that took a volume from this one has its identity.
const COPIED: &str = ", which has this server's own identity: there is a copy of this state directory, or an older one was put back here";

fn log_evidence(scan: &Scan) -> LogEvidence<'_> {
    LogEvidence { fence: scan.fence.as_ref().map(|(_, fence)| fence), closed: scan.closed, covers: scan.covers }
}

fn here(found: &Found) -> JournalHere<'_> {
    JournalHere {
        names: &found.names,
        changes: found.changes.first().map(|change| change.no).zip(found.last()),
        synced: found.synced,
        whole: found.is_whole(),
    }
}

fn journal_evidence(found: &FoundJournal) -> JournalEvidence<'_> {
    match found {
        Ok(None) => JournalEvidence::None,
        Ok(Some(found)) => JournalEvidence::Here(here(found)),
        Err(JournalError::Foreign { .. }) => JournalEvidence::Foreign,
        Err(JournalError::Damaged { .. } | JournalError::Unreadable { .. }) => JournalEvidence::Damaged,
        // A directory that cannot even be listed can as little be set aside.
        Err(_) => JournalEvidence::Unknown,
    }
}

struct Opening {
    outside: Outside,
    meter: Arc<Meter>,
    source: Source,
    /// Of a clone.
    below: Option<Below>,
    options: Options,
    /// Those of the server alone.
    configured: Options,
    allowance: OwnAllowance,
    journal_options: journal::Options,
    flags: OpenFlags,
    /// Who takes the journals of others here.
    keeper: Option<Keeper>,
}

impl Opening {
    /// Steps 1 to 6. In verified mode `claim` is what is to be withdrawn if this fails.
    async fn take(mut self, name: &VolumeName, claim: &mut Option<Claim>) -> Result<Shared> {
        let mut displaced: Option<Epoch> = None;
        let mut held = None;
        for turn in 0..TRIES {
            let mut scan = Box::pin(self.source.scan()).await?;
            if let Some(contested) = claim.take_if(|claim| scan.fences.contests(*claim)) {
                verified::withdraw(&*self.outside.store, &self.source.keys, contested).await;
                verified::give_way(&self.outside.random, turn).await;
                continue;
            }
            let Remembered { past, seen, growth } = self.refuse_the_past(&scan).await?;
            let kept = seen.as_ref().and_then(|seen| Some((Epoch(seen.epoch), seen.line.as_ref()?)));
            self.refuse_a_lost_race(&scan, &mut displaced)?;
            if self.flags.takeover {
                // From here on the copy stays what it is.
                self.hold(&mut held).await;
            }
            let mut here = Box::pin(self.look(&scan)).await?;
            let mut verdict = self.decide(&scan, &here)?;
            if turn == 0 {
                // Later the danger may be over because this very opening has met it.
                self.refuse_needless_flags(&scan, &here, past)?;
            }
            // Not before: whoever only asks, and is refused, disturbs no sender.
            if self.hold(&mut held).await {
                here = Box::pin(self.look(&scan)).await?;
                verdict = self.decide(&scan, &here)?;
            }
            if self.source.meta.fenced_by == FencedBy::Verified && claim.is_none() {
                let store = &*self.outside.store;
                *claim = Some(verified::claim(store, &self.source.keys, &scan.fences, &self.outside.random).await?);
                continue;
            }
            if let Some(torn) = &scan.torn {
                tracing::warn!(volume = %name, "{torn}; going on without it");
            }
            let start = self.line_goes_on(&scan, &here, &verdict, past);
            if let (Start::Broken, Verdict::Resume, Some(seen)) = (start, &verdict, &seen) {
                self.forget_the_line(seen).await?;
            }
            // One that could be had and is not taken, because an operator said so.
            let passed_over = here.copy.as_ref().filter(|_| !matches!(verdict, Verdict::Adopt { .. }));
            let (passed_over, keeps) = (passed_over.map(|copy| copy.copy.clone()), self.keeper.is_some());
            let before = scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch);
            if let Some(growth) = growth.filter(|growth| growth.epoch == before.0 && !scan.closed) {
                self.describe(growth.size, &mut scan).await?;
            }
            let (journal, replay) = Box::pin(self.journal(&scan, here, &verdict, start)).await?;
            // From here on the claim is never withdrawn: the fence may land whatever is answered, and whoever comes then must have
            // seen one of both.
            let placing = claim.take();
            match self.put_fence(&scan, journal.name(), placing).await {
                Ok(Some(mut placed)) => {
                    let newer = placed.newer.take();
                    if placed.is_based_on_less {
                        scan = Box::pin(self.source.scan()).await?;
                    } else {
                        scan::follow_fence(&mut scan.map, placed.seq, &placed.fence, scan.closed, placed.stored_bytes);
                    }
                    if let Some(Err(error)) = newer.map(|newer| self.adopt(newer, &mut scan)) {
                        drop(journal.close().await);
                        return Err(error);
                    }
                    let host_life = self.outside.disk.host_life();
                    let line = unbroken::continued(start, placed.fence.epoch, before, kept, host_life);
                    // The epochs that were seen before the store was put back come once more, and are others.
                    let lost = seen.as_ref().filter(|_| past == Past::IsAccepted).map_or(0, |seen| seen.epoch + 1);
                    let line = Line { since: line.since.max(lost), ..line };
                    self.source.look_for_dead(&mut scan).await;
                    let shared = self.start(scan, placed, journal, replay, line, held);
                    shared.remember(shared.facts.fence.0).await;
                    shared.forget_copies(passed_over.as_ref(), keeps).await;
                    // Of an epoch that is over it says nothing to anybody.
                    drop(growth::NOTE.forget(&*shared.doors.disk).await);
                    return Ok(shared);
                }
                // A journal that was just begun is empty: the next try finds it and drops it. Nothing of this one may be under way
                // then. Why it could not be closed is found by the next one.
                Ok(None) => {
                    drop(journal.close().await);
                    // In verified mode our fence may be there, and only somebody who came later be in the way.
                    displaced = displaced.max(placing.map(|claim| claim.epoch));
                }
                Err(error) => {
                    drop(journal.close().await);
                    return Err(error);
                }
            }
        }
        Err(VolumeError::Invalid(format!(
            "volume {name} changes too fast to be opened; another server is writing to it"
        )))
    }

    /// Nothing of a copy of this volume's journal is taken here any more. Whether that is news.
    async fn hold(&self, held: &mut Option<Held>) -> bool {
        let (Some(keeper), None) = (&self.keeper, &held) else { return false };
        *held = Some(keeper.hold(self.source.meta.uuid).await);
        true
    }

    /// What lies on the disk here: the journal, and a copy of the one that the fence names.
    async fn look(&self, scan: &Scan) -> Result<Here> {
        let (disk, sealer) = (&self.outside.disk, &self.source.sealer);
        let failed = |error: io::Error| {
            let what = format!(
                "what {} says of a copy of another server's journal cannot be read: {error}; move the files standby-* there away to go on without the copy",
                disk.path()
            );
            VolumeError::Journal(JournalError::Disk { what })
        };
        copies::finish(disk).await.map_err(failed)?;
        let fence = scan.fence.as_ref().filter(|_| !scan.closed);
        let copy = match fence {
            Some((_, fence)) => copies::find(disk, sealer, fence.journal).await.map_err(failed)?,
            None => None,
        };
        Ok(match copy {
            // It became the journal, and is still somebody else's.
            Some(copy) if copy.in_place && matches!(copy.found, Ok(Some(_))) => {
                Here { journal: Ok(None), copy: Some(copy) }
            }
            copy => Here { journal: journal::find(disk, sealer).await, copy: copy.filter(|copy| !copy.in_place) },
        })
    }

    /// The verdict with other flags than those that were given.
    fn verdict(scan: &Scan, seen: &Here, flags: OpenFlags) -> Verdict {
        verdict::decide(&log_evidence(scan), journal_evidence(&seen.journal), seen.copied().map(here), flags)
    }

    /// Whether everything that the epoch before acknowledged is here.
    fn line_goes_on(&self, scan: &Scan, seen: &Here, verdict: &Verdict, past: Past) -> Start {
        // What would have been refused without a flag is not whole. That a peer takes over is what its copy is for.
        let needed = OpenFlags { takeover: matches!(verdict, Verdict::Adopt { .. }), ..OpenFlags::default() };
        let unaided = match Opening::verdict(scan, seen, needed) {
            Verdict::Refuse(Refusal::StaleJournal | Refusal::Unusable) if needed.takeover => {
                Opening::verdict(scan, seen, OpenFlags { drop_journal: true, ..needed })
            }
            unaided => unaided,
        };
        match (past, verdict) {
            _ if self.flags.breaks_line => Start::Broken,
            (Past::IsKept, Verdict::Adopt { .. }) if unaided == *verdict => {
                let life = self.outside.disk.host_life();
                let kept = |copy: &FoundCopy| Start::Kept {
                    since: copy.copy.since,
                    same_life: life.is_some() && copy.copy.life == life,
                };
                seen.copy.as_ref().map_or(Start::Broken, kept)
            }
            (Past::IsKept, Verdict::Resume) if unaided == *verdict => Start::Resumed,
            (Past::IsKept, Verdict::Begin { .. }) if scan.closed => Start::Closed,
            _ => Start::Broken,
        }
    }

    /// Before a journal of which a loss was accepted is made whole: should this opening die, or begin again, the next would see nothing
    /// amiss.
    async fn forget_the_line(&self, seen: &Seen) -> Result<()> {
        if seen.line.is_none() {
            return Ok(());
        }
        let disk = &self.outside.disk;
        seen::write(disk, &Seen { line: None, ..seen.clone() }).await.map_err(|error| {
            let what = format!("what was seen of the volume cannot be kept in {}: {error}", disk.path());
            VolumeError::Journal(JournalError::Disk { what })
        })
    }

    /// Nothing in the store is ever older than it was, unless somebody put an old copy there. Returns what was seen of it, too.
    async fn refuse_the_past(&self, scan: &Scan) -> Result<Remembered> {
        let (name, disk) = (self.source.meta.name.to_string(), &*self.outside.disk);
        let read = async { Ok::<_, io::Error>((seen::read(disk).await?, growth::NOTE.read(disk).await?)) };
        let (seen, growth) = match read.await {
            Ok(read) => read,
            // The notice must not be turned off by a file that went bad, and what this server would vouch for is in it, too.
            Err(_) if self.flags.accept_rollback => {
                return Ok(Remembered { past: Past::IsAccepted, seen: None, growth: None });
            }
            Err(error) => return Err(VolumeError::SeenUnreadable { name, why: error.to_string() }),
        };
        match seen.as_ref().and_then(|seen: &Seen| seen.newer_than(&self.source.seen(scan))) {
            Some(what) if !self.flags.accept_rollback => Err(VolumeError::RolledBack { name, what }),
            Some(_) => Ok(Remembered { past: Past::IsAccepted, seen, growth: None }),
            None => Ok(Remembered { past: Past::IsKept, seen, growth }),
        }
    }

    /// The store learns the size that this server said the volume has ([`growth`]), before anything else is done: what is in the journal may
    /// lie beyond the end that the description says.
    async fn describe(&mut self, size: u64, scan: &mut Scan) -> Result<()> {
        let (store, random) = (self.outside.store.clone(), self.outside.random.clone());
        let mut tries = 0..TRIES;
        loop {
            let found = description::settled(&*store, &random, &self.source.meta.name).await?;
            if found.meta.uuid != self.source.meta.uuid {
                return Err(VolumeError::NotFound { name: found.meta.name.to_string(), store: store.url() });
            }
            let sealer = found.unlock(&self.outside.secrets).await?;
            if found.meta.size >= size {
                return self.adopt((found, sealer), scan);
            }
            // Somebody may have changed it at the same time.
            if let (Err(error), None) = (resize::grow(&*store, &random, &found, &sealer, size).await, tries.next()) {
                return Err(error);
            }
        }
    }

    /// Each flag is for one danger.
    fn refuse_needless_flags(&self, scan: &Scan, seen: &Here, past: Past) -> Result<()> {
        let rollback = self.flags.accept_rollback && past == Past::IsKept;
        let (journal, copy) = (journal_evidence(&seen.journal), seen.copied().map(here));
        let needless = verdict::needless(&log_evidence(scan), journal, copy, self.flags);
        match needless.or(rollback.then_some(Flag::AcceptRollback)) {
            Some(flag) => Err(VolumeError::NeedlessFlag { name: self.source.meta.name.to_string(), flag }),
            None => Ok(()),
        }
    }

    /// A flag names the server that is there now; whoever takes the volume meanwhile was not meant.
    fn refuse_a_lost_race(&self, scan: &Scan, first_seen: &mut Option<Epoch>) -> Result<()> {
        let epoch = scan.fence.as_ref().map_or(Epoch(0), |(_, fence)| fence.epoch);
        match (*first_seen.get_or_insert(epoch), &scan.fence) {
            (seen, Some((_, fence))) if fence.epoch > seen => {
                Err(VolumeError::LostRace { name: self.source.meta.name.to_string(), holder: Holder::of(fence) })
            }
            _ => Ok(()),
        }
    }

    /// Step 2.
    fn decide(&self, scan: &Scan, seen: &Here) -> Result<Verdict> {
        let verdict = Opening::verdict(scan, seen, self.flags);
        let Verdict::Refuse(refusal) = verdict else { return Ok(verdict) };
        let name = self.source.meta.name.to_string();
        let journal_dir = self.outside.disk.path();
        let here = match (&seen.journal, &seen.copy) {
            (Err(error), _) if refusal == Refusal::Unusable => return Err(error.clone().into()),
            // Why there is no copy where there was one.
            (_, Some(FoundCopy { found: Err(error), .. })) if refusal == Refusal::Owed && !self.flags.drop_journal => {
                return Err(error.clone().into());
            }
            // What is refused of a journal that is another one's is refused of the copy.
            (found, _) if refusal == Refusal::StaleJournal => found.as_ref().ok().and_then(Option::as_ref),
            (found, _) => seen.copied().or(found.as_ref().ok().and_then(Option::as_ref)),
        };
        let holder = scan.fence.as_ref().map_or_else(Holder::nobody, |(_, fence)| Holder::of(fence));
        Err(match refusal {
            Refusal::StaleJournal => VolumeError::StaleJournal {
                name,
                journal_dir,
                changes: here.map_or(0, |found| found.changes.len()),
                epoch: here.map_or(Epoch(0), |found| found.epoch),
                copied: if holder.server == self.outside.server.uuid { COPIED } else { "" },
                holder: Box::new(holder),
            },
            Refusal::StoreBehind => VolumeError::StoreBehind {
                name,
                journal_dir,
                journal_first: here.and_then(|found| found.changes.first()).map_or(0, |change| change.no.0),
                store_last: scan.covers.0,
            },
            Refusal::JournalCut => {
                let last = here.and_then(Found::last).unwrap_or_default().max(scan.covers);
                let synced = here.map(|found| found.synced).filter(|synced| *synced > last);
                VolumeError::JournalCut {
                    name,
                    journal_dir,
                    // Without its identity nobody knows how far it was on the disk.
                    has_lost: if synced.is_some() { "has lost" } else { "may have lost" },
                    last: last.0,
                    synced: synced.map_or_else(String::new, |synced| format!(", and change {synced} was there")),
                    note: here
                        .and_then(|found| found.note.clone())
                        .unwrap_or_else(|| "a file is missing, or damaged from its first record on".to_owned()),
                }
            }
            Refusal::Owed => VolumeError::Owed { name, holder, journal_dir },
            Refusal::Held | Refusal::Unusable => VolumeError::Held { name, holder },
        })
    }

    /// Step 3: the journal, and what of it is to be accepted again.
    async fn journal(
        &self,
        scan: &Scan,
        seen: Here,
        verdict: &Verdict,
        start: Start,
    ) -> Result<(Journal, Vec<Numbered>)> {
        let outside = &self.outside;
        let found = match verdict {
            Verdict::Adopt { aside } => Some(self.adopted(seen, *aside, start).await?),
            _ => seen.journal.ok().flatten(),
        };
        let doors = Doors {
            disk: outside.disk.clone(),
            random: outside.random.clone(),
            workers: outside.workers,
            sealer: self.source.sealer.clone(),
        };
        let meta = &self.source.meta;
        match (found, verdict, &scan.fence) {
            (Some(found), Verdict::Resume | Verdict::Adopt { .. }, Some((_, fence))) => {
                if let Some(note) = &found.note {
                    tracing::warn!(volume = %meta.name, "{note}");
                }
                let replay = found.after(scan.covers).to_vec();
                let next = replay.last().map_or(scan.covers, |change| change.no).next();
                let options = self.journal_options.clone();
                Ok((Journal::resume(doors, options, &found, next, fence.journal).await, replay))
            }
            (found, verdict, _) => {
                if matches!(verdict, Verdict::Begin { aside: true }) {
                    let kept = journal::set_aside(&outside.disk).await?;
                    let changes = found.map_or(0, |found| found.changes.len());
                    tracing::warn!(volume = %meta.name, changes, "the journal was dropped; its files are kept in {kept}");
                } else if found.is_some() {
                    journal::discard(&outside.disk, meta.uuid).await?;
                }
                let (id, first) = (outside.random.uuid(), scan.covers.next());
                let options = self.journal_options.clone();
                Ok((Journal::create(doors, options, id, meta.block_size, first).await?, Vec::new()))
            }
        }
    }

    /// The copy becomes the journal of this server.
    async fn adopted(&self, seen: Here, aside: bool, start: Start) -> Result<Found> {
        let disk = &self.outside.disk;
        let Here { journal, copy: Some(FoundCopy { copy, found: Ok(Some(found)), in_place }) } = seen else {
            return Err(VolumeError::Invalid("the copy of the journal is not there any more: try again".into()));
        };
        if !in_place {
            if aside {
                let kept = journal::set_aside(disk).await?;
                tracing::warn!(volume = %self.source.meta.name, "the journal was dropped; its files are kept in {kept}");
            } else if matches!(journal, Ok(Some(_))) {
                journal::discard(disk, self.source.meta.uuid).await?;
            }
            // Of one of which a loss is accepted no device goes on, also if this opening dies and another one finds the copy in its place.
            let life = if start == Start::Broken { None } else { copy.life.clone() };
            let taken = copies::take(disk, &copies::Copy { life, ..copy }).await;
            taken.map_err(|error| {
                let what = format!("the copy of the journal in {} cannot be taken: {error}", disk.path());
                VolumeError::Journal(JournalError::Disk { what })
            })?;
        }
        tracing::info!(
            volume = %self.source.meta.name,
            changes = found.changes.len(),
            "taken over with the copy of its journal that this server kept as its peer"
        );
        Ok(found)
    }

    /// Whoever deletes the volume puts a tombstone, and then fences whoever has a fence there: a fence that comes later finds
    /// the tombstone. Whoever makes it smaller puts a claim, and then looks for a fence.
    async fn described_anew(&self) -> Result<Option<Newer>> {
        let (store, meta) = (&*self.outside.store, &self.source.meta);
        let known = self.source.description;
        let Some(newer) = description::settled_since(store, &self.outside.random, &meta.name, known).await? else {
            return Ok(None);
        };
        if newer.meta.uuid != meta.uuid {
            return Err(VolumeError::NotFound { name: meta.name.to_string(), store: store.url() });
        }
        if newer.meta.log != meta.log {
            return Err(VolumeError::Invalid(near::elsewhere(&meta.name)));
        }
        let sealer = newer.unlock(&self.outside.secrets).await?;
        Ok(Some((newer, sealer)))
    }

    /// The volume is as the newest description says.
    fn adopt(&mut self, (newer, sealer): Newer, scan: &mut Scan) -> Result<()> {
        if let (Some(ours), Some(newer)) = (self.source.sealer.keyring(), sealer.keyring()) {
            ours.follow(newer);
        }
        let blocks = newer.meta.block_size.block_of(newer.meta.size) - BlockIndex(0);
        scan.map.resize(blocks).map_err(|block| VolumeError::Corrupt {
            key: Keys::meta(&newer.meta.name, newer.number),
            why: format!("it makes the volume smaller, but block {block} was not given up"),
        })?;
        let tuned = tuned(&self.configured, &newer.meta)?;
        self.options = settings::at_once(&self.options, &tuned.options);
        self.allowance = tuned.allowance;
        self.source.description = newer.number;
        self.source.meta = newer.meta;
        Ok(())
    }

    /// Steps 4 and 5: our fence and its slot, or nothing if the log has moved on.
    async fn put_fence(&self, scan: &Scan, journal: Uuid, claim: Option<Claim>) -> Result<Option<PlacedFence>> {
        let fence = self.fence(scan, journal, claim);
        if let Some(claim) = claim {
            return self.put_claimed(scan, fence, claim).await;
        }
        let seq = scan.next;
        let encoded = fence.encode(&self.source.sealer, seq, self.source.sealer.salt(self.outside.random.bytes()));
        let object = encoded.map_err(|error| VolumeError::Invalid(error.to_string()))?;
        let stored_bytes = object.frames_at;
        let key = self.source.keys.segment(seq);
        let put = slot::put_fence(&*self.outside.store, &key, object.parts, &self.source.sealer, seq).await;
        let key = match put.map_err(VolumeError::store(format!("writing {key}")))? {
            Put::Ours(key) => key,
            Put::Taken(_) => return Ok(None),
            Put::Torn => return Err(VolumeError::Invalid(slot::torn_for_fences(&key))),
        };
        let since = self.source.newest_checkpoint_after(scan.checkpointed);
        let (newest, newer) = tokio::try_join!(since, self.described_anew())?;
        if newest.is_some_and(|newest| newest >= seq) {
            let void = std::slice::from_ref(&key);
            let deleted = match &self.source.tiers {
                // What was in the slot before may have cooled: that is elsewhere under the same key, and is needed.
                Some(tiers) => tiers.delete_near(void).await,
                None => self.outside.store.delete(void).await,
            };
            deleted.map_err(VolumeError::store(format!("removing the void fence {key}")))?;
            return Ok(None);
        }
        let is_based_on_less = newest.is_some();
        Ok(Some(PlacedFence { seq, fence, stored_bytes, is_based_on_less, newer }))
    }

    /// As [`Opening::put_fence`], in verified mode.
    async fn put_claimed(&self, scan: &Scan, fence: Fence, claim: Claim) -> Result<Option<PlacedFence>> {
        let (store, random) = (&*self.outside.store, &self.outside.random);
        let stored_bytes = verified::place(store, &self.source, scan, claim, &fence, random).await?;
        let newer = self.described_anew().await?;
        let Some(stored_bytes) = stored_bytes else { return Ok(None) };
        self.clear_fences(scan).await;
        Ok(Some(PlacedFence { seq: scan.next, fence, stored_bytes, is_based_on_less: false, newer }))
    }

    /// Deletes the claims and fences that are before all checkpoints. That it cannot costs nothing but their place.
    async fn clear_fences(&self, scan: &Scan) {
        if scan.fences.before(&self.source.keys, scan.based_on).is_empty() {
            return;
        }
        let cleared = async {
            let Some(oldest) = self.source.oldest_epoch().await? else { return Ok(()) };
            let old = scan.fences.before(&self.source.keys, oldest.min(scan.based_on));
            self.outside.store.delete(&old).await.map_err(VolumeError::store("deleting them"))
        };
        if let Err(error) = cleared.await {
            tracing::debug!(volume = %self.source.meta.name, "older claims and fences are not deleted: {error}");
        }
    }

    fn fence(&self, scan: &Scan, journal: Uuid, claim: Option<Claim>) -> Fence {
        let seq = scan.next;
        let old = scan.fence.as_ref().map(|(_, fence)| fence);
        // The old writer had at most W slots after its last commit, which is before this one.
        let strays = if scan.closed { 1 } else { old.map_or(1, |fence| u64::from(fence.window)) };
        Fence {
            epoch: claim.map_or_else(|| old.map_or(Epoch(0), |fence| fence.epoch).next(), |claim| claim.epoch),
            server: self.outside.server.uuid,
            server_name: self.outside.server.name.clone(),
            time_unix_millis: self.outside.clock.unix_millis(),
            journal,
            window: self.options.upload_window,
            continues_at: Seq(seq.0 + strays.max(1)),
            durability: self.options.durability.in_fence(),
            covers: scan.covers,
            displaces: log_evidence(scan).displaces(),
        }
    }

    /// Step 6.
    fn start(
        self,
        scan: Scan,
        placed: PlacedFence,
        journal: Journal,
        replay: Vec<Numbered>,
        line: Line,
        held: Option<Held>,
    ) -> Shared {
        let PlacedFence { seq, fence, .. } = placed;
        let needed: BTreeSet<Seq> = scan.checkpoints.keys().copied().chain([scan.checkpointed]).collect();
        let mut doomed = Doomed::new(scan.doomed, scan.listed.difference(&needed).copied().collect());
        let (needless, digests) = scan.digests.into_iter().partition(|digest| digest.last <= scan.checkpointed);
        doomed.add_digests(needless);
        let digests = Digests::new(digests, scan.checkpointed);
        let origin = Origin {
            map: scan.map,
            covers: scan.covers,
            committed: seq,
            next_seq: fence.continues_at,
            checkpointed: scan.checkpointed,
            bytes_since_checkpoint: scan.bytes_since_checkpoint,
        };
        let meta = self.source.meta;
        let is_clone = meta.parent.is_some();
        let mut log = Log::new(meta.block_size, origin);
        let end = meta.block_size.block_of(meta.size);
        let replayed = replay.len();
        for numbered in replay {
            // Of its own: a slice would keep all of the journal's file in memory that it was read with.
            let change = numbered.change.within(end, meta.block_size).into_own();
            log.accept(change, self.options.segment_size);
        }
        tracing::debug!(volume = %meta.name, epoch = %fence.epoch, replayed, "recovered");
        Shared::new(Parts {
            meta,
            description: self.source.description,
            options: self.options,
            configured: self.configured,
            allowance: self.allowance,
            fence: (seq, fence),
            fences_since: scan.fences_since + 1,
            line,
            budget: self.outside.budget,
            store: self.outside.store,
            tiers: self.source.tiers,
            keys: self.source.keys,
            sealer: self.source.sealer,
            objects: self.source.objects,
            meter: self.meter,
            account_before: scan.account,
            journal,
            held,
            disk: self.outside.disk,
            clock: self.outside.clock,
            random: self.outside.random,
            workers: self.outside.workers,
            secrets: self.outside.secrets,
            witness: self.outside.witness,
            // It may have become independent just before our fence.
            below: self.below.filter(|_| is_clone),
            log,
            checkpoints: scan.checkpoints,
            doomed,
            digests,
        })
    }
}
