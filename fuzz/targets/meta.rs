//! Descriptions of volumes.
//!
//! The first byte says how they are read: as they are, or as JSON before a line with its true hash, with or without a line for the tag.
#![no_main]

use ashlar::format::meta::{Meta, VolumeName};
use ashlar_fuzz::{fair, keyring, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&first, text)) = data.split_first() else { return };
    within(fair(data.len()), || match first % 3 {
        0 => look(text),
        1 => look(&hashed(text.to_vec())),
        _ => look(&hashed([text, "0".repeat(64).as_bytes(), b"\n"].concat())),
    });
    let _ = str::from_utf8(text).map(VolumeName::new);
});

/// With a line that is the hash of what is before it.
fn hashed(mut text: Vec<u8>) -> Vec<u8> {
    let hash = blake3::hash(&text).to_hex();
    text.extend_from_slice(hash.as_bytes());
    text.push(b'\n');
    text
}

fn look(bytes: &[u8]) {
    let _ = Meta::is_torn(bytes);
    let name = VolumeName::new("disk0").expect("a name");
    let Ok(meta) = Meta::decode(&name, bytes) else { return };
    let _ = meta.prove(bytes, &keyring());
    let again = meta.encode(None);
    assert_eq!(Meta::decode(&name, &again).as_ref(), Ok(&meta), "what was read can be written");
    assert!(!Meta::is_torn(&again) && Meta::is_torn(&again[..again.len() / 2]));
}
