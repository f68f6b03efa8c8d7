//! The bodies of GETs: asked for by a range, collected, and cut to what was asked for.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use rusoto_core::ByteStream;

use super::super::{ErrorKind, Key, Result, StoreError};

/// Memory that is set aside for a body before any byte of it has come.
const RESERVE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The whole body, in one piece; an error if it is not as long as was said.
pub async fn collect(body: Option<ByteStream>, expected: Option<u64>) -> std::io::Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece?;
        if first.is_empty() {
            first = piece;
            continue;
        }
        if rest.is_empty() {
            let reserve = expected.unwrap_or_default().min(RESERVE_BYTES_MAX) as usize;
            rest.reserve(reserve.max(first.len() + piece.len()));
            rest.extend_from_slice(&first);
        }
        rest.extend_from_slice(&piece);
    }
    let whole = if rest.is_empty() { first } else { rest.freeze() };
    match expected {
        Some(expected) if expected != whole.len() as u64 => {
            Err(std::io::Error::other(format!("{} bytes came instead of {expected}", whole.len())))
        }
        _ => Ok(whole),
    }
}

/// `bytes=a-b`, with `b` the last byte.
pub fn header_of(range: &Range<u64>) -> String {
    match range.end {
        u64::MAX => format!("bytes={}-", range.start),
        end => format!("bytes={}-{}", range.start, end - 1),
    }
}

/// `a` of the answer's `bytes a-b/len`.
pub fn start_of(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// What was asked for, out of what came. A store that ignores ranges sends the whole object.
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
    Ok(body.slice(from as usize..to as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
