//! What volumes may spend on requests to the store, one by one and together, and how sparing that makes them. Pure but for the lock around each bound: what
//! was spent is read off a meter, and the time is an argument. (The word *budget* in the code is of memory, [`super::budget`]; operators know this one as `budget`.)
//!
//! A *bound* is so many requests a second, or so many dollars a day. What is not spent is saved up: ten seconds' worth of requests, an hour's worth of dollars.
//!
//! | left of what can be saved up | | what volumes do |
//! | --- | --- | --- |
//! | more than half | free | as ever |
//! | half or less | sparing | collection begins nothing as long as space keeps its bounds, and the write buffer is sealed when it is full, when somebody waits for it, or when it is [`PATIENCE`] times as old as else |
//! | nothing, or more is spent than there was | spent | writes wait besides, until something is left again, for [`WRITE_WAITS`] at most |
//!
//! Nothing else waits: what was acknowledged is brought into the store when a FLUSH asks for it, whatever that costs, and reads, checkpoints and deletions go
//! on. They count, so what goes beyond a bound is taken from what writes would have had next: up to as much as can be saved up, for who owed more
//! would wait for days because somebody read a lot.
//!
//! In any 24 hours a bound in dollars lets through what it says, and not more: an hour's worth at once, and a 25th of it in each hour.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::store::meter::{Meter, Metered};
use crate::store::prices::{PriceOptions, Prices};

/// So many times as long a change waits for its upload, when volumes are sparing.
pub const PATIENCE: u32 = 12;

/// The longest that a write waits because of a bound. Disks of virtual machines give up after 30 s.
pub const WRITE_WAITS: Duration = Duration::from_secs(15);

/// Requests can be saved up for so long,
const REQUESTS_SAVED: Duration = Duration::from_secs(10);
/// and dollars for so long.
const DOLLARS_SAVED: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// `[budget]`: what all volumes of a server may spend together, with everything else that the server asks of the store. 0 is any amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Requests in a second.
    pub requests_per_second: u32,
    /// US dollars in a day, at the prices of the configuration.
    pub dollars_per_day: f64,
    /// The same, for each volume.
    pub volume: Allowance,
}

/// `[budget.volume]`: what each volume may spend. 0 is any amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowance {
    /// Requests in a second.
    pub requests_per_second: u32,
    /// US dollars in a day, at the prices of the configuration.
    pub dollars_per_day: f64,
}

impl Options {
    /// Checks each option against its bounds; the error is the key and what is accepted.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let is_amount = |dollars: f64| dollars.is_finite() && dollars >= 0.0;
        let accepted = "a number of US dollars, such as 1.5, or 0 for any amount";
        match (is_amount(self.dollars_per_day), is_amount(self.volume.dollars_per_day)) {
            (false, _) => Err(("dollars_per_day", accepted)),
            (_, false) => Err(("volume.dollars_per_day", accepted)),
            (true, true) => Ok(()),
        }
    }

    fn of_server(&self) -> Allowance {
        Allowance { requests_per_second: self.requests_per_second, dollars_per_day: self.dollars_per_day }
    }
}

/// What a volume may spend where it has a setting of its own ([`super::settings`]); else what [`Options`] say of each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnAllowance {
    /// Requests in a second.
    pub requests_per_second: Option<u32>,
    /// US dollars in a day.
    pub dollars_per_day: Option<f64>,
}

impl OwnAllowance {
    fn or(&self, each: Allowance) -> Allowance {
        Allowance {
            requests_per_second: self.requests_per_second.unwrap_or(each.requests_per_second),
            dollars_per_day: self.dollars_per_day.unwrap_or(each.dollars_per_day),
        }
    }
}

/// How sparing volumes are to be. The greater one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thrift {
    /// Not at all.
    #[default]
    Free,
    /// Collection and the write-back wait.
    Sparing,
    /// Writes wait, too.
    Spent,
}

/// How sparing, and until when that lasts if nothing is spent meanwhile.
pub type Advice = (Thrift, Option<Instant>);

/// What a bound is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Requests,
    Dollars,
}

/// One bound. What is left is counted in the time that it takes to get so much.
#[derive(Clone, Copy, Debug)]
struct Bound {
    /// The key of the configuration that sets it.
    key: &'static str,
    unit: Unit,
    /// What that key says.
    allowed: f64,
    /// What comes in each second.
    rate: f64,
    /// The most seconds' worth that can be left, or owed.
    saved: f64,
    /// Seconds' worth that are left; owed, if it is negative.
    left: f64,
    /// What the meter said at [`Bound::at`].
    spent: f64,
    at: Instant,
}

impl Bound {
    /// From `at` on, when `spent` had been spent already, which does not count.
    fn new(key: &'static str, unit: Unit, allowed: f64, spent: f64, at: Instant) -> Bound {
        let saved = match unit {
            Unit::Requests => REQUESTS_SAVED,
            Unit::Dollars => DOLLARS_SAVED,
        };
        let rate = match unit {
            Unit::Requests => allowed,
            Unit::Dollars => allowed / (DAY + DOLLARS_SAVED).as_secs_f64(),
        };
        let saved = saved.as_secs_f64();
        Bound { key, unit, allowed, rate, saved, left: saved, spent, at }
    }

    /// Takes in what was spent until now, of all that ever was.
    fn look(&mut self, spent: f64, at: Instant) {
        let came = at.saturating_duration_since(self.at).as_secs_f64();
        let went = (spent - self.spent).max(0.0) / self.rate;
        self.left = ((self.left + came).min(self.saved) - went).max(-self.saved);
        (self.spent, self.at) = (self.spent.max(spent), self.at.max(at));
    }

    fn advice(&self) -> Advice {
        let enough = match self.left {
            left if left > self.saved / 2.0 => return (Thrift::Free, None),
            left if left > 0.0 => (Thrift::Sparing, self.saved / 2.0),
            _ => (Thrift::Spent, 0.0),
        };
        let (thrift, from) = enough;
        // Later by a little: at the very moment it is not more yet.
        (thrift, Some(self.at + Duration::from_secs_f64(from - self.left) + Duration::from_millis(1)))
    }
}

/// What is left of a bound, for who looks on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// The key of the configuration that sets it.
    pub key: String,
    /// What that says.
    pub allowed: f64,
    /// What is left, of what can be saved up: 1 is all of it, and less than 0 is owed.
    pub left_ratio: f64,
    /// What that makes volumes do.
    pub thrift: Thrift,
}

/// The bounds of a volume and of its server, or of a server alone. Clones share them.
#[derive(Clone, Debug)]
pub struct Purse(Arc<Purses>);

#[derive(Debug)]
struct Purses {
    meter: Arc<Meter>,
    whose: Whose,
    own: Mutex<Bounds>,
}

/// Whose purse it is, and who says what may be spent.
#[derive(Debug)]
enum Whose {
    /// What may be spent, and what requests cost.
    Server(Mutex<(Options, PriceOptions)>),
    Volume {
        server: Purse,
        own: Mutex<OwnAllowance>,
    },
}

/// Bounds, and what they were made of: whoever looks at them makes them anew when that has changed.
#[derive(Debug)]
struct Bounds {
    allowance: Allowance,
    prices: Prices,
    all: Vec<Bound>,
}

impl Purse {
    /// Of a server, whose requests that meter counts.
    pub fn new(options: &Options, prices: PriceOptions, meter: Arc<Meter>, at: Instant) -> Purse {
        Purse::of(Whose::Server(Mutex::new((*options, prices))), meter, at)
    }

    /// Without any bound.
    pub fn boundless() -> Purse {
        Purse::new(&Options::default(), PriceOptions::default(), Arc::default(), Instant::now())
    }

    /// Of a volume of that server, whose requests that meter counts.
    pub fn of_volume(&self, meter: Arc<Meter>, own: OwnAllowance, at: Instant) -> Purse {
        Purse::of(Whose::Volume { server: self.clone(), own: Mutex::new(own) }, meter, at)
    }

    fn of(whose: Whose, meter: Arc<Meter>, at: Instant) -> Purse {
        let (allowance, prices) = whose.terms();
        let all = bounds(allowance, whose.keys(), &meter.snapshot(), &prices, at);
        Purse(Arc::new(Purses { meter, whose, own: Mutex::new(Bounds { allowance, prices, all }) }))
    }

    /// From now on that may be spent, by a server and by its volumes, at those prices. What is left of a bound that was there stays, in proportion;
    /// what was spent was spent at the prices before.
    pub fn set(&self, options: &Options, prices: PriceOptions) {
        if let Whose::Server(terms) = &self.0.whose {
            *terms.lock() = (*options, prices);
        }
    }

    /// What requests cost, for whoever reckons.
    pub fn prices(&self) -> PriceOptions {
        match &self.0.whose {
            Whose::Server(terms) => terms.lock().1,
            Whose::Volume { server, .. } => server.prices(),
        }
    }

    /// The same of a volume, where it has settings of its own.
    pub fn set_own(&self, allowance: OwnAllowance) {
        if let Whose::Volume { own, .. } = &self.0.whose {
            *own.lock() = allowance;
        }
    }

    /// How sparing to be.
    pub fn advice(&self, at: Instant) -> Advice {
        let above = match &self.0.whose {
            Whose::Server(_) => (Thrift::Free, None),
            Whose::Volume { server, .. } => server.advice(at),
        };
        self.look(at).iter().map(Bound::advice).fold(above, worse)
    }

    /// What is left of its own bounds; those of the server are the server's.
    pub fn left(&self, at: Instant) -> Vec<Left> {
        let left = |bound: &Bound| Left {
            key: bound.key.to_owned(),
            allowed: bound.allowed,
            left_ratio: bound.left / bound.saved,
            thrift: bound.advice().0,
        };
        self.look(at).iter().map(left).collect()
    }

    /// Its own bounds, as of now.
    fn look(&self, at: Instant) -> Vec<Bound> {
        let Purses { meter, whose, own } = &*self.0;
        let (allowance, prices) = whose.terms();
        let mut own = own.lock();
        let is_as_before = (allowance, prices) == (own.allowance, own.prices);
        if is_as_before && own.all.is_empty() {
            return Vec::new();
        }
        let metered = meter.snapshot();
        own.look(&metered, at);
        if !is_as_before {
            let mut all = bounds(allowance, whose.keys(), &metered, &prices, at);
            for bound in &mut all {
                let before = own.all.iter().find(|before| before.unit == bound.unit);
                bound.left = before.map_or(bound.left, |before| before.left);
            }
            *own = Bounds { allowance, prices, all };
        }
        own.all.clone()
    }
}

impl Whose {
    /// What may be spent, and what requests cost.
    fn terms(&self) -> (Allowance, Prices) {
        match self {
            Whose::Server(terms) => {
                let (options, prices) = &*terms.lock();
                (options.of_server(), prices.prices())
            }
            Whose::Volume { server, own } => {
                let (each, prices) = server.of_each();
                (own.lock().or(each), prices)
            }
        }
    }

    /// The keys of the configuration that say that.
    fn keys(&self) -> [&'static str; 2] {
        match self {
            Whose::Server(_) => ["budget.requests_per_second", "budget.dollars_per_day"],
            Whose::Volume { .. } => ["budget.volume.requests_per_second", "budget.volume.dollars_per_day"],
        }
    }
}

impl Purse {
    /// What each volume of the server may spend that has no setting of its own.
    fn of_each(&self) -> (Allowance, Prices) {
        match &self.0.whose {
            Whose::Server(terms) => {
                let (options, prices) = &*terms.lock();
                (options.volume, prices.prices())
            }
            Whose::Volume { server, .. } => server.of_each(),
        }
    }
}

impl Bounds {
    fn look(&mut self, metered: &Metered, at: Instant) {
        for bound in &mut self.all {
            bound.look(spent(bound.unit, metered, &self.prices), at);
        }
    }
}

/// The more sparing one; of two that are alike, the one that lasts longer.
fn worse(one: Advice, other: Advice) -> Advice {
    one.max(other)
}

fn bounds(
    allowance: Allowance,
    keys: [&'static str; 2],
    metered: &Metered,
    prices: &Prices,
    at: Instant,
) -> Vec<Bound> {
    let Allowance { requests_per_second, dollars_per_day } = allowance;
    let [requests, dollars] = keys;
    let all = [(requests, Unit::Requests, f64::from(requests_per_second)), (dollars, Unit::Dollars, dollars_per_day)];
    let bound = |(key, unit, allowed)| Bound::new(key, unit, allowed, spent(unit, metered, prices), at);
    all.into_iter().filter(|(_, _, allowed)| *allowed > 0.0).map(bound).collect()
}

fn spent(unit: Unit, metered: &Metered, prices: &Prices) -> f64 {
    match unit {
        Unit::Requests => metered.requests() as f64,
        Unit::Dollars => prices.of_requests(metered),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::meter::MeterStore;
    use crate::store::{Key, Store};

    fn requests(allowed: u32, at: Instant) -> Bound {
        Bound::new("budget.requests_per_second", Unit::Requests, f64::from(allowed), 0.0, at)
    }

    fn after(at: Instant, seconds: f64) -> Instant {
        at + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn first_collection_and_write_back_wait_then_writes_and_it_passes_by_itself() {
        let at = Instant::now();
        let mut bound = requests(10, at);
        assert_eq!(bound.advice(), (Thrift::Free, None));
        bound.look(49.0, at);
        assert_eq!(bound.advice().0, Thrift::Free, "half of ten seconds' worth, and one more");
        bound.look(50.0, at);
        let (thrift, until) = bound.advice();
        assert_eq!(thrift, Thrift::Sparing);
        bound.look(50.0, until.unwrap());
        assert_eq!(bound.advice().0, Thrift::Free);
        bound.look(170.0, until.unwrap());
        let (thrift, until) = bound.advice();
        assert_eq!(thrift, Thrift::Spent);
        bound.look(170.0, until.unwrap() - Duration::from_millis(2));
        assert_eq!(bound.advice().0, Thrift::Spent);
        bound.look(170.0, until.unwrap());
        assert_eq!(bound.advice().0, Thrift::Sparing);
    }

    #[test]
    fn what_is_owed_is_bounded_and_so_is_what_is_saved_up() {
        let at = Instant::now();
        let mut bound = requests(1, at);
        bound.look(1e6, at);
        bound.look(1e6, after(at, 9.9));
        assert_eq!(bound.advice().0, Thrift::Spent);
        bound.look(1e6, after(at, 10.1));
        assert_eq!(bound.advice().0, Thrift::Sparing, "nobody waits for a million seconds");
        let later = after(at, 1e6);
        bound.look(1e6, later);
        bound.look(1e6 + 10.0, later);
        assert_eq!(bound.advice().0, Thrift::Spent, "not more than ten seconds' worth were saved up");
    }

    #[test]
    fn a_clock_or_a_meter_that_seems_to_go_back_gives_nothing() {
        let at = Instant::now();
        let mut bound = requests(10, after(at, 5.0));
        bound.look(100.0, at);
        bound.look(60.0, after(at, 5.0));
        bound.look(100.0, after(at, 5.0));
        assert!(bound.left.abs() < 1e-9, "{bound:?}");
    }

    #[tokio::test]
    async fn the_worst_bound_of_volume_and_server_counts_and_each_says_what_is_left_of_its_own() {
        let at = Instant::now();
        let options = Options {
            requests_per_second: 10,
            volume: Allowance { dollars_per_day: 0.01, ..Allowance::default() },
            ..Options::default()
        };
        let free = OwnAllowance::default();
        let [of_server, of_one, of_other] = [(); 3].map(|()| Arc::new(Meter::default()));
        let server = Purse::new(&options, PriceOptions::default(), of_server.clone(), at);
        let (one, other) = (server.of_volume(of_one.clone(), free, at), server.of_volume(of_other, free, at));
        let below: Arc<dyn Store> = Arc::new(MeterStore::new(Arc::new(MemoryStore::new()), of_server));
        let store = MeterStore::new(below.clone(), of_one);
        // An hour's worth of a cent a day are 80 PUTs.
        for n in 0..79 {
            store.put(&Key::new(format!("v/{n}")).unwrap(), vec![]).await.unwrap();
        }
        assert_eq!(
            (one.advice(at).0, other.advice(at).0, server.advice(at).0),
            (Thrift::Sparing, Thrift::Sparing, Thrift::Sparing)
        );
        store.put(&Key::new("v/79").unwrap(), vec![]).await.unwrap();
        assert_eq!((one.advice(at).0, other.advice(at).0), (Thrift::Spent, Thrift::Sparing));
        let [left] = &one.left(at)[..] else { panic!("{:?}", one.left(at)) };
        assert_eq!(
            (left.key.as_str(), left.allowed, left.thrift),
            ("budget.volume.dollars_per_day", 0.01, Thrift::Spent)
        );
        let [left] = &server.left(at)[..] else { panic!("{:?}", server.left(at)) };
        assert_eq!(
            (left.key.as_str(), left.allowed, left.thrift),
            ("budget.requests_per_second", 10.0, Thrift::Sparing)
        );
        assert!((left.left_ratio - 0.2).abs() < 1e-9, "{left:?}");
        for n in 80..100 {
            below.put(&Key::new(format!("v/{n}")).unwrap(), vec![]).await.unwrap();
        }
        assert_eq!(other.advice(at).0, Thrift::Spent, "what is no volume's counts for the server");
    }

    fn left(purse: &Purse, at: Instant) -> Vec<(String, f64, Thrift)> {
        purse.left(at).into_iter().map(|left| (left.key, left.allowed, left.thrift)).collect()
    }

    #[test]
    fn what_a_volume_sets_itself_beats_what_the_server_says_of_each() {
        let at = Instant::now();
        let each = Allowance { requests_per_second: 10, dollars_per_day: 1.0 };
        let server =
            Purse::new(&Options { volume: each, ..Options::default() }, PriceOptions::default(), Arc::default(), at);
        let own = OwnAllowance { requests_per_second: Some(3), dollars_per_day: None };
        let volume = server.of_volume(Arc::default(), own, at);
        let [requests, dollars] =
            ["budget.volume.requests_per_second", "budget.volume.dollars_per_day"].map(str::to_owned);
        let free = Thrift::Free;
        assert_eq!(left(&volume, at), [(requests.clone(), 3.0, free), (dollars.clone(), 1.0, free)]);
        volume.set_own(OwnAllowance { requests_per_second: Some(0), dollars_per_day: Some(2.0) });
        assert_eq!(left(&volume, at), [(dollars.clone(), 2.0, free)], "0 is any amount");
        volume.set_own(OwnAllowance::default());
        assert_eq!(left(&volume, at), [(requests, 10.0, free), (dollars, 1.0, free)]);
    }

    #[tokio::test]
    async fn other_bounds_and_prices_hold_at_once_and_what_is_left_stays() {
        let at = Instant::now();
        let options = |server, each| Options {
            requests_per_second: server,
            volume: Allowance { dollars_per_day: each, ..Allowance::default() },
            ..Options::default()
        };
        let meter = Arc::new(Meter::default());
        let server = Purse::new(&options(0, 0.01), PriceOptions::default(), Arc::default(), at);
        let volume = server.of_volume(meter.clone(), OwnAllowance::default(), at);
        let store = MeterStore::new(Arc::new(MemoryStore::new()), meter);
        // An hour's worth of a cent a day are 80 PUTs.
        for n in 0..60 {
            store.put(&Key::new(format!("v/{n}")).unwrap(), vec![]).await.unwrap();
        }
        let ratio = |purse: &Purse| purse.left(at)[0].left_ratio;
        assert!((ratio(&volume) - 0.25).abs() < 1e-9);
        server.set(&options(5, 0.02), PriceOptions::default());
        assert!((ratio(&volume) - 0.25).abs() < 1e-9, "whoever sets it anew is given nothing");
        assert_eq!(left(&volume, at)[0].1, 0.02);
        assert_eq!(left(&server, at), [("budget.requests_per_second".to_owned(), 5.0, Thrift::Free)]);
        // What was spent was spent at the old prices.
        let dear = PriceOptions { put_thousand: Some(0.1), ..PriceOptions::default() };
        server.set(&options(5, 0.02), dear);
        assert!((ratio(&volume) - 0.25).abs() < 1e-9);
        store.put(&Key::new("v/60").unwrap(), vec![]).await.unwrap();
        // A 25th of two cents is an hour's worth; a PUT costs an eighth of that now.
        assert!((ratio(&volume) - 0.125).abs() < 1e-9, "{}", ratio(&volume));
        server.set(&options(0, 0.0), dear);
        assert_eq!((volume.left(at), server.left(at), volume.advice(at)), (vec![], vec![], (Thrift::Free, None)));
    }

    #[test]
    fn without_a_bound_all_is_free() {
        let purse = Purse::boundless().of_volume(Arc::default(), OwnAllowance::default(), Instant::now());
        assert_eq!((purse.advice(Instant::now()), purse.left(Instant::now())), ((Thrift::Free, None), vec![]));
        let bad = Options { dollars_per_day: -1.0, ..Options::default() };
        assert_eq!(bad.check().unwrap_err().0, "dollars_per_day");
        let volume = Allowance { dollars_per_day: f64::NAN, ..Allowance::default() };
        assert_eq!(Options { volume, ..Options::default() }.check().unwrap_err().0, "volume.dollars_per_day");
    }

    proptest! {
        /// Somebody who spends one cent at a time, and only while writes need not wait, stays within a dollar in any 24 hours, by no more than that cent; and nobody waits
        /// for longer than it takes to get back what can be owed.
        #[test]
        fn in_any_day_no_more_is_spent_than_the_bound_says(steps in prop::collection::vec((0u32..4000, 0u32..40), 1..300)) {
            let begin = Instant::now();
            let mut bound = Bound::new("budget.dollars_per_day", Unit::Dollars, 1.0, 0.0, begin);
            let (mut at, mut spent, mut log) = (begin, 0.0, Vec::new());
            for (seconds, wanted) in steps {
                at += Duration::from_secs(seconds.into());
                for _ in 0..wanted {
                    bound.look(spent, at);
                    let (thrift, until) = bound.advice();
                    prop_assert!(until.is_none_or(|until| until > at && until <= at + DOLLARS_SAVED + Duration::from_millis(1)));
                    if thrift == Thrift::Spent {
                        break;
                    }
                    spent += 0.01;
                    log.push(at);
                }
            }
            for (n, first) in log.iter().enumerate() {
                let day = log[n..].iter().take_while(|at| **at < *first + DAY).count();
                prop_assert!(day as f64 * 0.01 <= 1.0 + 0.01 + 1e-9, "{day} cents in a day");
            }
        }
    }
}
