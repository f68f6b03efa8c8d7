//! How to reach a store in Google Cloud Storage. There is no place for a secret here: it comes from the environment.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::options::human;
use super::super::s3::options::S3Options;

/// How to reach a store in Google Cloud Storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcsOptions {
    /// `https://host[:port]` of the service. Without it: the environment's `STORAGE_EMULATOR_HOST`, which is asked without credentials, or else
    /// `https://storage.googleapis.com`.
    pub endpoint: Option<String>,
    /// Permits an endpoint of `http://`: then whoever is on the way can read and change everything.
    pub allow_http: bool,
    /// A file of certificates (PEM) to check the store's with, and no others. Without it: the environment's `SSL_CERT_FILE` and
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

impl Default for GcsOptions {
    fn default() -> Self {
        let S3Options { connect_timeout, stall_timeout, request_timeout, idle_connections_max, .. } =
            S3Options::default();
        GcsOptions {
            endpoint: None,
            allow_http: false,
            ca_bundle: None,
            connect_timeout,
            stall_timeout,
            request_timeout,
            idle_connections_max,
        }
    }
}
