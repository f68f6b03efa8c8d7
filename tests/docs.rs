//! What the documents say of the tests is true: every test that `docs/semantics.md` or `docs/conformance.md` names is there. And what
//! `docs/errors.md` says of messages and exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)] // reads the repository

use std::fs;
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

/// The program's own text, without tests: what spans lines is joined, as the compiler does it.
fn program() -> String {
    let mut text = String::new();
    shipped(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |_, source| text.push_str(source));
    joined(&text)
}

fn joined(text: &str) -> String {
    let mut parts = text.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| joined + part.trim_start()).replace("\\\"", "\"")
}

fn page_of_errors() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")).unwrap()
}

/// The rows of the page's tables, cell by cell, without their heads.
fn rows_of_errors(page: &str) -> Vec<Vec<&str>> {
    let rows =
        page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |").or(line.strip_suffix(" | |")));
    let rows = rows.map(|row| row.trim_start_matches("| ").split(" | ").collect::<Vec<_>>());
    rows.filter(|row| !row[0].starts_with("---") && !["words", "code", "number"].contains(&row[0])).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether the pieces of a message stand in the program one behind the other, with no more between two of them than what differs.
fn has_message(program: &str, message: &str) -> bool {
    const BETWEEN: usize = 400;
    let pieces: Vec<&str> = message.split('…').map(str::trim).filter(|piece| piece.len() > 2).collect();
    let Some((first, rest)) = pieces.split_first() else { return false };
    program.match_indices(first).any(|(at, _)| {
        let mut from = at + first.len();
        rest.iter().all(|piece| {
            let mut end = program.len().min(from + BETWEEN);
            while !program.is_char_boundary(end) {
                end -= 1;
            }
            let found = program[from..end].find(piece);
            from += found.map_or(0, |found| found + piece.len());
            found.is_some()
        })
    })
}

#[test]
fn every_message_of_the_page_of_errors_is_one_that_the_program_has() {
    let (page, program) = (page_of_errors(), program());
    let mut messages = Vec::new();
    for row in rows_of_errors(&page) {
        match row[0].starts_with('`') {
            true => messages.extend(quoted(row[0])),
            // Numbers that clients get: the words are in the second cell.
            false if row[0].starts_with('E') => {
                messages.extend(quoted(row[1]).filter(|words| words.contains(' ')));
            }
            false => {}
        }
    }
    assert!(messages.len() > 80, "{}", messages.len());
    let absent: Vec<&str> = messages.into_iter().filter(|message| !has_message(&program, message)).collect();
    assert!(absent.is_empty(), "the program never says {absent:#?}");
}

/// What the program refuses with, by the types that say so, and what each says that does not differ.
#[test]
fn no_refusal_is_missing_on_the_page_of_errors() {
    let page = page_of_errors();
    let messages: Vec<&str> =
        rows_of_errors(&page).into_iter().flat_map(|row| row.into_iter().take(2)).flat_map(quoted).collect();
    let mut missing = Vec::new();
    for file in ["error.rs", "device.rs", "keyring/unlock.rs", "attach/kernel.rs", "attach/identity.rs"] {
        let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file)).unwrap();
        let source = joined(&source);
        let attributes = source.split("#[error(").skip(1).filter(|rest| !rest.starts_with("transparent"));
        for attribute in attributes {
            let (_, text) = attribute.split_once('"').unwrap();
            let text = text.split("\")]").next().unwrap().split("\",\n").next().unwrap();
            let pieces: Vec<&str> = text.split(['{', '}']).step_by(2).filter(|piece| piece.trim().len() > 10).collect();
            let is_told = |piece: &&str| {
                let words = piece.trim().split('`').next().unwrap_or_default();
                let told = |message: &&str| message.split('…').any(|part| shares(part, words));
                messages.iter().any(told)
            };
            if !pieces.is_empty() && !pieces.iter().any(is_told) {
                missing.push(text.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "docs/errors.md says nothing of {missing:#?}");
}

/// Whether one of two texts stands in the other, and is more than a word.
fn shares(one: &str, other: &str) -> bool {
    let (one, other) = (one.trim(), other.trim());
    let (short, long) = if one.len() < other.len() { (one, other) } else { (other, one) };
    short.len() > 10 && long.contains(short)
}

#[test]
fn the_exit_codes_of_the_page_are_all_that_there_are() {
    let (page, program) = (page_of_errors(), program());
    let codes = |text: &str| text.split_whitespace().next().and_then(|word| word.parse::<u8>().ok());
    let listed: Vec<u8> = rows_of_errors(&page).iter().filter_map(|row| codes(row[0])).collect();
    let command = ashlar::cli::command();
    let help = command.get_after_help().unwrap().to_string();
    let (_, help) = help.split_once("Exit codes:").unwrap();
    let helped: Vec<u8> = help.lines().skip(1).map_while(codes).collect();
    assert_eq!(listed, helped, "the page and --help");
    let (_, report) = program.split_once("ExitCode::from(match self {").unwrap();
    let (report, _) = report.split_once("})").unwrap();
    let mut ended: Vec<u8> =
        report.split("=> ").skip(1).map(|rest| rest.split(',').next().unwrap().parse().unwrap()).collect();
    let (_, panics) = program.split_once("pub const EXIT_CODE: i32 = ").unwrap();
    ended.extend([0, panics.split(';').next().unwrap().parse().unwrap()]);
    ended.sort_unstable();
    assert_eq!(listed, ended, "the page and the program");
}

#[test]
fn a_message_is_found_by_its_pieces_in_order_only() {
    let program = joined("format!(\"volume {name} was \\\n     taken by {holder}; \\\"gone\\\"\")");
    assert!(has_message(&program, "volume … was taken by …; \"gone\""));
    assert!(!has_message(&program, "taken by … volume"));
    assert!(!has_message(&program, "volume … was given"));
    assert!(!has_message(&program, "…"));
}

/// The codes of a text: `[A03]` in the program, `### A03: ` on the page.
fn codes<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    let is_code =
        |code: &&str| code.len() == 3 && code.starts_with('A') && code[1..].bytes().all(|byte| byte.is_ascii_digit());
    let starts = text.match_indices(before).map(|(at, _)| at + before.len());
    let ended = starts.filter_map(|at| text.get(at..at + 3).filter(|_| text[at + 3..].starts_with(after)));
    ended.filter(is_code).collect()
}

#[test]
fn every_code_of_a_message_has_one_section_and_every_section_a_message() {
    let (page, program) = (page_of_errors(), program());
    let said: std::collections::BTreeSet<&str> = codes(&program, "[", "]").into_iter().collect();
    let sections = codes(&page, "### ", ": ");
    assert_eq!(said.iter().copied().collect::<Vec<_>>(), sections, "the program and the page, in order");
    assert!(sections.len() >= 12, "{sections:?}");
    let (_, by_code) = page.split_once("\n## By code\n").unwrap();
    for section in by_code.split("\n### ").skip(1) {
        assert!(section.contains("\n1. "), "no step to take: {section}");
    }
    // A code is the end of a message: somebody reads it as a reference, not as a part of the sentence.
    for code in said {
        let ends =
            program.match_indices(&format!("[{code}]")).all(|(at, code)| program[at + code.len()..].starts_with('"'));
        assert!(ends, "{code} stands within a message");
    }
}

/// The lists of prices: the page and the program have the same.
#[test]
fn the_prices_of_the_page_are_those_of_the_program() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/costs.md")).unwrap();
    let (_, table) = page.split_once("| `prices.preset` |").expect("the table is there");
    let rows: Vec<Vec<&str>> =
        table.lines().skip(2).map_while(|line| line.strip_prefix("| ")).map(|row| row.split(" | ").collect()).collect();
    assert_eq!(rows.len(), ashlar::store::prices::LISTS.len());
    for (row, list) in rows.iter().zip(ashlar::store::prices::LISTS) {
        let prices = list.prices;
        assert_eq!(
            (prices.put_thousand, prices.delete_thousand),
            (prices.list_thousand, 0.0),
            "the page has one column for both"
        );
        let numbers: Vec<f64> = row[2..6].iter().map(|cell| cell.parse().unwrap()).collect();
        assert_eq!(numbers, [prices.put_thousand, prices.get_thousand, prices.read_gb, prices.gb_month], "{row:?}");
        assert_eq!((row[0].trim_matches('`'), row[1], row[6]), (list.name, list.what, list.looked_up));
    }
}

/// Nobody here builds the image each time, so what it says of the rest of the repository is compared.
#[test]
fn the_recipe_of_the_image_fits_the_repository() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let recipe = read("Containerfile");
    let toolchain = read("rust-toolchain.toml");
    let (_, channel) = toolchain.split_once("channel = \"").unwrap();
    let channel = channel.split('"').next().unwrap();
    assert!(recipe.contains(&format!("FROM rust:{channel}-")), "the compiler is {channel}");
    // What is left out of the context cannot be copied or built.
    let kept: Vec<String> =
        read(".containerignore").lines().filter_map(|line| line.strip_prefix('!').map(str::to_owned)).collect();
    for needed in &kept {
        assert!(root.join(needed).exists(), "{needed}");
    }
    let is_kept = |path: &str| kept.iter().any(|kept| path == kept || path.starts_with(&format!("{kept}/")));
    let copied =
        recipe.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let copied = copied.flat_map(|line| line.split(' ').rev().skip(1)).filter(|path| *path != ".");
    let mut needed: Vec<String> = copied.map(str::to_owned).collect();
    shipped(&root.join("src"), &mut |path, text| {
        let included = text.split("include_str!(\"").skip(1).chain(text.split("include_bytes!(\"").skip(1));
        for file in included {
            let file = path.parent().unwrap().join(file.split('"').next().unwrap());
            needed.push(file.canonicalize().unwrap().strip_prefix(root).unwrap().display().to_string());
        }
    });
    let missing: Vec<&String> = needed.iter().filter(|path| !is_kept(path)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // The command that it starts with is one that the program takes.
    let words = |name: &str| -> Vec<String> {
        let line = recipe.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        quoted_words(line)
    };
    let command: Vec<String> = words("ENTRYPOINT ").into_iter().chain(words("CMD ")).collect();
    ashlar::cli::command().try_get_matches_from(command).unwrap();
}

/// Every source, without its tests.
fn shipped(dir: &Path, each: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            shipped(&path, each);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            each(&path, source.split("#[cfg(test)]\nmod tests {").next().unwrap());
        }
    }
}

fn quoted_words(line: &str) -> Vec<String> {
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Each block of commands of the guide says where it is run, and those of the package are run there.
#[test]
fn every_command_of_the_guide_is_run_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (inside, guest) = ("scripts/package.d/inside", "scripts/vm.d/scenarios/guide");
    let [inside, guest] = [inside, guest].map(|file| fs::read_to_string(root.join(file)).unwrap());
    let (mut pages, mut blocks) = (0, 0);
    for entry in fs::read_dir(root.join("docs/guide")).unwrap() {
        let path = entry.unwrap().path();
        let (page, name) =
            (fs::read_to_string(&path).unwrap(), path.file_stem().unwrap().to_string_lossy().into_owned());
        pages += 1;
        for (at, block) in page.match_indices("```sh\n") {
            blocks += 1;
            let before = page[..at].trim_end().lines().last().unwrap_or_default();
            let place = before.strip_prefix("<!-- run: ").and_then(|said| said.split([',', ';', ' ']).next());
            let commands = page[at + block.len()..].split("```").next().unwrap();
            match place {
                Some("guest") => assert!(guest.contains(&name), "{name} is not followed in the guest"),
                Some("s3") => assert_eq!(name, "bucket", "scripts/guide follows that page only"),
                Some("package") => {
                    for line in commands.lines() {
                        assert!(inside.contains(line), "{name}: {line:?} is not in scripts/package.d/inside");
                    }
                }
                Some("not") => {}
                _ => panic!("{name}: no comment says where this is run: {commands}"),
            }
        }
    }
    assert!(pages >= 9 && blocks > 30, "{pages} pages with {blocks} blocks");
}

/// `scripts/bench` puts them there; who writes them into the page alone would lose them with the next run.
#[test]
fn what_people_say_of_the_benchmarks_is_in_the_notes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let (page, notes) = (read("docs/benchmarks.md"), read("scripts/bench.d/notes.md"));
    assert!(page.ends_with(&notes), "docs/benchmarks.md does not end with scripts/bench.d/notes.md");
}
