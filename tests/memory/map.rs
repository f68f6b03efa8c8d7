//! Pages of the map take what is counted for them, and those that changed take no more than the map may have, however long a
//! checkpoint takes.

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::Device;
use ashlar::map::{Entry, Leaf, Placement, Table};
use ashlar::outside::Random;
use ashlar::store::memory::MemoryStore;
use ashlar::units::{Extent, FrameAddr, Location, Seq};
use ashlar::volume::Options;

use crate::counting::Count;
use crate::hanging::Hanging;
use crate::replies::open_over;

fn entry(block: u64) -> Entry {
    let frame = FrameAddr { seq: Seq(block), offset: block as u32, len: 4116 };
    let extent = Extent::new(block, 1);
    Entry { extent, placement: Placement::Data(Location { frame, block: 0 }), owes: false }
}

#[test]
fn a_layer_takes_no_more_than_what_is_counted_for_it() {
    const BLOCKS: u64 = 16 << 10;
    let mut count = Count::begin();
    let random = Random::seeded(1);
    // The orders in which trees of entries end up more or less full.
    for name in ["in sequence", "backwards", "at random"] {
        let order = |i| match name {
            "in sequence" => i,
            "backwards" => BLOCKS - 1 - i,
            _ => random.below(BLOCKS),
        };
        count.again();
        let mut table = Table::default();
        for i in 0..BLOCKS {
            let entry = entry(order(i));
            table.take(entry.extent);
            table.insert(entry);
        }
        let (takes, counted) = (count.now(), table.memory() as u64);
        println!("{name}: {takes} bytes, {counted} counted, {} entries", table.len());
        assert!(takes <= counted && counted < 2 * takes, "{name}: {takes} bytes are taken, {counted} counted");
        let entries: Vec<_> = table.iter().collect();
        count.again();
        let leaf = Leaf::new(&entries);
        let (takes, counted) = (count.now(), leaf.memory() as u64);
        println!("as a leaf: {takes} bytes, {counted} counted");
        assert!(
            takes <= counted && counted < takes + takes / 8,
            "as a leaf: {takes} bytes are taken, {counted} counted"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_checkpoint_does_not_end_commits_wait_once_the_map_takes_all_that_it_may() {
    const BLOCK: u64 = 4096;
    const PAGES: u64 = 16;
    let map_memory = 128 << 10;
    let options = Options { map_memory, segment_size: 16 * BLOCK, ..Options::default() };
    let folder = tempfile::tempdir().unwrap();
    let store = Hanging::new(Arc::new(MemoryStore::default()), "/checkpoints/");
    let blocks = PAGES * ashlar::map::PAGE_BLOCKS;
    let volume = open_over(store.clone(), blocks * BLOCK, options, folder.path()).await;
    let random = Random::seeded(2);
    store.hang();
    let mut most = 0;
    for i in 0..6000u64 {
        let data = vec![i as u8 | 1; BLOCK as usize];
        volume.write(random.below(blocks) * BLOCK, data.into(), false).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        most = most.max(volume.status().map_memory);
    }
    let dirty = volume.status().dirty_bytes;
    println!("{most} bytes of map where {map_memory} may be, {dirty} bytes wait");
    assert!(dirty > 1000 * BLOCK, "commits wait: {dirty}");
    // One commit changes up to all of the pages here, of which the checkpoint holds the older form.
    assert!(most > map_memory / 2 && most < map_memory * 3 / 2, "{most}");
    store.go_on();
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(volume.status().dirty_bytes, 0);
    for _ in 0..PAGES {
        volume.read(random.below(blocks) * BLOCK, BLOCK as u32).await.unwrap();
    }
    assert!(volume.status().map_memory <= map_memory, "{}", volume.status().map_memory);
}
