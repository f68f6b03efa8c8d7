//! What was found, as plain data; in which order it is said. Pure.

use std::fmt;

use serde::Serialize;

/// How bad something is; the worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// A disk does not work, or will not, or may lose data.
    Wrong,
    /// It works, and somebody should know what it costs or when it will not.
    Doubtful,
    /// It was looked at, and is as it should be.
    Good,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Weight::Wrong => "wrong",
            Weight::Doubtful => "doubtful",
            Weight::Good => "good",
        })
    }
}

/// What was looked at; what is likelier to be the cause of the others comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// What is set, and where.
    Configuration,
    /// Clock, limits, memory, kernel.
    Machine,
    /// The state directory, the directory of the cache, and their disks.
    State,
    /// The store.
    Store,
    /// The server that keeps copies of journals.
    Peer,
    /// The server of the state directory.
    Server,
    /// NBD devices of this host.
    Devices,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            About::Configuration => "configuration",
            About::Machine => "machine",
            About::State => "state",
            About::Store => "store",
            About::Peer => "peer",
            About::Server => "server",
            About::Devices => "devices",
        })
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// What it is about.
    pub about: About,
    /// One sentence: what, with its value, and the way out if something is not good.
    pub sentence: String,
}

impl About {
    /// That this is wrong.
    pub fn wrong(self, sentence: impl Into<String>) -> Finding {
        Finding { weight: Weight::Wrong, about: self, sentence: sentence.into() }
    }

    /// That this is doubtful.
    pub fn doubtful(self, sentence: impl Into<String>) -> Finding {
        Finding { weight: Weight::Doubtful, about: self, sentence: sentence.into() }
    }

    /// That this is good.
    pub fn good(self, sentence: impl Into<String>) -> Finding {
        Finding { weight: Weight::Good, about: self, sentence: sentence.into() }
    }
}

/// All that was found, worst first.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// How many are wrong.
    pub wrong: usize,
    /// How many are doubtful.
    pub doubtful: usize,
    /// All of them, the worst first.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// In order; what is as bad and about the same stays as it was found.
    pub fn new(mut findings: Vec<Finding>) -> Findings {
        findings.sort_by_key(|finding| (finding.weight, finding.about));
        let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
        Findings { wrong: count(Weight::Wrong), doubtful: count(Weight::Doubtful), findings }
    }

    /// A line for each.
    pub fn lines(&self) -> String {
        let line = |finding: &Finding| {
            let Finding { weight, about, sentence } = finding;
            format!("{weight:<8}  {about:<13}  {sentence}")
        };
        self.findings.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_each_is_one_line() {
        let found = Findings::new(vec![
            About::Machine.good("fine"),
            About::Devices.wrong("no answer"),
            About::Store.doubtful("slow"),
            About::Configuration.wrong("second, though said later"),
            About::Configuration.wrong("and third"),
        ]);
        assert_eq!((found.wrong, found.doubtful), (3, 1));
        assert_eq!(
            found.lines(),
            "wrong     configuration  second, though said later\n\
             wrong     configuration  and third\n\
             wrong     devices        no answer\n\
             doubtful  store          slow\n\
             good      machine        fine"
        );
    }
}
