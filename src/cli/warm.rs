//! `ashlar warm`: a client that asks the running server to bring a volume, or a range of it, into its cache.

use std::io::IsTerminal;
use std::ops::Range;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use self::client::Client;
use super::export_name::ExportName;
use super::failure::{Failure, Outcome};
use super::{control, logging, output, runtime};
use crate::config::{Effective, Flag};
use crate::human::{about_bytes, parse_bytes};

mod client;

/// Brings a volume into the cache of the server that serves it.
///
/// Asks the server for the range in pieces, as a kernel could with NBD's CACHE command, and waits until it has them. Holes and
/// what is in the cache already cost nothing. What does not fit into cache.memory stays only if there is a cache on the disk
/// (cache.disk.size).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar warm db
  ashlar warm db 0..10G            the first 10 GiB
  ashlar warm db 100G.. --state /var/lib/ashlar")]
pub struct Args {
    /// The volume, or a snapshot of it
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    name: ExportName,

    /// The bytes START..END, such as 0..10G; without START from the beginning, without END to the end
    #[arg(value_parser = parse_range)]
    range: Option<Part>,

    /// TCP address of the server, if it has no Unix socket [key: serve.listen]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// Unix socket of the server, "auto" or "none" [key: serve.socket]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
}

/// A part of a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    end: Option<u64>,
}

impl Args {
    /// The flags that set a key of the configuration.
    pub fn flags(&self) -> Vec<Flag> {
        let flags = [("--listen", "serve.listen", &self.listen), ("--socket", "serve.socket", &self.socket)];
        flags.into_iter().filter_map(|(name, key, value)| Some(Flag { name, key, value: value.clone()? })).collect()
    }
}

/// Runs the command.
pub fn run(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    runtime()?.block_on(warm(args, config, bars))
}

async fn warm(args: &Args, config: &Effective, bars: &MultiProgress) -> Outcome {
    let mut client = Client::connect(config, &args.name.to_string()).await?;
    let range = within(args.range, client.size())?;
    if let Some(words) = too_little_room(config, &range).await {
        logging::say(&words);
    }
    let begun = Instant::now();
    let mut progress = Progress::new(bars, &range);
    client.cache(range.clone(), |done| progress.show(done)).await?;
    progress.end();
    let (bytes, seconds) = (range.end - range.start, begun.elapsed().as_secs_f64());
    output::text(format!("{} of volume {} are warm, after {seconds:.1} s", about_bytes(bytes), args.name))
}

/// What is asked for, in a volume of that size.
fn within(part: Option<Part>, size: u64) -> Result<Range<u64>, Failure> {
    let Part { start, end } = part.unwrap_or(Part { start: 0, end: None });
    let end = end.unwrap_or(size);
    match start < end && end <= size {
        true => Ok(start..end),
        false => Err(Failure::usage(format!(
            "the range {start}..{end} is not within the volume, which has {size} bytes ({})",
            about_bytes(size)
        ))),
    }
}

/// A word of warning if what is asked for cannot all stay, as far as the server says.
async fn too_little_room(config: &Effective, range: &Range<u64>) -> Option<String> {
    let cache = control::ask(&config.state).await.ok()?.cache;
    let disk = cache.disk.filter(|disk| disk.off.is_none()).map_or(0, |disk| disk.size);
    let (room, asked) = (cache.memory_size.max(disk), range.end - range.start);
    (asked > room).then(|| {
        format!(
            "the cache has room for {} of data, the range is {}: unless much of it is holes or compresses well, only a part will stay; \
             see cache.memory and cache.disk.size",
            about_bytes(room),
            about_bytes(asked)
        )
    })
}

/// Shows how far it is: a bar on a terminal, otherwise a line now and then.
struct Progress {
    bar: ProgressBar,
    total: u64,
    spoken: Option<Instant>,
}

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    fn new(bars: &MultiProgress, range: &Range<u64>) -> Progress {
        let total = range.end - range.start;
        let template = "warming {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let (bar, spoken) = match std::io::stderr().is_terminal() {
            true => (bars.add(ProgressBar::new(total).with_style(style)), None),
            false => (ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()), Some(Instant::now())),
        };
        Progress { bar, total, spoken }
    }

    fn show(&mut self, done: u64) {
        self.bar.set_position(done);
        if let Some(spoken) = &mut self.spoken
            && spoken.elapsed() >= LINE_EVERY
        {
            *spoken = Instant::now();
            let percent = done * 100 / self.total.max(1);
            logging::say(&format!("warming: {} of {} ({percent} %)", about_bytes(done), about_bytes(self.total)));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn parse_range(text: &str) -> Result<Part, String> {
    let accepted =
        || format!("{text:?} is not a range; accepted is START..END in bytes, such as 0..10G, 5G.. or ..64MiB");
    let (start, end) = text.split_once("..").ok_or_else(accepted)?;
    let bytes = |text: &str| parse_bytes(text).map_err(|error| error.to_string());
    let start = if start.is_empty() { 0 } else { bytes(start)? };
    let end = if end.is_empty() { None } else { Some(bytes(end)?) };
    if end.is_some_and(|end| end <= start) { Err(accepted()) } else { Ok(Part { start, end }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_with_units_and_may_be_open() {
        let part = |start, end| Ok(Part { start, end });
        assert_eq!(parse_range("4096..10G"), part(4096, Some(10 << 30)));
        assert_eq!(parse_range("5MiB.."), part(5 << 20, None));
        assert_eq!(parse_range("..64K"), part(0, Some(64 << 10)));
        assert_eq!(parse_range(".."), part(0, None));
        for bad in ["5G", "5G..4G", "1..1", "a..b"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_beyond_the_end_is_refused_with_the_size() {
        assert_eq!(within(None, 10).unwrap(), 0..10);
        assert_eq!(within(Some(Part { start: 3, end: None }), 10).unwrap(), 3..10);
        let error = within(Some(Part { start: 3, end: Some(11) }), 10).unwrap_err();
        assert!(matches!(error, Failure::Usage(words) if words.contains("which has 10 bytes")));
        assert!(within(Some(Part { start: 10, end: None }), 10).is_err());
    }
}
