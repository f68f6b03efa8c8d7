//! What the kernel shows of its NBD devices in /sys, and what can be learned by opening them.

use std::io;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

/// What stands in front of the backend's name of a device that `ashlar attach` made.
const MARK: &str = "ashlar";

/// The path of a device.
pub fn path(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{device}"))
}

/// The number of a device: of `/dev/nbd7`, or just `nbd7`.
pub fn number(device: &str) -> Option<u32> {
    let digits = device.strip_prefix("/dev/").unwrap_or(device).strip_prefix("nbd")?;
    digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The name that the kernel keeps of what is behind a device.
pub fn backend(volume: &str, uuid: &str) -> String {
    format!("{MARK}:{volume}:{uuid}")
}

/// The volume of such a name. Names of volumes have no colons.
pub fn volume_of(backend: &str) -> Option<&str> {
    let mut parts = backend.split(':');
    (parts.next() == Some(MARK)).then(|| parts.next())?
}

/// The numbers of all devices that the kernel has, in order, be they attached or not.
pub fn all() -> Vec<u32> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    numbers
}

/// A file of a device in /sys; `None` if it is not there.
fn read(device: u32, file: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/block/nbd{device}/{file}")).ok()?;
    Some(text.trim().to_owned())
}

/// What is behind a device, as whoever attached it said.
pub fn backend_of(device: u32) -> Option<String> {
    read(device, "backend").filter(|text| !text.is_empty())
}

/// Bytes.
pub fn size(device: u32) -> Option<u64> {
    Some(read(device, "size")?.parse::<u64>().ok()? * 512)
}

/// Whether nobody may write to it.
pub fn is_read_only(device: u32) -> bool {
    read(device, "ro").as_deref() == Some("1")
}

/// The thread that attached it.
pub fn attached_by(device: u32) -> Option<u32> {
    read(device, "pid")?.parse().ok()
}

/// The process to which a thread belongs, if it is an `ashlar attach` that lives.
pub fn supervisor(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())?;
    let command = std::fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?;
    let mut words = command.split('\0');
    let program = words.next()?.rsplit('/').next()?;
    (program == MARK && words.any(|word| word == "attach")).then_some(process)
}

/// How long a request may wait until the kernel looks whether it must be sent again, in milliseconds.
pub fn set_request_tick(device: u32, millis: u128) -> io::Result<()> {
    let path = format!("/sys/block/nbd{device}/queue/io_timeout");
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, millis.to_string().as_bytes())?;
    Ok(())
}

/// Reads the first bytes of a device, past the page cache.
pub fn read_direct(device: u32, len: u32) -> io::Result<()> {
    let mut left = 1;
    read_while(device, len, || std::mem::replace(&mut left, 0) > 0)
}

/// The same again and again, as long as it is wanted.
pub fn read_while(device: u32, len: u32, mut is_wanted: impl FnMut() -> bool) -> io::Result<()> {
    const ALIGN: usize = 4096;
    let len = len as usize;
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = rustix::fs::open(path(device), flags, Mode::empty())?;
    let mut buffer = vec![0_u8; len + ALIGN];
    let start = buffer.as_ptr().align_offset(ALIGN);
    let into = buffer.get_mut(start..start + len).ok_or(io::ErrorKind::OutOfMemory)?;
    while is_wanted() {
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut *into, 0))?;
        if read != len {
            return Err(io::Error::other(format!("{read} of {len} bytes came back")));
        }
    }
    Ok(())
}

/// Has everything that was written to a device flushed.
pub fn flush(device: u32) -> io::Result<()> {
    let file = rustix::fs::open(path(device), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fsync(&file)?)
}

/// Whether somebody has claimed a device: mounted it, made it swap, put another device on it.
pub fn is_claimed(device: u32) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(path(device), flags, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(rustix::io::Errno::BUSY) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_path_or_name_and_nothing_else() {
        assert_eq!(number("/dev/nbd0"), Some(0));
        assert_eq!(number("nbd12"), Some(12));
        for bad in ["nbd", "/dev/nbd0p1", "nbd+1", "/dev/sda", "0", "/dev/nbd99999999999"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_volume_is_found_in_the_name_of_its_backend_only() {
        assert_eq!(volume_of(&backend("db.1", "uuid")), Some("db.1"));
        for other in ["db", "other:db:uuid", "", "ashlar"] {
            assert_eq!(volume_of(other), None, "{other}");
        }
    }
}
