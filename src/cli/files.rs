//! Open files: a crowd of connections must not take those that the store and the journal need.

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// An attached client's socket is held twice: the second is to ask whether its host is still there.
const OF_A_CONNECTION: u64 = 2;

/// What everything else of a server opens at a time: the store, the journal, the cache, the log.
const OF_THE_REST: u64 = 512;

/// Takes as many open files as the system lets this process have, and says so if they are too few for so many connections.
pub fn make_room(connections: usize) {
    let raised = raise();
    if let Some(why) = too_few(raised, connections) {
        warn!("{why}");
    }
}

/// Raises the limit as far as it goes; how many files there may be, where there is a limit.
fn raise() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    // Refused, it stays as it is.
    if setrlimit(Resource::Nofile, limit).is_ok() { limit.maximum } else { before }
}

/// How many files this process could open, where there is a limit.
pub fn most() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// How many files another process may open, by its `/proc/PID/limits`.
pub fn of(limits: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok())
}

/// Why so many open files are too few for so many connections, if they are.
pub fn too_few(files: Option<u64>, connections: usize) -> Option<String> {
    let (files, needed) = (files?, (connections as u64).saturating_mul(OF_A_CONNECTION).saturating_add(OF_THE_REST));
    (files < needed).then(|| {
        format!(
            "nbd.max_connections = {connections} can take {needed} open files, and this process may have {files}: a crowd of clients could leave \
             none for the store; raise the limit (ulimit -n, LimitNOFILE=) or lower nbd.max_connections"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_for_the_connections_is_said() {
        for (files, connections, fits) in [
            (None, usize::MAX, true),
            (Some(1024), 256, true),
            (Some(1023), 256, false),
            (Some(524_288), 10_000, true),
            (Some(20_000), 10_000, false),
            (Some(u64::MAX - 1), usize::MAX, false),
        ] {
            assert_eq!(too_few(files, connections).is_none(), fits, "{files:?} {connections}");
        }
        let said = too_few(Some(1024), 300).unwrap();
        assert!(
            said.starts_with("nbd.max_connections = 300 can take 1112 open files, and this process may have 1024: "),
            "{said}"
        );
    }

    #[test]
    fn the_limit_of_another_process_is_that_in_effect() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             63396                63396                processes \n\
                      Max open files            4096                 524288               files     \n";
        assert_eq!(of(limits), Some(4096));
        assert_eq!((of("Max open files  unlimited  unlimited  files"), of("")), (None, None));
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let files = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((files, limit.current), (limit.maximum, limit.maximum));
    }
}
