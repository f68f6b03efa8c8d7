//! Whose blobs they are: the address of a container, and the credentials that sign requests for it.
//!
//! Credentials and signatures are `object_store`'s: keys and SAS tokens, and Entra's tokens for client secrets, workload identities and managed identities. What
//! these ask over HTTP goes through our own connections, as every request does.

use http::{Request, Uri};
use object_store::azure::{AzureAuthorizer, AzureConfigKey, AzureCredentialProvider, MicrosoftAzureBuilder};
use object_store::client::{HttpRequest, HttpRequestBody};
use reqsign_core::Env;

use super::super::s3::credentials::Environment;
use super::super::s3::http::Http;
use super::super::tokens::Connector;
use super::super::{ErrorKind, Key, Result, StoreError};
use super::options::AzureOptions;

/// Where the blobs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The storage account.
    pub account: String,
    /// `https://host[:port][/path]`, without a `/` at its end.
    pub endpoint: String,
    /// The container.
    pub container: String,
    /// "" or ending in `/`.
    pub prefix: String,
}

impl Place {
    /// The place of `CONTAINER[/PREFIX]`, as options and environment complete it.
    pub fn new(rest: &str, options: &AzureOptions, environment: &Environment) -> Result<Place> {
        const SHAPE: &str = "a store in Azure Blob Storage is az://CONTAINER or az://CONTAINER/PREFIX";
        if rest.contains('@') {
            return Err(StoreError::invalid(format!(
                "the store URL (not shown, since it holds an @) must name neither an account nor a key; the account is store.azure.account or \
                 AZURE_STORAGE_ACCOUNT, and credentials come from the environment; {SHAPE}"
            )));
        }
        let variable =
            |names: &[&str]| names.iter().find_map(|name| environment.var(name).filter(|value| !value.is_empty()));
        let (container, prefix) =
            rest.trim_end_matches('/').split_once('/').unwrap_or((rest.trim_end_matches('/'), ""));
        let is_name = |name: &str, more: &[u8]| {
            (3..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b))
        };
        if !is_name(container, b"-$") {
            return Err(StoreError::invalid(format!(
                "{container:?} cannot be the name of a container (3 to 63 small letters, digits and -); {SHAPE}"
            )));
        }
        if !prefix.is_empty() && Key::new(prefix).is_err() {
            return Err(StoreError::invalid(format!(
                "{prefix:?} cannot be the prefix of a store; it consists of letters, digits, '.', '_' and '-', parted by /"
            )));
        }
        let account =
            options.account.clone().or_else(|| variable(&["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"]));
        let account = account.ok_or_else(|| {
            StoreError::invalid("no storage account is named: set store.azure.account or AZURE_STORAGE_ACCOUNT")
        })?;
        if !is_name(&account, b"") {
            return Err(StoreError::invalid(format!(
                "{account:?} (store.azure.account or AZURE_STORAGE_ACCOUNT) cannot be a storage account; it consists of 3 to 24 small letters and digits"
            )));
        }
        let named = options.endpoint.clone().or_else(|| variable(&["AZURE_STORAGE_ENDPOINT"]));
        let endpoint = match named {
            Some(named) => checked_endpoint(&named, options.allow_http)?,
            None => format!("https://{account}.blob.core.windows.net"),
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Place { account, endpoint, container: container.to_owned(), prefix })
    }
}

fn checked_endpoint(named: &str, allow_http: bool) -> Result<String> {
    let bad = || {
        let shown = if named.contains(['@', '?']) { "(not shown, since it may hold a secret)" } else { named };
        StoreError::invalid(format!("store.azure.endpoint is {shown}; it must be https://HOST[:PORT][/PATH]"))
    };
    let named = named.trim_end_matches('/');
    let uri: Uri = named.parse().map_err(|_| bad())?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]/".contains(&b);
    match uri.scheme_str() {
        Some("https" | "http") if !named.bytes().all(good) || uri.host().is_none() => Err(bad()),
        Some("https") => Ok(named.to_owned()),
        Some("http") if allow_http => Ok(named.to_owned()),
        Some("http") => Err(StoreError::invalid(format!(
            "store.azure.endpoint is {named}, over which everybody on the way can read and change the data; use https, or set \
             store.azure.allow_http = true"
        ))),
        _ => Err(bad()),
    }
}

/// What the environment may say of credentials, by the names of Azure's own tools, and what it means to the library.
const VARIABLES: &[(&str, AzureConfigKey)] = &[
    ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey),
    ("AZURE_STORAGE_ACCOUNT_KEY", AzureConfigKey::AccessKey),
    ("AZURE_STORAGE_ACCESS_KEY", AzureConfigKey::AccessKey),
    ("AZURE_STORAGE_SAS_TOKEN", AzureConfigKey::SasKey),
    ("AZURE_CLIENT_ID", AzureConfigKey::ClientId),
    ("AZURE_CLIENT_SECRET", AzureConfigKey::ClientSecret),
    ("AZURE_TENANT_ID", AzureConfigKey::AuthorityId),
    ("AZURE_AUTHORITY_HOST", AzureConfigKey::AuthorityHost),
    ("AZURE_FEDERATED_TOKEN_FILE", AzureConfigKey::FederatedTokenFile),
    ("IDENTITY_ENDPOINT", AzureConfigKey::MsiEndpoint),
];

/// Signs requests.
#[derive(Debug)]
pub struct Signer {
    account: String,
    credentials: AzureCredentialProvider,
}

impl Signer {
    /// With what the environment says. Without anything there it is the managed identity of the machine.
    pub fn new(place: &Place, options: &AzureOptions, environment: &Environment, http: &Http) -> Result<Signer> {
        let mut builder = MicrosoftAzureBuilder::new()
            .with_account(&place.account)
            .with_container_name(&place.container)
            .with_endpoint(place.endpoint.clone())
            .with_allow_http(options.allow_http)
            .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
            .with_http_connector(Connector::new(http.clone(), options.stall_timeout));
        for (name, key) in VARIABLES {
            if let Some(value) = environment.var(name).filter(|value| !value.is_empty()) {
                builder = builder.with_config(*key, value);
            }
        }
        let built = builder.build().map_err(|_| {
            // The library's words may hold what was wrong with a secret.
            StoreError::invalid(
                "the credentials for Azure make no sense (not shown); set AZURE_STORAGE_KEY to a key of the account (base64), or \
                 AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE",
            )
        })?;
        Ok(Signer { account: place.account.clone(), credentials: built.credentials().clone() })
    }

    /// The head of a request, signed. What is sent under it is as long as its `Content-Length` says.
    pub async fn sign(&self, request: Request<()>) -> Result<Request<()>> {
        let unsigned = |error: object_store::Error| {
            StoreError::new(ErrorKind::Denied, format!("no credentials for Azure could be had: {error}"))
        };
        let credential = self.credentials.get_credential().await.map_err(unsigned)?;
        let (head, ()) = request.into_parts();
        let mut request: HttpRequest = Request::from_parts(head, HttpRequestBody::empty());
        AzureAuthorizer::new(&credential, &self.account).try_authorize(&mut request).map_err(unsigned)?;
        Ok(Request::from_parts(request.into_parts().0, ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rest: &str, options: &AzureOptions, variables: &[(&str, &str)]) -> Result<Place> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Place::new(rest, options, &Environment::Fixed(variables))
    }

    const ACCOUNT: &[(&str, &str)] = &[("AZURE_STORAGE_ACCOUNT", "acc1")];

    #[test]
    fn places() {
        let found = place("disks/a/b/", &AzureOptions::default(), ACCOUNT).unwrap();
        assert_eq!(
            (found.account.as_str(), found.container.as_str(), found.prefix.as_str()),
            ("acc1", "disks", "a/b/")
        );
        assert_eq!(found.endpoint, "https://acc1.blob.core.windows.net");
        let options = AzureOptions {
            account: Some("own".into()),
            endpoint: Some("http://127.0.0.1:10000/own/".into()),
            allow_http: true,
            ..AzureOptions::default()
        };
        let found = place("disks", &options, ACCOUNT).unwrap();
        assert_eq!((found.account.as_str(), found.endpoint.as_str()), ("own", "http://127.0.0.1:10000/own"));
    }

    #[test]
    fn what_cannot_be_is_told_the_way_out_without_secrets() {
        let plain = AzureOptions::default();
        let with = |endpoint: &str| AzureOptions { endpoint: Some(endpoint.into()), ..AzureOptions::default() };
        for (rest, options, variables, said) in [
            ("disks", &plain, &[][..], "AZURE_STORAGE_ACCOUNT"),
            ("Disks", &plain, ACCOUNT, "name of a container"),
            ("", &plain, ACCOUNT, "name of a container"),
            ("disks/a b", &plain, ACCOUNT, "prefix of a store"),
            ("disks", &plain, &[("AZURE_STORAGE_ACCOUNT", "A")], "storage account"),
            ("disks", &with("http://host"), ACCOUNT, "store.azure.allow_http = true"),
            ("disks", &with("host"), ACCOUNT, "store.azure.endpoint"),
        ] {
            let error = place(rest, options, variables).unwrap_err().message;
            assert!(error.contains(said), "{rest}: {error}");
        }
        let error = place("disks", &with("https://host?sig=hunter2"), ACCOUNT).unwrap_err().message;
        assert!(!error.contains("hunter2"), "{error}");
        let error = place("acc:hunter2@disks", &plain, ACCOUNT).unwrap_err().message;
        assert!(!error.contains("hunter2") && error.contains("store.azure.account"), "{error}");
    }
}
