//! Where a WebDAV store is, and who asks: `webdavs://[USER@]HOST[:PORT]/PATH`, and `webdav://` without TLS, as file managers write it (of KDE; those of
//! GNOME say `davs://` and `dav://`, which is accepted too).

use std::fmt;

use data_encoding::BASE64;
use http::{HeaderValue, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqsign_core::Env;

use super::super::s3::credentials::Environment;
use super::super::{Result, StoreError};
use super::options::WebdavOptions;

/// What stands in a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A store's address, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Who, if the URL says so.
    pub user: Option<String>,
    /// `HOST[:PORT]`.
    pub authority: String,
    /// The root as it stands in requests: "" or `/a/b`, percent-encoded, without `/` at its end.
    pub root: String,
}

impl Address {
    /// Whether that is a scheme of WebDAV; with TLS, if so.
    pub fn scheme(scheme: &str) -> Option<bool> {
        match scheme {
            "webdavs" | "davs" => Some(true),
            "webdav" | "dav" => Some(false),
            _ => None,
        }
    }

    /// Reads what stands behind the scheme.
    pub fn parse(tls: bool, rest: &str) -> Result<Address> {
        const SHAPE: &str = "a WebDAV store is webdavs://[USER@]HOST[:PORT]/PATH (webdav:// without TLS)";
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, authority) = match place.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, place),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(StoreError::invalid(
                "the store URL (not shown, since it holds a password) must not hold one; it comes from the environment: WEBDAV_PASSWORD",
            ));
        }
        let scheme = if tls { "webdavs" } else { "webdav" };
        let wrong =
            |what: &str| StoreError::invalid(format!("the store URL \"{scheme}://{rest}\" has {what}; {SHAPE}"));
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
        let user = user.map(decoded).transpose().map_err(|_| wrong("a user that is no UTF-8"))?;
        if user.as_deref().is_some_and(|user| user.is_empty() || user.contains(|c: char| c == ':' || c.is_control())) {
            return Err(wrong("a user that cannot be"));
        }
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        let uri: Option<Uri> = format!("https://{authority}/").parse().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        let port = authority.get(host.len()..).unwrap_or_default();
        let is_port =
            |port: &str| port.strip_prefix(':').is_some_and(|port| port.parse().is_ok_and(|port: u16| port > 0));
        if !authority.bytes().all(good) || host.is_empty() || !port.is_empty() && !is_port(port) {
            return Err(wrong("no host, or one that cannot be"));
        }
        let path = decoded(path.trim_end_matches('/')).map_err(|_| wrong("a path that is no UTF-8"))?;
        let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
        if !path.is_empty() && !path.split('/').all(is_name) {
            return Err(wrong("a path that is none"));
        }
        let root = path.split('/').filter(|part| !part.is_empty());
        let root: String = root.map(|part| format!("/{}", utf8_percent_encode(part, PLAIN))).collect();
        Ok(Address { tls, user, authority: authority.to_owned(), root })
    }

    /// `https://HOST[:PORT]`.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "webdavs" } else { "webdav" };
        let user = self.user.as_ref().map(|user| format!("{}@", utf8_percent_encode(user, PLAIN))).unwrap_or_default();
        write!(f, "{scheme}://{user}{}{}", self.authority, if self.root.is_empty() { "/" } else { &self.root })
    }
}

/// What every request says of who asks: nothing, a user with a password, or a token. Never shown.
pub fn login(address: &Address, options: &WebdavOptions, environment: &Environment) -> Result<Option<HeaderValue>> {
    let variable = |name: &str| environment.var(name).filter(|value| !value.is_empty());
    let user = options.user.clone().or_else(|| address.user.clone()).or_else(|| variable("WEBDAV_USERNAME"));
    let words = match (user, variable("WEBDAV_PASSWORD"), variable("WEBDAV_TOKEN")) {
        (Some(user), Some(password), _) => format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes())),
        (Some(user), None, None) => {
            return Err(StoreError::invalid(format!(
                "there is no password for {user} at {}: set WEBDAV_PASSWORD, or WEBDAV_TOKEN, in the environment",
                address.endpoint()
            )));
        }
        (None, Some(_), None) => {
            return Err(StoreError::invalid(
                "WEBDAV_PASSWORD is set, and nothing says whose it is: set WEBDAV_USERNAME or store.webdav.user, or name the user in the store URL",
            ));
        }
        (_, _, Some(token)) => format!("Bearer {token}"),
        (None, None, None) => return Ok(None),
    };
    let mut value = HeaderValue::try_from(words)
        .map_err(|_| StoreError::invalid("WEBDAV_TOKEN (not shown) holds bytes that HTTP does not permit"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (rest, user, authority, root, shown) in [
            ("box/dav/disks/", None, "box", "/dav/disks", "webdavs://box/dav/disks"),
            ("me@box:8443/a%20b", Some("me"), "box:8443", "/a%20b", "webdavs://me@box:8443/a%20b"),
            ("me%40home@[::1]:1", Some("me@home"), "[::1]:1", "", "webdavs://me%40home@[::1]:1/"),
        ] {
            let read = Address::parse(true, rest).unwrap();
            let expected =
                Address { tls: true, user: user.map(str::to_owned), authority: authority.into(), root: root.into() };
            assert_eq!(read, expected, "{rest}");
            assert_eq!(read.to_string(), shown);
        }
        assert_eq!(Address::parse(false, "box/d").unwrap().endpoint(), "http://box");
        assert_eq!(["davs", "dav", "ftp"].map(Address::scheme), [Some(true), Some(false), None]);
    }

    #[test]
    fn what_cannot_be_an_address_is_told_its_shape_and_no_password_is_repeated() {
        for (rest, why) in [
            ("", "no host"),
            ("/dav", "no host"),
            ("bo x/a", "no host"),
            ("box:no/a", "no host"),
            ("@box/a", "a user"),
            ("a%3Ab@box/a", "a user"),
            ("box/a//b", "a path"),
            ("box/a/../b", "a path"),
            ("box/%ff", "a path"),
        ] {
            let error = Address::parse(true, rest).unwrap_err().message;
            assert!(error.contains(why) && error.contains("webdavs://[USER@]HOST[:PORT]/PATH"), "{rest}: {error}");
        }
        let error = Address::parse(true, "me:secret@box/a").unwrap_err().message;
        assert!(!error.contains("secret") && error.contains("WEBDAV_PASSWORD"), "{error}");
    }

    #[test]
    fn who_asks_is_said_with_what_the_environment_gives() {
        let said = |user: Option<&str>, variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let address =
                Address::parse(true, &format!("{}box/d", user.map(|user| format!("{user}@")).unwrap_or_default()));
            let said = login(&address.unwrap(), &WebdavOptions::default(), &Environment::Fixed(variables));
            said.map(|value| value.map(|value| (value.is_sensitive(), value.to_str().unwrap().to_owned())))
        };
        let basic = Some((true, "Basic bWU6c2VjcmV0".to_owned()));
        assert_eq!(said(None, &[]).unwrap(), None);
        assert_eq!(said(Some("me"), &[("WEBDAV_PASSWORD", "secret"), ("WEBDAV_USERNAME", "other")]).unwrap(), basic);
        assert_eq!(said(None, &[("WEBDAV_PASSWORD", "secret"), ("WEBDAV_USERNAME", "me")]).unwrap(), basic);
        assert_eq!(said(None, &[("WEBDAV_TOKEN", "t")]).unwrap(), Some((true, "Bearer t".into())));
        for (user, variables, way_out) in [
            (Some("me"), &[][..], "WEBDAV_PASSWORD"),
            (None, &[("WEBDAV_PASSWORD", "secret")], "WEBDAV_USERNAME"),
            (None, &[("WEBDAV_TOKEN", "se\ncret")], "not shown"),
        ] {
            let error = said(user, variables).unwrap_err().message;
            assert!(error.contains(way_out) && !error.contains("cret)"), "{error}");
        }
    }
}
