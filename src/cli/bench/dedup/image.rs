//! What is counted: files, disks, and volumes of the store. Nothing of them is changed, and of a volume only what it maps is read.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::runtime::Runtime;

use super::super::super::export_name::ExportName;
use super::super::super::failure::Failure;
use super::super::super::outside::{self, Cache};
use super::super::super::{runtime, secrets};
use super::FRAME;
use crate::config::Effective;
use crate::device::{Allocation, Device, DeviceError, Pieces, RUNS_MAX};
use crate::store::Store;
use crate::store::open::Access;
use crate::volume::{Budget, Past};

/// Of a volume so many bytes are read at once.
const PIECE: u64 = 4 << 20;

/// Of so many bytes of a volume it is asked at once what is mapped.
const STRETCH: u64 = 1 << 30;

/// A file, a disk, or a volume or snapshot of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// What is there under that path.
    File(PathBuf),
    /// What the store has under that name.
    Volume(ExportName),
}

impl FromStr for Image {
    type Err = String;

    /// What is there as a file is that, and what cannot be the name of a volume is a path.
    fn from_str(text: &str) -> Result<Image, String> {
        let is_there = Path::new(text).symlink_metadata().is_ok();
        match text.parse() {
            Ok(name) if !is_there => Ok(Image::Volume(name)),
            _ => Ok(Image::File(PathBuf::from(text))),
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Image::File(path) => path.display().fmt(f),
            Image::Volume(name) => name.fmt(f),
        }
    }
}

/// Opens images; the store only if one is a volume.
pub struct Opener<'a> {
    config: &'a Effective,
    opened: Option<(Arc<Runtime>, Arc<dyn Store>)>,
}

impl<'a> Opener<'a> {
    /// Nothing is open yet.
    pub fn new(config: &'a Effective) -> Opener<'a> {
        Opener { config, opened: None }
    }

    /// The bytes of an image; of a volume those of the frames in which something is mapped.
    pub fn open(&mut self, image: &Image) -> Result<Box<dyn Read>, Failure> {
        match image {
            Image::File(path) => {
                let file = open_file(path);
                let file = file.map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))?;
                Ok(Box::new(BufReader::with_capacity(1 << 20, file)))
            }
            Image::Volume(name) => Ok(Box::new(self.open_volume(name).map_err(|failure| no_file(name, failure))?)),
        }
    }

    fn open_volume(&mut self, name: &ExportName) -> Result<Mapped, Failure> {
        let config = self.config;
        let (runtime, store) = match &self.opened {
            Some(opened) => opened.clone(),
            None => {
                let runtime = runtime()?;
                let store: Arc<dyn Store> = runtime.block_on(outside::open_store(config, Access::Read))?.store;
                self.opened.insert((Arc::new(runtime), store)).clone()
            }
        };
        let near = (Arc::clone(&Cache::in_memory(config).blocks), outside::real().2);
        let (budget, secrets) = (Budget::new(&config.volume), secrets::of(config));
        let past = runtime.block_on(async {
            match &name.snapshot {
                Some(which) => {
                    Past::open(store, &name.volume, which.as_str(), &config.volume, &budget, near, &secrets).await
                }
                None => Past::head(store, &name.volume, &config.volume, &budget, near, &secrets).await,
            }
        })?;
        Ok(Mapped::of(runtime, Arc::new(past)))
    }
}

/// Says of what is no volume that it is no file either.
fn no_file(name: &ExportName, failure: Failure) -> Failure {
    let also = |words: String| format!("there is no file {name} here, and as a volume: {words}");
    match failure {
        Failure::Failed(words) => Failure::Failed(also(words)),
        Failure::Usage(words) => Failure::Usage(also(words)),
        other => other,
    }
}

/// An image is read to its end: so it is a file or a disk, no pipe and no terminal.
fn open_file(image: &Path) -> io::Result<File> {
    // Without waiting for whoever writes into a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(image, flags, Mode::empty())?);
    let kind = file.metadata()?.file_type();
    match kind.is_file() || kind.is_dir() || kind.is_block_device() {
        true => Ok(file),
        false => Err(io::Error::other("it is neither a file nor a disk; give an image, or a device such as /dev/nbd0")),
    }
}

/// The frames of a device in which something is mapped, one after the other.
struct Mapped {
    runtime: Arc<Runtime>,
    device: Arc<dyn Device>,
    size: u64,
    /// What is mapped was asked for up to here.
    asked: u64,
    /// Whole frames, in order, that are to be read.
    ranges: VecDeque<Range<u64>>,
    /// What was read of them last, and how much of that was handed over.
    read: Vec<u8>,
    at: usize,
}

impl Mapped {
    fn of(runtime: Arc<Runtime>, device: Arc<dyn Device>) -> Mapped {
        let size = device.info().size;
        Mapped { runtime, device, size, asked: 0, ranges: VecDeque::new(), read: Vec::new(), at: 0 }
    }

    /// What is read next; nothing at the end.
    async fn next(&mut self) -> Result<Pieces, DeviceError> {
        let mut end = 0;
        while self.ranges.is_empty() && self.asked < self.size {
            let runs = self.device.extents(self.asked, STRETCH.min(self.size - self.asked), RUNS_MAX).await?;
            for run in runs {
                let (from, to) = (self.asked, self.asked + run.len);
                self.asked = to;
                if run.allocation == Allocation::Data {
                    let from = (from / FRAME as u64 * FRAME as u64).max(end);
                    end = to.next_multiple_of(FRAME as u64).min(self.size);
                    if from < end {
                        self.ranges.push_back(from..end);
                    }
                }
            }
            // The rest of a frame that was begun comes with it.
            self.asked = self.asked.max(end);
        }
        let Some(range) = self.ranges.front_mut() else { return Ok(Pieces::new()) };
        let (from, to) = (range.start, range.end.min(range.start + PIECE));
        range.start = to;
        if range.is_empty() {
            self.ranges.pop_front();
        }
        self.device.read(from, (to - from) as u32).await
    }
}

impl Read for Mapped {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.read.len() {
            let runtime = self.runtime.clone();
            self.read = runtime.block_on(self.next()).map_err(io::Error::other)?.concat();
            self.at = 0;
        }
        let len = into.len().min(self.read.len() - self.at);
        into[..len].copy_from_slice(&self.read[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::device::memory::MemoryDevice;

    #[test]
    fn a_name_is_a_volume_unless_it_is_there_as_a_file() {
        let of = |text: &str| text.parse::<Image>().unwrap();
        assert_eq!(of("web@monday"), Image::Volume("web@monday".parse().unwrap()));
        assert_eq!(of("Cargo.toml"), Image::File("Cargo.toml".into()));
        assert_eq!(of("/dev/nbd99"), Image::File("/dev/nbd99".into()));
        assert_eq!(of("a b").to_string(), "a b");
    }

    #[test]
    fn of_a_device_the_frames_come_in_which_something_is_mapped() {
        let runtime = Arc::new(runtime().unwrap());
        let device = Arc::new(MemoryDevice::new(10 * FRAME as u64 + 512));
        // In the middle of a frame, across the end of one, and at the end of the device, which ends within a frame.
        for (at, len) in [(2 * FRAME + 1024, 512), (6 * FRAME - 512, 1024), (10 * FRAME, 512)] {
            runtime.block_on(device.write(at as u64, Bytes::from(vec![7; len]), false)).unwrap();
        }
        let mut read = Vec::new();
        Mapped::of(runtime, device).read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 3 * FRAME + 512);
        let holds = |from: usize, to: usize| read[from..to].iter().all(|byte| *byte == 7);
        assert!(holds(1024, 1536) && holds(2 * FRAME - 512, 2 * FRAME + 512) && holds(3 * FRAME, 3 * FRAME + 512));
        assert_eq!(read.iter().filter(|byte| **byte == 7).count(), 512 + 1024 + 512);
    }
}
