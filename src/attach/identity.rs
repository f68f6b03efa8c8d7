//! Is the disk that came back the disk that went away?
//!
//! A server tells, in the description of an export, which volume it is, in which epoch it has it open, by which opening that
//! epoch began, and since which epoch nothing that was acknowledged has been lost. Any client may show the text to people or
//! ignore it:
//!
//! ```text
//! ashlar volume 8f14e45f-ceea-467f-a0b4-0d5a3b6c1f00 epoch 7 opening 0cc175b9-c0f1-46b6-a31c-399e26977266 unbroken since 5
//! ```
//!
//! An *acknowledged* change is one that the client has its reply for, flushed or not. The kernel believes that it is on the
//! device: its page is clean, and is never written again. If a server loses it, the next FLUSH on the device would promise what is not
//! true. So a device goes on only with a server that lost nothing.

use std::fmt;

use uuid::Uuid;

use crate::units::{Epoch, Seq};

/// What stands behind the identity when the server is about to give the disk to another, or to stop.
pub const LEAVING: &str = " leaving";

/// What a server says of the disk behind an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which volume.
    pub volume: Uuid,
    /// The epoch in which the server has it open.
    pub epoch: Epoch,
    /// What no other opening has in common with this one: an older copy of the volume comes to the same epoch once more.
    pub opening: Uuid,
    /// The first epoch of which this one still has every acknowledged change.
    pub unbroken_since: Epoch,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { volume, epoch, opening, unbroken_since } = self;
        write!(f, "ashlar volume {volume} epoch {} opening {opening} unbroken since {}", epoch.0, unbroken_since.0)
    }
}

impl Identity {
    /// That of a version of a volume, which nobody changes: it stands after that place of its log, and was kept at that time. Each version has one
    /// of its own, also beside its volume, whatever it is called.
    pub fn of_version(volume: Uuid, seq: Seq, taken_unix_millis: u64) -> Identity {
        let mut hash = blake3::Hasher::new_derive_key("ashlar 2026 identity of a kept version");
        hash.update(volume.as_bytes()).update(&seq.0.to_le_bytes()).update(&taken_unix_millis.to_le_bytes());
        let mut bytes = [0; 16];
        hash.finalize_xof().fill(&mut bytes);
        let version = uuid::Builder::from_random_bytes(bytes).into_uuid();
        Identity { volume: version, epoch: Epoch(0), opening: version, unbroken_since: Epoch(0) }
    }

    /// Reads the description of an export; words that follow are left for later versions.
    pub fn parse(text: &str) -> Option<Identity> {
        let mut words = text.split(' ');
        let mut after = |before: &[&str]| {
            let as_expected = before.iter().all(|word| words.next() == Some(word));
            words.next().filter(|_| as_expected)
        };
        let volume = after(&["ashlar", "volume"])?.parse().ok()?;
        let epoch = Epoch(after(&["epoch"])?.parse().ok()?);
        let opening = after(&["opening"])?.parse().ok()?;
        let unbroken_since = Epoch(after(&["unbroken", "since"])?.parse().ok()?);
        Some(Identity { volume, epoch, opening, unbroken_since })
    }
}

/// Why a device must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// The name stands for another volume now.
    #[error("the server has another volume of that name now ({now}) than the one that is attached ({before})")]
    AnotherVolume {
        /// That of the device.
        before: Uuid,
        /// That of the server.
        now: Uuid,
    },
    /// The volume is older than it was.
    #[error(
        "the volume went back: this device knows its epoch {before}, and the server is in another epoch {now}; an older copy of \
         its store was put back"
    )]
    WentBack {
        /// That of the device.
        before: Epoch,
        /// That of the server.
        now: Epoch,
    },
    /// Somewhere in between, something acknowledged was lost.
    #[error(
        "changes may be missing that were acknowledged: since this device spoke to a server last, in epoch {before}, the volume \
         was opened without the journal of the server before, in epoch {at}"
    )]
    Lost {
        /// That of the device.
        before: Epoch,
        /// Where the loss is.
        at: Epoch,
    },
    /// The disk is smaller.
    #[error("the volume is smaller now ({now} bytes) than the device ({before} bytes)")]
    Smaller {
        /// That of the device.
        before: u64,
        /// That of the server.
        now: u64,
    },
}

/// Whether a device that spoke to a server with the identity `before` last may go on with one that shows `now`.
pub fn compare(before: &Identity, now: &Identity) -> Result<(), Break> {
    if before.volume != now.volume {
        return Err(Break::AnotherVolume { before: before.volume, now: now.volume });
    }
    if now.epoch < before.epoch || now.epoch == before.epoch && now.opening != before.opening {
        return Err(Break::WentBack { before: before.epoch, now: now.epoch });
    }
    match now.unbroken_since > before.epoch {
        true => Err(Break::Lost { before: before.epoch, at: now.unbroken_since }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(volume: u128, epoch: u64, unbroken_since: u64) -> Identity {
        let (volume, opening) = (Uuid::from_u128(volume), Uuid::from_u128(u128::from(epoch)));
        Identity { volume, epoch: Epoch(epoch), opening, unbroken_since: Epoch(unbroken_since) }
    }

    #[test]
    fn what_is_written_is_read_back_and_other_descriptions_are_not() {
        let text = identity(1, 7, 5).to_string();
        assert_eq!(
            text,
            "ashlar volume 00000000-0000-0000-0000-000000000001 epoch 7 opening 00000000-0000-0000-0000-000000000007 \
             unbroken since 5"
        );
        assert_eq!(Identity::parse(&text), Some(identity(1, 7, 5)));
        assert_eq!(Identity::parse(&format!("{text} and more")), Some(identity(1, 7, 5)));
        for other in ["", "my disk", "ashlar volume 1 epoch 7 unbroken since 5", &text[..text.len() - 2], &text[1..]] {
            assert_eq!(Identity::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_version_is_itself_and_no_other_and_not_its_volume() {
        let of = |volume, seq, taken| Identity::of_version(Uuid::from_u128(volume), Seq(seq), taken);
        let version = of(1, 7, 5);
        assert_eq!(compare(&version, &of(1, 7, 5)), Ok(()));
        assert_eq!(Identity::parse(&version.to_string()), Some(version));
        let others = [of(2, 7, 5), of(1, 8, 5), of(1, 7, 6), identity(1, 0, 0)];
        for other in others {
            let is_another = Err(Break::AnotherVolume { before: version.volume, now: other.volume });
            assert_eq!(compare(&version, &other), is_another);
        }
    }

    #[test]
    fn a_device_goes_on_only_where_nothing_acknowledged_is_lost() {
        let before = identity(1, 7, 5);
        for same in [identity(1, 7, 5), identity(1, 7, 7), identity(1, 9, 7), identity(1, 9, 1)] {
            assert_eq!(compare(&before, &same), Ok(()), "{same}");
        }
        let uuid = Uuid::from_u128;
        assert_eq!(compare(&before, &identity(2, 7, 5)), Err(Break::AnotherVolume { before: uuid(1), now: uuid(2) }));
        assert_eq!(compare(&before, &identity(1, 6, 5)), Err(Break::WentBack { before: Epoch(7), now: Epoch(6) }));
        let again = Identity { opening: uuid(99), ..before };
        assert_eq!(compare(&before, &again), Err(Break::WentBack { before: Epoch(7), now: Epoch(7) }));
        assert_eq!(compare(&before, &identity(1, 9, 8)), Err(Break::Lost { before: Epoch(7), at: Epoch(8) }));
    }
}
