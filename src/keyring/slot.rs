//! Key slots: the current data key of a volume, sealed with a key that a secret yields. They stand in the volume's
//! description ([`crate::format::meta`]); whoever can read the bucket can read them, and guess at passphrases offline:
//! hence Argon2id (RFC 9106).

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use ashlar_aead::{self as aead, TAG_BYTES};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use super::secret::{RecoveryKey, Secret};
use super::{Generation, KEY_BYTES, Keyring, Locked, SealWitness, derive};

/// The most slots of a volume.
pub const SLOTS_MAX: usize = 16;

const SEALED_BYTES: usize = KEY_BYTES + TAG_BYTES;

const KEY_FILE_CONTEXT: &str = "ashlar 2026 key slot of a key file";
const RECOVERY_CONTEXT: &str = "ashlar 2026 key slot of a recovery key";
const HANDED_CONTEXT: &str = "ashlar 2026 data keys of a parent";
const RETIRED_CONTEXT: &str = "ashlar 2026 retired data key";

/// What a volume's description says about its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// The data key that seals.
    pub generation: Generation,
    /// The ways to it, by id.
    pub slots: Vec<KeySlot>,
    /// The data keys before it.
    pub retired: Vec<RetiredKey>,
}

/// A data key of an earlier generation, sealed with the current one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredKey {
    /// Its number.
    pub generation: Generation,
    /// Key and tag.
    #[serde(with = "hex")]
    pub sealed: [u8; SEALED_BYTES],
}

/// The data keys of another volume, sealed with the current one of this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandedKeys {
    /// Its data key that seals.
    pub generation: Generation,
    /// All of its data keys.
    pub keys: Vec<RetiredKey>,
}

/// One way to the data key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySlot {
    /// Its number: stays the same while others come and go.
    pub id: u8,
    /// What opens it.
    pub kind: SlotKind,
    /// When it was made: milliseconds since 1970.
    pub created_unix_millis: u64,
    /// How a passphrase becomes a key; absent for the other kinds.
    pub argon2id: Option<Cost>,
    /// Random, drawn for this slot.
    #[serde(with = "hex")]
    pub salt: [u8; 16],
    /// The data key and its tag.
    #[serde(with = "hex")]
    pub sealed: [u8; SEALED_BYTES],
}

/// What opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// A passphrase, wherever it comes from.
    Passphrase = 0,
    /// The content of a key file.
    KeyFile = 1,
    /// The recovery key.
    Recovery = 2,
}

impl std::fmt::Display for SlotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            SlotKind::Passphrase => "passphrase",
            SlotKind::KeyFile => "key file",
            SlotKind::Recovery => "recovery key",
        })
    }
}

/// What trying a passphrase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// As little as is allowed: for tests, never for a volume that somebody keeps.
    pub const LEAST: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

    /// Whether a machine may be asked to pay it: whoever can write to the bucket could ask for anything.
    fn is_sane(self) -> bool {
        self.memory_kib <= 1 << 20 && self.passes <= 64 && self.lanes <= 16
    }

    /// The key that the passphrase yields.
    pub fn derive(self, passphrase: &[u8], salt: &[u8; 16]) -> Result<Zeroizing<[u8; KEY_BYTES]>, BadSlot> {
        let bad = || BadSlot::Cost(self);
        if !self.is_sane() {
            return Err(bad());
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY_BYTES)).map_err(|_| bad())?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon.hash_password_into(passphrase, salt, &mut *key).map_err(|_| bad())?;
        Ok(key)
    }
}

/// Why a slot cannot be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSlot {
    /// Its Argon2id parameters are not possible, or absurd.
    #[error("its Argon2id parameters ({} KiB, {} passes, {} lanes) are not accepted", .0.memory_kib, .0.passes, .0.lanes)]
    Cost(Cost),
    /// A passphrase slot without parameters, or another with them.
    #[error("its kind and its parameters contradict each other")]
    Contradiction,
}

/// What a new slot is made from.
#[derive(Debug)]
pub enum NewSlot<'a> {
    /// A passphrase, at this cost.
    Passphrase(&'a str, Cost),
    /// The content of a key file.
    KeyFile(&'a [u8]),
    /// A recovery key.
    Recovery(&'a RecoveryKey),
}

impl<'a> NewSlot<'a> {
    /// For a secret; a passphrase at this cost.
    pub fn of(secret: &'a Secret, cost: Cost) -> NewSlot<'a> {
        match secret {
            Secret::Passphrase(text) => NewSlot::Passphrase(text, cost),
            Secret::KeyFile(bytes) => NewSlot::KeyFile(bytes),
        }
    }

    fn kind(&self) -> SlotKind {
        match self {
            NewSlot::Passphrase(..) => SlotKind::Passphrase,
            NewSlot::KeyFile(_) => SlotKind::KeyFile,
            NewSlot::Recovery(_) => SlotKind::Recovery,
        }
    }

    fn key(&self, salt: &[u8; 16]) -> Result<Zeroizing<[u8; KEY_BYTES]>, BadSlot> {
        match self {
            NewSlot::Passphrase(text, cost) => cost.derive(text.as_bytes(), salt),
            NewSlot::KeyFile(bytes) => Ok(key_file_key(bytes, salt)),
            NewSlot::Recovery(key) => Ok(recovery_key(key, salt)),
        }
    }
}

impl KeySlot {
    /// A slot with this id that opens the keyring's current data key of the volume.
    pub fn new(
        id: u8,
        volume: Uuid,
        keyring: &Keyring,
        from: &NewSlot<'_>,
        salt: [u8; 16],
        created_unix_millis: u64,
    ) -> Result<KeySlot, BadSlot> {
        let (generation, data_key) = keyring.current();
        let argon2id = match from {
            NewSlot::Passphrase(_, cost) => Some(*cost),
            _ => None,
        };
        let mut slot =
            KeySlot { id, kind: from.kind(), created_unix_millis, argon2id, salt, sealed: [0; SEALED_BYTES] };
        let key = from.key(&salt)?;
        slot.sealed = seal(&key, 0, &slot.associated(volume, generation), data_key.bytes());
        Ok(slot)
    }

    /// The data key, if the secret opens this slot. Takes as long as the slot's Argon2id parameters say.
    pub fn open(&self, volume: Uuid, generation: Generation, secret: &Secret) -> Result<Option<Locked>, BadSlot> {
        let key = match (self.kind, self.argon2id, secret) {
            (SlotKind::Passphrase, Some(cost), Secret::Passphrase(text)) => cost.derive(text.as_bytes(), &self.salt)?,
            (SlotKind::KeyFile, None, Secret::KeyFile(bytes)) => key_file_key(bytes, &self.salt),
            (SlotKind::Recovery, None, Secret::Passphrase(text)) => match RecoveryKey::parse(text) {
                Some(key) => recovery_key(&key, &self.salt),
                None => return Ok(None),
            },
            (SlotKind::Passphrase, None, _) | (SlotKind::KeyFile | SlotKind::Recovery, Some(_), _) => {
                return Err(BadSlot::Contradiction);
            }
            _ => return Ok(None),
        };
        Ok(open(&key, 0, &self.associated(volume, generation), &self.sealed))
    }

    /// What the sealed key is bound to besides the secret.
    fn associated(&self, volume: Uuid, generation: Generation) -> Vec<u8> {
        let mut bytes = volume.as_bytes().to_vec();
        bytes.extend_from_slice(&[self.id, self.kind as u8, generation]);
        bytes
    }
}

impl Encryption {
    /// A keyring with the retired keys, once a slot has yielded the current one. `None` if a retired key does not open.
    pub fn keyring(&self, volume: Uuid, current: Locked, witness: Option<Arc<SealWitness>>) -> Option<Keyring> {
        let key = retired_key(&current, volume);
        let open_one = |retired: &RetiredKey| {
            let associated = [&volume.as_bytes()[..], &[retired.generation, self.generation]].concat();
            Some((retired.generation, open(&key, retired.generation, &associated, &retired.sealed)?))
        };
        let retired: Vec<_> = self.retired.iter().map(open_one).collect::<Option<_>>()?;
        Some(Keyring::new((self.generation, current), retired, witness))
    }

    /// For this keyring, as yet without a slot.
    pub fn of(volume: Uuid, keyring: &Keyring) -> Encryption {
        let (generation, current) = keyring.current();
        let key = retired_key(&current, volume);
        let seal_one = |(old, data_key): (Generation, Arc<Locked>)| {
            let associated = [&volume.as_bytes()[..], &[old, generation]].concat();
            RetiredKey { generation: old, sealed: seal(&key, old, &associated, data_key.bytes()) }
        };
        Encryption { generation, slots: Vec::new(), retired: keyring.retired().into_iter().map(seal_one).collect() }
    }

    /// Whether there are not too many slots, and no two of one id.
    pub fn is_sane(&self) -> bool {
        let mut ids: Vec<u8> = self.slots.iter().map(|slot| slot.id).collect();
        ids.sort_unstable();
        ids.len() <= SLOTS_MAX && !ids.is_empty() && ids.windows(2).all(|pair| pair[0] != pair[1])
    }

    /// The lowest id that no slot has; none if there are as many slots as there may be.
    pub fn free_id(&self) -> Option<u8> {
        if self.slots.len() >= SLOTS_MAX {
            return None;
        }
        (1..=u8::MAX).find(|id| self.slots.iter().all(|slot| slot.id != *id))
    }
}

impl HandedKeys {
    /// The data keys of the volume `from`, for whoever has those of the volume `to`.
    pub fn of((from, keys): (Uuid, &Keyring), (to, keyring): (Uuid, &Keyring)) -> HandedKeys {
        let (generation, current) = keys.current();
        let key = handing_key(keyring, from);
        let all = keys.retired().into_iter().chain([(generation, current)]);
        let seal_one = |(number, data_key): (Generation, Arc<Locked>)| RetiredKey {
            generation: number,
            sealed: seal(&key, number, &handed(from, to, number, generation), data_key.bytes()),
        };
        HandedKeys { generation, keys: all.map(seal_one).collect() }
    }

    /// Those data keys; nothing if one of them does not open, or the one that seals is not there.
    pub fn open(&self, from: Uuid, (to, keyring): (Uuid, &Keyring)) -> Option<Keyring> {
        let key = handing_key(keyring, from);
        let open_one = |one: &RetiredKey| {
            let associated = handed(from, to, one.generation, self.generation);
            Some((one.generation, open(&key, one.generation, &associated, &one.sealed)?))
        };
        let mut keys: Vec<_> = self.keys.iter().map(open_one).collect::<Option<_>>()?;
        let current = keys.iter().position(|(generation, _)| *generation == self.generation)?;
        Some(Keyring::new(keys.swap_remove(current), keys, None))
    }
}

fn handing_key(keyring: &Keyring, from: Uuid) -> Zeroizing<[u8; KEY_BYTES]> {
    Zeroizing::new(keyring.derive(HANDED_CONTEXT, from.as_bytes()))
}

fn handed(from: Uuid, to: Uuid, number: Generation, current: Generation) -> Vec<u8> {
    [from.as_bytes(), to.as_bytes(), &[number, current][..]].concat()
}

fn key_file_key(bytes: &[u8], salt: &[u8; 16]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut hashed = *blake3::hash(bytes).as_bytes();
    let key = Zeroizing::new(derive(KEY_FILE_CONTEXT, &hashed, salt));
    hashed.zeroize();
    key
}

fn recovery_key(key: &RecoveryKey, salt: &[u8; 16]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut hashed = *blake3::hash(&*key.0).as_bytes();
    let key = Zeroizing::new(derive(RECOVERY_CONTEXT, &hashed, salt));
    hashed.zeroize();
    key
}

fn retired_key(current: &Locked, volume: Uuid) -> Zeroizing<[u8; KEY_BYTES]> {
    Zeroizing::new(derive(RETIRED_CONTEXT, current.bytes(), volume.as_bytes()))
}

/// Seals a data key. `number` makes the nonce: a slot's key seals one data key only, under 0; the key for retired ones
/// seals each under its generation, and that is the same text each time.
fn seal(key: &[u8; KEY_BYTES], number: u8, associated: &[u8], data_key: &[u8; KEY_BYTES]) -> [u8; SEALED_BYTES] {
    let mut sealed = [0; SEALED_BYTES];
    let (text, tag) = sealed.split_at_mut(KEY_BYTES);
    text.copy_from_slice(data_key);
    #[allow(clippy::expect_used)] // the only error is a text of more than 256 GiB
    let made = aead::seal(key, &nonce(number), associated, text).expect("32 bytes");
    tag.copy_from_slice(&made);
    sealed
}

fn open(key: &[u8; KEY_BYTES], number: u8, associated: &[u8], sealed: &[u8; SEALED_BYTES]) -> Option<Locked> {
    let (text, tag) = sealed.split_at(KEY_BYTES);
    let mut data_key = Zeroizing::new([0; KEY_BYTES]);
    data_key.copy_from_slice(text);
    let is_whole = aead::open(key, &nonce(number), associated, tag.try_into().ok()?, &mut data_key[..]);
    is_whole.then(|| Locked::take(&mut data_key))
}

fn nonce(number: u8) -> [u8; aead::NONCE_BYTES] {
    let mut nonce = [0; aead::NONCE_BYTES];
    nonce[0] = number;
    nonce
}

/// Byte arrays as lower-case hexadecimal digits.
mod hex {
    use data_encoding::HEXLOWER;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<const N: usize, S: Serializer>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub fn deserialize<'de, const N: usize, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let len = bytes.len();
        bytes.try_into().map_err(|_| D::Error::custom(format!("{len} bytes in hexadecimal where {N} are expected")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: Uuid = Uuid::from_u128(7);

    fn keyring() -> Keyring {
        Keyring::new((1, Locked::take(&mut [9; KEY_BYTES])), [], None)
    }

    fn passphrase(text: &str) -> Secret {
        Secret::Passphrase(Zeroizing::new(text.into()))
    }

    fn slot(id: u8, from: &NewSlot<'_>) -> KeySlot {
        KeySlot::new(id, VOLUME, &keyring(), from, [id; 16], 1_700_000_000_000).unwrap()
    }

    fn opens(slot: &KeySlot, secret: &Secret) -> bool {
        slot.open(VOLUME, 1, secret).unwrap().is_some_and(|key| key.bytes() == &[9; KEY_BYTES])
    }

    #[test]
    fn a_slot_opens_with_its_secret_and_no_other() {
        let recovery = RecoveryKey::new([5; 20]);
        let slots = [
            slot(1, &NewSlot::Passphrase("correct horse", Cost::LEAST)),
            slot(2, &NewSlot::KeyFile(&[3; 32])),
            slot(3, &NewSlot::Recovery(&recovery)),
        ];
        let secrets = [
            passphrase("correct horse"),
            Secret::KeyFile(Zeroizing::new(vec![3; 32])),
            passphrase(&recovery.to_text()),
            passphrase("wrong"),
            Secret::KeyFile(Zeroizing::new(vec![4; 32])),
        ];
        for (at, slot) in slots.iter().enumerate() {
            for (given, secret) in secrets.iter().enumerate() {
                assert_eq!(opens(slot, secret), at == given, "{slot:?} with {secret:?} {given}");
            }
        }
    }

    #[test]
    fn a_slot_opens_only_in_its_volume_under_its_id_and_kind_and_generation() {
        let good = slot(2, &NewSlot::KeyFile(&[3; 32]));
        let secret = Secret::KeyFile(Zeroizing::new(vec![3; 32]));
        assert!(good.open(Uuid::from_u128(8), 1, &secret).unwrap().is_none());
        assert!(good.open(VOLUME, 2, &secret).unwrap().is_none());
        assert!(KeySlot { id: 3, ..good.clone() }.open(VOLUME, 1, &secret).unwrap().is_none());
        for at in 0..SEALED_BYTES {
            let mut harmed = good.clone();
            harmed.sealed[at] ^= 1;
            assert!(harmed.open(VOLUME, 1, &secret).unwrap().is_none());
        }
    }

    #[test]
    fn absurd_parameters_are_refused_before_memory_is_taken() {
        let good = slot(1, &NewSlot::Passphrase("x", Cost::LEAST));
        for cost in [
            Cost { memory_kib: u32::MAX, ..Cost::LEAST },
            Cost { passes: u32::MAX, ..Cost::LEAST },
            Cost { lanes: 0, ..Cost::LEAST },
        ] {
            let slot = KeySlot { argon2id: Some(cost), ..good.clone() };
            assert_eq!(slot.open(VOLUME, 1, &passphrase("x")).unwrap_err(), BadSlot::Cost(cost));
        }
        let none = KeySlot { argon2id: None, ..good };
        assert_eq!(none.open(VOLUME, 1, &passphrase("x")).unwrap_err(), BadSlot::Contradiction);
    }

    #[test]
    fn retired_keys_come_back_with_the_current_one() {
        let second = keyring().rotated(Locked::take(&mut [8; KEY_BYTES])).unwrap();
        let third = second.rotated(Locked::take(&mut [7; KEY_BYTES])).unwrap();
        let mut encryption = Encryption::of(VOLUME, &third);
        assert_eq!((encryption.generation, encryption.retired.len()), (3, 2));
        let again = encryption.keyring(VOLUME, Locked::take(&mut [7; KEY_BYTES]), None).unwrap();
        for (generation, byte) in [(1, 9), (2, 8), (3, 7)] {
            assert_eq!(again.key(generation).unwrap().bytes(), &[byte; KEY_BYTES]);
        }
        assert!(again.key(4).is_none());
        assert!(encryption.keyring(VOLUME, Locked::take(&mut [6; KEY_BYTES]), None).is_none());
        encryption.retired[0].generation = 2;
        assert!(encryption.keyring(VOLUME, Locked::take(&mut [7; KEY_BYTES]), None).is_none());
    }

    #[test]
    fn ids_stay_and_free_ones_are_taken_again() {
        let mut encryption = Encryption::of(VOLUME, &keyring());
        assert_eq!(encryption.free_id(), Some(1));
        for id in [1, 3] {
            encryption.slots.push(slot(id, &NewSlot::KeyFile(&[3; 32])));
        }
        assert_eq!(encryption.free_id(), Some(2));
        encryption.slots.extend((4..18).map(|id| slot(id, &NewSlot::KeyFile(&[3; 32]))));
        assert_eq!(encryption.free_id(), None);
    }
}
