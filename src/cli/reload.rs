//! SIGHUP: the configuration is read again. What can change under a running server does, and what cannot is said by name.
//!
//! A server that has a terminal of its own ends at SIGHUP instead, in good order: that is what a terminal sends that closes. One that
//! is started by a service manager has none.

use std::path::PathBuf;

use tracing::{info, warn};

use super::start::Running;
use super::{effective, logging};
use crate::config::{Change, Effective, Flag};

/// The keys, and sections, that take effect at once. Whoever adds one has [`Reloading::apply`] see to it.
const AT_ONCE: [&str; 5] = ["log.level", "nbd.access", "serve.handoff_timeout", "budget", "prices"];

/// Where the configuration is read from again, and what is in effect of it.
#[derive(Debug)]
pub struct Reloading<'a> {
    file: Option<PathBuf>,
    flags: Vec<Flag>,
    started: &'a Effective,
    /// What was read last; only what is in [`AT_ONCE`] counts of it.
    latest: Option<Effective>,
}

impl<'a> Reloading<'a> {
    /// Of a server that started with that, from this file and these flags.
    pub fn new(file: Option<PathBuf>, flags: Vec<Flag>, started: &'a Effective) -> Reloading<'a> {
        Reloading { file, flags, started, latest: None }
    }

    /// The configuration of which what takes effect at once is in effect.
    pub fn latest(&self) -> &Effective {
        self.latest.as_ref().unwrap_or(self.started)
    }

    /// Reads it again, and says in the log what came of it. If anything is wrong, nothing changes.
    pub fn reload(&mut self, running: &Running) {
        let newer = match effective(self.file.clone(), self.flags.clone()) {
            Ok(newer) => newer,
            Err(failure) => return warn!("the configuration is as before: {failure}"),
        };
        let (at_once, later) = sorted(self.started.changes_to(&newer), self.latest().changes_to(&newer));
        if let Err(why) = self.apply(&newer, running, &at_once) {
            return warn!("the configuration is as before: {why}");
        }
        for Change { key, from, to } in &at_once {
            info!("reloaded: {key} = {to}, and no longer {from}");
        }
        for Change { key, from, to } in &later {
            warn!("not reloaded: {key} = {to} takes effect at the next start; until then it is {from}");
        }
        if at_once.is_empty() && later.is_empty() {
            info!("the configuration was read again: nothing has changed");
        }
        self.latest = Some(newer);
    }

    fn apply(&self, newer: &Effective, running: &Running, changes: &[Change]) -> Result<(), String> {
        let has_changed = |key: &str| changes.iter().any(|change| change.key == key);
        let filter = logging::filter(newer).map_err(|failure| failure.to_string())?;
        if has_changed("nbd.access") {
            running.server.set_access(newer.nbd.access.clone())?;
        }
        // Last, as they cannot fail any more.
        running.purse.set(&newer.budget, newer.prices);
        if has_changed("log.level") {
            logging::set_filter(filter);
        }
        Ok(())
    }
}

/// What takes effect at once, of what differs from what is in effect, and what does not, of what differs from what the server began with.
fn sorted(since_start: Vec<Change>, since_last: Vec<Change>) -> (Vec<Change>, Vec<Change>) {
    let is_in = |key: &str, section: &str| {
        key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let is_at_once = |change: &Change| AT_ONCE.iter().any(|section| is_in(&change.key, section));
    let at_once = since_last.into_iter().filter(is_at_once).collect();
    (at_once, since_start.into_iter().filter(|change| !is_at_once(change)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_start_is_said_each_time_and_what_is_in_effect_once() {
        let change = |key: &str| Change { key: key.to_owned(), from: "1".into(), to: "2".into() };
        let since_start = vec![change("log.level"), change("serve.listen")];
        let (at_once, later) = sorted(since_start.clone(), since_start.clone());
        assert_eq!((at_once, later), (vec![change("log.level")], vec![change("serve.listen")]));
        let (at_once, later) = sorted(since_start, Vec::new());
        assert_eq!((at_once, later), (Vec::new(), vec![change("serve.listen")]));
        let of_sections = vec![change("budget.volume.dollars_per_day"), change("prices.preset"), change("nbd.access2")];
        let (at_once, later) = sorted(of_sections.clone(), of_sections);
        assert_eq!(at_once, [change("budget.volume.dollars_per_day"), change("prices.preset")]);
        assert_eq!(later, [change("nbd.access2")]);
    }

    #[test]
    fn what_takes_effect_at_once_are_keys() {
        let before = effective(None, Vec::new()).unwrap();
        let known: Vec<String> = before.to_toml().lines().map(str::to_owned).collect();
        for key in AT_ONCE {
            let last = key.rsplit('.').next().unwrap();
            let is_known = |line: &String| line.starts_with(&format!("{last} = ")) || *line == format!("[{key}]");
            assert!(known.iter().any(is_known), "{key}");
        }
    }
}
