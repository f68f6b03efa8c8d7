//! The log, on standard error.

use std::io::{self, IsTerminal, Write};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::failure::{Failure, Outcome};
use crate::config::{Effective, LogFormat};

/// Starts the log as the configuration says. Lines go above the bars that `bars` shows.
pub fn start(config: &Effective, bars: &MultiProgress) -> Outcome {
    let filter = EnvFilter::try_new(&config.log.level).map_err(|_| {
        Failure::from(config.refuse(
            "log.level",
            "accepted is error, warn, info, debug, trace or off, or a list such as info,ashlar::store=debug",
        ))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveBars(bars.clone()));
    let started = match config.log.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(Failure::failed)
}

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
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
