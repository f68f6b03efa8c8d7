//! What answers of WebDAV servers mean: one table from status to what may be done about it, and the reader of PROPFIND. Pure.
//!
//! There are no words but the status, and servers differ: a taken name is 412, 207 with 412 inside, or 500; a folder that is missing 409, 404, or 500. So
//! where it matters the backend looks instead of reading the status (`webdav.rs`).

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use percent_encoding::percent_decode_str;
use xml::reader::{EventReader, XmlEvent};

use super::super::{ErrorKind, StoreError};

/// The failure that an answer means. `verb` is the method of the request, `asked` the words for it.
pub fn failure(endpoint: &str, verb: &str, asked: &str, status: StatusCode, headers: &HeaderMap) -> StoreError {
    let (kind, advice) = meaning(verb, status, headers);
    StoreError::new(kind, format!("{asked} failed at {endpoint}: {verb} was answered with {status}{advice}"))
}

fn meaning(verb: &str, status: StatusCode, headers: &HeaderMap) -> (ErrorKind, String) {
    use ErrorKind::{Denied, Invalid, Retryable};
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    match status.as_u16() {
        401 => match text(header::WWW_AUTHENTICATE) {
            Some(wanted) if !["basic", "bearer"].iter().any(|known| wanted.to_lowercase().contains(known)) => {
                let scheme: String = wanted.split(' ').next().unwrap_or_default().chars().take(20).collect();
                (Denied, format!("; it wants a login by {scheme}, and ashlar knows Basic and Bearer"))
            }
            _ => (Denied, "; check WEBDAV_USERNAME and WEBDAV_PASSWORD, or WEBDAV_TOKEN".into()),
        },
        403 => (Denied, "; may that user do so in that folder?".into()),
        407 => (Denied, "; a proxy in between wants a login".into()),
        405 | 501 => (Invalid, "; is WebDAV switched on for that path (in nginx with the module dav-ext)?".into()),
        413 => (
            Denied,
            "; it takes no objects of that size: raise client_max_body_size (nginx), LimitRequestBody (Apache) or server.max-request-size (lighttpd)"
                .into(),
        ),
        507 => (Denied, "; the disk or the quota on the server is full".into()),
        300..=399 => {
            let to: String = text(header::LOCATION).unwrap_or("somewhere else").chars().take(200).collect();
            (Invalid, format!("; it wants to be asked at {to}: name that in the store URL"))
        }
        400 | 502 if verb == "MOVE" => (
            if status == StatusCode::BAD_REQUEST { Invalid } else { Retryable },
            "; if a proxy stands before the server, it must rewrite the header Destination too".into(),
        ),
        404 | 408 | 409 | 412 | 423 | 425 | 429 | 200..=299 | 500.. => (Retryable, String::new()),
        _ => (Invalid, String::new()),
    }
}

/// One thing that PROPFIND tells of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its name in its folder, decoded.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Bytes of a file.
    pub size: Option<u64>,
    /// When it was changed, since 1970, by the server's clock.
    pub changed: Option<Duration>,
}

/// What a folder holds, and the folder itself if it alone was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// What was asked about.
    pub itself: Found,
    /// What is in it.
    pub inside: Vec<Found>,
}

/// Reads a Multi-Status; `None` if it is none. `href` may be a path or a whole URL, and a proxy may have taken the front of the path away: what was asked
/// about is what has the fewest names in it.
pub fn read(body: &[u8]) -> Option<Listing> {
    let (mut path, mut text) = (Vec::<String>::new(), String::new());
    let (mut found, mut names, mut all) = (Found::default(), Vec::<String>::new(), Vec::new());
    let mut is_listing = false;
    for event in EventReader::new(body) {
        match event.ok()? {
            XmlEvent::StartElement { name, .. } => {
                is_listing |= path.is_empty() && name.local_name == "multistatus";
                path.push(name.local_name);
                text.clear();
            }
            XmlEvent::Characters(more) | XmlEvent::CData(more) | XmlEvent::Whitespace(more) => text.push_str(&more),
            XmlEvent::EndElement { .. } => {
                let at: Vec<&str> = path.iter().map(String::as_str).collect();
                match at.as_slice() {
                    [_, "response", "href"] => names = names_of(text.trim())?,
                    [.., "prop", "resourcetype", "collection"] => found.is_folder = true,
                    [.., "prop", "getcontentlength"] if !text.trim().is_empty() => {
                        found.size = Some(text.trim().parse().ok()?)
                    }
                    [.., "prop", "getlastmodified"] => found.changed = since_1970(text.trim()).or(found.changed),
                    [_, "response"] => {
                        found.name = names.last().cloned().unwrap_or_default();
                        all.push((std::mem::take(&mut names).len(), std::mem::take(&mut found)));
                    }
                    _ => {}
                }
                path.pop();
                text.clear();
            }
            _ => {}
        }
    }
    let least = all.iter().map(|(depth, _)| *depth).min().filter(|_| is_listing)?;
    let mut listing = Listing::default();
    for (depth, found) in all {
        match depth - least {
            0 => listing.itself = found,
            1 => listing.inside.push(found),
            _ => {}
        }
    }
    Some(listing)
}

/// The names of a path, decoded.
fn names_of(href: &str) -> Option<Vec<String>> {
    let path = match href.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => href,
    };
    let decoded = |part: &str| percent_decode_str(part).decode_utf8().ok().map(|name| name.into_owned());
    path.split('/').filter(|part| !part.is_empty()).map(decoded).collect()
}

/// A time as HTTP writes it.
pub fn since_1970(text: &str) -> Option<Duration> {
    httpdate::parse_http_date(text).ok()?.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_mean() {
        use ErrorKind::{Denied, Invalid, Retryable};
        let mut headers = HeaderMap::new();
        let said = |verb: &str, status: u16, headers: &HeaderMap| {
            let status = StatusCode::from_u16(status).unwrap();
            failure("https://box", verb, "PUT of v/1", status, headers)
        };
        for (verb, status, kind, words) in [
            ("GET", 401, Denied, "WEBDAV_PASSWORD"),
            ("PUT", 403, Denied, "may that user"),
            ("PUT", 407, Denied, "proxy"),
            ("PROPFIND", 405, Invalid, "dav-ext"),
            ("PUT", 413, Denied, "client_max_body_size"),
            ("PUT", 507, Denied, "full"),
            ("GET", 301, Invalid, "store URL"),
            ("MOVE", 502, Retryable, "Destination"),
            ("MOVE", 400, Invalid, "Destination"),
            ("PUT", 400, Invalid, "400"),
            ("MOVE", 207, Retryable, "207"),
            ("MKCOL", 409, Retryable, "409"),
            ("PUT", 503, Retryable, "503"),
        ] {
            let error = said(verb, status, &headers);
            assert!(error.kind == kind && error.message.contains(words), "{verb} {status}: {error:?}");
        }
        headers.insert("www-authenticate", "Digest realm=\"x\"".parse().unwrap());
        assert!(said("PUT", 401, &headers).message.contains("by Digest"));
        headers.insert("location", "https://other/".parse().unwrap());
        assert!(said("PUT", 301, &headers).message.contains("at https://other/"));
    }

    fn found(name: &str, is_folder: bool, size: Option<u64>) -> Found {
        Found { name: name.into(), is_folder, size, changed: None }
    }

    #[test]
    fn listings_of_several_servers_are_read() {
        // Of Apache: what is not there is told of, in a part of its own. Whole URLs, and names that are encoded, as others write them.
        let body = br#"<?xml version="1.0" encoding="utf-8"?><D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
            <D:response xmlns:lp1="DAV:" xmlns:g0="DAV:"><D:href>http://box/dav/a%20b/</D:href><D:propstat><D:prop><lp1:resourcetype><D:collection/>
            </lp1:resourcetype><lp1:getlastmodified>Sun, 06 Nov 1994 08:49:37 GMT</lp1:getlastmodified></D:prop><D:status>HTTP/1.1 200 OK</D:status>
            </D:propstat><D:propstat><D:prop><g0:getcontentlength/></D:prop><D:status>HTTP/1.1 404 Not Found</D:status></D:propstat></D:response>
            <D:response><D:href>/dav/a%20b/1%3D/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop></D:propstat></D:response>
            <D:response><D:href>/dav/a%20b/file</D:href><D:propstat><D:prop><D:resourcetype/><D:getcontentlength>7</D:getcontentlength></D:prop></D:propstat>
            </D:response></D:multistatus>"#;
        let listing = read(body).unwrap();
        let itself = Found { changed: Some(Duration::from_secs(784_111_777)), ..found("a b", true, None) };
        assert_eq!(listing, Listing { itself, inside: vec![found("1=", true, None), found("file", false, Some(7))] });
        let alone = read(b"<multistatus xmlns='DAV:'><response><href>/</href></response></multistatus>").unwrap();
        assert_eq!(alone, Listing::default());
        for bad in ["<html></html>", "no", "<multistatus xmlns='DAV:'><response>", "<multistatus xmlns='DAV:'/>"] {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
    }
}
