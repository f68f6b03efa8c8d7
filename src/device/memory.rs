//! A device that keeps its bytes in memory, and exports over several: for tests and benchmarks.
//!
//! Only blocks that were written take memory, so a device may be as large as the protocol allows. A [`Hook`] sees
//! every call before it takes effect, and may delay it or make it fail.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::RwLock;

use super::{Device, DeviceError, DeviceInfo, ExportEntry, ExportError, Exports, Pieces};

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
}

/// Sees a call before it takes effect: the call waits for the future, and fails if that fails.
pub type Hook = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<(), DeviceError>> + Send + Sync>;

/// A device in memory; whatever it accepted is stable at once.
pub struct MemoryDevice {
    info: DeviceInfo,
    /// Blocks that were written, by index; all others read as zero.
    blocks: RwLock<BTreeMap<u64, Box<[u8]>>>,
    hook: Option<Hook>,
}

impl MemoryDevice {
    /// A writable device of `size` bytes, all zero, in blocks of 4 KiB.
    pub fn new(size: u64) -> MemoryDevice {
        MemoryDevice::with_info(DeviceInfo { size, block_size: 4096, read_only: false })
    }

    /// A device of that description, all zero. The block size is at least 1.
    pub fn with_info(info: DeviceInfo) -> MemoryDevice {
        MemoryDevice { info, blocks: RwLock::default(), hook: None }
    }

    /// The same device with `hook` before each call.
    pub fn with_hook(self, hook: Hook) -> MemoryDevice {
        MemoryDevice { hook: Some(hook), ..self }
    }

    /// Blocks that take memory.
    pub fn blocks_held(&self) -> usize {
        self.blocks.read().len()
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

    fn block_bytes(&self) -> u64 {
        u64::from(self.info.block_size)
    }

    /// The blocks that a range of bytes touches: for each its index, and the touched bytes inside it.
    fn touched(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
        let (size, end) = (self.block_bytes(), offset + len);
        let blocks = offset / size..end.div_ceil(size);
        blocks.map(move |index| {
            let start = index * size;
            // Both ends are within one block, whose size is a u32.
            (index, (offset.max(start) - start) as usize..(end.min(start + size) - start) as usize)
        })
    }

    fn store(&self, offset: u64, data: &[u8]) {
        let (mut blocks, mut data) = (self.blocks.write(), data);
        for (index, range) in self.touched(offset, data.len() as u64) {
            let block = blocks.entry(index).or_insert_with(|| vec![0; self.info.block_size as usize].into());
            let (here, rest) = data.split_at(range.len());
            block[range].copy_from_slice(here);
            data = rest;
        }
    }

    /// Drops the blocks that lie wholly inside the range and returns them as a range of indices.
    fn drop_inside(&self, offset: u64, len: u64) -> Range<u64> {
        let inside = offset.div_ceil(self.block_bytes())..(offset + len) / self.block_bytes();
        if !inside.is_empty() {
            let mut blocks = self.blocks.write();
            let mut after = blocks.split_off(&inside.start);
            blocks.append(&mut after.split_off(&inside.end));
        }
        inside
    }

    fn zero_partial(&self, index: u64, range: Range<usize>) {
        if let Some(block) = self.blocks.write().get_mut(&index) {
            block[range].fill(0);
        }
    }
}

#[async_trait]
impl Device for MemoryDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError> {
        self.before(Call::Read { offset, len }).await?;
        let mut data = BytesMut::with_capacity(len as usize);
        let blocks = self.blocks.read();
        for (index, range) in self.touched(offset, u64::from(len)) {
            match blocks.get(&index) {
                Some(block) => data.extend_from_slice(&block[range]),
                None => data.resize(data.len() + range.len(), 0),
            }
        }
        Ok(vec![data.freeze()])
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
        self.drop_inside(offset, len);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), DeviceError> {
        self.change_allowed()?;
        self.before(Call::WriteZeroes { offset, len, no_hole, fua }).await?;
        let inside = self.drop_inside(offset, len);
        let (first, last) =
            (offset / self.block_bytes(), (offset + len).div_ceil(self.block_bytes()).saturating_sub(1));
        for index in [first, last] {
            if !inside.contains(&index) {
                let start = index * self.block_bytes();
                let range =
                    offset.max(start) - start..(offset + len).min(start + self.block_bytes()).max(start) - start;
                self.zero_partial(index, range.start as usize..range.end as usize);
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.before(Call::Flush).await
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.before(Call::Cache { offset, len }).await
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

    const SIZE: usize = 100;

    #[derive(Clone, Debug)]
    enum Op {
        Write(usize, Vec<u8>),
        Trim(usize, usize),
        Zero(usize, usize),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let range = || (0..SIZE).prop_flat_map(|offset| (Just(offset), 0..=SIZE - offset));
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
        fn it_equals_an_array_of_bytes(ops in ops()) {
            let device = MemoryDevice::with_info(DeviceInfo { size: SIZE as u64, block_size: 16, read_only: false });
            let mut model = [0; SIZE];
            for op in ops {
                match op {
                    Op::Write(offset, data) => {
                        model[offset..offset + data.len()].copy_from_slice(&data);
                        now(device.write(offset as u64, data.into(), false));
                    }
                    Op::Trim(offset, len) => {
                        let (start, end) = (offset.div_ceil(16) * 16, (offset + len) / 16 * 16);
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
                prop_assert_eq!(now(device.read(7, 50)).concat(), &model[7..57]);
            }
        }
    }
}
