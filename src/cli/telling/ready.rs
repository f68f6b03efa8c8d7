//! Whether a server is of use: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cli::trouble::StoreTrouble;

/// What there is to see of the volumes.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The server takes nothing new any more.
    pub stopping: bool,
    /// The volumes that the configuration names.
    pub named: Vec<String>,
    /// Those that are open, or about to be.
    pub seen: BTreeMap<String, Seen>,
    /// Those that ended and did not open again, and why they ended.
    pub ended: Vec<(String, String)>,
    /// Those that were handed over: whoever asks is told where they are.
    pub moved: BTreeSet<String>,
    /// What is wrong with the store, as far as no volume knows more.
    pub trouble: Option<StoreTrouble>,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is being opened or closed.
    Busy,
    /// It is open.
    Open {
        /// Why it has ended, if it has.
        ended: Option<String>,
        /// What is wrong with the store, as it sees it.
        trouble: Option<StoreTrouble>,
    },
}

impl Look {
    /// Why the server is of no use, one sentence for each volume that cannot be used. A store that has not answered for less than
    /// `patience` is none: whatever waits is tried again.
    pub fn troubles(&self, patience: Duration) -> Vec<String> {
        if self.stopping {
            return vec!["the server is stopping".to_owned()];
        }
        let names: BTreeSet<&String> = self.named.iter().chain(self.seen.keys()).collect();
        let is_ended = |name: &String| self.ended.iter().any(|(ended, _)| ended == name);
        let of_volumes =
            names.into_iter().filter(|name| !is_ended(name)).filter_map(|name| self.of_volume(name, patience));
        let ended =
            self.ended.iter().map(|(name, why)| format!("volume {name} has ended and did not open again: {why}"));
        let mut said: Vec<String> = of_volumes.chain(ended).collect();
        // The volumes have said it otherwise.
        let store = self.trouble.as_ref().filter(|_| self.seen.is_empty());
        said.extend(store.and_then(|trouble| lasting(trouble, patience)));
        said
    }

    fn of_volume(&self, name: &String, patience: Duration) -> Option<String> {
        match self.seen.get(name) {
            Some(Seen::Open { ended: Some(why), .. }) => Some(format!("volume {name} has ended: {why}")),
            Some(Seen::Open { ended: None, trouble }) => {
                lasting(trouble.as_ref()?, patience).map(|sentence| format!("volume {name}: {sentence}"))
            }
            Some(Seen::Busy) => Some(format!("volume {name} is being opened or closed")),
            None if self.moved.contains(name) => None,
            None => Some(format!("volume {name} is not open")),
        }
    }
}

fn lasting(trouble: &StoreTrouble, patience: Duration) -> Option<String> {
    (trouble.seconds >= patience.as_secs()).then(|| trouble.sentence.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn trouble(seconds: u64) -> Option<StoreTrouble> {
        let sentence = format!("store away for {seconds} s");
        Some(StoreTrouble { since_unix_millis: 0, seconds, what: "x".into(), flushes_waiting: 0, sentence })
    }

    fn open(ended: Option<&str>, trouble: Option<StoreTrouble>) -> Seen {
        Seen::Open { ended: ended.map(str::to_owned), trouble }
    }

    #[test]
    fn each_volume_that_cannot_be_used_has_its_sentence() {
        let seen = [
            ("busy", Seen::Busy),
            ("fine", open(None, None)),
            ("fenced", open(Some("taken by host b"), trouble(600))),
            ("short", open(None, trouble(59))),
            ("away", open(None, trouble(60))),
        ];
        let look = Look {
            named: ["absent", "fine", "lost", "gone"].map(str::to_owned).to_vec(),
            seen: seen.map(|(name, seen)| (name.to_owned(), seen)).into(),
            ended: vec![("lost".into(), "its journal is damaged".into())],
            moved: ["gone".to_owned()].into(),
            trouble: trouble(60),
            stopping: false,
        };
        assert_eq!(
            look.troubles(PATIENCE),
            [
                "volume absent is not open",
                "volume away: store away for 60 s",
                "volume busy is being opened or closed",
                "volume fenced has ended: taken by host b",
                "volume lost has ended and did not open again: its journal is damaged",
            ]
        );
        let stopping = Look { stopping: true, ..look };
        assert_eq!(stopping.troubles(PATIENCE), ["the server is stopping"]);
    }

    #[test]
    fn a_server_without_volumes_is_of_use_while_its_store_answers() {
        assert_eq!(Look::default().troubles(PATIENCE), Vec::<String>::new());
        let away = Look { trouble: trouble(61), ..Look::default() };
        assert_eq!(away.troubles(PATIENCE), ["store away for 61 s"]);
        let fine = Look { named: vec!["db".into()], seen: [("db".into(), open(None, None))].into(), ..Look::default() };
        assert_eq!(fine.troubles(PATIENCE), Vec::<String>::new());
    }
}
