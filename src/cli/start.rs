//! The start of a server, in this order: take the state directory, so that no second server has the same journals (with `--replace`
//! see [`super::replace`]); open the store and find the volumes, or make a first one; listen, so that a server that cannot never takes a volume; open
//! the volumes that were named, and those of which this server's journal holds changes. A server that only reads, snapshots or volumes, has nothing to
//! take, and opens the store to read only.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::claim::{self, Claiming};
use super::client_lines::Listening;
use super::control::{self, Insight};
use super::doors;
use super::export_name::ExportName;
use super::exports::{ReadOnlyVolumes, VolumeExports};
use super::failure::{Failure, Outcome};
use super::files;
use super::keeping;
use super::outside::{self, State};
use super::peers;
use super::replace;
use super::secrets;
use super::store_volumes::StoreVolumes;
use super::telling::Telling;
use super::wanted::{self, Wanted};
use crate::config::Effective;
use crate::device::{Device, ExportError};
use crate::human::exact_bytes;
use crate::memory::Balance;
use crate::memory::keeper::keep;
use crate::metrics;
use crate::nbd::{ListenAddr, Server, TlsMode};
use crate::opening::description::Description;
use crate::outside::Random;
use crate::store::Store;
use crate::store::open::{Access, Opened};
use crate::volume::{self, CreateOptions, NewEncryption, OpenFlags, Purse, VolumeError, VolumeName};

/// A server that is ready for clients.
pub struct Running {
    /// Listens already, and accepts clients once it runs.
    pub server: Arc<Server>,
    /// What it serves.
    pub exports: VolumeExports<StoreVolumes>,
    /// What somebody reads who wants to attach a volume.
    pub welcome: String,
    /// Told when another process is to take this one's place.
    pub leave: Arc<Notify>,
    /// What it may spend, which may change.
    pub purse: Purse,
    /// Its part in a pool, if it is in one.
    pub claiming: Option<Arc<Claiming>>,
}

/// How a server begins, beyond its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    /// What an operator allows for the named volumes.
    pub flags: OpenFlags,
    /// Whether it takes the place of the server that has the state directory.
    pub replace: bool,
    /// Whether named volumes that other servers have are waited for.
    pub wait: bool,
}

/// Takes what the server needs, in the order of the module.
pub async fn start(config: &Effective, how: Beginning) -> Result<Running, Failure> {
    let Beginning { flags, replace, wait } = how;
    let wanted = Wanted::of(config)?;
    let read_only = ReadOnlyVolumes::new(&config.serve.read_only);
    wanted.check_flags(&read_only, flags, wait)?;
    let pool = claim::pool_of(config, &wanted, &read_only)?;
    // Who only reads writes nothing: credentials that can read are enough, and nothing is tried out.
    let access = if wanted.is_only_read(&read_only) { Access::Read } else { Access::Write };
    let doors = doors::of(config).await?;
    let random = Random::system();
    let has_had_volumes = outside::has_had_volumes(config).await;
    let (state, Opened { store, health, meter, buffers, .. }) = match replace {
        false => {
            let state = State::take(config, &random).await?;
            (state, outside::open_store(config, access).await?)
        }
        true => {
            let opened = outside::open_store(config, access).await?;
            (replace::take(config, &opened.store, &wanted.volumes(), &random).await?, opened)
        }
    };
    let served = match wanted.is_all() {
        // Whoever only reads makes none.
        true if read_only.is_all() => volume::names(&*store).await?.into_iter().map(ExportName::from).collect(),
        true => all_volumes(config, &store, has_had_volumes, &random).await?,
        false => wanted.names().to_vec(),
    };
    let read_only = wanted::read_only(config, &served)?;
    let (host_name, mirror) = (state.server.name.clone(), outside::mirror(config)?);
    let cache = outside::open_cache(config).await;
    let (blocks, secrets) = (Arc::clone(&cache.blocks), secrets::of(config));
    let purse = Purse::new(&config.budget, config.prices, Arc::clone(&meter), Instant::now());
    // Before a volume is taken: a server that cannot listen takes none.
    let mut peers = peers::of(config, &state, &random).await?;
    peers.listen();
    let keeper = peers.keeper.clone();
    let volumes = StoreVolumes::new(Arc::clone(&store), state, cache, config, secrets, flags, random)
        .with_purse(purse.clone())
        .with_mirror(mirror)
        .with_peers(peers);
    let budget = volumes.budget();
    let described = describe(&volumes, &served, wanted.is_all()).await?;
    let mut at_once = Vec::new();
    for volume in &described {
        match volumes.unlock(volume).await {
            Err(locked) if !wanted.is_all() => return Err(locked.into()),
            // Also what its journal holds needs the key.
            Err(locked) => {
                warn!("{locked}");
                continue;
            }
            Ok(_) => {}
        }
        if read_only.contains(volume.meta.name.as_str()) {
            if volumes.has_journal(volume).await {
                warn!(
                    "a journal here holds changes of volume {} that may not be in the store: it is only read, so they stay where they are until it is \
                     served to be written",
                    volume.meta.name
                );
            }
            continue;
        }
        if pool.is_none() && wanted.has(&volume.meta.name)
            || (pool.is_some() || wanted.is_all()) && volumes.has_journal(volume).await
        {
            at_once.push(volume.meta.name.to_string());
        }
    }
    let only: Vec<String> = wanted.names().iter().map(ExportName::to_string).collect();
    let exports = match &pool {
        None => VolumeExports::new(volumes, &only, read_only.clone()),
        Some(_) => VolumeExports::of_pool(volumes, &only, read_only.clone()),
    };
    files::make_room(config.nbd.max_connections);
    // First the addresses: a server that cannot listen must not take a volume.
    let bound = Server::open(config.nbd.clone(), doors, Arc::new(exports.clone())).await;
    let server = Arc::new(bound.map_err(Failure::failed)?);
    let watched = listen_for_metrics(config).await?;
    let metrics = watched.as_ref().map(metrics::Listener::url).transpose().map_err(Failure::failed)?;
    let (leave, clock) = (Arc::new(Notify::new()), outside::real().0);
    let division = config.division();
    let insight = Arc::new(Insight {
        memory: division.memory,
        store: store.url(),
        health,
        meter,
        buffers,
        budget,
        store_patience: config.metrics.store_patience,
        cache: blocks,
        exports: exports.clone(),
        keeper,
        server: Arc::clone(&server),
        since_unix_millis: clock.unix_millis(),
        clock,
        leave: Arc::clone(&leave),
    });
    insight.buffers.tell(insight.budget.pressure());
    let keeper = keeping::Server(Arc::clone(&insight));
    drop(tokio::spawn(keep(keeper, Balance::new(division.bounds()), insight.budget.pressure().clone())));
    if let Some(listener) = watched {
        // Also while volumes are opened, which may take long.
        let telling = Arc::new(Telling::new(Arc::clone(&insight), config.metrics.history));
        drop(tokio::spawn(async move {
            tokio::join!(listener.run(Arc::clone(&telling) as Arc<dyn metrics::Teller>), telling.keep_samples())
        }));
    }
    open_at_once(&exports, &at_once, pool.is_none() && !only.is_empty(), wait).await?;
    let claiming =
        pool.map(|pool| Claiming::begin(pool, Arc::clone(&store), exports.clone(), Arc::clone(&server), config));
    let shown = match show(&served, &described, &exports, &read_only).await {
        Ok(shown) => shown,
        Err(why) => {
            exports.close().await;
            return Err(why);
        }
    };
    info!("{}", division.line());
    match control::listen(&config.state) {
        Ok(listener) => drop(tokio::spawn(control::serve(listener, insight))),
        Err(error) => warn!("`ashlar status` will not work: {}: {error}", control::path(&config.state).display()),
    }
    let tls = config.nbd.tls.mode == TlsMode::Required;
    let listening = listening(&server, tls, host_name);
    let places = Places { store: &store.url(), listening: &listening, metrics };
    let welcome = welcome(config, &places, &shown);
    Ok(Running { server, exports, welcome, leave, purse, claiming })
}

/// The listener for those who watch, if there is to be one.
async fn listen_for_metrics(config: &Effective) -> Result<Option<metrics::Listener>, Failure> {
    let Some(address) = &config.metrics.listen else { return Ok(None) };
    let address = doors::resolve(config, "metrics.listen", address).await?;
    if let Some(fault) = metrics::fault(&config.metrics, address) {
        return Err(config.refuse("metrics.listen", fault).into());
    }
    let listener = metrics::Listener::open(&config.metrics, address).await.map_err(Failure::failed)?;
    Ok(Some(listener))
}

/// Whether the names of volumes can be, as far as the configuration says by itself.
pub fn check_names(config: &Effective) -> Outcome {
    let wanted = Wanted::of(config)?;
    // Without names the store says which there are.
    if !wanted.is_all() {
        wanted::read_only(config, wanted.names())?;
    }
    Ok(())
}

/// The volume that is made for somebody who begins.
const FIRST_VOLUME: &str = "disk0";
/// Its size in bytes; it takes no space until it is written to.
const FIRST_VOLUME_SIZE: u64 = 10 << 30;

/// The names of all volumes; a first one is made if there is none, and none vanished.
async fn all_volumes(
    config: &Effective,
    store: &Arc<dyn Store>,
    has_had_volumes: bool,
    random: &Random,
) -> Result<Vec<ExportName>, Failure> {
    let names = volume::names(&**store).await?;
    if !names.is_empty() {
        return Ok(names.into_iter().map(ExportName::from).collect());
    }
    if has_had_volumes {
        outside::refuse_emptied(config, &**store).await?;
    }
    let name = VolumeName::new(FIRST_VOLUME).map_err(Failure::failed)?;
    // No recovery key: it would end up in a log. `ashlar key add --recovery-key` makes one.
    let secret = secrets::configured(config, &name).await?;
    let encryption = secret.map(|secret| NewEncryption { secret, cost: secrets::cost(), recovery: false });
    let options = CreateOptions { size: FIRST_VOLUME_SIZE, encryption, ..CreateOptions::default() };
    let (clock, _, _) = outside::real();
    match volume::create(&**store, random, &clock, &name, options).await {
        Ok(_) => info!("the store is empty: made volume {name}, {}, thin", exact_bytes(FIRST_VOLUME_SIZE)),
        // Another server had the same thought.
        Err(VolumeError::AlreadyExists { .. }) => {}
        Err(error) => return Err(Failure::failed(error)),
    }
    Ok(vec![name.into()])
}

/// Descriptions that are fetched at one time.
const PARALLEL: usize = 16;

/// Their volumes, each once. One that cannot be understood is served to nobody; if it was not asked for by name, the others are.
async fn describe(volumes: &StoreVolumes, served: &[ExportName], are_all: bool) -> Result<Vec<Description>, Failure> {
    let names: BTreeSet<&VolumeName> = served.iter().map(|name| &name.volume).collect();
    let described: Vec<_> = stream::iter(&names).map(|name| volumes.describe(name)).buffered(PARALLEL).collect().await;
    let understood = names.into_iter().zip(described).filter_map(|(name, described)| match described {
        Err(error @ VolumeError::Corrupt { .. }) if are_all => {
            warn!("volume {name} is not served: {error}");
            None
        }
        described => Some(described),
    });
    understood.collect::<Result<_, _>>().map_err(Failure::failed)
}

/// Opens what was named, and what this server's journal holds changes of, so that those get into the store even if no
/// client comes. `all` says that none may fail, but for one that another server has if that is waited for.
async fn open_at_once(exports: &VolumeExports<StoreVolumes>, names: &[String], all: bool, wait: bool) -> Outcome {
    let opened = futures::future::join_all(names.iter().map(|name| exports.claim(name))).await;
    let refused = opened.into_iter().filter_map(Result::err);
    let (held, refused): (Vec<_>, Vec<_>) =
        refused.partition(|error| wait && matches!(error, ExportError::Elsewhere(_)));
    held.iter().for_each(|why| warn!("waiting: it is tried again whenever a client asks: {why}"));
    let refused: Vec<String> = refused.iter().map(ExportError::to_string).collect();
    if !all {
        refused.iter().for_each(|why| warn!("{why}"));
        return Ok(());
    }
    if refused.is_empty() {
        return Ok(());
    }
    // Those that did open are given back in good order.
    exports.close().await;
    Err(Failure::Failed(refused.join("\nashlar: ")))
}

fn listening(server: &Server, tls: bool, host_name: String) -> Listening {
    let mut listening = Listening { tcp: None, tls, socket: None, vsock: None, host_name };
    for address in server.addresses() {
        match address {
            ListenAddr::Tcp(tcp) => listening.tcp = listening.tcp.or(Some(*tcp)),
            ListenAddr::Unix(path) => listening.socket = listening.socket.or(std::path::absolute(path).ok()),
            ListenAddr::Vsock(address) => listening.vsock = listening.vsock.or(Some(*address)),
        }
    }
    listening
}

/// Volumes whose lines are printed; further ones are counted.
const SHOWN: usize = 8;

/// What `-b` means: partition tables and filesystems count in it.
const SECTORS: &str = "-b is the disk's sector size: give the same for the life of what is on the disk. An image that was \
                       partitioned elsewhere (a cloud image, a virtual machine's disk) needs -b 512.";

/// Where things are.
struct Places<'a> {
    store: &'a str,
    listening: &'a Listening,
    metrics: Option<String>,
}

/// An export that is shown.
struct Shown {
    name: String,
    /// What it is, for people.
    what: String,
    block_size: u32,
}

/// What is shown of what is served. Snapshots are looked up for it: one that was named must be there.
async fn show(
    served: &[ExportName],
    described: &[Description],
    exports: &VolumeExports<StoreVolumes>,
    read_only: &ReadOnlyVolumes,
) -> Result<Vec<Shown>, Failure> {
    let mut shown = Vec::new();
    for export in served {
        let Some(Description { meta, .. }) = described.iter().find(|it| it.meta.name == export.volume) else {
            continue;
        };
        let (name, encrypted) = (export.to_string(), if meta.encryption.is_some() { ", encrypted" } else { "" });
        let (kind, size, is_read_only) = match &export.snapshot {
            None => ("volume", meta.size, read_only.contains(&name)),
            Some(snapshot) => {
                let past = exports.past(&name, export.volume.as_str(), snapshot.as_str()).await;
                ("snapshot", past.map_err(Failure::failed)?.info().size, true)
            }
        };
        let only_read = if is_read_only { ", read-only" } else { "" };
        let what = format!("{kind} {name}, {}{encrypted}{only_read}", exact_bytes(size));
        shown.push(Shown { name, what, block_size: meta.block_size.bytes() });
    }
    Ok(shown)
}

/// What somebody needs who wants to attach a volume.
fn welcome(config: &Effective, places: &Places<'_>, shown: &[Shown]) -> String {
    let Places { store, listening, metrics } = places;
    let mut lines = vec![format!("store {store}"), format!("state {}", config.state.display())];
    lines.extend(listening.tcp.map(|tcp| format!("listening on {tcp}")));
    lines.extend(listening.socket.as_ref().map(|path| format!("listening on {}", path.display())));
    lines.extend(listening.vsock.map(|address| format!("listening on {address}")));
    lines.extend(metrics.as_ref().map(|url| format!("metrics at {url}")));
    if !shown.is_empty() {
        lines.push(format!("\n{SECTORS}"));
    }
    for (device, Shown { name, what, block_size }) in shown.iter().take(SHOWN).enumerate() {
        lines.push(format!("\n{what}"));
        let clients = listening.client_lines(name, *block_size, device);
        lines.extend(clients.into_iter().chain(listening.uris(name)).map(|line| format!("  {line}")));
    }
    if shown.len() > SHOWN {
        lines.push(format!("\nand {} more volumes; `ashlar list --store {store}` shows all", shown.len() - SHOWN));
    }
    lines.join("\n")
}
