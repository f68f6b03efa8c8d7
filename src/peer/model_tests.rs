//! Worlds from a seed: a server, its peer, a store and a network, in which anything stops, is cut off, dies or wakes up late. The real decisions of both sides
//! ([`Sender`], [`Keeping`]) run in it; files, the store and its fences are plain numbers. There is no clock.
//!
//! What is asked: every change for which a client was answered is there when somebody takes the volume over, and what is there is a prefix.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::keeping::Keeping;
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
    keeper_is_up: bool,
    keeper_is_frozen: bool,
    /// The store: the last change in it, and the epoch of the newest fence.
    committed: ChangeNo,
    fence: Epoch,
    store_is_away: bool,
    /// What clients were told, in the line of epochs that counts now: written, and flushed.
    told_written: ChangeNo,
    told_flushed: ChangeNo,
    takeovers: u64,
    answered_by_peer: u64,
    refused_after_hold: u64,
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
            keeper_is_up: true,
            keeper_is_frozen: false,
            committed: no(0),
            fence: Epoch(1),
            store_is_away: false,
            told_written: no(0),
            told_flushed: no(0),
            takeovers: 0,
            answered_by_peer: 0,
            refused_after_hold: 0,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// The server commits: some of what it accepted, all, or up to where it is wanted. One that was displaced finds the fence.
    fn commit(&mut self) {
        let some = self.rng.random_range(1..6);
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
                    self.answered_by_peer += 1;
                    told.push((no, promise));
                }
                _ if committed >= no => told.push((no, promise)),
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
            Err(_) => {
                self.refused_after_hold += u64::from(self.keeping.is_held());
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
            self.fence = self.fence.next();
            self.server = Some(Server::new(self.fence, has, self.committed, 2000));
        }
    }

    /// The peer takes the volume over: holds, looks, notes, fences. The old server may still be there. Then it hands the volume back in good order.
    fn take_over(&mut self) {
        if !self.keeper_is_up || self.store_is_away {
            return;
        }
        self.keeping.hold();
        // Whatever happens between the holding and the fence.
        for _ in 0..self.rng.random_range(0..6) {
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
            self.keeping.let_go(Epoch(0));
            return;
        }
        self.sealed = self.sealed.max(copy.epoch);
        if self.chance(20) {
            // It is given up after that: the sender goes on with the store alone.
            // The copy is in the journal's place, where the next one finds it.
            self.keeping.let_go(self.sealed);
            return;
        }
        self.fence = self.fence.next();
        self.takeovers += 1;
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
        self.fence = self.fence.next();
        self.sealed = self.sealed.max(no_epoch_before(self.fence));
        self.copy = None;
        self.keeping.let_go(self.sealed);
        self.sleeper = self.server.replace(Server::new(self.fence, has, has, 2000));
    }

    fn step_of_sender(&mut self) {
        match self.rng.random_range(0..9) {
            0 => self.accept(),
            1 => self.flush(),
            2 => {
                let covered = self.chance(50);
                if let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen) {
                    server.say(covered);
                }
            }
            3 => {
                if let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen) {
                    server.hear();
                }
            }
            4 => self.keep(),
            5 => self.keeper_syncs(),
            6 => {
                if let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen) {
                    server.written = server.accepted;
                    if server.written.0 % 2 == 0 {
                        server.synced = server.written;
                    }
                }
            }
            7 => self.connect(),
            _ => self.answer(),
        }
    }

    fn step(&mut self) {
        if self.sleeper.is_some() && self.chance(10) {
            // The same decisions, of one that does not know.
            std::mem::swap(&mut self.server, &mut self.sleeper);
            self.step_of_sender();
            if self.chance(5) {
                self.commit();
            }
            std::mem::swap(&mut self.server, &mut self.sleeper);
            return;
        }
        match self.rng.random_range(0..1000) {
            0..820 => self.step_of_sender(),
            820..900 => self.commit(),
            900..915 => {
                // A partition: the sender finds out, late.
                if let Some(wire) = self.server.as_mut().and_then(|server| server.wire.as_mut()) {
                    wire.is_cut = true;
                }
            }
            915..940 => {
                if let Some(server) = self.server.as_mut().filter(|server| !server.is_frozen)
                    && server.wire.as_ref().is_some_and(|wire| wire.is_cut)
                {
                    server.lose();
                }
            }
            940..950 => {
                if let Some(server) = &mut self.server {
                    server.is_frozen = !server.is_frozen;
                }
            }
            950..960 => self.keeper_is_frozen = self.keeper_is_up && !self.keeper_is_frozen,
            960..965 => self.store_is_away = !self.store_is_away,
            965..970 => {
                // With its host, only if that is not the second one to go.
                let with_host = self.server.as_ref().is_some_and(|server| server.epoch == self.fence && !server.ended);
                self.keeper_dies(with_host);
                // The other host is there, and so is its journal: nobody takes over from what was lost here.
                if with_host {
                    self.copy = None;
                }
            }
            970..985 => self.keeper_is_up = true,
            985..993 => self.take_over(),
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
    let (mut takeovers, mut by_peer, mut refused) = (0, 0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..3000 {
            world.step();
        }
        takeovers += world.takeovers;
        by_peer += world.answered_by_peer;
        refused += world.refused_after_hold;
    }
    // The worlds are bad enough, and good enough.
    assert!(takeovers > 400 && by_peer > 500 && refused > 50, "{takeovers} {by_peer} {refused}");
}
