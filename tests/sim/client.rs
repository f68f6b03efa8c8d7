//! A client of one volume: one request after the other, in places where others write too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ashlar::device::{Device, DeviceError};
use ashlar::outside::Random;
use ashlar::store::faults::Faults;
use ashlar::units::BlockSize;
use ashlar::volume::Volume;
use bytes::Bytes;
use tokio::time::timeout;

use crate::places::{BLOCK, Places};
use crate::record::{Asked, Floors, Record};

/// Whatever is asked of a server that is there is done within this time, or somebody waits for somebody who waits.
pub const STUCK: Duration = Duration::from_secs(86_400);

/// How often clients do what; some of them never, for a whole life.
#[derive(Clone, Copy)]
pub struct Weights {
    write: u64,
    unaligned: u64,
    trim: u64,
    zero: u64,
    stretch: u64,
    flush: u64,
    read: u64,
    pause: u64,
}

impl Weights {
    pub fn draw(random: &Random) -> Weights {
        let one = |most: u64| if random.below(3) == 0 { 0 } else { random.below(most) };
        Weights {
            write: 1 + random.below(20),
            unaligned: one(16),
            trim: one(6),
            zero: one(4),
            stretch: one(2),
            flush: one(6),
            read: one(8),
            pause: one(10),
        }
    }

    /// Of clients that do as much, and flush, and take their time.
    pub fn slowly(self) -> Weights {
        let Weights { write, unaligned, flush, pause, .. } = self;
        Weights { flush: flush + 1, pause: pause + (write + unaligned) / 2 + 1, ..self }
    }

    /// Of clients that write as fast as they can.
    pub fn load(random: &Random) -> Weights {
        Weights { flush: 0, read: random.below(2), pause: 0, stretch: 0, write: 20, ..Weights::draw(random) }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Client {
    pub volume: Arc<Volume>,
    pub record: Record,
    pub floors: Floors,
    pub places: Arc<Places>,
    pub faults: Faults,
    /// Another server may have taken the volume: what is read may be gone.
    pub may_be_displaced: Arc<AtomicBool>,
    /// Requests that ended, of all clients.
    pub done: Arc<AtomicU64>,
}

impl Client {
    /// One random request after the other; ends early if the volume does.
    pub async fn run(self, requests: u64, weights: Weights, random: Random) {
        for _ in 0..requests {
            match timeout(STUCK, self.step(weights, &random)).await {
                Ok(Some(())) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
                Ok(None) => return, // the volume has ended
                // Nothing comes back from a server without power.
                Err(_) if self.faults.is_isolated() => return,
                Err(_) => panic!("a request has waited for a day: {:?}", self.volume.status()),
            }
        }
    }

    /// Writes a block into every cluster: the whole map is in use.
    pub async fn fill(&self, random: &Random) -> Option<()> {
        for cluster in &self.places.clusters {
            self.write(cluster.start, noise(random, BLOCK as usize), false).await?;
        }
        Some(())
    }

    /// One request; nothing if the volume has ended.
    async fn step(&self, weights: Weights, random: &Random) -> Option<()> {
        let (start, end) = self.somewhere(random);
        let fua = random.below(8) == 0;
        match roll(weights, random) {
            0 => self.write(start, self.data(random, (end - start) as usize), fua).await,
            1 => {
                let (start, end) = uneven(start, end, random);
                self.write(start, self.data(random, (end - start) as usize), fua).await
            }
            2 => {
                let (start, end) = if random.below(2) == 0 { (start, end) } else { uneven(start, end, random) };
                self.trim(start, end, fua).await
            }
            3 => {
                let (start, end) = if random.below(2) == 0 { (start, end) } else { uneven(start, end, random) };
                self.zero(start, end, random.below(2) == 0, fua).await
            }
            4 => {
                let (start, end) = self.stretch(random);
                match random.below(3) {
                    0 => self.zero(start, end, random.below(2) == 0, fua).await,
                    _ => self.trim(start, end, fua).await,
                }
            }
            5 => {
                let before = self.floors.now().acknowledged;
                self.volume.flush().await.ok()?;
                self.floors.flush(before);
                Some(())
            }
            6 => {
                let (start, end) = uneven(start, end, random);
                let seen = self.floors.now().acknowledged;
                match self.volume.read(start, (end - start) as u32).await {
                    Ok(pieces) => self.record.judge_read(start, &pieces.concat(), seen),
                    Err(error) => self.refused(error)?,
                }
                Some(())
            }
            _ => {
                tokio::time::sleep(Duration::from_millis(random.below(300))).await;
                Some(())
            }
        }
    }

    /// What is written; where equal data is stored once, mostly a part of one of a few texts.
    fn data(&self, random: &Random, len: usize) -> Bytes {
        if self.volume.status().dedup.is_none() || random.below(4) == 0 {
            return data(random, len);
        }
        let (text, first) = (random.below(4), random.below(40));
        let block = |no: usize| {
            let mut block = vec![0; BLOCK as usize];
            let name = (text, first + no as u64);
            blake3::Hasher::new().update(format!("{name:?}").as_bytes()).finalize_xof().fill(&mut block);
            block
        };
        let all: Vec<u8> = (0..len.div_ceil(BLOCK as usize)).flat_map(block).collect();
        Bytes::from(all).slice(..len)
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Option<()> {
        let asked = Asked::bytes(offset, data.clone());
        self.acknowledged(&asked, asked.by(self.volume.write(offset, data, fua)).await, fua)
    }

    /// Whole blocks inside the range, as a client must expect of a TRIM.
    async fn trim(&self, start: u64, end: u64, fua: bool) -> Option<()> {
        let inside = BlockSize::new(BLOCK).unwrap().inside(start, end - start);
        let asked = Asked::zeroes(inside.start.0 * BLOCK..inside.end().0 * BLOCK);
        let done = asked.by(self.volume.trim(start, end - start, fua)).await;
        if inside.is_empty() { done.ok() } else { self.acknowledged(&asked, done, fua) }
    }

    async fn zero(&self, start: u64, end: u64, no_hole: bool, fua: bool) -> Option<()> {
        let asked = Asked::zeroes(start..end);
        self.acknowledged(&asked, asked.by(self.volume.write_zeroes(start, end - start, no_hole, fua)).await, fua)
    }

    /// A refused change promises nothing.
    fn acknowledged(&self, asked: &Asked, done: Result<(), DeviceError>, fua: bool) -> Option<()> {
        match done {
            Ok(()) => self.floors.acknowledge(asked.acknowledged(), fua),
            Err(error) => self.refused(error)?,
        }
        Some(())
    }

    /// What could not be read because of a fault is no end of the volume. Nothing else may fail but a volume that is being
    /// closed, or that another server took.
    fn refused(&self, error: DeviceError) -> Option<()> {
        match error {
            DeviceError::ShuttingDown => None,
            DeviceError::Io(why) | DeviceError::Unreadable { why, .. } if why.contains("by a fault") => Some(()),
            _ if self.may_be_displaced.load(Ordering::Relaxed) => None,
            other => panic!("{other}: {:?}", self.volume.status()),
        }
    }

    /// Whole blocks of a cluster.
    fn somewhere(&self, random: &Random) -> (u64, u64) {
        let cluster = &self.places.clusters[random.below(self.places.clusters.len() as u64) as usize];
        let blocks = (cluster.end - cluster.start) / BLOCK;
        let first = random.below(blocks);
        let count = 1 + random.below((blocks - first).min(24));
        (cluster.start + first * BLOCK, cluster.start + (first + count) * BLOCK)
    }

    /// Many pages, or all.
    fn stretch(&self, random: &Random) -> (u64, u64) {
        if !self.places.are_wide() || random.below(3) == 0 {
            return (0, self.places.size);
        }
        let clusters = self.places.clusters.len() as u64;
        let first = random.below(clusters / 2);
        let last = first + 1 + random.below(clusters - first - 1);
        uneven(self.places.clusters[first as usize].start, self.places.clusters[last as usize].end, random)
    }
}

/// Which of the weights was hit.
fn roll(weights: Weights, random: &Random) -> usize {
    let Weights { write, unaligned, trim, zero, stretch, flush, read, pause } = weights;
    let all = [write, unaligned, trim, zero, stretch, flush, read, pause];
    let mut roll = random.below(all.iter().sum());
    let hit = all.iter().position(|weight| {
        let hit = roll < *weight;
        roll = roll.saturating_sub(*weight);
        hit
    });
    hit.unwrap_or(0)
}

/// A part of the range that begins and ends anywhere; every second time a few bytes of one block.
fn uneven(start: u64, end: u64, random: &Random) -> (u64, u64) {
    let from = start + random.below((end - start).min(BLOCK));
    let most = if random.below(2) == 0 { 64.min(end - from) } else { end - from };
    (from, from + 1 + random.below(most))
}

/// Bytes that compress, or not, or are zero here and there.
fn data(random: &Random, len: usize) -> Bytes {
    let seed: [u8; 32] = random.bytes();
    let kind = random.below(3);
    let mut data = vec![0; len];
    for (i, chunk) in data.chunks_mut(BLOCK as usize / 2).enumerate() {
        match kind {
            0 => chunk.fill(seed[i % 32]),
            1 if seed[i % 32].is_multiple_of(4) => {}
            _ => blake3::Hasher::new_keyed(&seed).update(&i.to_le_bytes()).finalize_xof().fill(chunk),
        }
    }
    data.into()
}

fn noise(random: &Random, len: usize) -> Bytes {
    let mut data = vec![0; len];
    blake3::Hasher::new_keyed(&random.bytes()).finalize_xof().fill(&mut data);
    data.into()
}
