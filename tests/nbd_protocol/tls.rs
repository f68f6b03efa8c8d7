//! TLS: over pipes, with certificates that are made for each test.

use std::path::PathBuf;
use std::sync::Arc;

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::nbd::access::Rule;
use ashlar::nbd::{Door, ListenAddr, Options, Server, TlsMode, TlsOptions};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client::{Client, EPERM, Stream, cmd, info_data, opt, rep, request, within};
use crate::world::{SIZE, World};

/// An authority, and the files of a server with a certificate of it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

/// A certificate and its key.
type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Authority {
    pub fn new() -> Authority {
        let mut parameters = CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { issuer, directory: tempfile::tempdir().unwrap() };
        authority.put("ca.pem", &authority.issuer.pem());
        authority.renew();
        authority
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Gives the server a new certificate; returns it.
    pub fn renew(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["nbd.example".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        self.put("server.pem", &certificate.pem());
        self.put("server.key", &key.serialize_pem());
        certificate.der().clone()
    }

    /// A certificate for a client.
    pub fn client(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    pub fn options(&self, mode: TlsMode, with_clients: bool) -> TlsOptions {
        TlsOptions {
            mode,
            certificate: Some(self.path("server.pem")),
            key: Some(self.path("server.key")),
            client_ca: with_clients.then(|| self.path("ca.pem")),
            ..TlsOptions::default()
        }
    }

    /// How a client that trusts this authority speaks TLS.
    fn trusted(&self, versions: &[&'static SupportedProtocolVersion], own: Option<Pair>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match own {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        TlsConnector::from(Arc::new(config))
    }

    /// Begins TLS on a stream after the ACK.
    async fn secure(&self, stream: Box<dyn Stream>, own: Option<Pair>) -> std::io::Result<Client> {
        let name = ServerName::try_from("nbd.example").unwrap();
        let connector = self.trusted(rustls::ALL_VERSIONS, own);
        within(connector.connect(name, stream)).await.map(Client::new)
    }

    /// A client through STARTTLS.
    pub async fn connect(&self, world: &World, own: Option<Pair>) -> Client {
        let mut client = world.connect();
        client.greet().await;
        assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
        self.secure(client.into_stream(), own).await.expect("TLS begins")
    }
}

async fn world(tls: TlsOptions, access: Vec<Rule>) -> World {
    let disk = || Arc::new(MemoryDevice::new(SIZE));
    let exports = MemoryExports::new().with("disk0", "", disk()).with("disk1", "", disk()).with_default("disk0");
    World::new(Options { tls, access, ..Options::default() }, exports).await
}

fn rule(exports: &str, tls: bool, read: &[&str], write: &[&str]) -> Rule {
    let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Rule { exports: vec![exports.to_owned()], tls, read: list(read), write: list(write) }
}

#[tokio::test]
async fn a_client_writes_and_reads_over_tls() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, false), vec![]).await;
    let mut client = authority.connect(&world, None).await;
    assert_eq!(client.only_go("disk0").await.size, SIZE);
    let data: Vec<u8> = (0..300_000_u32).map(|at| (at / 7) as u8).collect();
    for offset in [0, 4096, 70_001] {
        assert_eq!(client.write(0, offset, &data).await, 0);
        assert!(client.read(offset, data.len() as u32).await.unwrap() == data);
    }
    client.disconnect().await;
    world.all_gone().await;
}

#[tokio::test]
async fn t3_t6_a_server_that_requires_tls_serves_nothing_without_it() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, false), vec![]).await;
    let mut client = world.connect();
    client.greet().await;
    for (option, data) in [(opt::LIST, vec![]), (opt::GO, info_data("disk0", &[])), (99, vec![1])] {
        assert_eq!(client.ask(option, &data).await, rep::ERR_TLS_REQD);
    }
    assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
    // What is no TLS ends the connection, after an alert at most.
    client.send(&crate::client::option(opt::GO, &info_data("disk0", &[]))).await;
    let said = client.rest().await;
    assert!(said.is_empty() || said[0] == 0x15, "an alert, but no answer: {said:x?}");
    world.all_gone().await;
}

/// What STARTTLS is answered with belongs to the listener, and does not change while the connection lasts, whatever was said.
#[tokio::test]
async fn t1_a_listener_has_one_mode_of_tls_and_a_connection_keeps_it() {
    let authority = Authority::new();
    let listener = |mode| Door { tls: Some(mode), ..Door::from(ListenAddr::Tcp("127.0.0.1:0".parse().unwrap())) };
    let doors = [TlsMode::Off, TlsMode::Allowed, TlsMode::Required].map(listener).into();
    let options = Options { tls: authority.options(TlsMode::Off, false), ..Options::default() };
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(SIZE)));
    let server = Arc::new(Server::open(options, doors, Arc::new(exports)).await.unwrap());
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    let answers = [(rep::ERR_UNSUP, false), (rep::ACK, false), (rep::ACK, true)];
    for (address, (starttls, refuses_plain)) in server.addresses().iter().zip(answers) {
        let ListenAddr::Tcp(address) = address else { panic!("it is TCP") };
        let mut client = Client::new(TcpStream::connect(address).await.unwrap());
        client.greet().await;
        for _ in 0..3 {
            client.send(&crate::client::option(opt::INFO, &info_data("disk0", &[]))).await;
            let mut types = vec![client.option_reply().await.reply_type];
            while *types.last().unwrap() == rep::INFO {
                types.push(client.option_reply().await.reply_type);
            }
            assert_eq!(types == [rep::ERR_TLS_REQD], refuses_plain, "{types:x?}");
            if starttls != rep::ACK {
                assert_eq!(client.ask(opt::STARTTLS, b"").await, starttls);
            }
        }
        if starttls == rep::ACK {
            assert_eq!(client.ask(opt::STARTTLS, b"").await, starttls);
            let mut client = authority.secure(client.into_stream(), None).await.unwrap();
            assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ERR_INVALID, "it runs, and there is no way back");
            client.only_go("disk0").await;
            client.disconnect().await;
        }
    }
    within(server.shutdown()).await;
    within(running).await.unwrap();
}

/// rustls tells an end without TLS's own goodbye as an error, which the second half shows.
#[tokio::test]
async fn t9_after_disc_tls_says_goodbye_before_the_connection_ends() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, false), vec![]).await;
    for (last, polite) in [(cmd::DISC, true), (cmd::READ, false)] {
        let mut client = authority.connect(&world, None).await;
        client.only_go("disk0").await;
        let mut request = request(0, last, 0, 0, 0);
        if !polite {
            request[0] ^= 1; // no magic: the connection is broken off
        }
        client.send(&request).await;
        let (mut stream, mut rest) = (client.into_stream(), Vec::new());
        let end = within(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await;
        assert_eq!(end.is_ok(), polite, "{end:?}");
        assert!(rest.is_empty());
    }
    world.all_gone().await;
}

#[tokio::test]
async fn o11_options_that_follow_starttls_in_plain_text_are_never_carried_out() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, false), vec![]).await;
    let mut client = world.connect();
    client.greet().await;
    let both = [crate::client::option(opt::STARTTLS, b""), crate::client::option(opt::GO, &info_data("disk0", &[]))];
    client.send(&both.concat()).await;
    client.expect_closed().await;
    world.all_gone().await;
}

#[tokio::test]
async fn t4_an_export_for_tls_is_hidden_and_refused_without_it() {
    let authority = Authority::new();
    let rules = vec![rule("disk1", true, &[], &["anyone"]), rule("*", false, &[], &["anyone"])];
    let world = world(authority.options(TlsMode::Allowed, false), rules).await;
    let mut plain = world.connect();
    plain.greet().await;
    assert_eq!(plain.ask(opt::LIST, b"").await, rep::SERVER);
    assert_eq!(plain.option_reply().await.reply_type, rep::ACK, "one export only");
    for option in [opt::INFO, opt::GO] {
        assert_eq!(plain.ask(option, &info_data("disk1", &[])).await, rep::ERR_TLS_REQD);
    }
    plain.only_go("disk0").await;
    plain.disconnect().await;
    let mut secure = authority.connect(&world, None).await;
    secure.only_go("disk1").await;
    assert_eq!(secure.write(0, 0, b"secret").await, 0);
    secure.disconnect().await;
    world.all_gone().await;
}

#[tokio::test]
async fn t7_tls_1_2_and_1_3_are_spoken() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, false), vec![]).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut client = world.connect();
        client.greet().await;
        assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
        let connector = authority.trusted(&[version], None);
        let stream = connector.connect("nbd.example".try_into().unwrap(), client.into_stream()).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        let mut client = Client::new(stream);
        client.only_go("disk0").await;
        // A stream that ends without close_notify is an error here (rule T9).
        client.disconnect().await;
    }
    world.all_gone().await;
}

/// Who went on with an earlier session would not be asked for its certificate again.
#[tokio::test]
async fn t8_no_session_is_resumed() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, true), vec![]).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let connector = authority.trusted(&[version], Some(authority.client("db1")));
        for _ in 0..2 {
            let mut client = world.connect();
            client.greet().await;
            assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
            let stream = connector.connect("nbd.example".try_into().unwrap(), client.into_stream()).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
            let mut client = Client::new(stream);
            client.only_go("disk0").await;
            client.disconnect().await;
        }
    }
    world.all_gone().await;
}

#[tokio::test]
async fn t8_a_certificate_decides_what_its_owner_may_use_and_how() {
    let authority = Authority::new();
    let rules = vec![rule("disk0", false, &["cert:backup"], &["cert:db1"]), rule("disk1", false, &[], &["cert:db2"])];
    let world = world(authority.options(TlsMode::Allowed, true), rules).await;

    let mut writer = authority.connect(&world, Some(authority.client("db1"))).await;
    assert_eq!(writer.only_go("disk0").await.flags & 2, 0);
    assert_eq!(writer.write(0, 0, b"precious").await, 0);
    let mut reader = authority.connect(&world, Some(authority.client("backup"))).await;
    assert_eq!(reader.only_go("disk0").await.flags & 2, 2, "READ_ONLY");
    assert_eq!(reader.read(0, 8).await.unwrap(), b"precious");
    assert_eq!(reader.write(0, 0, b"ruined").await, EPERM);
    assert_eq!(reader.call(0, crate::client::cmd::TRIM, 0, 4096).await, EPERM);
    assert_eq!(writer.read(0, 8).await.unwrap(), b"precious");

    let mut other = authority.connect(&world, Some(authority.client("db1"))).await;
    assert_eq!(other.ask(opt::GO, &info_data("disk1", &[])).await, rep::ERR_POLICY);
    assert_eq!(other.ask(opt::GO, &info_data("none", &[])).await, rep::ERR_POLICY, "and nobody learns what there is");
    let mut plain = world.connect();
    plain.greet().await;
    assert_eq!(plain.ask(opt::GO, &info_data("disk0", &[])).await, rep::ERR_TLS_REQD);
    drop((other, plain));
    writer.disconnect().await;
    reader.disconnect().await;
    world.all_gone().await;
}

#[tokio::test]
async fn t8_without_a_certificate_of_the_authority_there_is_no_tls() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let world = world(authority.options(TlsMode::Required, true), vec![]).await;
    for own in [None, Some(stranger.client("db1"))] {
        let mut client = world.connect();
        client.greet().await;
        assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
        // With TLS 1.3 a client learns of it with the first thing that it reads.
        if let Ok(mut client) = authority.secure(client.into_stream(), own).await {
            let _ = client.try_send(&crate::client::option(opt::LIST, b"")).await;
            assert_eq!(client.rest().await, b"");
        }
    }
    world.all_gone().await;
}

#[tokio::test(start_paused = true)]
async fn c6_a_client_that_lets_tls_wait_is_dropped_in_time() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, false), vec![]).await;
    let mut client = world.connect();
    client.greet().await;
    assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
    let begin = tokio::time::Instant::now();
    client.expect_closed().await;
    assert!(begin.elapsed() <= Options::default().handshake_timeout);
    world.all_gone().await;
}

#[tokio::test]
async fn tls_that_is_asked_for_without_a_certificate_or_with_a_bad_one_is_refused_at_once() {
    let authority = Authority::new();
    let bind = async |tls: TlsOptions, access: Vec<Rule>| {
        let options = Options { tls, access, ..Options::default() };
        ashlar::nbd::Server::bind(options, vec![], Arc::new(MemoryExports::new()))
            .await
            .err()
            .map(|error| error.to_string())
    };
    let nothing = TlsOptions { mode: TlsMode::Allowed, ..TlsOptions::default() };
    let said = bind(nothing, vec![]).await.unwrap();
    assert!(said.starts_with("nbd.tls.certificate: is not set, and TLS needs"), "{said}");
    let cert = rule("*", false, &[], &["cert:db1"]);
    assert_eq!(
        bind(authority.options(TlsMode::Allowed, false), vec![cert]).await.unwrap(),
        "nbd.access: rule 1 names certificates, and nothing says whose are good: set nbd.tls.client_ca"
    );
    assert_eq!(
        bind(TlsOptions::default(), vec![rule("*", true, &[], &["anyone"])]).await.unwrap(),
        "nbd.access: rule 1 asks for TLS, and there is none: set nbd.tls.mode, nbd.tls.certificate and nbd.tls.key"
    );
}

/// Whoever names authorities, or a certificate, means to keep somebody out.
#[tokio::test]
async fn tls_files_that_keep_nobody_out_are_refused_at_once() {
    let authority = Authority::new();
    let open = async |mode, with_clients, doors: &[Option<TlsMode>], access| {
        let options = Options { tls: authority.options(mode, with_clients), access, ..Options::default() };
        let address = || ashlar::nbd::ListenAddr::Tcp("127.0.0.1:0".parse().unwrap());
        let doors = doors.iter().map(|&tls| ashlar::nbd::Door { tls, ..address().into() }).collect();
        let opened = ashlar::nbd::Server::open(options, doors, Arc::new(MemoryExports::new())).await;
        opened.err().map(|error| error.to_string())
    };
    let rules = || vec![rule("*", false, &[], &["cert:db1"])];
    let (off, allowed, required) = (TlsMode::Off, TlsMode::Allowed, TlsMode::Required);
    for (mode, with_clients, doors, access) in [
        (required, true, vec![None], vec![]),
        (required, true, vec![], vec![]),
        (off, true, vec![None, Some(required)], vec![]),
        (allowed, true, vec![None], rules()),
        (allowed, false, vec![None], vec![]),
        (off, false, vec![Some(allowed)], vec![]),
    ] {
        assert_eq!(open(mode, with_clients, &doors, access).await, None, "{mode:?} {with_clients} {doors:?}");
    }
    for (mode, doors) in [(allowed, vec![None]), (allowed, vec![]), (required, vec![Some(off), Some(allowed)])] {
        let said = open(mode, true, &doors, vec![]).await.unwrap();
        assert!(said.contains("ca.pem: is set, and keeps nobody out: no listener requires TLS"), "{said}");
        assert!(said.contains("set nbd.tls.mode = \"required\", or say in nbd.access who may use what"), "{said}");
    }
    for (mode, doors, access) in
        [(off, vec![None, None], vec![]), (off, vec![], rules()), (required, vec![Some(off)], vec![])]
    {
        let said = open(mode, true, &doors, access).await.unwrap();
        assert!(said.contains("server.pem: is set, and no listener speaks TLS: set nbd.tls.mode"), "{said}");
    }
}

/// The certificate that a server shows to a client that begins now.
async fn shown(authority: &Authority, world: &World) -> CertificateDer<'static> {
    let mut client = world.connect();
    client.greet().await;
    assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
    let connector = authority.trusted(rustls::ALL_VERSIONS, None);
    let stream = connector.connect("nbd.example".try_into().unwrap(), client.into_stream()).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_and_a_half_written_one_is_not() {
    let authority = Authority::new();
    let options = authority.options(TlsMode::Required, false);
    let tls = ashlar::nbd::tls::Tls::load(&options).await.unwrap().expect("there are files");
    assert!(!tls.reload().await.unwrap(), "nothing has changed");
    let world = world(TlsOptions { reload_interval: std::time::Duration::from_secs(1), ..options }, vec![]).await;
    let running = tokio::spawn({
        let server = world.server.clone();
        async move { server.run().await }
    });
    let first = shown(&authority, &world).await;

    let key = std::fs::read(authority.path("server.key")).unwrap();
    authority.renew();
    let new_key = std::fs::read(authority.path("server.key")).unwrap();
    std::fs::write(authority.path("server.key"), key).unwrap();
    let error = tls.reload().await.unwrap_err().to_string();
    assert!(error.contains("is not the key of the certificate in"), "{error}");
    assert_eq!(shown(&authority, &world).await, first, "the server goes on with what it has");

    std::fs::write(authority.path("server.key"), new_key).unwrap();
    assert!(tls.reload().await.unwrap());
    within(async { while shown(&authority, &world).await == first {} }).await;
    within(world.server.shutdown()).await;
    within(running).await.unwrap();
}

/// A client that has begun TLS through a pipe of few bytes, and its options.
async fn narrow(world: &World, authority: &Authority, pipe: usize) -> Client {
    let mut client = world.connect_by(pipe);
    client.greet().await;
    assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
    let mut client = authority.secure(client.into_stream(), None).await.unwrap();
    client.only_go("disk0").await;
    client
}

/// What TLS has sealed and not sent counts as not fetched, too: a reply that fits into its buffer, and many that do not.
#[tokio::test(start_paused = true)]
async fn r11_a_tls_client_that_never_reads_is_dropped_and_others_do_not_notice() {
    let authority = Authority::new();
    let world = world(authority.options(TlsMode::Required, false), vec![]).await;
    let mut other = narrow(&world, &authority, 64 << 10).await;
    for (count, len) in [(1, 16 << 10), (200, 1 << 20)] {
        let mut stuck = narrow(&world, &authority, 8 << 10).await;
        for cookie in 0..count {
            // The server stops reading when its bounds are met.
            let request = crate::client::request(0, crate::client::cmd::READ, cookie, 0, len);
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), stuck.try_send(&request)).await;
        }
        let begin = tokio::time::Instant::now();
        while world.server.clients().len() == 2 {
            let most = world.server.clients().iter().map(|client| client.bytes_in_flight).max();
            assert!(most <= Some(Options::default().bytes_in_flight as u64), "{most:?}");
            assert!(begin.elapsed() < 3 * Options::default().client_timeout, "it is still there");
            assert_eq!(other.read(4096, 4096).await.unwrap().len(), 4096);
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
    other.disconnect().await;
    world.all_gone().await;
}

/// Many that begin TLS and say no more, or say rubbish, and one that means it.
#[tokio::test]
async fn c6_a_crowd_that_does_not_finish_tls_keeps_nobody_out_for_longer_than_the_handshake_may_take() {
    let authority = Authority::new();
    let tls = authority.options(TlsMode::Required, false);
    let timeout = std::time::Duration::from_secs(1);
    let options = Options { tls, max_connections: 64, handshake_timeout: timeout, ..Options::default() };
    let exports = MemoryExports::new().with("disk0", "", Arc::new(MemoryDevice::new(SIZE)));
    let world = World::new(options, exports).await;
    let mut crowd = Vec::new();
    for number in 0..64 {
        let mut client = world.connect();
        client.greet().await;
        assert_eq!(client.ask(opt::STARTTLS, b"").await, rep::ACK);
        if number % 2 == 0 {
            client.send(&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]).await;
        }
        crowd.push(client);
    }
    for mut client in crowd {
        let _ = client.rest().await;
    }
    world.all_gone().await;
    let mut client = authority.connect(&world, None).await;
    client.only_go("disk0").await;
    client.disconnect().await;
    world.all_gone().await;
}
