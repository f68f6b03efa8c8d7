//! Pages of the map take what is counted for them, and those that changed take no more than the map may have, however long a
//! checkpoint takes.

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::Device;
use ashlar::map::{Content, Page};
use ashlar::outside::Random;
use ashlar::store::memory::MemoryStore;
use ashlar::units::{BlockSize, Extent, FrameAddr, Location, Seq};
use ashlar::volume::{self, Options};

use crate::counting::Count;
use crate::hanging::Hanging;
use crate::replies::{open_created, open_over};

fn content(block: u64) -> Content {
    Content::Data(Location { frame: FrameAddr { seq: Seq(block), offset: block as u32, len: 4116 }, block: 0 })
}

#[test]
fn a_page_takes_no_more_than_what_is_counted_for_it() {
    const BLOCKS: u64 = ashlar::map::PAGE_BLOCKS;
    let mut count = Count::begin();
    let random = Random::seeded(1);
    // The orders in which trees of extents end up more or less full.
    for name in ["in sequence", "backwards", "at random"] {
        let order = |i| match name {
            "in sequence" => i,
            "backwards" => BLOCKS - 1 - i,
            _ => random.below(BLOCKS),
        };
        count.again();
        let mut page = Page::default();
        for i in 0..BLOCKS {
            let block = order(i);
            page.set(Extent::new(block, 1), Some(content(block)), |_| {});
        }
        let (takes, counted) = (count.now(), page.memory() as u64);
        println!("{name}: {takes} bytes, {counted} counted, {} extents", page.iter().count());
        assert!(takes <= counted && counted < 2 * takes, "{name}: {takes} bytes are taken, {counted} counted");
        count.again();
        let mapped: Vec<_> = page.iter().collect();
        let list = count.now();
        let loaded = Page::from_mapped(&mapped);
        let (takes, counted) = (count.now() - list, loaded.memory() as u64);
        assert!(takes <= counted && counted < 2 * takes, "loaded: {takes} bytes are taken, {counted} counted");
    }
    for extents in 1..20 {
        count.again();
        let mut page = Page::default();
        (0..extents).for_each(|i| page.set(Extent::new(i * 2, 1), Some(content(i)), |_| {}));
        let (takes, counted) = (count.now(), page.memory() as u64);
        assert!(takes <= counted, "{extents} extents: {takes} bytes are taken, {counted} counted");
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

/// Every write meets another page, and all pages together take many times what the map may have.
#[tokio::test(start_paused = true)]
async fn one_commit_brings_in_no_more_of_a_dense_map_than_it_may() {
    const BLOCK: u64 = 512;
    const PAGES: u64 = 32;
    const EXTENTS: u64 = 1500;
    let (map_memory, total_map_memory) = (512 << 10, 1 << 20);
    let options = Options { map_memory, total_map_memory, segment_size: 256 << 10, ..Options::default() };
    let folder = tempfile::tempdir().unwrap();
    let blocks = PAGES * ashlar::map::PAGE_BLOCKS;
    let created = volume::CreateOptions {
        size: blocks * BLOCK,
        block_size: BlockSize::new(BLOCK).unwrap(),
        ..Default::default()
    };
    let store = Hanging::new(Arc::new(MemoryStore::default()), "/checkpoints/");
    let volume = open_created(store.clone(), created, options, folder.path()).await;
    let write = async |block: u64| {
        volume.write(block * BLOCK, vec![block as u8 | 1; BLOCK as usize].into(), false).await.unwrap();
    };
    for page in 0..PAGES {
        for i in 0..EXTENTS {
            write(page * ashlar::map::PAGE_BLOCKS + i * 10).await;
        }
    }
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    // What a commit brings in stays until the checkpoint that it calls for ends.
    store.hang();
    let (random, mut most) = (Random::seeded(3), 0);
    for i in 0..700u64 {
        write(i % PAGES * ashlar::map::PAGE_BLOCKS + random.below(EXTENTS) * 10).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        most = most.max(volume.status().map_memory);
    }
    store.go_on();
    volume.flush().await.unwrap();
    let all = PAGES * EXTENTS * 96;
    println!("{most} bytes of a map of {all} at most, where {total_map_memory} may be");
    assert!(most > total_map_memory / 2 && most < map_memory + total_map_memory + all / PAGES, "{most} of {all}");
}
