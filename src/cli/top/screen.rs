//! What `ashlar top` shows: pure. It needs 80 columns and 24 lines, gets along with less, and needs no colours: what stands out is bold
//! or reversed.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Paragraph, Row, Sparkline, Table};

use super::rates::{self, OfVolume, Rates};
use crate::cli::document::{ClientStatus, ServerStatus, VolumeStatus};
use crate::human::date;
use crate::human::{about_bytes, exact_duration};

/// Moments that the two small plots remember.
const MOMENTS: usize = 400;

/// What is known, and where somebody has scrolled to.
#[derive(Debug)]
pub struct View {
    interval: Duration,
    status: Option<ServerStatus>,
    rates: Option<Rates>,
    /// Bytes read and written in each second, the newest last.
    moments: VecDeque<(u64, u64)>,
    /// Why the server does not answer, if it does not.
    silence: Option<String>,
    first: usize,
    /// How many volumes were shown last.
    shown: Cell<usize>,
}

impl View {
    /// Of a server that is asked so often.
    pub fn new(interval: Duration) -> View {
        let (status, rates, moments, silence) = (None, None, VecDeque::new(), None);
        View { interval, status, rates, moments, silence, first: 0, shown: Cell::new(0) }
    }

    /// Takes an answer, or why there is none.
    pub fn take(&mut self, answer: Result<ServerStatus, String>) {
        let now = match answer {
            Ok(now) => now,
            Err(why) => {
                self.silence = Some(why);
                return;
            }
        };
        self.silence = None;
        self.rates = self.status.as_ref().and_then(|before| rates::between(before, &now));
        if let Some(Rates { all, .. }) = &self.rates {
            self.moments.push_back((all.read as u64, all.written as u64));
            self.moments.drain(..self.moments.len().saturating_sub(MOMENTS));
        }
        self.status = Some(now);
        self.scroll(0);
    }

    /// Scrolls the volumes by so many rows.
    pub fn scroll(&mut self, rows: isize) {
        let volumes = self.status.as_ref().map_or(0, |status| status.volumes.len());
        let last = volumes.saturating_sub(self.shown.get().max(1));
        self.first = self.first.saturating_add_signed(rows).min(last);
    }

    /// How many volumes were shown last.
    pub fn rows_shown(&self) -> usize {
        self.shown.get()
    }
}

/// Lines of the sum, the plots and the key.
const SUM: u16 = 2;
const PLOTS: u16 = 2;
const KEYS: u16 = 1;

/// Lines that show everything.
pub fn height(view: &View) -> u16 {
    let (volumes, clients) = view.status.as_ref().map_or((0, 0), |status| (status.volumes.len(), status.clients.len()));
    let rows = volumes.max(1) + clients.max(1) + 2 * HEAD;
    u16::try_from(head(view).len() + rows).unwrap_or(u16::MAX).saturating_add(SUM + PLOTS + KEYS + 2)
}

/// Lines of the head of a table.
const HEAD: usize = 1;

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let head = head(view);
    let Some(status) = &view.status else {
        return frame.render_widget(Paragraph::new(head), frame.area());
    };
    let volumes = u16::try_from(HEAD + status.volumes.len().max(1)).unwrap_or(u16::MAX);
    let clients = u16::try_from(HEAD + status.clients.len().max(1)).unwrap_or(u16::MAX);
    let head_height = u16::try_from(head.len()).unwrap_or(u16::MAX);
    let fixed = head_height.saturating_add(SUM + PLOTS + KEYS + 2);
    let room = frame.area().height.saturating_sub(fixed);
    // Clients give way to volumes, but for a few.
    let for_clients = clients.min(room.saturating_sub(volumes).max(room / 3));
    let [top, sum, plots, _, body, _, bottom, _, keys] = Layout::vertical([
        Constraint::Length(head_height),
        Constraint::Length(SUM),
        Constraint::Length(PLOTS),
        Constraint::Length(1),
        Constraint::Max(volumes),
        Constraint::Length(1),
        Constraint::Length(for_clients),
        Constraint::Fill(1),
        Constraint::Length(KEYS),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head), top);
    frame.render_widget(Paragraph::new(summary(status, view.rates.as_ref())), sum);
    draw_plots(frame, view, plots);
    draw_volumes(frame, view, status, body);
    draw_clients(frame, status, bottom);
    let last = (view.first + view.shown.get()).min(status.volumes.len());
    let which = match status.volumes.len() {
        all if all > view.shown.get() => format!(" · volumes {}-{last} of {all}, arrows scroll", view.first + 1),
        _ => String::new(),
    };
    let every = exact_duration(view.interval);
    frame.render_widget(Paragraph::new(format!("q quits · asked every {every}{which}")).style(Modifier::DIM), keys);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn reversed() -> Style {
    bold().add_modifier(Modifier::REVERSED)
}

/// The first lines: the server, its store, and what is wrong.
fn head(view: &View) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(why) = &view.silence {
        let as_of =
            view.status.as_ref().map_or_else(String::new, |status| format!(" since {}", date(status.unix_millis)));
        lines.push(Line::styled(format!("NO ANSWER{as_of}: {why}"), reversed()));
    }
    let Some(status) = &view.status else { return lines };
    let up = status.unix_millis.saturating_sub(status.since_unix_millis) / 1000;
    lines.push(Line::from(vec![
        Span::styled(format!("ashlar {}", status.version), bold()),
        Span::raw(format!(
            "  {}  process {}, up {}",
            status.store,
            status.pid,
            exact_duration(Duration::from_secs(up))
        )),
    ]));
    lines.push(match &status.store_trouble {
        None => Line::raw(status.store_health.clone()),
        Some(_) => Line::styled(format!("!! {}", status.store_health), reversed()),
    });
    lines.extend(troubles(status).into_iter().map(|words| Line::styled(format!("!! {words}"), bold())));
    lines
}

fn troubles(status: &ServerStatus) -> Vec<String> {
    let is_known = |name: &String| {
        status.volumes.iter().any(|volume| volume.name == *name)
            || status.ended.iter().any(|ended| ended.name == *name)
            || status.unopened.iter().any(|unopened| unopened.name == *name)
            || status.moved.iter().any(|moved| moved.volume == *name)
    };
    let ended = status.ended.iter().map(|ended| format!("volume {} has ended: {}", ended.name, ended.why));
    let absent = status.named.iter().filter(|name| !is_known(name)).map(|name| format!("volume {name} is not open"));
    let moved = status.moved.iter().map(|moved| format!("volume {} moved to {}", moved.volume, moved.to));
    let dropped = (status.log.lines_dropped > 0)
        .then(|| format!("{} lines of the log could not be written", status.log.lines_dropped));
    let cache = status.cache.disk.as_ref().and_then(|disk| disk.off.as_ref());
    let cache = cache.map(|why| format!("the cache on disk is off: {why}"));
    let unopened = status.unopened.iter().map(|volume| format!("volume {} does not open: {}", volume.name, volume.why));
    ended.chain(unopened).chain(absent).chain(moved).chain(dropped).chain(cache).collect()
}

fn summary(status: &ServerStatus, rates: Option<&Rates>) -> Vec<Line<'static>> {
    let sum = |of: fn(&VolumeStatus) -> u64| about_bytes(status.volumes.iter().map(of).sum());
    let moving = match rates {
        None => "read …  written …".to_owned(),
        Some(Rates { all, store, .. }) => format!(
            "read {}/s  written {}/s  {:.1} requests/s  {store:.1} to the store/s",
            about_bytes(all.read as u64),
            about_bytes(all.written as u64),
            all.requests
        ),
    };
    let standing = format!(
        "not yet stored {}  stored {}  requests ${:.4}  a month ${:.2}",
        sum(|volume| volume.status.dirty_bytes),
        sum(|volume| volume.status.stored_bytes),
        status.cost.requests_since_start_dollars,
        status.cost.storage_month_dollars
    );
    vec![Line::raw(moving), Line::raw(standing)]
}

fn draw_plots(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let [read, written] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
    for (name, area, of) in [("read", read, 0), ("written", written, 1)] {
        let [label, plot] = Layout::horizontal([Constraint::Length(9), Constraint::Fill(1)]).areas(area);
        let newest = view.moments.iter().rev().take(plot.width.into());
        let mut data: Vec<u64> = newest.map(|moment| if of == 0 { moment.0 } else { moment.1 }).collect();
        data.reverse();
        frame.render_widget(Paragraph::new(name).style(Modifier::DIM), label);
        frame.render_widget(Sparkline::default().data(data), plot);
    }
}

/// A column of the volumes: its title, how wide it is, and what it says.
type Column = (&'static str, Constraint, fn(&VolumeStatus, &OfVolume, usize) -> String);

const SIZE: Constraint = Constraint::Length(10);

const NARROW: [Column; 7] = [
    ("VOLUME", Constraint::Fill(2), |volume, _, _| volume.name.clone()),
    ("DOING", Constraint::Fill(3), |volume, _, _| volume.doing.clone()),
    ("READ/S", SIZE, |_, rates, _| about_bytes(rates.read as u64)),
    ("WRITTEN/S", SIZE, |_, rates, _| about_bytes(rates.written as u64)),
    ("DIRTY", SIZE, |volume, _, _| about_bytes(volume.status.dirty_bytes)),
    ("STORED", SIZE, |volume, _, _| about_bytes(volume.status.stored_bytes)),
    ("CL", Constraint::Length(3), |_, _, clients| clients.to_string()),
];

/// Those that a wide terminal has beside.
const WIDE: [Column; 4] = [
    ("SIZE", SIZE, |volume, _, _| about_bytes(volume.status.size)),
    ("LIVE", SIZE, |volume, _, _| about_bytes(volume.status.live_bytes)),
    ("DEAD", SIZE, |volume, _, _| about_bytes(volume.status.dead_bytes + volume.status.sparse_bytes)),
    ("A MONTH", Constraint::Length(9), |volume, _, _| format!("${:.2}", volume.cost.storage_month_dollars)),
];

/// From so many columns on.
const WIDE_FROM: u16 = 120;

fn draw_volumes(frame: &mut Frame<'_>, view: &View, status: &ServerStatus, area: Rect) {
    view.shown.set(usize::from(area.height).saturating_sub(HEAD));
    if status.volumes.is_empty() {
        return frame.render_widget(Paragraph::new("no volume is open"), area);
    }
    let wide = if area.width >= WIDE_FROM { &WIDE[..] } else { &[] };
    let columns: Vec<&Column> = NARROW.iter().chain(wide).collect();
    let still = OfVolume::default();
    // What was shown last, in a smaller frame, may have been less.
    let first = view.first.min(status.volumes.len().saturating_sub(view.shown.get()));
    let rows = status.volumes[first..].iter().take(view.shown.get()).map(|volume| {
        let rates = view.rates.as_ref().and_then(|rates| rates.volumes.get(&volume.name)).unwrap_or(&still);
        let clients = status.clients.iter().filter(|client| client.export == volume.name).count();
        let bad = volume.status.ended.is_some() || volume.status.journal_suspended.is_some();
        let row = Row::new(columns.iter().map(|column| cell(column, column.2(volume, rates, clients))));
        if bad { row.style(bold()) } else { row }
    });
    let head = Row::new(columns.iter().map(|column| cell(column, column.0.to_owned()))).style(bold());
    frame.render_widget(Table::new(rows, columns.iter().map(|column| column.1)).header(head), area);
}

/// Words stand on the left, numbers on the right.
fn cell((_, width, _): &Column, text: String) -> Text<'static> {
    let alignment = if matches!(width, Constraint::Fill(_)) { Alignment::Left } else { Alignment::Right };
    Text::from(text).alignment(alignment)
}

fn draw_clients(frame: &mut Frame<'_>, status: &ServerStatus, area: Rect) {
    if status.clients.is_empty() {
        return frame.render_widget(Paragraph::new("no client is attached"), area);
    }
    let row = |client: &ClientStatus| {
        let in_flight = format!("{}, {}", client.requests_in_flight, about_bytes(client.bytes_in_flight));
        let right = |text: String| Text::from(text).alignment(Alignment::Right);
        let words = [client.address.clone(), client.export.clone()].map(Text::from);
        Row::new(
            words
                .into_iter()
                .chain([date(client.since_unix_millis), client.requests.to_string(), in_flight].map(right)),
        )
    };
    let head = ["CLIENT", "VOLUME"].map(Text::from).into_iter();
    let head =
        head.chain(["SINCE", "REQUESTS", "IN FLIGHT"].map(|title| Text::from(title).alignment(Alignment::Right)));
    let widths = [
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(20),
        Constraint::Length(10),
        Constraint::Length(13),
    ];
    frame.render_widget(Table::new(status.clients.iter().map(row), widths).header(Row::new(head).style(bold())), area);
}
