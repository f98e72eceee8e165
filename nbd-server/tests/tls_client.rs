//! Exports over TLS as block devices: the same data as in clear, over restarts too, and never with anybody whose
//! certificate is not right.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)] // a test may unwrap

mod common;

use common::PATIENCE;
use common::remote::{Bench, Platter, SIZE, exercise, options, serve, serve_at, stop, unix};
use common::samples::Authority;
use nbd_server::client::{NbdUri, TlsParams};
use nbd_server::engine::Devices;
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::reactor::Reactor;
use nbd_server::tls::{ClientCerts, ServerTls, TlsMode};
use raidcore::dev::{BlockDev, ErrorKind, Op};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A folder with the socket `s` and all certificates of one authority.
struct Place {
    dir: TempDir,
    authority: Authority,
}

impl Place {
    fn new() -> Place {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        authority.trusted_in(dir.path()).server_in(dir.path()).client_in(dir.path());
        Place { dir, authority }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// A folder beside, with what `fill` puts there.
    fn folder(&self, name: &str, fill: impl Fn(&Path)) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        fill(&folder);
        folder
    }

    /// Serves to clients with certificates, with those of `own`.
    fn serve(&self, own: &Path, platter: &Platter) -> Reactor<Devices> {
        let listener = Listener::bind(&ListenAddr::Unix(self.socket())).unwrap().with_tls(TlsMode::Require);
        let certificates = ServerTls::from_dir(own, ClientCerts::Require).unwrap();
        serve_at(listener, Some(certificates), platter)
    }

    fn uri(&self, certificates: &Path) -> NbdUri {
        let tls = Some(TlsParams { certificates: Some(certificates.to_owned()), ..TlsParams::default() });
        NbdUri { tls, ..unix(&self.socket(), "") }
    }

    fn open(&self) -> Bench {
        Bench::of(&self.uri(self.dir.path()), &options(false, true, 1)).unwrap()
    }
}

#[test]
fn what_is_written_is_read_in_each_way_of_talking() {
    let place = Place::new();
    let platter = Platter::new(SIZE);
    let server = place.serve(place.dir.path(), &platter);
    let mut model = platter.copy();
    for (extended, structured, connections) in
        [(false, false, 1), (false, true, 1), (true, true, 1), (true, true, 4)]
    {
        let options = options(extended, structured, connections);
        let mut bench = Bench::of(&place.uri(place.dir.path()), &options).unwrap();
        assert_eq!(bench.dev.geometry().queue_depth, 128 * connections as u32);
        exercise(&mut bench, &mut model, (20, 4096), |_| {});
        let Bench { ring, dev, .. } = bench;
        drop(dev);
        assert!(platter.copy() == model);
        assert!(ring.drain(PATIENCE) && ring.slab().usage().used_bytes == 0, "memory is given back");
    }
    stop(server);
}

#[test]
fn a_server_that_is_restarted_with_new_certificates_costs_time_and_nothing_else() {
    let place = Place::new();
    let platter = Platter::new(SIZE);
    let mut server = Some(place.serve(place.dir.path(), &platter));
    let mut bench = place.open();
    let mut model = platter.copy();
    exercise(&mut bench, &mut model, (12, 4096), |round| {
        if round % 3 == 2 {
            stop(server.take().unwrap());
            place.authority.server_in(place.dir.path());
            server = Some(place.serve(place.dir.path(), &platter));
        }
    });
    assert!(platter.copy() == model);
    drop(bench);
    stop(server.unwrap());
}

#[test]
fn after_a_restart_a_stranger_is_not_used_and_neither_is_a_server_in_clear() {
    let place = Place::new();
    let platter = Platter::new(SIZE);
    let server = place.serve(place.dir.path(), &platter);
    let mut bench = place.open();
    bench.write(0, 4096, 7).unwrap();
    bench.run(Op::Flush).unwrap();
    stop(server);
    // A write that is sent to a server that ends is in doubt for ever.
    while bench.dev.inner().connections() > 0 {
        bench.turn(true);
    }
    let strange = place.folder("strange", |folder| {
        place.authority.trusted_in(folder);
        Authority::new().server_in(folder);
    });
    let wrong = Platter::new(SIZE);
    for in_clear in [false, true] {
        let stranger = match in_clear {
            true => serve(&place.socket(), &wrong),
            false => place.serve(&strange, &wrong),
        };
        let ops = [bench.read_op(0, 4096), bench.write_op(0, 4096, 9)];
        let tags = ops.map(|op| bench.submit(op, Duration::from_millis(500)));
        for tag in tags {
            assert_eq!(bench.wait(tag).result.unwrap_err().kind, ErrorKind::Timeout, "in clear: {in_clear}");
        }
        stop(stranger);
    }
    assert!(wrong.copy().iter().all(|&byte| byte == 0));
    let server = place.serve(place.dir.path(), &platter);
    assert_eq!(bench.read(0, 4096), Ok(vec![7; 4096]));
    drop(bench);
    stop(server);
}

#[test]
fn who_does_not_get_in_is_told_why() {
    let place = Place::new();
    let server = place.serve(place.dir.path(), &Platter::new(SIZE));
    let certified = place.uri(place.dir.path());
    let bare = place.folder("bare", |folder| {
        place.authority.trusted_in(folder);
    });
    let stranger = place.folder("stranger", |folder| {
        place.authority.trusted_in(folder);
        Authority::new().client_in(folder);
    });
    let deceived = place.folder("deceived", |folder| {
        Authority::new().trusted_in(folder);
    });
    let mut elsewhere = certified.clone();
    elsewhere.tls.as_mut().unwrap().hostname = Some("elsewhere.example".into());
    for (uri, words) in [
        (place.uri(&bare), "client-cert.pem"),
        (place.uri(&stranger), "ca-cert.pem"),
        (place.uri(&deceived), "not from an authority in"),
        (elsewhere, "elsewhere.example"),
        (NbdUri { tls: None, ..certified.clone() }, "use nbds://"),
        (place.uri(&place.dir.path().join("none")), "none/ca-cert.pem"),
    ] {
        let refused = Bench::of(&uri, &options(false, true, 1)).err().map(|error| error.to_string());
        let refused = refused.unwrap_or_else(|| panic!("{uri} got in"));
        println!("{refused}");
        assert!(refused.contains(words), "{words:?} is not in {refused:?}");
    }
    stop(server);
    let server = serve(&place.socket(), &Platter::new(SIZE));
    let refused = Bench::of(&certified, &options(false, true, 1)).err().unwrap().to_string();
    assert!(refused.contains("TLS") && refused.contains("not supported"), "{refused}");
    stop(server);
}

/// nbdkit with one file, killed when it is dropped; `None` if it is not installed.
struct Nbdkit(Child);

impl Nbdkit {
    fn start(place: &Place, image: &Path) -> Option<Nbdkit> {
        let (dir, socket) = (place.dir.path(), place.socket());
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["-f", "--tls=require", "--tls-verify-peer", "--tls-certificates"]).arg(dir);
        nbdkit.arg("-U").arg(&socket).arg("file").arg(image).stdout(Stdio::null());
        let nbdkit = Nbdkit(nbdkit.spawn().ok()?);
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < PATIENCE, "nbdkit does not listen");
            std::thread::yield_now();
        }
        Some(nbdkit)
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn nbdkit_with_tls_is_a_disk_also_when_it_is_killed_in_the_middle() {
    let place = Place::new();
    let image = place.dir.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(SIZE as u64).unwrap();
    let Some(server) = Nbdkit::start(&place, &image) else { return };
    let mut server = Some(server);
    let mut bench = place.open();
    let mut model = vec![0; SIZE];
    exercise(&mut bench, &mut model, (12, 4096), |round| {
        if round % 4 == 1 {
            drop(server.take());
            std::fs::remove_file(place.socket()).unwrap();
            server = Nbdkit::start(&place, &image);
        }
    });
    bench.run(Op::Flush).unwrap();
    assert!(std::fs::read(&image).unwrap() == model);
}
