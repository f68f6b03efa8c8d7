//! Frames: data, compressed if that helps, one behind the other with room for their tags.
//!
//! | offset | bytes | what |
//! | ---: | ---: | --- |
//! | 0 | 16 | tag ([`seal`](super::seal)) |
//! | 16 | 1 | codec: 0 none, 1 LZ4 block |
//! | 17 | 3 | length of the data before compression |
//! | 20 | … | the data, compressed or not |
//!
//! All frames of an object are written into one buffer: compression writes there, sealing fills in the tags there, and
//! the store is handed the same bytes. Nothing is copied once more, and a segment costs one allocation instead of
//! thousands.

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::seal::TAG_BYTES;
use super::{CorruptError, EncodeError};
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

/// LZ4's best: one byte of input yields at most this many (plus a few at the edges).
const LZ4_RATIO_MAX: usize = 255;

/// Frames of one object under construction, in order. [`super::object::encode`] seals them.
pub struct Frames {
    bytes: Vec<u8>,
    lens: Vec<u32>,
    compressor: Compressor,
}

impl Frames {
    /// None yet, with room for `frames` frames of `raw_bytes` bytes in all.
    pub fn with_capacity(frames: usize, raw_bytes: usize) -> Frames {
        Frames {
            bytes: Vec::with_capacity(raw_bytes + frames * FRAME_OVERHEAD),
            lens: Vec::with_capacity(frames),
            compressor: Compressor::new(),
        }
    }

    /// Appends a frame that holds `parts` joined, and returns how many bytes it takes sealed.
    pub fn push(&mut self, parts: &[&[u8]]) -> Result<u32, EncodeError> {
        let raw_len: usize = parts.iter().map(|part| part.len()).sum();
        if raw_len > RAW_BYTES_MAX {
            return Err(EncodeError(format!("a frame of {raw_len} bytes; the most is {RAW_BYTES_MAX}")));
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; TAG_BYTES]);
        self.compressor.append_body(parts, raw_len, &mut self.bytes);
        // At most RAW_BYTES_MAX and the overhead: 25 bits.
        let len = (self.bytes.len() - start) as u32;
        self.lens.push(len);
        Ok(len)
    }

    /// Sealed lengths, in order.
    pub fn lens(&self) -> &[u32] {
        &self.lens
    }

    /// Bytes of all frames together.
    pub fn total(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn into_parts(self) -> (Vec<u8>, Vec<u32>) {
        (self.bytes, self.lens)
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

/// The data of a frame body that may be any length up to `max` bytes (pages of the map).
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

/// LZ4 with tables and buffers that are used again for each frame.
struct Compressor {
    small: CompressTable,
    large: Option<CompressTable>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Compressor {
    fn new() -> Compressor {
        Compressor { small: CompressTable::small(), large: None, input: Vec::new(), output: Vec::new() }
    }

    /// Appends codec, length and data.
    fn append_body(&mut self, parts: &[&[u8]], raw_len: usize, out: &mut Vec<u8>) {
        let compressed = self.compress(parts, raw_len);
        let codec = if compressed.is_some() { CODEC_LZ4 } else { CODEC_NONE };
        let [l0, l1, l2, ..] = (raw_len as u32).to_le_bytes();
        out.extend_from_slice(&[codec, l0, l1, l2]);
        match compressed {
            Some(len) => out.extend_from_slice(&self.output[..len]),
            None => parts.iter().for_each(|part| out.extend_from_slice(part)),
        }
    }

    /// Compresses into `self.output`; `None` if that saves less than a thirty-second (3 %), which is not worth the
    /// reader's time.
    fn compress(&mut self, parts: &[&[u8]], raw_len: usize) -> Option<usize> {
        let room = get_maximum_output_size(raw_len);
        if self.output.len() < room {
            self.output.resize(room, 0);
        }
        let input = match parts {
            [one] => one,
            many => {
                self.input.clear();
                many.iter().for_each(|part| self.input.extend_from_slice(part));
                &self.input[..]
            }
        };
        // The table by size alone, so that a frame's bytes do not depend on the frames before it.
        let table = match raw_len < usize::from(u16::MAX) {
            true => &mut self.small,
            false => self.large.get_or_insert_with(CompressTable::large),
        };
        let len = compress_into_with_table(input, &mut self.output, table).ok()?;
        (len < raw_len - raw_len / 32).then_some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(parts: &[&[u8]]) -> Bytes {
        let mut frames = Frames::with_capacity(1, 0);
        let len = frames.push(parts).unwrap();
        let (bytes, lens) = frames.into_parts();
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
            prop_assert_eq!(decompress(&body(&slices), joined.len() as u32).unwrap(), joined);
        }

        #[test]
        fn arbitrary_bodies_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), lz4: bool, len in 0u8..64) {
            let mut bytes = bytes;
            if lz4 && bytes.len() > 3 {
                bytes[..4].copy_from_slice(&[CODEC_LZ4, len, 0, 0]);
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
    fn a_gain_below_three_percent_is_not_taken() {
        let nearly = |zeros: usize| [noise(4096 - zeros), vec![0; zeros]].concat();
        assert_eq!(body(&[&nearly(100)])[0], CODEC_NONE);
        assert_eq!(body(&[&nearly(200)])[0], CODEC_LZ4);
    }

    #[test]
    fn a_frame_does_not_depend_on_those_before_it() {
        let text = b"the same words again and again and again, the same words".repeat(40);
        let mut frames = Frames::with_capacity(3, 0);
        for data in [&text[..], &[9; 65536], &text] {
            frames.push(&[data]).unwrap();
        }
        let (bytes, lens) = frames.into_parts();
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
        assert!(Frames::with_capacity(0, 0).push(&[&vec![0; 1 << 24]]).is_err());
    }
}
