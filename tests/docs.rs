//! What the documents say of the tests is true: every test that `docs/semantics.md` or `docs/conformance.md` names is there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)] // reads the repository

use std::path::Path;

fn sources(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_is_named_for_a_promise_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    ["src", "tests"].iter().for_each(|dir| sources(&root.join(dir), &mut tests));
    let page = std::fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let (_, table) = page.split_once("## Which test shows what").expect("the table is there");
    // Between backticks; commands have spaces or slashes in them.
    let named: Vec<&str> = table.split('`').skip(1).step_by(2).filter(|name| !name.contains([' ', '/'])).collect();
    assert!(named.len() > 30, "{named:?}");
    let lines = trimmed(&tests);
    for name in named {
        assert!(is_test(&lines, name), "there is no test {name} that is run");
    }
}

fn trimmed(sources: &str) -> Vec<&str> {
    sources.lines().map(str::trim).collect()
}

/// Whether a function of that name is there that is run as a test: it has the attribute, and is not ignored.
fn is_test(lines: &[&str], name: &str) -> bool {
    let head = format!("fn {name}(");
    let is_its_head = |line: &str| line.strip_prefix("async ").unwrap_or(line).starts_with(&head);
    let places = lines.iter().enumerate().filter(|(_, line)| is_its_head(line)).map(|(place, _)| place);
    let mut attributes = places.map(|place| {
        let above = lines[..place].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("///"));
        above.copied().collect::<Vec<_>>()
    });
    attributes.any(|attributes| {
        let has = |start: &str| attributes.iter().any(|line| line.starts_with(start));
        (has("#[test]") || has("#[tokio::test")) && !has("#[ignore")
    })
}

#[test]
fn only_what_is_run_counts_as_a_test() {
    let sources = "
        #[test]
        fn one() {}
        /// Says why.
        #[tokio::test(start_paused = true)] // quickly
        #[allow(clippy::unwrap_used)]
        async fn two() {}
        #[test]
        #[ignore = \"takes long\"]
        fn ignored() {}

        fn helper() {}
        fn called() { one(); helper(); }
        proptest! {
            /// Of anything.
            #[test]
            fn three(x in any::<u8>()) {}
        }";
    let are_tests = ["one", "two", "three", "ignored", "helper", "absent"].map(|name| is_test(&trimmed(sources), name));
    assert_eq!(are_tests, [true, true, true, false, false, false]);
}
