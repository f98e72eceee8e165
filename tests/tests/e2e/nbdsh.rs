//! What libnbd sees through Python (`nbdsh`), one call after the other: the handshake, the flags, each command with each
//! of its flags, what is refused with which error, and several connections.
//!
//! The scripts tell what they expect by `assert`; the server has to be there when they are done.

use crate::{create, create_clean, text};
use tests::Need::Program;
use tests::{Disks, Server, program, run, skipped};

/// What all scripts begin with: `uri`, and helpers.
const PRELUDE: &str = r#"
import os, nbd
uri = os.environ["URI"]
M = 1 << 20
EXTENTS_DATA, EXTENTS_HOLE = 0, nbd.STATE_HOLE | nbd.STATE_ZERO

def connected(uri=uri):
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    # Nothing is held back for the server's sake.
    h.set_strict_mode(0)
    return h

def refused(wanted, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errno == wanted, (call, arguments[-2:], error.errno, wanted)
    else:
        raise AssertionError((call, arguments[-2:], "not refused"))

def extents(h, offset, length, context="base:allocation", flags=0):
    told = {}
    def tell(name, at, words, error):
        assert at == offset and name not in told, (name, at)
        told[name] = list(zip(words[::2], words[1::2]))
        return 0
    h.block_status(length, offset, tell, flags)
    return told[context]

def chunks(h, offset, length, flags=0):
    told = []
    def tell(data, at, kind, error):
        told.append((kind, at, len(data)))
        return 0
    return bytes(h.pread_structured(length, offset, tell, flags)), told
"#;

fn nbdsh(uri: &str, script: &str) {
    // Its modules belong to the system's Python, whichever comes first on the path.
    let path = format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default());
    let mut nbdsh = program("nbdsh");
    nbdsh.env("PATH", path).env("URI", uri).args(["-n", "-c", PRELUDE, "-c", script]);
    run(&mut nbdsh).ok();
}

#[test]
fn the_handshake_goes_on_after_what_is_not_there() {
    if skipped(&[Program("nbdsh")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    create_clean("5", &disks);
    let config = disks.path("config.toml");
    std::fs::write(&config, "[export.vol0]\ndescription = 'of Ann'\n").unwrap();
    let server = Server::start_with(disks.dir(), &["--config", text(&config)], disks.all());
    nbdsh(
        &server.uri(""),
        r#"
h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
for context in ["base:allocation", "raidctl:health", "nobody:knows"]:
    h.add_meta_context(context)
h.connect_uri(uri)
assert h.get_protocol() == "newstyle-fixed"
assert h.get_handshake_flags() == nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbd.HANDSHAKE_FLAG_NO_ZEROES
listed = []
h.opt_list(lambda name, about: listed.append((name, about)) or 0)
assert listed == [("vol0", "of Ann")], listed

h.set_export_name("nope")
refused("ENOENT", h.opt_info)
refused("ENOENT", h.opt_go)
h.set_export_name("vol0")
contexts = []
assert h.opt_list_meta_context(lambda name: contexts.append(name) or 0) == 2
assert contexts == ["base:allocation", "raidctl:health"], contexts
h.opt_info()
assert (h.get_canonical_export_name(), h.get_export_description()) == ("vol0", "of Ann")
size = h.get_size()
assert [h.get_block_size(n) for n in (nbd.SIZE_MINIMUM, nbd.SIZE_MAXIMUM)] == [1, 32 * M]
h.opt_go()
assert h.get_size() == size and h.get_structured_replies_negotiated()
for context, wanted in [("base:allocation", True), ("raidctl:health", True), ("nobody:knows", False)]:
    assert h.can_meta_context(context) == wanted, context
assert extents(h, 0, size, "raidctl:health") == [(size, 0)]
h.shutdown()

# Neither more than it can nor less: an old client, and one that ends before it has begun.
h = nbd.NBD()
h.set_handshake_flags(0)
h.set_request_structured_replies(False)
h.set_export_name("vol0")
h.connect_unix(uri.split("socket=")[1])
assert not h.get_structured_replies_negotiated() and not h.can_df()
assert bytes(h.pread(4096, size - 4096)) == bytes(4096)
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()
"#,
    );
    server.stop();
}

#[test]
fn each_flag_is_told_truly() {
    if skipped(&[Program("nbdsh")]) {
        return;
    }
    for level in ["0", "1", "5", "10"] {
        let disks = Disks::new(4, 32);
        create_clean(level, &disks);
        let server = Server::start(disks.dir(), disks.all());
        nbdsh(
            &server.uri("vol0"),
            r#"
h = connected()
assert not h.is_read_only()
for flag in ["flush", "fua", "cache", "df", "multi_conn", "trim", "zero", "fast_zero"]:
    assert getattr(h, "can_" + flag)(), flag
"#,
        );
        server.stop();
        let server = Server::start_with(disks.dir(), &["--read-only"], disks.all());
        nbdsh(
            &server.uri("vol0"),
            r#"
h = connected()
assert h.is_read_only() and h.can_multi_conn() and h.can_cache() and h.can_df()
assert not (h.can_trim() or h.can_zero() or h.can_fast_zero())
for call, arguments in [(h.pwrite, (b"x" * 512, 0)), (h.trim, (M, 0)), (h.zero, (M, 0))]:
    refused("EPERM", call, *arguments)
assert bytes(h.pread(M, 0)) == bytes(M)
h.flush()
h.cache(M, 0)
assert extents(h, 0, M) == [(M, EXTENTS_HOLE)]
"#,
        );
        server.stop();
    }
}

#[test]
fn each_command_does_what_it_says_with_each_of_its_flags() {
    if skipped(&[Program("nbdsh")]) {
        return;
    }
    for level in ["0", "1", "5", "10"] {
        let disks = Disks::new(if level == "5" { 3 } else { 4 }, 32);
        create_clean(level, &disks);
        let server = Server::start(disks.dir(), disks.all());
        nbdsh(
            &server.uri("vol0"),
            r#"
h = connected()
size = h.get_size()
data = bytes(range(256)) * (4 * M // 256)
h.pwrite(data, 3 * M, nbd.CMD_FLAG_FUA)
h.cache(4 * M, 3 * M)
h.flush()
assert extents(h, 0, 9 * M) == [(3 * M, EXTENTS_HOLE), (4 * M, EXTENTS_DATA), (2 * M, EXTENTS_HOLE)]
assert extents(h, 4 * M, 5 * M, flags=nbd.CMD_FLAG_REQ_ONE) == [(3 * M, EXTENTS_DATA)]

# Holes take no bytes on the wire, unless they would take a reply apart that must not be.
read, told = chunks(h, 2 * M, 2 * M)
assert read == bytes(M) + data[:M]
assert [kind for kind, _, _ in told] == [nbd.READ_HOLE, nbd.READ_DATA], told
read, told = chunks(h, 2 * M, 2 * M, nbd.CMD_FLAG_DF)
assert read == bytes(M) + data[:M] and told == [(nbd.READ_DATA, 2 * M, 2 * M)], told

# Zeroes that keep their space, and such that give it back; all around stays.
h.zero(M // 2, 4 * M, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert extents(h, 3 * M, 4 * M) == [(4 * M, EXTENTS_DATA)]
h.zero(M + 1024, 5 * M - 512)
h.zero(3 * M // 2, 9 * M, nbd.CMD_FLAG_FAST_ZERO)
wanted = bytearray(data)
wanted[M:M + M // 2] = bytes(M // 2)
wanted[2 * M - 512:3 * M + 512] = bytes(M + 1024)
assert bytes(h.pread(4 * M, 3 * M)) == bytes(wanted)
assert EXTENTS_HOLE in [status for _, status in extents(h, 5 * M, M)]
h.trim(4 * M, 3 * M, nbd.CMD_FLAG_FUA)
assert extents(h, 0, size) == [(size, EXTENTS_HOLE)], extents(h, 0, size)

# What is wrong is refused by the right name, and the connection lives.
last = size - 512
for wanted, call, arguments in [
    ("EINVAL", h.pread, (1024, last)),
    ("EINVAL", h.pread, (33 * M, 0)),
    ("EINVAL", h.pread, (512, size)),
    ("EINVAL", h.pread, (512, 0, 1 << 13)),
    ("EINVAL", h.trim, (1024, last)),
    ("EINVAL", h.cache, (1024, last)),
    ("EINVAL", h.flush, (nbd.CMD_FLAG_NO_HOLE,)),
    ("EINVAL", h.block_status, (1024, last, lambda *_: 0)),
    ("ENOSPC", h.zero, (1024, last)),
    ("ENOSPC", h.pwrite, (bytes(1024), last)),
]:
    refused(wanted, call, *arguments)
assert bytes(h.pread(512, last)) == bytes(512)
h.shutdown()
"#,
        );
        server.stop();
    }
}

#[test]
fn a_flush_over_one_connection_covers_writes_over_all() {
    if skipped(&[Program("nbdsh")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    create(&["--level", "5"], disks.all()).ok();
    let server = Server::start(disks.dir(), disks.all());
    nbdsh(
        &server.uri("vol0"),
        r#"
links = [connected() for _ in range(8)]
assert all(link.can_multi_conn() for link in links)
piece = 60000
# Many at once on each, in pieces that share blocks with those of the next.
wanted, sent = [], []
for n in range(64):
    link, bytes_of = links[n % 8], bytearray([n + 1]) * piece
    sent.append((link, link.aio_pwrite(nbd.Buffer.from_bytearray(bytes_of), n * piece)))
    wanted.append(bytes_of)
for link, cookie in sent:
    while not link.aio_command_completed(cookie):
        link.poll(-1)
links[3].flush()
wanted = b"".join(wanted)
for link in links:
    assert bytes(link.pread(len(wanted), 0)) == wanted
# One that goes without a word disturbs nobody.
del links[0]
links[1].pwrite(b"x" * 512, 0)
links[6].flush()
assert bytes(links[5].pread(512, 0)) == b"x" * 512
with open(os.environ["URI"].split("socket=")[1].replace("nbd.sock", "wanted"), "wb") as file:
    file.write(b"x" * 512 + wanted[512:])
"#,
    );
    // What was flushed is there after a crash.
    server.crash();
    let server = Server::start(disks.dir(), disks.all());
    let wanted = std::fs::read(disks.path("wanted")).unwrap();
    let (mut reader, _) = tests::RawClient::open(server.socket(), "vol0").unwrap();
    let read = reader.call(0, 0, u32::try_from(wanted.len()).unwrap(), &[], wanted.len()).unwrap().data;
    assert!(read == wanted, "not what was flushed");
    server.stop();
}
