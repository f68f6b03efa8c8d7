//! What a keeper takes and what it refuses, of one volume. Pure: files are somebody else's.
//!
//! Each copy that begins has a *turn* of its own. Whoever is not at turn is refused: the connection before a new one, and everybody once the volume is held here
//! ([`Keeping::hold`]), which is what a takeover does first. So when the holding has begun, nothing more is ever said to be had that is not in the files.
//!
//! Epochs never go back. [`Keeping::seal`] says up to which epoch no copy begins here any more: one of that epoch was taken by this server, and its sender, should it still live,
//! is to meet the fence in the store.

use std::collections::VecDeque;

use thiserror::Error;

use crate::units::{ChangeNo, Epoch};

/// Why something is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The volume is open here, or is being opened.
    #[error("this server has the volume itself, or is taking it")]
    Held,
    /// A copy of that epoch was taken here.
    #[error(
        "this server took the volume over from epoch {0}; what was served then goes on in the store alone, until the volume is opened anew"
    )]
    Sealed(Epoch),
    /// A copy of a later epoch is here.
    #[error("there is a copy of epoch {0} here, which began later")]
    Newer(Epoch),
    /// Another copy began since.
    #[error("another connection took the place of this one")]
    NotAtTurn,
    /// It is not what comes next.
    #[error("what came does not go on where the copy ends")]
    Gap,
    /// There is no room.
    #[error("the copies here take as much as they may (peer.disk_bytes)")]
    Full,
    /// The bytes are not those of a journal.
    #[error("what came is no journal of that volume: {0}")]
    NoJournal(String),
    /// The disk failed.
    #[error("{0}")]
    Disk(String),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Keeping {
    held: bool,
    sealed: Epoch,
    /// The epoch of the last copy that began.
    newest: Epoch,
    turn: u64,
    copy: Option<Copy>,
}

/// How far a copy is.
#[derive(Clone, Debug, Default)]
struct Copy {
    /// Files, oldest first: the last change that is whole in each, and its bytes.
    files: VecDeque<(ChangeNo, u64)>,
    had: ChangeNo,
    kept: ChangeNo,
    /// The last change that the store has.
    covered: ChangeNo,
}

impl Keeping {
    /// As the disk has it: no copy of an epoch up to `sealed` begins here, and there is one of epoch `newest`.
    pub fn new(sealed: Epoch, newest: Epoch) -> Keeping {
        let mut keeping = Keeping::default();
        keeping.seal(sealed);
        keeping.know(newest);
        keeping
    }

    /// There is a copy of that epoch on the disk.
    pub fn know(&mut self, epoch: Epoch) {
        self.newest = self.newest.max(epoch);
    }

    /// Whether a copy of that epoch may begin.
    pub fn may_begin(&self, epoch: Epoch) -> Result<(), Refusal> {
        match epoch {
            _ if self.held => Err(Refusal::Held),
            epoch if epoch <= self.sealed => Err(Refusal::Sealed(self.sealed)),
            epoch if epoch < self.newest => Err(Refusal::Newer(self.newest)),
            _ => Ok(()),
        }
    }

    /// Nobody is at turn from here on, until a copy has begun.
    pub fn interrupt(&mut self) {
        self.turn += 1;
        self.copy = None;
    }

    /// A copy has begun: it is on the disk. Returns its turn.
    pub fn begun(&mut self, epoch: Epoch, first: ChangeNo) -> u64 {
        self.interrupt();
        let last = ChangeNo(first.0.saturating_sub(1));
        self.newest = self.newest.max(epoch);
        self.copy = Some(Copy { had: last, kept: last, covered: last, ..Copy::default() });
        self.turn
    }

    /// Whether that turn is the one that counts.
    pub fn is_at_turn(&self, turn: u64) -> Result<(), Refusal> {
        match turn == self.turn && self.copy.is_some() {
            true => Ok(()),
            false if self.held => Err(Refusal::Held),
            false => Err(Refusal::NotAtTurn),
        }
    }

    /// Whether so many bytes may be written at that place of the file, if there are `room` left for all copies.
    pub fn may_write(&self, turn: u64, at: u64, bytes: u64, room: u64) -> Result<(), Refusal> {
        self.is_at_turn(turn)?;
        match self.end() {
            Some(end) if end != at => Err(Refusal::Gap),
            None => Err(Refusal::Gap),
            Some(_) if bytes > room => Err(Refusal::Full),
            Some(_) => Ok(()),
        }
    }

    /// Where the file that is written to ends.
    fn end(&self) -> Option<u64> {
        self.copy.as_ref()?.files.back().map(|(_, bytes)| *bytes)
    }

    /// A file was begun, with a header of so many bytes.
    pub fn new_file(&mut self, bytes: u64) {
        if let Some(copy) = &mut self.copy {
            copy.files.push_back((copy.had, bytes));
        }
    }

    /// So many bytes were written to the file, with which all up to `last` is whole.
    pub fn wrote(&mut self, bytes: u64, last: ChangeNo) {
        let Some(copy) = &mut self.copy else { return };
        copy.had = copy.had.max(last);
        if let Some((whole, len)) = copy.files.back_mut() {
            *whole = copy.had;
            *len += bytes;
        }
    }

    /// All up to `no` is synced.
    pub fn synced(&mut self, no: ChangeNo) {
        if let Some(copy) = &mut self.copy {
            copy.kept = copy.kept.max(no);
        }
    }

    /// What is said to the sender, if it is at turn.
    pub fn has(&self, turn: u64) -> Result<(ChangeNo, ChangeNo), Refusal> {
        self.is_at_turn(turn)?;
        Ok(self.copy.as_ref().map_or((ChangeNo(0), ChangeNo(0)), |copy| (copy.had, copy.kept)))
    }

    /// The store has all up to `no`. So many files, the oldest, hold nothing else: they are not needed. The one that is written to stays.
    pub fn covered(&mut self, no: ChangeNo) -> usize {
        let Some(copy) = &mut self.copy else { return 0 };
        copy.covered = copy.covered.max(no);
        let full = copy.files.len().saturating_sub(1);
        let covered = copy.covered;
        copy.files.iter().take(full).take_while(|(last, _)| *last <= covered).count()
    }

    /// The oldest file is gone; its bytes.
    pub fn gave_up(&mut self) -> u64 {
        self.copy.as_mut().and_then(|copy| copy.files.pop_front()).map_or(0, |(_, bytes)| bytes)
    }

    /// Bytes of the copy.
    pub fn bytes(&self) -> u64 {
        self.copy.iter().flat_map(|copy| &copy.files).map(|(_, bytes)| bytes).sum()
    }

    /// This server has the volume, or takes it. From here on everybody is refused.
    pub fn hold(&mut self) {
        self.held = true;
        self.interrupt();
    }

    /// It does not have it any more, and no copy of an epoch up to `sealed` begins again.
    pub fn let_go(&mut self, sealed: Epoch) {
        self.held = false;
        self.seal(sealed);
    }

    /// No copy of an epoch up to that one begins any more.
    pub fn seal(&mut self, epoch: Epoch) {
        self.sealed = self.sealed.max(epoch);
        self.newest = self.newest.max(epoch);
    }

    /// Whether the volume is held here.
    pub fn is_held(&self) -> bool {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> (Keeping, u64) {
        let mut keeping = Keeping::new(Epoch(0), Epoch(0));
        keeping.may_begin(Epoch(3)).unwrap();
        let turn = keeping.begun(Epoch(3), ChangeNo(10));
        keeping.new_file(4096);
        (keeping, turn)
    }

    fn write(keeping: &mut Keeping, turn: u64, bytes: u64, last: u64) {
        let at = keeping.end().unwrap();
        keeping.may_write(turn, at, bytes, u64::MAX).unwrap();
        keeping.wrote(bytes, ChangeNo(last));
    }

    #[test]
    fn nothing_is_had_once_the_volume_is_held() {
        let (mut keeping, turn) = begun();
        write(&mut keeping, turn, 64, 10);
        assert_eq!(keeping.has(turn), Ok((ChangeNo(10), ChangeNo(9))));
        keeping.hold();
        assert_eq!(keeping.may_write(turn, 4160, 64, u64::MAX), Err(Refusal::Held));
        assert_eq!(keeping.has(turn), Err(Refusal::Held));
        assert_eq!(keeping.may_begin(Epoch(9)), Err(Refusal::Held));
        // Given up before anything was taken: the sender begins anew, and the old connection is over all the same.
        keeping.let_go(Epoch(0));
        assert_eq!(keeping.has(turn), Err(Refusal::NotAtTurn));
        keeping.may_begin(Epoch(3)).unwrap();
    }

    #[test]
    fn no_epoch_begins_that_was_taken_and_none_before_the_newest() {
        let (mut keeping, _) = begun();
        keeping.may_begin(Epoch(3)).unwrap();
        assert_eq!(keeping.may_begin(Epoch(2)), Err(Refusal::Newer(Epoch(3))));
        keeping.hold();
        keeping.let_go(Epoch(3));
        assert_eq!(keeping.may_begin(Epoch(3)), Err(Refusal::Sealed(Epoch(3))));
        keeping.may_begin(Epoch(4)).unwrap();
        let kept = Keeping::new(Epoch(3), Epoch(5));
        assert_eq!(kept.may_begin(Epoch(3)), Err(Refusal::Sealed(Epoch(3))));
        assert_eq!(kept.may_begin(Epoch(4)), Err(Refusal::Newer(Epoch(5))));
    }

    #[test]
    fn the_connection_before_a_new_one_is_refused() {
        let (mut keeping, old) = begun();
        write(&mut keeping, old, 64, 10);
        keeping.interrupt();
        assert_eq!(keeping.has(old), Err(Refusal::NotAtTurn), "while the new one is made");
        let new = keeping.begun(Epoch(3), ChangeNo(11));
        assert_eq!(keeping.may_write(old, 4160, 64, u64::MAX), Err(Refusal::NotAtTurn));
        assert_eq!(keeping.has(new), Ok((ChangeNo(10), ChangeNo(10))));
        assert_eq!(keeping.bytes(), 0);
    }

    #[test]
    fn bytes_go_on_where_the_file_ends_and_as_far_as_there_is_room() {
        let (mut keeping, turn) = begun();
        for at in [0, 4095, 4097] {
            assert_eq!(keeping.may_write(turn, at, 64, u64::MAX), Err(Refusal::Gap));
        }
        assert_eq!(keeping.may_write(turn, 4096, 64, 63), Err(Refusal::Full));
        let turn = keeping.begun(Epoch(3), ChangeNo(10));
        assert_eq!(keeping.may_write(turn, 4096, 64, 64), Err(Refusal::Gap), "without a file");
    }

    #[test]
    fn files_go_once_the_store_has_all_that_is_in_them_and_never_the_last() {
        let (mut keeping, turn) = begun();
        write(&mut keeping, turn, 64, 10);
        write(&mut keeping, turn, 32, 10);
        keeping.new_file(4096);
        write(&mut keeping, turn, 32, 11);
        keeping.new_file(4096);
        write(&mut keeping, turn, 64, 12);
        assert_eq!(keeping.covered(ChangeNo(9)), 0);
        assert_eq!(keeping.covered(ChangeNo(10)), 1);
        assert_eq!(keeping.gave_up(), 4096 + 96);
        assert_eq!(keeping.covered(ChangeNo(10)), 0);
        assert_eq!(keeping.covered(ChangeNo(12)), 1);
        keeping.gave_up();
        assert_eq!((keeping.covered(ChangeNo(99)), keeping.bytes()), (0, 4160));
        keeping.synced(ChangeNo(12));
        assert_eq!(keeping.has(turn), Ok((ChangeNo(12), ChangeNo(12))));
    }
}
