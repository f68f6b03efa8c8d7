//! The little of an NBD client that `ashlar warm` needs: attach, ask for ranges to be cached, detach.

use std::io;
use std::ops::Range;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::cli::failure::Failure;
use crate::config::{Effective, Listen};
use crate::human::exact_bytes;
use crate::nbd::wire::{
    IHAVEOPT, NBDMAGIC, OPTION_REPLY_MAGIC, OptionHeader, RequestHeader, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    client_flag, command, info, option, reply_type, transmission_flag,
};

/// Bytes that one request asks for.
const PIECE: u64 = 8 << 20;

/// Requests under way at once, so that the store is never waited for in vain.
const PARALLEL: usize = 4;

/// The longest reply to an option that is taken.
const OPTION_REPLY_MAX: usize = 64 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An attached volume.
pub struct Client {
    stream: Box<dyn Stream>,
    size: u64,
}

impl Client {
    /// Attaches the volume at the server that the configuration describes: by its Unix socket if it has one.
    pub async fn connect(config: &Effective, volume: &str) -> Result<Client, Failure> {
        let (place, connected): (String, io::Result<Box<dyn Stream>>) =
            match (config.serve.socket.path(&config.state), &config.serve.listen) {
                (Some(path), _) => {
                    let stream = UnixStream::connect(&path).await;
                    (path.display().to_string(), stream.map(|stream| Box::new(stream) as _))
                }
                (None, Listen::Address(address)) => {
                    let stream = TcpStream::connect(address).await;
                    (address.clone(), stream.map(|stream| Box::new(stream) as _))
                }
                (None, Listen::None) => {
                    return Err(config.refuse("serve.socket", "serve.listen is none as well; name one of them").into());
                }
            };
        let stream = connected.map_err(|error| {
            Failure::failed(format!(
                "no server answers at {place}: {error}; start one with `ashlar serve`, or name it with --state, --socket or \
                 --listen"
            ))
        })?;
        let mut client = Client { stream, size: 0 };
        match client.attach(volume).await {
            Ok(size) => Ok(Client { size, ..client }),
            Err(error) => Err(Failure::failed(format!("volume {volume} cannot be had at {place}: {error}"))),
        }
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Asks for the range, and returns when all of it is cached. `done` is told how many bytes are.
    pub async fn cache(&mut self, range: Range<u64>, mut done: impl FnMut(u64)) -> Result<(), Failure> {
        let lost = |error: io::Error| Failure::failed(format!("the server is gone: {error}"));
        let mut pieces = range.clone().step_by(PIECE as usize).map(|start| start..(start + PIECE).min(range.end));
        let (mut under_way, mut bytes) = (0, 0);
        loop {
            while under_way < PARALLEL
                && let Some(piece) = pieces.next()
            {
                self.request(command::CACHE, &piece).await.map_err(lost)?;
                under_way += 1;
            }
            if under_way == 0 {
                break;
            }
            // A piece is known by its beginning.
            let (start, error) = self.reply().await.map_err(lost)?;
            if error != 0 {
                let piece = exact_bytes(PIECE.min(range.end - start));
                return Err(Failure::failed(format!(
                    "the server could not fetch {piece} at byte {start} (error {error}); its log says why"
                )));
            }
            under_way -= 1;
            bytes += PIECE.min(range.end - start);
            done(bytes);
        }
        self.request(command::DISC, &(0..0)).await.map_err(lost)
    }

    /// The handshake; returns the size.
    async fn attach(&mut self, volume: &str) -> io::Result<u64> {
        let stream = &mut self.stream;
        if stream.read_u64().await? != NBDMAGIC || stream.read_u64().await? != IHAVEOPT {
            return Err(broken("this is no NBD server"));
        }
        let _flags = stream.read_u16().await?;
        stream.write_u32(client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES).await?;
        let name = volume.as_bytes();
        let data = [&(name.len() as u32).to_be_bytes()[..], name, &0_u16.to_be_bytes()].concat();
        let header = OptionHeader { option: option::GO, len: data.len() as u32 };
        stream.write_all(&[&header.encode()[..], &data].concat()).await?;
        stream.flush().await?;
        let mut size = None;
        loop {
            let (reply, data) = self.option_reply().await?;
            match (reply, &data[..]) {
                (reply_type::INFO, [k0, k1, export @ ..]) if u16::from_be_bytes([*k0, *k1]) == info::EXPORT => {
                    let [s @ .., f0, f1] = export else { return Err(broken("a malformed reply")) };
                    let flags = u16::from_be_bytes([*f0, *f1]);
                    if flags & transmission_flag::SEND_CACHE == 0 {
                        return Err(broken("this server cannot be asked to cache"));
                    }
                    let bytes = <[u8; 8]>::try_from(s).map_err(|_| broken("a malformed reply"))?;
                    size = Some(u64::from_be_bytes(bytes));
                }
                (reply_type::INFO, _) => {}
                (reply_type::ACK, _) => return size.ok_or_else(|| broken("a reply without a size")),
                (_, []) => return Err(broken("the server refuses")),
                (_, words) => return Err(broken(String::from_utf8_lossy(words))),
            }
        }
    }

    async fn option_reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        if self.stream.read_u64().await? != OPTION_REPLY_MAGIC {
            return Err(broken("a malformed reply"));
        }
        let _option = self.stream.read_u32().await?;
        let reply = self.stream.read_u32().await?;
        let len = self.stream.read_u32().await? as usize;
        if len > OPTION_REPLY_MAX {
            return Err(broken("a reply that is too long"));
        }
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).await?;
        Ok((reply, data))
    }

    async fn request(&mut self, command: u16, range: &Range<u64>) -> io::Result<()> {
        let len = range.end - range.start;
        let header = RequestHeader { flags: 0, command, cookie: range.start, offset: range.start, len };
        self.stream.write_all(&header.encode()).await?;
        self.stream.flush().await
    }

    /// The next reply: its cookie and its error, 0 for none.
    async fn reply(&mut self) -> io::Result<(u64, u32)> {
        let mut head = [0; SIMPLE_REPLY_BYTES];
        self.stream.read_exact(&mut head).await?;
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = head;
        if u32::from_be_bytes([m0, m1, m2, m3]) != SIMPLE_REPLY_MAGIC {
            return Err(broken("a malformed reply"));
        }
        Ok((u64::from_be_bytes(cookie), u32::from_be_bytes([e0, e1, e2, e3])))
    }
}

fn broken(words: impl Into<String>) -> io::Error {
    io::Error::other(words.into())
}
