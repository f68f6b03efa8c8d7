//! Frames: data, compressed if that helps, one behind the other with room for their tags.
//!
//! | offset | bytes | what |
//! | ---: | ---: | --- |
//! | 0 | 16 | tag ([`seal`](super::seal)) |
//! | 16 | 1 | codec: 0 none, 1 LZ4 block, 2 a Zstandard frame, 3 a reference: what follows says where the data is |
//! | 17 | 3 | length of the data before compression |
//! | 20 | … | the data, compressed or not |
//!
//! All frames of an object are written into one buffer: compression writes there, sealing fills in the tags there, and
//! the store is handed the same bytes. Nothing is copied once more, and a segment costs one allocation instead of
//! thousands. Data that is stored as it is need not even be copied there: it may be *lent*, so that the store is handed it where it lies.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use serde::{Deserialize, Serialize};

use super::seal::TAG_BYTES;
use super::{CorruptError, EncodeError};
use crate::outside::Turns;
use crate::units::FRAME_BYTES_MAX;

/// Bytes of codec and length before a frame's data.
pub const BODY_HEADER_BYTES: usize = 4;

/// What sealing and describing a frame adds to its data, in bytes.
pub const FRAME_OVERHEAD: usize = TAG_BYTES + BODY_HEADER_BYTES;

/// The most bytes that the sealed frame of an extent can have.
pub const SEALED_BYTES_MAX: u32 = FRAME_BYTES_MAX + FRAME_OVERHEAD as u32;

/// The length field's bound.
const RAW_BYTES_MAX: usize = (1 << 24) - 1;

const CODEC_NONE: u8 = 0;
const CODEC_LZ4: u8 = 1;
const CODEC_ZSTD: u8 = 2;
const CODEC_REFERENCE: u8 = 3;

/// How new frames of a volume are compressed. Each frame says for itself how it was, so this may change at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4: fast in both directions.
    #[default]
    Lz4,
    /// Zstandard at a level from [`Compression::ZSTD_MIN`] to [`Compression::ZSTD_MAX`]: smaller and slower.
    Zstd(u8),
}

impl Compression {
    /// The fastest level.
    pub const ZSTD_MIN: u8 = 1;
    /// The smallest level; beyond it zstd needs hundreds of MiB and gains nothing on 64 KiB.
    pub const ZSTD_MAX: u8 = 19;
    /// The level if none is said.
    pub const ZSTD_DEFAULT: u8 = 3;
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.pad("none"),
            Compression::Lz4 => f.pad("lz4"),
            Compression::Zstd(level) => f.pad(&format!("zstd:{level}")),
        }
    }
}

/// No way to compress.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compression {0:?} is unknown; accepted are lz4, zstd, zstd:1 to zstd:19, and none")]
pub struct BadCompression(String);

impl FromStr for Compression {
    type Err = BadCompression;
    fn from_str(text: &str) -> Result<Compression, BadCompression> {
        let bad = || BadCompression(text.to_owned());
        match text.split_once(':') {
            None if text == "none" => Ok(Compression::None),
            None if text == "lz4" => Ok(Compression::Lz4),
            None if text == "zstd" => Ok(Compression::Zstd(Compression::ZSTD_DEFAULT)),
            Some(("zstd", level)) => match level.parse() {
                Ok(level @ Compression::ZSTD_MIN..=Compression::ZSTD_MAX) => Ok(Compression::Zstd(level)),
                _ => Err(bad()),
            },
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for Compression {
    type Error = BadCompression;
    fn try_from(text: String) -> Result<Compression, BadCompression> {
        text.parse()
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> String {
        compression.to_string()
    }
}

/// LZ4's best: one byte of input yields at most this many (plus a few at the edges).
const LZ4_RATIO_MAX: usize = 255;

/// Data of fewer bytes is copied: a part of the object of its own costs the store more.
pub const LENT_BYTES_MIN: usize = 16 << 10;

/// Frames of one object under construction, in order. [`super::object::encode`] seals them.
pub struct Frames {
    bytes: Vec<u8>,
    lens: Vec<u32>,
    lent: Vec<Lent>,
    compressor: Compressor,
    turns: Turns,
}

/// The data of a frame, where it is not among the other bytes.
#[derive(Debug)]
pub(super) struct Lent {
    /// Where it belongs among them.
    pub at: usize,
    pub data: Bytes,
}

impl Frames {
    /// None yet, with room for `frames` frames of `raw_bytes` bytes in all.
    pub fn with_capacity(frames: usize, raw_bytes: usize, compression: Compression) -> Frames {
        Frames {
            bytes: Vec::with_capacity(raw_bytes + frames * FRAME_OVERHEAD),
            lens: Vec::with_capacity(frames),
            lent: Vec::new(),
            compressor: Compressor::new(compression),
            turns: Turns::default(),
        }
    }

    /// Appends a frame that holds `parts` joined, and returns how many bytes it takes sealed.
    pub fn push<P: AsRef<[u8]>>(&mut self, parts: &[P]) -> Result<u32, EncodeError> {
        let (start, raw_len) = self.begin(parts)?;
        if self.compressor.append_body(parts, raw_len, &mut self.bytes)? == Stored::AsItIs {
            parts.iter().for_each(|part| self.bytes.extend_from_slice(part.as_ref()));
        }
        Ok(self.end(start, 0, raw_len))
    }

    /// Appends a frame that says where `raw_len` bytes of data are, in place of the data.
    pub fn push_reference(&mut self, what: &[u8], raw_len: usize) -> Result<u32, EncodeError> {
        let (start, _) = self.begin(&[what])?;
        if raw_len > FRAME_BYTES_MAX as usize {
            return Err(EncodeError(format!("a reference to {raw_len} bytes; the most is {FRAME_BYTES_MAX}")));
        }
        let [l0, l1, l2, ..] = (raw_len as u32).to_le_bytes();
        self.bytes.extend_from_slice(&[CODEC_REFERENCE, l0, l1, l2]);
        self.bytes.extend_from_slice(what);
        Ok(self.end(start, 0, what.len()))
    }

    /// Appends a frame that holds `data`, which is kept instead of being copied if it is to be stored as it is. The object cannot be encrypted then.
    pub fn lend(&mut self, data: &Bytes) -> Result<u32, EncodeError> {
        let (start, raw_len) = self.begin(&[data])?;
        let stored = self.compressor.append_body(&[data], raw_len, &mut self.bytes)?;
        if stored == Stored::Compressed {
            return Ok(self.end(start, 0, raw_len));
        }
        self.lent.push(Lent { at: self.bytes.len(), data: data.clone() });
        Ok(self.end(start, raw_len, raw_len))
    }

    /// Makes room for a tag. Returns where, and the length of the data.
    fn begin<P: AsRef<[u8]>>(&mut self, parts: &[P]) -> Result<(usize, usize), EncodeError> {
        let raw_len: usize = parts.iter().map(|part| part.as_ref().len()).sum();
        if raw_len > RAW_BYTES_MAX {
            return Err(EncodeError(format!("a frame of {raw_len} bytes; the most is {RAW_BYTES_MAX}")));
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; TAG_BYTES]);
        Ok((start, raw_len))
    }

    fn end(&mut self, start: usize, lent: usize, raw_len: usize) -> u32 {
        self.turns.worked(raw_len);
        // At most RAW_BYTES_MAX and the overhead: 25 bits.
        let len = (self.bytes.len() - start + lent) as u32;
        self.lens.push(len);
        len
    }

    /// Sealed lengths, in order.
    pub fn lens(&self) -> &[u32] {
        &self.lens
    }

    /// Bytes of all frames together.
    pub fn total(&self) -> u64 {
        self.bytes.len() as u64 + self.lent.iter().map(|lent| lent.data.len() as u64).sum::<u64>()
    }

    pub(super) fn into_parts(self) -> (Vec<u8>, Vec<u32>, Vec<Lent>) {
        (self.bytes, self.lens, self.lent)
    }
}

/// The data of a frame body (codec, length, data) that must be `expected_len` bytes, at most [`FRAME_BYTES_MAX`].
pub fn decompress(body: &Bytes, expected_len: u32) -> Result<Bytes, CorruptError> {
    let data = decompress_up_to(body, FRAME_BYTES_MAX)?;
    match data.len() as u32 {
        len if len == expected_len => Ok(data),
        found => Err(CorruptError::FrameLength { found, expected: expected_len }),
    }
}

/// What a frame body holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Data.
    Data(Bytes),
    /// Where so many bytes of data are.
    Reference {
        /// How many.
        len: u32,
        /// Where, as the format of segments says.
        what: Bytes,
    },
}

/// What a frame body of a segment holds, which may refer to data elsewhere.
pub fn held(body: &Bytes) -> Result<Held, CorruptError> {
    let &[CODEC_REFERENCE, l0, l1, l2, ..] = &body[..] else {
        return Ok(Held::Data(decompress_up_to(body, FRAME_BYTES_MAX)?));
    };
    match u32::from_le_bytes([l0, l1, l2, 0]) {
        len @ 1..=FRAME_BYTES_MAX => Ok(Held::Reference { len, what: body.slice(BODY_HEADER_BYTES..) }),
        found => Err(CorruptError::FrameTooLong { found, max: FRAME_BYTES_MAX }),
    }
}

/// The data of a frame body that may be any length up to `max` bytes (pages of the map). Where a reference may stand, see [`held`].
pub fn decompress_up_to(body: &Bytes, max: u32) -> Result<Bytes, CorruptError> {
    let truncated = CorruptError::Truncated { have: body.len() as u64, need: BODY_HEADER_BYTES as u64 };
    let &[codec, l0, l1, l2, ref data @ ..] = &body[..] else { return Err(truncated) };
    let raw_len = u32::from_le_bytes([l0, l1, l2, 0]);
    if raw_len > max {
        return Err(CorruptError::FrameTooLong { found: raw_len, max });
    }
    match codec {
        CODEC_NONE if data.len() == raw_len as usize => Ok(body.slice(BODY_HEADER_BYTES..)),
        CODEC_NONE => Err(CorruptError::FrameLength { found: data.len() as u32, expected: raw_len }),
        CODEC_LZ4 => decompress_lz4(data, raw_len),
        CODEC_ZSTD => decompress_zstd(data, raw_len),
        other => Err(CorruptError::UnknownCodec(other)),
    }
}

fn decompress_lz4(data: &[u8], raw_len: u32) -> Result<Bytes, CorruptError> {
    // Before allocating: could the data yield so much at all?
    if raw_len as usize > data.len().saturating_mul(LZ4_RATIO_MAX) {
        return Err(CorruptError::BadCompression(raw_len));
    }
    let mut raw = vec![0; raw_len as usize];
    match decompress_into(data, &mut raw) {
        Ok(len) if len == raw.len() => Ok(raw.into()),
        _ => Err(CorruptError::BadCompression(raw_len)),
    }
}

fn decompress_zstd(data: &[u8], raw_len: u32) -> Result<Bytes, CorruptError> {
    let mut raw = vec![0; raw_len as usize];
    match zstd::bulk::decompress_to_buffer(data, &mut raw[..]) {
        Ok(len) if len == raw.len() => Ok(raw.into()),
        _ => Err(CorruptError::BadCompression(raw_len)),
    }
}

/// How data was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Compressed,
    AsItIs,
}

/// Tables and buffers that are used again for each frame.
struct Compressor {
    compression: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    small: CompressTable,
    large: Option<CompressTable>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Frames in a row that did not become smaller.
    vain: usize,
}

impl Compressor {
    /// After so many such frames in a row, one that looks random is not tried,
    const VAIN_MIN: usize = 8;
    /// but for one in so many: it may repeat itself.
    const TRY_AGAIN: usize = 16;

    fn new(compression: Compression) -> Compressor {
        Compressor {
            compression,
            zstd: None,
            small: CompressTable::small(),
            large: None,
            input: Vec::new(),
            output: Vec::new(),
            vain: 0,
        }
    }

    /// Appends codec and length, and the data if it was compressed.
    fn append_body<P: AsRef<[u8]>>(
        &mut self,
        parts: &[P],
        raw_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<Stored, EncodeError> {
        let compressed = self.compress(parts, raw_len)?;
        let codec = match (compressed, self.compression) {
            (None, _) | (_, Compression::None) => CODEC_NONE,
            (Some(_), Compression::Lz4) => CODEC_LZ4,
            (Some(_), Compression::Zstd(_)) => CODEC_ZSTD,
        };
        let [l0, l1, l2, ..] = (raw_len as u32).to_le_bytes();
        out.extend_from_slice(&[codec, l0, l1, l2]);
        let Some(len) = compressed else { return Ok(Stored::AsItIs) };
        out.extend_from_slice(&self.output[..len]);
        Ok(Stored::Compressed)
    }

    /// Compresses into `self.output`; `None` if that saves less than a thirty-second (3 %), which is not worth the
    /// reader's time, or is not to be expected: trying takes as long as hashing.
    fn compress<P: AsRef<[u8]>>(&mut self, parts: &[P], raw_len: usize) -> Result<Option<usize>, EncodeError> {
        let is_due = self.vain < Compressor::VAIN_MIN || self.vain.is_multiple_of(Compressor::TRY_AGAIN);
        let compressed = match is_due || !parts.iter().all(|part| looks_random(part.as_ref())) {
            true => self.try_to_compress(parts, raw_len)?,
            false => None,
        };
        self.vain = if compressed.is_some() { 0 } else { self.vain + 1 };
        Ok(compressed)
    }

    fn try_to_compress<P: AsRef<[u8]>>(&mut self, parts: &[P], raw_len: usize) -> Result<Option<usize>, EncodeError> {
        if self.compression == Compression::None {
            return Ok(None);
        }
        let room = get_maximum_output_size(raw_len).max(zstd::zstd_safe::compress_bound(raw_len));
        if self.output.len() < room {
            self.output.resize(room, 0);
        }
        let Compressor { compression, zstd, small, large, input, output, .. } = self;
        let input = match parts {
            [one] => one.as_ref(),
            many => {
                input.clear();
                many.iter().for_each(|part| input.extend_from_slice(part.as_ref()));
                &input[..]
            }
        };
        // The table by size alone, so that a frame's bytes do not depend on the frames before it.
        let table = match raw_len < usize::from(u16::MAX) {
            true => small,
            false => large.get_or_insert_with(CompressTable::large),
        };
        let worth = |len: usize| (len < raw_len - raw_len / 32).then_some(len);
        let mut lz4 = || compress_into_with_table(input, output, table).ok().and_then(worth);
        match compression {
            Compression::Zstd(level) => {
                // Zstandard would find out as well, but at high levels it takes its time.
                if looks_random(input) && lz4().is_none() {
                    return Ok(None);
                }
                let failed = |error: std::io::Error| EncodeError(format!("zstd: {error}"));
                let zstd = match zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Compressor::new(i32::from(*level)).map_err(failed)?),
                };
                Ok(worth(zstd.compress_to_buffer(input, &mut output[..]).map_err(failed)?))
            }
            Compression::Lz4 | Compression::None => Ok(lz4()),
        }
    }
}

/// Whether no byte is more frequent than chance explains, in a sample. Data with long repetitions may look random too.
fn looks_random(data: &[u8]) -> bool {
    const SAMPLE: usize = 1024;
    const PIECE: usize = 64;
    // Of 1024 random bytes the squares of the 256 counts sum up to 5,116 on average, and deviate by about 90.
    const SQUARES_MAX: u32 = 5_600;
    if data.len() < SAMPLE {
        return false;
    }
    let mut counts = [0u32; 256];
    let step = (data.len() - PIECE) / (SAMPLE / PIECE - 1);
    for piece in 0..SAMPLE / PIECE {
        data[piece * step..piece * step + PIECE].iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    }
    counts.iter().map(|count| count * count).sum::<u32>() < SQUARES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(parts: &[&[u8]]) -> Bytes {
        body_with(Compression::Lz4, parts)
    }

    fn body_with(compression: Compression, parts: &[&[u8]]) -> Bytes {
        let mut frames = Frames::with_capacity(1, 0, compression);
        let len = frames.push(parts).unwrap();
        let (bytes, lens, _) = frames.into_parts();
        assert_eq!(lens, [len]);
        Bytes::from(bytes).slice(TAG_BYTES..)
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut noise = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    }

    proptest! {
        #[test]
        fn data_comes_back(parts in prop::collection::vec(prop::collection::vec(0u8..4, 0..3000), 0..4)) {
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let joined = parts.concat();
            for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(9)] {
                let body = body_with(compression, &slices);
                prop_assert_eq!(decompress(&body, joined.len() as u32).unwrap(), &joined);
            }
        }

        #[test]
        fn arbitrary_bodies_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), codec in 0u8..4, len in 0u8..64) {
            let mut bytes = bytes;
            if bytes.len() > 3 {
                bytes[..4].copy_from_slice(&[codec, len, 0, 0]);
            }
            let _ = decompress(&bytes.into(), u32::from(len));
        }
    }

    #[test]
    fn what_compresses_is_compressed_and_noise_is_not() {
        assert_eq!(body(&[&[7; 65536]])[0], CODEC_LZ4);
        assert!(body(&[&[7; 65536]]).len() < 400);
        let stored = body(&[&noise(4096)]);
        assert_eq!((stored[0], stored.len()), (CODEC_NONE, 4096 + BODY_HEADER_BYTES));
    }

    #[test]
    fn each_way_to_compress_does_what_its_name_says() {
        let text = b"{\"name\": \"ashlar\", \"kind\": \"worked stone\", \"course\": 17}\n".repeat(1000);
        let lens = [Compression::None, Compression::Lz4, Compression::Zstd(3)].map(|c| body_with(c, &[&text]).len());
        assert!(lens[0] > lens[1] && lens[1] > lens[2], "{lens:?}");
        assert_eq!(body_with(Compression::Zstd(3), &[&text])[0], CODEC_ZSTD);
        for compression in [Compression::None, Compression::Zstd(19)] {
            assert_eq!(body_with(compression, &[&noise(65536)])[0], CODEC_NONE);
        }
    }

    #[test]
    fn what_looks_random_but_repeats_is_compressed() {
        let twice = noise(32768).repeat(2);
        assert!(looks_random(&twice) && looks_random(&noise(4096)));
        assert_eq!(body_with(Compression::Zstd(3), &[&twice])[0], CODEC_ZSTD);
        assert!(!looks_random(&b"plain text, many times. ".repeat(400)));
        // Sixty-four letters, no repetitions: only entropy coding helps.
        let base64: Vec<u8> = noise(65536).into_iter().map(|byte| b'0' + byte % 64).collect();
        assert!(!looks_random(&base64));
        assert_eq!(body_with(Compression::Lz4, &[&base64])[0], CODEC_NONE);
        assert_eq!(body_with(Compression::Zstd(3), &[&base64])[0], CODEC_ZSTD);
    }

    /// In a stream that does not become smaller, what looks random is not tried each time; all else is, and so is one in sixteen.
    #[test]
    fn after_much_noise_what_may_compress_still_does() {
        let (twice, text) = (noise(16384).repeat(2), b"plain text, many times. ".repeat(400));
        let mut frames = Frames::with_capacity(0, 0, Compression::Lz4);
        let mut is_smaller = |data: &[u8]| frames.push(&[data]).unwrap() < data.len() as u32;
        assert!((0..20).all(|i| !is_smaller(&noise(65536 + i)[i..])));
        assert!(is_smaller(&text), "it does not look random");
        assert!(is_smaller(&twice), "all is tried after a gain");
        assert!((0..Compressor::VAIN_MIN).all(|i| !is_smaller(&noise(65536 + i)[i..])));
        let until_tried = (0..).take_while(|_| !is_smaller(&twice)).count();
        assert_eq!(until_tried, Compressor::TRY_AGAIN - Compressor::VAIN_MIN);
    }

    #[test]
    fn compressions_have_names() {
        for (text, compression) in [
            ("none", Compression::None),
            ("lz4", Compression::Lz4),
            ("zstd:1", Compression::Zstd(1)),
            ("zstd:19", Compression::Zstd(19)),
        ] {
            assert_eq!((text.parse(), compression.to_string()), (Ok(compression), text.to_owned()));
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(3)));
        for bad in ["", "lz4:1", "zstd:0", "zstd:20", "zstd:", "gzip"] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_gain_below_three_percent_is_not_taken() {
        let nearly = |zeros: usize| [noise(4096 - zeros), vec![0; zeros]].concat();
        assert_eq!(body(&[&nearly(100)])[0], CODEC_NONE);
        assert_eq!(body(&[&nearly(200)])[0], CODEC_LZ4);
    }

    #[test]
    fn a_frame_does_not_depend_on_those_before_it() {
        let text = b"the same words again and again and again, the same words".repeat(40);
        let mut frames = Frames::with_capacity(3, 0, Compression::Lz4);
        for data in [&text[..], &[9; 65536], &text] {
            frames.push(&[data]).unwrap();
        }
        let (bytes, lens, _) = frames.into_parts();
        let len = lens[0] as usize;
        assert_eq!(bytes[..len], bytes[bytes.len() - len..]);
    }

    #[test]
    fn lengths_that_do_not_agree_are_refused() {
        let good = body(&[&[7; 4096]]);
        assert_eq!(decompress(&good, 512), Err(CorruptError::FrameLength { found: 4096, expected: 512 }));
        assert_eq!(decompress_up_to(&good, 4095), Err(CorruptError::FrameTooLong { found: 4096, max: 4095 }));
        let claim = |codec, len: u32, data: &[u8]| {
            let mut bytes = len.to_le_bytes().to_vec();
            bytes.rotate_right(1);
            bytes[0] = codec;
            bytes.extend_from_slice(data);
            decompress(&bytes.into(), len)
        };
        assert_eq!(claim(CODEC_NONE, 3, b"abc").unwrap(), &b"abc"[..]);
        assert_eq!(claim(CODEC_NONE, 4, b"abc"), Err(CorruptError::FrameLength { found: 3, expected: 4 }));
        assert_eq!(claim(CODEC_LZ4, 4000, b"abc"), Err(CorruptError::BadCompression(4000)));
        assert_eq!(claim(CODEC_LZ4, 4, b"abc"), Err(CorruptError::BadCompression(4)));
        assert_eq!(claim(9, 4, b"abcd"), Err(CorruptError::UnknownCodec(9)));
        assert_eq!(claim(0, 65537, b"").unwrap_err(), CorruptError::FrameTooLong { found: 65537, max: 65536 });
        assert_eq!(decompress(&Bytes::from_static(b"abc"), 3), Err(CorruptError::Truncated { have: 3, need: 4 }));
        assert!(Frames::with_capacity(0, 0, Compression::Lz4).push(&[&vec![0; 1 << 24]]).is_err());
    }
}
