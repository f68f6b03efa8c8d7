//! What a volume has cost: requests and bytes, and what that is in money. Counted since it was opened, and, by way of the
//! checkpoints, since it was created.

use serde::{Deserialize, Serialize};

use crate::codec::cursor::{Malformed, Reader, Writer};
use crate::store::meter::{Metered, Requests};
use crate::store::prices::Prices;

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

impl Account {
    /// What the requests cost, in US dollars.
    pub fn request_cost(&self, prices: &Prices) -> f64 {
        let of = |count| Requests { count, ..Requests::default() };
        prices.of_requests(&Metered {
            put: of(self.puts),
            get: of(self.gets),
            list: of(self.lists),
            delete: of(self.deletes),
            bytes_got: self.bytes_got,
            ..Metered::default()
        })
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
    fn each_kind_of_request_costs_what_it_costs_and_so_does_what_is_read() {
        let prices = Prices {
            put_thousand: 1000.0,
            get_thousand: 10.0,
            list_thousand: 0.1,
            delete_thousand: 0.001,
            read_gb: 1e6,
            gb_month: 1.0,
        };
        let account =
            Account { puts: 2, gets: 3, lists: 4, deletes: 5, bytes_got: 7_000_000_000, ..Account::default() };
        assert!((account.request_cost(&prices) - 7_000_002.030_405).abs() < 1e-6, "{}", account.request_cost(&prices));
    }
}
