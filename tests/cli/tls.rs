//! TLS from the files that `ashlar tls` makes, and sockets as systemd hands them over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::program::{Place, Serving};

const CONFIG: &str = r#"
[nbd.tls]
mode = "required"
certificate = "tls/server-cert.pem"
key = "tls/server-key.pem"
client_ca = "tls/ca-cert.pem"
[[nbd.access]]
exports = ["disk0"]
write = ["cert:db1"]
"#;

fn put_option(stream: &mut impl Write, option: u32, data: &[u8]) {
    let head = [b"IHAVEOPT", &option.to_be_bytes()[..], &(data.len() as u32).to_be_bytes()].concat();
    stream.write_all(&[&head, data].concat()).unwrap();
}

/// The type of the next reply, whose data is thrown away.
fn reply(stream: &mut impl Read) -> u32 {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
    stream.read_exact(&mut vec![0; word(16) as usize]).unwrap();
    word(12)
}

/// Through the greeting.
fn greeted(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    stream
}

fn client_config(files: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.join("ca-cert.pem")).unwrap()).unwrap();
    let own = CertificateDer::from_pem_file(files.join("client-cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(files.join("client-key.pem")).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], key)
        .unwrap()
}

/// What a client with these files is answered when it asks for disk0: the types of the replies.
fn ask_for_disk0(address: SocketAddr, files: &Path) -> Vec<u32> {
    let mut stream = greeted(address);
    put_option(&mut stream, 5, b"");
    assert_eq!(reply(&mut stream), 1);
    let connection = ClientConnection::new(Arc::new(client_config(files)), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    put_option(&mut stream, 7, b"\0\0\0\x05disk0\0\0");
    let mut types = vec![reply(&mut stream)];
    while types.last() == Some(&3) {
        types.push(reply(&mut stream));
    }
    types
}

fn address(serving: &Serving) -> SocketAddr {
    let line = serving.welcome.lines().find_map(|line| line.strip_prefix("listening on 127"));
    format!("127{}", line.unwrap()).parse().unwrap()
}

#[test]
fn the_files_that_tls_makes_let_its_clients_in_and_no_others() {
    let place = Place::new();
    let said = place.ok(&["tls", "init", "tls"]);
    assert!(said.contains("made tls/server-cert.pem") && said.contains("[nbd.tls]"), "{said}");
    place.ok(&["tls", "client", "tls", "db1"]);
    place.ok(&["tls", "client", "tls", "db2"]);
    for (name, mode) in [("tls/ca-key.pem", 0o600), ("tls/server-key.pem", 0o600), ("tls/db1/client-cert.pem", 0o644)] {
        assert_eq!(std::fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    let again = place.run(&["tls", "init", "tls"]);
    assert_eq!((again.code, again.err.as_str()), (Some(1), "ashlar: tls/server-key.pem: File exists (os error 17)\n"));

    std::fs::write(place.path("ashlar.toml"), CONFIG).unwrap();
    let serving = Serving::start(place.command(&["serve", "--listen", "127.0.0.1:0"]));
    assert_eq!(ask_for_disk0(address(&serving), &place.path("tls/db1")), [3, 3, 1]);
    assert_eq!(ask_for_disk0(address(&serving), &place.path("tls/db2")), [0x8000_0002]);
    let mut plain = greeted(address(&serving));
    put_option(&mut plain, 3, b"");
    assert_eq!(reply(&mut plain), 0x8000_0005, "TLS_REQD");
    drop(plain);
    serving.stop();
}

#[test]
fn tls_that_cannot_be_is_refused_in_one_sentence_before_any_volume_is_touched() {
    let place = Place::new();
    std::fs::write(place.path("ashlar.toml"), CONFIG).unwrap();
    let ended = place.run(&["serve", "--listen", "127.0.0.1:0"]);
    let expected = "ashlar: nbd.tls.certificate = tls/server-cert.pem: No such file or directory (os error 2)\n";
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.ends_with(expected), "{}", ended.err);
    assert!(!ended.err.contains("opened"), "{}", ended.err);
}

/// As systemd starts a service: the socket is file descriptor 3, and the environment says for whom.
#[test]
fn a_socket_that_systemd_opened_takes_the_place_of_the_usual_one() {
    let place = Place::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let expected = socket.local_addr().unwrap();
    let ashlar = env!("CARGO_BIN_EXE_ashlar");
    let script = format!("exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec {ashlar} serve --socket mine.sock");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).current_dir(place.path(".")).stdin(Stdio::from(OwnedFd::from(socket)));
    let serving = Serving::start(command);
    assert_eq!(address(&serving), expected);
    assert!(place.path("mine.sock").exists(), "what somebody asked for is opened as well");
    put_option(&mut greeted(expected), 2, b"");
    serving.stop();
}
