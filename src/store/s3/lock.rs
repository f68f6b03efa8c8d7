//! Object lock: an object that is *retained* stays in the bucket until a date, whatever is deleted.
//!
//! A bucket has it or has not from the beginning, and keeps versions then: a DELETE puts a marker over the locked version, and only the deletion of that
//! version is refused. Keys are written once, so the version that shows is the one that is meant.

use rusoto_s3::{GetObjectLockConfigurationRequest, ObjectLockRetention, PutObjectRetentionRequest, S3};

use super::answers::Refused;
use super::errors::Asked;
use super::options::ObjectLock;
use super::{Result, S3Store, StoreError};
use crate::human::date;
use crate::store::{Key, Store};

impl S3Store {
    /// Fails unless the bucket has what `store.s3.object_lock` asks for.
    pub async fn check_object_lock(&self, delete_versions: bool) -> Result<()> {
        if self.object_lock == ObjectLock::Off {
            return Ok(());
        }
        if delete_versions {
            return Err(StoreError::invalid(format!(
                "store.s3.object_lock = \"{}\" does not go with store.s3.delete_versions = true, since locked versions cannot be deleted: set \
                 delete_versions = false, and have a lifecycle rule of the bucket expire noncurrent versions",
                self.object_lock.name()
            )));
        }
        match self.has_object_lock().await? {
            true => Ok(()),
            false => Err(StoreError::invalid(format!(
                "store.s3.object_lock = \"{}\" asks for object lock, and the bucket of {} has none: take a bucket that was created with it, or set \
                 store.s3.object_lock = \"off\"",
                self.object_lock.name(),
                self.url()
            ))),
        }
    }

    /// Whether the bucket has it.
    async fn has_object_lock(&self) -> Result<bool> {
        let request = GetObjectLockConfigurationRequest { bucket: self.place.bucket.clone(), ..Default::default() };
        match self.request(Asked::ObjectLock, self.client.get_object_lock_configuration(request)).await {
            Ok(said) => {
                let enabled =
                    said.object_lock_configuration.and_then(|configuration| configuration.object_lock_enabled);
                Ok(enabled.as_deref() == Some("Enabled"))
            }
            // Ceph and others have codes of their own for it; of a bucket that is not there they say so.
            Err(Refused { answer: Some(answer), .. }) if answer.status == 404 && answer.code != "NoSuchBucket" => {
                Ok(false)
            }
            Err(refused) => Err(refused.error),
        }
    }

    /// One PUT of the retention of the version that shows.
    pub(super) async fn put_retention(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        let Some(mode) = self.object_lock.mode() else {
            return Err(StoreError::invalid("store.s3.object_lock is \"off\", and an object is to be locked"));
        };
        // Whole seconds, and not a part of one too early.
        let until = date(until_unix_millis.div_ceil(1000) * 1000);
        let retention = ObjectLockRetention { mode: Some(mode.into()), retain_until_date: Some(until) };
        let request = PutObjectRetentionRequest {
            bucket: self.place.bucket.clone(),
            key: self.path(key),
            retention: Some(retention),
            ..PutObjectRetentionRequest::default()
        };
        self.request(Asked::Retain(key), self.client.put_object_retention(request)).await?;
        Ok(())
    }
}
