//! One life of one server: an open volume and the clients that use it.

use std::sync::Arc;
use std::time::Duration;

use ashlar::change::Change;
use ashlar::device::Device;
use ashlar::disk::crash::CrashDisk;
use ashlar::outside::Random;
use ashlar::store::faults::Faults;
use ashlar::units::{BlockCount, BlockIndex, ChangeNo, Extent};
use ashlar::volume::Volume;
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::oracle::{BLOCK, CLUSTER_BLOCKS, CLUSTERS, Floors, History, VOLUME_BLOCKS, watched};

/// See the module.
pub struct Life {
    pub volume: Arc<Volume>,
    pub disk: CrashDisk,
    pub faults: Faults,
    pub history: History,
    pub floors: Floors,
    pub clients: JoinSet<()>,
}

/// How often clients do what; some of them never, for a whole life.
#[derive(Clone, Copy)]
pub struct Weights {
    write: u64,
    unaligned: u64,
    trim: u64,
    zero: u64,
    whole: u64,
    flush: u64,
    read: u64,
    pause: u64,
}

impl Weights {
    pub fn draw(random: &Random) -> Weights {
        let one = |most: u64| if random.below(3) == 0 { 0 } else { random.below(most) };
        Weights {
            write: 1 + random.below(20),
            unaligned: one(8),
            trim: one(6),
            zero: one(4),
            whole: one(2),
            flush: one(6),
            read: one(8),
            pause: one(10),
        }
    }
}

impl Life {
    /// Sets clients to work: each one thing after the other, all at once.
    pub fn start_clients(&mut self, clients: u64, operations: u64, weights: Weights, random: &Random) {
        for client in 0..clients {
            let (volume, history, floors) = (self.volume.clone(), self.history.clone(), self.floors.clone());
            let random = Random::seeded(random.below(u64::MAX) ^ client);
            self.clients.spawn(async move {
                for _ in 0..operations {
                    if step(&volume, &history, &floors, weights, &random).await.is_none() {
                        return; // the volume has ended
                    }
                }
            });
        }
    }

    /// The watched blocks as the volume has them.
    pub async fn image(&self) -> Vec<Option<Bytes>> {
        let mut image = Vec::new();
        for block in watched() {
            let pieces = read_until_it_works(&self.volume, block * BLOCK as u64, BLOCK as u32).await;
            let data = Bytes::from(pieces.concat());
            image.push(data.iter().any(|byte| *byte != 0).then_some(data));
        }
        image
    }

    /// Nothing reaches the store or the disk any more; the clients and the volume are gone.
    pub async fn end(mut self) -> (CrashDisk, History, Floors, ChangeNo) {
        self.faults.isolate();
        let committed = ChangeNo(self.volume.status().committed);
        self.clients.shutdown().await;
        drop(self.volume);
        (self.disk, self.history, self.floors, committed)
    }
}

/// The store may fail a read for longer than a request is retried: a client gets an error and asks again.
async fn read_until_it_works(volume: &Volume, offset: u64, len: u32) -> Vec<Bytes> {
    for _ in 0..10_000 {
        match volume.read(offset, len).await {
            Ok(pieces) => return pieces,
            Err(error) => assert!(error.to_string().contains("by a fault"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("a read never works");
}

/// One operation of a client; nothing if the volume has ended.
async fn step(volume: &Volume, history: &History, floors: &Floors, weights: Weights, random: &Random) -> Option<()> {
    let all = [
        weights.write,
        weights.unaligned,
        weights.trim,
        weights.zero,
        weights.whole,
        weights.flush,
        weights.read,
        weights.pause,
    ];
    let mut roll = random.below(all.iter().sum());
    let chosen = all.iter().position(|weight| {
        let hit = roll < *weight;
        roll = roll.saturating_sub(*weight);
        hit
    });
    let extent = extent(random);
    let (offset, len) = (extent.start.0 * BLOCK as u64, extent.count.0 * BLOCK as u64);
    let fua = random.below(8) == 0;
    let since = history.len();
    let acknowledged = |change: Change| {
        // A write that was refused by a volume that has ended promised nothing.
        let no = history.first_like(since, &change).expect("an acknowledged change was accepted");
        floors.acknowledge(no, fua);
    };
    match chosen.unwrap_or(0) {
        0 => {
            let data = data(random, len as usize);
            volume.write(offset, data.clone(), fua).await.ok()?;
            acknowledged(Change::Write(extent, data));
        }
        1 => {
            let cut = random.below(BLOCK as u64 - 1) + 1;
            let data = data(random, (len - cut) as usize);
            volume.write(offset + cut, data.clone(), fua).await.ok()?;
            acknowledged(Change::Write(extent, data));
        }
        2 => {
            volume.trim(offset, len, fua).await.ok()?;
            acknowledged(Change::Hole(extent));
        }
        3 => {
            volume.write_zeroes(offset, len, true, fua).await.ok()?;
            acknowledged(Change::Zero(extent));
        }
        4 => {
            let whole = Extent { start: BlockIndex(0), count: BlockCount(VOLUME_BLOCKS) };
            let bytes = VOLUME_BLOCKS * BLOCK as u64;
            if random.below(2) == 0 {
                volume.trim(0, bytes, fua).await.ok()?;
                acknowledged(Change::Hole(whole));
            } else {
                volume.write_zeroes(0, bytes, true, fua).await.ok()?;
                acknowledged(Change::Zero(whole));
            }
        }
        5 => {
            let before = floors.now().acknowledged;
            volume.flush().await.ok()?;
            floors.flush(before);
        }
        6 => drop(volume.read(offset, len as u32).await),
        _ => tokio::time::sleep(Duration::from_millis(random.below(300))).await,
    }
    Some(())
}

/// Somewhere in a cluster.
fn extent(random: &Random) -> Extent {
    let start = random.below(CLUSTER_BLOCKS);
    let count = 1 + random.below((CLUSTER_BLOCKS - start).min(24));
    Extent::new(CLUSTERS[random.below(CLUSTERS.len() as u64) as usize] + start, count)
}

/// Bytes that compress, or not, or are zero here and there.
fn data(random: &Random, len: usize) -> Bytes {
    let seed: [u8; 32] = random.bytes();
    let kind = random.below(3);
    let mut data = vec![0; len];
    for (i, chunk) in data.chunks_mut(BLOCK / 2).enumerate() {
        match kind {
            0 => chunk.fill(seed[i % 32]),
            1 if seed[i % 32].is_multiple_of(4) => {}
            _ => blake3::Hasher::new_keyed(&seed).update(&i.to_le_bytes()).finalize_xof().fill(chunk),
        }
    }
    data.into()
}
