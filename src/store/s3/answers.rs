//! From rusoto's many error types to one [`Answer`], or to the failure of a request that never got one.

use rusoto_core::RusotoError;
use rusoto_core::request::BufferedHttpResponse;
use rusoto_s3::{GetObjectError, ListObjectsV2Error};

use super::super::{ErrorKind, StoreError};
use super::errors::Answer;

/// A request that failed: with an answer of the server, or without any.
pub struct Refused {
    /// The answer, if one came.
    pub answer: Option<Answer>,
    /// What it means.
    pub error: StoreError,
}

impl From<Refused> for StoreError {
    fn from(refused: Refused) -> StoreError {
        refused.error
    }
}

/// Success of somebody else than the store: a proxy, a portal that wants a login.
pub fn strange(expected: &str) -> StoreError {
    StoreError::new(ErrorKind::Retryable, format!("the answer is no S3, it lacks {expected}; is a proxy in between?"))
}

/// An error that rusoto has a type for; everything else it hands on as it came.
pub trait Typed {
    /// Status, code and message.
    fn answer(self) -> (u16, &'static str, String);
}

impl Typed for GetObjectError {
    fn answer(self) -> (u16, &'static str, String) {
        match self {
            GetObjectError::NoSuchKey(message) => (404, "NoSuchKey", message),
            GetObjectError::InvalidObjectState(message) => (403, "InvalidObjectState", message),
        }
    }
}

impl Typed for ListObjectsV2Error {
    fn answer(self) -> (u16, &'static str, String) {
        let ListObjectsV2Error::NoSuchBucket(message) = self;
        (404, "NoSuchBucket", message)
    }
}

macro_rules! untyped {
    ($($error:ident),*) => {$(
        impl Typed for rusoto_s3::$error {
            fn answer(self) -> (u16, &'static str, String) {
                match self {}
            }
        }
    )*};
}
untyped!(
    PutObjectError,
    DeleteObjectError,
    DeleteObjectsError,
    ListObjectVersionsError,
    GetBucketVersioningError,
    GetBucketLifecycleConfigurationError,
    GetObjectLockConfigurationError,
    PutObjectRetentionError
);

/// The server's answer, or the text of a failure on this side of it.
pub fn answer_of<E: Typed>(error: RusotoError<E>) -> std::result::Result<Answer, String> {
    match error {
        RusotoError::Service(error) => {
            let (status, code, message) = error.answer();
            Ok(Answer { status, code: code.into(), message, region: String::new() })
        }
        RusotoError::Unknown(BufferedHttpResponse { status, body, headers }) => {
            let region = headers.get("x-amz-bucket-region").map(String::as_str);
            Ok(Answer::read(status.as_u16(), &body, region))
        }
        RusotoError::HttpDispatch(error) => Err(error.to_string()),
        RusotoError::ParseError(text) => Err(format!("the answer cannot be read: {text}")),
        RusotoError::Credentials(error) => Err(error.to_string()),
        RusotoError::Validation(text) => Err(text),
        RusotoError::Blocking => Err("the request was given up".into()),
    }
}
