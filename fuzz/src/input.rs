//! Takes numbers and pieces from the front of what the fuzzer made up; at its end everything is zero or empty.

/// What is left of an input.
#[derive(Clone, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// A number that is mostly small: a byte, or eight behind a byte of 255.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            255 => (0..8).fold(0, |all, _| all << 8 | u64::from(self.u8())),
            small => u64::from(small),
        }
    }

    /// The next `len` bytes, or what is left.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A length of two bytes, then so many bytes, or what is left.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.u16());
        self.take(len)
    }
}
