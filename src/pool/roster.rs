//! Who is in a pool, as one member sees it: pure. Time is an argument, and only how much of it went by counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::beat::Beat;

/// So many listings in a row must show the same beat, besides the time that has to go by: a listing that failed, or a store that was away,
/// makes nobody gone.
pub const LISTINGS_LEAST: u32 = 3;

/// The other members.
#[derive(Clone, Debug)]
pub struct Roster {
    patience: Duration,
    members: BTreeMap<Uuid, Member>,
}

/// Another member.
#[derive(Clone, Debug)]
pub struct Member {
    /// The newest beat that was seen.
    pub beat: u64,
    /// What it says; empty until it was read.
    pub said: Beat,
    /// How many of its beats were seen.
    pub beats: u64,
    /// When this beat was seen first.
    since: Duration,
    /// The listings that showed it, after the first.
    listings: u32,
    is_gone: bool,
}

/// What happened to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Its beat has not changed for too long.
    Gone(Uuid),
    /// It beats again.
    Back(Uuid),
    /// It took its beats away: it has ended in good order.
    Left(Uuid, String),
}

impl Roster {
    /// Nobody yet; a member is gone whose beat does not change for `patience`.
    pub fn new(patience: Duration) -> Roster {
        Roster { patience, members: BTreeMap::new() }
    }

    /// A listing of the newest beats of the others, at a time `now`. Returns what has changed; what a new beat says is to be told then.
    pub fn listed(&mut self, beats: &BTreeMap<Uuid, u64>, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        self.members.retain(|id, member| {
            let is_there = beats.contains_key(id);
            if !is_there {
                news.push(News::Left(*id, member.said.host.clone()));
            }
            is_there
        });
        for (&id, &beat) in beats {
            let Some(member) = self.members.get_mut(&id) else {
                let said = Beat::default();
                self.members.insert(id, Member { beat, said, beats: 0, since: now, listings: 0, is_gone: false });
                continue;
            };
            if member.beat == beat {
                member.listings = member.listings.saturating_add(1);
                let is_old = now.saturating_sub(member.since) >= self.patience && member.listings >= LISTINGS_LEAST;
                if is_old && !member.is_gone {
                    member.is_gone = true;
                    news.push(News::Gone(id));
                }
                continue;
            }
            (member.beat, member.since, member.listings) = (beat, now, 0);
            if std::mem::take(&mut member.is_gone) {
                news.push(News::Back(id));
            }
        }
        news
    }

    /// The members whose newest beat has not been read.
    pub fn unread(&self, read: &BTreeMap<Uuid, u64>) -> Vec<(Uuid, u64)> {
        let is_unread = |(id, member): &(&Uuid, &Member)| read.get(*id) != Some(&member.beat);
        self.members.iter().filter(is_unread).map(|(id, member)| (*id, member.beat)).collect()
    }

    /// What a member says in its newest beat.
    pub fn told(&mut self, id: Uuid, said: Beat) {
        if let Some(member) = self.members.get_mut(&id) {
            member.beats += 1;
            member.said = said;
        }
    }

    /// A member, gone or not.
    pub fn member(&self, id: Uuid) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The members that are not gone.
    pub fn living(&self) -> impl Iterator<Item = (Uuid, &Member)> {
        self.members.iter().filter(|(_, member)| !member.is_gone).map(|(id, member)| (*id, member))
    }

    /// Whether it is a member, and gone.
    pub fn is_gone(&self, id: Uuid) -> bool {
        self.members.get(&id).is_some_and(|member| member.is_gone)
    }

    /// The volumes that living members have.
    pub fn held(&self) -> BTreeSet<&str> {
        self.living().flat_map(|(_, member)| member.said.volumes.iter().map(String::as_str)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const PATIENCE: Duration = Duration::from_secs(30);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn beats(beat: u64) -> BTreeMap<Uuid, u64> {
        BTreeMap::from([(A, beat)])
    }

    #[test]
    fn a_member_is_gone_when_its_beat_stands_still_and_back_when_it_goes_on() {
        let mut roster = Roster::new(PATIENCE);
        for second in [0, 10, 20] {
            assert_eq!(roster.listed(&beats(5), seconds(second)), [], "{second}");
        }
        assert!(!roster.is_gone(A));
        assert_eq!(roster.listed(&beats(5), seconds(30)), [News::Gone(A)]);
        assert!(roster.is_gone(A));
        assert_eq!(roster.living().count(), 0);
        assert_eq!(roster.listed(&beats(5), seconds(40)), []);
        assert_eq!(roster.listed(&beats(6), seconds(50)), [News::Back(A)]);
        assert_eq!(roster.living().count(), 1);
        assert_eq!(roster.listed(&BTreeMap::new(), seconds(60)), [News::Left(A, String::new())]);
        assert!(roster.member(A).is_none());
    }

    #[test]
    fn nobody_is_gone_because_the_store_was_away() {
        let mut roster = Roster::new(PATIENCE);
        roster.listed(&beats(5), seconds(0));
        // No listing for an hour. Nobody could beat either.
        for later in 1..LISTINGS_LEAST {
            assert_eq!(roster.listed(&beats(5), seconds(3600) * later), []);
        }
        assert_eq!(roster.listed(&beats(6), seconds(36000)), []);
        assert!(!roster.is_gone(A));
    }

    #[test]
    fn what_a_living_member_says_that_it_has_is_held() {
        let mut roster = Roster::new(PATIENCE);
        roster.listed(&beats(5), seconds(0));
        assert_eq!(roster.unread(&BTreeMap::new()), [(A, 5)]);
        assert_eq!(roster.unread(&beats(5)), []);
        roster.told(A, Beat { host: "alpha".into(), volumes: BTreeSet::from(["db".into()]), ..Beat::default() });
        assert_eq!(roster.held(), BTreeSet::from(["db"]));
        for second in [10, 20, 30] {
            roster.listed(&beats(5), seconds(second));
        }
        assert_eq!(roster.held(), BTreeSet::new());
    }
}
