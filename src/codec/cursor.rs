//! Cursors over bytes: [`Writer`] appends, [`Reader`] takes, bounds-checked. A reader fails in one way only,
//! [`Malformed`].
//!
//! Integers are little-endian. A varint is LEB128, seven bits a byte, least significant first; only the shortest form
//! is accepted, so that equal values have equal bytes.

use uuid::Uuid;

use crate::units::ORDINAL_MAX;

/// What was read is not what a writer of ours wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is malformed at byte {at}: {what}")]
pub struct Malformed {
    /// Where, in bytes from the start of what is being read (a head, an opened page).
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Takes values from the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Begins at the first byte.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { all: bytes, at: 0 }
    }

    /// Bytes not yet taken.
    pub fn remaining(&self) -> usize {
        self.all.len() - self.at
    }

    /// The error for what was read last.
    pub fn bad(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    /// `Ok` if everything was taken.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.bad("bytes follow where it should end")) }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let taken = self.all[self.at..].get(..len).ok_or_else(|| self.bad("it ends here"))?;
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A u16.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// A u32.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// A u64.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A uuid: its sixteen bytes in the order of its text form.
    pub fn uuid(&mut self) -> Result<Uuid, Malformed> {
        self.array().map(Uuid::from_bytes)
    }

    /// A varint.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.bad("a number beyond 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 {
                    Err(self.bad("a number not in its shortest form"))
                } else {
                    Ok(value)
                };
            }
        }
        Err(self.bad("a number beyond 64 bits"))
    }

    /// A varint that is at most `max`.
    pub fn varint_up_to(&mut self, max: u64) -> Result<u64, Malformed> {
        match self.varint()? {
            value if value <= max => Ok(value),
            _ => Err(self.bad("a number beyond its bound")),
        }
    }

    /// The varint of a [`Seq`](crate::units::Seq), [`Epoch`](crate::units::Epoch) or [`ChangeNo`](crate::units::ChangeNo).
    pub fn ordinal(&mut self) -> Result<u64, Malformed> {
        self.varint_up_to(ORDINAL_MAX)
    }

    /// A varint that fits 32 bits.
    pub fn varint_u32(&mut self) -> Result<u32, Malformed> {
        self.varint_up_to(u64::from(u32::MAX)).map(|value| value as u32)
    }

    /// A signed varint (zigzag: 0, -1, 1, -2, …).
    pub fn varint_signed(&mut self) -> Result<i64, Malformed> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// A count of items to come, each of at least `item_bytes` bytes: one that the rest of the input cannot hold is
    /// refused, so that the caller may allocate for it.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, Malformed> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.remaining() / item_bytes.max(1) => Ok(count),
            _ => Err(self.bad("a count of more than is there")),
        }
    }

    /// A string of at most `max` bytes: a varint length, then UTF-8.
    pub fn string(&mut self, max: usize) -> Result<&'a str, Malformed> {
        let len = self.varint_up_to(max as u64)?;
        let bytes = self.take(len as usize)?;
        std::str::from_utf8(bytes).map_err(|_| self.bad("a text that is not UTF-8"))
    }
}

/// Appends values to a buffer; each method is the inverse of the [`Reader`]'s of the same name.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Empty.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Empty, with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Writer {
        Writer(Vec::with_capacity(bytes))
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// A u16.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// A u32.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// A u64.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A uuid.
    pub fn uuid(&mut self, value: Uuid) {
        self.bytes(value.as_bytes());
    }

    /// A varint.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A signed varint.
    pub fn varint_signed(&mut self, value: i64) {
        self.varint((value << 1 ^ value >> 63) as u64);
    }

    /// A string, cut at a character boundary to at most `max` bytes.
    pub fn string(&mut self, value: &str, max: usize) {
        let cut = &value[..value.floor_char_boundary(max)];
        self.varint(cut.len() as u64);
        self.bytes(cut.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(a: u64, b: i64, c: u16, d: u32, text in "\\PC{0,20}") {
            let mut w = Writer::new();
            w.varint(a);
            w.varint_signed(b);
            w.u16(c);
            w.u32(d);
            w.u64(a);
            w.string(&text, 80);
            w.uuid(Uuid::from_u64_pair(a, a));
            let bytes = w.finish();
            let mut r = Reader::new(&bytes);
            prop_assert_eq!(r.varint(), Ok(a));
            prop_assert_eq!(r.varint_signed(), Ok(b));
            prop_assert_eq!(r.u16(), Ok(c));
            prop_assert_eq!(r.u32(), Ok(d));
            prop_assert_eq!(r.u64(), Ok(a));
            prop_assert_eq!(r.string(80), Ok(text.as_str()));
            prop_assert_eq!(r.uuid(), Ok(Uuid::from_u64_pair(a, a)));
            prop_assert_eq!(r.finish(), Ok(()));
        }

        #[test]
        fn a_varint_that_is_read_has_one_form(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut r = Reader::new(&bytes);
            if let Ok(value) = r.varint() {
                let mut w = Writer::new();
                w.varint(value);
                prop_assert_eq!(w.finish(), &bytes[..bytes.len() - r.remaining()]);
            }
        }
    }

    #[test]
    fn edges_of_varints() {
        let read = |bytes: &[u8]| Reader::new(bytes).varint().map_err(|e| e.what);
        assert_eq!(read(&[0]), Ok(0));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Ok(u64::MAX));
        let beyond = Err("a number beyond 64 bits");
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), beyond);
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0]), beyond);
        assert_eq!(read(&[0x80, 0]), Err("a number not in its shortest form"));
        assert_eq!(read(&[0x80]), Err("it ends here"));
        assert_eq!(read(&[]), Err("it ends here"));
    }

    #[test]
    fn a_count_is_no_more_than_the_input_can_hold() {
        let mut w = Writer::new();
        w.varint(u64::MAX);
        w.bytes(&[0; 30]);
        assert_eq!(Reader::new(&w.finish()).count(1).map_err(|e| e.what), Err("a count of more than is there"));
        assert_eq!(Reader::new(&[3, 0, 0, 0]).count(1), Ok(3));
        assert!(Reader::new(&[3, 0, 0, 0]).count(2).is_err());
    }

    #[test]
    fn a_string_is_cut_between_characters() {
        let mut w = Writer::new();
        w.string("aé", 2);
        assert_eq!(w.finish(), [1, b'a']);
    }
}
