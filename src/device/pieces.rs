//! The bytes of a READ: data in as many pieces as the device had it, and zeroes as a number.
//!
//! A reply that may leave zeroes out need not have them; one that may not gets them from one static page
//! ([`Pieces::into_bytes`]), so that they take no memory either way.

use bytes::Bytes;

/// Zeroes to point at.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Bytes in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Some bytes, one at least.
    Data(Bytes),
    /// So many zeroes, one at least.
    Zeroes(u64),
}

impl Piece {
    /// How many bytes.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> u64 {
        match self {
            Piece::Data(data) => data.len() as u64,
            Piece::Zeroes(len) => *len,
        }
    }
}

/// Pieces in order, without gaps; no two of zeroes are neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces(Vec<Piece>);

impl Pieces {
    /// No bytes.
    pub fn new() -> Pieces {
        Pieces::default()
    }

    /// Adds data; nothing if it is empty.
    pub fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.0.push(Piece::Data(data));
        }
    }

    /// Adds zeroes.
    pub fn push_zeroes(&mut self, len: u64) {
        match self.0.last_mut() {
            _ if len == 0 => {}
            Some(Piece::Zeroes(before)) => *before += len,
            _ => self.0.push(Piece::Zeroes(len)),
        }
    }

    /// Adds all of those.
    pub fn append(&mut self, others: Pieces) {
        for piece in others {
            match piece {
                Piece::Data(data) => self.push(data),
                Piece::Zeroes(len) => self.push_zeroes(len),
            }
        }
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.0.iter().map(Piece::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pieces.
    pub fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.0.iter()
    }

    /// The bytes, zeroes among them, in slices.
    pub fn into_bytes(self) -> impl Iterator<Item = Bytes> {
        self.into_iter().flat_map(|piece| match piece {
            Piece::Data(data) => Some(data).into_iter().chain(zeroes(0)),
            Piece::Zeroes(len) => None.into_iter().chain(zeroes(len)),
        })
    }

    /// A copy of the bytes.
    pub fn concat(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len() as usize);
        for piece in &self.0 {
            match piece {
                Piece::Data(data) => all.extend_from_slice(data),
                Piece::Zeroes(len) => all.resize(all.len() + *len as usize, 0),
            }
        }
        all
    }
}

/// So many zeroes, in slices of memory that costs nothing.
pub fn zeroes(len: u64) -> impl Iterator<Item = Bytes> {
    let step = ZEROES.len() as u64;
    (0..len.div_ceil(step)).map(move |no| Bytes::from_static(&ZEROES[..(len - no * step).min(step) as usize]))
}

impl IntoIterator for Pieces {
    type Item = Piece;
    type IntoIter = std::vec::IntoIter<Piece>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<Bytes> for Pieces {
    fn from_iter<I: IntoIterator<Item = Bytes>>(data: I) -> Pieces {
        let mut pieces = Pieces::new();
        data.into_iter().for_each(|data| pieces.push(data));
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_joined_and_come_back_as_bytes() {
        let mut pieces = Pieces::new();
        pieces.push_zeroes(0);
        pieces.push(Bytes::new());
        assert!(pieces.is_empty());
        pieces.push(Bytes::from_static(b"ab"));
        pieces.push_zeroes(70_000);
        pieces.push_zeroes(70_000);
        pieces.push(Bytes::from_static(b"c"));
        assert_eq!((pieces.len(), pieces.iter().count()), (140_003, 3));
        let expected = [b"ab", &[0; 140_000][..], b"c"].concat();
        assert_eq!(pieces.concat(), expected);
        let slices: Vec<Bytes> = pieces.into_bytes().collect();
        assert_eq!((slices.len(), slices.concat()), (5, expected));
    }
}
