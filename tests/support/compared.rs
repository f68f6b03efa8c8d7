//! What a device says of where it differs from its versions, held against what both hold.

use std::collections::BTreeMap;

use ashlar::device::{Compared, Device};

/// All that a device says, in as many calls as it takes.
pub async fn compared(device: &dyn Device, since: &str, most: usize) -> Vec<Compared> {
    let versions = device.versions().await.unwrap();
    let since = versions.iter().find(|version| version.name == since).unwrap();
    let (mut all, mut at, size) = (Vec::new(), 0, device.info().size);
    while at < size {
        let found = device.compare(since, at, size - at, most).await.unwrap();
        assert!((1..=most).contains(&found.len()));
        assert!(found.iter().all(|part| part.len > 0) && found.windows(2).all(|two| two[0].differs != two[1].differs));
        at += found.iter().map(|part| part.len).sum::<u64>();
        all.extend(found);
    }
    assert_eq!(at, size);
    all
}

/// What is said not to differ from a version is the same, of each that there is.
pub async fn knows_what_has_changed(device: &dyn Device, holds: &[u8], versions: &BTreeMap<String, Vec<u8>>) {
    for (no, (name, held)) in versions.iter().enumerate() {
        let mut at = 0;
        for part in compared(device, name, [1000, 5, 70][no % 3]).await {
            let end = at + part.len as usize;
            assert!(part.differs || holds[at..end] == held[at..end], "{part:?} at {at}, since {name}");
            at = end;
        }
    }
}
