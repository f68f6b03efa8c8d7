//! Before a secret enters the process: no core dumps, and no debugger of another process of this user.

use std::sync::Once;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing::warn;

/// Keeps what is in memory out of files. Failing is said, and no reason to stop.
pub fn keep_memory_private() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        if let Err(error) = no_core.and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable)) {
            warn!("a crash of this process may write keys into a core dump: {error}");
        }
    });
}
