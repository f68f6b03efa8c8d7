//! Signals that stop a process: what the commands that stay share.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind};

/// What comes sooner after a first signal is the same wish, sent by several: a service manager and a wrapper, or a terminal to a
/// whole group.
pub const SECOND_AFTER: Duration = Duration::from_secs(1);

/// Whether a signal that comes so long after the first is a second wish, which is to stop at once.
pub fn is_second(after_the_first: Duration) -> bool {
    after_the_first >= SECOND_AFTER
}

/// Waits for any of the signals; none is never.
pub async fn any<'a>(signals: impl IntoIterator<Item = &'a mut Signal>) {
    let mut signals: Vec<&mut Signal> = signals.into_iter().collect();
    poll_fn(|context| match signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// Whether this process has a terminal of its own, which would send it SIGHUP when it closes.
#[allow(clippy::disallowed_methods)] // no file of ours: the disk's door is for what must not be lost
pub fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether whoever started this process had it ignore a signal, as nohup does with SIGHUP. To listen would undo that.
pub fn is_ignored(signal: SignalKind) -> bool {
    // Where there is no /proc, nothing is known to be ignored.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}
