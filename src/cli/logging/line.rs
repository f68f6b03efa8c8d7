//! What is added to a line after it was put together: a priority for journald, and how many like it were held back. Pure.

use std::borrow::Cow;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use tracing::Level;

/// What the lines of this process look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// One JSON object for each.
    pub json: bool,
    /// A priority before each, as journald reads them (sd-daemon(3)).
    pub priorities: bool,
}

impl Form {
    /// A line as it is written, which ends with a line break. So many like it were held back before.
    pub fn of<'a>(self, line: &'a [u8], level: Level, held_back: u64) -> Cow<'a, [u8]> {
        let noted = match held_back {
            0 => Cow::Borrowed(line),
            count => Cow::Owned(self.noted(line, count)),
        };
        match self.priorities {
            false => noted,
            true => Cow::Owned([priority(level).as_bytes(), &noted].concat()),
        }
    }

    fn noted(self, line: &[u8], count: u64) -> Vec<u8> {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        match text.strip_suffix(b"}").filter(|_| self.json) {
            Some(object) => [object, format!(",\"held_back\":{count}}}\n").as_bytes()].concat(),
            None => [text, format!(" held_back={count}\n").as_bytes()].concat(),
        }
    }

    /// Words that are no line of the log, such as the last ones of a server: with a priority for each line, and as an object if lines are.
    pub fn words(self, words: &str, time: &str) -> String {
        let line = |words: &str| match self.json {
            true => format!(
                "{}\n",
                serde_json::json!({ "timestamp": time, "level": "ERROR", "message": words, "target": "ashlar" })
            ),
            false => format!("{words}\n"),
        };
        let lines = words
            .lines()
            .map(|words| String::from_utf8_lossy(&self.of(line(words).as_bytes(), Level::ERROR, 0)).into_owned());
        lines.collect()
    }
}

/// What stands before a line (sd-daemon(3), syslog(3)).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// Whether journald reads what is written to `file`, as the variable JOURNAL_STREAM says (systemd.exec(5)): device and inode.
pub fn is_journal(variable: &str, file: &Metadata) -> bool {
    variable == format!("{}:{}", file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Form = Form { json: false, priorities: false };
    const JSON: Form = Form { json: true, priorities: false };

    fn of(form: Form, line: &str, level: Level, held_back: u64) -> String {
        String::from_utf8(form.of(line.as_bytes(), level, held_back).into_owned()).unwrap()
    }

    #[test]
    fn a_priority_stands_before_a_line_for_journald_only() {
        assert_eq!(of(TEXT, "INFO a\n", Level::INFO, 0), "INFO a\n");
        let journal = Form { priorities: true, ..TEXT };
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        let said = levels.map(|level| of(journal, "a\n", level, 0));
        assert_eq!(said, ["<3>a\n", "<4>a\n", "<6>a\n", "<7>a\n", "<7>a\n"]);
        assert_eq!(of(Form { priorities: true, ..JSON }, "{}\n", Level::WARN, 0), "<4>{}\n");
    }

    #[test]
    fn what_was_held_back_is_part_of_the_line_in_its_own_form() {
        assert_eq!(of(TEXT, "INFO a\n", Level::INFO, 7), "INFO a held_back=7\n");
        let line = of(JSON, "{\"message\":\"a}\"}\n", Level::INFO, 7);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&read["message"], &read["held_back"]), (&"a}".into(), &7.into()));
    }

    #[test]
    fn words_have_the_form_of_lines() {
        assert_eq!(TEXT.words("ashlar: a\nashlar: b", "now"), "ashlar: a\nashlar: b\n");
        assert_eq!(Form { priorities: true, ..TEXT }.words("ashlar: a\nashlar: b", ""), "<3>ashlar: a\n<3>ashlar: b\n");
        let read: serde_json::Value = serde_json::from_str(&JSON.words("ashlar: \"a\"", "now")).unwrap();
        assert_eq!(
            (&read["message"], &read["level"], &read["timestamp"]),
            (&"ashlar: \"a\"".into(), &"ERROR".into(), &"now".into())
        );
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = file.as_file().metadata().unwrap();
        assert!(is_journal(&format!("{}:{}", found.dev(), found.ino()), &found));
        for other in ["", "1:2", &format!("{}:{}", found.dev(), found.ino() + 1)] {
            assert!(!is_journal(other, &found), "{other}");
        }
    }
}
