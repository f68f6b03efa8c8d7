//! The log, on standard error.
//!
//! A server's log goes through a [`Sink`]: whoever reads it may stop, go away or run out of disk, and nothing in the server
//! notices but a count (rule R17). A command that is done in a moment writes at once, and waits for its reader.
//! Lines of one kind are held back if there are too many ([`flood`]), and have the [`line`] form that is configured.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use indicatif::MultiProgress;
use serde::{Deserialize, Serialize};
use tracing::{Level, Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, reload};

use super::failure::{Failure, Outcome};
use crate::config::{Effective, LogFormat, LogPriorities};
use crate::outside::Clock;

mod flood;
mod line;
mod sink;

use flood::Floods;
pub use flood::LIFE;
use line::Form;
use sink::Sink;

/// How long the end of a server waits for a log that is slow to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log of a server; not set in other commands.
static SERVICE: OnceLock<Sink> = OnceLock::new();

/// What lines look like, and what each kind of them has said; not set before the log is started.
static SHAPE: OnceLock<Shape> = OnceLock::new();

/// See [`SHAPE`].
#[derive(Debug)]
struct Shape {
    form: Form,
    /// Of a server only.
    floods: Option<Floods>,
}

/// What has become of a server's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Lines that were dropped because they could not be written.
    pub lines_dropped: u64,
    /// Lines that were held back, as too many of their kind came within some seconds (`log.burst`).
    #[serde(default)]
    pub lines_held_back: u64,
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
    let json = config.log.format == LogFormat::Json;
    let form = Form { json, priorities: has_priorities(config.log.priorities) };
    let floods = (speaker == Speaker::Service).then(|| Floods::new(config.log.burst));
    // Only the first start counts; there is no second.
    let _ = SHAPE.set(Shape { form, floods });
    // What the subscriber says of a failing writer it says by eprintln!, which panics where standard error fails.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let builder = builder.with_writer(AboveBars(bars.clone()));
    let (changed, started) = match config.log.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(io::stderr().is_terminal()).with_target(false).with_filter_reloading();
            (changes(builder.reload_handle()), builder.try_init())
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            (changes(builder.reload_handle()), builder.try_init())
        }
    };
    // Only the first start counts; there is no second.
    let _ = FILTER.set(changed);
    started.map_err(Failure::failed)
}

/// Whether lines are written with priorities.
fn has_priorities(wanted: LogPriorities) -> bool {
    match wanted {
        LogPriorities::Always => true,
        LogPriorities::Never => false,
        LogPriorities::Auto => std::env::var("JOURNAL_STREAM").is_ok_and(|stream| reads_journal(&stream)),
    }
}

/// Whether standard error is the stream to journald that the variable names.
fn reads_journal(stream: &str) -> bool {
    let error = io::stderr().as_fd().try_clone_to_owned();
    error.and_then(|file| std::fs::File::from(file).metadata()).is_ok_and(|file| line::is_journal(stream, &file))
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
    // The library for tokens says at "info" whom it asks. Who wants to know that says so.
    EnvFilter::try_new(format!("object_store=warn,{}", config.log.level)).map_err(|_| {
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
    let line = in_form(words);
    match SERVICE.get() {
        Some(sink) => sink.line(line),
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

/// Says a last thing before the process ends, and gives the log a moment to be written.
pub fn say_last(words: &str) {
    match SERVICE.get() {
        Some(sink) => {
            sink.last_line(in_form(words));
            finish();
        }
        None => say(words),
    }
}

/// Words as lines of the log are written; those of a command are for people, whatever its log is like.
fn in_form(words: &str) -> String {
    let form = SHAPE.get().map_or(Form::default(), |shape| shape.form);
    let time = humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_millis(Clock::System.unix_millis()));
    Form { json: form.json && SERVICE.get().is_some(), ..form }.words(words, &time.to_string())
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
    let floods = SHAPE.get().and_then(|shape| shape.floods.as_ref());
    LogStatus {
        lines_dropped: SERVICE.get().map_or(0, Sink::dropped),
        lines_held_back: floods.map_or(0, Floods::held_back),
    }
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
        AboveBarsWriter { bars: &self.0, level: Level::INFO, held_back: Some(0) }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        let floods = SHAPE.get().and_then(|shape| shape.floods.as_ref());
        let held_back = floods.map_or(Some(0), |floods| floods.admit(meta));
        AboveBarsWriter { bars: &self.0, level: *meta.level(), held_back }
    }
}

/// One line of the log.
struct AboveBarsWriter<'a> {
    bars: &'a MultiProgress,
    level: Level,
    /// How many like it were held back before; `None` holds this one back, too.
    held_back: Option<u64>,
}

impl Write for AboveBarsWriter<'_> {
    /// Takes the whole line. Whether it can be written is not the speaker's business.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(held_back) = self.held_back else { return Ok(line.len()) };
        let form = SHAPE.get().map_or(Form::default(), |shape| shape.form);
        let written = form.of(line, self.level, held_back);
        match SERVICE.get() {
            Some(sink) => sink.line(written),
            None => drop(self.bars.suspend(|| io::stderr().write_all(&written))),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
