//! `ashlar config check FILE`: whether a server would take that file.

use std::path::Path;

use super::failure::{Failure, Outcome};
use super::{logging, output, runtime, start};
use crate::config::{self, Effective, Inputs};
use crate::metrics;
use crate::nbd::Tls;

/// Runs the command. Only the file counts: neither variables nor flags, so that the answer is the same everywhere.
pub fn run(file: &Path) -> Outcome {
    let config = config::load(Inputs { file: Some(file.to_owned()), ..Inputs::default() })?;
    let faults = runtime()?.block_on(faults(&config));
    if !faults.is_empty() {
        return Err(Failure::usage(faults.join("\nashlar: ")));
    }
    let set = match config.keys_set() {
        1 => "1 key".to_owned(),
        set => format!("{set} keys"),
    };
    output::text(format!("{}: a server takes it; it sets {set}", file.display()))
}

/// What is wrong beyond what each key may say: what a server looks at when it starts, without taking or asking anything.
pub async fn faults(config: &Effective) -> Vec<String> {
    let names = start::check_names(config).err();
    let filter = logging::filter(config).err();
    let url = config.store.check_url().err().map(|error| Failure::from(config.refuse("store.url", error.message)));
    let tls = Tls::load(&config.nbd.tls).await.err().map(Failure::usage);
    let watching = metrics::check_files(&config.metrics).await.err().map(Failure::usage);
    [names, filter, url, tls, watching].into_iter().flatten().map(|failure| failure.to_string()).collect()
}
