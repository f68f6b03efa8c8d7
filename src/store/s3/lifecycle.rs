//! Lifecycle rules of the bucket that would take away what ashlar keeps: those that expire current objects, and those that move them
//! to a class that cannot be read at once. Old versions are another matter: that they expire is fine.

use rusoto_s3::{GetBucketLifecycleConfigurationRequest, LifecycleRule, S3};

use super::answers::Refused;
use super::errors::Asked;
use super::{Result, S3Store};

/// A rule that harms the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harm {
    /// The rule's name, which may be empty.
    pub rule: String,
    /// What it does to objects, such as "deletes objects after 30 days".
    pub what: String,
}

/// Classes whose objects must be restored before they can be read.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// What a server says of a bucket without rules.
const NONE: &str = "NoSuchLifecycleConfiguration";

impl S3Store {
    /// The rules that harm objects below the store's prefix.
    pub async fn harmful_rules(&self) -> Result<Vec<Harm>> {
        let request =
            GetBucketLifecycleConfigurationRequest { bucket: self.place.bucket.clone(), ..Default::default() };
        match self.request(Asked::Lifecycle, self.client.get_bucket_lifecycle_configuration(request)).await {
            Ok(said) => Ok(harms(&said.rules.unwrap_or_default(), &self.prefix)),
            Err(Refused { answer: Some(answer), .. }) if answer.code == NONE => Ok(Vec::new()),
            Err(refused) => Err(refused.error),
        }
    }
}

fn harms(rules: &[LifecycleRule], prefix: &str) -> Vec<Harm> {
    let reach = rules.iter().filter(|rule| rule.status == "Enabled" && reaches(rule, prefix));
    reach.filter_map(|rule| Some(Harm { rule: rule.id.clone().unwrap_or_default(), what: harm(rule)? })).collect()
}

/// Whether a rule is about objects of ours. They have no tags, so none that wants tags is.
fn reaches(rule: &LifecycleRule, prefix: &str) -> bool {
    let filter = rule.filter.as_ref();
    let and = filter.and_then(|filter| filter.and.as_ref());
    let wants_tags = filter.is_some_and(|filter| filter.tag.is_some())
        || and.and_then(|and| and.tags.as_ref()).is_some_and(|tags| !tags.is_empty());
    // What it says in the older form, without a filter, rusoto leaves out: then the rule is taken to be about all.
    let of = filter.and_then(|filter| filter.prefix.as_deref()).or(and.and_then(|and| and.prefix.as_deref()));
    let of = of.unwrap_or_default();
    !wants_tags && (prefix.starts_with(of) || of.starts_with(prefix))
}

fn harm(rule: &LifecycleRule) -> Option<String> {
    let when = |date: &Option<String>, days: Option<i64>| match (date, days) {
        (_, Some(days)) => format!(" after {days} days"),
        (Some(date), None) => format!(" on {date}"),
        (None, None) => String::new(),
    };
    let expires = rule.expiration.as_ref().filter(|expires| expires.days.is_some() || expires.date.is_some());
    if let Some(expires) = expires {
        return Some(format!("deletes objects{}", when(&expires.date, expires.days)));
    }
    rule.transitions.iter().flatten().find_map(|moves| {
        let class = moves.storage_class.as_deref().filter(|class| ARCHIVES.contains(class))?;
        Some(format!("moves objects to {class}{}", when(&moves.date, moves.days)))
    })
}

#[cfg(test)]
mod tests {
    use rusoto_s3::{LifecycleExpiration, LifecycleRuleAndOperator, LifecycleRuleFilter, Tag, Transition};

    use super::*;

    fn below(prefix: &str) -> Option<LifecycleRuleFilter> {
        Some(LifecycleRuleFilter { prefix: Some(prefix.into()), ..Default::default() })
    }

    fn expiry(filter: Option<LifecycleRuleFilter>) -> LifecycleRule {
        let expiration = Some(LifecycleExpiration { days: Some(30), ..Default::default() });
        LifecycleRule { id: Some("old".into()), status: "Enabled".into(), filter, expiration, ..Default::default() }
    }

    #[test]
    fn a_rule_harms_where_it_reaches_objects_of_the_store() {
        let deletes = vec![Harm { rule: "old".into(), what: "deletes objects after 30 days".into() }];
        for filter in [None, below(""), below("di"), below("disks/"), below("disks/db/")] {
            assert_eq!(harms(&[expiry(filter.clone())], "disks/"), deletes, "{filter:?}");
        }
        assert_eq!(harms(&[expiry(below("logs/"))], ""), deletes, "a store of the whole bucket");
        assert_eq!(harms(&[expiry(below("logs/"))], "disks/"), []);
        let tag = Tag { key: "a".into(), value: "b".into() };
        let tagged = LifecycleRuleFilter { tag: Some(tag.clone()), ..Default::default() };
        let and = LifecycleRuleAndOperator { prefix: None, tags: Some(vec![tag]) };
        let both = LifecycleRuleFilter { and: Some(and), ..Default::default() };
        assert_eq!(harms(&[expiry(Some(tagged)), expiry(Some(both))], "disks/"), []);
        let disabled = LifecycleRule { status: "Disabled".into(), ..expiry(None) };
        assert_eq!(harms(&[disabled], "disks/"), []);
    }

    #[test]
    fn archives_harm_and_cheaper_classes_and_old_versions_do_not() {
        let moves = |class: &str| {
            let transition = Transition { days: Some(7), storage_class: Some(class.into()), date: None };
            let transitions = Some(vec![transition]);
            harms(&[LifecycleRule { status: "Enabled".into(), transitions, ..Default::default() }], "")
        };
        for class in ARCHIVES {
            assert_eq!(moves(class)[0].what, format!("moves objects to {class} after 7 days"));
        }
        assert_eq!((moves("STANDARD_IA"), moves("GLACIER_IR")), (vec![], vec![]));
        let markers = LifecycleExpiration { expired_object_delete_marker: Some(true), ..Default::default() };
        let tidies = LifecycleRule { status: "Enabled".into(), expiration: Some(markers), ..Default::default() };
        assert_eq!(harms(&[tidies], ""), []);
    }
}
