//! The end of a server: what is acknowledged goes into the store, and whoever waits sees how far it is.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::info;

use super::exports::{VolumeExports, Volumes};
use super::logging;
use crate::human::about_bytes;

/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// How often the log says how much is left, where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// How much longer systemd is asked to wait, each time that the log says how much is left.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Closes all volumes and shows what is left meanwhile. Returns what went wrong, by name of the volume.
pub async fn close_all<V: Volumes>(exports: &VolumeExports<V>, bars: &MultiProgress) -> Vec<(String, String)> {
    let left = || exports.dirty_bytes().iter().map(|(_, bytes)| bytes).sum::<u64>();
    let total = left();
    let bar = bar(total);
    let (shown, theirs) = (bar.clone(), bars.clone());
    logging::draw(move || drop(theirs.add(shown)));
    let (mut bar_ticks, mut log_ticks) = (ticks(BAR_EVERY), ticks(LOG_EVERY));
    let close = exports.close();
    tokio::pin!(close);
    let problems = loop {
        tokio::select! {
            problems = &mut close => break problems,
            _ = bar_ticks.tick() => {
                let (bar, done) = (bar.clone(), total.saturating_sub(left()));
                logging::draw(move || bar.set_position(done));
            }
            _ = log_ticks.tick() => say_what_is_left(left()),
        }
    };
    logging::draw(move || bar.finish_and_clear());
    problems
}

fn bar(total: u64) -> ProgressBar {
    let template = "saving {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn say_what_is_left(bytes: u64) {
    // Without systemd this does nothing; that it fails is not worth a word.
    let _ = sd_notify::notify(&[more_time()]);
    if bytes > 0 && !std::io::stderr().is_terminal() {
        info!("{} still to go into the store", about_bytes(bytes));
    }
}

/// Asks systemd to wait: data that drains is no server that hangs.
pub fn more_time() -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(STOP_TIMEOUT.as_micros()).unwrap_or(u32::MAX))
}
