//! `ashlar tls`: certificates to try TLS with, or for a handful of hosts that need no other authority.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::failure::{Failure, Outcome};
use super::output;

/// Makes certificates for TLS: an authority, a server's and clients'.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Makes an authority (if the directory has none yet), and a certificate for this server under the names given
    ///
    /// Writes ca-cert.pem, ca-key.pem, server-cert.pem and server-key.pem, under the names that qemu and libnbd look for. Keep
    /// ca-key.pem away from the server and from clients: whoever has it can make certificates.
    #[command(after_help = "Example:\n  ashlar tls init /etc/ashlar/tls nbd.example.com 10.0.0.1")]
    Init {
        /// Where the files go
        directory: PathBuf,
        /// Names and addresses by which clients reach the server [default: localhost 127.0.0.1 ::1]
        names: Vec<String>,
    },
    /// Makes a certificate for a client, signed by the authority of the directory
    ///
    /// Writes NAME/client-cert.pem, NAME/client-key.pem and NAME/ca-cert.pem below the directory: what the client needs. In
    /// nbd.access the client is cert:NAME.
    #[command(after_help = "Example:\n  ashlar tls client /etc/ashlar/tls db1")]
    Client {
        /// Where the authority is
        directory: PathBuf,
        /// The client's name
        name: String,
    },
}

/// How long what is made here is good, in years.
const YEARS: i32 = 10;

/// Runs the command.
pub fn run(args: &Args, now_unix_millis: u64) -> Outcome {
    match &args.command {
        Command::Init { directory, names } => init(directory, names, now_unix_millis),
        Command::Client { directory, name } => client(directory, name, now_unix_millis),
    }
}

fn init(directory: &Path, names: &[String], now: u64) -> Outcome {
    std::fs::create_dir_all(directory).map_err(|error| at(directory, error))?;
    let mut made = Vec::new();
    if !directory.join("ca-cert.pem").exists() {
        let mut parameters = parameters(vec![], "ashlar test authority", now)?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(Failure::failed)?;
        let certificate = parameters.self_signed(&key).map_err(Failure::failed)?;
        made.push(write(directory.join("ca-key.pem"), &key.serialize_pem(), 0o600)?);
        made.push(write(directory.join("ca-cert.pem"), &certificate.pem(), 0o644)?);
    }
    let usual = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let names = if names.is_empty() { usual } else { names.to_vec() };
    let mut parameters = parameters(names.clone(), &names[0], now)?;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    made.extend(issue(directory, parameters, directory, "server")?);
    let file = |name: &str| directory.join(name).display().to_string();
    output::text(format!(
        "{}\n\n[nbd.tls]\nmode = \"required\"\ncertificate = {:?}\nkey = {:?}\n# Only clients with a certificate of this authority \
         (`ashlar tls client {} NAME`):\n# client_ca = {:?}",
        made.join("\n"),
        file("server-cert.pem"),
        file("server-key.pem"),
        directory.display(),
        file("ca-cert.pem"),
    ))
}

fn client(directory: &Path, name: &str, now: u64) -> Outcome {
    let own = directory.join(name);
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(Failure::failed(format!(
            "{name:?} cannot be a client's name: the files go into a directory of that name"
        )));
    }
    let mut parameters = parameters(vec![name.to_owned()], name, now)?;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let authority = read(&directory.join("ca-cert.pem"))?;
    std::fs::create_dir_all(&own).map_err(|error| at(&own, error))?;
    let mut made = issue(directory, parameters, &own, "client")?;
    made.push(write(own.join("ca-cert.pem"), &authority, 0o644)?);
    output::text(made.join("\n"))
}

fn parameters(names: Vec<String>, common: &str, now_unix_millis: u64) -> Result<CertificateParams, Failure> {
    let mut parameters = CertificateParams::new(names).map_err(Failure::failed)?;
    parameters.distinguished_name.push(DnType::CommonName, common);
    // From the first day of this year on, so that a clock that is a little late does no harm.
    let year = 1970 + i32::try_from(now_unix_millis / 31_556_952_000).unwrap_or_default();
    parameters.not_before = rcgen::date_time_ymd(year, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(year + YEARS, 12, 31);
    parameters.use_authority_key_identifier_extension = true;
    Ok(parameters)
}

/// Signs a certificate with the authority of a directory, and writes it and its key. The files that were made.
fn issue(directory: &Path, parameters: CertificateParams, into: &Path, who: &str) -> Result<Vec<String>, Failure> {
    let (certificate, key) = (directory.join("ca-cert.pem"), directory.join("ca-key.pem"));
    let signer = KeyPair::from_pem(&read(&key)?).map_err(|error| at(&key, error))?;
    let issuer = Issuer::from_ca_cert_pem(&read(&certificate)?, signer).map_err(|error| at(&certificate, error))?;
    let own = KeyPair::generate().map_err(Failure::failed)?;
    let signed = parameters.signed_by(&own, &issuer).map_err(Failure::failed)?;
    Ok(vec![
        write(into.join(format!("{who}-key.pem")), &own.serialize_pem(), 0o600)?,
        write(into.join(format!("{who}-cert.pem")), &signed.pem(), 0o644)?,
    ])
}

fn at(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| at(path, error))
}

/// Writes a file that is not there yet: what somebody uses is never overwritten.
#[allow(clippy::disallowed_methods)] // nothing of a volume: the disk's door is for what must not be lost
fn write(path: PathBuf, text: &str, mode: u32) -> Result<String, Failure> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| at(&path, error))?;
    Ok(format!("made {}", path.display()))
}
