//! The protocol between a server and its peer. Pure: bytes in, messages out. docs/standby.md has it in words.
//!
//! Each side begins with a greeting of 32 bytes:
//!
//! | offset | bytes | greeting |
//! | ---: | ---: | --- |
//! | 0 | 8 | magic `ASHLPEER` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | 1 = sender, 2 = keeper |
//! | 11 | 5 | 0 |
//! | 16 | 16 | nonce, drawn for this connection |
//!
//! Then come frames. Integers are little-endian, varints and texts as in [`crate::codec::cursor`]:
//!
//! | bytes | frame |
//! | ---: | --- |
//! | 4 | length of kind and body: 1 to [`FRAME_MAX`] |
//! | 1 | kind |
//! | … | body |
//! | 16 | proof: BLAKE3, cut to 16 bytes, over the number of the frame (8 bytes, from 0), its length, kind and body, under the key of its direction |
//!
//! | kind | from | body |
//! | ---: | --- | --- |
//! | 1 begin | sender | volume, journal id, name (uuids), epoch, since, first change, whether what is not synced counts for a FLUSH (1 byte), name of the identity file, the file |
//! | 2 file | sender | its name, its header: records go there from now on |
//! | 3 records | sender | offset in the file, last change that is whole with these, bytes |
//! | 4 sync | sender | |
//! | 5 covered | sender | the last change that is in the store, with all before |
//! | 6 ask | sender | |
//! | 7 end | sender | |
//! | 65 ready | keeper | |
//! | 66 has | keeper | last change in the files, last change that is synced in them |
//! | 67 refused | keeper | why, as text |
//!
//! The keys are derived from the secret that both servers have, both nonces and the direction. So whoever has not the secret can neither say anything
//! nor say again what was said once, and a bit that flips is noticed. It hides nothing: what is in a volume that is not encrypted can be read on the way.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use uuid::Uuid;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::units::{ChangeNo, Epoch};

/// The version that is spoken.
pub const VERSION: u16 = 1;
/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 32;
/// The most bytes of records in a message.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The most bytes of kind and body of a frame.
pub const FRAME_MAX: usize = CHUNK_BYTES + (16 << 10);
/// The least bytes of a secret.
pub const SECRET_MIN: usize = 32;

const MAGIC: &[u8; 8] = b"ASHLPEER";
const HEAD_BYTES: usize = 4;
const PROOF_BYTES: usize = 16;
/// The longest name of a file.
const NAME_MAX: usize = 64;
/// The longest reason; a longer one is cut.
const REASON_MAX: usize = 512;
/// The most bytes of an identity file, and of a header.
const FILE_HEAD_MAX: usize = 8 << 10;

/// What both servers know and nobody else.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Of what is in the file, without white space around it; nothing if that is less than [`SECRET_MIN`] bytes.
    pub fn of(file: &[u8]) -> Option<Secret> {
        let bytes = file.trim_ascii();
        (bytes.len() >= SECRET_MIN).then(|| Secret(blake3::derive_key("ashlar 2026 peer secret", bytes)))
    }
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The server that has the volume.
    Sender = 1,
    /// Its peer.
    Keeper = 2,
}

/// A number that is drawn for one connection.
pub type Nonce = [u8; 16];

/// What is wrong with what came.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Something else speaks there.
    #[error("what answers there is no peer of ashlar: look at peer.address and peer.listen")]
    NoPeer,
    /// It is the same end as this one.
    #[error(
        "what is there does not listen for journals, or listens for something else: peer.address of one server names peer.listen of the other"
    )]
    WrongEnd,
    /// Of another version.
    #[error(
        "the other server speaks version {0} of the protocol of peers, this one version {VERSION}: bring both to the same release"
    )]
    Version(u16),
    /// It does not prove itself.
    #[error(
        "what came does not prove itself: the secret in peer.secret_file is another one there, or the connection was meddled with"
    )]
    Unproven,
    /// Too long, or none.
    #[error("a message of {0} bytes came, which cannot be")]
    Length(u64),
    /// Proven, and not understood.
    #[error("a message came that is not understood: {0}")]
    Malformed(#[from] Malformed),
    /// A kind that is not known, or not from there.
    #[error("a message of kind {0} came, which is not expected")]
    Kind(u8),
}

/// What is said. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A copy begins.
    Begin(Begin),
    /// Records go to another file from now on.
    File {
        /// Its name.
        name: String,
        /// Its header.
        header: Bytes,
    },
    /// A part of the file that was begun last.
    Records {
        /// Where it goes.
        at: u64,
        /// The last change that is whole with it.
        last: ChangeNo,
        /// The bytes.
        bytes: Bytes,
    },
    /// What came before this is to be synced.
    Sync,
    /// The store has all up to here.
    Covered(ChangeNo),
    /// To be answered.
    Ask,
    /// The volume was closed in good order: the copy is not needed.
    End,
    /// The copy has begun.
    Ready,
    /// How far the copy is.
    Has {
        /// The last change in the files.
        had: ChangeNo,
        /// The last one that is synced.
        kept: ChangeNo,
    },
    /// Nothing more is taken over this connection.
    Refused(String),
}

/// The first message about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The volume.
    pub volume: Uuid,
    /// The id of the journal that begins.
    pub id: Uuid,
    /// How the fence of its epoch names the sender's journal.
    pub name: Uuid,
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The first epoch of which every acknowledged change is there.
    pub since: Epoch,
    /// The first change that it will have; the store has all before it.
    pub first: ChangeNo,
    /// Whether what is had and not synced counts for a FLUSH.
    pub unsynced_counts: bool,
    /// The name of its identity file.
    pub identity_name: String,
    /// That file.
    pub identity: Bytes,
}

/// The greeting of one side.
pub fn greeting(role: Role, nonce: &Nonce) -> [u8; GREETING_BYTES] {
    let mut out = [0; GREETING_BYTES];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[10] = role as u8;
    out[16..].copy_from_slice(nonce);
    out
}

/// The nonce in a greeting that came from somebody in that role.
pub fn read_greeting(bytes: &[u8; GREETING_BYTES], expected: Role) -> Result<Nonce, WireError> {
    if &bytes[..8] != MAGIC {
        return Err(WireError::NoPeer);
    }
    match u16::from_le_bytes([bytes[8], bytes[9]]) {
        VERSION => {}
        other => return Err(WireError::Version(other)),
    }
    if bytes[10] != expected as u8 {
        return Err(WireError::WrongEnd);
    }
    let mut nonce = Nonce::default();
    nonce.copy_from_slice(&bytes[16..]);
    Ok(nonce)
}

/// The key for what `from` says on a connection.
fn key(secret: &Secret, from: Role, sender: &Nonce, keeper: &Nonce) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("ashlar 2026 peer connection");
    hasher.update(&secret.0).update(sender).update(keeper).update(&[from as u8]);
    *hasher.finalize().as_bytes()
}

/// Both ways of a connection, for the side that is `own`.
pub fn ways(secret: &Secret, own: Role, sender: &Nonce, keeper: &Nonce) -> (Encoder, Decoder) {
    let other = if own == Role::Sender { Role::Keeper } else { Role::Sender };
    let encoder = Encoder { key: key(secret, own, sender, keeper), number: 0 };
    let decoder = Decoder {
        key: key(secret, other, sender, keeper),
        number: 0,
        from: other,
        buffer: BytesMut::new(),
        refused: None,
    };
    (encoder, decoder)
}

/// Makes frames, in order.
pub struct Encoder {
    key: [u8; 32],
    number: u64,
}

impl Encoder {
    /// Appends the frame of a message.
    pub fn put(&mut self, message: &Message, out: &mut BytesMut) {
        let begin = out.len();
        out.put_u32_le(0);
        let mut w = Writer::new();
        let (kind, tail) = write(message, &mut w);
        out.put_u8(kind);
        out.extend_from_slice(&w.finish());
        out.extend_from_slice(tail);
        let len = out.len() - begin - HEAD_BYTES;
        out[begin..begin + HEAD_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
        let proof = proof(&self.key, self.number, &out[begin..]);
        self.number += 1;
        out.extend_from_slice(&proof);
    }
}

/// Reads frames, in order. What it refuses once, it refuses for ever: the connection is of no more use.
pub struct Decoder {
    key: [u8; 32],
    number: u64,
    from: Role,
    buffer: BytesMut,
    refused: Option<WireError>,
}

impl Decoder {
    /// Where bytes go that came.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next message, if all of it is there.
    pub fn take_message(&mut self) -> Result<Option<Message>, WireError> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        self.take_next().inspect_err(|error| self.refused = Some(error.clone()))
    }

    fn take_next(&mut self) -> Result<Option<Message>, WireError> {
        let Some(head) = self.buffer.get(..HEAD_BYTES) else { return Ok(None) };
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if !(1..=FRAME_MAX).contains(&len) {
            return Err(WireError::Length(len as u64));
        }
        let whole = HEAD_BYTES + len + PROOF_BYTES;
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(whole).freeze();
        let expected = proof(&self.key, self.number, &frame[..HEAD_BYTES + len]);
        // In constant time: nobody learns by trying how far a proof is right.
        if blake3::Hash::from(widened(&expected)) != blake3::Hash::from(widened(&frame[HEAD_BYTES + len..])) {
            return Err(WireError::Unproven);
        }
        self.number += 1;
        frame.advance(HEAD_BYTES);
        frame.truncate(len);
        let kind = frame.get_u8();
        if (kind < 64) != (self.from == Role::Sender) {
            return Err(WireError::Kind(kind));
        }
        read(kind, frame).map(Some)
    }
}

fn widened(proof: &[u8]) -> [u8; 32] {
    let mut wide = [0; 32];
    wide[..PROOF_BYTES].copy_from_slice(proof);
    wide
}

fn proof(key: &[u8; 32], number: u64, frame: &[u8]) -> [u8; PROOF_BYTES] {
    let mut proof = [0; PROOF_BYTES];
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&number.to_le_bytes()).update(frame).finalize_xof().fill(&mut proof);
    proof
}

/// Writes the body but for its tail; returns the kind and the tail.
fn write<'a>(message: &'a Message, w: &mut Writer) -> (u8, &'a [u8]) {
    match message {
        Message::Begin(begin) => {
            w.uuid(begin.volume);
            w.uuid(begin.id);
            w.uuid(begin.name);
            w.varint(begin.epoch.0);
            w.varint(begin.since.0);
            w.varint(begin.first.0);
            w.u8(u8::from(begin.unsynced_counts));
            w.string(&begin.identity_name, NAME_MAX);
            (1, &begin.identity)
        }
        Message::File { name, header } => {
            w.string(name, NAME_MAX);
            (2, header)
        }
        Message::Records { at, last, bytes } => {
            w.varint(*at);
            w.varint(last.0);
            (3, bytes)
        }
        Message::Sync => (4, &[]),
        Message::Covered(no) => {
            w.varint(no.0);
            (5, &[])
        }
        Message::Ask => (6, &[]),
        Message::End => (7, &[]),
        Message::Ready => (65, &[]),
        Message::Has { had, kept } => {
            w.varint(had.0);
            w.varint(kept.0);
            (66, &[])
        }
        Message::Refused(why) => {
            w.string(why, REASON_MAX);
            (67, &[])
        }
    }
}

fn read(kind: u8, body: Bytes) -> Result<Message, WireError> {
    let mut r = Reader::new(&body);
    let tail = |r: &mut Reader<'_>, max: usize| match r.remaining() {
        len if len <= max => r.take(len).map(|tail| body.slice_ref(tail)),
        _ => Err(r.bad("longer than it can be")),
    };
    let message = match kind {
        1 => Message::Begin(Begin {
            volume: r.uuid()?,
            id: r.uuid()?,
            name: r.uuid()?,
            epoch: Epoch(r.ordinal()?),
            since: Epoch(r.ordinal()?),
            first: ChangeNo(r.ordinal()?),
            unsynced_counts: match r.u8()? {
                0 => false,
                1 => true,
                _ => return Err(r.bad("neither true nor false").into()),
            },
            identity_name: r.string(NAME_MAX)?.to_owned(),
            identity: tail(&mut r, FILE_HEAD_MAX)?,
        }),
        2 => Message::File { name: r.string(NAME_MAX)?.to_owned(), header: tail(&mut r, FILE_HEAD_MAX)? },
        3 => Message::Records { at: r.ordinal()?, last: ChangeNo(r.ordinal()?), bytes: tail(&mut r, CHUNK_BYTES)? },
        4 => Message::Sync,
        5 => Message::Covered(ChangeNo(r.ordinal()?)),
        6 => Message::Ask,
        7 => Message::End,
        65 => Message::Ready,
        66 => Message::Has { had: ChangeNo(r.ordinal()?), kept: ChangeNo(r.ordinal()?) },
        67 => Message::Refused(r.string(REASON_MAX)?.to_owned()),
        other => return Err(WireError::Kind(other)),
    };
    r.finish()?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::of(text.as_bytes()).unwrap()
    }

    const LONG: &str = "0123456789abcdef0123456789abcdef";

    fn pair() -> (Encoder, Decoder) {
        let (encoder, _) = ways(&secret(LONG), Role::Sender, &[1; 16], &[2; 16]);
        let (_, decoder) = ways(&secret(LONG), Role::Keeper, &[1; 16], &[2; 16]);
        (encoder, decoder)
    }

    fn begin() -> Message {
        Message::Begin(Begin {
            volume: Uuid::from_u128(1),
            id: Uuid::from_u128(2),
            name: Uuid::from_u128(3),
            epoch: Epoch(4),
            since: Epoch(2),
            first: ChangeNo(77),
            unsynced_counts: false,
            identity_name: "0000000000000000-00000001.journal".into(),
            identity: Bytes::from(vec![5; 5120]),
        })
    }

    fn of_sender() -> Vec<Message> {
        let records = |at, last, len| Message::Records { at, last: ChangeNo(last), bytes: Bytes::from(vec![9; len]) };
        vec![
            begin(),
            Message::File { name: "a".into(), header: Bytes::from(vec![1; 4096]) },
            records(4096, 77, 100),
            records(1 << 40, 78, CHUNK_BYTES),
            records(4096, 79, 0),
            Message::Sync,
            Message::Covered(ChangeNo(5)),
            Message::Ask,
            Message::End,
        ]
    }

    fn of_keeper() -> Vec<Message> {
        let has = Message::Has { had: ChangeNo(8), kept: ChangeNo(7) };
        vec![Message::Ready, has, Message::Refused("the disk is full".into())]
    }

    #[test]
    fn a_secret_is_long_enough_and_without_white_space_around() {
        assert!(Secret::of(b"short").is_none());
        assert_eq!(secret(LONG).0, secret(&format!(" {LONG}\n")).0);
        assert_eq!(format!("{:?}", secret(LONG)), "Secret");
    }

    #[test]
    fn a_greeting_says_who_is_there() {
        let sent = greeting(Role::Sender, &[7; 16]);
        assert_eq!(read_greeting(&sent, Role::Sender), Ok([7; 16]));
        assert_eq!(read_greeting(&sent, Role::Keeper), Err(WireError::WrongEnd));
        let mut newer = sent;
        newer[8] = 2;
        assert_eq!(read_greeting(&newer, Role::Sender), Err(WireError::Version(2)));
        assert_eq!(read_greeting(&[b'H'; 32], Role::Sender), Err(WireError::NoPeer));
    }

    #[test]
    fn what_was_said_is_heard_however_it_is_cut() {
        for step in [1, 7, 4096, usize::MAX] {
            let (mut encoder, mut decoder) = pair();
            let mut bytes = BytesMut::new();
            of_sender().iter().for_each(|message| encoder.put(message, &mut bytes));
            let mut heard = Vec::new();
            for part in bytes.chunks(step.min(bytes.len())) {
                decoder.buffer().extend_from_slice(part);
                while let Some(message) = decoder.take_message().unwrap() {
                    heard.push(message);
                }
            }
            assert_eq!(heard, of_sender());
        }
        let (mut encoder, _) = ways(&secret(LONG), Role::Keeper, &[1; 16], &[2; 16]);
        let (_, mut decoder) = ways(&secret(LONG), Role::Sender, &[1; 16], &[2; 16]);
        for message in of_keeper() {
            encoder.put(&message, decoder.buffer());
            assert_eq!(decoder.take_message(), Ok(Some(message)));
        }
    }

    /// The bytes of version 1, as they were when it was made.
    #[test]
    fn the_bytes_stay_what_they_are() {
        let (mut encoder, _) = pair();
        let mut out = BytesMut::new();
        out.extend_from_slice(&greeting(Role::Sender, &[1; 16]));
        of_sender().iter().for_each(|message| encoder.put(message, &mut out));
        let (mut encoder, _) = ways(&secret(LONG), Role::Keeper, &[1; 16], &[2; 16]);
        of_keeper().iter().for_each(|message| encoder.put(message, &mut out));
        let golden = "741023917992ca321e282e043ef42ad7d7251a5bd0eaf0b0bc2bf0a4cfe3adbb";
        assert_eq!(blake3::hash(&out).to_hex().as_str(), golden);
    }

    #[test]
    fn what_does_not_prove_itself_is_refused() {
        let whole = |messages: &[Message]| {
            let (mut encoder, _) = pair();
            let mut out = BytesMut::new();
            messages.iter().for_each(|message| encoder.put(message, &mut out));
            out
        };
        let records = Message::Records { at: 4096, last: ChangeNo(3), bytes: Bytes::from_static(b"abc") };
        let sent = whole(std::slice::from_ref(&records));
        for bit in 0..sent.len() * 8 {
            let (_, mut decoder) = pair();
            let mut bad = sent.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            decoder.buffer().extend_from_slice(&bad);
            assert_ne!(decoder.take_message(), Ok(Some(records.clone())), "bit {bit}");
        }
        // Said again, or in another order.
        let (_, mut decoder) = pair();
        decoder.buffer().extend_from_slice(&sent);
        decoder.buffer().extend_from_slice(&sent);
        decoder.take_message().unwrap().unwrap();
        assert_eq!(decoder.take_message(), Err(WireError::Unproven));
        // Under another secret, or on another connection.
        for (text, nonce) in [("another-secret-of-32-bytes-or-more", 1), (LONG, 9)] {
            let (_, mut decoder) = ways(&secret(text), Role::Keeper, &[nonce; 16], &[2; 16]);
            decoder.buffer().extend_from_slice(&sent);
            assert_eq!(decoder.take_message(), Err(WireError::Unproven));
        }
        // What a keeper says, sent back to it.
        let (mut encoder, _) = ways(&secret(LONG), Role::Keeper, &[1; 16], &[2; 16]);
        let (_, mut decoder) = pair();
        encoder.put(&Message::Ready, decoder.buffer());
        assert_eq!(decoder.take_message(), Err(WireError::Unproven));
    }

    #[test]
    fn no_length_makes_anybody_allocate() {
        for len in [0, FRAME_MAX as u32 + 1, u32::MAX] {
            let (_, mut decoder) = pair();
            decoder.buffer().extend_from_slice(&len.to_le_bytes());
            assert_eq!(decoder.take_message(), Err(WireError::Length(len.into())));
        }
    }

    /// A stream of these, and where each ends.
    fn stream(messages: &[Message]) -> (BytesMut, Vec<usize>) {
        let (mut encoder, _) = pair();
        let mut out = BytesMut::new();
        let end = |message| {
            encoder.put(message, &mut out);
            out.len()
        };
        let ends = messages.iter().map(end).collect();
        (out, ends)
    }

    /// More than any of these streams has.
    const MESSAGES: usize = 12;

    /// All that is heard of some bytes that come in pieces.
    fn heard(bytes: &[u8], piece: usize) -> Vec<Message> {
        let (_, mut decoder) = pair();
        let mut heard = Vec::new();
        for part in bytes.chunks(piece) {
            decoder.buffer().extend_from_slice(part);
            // Also behind an error.
            for _ in 0..MESSAGES {
                if let Ok(Some(message)) = decoder.take_message() {
                    heard.push(message);
                }
            }
            let bound = HEAD_BYTES + FRAME_MAX + PROOF_BYTES;
            assert!(decoder.buffer().capacity() <= 2 * (bound + piece), "{}", decoder.buffer().capacity());
        }
        heard
    }

    fn few() -> Vec<Message> {
        of_sender()
            .into_iter()
            .filter(|said| !matches!(said, Message::Records { bytes, .. } if bytes.len() > 200))
            .collect()
    }

    #[test]
    fn nothing_is_heard_any_more_behind_what_was_refused() {
        let (good, ends) = stream(&few());
        for length in [1, 20, FRAME_MAX as u32, FRAME_MAX as u32 + 1] {
            let made_up = [&length.to_le_bytes()[..], &vec![7; length as usize + PROOF_BYTES]].concat();
            let between = [&good[..ends[1]], &made_up, &good[ends[1]..]].concat();
            assert_eq!(heard(&between, between.len()), few()[..2]);
        }
    }

    proptest! {
        #[test]
        fn of_made_up_bytes_nothing_is_believed(
            length in proptest::option::of(0..2 * FRAME_MAX as u32),
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            piece in 1..1000_usize,
        ) {
            let head = length.map_or_else(Vec::new, |length| length.to_le_bytes().to_vec());
            prop_assert_eq!(heard(&[head, bytes].concat(), piece), []);
        }

        #[test]
        fn of_a_stream_that_was_harmed_only_what_came_before_is_heard(
            place in any::<proptest::sample::Index>(),
            bit in 0..8_u8,
            cuts in any::<bool>(),
            piece in 1..6000_usize,
        ) {
            let (mut bytes, ends) = stream(&few());
            let at = place.index(bytes.len());
            match cuts {
                true => drop(bytes.split_off(at)),
                false => bytes[at] ^= 1 << bit,
            }
            let whole = ends.iter().filter(|end| **end <= at).count();
            prop_assert_eq!(heard(&bytes, piece), &few()[..whole]);
        }

        #[test]
        fn made_up_bytes_do_no_harm(kind in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            // What is read is what would be written.
            if let Ok(message) = read(kind, Bytes::from(body.clone())) {
                let mut w = Writer::new();
                let (again, tail) = write(&message, &mut w);
                prop_assert_eq!(again, kind);
                prop_assert_eq!([w.finish().as_ref(), tail].concat(), body);
            }
        }
    }
}
