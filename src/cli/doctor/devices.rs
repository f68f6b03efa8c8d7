//! NBD devices of this host that `ashlar attach` made: whether somebody keeps each, and whether it answers.

use std::time::Duration;

use super::finding::{About, Finding};
use crate::attach::sysfs;
use crate::outside::Workers;

/// How long a device may take for a read.
const PATIENCE: Duration = Duration::from_secs(5);

/// A read of a device at its first bytes; what the kernel takes at least.
const READ_BYTES: u32 = 4096;

/// A device behind which is a volume.
#[derive(Debug)]
struct Device {
    path: String,
    volume: String,
    size: u64,
    /// The process that connects it again.
    supervisor: Option<u32>,
    answers: Answers,
}

/// What became of a read.
#[derive(Debug)]
enum Answers {
    Yes,
    /// Only root may try.
    NotTried,
    /// With an error.
    Fails(String),
    /// Not in time.
    Not,
}

/// Looks at all of them.
pub async fn look() -> Vec<Finding> {
    let mut devices = Vec::new();
    for device in sysfs::all() {
        let Some(backend) = sysfs::backend_of(device) else { continue };
        let Some(volume) = sysfs::volume_of(&backend) else { continue };
        devices.push(Device {
            path: sysfs::path(device).display().to_string(),
            volume: volume.to_owned(),
            size: sysfs::size(device).unwrap_or(0),
            supervisor: sysfs::attached_by(device).and_then(sysfs::supervisor),
            answers: read(device).await,
        });
    }
    judge(&devices)
}

async fn read(device: u32) -> Answers {
    let read = tokio::spawn(Workers::Threads.run(move || sysfs::read_direct(device, READ_BYTES)));
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(Ok(()))) => Answers::Yes,
        Ok(Ok(Err(error))) if error.kind() == std::io::ErrorKind::PermissionDenied => Answers::NotTried,
        Ok(Ok(Err(error))) => Answers::Fails(error.to_string()),
        Ok(Err(panic)) => Answers::Fails(panic.to_string()),
        Err(_) => Answers::Not,
    }
}

fn judge(devices: &[Device]) -> Vec<Finding> {
    match devices.is_empty() {
        true => vec![About::Devices.good("no volume is attached to this host by `ashlar attach`")],
        false => devices.iter().flat_map(judge_one).collect(),
    }
}

fn judge_one(Device { path, volume, size, supervisor, answers }: &Device) -> Vec<Finding> {
    if *size == 0 {
        return vec![About::Devices.wrong(format!(
            "{path} of volume {volume} has been given up (its size is 0): unmount what is on it, then `ashlar attach {volume}` anew"
        ))];
    }
    let kept = supervisor.is_none().then(|| {
        About::Devices.doubtful(format!(
            "nobody keeps {path} of volume {volume}: `ashlar attach` has died, and if its server goes, so does the disk; \
             `ashlar detach {path}` when it is not used, then attach it anew"
        ))
    });
    let answer = match answers {
        Answers::Yes => About::Devices.good(format!("{path} of volume {volume} answers")),
        Answers::NotTried => About::Devices.doubtful(format!(
            "whether {path} of volume {volume} answers only root can try: run this as root, too"
        )),
        Answers::Fails(why) => About::Devices.wrong(format!(
            "a read of {path} of volume {volume} fails: {why}; see the log of `ashlar attach` and of the server, and `ashlar check {volume}`"
        )),
        Answers::Not => About::Devices.wrong(format!(
            "{path} of volume {volume} does not answer a read within {} s: {}",
            PATIENCE.as_secs(),
            match supervisor {
                Some(pid) => format!(
                    "its server is away, or waits for its store; `ashlar attach` ({pid}) goes on trying, and its log says where"
                ),
                None => "and nobody connects it again; `ashlar detach --force` ends it".to_owned(),
            }
        )),
    };
    kept.into_iter().chain([answer]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Weight;
    use super::*;

    fn device(answers: Answers) -> Device {
        Device { path: "/dev/nbd0".into(), volume: "db".into(), size: 1 << 30, supervisor: Some(7), answers }
    }

    fn said(device: Device) -> Vec<(Weight, String)> {
        judge(&[device]).into_iter().map(|finding| (finding.weight, finding.sentence)).collect()
    }

    #[test]
    fn devices_that_are_given_up_kept_by_nobody_or_silent_are_said() {
        assert_eq!(judge(&[])[0].weight, Weight::Good);
        assert_eq!(said(device(Answers::Yes)), [(Weight::Good, "/dev/nbd0 of volume db answers".into())]);
        let gone = said(Device { size: 0, ..device(Answers::Yes) });
        assert!(gone.len() == 1 && gone[0].0 == Weight::Wrong && gone[0].1.contains("has been given up"), "{gone:?}");
        let alone = said(Device { supervisor: None, ..device(Answers::Yes) });
        assert!(alone[0].0 == Weight::Doubtful && alone[0].1.contains("ashlar detach /dev/nbd0"), "{alone:?}");
        let fails = said(device(Answers::Fails("Input/output error".into())));
        assert!(fails[0].0 == Weight::Wrong && fails[0].1.contains("fails: Input/output error; see"), "{fails:?}");
        let silent = said(device(Answers::Not));
        assert!(silent[0].0 == Weight::Wrong && silent[0].1.contains("within 5 s: its server is away"), "{silent:?}");
        let lost = said(Device { supervisor: None, ..device(Answers::Not) });
        assert!(lost[1].1.contains("nobody connects it again"), "{lost:?}");
        assert_eq!(said(device(Answers::NotTried))[0].0, Weight::Doubtful);
    }
}
