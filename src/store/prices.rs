//! What a store bills: list prices of some providers as of a date, and what an operator says instead. Pure.
//!
//! Counted are requests, bytes that are read where the storage class has a fee for that, and bytes that are stored. Not counted: transfer out of the provider's
//! network, free allowances, least times and sizes for which an object is billed, rounding, taxes.

use serde::{Deserialize, Serialize};

use super::meter::Metered;

/// What a store bills, in US dollars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// A thousand PUTs.
    pub put_thousand: f64,
    /// A thousand GETs.
    pub get_thousand: f64,
    /// A thousand pages of listings.
    pub list_thousand: f64,
    /// A thousand DELETEs; a batch is one.
    pub delete_thousand: f64,
    /// Reading a GB (10^9 bytes), beside the requests.
    pub read_gb: f64,
    /// Storing a GB for a month.
    pub gb_month: f64,
}

/// `[prices]`: whose prices, and what is different.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PriceOptions {
    /// Whose list.
    pub preset: Preset,
    /// In place of what the list says: [`Prices::put_thousand`],
    pub put_thousand: Option<f64>,
    /// [`Prices::get_thousand`],
    pub get_thousand: Option<f64>,
    /// [`Prices::list_thousand`],
    pub list_thousand: Option<f64>,
    /// [`Prices::delete_thousand`],
    pub delete_thousand: Option<f64>,
    /// [`Prices::read_gb`],
    pub read_gb: Option<f64>,
    /// and [`Prices::gb_month`].
    pub gb_month: Option<f64>,
}

/// A provider and its storage class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Amazon S3.
    #[default]
    AmazonS3Standard,
    /// Cloudflare R2.
    CloudflareR2Standard,
    /// Cloudflare R2, for what is rarely read.
    CloudflareR2InfrequentAccess,
    /// Google Cloud Storage.
    GoogleStandard,
    /// Nobody bills anything.
    Free,
}

/// A list of prices, and where it is from.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// Which.
    pub preset: Preset,
    /// Its name in the configuration.
    pub name: &'static str,
    /// Whose, and where.
    pub what: &'static str,
    /// When somebody looked at the source.
    pub looked_up: &'static str,
    /// The source.
    pub source: &'static str,
    /// What it says.
    pub prices: Prices,
}

/// Prices for requests come in classes: what writes or lists, and what reads. Deleting is free at all of these.
const fn classes(write: f64, read: f64, read_gb: f64, gb_month: f64) -> Prices {
    Prices { put_thousand: write, get_thousand: read, list_thousand: write, delete_thousand: 0.0, read_gb, gb_month }
}

/// The lists. A price that nobody could look up is not here: the operator says it.
pub const LISTS: [Listed; 5] = [
    Listed {
        preset: Preset::AmazonS3Standard,
        name: "amazon-s3-standard",
        what: "Amazon S3 Standard in us-east-1, the first 50 TB",
        looked_up: "2026-11-28",
        source: "https://aws.amazon.com/s3/pricing/, as repeated by two guides, one of them of June 2026: that page shows no prices without its scripts",
        prices: classes(0.005, 0.0004, 0.0, 0.023),
    },
    Listed {
        preset: Preset::CloudflareR2Standard,
        name: "cloudflare-r2-standard",
        what: "Cloudflare R2, Standard storage",
        looked_up: "2026-11-28",
        source: "https://developers.cloudflare.com/r2/pricing/",
        prices: classes(0.0045, 0.00036, 0.0, 0.015),
    },
    Listed {
        preset: Preset::CloudflareR2InfrequentAccess,
        name: "cloudflare-r2-infrequent-access",
        what: "Cloudflare R2, Infrequent Access storage; each object is billed for 30 days at least",
        looked_up: "2026-11-28",
        source: "https://developers.cloudflare.com/r2/pricing/",
        prices: classes(0.009, 0.0009, 0.01, 0.01),
    },
    Listed {
        preset: Preset::GoogleStandard,
        name: "google-standard",
        what: "Google Cloud Storage, Standard storage in us-central1; $0.02 for a GiB",
        looked_up: "2026-11-28",
        source: "https://cloud.google.com/storage/pricing, as read there on 2026-09-20, and https://cloud.google.com/storage/pricing-examples",
        prices: classes(0.005, 0.0004, 0.0, 0.0186),
    },
    Listed {
        preset: Preset::Free,
        name: "free",
        what: "a store of one's own, which bills nothing",
        looked_up: "2026-11-28",
        source: "none is needed",
        prices: classes(0.0, 0.0, 0.0, 0.0),
    },
];

impl Preset {
    /// Its list.
    pub fn listed(self) -> &'static Listed {
        // A test holds that each has one.
        LISTS.iter().find(|list| list.preset == self).unwrap_or(&LISTS[0])
    }
}

impl Default for Prices {
    fn default() -> Prices {
        PriceOptions::default().prices()
    }
}

impl PriceOptions {
    /// What is billed.
    pub fn prices(&self) -> Prices {
        let listed = self.preset.listed().prices;
        Prices {
            put_thousand: self.put_thousand.unwrap_or(listed.put_thousand),
            get_thousand: self.get_thousand.unwrap_or(listed.get_thousand),
            list_thousand: self.list_thousand.unwrap_or(listed.list_thousand),
            delete_thousand: self.delete_thousand.unwrap_or(listed.delete_thousand),
            read_gb: self.read_gb.unwrap_or(listed.read_gb),
            gb_month: self.gb_month.unwrap_or(listed.gb_month),
        }
    }

    /// Whose prices they are, for people.
    pub fn told(&self) -> String {
        let Listed { name, looked_up, .. } = self.preset.listed();
        match *self == (PriceOptions { preset: self.preset, ..PriceOptions::default() }) {
            true => format!("{name}, as of {looked_up}"),
            false => format!("{name}, as of {looked_up}, but for what [prices] says otherwise"),
        }
    }

    /// Checks each option against its bounds; the error is the key and what is accepted.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let PriceOptions { preset: _, put_thousand, get_thousand, list_thousand, delete_thousand, read_gb, gb_month } =
            self;
        let all = [
            ("put_thousand", put_thousand),
            ("get_thousand", get_thousand),
            ("list_thousand", list_thousand),
            ("delete_thousand", delete_thousand),
            ("read_gb", read_gb),
            ("gb_month", gb_month),
        ];
        let is_price = |price: &Option<f64>| price.is_none_or(|price| price.is_finite() && price >= 0.0);
        match all.into_iter().find(|(_, price)| !is_price(price)) {
            Some((key, _)) => Err((key, "a number of US dollars, 0 or more")),
            None => Ok(()),
        }
    }
}

impl Prices {
    /// What these requests, and the bytes that they read, cost.
    pub fn of_requests(&self, asked: &Metered) -> f64 {
        let requests = asked.put.count as f64 * self.put_thousand
            + asked.get.count as f64 * self.get_thousand
            + asked.list.count as f64 * self.list_thousand
            + asked.delete.count as f64 * self.delete_thousand;
        requests / 1e3 + asked.bytes_got as f64 / 1e9 * self.read_gb
    }

    /// What a month of storing so many bytes costs.
    pub fn of_month(&self, stored_bytes: u64) -> f64 {
        stored_bytes as f64 / 1e9 * self.gb_month
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::meter::Requests;

    fn asked(puts: u64, gets: u64, lists: u64, deletes: u64) -> Metered {
        let of = |count| Requests { count, ..Requests::default() };
        Metered { put: of(puts), get: of(gets), list: of(lists), delete: of(deletes), ..Metered::default() }
    }

    fn read(text: &str) -> Result<PriceOptions, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_million_puts_cost_five_dollars_and_a_million_gets_forty_cents() {
        let cost = Prices::default().of_requests(&asked(900_000, 1_000_000, 100_000, 9_999));
        assert!((cost - 5.4).abs() < 1e-9, "{cost}");
        assert!((Prices::default().of_month(1_000_000_000_000) - 23.0).abs() < 1e-9);
    }

    #[test]
    fn where_reading_has_a_fee_bytes_count_too() {
        let prices = Preset::CloudflareR2InfrequentAccess.listed().prices;
        let asked = Metered { bytes_got: 5_000_000_000, ..asked(0, 1000, 0, 0) };
        assert!((prices.of_requests(&asked) - 0.0509).abs() < 1e-9, "{}", prices.of_requests(&asked));
    }

    #[test]
    fn each_list_is_chosen_by_its_name_and_says_where_it_is_from() {
        for list in LISTS {
            let options = read(&format!("preset = {:?}", list.name)).unwrap();
            assert_eq!((options.preset, options.preset.listed().name), (list.preset, list.name));
            assert_eq!(options.prices(), list.prices);
            assert!(
                options.told().contains(list.name) && options.told().contains(list.looked_up),
                "{}",
                options.told()
            );
            assert_eq!(list.looked_up.len(), "2026-11-28".len());
            assert!(!list.source.is_empty() && !list.what.is_empty());
        }
        let error = read("preset = \"acme\"").unwrap_err();
        for list in LISTS {
            assert!(error.contains(list.name), "{error}");
        }
    }

    #[test]
    fn what_the_operator_says_counts_and_must_be_a_price() {
        let options = read("preset = \"free\"\nput_thousand = 1\ngb_month = 0.01\n").unwrap();
        assert_eq!(options.prices(), Prices { put_thousand: 1.0, gb_month: 0.01, ..Preset::Free.listed().prices });
        assert!(options.told().ends_with("but for what [prices] says otherwise"), "{}", options.told());
        assert_eq!(options.check(), Ok(()));
        for bad in ["-0.1", "nan", "inf"] {
            let options = read(&format!("read_gb = {bad}")).unwrap();
            assert_eq!(options.check().unwrap_err().0, "read_gb");
        }
    }
}
