//! What an answer of Azure Blob Storage means: one table from status and code to what may be done about it, and the reader of listings. Pure.
//!
//! Three rows are there for safety. A GET is `NotFound` only if the answer says `BlobNotFound`: a 404 of some proxy must never look like the end of the log. A PUT is
//! `AlreadyExists` only if the answer says so: 409 is also for a container that is being deleted, for leases, and for archived blobs. And an
//! `AlreadyExists` may speak of blocks that somebody staged and never committed, while the blob is not there (`azure.rs` looks).

use xml::reader::{EventReader, XmlEvent};

use super::super::{ErrorKind, Key, ObjectEntry, StoreError};
use super::account::Place;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// PUT of an object.
    Put(&'a Key),
    /// GET of an object or a part of it.
    Get(&'a Key),
    /// A page of a listing.
    List(&'a str),
    /// DELETE of one object.
    Delete(&'a Key),
}

impl Asked<'_> {
    /// What was asked, without the container.
    pub fn text(self) -> String {
        match self {
            Asked::Put(key) => format!("PUT of {key}"),
            Asked::Get(key) => format!("GET of {key}"),
            Asked::List(prefix) => format!("listing of {prefix:?}"),
            Asked::Delete(key) => format!("DELETE of {key}"),
        }
    }
}

/// What the server answered in place of what was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `x-ms-error-code`, or `<Code>`, or empty.
    pub code: String,
    /// The first line of `<Message>`, or empty.
    pub message: String,
}

impl Answer {
    /// Reads the body of an error. Whatever else stands in it is left out.
    pub fn read(status: u16, code: Option<&str>, body: &[u8]) -> Answer {
        let body = String::from_utf8_lossy(body);
        let element = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>"))?;
            Some(rest.split_once('<')?.0)
        };
        let clean = |text: &str| {
            text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect()
        };
        Answer {
            status,
            code: code.or_else(|| element("Code")).map(clean).unwrap_or_default(),
            message: element("Message").map(clean).unwrap_or_default(),
        }
    }
}

/// The failure that an answer means.
pub fn failure(place: &Place, asked: Asked<'_>, answer: &Answer) -> StoreError {
    let (kind, advice) = meaning(place, asked, answer);
    match (kind, asked) {
        (ErrorKind::NotFound, Asked::Get(key)) => return StoreError::not_found(key),
        (ErrorKind::AlreadyExists, Asked::Put(key)) => return StoreError::already_exists(key),
        _ => {}
    }
    let words = [answer.code.as_str(), answer.message.as_str()].join(": ");
    let words = words.trim_matches([':', ' ']);
    let said = if words.is_empty() { answer.status.to_string() } else { format!("{} {words}", answer.status) };
    let message =
        format!("{} in container {} failed at {} with {said}{advice}", asked.text(), place.container, place.endpoint);
    StoreError::new(kind, message)
}

fn meaning(place: &Place, asked: Asked<'_>, answer: &Answer) -> (ErrorKind, String) {
    use ErrorKind::{AlreadyExists, Denied, Invalid, NotFound, Retryable};
    let is_put = matches!(asked, Asked::Put(_));
    let plain = |kind| (kind, String::new());
    match (answer.status, answer.code.as_str()) {
        (404, "BlobNotFound") if matches!(asked, Asked::Get(_)) => plain(NotFound),
        (404, "ContainerNotFound") => {
            (Invalid, "; create the container, or check the store URL, store.azure.account and store.azure.endpoint".into())
        }
        (404, _) => plain(Retryable),
        (409, "BlobAlreadyExists") if is_put => plain(AlreadyExists),
        (412, "ConditionNotMet" | "TargetConditionNotMet") if is_put => plain(AlreadyExists),
        (409 | 403, "BlobArchived" | "BlobBeingRehydrated") => (
            Denied,
            "; the blob was moved to an archive tier: bring it back from there, and take the store's prefix out of the lifecycle rule".into(),
        ),
        (409, "ContainerDisabled" | "AccountIsDisabled" | "BlobImmutableDueToPolicy" | "FeatureVersionMismatch") => plain(Denied),
        (412, _) => (Denied, "; does somebody hold a lease on it?".into()),
        (400, "Md5Mismatch" | "Crc64Mismatch") => plain(Retryable),
        (401 | 403, "AuthenticationFailed" | "AuthorizationFailure" | "InvalidAuthenticationInfo" | "NoAuthenticationInformation") => (
            Denied,
            format!(
                "; check the key or the token of account {} (AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_ID, …), this host's clock, and \
                 the account's firewall",
                place.account
            ),
        ),
        (403, "AuthorizationPermissionMismatch" | "InsufficientAccountPermissions") => {
            (Denied, "; give it the role Storage Blob Data Contributor".into())
        }
        (401 | 403 | 407, "") => (Denied, "; the answer has no error code of Azure's; is a proxy in between?".into()),
        (401 | 403 | 407, _) => plain(Denied),
        (408 | 409 | 425 | 429 | 500 | 502.., _) => plain(Retryable),
        _ => plain(Invalid),
    }
}

/// A page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Name and length of each blob.
    pub blobs: Vec<(String, u64)>,
    /// What was summed up by a delimiter.
    pub prefixes: Vec<String>,
    /// Where the next page begins; nothing at the end.
    pub next: Option<String>,
}

impl Page {
    /// Reads a page; `None` if it is none.
    pub fn read(body: &[u8]) -> Option<Page> {
        let (mut page, mut path) = (Page::default(), Vec::<String>::new());
        let (mut text, mut blob, mut is_listing) = (String::new(), (String::new(), 0), false);
        for event in EventReader::new(body) {
            match event.ok()? {
                XmlEvent::StartElement { name, .. } => {
                    is_listing |= name.local_name == "EnumerationResults";
                    path.push(name.local_name);
                    text.clear();
                }
                XmlEvent::Characters(more) | XmlEvent::CData(more) => text.push_str(&more),
                XmlEvent::Whitespace(more) => text.push_str(&more),
                XmlEvent::EndElement { .. } => {
                    let names: Vec<&str> = path.iter().map(String::as_str).collect();
                    match names.as_slice() {
                        [.., "Blob", "Name"] => blob.0 = std::mem::take(&mut text),
                        [.., "Blob", "Properties", "Content-Length"] => blob.1 = text.trim().parse().ok()?,
                        [.., "Blobs", "Blob"] => page.blobs.push(std::mem::take(&mut blob)),
                        [.., "BlobPrefix", "Name"] => page.prefixes.push(std::mem::take(&mut text)),
                        [_, "NextMarker"] => {
                            page.next = Some(std::mem::take(&mut text)).filter(|marker| !marker.is_empty())
                        }
                        _ => {}
                    }
                    path.pop();
                    text.clear();
                }
                _ => {}
            }
        }
        is_listing.then_some(page)
    }

    /// What of it are objects of a store below `prefix`.
    pub fn objects(&self, prefix: &str) -> Vec<ObjectEntry> {
        let object = |(name, size): &(String, u64)| {
            let key = Key::new(name.strip_prefix(prefix)?).ok()?;
            Some(ObjectEntry { key, size: *size })
        };
        self.blobs.iter().filter_map(object).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            account: "acc".into(),
            endpoint: "https://host".into(),
            container: "disks".into(),
            prefix: String::new(),
        }
    }

    #[test]
    fn what_answers_mean() {
        use ErrorKind::{AlreadyExists, Denied, Invalid, NotFound, Retryable};
        let key = Key::new("v/1").unwrap();
        let (put, get, list, delete) = (Asked::Put(&key), Asked::Get(&key), Asked::List("v/"), Asked::Delete(&key));
        for (asked, status, code, kind, said) in [
            (get, 404, "BlobNotFound", NotFound, "there is no object v/1"),
            (get, 404, "", Retryable, "404"),
            (put, 404, "BlobNotFound", Retryable, "BlobNotFound"),
            (get, 404, "ContainerNotFound", Invalid, "create the container"),
            (put, 409, "BlobAlreadyExists", AlreadyExists, "v/1 exists already"),
            (put, 412, "ConditionNotMet", AlreadyExists, "v/1 exists already"),
            (put, 409, "ContainerBeingDeleted", Retryable, "ContainerBeingDeleted"),
            (put, 409, "", Retryable, "409"),
            (put, 412, "LeaseIdMissing", Denied, "lease"),
            (get, 409, "BlobArchived", Denied, "archive tier"),
            (list, 403, "AuthenticationFailed", Denied, "AZURE_STORAGE_KEY"),
            (delete, 403, "AuthorizationPermissionMismatch", Denied, "Storage Blob Data Contributor"),
            (list, 403, "", Denied, "proxy"),
            (put, 503, "ServerBusy", Retryable, "ServerBusy"),
            (put, 400, "Md5Mismatch", Retryable, "Md5Mismatch"),
            (put, 400, "InvalidHeaderValue", Invalid, "InvalidHeaderValue"),
            (put, 501, "NotImplemented", Invalid, "501"),
        ] {
            let error = failure(&place(), asked, &Answer { status, code: code.into(), message: String::new() });
            assert_eq!(error.kind, kind, "{asked:?} {status} {code}: {error}");
            assert!(error.message.contains(said), "{error}");
        }
    }

    #[test]
    fn errors_and_listings_are_read() {
        let body = b"\xef\xbb\xbf<?xml version=\"1.0\"?><Error><Code>ServerBusy</Code><Message>Slow down.\nRequestId:1</Message></Error>";
        let expected = Answer { status: 503, code: "ServerBusy".into(), message: "Slow down.".into() };
        assert_eq!(Answer::read(503, None, body), expected);
        let body = b"<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"disks\"><Prefix>a</Prefix><Blobs><Blob><Name>p/v/1</Name>\
            <Properties><Content-Length>7</Content-Length></Properties></Blob><Blob><Name>p/odd &amp; name</Name><Properties>\
            <Content-Length>1</Content-Length></Properties></Blob><BlobPrefix><Name>p/w/</Name></BlobPrefix></Blobs><NextMarker>2!x</NextMarker>\
            </EnumerationResults>";
        let page = Page::read(body).unwrap();
        assert_eq!(page.blobs, [("p/v/1".to_owned(), 7), ("p/odd & name".to_owned(), 1)]);
        assert_eq!((page.prefixes.as_slice(), page.next.as_deref()), (&["p/w/".to_owned()][..], Some("2!x")));
        assert_eq!(page.objects("p/"), [ObjectEntry { key: Key::new("v/1").unwrap(), size: 7 }]);
        assert_eq!(Page::read(b"<html><body>Log in</body></html>"), None);
        assert_eq!(Page::read(b"not xml"), None);
        assert_eq!(
            Page::read(b"<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"),
            Some(Page::default())
        );
    }
}
