//! Worlds from a seed: a server, its peer, a store and a network, in which anything stops, is cut off, dies or wakes up late. The real decisions of both sides
//! ([`Sender`], [`Keeping`]) run in it; files, the store and its fences are plain numbers. There is no clock.
//!
//! What is asked: every change for which a client was answered is there when somebody takes the volume over, and what is there is a prefix. And that the worlds are worth it: each
//! kind of event happens often ([`Reached`]).

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::keeping::{Keeping, Refusal};
use super::sender::{Phase, Promise, Sender, Word};
use crate::change::{Change, Numbered};
use crate::units::{ChangeNo, Epoch, Extent};

/// What is on its way over a connection.
#[derive(Clone, Debug)]
enum Said {
    Begin { epoch: Epoch, first: ChangeNo },
    File,
    Records { last: ChangeNo },
    Sync,
    Covered(ChangeNo),
    // The other way.
    Ready,
    Has { had: ChangeNo, kept: ChangeNo },
    Refused,
}

/// A connection; both of its ends may be gone.
#[derive(Default)]
struct Wire {
    there: VecDeque<Said>,
    back: VecDeque<Said>,
    /// Neither side hears of the other any more, and may not know it.
    is_cut: bool,
    /// The sender's number of it.
    connection: u64,
    /// The keeper's turn, and where its file ends.
    turn: Option<u64>,
    end: u64,
    /// A sync that has begun.
    syncing: Option<ChangeNo>,
    /// The keeper refused something, and reads no more.
    is_over: bool,
}

/// The keeper's disk: what its files hold, and what of that is synced.
#[derive(Clone, Debug, Default)]
struct Copy {
    epoch: Epoch,
    first: ChangeNo,
    had: ChangeNo,
    synced: ChangeNo,
}

/// A server that has, or believes that it has, the volume.
struct Server {
    epoch: Epoch,
    sender: Sender,
    wire: Option<Wire>,
    /// The last accepted change, what the journal has written, and synced.
    accepted: ChangeNo,
    written: ChangeNo,
    synced: ChangeNo,
    /// Who waits: for which change, and for which promise. The peer's word, once it was refused, is not asked again.
    waiting: Vec<(ChangeNo, Promise, bool)>,
    is_frozen: bool,
    ended: bool,
    /// For so many steps it does no more than speak to its peer.
    quiet: u32,
}

/// What happened in all worlds.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    /// Changes and flushes that were answered by the peer's word.
    by_peer: u64,
    /// And by the store, because the peer was away.
    by_store: u64,
    /// Copies that began.
    copies: u64,
    /// Takeovers with a copy; of those with changes that were nowhere but in it, and after which the server before lives.
    takeovers: u64,
    only_in_copy: u64,
    sleepers: u64,
    /// Takeovers that were given up before anything was taken, and after that.
    given_up: u64,
    given_up_late: u64,
    /// Fences of those that landed when nobody expected it.
    late_fences: u64,
    /// Records that came when the volume was held.
    refused_when_held: u64,
    /// Copies that were asked for by one that was displaced, or taken over from in vain.
    refused_as_sealed: u64,
    /// Connections that were cut and found out late.
    cut: u64,
    /// Peers whose process died with a copy that counts, and whose host did.
    keeper_deaths: u64,
    keeper_losses: u64,
    /// Servers that started again with their journal.
    comebacks: u64,
}

impl Reached {
    fn all(&self) -> [(&'static str, u64); 15] {
        [
            ("by_peer", self.by_peer),
            ("by_store", self.by_store),
            ("copies", self.copies),
            ("takeovers", self.takeovers),
            ("only_in_copy", self.only_in_copy),
            ("sleepers", self.sleepers),
            ("given_up", self.given_up),
            ("given_up_late", self.given_up_late),
            ("late_fences", self.late_fences),
            ("refused_when_held", self.refused_when_held),
            ("refused_as_sealed", self.refused_as_sealed),
            ("cut", self.cut),
            ("keeper_deaths", self.keeper_deaths),
            ("keeper_losses", self.keeper_losses),
            ("comebacks", self.comebacks),
        ]
    }
}

struct World {
    rng: StdRng,
    server: Option<Server>,
    /// One that was displaced and may wake up.
    sleeper: Option<Server>,
    /// What the journal of a host has that is down.
    down: Option<(Epoch, ChangeNo)>,
    keeping: Keeping,
    copy: Option<Copy>,
    /// The keeper's note: no epoch up to this one.
    sealed: Epoch,
    /// What a takeover took that was given up, of which the fence is still on its way to the store.
    late_fence: Option<Copy>,
    keeper_is_up: bool,
    keeper_is_frozen: bool,
    /// The store: the last change in it, and the epoch of the newest fence.
    committed: ChangeNo,
    fence: Epoch,
    store_is_away: bool,
    /// What clients were told, in the line of epochs that counts now: written, and flushed.
    told_written: ChangeNo,
    told_flushed: ChangeNo,
    reached: Reached,
}

fn no(no: u64) -> ChangeNo {
    ChangeNo(no)
}

impl Server {
    fn new(epoch: Epoch, accepted: ChangeNo, covers: ChangeNo, lag: u64) -> Server {
        Server {
            epoch,
            sender: Sender::new(accepted.next(), covers, lag),
            wire: None,
            accepted,
            written: accepted,
            synced: accepted,
            waiting: Vec::new(),
            is_frozen: false,
            ended: false,
            quiet: 0,
        }
    }

    /// What it would do next, of what it can: says what there is to say.
    fn say(&mut self, sync_covered: bool) {
        let Some(wire) = &mut self.wire else { return };
        if wire.connection != self.sender.connection() {
            self.wire = None;
            return;
        }
        if let Some(first) = self.sender.begin() {
            wire.there.push_back(Said::Begin { epoch: self.epoch, first });
            wire.there.push_back(Said::File);
        }
        let batch = self.sender.take(200);
        if let Some(last) = batch.last() {
            if last.no.0 % 7 == 0 {
                wire.there.push_back(Said::File);
            }
            wire.there.push_back(Said::Records { last: last.no });
        }
        if self.sender.asks_for_sync() {
            wire.there.push_back(Said::Sync);
        }
        if sync_covered && matches!(self.sender.phase(), Phase::Begun | Phase::Kept) {
            wire.there.push_back(Said::Covered(self.sender.covers()));
        }
    }

    fn hear(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        if wire.connection != self.sender.connection() {
            return;
        }
        match wire.back.pop_front() {
            Some(Said::Ready) => self.sender.ready().unwrap(),
            Some(Said::Has { had, kept }) => self.sender.has(had, kept).unwrap(),
            Some(Said::Refused) => self.lose(),
            _ => {}
        }
    }

    fn lose(&mut self) {
        self.sender.lose();
        self.wire = None;
    }
}

impl World {
    fn new(seed: u64) -> World {
        World {
            rng: StdRng::seed_from_u64(seed),
            server: Some(Server::new(Epoch(1), no(0), no(0), 2000)),
            sleeper: None,
            down: None,
            keeping: Keeping::default(),
            copy: None,
            sealed: Epoch(0),
            late_fence: None,
            keeper_is_up: true,
            keeper_is_frozen: false,
            committed: no(0),
            fence: Epoch(1),
            store_is_away: false,
            told_written: no(0),
            told_flushed: no(0),
            reached: Reached::default(),
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// The server commits: some of what it accepted, all, or up to where it is wanted. One that was displaced finds the fence.
    fn commit(&mut self) {
        let some = if self.chance(50) { u64::from(u32::MAX) } else { self.rng.random_range(1..6) };
        let Some(server) = &mut self.server else { return };
        if self.store_is_away || server.ended || server.is_frozen {
            return;
        }
        if self.fence > server.epoch {
            server.ended = true;
            server.lose();
            return;
        }
        self.committed = self.committed.max(no((self.committed.0 + some).min(server.accepted.0)));
        server.sender.release(self.committed);
    }

    fn accept(&mut self) {
        let Some(server) = self.server.as_mut().filter(|server| !server.ended && !server.is_frozen) else { return };
        server.accepted = server.accepted.next();
        let change = Change::Hole(Extent::new(server.accepted.0, 1));
        server.sender.append(&Numbered { no: server.accepted, change });
        server.waiting.push((server.accepted, Promise::Had, true));
    }

    fn flush(&mut self) {
        if let Some(server) = self.server.as_mut().filter(|server| !server.ended && !server.is_frozen) {
            server.waiting.push((server.accepted, Promise::Kept, true));
        }
    }

    /// Those who wait look once more, as `engine/write.rs` has it: both, or the store.
    fn answer(&mut self) {
        let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen && !server.ended) else { return };
        let committed = server.sender.covers();
        let (mut still, mut told) = (Vec::new(), Vec::new());
        for (no, promise, asks_peer) in std::mem::take(&mut server.waiting) {
            let word = if asks_peer { server.sender.word(no, promise) } else { Word::None };
            let local = match promise {
                Promise::Had => server.written,
                Promise::Kept => server.synced,
            };
            match word {
                Word::Given if local >= no => {
                    self.reached.by_peer += 1;
                    told.push((no, promise));
                }
                _ if committed >= no => {
                    self.reached.by_store += 1;
                    told.push((no, promise));
                }
                word => still.push((no, promise, word != Word::None)),
            }
        }
        server.waiting = still;
        let counts = server.epoch == self.fence;
        for (no, promise) in told {
            // Whoever was displaced answers for nothing that is not in what was taken over.
            assert!(counts || no <= self.told_written.max(self.committed), "a displaced server answered for {no:?}");
            match promise {
                Promise::Had => self.told_written = self.told_written.max(no),
                Promise::Kept => self.told_flushed = self.told_flushed.max(no),
            }
        }
    }

    /// The keeper takes one message.
    fn keep(&mut self) {
        if !self.keeper_is_up || self.keeper_is_frozen {
            return;
        }
        let Some(wire) =
            self.server.as_mut().and_then(|server| server.wire.as_mut()).filter(|wire| !wire.is_cut && !wire.is_over)
        else {
            return;
        };
        let Some(said) = wire.there.pop_front() else { return };
        let done = match said {
            Said::Begin { epoch, first } => self.keeping.may_begin(epoch).map(|()| {
                let last = no(first.0 - 1);
                self.reached.copies += 1;
                self.copy = Some(Copy { epoch, first, had: last, synced: last });
                wire.turn = Some(self.keeping.begun(epoch, first));
                wire.back.push_back(Said::Ready);
            }),
            said => match wire.turn {
                None => panic!("{said:?} before there is a copy"),
                Some(turn) => self.keeping.is_at_turn(turn).and_then(|()| {
                    match said {
                        Said::File => {
                            wire.end = 4096;
                            self.keeping.new_file(4096);
                        }
                        Said::Records { last } => {
                            self.keeping.may_write(turn, wire.end, 64, u64::MAX)?;
                            wire.end += 64;
                            self.keeping.wrote(64, last);
                            self.copy.as_mut().unwrap().had = last;
                        }
                        Said::Sync => wire.syncing = Some(self.keeping.has(turn)?.0),
                        Said::Covered(covered) => {
                            for _ in 0..self.keeping.covered(covered) {
                                self.keeping.gave_up();
                            }
                        }
                        _ => unreachable!(),
                    }
                    Ok(())
                }),
            },
        };
        let said = done.and_then(|()| wire.turn.map(|turn| self.keeping.has(turn)).transpose());
        match said {
            Ok(Some((had, kept))) => wire.back.push_back(Said::Has { had, kept }),
            Ok(None) => {}
            Err(refusal) => {
                self.reached.refused_when_held += u64::from(refusal == Refusal::Held);
                self.reached.refused_as_sealed += u64::from(matches!(refusal, Refusal::Sealed(_)));
                wire.back.push_back(Said::Refused);
                wire.is_over = true;
            }
        }
    }

    fn keeper_syncs(&mut self) {
        if !self.keeper_is_up || self.keeper_is_frozen {
            return;
        }
        let Some(wire) = self.server.as_mut().and_then(|server| server.wire.as_mut()) else { return };
        let (Some(up_to), Some(turn)) = (wire.syncing.take(), wire.turn) else { return };
        if self.keeping.is_at_turn(turn).is_ok() {
            self.copy.as_mut().unwrap().synced = up_to;
            self.keeping.synced(up_to);
            if let Ok((had, kept)) = self.keeping.has(turn) {
                wire.back.push_back(Said::Has { had, kept });
            }
        }
    }

    fn connect(&mut self) {
        let reaches = self.keeper_is_up;
        let Some(server) = self.server.as_mut().filter(|server| !server.ended && !server.is_frozen) else { return };
        if reaches && server.wire.is_none() {
            let connection = server.sender.linked();
            server.wire = Some(Wire { connection, ..Wire::default() });
        }
    }

    /// The keeper's process dies, and with its host what is not synced.
    fn keeper_dies(&mut self, with_host: bool) {
        let had_a_copy = self.copy.as_ref().is_some_and(|copy| copy.epoch == self.fence);
        self.reached.keeper_deaths += u64::from(self.keeper_is_up && had_a_copy && !with_host);
        self.reached.keeper_losses += u64::from(self.keeper_is_up && had_a_copy && with_host);
        self.keeper_is_up = false;
        self.keeper_is_frozen = false;
        if let Some(wire) = self.server.as_mut().and_then(|server| server.wire.as_mut()) {
            wire.is_cut = true;
        }
        if let (true, Some(copy)) = (with_host, &mut self.copy) {
            copy.had = copy.synced;
        }
        self.keeping = Keeping::new(self.sealed, self.copy.as_ref().map_or(Epoch(0), |copy| copy.epoch));
    }

    /// The server's host dies, or its process: then it comes back, on the same host, with its journal.
    fn server_dies(&mut self) {
        let Some(server) = self.server.take() else { return };
        if server.ended || server.epoch < self.fence {
            return;
        }
        // Its process died: what it wrote is there.
        let has = server.written.max(self.committed);
        assert!(has >= self.told_written && server.synced.max(self.committed) >= self.told_flushed);
        self.down = Some((server.epoch, has));
    }

    /// A host comes back with its journal. If nobody took over, its server takes the volume anew, and renames its journal.
    fn comes_back(&mut self) {
        if self.store_is_away {
            return;
        }
        let Some((epoch, has)) = self.down.take() else { return };
        if epoch == self.fence {
            self.reached.comebacks += 1;
            self.put_fence();
            self.server = Some(Server::new(self.fence, has, self.committed, 2000));
        }
    }

    /// No other fence will ever have that place in the log.
    fn put_fence(&mut self) {
        self.fence = self.fence.next();
        self.late_fence = None;
    }

    /// The peer takes the volume over: holds, looks, notes, fences. The old server may still be there. Then it hands the volume back in good order.
    fn take_over(&mut self) {
        // Who has given up does not try again at once.
        let waits = self.late_fence.is_some() && self.chance(80);
        if !self.keeper_is_up || self.keeper_is_frozen || self.store_is_away || waits {
            return;
        }
        if self.chance(20) {
            // So that a sleeper finds nothing to commit before it speaks to its peer again.
            for _ in 0..100 {
                self.commit();
            }
        }
        self.keeping.hold();
        // Whatever happens between the holding and the fence.
        for _ in 0..self.rng.random_range(0..12) {
            self.step_of_sender();
        }
        let of_before = self.fence;
        let Some(copy) = self.copy.clone().filter(|copy| copy.epoch == of_before) else {
            // Nothing says that all is here: refused without a flag.
            self.keeping.let_go(Epoch(0));
            return;
        };
        if self.chance(20) {
            // It is given up before anything was taken.
            self.reached.given_up += 1;
            self.keeping.let_go(Epoch(0));
            return;
        }
        self.sealed = self.sealed.max(copy.epoch);
        if self.chance(20) {
            // It is given up after that: the sender goes on with the store alone.
            // The copy is in the journal's place, where the next one finds it, and the fence may be on its way.
            self.reached.given_up_late += 1;
            self.late_fence = Some(copy).filter(|_| self.rng.random_range(0..2) == 0);
            self.keeping.let_go(self.sealed);
            return;
        }
        self.is_taken(&copy);
    }

    /// The fence of a takeover that was given up lands: whoever has the volume is displaced, and the next opening at the peer goes on with what was taken then.
    fn fence_lands(&mut self) {
        if let Some(taken) = self.late_fence.take().filter(|taken| taken.epoch == self.fence) {
            self.reached.late_fences += 1;
            self.keeping.hold();
            self.is_taken(&taken);
        }
    }

    /// The fence of the peer is in the log, and names what it took.
    fn is_taken(&mut self, copy: &Copy) {
        self.put_fence();
        self.reached.takeovers += 1;
        self.reached.only_in_copy += u64::from(self.told_flushed.max(self.told_written) > self.committed);
        assert!(copy.first.0 <= self.committed.0 + 1, "a hole: {copy:?} behind {:?}", self.committed);
        let has = copy.had.max(self.committed);
        assert!(has >= self.told_flushed, "flushed {:?}, and there is {has:?}", self.told_flushed);
        assert!(has >= self.told_written, "written {:?}, and there is {has:?}", self.told_written);
        // The old one, if it is alive, goes on for a while.
        self.told_written = has;
        self.told_flushed = has;
        for _ in 0..self.rng.random_range(0..30) {
            self.step_of_sender();
        }
        // And a new server has it: the same peer, after the volume was closed in good order.
        self.committed = has;
        self.put_fence();
        self.sealed = self.sealed.max(no_epoch_before(self.fence));
        self.copy = None;
        self.keeping.let_go(self.sealed);
        self.sleeper = self.server.replace(Server::new(self.fence, has, has, 2000));
        if let Some(sleeper) = self.sleeper.as_mut().filter(|sleeper| !sleeper.ended) {
            self.reached.sleepers += 1;
            sleeper.quiet = self.rng.random_range(0..200);
        }
    }

    fn step_of_sender(&mut self) {
        match self.rng.random_range(0..9) {
            0 => self.accept(),
            1 => self.flush(),
            2 | 3 => self.speak(),
            4 => self.keep(),
            5 => self.keeper_syncs(),
            6 => {
                let syncs = self.chance(70);
                if let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen) {
                    server.written = server.accepted;
                    if syncs {
                        server.synced = server.written;
                    }
                }
            }
            7 => self.connect(),
            _ => self.answer(),
        }
    }

    fn speak(&mut self) {
        let (hears, covered) = (self.chance(50), self.chance(50));
        if let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen) {
            match hears {
                true => server.hear(),
                false => server.say(covered),
            }
        }
    }

    /// One that was displaced does the same as ever, for it does not know.
    fn step_of_sleeper(&mut self) {
        let Some(server) = &mut self.server else { return };
        if server.is_frozen {
            server.is_frozen = self.rng.random_range(0..10) > 0;
        } else if server.quiet > 0 {
            server.quiet -= 1;
            match self.rng.random_range(0..5) {
                0 => self.connect(),
                1 | 2 => self.speak(),
                3 => self.keep(),
                _ => self.finds_out(),
            }
        } else if self.chance(5) {
            self.commit();
        } else {
            self.step_of_sender();
        }
    }

    /// That it was cut off, which nobody said.
    fn finds_out(&mut self) {
        if let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen)
            && server.wire.as_ref().is_some_and(|wire| wire.is_cut)
        {
            self.reached.cut += 1;
            server.lose();
        }
    }

    fn step(&mut self) {
        if self.sleeper.is_some() && self.chance(20) {
            std::mem::swap(&mut self.server, &mut self.sleeper);
            self.step_of_sleeper();
            std::mem::swap(&mut self.server, &mut self.sleeper);
            return;
        }
        // What stops goes on sooner than it stops, and the store is slower than the peer: else nobody would ever be answered by it.
        match self.rng.random_range(0..3000) {
            0..2760 => self.step_of_sender(),
            2760..2800 => self.commit(),
            2800..2803 => {
                // A partition: the sender finds out, late.
                if let Some(wire) = self.server.as_mut().and_then(|server| server.wire.as_mut()) {
                    wire.is_cut = true;
                }
            }
            2803..2843 => self.finds_out(),
            2843..2846 => self.server.iter_mut().for_each(|server| server.is_frozen = true),
            2846..2876 => self.server.iter_mut().for_each(|server| server.is_frozen = false),
            2876..2879 => self.keeper_is_frozen = self.keeper_is_up,
            2879..2909 => self.keeper_is_frozen = false,
            2909..2914 => self.store_is_away = true,
            2914..2934 => self.store_is_away = false,
            2934..2940 => {
                // With its host, only if that is not the second one to go.
                let with_host = self.chance(50)
                    && self.server.as_ref().is_some_and(|server| server.epoch == self.fence && !server.ended);
                self.keeper_dies(with_host);
                // The other host is there, and so is its journal: nobody takes over from what was lost here.
                if with_host {
                    self.copy = None;
                    self.late_fence = None;
                }
            }
            2940..2965 => self.keeper_is_up = true,
            2965..2980 => self.take_over(),
            2980..2996 => self.fence_lands(),
            _ => self.server_dies(),
        }
        if self.server.is_none() {
            match self.chance(50) {
                true => self.take_over(),
                false => self.comes_back(),
            }
        }
    }
}

fn no_epoch_before(epoch: Epoch) -> Epoch {
    Epoch(epoch.0 - 1)
}

#[test]
fn no_acknowledged_change_is_lost_whatever_stops_or_is_cut_off() {
    let mut all = Reached::default().all();
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..3000 {
            world.step();
        }
        all.iter_mut().zip(world.reached.all()).for_each(|((_, sum), (_, reached))| *sum += reached);
    }
    println!("{all:?}");
    // The worlds are bad enough, and good enough.
    for (what, often) in all {
        assert!(often >= 50, "{what} {often} times: {all:?}");
    }
}
