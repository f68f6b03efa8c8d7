//! What the documents say of the tests is true: every test that `docs/semantics.md` names is there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)] // reads the repository

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
    for name in named {
        assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}
