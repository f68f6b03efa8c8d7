//! The async shell of [`super::negotiate`]: moves bytes between the socket and the negotiation, asks the exports, and
//! keeps the client's time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::clients::Clients;
use super::hosts::{Host, Hosts, Visit};
use super::negotiate::{Agreed, CloseReason, Limits, Negotiation, Step};
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
    Enter(Entered),
    /// The client left.
    Left,
}

/// A client that begins transmission.
pub struct Entered {
    /// The export.
    pub entry: ExportEntry,
    /// Its device.
    pub device: Arc<dyn Device>,
    /// What was agreed on.
    pub agreed: Agreed,
    /// What keeps other hosts away meanwhile.
    pub visit: Option<Visit>,
    /// What the client sent ahead.
    pub rest: BytesMut,
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

/// Who may attach what: the client, among those that are attached.
pub struct Visitor<'a> {
    /// Who it is, for the log.
    pub peer: &'a str,
    /// The client's host.
    pub host: Host,
    /// The hosts that are attached.
    pub hosts: Arc<Hosts>,
    /// The clients that are attached.
    pub clients: Arc<Clients>,
}

/// Leads one client through the handshake.
pub async fn run<S>(
    stream: &mut S,
    visitor: &Visitor<'_>,
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
            // Whether the client may have it is asked when it wants to have it.
            Step::Look { name } => {
                negotiation.looked(match exports.open(&name).await {
                    _ if phases.is_draining() => Err(ExportError::ShuttingDown),
                    found => found.map(drop),
                });
                deadline += asked.elapsed();
            }
            Step::Open { name, only_info } => {
                let export = match exports.open(&name).await {
                    _ if phases.is_draining() => Err(ExportError::ShuttingDown),
                    Err(error) => Err(error),
                    Ok((entry, device)) => {
                        let info = device.info();
                        let patience = if only_info { None } else { Some(options.attach_wait) };
                        let visit = tokio::select! {
                            biased;
                            () = phases.draining() => Err(ExportError::ShuttingDown),
                            visit = visitor.enter(&entry, &info, options.shared, patience) => visit,
                        };
                        visit.map(|visit| (entry, device, info, visit))
                    }
                };
                deadline += asked.elapsed();
                let answer = export.as_ref().map(|(entry, _, info, _)| (entry.clone(), *info));
                negotiation.opened(answer.map_err(Clone::clone));
                opened = export.ok();
            }
            Step::Enter => match opened {
                Some((entry, device, _, visit)) => {
                    let (agreed, rest) = (negotiation.agreed(), negotiation.into_rest());
                    return Ok(Outcome::Enter(Entered { entry, device, agreed, visit, rest }));
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

impl Visitor<'_> {
    /// INFO counts like GO while the handshake lasts, so that both get the same answer (rule O15). With `patience`, a host
    /// that has the export is asked for so long whether it is still there.
    async fn enter(
        &self,
        entry: &ExportEntry,
        info: &DeviceInfo,
        shared: bool,
        patience: Option<Duration>,
    ) -> Result<Option<Visit>, ExportError> {
        if info.read_only || shared {
            return Ok(None);
        }
        let (export, peer) = (entry.name.as_str(), self.peer);
        let in_use = match (self.hosts.enter(export, self.host), patience) {
            (Ok(visit), _) => return Ok(Some(visit)),
            (Err(in_use), None) => {
                tracing::info!(peer, export, by = %in_use.by, "told a client that another host is attached");
                return Err(in_use.into());
            }
            (Err(in_use), Some(patience)) => {
                tracing::info!(peer, export, "asking whether {}, which has the export, is still there", in_use.by);
                let _asking = self.clients.ask(export, self.host);
                match timeout(patience, self.hosts.enter_later(export, self.host)).await {
                    Ok(visit) => return Ok(Some(visit)),
                    Err(_) => in_use,
                }
            }
        };
        let (by, clients) = (in_use.by, self.clients.addresses(export).join(", "));
        tracing::warn!(peer, export, %by, clients, "refused a client: another host is attached");
        Err(in_use.into())
    }
}

async fn in_time<T>(deadline: Instant, io: impl Future<Output = io::Result<T>>) -> Result<T, HandshakeError> {
    match timeout_at(deadline, io).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(HandshakeError::TooSlow),
    }
}
