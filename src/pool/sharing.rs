//! What a member does about the volumes of its pool: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::roster::Roster;

/// A volume is tried again after a pause, at first; then it doubles each time.
pub const PAUSE: Duration = Duration::from_secs(10);
/// The most it grows to.
pub const PAUSE_MAX: Duration = Duration::from_secs(600);
/// A member that had a volume and lives has so many beats to say that it still has it.
pub const BEATS_TO_SAY: u64 = 2;

/// What is to be done about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nobody has it: open it.
    Open(String),
    /// That server is gone, or does not know of it any more: open it, and take it if that server has it still.
    TakeOver(String, Uuid),
    /// It is for another member, and nobody uses it: close it for the host of that name.
    HandOver(String, String),
}

impl Step {
    /// The volume.
    pub fn volume(&self) -> &str {
        match self {
            Step::Open(volume) | Step::TakeOver(volume, _) | Step::HandOver(volume, _) => volume,
        }
    }
}

/// A member's part of the volumes.
#[derive(Clone, Debug)]
pub struct Sharing {
    me: Uuid,
    refused: BTreeMap<String, Refused>,
}

/// A volume that did not open.
#[derive(Clone, Debug)]
struct Refused {
    /// Who has it, and which of its beats was the newest then.
    holder: Option<(Uuid, u64)>,
    pause: Duration,
    again_at: Duration,
}

impl Sharing {
    /// The part of the member of that id.
    pub fn of(me: Uuid) -> Sharing {
        Sharing { me, refused: BTreeMap::new() }
    }

    /// What is to be done now. `volumes` are all of the pool, but for those that an operator handed away from here; `mine` are those that this
    /// member has, and how many clients use each.
    pub fn steps(
        &self,
        volumes: &[String],
        mine: &BTreeMap<String, usize>,
        roster: &Roster,
        now: Duration,
    ) -> Vec<Step> {
        let held = roster.held();
        let step = |volume: &String| {
            let owner = self.owner(volume, roster);
            match mine.get(volume) {
                Some(0) => {
                    // Only for one that has shown that it goes on.
                    let other =
                        roster.member(owner).filter(|member| owner != self.me && member.beats > BEATS_TO_SAY)?;
                    Some(Step::HandOver(volume.clone(), other.said.host.clone()))
                }
                Some(_) => None,
                None if owner != self.me || held.contains(volume.as_str()) => None,
                None => self.open(volume, roster, now),
            }
        };
        volumes.iter().filter_map(step).collect()
    }

    fn open(&self, volume: &str, roster: &Roster, now: Duration) -> Option<Step> {
        let Some(refused) = self.refused.get(volume) else { return Some(Step::Open(volume.to_owned())) };
        let may_be_taken = |&(holder, beat): &(Uuid, u64)| {
            let has_not_said = |newest: u64| newest.saturating_sub(beat) >= BEATS_TO_SAY;
            roster.is_gone(holder) || roster.member(holder).is_some_and(|member| has_not_said(member.beat))
        };
        match refused.holder.filter(may_be_taken) {
            Some((holder, _)) => Some(Step::TakeOver(volume.to_owned(), holder)),
            None => (now >= refused.again_at).then(|| Step::Open(volume.to_owned())),
        }
    }

    /// The volumes that did not open here, and not because another server has them.
    pub fn unable(&self) -> BTreeSet<String> {
        self.refused.iter().filter(|(_, refused)| refused.holder.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// The living member that is to have a volume, if possible one that can open it: the same for whoever sees the same members, and for most volumes still the same when one
    /// comes or goes (rendezvous hashing; Thaler and Ravishankar, 1998).
    pub fn owner(&self, volume: &str, roster: &Roster) -> Uuid {
        let is_unable_here = self.refused.get(volume).is_some_and(|refused| refused.holder.is_none());
        let others = roster.living().map(|(id, member)| (!member.said.unable.contains(volume), id));
        let hash = |id: Uuid| *blake3::hash(&[id.as_bytes(), volume.as_bytes()].concat()).as_bytes();
        let weight = |&(is_able, id): &(bool, Uuid)| (is_able, hash(id), id);
        others.chain([(!is_unable_here, self.me)]).max_by_key(weight).map_or(self.me, |(_, id)| id)
    }

    /// Forgets who had a volume that some member says it has: what is known of it is older.
    pub fn heard(&mut self, roster: &Roster) {
        let held = roster.held();
        self.refused.retain(|name, refused| refused.holder.is_none() || !held.contains(name.as_str()));
    }

    /// A volume is open here.
    pub fn opened(&mut self, volume: &str) {
        self.refused.remove(volume);
    }

    /// A volume did not open: `holder` has it, if that is why.
    pub fn refused(&mut self, volume: &str, holder: Option<Uuid>, roster: &Roster, now: Duration) {
        let beat_of = |id| roster.member(id).map_or(u64::MAX, |member| member.beat);
        let holder = holder.map(|id| (id, beat_of(id)));
        let pause = self.refused.get(volume).map_or(PAUSE, |before| (before.pause * 2).min(PAUSE_MAX));
        self.refused.insert(volume.to_owned(), Refused { holder, pause, again_at: now + pause });
    }
}

#[cfg(test)]
mod tests;
