//! A device that keeps its bytes in memory, and exports over several: for tests and benchmarks.
//!
//! Memory is taken in chunks of 1 MiB where something was written, so a device may be as large as the protocol allows.
//! A [`Hook`] sees every call before it takes effect, and may delay it or make it fail.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::RwLock;

use super::{Allocation, Device, DeviceError, DeviceInfo, ExportEntry, ExportError, Exports, Pieces, Run};

/// One call of a [`Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the arguments of the methods of the same names
pub enum Call {
    Read { offset: u64, len: u32 },
    Write { offset: u64, len: usize, fua: bool },
    Trim { offset: u64, len: u64, fua: bool },
    WriteZeroes { offset: u64, len: u64, no_hole: bool, fua: bool },
    Flush,
    Cache { offset: u64, len: u64 },
    Extents { offset: u64, len: u64, most: usize },
}

/// Sees a call before it takes effect: the call waits for the future, and fails if that fails.
pub type Hook = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<(), DeviceError>> + Send + Sync>;

/// Bytes of memory that are taken at a time; few in the tests of this module, so that they meet many edges.
const CHUNK_BYTES: u64 = if cfg!(test) { 64 } else { 1 << 20 };

/// A device in memory; whatever it accepted is stable at once.
pub struct MemoryDevice {
    info: DeviceInfo,
    /// Chunks in which something was written, by index; all others read as zero.
    chunks: RwLock<BTreeMap<u64, Box<[u8]>>>,
    hook: Option<Hook>,
}

impl MemoryDevice {
    /// A writable device of `size` bytes, all zero, in blocks of 4 KiB.
    pub fn new(size: u64) -> MemoryDevice {
        MemoryDevice::with_info(DeviceInfo { size, block_size: 4096, read_only: false })
    }

    /// A device of that description, all zero. The block size is at least 1.
    pub fn with_info(info: DeviceInfo) -> MemoryDevice {
        MemoryDevice { info, chunks: RwLock::default(), hook: None }
    }

    /// The same device with `hook` before each call.
    pub fn with_hook(self, hook: Hook) -> MemoryDevice {
        MemoryDevice { hook: Some(hook), ..self }
    }

    async fn before(&self, call: Call) -> Result<(), DeviceError> {
        match &self.hook {
            Some(hook) => hook(call).await,
            None => Ok(()),
        }
    }

    fn change_allowed(&self) -> Result<(), DeviceError> {
        match self.info.read_only {
            true => Err(DeviceError::ReadOnly("this memory device was made so".to_owned())),
            false => Ok(()),
        }
    }

    fn store(&self, offset: u64, data: &[u8]) {
        let (mut chunks, mut data) = (self.chunks.write(), data);
        for (index, range) in touched(offset, data.len() as u64) {
            let chunk = chunks.entry(index).or_insert_with(|| vec![0; CHUNK_BYTES as usize].into());
            let (here, rest) = data.split_at(range.len());
            chunk[range].copy_from_slice(here);
            data = rest;
        }
    }

    fn zero(&self, range: Range<u64>) {
        let mut chunks = self.chunks.write();
        let inside = range.start.div_ceil(CHUNK_BYTES)..range.end / CHUNK_BYTES;
        if inside.start < inside.end {
            let mut after = chunks.split_off(&inside.start);
            chunks.append(&mut after.split_off(&inside.end));
        }
        // What is left of the range lies in its first and its last chunk.
        let len = range.end - range.start;
        for at in [range.start, range.end - 1] {
            let index = at / CHUNK_BYTES;
            let part = within(index, range.start, len);
            if let Some(chunk) = chunks.get_mut(&index) {
                chunk[part].fill(0);
            }
        }
    }
}

/// The chunks that a range of bytes touches: for each its index, and the touched bytes inside it.
fn touched(offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let chunks = offset / CHUNK_BYTES..(offset + len).div_ceil(CHUNK_BYTES);
    chunks.map(move |index| (index, within(index, offset, len)))
}

/// The bytes of a chunk that a range touches, counted from the start of the chunk.
fn within(index: u64, offset: u64, len: u64) -> Range<usize> {
    let start = index * CHUNK_BYTES;
    let end = (offset + len).min(start + CHUNK_BYTES);
    // Both ends are within one chunk.
    (offset.max(start) - start) as usize..(end - start) as usize
}

#[async_trait]
impl Device for MemoryDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError> {
        self.before(Call::Read { offset, len }).await?;
        let mut pieces = Pieces::new();
        let chunks = self.chunks.read();
        for (index, range) in touched(offset, u64::from(len)) {
            match chunks.get(&index) {
                Some(chunk) => pieces.push(Bytes::copy_from_slice(&chunk[range])),
                None => pieces.push_zeroes(range.len() as u64),
            }
        }
        Ok(pieces)
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.change_allowed()?;
        self.before(Call::Write { offset, len: data.len(), fua }).await?;
        self.store(offset, &data);
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), DeviceError> {
        self.change_allowed()?;
        self.before(Call::Trim { offset, len, fua }).await?;
        let block = u64::from(self.info.block_size);
        let inside = offset.div_ceil(block) * block..(offset + len) / block * block;
        if inside.start < inside.end {
            self.zero(inside);
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), DeviceError> {
        self.change_allowed()?;
        self.before(Call::WriteZeroes { offset, len, no_hole, fua }).await?;
        if len > 0 {
            self.zero(offset..offset + len);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.before(Call::Flush).await
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.before(Call::Cache { offset, len }).await
    }

    /// Chunks in which something was written are data, all others holes.
    async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Run>, DeviceError> {
        self.before(Call::Extents { offset, len, most }).await?;
        let (chunks, end) = (self.chunks.read(), offset + len);
        let mut runs: Vec<Run> = Vec::new();
        let mut at = offset;
        while at < end {
            let index = at / CHUNK_BYTES;
            let (allocation, until) = match chunks.range(index..).next() {
                Some((&next, _)) if next == index => (Allocation::Data, (index + 1) * CHUNK_BYTES),
                Some((&next, _)) => (Allocation::Hole, next * CHUNK_BYTES),
                None => (Allocation::Hole, end),
            };
            let len = until.min(end) - at;
            let is_full = runs.len() == most;
            match runs.last_mut() {
                Some(run) if run.allocation == allocation => run.len += len,
                _ if is_full => break,
                _ => runs.push(Run { len, allocation }),
            }
            at += len;
        }
        Ok(runs)
    }
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDevice").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Exports over devices that are handed in.
#[derive(Default)]
pub struct MemoryExports {
    exports: BTreeMap<String, (ExportEntry, Arc<dyn Device>)>,
    default: Option<String>,
}

impl MemoryExports {
    /// No exports.
    pub fn new() -> MemoryExports {
        MemoryExports::default()
    }

    /// One more export.
    pub fn with(mut self, name: &str, description: &str, device: Arc<dyn Device>) -> MemoryExports {
        let entry = ExportEntry { name: name.to_owned(), description: description.to_owned() };
        self.exports.insert(name.to_owned(), (entry, device));
        self
    }

    /// The export that the empty name means.
    pub fn with_default(mut self, name: &str) -> MemoryExports {
        self.default = Some(name.to_owned());
        self
    }
}

#[async_trait]
impl Exports for MemoryExports {
    async fn list(&self) -> Result<Vec<ExportEntry>, ExportError> {
        Ok(self.exports.values().map(|(entry, _)| entry.clone()).collect())
    }

    async fn open(&self, name: &str) -> Result<(ExportEntry, Arc<dyn Device>), ExportError> {
        let name = match (name, &self.default) {
            ("", Some(default)) => default,
            _ => name,
        };
        self.exports.get(name).cloned().ok_or_else(|| ExportError::Unknown(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 16;
    const SIZE: usize = 3 * CHUNK_BYTES as usize + 10;

    #[derive(Clone, Debug)]
    enum Op {
        Write(usize, Vec<u8>),
        Trim(usize, usize),
        Zero(usize, usize),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let range = || (0..=SIZE, 0..=SIZE).prop_map(|(a, b)| (a.min(b), a.max(b) - a.min(b)));
        let op = prop_oneof![
            range()
                .prop_flat_map(|(o, l)| (Just(o), prop::collection::vec(1u8.., l)))
                .prop_map(|(o, d)| Op::Write(o, d)),
            range().prop_map(|(o, l)| Op::Trim(o, l)),
            range().prop_map(|(o, l)| Op::Zero(o, l)),
        ];
        prop::collection::vec(op, 0..20)
    }

    fn now<T>(future: impl Future<Output = Result<T, DeviceError>>) -> T {
        future.now_or_never().expect("no hook delays it").expect("no hook fails it")
    }

    proptest! {
        #[test]
        fn it_equals_an_array_of_bytes(ops in ops(), most in 1_usize..5) {
            let device = MemoryDevice::with_info(DeviceInfo { size: SIZE as u64, block_size: BLOCK as u32, read_only: false });
            let mut model = vec![0; SIZE];
            for op in ops {
                match op {
                    Op::Write(offset, data) => {
                        model[offset..offset + data.len()].copy_from_slice(&data);
                        now(device.write(offset as u64, data.into(), false));
                    }
                    Op::Trim(offset, len) => {
                        let (start, end) = (offset.div_ceil(BLOCK) * BLOCK, (offset + len) / BLOCK * BLOCK);
                        if start < end {
                            model[start..end].fill(0);
                        }
                        now(device.trim(offset as u64, len as u64, false));
                    }
                    Op::Zero(offset, len) => {
                        model[offset..offset + len].fill(0);
                        now(device.write_zeroes(offset as u64, len as u64, false, false));
                    }
                }
                prop_assert_eq!(now(device.read(0, SIZE as u32)).concat(), &model[..]);
                prop_assert_eq!(now(device.read(60, 70)).concat(), &model[60..130]);
                let mut at = 1;
                let runs = now(device.extents(1, SIZE as u64 - 1, most));
                prop_assert!((1..=most).contains(&runs.len()));
                for run in runs {
                    let zero = model[at..at + run.len as usize].iter().all(|byte| *byte == 0);
                    prop_assert!(zero || run.allocation == Allocation::Data);
                    at += run.len as usize;
                }
            }
        }
    }
}
