//! "Metadata querying": LIST_META_CONTEXT and SET_META_CONTEXT, `NBD_CMD_BLOCK_STATUS`, and its payload.

use crate::common::haggle::{Haggle, info_data};
use crate::common::raw::{Headers, Raw, extents};
use crate::common::{self, be};
use crate::nbd::*;
use crate::stage::{SIZE, Stage};
use nbd_server::engine::{Devices, Engine};
use nbd_server::export::{Export, ExportId, Extent, MetaContext, health};
use nbd_server::limits::{MAX_EXTENTS, MAX_META_QUERIES};
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::ram::RamDisk;
use nbd_server::reactor::{Reactor, ReactorConfig};
use raidcore::dev::{Completion, Request};
use raidcore::time::Time;
use std::ops::Range;
use std::path::PathBuf;

const BOTH: &[&str] = &["raidctl:health", "base:allocation"];

/// An engine that knows something: each MiB is degraded or not in turn, and the last is unreadable.
struct Knowing {
    devices: Devices,
}

impl Engine for Knowing {
    fn submit(&mut self, export: ExportId, request: Request) {
        self.devices.submit(export, request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.devices.reap(done);
    }
    fn wake_at(&self) -> Option<Time> {
        self.devices.wake_at()
    }
    fn extents(&mut self, export: ExportId, context: MetaContext, range: Range<u64>, out: &mut Vec<Extent>) {
        if context == MetaContext::Allocation {
            return self.devices.extents(export, context, range, out);
        }
        let mut at = range.start;
        while at < range.end && out.len() < MAX_EXTENTS {
            // In pieces of 64 KiB, to be joined, and to the end of the export, to be cut.
            let len = (64 << 10) - at % (64 << 10);
            let flags = match at >> 20 {
                7 => health::UNREADABLE,
                mib if mib % 2 == 1 => health::DEGRADED,
                _ => health::REDUNDANT,
            };
            out.push(Extent { len, flags });
            at += len;
        }
    }
}

fn serve(dir: &tempfile::TempDir) -> (Reactor<Knowing>, PathBuf) {
    let path = dir.path().join("s");
    let listener = Listener::bind(&ListenAddr::Unix(path.clone())).unwrap();
    let engine = |_: &_| Ok(Knowing { devices: Devices::new() });
    let reactor = Reactor::spawn(ReactorConfig::small(), engine).unwrap();
    let add = move |host: &mut nbd_server::reactor::Host<Knowing>| {
        let disk = Box::new(RamDisk::new(SIZE as usize));
        let geometry = host.engine_mut().devices.insert(ExportId(1), disk);
        let (name, description) = ("vol".to_owned(), String::new());
        host.add_export(Export { id: ExportId(1), name, description, geometry, byte_granular: true })
            .unwrap();
        host.add_listener(listener).unwrap();
    };
    reactor.handle().call(add).unwrap();
    (reactor, path)
}

#[test]
fn each_selected_context_is_told_in_a_chunk_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve(&dir);
    const MIB: u64 = 1 << 20;
    for headers in [Headers::Structured, Headers::Extended] {
        let kind = if headers == Headers::Extended { 6 } else { 5 };
        let mut raw = Raw::connect(&path, headers, BOTH);
        let chunks = raw.ask(0, STATUS, MIB / 2, 2 * MIB, b"");
        assert_eq!(chunks.iter().map(|chunk| chunk.kind).collect::<Vec<_>>(), [kind, kind]);
        assert_eq!(extents(&chunks[0]), (1, vec![(2 * MIB, 0)]));
        assert_eq!(extents(&chunks[1]), (2, vec![(MIB / 2, 0), (MIB, 1), (MIB / 2, 0)]));

        let chunks = raw.ask(REQ_ONE, STATUS, 6 * MIB + 512, 2 * MIB - 512, b"");
        assert_eq!(
            chunks.iter().map(extents).collect::<Vec<_>>(),
            [(1, vec![(2 * MIB - 512, 0)]), (2, vec![(MIB - 512, 0)])]
        );
        let chunks = raw.ask(0, STATUS, 7 * MIB, MIB, b"");
        assert_eq!(extents(&chunks[1]), (2, vec![(MIB, 2)]));
        assert_eq!(raw.error(0, STATUS, 7 * MIB, MIB + 1, b""), EINVAL);
        assert_eq!(raw.error(DF, STATUS, 0, MIB, b""), EINVAL);
    }
    reactor.handle().stop(common::PATIENCE).unwrap();
    reactor.join();
}

#[test]
fn a_payload_of_a_status_query_names_the_contexts_to_tell() {
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve(&dir);
    let mut raw = Raw::connect(&path, Headers::Extended, BOTH);
    assert_ne!(raw.client.flags & 1 << 12, 0, "NBD_FLAG_BLOCK_STAT_PAYLOAD");
    assert_eq!(Raw::connect(&path, Headers::Structured, BOTH).client.flags & 1 << 12, 0);
    let filter = |len: u64, ids: &[u32]| {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        [&len.to_be_bytes()[..], &ids].concat()
    };
    let chunks = raw.ask(PAYLOAD_LEN, STATUS, 0, 12, &filter(1 << 20, &[2]));
    assert_eq!(chunks.iter().map(extents).collect::<Vec<_>>(), [(2, vec![(1 << 20, 0)])]);
    // In any order; the length is that of the payload's, and the extents do not leave it.
    let chunks = raw.ask(PAYLOAD_LEN | REQ_ONE, STATUS, 0, 16, &filter(SIZE, &[2, 1]));
    assert_eq!(
        chunks.iter().map(extents).collect::<Vec<_>>(),
        [(1, vec![(SIZE, 0)]), (2, vec![(1 << 20, 0)])]
    );
    let ragged = [filter(4096, &[1]), vec![0; 2]].concat();
    for bad in [
        filter(4096, &[]),
        filter(4096, &[9]),
        filter(4096, &[1, 1]),
        filter(0, &[1]),
        filter(SIZE + 1, &[1]),
        filter(u64::MAX, &[1]),
        ragged,
        vec![7; 600],
        vec![7; 1],
    ] {
        assert_eq!(raw.error(PAYLOAD_LEN, STATUS, 0, bad.len() as u64, &bad), EINVAL);
    }
    assert_eq!(raw.error(PAYLOAD_LEN, STATUS, 0, 0, b""), EINVAL);
    assert_eq!(raw.ask(0, STATUS, 0, 4096, b"").len(), 2, "without a payload it is about all of them");
    // A context that was not selected cannot be named.
    let mut one = Raw::connect(&path, Headers::Extended, &["raidctl:health"]);
    assert_eq!(one.error(PAYLOAD_LEN, STATUS, 0, 12, &filter(4096, &[1])), EINVAL);
    assert_eq!(one.error(PAYLOAD_LEN, STATUS, 0, 12, &filter(4096, &[2])), 0);
    reactor.handle().stop(common::PATIENCE).unwrap();
    reactor.join();
}

/// Replies to status queries used to be no payload: nobody counted their memory.
#[test]
fn a_client_that_asks_and_does_not_listen_holds_no_more_than_its_share() {
    let dir = tempfile::tempdir().unwrap();
    let (reactor, path) = serve(&dir);
    let mut raw = Raw::connect(&path, Headers::Extended, BOTH);
    raw.client.stream.set_nonblocking(true).unwrap();
    let query = common::raw::extended(0, STATUS, 1, 0, SIZE);
    let mut sent = 0;
    while sent < 200_000 && std::io::Write::write_all(&mut raw.client.stream, &query).is_ok() {
        sent += 1;
    }
    assert!(sent > 0);
    // Another client is served meanwhile.
    let mut other = Raw::connect(&path, Headers::Structured, BOTH);
    assert_eq!(other.ask(0, STATUS, 0, SIZE, b"").len(), 2);
    assert_eq!(other.error(0, READ, 0, 65536, b""), 0);
    drop((raw, other));
    reactor.handle().stop(common::PATIENCE).unwrap();
    reactor.join();
}

/// What the replies to a query name: numbers and contexts, and how it ended.
fn contexts(client: &mut Haggle, number: u32, name: &str, queries: &[&str]) -> (Vec<(u64, String)>, u32) {
    let replies = client.ask(number, &context_data(name, queries));
    let (last, told) = replies.split_last().unwrap();
    assert!(told.iter().all(|reply| reply.kind == REP_META_CONTEXT));
    let name = |data: &[u8]| String::from_utf8(data[4..].to_vec()).unwrap();
    (told.iter().map(|reply| (be(&reply.data[..4]), name(&reply.data))).collect(), last.kind)
}

fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
    let queries_bytes: Vec<_> = queries.iter().flat_map(|query| string(query)).collect();
    [string(name), (queries.len() as u32).to_be_bytes().to_vec(), queries_bytes].concat()
}

fn agreed(stage: &Stage, number: u32) -> Haggle {
    let mut client = stage.haggle();
    assert_eq!(client.verdict(number, b""), REP_ACK);
    client
}

#[test]
fn contexts_need_structured_replies_or_extended_headers() {
    let stage = Stage::new();
    let mut client = stage.haggle();
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        assert_eq!(client.verdict(number, &context_data("vol", &["base:allocation"])), ERR_INVALID);
        for agreement in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
            let mut client = agreed(&stage, agreement);
            assert_eq!(client.verdict(number, &context_data("vol", &["base:allocation"])), REP_ACK);
        }
    }
}

#[test]
fn without_a_query_all_contexts_are_listed_and_none_is_set() {
    let stage = Stage::new();
    let mut client = agreed(&stage, STRUCTURED_REPLY);
    let all = [(0, "base:allocation".to_owned()), (0, "raidctl:health".to_owned())];
    assert_eq!(contexts(&mut client, LIST_META_CONTEXT, "vol", &[]), (all.to_vec(), REP_ACK));
    assert_eq!(contexts(&mut client, SET_META_CONTEXT, "vol", &[]), (vec![], REP_ACK));
}

#[test]
fn a_namespace_alone_lists_what_is_in_it_and_sets_nothing() {
    let stage = Stage::new();
    let mut client = agreed(&stage, STRUCTURED_REPLY);
    for (query, name) in [("base:", "base:allocation"), ("raidctl:", "raidctl:health")] {
        let listed = contexts(&mut client, LIST_META_CONTEXT, "vol", &[query]);
        assert_eq!(listed, (vec![(0, name.to_owned())], REP_ACK));
        assert_eq!(contexts(&mut client, SET_META_CONTEXT, "vol", &[query]), (vec![], REP_ACK));
    }
}

#[test]
fn unknown_namespaces_and_leaves_are_ignored_beside_those_that_are_known() {
    let stage = Stage::new();
    let mut client = agreed(&stage, STRUCTURED_REPLY);
    let unknown =
        ["x-me:y", "qemu:dirty-bitmap:b", "base:allocation2", "base:ALLOCATION", "x:", "nbd-server:a:b"];
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        assert_eq!(contexts(&mut client, number, "vol", &unknown), (vec![], REP_ACK));
        let all = [&unknown[..], &["base:allocation", "base:allocation"]].concat();
        let (told, end) = contexts(&mut client, number, "vol", &all);
        assert_eq!((told.len(), told[0].1.as_str(), end), (1, "base:allocation", REP_ACK));
    }
}

#[test]
fn each_context_that_is_set_has_a_number_of_its_own() {
    let stage = Stage::new();
    for agreement in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let (told, _) = contexts(&mut agreed(&stage, agreement), SET_META_CONTEXT, "vol", BOTH);
        assert_eq!(told.len(), 2);
        assert_ne!(told[0].0, told[1].0);
    }
}

/// The specification would allow to ignore such queries, too.
#[test]
fn a_query_without_a_namespace_and_a_colon_is_invalid() {
    let stage = Stage::new();
    let mut client = agreed(&stage, STRUCTURED_REPLY);
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        for query in ["", "base", ":", ":leaf"] {
            assert_eq!(contexts(&mut client, number, "vol", &[query]), (vec![], ERR_INVALID), "{query:?}");
        }
    }
}

#[test]
fn contexts_of_an_unknown_export_are_unknown_and_too_many_queries_too_big() {
    let stage = Stage::new();
    let mut client = agreed(&stage, STRUCTURED_REPLY);
    let many = vec!["x:"; MAX_META_QUERIES + 1];
    for number in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        assert_eq!(contexts(&mut client, number, "nope", &["base:allocation"]), (vec![], ERR_UNKNOWN));
        assert_eq!(contexts(&mut client, number, "vol", &many), (vec![], ERR_TOO_BIG));
        assert_eq!(contexts(&mut client, number, "vol", &many[1..]), (vec![], REP_ACK));
    }
}

/// Status queries after these options, in the order they are sent.
fn status_after(stage: &Stage, options: &[(u32, Vec<u8>)]) -> u64 {
    let mut client = agreed(stage, STRUCTURED_REPLY);
    options.iter().for_each(|(number, data)| drop(client.ask(*number, data)));
    assert_eq!(client.verdict(GO, &info_data("vol", &[])), REP_ACK);
    let client = common::Client { stream: client.stream, structured: true, size: SIZE, flags: 0 };
    Raw { client, headers: Headers::Structured }.error(0, STATUS, 0, 4096, b"")
}

#[test]
fn the_last_selection_counts_also_if_it_failed_and_only_for_its_own_export() {
    let stage = Stage::new().also(vec!["other".to_owned()]);
    let set = |name: &str, queries: &[&str]| (SET_META_CONTEXT, context_data(name, queries));
    let good = || set("vol", &["base:allocation"]);
    assert_eq!(status_after(&stage, &[]), EINVAL, "none was set");
    assert_eq!(status_after(&stage, &[good()]), 0);
    assert_eq!(status_after(&stage, &[set("other", &["base:allocation"]), good()]), 0);
    for last in [
        set("vol", &[]),
        set("vol", &["base:"]),
        set("vol", &["nocolon"]),
        set("nope", &["base:allocation"]),
        set("other", &["base:allocation"]),
        (SET_META_CONTEXT, vec![]),
        (SET_META_CONTEXT, vec![0; 9000]),
    ] {
        assert_eq!(status_after(&stage, &[good(), last.clone()]), EINVAL, "{last:?}");
    }
    // What only asks leaves it as it is.
    let asks = [good(), (LIST_META_CONTEXT, context_data("other", &[])), (INFO, info_data("other", &[]))];
    assert_eq!(status_after(&stage, &asks), 0);
}
