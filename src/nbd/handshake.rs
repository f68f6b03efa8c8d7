//! The async shell of [`super::negotiate`]: moves bytes between the socket and the negotiation, asks the exports, and
//! keeps the client's time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::access::{self, Access, Caller, Reach, Refusals, Rule};
use super::clients::{Clients, Coming, Member, Party};
use super::hosts::{Host, Hosts, Visit};
use super::negotiate::{Agreed, CloseReason, Contexts, Limits, Negotiation, READ_BYTES, Step, Tls};
use super::options::Options;
use super::phase::Phases;
use crate::device::{AT, Device, DeviceInfo, ExportEntry, ExportError, Exports, Version};

/// How long it may take until nothing is left of the connections whose place a new one takes: a little longer than what they left
/// behind is carried out.
const SUCCESSION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long clients may go on haggling once the server shuts down.
const LINGER: Duration = Duration::from_secs(1);

/// How a handshake ended, if nothing went wrong.
pub enum Outcome {
    /// Transmission begins.
    Enter(Entered),
    /// TLS begins on the stream; then the handshake goes on.
    StartTls(Handshake),
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
    /// Whether this client may only read.
    pub read_only: bool,
    /// What keeps other hosts away meanwhile.
    pub visit: Option<Visit>,
    /// Its place among the client's connections, if it has said which one it is.
    pub member: Option<Member>,
    /// Its place among those who are to be attached, until it is.
    pub coming: Coming,
    /// What the client sent ahead.
    pub rest: BytesMut,
}

/// Why a handshake was broken off.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// See [`CloseReason`].
    #[error(transparent)]
    Refused(#[from] CloseReason),
    /// TLS did not begin (rule T6).
    #[error("TLS did not begin: {0}")]
    NoTls(io::Error),
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
    /// The number of its connection, for the log.
    pub connection: u64,
    /// The client's host.
    pub host: Host,
    /// The client, as the rules see it.
    pub caller: Caller,
    /// The rules.
    pub rules: &'a [Rule],
    /// What the rules refused, of all clients.
    pub refused: &'a Refusals,
    /// The hosts that are attached.
    pub hosts: Arc<Hosts>,
    /// The clients that are attached.
    pub clients: Arc<Clients>,
    /// Told when somebody wants this one gone; whoever runs the handshake drops it then.
    pub evicted: &'a Arc<Notify>,
}

/// A handshake, and how long it may still take.
#[derive(Debug)]
pub struct Handshake {
    negotiation: Negotiation,
    time: Time,
}

/// How long a client may still take. What it waits for the server is not counted. But options can be sent ahead, and each that
/// waits would hold the place of a connection longer: all such waits but those for exports that did open have one bound.
/// (An export that has opened is open for the next that asks.)
#[derive(Clone, Copy, Debug)]
struct Time {
    deadline: Instant,
    /// How much may still be added.
    credit: Duration,
    /// Whether it may still wait for a host that has its export.
    patient: bool,
}

impl Time {
    /// That which has passed since `asked` was the server's.
    fn give_back(&mut self, asked: Instant, opened: bool) {
        let taken = asked.elapsed();
        let given = if opened { taken } else { taken.min(self.credit) };
        self.deadline += given;
        if !opened {
            self.credit -= given;
        }
    }
}

impl Handshake {
    /// One that begins now.
    pub fn new(options: &Options, tls: Tls) -> Handshake {
        let negotiation = Negotiation::new(Limits::from(options)).with_tls(tls);
        let deadline = Instant::now() + options.handshake_timeout;
        Handshake { negotiation, time: Time { deadline, credit: options.attach_wait, patient: true } }
    }

    /// Goes on over what `tls` makes of the stream, within the same time.
    pub async fn over_tls<T>(self, tls: impl Future<Output = io::Result<T>>) -> Result<(T, Handshake), HandshakeError> {
        let stream = match timeout_at(self.time.deadline, tls).await {
            Ok(begun) => begun.map_err(HandshakeError::NoTls)?,
            Err(_) => return Err(HandshakeError::TooSlow),
        };
        Ok((stream, Handshake { negotiation: self.negotiation.over_tls(), time: self.time }))
    }
}

/// Leads one client through the handshake.
pub async fn run<S>(
    stream: &mut S,
    handshake: Handshake,
    visitor: &Visitor<'_>,
    exports: &dyn Exports,
    options: &Options,
    phases: &mut Phases,
) -> Result<Outcome, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Handshake { mut negotiation, mut time } = handshake;
    let mut opened = None;
    let mut member = None;
    let mut shutting_down = false;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let step = negotiation.step();
        let output = negotiation.take_output();
        if !output.is_empty() {
            // TLS keeps what it has sealed until it is told to send it.
            in_time(time.deadline, async {
                stream.write_all(&output).await?;
                stream.flush().await
            })
            .await?;
        }
        let asked = Instant::now();
        // What has been read already needs no reading, so its time is looked at here.
        if matches!(step, Step::List | Step::Look { .. } | Step::Open { .. } | Step::Succeed(_))
            && asked > time.deadline
        {
            return Err(HandshakeError::TooSlow);
        }
        match step {
            Step::Read => tokio::select! {
                biased;
                () = phases.draining(), if !shutting_down => {
                    shutting_down = true;
                    negotiation.shut_down();
                    time.deadline = time.deadline.min(Instant::now() + LINGER);
                }
                count = in_time(time.deadline, stream.read(&mut buffer)) => match count? {
                    0 => return Ok(Outcome::Left),
                    count => negotiation.receive(&buffer[..count]),
                },
            },
            Step::List => {
                negotiation.listed(visitor.list(exports).await);
                time.give_back(asked, false);
            }
            // What a client may not use it may not look at either. Whether another host has it is asked when it wants to have it.
            Step::Look { name, contexts } => {
                let found = match visitor.find(name, exports).await {
                    Found::NeedsTls => {
                        negotiation.needs_tls();
                        continue;
                    }
                    Found::Refused(error) => Err(error),
                    Found::Export { name, .. } => visitor.look(&name, &contexts, exports).await,
                };
                time.give_back(asked, found.is_ok());
                negotiation.looked(match found {
                    _ if phases.is_draining() => Err(ExportError::ShuttingDown),
                    found => found,
                });
            }
            Step::Open { name, only_info } => {
                let found = match visitor.find(name, exports).await {
                    Found::NeedsTls => {
                        negotiation.needs_tls();
                        continue;
                    }
                    Found::Refused(error) => Err(error),
                    Found::Export { name, read_only } => {
                        visitor.open(&name, exports).await.map(|found| (found, read_only))
                    }
                };
                time.give_back(asked, found.is_ok());
                let asked = Instant::now();
                let export = match found {
                    _ if phases.is_draining() => Err(ExportError::ShuttingDown),
                    Err(error) => Err(error),
                    Ok(((entry, device), read_only)) => {
                        let info = device.info();
                        let info = DeviceInfo { read_only: info.read_only || read_only, ..info };
                        let patient = !only_info && std::mem::take(&mut time.patient);
                        let patience = patient.then_some(options.attach_wait);
                        let visit = tokio::select! {
                            biased;
                            () = phases.draining() => Err(ExportError::ShuttingDown),
                            visit = visitor.enter(&entry, &info, options.shared, patience) => visit,
                        };
                        match visit {
                            Ok(visit) if !only_info => visitor.come(entry, info, visit, exports).await,
                            visit => visit.map(|visit| Opened { entry, device, info, visit, coming: None }),
                        }
                    }
                };
                time.give_back(asked, false);
                let answer = export.as_ref().map(|opened| (opened.entry.clone(), opened.info));
                negotiation.opened(answer.map_err(Clone::clone));
                opened = export.ok();
            }
            Step::Succeed(succession) => {
                // First the one that it had, in case that it asks again.
                drop(member.take());
                let joined = visitor.clients.join(succession, Arc::clone(visitor.evicted));
                let left = timeout(SUCCESSION_TIMEOUT, visitor.clients.succeed(succession)).await;
                time.give_back(asked, left.is_ok());
                negotiation.succeeded(left.is_ok());
                member = left.is_ok().then_some(joined);
            }
            Step::Enter => match opened {
                Some(Opened { entry, device, info, visit, coming: Some(coming) }) => {
                    let (agreed, rest) = (negotiation.agreed(), negotiation.into_rest());
                    let read_only = info.read_only;
                    let entered = Entered { entry, device, agreed, read_only, visit, member, coming, rest };
                    return Ok(Outcome::Enter(entered));
                }
                // Enter follows a successful answer to Open only, and one that was not INFO.
                _ => return Ok(Outcome::Left),
            },
            Step::StartTls => return Ok(Outcome::StartTls(Handshake { negotiation, time })),
            Step::Finish => {
                while in_time(time.deadline, stream.read(&mut buffer)).await? > 0 {}
                return Ok(Outcome::Left);
            }
            Step::Close(reason) => return Err(reason.into()),
        }
    }
}

/// An export that was opened for a client.
struct Opened {
    entry: ExportEntry,
    device: Arc<dyn Device>,
    info: DeviceInfo,
    visit: Option<Visit>,
    /// Nothing if it only looked.
    coming: Option<Coming>,
}

/// What a client's rights make of the name that it asked for.
enum Found {
    /// It may use an export of that name, if there is one.
    Export { name: String, read_only: bool },
    /// It must begin TLS first.
    NeedsTls,
    /// It may not.
    Refused(ExportError),
}

impl Visitor<'_> {
    /// Decides on a name before anything is done about it.
    async fn find(&self, asked: String, exports: &dyn Exports) -> Found {
        if self.rules.is_empty() {
            return Found::Export { name: asked, read_only: false };
        }
        if asked.is_empty() {
            return self.find_default(exports).await;
        }
        match access::decide(self.rules, &asked, &self.caller) {
            Access::Write => Found::Export { name: asked, read_only: false },
            Access::Read => Found::Export { name: asked, read_only: true },
            Access::NeedsTls => Found::NeedsTls,
            Access::None => self.refuse(&asked),
        }
    }

    /// The one that has no name is known by its own when it is the only one. Whether it is there and not for this client, or not
    /// there at all, is answered in the same way; and a client for whom nothing can be there does not make anybody look.
    async fn find_default(&self, exports: &dyn Exports) -> Found {
        let reach = access::reach(self.rules, &self.caller);
        if reach.usable {
            let name = match exports.default_name().await {
                Ok(name) => name,
                Err(error) => return Found::Refused(error),
            };
            if let Some(name) = name {
                match access::decide(self.rules, &name, &self.caller) {
                    Access::Write => return Found::Export { name, read_only: false },
                    Access::Read => return Found::Export { name, read_only: true },
                    Access::NeedsTls | Access::None => {}
                }
            }
        }
        match reach {
            Reach { behind_tls: true, .. } => Found::NeedsTls,
            Reach { usable: true, .. } => Found::Refused(ExportError::Unknown(String::new())),
            Reach { usable: false, .. } => self.refuse(""),
        }
    }

    /// Refuses a client in its own words, whether there is an export of that name or not.
    fn refuse(&self, asked: &str) -> Found {
        if let Some(count) = self.refused.count() {
            let (peer, connection) = (self.peer, self.connection);
            let (certificate, export) = (&self.caller.certificate, access::logged(asked));
            tracing::warn!(
                peer,
                connection,
                export,
                ?certificate,
                count,
                "refused a client: nbd.access does not let it in"
            );
        }
        Found::Refused(ExportError::Unavailable(format!("you have no access to {asked:?} on this server")))
    }

    /// The versions of an export that the client asks about, of those that it may read.
    async fn look(&self, name: &str, contexts: &Contexts, exports: &dyn Exports) -> Result<Vec<Version>, ExportError> {
        let (_, device) = self.open(name, exports).await?;
        if !contexts.wants_versions() {
            return Ok(Vec::new());
        }
        let volume = name.split_once(AT).map_or(name, |(volume, _)| volume);
        let may_read = |version: &Version| {
            let access = access::decide(self.rules, &format!("{volume}{AT}{}", version.name), &self.caller);
            self.rules.is_empty() || matches!(access, Access::Read | Access::Write)
        };
        let versions = device.versions().await.map_err(|error| ExportError::Unavailable(error.to_string()))?;
        Ok(versions.into_iter().filter(|version| contexts.wants(version) && may_read(version)).collect())
    }

    /// Opens an export, and says in the log if a client is refused it.
    async fn open(&self, name: &str, exports: &dyn Exports) -> Result<(ExportEntry, Arc<dyn Device>), ExportError> {
        let opened = exports.open(name).await;
        if let Err(why) = &opened {
            let (peer, connection, export) = (self.peer, self.connection, access::logged(name));
            tracing::info!(peer, connection, export, "refused a client: {why}");
        }
        opened
    }

    /// The exports that a client may know of: those that it may use as it is (rule O8).
    async fn list(&self, exports: &dyn Exports) -> Result<Vec<ExportEntry>, ExportError> {
        if !access::reach(self.rules, &self.caller).usable {
            return Ok(Vec::new());
        }
        let may_use = |export: &ExportEntry| {
            matches!(access::decide(self.rules, &export.name, &self.caller), Access::Read | Access::Write)
        };
        Ok(exports.list().await?.into_iter().filter(may_use).collect())
    }

    /// The last step before a client has its export. It may have waited for another host, and the export may have gone elsewhere meanwhile,
    /// and its clients with it: so it is opened once more, now that an eviction would reach this one, too.
    async fn come(
        &self,
        entry: ExportEntry,
        info: DeviceInfo,
        visit: Option<Visit>,
        exports: &dyn Exports,
    ) -> Result<Opened, ExportError> {
        let party = Party {
            peer: self.peer.to_owned(),
            host: self.host,
            export: entry.name.clone(),
            evicted: Arc::clone(self.evicted),
        };
        let coming = Some(self.clients.come(party));
        let (entry, device) = exports.open(&entry.name).await?;
        Ok(Opened { entry, device, info, visit, coming })
    }

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
        tracing::warn!(peer, connection = self.connection, export, %by, clients, "refused a client: another host is attached");
        Err(in_use.into())
    }
}

async fn in_time<T>(deadline: Instant, io: impl Future<Output = io::Result<T>>) -> Result<T, HandshakeError> {
    match timeout_at(deadline, io).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(HandshakeError::TooSlow),
    }
}
