//! What several tests of the store share.

#![allow(dead_code)] // each test binary uses a part

pub mod conformance;
pub mod dav_server;
pub mod far;
pub mod gcs_server;
pub mod outside;
pub mod rotate;
pub mod s3_server;
pub mod sftp_server;
pub mod sloppy;
