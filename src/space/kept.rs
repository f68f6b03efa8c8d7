//! Versions of the volume that are kept: snapshots. A version is a checkpoint whose objects stay, and the segments that it needs stay with it.
//!
//! Which these are is known without a look at its map. A block that dies was live in every version since its segment was born: if the
//! newest version that is kept is not older than the segment, the death is *held* by that version, and is not counted. When a version
//! goes, each death that it held is held by the next older one if that needs the block, too, and counted otherwise. So a segment has
//! blocks that the head or a version needs, or it is dead. What is needed of old segments is put together by [`super::carriers`]: deaths are found, and held, at
//! the places that maps name all the same.
//!
//! ```text
//!  segment born at b      version s ≥ b      death found after s:  held by s      s goes:  b ≤ s' < s: held by s', else counted
//! ```
//!
//! When a version becomes the head again, all that the head was dies and is held by the newest, and what the version needs lives once more: it is counted a second time,
//! since its first death may be held already.
//!
//! What is found later than it happened may be held by a version that does not need it, and then stays as long as that: never too short.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::Arc;

use uuid::Uuid;

use super::Need;
use super::deltas::Delta;
use super::directory::List;
use crate::human::date;
use crate::units::{BlockCount, PageRef, Seq};

/// A version that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptVersion {
    /// Its checkpoint: it is the volume after this place of the log.
    pub seq: Seq,
    /// What about it is for people.
    pub label: Label,
    /// The size of the volume then.
    pub blocks: BlockCount,
    /// The checkpoint objects that it needs, its own one too.
    pub objects: BTreeSet<Seq>,
    /// Deaths that it holds, oldest first; what lies in pages is in memory of the newest version only.
    pub held: Vec<Arc<List>>,
}

/// What about a version is for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Its name, one in the volume.
    pub name: String,
    /// When it was taken, in milliseconds since 1970.
    pub taken_unix_millis: u64,
    /// Nobody deletes it before, in milliseconds since 1970; 0 if it may go.
    pub keep_until_unix_millis: u64,
    /// The volumes that show it where nothing was written to them: as long as there is one, it stays.
    pub clones: Vec<CloneRef>,
}

/// A clone, as its parent knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneRef {
    /// Its uuid.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// The newest description of its name before it was made: its own one comes after that, or never.
    pub after: u64,
}

/// The most clones that all versions of a volume have together: each stands in every checkpoint of it.
pub const CLONES_MAX: usize = 4096;

impl Label {
    /// What nobody can name begins so.
    const HIDDEN: char = '~';

    /// Of a version that somebody deleted and that clones need: nobody can name it any more. Each clone is of one version.
    pub fn hidden(self) -> Label {
        let clone = self.clones.first().map_or(Uuid::nil(), |clone| clone.uuid);
        Label { name: format!("{}{}", Label::HIDDEN, clone.simple()), ..self }
    }

    /// Whether somebody deleted it.
    pub fn is_hidden(&self) -> bool {
        self.name.starts_with(Label::HIDDEN)
    }
}

/// What a checkpoint does to the versions that are kept, beside what it is itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// It is kept, with this label, and the size of the volume.
    pub take: Option<(Label, BlockCount)>,
    /// These are not kept any more.
    pub drop: BTreeSet<Seq>,
    /// These have other labels.
    pub relabel: BTreeMap<Seq, Label>,
    /// What those that go hold in pages that are not in memory; whoever writes the checkpoint brings it.
    pub lists: BTreeMap<Seq, Deaths>,
}

/// Deaths, by segment: how many blocks.
pub type Deaths = BTreeMap<Seq, u64>;

/// Versions that somebody can name.
pub fn shown(kept: &[KeptVersion]) -> u64 {
    kept.iter().filter(|version| !version.label.is_hidden()).count() as u64
}

/// Of what a version holds, the blocks that neither the head nor another version needs; `before` is the version before it, 0 if it is the oldest.
/// What it holds has died before the next one was taken. So what was born after the one before it is its own. A death that was found late may be held by a
/// newer version than needs the block: then it counts for neither.
pub fn only_its_own(before: Seq, held: &Deaths) -> BlockCount {
    BlockCount(held.range(before.next()..).map(|(_, blocks)| blocks).sum())
}

/// Of what versions hold, oldest first, the blocks that none needs which anybody can name: they are there for clones only.
pub fn for_clones<'a>(versions: impl Iterator<Item = (&'a KeptVersion, &'a Deaths)>) -> BlockCount {
    let (mut shown, mut blocks) = (Seq(0), 0);
    for (version, held) in versions {
        match version.label.is_hidden() {
            true => blocks += only_its_own(shown, held).0,
            false => shown = version.seq,
        }
    }
    BlockCount(blocks)
}

/// A name for a version of that time: UTC, so that names sort by time. One that is taken gets a number behind it.
pub fn name_by_time(unix_millis: u64, is_taken: impl Fn(&str) -> bool) -> String {
    let second = date(unix_millis).replace(['-', ':'], "");
    let numbered = (2..).map(|number: u64| format!("{second}-{number:03}"));
    iter::once(second.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(second)
}

/// Lists of a version that does not get more of it are in pages if they are longer.
const IN_ROOT: usize = 16;

/// The versions while a checkpoint changes them.
#[derive(Debug, Default)]
pub(super) struct Versions {
    kept: Vec<KeptVersion>,
    /// What a version holds beside its lists.
    more: BTreeMap<Seq, Deaths>,
    /// The newest one before this checkpoint.
    newest: Seq,
}

impl Versions {
    /// As they were before the checkpoint. `held` was found since by its newest one.
    pub fn new(kept: &[KeptVersion], held: &Deaths) -> Versions {
        let newest = kept.last().map_or(Seq(0), |version| version.seq);
        let more = if held.is_empty() { BTreeMap::new() } else { BTreeMap::from([(newest, held.clone())]) };
        Versions { kept: kept.to_vec(), more, newest }
    }

    /// Whether a death of that segment is held. It was found by this checkpoint, which came after all versions.
    pub fn hold(&mut self, seq: Seq, blocks: u64) -> bool {
        let holds = seq <= self.newest;
        if holds {
            *self.more.entry(self.newest).or_default().entry(seq).or_default() += blocks;
        }
        holds
    }

    /// Does what a checkpoint at `at` does to them. Returns the deaths that nobody holds any more.
    pub fn change(&mut self, at: Seq, change: &Change) -> Deaths {
        let mut free = Deaths::new();
        for version in &mut self.kept {
            if let Some(label) = change.relabel.get(&version.seq) {
                version.label.clone_from(label);
            }
        }
        for seq in change.drop.iter().rev() {
            let Ok(at) = self.kept.binary_search_by_key(seq, |version| version.seq) else { continue };
            let gone = self.kept.remove(at);
            let below = at.checked_sub(1).map(|at| self.kept[at].seq);
            let mut held = self.more.remove(seq).unwrap_or_default();
            let known = gone.held.iter().filter(|list| !list.entries.is_empty()).flat_map(|list| deaths_of(list));
            let read = change.lists.get(seq).into_iter().flatten().map(|(seq, blocks)| (*seq, *blocks));
            known.chain(read).for_each(|(seq, blocks)| *held.entry(seq).or_default() += blocks);
            for (seq, blocks) in held {
                let to = match below {
                    Some(below) if seq <= below => self.more.entry(below).or_default(),
                    _ => &mut free,
                };
                *to.entry(seq).or_default() += blocks;
            }
        }
        if let Some((label, blocks)) = change.take.clone() {
            self.kept.push(KeptVersion { seq: at, label, blocks, objects: BTreeSet::from([at]), held: Vec::new() });
        }
        free
    }

    /// The versions as the checkpoint says them; `put` writes a list of it, in pages if it has more entries than that.
    pub fn finish<E>(
        mut self,
        in_root: usize,
        mut put: impl FnMut(Vec<(Seq, Delta)>, usize) -> Result<List, E>,
    ) -> Result<Vec<KeptVersion>, E> {
        let last = self.kept.len().saturating_sub(1);
        for (at, version) in self.kept.iter_mut().enumerate() {
            let more = self.more.remove(&version.seq).unwrap_or_default();
            if at == last {
                let fresh = join(&mut version.held, more, |last, fresh| {
                    !last.entries.is_empty() && (last.pages.is_empty() || last.entries.len() <= 2 * fresh.len())
                });
                if !fresh.is_empty() {
                    let list = put(entries(fresh), in_root)?;
                    version.held.push(Arc::new(List { at: Seq(0), ..list }));
                }
                continue;
            }
            // It gets no more but from versions that go: what is in memory of it becomes one list, and leaves.
            let is_newest_no_more = version.held.iter().any(|list| !list.entries.is_empty() && !list.pages.is_empty());
            if is_newest_no_more || !more.is_empty() || version.held.iter().any(|list| list.entries.len() > IN_ROOT) {
                let fresh = join(&mut version.held, more, |last, _| !last.entries.is_empty());
                if !fresh.is_empty() {
                    let list = List { at: Seq(0), ..put(entries(fresh), IN_ROOT)? };
                    let list = if list.pages.is_empty() { list } else { list.out_of_memory() };
                    version.held.push(Arc::new(list));
                }
            }
        }
        Ok(self.kept)
    }
}

/// Takes the last lists, as long as that is to be, into one with `fresh`.
fn join(held: &mut Vec<Arc<List>>, mut fresh: Deaths, joins: impl Fn(&List, &Deaths) -> bool) -> Deaths {
    while let Some(last) = held.last()
        && joins(last, &fresh)
    {
        deaths_of(last).for_each(|(seq, blocks)| *fresh.entry(seq).or_default() += blocks);
        held.pop();
    }
    fresh
}

fn deaths_of(list: &List) -> impl Iterator<Item = (Seq, u64)> + '_ {
    list.entries.iter().map(|(seq, delta)| (*seq, delta.blocks()))
}

fn entries(deaths: Deaths) -> Vec<(Seq, Delta)> {
    // A segment has fewer blocks than that.
    deaths.into_iter().map(|(seq, blocks)| (seq, Delta::Died(u32::try_from(blocks).unwrap_or(u32::MAX)))).collect()
}

impl KeptVersion {
    /// Pages of what it holds that are not in memory.
    pub fn unread(&self) -> Need {
        let unread = self.held.iter().filter(|list| list.entries.is_empty());
        Need(unread.flat_map(|list| list.need().0).collect())
    }

    /// All pages of what it holds.
    pub fn pages(&self) -> impl Iterator<Item = &PageRef> {
        self.held.iter().flat_map(|list| &list.pages)
    }

    /// The deaths that it holds, as far as they are in memory.
    pub fn deaths(&self) -> Deaths {
        let mut deaths = Deaths::new();
        let lists = self.held.iter().flat_map(|list| deaths_of(list));
        lists.for_each(|(seq, blocks)| *deaths.entry(seq).or_default() += blocks);
        deaths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: &str) -> Label {
        Label { name: name.into(), ..Label::default() }
    }

    fn take(name: &str) -> Change {
        Change { take: Some((label(name), BlockCount(8))), ..Change::default() }
    }

    fn drop_of(seqs: &[u64]) -> Change {
        Change { drop: seqs.iter().map(|seq| Seq(*seq)).collect(), ..Change::default() }
    }

    fn deaths(of: &[(u64, u64)]) -> Deaths {
        of.iter().map(|(seq, blocks)| (Seq(*seq), *blocks)).collect()
    }

    /// A block is there for clones only if it was born after the last version that is shown before its death.
    #[test]
    fn what_only_clones_need_is_what_no_shown_version_needs() {
        let version = |seq, name: &str| KeptVersion {
            seq: Seq(seq),
            label: Label { name: name.into(), ..Label::default() },
            ..KeptVersion::default()
        };
        let versions = [version(10, "a"), version(20, "~1"), version(30, "~2"), version(40, "b"), version(50, "~3")];
        let held = [
            deaths(&[(5, 1)]),
            deaths(&[(9, 2), (15, 4)]),
            deaths(&[(10, 8), (11, 16), (25, 32)]),
            deaths(&[(35, 64)]),
            deaths(&[(39, 128), (45, 256)]),
        ];
        assert_eq!(for_clones(versions.iter().zip(&held)), BlockCount(4 + 16 + 32 + 256));
        assert_eq!(for_clones(versions[3..4].iter().zip(&held[3..4])), BlockCount(0));
    }

    fn write(entries: Vec<(Seq, Delta)>, in_root: usize) -> Result<List, ()> {
        let pages = if entries.len() > in_root { vec![PageRef::default()] } else { Vec::new() };
        Ok(List { at: Seq(0), pages, entries, ..List::default() })
    }

    /// Where a checkpoint is, what died before it, and what it does to the versions.
    type Step<'a> = (u64, &'a [(u64, u64)], Change);

    /// One checkpoint after the other.
    fn run(steps: &[Step<'_>]) -> (Vec<KeptVersion>, Deaths) {
        let (mut kept, mut free) = (Vec::new(), Deaths::new());
        for (at, died, change) in steps {
            let mut versions = Versions::new(&kept, &Deaths::new());
            for (seq, blocks) in *died {
                if !versions.hold(Seq(*seq), *blocks) {
                    *free.entry(Seq(*seq)).or_default() += blocks;
                }
            }
            let freed = versions.change(Seq(*at), change);
            freed.into_iter().for_each(|(seq, blocks)| *free.entry(seq).or_default() += blocks);
            kept = versions.finish(usize::MAX, write).unwrap();
        }
        (kept, free)
    }

    #[test]
    fn a_death_is_held_by_the_newest_version_that_may_need_the_block() {
        let (kept, free) = run(&[
            (10, &[(3, 1)], take("a")),
            (20, &[(5, 2), (12, 4)], take("b")),
            (30, &[(5, 1), (15, 7)], Change::default()),
        ]);
        assert_eq!(free, deaths(&[(3, 1), (12, 4)]));
        assert_eq!(kept[0].deaths(), deaths(&[(5, 2)]));
        assert_eq!(kept[1].deaths(), deaths(&[(5, 1), (15, 7)]));
    }

    #[test]
    fn what_a_version_held_goes_to_the_one_before_that_needs_it_too_and_is_free_otherwise() {
        let steps = [(10, &[][..], take("a")), (20, &[(5, 2)], take("b")), (30, &[(5, 1), (15, 7)], drop_of(&[20]))];
        let (kept, free) = run(&steps);
        assert_eq!(free, deaths(&[(15, 7)]));
        assert_eq!((kept.len(), kept[0].deaths()), (1, deaths(&[(5, 3)])));
        let all_go = [&steps[..2], &[(30, &[(5, 1), (15, 7)][..], drop_of(&[10, 20]))]].concat();
        assert_eq!(run(&all_go), (vec![], deaths(&[(5, 3), (15, 7)])));
        let older_goes = [&steps[..2], &[(30, &[(15, 7)][..], drop_of(&[10]))]].concat();
        let (kept, free) = run(&older_goes);
        assert_eq!((kept[0].deaths(), free), (deaths(&[(15, 7)]), deaths(&[(5, 2)])));
    }

    #[test]
    fn what_only_a_version_needs_is_what_it_holds_of_segments_newer_than_the_one_before_it() {
        let (kept, _) = run(&[
            (10, &[][..], take("a")),
            // Of 5 the first needs two; of 12 nobody needs what died.
            (20, &[(5, 2), (12, 4)], take("b")),
            // Of 5 both need one; of 15 the second needs seven, of 20 one.
            (30, &[(5, 1), (15, 7), (20, 1)], Change::default()),
        ]);
        assert_eq!(only_its_own(Seq(0), &kept[0].deaths()), BlockCount(2));
        assert_eq!(only_its_own(kept[0].seq, &kept[1].deaths()), BlockCount(8));
        assert_eq!(
            only_its_own(Seq(5), &deaths(&[(5, 1), (6, 2)])),
            BlockCount(2),
            "the one before needs its own segment"
        );
        assert_eq!(only_its_own(Seq(20), &Deaths::new()), BlockCount(0));
    }

    #[test]
    fn names_sort_by_time_and_are_one_each() {
        let mut names: Vec<String> = Vec::new();
        // 2026-11-28 02:15:00 UTC.
        for millis in [0, 1, 999, 1000, 60_000, 86_400_000] {
            let name = name_by_time(1_795_832_100_000 + millis, |name| names.iter().any(|taken| taken == name));
            names.push(name);
        }
        assert_eq!(
            names[..4],
            ["20261128T021500Z", "20261128T021500Z-002", "20261128T021500Z-003", "20261128T021501Z"]
        );
        assert_eq!(names[4..], ["20261128T021600Z", "20261129T021500Z"]);
        assert!(names.is_sorted());
        assert!(names.iter().all(|name| crate::format::meta::VolumeName::new(name.as_str()).is_ok()));
    }

    #[test]
    fn what_became_an_older_version_leaves_memory_and_is_given_back_when_it_goes() {
        let mut versions = Versions::new(&[KeptVersion { seq: Seq(50), ..KeptVersion::default() }], &Deaths::new());
        (1..=40).for_each(|seq| assert!(versions.hold(Seq(seq), seq)));
        assert!(versions.change(Seq(60), &take("b")).is_empty());
        let kept = versions.finish(usize::MAX, write).unwrap();
        assert_eq!((kept[0].deaths(), kept[0].unread().0.len()), (Deaths::new(), 1));
        assert_eq!(kept[0].held[0].known_blocks(), Some((1..=40).sum()), "who wrote it knows");
        let mut versions = Versions::new(&kept, &Deaths::new());
        let lists = BTreeMap::from([(Seq(50), deaths(&[(7, 7), (9, 9)]))]);
        let change = Change { lists, ..drop_of(&[50]) };
        assert_eq!(versions.change(Seq(70), &change), deaths(&[(7, 7), (9, 9)]));
    }
}
