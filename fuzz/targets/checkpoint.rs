//! Roots of checkpoints and pages of the map.
//!
//! The first byte says how they are read: as they are; as a root (a length of two bytes, then so many) and pages under a true
//! seal; as one page. Plain or encrypted.
#![no_main]

use ashlar::codec::object::{Found, ObjectKind};
use ashlar::codec::seal::Sealer;
use ashlar::map::PageIndex;
use ashlar::map::page_format::{PAGE_BYTES_MAX, decode_page, encode_page};
use ashlar::units::Seq;
use ashlar::volume::root::{decode_checkpoint, decode_checkpoint_and_total, verify_checkpoint};
use ashlar_fuzz::{Input, SALT, fair, seal_frame, sealed, sealer, within};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

/// Where the golden checkpoint stands.
const SEQ: Seq = Seq(0x1240);
/// The page of the golden checkpoint.
const PAGE: PageIndex = PageIndex(5);

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let first = input.u8();
    let sealer = sealer(first & 1 != 0);
    // A page is decompressed before it is decoded, to at most so much.
    within(fair(data.len()) + 4 * PAGE_BYTES_MAX as usize, || match first >> 1 & 3 {
        0 => look(&sealer, &Bytes::copy_from_slice(input.0)),
        1 => page(input.0),
        _ => {
            if let Some(object) = object(&sealer, input.piece(), input.0) {
                look(&sealer, &object);
            }
        }
    });
});

/// A checkpoint of that root in which each page of its own has a true seal.
fn object(sealer: &Sealer, root: &[u8], pages: &[u8]) -> Option<Bytes> {
    let mut object = sealed(sealer, ObjectKind::Checkpoint, SEQ, root, pages)?;
    let key = sealer.object_key(ObjectKind::Checkpoint, SEQ, &SALT).ok()?;
    if let Ok(Found::Whole(root)) = decode_checkpoint(sealer, SEQ, &object.clone().into()) {
        for (_, at) in root.pages.iter().filter(|(_, at)| at.checkpoint == SEQ) {
            seal_frame(&mut object, &key, at.offset, at.len);
        }
    }
    Some(object.into())
}

fn look(sealer: &Sealer, object: &Bytes) {
    if let Ok(Found::Whole((root, total))) = decode_checkpoint_and_total(sealer, SEQ, object) {
        assert!(root.seq == SEQ && root.next_slot > SEQ);
        let own = root.pages.iter().filter(|(_, at)| at.checkpoint == SEQ);
        assert!(own.into_iter().all(|(_, at)| u64::from(at.offset) + u64::from(at.len) <= total));
    }
    if verify_checkpoint(sealer, SEQ, object).is_ok() {
        assert!(verify_checkpoint(sealer, SEQ, &object.slice(..object.len() - 1)).is_err());
    }
}

fn page(text: &[u8]) {
    if let Ok(mapped) = decode_page(PAGE, text) {
        let again = encode_page(PAGE, &mapped).expect("what a page says can be a page");
        assert_eq!(decode_page(PAGE, &again).as_ref(), Ok(&mapped));
    }
}
