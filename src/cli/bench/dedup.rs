//! What de-duplication would save of what is in disk images and volumes, over compression. Reads and counts; nothing is kept of it but digests (some 40 bytes for each piece that is there once).
//!
//! Of each image the blocks of 4 KiB that hold something are counted, four ways. *Compressed*: frames of 64 KiB by LZ4, as a volume keeps them. Over that, the pieces that were not there
//! before, also those of the images before: *blocks*, *frames*, and pieces cut where the content says so (FastCDC, 64 KiB in the mean). Blocks and such pieces are packed into frames again, in the order
//! in which they come, so that they compress as well as they can.

use std::collections::HashSet;
use std::io::{self, Read};

use fastcdc::v2020::StreamCDC;
use serde::Serialize;

use super::super::failure::{Failure, Outcome};
use super::super::output;
use crate::config::Effective;
use crate::human::about_bytes;

mod image;

pub use image::Image;

/// Bytes of a block.
const BLOCK: usize = 4096;

/// Bytes of a frame.
const FRAME: usize = 64 * 1024;

/// Bytes of what is cut by content: at least, in the mean, at most.
const CUT: (usize, usize, usize) = (FRAME / 4, FRAME, FRAME * 4);

/// What would be stored of the images, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// What is in blocks that hold something.
    pub data: u64,
    /// That, compressed.
    pub compressed: u64,
    /// Blocks that were not there before, compressed.
    pub blocks: u64,
    /// Frames that were not there before, compressed.
    pub frames: u64,
    /// Pieces cut by content that were not there before, compressed.
    pub cut: u64,
}

/// Digests of what was there.
type Seen = HashSet<[u8; 16]>;

/// What was there, of all images so far.
#[derive(Default)]
pub struct Tally {
    placed: Placed,
    cut: Seen,
    packed_cut: Packer,
}

/// Of what is told apart by where it lies.
#[derive(Default)]
struct Placed {
    counts: Counts,
    blocks: Seen,
    frames: Seen,
    packed_blocks: Packer,
}

/// Packs pieces into frames, and counts what these are compressed.
#[derive(Default)]
struct Packer(Vec<u8>);

impl Packer {
    /// Bytes of the frames that are full now.
    fn add(&mut self, mut piece: &[u8]) -> u64 {
        let mut bytes = 0;
        while !piece.is_empty() {
            let (now, later) = piece.split_at(piece.len().min(FRAME - self.0.len()));
            self.0.extend_from_slice(now);
            piece = later;
            if self.0.len() == FRAME {
                bytes += self.end();
            }
        }
        bytes
    }

    /// Bytes of the frame that was begun.
    fn end(&mut self) -> u64 {
        let bytes = compressed(&self.0);
        self.0.clear();
        bytes
    }
}

fn compressed(frame: &[u8]) -> u64 {
    lz4_flex::block::compress(frame).len().min(frame.len()) as u64
}

/// Whether it was not there before.
fn is_new(seen: &mut Seen, piece: &[u8]) -> bool {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(piece).as_bytes()[..16]);
    seen.insert(digest)
}

impl Tally {
    /// Counts one image more. Whole frames that hold nothing may be left out of it.
    pub fn add(&mut self, image: impl Read) -> io::Result<()> {
        let holding =
            Holding { image, placed: &mut self.placed, frame: Vec::with_capacity(FRAME), held: Vec::new(), at: 0 };
        let mut cut = 0;
        for piece in StreamCDC::new(holding, CUT.0, CUT.1, CUT.2) {
            let piece = piece.map_err(io::Error::from)?.data;
            if is_new(&mut self.cut, &piece) {
                cut += self.packed_cut.add(&piece);
            }
        }
        self.placed.counts.cut += cut + self.packed_cut.end();
        self.placed.counts.blocks += self.placed.packed_blocks.end();
        Ok(())
    }

    /// Of all images so far.
    pub fn counts(&self) -> Counts {
        self.placed.counts
    }
}

impl Placed {
    /// Counts a frame, and leaves what blocks of it hold something.
    fn add(&mut self, frame: &[u8], held: &mut Vec<u8>) {
        held.clear();
        for block in frame.chunks(BLOCK).filter(|block| holds_something(block)) {
            held.extend_from_slice(block);
            if is_new(&mut self.blocks, block) {
                self.counts.blocks += self.packed_blocks.add(block);
            }
        }
        if held.is_empty() {
            return;
        }
        let bytes = compressed(held);
        self.counts.data += held.len() as u64;
        self.counts.compressed += bytes;
        if is_new(&mut self.frames, frame) {
            self.counts.frames += bytes;
        }
    }
}

fn holds_something(block: &[u8]) -> bool {
    block.iter().any(|byte| *byte != 0)
}

/// Fills `into` with up to `len` bytes; false at the end.
fn read_up_to(from: &mut impl Read, len: usize, into: &mut Vec<u8>) -> io::Result<bool> {
    into.clear();
    from.take(len as u64).read_to_end(into)?;
    Ok(!into.is_empty())
}

/// The blocks of an image that hold something, one after the other; its frames are counted as they pass.
struct Holding<'a, R> {
    image: R,
    placed: &'a mut Placed,
    frame: Vec<u8>,
    held: Vec<u8>,
    at: usize,
}

impl<R: Read> Read for Holding<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.held.len() {
            if !read_up_to(&mut self.image, FRAME, &mut self.frame)? {
                return Ok(0);
            }
            self.placed.add(&self.frame, &mut self.held);
            self.at = 0;
        }
        let len = into.len().min(self.held.len() - self.at);
        into[..len].copy_from_slice(&self.held[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[derive(Serialize)]
struct Row {
    image: String,
    /// Of this image, beside those before it.
    #[serde(flatten)]
    counts: Counts,
}

/// Counts the images, one after the other, and prints a row for each, of what it adds to those before, and one of all.
pub fn run(images: &[Image], config: &Effective, json: bool) -> Outcome {
    let (mut tally, mut rows) = (Tally::default(), Vec::new());
    let mut opener = image::Opener::new(config);
    for image in images {
        let before = tally.counts();
        let opened = opener.open(image)?;
        tally.add(opened).map_err(|error| Failure::failed(format!("cannot read {image}: {error}")))?;
        rows.push(Row { image: image.to_string(), counts: tally.counts().since(before) });
    }
    if json {
        return output::json(&rows);
    }
    let header = ["IMAGE", "DATA", "COMPRESSED", "BLOCKS", "FRAMES", "BY CONTENT"];
    let row = |name: String, of: Counts| {
        let part = |bytes: u64| {
            if of.compressed == 0 {
                return "-".to_owned();
            }
            let saved = 100.0 * (1.0 - bytes as f64 / of.compressed.max(1) as f64);
            format!("{} (-{saved:.1} %)", about_bytes(bytes))
        };
        vec![name, about_bytes(of.data), about_bytes(of.compressed), part(of.blocks), part(of.frames), part(of.cut)]
    };
    let all = row("all".into(), tally.counts());
    let rows = rows.into_iter().map(|Row { image, counts }| row(image, counts)).chain([all]);
    output::text(output::table(&header, rows))
}

impl Counts {
    fn since(self, before: Counts) -> Counts {
        Counts {
            data: self.data - before.data,
            compressed: self.compressed - before.compressed,
            blocks: self.blocks - before.blocks,
            frames: self.frames - before.frames,
            cut: self.cut - before.cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that LZ4 makes nothing of, different for each seed.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn counted(images: &[&[u8]]) -> Counts {
        let mut tally = Tally::default();
        images.iter().for_each(|image| tally.add(*image).unwrap());
        tally.counts()
    }

    #[test]
    fn zeros_are_nothing_and_what_is_there_once_is_saved_by_nobody() {
        let len = 1 << 20;
        assert_eq!(counted(&[&vec![0; len]]), Counts::default());
        let image = noise(1, len);
        let len = len as u64;
        assert_eq!(counted(&[&image]), Counts { data: len, compressed: len, blocks: len, frames: len, cut: len });
        let text = b"the same words again and again. ".repeat(1 << 15);
        assert!(counted(&[&text]).compressed < 20_000);
    }

    #[test]
    fn the_same_image_again_costs_nothing_and_what_moved_is_found_by_who_can() {
        let len = 4 << 20;
        let image = noise(1, len);
        let twice = counted(&[&image, &image]);
        let len = len as u64;
        assert_eq!(twice, Counts { data: 2 * len, compressed: 2 * len, blocks: len, frames: len, cut: len });
        // By a block: frames are others.
        let by_a_block = counted(&[&image, &[noise(2, BLOCK), image.clone()].concat()]);
        assert_eq!(by_a_block.blocks, len + BLOCK as u64);
        assert_eq!(by_a_block.frames, by_a_block.compressed);
        assert!(by_a_block.cut < len + len / 4, "{by_a_block:?}");
        // By less: blocks are others, too.
        let by_some_bytes = counted(&[&image, &[noise(2, 100), image.clone()].concat()]);
        assert_eq!(by_some_bytes.blocks, by_some_bytes.compressed);
        assert!(by_some_bytes.cut < len + len / 4, "{by_some_bytes:?}");
    }
}
