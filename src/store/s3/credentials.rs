//! Finding, keeping and renewing the credentials that sign requests.
//!
//! The sources themselves (formats of files, metadata services, STS) are `reqsign`'s; why is written in
//! `docs/decisions/0001-s3-credentials.md`. What is ours: which are asked in which order, one fetch at a time, the
//! result kept and renewed five minutes before it expires, in use until it really has expired if renewing fails, and
//! asked for again as soon as the store refuses it: a key that was rotated in a file is taken up on the next attempt.
//!
//! Nothing here prints a secret: `Debug` of what holds one is redacted, and sources keep it out of their errors.

#![allow(clippy::disallowed_methods)] // files of credentials are read here, and nowhere else

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider, EnvCredentialProvider,
    IMDSv2CredentialProvider, ProfileCredentialProvider,
};
use reqsign_core::{Context, Env, FileRead, HttpSend, OsEnv, ProvideCredentialDyn};
use rusoto_credential::AwsCredentials;
use tracing::warn;

use super::super::{ErrorKind, Result, StoreError};
use super::http::{Http, PartsBody, send, whole};
use super::options::{CredentialSource, S3Options};
use crate::outside::{Clock, Workers};

/// Where requests get their credentials.
pub struct Credentials {
    sources: Vec<Source>,
    context: Context,
    clock: Clock,
    kept: Mutex<Kept>,
    /// Held while a source is asked, so that many requests ask once. The one lock that is held across an await.
    fetching: tokio::sync::Mutex<()>,
}

struct Source {
    name: &'static str,
    provider: Box<dyn ProvideCredentialDyn<Credential = Credential>>,
}

#[derive(Default)]
struct Kept {
    credential: Option<Credential>,
    /// What was fetched last, even if it was dropped since.
    fetched: Option<Credential>,
    /// How often a fetch brought something else than the one before.
    generation: u64,
    /// After a failed renewal, the next attempt is not before this time.
    renew_not_before_unix_millis: u64,
    /// The source that delivered last: if it fails, that is an outage and no lack of configuration.
    source: Option<&'static str>,
}

/// Credentials are renewed this long before they expire.
const RENEW_AHEAD: Duration = Duration::from_secs(5 * 60);

/// A renewal that failed while the old credentials are still good is tried again after this time.
const RENEW_PAUSE: Duration = Duration::from_secs(20);

impl Credentials {
    /// Credentials from the sources that `options` name, in `context`.
    pub fn new(options: &S3Options, context: Context, clock: Clock) -> Credentials {
        Credentials {
            sources: sources(options, &context),
            context,
            clock,
            kept: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        }
    }

    /// Credentials that are good now. `Denied` if there are none, with what was tried and what to set.
    pub async fn get(&self) -> Result<AwsCredentials> {
        if let Some(credential) = self.fresh() {
            return Ok(signing(&credential));
        }
        let usable = self.usable();
        let fetching = match usable {
            // Somebody else is renewing; the old ones will do meanwhile.
            Some(credential) if self.fetching.try_lock().is_err() => return Ok(signing(&credential)),
            _ => self.fetching.lock().await,
        };
        let credential = match self.fresh() {
            Some(credential) => credential, // fetched while we waited
            None => self.renew().await?,
        };
        drop(fetching);
        Ok(signing(&credential))
    }

    /// Counts replacements; see [`Self::replaced_since`].
    pub fn generation(&self) -> u64 {
        self.kept.lock().generation
    }

    /// The store refused a request that was begun at `generation`: are there other credentials by now, or when asking
    /// the sources again? Then the request deserves another attempt.
    pub async fn replaced_since(&self, generation: u64) -> bool {
        if self.generation() == generation {
            self.drop_kept();
            let _ = self.get().await; // if this fails, so will the next request, with the reason
        }
        self.generation() != generation
    }

    fn drop_kept(&self) {
        let mut kept = self.kept.lock();
        kept.credential = None;
        kept.renew_not_before_unix_millis = 0;
    }

    async fn renew(&self) -> Result<Credential> {
        let failed = match self.fetch().await {
            Ok((source, credential)) => {
                self.keep(source, &credential);
                return Ok(credential);
            }
            Err(failed) => failed,
        };
        let Some(credential) = self.usable() else { return Err(failed) };
        warn!("credentials of the store expire soon and could not be renewed: {failed}");
        let pause = RENEW_PAUSE.as_millis() as u64;
        self.kept.lock().renew_not_before_unix_millis = self.clock.unix_millis() + pause;
        Ok(credential)
    }

    fn keep(&self, source: &'static str, credential: &Credential) {
        let mut kept = self.kept.lock();
        kept.generation += u64::from(kept.fetched.as_ref().is_some_and(|old| !is_same(old, credential)));
        kept.fetched = Some(credential.clone());
        kept.credential = Some(credential.clone());
        kept.renew_not_before_unix_millis = 0;
        kept.source = Some(source);
    }

    async fn fetch(&self) -> Result<(&'static str, Credential)> {
        let delivered = self.kept.lock().source;
        let mut tried: Vec<String> = Vec::new();
        let mut kind = ErrorKind::Denied;
        for source in &self.sources {
            match source.provider.provide_credential_dyn(&self.context).await {
                Ok(Some(credential)) => return Ok((source.name, credential)),
                Ok(None) => tried.push(format!("{}: none", source.name)),
                Err(error) => {
                    if delivered == Some(source.name) || (error.is_retryable() && self.sources.len() == 1) {
                        kind = ErrorKind::Retryable;
                    }
                    tried.push(format!("{}: {}", source.name, causes(&error)));
                }
            }
        }
        Err(StoreError::new(
            kind,
            format!(
                "no credentials for the store ({}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name \
                 store.s3.profile or store.s3.credentials",
                tried.join("; ")
            ),
        ))
    }

    /// What is kept, if it need not be renewed yet.
    fn fresh(&self) -> Option<Credential> {
        let kept = self.kept.lock();
        let now = self.clock.unix_millis();
        let ahead = RENEW_AHEAD.as_millis() as u64;
        kept.credential
            .clone()
            .filter(|credential| is_good_at(credential, now + ahead) || now < kept.renew_not_before_unix_millis)
            .filter(|credential| is_good_at(credential, now))
    }

    /// What is kept, if it has not expired.
    fn usable(&self) -> Option<Credential> {
        let now = self.clock.unix_millis();
        self.kept.lock().credential.clone().filter(|credential| is_good_at(credential, now))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources.iter().map(|source| source.name)).finish()
    }
}

fn is_same(a: &Credential, b: &Credential) -> bool {
    a.access_key_id == b.access_key_id
        && a.secret_access_key == b.secret_access_key
        && a.session_token == b.session_token
}

fn is_good_at(credential: &Credential, unix_millis: u64) -> bool {
    credential.expires_in.is_none_or(|end| end.as_second().saturating_mul(1000) > unix_millis as i64)
}

fn signing(credential: &Credential) -> AwsCredentials {
    AwsCredentials::new(
        &credential.access_key_id,
        &credential.secret_access_key,
        credential.session_token.clone(),
        None, // expiry is our business
    )
}

/// The sources of an option, in the order in which they are asked.
fn sources(options: &S3Options, context: &Context) -> Vec<Source> {
    let profile = || match &options.profile {
        Some(name) => ProfileCredentialProvider::new().with_profile(name),
        None => ProfileCredentialProvider::new(),
    };
    let web_identity = || match context.env_var("AWS_ROLE_SESSION_NAME") {
        Some(_) => AssumeRoleWithWebIdentityCredentialProvider::new(),
        None => AssumeRoleWithWebIdentityCredentialProvider::new().with_role_session_name("ashlar".into()),
    };
    let source = |which: CredentialSource| -> Vec<Source> {
        let (name, provider): (_, Box<dyn ProvideCredentialDyn<Credential = Credential>>) = match which {
            CredentialSource::Auto => return Vec::new(),
            CredentialSource::Environment => ("environment", Box::new(EnvCredentialProvider::new())),
            CredentialSource::Profile => ("profile", Box::new(profile())),
            CredentialSource::WebIdentity => ("web identity", Box::new(web_identity())),
            CredentialSource::Container => ("container", Box::new(ECSCredentialProvider::new())),
            CredentialSource::Instance => ("instance", Box::new(IMDSv2CredentialProvider::new())),
        };
        vec![Source { name, provider }]
    };
    use CredentialSource::{Auto, Container, Environment, Instance, Profile, WebIdentity};
    match (options.credentials, &options.profile) {
        (Auto, None) => [Environment, Profile, WebIdentity, Container, Instance].into_iter().flat_map(source).collect(),
        (Auto, Some(_)) => source(Profile), // whoever names a profile means it
        (named, _) => source(named),
    }
}

fn causes(error: &reqsign_core::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Environment variables, which say where credentials are and may hold them.
#[derive(Clone, Default)]
pub enum Environment {
    /// This process's.
    #[default]
    Process,
    /// A test's.
    Fixed(HashMap<String, String>),
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment") // its values are secret
    }
}

impl Env for Environment {
    fn var(&self, key: &str) -> Option<String> {
        match self {
            Environment::Process => OsEnv.var(key),
            Environment::Fixed(variables) => variables.get(key).cloned(),
        }
    }

    fn vars(&self) -> HashMap<String, String> {
        match self {
            Environment::Process => OsEnv.vars(),
            Environment::Fixed(variables) => variables.clone(),
        }
    }

    fn home_dir(&self) -> Option<PathBuf> {
        match self {
            Environment::Process => OsEnv.home_dir(),
            Environment::Fixed(variables) => variables.get("HOME").map(PathBuf::from),
        }
    }
}

/// The outside of `reqsign`: the environment, files, and our HTTP client.
pub fn context(environment: &Environment, http: &Http) -> Context {
    Context::new().with_env(environment.clone()).with_file_read(Files).with_http_send(Web(http.clone()))
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let owned = path.to_owned();
        Workers::Threads
            .run(move || std::fs::read(owned))
            .await
            .map_err(|error| reqsign_core::Error::config_invalid(format!("cannot read {path}: {error}")))
    }
}

struct Web(Http);

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Web")
    }
}

/// A metadata service is near, and STS is quick; both answer within this or not at all.
const SERVICE_STALL: Duration = Duration::from_secs(5);

/// No answer with credentials is longer.
const SERVICE_ANSWER_BYTES_MAX: usize = 256 * 1024;

impl HttpSend for Web {
    async fn http_send(&self, request: http::Request<Bytes>) -> reqsign_core::Result<http::Response<Bytes>> {
        let failed = |error: StoreError| reqsign_core::Error::unexpected(error.message).set_retryable(true);
        let request = request.map(|body| PartsBody::new(vec![body]));
        let (response, _) = send(&self.0, request, SERVICE_STALL).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        let body = whole(body, SERVICE_STALL, SERVICE_ANSWER_BYTES_MAX).await.map_err(failed)?;
        Ok(http::Response::from_parts(head, body.freeze()))
    }
}
