//! How to reach an S3 store. There is no place for a secret here: [`super::credentials`] finds those.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::options::human;

/// How to reach an S3 store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Options {
    /// `https://host[:port]` of the store. Without it: the environment's `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`,
    /// or else Amazon's in that region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for. Without it: the environment's `AWS_REGION` or `AWS_DEFAULT_REGION`,
    /// or else `us-east-1`, which suits most stores that are not Amazon's.
    pub region: Option<String>,
    /// Where the bucket's name stands.
    pub addressing: Addressing,
    /// Permits an endpoint of `http://`: then whoever is on the way can read and change everything.
    pub allow_http: bool,
    /// A file of certificates (PEM) to check the store's with, and no others. Without it: the environment's
    /// `AWS_CA_BUNDLE`, or else `SSL_CERT_FILE` and `SSL_CERT_DIR`, or else the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Where the credentials are.
    pub credentials: CredentialSource,
    /// The profile in the files of credentials. Without it: the environment's `AWS_PROFILE`, or else `default`.
    pub profile: Option<String>,
    /// Sends a CRC32C with every PUT, which the store checks (if it knows that header, and ignores otherwise).
    pub checksum: bool,
    /// Signs the bodies of PUTs too, at the cost of a SHA-256 over all data. For stores that ask for it.
    pub sign_payload: bool,
    /// In a bucket that keeps old versions of objects, deletes all versions of what is deleted, at the cost of a listing
    /// for up to 1000 objects. Otherwise they stay in the bucket, and are paid for.
    pub delete_versions: bool,
    /// Has the bucket keep what snapshots need that are kept until a date, until then. The bucket must have object lock.
    pub object_lock: ObjectLock,
    /// A connection that is not established by then has failed.
    #[serde(with = "human")]
    pub connect_timeout: Duration,
    /// Leaves `If-None-Match` out of PUTs, for stores that refuse it; set by `store.fencing = "unsafe"` and no key of its own.
    #[serde(skip)]
    pub unconditional: bool,
    /// A request has failed if for this long neither side has sent anything.
    #[serde(with = "human")]
    pub stall_timeout: Duration,
    /// A request has failed after this long, even if it still makes progress.
    #[serde(with = "human")]
    pub request_timeout: Duration,
    /// Connections that are kept open for the next request.
    pub idle_connections_max: usize,
}

impl Default for S3Options {
    fn default() -> Self {
        S3Options {
            endpoint: None,
            region: None,
            addressing: Addressing::Auto,
            allow_http: false,
            ca_bundle: None,
            credentials: CredentialSource::Auto,
            profile: None,
            checksum: true,
            sign_payload: false,
            delete_versions: false,
            object_lock: ObjectLock::Off,
            connect_timeout: Duration::from_secs(5),
            unconditional: false,
            stall_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(300),
            idle_connections_max: 64,
        }
    }
}

/// Where the bucket's name stands in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// In the path if an endpoint was named, in the host at Amazon's.
    #[default]
    Auto,
    /// In the path: `https://host/bucket/key`. Every store but Amazon's newest knows it.
    Path,
    /// In the host: `https://bucket.host/key`.
    VirtualHost,
}

/// How objects are locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectLock {
    /// They are not.
    #[default]
    Off,
    /// Whoever has the permission to go round it may delete them all the same.
    Governance,
    /// Nobody deletes them before, whatever he may do.
    Compliance,
}

impl ObjectLock {
    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            ObjectLock::Off => "off",
            ObjectLock::Governance => "governance",
            ObjectLock::Compliance => "compliance",
        }
    }

    /// What S3 calls it.
    pub fn mode(self) -> Option<&'static str> {
        match self {
            ObjectLock::Off => None,
            ObjectLock::Governance => Some("GOVERNANCE"),
            ObjectLock::Compliance => Some("COMPLIANCE"),
        }
    }
}

/// Where credentials come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialSource {
    /// The first of the others that has any, in the order in which they stand here; if a profile is named, it first.
    #[default]
    Auto,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    Environment,
    /// `~/.aws/credentials` and `~/.aws/config`, or the files that `AWS_SHARED_CREDENTIALS_FILE` and
    /// `AWS_CONFIG_FILE` name.
    Profile,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`: a service account of Kubernetes.
    WebIdentity,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `…_FULL_URI`: a task's or a pod's role.
    Container,
    /// The role of the virtual machine, by its metadata service (IMDSv2).
    Instance,
}
