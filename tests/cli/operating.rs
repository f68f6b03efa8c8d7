//! What an operator sees and does while a server runs: clients, and a store that is away.

use serde_json::Value;

use crate::program::{Ended, Place, Serving};

const MIB: usize = 1 << 20;

fn status(place: &Place) -> Value {
    serde_json::from_str(&place.ok(&["status", "--json"])).unwrap()
}

#[test]
fn clients_are_listed_and_evicted() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    let client = &status(&place)["clients"][0];
    assert_eq!((&client["export"], &client["bytes_in_flight"]), (&"disk0".into(), &0.into()));
    assert!(client["requests"].as_u64() >= Some(1) && client["since_unix_millis"].as_u64() > Some(0), "{client}");
    let address = client["address"].as_str().unwrap();
    let text = place.ok(&["status"]);
    assert!(text.contains("CLIENT ") && text.contains(address), "{text}");

    let ended = place.run(&["evict", "disk0", "10.0.0.5"]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(
        ended.err,
        "ashlar: volume disk0 has no client from 10.0.0.5 on this server; `ashlar status` lists the clients\n"
    );
    disk.write(0, 2, MIB).unwrap();
    assert_eq!(place.ok(&["evict", "disk0"]), format!("evicted {address}\n"));
    assert!(disk.write(0, 3, MIB).is_err());
    // What it wrote is there, and it may come back.
    assert!(serving.attach("disk0").unwrap().holds(0, 2, MIB));
    serving.stop();
    assert!(place.run(&["evict", "disk0"]).err.contains("no server runs on state directory ./ashlar-state"));
}

/// E2: a FLUSH waits while the store is away, and succeeds by itself when it is back.
#[test]
fn status_says_what_is_wrong_with_the_store_since_when_and_who_waits() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    assert_eq!(status(&place)["store_trouble"], Value::Null);
    let refused = place.refuse_segments("disk0");
    let flushing = std::thread::spawn(move || disk.flush());
    let trouble = loop {
        let trouble = status(&place)["volumes"][0]["store_trouble"].take();
        if trouble["flushes_waiting"] == 1 {
            break trouble;
        }
    };
    let sentence = trouble["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("store unusable since 20") && sentence.contains("), 1 flush waits: "), "{sentence}");
    assert_eq!(sentence.matches("/segments/").count(), 1, "{sentence}");
    assert!(sentence.ends_with(trouble["what"].as_str().unwrap()), "{sentence}");
    assert!(trouble["since_unix_millis"].as_u64() > Some(1 << 40), "{trouble}");
    assert_eq!(status(&place)["store_trouble"]["flushes_waiting"], 1);
    let text = place.ok(&["status"]);
    assert!(text.matches("store unusable since 20").count() == 2 && text.contains("flushes waiting  1"), "{text}");

    refused.accept();
    flushing.join().unwrap().unwrap();
    let status = status(&place);
    assert_eq!((&status["store_trouble"], &status["volumes"][0]["flushes_waiting"]), (&Value::Null, &0.into()));
    serving.stop();
}

#[test]
fn status_says_what_is_left_of_a_budget_and_whose_prices_count() {
    let place = Place::new();
    place.ok(&["create", "disk0", "--size", "1G"]);
    let mut command = place.command(&["serve", "--listen", "none", "disk0"]);
    command.env("ASHLAR_BUDGET__DOLLARS_PER_DAY", "100").env("ASHLAR_PRICES__GET_THOUSAND", "0");
    // An hour's worth of it are eight PUTs, and one more goes through before it is known to be spent.
    command.env("ASHLAR_BUDGET__VOLUME__DOLLARS_PER_DAY", "0.001");
    let serving = Serving::start(command);
    let mut disk = serving.attach("disk0").unwrap();
    for n in 0..9 {
        disk.write(0, n, MIB).unwrap();
        disk.flush().unwrap();
    }
    let said = status(&place);
    let left = &said["volumes"][0]["budget"][0];
    assert_eq!((&left["key"], &left["thrift"]), (&"budget.volume.dollars_per_day".into(), &"spent".into()));
    let left = &said["budget"][0];
    assert_eq!((&left["allowed"], &left["thrift"]), (&100.0.into(), &"free".into()));
    let prices = said["cost"]["prices"].as_str().unwrap();
    assert!(
        prices.starts_with("amazon-s3-standard, as of 2") && prices.ends_with("[prices] says otherwise"),
        "{prices}"
    );
    let text = place.ok(&["status"]);
    assert!(text.contains("budget.dollars_per_day = 100: 100 % of what can be saved up is left\n"), "{text}");
    assert!(text.contains("budget.volume.dollars_per_day = 0.001 is spent: writes wait"), "{text}");
    serving.stop();
}

/// As of a filesystem that is unmounted under a server and mounted again: below it is an empty directory, into which a FLUSH must not
/// succeed, and which is no empty store.
#[test]
fn a_store_of_which_the_mount_vanishes_is_away_and_not_made_anew() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    disk.flush().unwrap();
    std::fs::rename(place.path("ashlar-data"), place.path("away")).unwrap();
    std::fs::create_dir(place.path("ashlar-data")).unwrap();
    disk.write(0, 2, MIB).unwrap();
    let flushing = std::thread::spawn(move || disk.flush().map(|()| disk));
    let sentence = loop {
        let mut trouble = status(&place)["volumes"][0]["store_trouble"].take();
        assert!(!flushing.is_finished(), "a FLUSH was answered while the store is away");
        if trouble["flushes_waiting"] == 1 {
            break trouble["sentence"].take();
        }
    };
    let sentence = sentence.as_str().unwrap();
    let store = place.path("ashlar-data");
    let why = format!(
        "the store's directory {} is another one than that which was opened: is its filesystem mounted?",
        store.display()
    );
    assert!(sentence.starts_with("store away since 20") && sentence.ends_with(&why), "{sentence}");
    assert!(std::fs::read_dir(&store).unwrap().next().is_none(), "something was made in the mount point");
    std::fs::remove_dir(&store).unwrap();
    std::fs::rename(place.path("away"), &store).unwrap();
    let mut disk = flushing.join().unwrap().unwrap();
    assert!(disk.holds(0, 2, MIB));
    drop(disk);
    serving.stop();
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean; "));
}

/// A key that had another name is understood in each layer, and the new name is told.
#[test]
fn the_older_key_for_a_store_without_fencing_is_understood() {
    let place = Place::new();
    let mut command = place.command(&["create", "a", "--size", "1G"]);
    let ended = Ended::of(command.env("ASHLAR_STORE__UNSAFE_NO_FENCING", "true"));
    let new_name = "store.unsafe_no_fencing has a new name: write store.fencing = \"unsafe\"";
    assert!(ended.code == Some(0) && ended.err.contains(new_name), "{ended:?}");
    std::fs::write(place.path("ashlar.toml"), "[store]\nunsafe_no_fencing = false\n").unwrap();
    let ended = place.run(&["create", "b", "--size", "1G"]);
    assert!(ended.code == Some(0) && ended.err.contains(new_name), "{ended:?}");
    std::fs::write(place.path("ashlar.toml"), "[store]\nunsafe_no_fence = true\n").unwrap();
    let ended = place.run(&["create", "c", "--size", "1G"]);
    assert!(ended.code == Some(2) && ended.err.contains("there is no such key"), "{ended:?}");
}

/// A volume whose description nobody understands, because it is damaged or of a newer ashlar, keeps nobody from the others.
#[test]
fn a_volume_that_cannot_be_understood_keeps_nobody_from_the_others() {
    let place = Place::new();
    place.ok(&["create", "good", "--size", "1G"]);
    place.ok(&["create", "odd", "--size", "1G"]);
    let descriptions = place.path("ashlar-data/odd/meta");
    let described = std::fs::read_dir(&descriptions).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&described, "no description").unwrap();

    let listed = place.run(&["list"]);
    assert_eq!(listed.code, Some(1), "{listed:?}");
    let line = |name: &str, what: &str| listed.out.lines().any(|line| line.starts_with(name) && line.contains(what));
    assert!(line("good", "1 GiB") && line("odd ", "error") && line("odd: ", "odd/meta/"), "{listed:?}");
    assert!(listed.err.contains("1 of 2 volumes cannot be described"), "{listed:?}");

    let serving = place.serve(&[]);
    assert!(serving.attach("good").unwrap().holds(0, 0, MIB));
    assert!(serving.attach("odd").is_err());
    serving.signal(rustix::process::Signal::TERM);
    let (code, log) = serving.end();
    assert!(code == Some(0) && log.contains("volume odd is not served: "), "{log}");
    // Who names it is told, and gets no server.
    let refused = place.run(&["serve", "good", "odd"]);
    assert!(refused.code == Some(1) && refused.err.contains("odd/meta/"), "{refused:?}");
    place.ok(&["delete", "good", "--yes"]);
}

/// A description that lost its end does not give the name away as long as there is something of the volume.
#[test]
fn a_volume_whose_description_lost_its_end_is_not_made_anew() {
    let place = Place::new();
    place.ok(&["create", "db", "--size", "1G"]);
    let descriptions = place.path("ashlar-data/db/meta");
    let described = std::fs::read_dir(&descriptions).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&described).unwrap();
    // Nothing was written yet: so it looks where a creation broke off.
    std::fs::write(&described, &whole[..20]).unwrap();
    place.ok(&["create", "db", "--size", "1G"]);
    let serving = place.serve(&["db"]);
    serving.attach("db").unwrap().write(0, 1, MIB).unwrap();
    serving.stop();
    for described in std::fs::read_dir(&descriptions).unwrap() {
        let described = described.unwrap().path();
        let whole = std::fs::read(&described).unwrap();
        std::fs::write(&described, &whole[..whole.len().min(20)]).unwrap();
    }
    let refused = place.run(&["create", "db", "--size", "1G"]);
    assert!(refused.code == Some(1) && refused.err.contains("is of a volume of that name"), "{refused:?}");
}
