//! The bodies of GETs: asked for by a range, collected, and cut to what was asked for.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use rusoto_core::ByteStream;

use super::super::buffers::Buffers;
use super::super::{ErrorKind, Key, Result, StoreError};

/// Memory that is set aside for a body before any byte of it has come.
const RESERVE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Shorter bodies are not worth a buffer that is kept.
const BUFFER_BYTES_MIN: u64 = 128 * 1024;

/// The whole body, in one piece; an error if it is not as long as was said. Its pieces are copied: each would keep the
/// connection's whole buffer.
pub async fn collect(body: Option<ByteStream>, expected: Option<u64>, buffers: &Buffers) -> std::io::Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    match expected {
        Some(expected @ BUFFER_BYTES_MIN..=RESERVE_BYTES_MAX) => fill(body, expected as usize, buffers).await,
        _ => gather(body, expected).await,
    }
}

async fn fill(mut body: ByteStream, expected: usize, buffers: &Buffers) -> std::io::Result<Bytes> {
    let (mut buffer, mut filled) = (buffers.lend(expected), 0);
    while let Some(piece) = body.next().await {
        let piece = piece?;
        let room = buffer.aligned()[..expected].get_mut(filled..filled + piece.len());
        room.ok_or_else(|| wrong_length(filled + piece.len(), expected as u64))?.copy_from_slice(&piece);
        filled += piece.len();
    }
    match filled == expected {
        true => Ok(buffer.into_bytes(0..expected)),
        false => Err(wrong_length(filled, expected as u64)),
    }
}

async fn gather(mut body: ByteStream, expected: Option<u64>) -> std::io::Result<Bytes> {
    let mut whole = BytesMut::with_capacity(expected.unwrap_or_default().min(RESERVE_BYTES_MAX) as usize);
    while let Some(piece) = body.next().await {
        whole.extend_from_slice(&piece?);
    }
    match expected {
        Some(expected) if expected != whole.len() as u64 => Err(wrong_length(whole.len(), expected)),
        _ => Ok(whole.freeze()),
    }
}

fn wrong_length(came: usize, expected: u64) -> std::io::Error {
    std::io::Error::other(format!("{came} bytes came instead of {expected}"))
}

/// `bytes=a-b`, with `b` the last byte.
pub fn header_of(range: &Range<u64>) -> String {
    match range.end {
        u64::MAX => format!("bytes={}-", range.start),
        end => format!("bytes={}-{}", range.start, end - 1),
    }
}

/// `len` of the answer's `bytes a-b/len`: of all of the object.
pub fn total_of(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('/')?.1.parse().ok()
}

/// `a` of the answer's `bytes a-b/len`.
pub fn start_of(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// What was asked for, out of what came. A store that ignores ranges sends the whole object; what is a small part of it is copied,
/// so as not to keep all of it.
pub fn cut(key: &Key, body: Bytes, start: Option<u64>, range: Option<Range<u64>>) -> Result<Bytes> {
    let Some(range) = range else { return Ok(body) };
    let start = start.unwrap_or(0);
    if start > range.start {
        let message = format!("GET of {key} from byte {} was answered from byte {start}", range.start);
        return Err(StoreError::new(ErrorKind::Retryable, message));
    }
    let len = body.len() as u64;
    let from = (range.start - start).min(len);
    let to = (range.end - start).clamp(from, len);
    let part = body.slice(from as usize..to as usize);
    Ok(if part.len() < body.len() - body.len() / 8 { Bytes::copy_from_slice(&part) } else { part })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_where_it_begins_and_how_long_all_of_it_is() {
        let said = |header| (start_of(header), total_of(header));
        assert_eq!(said("bytes 100-163/5000"), (Some(100), Some(5000)));
        assert_eq!(said("bytes 100-163/*"), (Some(100), None));
        assert_eq!(said("bytes */5000"), (None, Some(5000)));
        assert_eq!(said("100-163/5000"), (None, None));
    }

    #[test]
    fn what_was_asked_for_is_cut_out_of_what_came() {
        let key = Key::new("k").unwrap();
        let body = Bytes::from_static(b"0123456789");
        let check = |start, range| cut(&key, body.clone(), start, range).map_err(|error| error.kind);
        assert_eq!(check(None, None).unwrap(), "0123456789");
        assert_eq!(check(None, Some(2..4)).unwrap(), "23");
        assert_eq!(check(Some(100), Some(100..u64::MAX)).unwrap(), "0123456789");
        assert_eq!(check(Some(100), Some(102..104)).unwrap(), "23");
        assert_eq!(check(None, Some(20..30)).unwrap(), "");
        assert_eq!(check(Some(5), Some(4..9)), Err(ErrorKind::Retryable));
        let keeps = |range| body.as_ptr_range().contains(&check(None, Some(range)).unwrap().as_ptr());
        assert!(keeps(0..10) && !keeps(0..5), "a small part keeps the whole");
    }

    async fn collected(pieces: &[usize], expected: Option<u64>) -> std::result::Result<usize, String> {
        let pieces: Vec<std::io::Result<Bytes>> = pieces.iter().map(|len| Ok(vec![*len as u8; *len].into())).collect();
        let whole: Vec<u8> = pieces.iter().flatten().flatten().copied().collect();
        let body = ByteStream::new(futures::stream::iter(pieces));
        let body = collect(Some(body), expected, &Buffers::default()).await.map_err(|error| error.to_string())?;
        assert!(body == whole);
        Ok(body.len())
    }

    #[tokio::test]
    async fn a_body_is_collected_whole_or_not_at_all() {
        const LONG: u64 = BUFFER_BYTES_MIN + 7;
        let long = [100_000, 1, LONG as usize - 100_001];
        for expected in [None, Some(LONG)] {
            assert_eq!(collected(&long, expected).await, Ok(LONG as usize));
        }
        assert_eq!(collected(&[3, 4], Some(7)).await, Ok(7));
        assert_eq!(collected(&[], None).await, Ok(0));
        for (pieces, expected) in [(&long[..2], LONG), (&long[..], LONG - 1), (&[3], 2), (&[3], 4), (&[3], u64::MAX)] {
            let came: usize = pieces.iter().sum();
            let error = collected(pieces, Some(expected)).await.unwrap_err();
            assert_eq!(error, format!("{came} bytes came instead of {expected}"));
        }
    }
}
