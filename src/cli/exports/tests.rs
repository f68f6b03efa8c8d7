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

    fn lost(volume: &Fake) -> bool {
        volume.lost.load(Ordering::SeqCst)
    }

    fn identity(_: &Fake) -> String {
        "fake".to_owned()
    }

    fn dirty_bytes(_: &Fake) -> u64 {
        7
    }

    async fn close(volume: &Fake) -> Result<(), String> {
        volume.closed.fetch_add(1, Ordering::SeqCst);
        if let Some(upload) = &volume.last_upload {
            drop(upload.acquire().await.unwrap());
        }
        if volume.lost.load(Ordering::SeqCst) { Err("another server took it".to_owned()) } else { Ok(()) }
    }
}

#[async_trait]
impl Device for Fake {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { size: 4096, block_size: 4096, read_only: false }
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
    assert_eq!(slots(&exports), 0);
    *shelf.refusal.lock() = None;
    assert!(exports.open("a").await.is_ok());
    assert_eq!(slots(&exports), 1);
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
