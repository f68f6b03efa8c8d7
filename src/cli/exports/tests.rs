use std::pin::pin;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::*;
use crate::device::{DeviceError, DeviceInfo, Pieces, Run};

/// Volumes that open when the test lets them.
#[derive(Default)]
struct Shelf {
    names: Mutex<Vec<String>>,
    /// Volume, snapshot, and what makes it itself.
    snapshots: Mutex<Vec<(String, String, u64)>>,
    refusal: Mutex<Option<String>>,
    gate: Option<Arc<Semaphore>>,
    opened: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    /// What closing waits for.
    last_upload: Option<Arc<Semaphore>>,
}

struct Fake {
    lost: AtomicBool,
    closed: Arc<AtomicUsize>,
    last_upload: Option<Arc<Semaphore>>,
}

#[async_trait]
impl Volumes for Arc<Shelf> {
    type Volume = Fake;
    type Past = FakePast;
    type Followed = FakePast;

    async fn names(&self) -> Result<Vec<String>, String> {
        Ok(self.names.lock().clone())
    }

    async fn open(&self, name: &str) -> Result<Arc<Fake>, OpenFailure> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        if !self.names.lock().iter().any(|known| known == name) {
            return Err(OpenFailure::Unknown);
        }
        match self.refusal.lock().clone() {
            Some(why) => Err(OpenFailure::Refused(why)),
            None => Ok(Arc::new(Fake {
                lost: AtomicBool::new(false),
                closed: Arc::clone(&self.closed),
                last_upload: self.last_upload.clone(),
            })),
        }
    }

    async fn snapshots(&self, name: &str, _: Option<Arc<Fake>>) -> Result<Vec<String>, String> {
        let snapshots = self.snapshots.lock();
        Ok(snapshots.iter().filter(|(volume, ..)| volume == name).map(|(_, snapshot, _)| snapshot.clone()).collect())
    }

    async fn open_past(&self, volume: &str, snapshot: &str) -> Result<FakePast, OpenFailure> {
        let snapshots = self.snapshots.lock();
        let found = snapshots.iter().find(|(of, name, _)| of == volume && name == snapshot);
        found.map(|(.., identity)| FakePast { identity: *identity }).ok_or(OpenFailure::Unknown)
    }

    fn past_identity(past: &FakePast) -> String {
        past.identity.to_string()
    }

    async fn follow(&self, name: &str) -> Result<FakePast, OpenFailure> {
        match self.names.lock().iter().any(|known| known == name) {
            true => Ok(FakePast { identity: 99 }),
            false => Err(OpenFailure::Unknown),
        }
    }

    fn followed_identity(followed: &FakePast) -> String {
        followed.identity.to_string()
    }

    fn lost(volume: &Fake) -> bool {
        volume.lost.load(Ordering::SeqCst)
    }

    fn identity(_: &Fake) -> String {
        "fake".to_owned()
    }

    fn dirty_bytes(_: &Fake) -> u64 {
        7
    }

    async fn close(&self, volume: &Fake) -> Result<(), String> {
        volume.closed.fetch_add(1, Ordering::SeqCst);
        if let Some(upload) = &volume.last_upload {
            drop(upload.acquire().await.unwrap());
        }
        if volume.lost.load(Ordering::SeqCst) { Err("another server took it".to_owned()) } else { Ok(()) }
    }
}

struct FakePast {
    identity: u64,
}

/// A device in which there is nothing.
macro_rules! device {
    ($device:ty, $read_only:expr) => {
        #[async_trait]
        impl Device for $device {
            fn info(&self) -> DeviceInfo {
                DeviceInfo { size: 4096, block_size: 4096, read_only: $read_only }
            }
            async fn read(&self, _: u64, _: u32) -> Result<Pieces, DeviceError> {
                Ok(Pieces::new())
            }
            async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), DeviceError> {
                Ok(())
            }
            async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), DeviceError> {
                Ok(())
            }
            async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), DeviceError> {
                Ok(())
            }
            async fn flush(&self) -> Result<(), DeviceError> {
                Ok(())
            }
            async fn cache(&self, _: u64, _: u64) -> Result<(), DeviceError> {
                Ok(())
            }
            async fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Run>, DeviceError> {
                Ok(Vec::new())
            }
        }
    };
}

device!(Fake, false);
device!(FakePast, true);

fn shelf(names: &[&str], gate: Option<Arc<Semaphore>>) -> Arc<Shelf> {
    let names = Mutex::new(names.iter().map(|name| (*name).to_owned()).collect());
    Arc::new(Shelf { names, gate, ..Shelf::default() })
}

fn exports(shelf: &Arc<Shelf>, only: &[&str]) -> VolumeExports<Arc<Shelf>> {
    let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
    VolumeExports::new(Arc::clone(shelf), &only, ReadOnlyVolumes::default())
}

fn slots(exports: &VolumeExports<Arc<Shelf>>) -> usize {
    exports.0.slots.lock().len()
}

#[tokio::test]
async fn a_volume_that_was_handed_over_is_closed_and_opened_here_no_more_until_it_is_taken_back() {
    let shelf = shelf(&["a", "b"], None);
    let exports = exports(&shelf, &[]);
    assert!(exports.hand_over("a", "there", || {}).await.is_err(), "it is not open");
    let held = exports.volume("a").await.unwrap();
    exports.volume("b").await.unwrap();
    let parted = AtomicBool::new(false);
    let part = || {
        // Nobody gets it any more before those who have it are sent away, or they would be back at once.
        assert_eq!(exports.moved(), [("a".to_owned(), "there".to_owned())]);
        parted.store(true, Ordering::SeqCst);
    };
    exports.hand_over("a", "there", part).await.unwrap();
    assert!(parted.load(Ordering::SeqCst));
    assert_eq!((shelf.closed.load(Ordering::SeqCst), slots(&exports)), (1, 1));
    let refused = exports.open("a").await.err().unwrap();
    assert!(
        matches!(&refused, ExportError::Elsewhere(why) if why == "volume a moved to there; attach it there"),
        "{refused}"
    );
    assert!(exports.open("b").await.is_ok());
    assert_eq!(exports.take_back("a"), Ok(()));
    assert_eq!(exports.take_back("a"), Err(NotTakenBack::IsHere("a".to_owned())));
    assert!(!Arc::ptr_eq(&held, &exports.volume("a").await.unwrap()), "it is opened anew");
}

#[tokio::test(start_paused = true)]
async fn clients_are_told_that_a_volume_will_leave_for_as_long_as_that_is_to_be_believed() {
    let exports = exports(&shelf(&["a", "b"], None), &[]);
    let told = async |name: &str| exports.open(name).await.unwrap().0.description;
    exports.announce("a", Duration::from_secs(10));
    assert_eq!((told("a").await, told("b").await), ("fake leaving".to_owned(), "fake".to_owned()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(told("a").await, "fake");
    exports.announce("a", Duration::from_secs(10));
    exports.hand_over("a", "there", || {}).await.unwrap();
    exports.take_back("a").unwrap();
    assert_eq!(told("a").await, "fake");
}

/// What is still being closed would be given to a client: it would get errors for its writes, and old data once another server
/// has it.
#[tokio::test]
async fn a_volume_that_is_still_being_closed_is_not_taken_back() {
    let upload = Arc::new(Semaphore::new(0));
    let shelf = Arc::new(Shelf {
        names: Mutex::new(vec!["a".to_owned()]),
        last_upload: Some(Arc::clone(&upload)),
        ..Shelf::default()
    });
    let exports = exports(&shelf, &[]);
    let held = exports.volume("a").await.unwrap();
    let mut handing = pin!(exports.hand_over("a", "there", || {}));
    assert!(futures::poll!(&mut handing).is_pending());
    assert_eq!(shelf.closed.load(Ordering::SeqCst), 1);
    // Whoever says it again waits for the same end.
    let mut again = pin!(exports.hand_over("a", "elsewhere", || {}));
    assert!(futures::poll!(&mut again).is_pending());
    assert_eq!(
        exports.take_back("a"),
        Err(NotTakenBack::IsClosing { name: "a".to_owned(), to: "elsewhere".to_owned() })
    );
    assert!(matches!(exports.open("a").await.err(), Some(ExportError::Elsewhere(_))));
    upload.add_permits(1);
    assert_eq!((handing.await, again.await), (Ok(()), Ok(())));
    assert_eq!(exports.moved(), [("a".to_owned(), "elsewhere".to_owned())]);
    assert_eq!(exports.take_back("a"), Ok(()));
    assert!(!Arc::ptr_eq(&held, &exports.volume("a").await.unwrap()), "it is opened anew");
}

#[tokio::test]
async fn every_volume_is_an_export_also_one_that_came_later() {
    let shelf = shelf(&["b", "a"], None);
    let exports = exports(&shelf, &[]);
    let names = |entries: Vec<ExportEntry>| entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    assert_eq!(names(exports.list().await.unwrap()), ["a", "b"]);
    shelf.names.lock().push("c".to_owned());
    assert_eq!(names(exports.list().await.unwrap()), ["a", "b", "c"]);
    assert!(exports.open("c").await.is_ok());
}

#[tokio::test]
async fn only_the_named_volumes_are_served() {
    let exports = exports(&shelf(&["a", "b"], None), &["b"]);
    assert_eq!(exports.list().await.unwrap().len(), 1);
    assert!(exports.open("b").await.is_ok());
    assert!(matches!(exports.open("a").await, Err(ExportError::Unknown(name)) if name == "a"));
}

#[tokio::test]
async fn the_empty_name_is_the_only_export_there_is() {
    let shelf = shelf(&["a"], None);
    let exports = exports(&shelf, &[]);
    assert_eq!(exports.open("").await.unwrap().0.name, "a");
    shelf.names.lock().push("b".to_owned());
    assert!(matches!(exports.open("").await, Err(ExportError::Unknown(name)) if name.is_empty()));
}

#[tokio::test]
async fn clients_that_ask_at_once_share_one_opening() {
    let gate = Arc::new(Semaphore::new(0));
    let shelf = shelf(&["a"], Some(Arc::clone(&gate)));
    let exports = exports(&shelf, &[]);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let exports = exports.clone();
            tokio::spawn(async move { exports.volume("a").await })
        })
        .collect();
    gate.add_permits(1);
    for client in clients {
        assert!(client.await.unwrap().is_ok());
    }
    assert_eq!(shelf.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_opening_outlives_the_client_that_asked() {
    let gate = Arc::new(Semaphore::new(0));
    let shelf = shelf(&["a"], Some(Arc::clone(&gate)));
    let exports = exports(&shelf, &[]);
    let client = tokio::spawn({
        let exports = exports.clone();
        async move { exports.volume("a").await.map(|_| ()) }
    });
    while shelf.opened.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    client.abort();
    gate.add_permits(1);
    assert!(exports.volume("a").await.is_ok());
    assert_eq!(shelf.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refusal_is_told_and_tried_again_and_leaves_nothing_behind() {
    let shelf = shelf(&["a"], None);
    *shelf.refusal.lock() = Some("held by another".to_owned());
    let exports = exports(&shelf, &[]);
    assert!(matches!(exports.open("a").await, Err(ExportError::Unavailable(why)) if why == "held by another"));
    assert!(matches!(exports.open("made up").await, Err(ExportError::Unknown(_))));
    let unopened = || exports.unopened().into_iter().map(|(name, since, why)| (name, (since, why))).collect::<Vec<_>>();
    let (name, (since, _)) = unopened().remove(0);
    assert_eq!((name.as_str(), unopened().len()), ("a", 1), "nobody is told of what is not there");
    *shelf.refusal.lock() = Some("store refuses".to_owned());
    assert!(exports.open("a").await.is_err());
    assert_eq!(unopened(), [("a".to_owned(), (since, "store refuses".to_owned()))]);
    assert_eq!(slots(&exports), 0);
    *shelf.refusal.lock() = None;
    assert!(exports.open("a").await.is_ok());
    assert_eq!((slots(&exports), unopened().len()), (1, 0));
}

#[tokio::test]
async fn a_volume_that_was_taken_over_is_opened_again_when_asked_for() {
    let shelf = shelf(&["a"], None);
    let exports = exports(&shelf, &[]);
    exports.volume("a").await.unwrap().lost.store(true, Ordering::SeqCst);
    assert!(!Arc::<Shelf>::lost(&*exports.volume("a").await.unwrap()));
    assert_eq!(shelf.opened.load(Ordering::SeqCst), 2);
    assert_eq!(exports.ended(), [], "it has come back with what its journal held");
}

/// Its journal may hold what was acknowledged: a stop must not say that everything is in the store.
#[tokio::test]
async fn a_volume_that_ended_and_does_not_open_again_is_not_forgotten() {
    let shelf = shelf(&["a"], None);
    let exports = exports(&shelf, &[]);
    exports.volume("a").await.unwrap().lost.store(true, Ordering::SeqCst);
    *shelf.refusal.lock() = Some("another server has it".to_owned());
    assert!(exports.volume("a").await.is_err());
    assert!(exports.volume("a").await.is_err(), "nor by asking twice");
    let ended = [("a".to_owned(), "another server took it".to_owned())];
    assert_eq!(exports.ended(), ended);
    assert_eq!(exports.close().await, ended);
}

#[tokio::test]
async fn closing_closes_what_is_open_or_being_opened_and_opens_no_more() {
    let gate = Arc::new(Semaphore::new(1));
    let shelf = shelf(&["a", "b"], Some(Arc::clone(&gate)));
    let exports = exports(&shelf, &[]);
    exports.volume("a").await.unwrap();
    assert_eq!(exports.dirty_bytes(), [("a".to_owned(), 7)]);
    let late = tokio::spawn({
        let exports = exports.clone();
        async move { exports.volume("b").await.map(|_| ()) }
    });
    while shelf.opened.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let (problems, late) = tokio::join!(exports.close(), async {
        gate.add_permits(1);
        late.await.unwrap()
    });
    assert!(problems.is_empty() && late.is_ok());
    assert_eq!(shelf.closed.load(Ordering::SeqCst), 2);
    assert!(matches!(exports.open("a").await, Err(ExportError::ShuttingDown)));
}

#[tokio::test]
async fn f2_volumes_that_are_to_be_read_only_say_so_and_the_others_do_not() {
    for (named, expected) in [(&[][..], [false, false]), (&["b"], [false, true]), (&["*"], [true, true])] {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let exports = VolumeExports::new(shelf(&["a", "b"], None), &[], ReadOnlyVolumes::new(&named));
        for (name, expected) in ["a", "b"].into_iter().zip(expected) {
            assert_eq!(exports.open(name).await.unwrap().1.info().read_only, expected, "{name} of {named:?}");
        }
    }
    let read_only = ReadOnlyVolumes::new(&["a".to_owned(), "typo".to_owned()]);
    assert_eq!((read_only.stranger(&["a", "b"]), read_only.stranger(&["a", "typo"])), (Some("typo"), None));
    assert_eq!(ReadOnlyVolumes::new(&["*".to_owned()]).stranger(&[]), None);
}

fn with_snapshots(names: &[&str], snapshots: &[(&str, &str, u64)]) -> Arc<Shelf> {
    let shelf = shelf(names, None);
    let named =
        |(volume, snapshot, identity): &(&str, &str, u64)| ((*volume).to_owned(), (*snapshot).to_owned(), *identity);
    *shelf.snapshots.lock() = snapshots.iter().map(named).collect();
    shelf
}

async fn listed(exports: &VolumeExports<Arc<Shelf>>) -> Vec<String> {
    exports.list().await.unwrap().into_iter().map(|entry| entry.name).collect()
}

#[tokio::test]
async fn a_snapshot_is_an_export_beside_its_volume_and_opens_no_volume() {
    let shelf = with_snapshots(&["a", "b"], &[("a", "monday", 1), ("a", "tuesday", 2), ("b", "monday", 3)]);
    let all = exports(&shelf, &[]);
    assert_eq!(listed(&all).await, ["a", "a@monday", "a@tuesday", "b", "b@monday"]);
    let (entry, device) = all.open("a@tuesday").await.unwrap();
    assert_eq!((entry.name.as_str(), entry.description.as_str(), device.info().read_only), ("a@tuesday", "2", true));
    for absent in ["a@sunday", "c@monday", "a@", "@monday", "a@monday@monday"] {
        assert!(matches!(all.open(absent).await, Err(ExportError::Unknown(name)) if name == absent), "{absent}");
    }
    assert_eq!((shelf.opened.load(Ordering::SeqCst), slots(&all)), (0, 0));
    all.close().await;
    assert!(matches!(all.open("a@monday").await, Err(ExportError::ShuttingDown)));
}

#[tokio::test]
async fn a_snapshot_may_be_had_where_its_volume_is_served_or_it_is_named_itself() {
    let shelf = with_snapshots(&["a", "b"], &[("a", "monday", 1), ("a", "tuesday", 2), ("b", "monday", 3)]);
    let of_volume = exports(&shelf, &["a", "a@monday"]);
    assert_eq!(listed(&of_volume).await, ["a", "a@monday", "a@tuesday"]);
    assert!(of_volume.open("a@tuesday").await.is_ok() && of_volume.open("b@monday").await.is_err());
    let of_snapshot = exports(&shelf, &["a@monday"]);
    assert_eq!((listed(&of_snapshot).await, of_snapshot.named()), (vec!["a@monday".to_owned()], Some(vec![])));
    assert!(of_snapshot.open("a@monday").await.is_ok());
    assert_eq!(of_snapshot.open("").await.unwrap().0.name, "a@monday");
    for other in ["a", "a@tuesday", "b@monday"] {
        assert!(matches!(of_snapshot.open(other).await, Err(ExportError::Unknown(_))), "{other}");
    }
}

#[tokio::test]
async fn the_empty_name_is_the_only_volume_whatever_snapshots_it_has() {
    let shelf = with_snapshots(&["a"], &[("a", "monday", 1)]);
    assert_eq!(exports(&shelf, &[]).open("").await.unwrap().0.name, "a");
}

/// A name may stand for another snapshot from one moment to the next: who asks then must not get what others still read.
#[tokio::test]
async fn clients_share_a_snapshot_as_long_as_it_is_that_one_and_one_of_them_is_there() {
    let shelf = with_snapshots(&["a"], &[("a", "latest", 1)]);
    let exports = exports(&shelf, &[]);
    let first = exports.past("a@latest", "a", "latest").await.unwrap();
    let second = exports.past("a@latest", "a", "latest").await.unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    *shelf.snapshots.lock() = vec![("a".to_owned(), "latest".to_owned(), 2), ("a".to_owned(), "old".to_owned(), 1)];
    assert_eq!(exports.past("a@latest", "a", "latest").await.unwrap().identity, 2);
    // Under its new name it is still the same.
    assert!(Arc::ptr_eq(&first, &exports.past("a@old", "a", "old").await.unwrap()));
    let gone = Arc::downgrade(&first);
    drop((first, second));
    assert!(gone.upgrade().is_none(), "nobody reads it: it is given up");
}
