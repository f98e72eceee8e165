//! Exports as block devices: against our own server, nbdkit and qemu-nbd, with servers that end, forget, change, fall
//! silent and talk rubbish.

#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::PATIENCE;
use common::remote::{Bench, Platter, SIZE, exercise, new_ring, open, options, serve, stop, unix};
use nbd_server::client::NbdDev;
use raidcore::blocking::Blocking;
use raidcore::buf::list_len;
use raidcore::dev::{BlockDev, BlockSize, Checked, ErrorKind, Op, Tag};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

#[test]
fn what_is_written_is_read_in_each_way_of_talking() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let platter = Platter::new(SIZE);
    let server = serve(&path, &platter);
    let mut model = platter.copy();
    for (extended, structured, connections) in
        [(false, false, 1), (false, true, 1), (true, true, 1), (true, true, 4)]
    {
        let ring = new_ring();
        let options = options(extended, structured, connections);
        let mut dev = NbdDev::open(&unix(&path, "vol"), &ring, &options).unwrap();
        dev.allow_blocks_of(BlockSize::B512);
        let dev = Checked::new(dev);
        assert_eq!(dev.geometry().queue_depth, 128 * connections as u32);
        let mut bench = Bench { ring: ring.clone(), dev, last_tag: 0, done: Vec::new() };
        exercise(&mut bench, &mut model, (40, 512), |_| {});
        assert!(bench.dev.inner().connections() >= 1);
        drop(bench);
        assert!(platter.copy() == model);
        assert!(ring.drain(PATIENCE) && ring.slab().usage().used_bytes == 0, "memory is given back");
    }
    stop(server);
}

#[test]
fn requests_larger_than_the_server_takes_are_sent_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut platter = Platter::new(SIZE);
    platter.geometry.max_transfer_bytes = 64 << 10;
    let server = serve(&path, &platter);
    let ring = new_ring();
    let mut dev = Blocking::on_ring(open(&path, &ring), &ring);
    let bytes: Vec<u8> = (0..SIZE as u32).map(|i| (i / 311) as u8).collect();
    dev.write_at(0, &bytes, true).unwrap();
    dev.write_zeroes(4096, 1 << 20, false, false).unwrap();
    dev.discard(2 << 20, 1 << 20).unwrap();
    let mut found = vec![0; SIZE];
    dev.read_at(0, &mut found).unwrap();
    let mut expected = bytes;
    expected[4096..4096 + (1 << 20)].fill(0);
    expected[2 << 20..3 << 20].fill(0);
    assert!(found == expected);
    drop(dev);
    stop(server);
}

#[test]
fn a_server_that_is_restarted_again_and_again_costs_time_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let platter = Platter::new(SIZE);
    let mut server = Some(serve(&path, &platter));
    let mut bench = Bench::on(&path);
    let mut model = platter.copy();
    // What is written in part of a unit cannot be proved after a restart.
    exercise(&mut bench, &mut model, (12, 4096), |round| {
        if round % 3 == 2 {
            stop(server.take().unwrap());
            server = Some(serve(&path, &platter));
        }
    });
    assert!(platter.copy() == model);
    drop(bench);
    stop(server.unwrap());
}

#[test]
fn a_server_that_comes_back_without_what_it_acknowledged_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for (flushed, lost, part) in [(true, false, false), (false, true, false), (false, false, true)] {
        let platter = Platter::new(SIZE);
        let server = serve(&path, &platter);
        let mut bench = Bench::with_blocks_of(&path, BlockSize::B512);
        bench.write(0, 1 << 20, 1).unwrap();
        bench.run(Op::Flush).unwrap();
        let before = platter.copy();
        bench.write(8192, 8192, 2).unwrap();
        if part {
            bench.write(1536, 512, 3).unwrap();
        }
        if flushed {
            bench.run(Op::Flush).unwrap();
        }
        stop(server);
        if lost {
            platter.bytes.lock().unwrap().copy_from_slice(&before);
        }
        let server = serve(&path, &platter);
        let found = bench.read(8192, 512);
        if flushed {
            assert_eq!(found, Ok(vec![2; 512]));
            assert_eq!(bench.write(0, 4096, 9), Ok(()));
        } else {
            assert_eq!(found, Err(ErrorKind::Gone), "neither old data nor doubtful data");
            let word = if lost { "lost acknowledged data" } else { "cannot be checked" };
            assert!(bench.trouble().contains(word), "{}", bench.trouble());
            assert_eq!(bench.run(Op::Flush).err(), Some(ErrorKind::Gone));
            assert_eq!(bench.write(0, 4096, 9), Err(ErrorKind::Gone));
        }
        drop(bench);
        stop(server);
    }
}

#[test]
fn an_export_that_comes_back_in_another_shape_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    type Change = fn(&mut Platter);
    let changes: [(&str, Change); 3] = [
        ("has 2097152 bytes", |platter| *platter = Platter::new(SIZE / 2)),
        ("read-only", |platter| platter.geometry.read_only = true),
        ("blocks of 4096", |platter| platter.geometry.block_size = BlockSize::B4096),
    ];
    for (word, change) in changes {
        let mut platter = Platter::new(SIZE);
        let server = serve(&path, &platter);
        let mut bench = Bench::with_blocks_of(&path, BlockSize::B512);
        assert!(bench.read(0, 4096).is_ok());
        stop(server);
        change(&mut platter);
        let server = serve(&path, &platter);
        assert_eq!(bench.read(0, 4096), Err(ErrorKind::Gone));
        assert!(bench.trouble().contains(word), "{}", bench.trouble());
        drop(bench);
        stop(server);
    }
}

/// Growing the disk under a remote member is the first half of growing its array, and it cost the member at the next
/// reconnect. The same for an ability that nothing here uses.
#[test]
fn an_export_that_comes_back_larger_or_with_larger_blocks_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let platter = Platter::new(SIZE);
    let server = serve(&path, &platter);
    let mut bench = Bench::on(&path);
    bench.write(0, 8192, 1).unwrap();
    stop(server);
    let mut larger = Platter::new(SIZE + 8192 + 512);
    larger.bytes.lock().unwrap()[..SIZE].copy_from_slice(&platter.copy());
    larger.geometry.block_size = BlockSize::B4096;
    let server = serve(&path, &larger);
    assert_eq!(bench.read(4096, 4096), Ok(vec![1; 4096]));
    assert_eq!(bench.dev.geometry().size_bytes, SIZE as u64, "not before it is looked at");
    bench.dev.refresh_size();
    assert_eq!(bench.dev.geometry().size_bytes, SIZE as u64 + 8192);
    bench.write(SIZE as u64, 8192, 2).unwrap();
    stop(server);
    let server = serve(&path, &larger);
    assert_eq!(bench.read(SIZE as u64, 8192), Ok(vec![2; 8192]), "the new part is looked for as well");
    drop(bench);
    stop(server);
    // What was grown into must stay.
    let server = serve(&path, &larger);
    let mut bench = Bench::on(&path);
    assert!(bench.read(0, 4096).is_ok());
    stop(server);
    let server = serve(&path, &platter);
    assert_eq!(bench.read(0, 4096), Err(ErrorKind::Gone));
    drop(bench);
    stop(server);
}

/// A file system with sectors of 512 bytes on an array with a remote member: a small write that was not flushed yet, a
/// restart of the server, and the member was lost, for nobody could tell whether the write was still there.
#[test]
fn small_writes_reach_the_server_as_whole_units_and_survive_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let platter = Platter::new(SIZE + 512);
    let server = serve(&path, &platter);
    let mut bench = Bench::on(&path);
    let geometry = bench.dev.geometry();
    assert_eq!((geometry.block_size, geometry.size_bytes), (BlockSize::B4096, SIZE as u64));
    assert_eq!(bench.write(512, 512, 1), Err(ErrorKind::Misaligned), "who is above patches units");
    for at in 0..4 {
        bench.write(SIZE as u64 - 16384 + at * 4096, 4096, 3).unwrap();
    }
    stop(server);
    let server = serve(&path, &platter);
    assert_eq!(bench.read(SIZE as u64 - 4096, 4096), Ok(vec![3; 4096]), "{}", bench.trouble());
    drop(bench);
    stop(server);
}

/// Without flush it was believed to write through: flushes were answered without being sent, and FUA was dropped.
#[test]
fn an_export_that_may_be_written_and_not_flushed_is_no_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    // By connection: has flags; and FUA; and read-only; flush.
    scripted(&path, |number, mut stream| {
        std::thread::spawn(move || {
            if greet(&mut stream, [1, 1 | 8, 1 | 2, 1 | 4][number]).is_ok() {
                while stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
            }
        });
    });
    let ring = new_ring();
    let open = || NbdDev::open(&unix(&path, "vol"), &ring, &options(false, true, 1)).map(drop);
    for _ in 0..2 {
        let error = open().unwrap_err().to_string();
        assert!(error.contains("/vol?socket=") && error.contains("NBD_FLAG_SEND_FLUSH"), "{error}");
    }
    open().unwrap();
    open().unwrap();
}

/// Listens, and treats each connection as `treat` says, with its number.
fn scripted(path: &Path, treat: impl Fn(usize, UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    // It ends with the process: nothing but an accept is left of it.
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            treat(number, stream.unwrap());
        }
    });
}

/// The server's side of a handshake that ends with an export of `SIZE` bytes; simple replies.
fn greet(stream: &mut UnixStream, flags: u16) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut word = [0; 4];
    stream.read_exact(&mut word)?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let (option, len) = (&header[8..12], common::be(&header[12..]));
        stream.read_exact(&mut vec![0; len as usize])?;
        let reply = |kind: u32, data: &[u8]| {
            let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
            let len = (data.len() as u32).to_be_bytes();
            [&magic[..], option, &kind.to_be_bytes(), &len, data].concat()
        };
        if option == [0, 0, 0, 7] {
            let size = (SIZE as u64).to_be_bytes();
            let info = [&[0, 0], &size[..], &flags.to_be_bytes()].concat();
            return stream.write_all(&[reply(3, &info), reply(1, b"")].concat());
        }
        stream.write_all(&reply(0x8000_0001, b""))?;
    }
}

fn simple_reply(errno: u32, cookie: &[u8], data: &[u8]) -> Vec<u8> {
    [&0x6744_6698u32.to_be_bytes()[..], &errno.to_be_bytes(), cookie, data].concat()
}

/// Reads one request's head; its kind, cookie and length.
fn take_request(stream: &mut UnixStream) -> std::io::Result<(u16, [u8; 8], u32)> {
    let mut head = [0; 28];
    stream.read_exact(&mut head)?;
    let (kind, len) = (common::be(&head[6..8]) as u16, common::be(&head[24..]) as u32);
    if kind == 1 {
        stream.read_exact(&mut vec![0; len as usize])?;
    }
    Ok((kind, head[8..16].try_into().unwrap(), len))
}

#[test]
fn a_silent_server_costs_a_read_its_deadline_and_a_write_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    scripted(&path, |_, mut stream| {
        std::thread::spawn(move || {
            // Takes everything and says nothing.
            if greet(&mut stream, 5).is_ok() {
                while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
            }
        });
    });
    let mut bench = Bench::on(&path);
    let op = bench.read_op(0, 1 << 20);
    let tag = bench.submit(op, Duration::from_millis(30));
    let late = bench.wait(tag);
    assert_eq!(late.result.unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!(list_len(&late.bufs), 1 << 20, "the memory was not on loan");
    assert_eq!(bench.trouble(), "");
    let op = bench.write_op(0, 4096, 1);
    let tag = bench.submit(op, Duration::from_millis(500));
    assert_eq!(bench.wait(tag).result.unwrap_err().kind, ErrorKind::Timeout);
    assert!(bench.trouble().contains("may still be executed"), "{}", bench.trouble());
    assert_eq!(bench.read(0, 4096), Err(ErrorKind::Gone));
}

#[test]
fn a_server_that_is_away_costs_each_request_its_deadline_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let platter = Platter::new(SIZE);
    stop({
        let server = serve(&path, &platter);
        let mut bench = Bench::on(&path);
        bench.write(0, 4096, 1).unwrap();
        bench.run(Op::Flush).unwrap();
        stop(server);
        // The connection is seen to be lost before anything is asked.
        while bench.dev.inner().connections() > 0 {
            bench.turn(true);
        }
        let ops = [bench.write_op(0, 4096, 2), bench.read_op(0, 4096), Op::Flush];
        let tags: Vec<Tag> = ops.map(|op| bench.submit(op, Duration::from_millis(50))).into();
        for tag in tags {
            assert_eq!(bench.wait(tag).result.unwrap_err().kind, ErrorKind::Timeout);
        }
        let op = bench.write_op(8192, 4096, 3);
        let tag = bench.submit(op, PATIENCE);
        bench.dev.cancel(tag);
        assert_eq!(bench.wait(tag).result.unwrap_err().kind, ErrorKind::Canceled);
        let server = serve(&path, &platter);
        assert_eq!(bench.read(0, 4096), Ok(vec![1; 4096]), "what was never sent was never done");
        server
    });
    assert_eq!(platter.copy()[8192], 0);
}

#[test]
fn errors_of_the_server_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let errors = [5u32, 1, 28, 22, 12, 95, 0xffff_ffff];
    scripted(&path, move |_, mut stream| {
        greet(&mut stream, 5).unwrap();
        for errno in errors {
            let (_, cookie, _) = take_request(&mut stream).unwrap();
            stream.write_all(&simple_reply(errno, &cookie, b"")).unwrap();
        }
        while stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    });
    let mut bench = Bench::on(&path);
    use ErrorKind::*;
    for kind in [Medium, ReadOnly, NoSpace, Misaligned, Busy, Unsupported, Medium] {
        assert_eq!(bench.read(0, 4096), Err(kind));
    }
    assert_eq!(bench.dev.inner().connections(), 1, "an error is no reason to hang up");
}

#[test]
fn rubbish_costs_the_connection_and_never_gives_wrong_data() {
    let dir = tempfile::tempdir().unwrap();
    let good = vec![7u8; 40 << 10];
    type Rubbish = fn(&[u8]) -> Vec<u8>;
    let rubbish: [Rubbish; 6] = [
        |_| b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        |cookie| simple_reply(0, &[&cookie[..7], &[cookie[7] ^ 1]].concat(), &[9; 40 << 10]),
        |cookie| simple_reply(0, cookie, &[9; 1000]),
        |cookie| simple_reply(0, cookie, &[9; (40 << 10) - 1]),
        |cookie| simple_reply(0, cookie, &[9; 40 << 10])[..10].to_vec(),
        |_| Vec::new(),
    ];
    for (number, rubbish) in rubbish.into_iter().enumerate() {
        let path = dir.path().join(number.to_string());
        let data = good.clone();
        scripted(&path, move |number, mut stream| {
            if greet(&mut stream, 5).is_err() {
                return;
            }
            // Rubbish for the first two connections, and then the truth.
            while let Ok((_, cookie, _)) = take_request(&mut stream) {
                let sent = match number {
                    0 | 1 => {
                        let sent = stream.write_all(&rubbish(&cookie));
                        sent.and_then(|()| stream.shutdown(std::net::Shutdown::Both))
                    }
                    _ => stream.write_all(&simple_reply(0, &cookie, &data)),
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        let mut bench = Bench::on(&path);
        assert_eq!(bench.read(0, 40 << 10), Ok(good.clone()), "rubbish {number}");
        drop(bench);
    }
    // A request that always breaks the connection is given up.
    let path = dir.path().join("always");
    scripted(&path, |_, mut stream| {
        if greet(&mut stream, 5).is_ok() && take_request(&mut stream).is_ok() {
            // A client that hangs up first has heard enough.
            stream.write_all(b"rubbish").unwrap_or_default();
        }
    });
    let mut bench = Bench::on(&path);
    assert_eq!(bench.read(0, 4096), Err(ErrorKind::Gone));
}

/// URIs are compared by their text, and two of them can lead to one disk: a mirror of it was created, and was none.
#[test]
#[cfg(feature = "cli")]
fn one_disk_under_two_uris_is_no_mirror() {
    let dir = tempfile::tempdir().unwrap();
    let (path, twin) = (dir.path().join("s"), dir.path().join("twin"));
    let platter = Platter::new(SIZE);
    let server = serve(&path, &platter);
    std::os::unix::fs::symlink(&path, &twin).unwrap();
    let uri = |socket: &Path| format!("nbd+unix:///vol?socket={}", socket.display());
    let words = ["create", "mirror", "--level", "1", &uri(&path), &uri(&twin)];
    let said = Command::new(env!("CARGO_BIN_EXE_raidctl")).args(words).output().unwrap();
    let message = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(1), "{message}");
    for part in ["/s is the same disk as", "/twin", "no array was created"] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(platter.copy().iter().all(|byte| *byte == 0), "what was written is taken back");
    stop(server);
}

/// A server that was started by a test, ended with it.
struct Foreign(Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Starts a program that serves on `path`, and waits until it does; `None` if it is not installed.
fn foreign(program: &str, args: &[&str], path: &Path) -> Option<Foreign> {
    let child = Command::new(program).args(args).spawn().ok()?;
    let child = Foreign(child);
    let start = Instant::now();
    while UnixStream::connect(path).is_err() {
        assert!(start.elapsed() < PATIENCE, "{program} does not listen");
        std::thread::yield_now();
    }
    Some(child)
}

fn image(dir: &Path) -> PathBuf {
    let image = dir.join("disk");
    std::fs::File::create(&image).unwrap().set_len(SIZE as u64).unwrap();
    image
}

#[test]
fn nbdkit_is_a_disk_also_when_it_is_killed_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = (dir.path().join("s"), image(dir.path()));
    let start = || {
        let (socket, file) = (path.to_str().unwrap(), image.to_str().unwrap());
        foreign("nbdkit", &["-f", "-U", socket, "file", file], &path)
    };
    let Some(server) = start() else { return };
    let mut server = Some(server);
    let mut bench = Bench::on(&path);
    let mut model = vec![0; SIZE];
    exercise(&mut bench, &mut model, (12, 4096), |round| {
        if round % 4 == 1 {
            drop(server.take());
            std::fs::remove_file(&path).unwrap();
            server = start();
        }
    });
    bench.run(Op::Flush).unwrap();
    assert!(std::fs::read(&image).unwrap() == model);
}

#[test]
fn qemu_nbd_is_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = (dir.path().join("s"), image(dir.path()));
    let (socket, file) = (path.to_str().unwrap(), image.to_str().unwrap());
    let args = ["-k", socket, "-f", "raw", "-e", "8", "-t", "--discard=unmap", file];
    let Some(_server) = foreign("qemu-nbd", &args, &path) else { return };
    let mut model = vec![0; SIZE];
    for extended in [false, true] {
        let ring = new_ring();
        let mut dev = NbdDev::open(&unix(&path, ""), &ring, &options(extended, true, 2)).unwrap();
        dev.allow_blocks_of(BlockSize::B512);
        let mut bench = Bench { ring, dev: Checked::new(dev), last_tag: 0, done: Vec::new() };
        exercise(&mut bench, &mut model, (20, 512), |_| {});
        bench.run(Op::Flush).unwrap();
    }
    assert!(std::fs::read(&image).unwrap() == model);
}
