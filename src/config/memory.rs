//! `memory`: one number for the whole server, and the bounds that follow from it. What is set by itself stays as it is set, and is taken off
//! what is divided; all else has its part of the rest ([`crate::memory::division`]). `docs/memory.md` says what each part is.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Config;
use crate::human::{BadBytes, exact_bytes, parse_bytes};
use crate::memory::division::{self, Share};
use crate::memory::{Machine, balance};

/// How much memory a server may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// As much as the machine suggests.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(u64),
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Memory::Auto => serializer.serialize_str("auto"),
            Memory::Bytes(bytes) => serializer.collect_str(&exact_bytes(*bytes)),
        }
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Memory;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, or a size such as 512MiB or 4GiB")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Memory, E> {
                match text.trim() {
                    "auto" => Ok(Memory::Auto),
                    text => parse_bytes(text)
                        .map(Memory::Bytes)
                        .map_err(|bad: BadBytes| E::custom(format!("{bad}, or auto"))),
                }
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Memory, E> {
                Ok(Memory::Bytes(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Memory, E> {
                u64::try_from(bytes)
                    .map(Memory::Bytes)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

const MIB: u64 = 1 << 20;

/// Of the machine's memory, what a server takes that is told nothing, and at most.
const MACHINE_PART: u64 = 4;
const USUAL_MOST: u64 = 4 << 30;
/// The same where it cannot be found out how much there is.
const USUAL_UNKNOWN: u64 = 1 << 30;

/// What is held, and by which key; in the order of [`Division::parts`].
const KINDS: [(&str, &str); 8] = [
    ("requests", "nbd.total_bytes_in_flight"),
    ("dirty bytes", "volume.total_dirty_bytes"),
    ("uploads", "volume.total_upload_bytes"),
    ("collection", "volume.gc.batch"),
    ("map", "volume.total_map_memory"),
    ("buffers", "store.idle_buffers"),
    ("cache", "cache.memory"),
    ("all else", ""),
];
const REQUESTS: usize = 0;
const DIRTY: usize = 1;
const UPLOADS: usize = 2;
const COLLECTION: usize = 3;
const MAP: usize = 4;
const BUFFERS: usize = 5;
const CACHE: usize = 6;
const ELSE: usize = 7;

/// What each has of 64 parts.
const WEIGHTS: [u64; 8] = [8, 16, 8, 5, 10, 1, 4, 12];
/// More than this is of no use to one volume; and of all together, but for the map and the cache.
const DIRTY_OF_ONE: u64 = 256 * MIB;
const IN_FLIGHT_OF_ONE: u64 = 64 * MIB;
const MOST: [u64; 8] = [512 * MIB, 1024 * MIB, 512 * MIB, 0, u64::MAX, 64 * MIB, u64::MAX, u64::MAX];
/// Segments that fit at least into what may be dirty, and into what may be under way to the store.
const SEGMENTS_LEAST: u64 = 4;
/// The largest batch of collection, and how many rounds of it there are where there is room for two of some size.
const BATCH_MOST: u64 = 36 * MIB;
const ROUNDS: u32 = 2;
const MAP_LEAST: u64 = 16 * MIB;
const CACHE_LEAST: u64 = 8 * MIB;
/// The program, its tasks, what merges of the map hold, and holes that the allocator has.
const ELSE_LEAST: u64 = 40 * MIB;
/// The map may have this part of all memory where nobody else needs it.
const MAP_PART: u64 = 2;
/// What the cache is left with when everybody else takes more than was thought.
const CACHE_LAST_PART: u64 = 64;
/// With a disk tier: what waits to be written to it, and the part of its size that its index takes at most.
const DISK_WAITING: u64 = 64 * MIB;
const DISK_INDEX_PART: u64 = 100;

/// How memory is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// All of it, in bytes.
    pub memory: u64,
    /// Why it is so much.
    pub why: String,
    /// What each kind has, for people.
    pub parts: [u64; 8],
    /// What was set by itself.
    set: [bool; 8],
    /// The keys whose values follow from it.
    derived: Vec<&'static str>,
    least: u64,
    map: RangeInclusive<u64>,
    cache: RangeInclusive<u64>,
}

impl Division {
    /// Divides, and puts into `config` what follows from that; `is_set` says whether a key was set. What is not enough is divided as if it
    /// were: see [`Division::fault`].
    pub(super) fn of(config: &mut Config, is_set: impl Fn(&str) -> bool, machine: Machine) -> Division {
        let shares = shares(config, &is_set);
        let least = division::least(&shares);
        let (memory, why) = match config.memory {
            Memory::Bytes(bytes) => (bytes, String::new()),
            Memory::Auto => usual(machine, &shares),
        };
        let parts = division::divide(memory.max(least), &shares);
        let parts = std::array::from_fn(|at| match shares[at].set {
            Some(set) => set,
            None => (parts[at] / MIB * MIB).max(shares[at].least),
        });
        // What the others have no use for.
        let mut parts: [u64; 8] = parts;
        let set = shares.map(|share| share.set.is_some());
        let given: u64 = parts.iter().fold(0, |sum, part| sum.saturating_add(*part));
        if !set[CACHE] {
            parts[CACHE] += memory.saturating_sub(given) / MIB * MIB;
        }
        let elastic =
            |at: usize, least: u64, most: u64| if set[at] { parts[at]..=parts[at] } else { least..=most.max(least) };
        let map = elastic(MAP, parts[MAP], memory / MAP_PART);
        let cache = elastic(CACHE, parts[CACHE].min((memory / CACHE_LAST_PART).max(CACHE_LEAST)), memory);
        let mut division = Division { memory, why, parts, set, derived: Vec::new(), least, map, cache };
        division.put_into(config, &is_set);
        division
    }

    fn put_into(&mut self, config: &mut Config, is_set: &dyn Fn(&str) -> bool) {
        let parts = self.parts;
        let segment = config.volume.segment_size;
        let mut put = |key: &'static str, to: &mut u64, bytes: u64| {
            if !is_set(key) {
                *to = bytes;
                self.derived.push(key);
            }
        };
        let (nbd, volume) = (&mut config.nbd, &mut config.volume);
        let mut in_flight = (nbd.total_bytes_in_flight as u64, nbd.bytes_in_flight as u64);
        put("nbd.total_bytes_in_flight", &mut in_flight.0, parts[REQUESTS]);
        put("nbd.bytes_in_flight", &mut in_flight.1, IN_FLIGHT_OF_ONE.min(parts[REQUESTS]).max(nbd.max_payload.into()));
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        (nbd.total_bytes_in_flight, nbd.bytes_in_flight) = (size(in_flight.0), size(in_flight.1));
        put("volume.total_dirty_bytes", &mut volume.total_dirty_bytes, parts[DIRTY]);
        // Of what all may have, others can have some as well.
        let most = (parts[DIRTY] / 4 * 3 / MIB * MIB).min(DIRTY_OF_ONE);
        let of_one = most.max(segment.saturating_mul(SEGMENTS_LEAST)).max(DIRTY_LEAST).min(parts[DIRTY]);
        put("volume.dirty_bytes", &mut volume.dirty_bytes, of_one);
        put("volume.total_upload_bytes", &mut volume.total_upload_bytes, parts[UPLOADS]);
        let two = round(2 * batch_least(segment), segment).saturating_mul(ROUNDS.into());
        let mut rounds = u64::from(volume.gc.rounds);
        let has_room = parts[COLLECTION] >= two || is_set("volume.gc.batch");
        put("volume.gc.rounds", &mut rounds, if has_room { ROUNDS.into() } else { 1 });
        volume.gc.rounds = rounds as u32;
        let of_one = (parts[COLLECTION] / rounds.max(1)).saturating_sub(segment.saturating_mul(4)) / 3;
        let batch = (of_one / MIB * MIB).min(BATCH_MOST).max(batch_least(segment));
        put("volume.gc.batch", &mut volume.gc.batch, batch);
        put("volume.total_map_memory", &mut volume.total_map_memory, parts[MAP]);
        put("volume.map_memory", &mut volume.map_memory, *self.map.end());
        put("store.idle_buffers", &mut config.store.idle_buffers, parts[BUFFERS]);
        put("cache.memory", &mut config.cache.memory, parts[CACHE]);
        if config.memory == Memory::Auto {
            config.memory = Memory::Bytes(self.memory);
            self.derived.push("memory");
        }
    }

    /// Why it is not enough, if it is not.
    pub(super) fn fault(&self, config: &Config) -> Option<String> {
        if self.least <= self.memory {
            return None;
        }
        let least = exact_bytes(self.least.div_ceil(MIB) * MIB);
        let set = |at: usize| (self.set[at]).then(|| format!("{} = {}", KINDS[at].1, exact_bytes(value(config, at))));
        let set: Vec<String> = (0..ELSE).filter_map(set).collect();
        let (takes, lower) = match set.is_empty() {
            true => (String::new(), "nbd.max_payload, volume.segment_size or cache.disk.size".to_owned()),
            false => (format!("with {}, ", set.join(", ")), "those".to_owned()),
        };
        Some(format!(
            "{takes}a server works with {least} at least: set memory to {least} or more, leave it out, or lower {lower}"
        ))
    }

    /// What is said of a key beside its value, if that follows from `memory`.
    pub(super) fn note(&self, key: &str) -> Option<String> {
        self.derived.contains(&key).then(|| match key {
            "memory" => self.why.clone(),
            "cache.memory" => "of memory, and what else of it nobody uses".to_owned(),
            "volume.total_map_memory" => "of memory, and more if there is room".to_owned(),
            _ => "of memory".to_owned(),
        })
    }

    /// All of it in one line.
    pub fn line(&self) -> String {
        let part = |at: usize| {
            let more = match at {
                _ if self.set[at] => " as set",
                MAP | CACHE => " or more",
                _ => "",
            };
            format!("{} {}{more}", KINDS[at].0, exact_bytes(self.parts[at]))
        };
        let parts: Vec<String> = (0..ELSE).map(part).collect();
        let why = if self.why.is_empty() { String::new() } else { format!(", {}", self.why) };
        format!("memory: {}{why}: {}", exact_bytes(self.memory), parts.join(", "))
    }

    /// What holds while the server runs.
    pub fn bounds(&self) -> balance::Bounds {
        balance::Bounds {
            memory: self.memory,
            others: [REQUESTS, DIRTY, UPLOADS, COLLECTION, BUFFERS].iter().map(|at| self.parts[*at]).sum(),
            cache: self.cache.clone(),
            map: self.map.clone(),
            overhead: self.parts[ELSE],
        }
    }

    /// The least that the cache may be left with.
    pub fn cache_least(&self) -> u64 {
        *self.cache.start()
    }
}

fn value(config: &Config, at: usize) -> u64 {
    let volume = &config.volume;
    match at {
        REQUESTS => config.nbd.total_bytes_in_flight as u64,
        DIRTY => volume.total_dirty_bytes,
        UPLOADS => volume.total_upload_bytes,
        COLLECTION => volume.gc.batch,
        MAP => volume.total_map_memory,
        BUFFERS => config.store.idle_buffers,
        _ => config.cache.memory,
    }
}

/// What a server takes that is told nothing, and why.
fn usual(machine: Machine, shares: &[Share; 8]) -> (u64, String) {
    let (usual, mut why) = match machine.bytes() {
        None => (USUAL_UNKNOWN, "as it cannot be found out how much there is".to_owned()),
        Some(there) => {
            let what = format!("a quarter of the {} of {}", crate::human::about_bytes(there), machine.name());
            match there / MACHINE_PART / MIB * MIB {
                quarter if quarter > USUAL_MOST => (USUAL_MOST, format!("{what}, but no more")),
                quarter => (quarter, what),
            }
        }
    };
    let fitting = division::fitting(usual, shares).div_ceil(MIB).saturating_mul(MIB);
    if fitting > usual {
        why = match shares.iter().any(|share| share.set.is_some()) {
            true => format!("{} ({why}) and what is set by itself", exact_bytes(usual)),
            false => format!("the least that a server works with, as {why} is less"),
        };
    }
    (fitting.max(usual), why)
}

fn shares(config: &Config, is_set: &dyn Fn(&str) -> bool) -> [Share; 8] {
    let volume = &config.volume;
    let (segment, gc) = (volume.segment_size, &volume.gc);
    let segments = segment.saturating_mul(SEGMENTS_LEAST);
    let given = |key: &str, bytes: u64| if is_set(key) { bytes } else { 0 };
    let dirty = segments.max(DIRTY_LEAST).max(given("volume.dirty_bytes", volume.dirty_bytes));
    let rounds = |else_: u32| if is_set("volume.gc.rounds") { u64::from(gc.rounds) } else { else_.into() };
    let disk = match config.cache.disk.size {
        0 => 0,
        size => DISK_WAITING + size / DISK_INDEX_PART,
    };
    let least = [
        config.nbd.max_payload.into(),
        dirty,
        segments,
        round(batch_least(segment), segment).saturating_mul(rounds(1)),
        MAP_LEAST,
        0,
        CACHE_LEAST,
        ELSE_LEAST.saturating_add(config.log.buffer).saturating_add(disk),
    ];
    let mut most = MOST;
    most[COLLECTION] = round(BATCH_MOST, segment).saturating_mul(rounds(ROUNDS));
    let set = |at: usize| match at {
        ELSE => None,
        COLLECTION => is_set(KINDS[at].1).then(|| round(gc.batch, segment).saturating_mul(rounds(ROUNDS))),
        _ => is_set(KINDS[at].1).then(|| value(config, at)),
    };
    std::array::from_fn(|at| Share {
        weight: WEIGHTS[at],
        least: least[at],
        most: most[at].max(least[at]),
        set: set(at),
    })
}

/// What a volume needs to accept any change.
const DIRTY_LEAST: u64 = 512 << 10;

/// Live data of a round of collection that fills a segment.
fn batch_least(segment: u64) -> u64 {
    segment.min(BATCH_MOST)
}

/// What a round of collection holds: its live data, objects that are read whole for it, and what is being read of four others.
fn round(batch: u64, segment: u64) -> u64 {
    batch.saturating_mul(3).saturating_add(segment.saturating_mul(4))
}
