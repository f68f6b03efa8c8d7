//! What a panic means in a server: the end of the process (rule R15). A server of which one task is dead may hold locks for
//! ever, answer some clients and not others, or promise what nobody carries out any more; the journal brings everything that
//! was acknowledged back at the next start.
//!
//! Any thread and any task count, whoever waits for it: the hook runs before the panic unwinds, so nothing that the unwinding
//! would do (an error to a client, a lock let go) is seen by anybody. So whoever finds that what must never happen has
//! happened only needs to panic. The one exception is foreign code whose panics say something of what it was given:
//! [`contain`].

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::pin;
use std::sync::OnceLock;
use std::task::Poll;
use std::thread::{self, ThreadId};

/// The exit code of a process that ended because a part of it panicked (as `EX_SOFTWARE` of sysexits.h).
pub const EXIT_CODE: i32 = 70;

/// From now on a panic, on whatever thread, ends the process with [`EXIT_CODE`] after one line was handed to `say`, which must
/// neither panic nor wait for long.
pub fn end_the_process(say: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        if !CONTAINED.get() {
            end(panic, &say);
        }
    }));
}

fn end(panic: &PanicHookInfo<'_>, say: &dyn Fn(&str)) -> ! {
    static FIRST: OnceLock<ThreadId> = OnceLock::new();
    let this = thread::current().id();
    let mut is_first = false;
    let first = *FIRST.get_or_init(|| {
        is_first = true;
        this
    });
    if is_first {
        say(&words(panic));
        std::process::exit(EXIT_CODE);
    }
    if first == this {
        // Even the end panics.
        std::process::abort();
    }
    // Another thread is ending the process; this one must not go on meanwhile.
    loop {
        thread::park();
    }
}

/// One line, and a backtrace if RUST_BACKTRACE asks for it.
fn words(panic: &PanicHookInfo<'_>) -> String {
    let what = panic.payload_as_str().unwrap_or("no words").replace('\n', " ");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    let line = format!(
        "a part of the server has failed, which is a bug, and the server ends: {what}{place}; what was acknowledged is in the \
         journal, and the next start on this host goes on from there"
    );
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => format!("{line}\n{trace}"),
        _ => line,
    }
}

thread_local! {
    /// What runs on this thread just now may panic.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs foreign code that may panic about what it was given: such a panic is an error, and ends nothing.
pub async fn contain<T>(work: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        let before = CONTAINED.replace(true);
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        CONTAINED.set(before);
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::outside::Workers;

    /// Names the way in which the child of these tests panics.
    const WAY: &str = "ASHLAR_TEST_PANIC";

    /// A process of its own that panics in that way, with that standard error.
    fn child(way: &str, err: Stdio) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "outside::panics::tests::panics", "--nocapture"]);
        command.env(WAY, way).env_remove("RUST_BACKTRACE").stdout(Stdio::null()).stderr(err).output().unwrap()
    }

    #[test]
    #[ignore = "the child of the tests below"]
    fn panics() {
        end_the_process(|words| drop(writeln!(std::io::stderr(), "test: {words}")));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        match std::env::var(WAY).unwrap().as_str() {
            // Nobody waits for the task: it would be missed by nobody.
            "task" => drop(runtime.spawn(async { panic!("the uploader\nis gone") })),
            "worker" => drop(runtime.spawn(Workers::Threads.run(|| panic!("the worker is gone")))),
            "caught" => drop(runtime.spawn(async { drop(catch_unwind(|| panic!("is gone, and caught"))) })),
            "many" => {
                for _ in 0..64 {
                    runtime.spawn_blocking(|| panic!("all at once"));
                }
            }
            "contained" => {
                let strange: Result<(), _> = runtime.block_on(contain(async {
                    tokio::task::yield_now().await;
                    panic!("a strange answer")
                }));
                let Err(strange) = strange else { unreachable!("it panicked") };
                assert_eq!(strange.downcast_ref(), Some(&"a strange answer"));
                // Later panics of the same thread are no part of it.
                panic!("afterwards");
            }
            other => unreachable!("{other}"),
        }
        thread::sleep(Duration::from_secs(300));
        std::process::exit(0);
    }

    #[test]
    fn a_panic_of_any_task_or_worker_ends_the_process_with_one_line() {
        for (way, what) in [
            ("task", "the uploader is gone"),
            ("worker", "the worker is gone"),
            ("caught", "is gone, and caught"),
            ("many", "all at once"),
            ("contained", "afterwards"),
        ] {
            let ended = child(way, Stdio::piped());
            let said = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(ended.status.code(), Some(EXIT_CODE), "{way}: {said}");
            let start =
                format!("test: a part of the server has failed, which is a bug, and the server ends: {what} at src/");
            assert!(said.starts_with(&start) && said.trim_end().lines().count() == 1, "{way}: {said}");
        }
    }

    #[test]
    fn it_ends_even_if_its_words_cannot_be_written() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(child("task", full.into()).status.code(), Some(EXIT_CODE));
    }
}
