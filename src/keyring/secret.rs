//! What a person or a program gives to unlock a volume.

use std::fmt;

use data_encoding::BASE32;
use zeroize::{Zeroize, Zeroizing};

/// The fewest bytes of a key file: less than this could be guessed, and is better given as a passphrase.
pub const KEY_FILE_BYTES_MIN: usize = 32;

/// The most bytes of a key file or passphrase.
pub const SECRET_BYTES_MAX: usize = 1 << 20;

/// A secret. It is not shown, and zeroed when it is dropped.
#[derive(Clone)]
pub enum Secret {
    /// What a person remembers, or a password manager keeps. A recovery key may be given in its place.
    Passphrase(Zeroizing<String>),
    /// Random bytes, at least [`KEY_FILE_BYTES_MIN`].
    KeyFile(Zeroizing<Vec<u8>>),
}

/// Why something is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// Nothing.
    #[error("it is empty")]
    Empty,
    /// Not text.
    #[error("it is not UTF-8 text; random bytes can be given as a key file")]
    NotText,
    /// Too short for a key file.
    #[error("a key file of {0} bytes could be guessed: it must have {KEY_FILE_BYTES_MIN} random bytes or more")]
    Short(usize),
    /// Too long.
    #[error("it is longer than 1 MiB")]
    Long,
}

impl Secret {
    /// A passphrase: the text, without the end of its line.
    pub fn passphrase(mut bytes: Zeroizing<Vec<u8>>) -> Result<Secret, BadSecret> {
        for end in [b'\n', b'\r'] {
            if bytes.last() == Some(&end) {
                bytes.pop();
            }
        }
        match bytes.len() {
            0 => Err(BadSecret::Empty),
            len if len > SECRET_BYTES_MAX => Err(BadSecret::Long),
            _ => match String::from_utf8(std::mem::take(&mut *bytes)) {
                Ok(text) => Ok(Secret::Passphrase(Zeroizing::new(text))),
                Err(error) => {
                    error.into_bytes().zeroize();
                    Err(BadSecret::NotText)
                }
            },
        }
    }

    /// A key file's content, whole.
    pub fn key_file(bytes: Zeroizing<Vec<u8>>) -> Result<Secret, BadSecret> {
        match bytes.len() {
            0 => Err(BadSecret::Empty),
            len if len < KEY_FILE_BYTES_MIN => Err(BadSecret::Short(len)),
            len if len > SECRET_BYTES_MAX => Err(BadSecret::Long),
            _ => Ok(Secret::KeyFile(bytes)),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Passphrase(_) => "Passphrase",
            Secret::KeyFile(_) => "KeyFile",
        })
    }
}

/// Random bytes of a recovery key: 160 bits.
pub const RECOVERY_BYTES: usize = 20;

/// A key for the drawer: shown once, written on paper, typed in when everything else is lost.
pub struct RecoveryKey(pub(super) Zeroizing<[u8; RECOVERY_BYTES]>);

impl RecoveryKey {
    /// From random bytes.
    pub fn new(random: [u8; RECOVERY_BYTES]) -> RecoveryKey {
        RecoveryKey(Zeroizing::new(random))
    }

    /// As a person writes it: eight groups of four letters and digits.
    pub fn to_text(&self) -> Zeroizing<String> {
        let plain = Zeroizing::new(BASE32.encode(&*self.0));
        let mut text = Zeroizing::new(String::with_capacity(plain.len() * 5 / 4));
        for (at, character) in plain.chars().enumerate() {
            if at > 0 && at % 4 == 0 {
                text.push('-');
            }
            text.push(character);
        }
        text
    }

    /// From what a person typed: hyphens, blanks and case do not matter.
    pub fn parse(text: &str) -> Option<RecoveryKey> {
        let plain: Zeroizing<String> = Zeroizing::new(
            text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| c.to_ascii_uppercase()).collect(),
        );
        let mut bytes = Zeroizing::new([0; RECOVERY_BYTES]);
        match BASE32.decode_len(plain.len()) {
            Ok(RECOVERY_BYTES) => BASE32.decode_mut(plain.as_bytes(), &mut *bytes).ok().map(|_| RecoveryKey(bytes)),
            _ => None,
        }
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(bytes: &[u8]) -> Result<String, BadSecret> {
        match Secret::passphrase(Zeroizing::new(bytes.to_vec()))? {
            Secret::Passphrase(text) => Ok(text.to_string()),
            Secret::KeyFile(_) => unreachable!(),
        }
    }

    #[test]
    fn a_passphrase_ends_before_the_end_of_its_line() {
        assert_eq!(passphrase(b"correct horse\n"), Ok("correct horse".into()));
        assert_eq!(passphrase(b"correct horse\r\n"), Ok("correct horse".into()));
        assert_eq!(passphrase(b" two\nlines \n\n"), Ok(" two\nlines \n".into()));
        assert_eq!(passphrase(b"\n"), Err(BadSecret::Empty));
        assert_eq!(passphrase(b"\xff\xfe"), Err(BadSecret::NotText));
    }

    #[test]
    fn a_key_file_must_not_be_short() {
        let key_file = |len| Secret::key_file(Zeroizing::new(vec![7; len])).map(|_| ());
        assert_eq!(key_file(32), Ok(()));
        assert_eq!(key_file(31), Err(BadSecret::Short(31)));
        assert_eq!(key_file(0), Err(BadSecret::Empty));
        assert_eq!(key_file(SECRET_BYTES_MAX + 1), Err(BadSecret::Long));
    }

    #[test]
    fn a_recovery_key_survives_paper() {
        let key = RecoveryKey::new(*b"twenty random bytes!");
        let text = key.to_text();
        assert_eq!(text.len(), 39);
        assert!(text.split('-').all(|group| group.len() == 4));
        for typed in
            [text.to_string(), text.to_lowercase(), text.replace('-', " "), format!(" {} \n", text.replace('-', ""))]
        {
            assert_eq!(RecoveryKey::parse(&typed).unwrap().0, key.0, "{typed}");
        }
        assert!(RecoveryKey::parse(&text[1..]).is_none());
        assert!(RecoveryKey::parse("correct horse battery staple").is_none());
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::passphrase(Zeroizing::new(b"hunter2".to_vec())).unwrap();
        assert_eq!(format!("{secret:?} {:?}", RecoveryKey::new([7; 20])), "Passphrase RecoveryKey");
    }
}
