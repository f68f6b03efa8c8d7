//! Whose objects they are: the address of a bucket, and the credentials for it.
//!
//! Credentials are `object_store`'s: service accounts and users by a file of Google's, and the metadata server of a machine. What these ask over HTTP goes
//! through our own connections (`store/tokens.rs`).

use http::{HeaderValue, Uri};
use object_store::gcp::{GcpCredentialProvider, GoogleCloudStorageBuilder};
use reqsign_core::Env;

use super::super::s3::credentials::Environment;
use super::super::s3::http::Http;
use super::super::tokens::Connector;
use super::super::{ErrorKind, Key, Result, StoreError};
use super::options::GcsOptions;

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `https://host[:port]`.
    pub endpoint: String,
    /// Whether that is an emulator's, which knows no credentials.
    pub is_emulator: bool,
    /// The bucket.
    pub bucket: String,
    /// "" or ending in `/`.
    pub prefix: String,
}

impl Place {
    /// The place of `BUCKET[/PREFIX]`, as options and environment complete it.
    pub fn new(rest: &str, options: &GcsOptions, environment: &Environment) -> Result<Place> {
        const SHAPE: &str = "a store in Google Cloud Storage is gs://BUCKET or gs://BUCKET/PREFIX";
        if rest.contains('@') {
            return Err(StoreError::invalid(format!(
                "the store URL (not shown, since it holds an @) must not hold credentials; they come from the environment: \
                 GOOGLE_APPLICATION_CREDENTIALS; {SHAPE}"
            )));
        }
        let rest = rest.trim_end_matches('/');
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        if !(3..=222).contains(&bucket.len()) || !bucket.bytes().all(good) {
            return Err(StoreError::invalid(format!(
                "{bucket:?} cannot be the name of a bucket (small letters, digits, '-', '_' and '.', from 3 on); {SHAPE}"
            )));
        }
        if !prefix.is_empty() && Key::new(prefix).is_err() {
            return Err(StoreError::invalid(format!(
                "{prefix:?} cannot be the prefix of a store; it consists of letters, digits, '.', '_' and '-', parted by /"
            )));
        }
        let emulator = environment.var("STORAGE_EMULATOR_HOST").filter(|host| !host.is_empty());
        let (endpoint, is_emulator) = match (&options.endpoint, emulator) {
            (Some(endpoint), _) => (checked_endpoint("store.gcs.endpoint", endpoint, options.allow_http)?, false),
            (None, Some(host)) => {
                let host = if host.contains("://") { host } else { format!("http://{host}") };
                (checked_endpoint("STORAGE_EMULATOR_HOST", &host, options.allow_http)?, true)
            }
            (None, None) => ("https://storage.googleapis.com".to_owned(), false),
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Place { endpoint, is_emulator, bucket: bucket.to_owned(), prefix })
    }
}

fn checked_endpoint(key: &str, named: &str, allow_http: bool) -> Result<String> {
    let bad = || {
        let shown = if named.contains(['@', '?']) { "(not shown, since it may hold a secret)" } else { named };
        StoreError::invalid(format!("{key} is {shown}; it must be https://HOST[:PORT]"))
    };
    let named = named.trim_end_matches('/');
    let uri: Uri = named.parse().map_err(|_| bad())?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]/".contains(&b);
    match uri.scheme_str() {
        Some("https" | "http") if !named.bytes().all(good) || uri.host().is_none() || uri.path() != "/" => Err(bad()),
        Some("https") => Ok(named.to_owned()),
        Some("http") if allow_http => Ok(named.to_owned()),
        Some("http") => Err(StoreError::invalid(format!(
            "{key} is {named}, over which everybody on the way can read and change the data; use https, or set store.gcs.allow_http = true"
        ))),
        _ => Err(bad()),
    }
}

/// Says of each request who asks.
#[derive(Debug)]
pub struct Signer(Option<GcpCredentialProvider>);

impl Signer {
    /// With what the environment says. Without anything there it is the service account of the machine.
    pub fn new(place: &Place, options: &GcsOptions, environment: &Environment, http: &Http) -> Result<Signer> {
        if place.is_emulator {
            return Ok(Signer(None));
        }
        let file = environment.var("GOOGLE_APPLICATION_CREDENTIALS").filter(|path| !path.is_empty());
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&place.bucket)
            .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
            .with_http_connector(Connector::new(http.clone(), options.stall_timeout));
        if let Some(file) = &file {
            builder = builder.with_application_credentials(file);
        }
        let built = builder.build().map_err(|_| {
            // The library's words may hold what was wrong with a secret.
            let file = file.unwrap_or_else(|| "~/.config/gcloud/application_default_credentials.json".into());
            StoreError::invalid(format!(
                "{file} cannot be used as credentials for Google; it must be the file of a service account or of `gcloud auth application-default login`, \
                 and readable; its path stands in GOOGLE_APPLICATION_CREDENTIALS"
            ))
        })?;
        Ok(Signer(Some(built.credentials().clone())))
    }

    /// What a request says of who asks.
    pub async fn authorization(&self) -> Result<Option<HeaderValue>> {
        let Some(provider) = &self.0 else { return Ok(None) };
        let credential = provider.get_credential().await.map_err(|error| {
            StoreError::new(
                ErrorKind::Denied,
                format!(
                    "no credentials for Google could be had: {error}; set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or give this \
                     machine one"
                ),
            )
        })?;
        let mut value = HeaderValue::try_from(format!("Bearer {}", credential.bearer)).map_err(|_| {
            StoreError::new(ErrorKind::Denied, "the token for Google (not shown) holds bytes that HTTP does not permit")
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rest: &str, endpoint: Option<&str>, allow_http: bool, emulator: &str) -> Result<Place> {
        let options = GcsOptions { endpoint: endpoint.map(str::to_owned), allow_http, ..GcsOptions::default() };
        let variables = [("STORAGE_EMULATOR_HOST".to_owned(), emulator.to_owned())];
        Place::new(rest, &options, &Environment::Fixed(variables.into()))
    }

    #[test]
    fn places() {
        let found = place("my_disks.example/a/b/", None, false, "").unwrap();
        let expected = Place {
            endpoint: "https://storage.googleapis.com".into(),
            is_emulator: false,
            bucket: "my_disks.example".into(),
            prefix: "a/b/".into(),
        };
        assert_eq!(found, expected);
        let found = place("disks", None, true, "127.0.0.1:9000").unwrap();
        assert_eq!((found.endpoint.as_str(), found.is_emulator), ("http://127.0.0.1:9000", true));
        let found = place("disks", Some("https://other"), false, "127.0.0.1:9000").unwrap();
        assert_eq!((found.endpoint.as_str(), found.is_emulator), ("https://other", false));
    }

    #[test]
    fn what_cannot_be_is_told_the_way_out_without_secrets() {
        for (rest, endpoint, emulator, said) in [
            ("", None, "", "name of a bucket"),
            ("Disks", None, "", "name of a bucket"),
            ("disks/a b", None, "", "prefix of a store"),
            ("disks", Some("http://host"), "", "store.gcs.allow_http = true"),
            ("disks", None, "host:1", "store.gcs.allow_http = true"),
            ("disks", Some("host"), "", "store.gcs.endpoint"),
            ("disks", Some("https://host/path"), "", "store.gcs.endpoint"),
            ("key@disks", None, "", "GOOGLE_APPLICATION_CREDENTIALS"),
        ] {
            let error = place(rest, endpoint, false, emulator).unwrap_err().message;
            assert!(error.contains(said), "{rest}: {error}");
        }
        let error = place("disks", Some("https://host?key=hunter2"), false, "").unwrap_err().message;
        assert!(!error.contains("hunter2"), "{error}");
    }
}
