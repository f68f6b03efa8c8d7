//! Objects of the log: segments, fences, closes.
//!
//! The first byte says how they are read: as they are, or as a head (a length of two bytes, then so many) and frames under a
//! true seal; plain or encrypted.
#![no_main]

use ashlar::codec::object::{Found, ObjectKind};
use ashlar::codec::seal::Sealer;
use ashlar::format::segment::{LogObject, decode_log_object, is_torn, verify_log_object};
use ashlar::units::{BlockSize, Seq};
use ashlar_fuzz::{Input, fair, seal_frame, sealed, sealer, within};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

/// Where the golden objects stand in the log.
const SEQS: [Seq; 4] = [Seq(0x1234), Seq(0x1235), Seq(0x1236), Seq(0x1240)];
const KINDS: [ObjectKind; 3] = [ObjectKind::Segment, ObjectKind::Fence, ObjectKind::Close];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let first = input.u8();
    let sealer = sealer(first & 1 != 0);
    within(fair(data.len()), || match first >> 1 & 3 {
        0 => SEQS.into_iter().for_each(|seq| look(&sealer, seq, &Bytes::copy_from_slice(input.0))),
        kind => {
            let kind = KINDS[usize::from(kind) - 1];
            if let Some(object) = object(&sealer, kind, input.piece(), input.0) {
                look(&sealer, SEQS[0], &object);
            }
        }
    });
});

/// An object of that head in which each frame that the head names has a true seal.
fn object(sealer: &Sealer, kind: ObjectKind, head: &[u8], frames: &[u8]) -> Option<Bytes> {
    let mut object = sealed(sealer, kind, SEQS[0], head, frames)?;
    if let Ok(Found::Whole(read)) = decode_log_object(sealer, SEQS[0], &object.clone().into())
        && let LogObject::Segment(head) = &read.object
    {
        for (_, frame) in head.frames(SEQS[0], read.frames_at) {
            seal_frame(&mut object, &read.key, frame.offset, frame.len);
        }
    }
    Some(object.into())
}

fn look(sealer: &Sealer, seq: Seq, object: &Bytes) {
    if let Ok(Found::Whole(read)) = decode_log_object(sealer, seq, object) {
        if let LogObject::Segment(head) = &read.object {
            let (placements, info) = (head.placements(seq, read.frames_at), head.info(read.salt, read.frames_at));
            assert!(placements.is_sorted_by(|a, b| a.0.end() <= b.0.start), "sorted, and not overlapping");
            assert!(
                head.frames(seq, read.frames_at)
                    .iter()
                    .all(|(_, frame)| { u64::from(frame.offset) + u64::from(frame.len) <= info.stored_bytes })
            );
        }
        assert_eq!(is_torn(sealer, seq, object), (object.len() as u64) < read.total());
    }
    let block_size = BlockSize::new(512).expect("a block size");
    if verify_log_object(sealer, block_size, seq, object).is_ok() {
        let cut = object.slice(..object.len() / 2);
        assert!(is_torn(sealer, seq, &cut) && verify_log_object(sealer, block_size, seq, &cut).is_err());
    }
}
