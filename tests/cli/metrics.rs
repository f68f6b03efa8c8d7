//! What a server tells those who watch it: `/metrics`, `/healthz`, `/readyz`, and to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::program::{Place, Serving};

const MIB: usize = 1 << 20;

/// `ashlar serve` with a listener for those who watch.
fn watched(place: &Place, args: &[&str]) -> Command {
    let mut command = place.command(&["serve", "--listen", "none"]);
    command.args(args).env("ASHLAR_METRICS__LISTEN", "127.0.0.1:0").env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h");
    command
}

fn address(serving: &Serving) -> SocketAddr {
    let url = serving.welcome.lines().find_map(|line| line.strip_prefix("metrics at http")).unwrap();
    url.trim_start_matches('s').trim_start_matches("://").trim_end_matches("/metrics").parse().unwrap()
}

/// A status and a body.
type Answer = (u16, String);

fn exchange(stream: &mut (impl Read + Write), path: &str, header: &str) -> std::io::Result<Answer> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

/// Far longer than anything may take, so that a test ends that would else wait for ever.
const TOO_LONG: Duration = Duration::from_secs(60);

fn connect(serving: &Serving) -> TcpStream {
    let stream = TcpStream::connect(address(serving)).unwrap();
    stream.set_read_timeout(Some(TOO_LONG)).unwrap();
    stream
}

fn get(serving: &Serving, path: &str) -> Answer {
    exchange(&mut connect(serving), path, "").unwrap()
}

/// One family of a page: type, labels without those that buckets have, meaning.
type Described = (String, BTreeSet<String>, String);

/// The families of a page, and the values of the samples.
fn parse(page: &str) -> (BTreeMap<String, Described>, BTreeMap<String, f64>) {
    let (mut families, mut samples) = (BTreeMap::<String, Described>::new(), BTreeMap::new());
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().2 = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().0 = kind.to_owned();
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            samples.insert(sample.to_owned(), value.parse().unwrap());
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let (_, labels_of, _) = families.get_mut(family_of(name)).unwrap_or_else(|| panic!("{line}: of no family"));
            let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| Some(label.split_once('=')?.0));
            labels_of.extend(labels.filter(|label| *label != "le").map(str::to_owned));
        }
    }
    (families, samples)
}

/// The name of a histogram, for those of its parts.
fn family_of(sample: &str) -> &str {
    let parts = ["_bucket", "_sum", "_count"];
    parts.into_iter().find_map(|part| sample.strip_suffix(part)).unwrap_or(sample)
}

/// What `docs/metrics.md` says.
fn documented() -> BTreeMap<String, Described> {
    let page = repository("docs/metrics.md");
    let (_, table) = page.split_once("| name | type | labels | what it says |\n| --- | --- | --- | --- |\n").unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
        let [name, kind, labels, help] = cells[..] else { panic!("four columns: {line}") };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some((name.trim_matches('`').to_owned(), (kind.to_owned(), labels, help.to_owned())))
    };
    table.lines().map_while(row).collect()
}

fn repository(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    let place = Place::new();
    std::fs::write(place.path("ashlar.toml"), "[store]\nlog = \"file://./near\"\n").unwrap();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let mut command = watched(&place, &["disk0"]);
    command.env("ASHLAR_CACHE__DISK__SIZE", "16MiB").env("ASHLAR_BUDGET__REQUESTS_PER_SECOND", "100");
    command.env("ASHLAR_BUDGET__VOLUME__DOLLARS_PER_DAY", "1.5").env("ASHLAR_MIRROR__URL", "file://./mirror");
    // One that is away is a peer, too.
    std::fs::write(place.path("secret"), "0123456789abcdef0123456789abcdef\n").unwrap();
    command.env("ASHLAR_PEER__SECRET_FILE", place.path("secret")).env("ASHLAR_PEER__ADDRESS", "127.0.0.1:1");
    command.env("ASHLAR_VOLUME__DURABILITY", "peer").env("ASHLAR_VOLUME__DEDUP", "true");
    let serving = Serving::start(command);
    place.ok(&["snapshot", "create", "disk0@first"]);
    let (status, page) = get(&serving, "/metrics");
    assert_eq!(status, 200);
    let (families, _) = parse(&page);
    assert!(families.len() > 50, "{page}");
    assert_eq!(families, documented());
    serving.stop();
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("ashlar_")).collect()
}

#[test]
fn the_alerts_and_the_dashboard_name_only_metrics_that_exist() {
    let known = documented();
    let exists = |name: &str| {
        let of_histogram = known.get(family_of(name)).is_some_and(|(kind, ..)| kind == "histogram");
        known.get(name).is_some_and(|(kind, ..)| kind != "histogram") || (family_of(name) != name && of_histogram)
    };
    for (file, least) in [
        ("config/prometheus/alerts.yml", 12),
        ("config/prometheus/alerts.test.yml", 12),
        ("config/grafana/ashlar.json", 35),
    ] {
        let text = repository(file);
        let named = names(&text);
        assert!(named.len() >= least, "{file}: {named:?}");
        for name in named {
            assert!(exists(name), "{file}: there is no metric {name}");
        }
    }
    // Each alert has a test.
    let (alerts, tests) = (repository("config/prometheus/alerts.yml"), repository("config/prometheus/alerts.test.yml"));
    let alerts: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert}");
    }
    let dashboard: Value = serde_json::from_str(&repository("config/grafana/ashlar.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let said = |panel: &&Value| {
        let has = |key: &str| panel[key].as_str().is_some_and(|text| !text.is_empty());
        has("title") && has("description") && !panel["targets"].as_array().unwrap().is_empty()
    };
    let (good, bad): (Vec<&Value>, Vec<&Value>) = panels.partition(said);
    assert!(good.len() > 25 && bad.is_empty(), "{bad:?}");
}

#[test]
fn the_numbers_are_those_of_what_was_done_and_of_the_status() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = Serving::start(watched(&place, &["disk0"]));
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, MIB).unwrap();
    disk.flush().unwrap();
    assert!(disk.holds(0, 7, MIB));
    disk.write(MIB as u64, 8, MIB).unwrap();
    let (_, samples) = parse(&get(&serving, "/metrics").1);
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    let of_volume = |name: &str| samples[&format!("ashlar_volume_{name}{{volume=\"disk0\"}}")];
    let done = |name: &str, operation: &str| {
        samples[&format!("ashlar_volume_{name}{{volume=\"disk0\",operation=\"{operation}\"}}")]
    };
    let mib = MIB as f64;
    assert_eq!((done("requests_total", "write"), done("request_bytes_total", "write")), (2.0, 2.0 * mib));
    assert_eq!((done("requests_total", "read"), done("request_bytes_total", "read")), (1.0, mib));
    assert_eq!((done("requests_total", "flush"), done("request_errors_total", "flush")), (1.0, 0.0));
    // One that does not wait may be timed later.
    assert!((1.0..=2.0).contains(&done("request_duration_seconds_count", "write")));
    assert!(done("request_duration_seconds_sum", "flush") > 0.0);
    let last = "ashlar_volume_request_duration_seconds_bucket{volume=\"disk0\",operation=\"write\",le=\"+Inf\"}";
    assert_eq!(samples[last], done("request_duration_seconds_count", "write"));
    assert_eq!((of_volume("open"), of_volume("ended"), of_volume("clients")), (1.0, 0.0, 1.0));
    assert_eq!((of_volume("dirty_bytes") >= mib, of_volume("journal_bytes") >= mib), (true, true));
    let volume = &status["volumes"][0];
    for name in ["size", "mapped", "stored", "live", "dead", "dirty", "journal", "dirty_bound"] {
        let of_status = volume[format!("{name}_bytes")].as_f64().or(volume[name].as_f64()).unwrap();
        assert_eq!(of_volume(&format!("{name}_bytes")), of_status, "{name}");
    }
    let puts = |result: &str| samples[&format!("ashlar_store_requests_total{{kind=\"put\",result=\"{result}\"}}")];
    assert!(puts("answered") >= 2.0 && puts("given_up") == 0.0);
    assert_eq!(samples["ashlar_store_request_duration_seconds_count{kind=\"put\"}"], puts("answered"));
    for memory in status["memory"].as_array().unwrap() {
        let bound = format!("ashlar_memory_bound_bytes{{bound={}}}", memory["key"]);
        assert_eq!(samples[&bound], memory["bound"].as_f64().unwrap(), "{bound}");
    }
    drop(disk);
    serving.stop();
}

#[test]
fn the_page_is_made_of_the_status_and_of_samples() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let mut command = watched(&place, &["disk0"]);
    command.env("ASHLAR_METRICS__HISTORY", "1m");
    let serving = Serving::start(command);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, MIB).unwrap();
    disk.flush().unwrap();
    let head = head(&serving, "/", "Host: localhost\r\n");
    for line in
        ["content-type: text/html; charset=utf-8", "content-security-policy: default-src 'none'; script-src 'sha256-"]
    {
        assert!(head.contains(line), "{line}: {head}");
    }
    // What goes on while both are asked aside.
    let steady = |text: String| {
        let mut status: Value = serde_json::from_str(&text).unwrap();
        for moving in ["unix_millis", "memory", "log", "store_requests", "cost"] {
            status.as_object_mut().unwrap().remove(moving).unwrap();
        }
        status
    };
    let equal = || steady(get(&serving, "/status.json").1) == steady(place.ok(&["status", "--json"]));
    while !equal() {}
    let samples =
        |query: &str| -> Value { serde_json::from_str(&get(&serving, &format!("/samples.json{query}")).1).unwrap() };
    let written = |samples: &Value| {
        let column =
            samples["volume_series"].as_array().unwrap().iter().position(|name| name == "written_bytes_per_second");
        let all = samples["samples"].as_array().unwrap();
        // Per second, and each sample is of a 360th of a minute, or later.
        let rates = all.iter().map(|sample| sample["volumes"]["disk0"][column.unwrap()].as_f64().unwrap_or_default());
        rates.fold(0.0, f64::max)
    };
    while written(&samples("")) == 0.0 {
        disk.write(0, 7, MIB).unwrap();
    }
    let all = samples("");
    let last = all["samples"].as_array().unwrap().last().unwrap()["unix_millis"].as_u64().unwrap();
    let newer = samples(&format!("?after={last}"));
    let newer = newer["samples"].as_array().unwrap();
    assert!(newer.iter().all(|sample| sample["unix_millis"].as_u64().unwrap() > last), "{newer:?}");
    assert!(newer.len() < 360, "not all of them");
    // A page of somebody else's whose name leads here learns nothing.
    for path in ["/", "/status.json", "/samples.json", "/metrics", "/readyz"] {
        let refused = self::head(&serving, path, "Host: rebound.example\r\n");
        assert!(refused.starts_with("HTTP/1.1 421 "), "{path}: {refused}");
    }
    drop(disk);
    serving.stop();
}

fn head(serving: &Serving, path: &str, headers: &str) -> String {
    let mut stream = connect(serving);
    stream.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().0.to_owned()
}

/// R17: places are few and time is short, and neither is the service's.
#[test]
fn clients_that_hang_are_closed_in_time_and_keep_nobody_from_the_disk() {
    let place = Place::new();
    let mut command = watched(&place, &[]);
    command.env("ASHLAR_METRICS__MAX_CONNECTIONS", "2").env("ASHLAR_METRICS__TIMEOUT", "3s");
    let serving = Serving::start(command);
    let (mut silent, mut half) = (connect(&serving), connect(&serving));
    half.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, MIB).unwrap();
    disk.flush().unwrap();
    assert!(disk.holds(0, 7, MIB));
    // Both places are taken: this one has its turn when the others' time is up.
    assert_eq!(get(&serving, "/metrics").0, 200);
    for stream in [&mut silent, &mut half] {
        // Closed, perhaps with a word of why, or reset.
        let closed = stream.read_to_end(&mut Vec::new());
        assert!(!matches!(&closed, Err(error) if error.kind() == ErrorKind::WouldBlock), "it is still open");
    }
    let mut long = connect(&serving);
    let sent = long.write_all(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    let mut answer = String::new();
    let read = long.read_to_string(&mut answer);
    assert!(sent.is_err() || read.is_err() || !answer.contains(" 200 "), "{answer}");
    assert_eq!(get(&serving, "/nowhere").0, 404);
    assert_eq!(get(&serving, "/").0, 200);
    let mut posting = connect(&serving);
    posting.write_all(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = String::new();
    posting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    drop(disk);
    serving.stop();
}

#[test]
fn who_does_not_show_the_token_learns_only_that_the_process_lives() {
    let place = Place::new();
    std::fs::write(place.path("token"), "0123456789abcdef0123\n").unwrap();
    let mut command = watched(&place, &[]);
    command.env("ASHLAR_METRICS__LISTEN", "0.0.0.0:0").env("ASHLAR_METRICS__TOKEN_FILE", "token");
    let mut serving = Serving::start(command);
    let port = address(&serving).port();
    let ask = |path: &str, header: &str| {
        exchange(&mut TcpStream::connect(("127.0.0.1", port)).unwrap(), path, header).unwrap()
    };
    for path in ["/metrics", "/readyz", "/", "/status.json", "/samples.json", "/nowhere"] {
        for header in
            ["", "Authorization: Bearer 0123456789abcdef0124\r\n", "Authorization: Basic 0123456789abcdef0123\r\n"]
        {
            let (status, body) = ask(path, header);
            assert_eq!((status, body.contains("ashlar_")), (401, false), "{path} {header}");
        }
    }
    assert_eq!(ask("/healthz", ""), (200, "ok\n".to_owned()));
    let (status, page) = ask("/metrics", "Authorization: Bearer 0123456789abcdef0123\r\n");
    assert_eq!((status, page.contains("ashlar_build_info")), (200, true));
    // As a browser shows it: "anybody:0123456789abcdef0123".
    let (status, page) = ask("/", "Authorization: Basic YW55Ym9keTowMTIzNDU2Nzg5YWJjZGVmMDEyMw==\r\n");
    assert_eq!((status, page.contains("<title>ashlar</title>")), (200, true));
    serving.wait_for_log("turned a client of the metrics away");
    serving.stop();
    // The path of the file is no secret, and shown.
    let mut shown = place.command(&["config"]);
    let shown = crate::program::Ended::of(shown.env("ASHLAR_METRICS__TOKEN_FILE", "/run/token"));
    assert!(shown.out.contains("token_file = \"/run/token\""), "{shown:?}");
}

#[test]
fn a_listener_that_anybody_could_reach_is_refused_in_one_sentence() {
    let place = Place::new();
    let refused = |variables: &[(&str, &str)]| {
        let mut command = place.command(&["serve", "--listen", "none"]);
        command.envs(variables.iter().copied());
        let ended = crate::program::Ended::of(&mut command);
        (ended.code, ended.err)
    };
    let (code, said) = refused(&[("ASHLAR_METRICS__LISTEN", "0.0.0.0:10811")]);
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(
        said,
        "ashlar: environment variable ASHLAR_METRICS__LISTEN = \"0.0.0.0:10811\": 0.0.0.0:10811 can be reached from other hosts, and \
         nothing would keep them out: set metrics.token_file, or metrics.tls with a client_ca, or listen on 127.0.0.1\n"
    );
    let (code, said) = refused(&[("ASHLAR_METRICS__LISTEN", "here")]);
    assert!(code == Some(2) && said.contains("accepted is HOST:PORT"), "{said}");
    std::fs::write(place.path("token"), "short\n").unwrap();
    let (code, said) = refused(&[("ASHLAR_METRICS__LISTEN", "127.0.0.1:0"), ("ASHLAR_METRICS__TOKEN_FILE", "token")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("metrics.token_file = token: accepted is a first line of 16 to 1024 visible characters"),
        "{said}"
    );
    let (_, said) =
        refused(&[("ASHLAR_METRICS__LISTEN", "127.0.0.1:0"), ("ASHLAR_METRICS__TLS__CERTIFICATE", "none.pem")]);
    assert!(said.contains("metrics.tls.key: is not set, and TLS needs"), "{said}");
}

fn over_tls(address: SocketAddr, files: &Path, shows: bool) -> std::io::Result<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.join("ca-cert.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shows {
        true => {
            let own = CertificateDer::from_pem_file(files.join("prometheus/client-cert.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(files.join("prometheus/client-key.pem")).unwrap();
            config.with_client_auth_cert(vec![own], key).unwrap()
        }
        false => config.with_no_client_auth(),
    };
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    exchange(&mut stream, "/healthz", "")
}

#[test]
fn with_authorities_only_who_shows_a_certificate_is_answered() {
    let place = Place::new();
    place.ok(&["tls", "init", "tls"]);
    place.ok(&["tls", "client", "tls", "prometheus"]);
    let mut command = watched(&place, &[]);
    for (key, file) in [("CERTIFICATE", "server-cert"), ("KEY", "server-key"), ("CLIENT_CA", "ca-cert")] {
        command.env(format!("ASHLAR_METRICS__TLS__{key}"), format!("tls/{file}.pem"));
    }
    command.env("ASHLAR_METRICS__LISTEN", "0.0.0.0:0");
    let serving = Serving::start(command);
    assert!(serving.welcome.contains("metrics at https://0.0.0.0:"), "{}", serving.welcome);
    let address = SocketAddr::from(([127, 0, 0, 1], address(&serving).port()));
    assert_eq!(over_tls(address, &place.path("tls"), true).unwrap(), (200, "ok\n".to_owned()));
    over_tls(address, &place.path("tls"), false).unwrap_err();
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("ok"));
    serving.stop();
}

#[test]
fn readiness_follows_the_store_and_says_since_when_it_is_away() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let mut command = watched(&place, &["disk0"]);
    command.env("ASHLAR_METRICS__STORE_PATIENCE", "1s");
    let serving = Serving::start(command);
    assert_eq!((get(&serving, "/readyz"), get(&serving, "/healthz").0), ((200, "ok\n".to_owned()), 200));
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    let refused = place.refuse_segments("disk0");
    let flushing = std::thread::spawn(move || disk.flush());
    let said = loop {
        let (status, said) = get(&serving, "/readyz");
        // Whoever else tries the store may be the first to fail.
        if status == 503 && said.contains("1 flush waits") {
            break said;
        }
        assert!(!flushing.is_finished(), "a FLUSH was answered while the store is away");
    };
    assert!(said.starts_with("volume disk0: store ") && said.lines().count() == 1, "{said}");
    let (_, samples) = parse(&get(&serving, "/metrics").1);
    assert!(
        samples["ashlar_store_trouble_seconds"] >= 1.0
            && samples["ashlar_volume_trouble_seconds{volume=\"disk0\"}"] >= 1.0
    );
    assert_eq!(samples["ashlar_volume_flushes_waiting{volume=\"disk0\"}"], 1.0);
    assert!(samples["ashlar_volume_retries_total{volume=\"disk0\"}"] >= 1.0);
    assert_eq!(get(&serving, "/healthz").0, 200, "the process lives all the same");
    refused.accept();
    flushing.join().unwrap().unwrap();
    while get(&serving, "/readyz").0 != 200 {}
    serving.stop();
}

#[test]
fn a_volume_that_another_server_has_makes_this_one_not_ready() {
    let place = Place::new();
    for name in ["mine", "theirs"] {
        place.ok(&["create", name, "--size", "1G"]);
    }
    let other = place.serve(&["theirs", "--state", "other"]);
    let mut command = watched(&place, &["mine", "theirs", "--wait"]);
    command.args(["--state", "this"]);
    let serving = Serving::start(command);
    assert_eq!(get(&serving, "/readyz"), (503, "volume theirs is not open\n".to_owned()));
    let (_, samples) = parse(&get(&serving, "/metrics").1);
    let open = |name: &str| samples[&format!("ashlar_volume_open{{volume=\"{name}\"}}")];
    assert_eq!((open("mine"), open("theirs")), (1.0, 0.0));
    other.stop();
    drop(serving.attach("theirs").unwrap());
    assert_eq!(get(&serving, "/readyz").0, 200);
    serving.stop();
}

#[test]
fn a_volume_that_another_server_took_has_ended() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let serving = Serving::start(watched(&place, &["disk0"]));
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    let other = place.serve(&["disk0", "--takeover", "--state", "other"]);
    disk.flush().unwrap_err();
    let (status, said) = get(&serving, "/readyz");
    assert!(status == 503 && said.starts_with("volume disk0 has ended: ") && said.lines().count() == 1, "{said}");
    let (_, samples) = parse(&get(&serving, "/metrics").1);
    let of = |name: &str| samples[&format!("ashlar_volume_{name}{{volume=\"disk0\"}}")];
    assert_eq!((of("open"), of("ended")), (0.0, 1.0));
    drop(disk);
    other.stop();
    serving.kill();
}
