//! What an answer of Google Cloud Storage means: one table from status and reason to what may be done about it, and the reader of listings. Pure.
//!
//! A 404 says only in words whether it is the object or the bucket that is not there, and emulators say nothing. So it is believed to be the object's only if it
//! says so; else the backend looks (`gcs.rs`). A 404 of some proxy must never look like the end of the log.

use serde::Deserialize;

use super::super::{ErrorKind, Key, ObjectEntry, StoreError};
use super::account::Place;

/// What the server answered in place of what was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `reason` of the first error, or empty.
    pub reason: String,
    /// Its message, or the first line of a body that is plain text.
    pub message: String,
}

#[derive(Deserialize)]
struct Body {
    error: Error,
}

#[derive(Deserialize)]
struct Error {
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    reason: String,
}

impl Answer {
    /// Reads the body of an error: JSON, or of downloads plain text.
    pub fn read(status: u16, body: &[u8]) -> Answer {
        let clean = |text: &str| -> String {
            text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect()
        };
        match serde_json::from_slice::<Body>(body) {
            Ok(Body { error }) => {
                let reason = error.errors.first().map(|first| clean(&first.reason)).unwrap_or_default();
                Answer { status, reason, message: clean(&error.message) }
            }
            Err(_) if body.starts_with(b"<") => Answer { status, ..Answer::default() },
            Err(_) => Answer { status, reason: String::new(), message: clean(&String::from_utf8_lossy(body)) },
        }
    }

    /// Whether it says that there is no such object.
    pub fn is_of_no_object(&self) -> bool {
        self.status == 404 && self.message.starts_with("No such object")
    }
}

/// The failure that an answer means. `asked` says what was asked; `put` is the key of a create-only PUT.
pub fn failure(place: &Place, asked: &str, put: Option<&Key>, answer: &Answer) -> StoreError {
    let (kind, advice) = meaning(place, put.is_some(), answer);
    if let (ErrorKind::AlreadyExists, Some(key)) = (kind, put) {
        return StoreError::already_exists(key);
    }
    let words = [answer.reason.as_str(), answer.message.as_str()].join(": ");
    let words = words.trim_matches([':', ' ']);
    let said = if words.is_empty() { answer.status.to_string() } else { format!("{} {words}", answer.status) };
    StoreError::new(
        kind,
        format!("{asked} in bucket {} failed at {} with {said}{advice}", place.bucket, place.endpoint),
    )
}

fn meaning(place: &Place, is_put: bool, answer: &Answer) -> (ErrorKind, String) {
    use ErrorKind::{AlreadyExists, Denied, Invalid, Retryable};
    let plain = |kind| (kind, String::new());
    match (answer.status, answer.reason.as_str()) {
        (412, _) if is_put => plain(AlreadyExists),
        (404, _) if answer.message.contains("bucket does not exist") => {
            (Invalid, format!("; create the bucket {}, or check the store URL", place.bucket))
        }
        (403, "rateLimitExceeded" | "userRateLimitExceeded" | "backendError") => plain(Retryable),
        (401, _) => (Denied, "; check the credentials (GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account) and this host's clock".into()),
        (403, "") | (407, _) => (Denied, "; the answer has no reason of Google's; is a proxy in between?".into()),
        (403, "retentionPolicyNotMet") => (Denied, "; the bucket has a retention policy, which forbids what ashlar deletes".into()),
        (403, _) => (Denied, "; give it the role Storage Object User (roles/storage.objectUser)".into()),
        (404 | 408 | 409 | 412 | 425 | 429 | 500.., _) => plain(Retryable),
        _ => plain(Invalid),
    }
}

/// A page of a listing.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    kind: String,
    #[serde(default)]
    items: Vec<Item>,
    /// What was summed up by a delimiter.
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// What asks for the next page; nothing at the end.
    #[serde(default)]
    pub next_page_token: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Item {
    name: String,
    size: String,
}

impl Page {
    /// Reads a page; `None` if it is none.
    pub fn read(body: &[u8]) -> Option<Page> {
        serde_json::from_slice(body).ok().filter(|page: &Page| page.kind == "storage#objects")
    }

    /// What of it are objects of a store below `prefix`.
    pub fn objects(&self, prefix: &str) -> Vec<ObjectEntry> {
        let object = |item: &Item| {
            let key = Key::new(item.name.strip_prefix(prefix)?).ok()?;
            Some(ObjectEntry { key, size: item.size.parse().ok()? })
        };
        self.items.iter().filter_map(object).collect()
    }

    /// Whether that very name is on it.
    pub fn names(&self, name: &str) -> bool {
        self.items.iter().any(|item| item.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_mean() {
        use ErrorKind::{AlreadyExists, Denied, Invalid, Retryable};
        let place = Place {
            endpoint: "https://host".into(),
            is_emulator: false,
            bucket: "disks".into(),
            prefix: String::new(),
        };
        let key = Key::new("v/1").unwrap();
        for (is_put, status, reason, message, kind, said) in [
            (true, 412, "conditionNotMet", "", AlreadyExists, "v/1 exists already"),
            (false, 412, "conditionNotMet", "", Retryable, "412"),
            (true, 404, "notFound", "The specified bucket does not exist.", Invalid, "create the bucket disks"),
            (false, 404, "", "", Retryable, "404"),
            (true, 401, "authError", "Invalid Credentials", Denied, "GOOGLE_APPLICATION_CREDENTIALS"),
            (true, 403, "forbidden", "x", Denied, "objectUser"),
            (true, 403, "rateLimitExceeded", "", Retryable, "rateLimitExceeded"),
            (true, 403, "", "", Denied, "proxy"),
            (false, 403, "retentionPolicyNotMet", "", Denied, "retention"),
            (true, 429, "", "", Retryable, "429"),
            (true, 503, "backendError", "", Retryable, "backendError"),
            (true, 400, "invalid", "", Invalid, "invalid"),
        ] {
            let answer = Answer { status, reason: reason.into(), message: message.into() };
            let error = failure(&place, "PUT of v/1", is_put.then_some(&key), &answer);
            assert!(error.kind == kind && error.message.contains(said), "{status} {reason}: {error:?}");
        }
    }

    #[test]
    fn errors_and_listings_are_read() {
        let body = br#"{"error":{"code":404,"message":"No such object: disks/v/1","errors":[{"message":"x","domain":"global","reason":"notFound"}]}}"#;
        let answer = Answer::read(404, body);
        assert!(answer.is_of_no_object() && answer.reason == "notFound", "{answer:?}");
        assert!(Answer::read(404, b"No such object: disks/v/1\n").is_of_no_object());
        assert!(!Answer::read(404, b"<html>No such object").is_of_no_object());
        assert_eq!(Answer::read(404, b""), Answer { status: 404, ..Answer::default() });
        let body = br#"{"kind":"storage#objects","nextPageToken":"t","prefixes":["p/w/"],"items":[{"name":"p/v/1","size":"7"},{"name":"p/odd name","size":"1"}]}"#;
        let page = Page::read(body).unwrap();
        assert_eq!(page.objects("p/"), [ObjectEntry { key: Key::new("v/1").unwrap(), size: 7 }]);
        assert!(page.names("p/v/1") && !page.names("p/v"));
        assert_eq!((page.prefixes, page.next_page_token), (vec!["p/w/".to_owned()], Some("t".to_owned())));
        assert_eq!(Page::read(b"{\"kind\":\"storage#objects\"}").unwrap().objects(""), []);
        assert!(Page::read(b"{}").is_none() && Page::read(b"<html>").is_none());
    }
}
