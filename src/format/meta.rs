//! The description of a volume, `meta/<n>`: JSON that a person can read, and a line with the BLAKE3 of all bytes
//! before it. The highest `n` counts; a volume that is given up gets one that says so before its objects are deleted.
//!
//! That of an encrypted volume holds the key slots, and a line before the hash with a tag that only somebody can make who
//! has the data key ([`Meta::prove`]): a person must be able to read it, but not to change it.
//!
//! A later format may add members or values; it has a higher `format`, and this ashlar then refuses the volume instead
//! of misreading it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroize;

use crate::codec::frame::Compression;
use crate::codec::seal::Seal;
use crate::keyring::{Encryption, HandedKeys, Keyring};
use crate::retention::Schedule;
use crate::store::Store;
use crate::units::{BlockSize, VOLUME_BYTES_MAX};

/// The newest format that we read, and write for volumes whose folder carries their uuid. Those that lie directly under their
/// name keep the older ones: the first if they have neither encryption nor another compression than LZ4, else the second. Only
/// volumes in verified mode have the fourth, only those with a schedule of snapshots, or with some that nobody may delete yet, the fifth, and only clones,
/// those that have some, and copies, the sixth, only those with settings of their own the seventh, and only those that have, or had, their log in a store of
/// its own the eighth.
pub const FORMAT: u32 = 8;

/// The longest description that is read, in bytes.
pub const META_BYTES_MAX: usize = 1 << 20;

/// Settings that beat those of whoever serves the volume: keys as in the configuration, and values as people write them. What they mean is no
/// matter of the format, but whoever does not know a key must not serve the volume.
pub type Settings = BTreeMap<String, String>;

/// A description of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Its name, also the name of its folder in the store.
    pub name: VolumeName,
    /// What its objects are bound to.
    pub uuid: Uuid,
    /// Bytes; a multiple of the block size.
    pub size: u64,
    /// The unit of mapping.
    pub block_size: BlockSize,
    /// When it was created: milliseconds since 1970.
    pub created_unix_millis: u64,
    /// How new frames are compressed.
    pub compression: Compression,
    /// Its key slots, if it is encrypted.
    pub encryption: Option<Encryption>,
    /// Whether it is given up: its objects are being deleted, and the name is free.
    pub deleted: bool,
    /// Where its other objects are.
    pub layout: Layout,
    /// What keeps two servers from writing to it.
    pub fenced_by: FencedBy,
    /// When snapshots are taken of it by themselves, and which of them stay.
    pub schedule: Option<Schedule>,
    /// No snapshot is to be kept longer than until then, whatever anybody says, in milliseconds since 1970; 0 if none is. It may be
    /// later than any needs, and is there for whoever cannot read which there are.
    pub keep_until_unix_millis: u64,
    /// Whose it is a clone, if it is one.
    pub parent: Option<Parent>,
    /// Whether there may be clones of it; whoever cannot read which there are must not delete it.
    pub may_have_clones: bool,
    /// Whose copy it is, if it is one.
    pub copy: Option<CopyOf>,
    /// What beats the configuration of whoever serves it.
    pub settings: Settings,
    /// Where its log is, if that is or was in a store of its own.
    pub log: Option<LogPlace>,
}

/// Where the log of a volume is that has it in a store of its own, or had. It may have been given up once: then it begins anew at a slot far behind all that
/// a server can have filled which does not know that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPlace {
    /// The store; none if it is where everything else is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<NearLog>,
    /// The slot at which it begins; 0 if it was never given up.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub from: u64,
    /// The last checkpoint before that which counts; 0 if there is none. Nothing is said of it while that is being found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// A store that has the log of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearLog {
    /// By which it is known: there is an object of that name there.
    pub id: Uuid,
    /// Where it was when that was put there: for people.
    pub url: String,
}

impl LogPlace {
    /// Whether that checkpoint is one of this volume's history.
    pub fn counts(&self, checkpoint: u64) -> bool {
        checkpoint >= self.from || self.after.is_none_or(|after| checkpoint <= after)
    }

    /// The slot at which the log goes on after that checkpoint, if it begins anew there.
    pub fn begins_after(&self, checkpoint: u64) -> Option<u64> {
        (checkpoint < self.from && self.after.is_none_or(|after| checkpoint == after)).then_some(self.from)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The volume, in another store, whose snapshots this one gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyOf {
    /// The uuid of that volume.
    pub uuid: Uuid,
    /// The snapshot that is being copied, or was when that broke off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<CopiedSnapshot>,
}

/// A snapshot that a copy has, or gets: it is the same one if both are equal. One without a name is none: what several have left is mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopiedSnapshot {
    /// Its name.
    pub name: String,
    /// When it was taken, in milliseconds since 1970.
    pub taken_unix_millis: u64,
}

/// What a clone shows where nothing was written to it: a version of another volume in the same store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// The name of that volume.
    pub volume: VolumeName,
    /// Its uuid.
    pub uuid: Uuid,
    /// The version: its checkpoint.
    pub version: u64,
    /// Its data keys, if it is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<HandedKeys>,
}

impl Parent {
    /// Its data keys are for the next keyring of the clone, instead of the one before. Fails, with a sentence, if they do not open with that.
    pub fn hand_to(&mut self, clone: Uuid, (before, next): (&Keyring, &Keyring)) -> Result<(), String> {
        let Some(keys) = &mut self.keys else { return Ok(()) };
        let opened = keys.open(self.uuid, (clone, before));
        let opened = opened.ok_or_else(|| format!("the data keys of volume {} do not open", self.volume))?;
        *keys = HandedKeys::of((self.uuid, &opened), (clone, next));
        Ok(())
    }
}

/// What keeps two servers from writing to a volume; the same for as long as the volume is, because a server that relies on
/// one does not see who relies on the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FencedBy {
    /// Create-only PUTs, of which one succeeds: a fence takes the slot that the other needs next ([`crate::engine::slot`]).
    #[default]
    CreateOnly,
    /// Writing and looking afterwards, whatever create-only PUTs do ([`crate::opening::verified`]).
    Verified,
}

impl FencedBy {
    /// What a new volume in this store has to rely on.
    pub fn on(store: &dyn Store) -> FencedBy {
        if store.keeps_create_only() { FencedBy::CreateOnly } else { FencedBy::Verified }
    }
}

impl fmt::Display for FencedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FencedBy::CreateOnly => "create-only",
            FencedBy::Verified => "verified",
        })
    }
}

/// Where the objects of a volume lie below its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Directly: volumes that were made before there was another one.
    ByName,
    /// In a folder with the first digits of the uuid.
    ByUuid,
}

/// The JSON of format 1. Codec, seal, key slots and parent have one value each; they stand there so that a person sees
/// them and a later ashlar need not guess.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written1 {
    format: u32,
    name: VolumeName,
    uuid: Uuid,
    size: u64,
    block_size: BlockSize,
    codec: String,
    seal: String,
    created_unix_millis: u64,
    key_slots: Vec<serde_json::Value>,
    parent: Option<serde_json::Value>,
    deleted: bool,
}

/// The JSON of formats 2 to 8.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written2 {
    format: u32,
    name: VolumeName,
    uuid: Uuid,
    size: u64,
    block_size: BlockSize,
    compression: Compression,
    seal: Seal,
    created_unix_millis: u64,
    encryption: Option<Encryption>,
    /// From format 4 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fencing: Option<FencedBy>,
    /// From format 5 on; those before say it by their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layout: Option<Layout>,
    /// From format 5 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshots: Option<Schedule>,
    /// From format 5 on; not 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_until_unix_millis: Option<u64>,
    /// From format 6 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Parent>,
    /// From format 6 on; not false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    may_have_clones: bool,
    /// From format 6 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copy: Option<CopyOf>,
    /// From format 7 on; not empty in that.
    #[serde(default, skip_serializing_if = "Settings::is_empty")]
    settings: Settings,
    /// Of format 8 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<LogPlace>,
    deleted: bool,
}

/// The member that every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

const CODEC: &str = "lz4";
const SEAL: &str = "blake3";
const HASH_HEX_BYTES: usize = 64;
const TAG_CONTEXT: &str = "ashlar 2026 volume description";

impl Meta {
    /// Checks the size: at least one block, whole blocks, no more than a Linux block device can have.
    pub fn check_size(size: u64, block_size: BlockSize) -> Result<(), BadSize> {
        let block = block_size.bytes();
        match size {
            0 => Err(BadSize::Zero),
            size if size > VOLUME_BYTES_MAX => Err(BadSize::TooLarge { size }),
            size if !block_size.aligned(size) => {
                Err(BadSize::NotBlocks { size, block, next: size.next_multiple_of(u64::from(block)) })
            }
            _ => Ok(()),
        }
    }

    /// What says that the volume is given up: who it was and where, without the ways to its key and what was to be done with it.
    pub fn tombstone(&self) -> Meta {
        Meta {
            deleted: true,
            encryption: None,
            schedule: None,
            keep_until_unix_millis: 0,
            parent: None,
            may_have_clones: false,
            copy: None,
            settings: Settings::new(),
            ..self.clone()
        }
    }

    /// Refuses a store that does not keep what the volume relies on.
    pub fn check_store(&self, store: &dyn Store) -> Result<(), WrongStore> {
        if self.fenced_by == FencedBy::Verified || store.keeps_create_only() {
            return Ok(());
        }
        Err(WrongStore { name: self.name.clone(), store: store.url() })
    }

    /// How its objects are sealed.
    pub fn seal(&self) -> Seal {
        if self.encryption.is_some() { Seal::ChaCha20Poly1305 } else { Seal::Blake3 }
    }

    /// As bytes. That of an encrypted volume is proven by the keyring; without one nobody will accept it, unless it
    /// says that the volume is given up.
    pub fn encode(&self, keyring: Option<&Keyring>) -> Vec<u8> {
        let mut bytes = match (self.layout, self.compression) {
            _ if self.log.is_some() => json(&self.written2(8)),
            _ if !self.settings.is_empty() => json(&self.written2(7)),
            _ if self.parent.is_some() || self.may_have_clones || self.copy.is_some() => json(&self.written2(6)),
            _ if self.schedule.is_some() || self.keep_until_unix_millis > 0 => json(&self.written2(5)),
            _ if self.fenced_by == FencedBy::Verified => json(&self.written2(4)),
            (Layout::ByName, Compression::Lz4) if self.encryption.is_none() => json(&self.written1()),
            (Layout::ByName, _) => json(&self.written2(2)),
            (Layout::ByUuid, _) => json(&self.written2(3)),
        };
        if self.encryption.is_some() {
            let tag = keyring.map_or([0; 32], |keyring| self.tag(keyring, &bytes));
            bytes.extend_from_slice(HEXLOWER.encode(&tag).as_bytes());
            bytes.push(b'\n');
        }
        let hash = blake3::hash(&bytes).to_hex();
        bytes.extend_from_slice(hash.as_bytes());
        bytes.push(b'\n');
        bytes
    }

    /// Whether `bytes`, all that there are, are the first part of a description: it ends before its last line does.
    pub fn is_torn(bytes: &[u8]) -> bool {
        let begins = bytes.first().is_none_or(|first| *first == b'{');
        let Some(json) = bytes.windows(3).position(|end| end == b"\n}\n").map(|at| at + 3) else {
            return begins && !ends_in_digits(bytes);
        };
        let is_encrypted = |json: serde_json::Value| json.get("encryption").is_some_and(|slots| !slots.is_null());
        let lines = 1 + usize::from(serde_json::from_slice(&bytes[..json]).is_ok_and(is_encrypted));
        begins && bytes.len() < json + lines * (HASH_HEX_BYTES + 1)
    }

    /// Proves that somebody with the data key wrote the description `bytes`, from which this was decoded.
    pub fn prove(&self, bytes: &[u8], keyring: &Keyring) -> Result<(), MetaError> {
        let (json, tag) = split_tag(check_hash(bytes)?);
        let expected = HEXLOWER.encode(&self.tag(keyring, json));
        // A comparison of hashes, so that time tells nothing.
        match tag.is_some_and(|tag| blake3::hash(tag) == blake3::hash(expected.as_bytes())) {
            true => Ok(()),
            false => Err(MetaError::Forged),
        }
    }

    fn tag(&self, keyring: &Keyring, json: &[u8]) -> [u8; 32] {
        let mut key = keyring.derive(TAG_CONTEXT, self.uuid.as_bytes());
        let tag = *blake3::keyed_hash(&key, json).as_bytes();
        key.zeroize();
        tag
    }

    fn written1(&self) -> Written1 {
        Written1 {
            format: 1,
            name: self.name.clone(),
            uuid: self.uuid,
            size: self.size,
            block_size: self.block_size,
            codec: CODEC.to_owned(),
            seal: SEAL.to_owned(),
            created_unix_millis: self.created_unix_millis,
            key_slots: Vec::new(),
            parent: None,
            deleted: self.deleted,
        }
    }

    fn written2(&self, format: u32) -> Written2 {
        Written2 {
            format,
            name: self.name.clone(),
            uuid: self.uuid,
            size: self.size,
            block_size: self.block_size,
            compression: self.compression,
            seal: self.seal(),
            created_unix_millis: self.created_unix_millis,
            encryption: self.encryption.clone(),
            fencing: Some(self.fenced_by).filter(|_| format >= 4),
            layout: Some(self.layout).filter(|_| format >= 5),
            snapshots: self.schedule.clone(),
            keep_until_unix_millis: Some(self.keep_until_unix_millis).filter(|until| *until > 0),
            parent: self.parent.clone(),
            may_have_clones: self.may_have_clones,
            copy: self.copy.clone(),
            settings: self.settings.clone(),
            log: self.log.clone(),
            deleted: self.deleted,
        }
    }

    /// Checks the hash of and decodes a description that was read from the folder of the volume `name`.
    pub fn decode(name: &VolumeName, bytes: &[u8]) -> Result<Meta, MetaError> {
        let (json, _) = split_tag(check_hash(bytes)?);
        let malformed = |e: serde_json::Error| MetaError::Malformed(e.to_string());
        let AnyFormat { format } = serde_json::from_slice(json).map_err(malformed)?;
        let meta = match format {
            1 => serde_json::from_slice::<Written1>(json).map_err(malformed)?.into_meta()?,
            2..=8 => serde_json::from_slice::<Written2>(json).map_err(malformed)?.into_meta()?,
            _ => return Err(MetaError::UnknownFormat(format)),
        };
        if meta.name != *name {
            return Err(MetaError::OtherVolume { found: meta.name });
        }
        Meta::check_size(meta.size, meta.block_size).map_err(|e| MetaError::Malformed(e.to_string()))?;
        Ok(meta)
    }
}

impl Written1 {
    fn into_meta(self) -> Result<Meta, MetaError> {
        check_support(&self)?;
        let Written1 { name, uuid, size, block_size, created_unix_millis, deleted, .. } = self;
        let (compression, encryption, layout) = (Compression::Lz4, None, Layout::ByName);
        let fenced_by = FencedBy::CreateOnly;
        Ok(Meta {
            name,
            uuid,
            size,
            block_size,
            created_unix_millis,
            compression,
            encryption,
            deleted,
            layout,
            fenced_by,
            schedule: None,
            keep_until_unix_millis: 0,
            parent: None,
            may_have_clones: false,
            copy: None,
            settings: Settings::new(),
            log: None,
        })
    }
}

impl Written2 {
    fn into_meta(self) -> Result<Meta, MetaError> {
        let Written2 {
            format,
            name,
            uuid,
            size,
            block_size,
            compression,
            seal,
            created_unix_millis,
            encryption,
            fencing,
            layout,
            snapshots: schedule,
            keep_until_unix_millis,
            parent,
            may_have_clones,
            copy,
            settings,
            log,
            deleted,
        } = self;
        let contradicts = |what| MetaError::Malformed(format!("its format and its {what} contradict each other"));
        if fencing.is_some() != (format >= 4) {
            return Err(contradicts("fencing"));
        }
        if layout.is_some() != (format >= 5) {
            return Err(contradicts("layout"));
        }
        let has_snapshots = schedule.is_some() || keep_until_unix_millis.is_some();
        if has_snapshots != (format >= 5) && format < 6 {
            return Err(contradicts("snapshots"));
        }
        if (parent.is_some() || may_have_clones || copy.is_some()) != (format >= 6) && format < 7 {
            return Err(contradicts("clones and copies"));
        }
        if settings.is_empty() == (format >= 7) && format < 8 {
            return Err(contradicts("settings"));
        }
        if log.is_some() != (format >= 8) {
            return Err(contradicts("log"));
        }
        if keep_until_unix_millis == Some(0) {
            return Err(contradicts("time until which snapshots are kept"));
        }
        let fenced_by = fencing.unwrap_or_default();
        let layout = layout.unwrap_or(if format == 2 { Layout::ByName } else { Layout::ByUuid });
        let meta = Meta {
            name,
            uuid,
            size,
            block_size,
            created_unix_millis,
            compression,
            encryption,
            deleted,
            layout,
            fenced_by,
            schedule,
            keep_until_unix_millis: keep_until_unix_millis.unwrap_or_default(),
            parent,
            may_have_clones,
            copy,
            settings,
            log,
        };
        if meta.seal() != seal {
            return Err(MetaError::Malformed("its seal and its key slots contradict each other".to_owned()));
        }
        match meta.encryption.as_ref().is_none_or(Encryption::is_sane) {
            true => Ok(meta),
            false => Err(MetaError::Malformed("it has no key slots, too many, or two of one id".to_owned())),
        }
    }
}

fn json(written: &impl Serialize) -> Vec<u8> {
    #[allow(clippy::expect_used)] // maps with string keys, numbers and strings always have a JSON form
    let mut bytes = serde_json::to_vec_pretty(written).expect("a description has a JSON form");
    bytes.push(b'\n');
    bytes
}

/// The JSON and, if there is one, the digits of the tag in the line after it.
fn split_tag(proven: &[u8]) -> (&[u8], Option<&[u8]>) {
    match proven.split_last_chunk::<{ HASH_HEX_BYTES + 1 }>() {
        Some((json, [tag @ .., b'\n'])) if json.ends_with(b"}\n") => (json, Some(tag)),
        _ => (proven, None),
    }
}

/// Whether the last line is as a hash or a tag is, right or not.
fn ends_in_digits(bytes: &[u8]) -> bool {
    let last = bytes.last_chunk::<{ HASH_HEX_BYTES + 1 }>();
    last.is_some_and(|line| line[..HASH_HEX_BYTES].iter().all(u8::is_ascii_hexdigit) && line[HASH_HEX_BYTES] == b'\n')
}

/// The JSON, if the last line is the hash of it.
fn check_hash(bytes: &[u8]) -> Result<&[u8], MetaError> {
    let split = bytes.len().checked_sub(HASH_HEX_BYTES + 1).ok_or(MetaError::Harmed)?;
    let (json, line) = bytes.split_at(split);
    let hash = blake3::hash(json).to_hex();
    match line.split_last() {
        Some((b'\n', hex)) if hex == hash.as_bytes() => Ok(json),
        _ => Err(MetaError::Harmed),
    }
}

fn check_support(written: &Written1) -> Result<(), MetaError> {
    let unsupported = |what: String| Err(MetaError::Unsupported(what));
    match written {
        w if w.codec != CODEC => unsupported(format!("codec {:?}", w.codec)),
        w if w.seal != SEAL => unsupported(format!("seal {:?}", w.seal)),
        w if !w.key_slots.is_empty() => unsupported("encryption".to_owned()),
        w if w.parent.is_some() => unsupported("a parent volume".to_owned()),
        _ => Ok(()),
    }
}

/// Why a description is not accepted. The text says what is wrong with "it"; the caller names the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The hash line is missing or does not agree.
    #[error("its last line is not the BLAKE3 of the lines before: it was changed or cut off")]
    Harmed,
    /// The tag line is missing or was not made with the volume's data key.
    #[error(
        "it was not written by somebody who has the volume's key: it was changed, or put together from two volumes"
    )]
    Forged,
    /// A later format.
    #[error("its format {0} is unknown (this ashlar reads up to {FORMAT}): a newer ashlar is needed")]
    UnknownFormat(u32),
    /// A feature of a later version.
    #[error("it uses {0}, which this ashlar does not support")]
    Unsupported(String),
    /// The hash is good but the content makes no sense.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// The folder was copied or renamed.
    #[error("it describes the volume {found}: its folder was copied or renamed; move it back under that name")]
    OtherVolume {
        /// The volume that it describes.
        found: VolumeName,
    },
}

/// A size that a volume cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    /// Nothing.
    #[error("a volume of size 0 cannot be: give it at least one block")]
    Zero,
    /// Beyond what Linux can address.
    #[error("size {size} is more than a volume can have: the most is 8 EiB less 64 KiB ({VOLUME_BYTES_MAX} bytes)")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
    /// A part of a block is left over.
    #[error("size {size} is not a multiple of the block size {block}; the next that is would be {next}")]
    NotBlocks {
        /// Bytes.
        size: u64,
        /// Bytes of a block.
        block: u32,
        /// The next larger good size.
        next: u64,
    },
}

/// The name of a volume: 1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit. So it is a
/// folder on every backend, never hidden, and needs no escaping in a URI.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The longest name in bytes.
    pub const MAX: usize = 64;

    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<VolumeName, BadName> {
        let name = name.into();
        match name.bytes().next() {
            None => return Err(BadName::Empty),
            Some(_) if name.len() > Self::MAX => return Err(BadName::TooLong { len: name.len() }),
            Some(first) if !first.is_ascii_alphanumeric() => return Err(BadName::First { name }),
            Some(_) => {}
        }
        match name.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
            Some(found) => Err(BadName::Character { name, found }),
            None => Ok(VolumeName(name)),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VolumeName {
    type Err = BadName;
    fn from_str(name: &str) -> Result<Self, BadName> {
        VolumeName::new(name)
    }
}

impl TryFrom<String> for VolumeName {
    type Error = BadName;
    fn try_from(name: String) -> Result<Self, BadName> {
        VolumeName::new(name)
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.0
    }
}

/// A name that a volume cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Nothing.
    #[error("a volume needs a name")]
    Empty,
    /// It would be hidden, or look like a flag.
    #[error("volume name {name:?} must begin with a letter or a digit (A-Z, a-z, 0-9)")]
    First {
        /// The name.
        name: String,
    },
    /// A character that not every backend can keep.
    #[error("volume name {name:?} contains {found:?}; letters, digits, '.', '_' and '-' are accepted")]
    Character {
        /// The name.
        name: String,
        /// The first that is wrong.
        found: char,
    },
    /// Too long; the name is not repeated.
    #[error("a volume name of {len} bytes is too long; at most 64 are accepted")]
    TooLong {
        /// Bytes of the name.
        len: usize,
    },
}

/// A store that does not keep what a volume relies on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "volume {name} relies on create-only PUTs, on which nobody may rely in {store}: they do not keep two servers apart there, or \
     store.fencing says \"verified\". If the store keeps them, set store.fencing = \"auto\"; else copy the volume into a new \
     one, with store.fencing = \"unsafe\" while nobody else has it open"
)]
pub struct WrongStore {
    /// The volume.
    pub name: VolumeName,
    /// The store's URL.
    pub store: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::slot::NewSlot;
    use crate::keyring::{KeySlot, Locked};

    fn name(name: &str) -> VolumeName {
        VolumeName::new(name).unwrap()
    }

    fn sample() -> Meta {
        Meta {
            name: name("disk0"),
            uuid: Uuid::from_u128(0x67e5_5044_10b1_426f_9247_bb68_0e5f_e0c8),
            size: 10 << 30,
            block_size: BlockSize::default(),
            created_unix_millis: 1_700_000_000_000,
            compression: Compression::Lz4,
            encryption: None,
            deleted: false,
            layout: Layout::ByName,
            fenced_by: FencedBy::CreateOnly,
            schedule: None,
            keep_until_unix_millis: 0,
            parent: None,
            may_have_clones: false,
            copy: None,
            settings: Settings::new(),
            log: None,
        }
    }

    /// The sample with a text in its JSON replaced, and the hash made right again.
    fn rewritten(from: &str, to: &str) -> Vec<u8> {
        let bytes = sample().encode(None);
        let text = String::from_utf8(bytes).unwrap();
        let json = &text[..text.len() - HASH_HEX_BYTES - 1];
        assert!(json.contains(from), "{json}");
        let json = json.replace(from, to);
        format!("{json}{}\n", blake3::hash(json.as_bytes()).to_hex()).into_bytes()
    }

    fn error_of(from: &str, to: &str) -> String {
        Meta::decode(&name("disk0"), &rewritten(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn a_description_comes_back() {
        let verified = Meta { layout: Layout::ByUuid, fenced_by: FencedBy::Verified, ..sample() };
        for meta in [sample(), verified, Meta { deleted: true, size: VOLUME_BYTES_MAX, ..sample() }] {
            assert_eq!(Meta::decode(&name("disk0"), &meta.encode(None)), Ok(meta));
        }
    }

    /// In whatever layout and mode; a volume that is given up, or without its schedule again, is readable by older programs.
    #[test]
    fn a_schedule_comes_back_and_is_refused_by_older_programs() {
        let schedule: Schedule = serde_json::from_str(r#"{"every":"1m","keep":"60 x 1m, 24 x 1h"}"#).unwrap();
        let by_name = Meta { schedule: Some(schedule), ..sample() };
        let by_uuid = Meta { layout: Layout::ByUuid, ..by_name.clone() };
        let verified = Meta { fenced_by: FencedBy::Verified, ..by_uuid.clone() };
        let both = Meta { keep_until_unix_millis: 1, ..by_uuid.clone() };
        let kept = Meta { schedule: None, ..both.clone() };
        for (meta, before) in [(by_name, 1), (by_uuid, 3), (verified, 4), (both, 3), (kept, 3)] {
            let format = |bytes: &[u8]| serde_json::from_slice::<AnyFormat>(check_hash(bytes).unwrap()).unwrap().format;
            let bytes = meta.encode(None);
            assert_eq!(format(&bytes), 5);
            assert_eq!(Meta::decode(&name("disk0"), &bytes).as_ref(), Ok(&meta));
            assert_eq!(format(&meta.tombstone().encode(None)), before);
            assert_eq!(format(&Meta { schedule: None, keep_until_unix_millis: 0, ..meta }.encode(None)), before);
        }
    }

    #[test]
    fn a_schedule_and_the_format_agree() {
        let schedule: Schedule = serde_json::from_str(r#"{"every":"1m","keep":"7"}"#).unwrap();
        let meta = Meta { schedule: Some(schedule), ..sample() };
        let error = |from: &str, to: &str| {
            let text = String::from_utf8(json(&meta.written2(5))).unwrap();
            assert!(text.contains(from), "{text}");
            let text = text.replace(from, to);
            let bytes = format!("{text}{}\n", blake3::hash(text.as_bytes()).to_hex());
            Meta::decode(&name("disk0"), bytes.as_bytes()).unwrap_err().to_string()
        };
        let contradict = |what: &str| format!("it is malformed: its format and its {what} contradict each other");
        assert_eq!(error("\"format\": 5", "\"format\": 4"), contradict("layout"));
        assert_eq!(error("  \"layout\": \"by-name\",\n", ""), contradict("layout"));
        assert_eq!(
            error("  \"snapshots\": {\n    \"every\": \"1m\",\n    \"keep\": \"7\"\n  },\n", ""),
            contradict("snapshots")
        );
        assert!(error("\"7\"", "\"0\"").contains("\"0\" keeps nothing"));
        assert_eq!(error("\"format\": 5", "\"format\": 6"), contradict("clones and copies"));
        assert_eq!(error("\"format\": 5", "\"format\": 7"), contradict("settings"));
        assert_eq!(error("\"format\": 5", "\"format\": 8"), contradict("log"));
        let with_settings = "\"settings\": {\n    \"a\": \"b\"\n  },\n  \"deleted\"";
        assert_eq!(error("\"deleted\"", with_settings), contradict("settings"));
        assert!(
            error("\"format\": 5", "\"format\": 9").contains("its format 9 is unknown (this ashlar reads up to 8)")
        );
    }

    /// Whatever else the volume is; without them again, and given up, it is readable by older programs.
    #[test]
    fn settings_come_back_and_are_refused_by_older_programs() {
        let schedule: Schedule = serde_json::from_str(r#"{"every":"1m","keep":"7"}"#).unwrap();
        let by_uuid = Meta { layout: Layout::ByUuid, ..sample() };
        let parent = Parent { volume: name("golden"), uuid: sample().uuid, version: 7, keys: None };
        let scheduled = Meta { schedule: Some(schedule), ..by_uuid.clone() };
        let clone = Meta { parent: Some(parent), ..by_uuid.clone() };
        for (without, before) in [(sample(), 1), (by_uuid, 3), (scheduled, 5), (clone, 6)] {
            let format = |bytes: &[u8]| serde_json::from_slice::<AnyFormat>(check_hash(bytes).unwrap()).unwrap().format;
            // One that this ashlar does not know is kept, too.
            let settings =
                Settings::from([("volume.durability".into(), "journal".into()), ("news".into(), "1".into())]);
            let meta = Meta { settings, ..without.clone() };
            let bytes = meta.encode(None);
            assert_eq!(format(&bytes), 7);
            assert_eq!(Meta::decode(&name("disk0"), &bytes).as_ref(), Ok(&meta));
            assert_eq!(meta.tombstone(), without.tombstone());
            assert_eq!(format(&without.encode(None)), before);
        }
    }

    /// Whatever else the volume is; also one that is given up, of which objects are there as well.
    #[test]
    fn a_log_of_its_own_comes_back_and_is_refused_by_older_programs() {
        let by_uuid = Meta { layout: Layout::ByUuid, ..sample() };
        let near = NearLog { id: sample().uuid, url: "file:///near".into() };
        let settings = Settings::from([("a".into(), "b".into())]);
        for log in [
            LogPlace { near: Some(near.clone()), ..LogPlace::default() },
            LogPlace { near: Some(near), from: 9, after: None },
            LogPlace { near: None, from: 9, after: Some(0) },
        ] {
            for without in [by_uuid.clone(), Meta { settings: settings.clone(), ..by_uuid.clone() }] {
                let meta = Meta { log: Some(log.clone()), ..without };
                let bytes = meta.encode(None);
                let format: AnyFormat = serde_json::from_slice(check_hash(&bytes).unwrap()).unwrap();
                assert_eq!((format.format, Meta::decode(&name("disk0"), &bytes).as_ref()), (8, Ok(&meta)));
                assert_eq!(meta.tombstone().log, meta.log);
            }
        }
    }

    #[test]
    fn what_was_written_after_the_log_was_given_up_does_not_count() {
        let never = LogPlace::default();
        assert!(never.counts(0) && never.counts(7) && never.begins_after(0).is_none());
        let asked = LogPlace { from: 100, ..LogPlace::default() };
        assert!(asked.counts(7) && asked.counts(9) && asked.counts(100));
        assert_eq!([7, 100].map(|seq| asked.begins_after(seq)), [Some(100), None]);
        let known = LogPlace { after: Some(7), ..asked };
        assert_eq!([6, 7, 8, 99, 100].map(|seq| known.counts(seq)), [true, true, false, false, true]);
        // What is older than that goes on with the log that was.
        assert_eq!([6, 7, 100].map(|seq| known.begins_after(seq)), [None, Some(100), None]);
    }

    #[test]
    fn a_clone_and_a_parent_come_back_and_their_tombstones_say_nothing_of_it() {
        let keys = HandedKeys::of((sample().uuid, &keyring(1)), (Uuid::nil(), &keyring(2)));
        let parent = Parent { volume: name("golden"), uuid: sample().uuid, version: 7, keys: Some(keys) };
        for (parent, may_have_clones) in [(Some(parent.clone()), false), (None, true), (Some(parent), true)] {
            let meta = Meta { parent, may_have_clones, ..sample() };
            assert_eq!(Meta::decode(&name("disk0"), &meta.encode(None)).as_ref(), Ok(&meta));
            assert_eq!(meta.tombstone().encode(None), sample().tombstone().encode(None));
            let scheduled = Meta { keep_until_unix_millis: 9, ..meta };
            assert_eq!(Meta::decode(&name("disk0"), &scheduled.encode(None)).as_ref(), Ok(&scheduled));
        }
    }

    /// Keys that were handed on open with those of the clone, as they were when they were handed on, and with no others.
    #[test]
    fn handed_keys_follow_a_rotation_of_the_clone() {
        let (own, next) = (keyring(2), keyring(2).rotated(Locked::take(&mut [3; 32])).unwrap());
        let keys = HandedKeys::of((sample().uuid, &keyring(1)), (Uuid::nil(), &own));
        let mut parent = Parent { volume: name("golden"), uuid: sample().uuid, version: 7, keys: Some(keys) };
        let open = |parent: &Parent, clone, with: &Keyring| {
            let opened = parent.keys.as_ref().unwrap().open(parent.uuid, (clone, with));
            opened.map(|keyring| *keyring.current().1.bytes())
        };
        assert_eq!(open(&parent, Uuid::nil(), &own), Some([1; 32]));
        assert_eq!((open(&parent, Uuid::nil(), &next), open(&parent, sample().uuid, &own)), (None, None));
        parent.hand_to(Uuid::nil(), (&own, &next)).unwrap();
        assert_eq!((open(&parent, Uuid::nil(), &next), open(&parent, Uuid::nil(), &own)), (Some([1; 32]), None));
        assert!(parent.hand_to(Uuid::nil(), (&own, &next)).is_err());
    }

    fn keyring(byte: u8) -> Keyring {
        Keyring::new((1, Locked::take(&mut [byte; 32])), [], None)
    }

    /// The sample, encrypted: with one slot, that a key file of threes opens.
    fn encrypted() -> Meta {
        let mut encryption = Encryption::of(sample().uuid, &keyring(9));
        let from = NewSlot::KeyFile(&[3; 32]);
        encryption.slots.push(KeySlot::new(1, sample().uuid, &keyring(9), &from, [5; 16], 1).unwrap());
        Meta { encryption: Some(encryption), compression: Compression::Zstd(3), ..sample() }
    }

    #[test]
    fn format_2_comes_back_and_proves_who_wrote_it() {
        let zstd = Meta { compression: Compression::Zstd(7), ..sample() };
        assert_eq!(Meta::decode(&name("disk0"), &zstd.encode(None)), Ok(zstd));
        let meta = encrypted();
        let bytes = meta.encode(Some(&keyring(9)));
        assert_eq!(Meta::decode(&name("disk0"), &bytes).as_ref(), Ok(&meta));
        assert_eq!(meta.prove(&bytes, &keyring(9)), Ok(()));
        assert_eq!(meta.prove(&bytes, &keyring(8)), Err(MetaError::Forged));
        assert_eq!(meta.prove(&meta.encode(None), &keyring(9)), Err(MetaError::Forged));
        // The tag of another description, with a good hash.
        let other = Meta { size: 1 << 40, ..meta.clone() };
        let (json, tag) = (json(&other.written2(2)), &bytes[bytes.len() - 130..bytes.len() - 65]);
        let mut spliced = [&json[..], tag].concat();
        spliced.extend_from_slice(format!("{}\n", blake3::hash(&spliced).to_hex()).as_bytes());
        assert_eq!(Meta::decode(&name("disk0"), &spliced), Ok(other.clone()));
        assert_eq!(other.prove(&spliced, &keyring(9)), Err(MetaError::Forged));
    }

    #[test]
    fn slots_are_few_and_of_different_ids() {
        for slots in [0, 2, 17] {
            let mut meta = encrypted();
            let encryption = meta.encryption.as_mut().unwrap();
            encryption.slots = vec![encryption.slots[0].clone(); slots];
            let error = Meta::decode(&name("disk0"), &meta.encode(Some(&keyring(9)))).unwrap_err().to_string();
            assert_eq!(error, "it is malformed: it has no key slots, too many, or two of one id");
        }
    }

    #[test]
    fn seal_and_slots_agree() {
        let text = String::from_utf8(json(&encrypted().written2(2))).unwrap();
        let text = text.replace("chacha20-poly1305", "blake3");
        let bytes = format!("{text}{}\n", blake3::hash(text.as_bytes()).to_hex());
        let error = Meta::decode(&name("disk0"), bytes.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "it is malformed: its seal and its key slots contradict each other");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = sample().encode(None);
        for bit in 0..bytes.len() * 8 {
            let mut harmed = bytes.clone();
            harmed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&name("disk0"), &harmed), Err(MetaError::Harmed), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(Meta::decode(&name("disk0"), &bytes[..len]), Err(MetaError::Harmed), "{len} bytes");
        }
    }

    #[test]
    fn every_cut_is_torn_and_nothing_else_is() {
        for bytes in [sample().encode(None), encrypted().encode(Some(&keyring(1))), encrypted().encode(None)] {
            for len in 0..bytes.len() {
                assert!(Meta::is_torn(&bytes[..len]), "{len} bytes");
            }
            for at in 0..bytes.len() {
                let mut harmed = bytes.clone();
                harmed[at] ^= 1;
                assert!(!Meta::is_torn(&harmed), "byte {at}");
            }
            assert!(!Meta::is_torn(&bytes) && !Meta::is_torn(&[&bytes[..], b"x"].concat()));
        }
    }

    #[test]
    fn what_a_later_ashlar_wrote_is_refused_and_not_misread() {
        assert_eq!(
            error_of("\"format\": 1", "\"format\": 9, \"news\": true"),
            "its format 9 is unknown (this ashlar reads up to 8): a newer ashlar is needed"
        );
        assert_eq!(error_of("\"lz4\"", "\"zstd\""), "it uses codec \"zstd\", which this ashlar does not support");
        assert_eq!(error_of("\"blake3\"", "\"aes\""), "it uses seal \"aes\", which this ashlar does not support");
        assert_eq!(error_of("[]", "[{}]"), "it uses encryption, which this ashlar does not support");
        assert_eq!(error_of("null", "\"base\""), "it uses a parent volume, which this ashlar does not support");
        assert!(error_of("\"codec\"", "\"kodek\"").starts_with("it is malformed: unknown field `kodek`"));
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        assert_eq!(
            error_of("10737418240", "0"),
            "it is malformed: a volume of size 0 cannot be: give it at least one block"
        );
        assert!(error_of("4096", "4095").contains("block size 4095 is not a power of two"));
        assert!(error_of("\"disk0\"", "\".disk\"").contains("must begin with a letter or a digit"));
        assert_eq!(
            error_of("\"disk0\"", "\"disk1\""),
            "it describes the volume disk1: its folder was copied or renamed; move it back under that name"
        );
    }

    #[test]
    fn sizes() {
        let check = |size| Meta::check_size(size, BlockSize::default()).map_err(|e| e.to_string());
        assert_eq!(check(4096), Ok(()));
        assert_eq!(check(0), Err("a volume of size 0 cannot be: give it at least one block".into()));
        assert_eq!(
            check(5000),
            Err("size 5000 is not a multiple of the block size 4096; the next that is would be 8192".into())
        );
        assert_eq!(
            check(1 << 63),
            Err("size 9223372036854775808 is more than a volume can have: the most is 8 EiB less 64 KiB \
                 (9223372036854710272 bytes)"
                .into())
        );
    }

    #[test]
    fn names() {
        for good in ["a", "0", "disk0", "Web-1.prod_x", &"x".repeat(64)] {
            assert!(VolumeName::new(good).is_ok(), "{good}");
        }
        let error = |name: &str| VolumeName::new(name).unwrap_err().to_string();
        assert_eq!(error(""), "a volume needs a name");
        assert_eq!(error(".probe"), "volume name \".probe\" must begin with a letter or a digit (A-Z, a-z, 0-9)");
        assert_eq!(error("-x"), "volume name \"-x\" must begin with a letter or a digit (A-Z, a-z, 0-9)");
        assert_eq!(error("a/b"), "volume name \"a/b\" contains '/'; letters, digits, '.', '_' and '-' are accepted");
        assert_eq!(error("aé"), "volume name \"aé\" contains 'é'; letters, digits, '.', '_' and '-' are accepted");
        assert_eq!(error(&"x".repeat(65)), "a volume name of 65 bytes is too long; at most 64 are accepted");
    }
}
