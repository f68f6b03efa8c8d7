//! Who may look: pure rules.

use std::fmt;
use std::net::SocketAddr;

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

    /// Whether somebody may who sends this header.
    pub fn lets_in(&self, authorization: Option<&[u8]>) -> bool {
        const SCHEME: &[u8] = b"bearer ";
        let Some(token) = &self.0 else { return true };
        let shown = authorization.and_then(|header| header.split_at_checked(SCHEME.len()));
        // Hashes compare in constant time.
        shown.is_some_and(|(scheme, shown)| {
            scheme.eq_ignore_ascii_case(SCHEME) && blake3::hash(shown.trim_ascii()) == *token
        })
    }
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
    fn the_token_and_nothing_else_lets_in() {
        const TOKEN: &str = "0123456789abcdef";
        let gate = Gate::of_token(&format!("{TOKEN}  \nand a remark\n")).unwrap();
        for good in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef"] {
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
        ] {
            assert!(!gate.lets_in(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!gate.lets_in(None));
        assert!(Gate::open().lets_in(None));
        for bad in ["", "\n0123456789abcdef", "too short", "0123456789 abcdef", "0123456789abcdéf"] {
            assert!(Gate::of_token(bad).unwrap_err().contains("16 to 1024"), "{bad:?}");
        }
    }
}
