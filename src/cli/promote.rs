//! `ashlar promote`: a mirror becomes a volume.

use std::sync::Arc;
use std::time::Duration;

use super::failure::{Failure, Outcome};
use super::{output, outside, runtime, secrets};
use crate::config::Effective;
use crate::human::{about_bytes, counted};
use crate::opening::promote::{self, Found, Lack, Position};
use crate::outside::Random;
use crate::store::Store;
use crate::store::open::{Access, StoreOptions};
use crate::store::retry::RetryOptions;
use crate::volume::VolumeName;

/// How long the first store is asked for, which may be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a volume of its mirror: what the mirror holds, to be served as any other volume of that store.
///
/// The mirror is in the store that mirror.url names, and the first one in store.url. Without mirror.url the mirror is in store.url; --from then names the first
/// one, if that may still be there.
///
/// It says what the mirror lacks: exactly, if the first store can be read; else how far the mirror is. Nothing more is copied into it from then on; a server that still has the volume
/// in the first store goes on there, for itself, and says so. There is no way back: a new mirror begins with a new copy.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ashlar promote db --dry-run           what would be lost now
  ashlar promote db                     of a volume that was closed
  ashlar promote db --takeover          its server is gone, or did not close it
  ashlar serve db --store s3://second/disks --state ./second-state

docs/mirror.md says what a mirror is, and how a server goes on with one.")]
pub struct Args {
    /// The volume
    name: VolumeName,

    /// The first store, if mirror.url is not set: what it has is compared
    #[arg(long, value_name = "URL")]
    from: Option<String>,

    /// Promote it although a server did not close the volume
    #[arg(long)]
    takeover: bool,

    /// Say what the mirror lacks, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// What the first store has that the mirror has not; why that is not known, if it is not. Nothing if nobody named a first store.
type Compared = Option<Result<Lack, String>>;

/// Runs the command.
pub fn run(args: &Args, config: &Effective) -> Outcome {
    let runtime = runtime()?;
    runtime.block_on(promote(args, config))
}

async fn promote(args: &Args, config: &Effective) -> Outcome {
    let (mirror, first) = stores(args, config)?;
    let access = if args.dry_run { Access::Read } else { Access::Write };
    let store = outside::open_with(&mirror, access).await?.store;
    let secrets = secrets::of(config);
    let found = promote::look(&store, &args.name, &secrets).await?;
    let compared = compare(&found, first, config).await;
    if args.dry_run {
        return tell(args, &*store, &found.position(), &compared);
    }
    let (clock, ..) = outside::real();
    let random = Random::system();
    let server = outside::passing_identity(&random);
    let position = found.promote((&random, &clock), &server, &secrets, args.takeover).await?;
    tell(args, &*store, &position, &compared)
}

/// The store of the mirror, and the first one, as far as it is named.
fn stores(args: &Args, config: &Effective) -> Result<(StoreOptions, Option<StoreOptions>), Failure> {
    match (outside::mirror_store(config)?, &args.from) {
        (Some(_), Some(_)) => Err(Failure::usage(
            "--from is for a configuration without mirror.url, whose store.url is that of the mirror: leave it out",
        )),
        (Some(mirror), None) => Ok((mirror, Some(config.store.clone()))),
        (None, from) => {
            let first = from.as_ref().map(|url| StoreOptions { url: url.clone(), ..config.store.clone() });
            Ok((config.store.clone(), first))
        }
    }
}

async fn compare(found: &Found, first: Option<StoreOptions>, config: &Effective) -> Compared {
    let first = first?;
    let retry = RetryOptions { read_limit: PATIENCE.min(first.retry.read_limit), ..first.retry };
    let options = StoreOptions { retry, ..first };
    Some(match outside::open_with(&options, Access::Read).await {
        Ok(opened) => {
            let first: Arc<dyn Store> = opened.store;
            found.lacks(first, &secrets::of(config)).await.map_err(|error| error.to_string())
        }
        Err(failure) => Err(failure.to_string()),
    })
}

fn tell(args: &Args, store: &dyn Store, position: &Position, compared: &Compared) -> Outcome {
    if args.json {
        let lack = compared.as_ref().and_then(|compared| compared.as_ref().ok());
        return output::json(&serde_json::json!({
            "volume": args.name.as_str(),
            "store": store.url(),
            "promoted": !args.dry_run,
            "last_commit_change": position.covers.0,
            "last_commit_seq": position.committed.0,
            "closed": position.is_closed,
            "missing_changes": lack.map(|lack| lack.changes),
            "missing_objects": lack.map(|lack| lack.objects + lack.gone),
            "missing_bytes": lack.map(|lack| lack.bytes),
            "not_compared": compared.as_ref().and_then(|compared| compared.as_ref().err()),
        }));
    }
    output::text(words(args, &store.url(), position, compared))
}

fn words(args: &Args, url: &str, position: &Position, compared: &Compared) -> String {
    let Args { name, dry_run, .. } = args;
    let far = format!("change {} (slot {} of the log)", position.covers, position.committed);
    let whose = match (&position.holder, position.is_closed) {
        (None, _) => "nobody ever opened it".to_owned(),
        (Some(holder), true) => format!("{holder} had it, and closed it"),
        (Some(holder), false) => format!("{holder} had it, and did not close it as far as the mirror has that"),
    };
    let open = if position.is_closed { "" } else { ", beside what its server had not brought into the store" };
    let unknown = |why: &str| match position.is_closed {
        true => format!("what it lacks is not known: {why}"),
        false => format!("it lacks what its server had not brought into the store; what else is not known: {why}"),
    };
    let lacks = match compared {
        None => unknown("no first store was named"),
        Some(Err(why)) => unknown(&format!("the first store cannot be compared: {why}")),
        Some(Ok(lack)) if *lack == Lack::default() => format!("it lacks nothing of what the first store has{open}"),
        Some(Ok(lack)) => {
            let gone = match lack.gone {
                0 => String::new(),
                gone => format!(", and {} that the first store has no more", counted(gone, "object")),
            };
            format!(
                "it lacks {} of what the first store has: {} with {}{gone}{open}",
                counted(lack.changes, "change"),
                counted(lack.objects, "object"),
                about_bytes(lack.bytes)
            )
        }
    };
    let end = match dry_run {
        true => format!("nothing was changed; ashlar promote {name} makes a volume of it"),
        false => format!("it is a volume of {url} now, and gets no more from the first store"),
    };
    format!("the mirror of {name} in {url} holds all up to {far}; {whose}\n{lacks}\n{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ChangeNo, Seq};

    fn said(compared: Compared, is_closed: bool, dry_run: bool) -> String {
        let name = VolumeName::new("db").unwrap();
        let args = Args { name, from: None, takeover: false, dry_run, json: false };
        let position = Position { covers: ChangeNo(7), committed: Seq(5), next: Seq(6), holder: None, is_closed };
        words(&args, "file:///b", &position, &compared)
    }

    #[test]
    fn what_is_missing_is_said_or_why_that_is_not_known() {
        let lack = Lack { changes: 3, objects: 1, bytes: 2 << 20, gone: 0 };
        assert_eq!(
            said(Some(Ok(lack)), false, false),
            "the mirror of db in file:///b holds all up to change 7 (slot 5 of the log); nobody ever opened it\n\
             it lacks 3 changes of what the first store has: 1 object with 2.0 MiB, beside what its server had not brought into the store\n\
             it is a volume of file:///b now, and gets no more from the first store"
        );
        let nothing = said(Some(Ok(Lack::default())), true, true);
        assert!(nothing.contains("\nit lacks nothing of what the first store has\nnothing was changed;"), "{nothing}");
        let unknown = said(Some(Err("it is away".into())), true, true);
        assert!(unknown.contains("cannot be compared: it is away\n"), "{unknown}");
    }
}
