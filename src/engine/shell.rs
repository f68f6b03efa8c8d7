//! The shell: one task for each volume, the owner of all that is under way. It hands the core what happened, starts what the core
//! decides, and waits for nothing but the next event.
//!
//! Whatever takes time is [`Work`]: it goes on while the shell is busy with something else, and the shell is never busy for long.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use crate::device::DeviceError;
use crate::engine::commit;
use crate::engine::core::{Chore, Closing, Effect, End, Event, Report};
use crate::engine::shared::Shared;
use crate::engine::slot;
use crate::engine::upload;
use crate::engine::work::{self, Work};
use crate::format::segment::Close;
use crate::journal;
use crate::store::ErrorKind;
use crate::units::ChangeNo;

/// What the rooms above do for it, each time with the event that it ends with.
#[derive(Clone, Copy)]
pub struct Upkeep {
    /// Does what [`Chore`] says.
    pub chore: fn(Arc<Shared>, Chore) -> BoxFuture<'static, Event>,
    /// Puts the description that says the size which is owed ([`Effect::Describe`]).
    pub describe: fn(Arc<Shared>) -> BoxFuture<'static, Event>,
}

struct Shell {
    shared: Arc<Shared>,
    upkeep: Upkeep,
    running: FuturesUnordered<Work<Event>>,
    /// By itself, because it alone is ended before its time.
    gathering: Option<Work<Event>>,
}

/// Runs until the volume is closed or ends. The owner of the volume holds the task's handle and aborts it when dropped.
pub(crate) async fn run(shared: Arc<Shared>, upkeep: Upkeep) -> Result<(), End> {
    let _whatever_happens = EndWithTask(shared.clone());
    let mut shell = Shell { shared: shared.clone(), upkeep, running: FuturesUnordered::new(), gathering: None };
    let result = shell.serve().await;
    match &result {
        Ok(()) => shared.end(End::Closed),
        Err(end) => {
            // Whoever closes it is told, and says it.
            if !shared.is_closing() {
                let why = DeviceError::from(end.clone());
                tracing::error!(volume = %shared.facts.meta.name, "the volume has ended: {why}");
            }
            shared.end(end.clone());
        }
    }
    result
}

/// Nobody waits for a shell that is gone.
struct EndWithTask(Arc<Shared>);

impl Drop for EndWithTask {
    fn drop(&mut self) {
        if self.0.waits.progress.now().end.is_none() {
            self.0.end(End::Failed("the volume was dropped".into()));
        }
    }
}

impl Shell {
    async fn serve(&mut self) -> Result<(), End> {
        let mut event = Event::Look;
        loop {
            let now = self.shared.now();
            let (effects, deadline) = {
                let mut core = self.shared.core();
                let effects = core.handle(event, now);
                (effects, core.deadline(now))
            };
            let mut next = None;
            for effect in effects {
                match effect {
                    Effect::Close(closing) => return self.close(closing).await,
                    Effect::End(end) => return Err(end),
                    Effect::BeginJournal(first) => next = Some(self.begin_journal(first)),
                    effect => self.start(effect),
                }
            }
            event = match next {
                Some(event) => event,
                None => self.next_event(deadline).await,
            };
        }
    }

    /// Nothing is awaited in the branches.
    async fn next_event(&mut self, deadline: Option<Instant>) -> Event {
        let shared = self.shared.clone();
        tokio::select! {
            biased;
            Some(event) = self.running.next() => event,
            event = work::ended(&mut self.gathering) => event,
            () = shared.doors.journal.let_go() => {
                shared.give_back_room(0);
                Event::Look
            }
            () = shared.waits.wake.notified() => Event::Look,
            () = sleep_until(deadline), if deadline.is_some() => Event::Look,
        }
    }

    fn start(&mut self, effect: Effect) {
        let shared = self.shared.clone();
        match effect {
            Effect::Upload(seq, batch) => self.run(upload::batch(shared, seq, batch)),
            Effect::UploadMove(seq, covers, data) => self.run(upload::moved(shared, seq, covers, data)),
            Effect::Commit(uploaded, batch) => self.run(commit::run(shared, uploaded, batch)),
            Effect::Chore(gather @ (Chore::Survey(..) | Chore::Gather(..) | Chore::Carry(_))) => {
                self.gathering = Some(Work::start((self.upkeep.chore)(shared, gather)));
            }
            Effect::Chore(chore) => self.run((self.upkeep.chore)(shared, chore)),
            Effect::Describe => self.run((self.upkeep.describe)(shared)),
            Effect::StopGathering => self.gathering = None,
            Effect::WakeWriters => shared.waits.completed.notify_waiters(),
            Effect::Report(report) => say(&shared.facts.meta.name.to_string(), &report),
            // The loop has them.
            Effect::BeginJournal(_) | Effect::Close(_) | Effect::End(_) => {}
        }
    }

    fn run(&mut self, work: impl Future<Output = Event> + Send + 'static) {
        self.running.push(Work::start(work));
    }

    fn begin_journal(&self, first: ChangeNo) -> Event {
        self.shared.doors.journal.restart_from(first);
        tracing::info!(volume = %self.shared.facts.meta.name, "the journal is tried again");
        Event::JournalBegun
    }

    /// The last entry of a clean stop: whoever opens next need not ask whether this server is alive.
    async fn close(&mut self, closing: Closing) -> Result<(), End> {
        let Shared { facts, doors, .. } = &*self.shared;
        prove_nothing_owed(closing, &doors.disk.path()).map_err(End::Failed)?;
        let Closing { seq, covers, .. } = closing;
        let time_unix_millis = doors.clock.unix_millis();
        let close = Close { epoch: facts.epoch, server: facts.server, covers, time_unix_millis };
        let encoded = close.encode(&doors.sealer, seq, self.shared.salt());
        let object = encoded.map_err(|error| End::Failed(error.to_string()))?;
        let bytes = u64::from(object.frames_at);
        slot::put_until_done(&self.shared, seq, object.parts).await?;
        self.shared.following.closed(seq, bytes);
        self.shared.remember(seq).await;
        // It holds nothing that the store does not have: that it cannot be closed or removed loses nothing.
        let closed = doors.journal.close().await;
        let removed = journal::discard(&doors.disk, facts.meta.uuid).await;
        if let Err(error) = closed.and(removed) {
            tracing::warn!(volume = %facts.meta.name, "the empty journal could not be removed: {error}");
        }
        Ok(())
    }
}

/// Whoever gives the journal up proves that it may (rule R15): a close entry says that nothing is owed. Fails with the reason.
fn prove_nothing_owed(Closing { covers, last, .. }: Closing, journal_dir: &str) -> Result<(), String> {
    if covers != last {
        return Err(format!(
            "it cannot be closed: changes {} to {last} are acknowledged and not in the store; the journal in {journal_dir} keeps \
             them, and the next opening on this host accepts them again",
            covers.next(),
        ));
    }
    Ok(())
}

fn say(volume: &str, report: &Report) {
    match report {
        Report::CollectionPauses(error) => tracing::warn!(volume, "garbage collection pauses: {error}"),
        Report::NotDeleted { objects, error, is_first } => match (is_first, error.kind) {
            (true, ErrorKind::Denied) => tracing::error!(
                volume,
                objects,
                "the store refuses to delete, so space does not come back; allow DELETE for these credentials: {error}"
            ),
            (true, _) => tracing::warn!(volume, objects, "dead objects are not deleted yet: {error}"),
            _ => tracing::debug!(volume, objects, "dead objects are still not deleted: {error}"),
        },
        Report::DeletesAgain => tracing::info!(volume, "dead objects are deleted again"),
        Report::SweepBrokeOff(error) => {
            tracing::warn!(volume, "the search for objects without an owner broke off: {error}");
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seq;

    #[test]
    fn nothing_is_closed_while_the_store_lacks_a_change() {
        let closing = |covers, last| Closing { seq: Seq(4), covers: ChangeNo(covers), last: ChangeNo(last) };
        let prove = |covers, last| prove_nothing_owed(closing(covers, last), "/state/v");
        assert_eq!(prove(7, 7), Ok(()));
        let refused = prove(7, 9).unwrap_err();
        assert!(refused.contains("changes 8 to 9 are acknowledged") && refused.contains("/state/v"), "{refused}");
        prove(9, 7).unwrap_err();
    }
}
