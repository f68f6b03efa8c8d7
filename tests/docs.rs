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

/// The sections of the conformance list, and how many rules each has.
const RULES: [(&str, usize); 11] = [
    ("C", 7),
    ("H", 12),
    ("O", 29),
    ("T", 10),
    ("S", 10),
    ("F", 13),
    ("R", 12),
    ("K", 23),
    ("E", 2),
    ("M", 5),
    ("fault ", 15),
];

/// The comments right above a function, and its name, in one.
fn title<'a>(tests: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let at = tests.find(&format!("fn {name}("))?;
    let before = &tests[..at];
    // Back over attributes and comments to the end of what came before.
    let is_above = |line: &&str| matches!(line.trim_start(), text if text.starts_with("///") || text.starts_with("#["));
    let this_line = before.rfind('\n').map_or(0, |end| end + 1);
    let above: usize = before[..this_line].lines().rev().take_while(is_above).map(|line| line.len() + 1).sum();
    Some((&before[this_line - above..this_line], &tests[at + 3..at + 3 + name.len()]))
}

/// Whether a test says that it shows a rule: `r1_` or `fault_3_` in its name, or `R1` or `Fault 3` in its comment.
fn says(comment: &str, name: &str, id: &str) -> bool {
    let in_name = format!("_{}_", id.to_lowercase().replace(' ', "_"));
    let in_comment = comment.match_indices(|c: char| c.is_ascii_alphabetic()).any(|(at, _)| {
        let (before, rest) = comment.split_at(at);
        let starts = !before.ends_with(|c: char| c.is_ascii_alphanumeric());
        let (head, tail) = rest.split_at_checked(id.len()).unwrap_or(("", ""));
        starts && head.eq_ignore_ascii_case(id) && !tail.starts_with(|c: char| c.is_ascii_alphanumeric())
    });
    format!("_{name}").contains(&in_name) || in_comment
}

#[test]
fn every_rule_of_the_protocol_is_listed_once_with_tests_that_name_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    ["src", "tests"].iter().for_each(|dir| sources(&root.join(dir), &mut tests));
    let page = std::fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split(" | ").collect()).skip(2).collect();
    let listed: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let expected =
        RULES.iter().flat_map(|(section, count)| (1..=*count).map(move |number| format!("{section}{number}")));
    assert_eq!(listed, expected.collect::<Vec<_>>(), "each once, in order");
    let (mut without, lines) = (Vec::new(), trimmed(&tests));
    for row in &rows {
        let [id, rule, cell] = row[..] else { panic!("three columns: {row:?}") };
        assert!(!rule.is_empty());
        if let Some(reason) = cell.strip_prefix("none: ") {
            assert!(reason.len() > 20, "{id}: why?");
            without.push(id);
            continue;
        }
        let named: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{id} has neither tests nor a reason");
        for name in named {
            assert!(is_test(&lines, name), "{id}: {name} is no test that is run");
            let (comment, name) = title(&tests, name).unwrap_or_else(|| panic!("{id}: there is no test {name}"));
            assert!(says(comment, name, id), "{name} does not say that it shows {id}: {comment}");
        }
    }
    assert_eq!(without, ["T10"], "nothing else is without a test");
}
