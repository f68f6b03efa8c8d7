//! A device that nobody may change through this door, whatever it is behind it.
//!
//! The protocol refuses changes of an export that says it is read-only before they come here (`nbd/request`); this refuses them
//! too, so that no client changes it even if that were wrong.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Compared, Device, DeviceError, DeviceInfo, Pieces, Run, Version};

/// See the module.
pub struct ReadOnly(Arc<dyn Device>);

impl ReadOnly {
    /// That device, to be read only.
    pub fn new(device: Arc<dyn Device>) -> ReadOnly {
        ReadOnly(device)
    }
}

fn refused() -> DeviceError {
    DeviceError::ReadOnly("this server serves it so".to_owned())
}

#[async_trait]
impl Device for ReadOnly {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { read_only: true, ..self.0.info() }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, DeviceError> {
        self.0.read(offset, len).await
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), DeviceError> {
        Err(refused())
    }

    async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), DeviceError> {
        Err(refused())
    }

    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), DeviceError> {
        Err(refused())
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush().await
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.0.cache(offset, len).await
    }

    async fn extents(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Run>, DeviceError> {
        self.0.extents(offset, len, most).await
    }

    async fn versions(&self) -> Result<Vec<Version>, DeviceError> {
        self.0.versions().await
    }

    async fn compare(&self, since: &Version, offset: u64, len: u64, most: usize) -> Result<Vec<Compared>, DeviceError> {
        self.0.compare(since, offset, len, most).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::super::memory::MemoryDevice;
    use super::*;

    #[test]
    fn f2_nothing_changes_and_everything_else_is_as_before() {
        let inner: Arc<dyn Device> = Arc::new(MemoryDevice::new(1 << 20));
        inner.write(5, Bytes::from_static(b"data"), false).now_or_never().unwrap().unwrap();
        let device = ReadOnly::new(Arc::clone(&inner));
        assert_eq!(device.info(), DeviceInfo { read_only: true, ..inner.info() });
        let refused = [
            device.write(5, Bytes::from_static(b"xxxx"), false).now_or_never().unwrap(),
            device.trim(0, 1 << 20, false).now_or_never().unwrap(),
            device.write_zeroes(0, 1 << 20, false, false).now_or_never().unwrap(),
        ];
        assert!(refused.iter().all(|result| matches!(result, Err(DeviceError::ReadOnly(_)))));
        assert_eq!(device.read(5, 4).now_or_never().unwrap().unwrap().concat(), b"data");
        assert_eq!(device.extents(0, 512, 1).now_or_never().unwrap().unwrap().len(), 1);
        device.flush().now_or_never().unwrap().unwrap();
        device.cache(0, 512).now_or_never().unwrap().unwrap();
    }
}
