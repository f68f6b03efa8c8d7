//! Where an S3 store is: names checked, defaults filled in, and sentences for what cannot be.

use reqsign_core::Env;

use super::super::{Key, Result, StoreError};
use super::credentials::Environment;
use super::errors::Place;
use super::options::{Addressing, S3Options};

/// A store's address, complete.
#[derive(Debug)]
pub struct Address {
    /// Endpoint, region and bucket.
    pub place: Place,
    /// "" or a path ending in `/`.
    pub prefix: String,
    /// Whether the bucket's name stands in the host.
    pub bucket_in_host: bool,
}

impl Address {
    /// The address of `bucket` and `prefix` (without `/` at its ends), as options and environment complete it.
    pub fn new(bucket: &str, prefix: &str, options: &S3Options, environment: &Environment) -> Result<Address> {
        let variable = |name: &str| environment.var(name).filter(|value| !value.is_empty());
        let region = options.region.clone();
        let region = region.or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or_else(|| "us-east-1".into());
        let named = options.endpoint.clone();
        let named = named.or_else(|| variable("AWS_ENDPOINT_URL_S3")).or_else(|| variable("AWS_ENDPOINT_URL"));
        let endpoint = checked_endpoint(named.as_deref(), &region, options.allow_http)?;
        let bucket_in_host = match options.addressing {
            // The certificate of *.s3.amazonaws.com does not cover names with a dot.
            Addressing::Auto => named.is_none() && !bucket.contains('.'),
            Addressing::Path => false,
            Addressing::VirtualHost => true,
        };
        let place = Place { endpoint, region, bucket: checked_bucket(bucket)? };
        Ok(Address { place, prefix: checked_prefix(prefix)?, bucket_in_host })
    }
}

/// `scheme://host[:port]`, nothing else.
fn checked_endpoint(named: Option<&str>, region: &str, allow_http: bool) -> Result<String> {
    let Some(named) = named else {
        let region_ok = !region.is_empty() && region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        return match region_ok {
            true => Ok(format!("https://s3.{region}.{suffix}")),
            false => Err(StoreError::invalid(format!("store.s3.region is {region:?}, which is no region"))),
        };
    };
    let shaped = |host: &str| {
        let host = host.trim_end_matches('/');
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        (!host.is_empty() && host.bytes().all(good)).then(|| host.to_owned())
    };
    // The value is not shown if it may hold a password.
    let shown = if named.contains('@') { "(not shown, since it holds an @)" } else { named };
    let bad =
        || StoreError::invalid(format!("store.s3.endpoint is {shown}; it must be https://HOST[:PORT], without a path"));
    match named.split_once("://") {
        Some(("https", host)) => Ok(format!("https://{}", shaped(host).ok_or_else(bad)?)),
        Some(("http", host)) if allow_http => Ok(format!("http://{}", shaped(host).ok_or_else(bad)?)),
        Some(("http", _)) => Err(StoreError::invalid(format!(
            "store.s3.endpoint is {shown}, over which everybody on the way can read and change the data; use https, \
             or set store.s3.allow_http = true"
        ))),
        _ => Err(bad()),
    }
}

fn checked_bucket(bucket: &str) -> Result<String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    match (3..=255).contains(&bucket.len()) && bucket.bytes().all(good) && !bucket.contains("..") {
        true => Ok(bucket.to_owned()),
        false => Err(StoreError::invalid(format!(
            "{bucket:?} cannot be the name of a bucket; a store URL is s3://BUCKET or s3://BUCKET/PREFIX"
        ))),
    }
}

fn checked_prefix(prefix: &str) -> Result<String> {
    match prefix {
        "" => Ok(String::new()),
        _ if Key::new(prefix).is_ok() => Ok(format!("{prefix}/")),
        _ => Err(StoreError::invalid(format!(
            "{prefix:?} cannot be the prefix of a store; it consists of letters, digits, '.', '_' and '-', parted by /"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_hosts_and_plain_http_is_asked_for() {
        let check = |named, allow_http| checked_endpoint(named, "eu-1", allow_http).map_err(|error| error.message);
        assert_eq!(check(None, false).unwrap(), "https://s3.eu-1.amazonaws.com");
        assert_eq!(check(Some("https://ceph:8443/"), false).unwrap(), "https://ceph:8443");
        assert_eq!(check(Some("http://127.0.0.1:7480"), true).unwrap(), "http://127.0.0.1:7480");
        assert!(check(Some("http://ceph"), false).unwrap_err().contains("store.s3.allow_http = true"));
        for bad in ["ceph", "https://", "https://ceph/path", "ftp://ceph"] {
            assert!(check(Some(bad), true).unwrap_err().contains(bad), "{bad}");
        }
        assert!(!check(Some("https://me:secret@ceph"), true).unwrap_err().contains("secret"));
    }

    #[test]
    fn options_win_over_the_environment_and_both_over_defaults() {
        let variables = [("AWS_REGION", "eu-1"), ("AWS_ENDPOINT_URL_S3", "https://ceph"), ("AWS_ENDPOINT_URL", "")];
        let set = Environment::Fixed(variables.map(|(name, value)| (name.into(), value.into())).into());
        let unset = Environment::Fixed(Default::default());
        let options = |endpoint: Option<&str>, region: Option<&str>| S3Options {
            endpoint: endpoint.map(str::to_owned),
            region: region.map(str::to_owned),
            ..S3Options::default()
        };
        for (options, environment, endpoint, region, in_host) in [
            (options(None, None), &unset, "https://s3.us-east-1.amazonaws.com", "us-east-1", true),
            (options(None, None), &set, "https://ceph", "eu-1", false),
            (options(Some("https://mine"), Some("r")), &set, "https://mine", "r", false),
            (options(None, Some("r")), &unset, "https://s3.r.amazonaws.com", "r", true),
        ] {
            let address = Address::new("disks", "", &options, environment).unwrap();
            assert_eq!((&*address.place.endpoint, &*address.place.region), (endpoint, region));
            assert_eq!(address.bucket_in_host, in_host, "{endpoint}");
        }
        assert!(!Address::new("my.disks", "", &options(None, None), &unset).unwrap().bucket_in_host);
    }

    #[test]
    fn buckets_and_prefixes_that_cannot_be() {
        let check = |bucket, prefix| {
            let unset = Environment::Fixed(Default::default());
            Address::new(bucket, prefix, &S3Options::default(), &unset).map(|address| address.prefix)
        };
        assert_eq!(check("disks", "a/b").unwrap(), "a/b/");
        for bucket in ["", "ab", "a/b", "a b", "a..b", "user:secret"] {
            assert!(check(bucket, "").unwrap_err().message.contains("s3://BUCKET/PREFIX"), "{bucket}");
        }
        for prefix in ["a//b", "../a", "a b", "?x"] {
            assert!(check("disks", prefix).unwrap_err().message.contains("cannot be the prefix"), "{prefix}");
        }
    }
}
