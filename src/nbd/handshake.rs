//! The async shell of [`super::negotiate`]: moves bytes between the socket and the negotiation, asks the exports, and
//! keeps the client's time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::hosts::{Host, Hosts, Visit};
use super::negotiate::{CloseReason, Limits, Negotiation, Step};
use super::options::Options;
use super::phase::Phases;
use crate::device::{Device, DeviceInfo, ExportEntry, ExportError, Exports};

/// Bytes that are read at a time.
const READ_BYTES: usize = 8 << 10;

/// How long clients may go on haggling once the server shuts down.
const LINGER: Duration = Duration::from_secs(1);

/// How a handshake ended, if nothing went wrong.
pub enum Outcome {
    /// Transmission begins.
    Enter {
        /// The export.
        entry: ExportEntry,
        /// Its device.
        device: Arc<dyn Device>,
        /// What keeps other hosts away meanwhile.
        visit: Option<Visit>,
        /// What the client sent ahead.
        rest: BytesMut,
    },
    /// The client left.
    Left,
}

/// Why a handshake was broken off.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// See [`CloseReason`].
    #[error(transparent)]
    Refused(#[from] CloseReason),
    /// The client took too long.
    #[error("the client did not finish the handshake in time")]
    TooSlow,
    /// The connection failed.
    #[error(transparent)]
    Lost(#[from] io::Error),
}

/// Who may attach what: the client's host, among those that are attached.
pub struct Visitor {
    /// The client's host.
    pub host: Host,
    /// The hosts that are attached.
    pub hosts: Arc<Hosts>,
}

/// Leads one client through the handshake.
pub async fn run<S>(
    stream: &mut S,
    visitor: &Visitor,
    exports: &dyn Exports,
    options: &Options,
    phases: &mut Phases,
) -> Result<Outcome, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut negotiation = Negotiation::new(Limits::from(options));
    let mut opened = None;
    let mut shutting_down = false;
    let mut deadline = Instant::now() + options.handshake_timeout;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let step = negotiation.step();
        let output = negotiation.take_output();
        if !output.is_empty() {
            in_time(deadline, stream.write_all(&output)).await?;
        }
        let asked = Instant::now();
        match step {
            Step::Read => tokio::select! {
                biased;
                () = phases.draining(), if !shutting_down => {
                    shutting_down = true;
                    negotiation.shut_down();
                    deadline = deadline.min(Instant::now() + LINGER);
                }
                count = in_time(deadline, stream.read(&mut buffer)) => match count? {
                    0 => return Ok(Outcome::Left),
                    count => negotiation.receive(&buffer[..count]),
                },
            },
            Step::List => {
                negotiation.listed(exports.list().await);
                deadline += asked.elapsed();
            }
            Step::Open(name) => {
                let export = exports.open(&name).await;
                deadline += asked.elapsed();
                let export = if phases.is_draining() { Err(ExportError::ShuttingDown) } else { export };
                let export = export.and_then(|(entry, device)| {
                    let info = device.info();
                    let visit = visitor.enter(&entry, &info, options)?;
                    Ok((entry, device, info, visit))
                });
                let answer = export.as_ref().map(|(entry, _, info, _)| (entry.clone(), *info));
                negotiation.opened(answer.map_err(Clone::clone));
                opened = export.ok();
            }
            Step::Enter => match opened {
                Some((entry, device, _, visit)) => {
                    return Ok(Outcome::Enter { entry, device, visit, rest: negotiation.into_rest() });
                }
                // Enter follows a successful answer to Open only.
                None => return Ok(Outcome::Left),
            },
            Step::Finish => {
                while in_time(deadline, stream.read(&mut buffer)).await? > 0 {}
                return Ok(Outcome::Left);
            }
            Step::Close(reason) => return Err(reason.into()),
        }
    }
}

impl Visitor {
    /// INFO counts like GO while the handshake lasts, so that both get the same answer (rule O15).
    fn enter(&self, entry: &ExportEntry, info: &DeviceInfo, options: &Options) -> Result<Option<Visit>, ExportError> {
        match info.read_only || options.shared {
            true => Ok(None),
            false => self.hosts.enter(&entry.name, self.host).map(Some),
        }
    }
}

async fn in_time<T>(deadline: Instant, io: impl Future<Output = io::Result<T>>) -> Result<T, HandshakeError> {
    match timeout_at(deadline, io).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(HandshakeError::TooSlow),
    }
}
