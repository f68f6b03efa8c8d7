//! The log, on standard error.
//!
//! A server's log goes through a [`Sink`]: whoever reads it may stop, go away or run out of disk, and nothing in the server
//! notices but a count (rule R17). A command that is done in a moment writes at once, and waits for its reader.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::MultiProgress;
use serde::{Deserialize, Serialize};
use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, reload};

use super::failure::{Failure, Outcome};
use crate::config::{Effective, LogFormat};

mod sink;

use sink::Sink;

/// How long the end of a server waits for a log that is slow to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log of a server; not set in other commands.
static SERVICE: OnceLock<Sink> = OnceLock::new();

/// What has become of a server's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Lines that were dropped because they could not be written.
    pub lines_dropped: u64,
}

/// Who writes the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// A server, which must never wait for whoever reads it.
    Service,
    /// A command, which does.
    Command,
}

/// Starts the log as the configuration says. Lines go above the bars that `bars` shows.
pub fn start(config: &Effective, bars: &MultiProgress, speaker: Speaker) -> Outcome {
    let filter = filter(config)?;
    if speaker == Speaker::Service {
        let bars = bars.clone();
        let room = usize::try_from(config.log.buffer).unwrap_or(usize::MAX);
        let sink = Sink::start("log", room, move |line| bars.suspend(|| io::stderr().write_all(line)));
        // Only the first start counts; there is no second.
        let _ = SERVICE.set(sink.map_err(Failure::failed)?);
    }
    // What the subscriber says of a failing writer it says by eprintln!, which panics where standard error fails.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let builder = builder.with_writer(AboveBars(bars.clone()));
    let (changed, started) = match config.log.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(io::stderr().is_terminal()).with_target(false).with_filter_reloading();
            (changes(builder.reload_handle()), builder.try_init())
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            (changes(builder.reload_handle()), builder.try_init())
        }
    };
    // Only the first start counts; there is no second.
    let _ = FILTER.set(changed);
    started.map_err(Failure::failed)
}

/// What puts another filter in the place of that of a log.
type Changes = Box<dyn Fn(EnvFilter) + Send + Sync>;

static FILTER: OnceLock<Changes> = OnceLock::new();

fn changes<S: 'static>(handle: reload::Handle<EnvFilter, S>) -> Changes {
    Box::new(move |filter| {
        // It fails if the log is gone, and then there is nobody to tell.
        let _ = handle.reload(filter);
    })
}

/// What of the log is written, as the configuration says.
pub fn filter(config: &Effective) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(&config.log.level).map_err(|_| {
        Failure::from(config.refuse(
            "log.level",
            "accepted is error, warn, info, debug, trace or off, or a list such as info,ashlar::store=debug",
        ))
    })
}

/// From now on that is written.
pub fn set_filter(filter: EnvFilter) {
    if let Some(change) = FILTER.get() {
        change(filter);
    }
}

/// Says something on standard error that is no line of the log. That it cannot be written is no failure.
pub fn say(words: &str) {
    let line = format!("{words}\n");
    match SERVICE.get() {
        Some(sink) => sink.line(line),
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

/// Says a last thing before the process ends, and gives the log a moment to be written.
pub fn say_last(words: &str) {
    match SERVICE.get() {
        Some(sink) => {
            sink.last_line(format!("{words}\n"));
            finish();
        }
        None => say(words),
    }
}

/// Gives the log of a server a moment to be written.
pub fn finish() {
    if let Some(sink) = SERVICE.get() {
        sink.finish(PATIENCE);
    }
}

/// Has something drawn on the terminal between two lines of a server's log. Nobody waits for it, as the terminal may be
/// stopped; then it is not drawn.
pub fn draw(work: impl FnOnce() + Send + 'static) {
    match SERVICE.get() {
        Some(sink) => sink.run(work),
        None => work(),
    }
}

/// What has become of the log of this server.
pub fn status() -> LogStatus {
    LogStatus { lines_dropped: SERVICE.get().map_or(0, Sink::dropped) }
}

/// Bytes of this server's log that wait to be written, and how many may.
pub fn waiting() -> (u64, u64) {
    SERVICE.get().map_or((0, 0), Sink::waiting)
}

/// Prints what a server has to tell on standard output; nobody waits for it, and it may fail.
pub fn print_aside(text: String) -> io::Result<()> {
    let room = text.len() + PRINT_ROOM;
    let print = |text: &[u8]| {
        let mut out = io::stdout();
        let printed = out.write_all(text).and_then(|()| out.flush());
        printed.inspect_err(|error| warn!("the lines that attach the volumes cannot be printed: {error}"))
    };
    // Dropping the sink ends its thread once that is printed.
    Sink::start("welcome", room, print)?.line(format!("{text}\n"));
    Ok(())
}

/// More than a sink needs for one text beside its bytes.
const PRINT_ROOM: usize = 4096;

/// Writes to standard error while no bar is drawn there.
struct AboveBars(MultiProgress);

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = AboveBarsWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        AboveBarsWriter(&self.0)
    }
}

/// One line of the log.
struct AboveBarsWriter<'a>(&'a MultiProgress);

impl Write for AboveBarsWriter<'_> {
    /// Takes the whole line. Whether it can be written is not the speaker's business.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match SERVICE.get() {
            Some(sink) => sink.line(line),
            None => drop(self.0.suspend(|| io::stderr().write_all(line))),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
