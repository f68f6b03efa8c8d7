//! How to reach a WebDAV store. There is no place for a password here: it comes from the environment.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::options::human;
use super::super::s3::options::S3Options;

/// How to reach a WebDAV store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebdavOptions {
    /// Who logs in. Without it: the user of the URL, or else the environment's `WEBDAV_USERNAME`.
    pub user: Option<String>,
    /// Accepts that WebDAV has no word for making things durable: what a server acknowledged may be lost with its power.
    pub allow_unsynced: bool,
    /// Permits `webdav://`, which is HTTP without TLS: then whoever is on the way can read and change everything.
    pub allow_http: bool,
    /// A file of certificates (PEM) to check the server's with, and no others. Without it: the environment's `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR`, or else the system's.
    pub ca_bundle: Option<PathBuf>,
    /// A connection that is not established by then has failed.
    #[serde(with = "human")]
    pub connect_timeout: Duration,
    /// A request has failed if for this long neither side has sent anything.
    #[serde(with = "human")]
    pub stall_timeout: Duration,
    /// A request has failed after this long, even if it still makes progress.
    #[serde(with = "human")]
    pub request_timeout: Duration,
    /// Connections that are kept open for the next request.
    pub idle_connections_max: usize,
}

impl Default for WebdavOptions {
    fn default() -> Self {
        let S3Options { connect_timeout, stall_timeout, request_timeout, idle_connections_max, .. } =
            S3Options::default();
        WebdavOptions {
            user: None,
            allow_unsynced: false,
            allow_http: false,
            ca_bundle: None,
            connect_timeout,
            stall_timeout,
            request_timeout,
            idle_connections_max,
        }
    }
}
