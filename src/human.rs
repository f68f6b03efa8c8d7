//! Sizes and durations as people write them: `8MiB`, `10G`, `5s`.
//!
//! Options keep plain numbers and [`Duration`]s; they say how people write them with
//! `#[serde(with = "crate::human::bytes")]` or `#[serde(with = "crate::human::duration")]`. Configuration file,
//! environment and flags then accept the same spellings, and errors say the same words.
//!
//! Sizes: `K`, `M`, `G`, `T`, `P`, `E` and `KiB`, `MiB`, … are powers of 1024; `KB`, `MB`, … are powers of 1000;
//! no unit or `B` is bytes. `bytesize` reads a bare `G` as 10^9, and fractions through floating point; a disk's size
//! must be exact and `10G` must be what `lvcreate` and `qemu-img` make of it, so reading is done here and `bytesize`
//! only writes for people's eyes ([`about_bytes`]). Durations are humantime's: `500ms`, `5s`, `1m 30s`, `2h`.
//!
//! Everything may use this module; it uses nothing of ours.

use std::time::{Duration, UNIX_EPOCH};

/// A size as people write it, in bytes; the error says what is accepted.
pub fn parse_bytes(text: &str) -> Result<u64, BadBytes> {
    let bad = |why| BadBytes { text: text.to_owned(), why };
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let unit = unit_bytes(unit.trim()).ok_or(bad("is not a size"))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || fraction.contains('.')
        || fraction.len() > 18
        || (fraction.is_empty() && number.contains('.'))
    {
        return Err(bad("is not a size"));
    }
    let whole: u128 = whole.parse::<u64>().map_err(|_| bad("is too large"))?.into();
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad("is not a size"))? };
    // whole < 2^64, unit <= 2^60: the first product stays below 2^124; fraction < 10^18 < 2^60: the second below 2^120.
    let fraction_bytes = fraction * unit;
    if !fraction_bytes.is_multiple_of(scale) {
        return Err(bad("is not a whole number of bytes"));
    }
    u64::try_from(whole * unit + fraction_bytes / scale).map_err(|_| bad("is too large"))
}

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} {why}; accepted is a number with a unit, such as 4096, 64KiB, 8MiB, 10G or 1.5T (K, M, G, T count in 1024)"
)]
pub struct BadBytes {
    text: String,
    why: &'static str,
}

fn unit_bytes(unit: &str) -> Option<u128> {
    let lower = unit.to_ascii_lowercase();
    let (letter, rest) = match lower.chars().next() {
        None => return Some(1),
        Some('b') if lower.len() == 1 => return Some(1),
        Some(letter) => (letter, &lower[letter.len_utf8()..]),
    };
    let power = "kmgtpe".find(letter)? as u32 + 1;
    match rest {
        "" | "i" | "ib" => Some(1024u128.pow(power)),
        "b" => Some(1000u128.pow(power)),
        _ => None,
    }
}

/// A size exactly, in the largest unit that divides it: `8 MiB`, `1537 B`. [`parse_bytes`] reads it back.
pub fn exact_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = match bytes {
        0 => 0,
        _ => (bytes.trailing_zeros() / 10) as usize,
    };
    format!("{} {}", bytes >> (10 * power), UNITS[power])
}

/// A size for people's eyes, rounded: `1.4 GiB`.
pub fn about_bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// How many of something whose name takes an s: `1 object`, `2 objects`.
pub fn counted(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {one}{plural}")
}

/// A duration as people write it; the error says what is accepted.
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    humantime::parse_duration(text.trim()).map_err(|_| BadDuration(text.to_owned()))
}

/// A text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration; accepted is a number with a unit, such as 500ms, 5s, 1m 30s or 2h")]
pub struct BadDuration(String);

/// A duration exactly: `1m 30s`. [`parse_duration`] reads it back.
pub fn exact_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// For `#[serde(with = "crate::human::bytes")]` on a field of any unsigned integer type: written `8 MiB`, read from
/// that or from a plain number of bytes.
pub mod bytes {
    use std::fmt;
    use std::marker::PhantomData;

    use serde::de::{Error, Unexpected, Visitor};
    use serde::{Deserializer, Serializer};

    /// Writes the size exactly, with its unit.
    pub fn serialize<T, S>(bytes: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + TryInto<u64>,
        S: Serializer,
    {
        match (*bytes).try_into() {
            Ok(bytes) => serializer.collect_str(&super::exact_bytes(bytes)),
            Err(_) => Err(serde::ser::Error::custom("a size does not fit into 64 bits")),
        }
    }

    /// Reads a size with its unit, or a number of bytes.
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: TryFrom<u64>,
        D: Deserializer<'de>,
    {
        deserializer.deserialize_any(BytesVisitor(PhantomData))
    }

    struct BytesVisitor<T>(PhantomData<T>);

    impl<T: TryFrom<u64>> Visitor<'_> for BytesVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as 4096, 64KiB, 8MiB or 10G")
        }

        fn visit_u64<E: Error>(self, bytes: u64) -> Result<T, E> {
            T::try_from(bytes).map_err(|_| E::custom(format!("{} is too large here", super::exact_bytes(bytes))))
        }

        fn visit_i64<E: Error>(self, bytes: i64) -> Result<T, E> {
            match u64::try_from(bytes) {
                Ok(bytes) => self.visit_u64(bytes),
                Err(_) => Err(E::invalid_value(Unexpected::Signed(bytes), &self)),
            }
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            self.visit_u64(super::parse_bytes(text).map_err(E::custom)?)
        }
    }
}

/// For `#[serde(with = "crate::human::duration")]` on a [`Duration`]: written and read as `5s`.
pub mod duration {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    /// Writes the duration exactly, with its units.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::exact_duration(*duration))
    }

    /// Reads a duration with its units.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }

    struct DurationVisitor;

    impl Visitor<'_> for DurationVisitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration with its unit, such as 500ms, 5s, 1m 30s or 2h")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            super::parse_duration(text).map_err(E::custom)
        }
    }
}

/// Names in one sentence: the first few of them, and how many more there are.
pub fn few<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const FEW: usize = 8;
    let names: Vec<&str> = names.collect();
    match names.len() {
        0 => "none".to_owned(),
        len if len <= FEW => names.join(", "),
        len => format!("{} and {} more", names[..FEW].join(", "), len - FEW),
    }
}

/// A time as people write it.
pub fn date(unix_millis: u64) -> String {
    // Years beyond 9999 cannot be written; a foreign server's clock may say anything.
    const LAST: u64 = 253_402_300_799_000;
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(unix_millis.min(LAST))).to_string()
}

/// Reads a time in UTC, in milliseconds since 1970: a day, a minute or a second of it, such as `2026-12-24`, `2026-12-24T18:00` or
/// `2026-12-24T18:00:30Z`; of a day and a minute, their beginning.
pub fn parse_date(text: &str) -> Result<u64, BadDate> {
    let bad = || BadDate(text.to_owned());
    let (day, time) = text.split_once('T').unwrap_or((text, "00:00"));
    let time = time.strip_suffix('Z').unwrap_or(time);
    let seconds = if time.len() == "00:00".len() { ":00" } else { "" };
    let at = humantime::parse_rfc3339(&format!("{day}T{time}{seconds}Z")).map_err(|_| bad())?;
    let since = at.duration_since(UNIX_EPOCH).map_err(|_| bad())?;
    u64::try_from(since.as_millis()).map_err(|_| bad())
}

/// A text that is no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time; accepted is one in UTC, such as 2026-12-24, 2026-12-24T18:00 or 2026-12-24T18:00:30Z")]
pub struct BadDate(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_day_a_minute_or_a_second_in_utc() {
        for (text, written) in [
            ("2026-11-28", "2026-11-28T00:00:00Z"),
            ("2026-11-28T02:15", "2026-11-28T02:15:00Z"),
            ("2026-11-28T02:15Z", "2026-11-28T02:15:00Z"),
            ("2026-11-28T02:15:07", "2026-11-28T02:15:07Z"),
            ("2026-11-28T02:15:07Z", "2026-11-28T02:15:07Z"),
            ("1970-01-01", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(date(parse_date(text).unwrap()), written, "{text}");
        }
        for bad in [
            "",
            "T",
            "tomorrow",
            "2026-11-31",
            "2026-13-01",
            "2026-11-28T",
            "2026-11-28T2:15",
            "2026-11-28T24:00",
            "2026-11-28T02:15+01:00",
            "2026-11-28 02:15",
            "20261128T021500Z",
            "1969-12-31",
            "2026-11-28Z",
        ] {
            assert!(parse_date(bad).is_err(), "{bad}");
        }
        assert_eq!(
            parse_date("soon").unwrap_err().to_string(),
            "\"soon\" is not a time; accepted is one in UTC, such as 2026-12-24, 2026-12-24T18:00 or 2026-12-24T18:00:30Z"
        );
    }

    #[test]
    fn many_names_are_some_and_a_number() {
        let names: Vec<String> = (1..=10).map(|number| number.to_string()).collect();
        let of = |count: usize| few(names[..count].iter().map(String::as_str));
        assert_eq!((of(0).as_str(), of(2).as_str(), of(8).as_str()), ("none", "1, 2", "1, 2, 3, 4, 5, 6, 7, 8"));
        assert_eq!(of(10), "1, 2, 3, 4, 5, 6, 7, 8 and 2 more");
    }
    use proptest::prelude::*;

    #[test]
    fn what_is_counted_is_one_or_several() {
        let said: Vec<String> = [0, 1, 2].map(|number| counted(number, "change")).into();
        assert_eq!(said, ["0 changes", "1 change", "2 changes"]);
    }

    #[test]
    fn units_of_bytes_are_binary_unless_they_end_in_a_bare_b() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4Ki", 4096),
            ("4 KB", 4000),
            ("8 MiB", 8 << 20),
            ("10G", 10 << 30),
            ("1.5T", 3 << 39),
            ("0.5KiB", 512),
            ("7E", 7 << 60),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_exact_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1.",
            ".5K",
            "1..5K",
            "1.5",
            "10 potatoes",
            "1Kib B",
            "16E",
            "99999999999999999999",
            "é",
            "1é",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_bytes("8 potatoes").unwrap_err().to_string(),
            "\"8 potatoes\" is not a size; accepted is a number with a unit, such as 4096, 64KiB, 8MiB, 10G or 1.5T (K, M, G, T count in 1024)"
        );
        assert!(parse_bytes("16E").unwrap_err().to_string().starts_with("\"16E\" is too large;"));
    }

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!(parse_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(
            parse_duration("5").unwrap_err().to_string(),
            "\"5\" is not a duration; accepted is a number with a unit, such as 500ms, 5s, 1m 30s or 2h"
        );
    }

    proptest! {
        #[test]
        fn exact_sizes_read_back(bytes: u64, shift in 0u32..64) {
            prop_assert_eq!(parse_bytes(&exact_bytes(bytes >> shift)), Ok(bytes >> shift));
            prop_assert_eq!(parse_bytes(&exact_bytes(bytes << shift)), Ok(bytes << shift));
        }

        #[test]
        fn exact_durations_read_back(nanos: u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&exact_duration(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "\\PC{0,40}") {
            let _ = parse_bytes(&text);
            let _ = parse_duration(&text);
            let _ = parse_date(&text);
        }
    }
}
