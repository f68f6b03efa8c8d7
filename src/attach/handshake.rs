//! The client's half of the negotiation, without I/O: bytes of the server in, bytes for it out, until the connection is in its
//! transmission phase and can be given to a kernel.
//!
//! It speaks fixed newstyle with GO and nothing else, because that is what the kernel continues: simple replies, compact headers. Or it
//! only asks, with INFO: then it takes the place of no other connection, and ends.

use bytes::{Buf, BytesMut};

use super::identity::{Identity, LEAVING};
use crate::nbd::wire::{
    IHAVEOPT, NBDMAGIC, OPTION_REPLY_MAGIC, OptionHeader, Succession, client_flag, handshake_flag, info, option,
    reply_type,
};

/// The longest reply to an option that is taken, in bytes.
const REPLY_MAX: usize = 64 << 10;

/// What a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Bytes of the export.
    pub size: u64,
    /// Its transmission flags.
    pub flags: u16,
    /// The smallest request, in bytes.
    pub minimum_block: u32,
    /// The best size of a request, in bytes.
    pub preferred_block: u32,
    /// What it says of the disk, if it is a server that does.
    pub identity: Option<Identity>,
    /// Whether it says that it will soon be gone.
    pub is_leaving: bool,
}

/// Why there is no offer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not speak the protocol, or not as this end does.
    #[error("this is no NBD server, or it speaks otherwise: {0}")]
    Protocol(&'static str),
    /// It wants TLS, which the kernel cannot speak.
    #[error(
        "the server speaks over TLS only here, and the kernel's client cannot: use the server's Unix socket, a listener without \
         TLS (tls = \"off\" in serve.listeners), or a tunnel"
    )]
    Tls,
    /// It does not know what ashlar's servers know.
    #[error(
        "it is no server of ashlar, or an older one, which cannot tell what a device needs to know after a restart; update it"
    )]
    NotAshlar,
    /// It has no such export.
    #[error("the server has no volume {0}")]
    Unknown(String),
    /// It does not want to, in its own words.
    #[error("the server refuses: {0}")]
    Refused(String),
}

/// A negotiation under way.
#[derive(Debug)]
pub struct Handshake {
    volume: String,
    /// Nothing if it only asks.
    succession: Option<Succession>,
    succeeded: bool,
    input: BytesMut,
    output: Vec<u8>,
    greeted: bool,
    offer: Offer,
    has_size: bool,
}

impl Handshake {
    /// One that asks for a volume, on a connection that takes the place of earlier ones.
    pub fn new(volume: &str, succession: Succession) -> Handshake {
        Handshake::of(volume, Some(succession))
    }

    /// One that asks what there is to be had, and no more: the connection is of no use afterwards.
    pub fn asking(volume: &str) -> Handshake {
        Handshake::of(volume, None)
    }

    fn of(volume: &str, succession: Option<Succession>) -> Handshake {
        Handshake {
            volume: volume.to_owned(),
            succession,
            succeeded: succession.is_none(),
            input: BytesMut::new(),
            output: Vec::new(),
            greeted: false,
            // What is to be believed of a server that does not say.
            offer: Offer {
                size: 0,
                flags: 0,
                minimum_block: 1,
                preferred_block: 4096,
                identity: None,
                is_leaving: false,
            },
            has_size: false,
        }
    }

    /// What the server said. Once it returns an offer the connection is in its transmission phase.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<Offer>, Refusal> {
        self.input.extend_from_slice(bytes);
        if !self.greeted && !self.greet()? {
            return Ok(None);
        }
        while let Some((kind, data)) = self.reply()? {
            match kind {
                reply_type::ACK if !self.succeeded => self.succeeded = true,
                reply_type::INFO => self.learn(&data)?,
                reply_type::ACK => return self.finish().map(Some),
                kind => return Err(self.refusal(kind, &data)),
            }
        }
        Ok(None)
    }

    /// What is to be sent to the server now.
    pub fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Answers the greeting, and asks for the volume.
    fn greet(&mut self) -> Result<bool, Refusal> {
        const GREETING: usize = 18;
        if self.input.len() < GREETING {
            return Ok(false);
        }
        if self.input.get_u64() != NBDMAGIC || self.input.get_u64() != IHAVEOPT {
            return Err(Refusal::Protocol("its greeting is another"));
        }
        if self.input.get_u16() & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(Refusal::Protocol("it has no fixed newstyle"));
        }
        self.output.extend((client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES).to_be_bytes());
        if let Some(succession) = self.succession {
            self.output.extend(OptionHeader { option: option::SUCCEED, len: Succession::BYTES as u32 }.encode());
            self.output.extend(succession.encode());
        }
        let (name, asked) = (self.volume.as_bytes(), [info::DESCRIPTION, info::BLOCK_SIZE]);
        let mut data = (name.len() as u32).to_be_bytes().to_vec(); // names of volumes are short
        data.extend(name);
        data.extend((asked.len() as u16).to_be_bytes());
        data.extend(asked.iter().flat_map(|info| info.to_be_bytes()));
        self.output.extend(OptionHeader { option: self.question(), len: data.len() as u32 }.encode());
        self.output.extend(data);
        self.greeted = true;
        Ok(true)
    }

    /// The option that is answered with the offer.
    fn question(&self) -> u32 {
        if self.succession.is_some() { option::GO } else { option::INFO }
    }

    /// Whether the server has said anything that makes sense.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// The next reply to an option that is there as a whole.
    fn reply(&mut self) -> Result<Option<(u32, BytesMut)>, Refusal> {
        const HEAD: usize = 20;
        let Some(mut head) = self.input.get(..HEAD) else { return Ok(None) };
        let (magic, option, kind, len) = (head.get_u64(), head.get_u32(), head.get_u32(), head.get_u32() as usize);
        let expected = if self.succeeded { self.question() } else { option::SUCCEED };
        if magic != OPTION_REPLY_MAGIC || option != expected || len > REPLY_MAX {
            return Err(Refusal::Protocol("its reply to an option makes no sense"));
        }
        if self.input.len() < HEAD + len {
            return Ok(None);
        }
        self.input.advance(HEAD);
        Ok(Some((kind, self.input.split_to(len))))
    }

    fn learn(&mut self, data: &[u8]) -> Result<(), Refusal> {
        let Some((kind, mut rest)) = data.split_first_chunk() else {
            return Err(Refusal::Protocol("a piece of information has no type"));
        };
        match (u16::from_be_bytes(*kind), rest.len()) {
            (info::EXPORT, 10) => {
                (self.offer.size, self.offer.flags) = (rest.get_u64(), rest.get_u16());
                self.has_size = true;
            }
            (info::BLOCK_SIZE, 12) => {
                (self.offer.minimum_block, self.offer.preferred_block) = (rest.get_u32(), rest.get_u32());
            }
            (info::EXPORT | info::BLOCK_SIZE, _) => return Err(Refusal::Protocol("sizes have another length")),
            (info::DESCRIPTION, _) => {
                let text = str::from_utf8(rest).unwrap_or_default();
                self.offer.identity = Identity::parse(text);
                self.offer.is_leaving = text.ends_with(LEAVING);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Offer, Refusal> {
        match (self.has_size, self.input.is_empty()) {
            (false, _) => Err(Refusal::Protocol("it does not say how large the export is")),
            // The kernel would not see them.
            (_, false) => Err(Refusal::Protocol("it says more than it was asked")),
            (true, true) => Ok(self.offer.clone()),
        }
    }

    fn refusal(&self, kind: u32, words: &[u8]) -> Refusal {
        match (kind, words) {
            (reply_type::ERR_TLS_REQD, _) => Refusal::Tls,
            (reply_type::ERR_UNSUP, _) => Refusal::NotAshlar,
            (reply_type::ERR_UNKNOWN, _) => Refusal::Unknown(self.volume.clone()),
            (_, []) => Refusal::Refused(format!("error {:#x}", kind)),
            (_, words) => Refusal::Refused(String::from_utf8_lossy(words).into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::nbd::wire::{put_greeting, put_option_reply};
    use crate::units::Epoch;

    fn identity() -> Identity {
        let uuid = Uuid::from_u128(5);
        Identity { volume: uuid, epoch: Epoch(3), opening: uuid, unbroken_since: Epoch(2) }
    }

    const SUCCESSION: Succession = Succession { client: Uuid::from_u128(7), generation: 2 };

    fn handshake() -> Handshake {
        Handshake::new("db", SUCCESSION)
    }

    fn greeting() -> BytesMut {
        let mut bytes = BytesMut::new();
        put_greeting(&mut bytes);
        bytes
    }

    /// A greeting, and the connections before have ended.
    fn succeeded() -> BytesMut {
        let mut bytes = greeting();
        put_option_reply(&mut bytes, option::SUCCEED, reply_type::ACK, &[]);
        bytes
    }

    fn put_info(out: &mut BytesMut, kind: u16, data: &[u8]) {
        put_option_reply(out, option::GO, reply_type::INFO, &[&kind.to_be_bytes(), data].concat());
    }

    /// What a server sends that lets a client in.
    fn welcome() -> BytesMut {
        let mut out = succeeded();
        put_info(&mut out, info::EXPORT, &[&(1_u64 << 30).to_be_bytes()[..], &0x16d_u16.to_be_bytes()].concat());
        let blocks: Vec<u8> = [512_u32, 4096, 32 << 20].iter().flat_map(|n| n.to_be_bytes()).collect();
        put_info(&mut out, info::BLOCK_SIZE, &blocks);
        put_info(&mut out, info::DESCRIPTION, format!("{}{LEAVING}", identity()).as_bytes());
        put_info(&mut out, 77, b"from the future");
        put_option_reply(&mut out, option::GO, reply_type::ACK, &[]);
        out
    }

    fn refused(kind: u32, words: &str) -> Refusal {
        let mut out = succeeded();
        put_option_reply(&mut out, option::GO, kind, words.as_bytes());
        handshake().take(&out).unwrap_err()
    }

    #[test]
    fn the_volume_is_asked_for_with_its_description() {
        let mut handshake = handshake();
        assert_eq!(handshake.take(&greeting()), Ok(None));
        let said = handshake.output();
        let (flags, rest) = said.split_at(4);
        assert_eq!(flags, [0, 0, 0, 3]);
        let (succeed, rest) = rest.split_at(16 + 24);
        let header = OptionHeader { option: option::SUCCEED, len: 24 }.encode();
        assert_eq!(succeed, [&header[..], &SUCCESSION.encode()].concat());
        assert_eq!(rest[..16], OptionHeader { option: option::GO, len: 12 }.encode());
        assert_eq!(rest[16..], [&[0, 0, 0, 2][..], b"db", &[0, 2, 0, 2, 0, 3]].concat());
        assert!(handshake.output().is_empty());
    }

    #[test]
    fn one_that_only_asks_takes_nobodys_place() {
        let mut handshake = Handshake::asking("db");
        assert_eq!(handshake.take(&greeting()), Ok(None));
        assert_eq!(handshake.output()[4..20], OptionHeader { option: option::INFO, len: 12 }.encode());
        let mut out = BytesMut::new();
        let export = [&(1_u64 << 40).to_be_bytes()[..], &0x16d_u16.to_be_bytes()].concat();
        let info = [&info::EXPORT.to_be_bytes()[..], &export].concat();
        put_option_reply(&mut out, option::INFO, reply_type::INFO, &info);
        put_option_reply(&mut out, option::INFO, reply_type::ACK, &[]);
        assert_eq!(handshake.take(&out).unwrap().map(|offer| offer.size), Some(1 << 40));
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(refused(reply_type::ERR_TLS_REQD, "x"), Refusal::Tls);
        assert_eq!(refused(reply_type::ERR_UNKNOWN, ""), Refusal::Unknown("db".into()));
        assert_eq!(refused(reply_type::ERR_POLICY, "in use"), Refusal::Refused("in use".into()));
        let mut older = greeting();
        put_option_reply(&mut older, option::SUCCEED, reply_type::ERR_UNSUP, b"what?");
        assert_eq!(handshake().take(&older), Err(Refusal::NotAshlar));
        let mut oldstyle = greeting();
        oldstyle[17] = 0;
        assert!(matches!(handshake().take(&oldstyle), Err(Refusal::Protocol(_))));
    }

    #[test]
    fn a_server_that_says_more_than_it_was_asked_is_not_given_to_the_kernel() {
        let mut out = welcome();
        out.put_u8(0);
        assert!(matches!(handshake().take(&out), Err(Refusal::Protocol(_))));
    }

    proptest! {
        #[test]
        fn an_offer_is_understood_however_it_is_cut(cuts in proptest::collection::vec(1_usize..40, 0..60)) {
            let (bytes, mut handshake, mut at) = (welcome(), handshake(), 0);
            let mut got = None;
            for len in cuts.into_iter().chain([bytes.len()]) {
                let end = (at + len).min(bytes.len());
                prop_assert!(got.is_none() || at == end);
                got = handshake.take(&bytes[at..end]).unwrap().or(got);
                at = end;
                if at == bytes.len() {
                    break;
                }
            }
            let offer = Offer {
                size: 1 << 30, flags: 0x16d, minimum_block: 512, preferred_block: 4096, identity: Some(identity()), is_leaving: true,
            };
            prop_assert_eq!(got, Some(offer));
        }

        #[test]
        fn whatever_a_server_says_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), honest in any::<bool>()) {
            let mut handshake = handshake();
            let start = if honest { succeeded() } else { BytesMut::new() };
            let _ = handshake.take(&[&start[..], &bytes].concat());
        }
    }
}
