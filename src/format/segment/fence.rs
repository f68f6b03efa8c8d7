//! Fences and closes: the log entries by which servers take a volume and give it up (rule R4).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::EncodeError;
use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::codec::frame::{Compression, Frames};
use crate::codec::object::{Encoded, ObjectKind, encode};
use crate::codec::seal::{Salt, Sealer};
use crate::units::{ChangeNo, Epoch, Seq};

/// The longest name of a server in bytes; a longer one is cut.
pub const SERVER_NAME_MAX: usize = 255;

/// The largest window that an epoch may have. Every takeover skips that many slots and deletes what may lie in them.
pub const WINDOW_MAX: u32 = 1024;

/// When FLUSH and FUA are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When all earlier changes are committed in the store.
    #[default]
    Store = 0,
    /// When they are on the server's local disk.
    Journal = 1,
    /// When they are on the server's local disk and in a copy of its journal on a peer, or, without a peer, committed in the store. No fence says so: see [`Durability::in_fence`].
    Peer = 2,
}

impl Durability {
    /// What a fence says of it. Whoever takes the volume has to know whether what was flushed may be missing in the store; the copy that a peer has is a journal, and is found by its name.
    pub fn in_fence(self) -> Durability {
        match self {
            Durability::Store => Durability::Store,
            Durability::Journal | Durability::Peer => Durability::Journal,
        }
    }
}

/// A server takes the volume: from here on an older one can commit nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The epoch that begins.
    pub epoch: Epoch,
    /// The server, for this start of it.
    pub server: Uuid,
    /// Its name, for people; at most [`SERVER_NAME_MAX`] bytes.
    pub server_name: String,
    /// Its clock, for people: milliseconds since 1970.
    pub time_unix_millis: u64,
    /// The journal in which this epoch's changes are before they are committed.
    pub journal: Uuid,
    /// Segments that this epoch has in flight at most: 1 to [`WINDOW_MAX`].
    pub window: u32,
    /// Where this epoch's first log object goes: beyond all that the epoch before can have in flight.
    pub continues_at: Seq,
    /// What FLUSH means to this epoch.
    pub durability: Durability,
    /// The last change that the log before it contains.
    pub covers: ChangeNo,
    /// Whether it displaced a server that may still be alive. Such a fence stays for as long as the volume: the
    /// displaced server learns of it by failing to create the very same object, however late it wakes up.
    pub displaces: bool,
}

impl Fence {
    /// As an object.
    pub fn encode(&self, sealer: &Sealer, seq: Seq, salt: Salt) -> Result<Encoded, EncodeError> {
        let mut w = Writer::new();
        self.write(&mut w);
        encode(sealer, ObjectKind::Fence, seq, salt, &w.finish(), Frames::with_capacity(0, 0, Compression::None))
    }

    pub(super) fn decode(head: &[u8]) -> Result<Fence, Malformed> {
        let mut r = Reader::new(head);
        let fence = Fence::read(&mut r)?;
        r.finish().map(|()| fence)
    }

    /// Whether the epoch continues where it can if this fence stands at `seq`: after it, and not further on than the epoch
    /// before may have segments in flight. Whoever follows the fence walks over all slots between.
    pub fn can_stand_at(&self, seq: Seq) -> bool {
        self.continues_at.0.checked_sub(seq.0).is_some_and(|slots| (1..=u64::from(WINDOW_MAX)).contains(&slots))
    }

    /// The fields, also as the checkpoint root repeats them.
    pub(crate) fn write(&self, w: &mut Writer) {
        w.varint(self.epoch.0);
        w.uuid(self.server);
        w.string(&self.server_name, SERVER_NAME_MAX);
        w.varint(self.time_unix_millis);
        w.uuid(self.journal);
        w.varint(u64::from(self.window));
        w.varint(self.continues_at.0);
        w.u8(self.durability.in_fence() as u8);
        w.varint(self.covers.0);
        w.u8(u8::from(self.displaces));
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Fence, Malformed> {
        Ok(Fence {
            epoch: Epoch(r.ordinal()?),
            server: r.uuid()?,
            server_name: r.string(SERVER_NAME_MAX)?.to_owned(),
            time_unix_millis: r.varint()?,
            journal: r.uuid()?,
            window: match r.varint_u32()? {
                window @ 1..=WINDOW_MAX => window,
                _ => return Err(r.bad("a window that cannot be")),
            },
            continues_at: Seq(r.ordinal()?),
            durability: match r.u8()? {
                0 => Durability::Store,
                1 => Durability::Journal,
                _ => return Err(r.bad("a durability that is unknown")),
            },
            covers: ChangeNo(r.ordinal()?),
            displaces: match r.u8()? {
                0 => false,
                1 => true,
                _ => return Err(r.bad("neither true nor false")),
            },
        })
    }
}

/// A server gave the volume up: all that it accepted is in the log before this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The epoch that ends.
    pub epoch: Epoch,
    /// The server.
    pub server: Uuid,
    /// The last change that the log contains.
    pub covers: ChangeNo,
    /// The server's clock, for people: milliseconds since 1970.
    pub time_unix_millis: u64,
}

impl Close {
    /// As an object.
    pub fn encode(&self, sealer: &Sealer, seq: Seq, salt: Salt) -> Result<Encoded, EncodeError> {
        encode(sealer, ObjectKind::Close, seq, salt, &self.write(), Frames::with_capacity(0, 0, Compression::None))
    }

    fn write(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.varint(self.epoch.0);
        w.uuid(self.server);
        w.varint(self.covers.0);
        w.varint(self.time_unix_millis);
        w.finish()
    }

    pub(super) fn decode(head: &[u8]) -> Result<Close, Malformed> {
        let mut r = Reader::new(head);
        let close = Close {
            epoch: Epoch(r.ordinal()?),
            server: r.uuid()?,
            covers: ChangeNo(r.ordinal()?),
            time_unix_millis: r.varint()?,
        };
        r.finish().map(|()| close)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ORDINAL_MAX;
    use proptest::prelude::*;

    prop_compose! {
        fn fence()(a: [u64; 5], ids: [u128; 2], window in 1..=WINDOW_MAX, name in "\\PC{0,60}", journal: bool, displaces: bool) -> Fence {
            Fence {
                epoch: Epoch(a[0] % ORDINAL_MAX),
                server: Uuid::from_u128(ids[0]),
                server_name: name,
                time_unix_millis: a[1],
                journal: Uuid::from_u128(ids[1]),
                window,
                continues_at: Seq(a[2] % ORDINAL_MAX),
                durability: if journal { Durability::Journal } else { Durability::Store },
                covers: ChangeNo(a[3] % ORDINAL_MAX),
                displaces,
            }
        }
    }

    /// Sums of these numbers are made everywhere: none may overflow, whoever wrote the object.
    #[test]
    fn a_number_that_no_volume_comes_to_is_refused() {
        let close = |epoch, covers| {
            let close =
                Close { epoch: Epoch(epoch), server: Uuid::nil(), covers: ChangeNo(covers), time_unix_millis: 0 };
            Close::decode(&close.write()).map_err(|malformed| malformed.what)
        };
        assert!(close(ORDINAL_MAX, ORDINAL_MAX).is_ok());
        let beyond = "a number beyond its bound";
        assert_eq!(close(ORDINAL_MAX + 1, 0).unwrap_err(), beyond);
        assert_eq!(close(0, u64::MAX).unwrap_err(), beyond);
    }

    proptest! {
        #[test]
        fn a_fence_comes_back(fence in fence()) {
            let mut w = Writer::new();
            fence.write(&mut w);
            prop_assert_eq!(Fence::decode(&w.finish()), Ok(fence));
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_mean_one_fence(bytes in prop::collection::vec(0u8..0x90, 0..90)) {
            if let Ok(fence) = Fence::decode(&bytes) {
                let mut w = Writer::new();
                fence.write(&mut w);
                prop_assert_eq!(w.finish(), bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_mean_one_close(bytes in prop::collection::vec(0u8..0x90, 18..26)) {
            if let Ok(close) = Close::decode(&bytes) {
                prop_assert_eq!(close.write(), bytes);
            }
        }
    }

    #[test]
    fn a_long_name_is_cut_and_values_out_of_range_are_refused() {
        let mut w = Writer::new();
        let long = Fence { server_name: "é".repeat(200), ..sample() };
        long.write(&mut w);
        assert_eq!(Fence::decode(&w.finish()).unwrap().server_name, "é".repeat(127));

        let mut w = Writer::new();
        sample().write(&mut w);
        let bytes = w.finish();
        let windows = [(1u32, true), (1024, true), (0, false), (1025, false), (u32::MAX, false)];
        for (window, is_good) in windows {
            let mut w = Writer::new();
            Fence { window, ..sample() }.write(&mut w);
            assert_eq!(Fence::decode(&w.finish()).is_ok(), is_good, "{window}");
        }
        for (from_end, what) in [(3, "a durability that is unknown"), (1, "neither true nor false")] {
            let mut bytes = bytes.clone();
            let at = bytes.len() - from_end;
            bytes[at] = 2;
            assert_eq!(Fence::decode(&bytes).unwrap_err().what, what);
        }
    }

    fn sample() -> Fence {
        Fence {
            epoch: Epoch(1),
            server: Uuid::nil(),
            server_name: "here".into(),
            time_unix_millis: 1,
            journal: Uuid::nil(),
            window: 8,
            continues_at: Seq(1),
            durability: Durability::Store,
            covers: ChangeNo(0),
            displaces: false,
        }
    }
}
