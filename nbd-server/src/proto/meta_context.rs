//! Metadata contexts: what options select of them, and their numbers on the wire.
//!
//! A query is a context's whole name, or in `NBD_OPT_LIST_META_CONTEXT` also a namespace with its colon, for all of
//! that namespace. What is asked of other namespaces, and of leaves that do not exist, selects nothing and is no
//! error: a client may ask for what only newer servers have.

use super::option::{Malformed, parse_name, parse_string};
use crate::export::MetaContext;
use crate::limits::MAX_META_QUERIES;

/// A set of metadata contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Contexts {
    /// None of them.
    pub const NONE: Contexts = Contexts(0);

    /// One of them.
    pub const fn only(context: MetaContext) -> Contexts {
        Contexts(bit(context))
    }

    /// All of them.
    pub fn all() -> Contexts {
        MetaContext::ALL.into_iter().collect()
    }

    /// Adds one; false if it was there.
    pub fn insert(&mut self, context: MetaContext) -> bool {
        let is_new = !self.contains(context);
        self.0 |= bit(context);
        is_new
    }

    /// True if `context` is one of them.
    pub fn contains(self, context: MetaContext) -> bool {
        self.0 & bit(context) != 0
    }

    /// True if there are none.
    pub fn is_empty(self) -> bool {
        self == Contexts::NONE
    }

    /// They, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = MetaContext> {
        MetaContext::ALL.into_iter().filter(move |context| self.contains(*context))
    }
}

impl FromIterator<MetaContext> for Contexts {
    fn from_iter<I: IntoIterator<Item = MetaContext>>(list: I) -> Contexts {
        Contexts(list.into_iter().fold(0, |bits, context| bits | bit(context)))
    }
}

/// The number of a context in replies. It is the same in each connection, though clients must not rely on it.
pub fn id_of(context: MetaContext) -> u32 {
    match context {
        MetaContext::Allocation => 1,
        MetaContext::Health => 2,
    }
}

/// The context of a number.
pub fn context_of(id: u32) -> Option<MetaContext> {
    MetaContext::ALL.into_iter().find(|context| id_of(*context) == id)
}

const fn bit(context: MetaContext) -> u8 {
    1 << context as u8
}

/// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: an export's name, and what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContextRequest<'a> {
    pub name: &'a str,
    pub queries: Queries<'a>,
}

/// The queries of a request, each of them well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queries<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> ContextRequest<'a> {
    /// From `u32 length, name, u32 count, count * (u32 length, query)`, and nothing more.
    pub fn parse(data: &'a [u8]) -> Result<ContextRequest<'a>, Malformed> {
        let (name, rest) = split_string(data)?;
        let (count, bytes) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
        let queries = Queries { count: u32::from_be_bytes(*count), bytes };
        queries.check()?;
        Ok(ContextRequest { name: parse_name(name)?, queries })
    }
}

impl<'a> Queries<'a> {
    /// Whether there are more than a request may have.
    pub fn are_too_many(&self) -> bool {
        self.count as usize > MAX_META_QUERIES
    }

    /// The contexts that `NBD_OPT_LIST_META_CONTEXT` asks for: all, if there is no query.
    pub fn listed(&self) -> Contexts {
        if self.count == 0 { Contexts::all() } else { self.matching(true) }
    }

    /// The contexts that `NBD_OPT_SET_META_CONTEXT` asks for.
    pub fn selected(&self) -> Contexts {
        self.matching(false)
    }

    fn matching(&self, wildcards: bool) -> Contexts {
        let wants = |query: &[u8], name: &str| {
            let is_wildcard = wildcards && query.last() == Some(&b':') && name.as_bytes().starts_with(query);
            query == name.as_bytes() || is_wildcard
        };
        let all = MetaContext::ALL.into_iter();
        all.filter(|context| self.iter().any(|query| wants(query, context.name()))).collect()
    }

    fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (query, after) = split_string(rest).ok()?;
            rest = after;
            Some(query)
        })
    }

    /// Each query is a string with a namespace, and together they fill the bytes. The number is the client's, so it
    /// is the bytes that end the loop.
    fn check(&self) -> Result<(), Malformed> {
        let (mut rest, mut left) = (self.bytes, self.count);
        while left > 0 {
            let (query, after) = split_string(rest)?;
            let query = parse_string(query).ok_or(Malformed("query is not UTF-8 of at most 4096 bytes"))?;
            if query.find(':').is_none_or(|at| at == 0) {
                return Err(Malformed("query has no namespace: write NAMESPACE:NAME"));
            }
            (rest, left) = (after, left - 1);
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed("number of queries does not fit the option's length"))
        }
    }
}

const SHORT: Malformed = Malformed("option data is shorter than its lengths say");

/// A string behind its length, and what follows it.
fn split_string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or(SHORT)?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or(SHORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes(), text].concat()
    }

    fn data(name: &[u8], count: u32, queries: &[&[u8]]) -> Vec<u8> {
        let queries: Vec<_> = queries.iter().flat_map(|query| string(query)).collect();
        [string(name), count.to_be_bytes().to_vec(), queries].concat()
    }

    fn answers(queries: &[&[u8]]) -> (Vec<MetaContext>, Vec<MetaContext>) {
        let data = data(b"vol", queries.len() as u32, queries);
        let request = ContextRequest::parse(&data).unwrap();
        assert_eq!(request.name, "vol");
        (request.queries.listed().iter().collect(), request.queries.selected().iter().collect())
    }

    #[test]
    fn queries_select_by_whole_names_and_list_by_namespaces_too() {
        use MetaContext::{Allocation, Health};
        type Case<'a> = (&'a [&'a [u8]], &'a [MetaContext], &'a [MetaContext]);
        let cases: [Case; 8] = [
            (&[], &[Allocation, Health], &[]),
            (&[b"base:"], &[Allocation], &[]),
            (&[b"raidctl:"], &[Health], &[]),
            (&[b"base:allocation"], &[Allocation], &[Allocation]),
            (
                &[b"raidctl:health", b"base:allocation", b"raidctl:health"],
                &MetaContext::ALL,
                &MetaContext::ALL,
            ),
            (&[b"qemu:dirty-bitmap:x", b"qemu:", b"x-me:y:"], &[], &[]),
            (&[b"base:alloc", b"base:allocation:", b"raidctl:health2"], &[], &[]),
            (&[b"BASE:allocation"], &[], &[]),
        ];
        for (queries, listed, selected) in cases {
            assert_eq!(answers(queries), (listed.to_vec(), selected.to_vec()), "{queries:?}");
        }
    }

    #[test]
    fn lengths_and_counts_that_disagree_with_the_data_are_malformed() {
        let cases = [
            vec![],
            string(b"vol"),
            data(b"vol", 1, &[]),
            data(b"vol", u32::MAX, &[b"base:"]),
            data(b"vol", 0, &[b"base:"]),
            data(b"vol", 2, &[b"base:"]),
            data(b"vol", 1, &[b"base:", b"x:"]),
            data(b"v\0l", 0, &[]),
            data(b"vol", 1, &[b"no colon"]),
            data(b"vol", 1, &[b":leaf"]),
            data(b"vol", 1, &[b""]),
            data(b"vol", 1, &[b"base:\xff"]),
            data(b"vol", 1, &[b"base:\0"]),
            data(b"vol", 1, &[&[b':'; 4097]]),
            [data(b"vol", 1, &[]), vec![0xff; 8]].concat(),
        ];
        for case in cases {
            assert!(ContextRequest::parse(&case).is_err(), "{case:?}");
        }
    }

    #[test]
    fn a_set_knows_its_members_by_number() {
        let mut set = Contexts::NONE;
        assert!(set.is_empty() && set.insert(MetaContext::Health) && !set.insert(MetaContext::Health));
        assert_eq!(set.iter().map(id_of).collect::<Vec<_>>(), [2]);
        assert_eq!(MetaContext::ALL.map(|context| context_of(id_of(context))), MetaContext::ALL.map(Some));
        assert_eq!((context_of(0), context_of(3)), (None, None));
    }
}
