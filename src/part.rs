//! Slices of memory that know what they keep alive.
//!
//! A slice of [`Bytes`] keeps all of the memory that it was cut from. A reply of 512 bytes that its client does not fetch may
//! so hold on to 32 MiB of somebody's write, and nobody counts them. Whoever hands slices out to stay for long copies those
//! that are small beside what they keep: [`let_go`].

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

/// Slices that are less than one of so many parts of what they keep alive are copied.
const PART_MIN: usize = 8;

/// Memory that slices keep alive together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Tells one from another while both are alive.
    at: usize,
    bytes: usize,
}

impl Owner {
    /// Of nothing.
    pub const NONE: Owner = Owner { at: 0, bytes: 0 };

    /// All of `memory`, which is no slice of more.
    pub fn of(memory: &Bytes) -> Owner {
        Owner { at: memory.as_ptr() as usize, bytes: memory.len() }
    }

    /// Whether `used` bytes of it are so much that they may stay where they are, for as long as they like.
    pub fn is_filled_by(&self, used: usize) -> bool {
        used >= self.bytes - self.bytes / PART_MIN
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Of `bytes` bytes in one piece, of which this is the first slice that is used.
    pub fn of_piece(first: &Bytes, bytes: usize) -> Owner {
        Owner { at: first.as_ptr() as usize, bytes }
    }
}

/// A slice and its owner.
#[derive(Clone, Debug)]
pub struct Part {
    data: Bytes,
    owner: Owner,
}

impl Part {
    /// Memory of its own.
    pub fn own(data: Bytes) -> Part {
        Part { owner: Owner::of(&data), data }
    }

    /// A slice of the memory of `owner`.
    pub fn within(data: Bytes, owner: Owner) -> Part {
        Part { data, owner }
    }

    /// The bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// What it keeps alive.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// A part of it, which keeps the same memory alive. The range lies within it.
    pub fn slice(&self, range: Range<usize>) -> Part {
        Part { data: self.data.slice(range), owner: self.owner }
    }
}

/// The bytes of the parts, in order, keeping alive not much more than their own length: where all parts of one owner are
/// less than an eighth of it, they are copied.
pub fn let_go(parts: Vec<Part>) -> Vec<Bytes> {
    let mut used: HashMap<Owner, usize> = HashMap::new();
    for part in &parts {
        *used.entry(part.owner).or_default() += part.data.len();
    }
    let is_small = |owner: &Owner| used.get(owner).is_some_and(|used| *used < owner.bytes / PART_MIN);
    let bytes = |part: Part| match is_small(&part.owner) {
        true => Bytes::copy_from_slice(&part.data),
        false => part.data,
    };
    parts.into_iter().map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_beside_its_owner_is_copied_and_the_rest_is_not() {
        let (one, other) = (Part::own(vec![1; 4096].into()), Part::own(vec![2; 4096].into()));
        let stays = |parts: Vec<Part>| {
            let places: Vec<_> = parts.iter().map(|part| (part.data.as_ptr(), part.data.clone())).collect();
            let out = let_go(parts);
            assert!(out.iter().zip(&places).all(|(out, (_, data))| out == data));
            out.iter().zip(&places).map(|(out, (place, _))| out.as_ptr() == *place).collect::<Vec<_>>()
        };
        assert_eq!(stays(vec![one.slice(0..4096)]), [true]);
        assert_eq!(stays(vec![one.slice(100..612)]), [true]);
        assert_eq!(stays(vec![one.slice(100..611)]), [false]);
        assert_eq!(stays(vec![one.slice(0..256), other.slice(0..256), one.slice(512..768)]), [true, false, true]);
        let frame = Bytes::from(vec![3; 1000]);
        assert_eq!(stays(vec![Part::within(frame.slice(..100), Owner::of_piece(&frame, 1 << 20))]), [false]);
        assert_eq!(stays(vec![Part::own(Bytes::from_static(&[0; 10]))]), [true]);
    }
}
