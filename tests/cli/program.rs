//! Running the program in a directory of its own.

use std::io::{BufRead, BufReader, Lines, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use nbd::client::{NbdClient, handshake};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A working directory, with nothing of the caller's environment in it.
pub struct Place(TempDir);

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The default store's URL, as it is shown.
    pub fn url(&self) -> String {
        format!("file://{}", self.path("ashlar-data").display())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ashlar"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ASHLAR_")) {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::of(&mut self.command(args))
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        ended.out
    }

    /// From now on a volume's segments cannot be written; everything else of the store is as it was.
    pub fn refuse_segments(&self, volume: &str) -> RefusedSegments {
        let info: serde_json::Value = serde_json::from_str(&self.ok(&["info", volume, "--json"])).unwrap();
        let uuid = info["uuid"].as_str().unwrap();
        let segments = self.path(&format!("ashlar-data/{volume}/{}/segments", &uuid[..8]));
        let away = self.path("away");
        std::fs::rename(&segments, &away).unwrap();
        std::fs::write(&segments, "").unwrap();
        RefusedSegments { segments, away }
    }

    /// Starts `ashlar serve` on a Unix socket only, and waits until it serves.
    pub fn serve(&self, args: &[&str]) -> Serving {
        let mut command = self.command(&["serve", "--listen", "none"]);
        // What is written stays in the buffer and the journal until something asks for it.
        command.args(args).env("ASHLAR_VOLUME__WRITEBACK_DELAY", "1h");
        Serving::start(command)
    }
}

impl Ended {
    pub fn of(command: &mut Command) -> Ended {
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// See [`Place::refuse_segments`].
pub struct RefusedSegments {
    segments: PathBuf,
    away: PathBuf,
}

impl RefusedSegments {
    /// They can be written again.
    pub fn accept(self) {
        std::fs::remove_file(&self.segments).unwrap();
        std::fs::rename(&self.away, &self.segments).unwrap();
    }
}

/// A server that runs.
pub struct Serving {
    child: Child,
    /// What it printed until it was ready.
    pub welcome: String,
    _out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Serving {
    pub fn start(command: Command) -> Serving {
        Serving::try_start(command).unwrap_or_else(|(code, said)| panic!("the server ended early: {code:?}\n{said}"))
    }

    /// Starts a server; the exit code and the log of one that ends before it serves.
    pub fn try_start(mut command: Command) -> Result<Serving, (Option<i32>, String)> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut welcome = String::new();
        // The URI of the socket is the last thing that it prints for its one volume.
        while !welcome.contains("nbd+unix://") {
            let Some(line) = out.next() else {
                let err: Vec<String> = err.map_while(Result::ok).collect();
                return Err((child.wait().unwrap().code(), format!("{welcome}{}", err.join("\n"))));
            };
            welcome.push_str(&line.unwrap());
            welcome.push('\n');
        }
        Ok(Serving { child, welcome, _out: out, err })
    }

    /// Starts a server of which nothing is read: it is ready when its socket answers.
    pub fn unread(place: &Place, mut command: Command, out: Stdio, err: Stdio) -> Unread {
        let child = command.stdout(out).stderr(err).spawn().unwrap();
        let mut unread = Unread { child, socket: place.path("ashlar-state/ashlar.sock") };
        while UnixStream::connect(&unread.socket).is_err() {
            assert!(unread.child.try_wait().unwrap().is_none(), "the server ended early");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        unread
    }

    /// Where its socket is.
    pub fn socket(&self) -> PathBuf {
        let line = self.welcome.lines().find_map(|line| line.strip_prefix("listening on /")).unwrap();
        Path::new("/").join(line)
    }

    /// Attaches a volume; an error if the server closes the connection instead.
    pub fn attach(&self, volume: &str) -> std::io::Result<Disk> {
        attach(&self.socket(), volume)
    }

    /// What a client is told of the size of a volume.
    pub fn size_of(&self, volume: &str) -> u64 {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        handshake(&mut stream, volume.as_bytes()).unwrap().size
    }

    /// As [`Serving::attach`], for a client that believes in a size of its own.
    pub fn attach_as_if(&self, volume: &str, size: u64) -> Disk {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut export = handshake(&mut stream, volume.as_bytes()).unwrap();
        export.size = size;
        Disk(NbdClient::new(stream, &export))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Reads its log until a line holds the words.
    pub fn wait_for_log(&mut self, words: &str) -> String {
        self.err.by_ref().map_while(Result::ok).find(|line| line.contains(words)).unwrap()
    }

    /// Signals again and again until it ends: one signal soon after another is not a second wish.
    pub fn insist(&mut self, signal: Signal) {
        while self.child.try_wait().unwrap().is_none() {
            self.signal(signal);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Waits for its end; returns the exit code and the rest of the log.
    pub fn end(mut self) -> (Option<i32>, String) {
        let rest: Vec<String> = self.err.by_ref().map_while(Result::ok).collect();
        let status = self.child.wait().unwrap();
        (status.code(), rest.join("\n"))
    }

    /// The clean stop.
    pub fn stop(self) {
        self.signal(Signal::TERM);
        let (code, log) = self.end();
        assert_eq!(code, Some(0), "{log}");
    }

    /// The sudden death of the process.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Only a test that failed has not ended it yet.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server of which nobody reads what it says.
pub struct Unread {
    child: Child,
    socket: PathBuf,
}

impl Unread {
    /// See [`Serving::attach`].
    pub fn attach(&self, volume: &str) -> std::io::Result<Disk> {
        attach(&self.socket, volume)
    }

    /// What goes into its process's standard error, if that was piped.
    pub fn take_err(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; returns the exit code.
    pub fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // Only a test that failed has not ended it yet.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a client of a test waits for an answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Attaches a volume at a socket; an error if nobody answers, or closes the connection instead.
pub fn attach(socket: &Path, volume: &str) -> std::io::Result<Disk> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let export = handshake(&mut stream, volume.as_bytes())?;
    Ok(Disk(NbdClient::new(stream, &export)))
}

/// An attached volume, by the `nbd` crate's client.
pub struct Disk(NbdClient<UnixStream>);

impl Disk {
    pub fn write(&mut self, offset: u64, byte: u8, len: usize) -> std::io::Result<()> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.write_all(&vec![byte; len])
    }

    pub fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }

    /// Whether the range holds nothing but `byte`.
    pub fn holds(&mut self, offset: u64, byte: u8, len: usize) -> bool {
        let mut data = vec![!byte; len];
        self.0.seek(SeekFrom::Start(offset)).unwrap();
        self.0.read_exact(&mut data).unwrap();
        data.iter().all(|found| *found == byte)
    }
}

/// Starts a command on a terminal of its own; what comes back is its other side, the screen and the keyboard.
pub fn on_a_terminal(mut command: Command) -> (Child, std::fs::File) {
    let terminal = Terminal::open();
    let child = command.stdin(terminal.end()).stdout(terminal.end()).stderr(terminal.end()).spawn().unwrap();
    drop(command);
    (child, terminal.0)
}

/// A terminal: its screen and its keyboard.
pub struct Terminal(std::fs::File);

impl Terminal {
    const FLAGS: rustix::pty::OpenptFlags = rustix::pty::OpenptFlags::RDWR.union(rustix::pty::OpenptFlags::NOCTTY);

    pub fn open() -> Terminal {
        let keyboard = rustix::pty::openpt(Terminal::FLAGS).unwrap();
        rustix::pty::grantpt(&keyboard).unwrap();
        rustix::pty::unlockpt(&keyboard).unwrap();
        Terminal(std::fs::File::from(keyboard))
    }

    /// The side of programs.
    pub fn end(&self) -> Stdio {
        Stdio::from(rustix::pty::ioctl_tiocgptpeer(&self.0, Terminal::FLAGS).unwrap())
    }
}

/// The same command in a session of its own: with that terminal, or without any.
pub fn in_a_session(command: &Command, terminal: Option<&Terminal>) -> Command {
    let mut session = Command::new("setsid");
    if let Some(terminal) = terminal {
        session.arg("--ctty").stdin(terminal.end());
    } else {
        session.stdin(Stdio::null());
    }
    session.arg(command.get_program()).args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => session.env(name, value),
            None => session.env_remove(name),
        };
    }
    session
}
