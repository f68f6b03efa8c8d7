//! TLS of the NBD server: its options, what they are made into, and how a connection begins to use it.
//!
//! The files are read at the start and looked at again every `reload_interval`, so that a certificate that was renewed is taken up
//! by itself: whoever renews one needs to tell nobody. A
//! change that does not make sense is reported once, and the server goes on with what it has: a certificate and its
//! key are two files and are seldom replaced at the same moment. Connections keep what they began with.
//!
//! rustls speaks TLS 1.2 and 1.3 and nothing older (rule T7). It knows no pre-shared keys, so there are none here.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::negotiate;
use crate::human;
use crate::outside::{Clock, Workers};

mod files;
mod names;

pub use files::TlsError;

/// Whether clients speak over TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// They cannot.
    #[default]
    Off,
    /// As they like. Somebody on the way can then keep a client that does not insist from using it.
    Allowed,
    /// They must.
    Required,
}

impl TlsMode {
    /// What it is to a connection that begins.
    pub(super) fn at_first(self) -> negotiate::Tls {
        match self {
            TlsMode::Off => negotiate::Tls::Off,
            TlsMode::Allowed => negotiate::Tls::Offered,
            TlsMode::Required => negotiate::Tls::Required,
        }
    }
}

/// TLS of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsOptions {
    /// Whether clients that come by TCP speak over TLS, unless their listener says otherwise. On a Unix socket they may if it is
    /// not off, and must only if its listener says so.
    pub mode: TlsMode,

    /// The server's certificate and those that lead to its authority, in PEM.
    pub certificate: Option<PathBuf>,

    /// The key of the certificate, in PEM, not encrypted.
    pub key: Option<PathBuf>,

    /// The certificates of authorities, in PEM. Set, every client that begins TLS must show a certificate that one of them signed.
    /// Clients that need no TLS need none, so some listener must require it, or there must be rules of access.
    pub client_ca: Option<PathBuf>,

    /// How often the files are looked at. From 1 s to 1 day.
    #[serde(with = "human::duration")]
    pub reload_interval: Duration,
}

impl Default for TlsOptions {
    fn default() -> TlsOptions {
        TlsOptions {
            mode: TlsMode::Off,
            certificate: None,
            key: None,
            client_ca: None,
            reload_interval: Duration::from_secs(10),
        }
    }
}

impl TlsOptions {
    /// Checks that files that are named are of use, where `most` is the most that a listener asks for. Somebody who names
    /// authorities wants to keep others out, and must not be left in the belief that it is so.
    pub(super) fn check_use(&self, most: TlsMode, has_rules: bool) -> Result<(), TlsError> {
        let refuse = |key, path: &Option<PathBuf>, why: &str| TlsError {
            section: files::NBD,
            key,
            path: path.clone(),
            why: why.to_owned(),
        };
        match most {
            TlsMode::Off if self.certificate.is_some() => Err(refuse(
                "certificate",
                &self.certificate,
                "is set, and no listener speaks TLS: set nbd.tls.mode to \"required\" or \"allowed\", or take certificate, key and \
                 client_ca out of nbd.tls",
            )),
            TlsMode::Allowed if self.client_ca.is_some() && !has_rules => Err(refuse(
                "client_ca",
                &self.client_ca,
                "is set, and keeps nobody out: no listener requires TLS, and whoever comes without it needs no certificate; set \
                 nbd.tls.mode = \"required\", or say in nbd.access who may use what",
            )),
            _ => Ok(()),
        }
    }
}

/// The bounds of `reload_interval`.
pub(super) const RELOAD_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// How a server speaks TLS.
#[derive(Debug)]
pub struct Tls {
    /// What its options are called.
    section: &'static str,
    options: TlsOptions,
    current: RwLock<Arc<ServerConfig>>,
    /// What the files held when they were last read, good or bad.
    seen: Mutex<files::Contents>,
}

impl Tls {
    /// Reads the files; `None` if none is named.
    pub async fn load(options: &TlsOptions) -> Result<Option<Tls>, TlsError> {
        Tls::load_as(files::NBD, options).await
    }

    /// The same for options of another section of the configuration.
    pub async fn load_as(section: &'static str, options: &TlsOptions) -> Result<Option<Tls>, TlsError> {
        Tls::read(section, options).await.map_err(|error| error.of(section))
    }

    async fn read(section: &'static str, options: &TlsOptions) -> Result<Option<Tls>, TlsError> {
        let Some(paths) = files::Paths::of(options)? else { return Ok(None) };
        let contents = Workers::Threads.run(move || paths.read()).await?;
        let config = contents.config()?;
        contents.remark(section, Clock::System.unix_millis() / 1000);
        let (current, seen) = (RwLock::new(Arc::new(config)), Mutex::new(contents));
        Ok(Some(Tls { section, options: options.clone(), current, seen }))
    }

    /// Looks at the files again, and takes over what has changed. Whether anything has.
    pub async fn reload(&self) -> Result<bool, TlsError> {
        self.look_again().await.map_err(|error| error.of(self.section))
    }

    async fn look_again(&self) -> Result<bool, TlsError> {
        // The options were good when it was loaded.
        let Some(paths) = files::Paths::of(&self.options)? else { return Ok(false) };
        let contents = Workers::Threads.run(move || paths.read()).await?;
        if *self.seen.lock() == contents {
            return Ok(false);
        }
        let made = contents.config().inspect(|_| contents.remark(self.section, Clock::System.unix_millis() / 1000));
        *self.seen.lock() = contents;
        *self.current.write() = Arc::new(made?);
        Ok(true)
    }

    /// Looks at the files for ever.
    pub async fn keep_fresh(&self) {
        let mut ticks = interval(self.options.reload_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut said = String::new();
        loop {
            ticks.tick().await;
            match self.reload().await {
                Ok(true) => {
                    let section = self.section;
                    tracing::info!("the files of {section} have changed: new connections use what they hold now");
                    said.clear();
                }
                Ok(false) => {}
                // A file that is missing is missing each time.
                Err(error) if error.to_string() == said => {}
                Err(error) => {
                    said = error.to_string();
                    tracing::warn!(
                        "the TLS files have changed, and cannot be used; going on with the old ones: {error}"
                    );
                }
            }
        }
    }

    /// Lets TLS begin on a stream, as its server.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let config = Arc::clone(&*self.current.read());
        TlsAcceptor::from(config).accept(stream).await
    }
}

/// The names of the certificate that a client showed; `None` if it showed none.
pub fn names_of_client<S>(stream: &TlsStream<S>) -> Option<Vec<String>> {
    let (_, connection) = stream.get_ref();
    let own = connection.peer_certificates()?.first()?;
    Some(names::of(own))
}
