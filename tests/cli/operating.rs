//! What an operator sees and does while a server runs: clients.

use serde_json::Value;

use crate::program::Place;

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
