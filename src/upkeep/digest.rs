//! Puts a digest ([`crate::engine::digests`]): of slots that took effect, so what it says of them holds for ever.
//!
//! It is a hint, and nobody waits for it. If the store refuses it, the slots are in the next one; if a server puts it that was displaced and does not
//! know it, it tells of slots before the fence, which took effect for both.

use std::sync::Arc;

use crate::engine::Event;
use crate::engine::digests::Plan;
use crate::engine::shared::Shared;
use crate::format::digest;
use crate::store::ErrorKind;

pub(super) async fn run(shared: Arc<Shared>, plan: Plan) -> Event {
    let Plan { stretch, fronts, .. } = plan;
    let (sealer, salt) = (shared.doors.sealer.clone(), shared.salt());
    let encoded = shared.doors.workers.run(move || digest::encode_digest(&sealer, stretch, salt, &fronts)).await;
    let volume = &shared.facts.meta.name;
    let object = match encoded {
        Ok(object) => object,
        Err(error) => {
            tracing::warn!(%volume, "slots {} to {} of the log have no digest: {error}", stretch.first, stretch.last);
            return Event::Digested(false);
        }
    };
    let key = shared.doors.keys.digest(stretch);
    match shared.doors.background.put(&key, object.parts).await {
        Ok(()) => Event::Digested(true),
        // Nobody else tells of these slots: it is ours, of an earlier try within this one, whole or not.
        Err(error) if error.kind == ErrorKind::AlreadyExists => Event::Digested(true),
        Err(error) => {
            tracing::debug!(%volume, object = %key, "a digest of the log was not written: {error}");
            Event::Digested(false)
        }
    }
}
