//! What garbage collection holds does not depend on how well data is compressed: it is bounded by `gc.batch` once it is
//! decompressed, as it is in memory.

use std::sync::Arc;
use std::time::Duration;

use ashlar::device::Device;
use ashlar::outside::Random;
use ashlar::volume::{Options, Volume};

use crate::counting::Count;
use crate::replies::open;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 128 * MIB;
const BLOCK: u64 = 4096;

fn options() -> Options {
    let mut options = Options { segment_size: MIB, dirty_bytes: 4 * MIB, upload_window: 2, ..Options::default() };
    options.gc.batch = 4 * MIB;
    options
}

async fn write(volume: &Volume, block: u64) {
    volume.write(block * BLOCK, vec![0x5d; BLOCK as usize].into(), false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn collecting_data_that_compresses_well_holds_no_more_than_a_round() {
    let (mut count, folder) = (Count::begin(), tempfile::tempdir().unwrap());
    let volume: Arc<Volume> = open(SIZE, options(), folder.path()).await;
    for block in 0..SIZE / BLOCK {
        write(&volume, block).await;
    }
    volume.flush().await.unwrap();
    let random = Random::seeded(1);
    count.again();
    // Half of each segment dies.
    for _ in 0..SIZE / BLOCK {
        write(&volume, random.below(SIZE / BLOCK)).await;
    }
    volume.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let options = options();
    // Encoded and under way, besides: two segments of moved data or of the client's, of up to three times the size.
    let round = 3 * options.gc.batch + 4 * options.segment_size + 2 * 3 * options.segment_size;
    let allowed = options.dirty_bytes + round + 8 * MIB;
    let written = volume.status().gc.segments_written;
    println!("{} MiB, {written} segments of moved data", count.most() / MIB);
    assert!(written > 10, "{written}");
    assert!(count.most() <= allowed, "{} bytes where {allowed} are allowed", count.most());
}
