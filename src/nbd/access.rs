//! Who may use what: the rules of the operator, decided without I/O.
//!
//! - A listener may have a list of those who may come in at all. It is asked before a word is said.
//! - A list of [`Rule`]s may say which exports a client may use, and how. The first rule that speaks of an export decides. If
//!   there are rules and none speaks of an export, nobody may use it.
//!
//! A client is known by where it comes from ([`Origin`]) and, once TLS runs, by the names of its certificate. An export is looked
//! for and opened only after its name has passed the rules, and the list of exports only for a client that may use one
//! ([`reach`]), so that a client that is refused learns nothing and moves nothing.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::device::AT;

/// Where a client comes from, as far as the kernel proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An address at the far end of a TCP connection.
    Ip(IpAddr),
    /// A process at the far end of a Unix socket: its user and its first group. Without them nothing is known of it.
    Unix(Option<(u32, u32)>),
    /// A process of the machine with that CID, through vsock.
    Vsock(u32),
    /// A stream that is no socket.
    Unknown,
}

/// Whom a rule means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Who {
    /// Everybody.
    Anyone,
    /// The hosts of an address or of a range of addresses.
    Net(IpNet),
    /// Every client of a Unix socket.
    Unix,
    /// The processes of a user, through a Unix socket.
    User(u32),
    /// The processes whose first group this is, through a Unix socket.
    Group(u32),
    /// The processes of the machine with that CID, or of all, through vsock.
    Vsock(Option<u32>),
    /// A client whose certificate has this name; `*` is any certificate that an authority of `client_ca` signed.
    Certificate(String),
}

impl Who {
    /// Whether it is a client from there, with a certificate of those names. `names` is empty without a certificate.
    pub fn is(&self, origin: Origin, certificate: Option<&[String]>) -> bool {
        match (self, origin) {
            (Who::Anyone, _) => true,
            (Who::Net(net), Origin::Ip(ip)) => net.contains(&ip.to_canonical()),
            (Who::Unix, Origin::Unix(_)) => true,
            (Who::User(user), Origin::Unix(Some((uid, _)))) => *user == uid,
            (Who::Group(group), Origin::Unix(Some((_, gid)))) => *group == gid,
            (Who::Vsock(None), Origin::Vsock(_)) => true,
            (Who::Vsock(Some(machine)), Origin::Vsock(cid)) => *machine == cid,
            (Who::Certificate(name), _) => match certificate {
                Some(names) => name == "*" || names.iter().any(|has| has == name),
                None => false,
            },
            _ => false,
        }
    }
}

/// What is accepted where somebody is named.
const WHO_ACCEPTED: &str = "accepted is an address or a range (10.0.0.5, 10.0.0.0/8, fd00::/8), unix, uid:NUMBER, gid:NUMBER, vsock, vsock:CID, \
                            cert:NAME (a name in the client's certificate; * is any), or anyone";

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Who, String> {
        let refuse = || format!("{text:?} names nobody; {WHO_ACCEPTED}");
        match (text, text.split_once(':')) {
            ("anyone", _) => return Ok(Who::Anyone),
            ("unix", _) => return Ok(Who::Unix),
            ("vsock", _) => return Ok(Who::Vsock(None)),
            (_, Some(("vsock", cid))) => return cid.parse().map(|cid| Who::Vsock(Some(cid))).map_err(|_| refuse()),
            (_, Some(("uid", id))) => return id.parse().map(Who::User).map_err(|_| refuse()),
            (_, Some(("gid", id))) => return id.parse().map(Who::Group).map_err(|_| refuse()),
            (_, Some(("cert", name))) if !name.is_empty() => return Ok(Who::Certificate(name.to_owned())),
            _ => {}
        }
        if let Ok(net) = text.parse::<IpNet>() {
            // A range whose address has more bits than its length is a slip: 10.0.0.5/8 would be all of 10.
            return match net == net.trunc() {
                true => Ok(Who::Net(net)),
                false => Err(format!("{text:?} has bits beyond its length; did you mean {}?", net.trunc())),
            };
        }
        text.parse::<IpAddr>().map(|ip| Who::Net(IpNet::from(ip))).map_err(|_| refuse())
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Anyone => f.write_str("anyone"),
            Who::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Who::Net(net) => net.fmt(f),
            Who::Unix => f.write_str("unix"),
            Who::User(id) => write!(f, "uid:{id}"),
            Who::Group(id) => write!(f, "gid:{id}"),
            Who::Vsock(None) => f.write_str("vsock"),
            Who::Vsock(Some(cid)) => write!(f, "vsock:{cid}"),
            Who::Certificate(name) => write!(f, "cert:{name}"),
        }
    }
}

impl TryFrom<String> for Who {
    type Error = String;

    fn try_from(text: String) -> Result<Who, String> {
        text.parse()
    }
}

impl From<Who> for String {
    fn from(who: Who) -> String {
        who.to_string()
    }
}

/// Who may use some exports, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The exports of which it speaks: names, or beginnings of names with a `*` behind. Who names a disk speaks of its versions, too.
    pub exports: Vec<String>,
    /// Whether they may be used over TLS only.
    #[serde(default)]
    pub tls: bool,
    /// Who may only read.
    #[serde(default)]
    pub read: Vec<Who>,
    /// Who may read and write.
    #[serde(default)]
    pub write: Vec<Who>,
}

impl Rule {
    fn speaks_of(&self, export: &str) -> bool {
        let disk = export.split_once(AT).map_or(export, |(disk, _)| disk);
        self.exports.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => export.starts_with(beginning),
            None => pattern == export || pattern == disk,
        })
    }

    /// Whether it means anybody by a certificate.
    pub fn names_certificates(&self) -> bool {
        self.read.iter().chain(&self.write).any(|who| matches!(who, Who::Certificate(_)))
    }

    /// What is wrong with it.
    fn fault(&self) -> Option<&'static str> {
        if self.exports.is_empty() {
            return Some("names no exports; exports = [\"*\"] speaks of all");
        }
        if self.read.is_empty() && self.write.is_empty() {
            return Some("lets nobody in; name who may in read or write, such as write = [\"anyone\"]");
        }
        let stars = |pattern: &String| pattern.trim_end_matches('*').contains('*') || pattern.ends_with("**");
        self.exports.iter().any(stars).then_some("has a * inside a name; it can stand at the end of one only")
    }
}

/// The first fault in a list of rules, as a sentence.
pub fn fault(rules: &[Rule]) -> Option<String> {
    rules.iter().zip(1..).find_map(|(rule, number)| Some(format!("rule {number} {}", rule.fault()?)))
}

/// A client, as the rules see it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where it comes from.
    pub origin: Origin,
    /// Whether TLS runs.
    pub tls: bool,
    /// The names of its certificate, if it showed one.
    pub certificate: Option<Vec<String>>,
}

/// Counts refusals, and tells which the log names: a crowd that is turned away must not fill it.
#[derive(Debug, Default)]
pub struct Refusals(AtomicU64);

impl Refusals {
    /// Counts one; how many there are, if it is the 1st, 2nd, 4th, 8th …
    pub fn count(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        count.is_power_of_two().then_some(count)
    }
}

/// The most of a name that a client made up which goes to the log, in characters.
const LOGGED_CHARS: usize = 64;

/// A name that a client made up, as the log has it.
pub fn logged(name: &str) -> &str {
    name.char_indices().nth(LOGGED_CHARS).map_or(name, |(end, _)| &name[..end])
}

/// What a client may do with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Write,
    /// Read.
    Read,
    /// Nothing before TLS runs.
    NeedsTls,
    /// Nothing.
    None,
}

/// What the rules say.
pub fn decide(rules: &[Rule], export: &str, caller: &Caller) -> Access {
    if rules.is_empty() {
        return Access::Write;
    }
    let Some(rule) = rules.iter().find(|rule| rule.speaks_of(export)) else { return Access::None };
    if rule.tls && !caller.tls {
        return Access::NeedsTls;
    }
    let means = |list: &[Who]| list.iter().any(|who| who.is(caller.origin, caller.certificate.as_deref()));
    match (means(&rule.write), means(&rule.read)) {
        (true, _) => Access::Write,
        (false, true) => Access::Read,
        // A certificate may still show who it is.
        (false, false) if rule.names_certificates() && !caller.tls => Access::NeedsTls,
        (false, false) => Access::None,
    }
}

/// What a client may use at all, under whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Some name is its to use as it is.
    pub usable: bool,
    /// Some name needs TLS first.
    pub behind_tls: bool,
}

/// What the rules leave a client, whichever exports there are.
pub fn reach(rules: &[Rule], caller: &Caller) -> Reach {
    if rules.is_empty() {
        return Reach { usable: true, behind_tls: false };
    }
    // A beginning stands for all names that go on in a way of which no other pattern speaks: none has a NUL (rule C2).
    let stands_for = |pattern: &String| match pattern.strip_suffix('*') {
        Some(beginning) => format!("{beginning}\0"),
        None => pattern.clone(),
    };
    let patterns = rules.iter().flat_map(|rule| &rule.exports);
    let decided: Vec<Access> = patterns.map(|pattern| decide(rules, &stands_for(pattern), caller)).collect();
    Reach {
        usable: decided.iter().any(|access| matches!(access, Access::Read | Access::Write)),
        behind_tls: decided.contains(&Access::NeedsTls),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(text: &str) -> Who {
        text.parse().unwrap()
    }

    fn rule(exports: &[&str], tls: bool, read: &[&str], write: &[&str]) -> Rule {
        let list = |texts: &[&str]| texts.iter().map(|text| who(text)).collect();
        let exports = exports.iter().map(|&name| name.to_owned()).collect();
        Rule { exports, tls, read: list(read), write: list(write) }
    }

    fn plain(origin: Origin) -> Caller {
        Caller { origin, tls: false, certificate: None }
    }

    fn with_certificate(name: &str) -> Caller {
        Caller { origin: ip("10.0.0.5"), tls: true, certificate: Some(vec!["other".to_owned(), name.to_owned()]) }
    }

    fn ip(text: &str) -> Origin {
        Origin::Ip(text.parse().unwrap())
    }

    #[test]
    fn whoever_is_named_is_meant_and_nobody_else() {
        let process = Origin::Unix(Some((1000, 6)));
        let everywhere = [
            ip("10.1.2.3"),
            ip("::ffff:10.1.2.3"),
            ip("fd00::1"),
            process,
            Origin::Unix(None),
            Origin::Vsock(3),
            Origin::Vsock(1000),
            Origin::Unknown,
        ];
        for (text, meant) in [
            ("anyone", [true; 8]),
            ("10.0.0.0/8", [true, true, false, false, false, false, false, false]),
            ("10.1.2.3", [true, true, false, false, false, false, false, false]),
            ("10.1.2.4", [false; 8]),
            ("fd00::/8", [false, false, true, false, false, false, false, false]),
            ("unix", [false, false, false, true, true, false, false, false]),
            ("uid:1000", [false, false, false, true, false, false, false, false]),
            ("uid:6", [false; 8]),
            ("gid:6", [false, false, false, true, false, false, false, false]),
            ("vsock", [false, false, false, false, false, true, true, false]),
            ("vsock:3", [false, false, false, false, false, true, false, false]),
            ("cert:*", [false; 8]),
        ] {
            assert_eq!(everywhere.map(|origin| who(text).is(origin, None)), meant, "{text}");
            assert_eq!(who(text).to_string(), text);
        }
        let names = ["db1.example".to_owned()];
        assert!(who("cert:db1.example").is(Origin::Unknown, Some(&names)));
        assert!(who("cert:*").is(Origin::Unknown, Some(&[])));
        assert!(!who("cert:db1").is(Origin::Unknown, Some(&names)), "the whole name, not its beginning");
    }

    #[test]
    fn nobody_is_named_by_a_slip() {
        for text in
            ["", "everybody", "10.0.0", "10.0.0.0/33", "uid:", "uid:root", "cert:", "300.0.0.1", "vsock:", "vsock:x"]
        {
            let error = text.parse::<Who>().unwrap_err();
            assert!(error.starts_with(&format!("{text:?} names nobody; accepted is ")), "{error}");
        }
        assert_eq!(
            "10.0.0.5/8".parse::<Who>().unwrap_err(),
            "\"10.0.0.5/8\" has bits beyond its length; did you mean 10.0.0.0/8?"
        );
    }

    #[test]
    fn the_first_rule_that_speaks_of_an_export_decides() {
        let rules = [
            rule(&["db"], false, &["cert:backup"], &["cert:db1"]),
            rule(&["db*", "logs"], false, &[], &["10.0.0.0/8"]),
            rule(&["secret"], true, &[], &["anyone"]),
        ];
        let here = plain(ip("10.0.0.5"));
        assert_eq!(decide(&rules, "db", &with_certificate("db1")), Access::Write);
        assert_eq!(decide(&rules, "db", &with_certificate("backup")), Access::Read);
        assert_eq!(decide(&rules, "db", &with_certificate("mallory")), Access::None, "a later rule does not help");
        assert_eq!(decide(&rules, "db", &here), Access::NeedsTls, "a certificate might help");
        assert_eq!(decide(&rules, "db2", &here), Access::Write);
        assert_eq!(decide(&rules, "db2", &plain(ip("192.168.0.1"))), Access::None);
        assert_eq!(decide(&rules, "log", &here), Access::None, "not the beginning of a whole name");
        assert_eq!(decide(&rules, "secret", &here), Access::NeedsTls);
        assert_eq!(decide(&rules, "secret", &Caller { tls: true, ..here.clone() }), Access::Write);
        assert_eq!(decide(&rules, "", &here), Access::None, "what no rule speaks of is for nobody");
        assert_eq!(decide(&[], "anything", &here), Access::Write);
    }

    #[test]
    fn who_may_use_a_disk_may_use_its_versions_unless_a_rule_before_speaks_of_these() {
        let caller = Caller { origin: Origin::Ip("10.0.0.5".parse().unwrap()), tls: false, certificate: None };
        let of = |rules: &[Rule]| ["db", "db@monday", "db2@monday"].map(|export| decide(rules, export, &caller));
        let db = rule(&["db"], false, &[], &["10.0.0.5"]);
        assert_eq!(of(std::slice::from_ref(&db)), [Access::Write, Access::Write, Access::None]);
        let versions = rule(&["db@*"], false, &["10.0.0.9"], &[]);
        assert_eq!(of(&[versions.clone(), db.clone()]), [Access::Write, Access::None, Access::None]);
        let one = rule(&["db@monday"], false, &["10.0.0.5"], &[]);
        assert_eq!(of(&[one, versions]), [Access::None, Access::Read, Access::None]);
    }

    #[test]
    fn o8_what_a_client_may_use_at_all_is_known_without_the_exports() {
        let reaches = |rules: &[Rule], caller: &Caller| {
            let Reach { usable, behind_tls } = reach(rules, caller);
            (usable, behind_tls)
        };
        let here = plain(ip("10.0.0.5"));
        let (us, anyone, others): (&[_], &[_], &[_]) = (&["10.0.0.5"], &["anyone"], &["10.0.0.6"]);
        assert_eq!(reaches(&[], &here), (true, false));
        assert_eq!(reaches(&[rule(&["*"], false, &[], others)], &here), (false, false));
        assert_eq!(reaches(&[rule(&["db", "x*"], false, us, others)], &here), (true, false));
        // What an earlier rule keeps a later one does not give; but it keeps only the names of which it speaks.
        let later = |kept: &str| [rule(&[kept], false, &[], others), rule(&["db*"], false, &[], anyone)];
        for (kept, usable) in [("*", false), ("d*", false), ("db*", false), ("db", true), ("dba*", true), ("x", true)] {
            assert_eq!(reaches(&later(kept), &here), (usable, false), "{kept}");
        }
        let exact = [rule(&["db"], false, &[], others), rule(&["db"], false, &[], anyone)];
        assert_eq!(reaches(&exact, &here), (false, false));
        // TLS, or a certificate, may open something.
        let secret = [rule(&["secret"], true, &[], anyone), rule(&["db"], false, &[], &["cert:db1"])];
        assert_eq!(reaches(&secret, &here), (false, true));
        assert_eq!(reaches(&secret, &Caller { tls: true, ..here.clone() }), (true, false));
        assert_eq!(reaches(&secret[1..], &Caller { tls: true, ..here }), (false, false));
        assert_eq!(reaches(&secret[1..], &with_certificate("db1")), (true, false));
    }

    #[test]
    fn of_many_refusals_few_are_named_and_briefly() {
        let refusals = Refusals::default();
        let named: Vec<u64> = (0..1000).filter_map(|_| refusals.count()).collect();
        assert_eq!(named, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        let (long, short) = ("ä".repeat(4096), "ä".repeat(64));
        assert_eq!((logged(&long), logged(&short), logged("db")), (&short[..], &short[..], "db"));
    }

    #[test]
    fn who_may_read_and_write_may_write() {
        let both = [rule(&["*"], false, &["anyone"], &["uid:0"])];
        assert_eq!(decide(&both, "x", &plain(Origin::Unix(Some((0, 0))))), Access::Write);
        assert_eq!(decide(&both, "x", &plain(Origin::Unix(Some((1, 0))))), Access::Read);
    }

    #[test]
    fn a_rule_that_means_nothing_is_refused() {
        let good = rule(&["*"], false, &[], &["anyone"]);
        assert_eq!(fault(std::slice::from_ref(&good)), None);
        for (bad, why) in [
            (rule(&[], false, &[], &["anyone"]), "rule 2 names no exports"),
            (rule(&["x"], true, &[], &[]), "rule 2 lets nobody in"),
            (rule(&["a*b"], false, &[], &["anyone"]), "rule 2 has a * inside a name"),
            (rule(&["a**"], false, &[], &["anyone"]), "rule 2 has a * inside a name"),
        ] {
            let said = fault(&[good.clone(), bad]).unwrap();
            assert!(said.starts_with(why), "{said}");
        }
    }
}
