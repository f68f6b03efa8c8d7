//! Clock, limits, memory, kernel.

use super::finding::{About, Finding};
use crate::cli::{files, outside};
use crate::config::{Config, Memory};
use crate::human::about_bytes;
use crate::human::date;
use crate::memory;

/// 2026-01-01: a clock before it was not set, as there was no ashlar then.
const FIRST_MILLIS: u64 = 1_767_225_600_000;

/// Kernels before this one do not keep the name of what is behind a device, by which `detach` finds a volume.
const KEEPS_BACKEND: (u32, u32) = (5, 14);

/// What was found of the machine.
#[derive(Clone, Debug)]
struct Machine {
    unix_millis: u64,
    /// Bytes of memory that there are for this process; of the host, or of its control group.
    memory: Option<u64>,
    /// Files that the server may open, or would be able to; `None` if there is no limit.
    files: Option<u64>,
    kernel: String,
    client: Client,
}

/// The NBD client of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Loaded,
    /// It is there as a module.
    Module,
    Absent,
}

/// Looks at the machine; `server` is the process that serves, if one does.
pub fn look(config: &Config, server: Option<u32>) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = format!("/lib/modules/{kernel}");
    let listed = ["modules.dep", "modules.builtin"].map(|file| read(&format!("{modules}/{file}"))).concat();
    let client = match std::path::Path::new("/sys/module/nbd").exists() {
        true => Client::Loaded,
        false if names_client(&listed) => Client::Module,
        false => Client::Absent,
    };
    judge(
        &Machine {
            unix_millis: outside::real().0.unix_millis(),
            memory: memory::Machine::look().bytes(),
            files: server.map_or_else(files::most, |pid| files::of(&read(&format!("/proc/{pid}/limits")))),
            kernel,
            client,
        },
        config,
    )
}

/// Whether a list of modules has the NBD client.
fn names_client(modules: &str) -> bool {
    modules.lines().any(|line| line.split([':', ' ']).next().is_some_and(|path| path.contains("/nbd.ko")))
}

fn judge(machine: &Machine, config: &Config) -> Vec<Finding> {
    let clock = match machine.unix_millis {
        millis if millis < FIRST_MILLIS => About::Machine.wrong(format!(
            "the clock says {}, which cannot be: stores refuse requests of another time; let NTP set it",
            date(millis)
        )),
        millis => About::Machine.good(format!("the clock says {}", date(millis))),
    };
    vec![clock, memory_there(machine.memory, config.memory), open_files(machine.files, config), kernel(machine)]
}

fn memory_there(there: Option<u64>, memory: Memory) -> Finding {
    let taken = match memory {
        Memory::Bytes(bytes) => about_bytes(bytes),
        // A configuration in effect always says how much.
        Memory::Auto => "some of it".to_owned(),
    };
    let Some(there) = there else {
        return About::Machine.doubtful(format!(
            "how much memory there is cannot be found out, and a server may take {taken}: see memory"
        ));
    };
    let there_said = about_bytes(there);
    match memory {
        Memory::Bytes(bytes) if bytes > there => About::Machine.doubtful(format!(
            "a server may take {taken} of memory and {there_said} are there: the kernel would end it; lower memory, or what is set beside it"
        )),
        _ => About::Machine.good(format!("a server may take {taken} of memory, and {there_said} are there")),
    }
}

fn open_files(most: Option<u64>, config: &Config) -> Finding {
    match files::too_few(most, config.nbd.max_connections) {
        Some(why) => About::Machine.doubtful(why),
        None => About::Machine.good(match most {
            Some(most) => format!("a server may open {most} files, which is enough for its connections"),
            None => "a server may open any number of files".to_owned(),
        }),
    }
}

fn kernel(Machine { kernel, client, .. }: &Machine) -> Finding {
    let mut numbers = kernel.split(['.', '-']).map_while(|part| part.parse().ok());
    let version: Option<(u32, u32)> = numbers.next().zip(numbers.next());
    match client {
        Client::Absent => About::Machine.doubtful(format!(
            "kernel {kernel} has no NBD client (no module nbd): disks can be served from here but not attached; install the modules of this \
             kernel to attach one"
        )),
        Client::Module => About::Machine.doubtful(format!(
            "the NBD client of kernel {kernel} is not loaded: no disk can be attached here before `modprobe nbd`"
        )),
        Client::Loaded if version.is_some_and(|version| version < KEEPS_BACKEND) => About::Machine.doubtful(format!(
            "kernel {kernel} does not keep what is behind an NBD device, as those since 5.14 do: `ashlar detach` wants the device and not \
             the volume"
        )),
        Client::Loaded => About::Machine.good(format!("kernel {kernel} has its NBD client loaded")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Weight;
    use super::*;

    fn machine() -> Machine {
        Machine {
            unix_millis: 1_800_000_000_000,
            memory: Some(64 << 30),
            files: Some(524_288),
            kernel: "6.1.0-18-amd64".into(),
            client: Client::Loaded,
        }
    }

    #[track_caller]
    fn the_only_one_not_good(machine: &Machine, config: &Config, weight: Weight, words: &str) {
        let mut findings = judge(machine, config);
        findings.retain(|finding| finding.weight != Weight::Good);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].weight == weight && findings[0].sentence.contains(words), "{findings:?}");
    }

    #[test]
    fn a_machine_that_is_as_it_should_be_is_good() {
        assert!(judge(&machine(), &Config::default()).iter().all(|finding| finding.weight == Weight::Good));
    }

    #[test]
    fn each_thing_that_is_not_has_its_sentence() {
        let config = Config { memory: Memory::Bytes(4 << 30), ..Config::default() };
        let then = Machine { unix_millis: 86_400_000, ..machine() };
        the_only_one_not_good(&then, &config, Weight::Wrong, "the clock says 1970-01-02T00:00:00Z");
        let small = Machine { memory: Some(2 << 30), ..machine() };
        the_only_one_not_good(
            &small,
            &config,
            Weight::Doubtful,
            "and 2.0 GiB are there: the kernel would end it; lower",
        );
        let unknown = Machine { memory: None, ..machine() };
        the_only_one_not_good(&unknown, &config, Weight::Doubtful, "cannot be found out");
        let few = Machine { files: Some(1000), ..machine() };
        the_only_one_not_good(&few, &config, Weight::Doubtful, "nbd.max_connections = 256 can take 1024 open files");
        let absent = Machine { client: Client::Absent, ..machine() };
        the_only_one_not_good(&absent, &config, Weight::Doubtful, "no module nbd");
        let module = Machine { client: Client::Module, ..machine() };
        the_only_one_not_good(&module, &config, Weight::Doubtful, "modprobe nbd");
        let old = Machine { kernel: "5.10.0".into(), ..machine() };
        the_only_one_not_good(&old, &config, Weight::Doubtful, "kernel 5.10.0 does not keep");
        let strange = Machine { kernel: "custom".into(), ..machine() };
        assert!(judge(&strange, &config).iter().all(|finding| finding.weight == Weight::Good));
    }

    #[test]
    fn the_lists_of_modules_are_read() {
        assert!(names_client("kernel/a.ko:\nkernel/drivers/block/nbd.ko.xz: kernel/b.ko\n"));
        assert!(!names_client("kernel/drivers/block/xnbd.ko:\nkernel/c.ko: kernel/drivers/block/nbd.ko\n"));
    }
}
