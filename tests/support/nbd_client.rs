//! An NBD client that does what it is told, right or wrong, for tests of the server.
//!
//! It shares no code with the server: the numbers stand here once more. Nothing waits for ever; what does not come
//! within [`PATIENCE`] fails the test.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(150);

pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
}

pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Types of chunk.
pub mod kind {
    pub const NONE: u16 = 0;
    pub const DATA: u16 = 1;
    pub const HOLE: u16 = 2;
    pub const STATUS: u16 = 5;
    pub const STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = 0x8001;
    pub const ERROR_OFFSET: u16 = 0x8002;
}

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;
pub const PAYLOAD_LEN: u16 = 32;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ESHUTDOWN: u32 = 108;

/// Anything that can be read and written.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The answer to an option.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub reply_type: u32,
    pub data: Vec<u8>,
}

/// A simple reply, without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub error: u32,
    pub cookie: u64,
}

/// A chunk of a structured reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub is_last: bool,
    pub kind: u16,
    pub cookie: u64,
    /// The request's offset, which only an extended header repeats.
    pub offset: Option<u64>,
    pub payload: Vec<u8>,
}

impl Chunk {
    /// The big-endian number of so many bytes at that place of the payload.
    pub fn number(&self, at: usize, bytes: usize) -> u64 {
        self.payload[at..at + bytes].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// The error that it says, with the text, and the offset if there is one.
    pub fn failure(&self) -> (u32, String, Option<u64>) {
        let text_end = 6 + self.number(4, 2) as usize;
        let offset = match self.kind {
            kind::ERROR => {
                assert_eq!(self.payload.len(), text_end);
                None
            }
            kind::ERROR_OFFSET => {
                assert_eq!(self.payload.len(), text_end + 8);
                Some(self.number(text_end, 8))
            }
            other => panic!("type {other:#x} is no error"),
        };
        (self.number(0, 4) as u32, String::from_utf8(self.payload[6..text_end].to_vec()).unwrap(), offset)
    }
}

/// What the server told about the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    pub size: u64,
    pub flags: u16,
}

/// A request as bytes.
pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// A request with an extended header as bytes.
pub fn extended(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = request(flags, command, cookie, offset, 0);
    bytes[..4].copy_from_slice(&0x21e4_1c71_u32.to_be_bytes());
    bytes.truncate(24);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// The data of SET_META_CONTEXT.
pub fn contexts_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let counted = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let queries_bytes: Vec<u8> = queries.iter().flat_map(|query| counted(query)).collect();
    [counted(name), (queries.len() as u32).to_be_bytes().to_vec(), queries_bytes].concat()
}

/// The options that agree on structured replies, or on extended headers, and select `base:allocation`.
pub fn all_options(style: u32, name: &str) -> Vec<u8> {
    [option(style, &[]), select_allocation(name)].concat()
}

fn select_allocation(name: &str) -> Vec<u8> {
    option(opt::SET_META_CONTEXT, &contexts_data(name, &["base:allocation"]))
}

/// An option as bytes.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &option.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// The data of INFO and GO.
pub fn info_data(name: &str, asked: &[u16]) -> Vec<u8> {
    let asked_bytes: Vec<u8> = asked.iter().flat_map(|info| info.to_be_bytes()).collect();
    let count = (asked.len() as u16).to_be_bytes();
    [&(name.len() as u32).to_be_bytes(), name.as_bytes(), &count, &asked_bytes].concat()
}

pub struct Client {
    stream: Box<dyn Stream>,
}

impl Client {
    pub fn new(stream: impl Stream + 'static) -> Client {
        Client { stream: Box::new(stream) }
    }

    /// A client that only sends, and one that only receives, on the same connection.
    pub fn split(self) -> (Client, Client) {
        let (read, write) = tokio::io::split(self.stream);
        (Client::new(tokio::io::join(tokio::io::empty(), write)), Client::new(tokio::io::join(read, tokio::io::sink())))
    }

    /// Through the greeting and the flags.
    pub async fn greet(&mut self) {
        assert_eq!(self.bytes(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&3_u32.to_be_bytes()).await;
    }

    /// Through the whole handshake with structured replies or extended headers, with `base:allocation` and GO.
    pub async fn go_with(&mut self, style: u32, name: &str) -> ExportInfo {
        self.greet().await;
        // One after the other: through a narrow pipe the server answers the first before it reads on.
        self.send(&option(style, &[])).await;
        assert_eq!(self.option_reply().await.reply_type, rep::ACK);
        self.send(&select_allocation(name)).await;
        for expected in [rep::META_CONTEXT, rep::ACK] {
            assert_eq!(self.option_reply().await.reply_type, expected);
        }
        self.only_go(name).await
    }

    /// Through the whole handshake with GO.
    pub async fn go(&mut self, name: &str) -> ExportInfo {
        self.greet().await;
        self.only_go(name).await
    }

    /// The stream, for what comes next on it.
    pub fn into_stream(self) -> Box<dyn Stream> {
        self.stream
    }

    /// Sends an option, and expects one reply; returns its type.
    pub async fn ask(&mut self, number: u32, data: &[u8]) -> u32 {
        self.send(&option(number, data)).await;
        let reply = self.option_reply().await;
        assert_eq!(reply.option, number);
        reply.reply_type
    }

    /// GO, and what it is answered with.
    pub async fn only_go(&mut self, name: &str) -> ExportInfo {
        self.send(&option(opt::GO, &info_data(name, &[]))).await;
        let mut info = None;
        loop {
            let reply = self.option_reply().await;
            match (reply.reply_type, &reply.data[..]) {
                (rep::INFO, [0, 0, rest @ ..]) => {
                    let (size, flags) = rest.split_first_chunk().unwrap();
                    info = Some(ExportInfo {
                        size: u64::from_be_bytes(*size),
                        flags: u16::from_be_bytes(flags.try_into().unwrap()),
                    });
                }
                (rep::INFO, _) => {}
                (rep::ACK, []) => return info.expect("INFO_EXPORT comes before the ACK"),
                _ => panic!("GO was answered with {reply:x?}"),
            }
        }
    }

    pub async fn option_reply(&mut self) -> OptionReply {
        let head = self.bytes(20).await;
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        OptionReply { option: word(8), reply_type: word(12), data: self.bytes(word(16) as usize).await }
    }

    pub async fn reply(&mut self) -> Reply {
        let head = self.bytes(16).await;
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");
        Reply {
            error: u32::from_be_bytes(head[4..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[8..].try_into().unwrap()),
        }
    }

    /// The next reply, which is a chunk.
    pub async fn chunk(&mut self) -> Chunk {
        let magic = self.bytes(4).await;
        let is_extended = match u32::from_be_bytes(magic.try_into().unwrap()) {
            0x668e_33ef => false,
            0x6e8a_278c => true,
            other => panic!("{other:#x} begins no chunk"),
        };
        let head = self.bytes(if is_extended { 28 } else { 16 }).await;
        let number = |at: usize, bytes: usize| {
            head[at..at + bytes].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
        };
        let (flags, kind, cookie) = (number(0, 2), number(2, 2) as u16, number(4, 8));
        assert!(flags <= 1, "no flag but DONE");
        let (offset, len) = if is_extended { (Some(number(12, 8)), number(20, 8)) } else { (None, number(12, 4)) };
        Chunk { is_last: flags == 1, kind, cookie, offset, payload: self.bytes(len as usize).await }
    }

    /// The chunks up to the last; all of one request.
    pub async fn chunks(&mut self) -> Vec<Chunk> {
        let mut chunks = vec![self.chunk().await];
        while !chunks.last().unwrap().is_last {
            chunks.push(self.chunk().await);
            assert_eq!(chunks.last().unwrap().cookie, chunks[0].cookie);
        }
        chunks
    }

    /// Sends a request without payload, and expects its reply to be the next; returns the error.
    pub async fn call(&mut self, flags: u16, command: u16, offset: u64, len: u32) -> u32 {
        let cookie = 0xc0de_0000_0000_0000 | u64::from(len);
        self.send(&request(flags, command, cookie, offset, len)).await;
        let reply = self.reply().await;
        assert_eq!(reply.cookie, cookie);
        reply.error
    }

    pub async fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.send(&request(flags, cmd::WRITE, 0x77, offset, data.len() as u32)).await;
        self.send(data).await;
        let reply = self.reply().await;
        assert_eq!(reply.cookie, 0x77);
        reply.error
    }

    pub async fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        match self.call(0, cmd::READ, offset, len).await {
            0 => Ok(self.bytes(len as usize).await),
            error => Err(error),
        }
    }

    /// Says DISC, and expects the server to close without a word.
    pub async fn disconnect(mut self) {
        self.send(&request(0, cmd::DISC, 0, 0, 0)).await;
        self.expect_closed().await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.expect("the server reads");
        // A stream of TLS may keep what it took.
        within(self.stream.flush()).await.expect("the server reads");
    }

    /// Sends what the server might not want to read to the end; it may wait for ever.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next `len` bytes.
    pub async fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        within(self.stream.read_exact(&mut bytes)).await.expect("the server sends more");
        bytes
    }

    /// The next `len` bytes, unless the server closes before.
    pub async fn try_bytes(&mut self, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        within(self.stream.read_exact(&mut bytes)).await.map(|_| bytes)
    }

    /// The server closes, and sends nothing before.
    pub async fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        match within(self.stream.read_to_end(&mut rest)).await {
            Ok(_) => assert_eq!(rest, b"", "nothing before the end"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    /// Whatever the server sends until it closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = within(self.stream.read_to_end(&mut rest)).await;
        rest
    }

    /// Closes its sending half only.
    pub async fn finish_sending(&mut self) {
        within(self.stream.shutdown()).await.expect("the stream can be closed");
    }
}

/// Fails the test if it takes too long.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}
