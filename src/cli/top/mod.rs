//! `ashlar top`: what a running server is doing, again and again, on a terminal.
//!
//! It asks as `ashlar status` does. What is shown is decided by [`screen`], which is pure; here is only waiting: for the server, for a
//! key, for another size, for a signal.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::document::ServerStatus;
use super::failure::{Failure, Outcome};
use super::{control, output, runtime, signals, status};
use crate::config::Effective;
use crate::human::{exact_duration, parse_duration};

mod rates;
mod screen;

use screen::View;

/// Shows what the server of this state directory is doing, and goes on showing it: volumes and what each is doing, clients, space,
/// requests, money, and how the store is doing.
///
/// Keys: q, Esc or Ctrl-C ends it; the arrows, PgUp, PgDn and Home scroll the volumes. The same on a page: see metrics.listen.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ashlar top\n  ashlar top --interval 10s --state /var/lib/ashlar\n  ashlar top --once | head -4"
)]
pub struct Args {
    /// Print one screen, without any control of the terminal, and end
    #[arg(long)]
    once: bool,

    /// How often the server is asked; rates are those of this time. From 100ms to 1h
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    interval: Duration,
}

/// How often a server may be asked.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));

fn interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text).map_err(|error| error.to_string())?;
    let (least, most) = INTERVAL;
    match (least..=most).contains(&interval) {
        true => Ok(interval),
        false => Err(format!("accepted is {} to {}", exact_duration(least), exact_duration(most))),
    }
}

/// How long a key may wait.
const TICK: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let is_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !args.once && !is_terminal {
        return Err(Failure::usage("standard input and output are no terminal; `ashlar top --once` prints one screen"));
    }
    let runtime = runtime()?;
    let mut view = View::new(args.interval);
    view.take(Ok(ask(&runtime, config)?));
    if args.once {
        runtime.block_on(async { tokio::time::sleep(args.interval).await });
        view.take(Ok(ask(&runtime, config)?));
        return output::text(once(&view));
    }
    let must_end = end_at_signals(&runtime)?;
    let answers = keep_asking(&runtime, config, args.interval);
    let mut terminal = ratatui::try_init().map_err(Failure::failed)?;
    let shown = show(&mut terminal, &mut view, answers, &must_end);
    // A terminal that is gone cannot be given back, which is no news.
    let _ = ratatui::try_restore();
    shown.map_err(Failure::failed)
}

fn ask(runtime: &Runtime, config: &Effective) -> Result<ServerStatus, Failure> {
    runtime.block_on(control::ask(&config.state)).map_err(|error| status::no_answer(&config.state, &error))
}

type Answer = Result<ServerStatus, String>;

/// Asks in the background, so that no key waits for a server that does not answer.
fn keep_asking(runtime: &Runtime, config: &Effective, interval: Duration) -> watch::Receiver<Option<Answer>> {
    let (told, answers) = watch::channel(None);
    let state = config.state.clone();
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            let answer = control::ask(&state).await;
            let answer = answer.map_err(|error| match status::no_answer(&state, &error) {
                Failure::Failed(words) => words,
                _ => error.to_string(),
            });
            if told.send(Some(answer)).is_err() {
                return;
            }
        }
    });
    answers
}

/// A signal must not leave the terminal as it is while this runs.
fn end_at_signals(runtime: &Runtime) -> Result<Arc<AtomicBool>, Failure> {
    let must_end = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&must_end);
    let _inside = runtime.enter();
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
    let listened: Result<Vec<_>, _> = kinds.into_iter().map(signal).collect();
    let mut listened = listened.map_err(Failure::failed)?;
    runtime.spawn(async move {
        signals::any(&mut listened).await;
        theirs.store(true, Ordering::Relaxed);
    });
    Ok(must_end)
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    mut answers: watch::Receiver<Option<Answer>>,
    must_end: &AtomicBool,
) -> io::Result<()> {
    while !must_end.load(Ordering::Relaxed) {
        terminal.draw(|frame| screen::draw(frame, view))?;
        if event::poll(TICK)? {
            match event::read()? {
                Event::Key(key) if ends(&key) => return Ok(()),
                Event::Key(key) => view.scroll(scrolled(&key, view.rows_shown())),
                // Another size is drawn by itself.
                _ => {}
            }
        }
        if answers.has_changed().unwrap_or(false)
            && let Some(answer) = answers.borrow_and_update().clone()
        {
            view.take(answer);
        }
    }
    Ok(())
}

fn ends(key: &KeyEvent) -> bool {
    let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    key.kind != KeyEventKind::Release && (is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// By how many rows a key scrolls.
fn scrolled(key: &KeyEvent, page: usize) -> isize {
    let page = page.max(1) as isize;
    match key.code {
        KeyCode::Up | KeyCode::Char('k') => -1,
        KeyCode::Down | KeyCode::Char('j') => 1,
        KeyCode::PageUp => -page,
        KeyCode::PageDown => page,
        KeyCode::Home => isize::MIN,
        KeyCode::End => isize::MAX,
        _ => 0,
    }
}

/// One screen as text, as high as it must be.
fn once(view: &View) -> String {
    const WIDTH: u16 = 80;
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let width = columns.or_else(|| terminal::size().ok().map(|(width, _)| width)).unwrap_or(WIDTH).clamp(40, 400);
    text(view, width, screen::height(view))
}

fn text(view: &View, width: u16, height: u16) -> String {
    // Drawing into memory does not fail.
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(drawn) = terminal.draw(|frame| screen::draw(frame, view));
    lines(drawn.buffer).join("\n")
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let rows = buffer.content.chunks(buffer.area.width.into());
    let lines = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::document::example::{quiet, whole};
    use crate::cli::document::{OperationStatus, VolumeStatus};
    use crate::volume::Status;

    /// A view of so many volumes, the first of which reads 1 MiB and writes 2 MiB a second.
    fn view(volumes: usize) -> View {
        let operation = |name: &str, requests: u64, bytes: u64| OperationStatus {
            operation: name.to_owned(),
            requests,
            bytes,
            errors: 0,
        };
        let at = |second: u64| {
            let mut status = whole();
            (status.store_trouble, status.ended, status.named) = (None, Vec::new(), Vec::new());
            (status.moved, status.unopened, status.cache.disk) = (Vec::new(), Vec::new(), None);
            (status.unix_millis, status.store_health) = (1000 * second, "store answers".to_owned());
            let example = status.volumes.remove(0);
            status.volumes.extend((0..volumes).map(|number| {
                let busy = if number == 0 { second << 20 } else { 0 };
                VolumeStatus {
                    name: format!("disk{number}"),
                    operations: vec![operation("read", second, busy), operation("write", second, 2 * busy)],
                    status: Status { stored_bytes: 5 << 30, ..quiet() },
                    doing: "idle".to_owned(),
                    ..example.clone()
                }
            }));
            status
        };
        let mut view = View::new(Duration::from_secs(2));
        view.take(Ok(at(10)));
        view.take(Ok(at(20)));
        view
    }

    #[test]
    fn a_screen_of_80_by_24_has_all_that_matters() {
        let screen = text(&view(2), 80, 24);
        assert!(screen.split('\n').count() == 24 && screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        for words in ["store answers", "VOLUME", "DOING", "disk0", "disk1", "idle", "5.0 GiB", "CLIENT", "q quits"] {
            assert!(screen.contains(words), "{words}: {screen}");
        }
        let row = screen.lines().find(|line| line.starts_with("disk0")).unwrap();
        assert!(row.contains("1.0 MiB") && row.contains("2.0 MiB"), "{row}");
        // No colour is needed, nor set: what stands out is bold or reversed.
        let Ok(mut terminal) = Terminal::new(TestBackend::new(80, 24));
        let Ok(drawn) = terminal.draw(|frame| screen::draw(frame, &view(1)));
        let plain = |cell: &ratatui::buffer::Cell| {
            cell.fg == ratatui::style::Color::Reset && cell.bg == ratatui::style::Color::Reset
        };
        assert!(drawn.buffer.content.iter().all(plain));
    }

    #[test]
    fn any_size_is_drawn() {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 1), (40, 10), (79, 23), (300, 100)] {
            let screen = text(&view(3), width, height);
            assert_eq!(screen.split('\n').count(), usize::from(height), "{width} x {height}: {screen}");
        }
        let wide = text(&view(1), 140, 30);
        assert!(wide.contains("LIVE") && wide.contains("A MONTH"), "{wide}");
    }

    #[test]
    fn more_volumes_than_rows_can_be_scrolled_to_and_one_screen_has_them_all() {
        let mut many = view(40);
        let first = text(&many, 80, 24);
        assert!(first.contains("disk0 ") && !first.contains("disk39") && first.contains("1-"), "{first}");
        many.scroll(isize::MAX);
        let last = text(&many, 80, 24);
        assert!(!last.contains("disk0 ") && last.contains("disk39"), "{last}");
        many.scroll(isize::MIN);
        assert_eq!(text(&many, 80, 24), first);
        let all = text(&many, 80, screen::height(&many));
        assert!((0..40).all(|number| all.contains(&format!("disk{number} "))) && all.contains("CLIENT"), "{all}");
    }

    #[test]
    fn what_is_wrong_is_said_first_and_a_server_that_is_gone_too() {
        let mut troubled = view(1);
        let mut status = whole();
        status.store_health = "store away since noon".to_owned();
        troubled.take(Ok(status));
        let screen = text(&troubled, 80, 24);
        let line = screen.lines().position(|line| line.contains("!! store away since noon")).unwrap();
        assert!(line < 3 && screen.contains("!! volume word has ended"), "{screen}");
        troubled.take(Err("no server runs here".to_owned()));
        let screen = text(&troubled, 80, 24);
        let first = screen.lines().next().unwrap();
        assert!(first.starts_with("NO ANSWER") && first.contains("no server runs here"), "{screen}");
        assert!(screen.contains("store away since noon"), "what was known last stays: {screen}");
    }

    #[test]
    fn keys_that_end_end() {
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(ends(&key(KeyCode::Char('q'))) && ends(&key(KeyCode::Esc)) && !ends(&key(KeyCode::Char('c'))));
        assert!(ends(&KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert_eq!((scrolled(&key(KeyCode::PageDown), 7), scrolled(&key(KeyCode::Up), 7)), (7, -1));
        assert_eq!(interval("1ms").unwrap_err(), "accepted is 100ms to 1h");
        assert_eq!(interval("5s"), Ok(Duration::from_secs(5)));
    }
}
