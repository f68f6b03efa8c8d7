//! Writes the manual: a page for each command and one for the configuration, and completions for bash, zsh and fish, as they lie below
//! `/usr` on Debian. Everything comes from what the program says itself (`--help`, `config/default.toml`), so it is true as long as that is.
//!
//! `cargo run --example manual -- DIRECTORY`

#![allow(clippy::disallowed_methods)] // what it writes is for whoever packages the program

use std::fs::{create_dir_all, rename, write};
use std::io;
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::roff::{Roff, roman};

fn main() -> io::Result<()> {
    match std::env::args_os().nth(1) {
        Some(directory) => manual(Path::new(&directory)),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "name the directory, such as /usr/local")),
    }
}

/// Writes it below a directory.
fn manual(directory: &Path) -> io::Result<()> {
    let at = |folder: &str| {
        let folder = directory.join("share").join(folder);
        create_dir_all(&folder).map(|()| folder)
    };
    clap_mangen::generate_to(ashlar::cli::command(), at("man/man1")?)?;
    write(at("man/man5")?.join("ashlar.toml.5"), configuration())?;
    for (shell, folder, name) in [
        (Shell::Bash, "bash-completion/completions", "ashlar"),
        (Shell::Zsh, "zsh/vendor-completions", "_ashlar"),
        (Shell::Fish, "fish/vendor_completions.d", "ashlar.fish"),
    ] {
        let folder = at(folder)?;
        let made = clap_complete::generate_to(shell, &mut ashlar::cli::command(), "ashlar", &folder)?;
        rename(made, folder.join(name))?;
    }
    Ok(())
}

/// The reference of the configuration, which is also its defaults.
const DEFAULTS: &str = include_str!("../config/default.toml");

const LAYERS: &str = "\
Built-in defaults, then the file (ashlar.toml in the working directory, or what --config names), then variables of the environment, then \
flags; what comes later wins. A variable is ASHLAR_ and the key in capitals, with two underscores between section and key, such as \
ASHLAR_STORE__S3__ENDPOINT; lists are separated by commas. `ashlar config` prints what is in effect, and where each value was written. An \
unknown key, or a value that is not accepted, is refused with what is accepted.";

/// The page of the configuration: roff.
fn configuration() -> String {
    let mut page = Roff::new();
    page.control("TH", ["ashlar.toml", "5", "", concat!("ashlar ", env!("CARGO_PKG_VERSION"))]);
    page.control("SH", ["NAME"]).text([roman("ashlar.toml - configuration of ashlar")]);
    page.control("SH", ["DESCRIPTION"]).text([roman(LAYERS)]);
    page.control("SH", ["KEYS AND THEIR DEFAULTS"]).control("nf", []);
    for line in DEFAULTS.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]).text([roman("ashlar(1)")]);
    page.render()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn made() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        manual(directory.path()).unwrap();
        directory
    }

    /// The text of a page, without what roff puts before a hyphen.
    fn text(directory: &tempfile::TempDir, page: &str) -> String {
        std::fs::read_to_string(directory.path().join("share/man").join(page)).unwrap().replace("\\-", "-")
    }

    /// The commands below one, by the names of their pages, with their own flags.
    fn commands(command: &clap::Command, name: &str, found: &mut Vec<(String, Vec<String>)>) {
        let shown = command.get_arguments().filter(|flag| !flag.is_hide_set());
        found.push((name.to_owned(), shown.filter_map(|flag| Some(format!("--{}", flag.get_long()?))).collect()));
        let below = command.get_subcommands().filter(|below| below.get_name() != "help" && !below.is_hide_set());
        below.for_each(|below| commands(below, &format!("{name}-{}", below.get_name()), found));
    }

    #[test]
    fn every_command_has_a_page_with_every_flag() {
        let directory = made();
        let mut found = Vec::new();
        commands(&ashlar::cli::command(), "ashlar", &mut found);
        assert!(found.len() > 20, "{found:?}");
        for (name, flags) in found {
            let page = text(&directory, &format!("man1/{name}.1"));
            assert!(page.contains("SYNOPSIS"), "{name}");
            for flag in flags {
                assert!(page.contains(&flag), "{name}: {flag}");
            }
        }
    }

    #[test]
    fn the_page_of_the_configuration_has_every_line_of_its_reference() {
        let page = text(&made(), "man5/ashlar.toml.5");
        for line in DEFAULTS.lines() {
            // Roff wants some characters written otherwise.
            let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            words.for_each(|word| assert!(page.contains(word), "{word}"));
        }
        assert!(
            !page.lines().any(|line| line.starts_with('.') && line.contains("ashlar.toml\"")),
            "no line is taken for a request"
        );
    }

    #[test]
    fn completions_are_scripts_that_name_the_commands() {
        let directory = made();
        let share = directory.path().join("share");
        for file in [
            "bash-completion/completions/ashlar",
            "zsh/vendor-completions/_ashlar",
            "fish/vendor_completions.d/ashlar.fish",
        ] {
            let script = std::fs::read_to_string(share.join(file)).unwrap();
            for word in ["serve", "handoff", "takeover", "passphrase-file"] {
                assert!(script.contains(word), "{file}: {word}");
            }
        }
        let bash =
            Command::new("bash").arg("-n").arg(share.join("bash-completion/completions/ashlar")).status().unwrap();
        assert!(bash.success());
    }
}
