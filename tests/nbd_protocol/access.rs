//! Who may come in: lists of addresses and of users, and the files of Unix sockets.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ashlar::device::memory::{MemoryDevice, MemoryExports};
use ashlar::device::{Allocation, Device, DeviceInfo, ExportEntry, ExportError, Exports, Run};
use ashlar::nbd::access::{Rule, Who};
use ashlar::nbd::listen::At;
use ashlar::nbd::{Door, ListenAddr, Options, Server, SocketMode, TlsMode};
use async_trait::async_trait;
use tokio::net::{TcpStream, UnixStream};

use crate::client::{Client, OptionReply, contexts_data, info_data, opt, rep, within};
use crate::tls::Authority;
use crate::world::{SIZE, Scripted, World};

fn list(texts: &[&str]) -> Vec<Who> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

async fn start(access: Vec<Rule>, doors: Vec<Door>) -> Arc<Server> {
    let disk = || Arc::new(MemoryDevice::new(SIZE));
    let exports = MemoryExports::new().with("disk0", "", disk()).with("disk1", "", disk());
    let options = Options { access, ..Options::default() };
    let server = Arc::new(Server::open(options, doors, Arc::new(exports)).await.unwrap());
    tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    server
}

fn tcp(allow: &[&str]) -> Door {
    Door { allow: list(allow), ..Door::from(ListenAddr::Tcp("127.0.0.1:0".parse().unwrap())) }
}

async fn connect(server: &Server, number: usize) -> Client {
    match &server.addresses()[number] {
        ListenAddr::Tcp(address) => Client::new(TcpStream::connect(address).await.unwrap()),
        ListenAddr::Unix(path) => Client::new(UnixStream::connect(path).await.unwrap()),
        ListenAddr::Vsock(_) => panic!("nobody asked for it"),
    }
}

#[tokio::test]
async fn c6_each_listener_has_its_own_list_of_who_may_come_in() {
    let directory = tempfile::tempdir().unwrap();
    let unix = |name: &str, allow: &[&str]| Door {
        allow: list(allow),
        ..Door::from(ListenAddr::Unix(directory.path().join(name)))
    };
    let me = format!("uid:{}", rustix::process::getuid().as_raw());
    let doors = vec![
        tcp(&[]),
        tcp(&["127.0.0.0/8"]),
        tcp(&["10.0.0.0/8", "unix"]),
        unix("mine", &[&me]),
        unix("other", &["uid:4294967294", "127.0.0.1"]),
    ];
    let server = start(vec![], doors).await;
    for (number, welcome) in [true, true, false, true, false].into_iter().enumerate() {
        let mut client = connect(&server, number).await;
        if welcome {
            client.go("disk0").await;
            client.disconnect().await;
        } else {
            client.expect_closed().await;
        }
    }
    within(server.shutdown()).await;
}

#[tokio::test]
async fn m5_a_rule_names_the_addresses_that_may_use_an_export() {
    let rules = vec![
        Rule { exports: vec!["disk0".to_owned()], read: list(&["127.0.0.1"]), ..Rule::default() },
        Rule { exports: vec!["*".to_owned()], write: list(&["10.0.0.5"]), ..Rule::default() },
    ];
    let server = start(rules, vec![tcp(&[])]).await;
    let mut client = connect(&server, 0).await;
    client.greet().await;
    assert_eq!(client.ask(opt::LIST, b"").await, rep::SERVER);
    assert_eq!(client.option_reply().await.reply_type, rep::ACK, "one export only");
    assert_eq!(client.ask(opt::INFO, &info_data("disk1", &[])).await, rep::ERR_POLICY);
    assert_eq!(client.ask(opt::GO, &info_data("", &[])).await, rep::ERR_UNKNOWN);
    assert_eq!(client.only_go("disk0").await.flags & 2, 2, "READ_ONLY");
    client.disconnect().await;
    within(server.shutdown()).await;
}

/// What a client asks for by no name is refused by no name.
#[tokio::test]
async fn o8_the_name_of_a_hidden_default_export_is_not_told() {
    let exports = MemoryExports::new().with("hidden0", "", Arc::new(MemoryDevice::new(SIZE))).with_default("hidden0");
    let access = vec![Rule { exports: vec!["*".to_owned()], write: list(&["10.0.0.5"]), ..Rule::default() }];
    let server = Server::open(Options { access, ..Options::default() }, vec![tcp(&[])], Arc::new(exports)).await;
    let server = Arc::new(server.unwrap());
    tokio::spawn({
        let server = server.clone();
        async move { server.run().await }
    });
    let mut client = connect(&server, 0).await;
    client.greet().await;
    for option in [opt::INFO, opt::GO] {
        client.send(&crate::client::option(option, &info_data("", &[]))).await;
        let reply = client.option_reply().await;
        assert_eq!(reply.reply_type, rep::ERR_POLICY);
        assert_eq!(String::from_utf8(reply.data).unwrap(), "you have no access to \"\" on this server");
    }
    drop(client);
    within(server.shutdown()).await;
}

/// Exports that count how often they are asked for anything.
struct Counted {
    exports: MemoryExports,
    asked: Arc<AtomicUsize>,
}

impl Counted {
    fn of(names: &[&str]) -> (Counted, Arc<AtomicUsize>) {
        let with = |exports: MemoryExports, name: &&str| exports.with(name, "", Arc::new(MemoryDevice::new(SIZE)));
        let exports = names.iter().fold(MemoryExports::new(), with);
        let exports = names.first().map_or(MemoryExports::new(), |first| exports.with_default(first));
        let asked = Arc::new(AtomicUsize::new(0));
        (Counted { exports, asked: asked.clone() }, asked)
    }
}

#[async_trait]
impl Exports for Counted {
    async fn list(&self) -> Result<Vec<ExportEntry>, ExportError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.exports.list().await
    }

    async fn open(&self, name: &str) -> Result<(ExportEntry, Arc<dyn Device>), ExportError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.exports.open(name).await
    }
}

fn rule(exports: &str, write: &[&str]) -> Rule {
    Rule { exports: vec![exports.to_owned()], write: list(write), ..Rule::default() }
}

/// All that a client can ask about exports, by name and by none, and what it is answered.
async fn answers(world: &World, names: &[&str]) -> Vec<OptionReply> {
    let mut client = world.connect();
    client.greet().await;
    assert_eq!(client.ask(opt::STRUCTURED_REPLY, b"").await, rep::ACK);
    client.send(&crate::client::option(opt::LIST, b"")).await;
    let mut answers = vec![client.option_reply().await];
    while answers.last().unwrap().reply_type == rep::SERVER {
        answers.push(client.option_reply().await);
    }
    for name in names {
        for (option, data) in [
            (opt::INFO, info_data(name, &[])),
            (opt::SET_META_CONTEXT, contexts_data(name, &["base:allocation"])),
            (opt::GO, info_data(name, &[])),
        ] {
            client.send(&crate::client::option(option, &data)).await;
            answers.push(client.option_reply().await);
        }
    }
    drop(client);
    let mut old = world.connect();
    old.greet().await;
    old.send(&crate::client::option(opt::EXPORT_NAME, b"")).await;
    old.expect_closed().await;
    answers
}

/// O8: a client that no rule lets in moves nothing in the store, whatever it asks for.
#[tokio::test]
async fn o8_the_store_is_asked_nothing_for_a_client_that_may_use_nothing() {
    let (exports, asked) = Counted::of(&["disk0"]);
    let access = vec![rule("*", &["10.0.0.5"])];
    let world = World::new(Options { access, ..Options::default() }, exports).await;
    let answers = answers(&world, &["", "disk0", "stranger"]).await;
    let types: Vec<u32> = answers.iter().map(|reply| reply.reply_type).collect();
    assert_eq!(types, [&[rep::ACK][..], &[rep::ERR_POLICY; 9]].concat(), "an empty list, and no access");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    world.all_gone().await;
}

/// O8: whoever may use something else, or nothing, is answered in the same way whether there is a hidden export, several or none.
#[tokio::test]
async fn o8_nobody_can_tell_that_there_is_a_hidden_export() {
    let authority = Authority::new();
    let tls = authority.options(TlsMode::Allowed, false);
    let secure = Rule { tls: true, ..rule("tls*", &["anyone"]) };
    for (mine, number) in
        [(vec![], 0), (vec![rule("mine", &["anyone"])], 1), (vec![rule("mine", &["anyone"]), secure], 2)]
    {
        let access = [mine, vec![rule("*", &["10.0.0.5"])]].concat();
        let mut told = Vec::new();
        for names in [&[][..], &["hidden"], &["hidden", "other"]] {
            let (exports, _) = Counted::of(names);
            let world =
                World::new(Options { access: access.clone(), tls: tls.clone(), ..Options::default() }, exports).await;
            told.push(answers(&world, &["", "hidden", "other"]).await);
            world.all_gone().await;
        }
        assert!(told[0] == told[1] && told[1] == told[2], "rules {number}: {told:x?}");
    }
}

#[tokio::test]
async fn the_file_of_a_unix_socket_has_the_mode_that_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let owner = rustix::process::getuid().as_raw();
    let socket = SocketMode { mode: Some(0o610), user: Some(owner), group: None };
    let server = start(vec![], vec![Door { socket, ..Door::from(ListenAddr::Unix(path.clone())) }]).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o610);
    connect(&server, 0).await.go("disk0").await;
    within(server.shutdown()).await;
}

/// A socket that systemd opened is served, and its file is left alone at the end.
#[tokio::test]
async fn sockets_that_are_open_already_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("given.sock");
    let given_unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let given_tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = given_tcp.local_addr().unwrap();
    let door = |at| Door { at, tls: None, allow: vec![], socket: SocketMode::default() };
    let server = start(vec![], vec![door(At::GivenTcp(given_tcp)), door(At::GivenUnix(given_unix))]).await;
    assert_eq!(server.addresses(), [ListenAddr::Tcp(address), ListenAddr::Unix(path.clone())]);
    for number in [0, 1] {
        let mut client = connect(&server, number).await;
        client.go("disk0").await;
        client.disconnect().await;
    }
    within(server.shutdown()).await;
    assert!(path.exists());
}

/// O8: which snapshots there are is told only of those that a client may read.
#[tokio::test]
async fn o8_what_has_changed_since_a_hidden_snapshot_is_not_offered() {
    let info = DeviceInfo { size: 4096, block_size: 4096, read_only: false };
    let device = Scripted { info, runs: vec![Run { len: 4096, allocation: Allocation::Data }], bad: None };
    let access = vec![rule("disk0@monday", &["10.0.0.5"]), rule("disk0", &["anyone"])];
    let world = World::of(Options { access, ..Options::default() }, device).await;
    let mut client = world.connect();
    client.greet().await;
    assert_eq!(client.ask(opt::STRUCTURED_REPLY, b"").await, rep::ACK);
    let named = contexts_data("disk0", &["ashlar:changed:monday", "ashlar:changed:tuesday"]);
    for (option, data) in
        [(opt::LIST_META_CONTEXT, contexts_data("disk0", &["ashlar:"])), (opt::SET_META_CONTEXT, named)]
    {
        client.send(&crate::client::option(option, &data)).await;
        let reply = client.option_reply().await;
        assert_eq!((reply.reply_type, &reply.data[4..]), (rep::META_CONTEXT, &b"ashlar:changed:tuesday"[..]));
        assert_eq!(client.option_reply().await.reply_type, rep::ACK);
    }
    client.only_go("disk0").await;
    client.disconnect().await;
    world.all_gone().await;
}
