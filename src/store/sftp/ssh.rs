//! The program `ssh` under a session: how it is started, and what its last words mean.
//!
//! It is the user's own: keys, agents, `~/.ssh/config`, known hosts, jump hosts and certificates are its business, as for `scp` and
//! `sftp`. It never asks anything here, so a host that is not known, or a key with a passphrase, is a refusal with its reason.

use std::process::Stdio;

use tokio::process::{Child, Command};

use super::super::{ErrorKind, StoreError};
use super::address::Address;
use super::options::SftpOptions;

/// Starts `ssh` for the SFTP of that host, with all three pipes, in a process group of its own: a Ctrl-C on the terminal is for the server, which
/// still has something to bring into the store.
pub fn start(address: &Address, options: &SftpOptions) -> Result<Child, StoreError> {
    let mut command = Command::new(&options.ssh);
    command.args(arguments(address, options));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    command.spawn().map_err(|error| {
        StoreError::invalid(format!(
            "the program {} (store.sftp.ssh) cannot be started: {error}; install openssh-client, or name OpenSSH's ssh there",
            options.ssh.display()
        ))
    })
}

/// What `ssh` is told. What stands in the configuration files of the user comes after these.
fn arguments(address: &Address, options: &SftpOptions) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    if let Some(file) = &options.config_file {
        add("-F", file.display().to_string());
    }
    if let Some(file) = &options.identity_file {
        add("-i", file.display().to_string());
    }
    let mut settings = vec![
        "BatchMode=yes".to_owned(),
        format!("ConnectTimeout={}", options.connect_timeout.as_secs().max(1)),
        "ForwardAgent=no".to_owned(),
        "ForwardX11=no".to_owned(),
        "ClearAllForwardings=yes".to_owned(),
        "PermitLocalCommand=no".to_owned(),
        "RequestTTY=no".to_owned(),
    ];
    settings.extend(options.known_hosts_file.iter().map(|file| format!("UserKnownHostsFile=\"{}\"", file.display())));
    settings.into_iter().for_each(|setting| add("-o", setting));
    if let Some(user) = &address.user {
        add("-l", user.clone());
    }
    if let Some(port) = address.port {
        add("-p", port.to_string());
    }
    arguments.extend(["-s", "--", address.host.as_str(), "sftp"].map(str::to_owned));
    arguments
}

/// What it means that a connection ended with these words of `ssh` (and of the server's login); `cause` is what this side saw.
pub fn ending(address: &Address, said: &str, cause: &str) -> StoreError {
    let words: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let has = |what: &str| words.iter().any(|line| line.contains(what));
    let login = match &address.user {
        Some(user) => format!("{user}@{}", address.host),
        None => address.host.clone(),
    };
    let (kind, advice) = if has("Host key verification failed") {
        let port = address.port.map(|port| format!("-p {port} ")).unwrap_or_default();
        (
            ErrorKind::Denied,
            format!(
                "; the key of the host is not known, or another one than before: compare it by `ssh {port}{login}`, which keeps it, or \
                 put it into the file of store.sftp.known_hosts_file"
            ),
        )
    } else if has("Permission denied") || has("Too many authentication failures") {
        (
            ErrorKind::Denied,
            format!(
                "; check that {login} may log in with a key that needs no passphrase here (store.sftp.identity_file, ~/.ssh/config, or an \
                 agent)"
            ),
        )
    } else if has("subsystem request failed") {
        (ErrorKind::Invalid, "; the server offers no SFTP to this user".to_owned())
    } else if has("Bad configuration option") || has("Can't open user config file") || has("terminating,") {
        (ErrorKind::Invalid, "; mend the configuration of ssh (store.sftp.config_file)".to_owned())
    } else {
        (ErrorKind::Retryable, String::new())
    };
    let last = words[words.len().saturating_sub(WORDS_LINES)..].join(" | ");
    let why = if last.is_empty() { cause.to_owned() } else { format!("{cause} ({last})") };
    StoreError::new(kind, format!("no SFTP with {login}: {why}{advice}"))
}

/// So many of the last lines are shown.
const WORDS_LINES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address::parse("me@box:2222/srv").unwrap()
    }

    #[test]
    fn ssh_asks_nothing_and_is_told_only_what_is_set() {
        let plain = arguments(&Address::parse("box/srv").unwrap(), &SftpOptions::default());
        assert!(plain.windows(2).any(|pair| pair == ["-o", "BatchMode=yes"]), "{plain:?}");
        assert_eq!(plain[plain.len() - 4..], ["-s", "--", "box", "sftp"]);
        assert!(["-F", "-i", "-l", "-p"].iter().all(|name| !plain.iter().any(|word| word == name)), "{plain:?}");
        let options = SftpOptions {
            config_file: Some("/c".into()),
            identity_file: Some("/i".into()),
            known_hosts_file: Some("/k h".into()),
            ..SftpOptions::default()
        };
        let told = arguments(&address(), &options);
        for pair in [["-F", "/c"], ["-i", "/i"], ["-l", "me"], ["-p", "2222"], ["-o", "UserKnownHostsFile=\"/k h\""]] {
            assert!(told.windows(2).any(|found| found == pair), "{pair:?}: {told:?}");
        }
    }

    #[test]
    fn what_ssh_says_last_decides_what_may_be_done() {
        use ErrorKind::{Denied, Invalid, Retryable};
        for (said, kind, advice) in [
            ("Host key verification failed.\r\n", Denied, "ssh -p 2222 me@box"),
            ("me@box: Permission denied (publickey).\n", Denied, "store.sftp.identity_file"),
            ("subsystem request failed on channel 0\n", Invalid, "offers no SFTP"),
            ("/c: line 1: Bad configuration option: x\n/c: terminating, 1 bad\n", Invalid, "store.sftp.config_file"),
            ("ssh: connect to host box port 22: Connection refused\n", Retryable, "Connection refused"),
            ("ssh: Could not resolve hostname box: Name or service not known\n", Retryable, "not known"),
            ("", Retryable, "the connection ended"),
        ] {
            let error = ending(&address(), said, "the connection ended");
            assert_eq!(error.kind, kind, "{said}");
            assert!(error.message.starts_with("no SFTP with me@box: ") && error.message.contains(advice), "{error}");
            assert!(!error.message.contains('\n'));
        }
        // A banner of many lines does not hide the reason.
        let long = format!("{}Connection closed by 10.0.0.1 port 22\n", "banner\n".repeat(50));
        let error = ending(&address(), &long, "it ended").message;
        assert!(error.len() < 200 && error.contains("Connection closed by"), "{error}");
    }
}
