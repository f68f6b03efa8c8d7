//! What will be asked of the store, and what that costs at most. Pure.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::human::{about_bytes, counted, exact_bytes};

/// The largest object that is put: larger than any segment that would be of use.
const SIZE_MAX: u64 = 256 << 20;

/// DELETEs of single objects that are measured; the others go in batches.
pub const SINGLE_DELETES: usize = 32;

/// Objects that one request can delete.
const DELETE_BATCH: u64 = 1000;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A create-only PUT of a whole object.
    Put,
    /// A GET of a range.
    Get,
    /// A DELETE of one object.
    Delete,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Put => "PUT",
            Operation::Get => "GET",
            Operation::Delete => "DELETE",
        })
    }
}

/// One combination that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub operation: Operation,
    /// Bytes of each request.
    pub size: u64,
    /// Requests under way at once.
    pub parallel: u32,
    /// The most requests.
    pub count: u64,
    /// The longest that new requests are begun.
    pub time: Duration,
}

/// All that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    sizes: Vec<u64>,
    parallel: Vec<u32>,
    time: Duration,
    requests: u64,
    bytes: u64,
}

impl Plan {
    /// Every size with every parallelism; each combination is bounded in time, requests and bytes.
    pub fn new(sizes: &[u64], parallel: &[u32], time: Duration, requests: u64, bytes: u64) -> Result<Plan, String> {
        if let Some(size) = sizes.iter().find(|&&size| !(1..=SIZE_MAX).contains(&size)) {
            let (size, most) = (exact_bytes(*size), exact_bytes(SIZE_MAX));
            return Err(format!("objects of {size} cannot be measured; accepted are 1 B to {most}"));
        }
        if time.is_zero() {
            return Err("a time of 0s measures nothing; give --time 3s".to_owned());
        }
        let (mut sizes, mut parallel) = (sizes.to_vec(), parallel.to_vec());
        sizes.sort_unstable();
        sizes.dedup();
        parallel.sort_unstable();
        parallel.dedup();
        Ok(Plan { sizes, parallel, time, requests, bytes })
    }

    /// The combinations: PUTs, then GETs of what was put.
    pub fn cells(&self) -> Vec<Request> {
        let of = |operation| {
            let all = self.sizes.iter().flat_map(|&size| self.parallel.iter().map(move |&parallel| (size, parallel)));
            all.map(move |(size, parallel)| Request {
                operation,
                size,
                parallel,
                count: self.requests.min(self.bytes / size).max(1),
                time: self.time,
            })
        };
        of(Operation::Put).chain(of(Operation::Get)).collect()
    }

    /// The largest number of requests under way.
    pub fn parallel_max(&self) -> u32 {
        self.parallel.last().copied().unwrap_or(1)
    }

    /// The size of the largest object.
    pub fn size_max(&self) -> u64 {
        self.sizes.last().copied().unwrap_or(0)
    }

    /// What it costs at most, as a sentence.
    pub fn cost(&self) -> String {
        let (mut requests, mut bytes) = (0, 0);
        for cell in self.cells().iter().filter(|cell| cell.operation == Operation::Put) {
            requests += cell.count;
            bytes += cell.count * cell.size;
        }
        let seconds = self.time.as_secs_f64() * self.cells().len() as f64;
        format!(
            "at most {} ({} in all), as many GETs, {SINGLE_DELETES} DELETEs of one object and {} of up to {DELETE_BATCH}, within \
             about {seconds:.0} s; everything is deleted at the end",
            counted(requests, "PUT"),
            about_bytes(bytes),
            counted(requests.div_ceil(DELETE_BATCH), "DELETE"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_bounded_in_requests_and_bytes_and_the_bound_is_told() {
        let plan = Plan::new(&[1 << 20, 4096, 4096], &[8, 1], Duration::from_secs(2), 100, 10 << 20).unwrap();
        let puts: Vec<_> = plan.cells().into_iter().filter(|cell| cell.operation == Operation::Put).collect();
        let counts: Vec<_> = puts.iter().map(|cell| (cell.size, cell.parallel, cell.count)).collect();
        assert_eq!(counts, [(4096, 1, 100), (4096, 8, 100), (1 << 20, 1, 10), (1 << 20, 8, 10)]);
        assert_eq!(
            plan.cost(),
            "at most 220 PUTs (20.8 MiB in all), as many GETs, 32 DELETEs of one object and 1 DELETE of up to 1000, within about \
             16 s; everything is deleted at the end"
        );
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_what_can() {
        let refused = Plan::new(&[1 << 40], &[1], Duration::from_secs(1), 1, 1).unwrap_err();
        assert_eq!(refused, "objects of 1 TiB cannot be measured; accepted are 1 B to 256 MiB");
        assert!(Plan::new(&[0], &[1], Duration::from_secs(1), 1, 1).is_err());
        assert!(Plan::new(&[1], &[1], Duration::ZERO, 1, 1).unwrap_err().contains("--time"));
    }
}
