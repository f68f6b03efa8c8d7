//! What an answer of an S3 server means: one table from status and code to what may be done about it. Pure.
//!
//! Two rows are there for safety, not for convenience. A GET is `NotFound` only if the server says `NoSuchKey`: a 404
//! of some proxy must never look like the end of the log. And a PUT is `AlreadyExists` only for status 412, because
//! 409 says that two PUTs met and that *nobody* knows yet who won.

use super::super::{ErrorKind, Key, StoreError};
use crate::human::counted;

/// Where requests go, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `https://host[:port]`.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
}

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
    /// DELETE of a batch.
    DeleteBatch(usize),
    /// A page of a listing with the versions of each object.
    Versions(&'a str),
    /// DELETE of versions.
    DeleteVersions(usize),
    /// Whether the bucket keeps versions.
    Versioning,
    /// Which lifecycle rules the bucket has.
    Lifecycle,
    /// Whether the bucket has object lock.
    ObjectLock,
    /// Lock of an object.
    Retain(&'a Key),
}

impl Asked<'_> {
    /// What was asked, without the bucket.
    pub fn text(self) -> String {
        match self {
            Asked::Put(key) => format!("PUT of {key}"),
            Asked::Get(key) => format!("GET of {key}"),
            Asked::List(prefix) => format!("listing of {prefix:?}"),
            Asked::Delete(key) => format!("DELETE of {key}"),
            Asked::DeleteBatch(count) => format!("DELETE of {}", counted(count as u64, "object")),
            Asked::Versions(prefix) => format!("listing of versions of {prefix:?}"),
            Asked::DeleteVersions(count) => format!("DELETE of {} of objects", counted(count as u64, "version")),
            Asked::Versioning => "asking for the versioning".to_owned(),
            Asked::Lifecycle => "asking for the lifecycle rules".to_owned(),
            Asked::ObjectLock => "asking for the object lock".to_owned(),
            Asked::Retain(key) => format!("lock of {key}"),
        }
    }
}

/// What the server answered: HTTP status, S3 error code and message, and the region that the bucket is said to be in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `<Code>`, or empty.
    pub code: String,
    /// `<Message>`, or empty.
    pub message: String,
    /// `x-amz-bucket-region` or `<Region>`, or empty.
    pub region: String,
}

impl Answer {
    /// Reads the body of an error. Whatever else stands in it (S3 echoes parts of the signed request) is left out.
    pub fn read(status: u16, body: &[u8], region: Option<&str>) -> Answer {
        let body = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]);
        let element = |name| clean(element(&body, name).unwrap_or_default());
        let region = region.map_or_else(|| element("Region"), clean);
        Answer { status, code: element("Code"), message: element("Message"), region }
    }

    /// Whether the credentials that signed the request may be stale, so that the next attempt should fetch them anew.
    pub fn doubts_credentials(&self) -> bool {
        matches!(self.status, 401 | 403) || is_expired(&self.code)
    }

    /// Whether the server says that it has no batch delete, or does not allow it: single deletes may work.
    pub fn refuses_batch(&self) -> bool {
        matches!(self.status, 403 | 405 | 501) || matches!(self.code.as_str(), "NotImplemented" | "MethodNotAllowed")
    }
}

/// An error's body is read up to here.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A message is shown up to here.
const MESSAGE_CHARS_MAX: usize = 300;

/// The failure that an answer means.
pub fn failure(place: &Place, asked: Asked<'_>, answer: &Answer) -> StoreError {
    let kind = kind(asked, answer);
    let said = said(answer);
    let request = request(asked, &place.bucket);
    StoreError::new(
        kind,
        match (kind, asked) {
            (ErrorKind::NotFound, Asked::Get(key) | Asked::Retain(key)) => return StoreError::not_found(key),
            (ErrorKind::AlreadyExists, Asked::Put(key)) => return StoreError::already_exists(key),
            _ if answer.code == "NoSuchBucket" => format!(
                "there is no bucket {} at {} ({said}); create it, or check the store URL and store.s3.endpoint",
                place.bucket, place.endpoint
            ),
            _ if is_wrong_region(answer) => format!(
                "{request} at {} was signed for region {}, but the bucket is {} ({said}); set store.s3.region",
                place.endpoint,
                place.region,
                if answer.region.is_empty() { "elsewhere".into() } else { format!("in {}", answer.region) },
            ),
            (ErrorKind::Denied, _) => format!(
                "{request} was refused by {} with {said}; {}",
                place.endpoint,
                advice(answer, asked, &place.bucket)
            ),
            _ if answer.code == "RequestTimeTooSkewed" => format!(
                "{request} was refused by {} with {said}; this host's clock is wrong, let NTP set it",
                place.endpoint
            ),
            (ErrorKind::Invalid, Asked::Put(_)) if answer.status == 501 => format!(
                "{request} failed at {} with {said}; if the store does not know If-None-Match, it cannot keep two \
                 servers apart",
                place.endpoint
            ),
            _ => format!("{request} failed at {} with {said}", place.endpoint),
        },
    )
}

fn kind(asked: Asked<'_>, answer: &Answer) -> ErrorKind {
    match (answer.status, answer.code.as_str()) {
        (_, "NoSuchBucket") => ErrorKind::Invalid,
        _ if is_wrong_region(answer) => ErrorKind::Invalid,
        (_, code) if is_expired(code) || is_transient(code) => ErrorKind::Retryable,
        (404, "NoSuchKey") if matches!(asked, Asked::Get(_) | Asked::Retain(_)) => ErrorKind::NotFound,
        // A marker that hides what was deleted.
        (405, "MethodNotAllowed") if matches!(asked, Asked::Retain(_)) => ErrorKind::NotFound,
        (404, _) => ErrorKind::Retryable,
        (412, _) if matches!(asked, Asked::Put(_)) => ErrorKind::AlreadyExists,
        (_, code) if is_full(code) => ErrorKind::Denied,
        (401 | 403 | 407, _) => ErrorKind::Denied,
        (501, _) => ErrorKind::Invalid,
        (307 | 408 | 409 | 425 | 429 | 500.., _) => ErrorKind::Retryable,
        _ => ErrorKind::Invalid,
    }
}

fn is_expired(code: &str) -> bool {
    matches!(code, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired")
}

/// Codes that say "again, please" under whatever status. Digest errors mean that the body was damaged on its way.
fn is_transient(code: &str) -> bool {
    matches!(
        code,
        "RequestTimeTooSkewed"
            | "SlowDown"
            | "ServiceUnavailable"
            | "InternalError"
            | "RequestTimeout"
            | "ConditionalRequestConflict"
            | "OperationAborted"
            | "BadDigest"
            | "IncompleteBody"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch"
    )
}

fn is_wrong_region(answer: &Answer) -> bool {
    matches!(
        answer.code.as_str(),
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"
    ) || answer.status == 301
}

/// Codes that say that there is no more room, under whatever status: Ceph's, Amazon's for accounts, and MinIO's.
fn is_full(code: &str) -> bool {
    matches!(code, "QuotaExceeded" | "ServiceQuotaExceeded" | "XMinioAdminBucketQuotaExceeded" | "XMinioStorageFull")
}

/// What somebody can do about a refusal, by its code; of an unknown one, only that it is the store's own word.
fn advice(answer: &Answer, asked: Asked<'_>, bucket: &str) -> String {
    match answer.code.as_str() {
        "SignatureDoesNotMatch" => "check the secret access key".into(),
        "InvalidAccessKeyId" => "check the access key id, and that it belongs to this store".into(),
        "InvalidToken" => "check the session token, which goes with one access key only".into(),
        code if is_full(code) => format!(
            "bucket {bucket} or the account it belongs to is full: raise the quota, or give space back (TRIM, or delete \
             a volume)"
        ),
        "InvalidObjectState" => {
            "the object was moved to an archive class: restore it from there, and take the store's \
                                 prefix out of the bucket's lifecycle rule"
                .into()
        }
        "AccessDenied" if matches!(asked, Asked::Versions(_) | Asked::DeleteVersions(_)) => format!(
            "check that the credentials may list and delete versions of objects in bucket {bucket} (ListBucketVersions, \
             DeleteObjectVersion), or set store.s3.delete_versions = false"
        ),
        "AccessDenied" if matches!(asked, Asked::Lifecycle) => {
            "let the credentials ask for the rules (GetLifecycleConfiguration), or look at the rules yourself".into()
        }
        "AccessDenied" if matches!(asked, Asked::ObjectLock) => format!(
            "check that the credentials may ask whether bucket {bucket} has object lock (GetBucketObjectLockConfiguration)"
        ),
        "AccessDenied" if matches!(asked, Asked::Retain(_)) => format!(
            "check that the credentials may lock objects in bucket {bucket} (PutObjectRetention); one that is locked in compliance mode stays so"
        ),
        "AccessDenied" => {
            format!("check that the credentials may put, get, list and delete objects in bucket {bucket}")
        }
        "" if answer.status == 407 => "a proxy wants credentials: put them into the URL of HTTP_PROXY".into(),
        "" => "the answer has no S3 error code; is a proxy in between?".into(),
        code => format!("look up {code} in the store's documentation"),
    }
}

fn request(asked: Asked<'_>, bucket: &str) -> String {
    match asked {
        Asked::Put(key) => format!("PUT of {key} to bucket {bucket}"),
        Asked::Get(key) => format!("GET of {key} from bucket {bucket}"),
        Asked::List("") => format!("listing of bucket {bucket}"),
        Asked::List(prefix) => format!("listing of {prefix} in bucket {bucket}"),
        Asked::Delete(key) => format!("DELETE of {key} from bucket {bucket}"),
        Asked::Versions(prefix) => format!("listing of versions of {prefix:?} in bucket {bucket}"),
        Asked::Retain(key) => format!("lock of {key} in bucket {bucket}"),
        Asked::Versioning | Asked::Lifecycle | Asked::ObjectLock => format!("{} of bucket {bucket}", asked.text()),
        Asked::DeleteBatch(_) | Asked::DeleteVersions(_) => format!("{} from bucket {bucket}", asked.text()),
    }
}

/// `503 SlowDown: Please reduce your request rate.`
fn said(answer: &Answer) -> String {
    let code = if answer.code.is_empty() { String::new() } else { format!(" {}", answer.code) };
    let message = if answer.message.is_empty() { String::new() } else { format!(": {}", answer.message) };
    format!("{}{code}{message}", answer.status)
}

/// The text of the first `<name>…</name>`.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// One line of bounded length, so that a strange server cannot garble a log.
fn clean(text: &str) -> String {
    let text = text.replace("&quot;", "\"").replace("&apos;", "'").replace("&lt;", "<").replace("&gt;", ">");
    text.replace("&amp;", "&").chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { endpoint: "https://s3.example.com".into(), region: "eu-1".into(), bucket: "disks".into() }
    }

    fn answer(status: u16, code: &str) -> Answer {
        Answer { status, code: code.into(), ..Answer::default() }
    }

    #[test]
    fn the_table() {
        use ErrorKind::*;
        let key = Key::new("v/meta/0").unwrap();
        let (put, get, list, delete) = (Asked::Put(&key), Asked::Get(&key), Asked::List("v/"), Asked::DeleteBatch(3));
        let rows = [
            (put, 412, "PreconditionFailed", AlreadyExists),
            (put, 412, "", AlreadyExists),
            (get, 412, "PreconditionFailed", Invalid),
            (put, 409, "ConditionalRequestConflict", Retryable),
            (put, 409, "OperationAborted", Retryable),
            (put, 404, "NoSuchKey", Retryable),
            (put, 404, "", Retryable),
            (put, 404, "NoSuchBucket", Invalid),
            (get, 404, "NoSuchKey", NotFound),
            (get, 404, "NoSuchBucket", Invalid),
            (Asked::Retain(&key), 404, "NoSuchKey", NotFound),
            (Asked::Retain(&key), 405, "MethodNotAllowed", NotFound),
            (Asked::Retain(&key), 403, "AccessDenied", Denied),
            (Asked::ObjectLock, 404, "NoSuchBucket", Invalid),
            (get, 404, "", Retryable),
            (list, 404, "NoSuchBucket", Invalid),
            (list, 404, "", Retryable),
            (put, 403, "SignatureDoesNotMatch", Denied),
            (put, 403, "InvalidAccessKeyId", Denied),
            (get, 403, "AccessDenied", Denied),
            (get, 401, "", Denied),
            (get, 403, "RequestTimeTooSkewed", Retryable),
            (get, 400, "ExpiredToken", Retryable),
            (put, 400, "BadDigest", Retryable),
            (put, 400, "RequestTimeout", Retryable),
            (put, 400, "EntityTooLarge", Invalid),
            (put, 501, "NotImplemented", Invalid),
            (delete, 405, "MethodNotAllowed", Invalid),
            (put, 429, "", Retryable),
            (put, 503, "SlowDown", Retryable),
            (get, 500, "InternalError", Retryable),
            (get, 502, "", Retryable),
            (get, 507, "", Retryable),
            (put, 403, "QuotaExceeded", Denied),
            (put, 400, "XMinioAdminBucketQuotaExceeded", Denied),
            (put, 507, "XMinioStorageFull", Denied),
            (get, 403, "InvalidObjectState", Denied),
            (get, 407, "", Denied),
            (get, 301, "PermanentRedirect", Invalid),
            (get, 400, "AuthorizationHeaderMalformed", Invalid),
        ];
        for (asked, status, code, kind) in rows {
            assert_eq!(failure(&place(), asked, &answer(status, code)).kind, kind, "{asked:?} {status} {code}");
        }
    }

    #[test]
    fn sentences_name_the_thing_the_code_and_the_way_out() {
        let key = Key::new("v/meta/0").unwrap();
        let say = |asked, answer: Answer| failure(&place(), asked, &answer).message;
        assert_eq!(
            say(Asked::Get(&key), answer(404, "NoSuchBucket")),
            "there is no bucket disks at https://s3.example.com (404 NoSuchBucket); create it, or check the store URL \
             and store.s3.endpoint"
        );
        assert_eq!(
            say(Asked::Put(&key), answer(403, "SignatureDoesNotMatch")),
            "PUT of v/meta/0 to bucket disks was refused by https://s3.example.com with 403 SignatureDoesNotMatch; \
             check the secret access key"
        );
        let elsewhere = Answer { region: "us-2".into(), ..answer(301, "PermanentRedirect") };
        assert_eq!(
            say(Asked::List(""), elsewhere),
            "listing of bucket disks at https://s3.example.com was signed for region eu-1, but the bucket is in us-2 \
             (301 PermanentRedirect); set store.s3.region"
        );
    }

    #[test]
    fn the_way_out_of_a_refusal_goes_by_its_code() {
        let key = Key::new("v/meta/0").unwrap();
        let say = |asked, status, code| failure(&place(), asked, &answer(status, code)).message;
        let (put, get) = (Asked::Put(&key), Asked::Get(&key));
        let permission = "may put, get, list and delete objects in bucket disks";
        for (asked, status, code, words) in [
            (put, 403, "AccessDenied", permission),
            (
                put,
                403,
                "QuotaExceeded",
                "disks or the account it belongs to is full: raise the quota, or give space back",
            ),
            (put, 507, "XMinioStorageFull", "is full"),
            (
                get,
                403,
                "InvalidObjectState",
                "restore it from there, and take the store's prefix out of the bucket's lifecycle",
            ),
            (get, 403, "RequestTimeTooSkewed", "this host's clock is wrong, let NTP set it"),
            (get, 403, "AccountProblem", "look up AccountProblem in the store's documentation"),
            (get, 403, "", "no S3 error code; is a proxy in between?"),
            (get, 407, "", "HTTP_PROXY"),
            (Asked::Versions("v/"), 403, "AccessDenied", "store.s3.delete_versions = false"),
            (Asked::Retain(&key), 403, "AccessDenied", "may lock objects in bucket disks (PutObjectRetention)"),
            (Asked::ObjectLock, 403, "AccessDenied", "(GetBucketObjectLockConfiguration)"),
        ] {
            let said = say(asked, status, code);
            assert!(said.contains(words), "{said}");
            assert_eq!(said.contains(permission), words == permission, "{said}");
        }
    }

    #[test]
    fn only_code_and_message_of_an_error_are_shown() {
        let body =
            b"<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>The &quot;signature&quot;\n \
            differs</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>secret</StringToSign></Error>";
        let answer = Answer::read(403, body, None);
        assert_eq!(said(&answer), "403 SignatureDoesNotMatch: The \"signature\"  differs");
        assert_eq!(
            Answer::read(502, b"<html>Bad gateway</html>", None),
            super::Answer { status: 502, ..Answer::default() }
        );
    }
}
