//! Golden files: one of each object, for every version of the formats that was ever written (`docs/format.md`).
//!
//! They are decoded for ever, and the encoder must still yield them byte for byte: a difference is a change of format,
//! which needs a new version number and new files beside these. `ASHLAR_BLESS_GOLDEN=1` writes the files anew.
//!
//! They are small, so that here every single flipped bit and every truncation can be tried.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on, fails
#![allow(clippy::disallowed_methods)] // golden files are read where they lie

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ashlar::codec::frame::{Compression, Frames};
use ashlar::codec::seal::Sealer;
use ashlar::format::digest::{Stretch, decode_digest, encode_digest};
use ashlar::format::meta::{
    CopiedSnapshot, CopyOf, FencedBy, Layout, LogPlace, Meta, NearLog, Parent, Settings, VolumeName,
};
use ashlar::format::root::{
    CheckpointInfo, EncodedCheckpoint, Root, decode_checkpoint, encode_checkpoint, open_page, verify_checkpoint,
};
use ashlar::format::segment::{
    Close, Durability, Fence, LogObject, Moved, Opened, Payload, Referred, Stamp, decode_log_object, encode_moved,
    encode_referring, encode_segment, open_any, open_frame, reference, verify_log_object,
};
use ashlar::keyring::slot::{Cost, NewSlot};
use ashlar::keyring::{Encryption, HandedKeys, KeySlot, Keyring, Locked, RecoveryKey, Secret};
use ashlar::map::compaction::END;
use ashlar::map::leaf_format::{encode_index, encode_leaf};
use ashlar::map::{Entry, Leaf, MapPage, PAGE_BLOCKS, PageAt, PageKind, PageRef, Part, Placement, Run, SegmentInfo};
use ashlar::retention::Schedule;
use ashlar::space::directory::List;
use ashlar::space::{
    self, Cargo, Carrier, CloneRef, Counted, Counter, Delta, KeptVersion, Label, Listed, Page, Span, SpanEntry,
    Summary, TableRoot, page_format,
};
use ashlar::units::{BlockCount, BlockIndex, BlockSize, ChangeNo, Epoch, Extent, FrameAddr, Location, Seq};
use ashlar::volume::Account;
use bytes::Bytes;
use uuid::{Uuid, uuid};

const VOLUME: Uuid = uuid!("67e55044-10b1-426f-9247-bb680e5fe0c8");
const SERVER: Uuid = uuid!("c0ffee00-0000-4000-8000-000000000001");
const JOURNAL: Uuid = uuid!("c0ffee00-0000-4000-8000-000000000002");
const SALT: [u8; 16] = *b"salt of a golden";

fn sealer() -> Sealer {
    Sealer::new(VOLUME, None)
}

/// The golden file of that name, after checking that it is what the encoder yields.
fn golden(name: &str, encoded: Vec<u8>) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("ASHLAR_BLESS_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &encoded).unwrap();
    }
    let stored = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let difference = stored.iter().zip(&encoded).position(|(a, b)| a != b).unwrap_or(stored.len().min(encoded.len()));
    assert!(stored == encoded, "{name}: the encoder yields other bytes from byte {difference} on: the format changed");
    stored.into()
}

/// Every flipped bit, every truncation and one byte too many must be refused by `decode`.
fn all_harm_is_found<T>(good: &Bytes, decode: impl Fn(&Bytes) -> Result<T, ashlar::codec::CorruptError>) {
    assert!(decode(good).is_ok());
    for bit in 0..good.len() * 8 {
        let mut harmed = good.to_vec();
        harmed[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&harmed.into()).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
    }
    for len in 0..good.len() {
        assert!(decode(&good.slice(..len)).is_err(), "cut to {len} bytes");
    }
    let longer = [&good[..], &[0]].concat();
    assert!(decode(&longer.into()).is_err(), "a byte more");
}

fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    noise
}

fn block_size() -> BlockSize {
    BlockSize::new(512).unwrap()
}

/// Blocks 10…17 of text, 18 of zeros, 19 of noise; 20…23 zero; data on both sides of a 64 KiB boundary; a far trim.
fn changes() -> Vec<(Extent, Payload)> {
    let text = b"ashlar: worked stone, laid in courses. ".repeat(8 * 512 / 39 + 1)[..8 * 512].to_vec();
    let mixed = [&text[..], &[0; 512], &noise(512)].concat();
    vec![
        (Extent::new(10, 10), Payload::Data(mixed.into())),
        (Extent::new(20, 4), Payload::Zero),
        (Extent::new(127, 2), Payload::Data(vec![7; 1024].into())),
        (Extent::new(1 << 40, 1 << 30), Payload::Hole),
    ]
}

#[test]
fn segment() {
    let seq = Seq(0x1234);
    let stamp = Stamp { epoch: Epoch(3), server: SERVER, covers: ChangeNo(70_000), compression: Compression::Lz4 };
    let segment = encode_segment(&sealer(), seq, SALT, block_size(), &stamp, &changes()).unwrap();
    let bytes = golden("v2/segment", segment.object.parts.concat());

    let read = decode_log_object(&sealer(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
    let LogObject::Segment(head) = &read.object else { panic!("not a segment") };
    assert_eq!((head.epoch, head.server, head.covers), (Epoch(3), SERVER, ChangeNo(70_000)));
    assert_eq!(head.placements(seq, read.frames_at), segment.placements);
    let extents: Vec<_> = segment.placements.iter().map(|(extent, _)| (extent.start.0, extent.count.0)).collect();
    assert_eq!(extents, [(10, 8), (18, 1), (19, 1), (20, 4), (127, 1), (128, 1), (1 << 40, 1 << 30)]);
    for (extent, placement) in &segment.placements {
        let Placement::Data(Location { frame, .. }) = *placement else { continue };
        let sealed = bytes.slice(frame.offset as usize..(frame.offset + frame.len) as usize);
        let data = open_frame(&sealer(), &read.salt, frame, extent.count.0 as u32 * 512, &sealed).unwrap();
        match extent.start.0 {
            10 => assert!(data.starts_with(b"ashlar: worked stone, laid in courses. ashlar")),
            19 => assert_eq!(data, noise(512)),
            _ => assert_eq!(data, [7; 512][..]),
        }
    }
    assert_eq!(
        head.info(read.salt, read.frames_at),
        SegmentInfo { salt: SALT, stored_bytes: bytes.len() as u64, blocks: 11, live_blocks: 11 }
    );
    all_harm_is_found(&bytes, |bytes| verify_log_object(&sealer(), block_size(), seq, bytes));
}

fn sample_fence() -> Fence {
    Fence {
        epoch: Epoch(4),
        server: SERVER,
        server_name: "quarry.example".into(),
        time_unix_millis: 1_700_000_000_000,
        journal: JOURNAL,
        window: 8,
        continues_at: Seq(0x1240),
        durability: Durability::Journal,
        covers: ChangeNo(70_000),
        displaces: true,
    }
}

#[test]
fn fence() {
    let seq = Seq(0x1235);
    let bytes = golden("v2/fence", sample_fence().encode(&sealer(), seq, SALT).unwrap().parts.concat());
    let read = decode_log_object(&sealer(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
    assert_eq!(read.object, LogObject::Fence(sample_fence()));
    all_harm_is_found(&bytes, |bytes| verify_log_object(&sealer(), block_size(), seq, bytes));
}

#[test]
fn close() {
    let seq = Seq(0x1240);
    let close =
        Close { epoch: Epoch(4), server: SERVER, covers: ChangeNo(70_001), time_unix_millis: 1_700_000_060_000 };
    let bytes = golden("v2/close", close.encode(&sealer(), seq, SALT).unwrap().parts.concat());
    let read = decode_log_object(&sealer(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
    assert_eq!(read.object, LogObject::Close(close));
    all_harm_is_found(&bytes, |bytes| verify_log_object(&sealer(), block_size(), seq, bytes));
}

/// What two small segments begin with.
#[test]
fn digest() {
    let stretch = Stretch { first: Seq(0x123e), last: Seq(0x123f) };
    let stamp = Stamp { epoch: Epoch(4), server: SERVER, covers: ChangeNo(70_000), compression: Compression::Lz4 };
    let front = |seq| {
        let changes =
            [(Extent::new(1, 2), Payload::Data(Bytes::from(vec![7; 1024]))), (Extent::new(9, 1), Payload::Hole)];
        encode_segment(&sealer(), seq, SALT, block_size(), &stamp, &changes).unwrap().object.front()
    };
    let fronts = [front(Seq(0x123e)), front(Seq(0x123f))];
    let bytes = golden("v2/digest", encode_digest(&sealer(), stretch, SALT, &fronts).unwrap().parts.concat());
    let told = decode_digest(&sealer(), stretch, &bytes).unwrap();
    assert_eq!(told, fronts);
    let read = decode_log_object(&sealer(), stretch.last, &told[1]).unwrap().whole(told[1].len()).unwrap();
    assert_eq!((read.object.epoch(), read.object.covers()), (Epoch(4), ChangeNo(70_000)));
    all_harm_is_found(&bytes, |bytes| decode_digest(&sealer(), stretch, bytes));
}

/// Entries of a page of block 5 · [`PAGE_BLOCKS`] on.
fn page() -> Vec<Entry> {
    let data = |start, count, seq, offset, len, block| {
        let frame = FrameAddr { seq: Seq(seq), offset, len };
        let extent = Extent::new(5 * PAGE_BLOCKS + start, count);
        Entry { extent, placement: Placement::Data(Location { frame, block }), owes: false }
    };
    let mut page: Vec<Entry> = (0..20).map(|i| data(i * 16, 16, 0x1200, 400 + i as u32 * 3000, 3000, 0)).collect();
    page.push(data(400, 3, 0x1234, 100, 2000, 5));
    let zero = Extent::new(5 * PAGE_BLOCKS + 403, 1000);
    page.push(Entry { extent: zero, placement: Placement::Zero, owes: false });
    page.push(data(PAGE_BLOCKS - 1, 1, 0x1234, 90, 10, 0));
    page
}

/// The same of a run that hides what is below it.
fn leaf() -> Vec<Entry> {
    let mut leaf = page();
    leaf[3].owes = true;
    let hole = Extent::new(7 * PAGE_BLOCKS, 1 << 40);
    leaf.push(Entry { extent: hole, placement: Placement::Hole, owes: true });
    leaf
}

fn sample_account() -> Account {
    Account {
        puts: 300,
        gets: 20,
        lists: 3,
        deletes: 4,
        objects_deleted: 2_100,
        bytes_put: 1 << 31,
        bytes_got: 1 << 20,
        bytes_written: 1 << 30,
        bytes_moved: 1 << 28,
    }
}

/// The span of the golden segments: one whole, one hardly live, a void slot.
fn span() -> (Span, Counted) {
    let counter = |stored_bytes, blocks, live_blocks| Counter { stored_bytes, blocks, live_blocks };
    let counters = vec![
        (Seq(0x1200), counter(61_000, 320, 320)),
        (Seq(0x1234), counter(61_000, 2048, 4)),
        (Seq(0x1236), Counter::default()),
    ];
    (Span(4), counters)
}

fn salts() -> Vec<(Seq, [u8; 16])> {
    [0x1200, 0x1234, 0x1236].map(|seq| (Seq(seq), SALT)).to_vec()
}

fn old_deltas() -> Vec<(Seq, Delta)> {
    vec![(Seq(9), Delta::Died(300)), (Seq(0x1201), Delta::Gone(12))]
}

/// What the directory says of two spans of the first group.
fn directory(own: Seq, counters: PageRef, salts: PageRef) -> Vec<SpanEntry> {
    let (span, counted) = span();
    let old = |offset, len| PageRef { checkpoint: Seq(own.0 - 0x240), offset, len };
    let full = Counter { stored_bytes: 8 << 20, blocks: 2048, live_blocks: 0 };
    let dead = Summary::of(&[full; 3]);
    let entry =
        SpanEntry { span: Span(0), is_dead: true, counters: old(5000, 200), salts: old(5200, 100), summary: dead };
    let summary = Summary::of(counted.iter().map(|(_, counter)| counter));
    vec![entry, SpanEntry { span, is_dead: false, counters, salts, summary }]
}

/// A version that holds something in a page, and something in the root.
fn version(page: PageRef) -> KeptVersion {
    let list = |pages, entries| Arc::new(List { pages, entries, ..List::default() });
    KeptVersion {
        seq: Seq(0x1000),
        label: Label {
            name: "monday".into(),
            taken_unix_millis: 1_700_000_000_000,
            keep_until_unix_millis: 0,
            ..Label::default()
        },
        blocks: BlockCount(1 << 30),
        objects: [Seq(0x1000)].into(),
        held: vec![list(vec![page], vec![]), list(vec![], vec![(Seq(0x901), Delta::Died(1))])],
    }
}

/// Two runs: the newest one is in this object, the last one in part in an older one. Of the table, all kinds of pages are in this one;
/// `is_small` has its spans in the root.
fn checkpoint_by(sealer: &Sealer, salt: [u8; 16], is_small: bool) -> EncodedCheckpoint {
    checkpoint_with(sealer, salt, is_small, Vec::new())
}

fn checkpoint_with(
    sealer: &Sealer,
    salt: [u8; 16],
    is_small: bool,
    carriers: Vec<(Seq, Carrier)>,
) -> EncodedCheckpoint {
    checkpoint_of(sealer, salt, is_small, carriers, |_| {})
}

fn checkpoint_of(
    sealer: &Sealer,
    salt: [u8; 16],
    is_small: bool,
    carriers: Vec<(Seq, Carrier)>,
    change: impl FnOnce(&mut Root),
) -> EncodedCheckpoint {
    let seq = Seq(0x1240);
    let mut frames = Frames::with_capacity(2, 4096, Compression::Lz4);
    let len = frames.push(&[&encode_leaf(&leaf()).unwrap()]).unwrap();
    let own = PageRef { checkpoint: seq, offset: 0, len };
    let old = |offset, len| PageRef { checkpoint: Seq(0x1000), offset, len };
    let leaves = [(BlockIndex(0), old(0, 300)), (BlockIndex(77), old(300, 200)), (BlockIndex(1 << 40), old(700, 100))];
    let len = frames.push(&[&encode_index(&leaves).unwrap()]).unwrap();
    let index = PageRef { checkpoint: seq, offset: own.len, len };
    let mut next = own.len + index.len;
    let mut put = |number, page| {
        let len = frames.push(&[&page_format::encode(number, &page).unwrap()]).unwrap();
        next += len;
        PageRef { checkpoint: seq, offset: next - len, len }
    };
    let (span, counted) = span();
    let (counters, salts) = (put(span.0, Page::Counters(counted)), put(span.0, Page::Salts(salts())));
    let entries = directory(seq, counters, salts);
    let group = put(0, Page::Directory(entries.clone()));
    let list = Listed { pages: vec![put(0, Page::Deltas(old_deltas()))] };
    let table = TableRoot {
        objects: [Seq(0x1000), seq].into(),
        spans: if is_small { entries } else { Vec::new() },
        groups: if is_small { Vec::new() } else { vec![(0, group)] },
        lists: vec![list],
        recent: vec![(Seq(0x1234), Delta::Died(2)), (Seq(0x1235), Delta::Gone(0))],
        kept: if is_small {
            Vec::new()
        } else {
            vec![version(put(0, Page::Deltas(vec![(Seq(0x900), Delta::Died(3))])))]
        },
        carriers,
        references: Vec::new(),
    };
    let newest = Run {
        through: seq,
        pages: Arc::new(vec![(BlockIndex(5 * PAGE_BLOCKS), own)]),
        entries: 24,
        owing: 16 + (1 << 40),
        objects: BTreeMap::from([(seq, u64::from(own.len))]),
        ..Run::empty()
    };
    let through = Seq(0x1234);
    let output = Run { part: Part::Output, upto: BlockIndex(4), through, is_last: true, ..Run::empty() };
    let last = Run {
        part: Part::Input,
        from: BlockIndex(4),
        through,
        is_last: true,
        kind: PageKind::Index,
        pages: Arc::new(vec![(BlockIndex(0), index)]),
        entries: 5000,
        objects: BTreeMap::from([(Seq(0x1000), 600), (seq, u64::from(index.len))]),
        ..Run::empty()
    };
    let mut root = Root {
        seq,
        covers: ChangeNo(70_001),
        next_slot: Seq(0x1241),
        fence: Some((Seq(0x1235), sample_fence())),
        table,
        segments: vec![(Seq(0x1239), SegmentInfo { salt: SALT, stored_bytes: 900, blocks: 2, live_blocks: 1 })],
        checkpoints: vec![(Seq(0x1000), CheckpointInfo { salt: *b"an older salt...", frames_at: 900 })],
        runs: vec![newest, output, last],
        account: sample_account(),
        ..Root::default()
    };
    change(&mut root);
    encode_checkpoint(sealer, salt, root, frames).unwrap()
}

#[test]
fn checkpoint_and_pages() {
    let seq = Seq(0x1240);
    let encoded = checkpoint_by(&sealer(), SALT, false);
    let bytes = golden("v4/checkpoint", encoded.object.parts.concat());
    let root = decode_checkpoint(&sealer(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
    assert_eq!(root, encoded.root);
    assert_eq!((root.runs[0].upto, root.fence.clone()), (END, Some((Seq(0x1235), sample_fence()))));
    let info = root.checkpoints[1].1;
    let open = |(first, at): (BlockIndex, PageRef), kind| {
        let from = (info.frames_at + at.offset) as usize;
        let sealed = bytes.slice(from..from + at.len as usize);
        open_page(&sealer(), &info, &PageAt { first, at, kind }, &sealed)
    };
    assert_eq!(open(root.runs[0].pages[0], PageKind::Leaf).unwrap(), MapPage::Leaf(Leaf::new(&leaf())));
    let MapPage::Index(leaves) = open(root.runs[2].pages[0], PageKind::Index).unwrap() else { panic!("no index") };
    assert_eq!(
        leaves.iter().map(|(first, at)| (first.0, at.len)).collect::<Vec<_>>(),
        [(0, 300), (77, 200), (1 << 40, 100)]
    );
    // A page is nothing else, nowhere else.
    let (first, at) = root.runs[0].pages[0];
    assert!(open((first, at), PageKind::Index).is_err());
    assert!(open((BlockIndex(first.0 + 1), at), PageKind::Leaf).is_err());
    assert!(open((first, root.runs[2].pages[0].1), PageKind::Leaf).is_err());
    // Nor is one of the table.
    let table = |kind, number, at| open((BlockIndex(number), at), PageKind::Table(kind));
    let (number, group) = root.table.groups[0];
    let Ok(MapPage::Table(Page::Directory(entries))) = table(space::PageKind::Directory, number, group) else {
        panic!("no directory")
    };
    let entry = entries[1];
    assert_eq!(entries, directory(seq, entry.counters, entry.salts));
    let (of, counted) = span();
    let pages = [
        (space::PageKind::Counters, entry.counters, Page::Counters(counted)),
        (space::PageKind::Salts, entry.salts, Page::Salts(salts())),
    ];
    for (kind, at, page) in pages {
        assert_eq!(table(kind, of.0, at).unwrap(), MapPage::Table(page));
        assert!(table(kind, of.0 + 1, at).is_err(), "of another span");
        assert!(table(space::PageKind::Directory, of.0, at).is_err());
    }
    let deltas = table(space::PageKind::Deltas, 0, root.table.lists[0].pages[0]);
    assert_eq!(deltas.unwrap(), MapPage::Table(Page::Deltas(old_deltas())));
    assert_eq!(root.table.recent, [(Seq(0x1234), Delta::Died(2)), (Seq(0x1235), Delta::Gone(0))]);
    all_harm_is_found(&bytes, |bytes| verify_checkpoint(&sealer(), seq, bytes));
    // A small table stands in the root.
    let encoded = checkpoint_by(&sealer(), SALT, true);
    let bytes = golden("v4/checkpoint-small", encoded.object.parts.concat());
    assert_eq!(verify_checkpoint(&sealer(), seq, &bytes).unwrap(), encoded.root);
    assert_eq!(encoded.root.table.spans, entries);
}

/// Only where a segment carries others there is another version.
#[test]
fn checkpoint_with_carriers() {
    let seq = Seq(0x1240);
    let carrier = |seq: u64, carried: &[u64]| {
        let carried = carried.iter().map(|carried| Seq(*carried)).collect();
        (Seq(seq), Carrier { salt: [seq as u8; 16], carried })
    };
    let carriers = vec![carrier(0x1101, &[0x900, 0x901, 0x905]), carrier(0x1236, &[0xfff])];
    let encoded = checkpoint_with(&sealer(), SALT, true, carriers.clone());
    let bytes = golden("v5/checkpoint-carriers", encoded.object.parts.concat());
    assert_eq!(verify_checkpoint(&sealer(), seq, &bytes).unwrap(), encoded.root);
    assert_eq!(encoded.root.table.carriers, carriers);
    all_harm_is_found(&bytes, |bytes| verify_checkpoint(&sealer(), seq, bytes));
}

/// Only where a volume has clones there is yet another version.
#[test]
fn checkpoint_with_clones() {
    let seq = Seq(0x1240);
    let clone = |uuid, name: &str, after| CloneRef { uuid, name: name.into(), after };
    let encoded = checkpoint_of(&sealer(), SALT, false, Vec::new(), |root| {
        let version = &mut root.table.kept[0];
        version.label.clones = vec![clone(SERVER, "web", 0), clone(VOLUME, "db", 300)];
        version.label = version.label.clone().hidden();
    });
    let bytes = golden("v6/checkpoint-clones", encoded.object.parts.concat());
    assert_eq!(verify_checkpoint(&sealer(), seq, &bytes).unwrap(), encoded.root);
    let label = &encoded.root.table.kept[0].label;
    assert_eq!((label.clones.len(), label.is_hidden()), (2, true));
    all_harm_is_found(&bytes, |bytes| verify_checkpoint(&sealer(), seq, bytes));
}

/// What is in the files of version 3, which had all of the table in the root.
fn is_the_checkpoint_of_version_3(root: &Root) {
    let info = |blocks, live_blocks| SegmentInfo { salt: SALT, stored_bytes: 61_000, blocks, live_blocks };
    assert_eq!((root.seq, root.covers, root.next_slot), (Seq(0x1240), ChangeNo(70_001), Seq(0x1241)));
    assert_eq!(root.segments, [(Seq(0x1200), info(320, 320)), (Seq(0x1234), info(2048, 4))]);
    assert_eq!((root.table.clone(), root.account), (TableRoot::default(), sample_account()));
    let [newest, output, last] = &root.runs[..] else { panic!("three runs") };
    assert_eq!((newest.entries, newest.owing, newest.kind), (24, 16 + (1 << 40), PageKind::Leaf));
    assert_eq!(
        (output.part, output.upto, last.part, last.from),
        (Part::Output, BlockIndex(4), Part::Input, BlockIndex(4))
    );
    assert!(last.kind == PageKind::Index && last.is_last && last.objects.contains_key(&Seq(0x1000)));
}

#[test]
fn a_checkpoint_with_its_table_in_the_root_is_read() {
    let bytes = old("v3/checkpoint");
    let root = verify_checkpoint(&sealer(), Seq(0x1240), &bytes).unwrap();
    is_the_checkpoint_of_version_3(&root);
    let ((first, at), info) = (root.runs[0].pages[0], root.checkpoints[1].1);
    let from = (info.frames_at + at.offset) as usize;
    let page = open_page(
        &sealer(),
        &info,
        &PageAt { first, at, kind: PageKind::Leaf },
        &bytes.slice(from..from + at.len as usize),
    );
    assert_eq!(page.unwrap(), MapPage::Leaf(Leaf::new(&leaf())));
    all_harm_is_found(&bytes, |bytes| verify_checkpoint(&sealer(), Seq(0x1240), bytes));
    let bytes = old("v3/checkpoint-encrypted");
    is_the_checkpoint_of_version_3(&verify_checkpoint(&encrypting(), Seq(0x1240), &bytes).unwrap());
}

/// What is in the files of the formats that had fixed pages.
fn is_the_older_checkpoint(root: &Root) {
    let info = |blocks, live_blocks| SegmentInfo { salt: SALT, stored_bytes: 61_000, blocks, live_blocks };
    assert_eq!((root.seq, root.covers, root.next_slot), (Seq(0x1240), ChangeNo(70_001), Seq(0x1241)));
    assert_eq!(root.segments, [(Seq(0x1200), info(320, 320)), (Seq(0x1234), info(2048, 4))]);
    assert_eq!(root.zeroed, [Extent::new(1000 * PAGE_BLOCKS, (1 << 20) * PAGE_BLOCKS)]);
    assert_eq!(root.fence, Some((Seq(0x1235), sample_fence())));
    let [run] = &root.runs[..] else { panic!("one run") };
    assert!(run.is_last && run.kind == PageKind::Fixed && run.part == Part::Whole);
    let places: Vec<_> = run.pages.iter().map(|(first, at)| (first.0 / PAGE_BLOCKS, at.checkpoint.0)).collect();
    assert_eq!(places, [(2, 0x1000), (5, 0x1240)]);
    assert_eq!(run.objects.keys().copied().collect::<Vec<_>>(), [Seq(0x1000), Seq(0x1240)]);
}

#[test]
fn a_checkpoint_of_fixed_pages_is_read() {
    let bytes = old("v2/checkpoint");
    let root = verify_checkpoint(&sealer(), Seq(0x1240), &bytes).unwrap();
    is_the_older_checkpoint(&root);
    assert_eq!(root.account, sample_account());
    let (first, at) = root.runs[0].pages[1];
    let sealed = bytes.slice(at.offset as usize..(at.offset + at.len) as usize);
    let page_at = PageAt { first, at, kind: PageKind::Fixed };
    let (_, info) = root.checkpoints[1];
    assert_eq!(open_page(&sealer(), &info, &page_at, &sealed).unwrap(), MapPage::Leaf(Leaf::new(&page())));
    all_harm_is_found(&bytes, |bytes| verify_checkpoint(&sealer(), Seq(0x1240), bytes));
}

#[test]
fn meta() {
    let name = VolumeName::new("disk0").unwrap();
    let meta = Meta {
        name: name.clone(),
        uuid: VOLUME,
        size: 10 << 30,
        block_size: BlockSize::default(),
        created_unix_millis: 1_700_000_000_000,
        compression: Compression::Lz4,
        encryption: None,
        deleted: false,
        layout: Layout::ByName,
        fenced_by: FencedBy::CreateOnly,
        schedule: None,
        keep_until_unix_millis: 0,
        parent: None,
        may_have_clones: false,
        copy: None,
        settings: Settings::new(),
        log: None,
    };
    let bytes = golden("v1/meta", meta.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&meta));
    let by_uuid = Meta { layout: Layout::ByUuid, ..meta };
    let bytes = golden("v3/meta", by_uuid.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&by_uuid));
    let bytes = golden("v3/meta-deleted", by_uuid.tombstone().encode(None));
    assert_eq!(Meta::decode(&name, &bytes), Ok(by_uuid.tombstone()));
    let verified = Meta { fenced_by: FencedBy::Verified, ..by_uuid };
    let bytes = golden("v4/meta", verified.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&verified));
    let schedule = Schedule::new(Duration::from_secs(60), "60 x 1m, 24 x 1h, 30 x 1d, 12 x 30d".parse().unwrap());
    let scheduled = Meta { fenced_by: FencedBy::CreateOnly, schedule: Some(schedule.unwrap()), ..verified };
    let bytes = golden("v5/meta", scheduled.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&scheduled));
    let keep_for = scheduled.schedule.clone().unwrap().kept_for(Some(Duration::from_secs(7 * 86_400))).unwrap();
    let kept = Meta { schedule: Some(keep_for), keep_until_unix_millis: 1_800_000_000_000, ..scheduled };
    let bytes = golden("v5/meta-kept", kept.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&kept));
    let only_kept = Meta { schedule: None, ..kept };
    let bytes = golden("v5/meta-only-kept", only_kept.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&only_kept));
    let parent = Parent { volume: VolumeName::new("golden").unwrap(), uuid: SERVER, version: 0x1240, keys: None };
    let clone = Meta { parent: Some(parent), may_have_clones: true, ..only_kept };
    let bytes = golden("v6/meta-clone", clone.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&clone));
    let under_way = CopiedSnapshot { name: "monday".into(), taken_unix_millis: 1_700_000_000_000 };
    let copy = CopyOf { uuid: SERVER, under_way: Some(under_way) };
    let copy = Meta { parent: None, may_have_clones: false, copy: Some(copy), keep_until_unix_millis: 0, ..clone };
    let bytes = golden("v6/meta-copy", copy.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&copy));
    let set = [("volume.durability", "journal"), ("volume.gc.busy_percent", "150"), ("volume.segment_size", "16 MiB")];
    let settings: Settings = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let alone = Meta { copy: None, settings: settings.clone(), ..copy.clone() };
    let bytes = golden("v7/meta", alone.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&alone));
    let copy = Meta { settings, ..copy };
    let bytes = golden("v7/meta-copy", copy.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&copy));
    let near = NearLog { id: SERVER, url: "file:///mnt/near".into() };
    let near = Meta { log: Some(LogPlace { near: Some(near), ..LogPlace::default() }), ..copy.clone() };
    let bytes = golden("v8/meta", near.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&near));
    let left = LogPlace { near: None, from: (1 << 32) + 0x1240, after: Some(0x1240) };
    let left = Meta { log: Some(left), copy: None, settings: Settings::new(), ..copy };
    let bytes = golden("v8/meta-left", left.encode(None));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&left));
    // That harm to it is found is tested where it is made: all of its bytes are plain text.
}

#[test]
fn segment_of_moved_data() {
    let seq = Seq(0x1236);
    let stamp = Stamp { epoch: Epoch(4), server: SERVER, covers: ChangeNo(70_001), compression: Compression::Lz4 };
    let data = [(Extent::new(10, 2), noise(1024).into()), (Extent::new(12, 1), noise(512).into())];
    let segment =
        encode_moved(&sealer(), seq, SALT, block_size(), &stamp, &data, Moved { as_of: Seq(0x1234), cargo: None })
            .unwrap();
    let bytes = golden("v2/segment-moved", segment.object.parts.concat());
    let read = decode_log_object(&sealer(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
    let LogObject::Segment(head) = &read.object else { panic!("not a segment") };
    let moved = Some(Moved { as_of: Seq(0x1234), cargo: None });
    assert_eq!((head.as_of, segment.moved), (Some(Seq(0x1234)), moved));
    assert_eq!(head.placements(seq, read.frames_at), segment.placements);
    assert_eq!(segment.placements.len(), 1, "neighbours share a frame");
    all_harm_is_found(&bytes, |bytes| verify_log_object(&sealer(), block_size(), seq, bytes));
}

#[test]
fn segment_that_carries_others() {
    let seq = Seq(0x1236);
    let stamp = Stamp { epoch: Epoch(4), server: SERVER, covers: ChangeNo(70_001), compression: Compression::Lz4 };
    let data = [(Extent::new(10, 2), noise(1024).into()), (Extent::new(12, 1), noise(512).into())];
    let [victims, versions] =
        [&[0x900, 0x901, 0x1101][..], &[0x1000]].map(|seqs| seqs.iter().map(|seq| Seq(*seq)).collect());
    let cargo = Cargo { victims, versions, as_of: Seq(0x1234) };
    let moved = Moved { as_of: Seq(0x1234), cargo: Some(cargo.clone()) };
    let segment = encode_moved(&sealer(), seq, SALT, block_size(), &stamp, &data, moved).unwrap();
    let bytes = golden("v5/segment-carrier", segment.object.parts.concat());
    let read = decode_log_object(&sealer(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
    let LogObject::Segment(head) = &read.object else { panic!("not a segment") };
    assert_eq!(head.cargo.as_deref(), Some(&cargo));
    assert_eq!(head.placements(seq, read.frames_at), segment.placements);
    all_harm_is_found(&bytes, |bytes| verify_log_object(&sealer(), block_size(), seq, bytes));
}

#[test]
fn segment_that_refers_to_others() {
    let seq = Seq(0x1236);
    let stamp = Stamp { epoch: Epoch(4), server: SERVER, covers: ChangeNo(70_001), compression: Compression::Lz4 };
    let changes = [(Extent::new(10, 40), Payload::Data(noise(40 * 512).into())), (Extent::new(60, 2), Payload::Hole)];
    let part = |seq, offset, block, blocks| {
        let frame = FrameAddr { seq: Seq(seq), offset, len: 9000 };
        reference::Part { frame, salt: SALT, block, blocks }
    };
    let referred =
        [Referred { extent: Extent::new(13, 30), parts: vec![part(0x901, 100, 100, 28), part(0x1234, 9100, 0, 2)] }];
    let segment = encode_referring(&sealer(), seq, SALT, block_size(), &stamp, &changes, &referred).unwrap();
    let bytes = golden("v7/segment-referring", segment.object.parts.concat());
    let read = decode_log_object(&sealer(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
    let LogObject::Segment(head) = &read.object else { panic!("not a segment") };
    assert_eq!(*head.refers, [(Seq(0x901), 28), (Seq(0x1234), 2)]);
    assert_eq!(head.placements(seq, read.frames_at), segment.placements);
    let (extent, frame) = head.frames(seq, read.frames_at)[1];
    let sealed = bytes.slice(frame.offset as usize..(frame.offset + frame.len) as usize);
    let Opened::Reference(len, reference) = open_any(&read.key, frame, &sealed).unwrap() else { panic!("data") };
    assert_eq!((extent, len, &reference.parts), (Extent::new(13, 30), 30 * 512, &referred[0].parts));
    assert!(open_frame(&sealer(), &read.salt, frame, len, &sealed).is_err(), "it is no data");
    all_harm_is_found(&bytes, |bytes| verify_log_object(&sealer(), block_size(), seq, bytes));
}

/// Only where a segment refers to others there is yet another version.
#[test]
fn checkpoint_with_references() {
    let seq = Seq(0x1240);
    let references =
        vec![(Seq(0x1236), vec![(Seq(0x901), 28), (Seq(0x1234), 2)]), (Seq(0x123f), vec![(Seq(0x1236), 8)])];
    let encoded = checkpoint_of(&sealer(), SALT, true, Vec::new(), |root| root.table.references = references.clone());
    let bytes = golden("v7/checkpoint-references", encoded.object.parts.concat());
    assert_eq!(verify_checkpoint(&sealer(), seq, &bytes).unwrap(), encoded.root);
    assert_eq!(encoded.root.table.references, references);
    all_harm_is_found(&bytes, |bytes| verify_checkpoint(&sealer(), seq, bytes));
}

/// The salt of a sealed object begins with the generation of its data key.
const SEALED_SALT: [u8; 16] = *b"\x02alt of a golden";

fn keyring() -> Keyring {
    let retired = [(1, Locked::take(&mut [9; 32]))];
    let mut current = *b"thirty-two bytes of a golden key";
    Keyring::new((2, Locked::take(&mut current)), retired, None)
}

fn encrypting() -> Sealer {
    Sealer::new(VOLUME, Some(keyring()))
}

#[test]
fn encrypted_segment_with_zstd() {
    let seq = Seq(0x1234);
    let stamp = Stamp { epoch: Epoch(3), server: SERVER, covers: ChangeNo(70_000), compression: Compression::Zstd(3) };
    let segment = encode_segment(&encrypting(), seq, SEALED_SALT, block_size(), &stamp, &changes()).unwrap();
    let encoded = segment.object.parts.concat();
    // Another release of zstd may find other matches: what it wrote once must be read, and not be found again.
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2/segment-encrypted");
    if std::env::var_os("ASHLAR_BLESS_GOLDEN").is_some() {
        std::fs::write(&path, &encoded).unwrap();
    }
    let stored = Bytes::from(std::fs::read(path).unwrap());
    for bytes in [stored, encoded.into()] {
        let read = decode_log_object(&encrypting(), seq, &bytes).unwrap().whole(bytes.len()).unwrap();
        let LogObject::Segment(head) = &read.object else { panic!("not a segment") };
        assert_eq!((head.epoch, head.server, head.covers), (Epoch(3), SERVER, ChangeNo(70_000)));
        for (extent, frame) in head.frames(seq, read.frames_at) {
            let sealed = bytes.slice(frame.offset as usize..(frame.offset + frame.len) as usize);
            let data = open_frame(&encrypting(), &read.salt, frame, extent.count.0 as u32 * 512, &sealed).unwrap();
            match extent.start.0 {
                10 => assert!(data.starts_with(b"ashlar: worked stone, laid in courses. ashlar")),
                19 => assert_eq!(data, noise(512)),
                _ => assert_eq!(data, [7; 512][..]),
            }
        }
        all_harm_is_found(&bytes, |bytes| verify_log_object(&encrypting(), block_size(), seq, bytes));
        assert!(verify_log_object(&sealer(), block_size(), seq, &bytes).is_err());
    }
}

#[test]
fn encrypted_fence_checkpoint_and_description() {
    let (seq, at) = (Seq(0x1235), Seq(0x1240));
    let fence = sample_fence().encode(&encrypting(), seq, SEALED_SALT).unwrap().parts.concat();
    let fence = golden("v2/fence-encrypted", fence);
    let read = decode_log_object(&encrypting(), seq, &fence).unwrap().whole(fence.len()).unwrap();
    assert_eq!(read.object, LogObject::Fence(sample_fence()));
    all_harm_is_found(&fence, |bytes| verify_log_object(&encrypting(), block_size(), seq, bytes));

    let encoded = checkpoint_by(&encrypting(), SEALED_SALT, false);
    let bytes = golden("v4/checkpoint-encrypted", encoded.object.parts.concat());
    assert_eq!(verify_checkpoint(&encrypting(), at, &bytes).unwrap(), encoded.root);
    all_harm_is_found(&bytes, |bytes| verify_checkpoint(&encrypting(), at, bytes));
    is_the_older_checkpoint(&verify_checkpoint(&encrypting(), at, &old("v2/checkpoint-encrypted")).unwrap());

    let name = VolumeName::new("disk0").unwrap();
    let recovery = RecoveryKey::new(*b"twenty random bytes!");
    let ways = [
        NewSlot::Passphrase("correct horse", Cost { memory_kib: 64, passes: 2, lanes: 1 }),
        NewSlot::KeyFile(&[3; 32]),
        NewSlot::Recovery(&recovery),
    ];
    let mut encryption = Encryption::of(VOLUME, &keyring());
    let slot = |(id, way)| KeySlot::new(id, VOLUME, &keyring(), way, [id; 16], 1_700_000_000_000).unwrap();
    encryption.slots = (1..).zip(&ways).map(slot).collect();
    let meta = Meta {
        name: name.clone(),
        uuid: VOLUME,
        size: 10 << 30,
        block_size: BlockSize::default(),
        created_unix_millis: 1_700_000_000_000,
        compression: Compression::Zstd(3),
        encryption: Some(encryption),
        deleted: false,
        layout: Layout::ByName,
        fenced_by: FencedBy::CreateOnly,
        schedule: None,
        keep_until_unix_millis: 0,
        parent: None,
        may_have_clones: false,
        copy: None,
        settings: Settings::new(),
        log: None,
    };
    let bytes = golden("v2/meta-encrypted", meta.encode(Some(&keyring())));
    let decoded = Meta::decode(&name, &bytes).unwrap();
    decoded.prove(&bytes, &keyring()).unwrap();
    let by_uuid = Meta { layout: Layout::ByUuid, ..decoded.clone() };
    let bytes = golden("v3/meta-encrypted", by_uuid.encode(Some(&keyring())));
    assert_eq!(Meta::decode(&name, &bytes).as_ref(), Ok(&by_uuid));
    by_uuid.prove(&bytes, &keyring()).unwrap();
    let parents = Keyring::new((3, Locked::take(&mut [7; 32])), [(1, Locked::take(&mut [8; 32]))], None);
    let keys = HandedKeys::of((SERVER, &parents), (VOLUME, &keyring()));
    let parent = Parent { volume: VolumeName::new("golden").unwrap(), uuid: SERVER, version: 7, keys: Some(keys) };
    let clone = Meta { parent: Some(parent), ..by_uuid };
    let bytes = golden("v6/meta-clone-encrypted", clone.encode(Some(&keyring())));
    let read = Meta::decode(&name, &bytes).unwrap();
    let opened = read.parent.unwrap().keys.unwrap().open(SERVER, (VOLUME, &keyring())).unwrap();
    assert_eq!((opened.current().0, opened.key(1).unwrap().bytes()), (3, &[8; 32]));
    let encryption = decoded.encryption.unwrap();
    let secrets = [
        Secret::passphrase(b"correct horse".to_vec().into()).unwrap(),
        Secret::key_file(vec![3; 32].into()).unwrap(),
        Secret::passphrase(recovery.to_text().as_bytes().to_vec().into()).unwrap(),
    ];
    for (slot, secret) in encryption.slots.iter().zip(&secrets) {
        let current = slot.open(VOLUME, 2, secret).unwrap().unwrap();
        let again = encryption.keyring(VOLUME, current, None).unwrap();
        assert_eq!(again.key(1).unwrap().bytes(), &[9; 32]);
    }
}

/// A file that no encoder yields any more.
fn old(name: &str) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    Bytes::from(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// What an older program wrote means what it always did.
#[test]
fn version_1_is_read() {
    for (name, seq) in [("segment", 0x1234), ("fence", 0x1235), ("close", 0x1240)] {
        let [v1, v2] = ["v1", "v2"].map(|version| {
            let bytes = old(&format!("{version}/{name}"));
            verify_log_object(&sealer(), block_size(), Seq(seq), &bytes).unwrap()
        });
        assert_eq!(v1, v2, "{name}");
    }
    let v1 = verify_checkpoint(&sealer(), Seq(0x1240), &old("v1/checkpoint")).unwrap();
    assert_eq!(v1.account, Account::default());
    is_the_older_checkpoint(&v1);
}
