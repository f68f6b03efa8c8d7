//! What a volume has cost: requests, bytes, and an estimate in money. Counted since it was opened, and, by way of the
//! checkpoints, since it was created.

use serde::{Deserialize, Serialize};

use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::store::meter::Metered;

/// Requests and bytes. What a server did after its last checkpoint is forgotten if it dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// PUTs. Requests that the store made us repeat count once.
    pub puts: u64,
    /// GETs, whole and of ranges.
    pub gets: u64,
    /// Pages of listings.
    pub lists: u64,
    /// DELETEs; a batch counts as one.
    pub deletes: u64,
    /// Objects whose deletion was asked for.
    pub objects_deleted: u64,
    /// Bytes of the bodies of PUTs.
    pub bytes_put: u64,
    /// Bytes that GETs returned.
    pub bytes_got: u64,
    /// Bytes of data of the client's that became durable, as the client sent them, all-zero blocks and what was
    /// overwritten before it was sealed aside.
    pub bytes_written: u64,
    /// Bytes that garbage collection wrote again, before compression.
    pub bytes_moved: u64,
}

/// List prices of S3 Standard in us-east-1, in US dollars, as of 2026.
pub mod price {
    /// A PUT or a LIST.
    pub const PUT: f64 = 0.005 / 1000.0;
    /// A GET.
    pub const GET: f64 = 0.0004 / 1000.0;
    /// A GB (10^9 bytes) for a month.
    pub const GB_MONTH: f64 = 0.023;
}

impl Account {
    /// What the requests cost, in US dollars, at list prices; DELETEs are free.
    pub fn request_cost(&self) -> f64 {
        (self.puts + self.lists) as f64 * price::PUT + self.gets as f64 * price::GET
    }

    /// Both together.
    pub fn plus(&self, other: &Account) -> Account {
        Account {
            puts: self.puts + other.puts,
            gets: self.gets + other.gets,
            lists: self.lists + other.lists,
            deletes: self.deletes + other.deletes,
            objects_deleted: self.objects_deleted + other.objects_deleted,
            bytes_put: self.bytes_put + other.bytes_put,
            bytes_got: self.bytes_got + other.bytes_got,
            bytes_written: self.bytes_written + other.bytes_written,
            bytes_moved: self.bytes_moved + other.bytes_moved,
        }
    }

    /// With the requests that a meter counted.
    pub fn with_requests(self, metered: &Metered) -> Account {
        Account {
            puts: metered.put.count,
            gets: metered.get.count,
            lists: metered.list.count,
            deletes: metered.delete.count,
            objects_deleted: metered.objects_deleted,
            bytes_put: metered.bytes_put,
            bytes_got: metered.bytes_got,
            ..self
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        self.fields().into_iter().for_each(|field| w.varint(field));
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Account, Malformed> {
        Ok(Account {
            puts: r.varint()?,
            gets: r.varint()?,
            lists: r.varint()?,
            deletes: r.varint()?,
            objects_deleted: r.varint()?,
            bytes_put: r.varint()?,
            bytes_got: r.varint()?,
            bytes_written: r.varint()?,
            bytes_moved: r.varint()?,
        })
    }

    fn fields(&self) -> [u64; 9] {
        [
            self.puts,
            self.gets,
            self.lists,
            self.deletes,
            self.objects_deleted,
            self.bytes_put,
            self.bytes_got,
            self.bytes_written,
            self.bytes_moved,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_puts_cost_five_dollars_and_a_million_gets_forty_cents() {
        let account = Account { puts: 900_000, lists: 100_000, gets: 1_000_000, deletes: 9_999, ..Account::default() };
        assert!((account.request_cost() - 5.4).abs() < 1e-9);
    }
}
