use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::beat::Beat;
use super::super::roster::LISTINGS_LEAST;
use super::*;

const BEAT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("v{number}")).collect()
}

/// A roster in which one other member has beaten as often, the last time with those volumes.
fn with_other(id: u128, beats: u64, volumes: &[&str]) -> Roster {
    let mut roster = Roster::new(PATIENCE);
    for beat in 1..=beats {
        roster.listed(&BTreeMap::from([(Uuid::from_u128(id), beat)]), BEAT * beat as u32);
        let volumes = volumes.iter().map(|&name| name.to_owned()).collect();
        roster.told(Uuid::from_u128(id), Beat { host: "other".into(), volumes, ..Beat::default() });
    }
    roster
}

#[test]
fn a_member_that_is_alone_takes_all_that_is_free() {
    let (sharing, roster) = (Sharing::of(Uuid::from_u128(1)), Roster::new(PATIENCE));
    let steps = sharing.steps(&names(3), &BTreeMap::new(), &roster, BEAT);
    assert_eq!(steps, ["v0", "v1", "v2"].map(|name| Step::Open(name.into())));
}

#[test]
fn two_members_share_and_what_has_clients_stays() {
    let roster = with_other(2, 5, &[]);
    let (sharing, volumes) = (Sharing::of(Uuid::from_u128(1)), names(64));
    let mine: BTreeMap<String, usize> = volumes.iter().map(|name| (name.clone(), 0)).collect();
    let given = sharing.steps(&volumes, &mine, &roster, BEAT);
    assert!((16..=48).contains(&given.len()), "{}", given.len());
    assert!(given.iter().all(|step| matches!(step, Step::HandOver(_, to) if to == "other")));
    let used = mine.keys().map(|name| (name.clone(), 1)).collect();
    assert_eq!(sharing.steps(&volumes, &used, &roster, BEAT), []);
    // One that has just come might go again.
    assert_eq!(sharing.steps(&volumes, &mine, &with_other(2, BEATS_TO_SAY, &[]), BEAT), []);
}

#[test]
fn a_volume_is_taken_from_a_member_that_is_gone_and_from_nobody_else() {
    let (me, other, stranger) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    let volumes = names(1);
    let mut roster = with_other(2, 5, &["v0"]);
    let mut sharing = Sharing::of(me);
    // The other one says that it has it.
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), []);
    for listing in 0..=LISTINGS_LEAST {
        roster.listed(&BTreeMap::from([(other, 5)]), BEAT * 5 + PATIENCE * (listing + 1));
    }
    assert!(roster.is_gone(other));
    // Only the store knows whether it closed it.
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), [Step::Open("v0".into())]);
    sharing.refused("v0", Some(other), &roster, BEAT);
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), [Step::TakeOver("v0".into(), other)]);
    // Of a server that is no member nothing is known.
    sharing.refused("v0", Some(stranger), &roster, BEAT);
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), []);
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT + PAUSE_MAX), [Step::Open("v0".into())]);
    sharing.opened("v0");
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), [Step::Open("v0".into())]);
}

#[test]
fn a_member_that_lives_may_say_first_that_it_still_has_a_volume() {
    let other = Uuid::from_u128(2);
    let mut roster = with_other(2, 5, &[]);
    let mut sharing = Sharing::of(Uuid::from_u128(1));
    let volumes: Vec<String> =
        names(64).into_iter().filter(|name| sharing.owner(name, &roster) == sharing.me).take(1).collect();
    sharing.refused(&volumes[0], Some(other), &roster, BEAT);
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), []);
    roster.listed(&BTreeMap::from([(other, 6)]), BEAT * 6);
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), []);
    roster.listed(&BTreeMap::from([(other, 7)]), BEAT * 7);
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), [Step::TakeOver(volumes[0].clone(), other)]);
    // It says so. When it has it no more, nothing that was known before counts.
    roster.told(other, Beat { host: "other".into(), volumes: BTreeSet::from([volumes[0].clone()]), ..Beat::default() });
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), []);
    sharing.heard(&roster);
    roster.told(other, Beat { host: "other".into(), ..Beat::default() });
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), [Step::Open(volumes[0].clone())]);
}

#[test]
fn a_volume_that_does_not_open_here_is_another_members() {
    let (mut roster, mut sharing) = (with_other(2, 5, &[]), Sharing::of(Uuid::from_u128(1)));
    let volumes: Vec<String> =
        names(64).into_iter().filter(|name| sharing.owner(name, &roster) == sharing.me).take(1).collect();
    sharing.refused(&volumes[0], None, &roster, BEAT);
    assert_eq!(sharing.unable(), BTreeSet::from([volumes[0].clone()]));
    assert_eq!(sharing.owner(&volumes[0], &roster), Uuid::from_u128(2));
    // If nobody can, it is tried again and again where it was.
    roster.told(Uuid::from_u128(2), Beat { unable: sharing.unable(), ..Beat::default() });
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT), []);
    assert_eq!(sharing.steps(&volumes, &BTreeMap::new(), &roster, BEAT + PAUSE), [Step::Open(volumes[0].clone())]);
    sharing.opened(&volumes[0]);
    assert_eq!(sharing.unable(), BTreeSet::new());
}

/// A member of the model: its own view, and what it has.
struct Member {
    id: Uuid,
    beat: u64,
    lives: bool,
    roster: Roster,
    read: BTreeMap<Uuid, u64>,
    sharing: Sharing,
    mine: BTreeMap<String, usize>,
    cannot: Vec<String>,
}

/// The store of the model: beats, and who fenced a volume last and did not close it.
#[derive(Default)]
struct Store {
    beats: BTreeMap<Uuid, (u64, Beat)>,
    holders: BTreeMap<String, Uuid>,
}

impl Member {
    fn new(number: usize) -> Member {
        let id = Uuid::from_u128(number as u128 + 1);
        let (roster, sharing) = (Roster::new(PATIENCE), Sharing::of(id));
        Member {
            id,
            beat: 0,
            lives: true,
            roster,
            read: BTreeMap::new(),
            sharing,
            mine: BTreeMap::new(),
            cannot: Vec::new(),
        }
    }

    /// One round, as the shell makes it.
    fn round(&mut self, store: &mut Store, volumes: &[String], now: Duration) {
        // Who was fenced notices.
        self.mine.retain(|name, _| store.holders.get(name) == Some(&self.id));
        self.beat += 1;
        let (volumes_here, unable) = (self.mine.keys().cloned().collect(), self.sharing.unable());
        let said = Beat { host: self.id.to_string(), volumes: volumes_here, unable };
        store.beats.insert(self.id, (self.beat, said));
        let others = store.beats.iter().filter(|(id, _)| **id != self.id);
        self.roster.listed(&others.map(|(id, (beat, _))| (*id, *beat)).collect(), now);
        for (id, beat) in self.roster.unread(&self.read) {
            self.read.insert(id, beat);
            self.roster.told(id, store.beats[&id].1.clone());
        }
        self.sharing.heard(&self.roster);
        for step in self.sharing.steps(volumes, &self.mine, &self.roster, now) {
            match step {
                // Its journal of that volume is damaged, say.
                Step::Open(name) | Step::TakeOver(name, _) if self.cannot.contains(&name) => {
                    self.sharing.refused(&name, None, &self.roster, now);
                }
                Step::Open(name) => match store.holders.get(&name) {
                    Some(holder) if *holder != self.id => {
                        self.sharing.refused(&name, Some(*holder), &self.roster, now);
                    }
                    _ => self.take(name, store),
                },
                Step::TakeOver(name, from) => match store.holders.get(&name) {
                    Some(holder) if ![self.id, from].contains(holder) => {
                        self.sharing.refused(&name, Some(*holder), &self.roster, now);
                    }
                    _ => self.take(name, store),
                },
                Step::HandOver(name, _) => {
                    self.mine.remove(&name);
                    store.holders.remove(&name);
                }
            }
        }
    }

    fn take(&mut self, name: String, store: &mut Store) {
        self.sharing.opened(&name);
        store.holders.insert(name.clone(), self.id);
        self.mine.insert(name, 0);
    }
}

proptest! {
    /// Whatever happened before: once nothing happens any more, each volume is had by one living member, the same for all, and nothing moves.
    #[test]
    fn all_is_shared_out_again_after_anything(
        events in proptest::collection::vec((0..4_usize, any::<bool>(), 1..8_u32), 0..12),
        survivor in 0..4_usize,
    ) {
        let volumes = names(12);
        let mut store = Store::default();
        let mut members: Vec<Member> = (0..4).map(Member::new).collect();
        let mut now = Duration::ZERO;
        let run = |members: &mut Vec<Member>, store: &mut Store, now: &mut Duration, rounds: u32| {
            for _ in 0..rounds {
                *now += BEAT;
                members.iter_mut().filter(|member| member.lives).for_each(|member| member.round(store, &volumes, *now));
            }
        };
        for (member, lives, rounds) in events {
                // Frozen, or thawed.
            members[member].lives = lives;
            run(&mut members, &mut store, &mut now, rounds);
        }
        // All but one of those that live at the end cannot open some volume.
        members[survivor].lives = true;
        for (number, member) in members.iter_mut().enumerate().filter(|(number, _)| *number != survivor) {
            member.cannot = volumes[number..number + 2].to_vec();
        }
        run(&mut members, &mut store, &mut now, 80);
        let had = |members: &Vec<Member>| -> Vec<(Uuid, String)> {
            let living = members.iter().filter(|member| member.lives);
            living.flat_map(|member| member.mine.keys().map(|name| (member.id, name.clone()))).collect()
        };
        let before = had(&members);
        let each: BTreeSet<&String> = before.iter().map(|(_, name)| name).collect();
        prop_assert_eq!(each.len(), volumes.len(), "some volume is served by nobody");
        prop_assert_eq!(before.len(), volumes.len(), "some volume is served twice");
        run(&mut members, &mut store, &mut now, 10);
        prop_assert_eq!(had(&members), before);
    }
}
