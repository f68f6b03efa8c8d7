//! Roots of checkpoints and pages of the map.
//!
//! The first byte says how they are read: as they are; as a root (a length of two bytes, then so many) and pages under a true
//! seal; as one page, of each kind. Plain or encrypted.
#![no_main]

use ashlar::codec::object::{Found, ObjectKind};
use ashlar::codec::seal::Sealer;
use ashlar::format::root::{decode_checkpoint_and_total, verify_checkpoint};
use ashlar::map::fixed::{PAGE_BYTES_MAX, decode_page};
use ashlar::map::leaf_format::{decode_index, decode_leaf, encode_index, encode_leaf};
use ashlar::map::{Leaf, PAGE_BLOCKS, PageIndex};
use ashlar::space;
use ashlar::units::{BlockIndex, Seq};
use ashlar_fuzz::{Input, SALT, fair, seal_frame, sealed, sealer, within};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

/// Where the golden checkpoint stands.
const SEQ: Seq = Seq(0x1240);
/// The page of the golden checkpoints: of the formats with fixed pages, and the block at which its leaf begins.
const PAGE: PageIndex = PageIndex(5);
const FIRST: BlockIndex = BlockIndex(5 * PAGE_BLOCKS);
/// Pages of the table of segments, as those of the golden checkpoint.
const TABLE: [(space::PageKind, u64); 4] = [
    (space::PageKind::Counters, 4),
    (space::PageKind::Salts, 4),
    (space::PageKind::Directory, 0),
    (space::PageKind::Deltas, 0),
];

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
    if let Ok(Found::Whole((root, total))) = decode_checkpoint_and_total(sealer, SEQ, &object.clone().into()) {
        let own: u64 = root.own.iter().map(|len| u64::from(*len)).sum();
        let mut offset = (total - own) as u32;
        for len in root.own {
            seal_frame(&mut object, &key, offset, len);
            offset += len;
        }
    }
    Some(object.into())
}

fn look(sealer: &Sealer, object: &Bytes) {
    if let Ok(Found::Whole((root, total))) = decode_checkpoint_and_total(sealer, SEQ, object) {
        assert!(root.seq == SEQ && root.next_slot > SEQ);
        let own: u64 = root.own.iter().map(|len| u64::from(*len)).sum();
        assert!(own <= total);
    }
    if verify_checkpoint(sealer, SEQ, object).is_ok() {
        assert!(verify_checkpoint(sealer, SEQ, &object.slice(..object.len() - 1)).is_err());
    }
}

fn page(text: &[u8]) {
    if let Ok(entries) = decode_page(PAGE, text) {
        assert!(entries.is_sorted_by(|a, b| a.extent.end() <= b.extent.start));
        assert!(Leaf::new(&entries).iter().eq(entries));
    }
    if let Ok(entries) = decode_leaf(FIRST, text) {
        assert!(Leaf::new(&entries).iter().eq(entries.iter().copied()));
        let again = encode_leaf(&entries).expect("what a leaf says can be a leaf");
        assert_eq!(decode_leaf(FIRST, &again).as_ref(), Ok(&entries));
    }
    for (kind, number) in TABLE {
        if let Ok(page) = space::page_format::decode(kind, number, text) {
            let again = space::page_format::encode(number, &page).expect("what a page of the table says can be one");
            assert_eq!(space::page_format::decode(kind, number, &again).as_ref(), Ok(&page));
        }
    }
    if let Ok(pages) = decode_index(FIRST, text) {
        let again = encode_index(&pages).expect("what an index says can be one");
        assert_eq!(decode_index(FIRST, &again).as_ref(), Ok(&pages));
    }
}
