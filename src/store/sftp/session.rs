//! One session of SFTP, version 3: a child process `ssh`, requests over its pipes, many at a time.
//!
//! The codec is `openssh-sftp-client-lowlevel`'s; bodies go from the caller's parts to the pipe without a copy. One task owns the
//! process and both ends of the talk, and ends with a reason, which everybody who waits for an answer then gets.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openssh_sftp_client_lowlevel::{
    CreateFlags, Data, Error as Sftp, Extensions, FileAttrs, FileType, HandleOwned, Id, OpenOptions, Permissions,
    Queue, ReadEnd, SftpErrorKind, WriteEnd, connect,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::progress::Progress;
use super::super::{ErrorKind, StoreError};
use super::address::Address;
use super::options::SftpOptions;
use super::ssh;
use crate::outside::panics;

/// Bytes of one READ or WRITE where the server does not say what it takes: every server takes as many.
const PIECE_BYTES: u32 = 32 << 10;

/// Bytes of one READ or WRITE, at most, whatever the server takes.
const PIECE_BYTES_MAX: u32 = 256 << 10;

/// READs or WRITEs of one file under way at once.
const PIECES: usize = 16;

/// Bytes that are read from the connection at once, at most.
const RECEIVE_BYTES: NonZeroUsize = NonZeroUsize::new(64 << 10).unwrap();

/// Bytes of the last words of `ssh` that are kept.
const WORDS_BYTES: usize = 4 << 10;

/// How long `ssh` may take to end, and to say why, once the talk is over.
const GRACE: Duration = Duration::from_secs(1);

/// Where temporary objects are put together: a buffer that the codec could be given; we give it none.
type Ends = WriteEnd<BytesMut, Outgoing>;

/// A result of one request.
pub type Answer<T> = Result<T, Failure>;

/// Why a request failed: what SFTP tells apart, which is little.
#[derive(Clone, Debug)]
pub enum Failure {
    /// There is no such file, or no such way to it.
    Absent,
    /// Not for this user.
    Refused,
    /// Anything else: the name is taken, the disk is full or read-only, a directory is in the way.
    Unspecific(String),
    /// The server cannot do that, or not with this name.
    Unsupported(String),
    /// There was no answer.
    Lost(StoreError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Absent => f.write_str("there is no such file"),
            Failure::Refused => f.write_str("permission denied"),
            Failure::Unspecific(said) => write!(
                f,
                "{said:?}, with which SFTP also says that a disk or a quota is full, or that a filesystem is read-only"
            ),
            Failure::Unsupported(said) => write!(f, "the server cannot do that ({said:?})"),
            Failure::Lost(error) => error.fmt(f),
        }
    }
}

/// An open session. The process ends with the last owner.
pub struct Session {
    ends: Ends,
    extensions: Extensions,
    read_bytes: u32,
    write_bytes: u32,
    progress: Progress,
    stall: Duration,
    /// Nothing while it lasts; then why it ended.
    end: watch::Receiver<Option<StoreError>>,
    task: Task,
}

/// The task that owns the process.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What waits to be sent. A message goes out as a whole, whoever else sends at the same time.
#[derive(Debug)]
pub struct Outgoing(mpsc::UnboundedSender<Vec<Bytes>>);

impl Queue for Outgoing {
    fn push(&self, bytes: Bytes) {
        // If nobody sends any more, whoever waits for the answer is told why.
        let _ = self.0.send(vec![bytes]);
    }

    fn extend(&self, header: Bytes, body: &[&[Bytes]]) {
        let body = body.iter().flat_map(|parts| parts.iter().cloned());
        let _ = self.0.send(std::iter::once(header).chain(body).collect());
    }
}

impl Session {
    /// Connects, which may take `connect_timeout`.
    pub async fn connect(address: &Address, options: &SftpOptions) -> Result<Arc<Session>, StoreError> {
        let child = ssh::start(address, options)?;
        let limit = options.connect_timeout;
        let late = || {
            let limit = humantime::format_duration(limit);
            ssh::ending(address, "", &format!("not connected after {limit} (store.sftp.connect_timeout)"))
        };
        timeout(limit, Session::greet(child, address, options)).await.map_err(|_| late())?
    }

    async fn greet(mut child: Child, address: &Address, options: &SftpOptions) -> Result<Arc<Session>, StoreError> {
        let broken = |what: &str| ssh::ending(address, "", what);
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { return Err(broken("ssh has no pipes")) };
        let (send, outgoing) = mpsc::unbounded_channel();
        let ends: Ends = connect(Outgoing(send), ()).map_err(|error| broken(&error.to_string()))?;
        let read_end = ReadEnd::new(stdout, RECEIVE_BYTES, (*ends).clone());
        let (greeting, greeted) = oneshot::channel();
        let (ended, end) = watch::channel(None);
        let progress = Progress::begin();
        let talk = Talk { child, stdin, stderr, outgoing, read_end, greeting, progress: progress.clone() };
        let address = address.clone();
        let task = Task(tokio::spawn(async move {
            let why = talk.run(&address).await;
            ended.send_replace(Some(why));
        }));
        let stall = options.stall_timeout;
        let (read_bytes, write_bytes, extensions) = (PIECE_BYTES, PIECE_BYTES, Extensions::empty());
        let mut session = Session { ends, extensions, read_bytes, write_bytes, progress, stall, end, task };
        session.extensions = match greeted.await {
            Ok(extensions) => extensions,
            Err(_) => return Err(session.reason().await),
        };
        if session.extensions.contains(Extensions::LIMITS) {
            let limits = session.ask(Ends::send_limits_request).await.map_err(|failure| match failure {
                Failure::Lost(error) => error,
                failure => StoreError::new(ErrorKind::Retryable, format!("the server's limits are unknown: {failure}")),
            })?;
            // 0 is "no limit", and what a server is sure to take.
            let bounded = |most: u64| if most == 0 { PIECE_BYTES } else { most.min(PIECE_BYTES_MAX.into()) as u32 };
            (session.read_bytes, session.write_bytes) = (bounded(limits.read_len), bounded(limits.write_len));
        }
        Ok(Arc::new(session))
    }

    /// Whether the server can make files durable.
    pub fn syncs(&self) -> bool {
        self.extensions.contains(Extensions::FSYNC)
    }

    /// Whether the server has hard links.
    pub fn links(&self) -> bool {
        self.extensions.contains(Extensions::HARDLINK)
    }

    /// Whether nothing can be asked any more.
    pub fn is_over(&self) -> bool {
        self.task.0.is_finished() || self.end.borrow().is_some()
    }

    /// Why it is over, once it is.
    async fn reason(&self) -> StoreError {
        let ended = self.end.clone().wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        ended.unwrap_or_else(|| StoreError::new(ErrorKind::Retryable, "the SFTP connection was given up"))
    }

    /// Sends a request, and waits for its answer, but not without progress.
    async fn ask<T, F, W>(&self, send: F) -> Answer<T>
    where
        F: FnOnce(&mut Ends, Id<BytesMut>) -> Result<W, Sftp>,
        W: Waits<T>,
    {
        self.wait(self.send(send)?).await
    }

    fn send<W>(&self, send: impl FnOnce(&mut Ends, Id<BytesMut>) -> Result<W, Sftp>) -> Answer<W> {
        let mut ends = self.ends.clone();
        let id = ends.create_response_id();
        send(&mut ends, id).map_err(|error| self.failure(error))
    }

    async fn wait<T>(&self, sent: impl Waits<T>) -> Answer<T> {
        let answered = async {
            tokio::select! {
                biased;
                answer = sent.answer() => answer.map_err(|error| self.failure(error)),
                why = self.reason() => Err(Failure::Lost(why)),
            }
        };
        match self.progress.watch(self.stall, answered).await {
            Some(answer) => answer,
            None => {
                // What else was asked here waits as vainly.
                self.task.0.abort();
                let stall = humantime::format_duration(self.stall);
                let message = format!("nothing sent or received over SFTP for {stall}");
                Err(Failure::Lost(StoreError::new(ErrorKind::Retryable, message)))
            }
        }
    }

    fn failure(&self, error: Sftp) -> Failure {
        match error {
            Sftp::SftpError(kind, said) => {
                let said = said.get().0.chars().filter(|c| !c.is_control()).take(200).collect();
                match kind {
                    SftpErrorKind::NoSuchFile => Failure::Absent,
                    SftpErrorKind::PermDenied => Failure::Refused,
                    SftpErrorKind::OpUnsupported | SftpErrorKind::BadMessage => Failure::Unsupported(said),
                    _ => Failure::Unspecific(said),
                }
            }
            error => {
                let message = format!("an answer over SFTP makes no sense: {error}");
                Failure::Lost(StoreError::new(ErrorKind::Retryable, message))
            }
        }
    }

    /// Makes a file that is not there yet.
    pub async fn create(self: &Arc<Self>, path: &str) -> Answer<File> {
        let request = |ends: &mut Ends, id| {
            let mut attrs = FileAttrs::new();
            attrs.set_permissions(
                Permissions::READ_BY_OWNER
                    | Permissions::WRITE_BY_OWNER
                    | Permissions::READ_BY_GROUP
                    | Permissions::READ_BY_OTHER,
            );
            let options = OpenOptions::new().read(false).write(true);
            ends.send_open_file_request(id, options.create(named(path), CreateFlags::Excl, attrs))
        };
        let handle = self.ask(request).await?;
        Ok(File { session: self.clone(), handle })
    }

    /// Opens a file, or a directory in order to sync it, for reading.
    pub async fn open(self: &Arc<Self>, path: &str) -> Answer<File> {
        let request =
            |ends: &mut Ends, id| ends.send_open_file_request(id, OpenOptions::new().read(true).open(named(path)));
        let handle = self.ask(request).await?;
        Ok(File { session: self.clone(), handle })
    }

    /// Gives a file one more name, unless that is taken.
    pub async fn link(&self, old: &str, new: &str) -> Answer<()> {
        self.ask(|ends, id| ends.send_hardlink_request(id, named(old), named(new))).await
    }

    /// Gives a file another name, unless that is taken: RENAME of version 3, not that of POSIX.
    pub async fn rename(&self, old: &str, new: &str) -> Answer<()> {
        self.ask(|ends, id| ends.send_rename_request(id, named(old), named(new))).await
    }

    /// Removes a file.
    pub async fn remove(&self, path: &str) -> Answer<()> {
        self.ask(|ends, id| ends.send_remove_request(id, named(path))).await
    }

    /// Asks to remove a file, and does not wait for the answer.
    pub fn remove_some_time(&self, path: &str) {
        let _ = self.send(|ends, id| ends.send_remove_request(id, named(path)));
    }

    /// Makes a directory in one that is there.
    pub async fn make_directory(&self, path: &str) -> Answer<()> {
        self.ask(|ends, id| ends.send_mkdir_request(id, named(path), FileAttrs::new())).await
    }

    /// Removes a directory, if it is empty.
    pub async fn remove_directory(&self, path: &str) -> Answer<()> {
        self.ask(|ends, id| ends.send_rmdir_request(id, named(path))).await
    }

    /// What is at a path, without following links.
    pub async fn look(&self, path: &str) -> Answer<Found> {
        Ok(Found::of(&self.ask(|ends, id| ends.send_lstat_request(id, named(path))).await?))
    }

    /// The entries of a directory, in no order, without `.` and `..`; those whose names are no text are left out.
    pub async fn names(self: &Arc<Self>, path: &str) -> Answer<Vec<(String, Found)>> {
        let handle = self.ask(|ends, id| ends.send_opendir_request(id, named(path))).await?;
        let directory = File { session: self.clone(), handle };
        let mut names = Vec::new();
        loop {
            let some = self.ask(|ends, id| ends.send_readdir_request(id, Cow::Borrowed(&*directory.handle))).await?;
            if some.is_empty() {
                return Ok(names);
            }
            let name = |path: &Path| path.to_str().filter(|name| !matches!(*name, "." | "..")).map(str::to_owned);
            names.extend(some.iter().filter_map(|entry| Some((name(&entry.filename)?, Found::of(&entry.attrs)))));
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("extensions", &self.extensions).finish_non_exhaustive()
    }
}

fn named(path: &str) -> Cow<'_, Path> {
    Cow::Borrowed(Path::new(path))
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Bytes.
    pub size: u64,
    /// Whether it is a plain file, or a directory; `None` if the server did not say.
    pub is_directory: Option<bool>,
    /// Whether it is neither.
    pub is_special: bool,
    /// When it was last changed, in seconds since 1970 by the server's clock.
    pub changed: Option<u64>,
}

impl Found {
    fn of(attrs: &FileAttrs) -> Found {
        let kind = attrs.get_filetype();
        Found {
            size: attrs.get_size().unwrap_or_default(),
            is_directory: match kind {
                Some(FileType::Directory) => Some(true),
                Some(_) => Some(false),
                None => None,
            },
            is_special: kind.is_some_and(|kind| !matches!(kind, FileType::Directory | FileType::RegularFile)),
            changed: attrs.get_time().map(|(_, changed)| changed.into_raw().into()),
        }
    }
}

/// An open file; closed with it.
pub struct File {
    session: Arc<Session>,
    handle: HandleOwned,
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = self.session.send(|ends, id| ends.send_close_request(id, Cow::Borrowed(&*self.handle)));
    }
}

impl File {
    fn handle(&self) -> Cow<'_, openssh_sftp_client_lowlevel::Handle> {
        Cow::Borrowed(&*self.handle)
    }

    /// Writes the parts, joined, from the beginning; and makes them durable, if `syncs`. That is asked at once: what concerns one file is done
    /// in the order in which it was asked.
    pub async fn write(&self, body: &[Bytes], syncs: bool) -> Answer<()> {
        let (session, mut offset) = (&self.session, 0);
        let mut under_way = VecDeque::with_capacity(PIECES);
        for piece in pieces(body, session.write_bytes as usize) {
            if under_way.len() == PIECES
                && let Some(oldest) = under_way.pop_front()
            {
                session.wait(oldest).await?;
            }
            let len: usize = piece.iter().map(Bytes::len).sum();
            let write = |ends: &mut Ends, id| ends.send_write_request_zero_copy(id, self.handle(), offset, &piece);
            under_way.push_back(session.send(write)?);
            offset += len as u64;
        }
        let sync = |ends: &mut Ends, id| ends.send_fsync_request(id, self.handle());
        let synced = if syncs { Some(session.send(sync)?) } else { None };
        for asked in under_way.into_iter().chain(synced) {
            session.wait(asked).await?;
        }
        Ok(())
    }

    /// Makes it durable.
    pub async fn sync(&self) -> Answer<()> {
        self.session.ask(|ends, id| ends.send_fsync_request(id, self.handle())).await
    }

    /// What it is.
    pub async fn look(&self) -> Answer<Found> {
        Ok(Found::of(&self.session.ask(|ends, id| ends.send_fstat_request(id, self.handle())).await?))
    }

    /// The bytes of `range`, cut at the end of the file. Servers may answer a READ with less than was asked: only EOF is the end.
    pub async fn read(&self, range: Range<u64>) -> Answer<Bytes> {
        let session = &self.session;
        let mut whole = BytesMut::new();
        let mut under_way = VecDeque::with_capacity(PIECES);
        let mut asked = range.start;
        loop {
            while under_way.len() < PIECES && asked < range.end {
                let len = (range.end - asked).min(session.read_bytes.into());
                under_way.push_back((self.ask_for(asked, len)?, asked, len));
                asked += len;
            }
            let Some((sent, from, len)) = under_way.pop_front() else { return Ok(whole.freeze()) };
            let Some(came) = session.wait(sent).await?.bytes() else { return Ok(whole.freeze()) };
            if came.is_empty() || came.len() as u64 > len {
                let message = format!("{} bytes came over SFTP for {len} that were asked", came.len());
                return Err(Failure::Lost(StoreError::new(ErrorKind::Retryable, message)));
            }
            whole.extend_from_slice(&came);
            let missing = len - came.len() as u64;
            if missing > 0 {
                let from = from + came.len() as u64;
                under_way.push_front((self.ask_for(from, missing)?, from, missing));
            }
        }
    }

    fn ask_for(&self, from: u64, len: u64) -> Answer<openssh_sftp_client_lowlevel::AwaitableData<BytesMut>> {
        self.session.send(|ends, id| ends.send_read_request(id, self.handle(), from, len as u32, None))
    }
}

/// The parts of a body, in pieces of `bytes`, without empty ones.
fn pieces(body: &[Bytes], bytes: usize) -> Vec<Vec<Bytes>> {
    let mut pieces: Vec<Vec<Bytes>> = Vec::new();
    let mut room = 0;
    for part in body {
        let mut part = part.clone();
        while !part.is_empty() {
            if room == 0 {
                pieces.push(Vec::new());
                room = bytes;
            }
            let taken = part.split_to(part.len().min(room));
            room -= taken.len();
            pieces.last_mut().into_iter().for_each(|piece| piece.push(taken.clone()));
        }
    }
    pieces
}

/// What a READ brought.
trait Brought {
    /// Nothing at the end of the file.
    fn bytes(self) -> Option<Bytes>;
}

impl Brought for Data<BytesMut> {
    fn bytes(self) -> Option<Bytes> {
        match self {
            Data::Buffer(buffer) => Some(buffer.freeze()),
            Data::AllocatedBox(bytes) => Some(bytes.into()),
            Data::Eof => None,
        }
    }
}

/// A request that was sent.
trait Waits<T> {
    fn answer(self) -> impl Future<Output = Result<T, Sftp>> + Send;
}

macro_rules! waits {
    ($($sent:ident: $answer:ty),*) => {$(
        impl Waits<$answer> for openssh_sftp_client_lowlevel::$sent<BytesMut> {
            async fn answer(self) -> Result<$answer, Sftp> {
                self.wait().await.map(|(_, answer)| answer)
            }
        }
    )*};
}
waits!(
    AwaitableStatus: (),
    AwaitableHandle: HandleOwned,
    AwaitableData: Data<BytesMut>,
    AwaitableAttrs: FileAttrs,
    AwaitableNameEntries: Box<[openssh_sftp_client_lowlevel::NameEntry]>,
    AwaitableLimits: openssh_sftp_client_lowlevel::Limits
);

/// What the task of a session owns.
struct Talk {
    child: Child,
    stdin: ChildStdin,
    stderr: ChildStderr,
    outgoing: mpsc::UnboundedReceiver<Vec<Bytes>>,
    read_end: ReadEnd<ChildStdout, BytesMut, Outgoing>,
    greeting: oneshot::Sender<Extensions>,
    progress: Progress,
}

impl Talk {
    /// Talks until it is over; why it is.
    async fn run(self, address: &Address) -> StoreError {
        let Talk { mut child, stdin, mut stderr, outgoing, read_end, greeting, progress } = self;
        let mut said = Vec::new();
        let cause = {
            // The codec panics on lengths that cannot be; a strange server must not take the process with it.
            let received = panics::contain(receive(read_end, greeting, progress.clone()));
            let talked = async {
                tokio::select! {
                    received = received => received.unwrap_or_else(|_| "an answer makes no sense".to_owned()),
                    sent = send(stdin, outgoing, progress) => sent,
                }
            };
            tokio::pin!(talked);
            let mut is_silent = false;
            loop {
                let mut more = [0; 512];
                tokio::select! {
                    cause = &mut talked => break cause,
                    heard = stderr.read(&mut more), if !is_silent => match heard {
                        Ok(len @ 1..) => keep(&mut said, &more[..len]),
                        _ => is_silent = true,
                    },
                }
            }
        };
        // Both pipes are closed now. It says why on its way out.
        let _ = timeout(GRACE, async {
            let mut more = [0; 512];
            while let Ok(len @ 1..) = stderr.read(&mut more).await {
                keep(&mut said, &more[..len]);
            }
            child.wait().await
        })
        .await;
        ssh::ending(address, &String::from_utf8_lossy(&said), &cause)
    }
}

/// Keeps the last of what was said.
fn keep(said: &mut Vec<u8>, more: &[u8]) {
    said.extend_from_slice(more);
    said.drain(..said.len().saturating_sub(WORDS_BYTES));
}

/// Reads answers until there are no more; why.
async fn receive(
    mut read_end: ReadEnd<ChildStdout, BytesMut, Outgoing>,
    greeting: oneshot::Sender<Extensions>,
    progress: Progress,
) -> String {
    match read_end.receive_server_hello().await {
        Ok(extensions) => drop(greeting.send(extensions)),
        Err(error) => return over(&error),
    }
    loop {
        if let Err(error) = read_end.read_in_one_packet().await {
            return over(&error);
        }
        progress.mark();
    }
}

/// Why no answer can be read any more.
fn over(error: &Sftp) -> String {
    match error {
        Sftp::IOError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => "the connection ended".to_owned(),
        Sftp::SftpServerHelloMsgTooLong { .. } => {
            "what came is no SFTP; does a start-up file of the shell there print something?".to_owned()
        }
        error => error.to_string(),
    }
}

/// Sends what is to be sent, until that fails; why.
async fn send(mut stdin: ChildStdin, mut outgoing: mpsc::UnboundedReceiver<Vec<Bytes>>, progress: Progress) -> String {
    while let Some(message) = outgoing.recv().await {
        for mut part in message {
            let mut is_begun = false;
            while !part.is_empty() {
                if stdin.write_buf(&mut part).await.is_err() {
                    // The other pipe says it better.
                    std::future::pending::<()>().await;
                }
                // What the pipe takes at once says nothing of the connection; that it had room again, does.
                if is_begun {
                    progress.mark();
                }
                is_begun = true;
            }
        }
    }
    "nobody asks any more".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_cut_into_pieces_without_copying() {
        let body: Vec<Bytes> = [&b""[..], b"0123456", b"", b"7", b"89abcdefghij", b""].map(Bytes::from_static).to_vec();
        let cut = |bytes| -> Vec<Vec<u8>> { pieces(&body, bytes).iter().map(|piece| piece.concat()).collect() };
        assert_eq!(cut(8), [&b"01234567"[..], b"89abcdef", b"ghij"]);
        assert_eq!(cut(5), [&b"01234"[..], b"56789", b"abcde", b"fghij"]);
        assert_eq!(cut(100).concat(), b"0123456789abcdefghij");
        assert!(pieces(&body[..1], 5).is_empty());
        let first = &pieces(&body, 100)[0][0];
        assert_eq!(first.as_ptr(), body[1].as_ptr());
    }

    #[test]
    fn only_the_last_words_are_kept() {
        let mut said = Vec::new();
        for n in 0..10_000u32 {
            keep(&mut said, format!("{n}\n").as_bytes());
        }
        assert!(said.len() == WORDS_BYTES && said.ends_with(b"9998\n9999\n"));
    }
}
