//! `ashlar serve --replace`: one process takes the place of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;

use crate::program::{Ended, Place, Serving};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

/// Like [`Place::serve`], in place of the server that is there.
fn replacing(place: &Place, args: &[&str]) -> std::process::Command {
    let mut command = place.command(&["serve", "--listen", "none", "--replace"]);
    command.args(args).env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h").env("ASHLAR_SERVE__HANDOFF_TIMEOUT", "2s");
    command
}

fn refused(place: &Place, args: &[&str], words: &str) {
    let ended = Ended::of(&mut replacing(place, args));
    assert!(ended.code.is_some_and(|code| code != 0) && ended.err.contains(words), "{ended:?}");
}

/// Writes one block after the other, and attaches anew whenever the connection ends; what it counts was acknowledged.
fn write_on(place: &Place, stop: &AtomicBool, written: &AtomicU64) {
    let socket = place.path("ashlar-state/ashlar.sock");
    let mut disk = None;
    while !stop.load(Ordering::SeqCst) {
        let Some(attached) = &mut disk else {
            disk = crate::program::attach(&socket, "disk0").ok();
            continue;
        };
        let no = written.load(Ordering::SeqCst);
        match attached.write(no * BLOCK as u64, mark(no), BLOCK) {
            Ok(()) => drop(written.fetch_add(1, Ordering::SeqCst)),
            Err(_) => disk = None,
        }
    }
}

fn mark(no: u64) -> u8 {
    (no % 251) as u8 + 1
}

fn wait_for(written: &AtomicU64, more: u64) {
    let goal = written.load(Ordering::SeqCst) + more;
    while written.load(Ordering::SeqCst) < goal {
        std::thread::yield_now();
    }
}

#[test]
fn a_client_that_writes_while_a_server_is_replaced_loses_nothing() {
    let place = Arc::new(Place::new());
    let first = place.serve(&[]);
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = std::thread::spawn({
        let (place, stop, written) = (Arc::clone(&place), Arc::clone(&stop), Arc::clone(&written));
        move || write_on(&place, &stop, &written)
    });
    wait_for(&written, 50);
    let second = Serving::start(replacing(&place, &[]));
    let (code, log) = first.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("another process takes the place of this one") && log.contains("everything is in the store"),
        "{log}"
    );
    wait_for(&written, 50);
    // And once more, without a word from the one that is replaced: the third finds its journal.
    second.kill();
    let third = Serving::start(replacing(&place, &[]));
    wait_for(&written, 50);
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    let mut disk = third.attach("disk0").unwrap();
    for no in 0..written.load(Ordering::SeqCst) {
        assert!(disk.holds(no * BLOCK as u64, mark(no), BLOCK), "block {no}");
    }
    third.stop();
    assert!(place.ok(&["check", "--data"]).starts_with("disk0: clean"));
}

#[test]
fn a_server_that_cannot_leave_goes_on_and_the_new_one_gives_up() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 1, MIB).unwrap();
    disk.flush().unwrap();

    // Segments cannot be written, the rest can be read.
    let segments = place.refuse_segments("disk0");
    disk.write(0, 2, MIB).unwrap();
    refused(&place, &[], "goes on: not everything that was written is in the store within serve.handoff_timeout (2s)");
    disk.write(MIB as u64, 3, MIB).unwrap();
    segments.accept();
    disk.flush().unwrap();
    drop(disk);

    // It does not even answer.
    serving.signal(Signal::STOP);
    refused(&place, &[], "the server on state directory ./ashlar-state does not answer");
    serving.signal(Signal::CONT);
    let mut disk = serving.attach("disk0").unwrap();
    assert!(disk.holds(0, 2, MIB) && disk.holds(MIB as u64, 3, MIB));
    serving.stop();
}

#[test]
fn a_process_that_could_not_serve_takes_nobodys_place() {
    let place = Place::new();
    place.ok(&["create", "mine", "--size", "1G"]);
    let serving = place.serve(&["mine"]);
    let mut disk = serving.attach("mine").unwrap();
    for (args, words) in [
        (&["typo"][..], "there is no volume \"typo\""),
        (&["mine", "--store", "file://elsewhere"], "--replace is for the same store"),
        (&["mine", "--socket", "none"], "give at least one of them"),
    ] {
        refused(&place, args, words);
        disk.write(0, 1, BLOCK).unwrap();
        disk.flush().unwrap();
    }
    serving.stop();
    // Nobody is there to be replaced.
    let serving = Serving::start(replacing(&place, &["mine"]));
    assert!(serving.attach("mine").unwrap().holds(0, 1, BLOCK));
    serving.stop();
}
