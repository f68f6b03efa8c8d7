//! Evictions reach clients that are about to be attached: whoever gives an export away must be rid of all who have it.

use std::sync::Arc;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::device::{Device, ExportEntry, ExportError, Exports};
use ashlar::nbd::{Host, Options};
use async_trait::async_trait;
use tokio::sync::{Semaphore, watch};

use crate::client::{Client, info_data, opt, option, rep, within};
use crate::world::{SIZE, World};

/// Exports that can be given away, and that open when the test lets them.
struct Leaving {
    exports: MemoryExports,
    gone: watch::Receiver<bool>,
    openings: Arc<Semaphore>,
}

#[async_trait]
impl Exports for Leaving {
    async fn list(&self) -> Result<Vec<ExportEntry>, ExportError> {
        self.exports.list().await
    }

    async fn open(&self, name: &str) -> Result<(ExportEntry, Arc<dyn Device>), ExportError> {
        self.openings.acquire().await.unwrap().forget();
        let is_gone = *self.gone.borrow();
        match is_gone {
            true => Err(ExportError::Elsewhere("it moved".to_owned())),
            false => self.exports.open(name).await,
        }
    }
}

async fn world(openings: usize) -> (World, watch::Sender<bool>, Arc<Semaphore>) {
    let (give_away, gone) = watch::channel(false);
    let openings = Arc::new(Semaphore::new(openings));
    let exports = MemoryExports::new().with("disk0", "a disk", Arc::new(MemoryDevice::new(SIZE))).with_default("disk0");
    let exports = Leaving { exports, gone, openings: Arc::clone(&openings) };
    (World::new(Options::default(), exports).await, give_away, openings)
}

async fn asks(mut client: Client, name: &str) -> Client {
    client.greet().await;
    client.send(&option(opt::GO, &info_data(name, &[]))).await;
    client
}

/// As far as everybody gets without the test.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waited_for_another_host_does_not_get_what_went_elsewhere_meanwhile() {
    let (world, give_away, _openings) = world(100).await;
    let mut owner = world.connect_from(Host::Remote([10, 0, 0, 5].into()), 4096);
    owner.go("disk0").await;
    let mut waits = asks(world.connect_from(Host::Remote([10, 0, 0, 6].into()), 4096), "disk0").await;
    settle().await;
    give_away.send_replace(true);
    // Those that wait have nothing yet, and are told so.
    assert_eq!(world.server.evict("disk0", None).len(), 1);
    owner.expect_closed().await;
    let reply = within(waits.option_reply()).await;
    assert_eq!((reply.reply_type, &reply.data[..]), (rep::ERR_POLICY, &b"it moved"[..]));
    world.server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_about_to_be_attached_is_evicted_too() {
    for name in ["disk0", ""] {
        let (world, _give_away, openings) = world(1).await;
        let mut comes = asks(world.connect(), name).await;
        settle().await;
        assert_eq!(openings.available_permits(), 0);
        assert_eq!(world.server.evict("disk0", Some("10.0.0.9")), [""; 0]);
        assert_eq!(world.server.evict("disk1", None), [""; 0]);
        assert_eq!(world.server.evict("disk0", None), ["a test"]);
        comes.expect_closed().await;
        world.all_gone().await;
    }
}
