//! `ashlar top`: the status on a terminal.

use std::fs::File;
use std::io::{Read, Write};

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::program::{Place, Serving, on_a_terminal};

const MIB: usize = 1 << 20;

fn serving(place: &Place) -> Serving {
    place.ok(&["create", "disk0", "--size", "1G"]);
    place.serve(&["disk0"])
}

#[test]
fn one_screen_says_what_the_status_says() {
    let place = Place::new();
    let serving = serving(&place);
    let mut disk = serving.attach("disk0").unwrap();
    disk.write(0, 7, MIB).unwrap();
    let screen = place.ok(&["top", "--once", "--interval", "100ms"]);
    let status: Value = serde_json::from_str(&place.ok(&["status", "--json"])).unwrap();
    for text in ["pid", "store", "store_health"] {
        let said = status[text].as_str().map_or_else(|| status[text].to_string(), str::to_owned);
        // What is long is cut at the edge of the screen.
        let shown = &said[..said.len().min(30)];
        assert!(screen.contains(shown), "{text} = {said}: {screen}");
    }
    let row = screen.lines().find(|line| line.starts_with("disk0")).unwrap();
    assert!(row.contains("1.0 MiB") && row.ends_with(" 1"), "dirty bytes and clients: {row}");
    assert!(!screen.contains('\u{1b}'), "nothing controls a terminal: {screen:?}");
    drop(disk);
    serving.stop();
}

#[test]
fn without_a_terminal_or_a_server_it_says_what_to_do() {
    let place = Place::new();
    let ended = place.run(&["top"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("`ashlar top --once` prints one screen"), "{ended:?}");
    let ended = place.run(&["top", "--once"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("no server runs on state directory"), "{ended:?}");
}

/// What a terminal shows, until that is there.
fn read_until(screen: &mut File, shown: &mut String, words: &str) {
    let mut buffer = [0; 4096];
    while !shown.contains(words) {
        let read = screen.read(&mut buffer).unwrap();
        shown.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

fn resize(screen: &File, columns: u16, rows: u16, pid: u32) {
    tcsetwinsize(screen, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    // It is not this terminal's foreground job, so the kernel tells nobody.
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::WINCH).unwrap();
}

#[test]
fn on_a_terminal_it_goes_on_takes_another_size_and_gives_the_terminal_back() {
    let place = Place::new();
    let serving = serving(&place);
    let (mut child, mut screen) = on_a_terminal(place.command(&["top", "--interval", "100ms"]));
    // Nothing has a size yet, as on a serial line.
    let mut shown = String::new();
    read_until(&mut screen, &mut shown, "\u{1b}[?1049h");
    resize(&screen, 80, 24, child.id());
    read_until(&mut screen, &mut shown, "STORED");
    read_until(&mut screen, &mut shown, "q quits");
    assert!(!shown.contains("A MONTH"), "that needs more columns");
    resize(&screen, 140, 40, child.id());
    read_until(&mut screen, &mut shown, "A MONTH");
    serving.kill();
    read_until(&mut screen, &mut shown, "NO ANSWER");
    assert!(!tcgetattr(&screen).unwrap().local_modes.contains(LocalModes::ECHO));
    screen.write_all(b"q").unwrap();
    let mut rest = Vec::new();
    // Reading fails once nobody has the terminal any more.
    let _ = screen.read_to_end(&mut rest);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(String::from_utf8_lossy(&rest).contains("\u{1b}[?1049l"), "the screen before is back");
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let place = Place::new();
    let serving = serving(&place);
    let (mut child, mut screen) = on_a_terminal(place.command(&["top"]));
    read_until(&mut screen, &mut String::new(), "\u{1b}[?1049h");
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::TERM).unwrap();
    let mut rest = Vec::new();
    let _ = screen.read_to_end(&mut rest);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(String::from_utf8_lossy(&rest).contains("\u{1b}[?1049l"), "the screen before is back");
    serving.stop();
}

/// A server that has no volume open costs nothing, and not minus nothing.
#[test]
fn nothing_costs_nothing() {
    let place = Place::new();
    let serving = place.serve(&[]);
    let shown = place.ok(&["top", "--once"]);
    assert!(shown.contains("a month $0.00") && !shown.contains("$-"), "{shown}");
    serving.stop();
}
