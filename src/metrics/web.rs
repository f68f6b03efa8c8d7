//! The page for people: one file, compiled in, which loads nothing but two documents of this listener.
//!
//! What it may do is said by a Content-Security-Policy: run the script and use the style that are in it, by their hashes, and ask this
//! listener; nothing else, and nobody may frame it. What it shows it puts into the document as text, never as HTML.

use std::sync::LazyLock;

use data_encoding::BASE64;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use http::{HeaderValue, StatusCode};
use sha2::{Digest, Sha256};

use super::serve::{Answer, text, with};

const PAGE: &str = include_str!("page.html");

/// The answer that is the page.
pub fn page() -> Answer {
    let answer = with(CONTENT_TYPE, "text/html; charset=utf-8", text(StatusCode::OK, PAGE));
    let mut answer = with(REFERRER_POLICY, "no-referrer", answer);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    answer
}

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    // Of visible characters only, whatever the hashes; without it nothing may run.
    HeaderValue::try_from(policy(PAGE)).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

fn policy(page: &str) -> String {
    let (script, style) = (hash_of(page, "script"), hash_of(page, "style"));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

/// The source that is what stands in the only element of that name.
fn hash_of(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inner = page.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    inner.map_or("'none'".to_owned(), |(inner, _)| format!("'sha256-{}'", BASE64.encode(&Sha256::digest(inner))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_lets_run_what_is_in_the_page_and_nothing_else() {
        let policy = policy(PAGE);
        assert!(
            policy.starts_with("default-src 'none'; script-src 'sha256-") && policy.contains("style-src 'sha256-"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains("script-src 'none'"), "{policy}");
        assert_eq!(POLICY.to_str().unwrap(), policy);
        for once in ["<script>", "<style>"] {
            assert_eq!(PAGE.matches(once).count(), 1, "{once}");
        }
        // The hash of "" is known.
        assert_eq!(hash_of("<script></script>", "script"), "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='");
    }

    #[test]
    fn the_page_names_no_other_place_and_makes_no_html_of_what_it_is_told() {
        for bad in [
            "http://",
            "https://",
            "//cdn",
            "@import",
            "url(",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            // The names of SVG are no place.
            assert!(!PAGE.replace("http://www.w3.org/2000/svg", "").contains(bad), "{bad}");
        }
        for attribute in [" style=", " onclick=", " onload=", " src="] {
            assert!(!PAGE.contains(attribute), "{attribute}: the policy forbids it");
        }
        assert!(PAGE.len() < 64 << 10, "{}", PAGE.len());
    }
}
