//! Who may look: pure rules.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::Options;

/// What is said and must not be: an address that others reach, and nothing that keeps them out. A sentence without its subject.
pub fn fault(options: &Options, address: SocketAddr) -> Option<String> {
    let keeps_out =
        options.token_file.is_some() || (options.tls.certificate.is_some() && options.tls.client_ca.is_some());
    (!is_of_this_host(address) && !keeps_out).then(|| {
        format!(
            "{address} can be reached from other hosts, and nothing would keep them out: set metrics.token_file, or metrics.tls with a \
             client_ca, or listen on 127.0.0.1"
        )
    })
}

/// Whether a token goes over a network for everybody to read.
pub fn is_open(options: &Options, address: SocketAddr) -> bool {
    !is_of_this_host(address) && options.tls.certificate.is_none()
}

fn is_of_this_host(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The bounds of a token's length.
const TOKEN: std::ops::RangeInclusive<usize> = 16..=1024;

/// What lets somebody in.
pub struct Gate(Option<blake3::Hash>);

impl Gate {
    /// Everybody may.
    pub fn open() -> Gate {
        Gate(None)
    }

    /// Who shows the token in the first line of `text` may. Fails with what is wrong with it.
    pub fn of_token(text: &str) -> Result<Gate, String> {
        let token = text.lines().next().unwrap_or_default().trim();
        match TOKEN.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Gate(Some(blake3::hash(token.as_bytes())))),
            false => Err(format!(
                "accepted is a first line of {} to {} visible characters, such as of `openssl rand -hex 32`",
                TOKEN.start(),
                TOKEN.end()
            )),
        }
    }

    /// Whether somebody may who sends this header: the token of `Bearer`, or that of `Basic` as the password of any user, which is
    /// how browsers ask for it.
    pub fn lets_in(&self, authorization: Option<&[u8]>) -> bool {
        let Some(token) = &self.0 else { return true };
        // Hashes compare in constant time.
        authorization.and_then(shown).is_some_and(|shown| blake3::hash(&shown) == *token)
    }

    /// Whether a request for that host may be answered, of which the listener was told to listen on `listen`. A page of somebody
    /// else's that has a name of its own lead to this host (DNS rebinding) must not learn what everybody on this host may know; one that
    /// cannot show a token learns nothing anyhow.
    pub fn knows(&self, host: Option<&str>, listen: &str) -> bool {
        let Some(host) = host.filter(|_| self.0.is_none()) else { return true };
        let name = |address: &str| match address.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name.to_ascii_lowercase(),
            _ => address.to_ascii_lowercase(),
        };
        let host = name(host);
        let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        is_address || host == "localhost" || host == name(listen)
    }
}

/// The token in a header.
fn shown(header: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, rest) = header.split_at_checked(header.iter().position(|byte| *byte == b' ')?)?;
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Zeroizing::new(rest.to_vec()));
    }
    let decoded = Zeroizing::new(BASE64.decode(rest).ok().filter(|_| scheme.eq_ignore_ascii_case(b"basic"))?);
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(Zeroizing::new(decoded[colon + 1..].to_vec()))
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Files;

    #[test]
    fn others_reach_only_what_asks_who_they_are() {
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        let none = Options::default();
        let token = Options { token_file: Some("/token".into()), ..Options::default() };
        let tls = Files { certificate: Some("/c".into()), key: Some("/k".into()), ..Files::default() };
        let encrypted = Options { tls: tls.clone(), ..Options::default() };
        let certificates = Options { tls: Files { client_ca: Some("/ca".into()), ..tls }, ..Options::default() };
        for here in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(fault(&none, at(here)), None, "{here}");
            assert!(!is_open(&token, at(here)));
        }
        for there in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "[2001:db8::1]:1"] {
            let why = fault(&none, at(there)).unwrap();
            assert!(why.starts_with(there) && why.contains("set metrics.token_file"), "{why}");
            assert!(fault(&encrypted, at(there)).is_some(), "whoever comes speaks TLS, and may be anybody");
            assert_eq!((fault(&token, at(there)), fault(&certificates, at(there))), (None, None));
            assert_eq!((is_open(&token, at(there)), is_open(&certificates, at(there))), (true, false));
        }
    }

    #[test]
    fn without_a_token_only_names_of_this_host_are_answered() {
        let knows = |host| Gate::open().knows(host, "Metrics.example:10811");
        for good in
            ["127.0.0.1:1", "[::1]:1", "[::1]", "localhost", "LOCALHOST:10811", "metrics.example", "192.0.2.1:7"]
        {
            assert!(knows(Some(good)), "{good}");
        }
        for bad in ["rebound.example:10811", "", "127.0.0.1.example", "localhost.example", "metrics.example.org:10811"]
        {
            assert!(!knows(Some(bad)), "{bad:?}");
        }
        assert!(knows(None), "no browser leaves it out");
    }

    #[test]
    fn the_token_and_nothing_else_lets_in() {
        const TOKEN: &str = "0123456789abcdef";
        let gate = Gate::of_token(&format!("{TOKEN}  \nand a remark\n")).unwrap();
        for good in [
            "Bearer 0123456789abcdef",
            "bearer  0123456789abcdef",
            "Basic OjAxMjM0NTY3ODlhYmNkZWY=",
            "basic bWU6MDEyMzQ1Njc4OWFiY2RlZg==",
        ] {
            assert!(gate.lets_in(Some(good.as_bytes())), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdeff",
            "Basic 0123456789abcdef",
            TOKEN,
            // ":0123456789abcde", no colon, no Base64.
            "Basic OjAxMjM0NTY3ODlhYmNkZQ==",
            "Basic MDEyMzQ1Njc4OWFiY2RlZg==",
            "Basic :0123456789abcdef",
        ] {
            assert!(!gate.lets_in(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!gate.lets_in(None));
        assert!(gate.knows(Some("elsewhere.example"), "127.0.0.1:1"), "who knows the token may come by any name");
        assert!(Gate::open().lets_in(None));
        for bad in ["", "\n0123456789abcdef", "too short", "0123456789 abcdef", "0123456789abcdéf"] {
            assert!(Gate::of_token(bad).unwrap_err().contains("16 to 1024"), "{bad:?}");
        }
    }
}
