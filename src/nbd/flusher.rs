//! Flushes that the server starts by itself when a client has gone (rule K10): neither DISC nor a lost connection is a
//! flush, but what was acknowledged should not stay owed for long.
//!
//! Each device has at most one such flush at a time, however many clients come and go; one more follows if somebody
//! left meanwhile.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use super::phase::Life;
use crate::device::{Device, DeviceError};

/// The background flushes of a server.
#[derive(Clone, Debug, Default)]
pub struct Flusher {
    /// Devices that are being flushed, by the address of the device, and whether another flush must follow. The task
    /// that flushes holds the device, so the address stays its own.
    busy: Arc<Mutex<HashMap<usize, bool>>>,
}

impl Flusher {
    /// Starts a flush of the device, or has one follow that which is under way.
    pub fn start(&self, life: &Life, export: String, device: Arc<dyn Device>) {
        let key = Arc::as_ptr(&device).addr();
        match self.busy.lock().entry(key) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                return;
            }
            Entry::Vacant(free) => free.insert(false),
        };
        let (busy, task, mut phases) = (self.busy.clone(), life.task(), life.phases());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = phases.closed() => drop(busy.lock().remove(&key)),
                () = flush(&busy, key, &export, &*device) => {}
            }
            drop(task);
        });
    }
}

async fn flush(busy: &Mutex<HashMap<usize, bool>>, key: usize, export: &str, device: &dyn Device) {
    loop {
        match device.flush().await {
            Ok(()) => tracing::debug!(export, "flushed after a client left"),
            // Closing it brings everything into the store.
            Err(DeviceError::ShuttingDown) => {}
            Err(error) => tracing::warn!(export, "the flush after a client left failed: {error}"),
        }
        let mut busy = busy.lock();
        match busy.get_mut(&key) {
            Some(again) if *again => *again = false,
            _ => {
                busy.remove(&key);
                return;
            }
        }
    }
}
