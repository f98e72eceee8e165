//! Who may use an export, and how: rules by address and by unix user.
//!
//! A [`Peer`] is known from the moment it is accepted, and to nobody but the kernel does the server listen about who
//! it is. The first rule that names it decides; whom no rule names finds no such export.
//!
//! ```
//! use nbd_server::access::{Access, Peer, Rights, Rule};
//!
//! let rules = ["10.0.0.0/8", "::1", "unix:user=1000:ro"].map(|text| text.parse::<Rule>().unwrap());
//! let access = Access::only(rules.to_vec())?;
//! let peer = |addr: &str| Peer::Tcp(addr.parse().unwrap());
//! assert_eq!(access.rights(&peer("10.1.2.3:4444")), Some(Rights::ReadWrite));
//! assert_eq!(access.rights(&peer("192.0.2.1:4444")), None);
//! assert_eq!(access.rights(&Peer::Unix { uid: 1000, gid: 1000, pid: 77 }), Some(Rights::ReadOnly));
//! # Ok::<(), nbd_server::access::AccessError>(())
//! ```

use crate::limits::MAX_ACCESS_RULES;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// The client at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Over TCP: its address. An IPv4 client of an IPv6 socket has its IPv4 address.
    Tcp(SocketAddr),
    /// Over a unix socket: what the kernel says of the process that connected (`SO_PEERCRED`).
    Unix {
        /// Its effective user.
        uid: u32,
        /// Its effective group.
        gid: u32,
        /// Its number, for people: it may have ended meanwhile.
        pid: i32,
    },
}

/// What counts as one client, however many connections it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// All connections from this IPv4 address.
    Address(Ipv4Addr),
    /// All connections from this IPv6 network, of 64 bits: so much has every host to itself.
    Network(Network),
    /// All connections of this user.
    User(u32),
}

/// A block of addresses: all whose first `prefix` bits are those of `base`.
///
/// Invariant: `prefix` is at most the bits of the address, and the bits of `base` behind it are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

/// Whom a rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Clients over TCP from these addresses.
    Network(Network),
    /// Every client over TCP.
    AnyTcp,
    /// Clients over a unix socket whose effective user this is.
    UnixUser(u32),
    /// Clients over a unix socket whose effective group this is. Supplementary groups do not count: the kernel
    /// tells them in no way that this server may use.
    UnixGroup(u32),
    /// Every client over a unix socket.
    AnyUnix,
}

/// What a client may do with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rights {
    /// Read; it is told that the export is read-only, and writes are answered with `EPERM`.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// One line of a list: whom it names, and what these may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom it names.
    pub who: Who,
    /// What they may do.
    pub rights: Rights,
}

/// Who may use an export. At most [`MAX_ACCESS_RULES`] rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// `None` lets everybody in.
    rules: Option<Vec<Rule>>,
    most: Rights,
}

/// Why a rule or a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// It names nobody that can be known.
    #[error(
        "{0:?} names no client: say an address (10.1.2.3, ::1), a network (10.0.0.0/8), tcp, unix, unix:user=UID or \
         unix:group=GID, with :ro behind it for read-only"
    )]
    BadRule(String),
    /// There are bits behind the prefix: a typing error, most often.
    #[error("{0:?} has bits set behind its prefix: write {1}, or the address alone")]
    LooseBits(String, Network),
    /// The list is too long.
    #[error("a list of {0} rules is too long: {MAX_ACCESS_RULES} at most, use networks or groups")]
    TooMany(usize),
}

/// What one host with IPv6 has to choose its addresses in.
const HOST_PREFIX: u8 = 64;

impl Peer {
    /// The client it counts as.
    pub fn client(&self) -> ClientKey {
        match self {
            Peer::Tcp(addr) => match addr.ip().to_canonical() {
                IpAddr::V4(v4) => ClientKey::Address(v4),
                IpAddr::V6(v6) => {
                    let base = IpAddr::V6((v6.to_bits() & mask(HOST_PREFIX)).into());
                    ClientKey::Network(Network { base, prefix: HOST_PREFIX })
                }
            },
            Peer::Unix { uid, .. } => ClientKey::User(*uid),
        }
    }
}

impl Network {
    /// The addresses that share the first `prefix` bits of `base`; `None` if an address has fewer. Bits of `base`
    /// behind the prefix do not count.
    pub fn new(base: IpAddr, prefix: u8) -> Option<Network> {
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        let (base, prefix) = match (base.to_canonical(), base) {
            (IpAddr::V4(v4), IpAddr::V6(_)) => (IpAddr::V4(v4), prefix.checked_sub(96)?),
            (same, _) => (same, prefix),
        };
        let base = match base {
            IpAddr::V4(_) if prefix > 32 => return None,
            IpAddr::V6(_) if prefix > 128 => return None,
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & mask(prefix + 96) as u32).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & mask(prefix)).into()),
        };
        Some(Network { base, prefix })
    }

    /// True if `addr` is one of them. An IPv4 address in IPv6 clothes is the IPv4 address.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.base, addr.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(v4)) => {
                v4.to_bits() & mask(self.prefix + 96) as u32 == base.to_bits()
            }
            (IpAddr::V6(base), IpAddr::V6(v6)) => v6.to_bits() & mask(self.prefix) == base.to_bits(),
            _ => false,
        }
    }
}

/// The first `prefix` of 128 bits.
fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl Who {
    fn is(&self, peer: &Peer) -> bool {
        match (self, peer) {
            (Who::Network(network), Peer::Tcp(addr)) => network.contains(addr.ip()),
            (Who::AnyTcp, Peer::Tcp(_)) | (Who::AnyUnix, Peer::Unix { .. }) => true,
            (Who::UnixUser(user), Peer::Unix { uid, .. }) => user == uid,
            (Who::UnixGroup(group), Peer::Unix { gid, .. }) => group == gid,
            _ => false,
        }
    }
}

impl Access {
    /// Everybody may read and write.
    pub fn everybody() -> Access {
        Access { rules: None, most: Rights::ReadWrite }
    }

    /// Only those whom a rule names; the first rule that names a client decides. Without rules nobody.
    pub fn only(rules: Vec<Rule>) -> Result<Access, AccessError> {
        match rules.len() {
            len if len > MAX_ACCESS_RULES => Err(AccessError::TooMany(len)),
            _ => Ok(Access { rules: Some(rules), most: Rights::ReadWrite }),
        }
    }

    /// The same clients, but nobody may write.
    pub fn read_only(self) -> Access {
        Access { most: Rights::ReadOnly, ..self }
    }

    /// What `peer` may do; `None` if the export is not there for it.
    pub fn rights(&self, peer: &Peer) -> Option<Rights> {
        let Some(rules) = &self.rules else { return Some(self.most) };
        rules.iter().find(|rule| rule.who.is(peer)).map(|rule| rule.rights.min(self.most))
    }
}

impl Default for Access {
    fn default() -> Access {
        Access::everybody()
    }
}

impl FromStr for Network {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Network, AccessError> {
        let bad = || AccessError::BadRule(text.to_owned());
        let (addr, prefix) = text.split_once('/').map_or((text, None), |(addr, prefix)| (addr, Some(prefix)));
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let Some(prefix) = prefix else {
            let all = if addr.is_ipv4() { 32 } else { 128 };
            return Network::new(addr, all).ok_or_else(bad);
        };
        let prefix = prefix.parse().map_err(|_| bad())?;
        let network = Network::new(addr, prefix).ok_or_else(bad)?;
        if network.base != addr.to_canonical() {
            return Err(AccessError::LooseBits(text.to_owned(), network));
        }
        Ok(network)
    }
}

impl FromStr for Who {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Who, AccessError> {
        let number = |digits: &str| digits.parse().map_err(|_| AccessError::BadRule(text.to_owned()));
        match text.split_once('=') {
            Some(("unix:user", uid)) => number(uid).map(Who::UnixUser),
            Some(("unix:group", gid)) => number(gid).map(Who::UnixGroup),
            _ if text == "unix" => Ok(Who::AnyUnix),
            _ if text == "tcp" => Ok(Who::AnyTcp),
            _ => text.parse().map(Who::Network),
        }
    }
}

impl FromStr for Rule {
    type Err = AccessError;

    /// Whom it names; `:ro` or `:rw` behind it, the latter being understood.
    fn from_str(text: &str) -> Result<Rule, AccessError> {
        let (who, rights) = match (text.strip_suffix(":ro"), text.strip_suffix(":rw")) {
            (Some(who), _) => (who, Rights::ReadOnly),
            (None, Some(who)) => (who, Rights::ReadWrite),
            (None, None) => (text, Rights::ReadWrite),
        };
        Ok(Rule { who: who.parse()?, rights })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(addr) => write!(f, "tcp:{addr}"),
            Peer::Unix { pid, .. } => write!(f, "unix:{pid}"),
        }
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientKey::Address(addr) => write!(f, "address {addr}"),
            ClientKey::Network(network) => write!(f, "network {network}"),
            ClientKey::User(uid) => write!(f, "user {uid}"),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(addr: &str) -> Peer {
        Peer::Tcp(SocketAddr::new(addr.parse().unwrap(), 1234))
    }

    fn unix(uid: u32, gid: u32) -> Peer {
        Peer::Unix { uid, gid, pid: 1 }
    }

    fn only(rules: &[&str]) -> Access {
        Access::only(rules.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    /// Every address used to be a client of its own, and a host has 2^64 of them.
    #[test]
    fn all_addresses_that_a_host_with_ipv6_can_take_are_one_client() {
        let client = |addr| tcp(addr).client();
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
        assert_ne!(client("::1"), unix(1, 1).client());
        assert_eq!(client("2001:db8:1:2::1").to_string(), "network 2001:db8:1:2::/64");
    }

    #[test]
    fn the_first_rule_that_names_a_client_decides_and_no_rule_means_not_there() {
        let access =
            only(&["10.1.0.0/16:ro", "10.0.0.0/8", "::1", "unix:user=7:ro", "unix:group=6", "tcp:ro"]);
        let cases = [
            (tcp("10.1.2.3"), Some(Rights::ReadOnly)),
            (tcp("10.2.2.3"), Some(Rights::ReadWrite)),
            (tcp("::ffff:10.2.2.3"), Some(Rights::ReadWrite)),
            (tcp("::1"), Some(Rights::ReadWrite)),
            (tcp("::2"), Some(Rights::ReadOnly)),
            (unix(7, 6), Some(Rights::ReadOnly)),
            (unix(8, 6), Some(Rights::ReadWrite)),
            (unix(0, 0), None),
        ];
        for (peer, rights) in cases {
            assert_eq!(access.rights(&peer), rights, "{peer:?}");
        }
        assert_eq!(only(&[]).rights(&unix(0, 0)), None);
        assert_eq!(only(&["unix"]).rights(&tcp("127.0.0.1")), None);
        assert_eq!(Access::default().rights(&tcp("192.0.2.1")), Some(Rights::ReadWrite));
        assert_eq!(only(&["10.0.0.0/8"]).read_only().rights(&tcp("10.1.1.1")), Some(Rights::ReadOnly));
        assert_eq!(only(&["10.0.0.0/8"]).read_only().rights(&tcp("11.1.1.1")), None);
    }

    #[test]
    fn what_is_no_rule_is_refused_by_its_own_words() {
        for bad in
            ["", ":ro", "10.0.0.0/33", "10.0.0/8", "::/129", "unix:user=", "unix:user=root", "unix:", "host"]
        {
            let error = bad.parse::<Rule>().unwrap_err();
            assert!(matches!(error, AccessError::BadRule(_)), "{bad:?}: {error}");
        }
        let error = "10.1.2.3/8".parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains("10.1.2.3/8") && error.contains("write 10.0.0.0/8"), "{error}");
        let many = vec!["tcp".parse().unwrap(); MAX_ACCESS_RULES + 1];
        assert_eq!(Access::only(many), Err(AccessError::TooMany(MAX_ACCESS_RULES + 1)));
    }

    #[test]
    fn the_whole_internet_is_a_network() {
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        assert!("::/0".parse::<Network>().unwrap().contains("ff::1".parse().unwrap()));
        assert_eq!("::ffff:10.0.0.0/104".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
    }

    proptest! {
        #[test]
        fn a_network_contains_exactly_those_that_share_its_prefix(
            base: u128, other: u128, share in 0u8..=128, prefix in 0u8..=128
        ) {
            // `other` begins like `base` for `share` bits at least.
            let addr = base & mask(share) | other & !mask(share);
            let network = Network::new(IpAddr::V6(base.into()), prefix);
            prop_assume!(IpAddr::V6(base.into()).to_canonical().is_ipv6());
            prop_assume!(IpAddr::V6(addr.into()).to_canonical().is_ipv6());
            let same = (base ^ addr).leading_zeros() >= u32::from(prefix);
            prop_assert_eq!(network.unwrap().contains(IpAddr::V6(addr.into())), same);
            let (v4, v4_addr, short) = (base as u32, addr as u32, prefix / 4);
            let network = Network::new(IpAddr::V4(v4.into()), short).unwrap();
            let same = (v4 ^ v4_addr).leading_zeros() >= u32::from(short);
            prop_assert_eq!(network.contains(IpAddr::V4(v4_addr.into())), same);
        }
    }
}
