//! Metrics as plain data, and as the text that Prometheus reads (format 0.0.4).

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::tally::{BOUNDS, Distribution};

/// What the text is called in HTTP.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// All samples of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its whole name; that of a counter ends in `_total`, and that of nothing else.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// One for each set of labels.
    pub samples: Vec<Sample>,
}

/// What samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins at 0 with the process or with the volume.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// What it is.
    pub value: Value,
}

/// What a sample is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Distribution(Distribution),
}

impl Family {
    /// Without samples yet. What a name says of its kind must be so.
    pub fn new(name: &'static str, kind: Kind, help: &'static str) -> Family {
        assert_eq!(
            name.ends_with(TOTAL),
            kind == Kind::Counter,
            "a counter's name, and no other, ends in {TOTAL}: {name}"
        );
        Family { name, help, kind, samples: Vec::new() }
    }

    /// With one more number.
    pub fn number<const N: usize>(mut self, labels: [(&'static str, &str); N], number: f64) -> Family {
        self.push(labels, Value::Number(number));
        self
    }

    /// Adds a sample.
    pub fn push<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: Value) {
        let labels = labels.map(|(name, value)| (name, value.to_owned())).to_vec();
        self.samples.push(Sample { labels, value });
    }
}

/// How the names of counters end. The encoder puts it there itself.
const TOTAL: &str = "_total";

/// The text of a page with these metrics.
pub fn page(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(families)));
    let mut text = String::new();
    // Writing to a String does not fail, and whatever a family holds can be written.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Page(Vec<Family>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for family in &self.0 {
            let name = family.name.strip_suffix(TOTAL).unwrap_or(family.name);
            let mut described = encoder.encode_descriptor(name, family.help, None, family.kind.into())?;
            for Sample { labels, value } in &family.samples {
                value.encode(family.kind, described.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(&self, kind: Kind, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        match (kind, self) {
            (Kind::Counter, Value::Number(number)) => encoder.encode_counter::<NoLabelSet, _, f64>(number, None),
            (_, Value::Number(number)) => encoder.encode_gauge(number),
            (_, Value::Distribution(distribution)) => {
                let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
                let buckets: Vec<_> = bounds.zip(distribution.buckets).collect();
                encoder.encode_histogram::<NoLabelSet>(distribution.seconds, distribution.count(), &buckets, None)
            }
        }
    }
}

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> MetricType {
        match kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tally::Durations;

    #[test]
    fn a_page_is_the_text_that_prometheus_reads() {
        let durations = Durations::default();
        durations.record(Duration::from_micros(70));
        durations.record(Duration::from_secs(100));
        let mut took = Family::new("a_duration_seconds", Kind::Histogram, "How long.");
        took.push([("volume", "d\"b\n")], Value::Distribution(durations.snapshot()));
        let families = vec![
            Family::new("a_requests_total", Kind::Counter, "How many.")
                .number([("kind", "put")], 3.0)
                .number([("kind", "get")], 0.5),
            Family::new("a_bytes", Kind::Gauge, "How much.").number([], 1e15),
            Family::new("a_none", Kind::Gauge, "Nothing."),
            took,
        ];
        let text = page(families);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..10],
            [
                "# HELP a_requests_total How many.",
                "# TYPE a_requests_total counter",
                "a_requests_total{kind=\"put\"} 3.0",
                "a_requests_total{kind=\"get\"} 0.5",
                "# HELP a_bytes How much.",
                "# TYPE a_bytes gauge",
                "a_bytes 1000000000000000.0",
                "# HELP a_none Nothing.",
                "# TYPE a_none gauge",
                "# HELP a_duration_seconds How long.",
            ]
        );
        let of = |le: &str| format!("a_duration_seconds_bucket{{volume=\"d\\\"b\\n\",le=\"{le}\"}}");
        for (le, count) in [("5e-05", 0), ("0.0001", 1), ("60", 1), ("+Inf", 2)] {
            assert!(lines.contains(&format!("{} {count}", of(le)).as_str()), "{le}: {text}");
        }
        assert!(
            lines.iter().any(|line| line.starts_with("a_duration_seconds_sum{") && line.ends_with(" 100.00007")),
            "{text}"
        );
        assert_eq!(lines.last(), Some(&"a_duration_seconds_count{volume=\"d\\\"b\\n\"} 2"));
    }

    #[test]
    #[should_panic(expected = "a counter's name, and no other, ends in _total")]
    fn a_name_that_lies_about_its_kind_is_refused() {
        let _ = Family::new("a_requests", Kind::Counter, "How many.");
    }
}
