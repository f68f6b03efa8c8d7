//! What every backend and every wrapper must do: the contract of [`Store`], case by case.
//!
//! `conformance!(name, make)` makes a test of each case; `make` is an async function that returns a [`Subject`].
//! Cases keep to a prefix of their own, so that they also run against a store that holds other things.

use std::any::Any;
use std::sync::Arc;

use ashlar::outside::Random;
use ashlar::store::{ErrorKind, Key, Store, list_all};
use bytes::Bytes;

/// A store under test, and what must live as long as it does.
pub struct Subject {
    pub store: Arc<dyn Store>,
    pub keep: Box<dyn Any + Send>,
    /// How often two writers race; fewer for stores that take milliseconds.
    pub rounds: usize,
}

/// A test of each case.
#[macro_export]
macro_rules! conformance {
    ($make:path) => {
        $crate::conformance! { $make =>
            create_only, create_only_in_a_race, create_only_in_a_race_of_handles, ranges, empty_objects, parts_are_joined,
            a_big_object, listing_order, pages, start_after, list_top, deletes, odd_keys, absent_objects
        }
    };
    ($make:path => $($case:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let subject = $make().await;
            $crate::support::conformance::$case(&subject).await;
            drop(subject.keep);
        }
    )*};
}

fn key(path: impl Into<String>) -> Key {
    Key::new(path).unwrap()
}

/// A prefix that nothing else uses.
fn fresh(case: &str) -> String {
    format!("{case}-{}", Random::system().uuid())
}

async fn put(subject: &Subject, path: &str, body: impl Into<Bytes>) {
    subject.store.put(&key(path), vec![body.into()]).await.unwrap();
}

async fn listed(subject: &Subject, prefix: &str) -> Vec<String> {
    let all = list_all(subject.store.as_ref(), prefix).await.unwrap();
    all.into_iter().map(|entry| entry.key.to_string()).collect()
}

async fn clear(subject: &Subject, base: &str) {
    let all = list_all(subject.store.as_ref(), base).await.unwrap();
    let keys: Vec<Key> = all.into_iter().map(|entry| entry.key).collect();
    subject.store.delete(&keys).await.unwrap();
}

pub async fn create_only(subject: &Subject) {
    let base = fresh("create");
    let path = format!("{base}/meta/0");
    put(subject, &path, "first").await;
    for _ in 0..3 {
        let error = subject.store.put(&key(&path), vec![Bytes::from_static(b"second")]).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}");
        assert!(error.message.contains(&path), "{error}");
    }
    assert_eq!(subject.store.get(&key(&path)).await.unwrap(), "first");
    subject.store.delete(&[key(&path)]).await.unwrap();
    put(subject, &path, "third").await;
    clear(subject, &base).await;
}

pub async fn create_only_in_a_race(subject: &Subject) {
    race(subject, 2).await;
}

pub async fn create_only_in_a_race_of_handles(subject: &Subject) {
    race(subject, 8).await;
}

/// Exactly one of the writers wins each round, and the object is the winner's.
async fn race(subject: &Subject, writers: usize) {
    let base = fresh("race");
    for round in 0..subject.rounds {
        let path = key(format!("{base}/segments/{:02x}/{round:016x}", round % 256));
        let writers = (0..writers).map(|writer| {
            let (store, path) = (subject.store.clone(), path.clone());
            tokio::spawn(async move {
                // Bodies of some length, in parts, so that a torn one would show.
                let body = vec![Bytes::from(vec![writer as u8; 5000]); 3];
                store.put(&path, body).await.map_err(|error| error.kind)
            })
        });
        let results: Vec<_> = futures::future::join_all(writers).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<usize> = (0..results.len()).filter(|&writer| results[writer].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {results:?}");
        let losses = results.iter().filter(|result| **result == Err(ErrorKind::AlreadyExists)).count();
        assert_eq!(losses, results.len() - 1, "round {round}: {results:?}");
        assert_eq!(subject.store.get(&path).await.unwrap(), vec![winners[0] as u8; 15000], "round {round}");
    }
    assert_eq!(listed(subject, &base).await.len(), subject.rounds);
    clear(subject, &base).await;
}

pub async fn ranges(subject: &Subject) {
    let base = fresh("ranges");
    let path = key(format!("{base}/object"));
    put(subject, path.as_str(), "0123456789").await;
    for (range, expected) in [
        (0..10, "0123456789"),
        (0..1, "0"),
        (9..10, "9"),
        (3..7, "3456"),
        (9..100, "9"),
        (0..u64::MAX, "0123456789"),
        (4..u64::MAX, "456789"),
        (10..11, ""),
        (10..u64::MAX, ""),
        (1000..2000, ""),
        (4..4, ""),
        (10..10, ""),
    ] {
        assert_eq!(subject.store.get_range(&path, range.clone()).await.unwrap(), expected, "{range:?}");
    }
    for len in [1, 4, 10, 100] {
        let front = subject.store.get_front(&path, len).await.unwrap();
        assert_eq!(front.bytes, "0123456789"[..10.min(len as usize)], "{len}");
        assert!(front.total.is_none_or(|total| total == 10), "{len}: {:?}", front.total);
    }
    clear(subject, &base).await;
}

pub async fn empty_objects(subject: &Subject) {
    let base = fresh("empty");
    let (none, some) = (key(format!("{base}/none")), key(format!("{base}/some")));
    subject.store.put(&none, vec![]).await.unwrap();
    subject.store.put(&some, vec![Bytes::new(), Bytes::new()]).await.unwrap();
    for path in [&none, &some] {
        assert_eq!(subject.store.get(path).await.unwrap(), "");
        assert_eq!(subject.store.get_range(path, 0..10).await.unwrap(), "");
        assert_eq!(subject.store.get_range(path, 0..0).await.unwrap(), "");
        let front = subject.store.get_front(path, 10).await.unwrap();
        assert!(front.bytes.is_empty() && front.total.is_none_or(|total| total == 0), "{front:?}");
        assert_eq!(subject.store.put(path, vec![]).await.unwrap_err().kind, ErrorKind::AlreadyExists);
    }
    let sizes: Vec<u64> =
        list_all(subject.store.as_ref(), &base).await.unwrap().iter().map(|entry| entry.size).collect();
    assert_eq!(sizes, [0, 0]);
    clear(subject, &base).await;
}

pub async fn parts_are_joined(subject: &Subject) {
    let base = fresh("parts");
    let path = key(format!("{base}/object"));
    let parts = ["", "ab", "", "c", "", "", "defgh", ""].map(|part| Bytes::from_static(part.as_bytes()));
    subject.store.put(&path, parts.to_vec()).await.unwrap();
    assert_eq!(subject.store.get(&path).await.unwrap(), "abcdefgh");

    let many: Vec<Bytes> = (0..5000u32).map(|n| Bytes::from(n.to_le_bytes().to_vec())).collect();
    let (path, whole) = (key(format!("{base}/many")), many.concat());
    subject.store.put(&path, many).await.unwrap();
    assert_eq!(subject.store.get(&path).await.unwrap(), whole);
    clear(subject, &base).await;
}

pub async fn a_big_object(subject: &Subject) {
    let base = fresh("big");
    let path = key(format!("{base}/object"));
    let whole: Vec<u8> = (0..16u32 * 1024 * 1024).map(|n| (n ^ n >> 8 ^ n >> 16) as u8).collect();
    let whole = Bytes::from(whole);
    let parts: Vec<Bytes> = (0..16).map(|n| whole.slice(n << 20..(n + 1) << 20)).collect();
    subject.store.put(&path, parts).await.unwrap();
    assert!(subject.store.get(&path).await.unwrap() == whole);
    let part = subject.store.get_range(&path, 5_000_000..5_100_000).await.unwrap();
    assert!(part == whole.slice(5_000_000..5_100_000));
    assert_eq!(list_all(subject.store.as_ref(), &base).await.unwrap()[0].size, 16 << 20);
    clear(subject, &base).await;
}

/// Byte order of whole keys, which is not the order in which a tree of directories is walked: `-` and `.` come
/// before `/`, digits after it.
pub async fn listing_order(subject: &Subject) {
    let base = fresh("order");
    let names = ["a-b/c", "a.b", "a/b", "a/b-c", "a/c/d", "a/cc", "a0", "aa/b", "A/z", "_/x", "a-/-", "a/..c", "Z"];
    for name in names {
        put(subject, &format!("{base}/{name}"), name).await;
    }
    let mut expected: Vec<String> = names.iter().map(|name| format!("{base}/{name}")).collect();
    expected.sort_unstable();
    assert_eq!(listed(subject, &base).await, expected);
    // A prefix is a prefix of the string, not a directory.
    for prefix in ["a", "a/", "a/c", "a/c/", "aa/b", "A", "a-b/c", "no", "a/b/", "a-"] {
        let prefix = format!("{base}/{prefix}");
        let expected: Vec<String> = expected.iter().filter(|path| path.starts_with(&prefix)).cloned().collect();
        assert_eq!(listed(subject, &prefix).await, expected, "{prefix}");
    }
    clear(subject, &base).await;
}

pub async fn pages(subject: &Subject) {
    const COUNT: u32 = 2100;
    let base = fresh("pages");
    let paths: Vec<String> = (0..COUNT).map(|n| format!("{base}/{:02x}/{n:08x}", n % 7)).collect();
    for some in paths.chunks(64) {
        futures::future::join_all(some.iter().map(|path| put(subject, path, "x"))).await;
    }
    let first = subject.store.list(&base, None).await.unwrap();
    assert!(!first.is_empty() && first.len() <= 1000, "{} objects are no page", first.len());
    assert!(!first.is_last(), "a full page is not believed to be the last one");
    let mut expected = paths;
    expected.sort_unstable();
    assert_eq!(listed(subject, &base).await, expected);

    let keys: Vec<Key> = expected.iter().map(key).collect();
    subject.store.delete(&keys).await.unwrap();
    assert_eq!(listed(subject, &base).await, [""; 0]);
}

pub async fn start_after(subject: &Subject) {
    let base = fresh("after");
    let names = ["a/a", "a/b", "a/c/d", "b", "c/a"];
    for name in names {
        put(subject, &format!("{base}/{name}"), "x").await;
    }
    let all: Vec<String> = names.iter().map(|name| format!("{base}/{name}")).collect();
    for after in ["a", "a/a", "a/aa", "a/b", "a/c", "a/c/d", "a/z", "b", "b0", "c/a", "z", "0"] {
        let after = key(format!("{base}/{after}"));
        for prefix in ["", "a/", "a/c", "b"] {
            let prefix = format!("{base}/{prefix}");
            let found = subject.store.list(&prefix, Some(&after)).await.unwrap();
            let found: Vec<String> = found.into_iter().map(|entry| entry.key.to_string()).collect();
            let wanted = |path: &&String| path.starts_with(&prefix) && path.as_str() > after.as_str();
            let expected: Vec<String> = all.iter().filter(wanted).cloned().collect();
            assert_eq!(found, expected, "{prefix} after {after}");
        }
    }
    clear(subject, &base).await;
}

pub async fn list_top(subject: &Subject) {
    let base = fresh("top");
    let names = ["b/x/y", "b/z", "a", "a-b/c", "c0/x"].map(|name| format!("{base}-{name}"));
    for name in &names {
        put(subject, name, "x").await;
    }
    let tops: Vec<String> = subject.store.list_top().await.unwrap();
    assert!(tops.is_sorted(), "{tops:?}");
    let ours: Vec<&str> = tops.iter().filter_map(|top| top.strip_prefix(&format!("{base}-"))).collect();
    assert_eq!(ours, ["a", "a-b", "b", "c0"]);
    clear(subject, &base).await;
    assert!(!subject.store.list_top().await.unwrap().iter().any(|top| top.starts_with(&base)));
}

pub async fn deletes(subject: &Subject) {
    let base = fresh("deletes");
    let keys: Vec<Key> = (0..20).map(|n| key(format!("{base}/{}/{n}", n % 3))).collect();
    for key in &keys {
        put(subject, key.as_str(), "x").await;
    }
    subject.store.delete(&[]).await.unwrap();
    // One by one, the absent among the present, and twice the same.
    let absent = key(format!("{base}/absent/x"));
    subject.store.delete(&keys[..1]).await.unwrap();
    subject.store.delete(&[absent.clone(), keys[1].clone(), keys[0].clone(), keys[1].clone()]).await.unwrap();
    subject.store.delete(&[absent]).await.unwrap();
    assert_eq!(listed(subject, &base).await.len(), 18);
    assert_eq!(subject.store.get(&keys[1]).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(subject.store.get(&keys[2]).await.unwrap(), "x");
    subject.store.delete(&keys).await.unwrap();
    assert_eq!(listed(subject, &base).await, [""; 0]);
}

pub async fn odd_keys(subject: &Subject) {
    let base = fresh("odd");
    let long = "x".repeat(200);
    let names =
        ["-", "_", "...", ".hidden", "a..b", "-rf", "0", "CON", "index.html", "a/b/c/d/e/f/g/h", "Aa/aA", &long];
    for name in names {
        let path = key(format!("{base}/{name}"));
        subject.store.put(&path, vec![Bytes::from(name.to_owned())]).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(subject.store.get(&path).await.unwrap(), name.to_owned());
    }
    assert_eq!(listed(subject, &format!("{base}/")).await.len(), names.len());
    clear(subject, &base).await;
    assert_eq!(listed(subject, &base).await, [""; 0]);
}

pub async fn absent_objects(subject: &Subject) {
    let base = fresh("absent");
    put(subject, &format!("{base}/a/b"), "x").await;
    for name in ["c", "a", "a/b/c", "a/c", "d/e/f"] {
        let path = key(format!("{base}/{name}"));
        let error = subject.store.get(&path).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
        for range in [0..1, 5..5, 10..u64::MAX] {
            assert_eq!(subject.store.get_range(&path, range).await.unwrap_err().kind, ErrorKind::NotFound, "{name}");
        }
        assert_eq!(subject.store.get_front(&path, 10).await.unwrap_err().kind, ErrorKind::NotFound, "{name}");
    }
    assert!(subject.store.list(&format!("{base}/c"), None).await.unwrap().is_empty());
    clear(subject, &base).await;
}
