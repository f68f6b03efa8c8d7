//! What a ghost knows of the root of a checkpoint, and of what else lies in the store from the beginning: all that depends on how a root is
//! made is here.

use std::sync::Arc;

use ashlar::codec::EncodeError;
use ashlar::codec::frame::{Compression, Frames};
use ashlar::codec::object::{Encoded, ObjectKind};
use ashlar::codec::seal::Sealer;
use ashlar::format::root::{CheckpointInfo, Root, encode_checkpoint};
use ashlar::format::segment::{Close, Durability, Fence};
use ashlar::map::{PageKind, Run};
use ashlar::units::{ChangeNo, Epoch, Seq};
use uuid::Uuid;

use super::pages::{self, FRAMES_AT, Pages};
use super::segments::{FIRST, Segments};
use super::shape::Shape;

/// The place of the root: that of the last segment.
pub fn seq(shape: &Shape) -> Seq {
    Seq(FIRST + shape.segments - 1)
}

/// The newest checkpoint, and the entry by which the server that wrote all this gave the volume up.
pub fn objects(
    sealer: &Sealer,
    shape: &Shape,
    segments: &Segments,
    map: &Pages,
) -> Result<[(Seq, Encoded); 2], EncodeError> {
    let seq = seq(shape);
    let root = root(shape, segments, map);
    let salt = pages::salt(ObjectKind::Checkpoint, seq);
    let none = Frames::with_capacity(0, 0, Compression::None);
    let checkpoint = encode_checkpoint(sealer, salt, root, none)?.object;
    let (epoch, server, covers) = (Epoch(1), Uuid::from_u128(1), ChangeNo(shape.blocks));
    let close = Close { epoch, server, covers, time_unix_millis: 0 };
    let close = close.encode(sealer, seq.next(), pages::salt(ObjectKind::Close, seq.next()))?;
    Ok([(seq, checkpoint), (seq.next(), close)])
}

fn root(shape: &Shape, segments: &Segments, map: &Pages) -> Root {
    let seq = seq(shape);
    let checkpoint = |object| Seq(map.first.0 + object);
    let info = |seq| CheckpointInfo { salt: pages::salt(ObjectKind::Checkpoint, seq), frames_at: FRAMES_AT };
    let fence = Fence {
        epoch: Epoch(1),
        server: Uuid::from_u128(1),
        server_name: "ghost".into(),
        time_unix_millis: 0,
        journal: Uuid::from_u128(1),
        window: 8,
        continues_at: Seq(FIRST),
        durability: Durability::Store,
        covers: ChangeNo(0),
        displaces: false,
    };
    let run = Run {
        is_last: true,
        through: seq,
        kind: PageKind::Index,
        pages: Arc::new(map.indexes()),
        entries: map.entries(),
        objects: (0..map.objects).map(|object| (checkpoint(object), map.bytes_of(object))).collect(),
        ..Run::empty()
    };
    Root {
        seq,
        covers: ChangeNo(shape.blocks),
        next_slot: seq.next(),
        fence: Some((Seq(FIRST - 1), fence)),
        segments: (0..shape.segments).map(|segment| (segments.seq(segment), segments.info(segment))).collect(),
        checkpoints: (0..map.objects).map(|object| (checkpoint(object), info(checkpoint(object)))).collect(),
        runs: vec![run],
        ..Root::default()
    }
}
