//! A new process takes over from the one that serves: clients that reconnect see a pause and no error, and whatever
//! becomes of the new process, somebody serves what was acknowledged.

use crate::{create_clean, text};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use tests::Need::Program;
use tests::{Disks, RawClient, Server, program, raidctl, run, running, skipped, takeover};

/// How often the server is taken over in a row.
const TIMES: usize = 5;

/// qemu's NBD client, which reconnects and repeats what was under way.
struct Qemu {
    process: Child,
    commands: ChildStdin,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Qemu {
    fn open(socket: &Path) -> Qemu {
        let image = format!(
            "driver=nbd,server.type=unix,server.path={},export=vol0,reconnect-delay=100,open-timeout=100",
            text(socket)
        );
        let mut command = program("qemu-io");
        command.args(["--image-opts", &image]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.stderr(Stdio::inherit()).spawn().unwrap();
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Qemu { process, commands, answers }
    }

    /// Runs a command and waits for its answer, which must be `good`. How long it took.
    fn run(&mut self, command: &str, good: &str) -> Duration {
        let begun = Instant::now();
        writeln!(self.commands, "{command}").unwrap();
        loop {
            let line = self.answers.next().unwrap_or_else(|| panic!("qemu-io ended: {command}")).unwrap();
            assert!(!line.contains("rror") && !line.contains("fail"), "{command}: {line}");
            if line.contains(good) {
                return begun.elapsed();
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if self.process.kill().is_ok() {
            self.process.wait().unwrap();
        }
    }
}

#[test]
fn five_takeovers_in_a_row_are_five_pauses_for_qemu_that_writes_all_the_time() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let mut server = Server::start(disks.dir(), disks.all());
    let mut qemu = Qemu::open(server.socket());
    let mut pauses = Vec::new();
    let mut block = 0u64;
    for time in 0..TIMES {
        let mut command = takeover(disks.all());
        let mut heir = Server::spawn(disks.dir(), &format!("heir{time}.log"), &mut command);
        let mut longest = Duration::ZERO;
        // Until the new one serves, and a few more.
        let mut more = 20;
        while more > 0 {
            let pattern = block % 250 + 1;
            let took = qemu.run(&format!("write -P {pattern} {} 64k", (block % 512) << 16), "wrote 65536");
            longest = longest.max(took);
            block += 1;
            assert!(heir.is_running(), "{}", heir.log());
            more -= usize::from(heir.log().contains("nbd+unix:///"));
        }
        pauses.push(longest);
        let old = std::mem::replace(&mut server, heir).end().ok();
        assert!(old.stderr.contains("has taken over"), "{old:#?}");
        assert_eq!(running(&server.array("vol0")), None, "a takeover needs no resync");
    }
    for last in block.saturating_sub(512)..block {
        let (pattern, at) = (last % 250 + 1, (last % 512) << 16);
        qemu.run(&format!("read -P {pattern} {at} 64k"), "read 65536");
    }
    println!("longest waits of a 64 KiB write in {TIMES} takeovers: {pauses:?}");
    server.stop();
    assert!(!disks.path("nbd.sock").exists() && !disks.path("control.sock").exists());
}

#[test]
fn takeovers_under_verified_load_through_nbdkit_that_reopens() {
    if skipped(&[Program("nbdkit"), Program("fio")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let mut server = Server::start(disks.dir(), disks.all());
    let fio = format!(
        "fio --name=load --ioengine=nbd --uri=\"$uri\" --rw=randwrite --bs=4k --iodepth=16 --size=64m \
         --verify=crc32c --do_verify=1 --verify_fatal=1 --output={}",
        text(&disks.path("fio.txt"))
    );
    let mut nbdkit = program("nbdkit");
    nbdkit.args(["-f", "-U", "-", "--filter=retry", "nbd", "export=vol0", "retries=100", "retry-delay=1"]);
    nbdkit.arg("retry-exponential=no").arg(format!("socket={}", text(server.socket())));
    nbdkit.args(["--run", &fio]).current_dir(disks.dir()).stdin(Stdio::null()).stdout(Stdio::null());
    let mut nbdkit = nbdkit.spawn().unwrap();
    server.wait_for("vol0", "under load", |array| array["state"] == "active");
    for time in 0..TIMES {
        let heir = Server::take_over(disks.dir(), &format!("heir{time}.log"), disks.all());
        std::mem::replace(&mut server, heir).end().ok();
    }
    let status = nbdkit.wait().unwrap();
    let output = std::fs::read_to_string(disks.path("fio.txt")).unwrap_or_default();
    assert!(status.success() && !output.contains("verify:"), "{status}\n{output}\n{}", server.log());
    server.stop();
}

/// What is acknowledged before, and has to be there after.
const KEPT: &str = "-P 0x5a 0 8M";

fn qemu_io(server: &Server, command: &str) {
    let done = run(program("qemu-io").args(["-f", "raw", "-c", command, &server.uri("vol0")])).ok();
    assert!(!done.stdout.contains("failed") && !done.stderr.contains("failed"), "{done:#?}");
}

/// A daemon with something to lose.
fn daemon() -> (Disks, Server) {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    qemu_io(&server, &format!("write {KEPT}"));
    (disks, server)
}

fn has_taken_back(mut server: Server, disks: &Disks) {
    server.wait_log("taking everything back");
    qemu_io(&server, &format!("read {KEPT}"));
    assert!(server.is_running(), "{}", server.log());
    let events = server.events("vol0");
    assert!(events.iter().any(|event| event == "TakenBack"), "{events:?}");
    assert_eq!(running(&server.array("vol0")), None, "no resync is needed");
    // And it can be taken over by a better one.
    let heir = Server::take_over(disks.dir(), "better.log", disks.all());
    server.end().ok();
    qemu_io(&heir, &format!("read {KEPT}"));
    heir.stop();
}

/// Not a test of its own: run as a process by those below, it talks as a new process does, as far as it is told.
#[test]
#[ignore = "a part of other tests"]
fn impostor() {
    let Some(control) = std::env::var_os("IMPOSTOR_CONTROL") else { return };
    let mut stream = UnixStream::connect(control).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    for word in std::env::var("IMPOSTOR_WORDS").unwrap().split(';') {
        match word {
            "offer" => {
                stream.write_all(b"{\"op\":\"takeover\",\"protocols\":[1],\"version\":\"0\"}\n").unwrap();
            }
            "release" => stream.write_all(b"{\"op\":\"release\"}\n").unwrap(),
            "nonsense" => stream.write_all(b"{\"op\":\"nonsense\"}\n").unwrap(),
            "read" => assert_ne!(reader.read_line(&mut line).unwrap(), 0),
            "end" => return,
            // Until somebody ends it.
            "silence" => std::io::stdin().read_to_end(&mut Vec::new()).map(drop).unwrap(),
            other => panic!("{other}"),
        }
    }
}

/// Runs the impostor to its end.
fn impostor_says(disks: &Disks, words: &str) -> Option<i32> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["takeover::impostor", "--exact", "--ignored"]);
    command.env("IMPOSTOR_CONTROL", disks.path("control.sock")).env("IMPOSTOR_WORDS", words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // `wait` would close its standard input, which it waits for.
    let stdin = child.stdin.take();
    let code = child.wait().unwrap().code();
    drop(stdin);
    code
}

#[test]
fn whoever_only_looks_disturbs_nobody() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let (disks, server) = daemon();
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    impostor_says(&disks, "offer;read;end");
    impostor_says(&disks, "offer;read;nonsense;end");
    impostor_says(&disks, "release;end");
    assert_eq!(client.call(0, 0, 4096, &[], 4096).unwrap().data, [0x5a; 4096]);
    server.stop();
}

#[test]
fn a_new_process_that_ends_with_the_sockets_is_taken_back_from() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    for words in
        ["offer;read;release;end", "offer;read;release;read;end", "offer;read;release;read;nonsense;end"]
    {
        let (disks, server) = daemon();
        impostor_says(&disks, words);
        has_taken_back(server, &disks);
    }
}

#[test]
fn a_new_process_that_falls_silent_is_killed_and_taken_back_from() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let (disks, server) = daemon();
    assert_eq!(impostor_says(&disks, "offer;read;release;read;silence"), None, "killed by a signal");
    has_taken_back(server, &disks);
}

/// Killed as early and as late as it comes: before it asks, while it assembles, when it serves.
#[test]
fn a_new_process_that_is_killed_in_any_phase_leaves_somebody_who_can_serve() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    for phase in ["taking over from", "reactor starts", "NewArray", "listening", "taken over"] {
        let (disks, mut server) = daemon();
        let mut heir = Server::spawn(disks.dir(), "heir.log", &mut takeover(disks.all()));
        heir.wait_log(phase);
        heir.crash();
        let end = Instant::now() + Duration::from_secs(60);
        let serves = |server: &mut Server| RawClient::open(server.socket(), "vol0").is_ok();
        while server.is_running() && !serves(&mut server) {
            assert!(Instant::now() < end, "killed at {phase:?}: {}", server.log());
        }
        // Either the old one serves, or the new one was alone already when it died.
        if server.is_running() {
            qemu_io(&server, &format!("read {KEPT}"));
            server.stop();
        } else {
            assert!(server.log().contains("has taken over"), "killed at {phase:?}: {}", server.log());
            let server = Server::start(disks.dir(), disks.all());
            qemu_io(&server, &format!("read {KEPT}"));
        }
    }
}

#[test]
fn a_wrong_configuration_is_found_before_anybody_is_disturbed() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let (disks, server) = daemon();
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    let refused = |options: &[&str], devices: &[PathBuf], words: &[&str]| {
        let mut command = takeover(devices);
        command.args(options).env("RAIDCTL_CONTROL", disks.path("control.sock"));
        run(&mut command).refused(words);
    };
    refused(&[], &[disks.all(), &[disks.path("none")]].concat(), &["none"]);
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = format!("tcp:{}", busy.local_addr().unwrap());
    refused(&["--listen", &busy], disks.all(), &[&busy, "in use"]);
    refused(&["--control", text(&disks.path("nobody"))], disks.all(), &["nobody", "without --takeover"]);
    assert_eq!(client.call(0, 0, 4096, &[], 4096).unwrap().data, [0x5a; 4096], "the connection lives");
    server.stop();
}

#[test]
fn a_new_process_that_cannot_start_every_array_gives_back() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let (disks, server) = daemon();
    // Another array of the same name, which comes first.
    let others = Disks::new(2, 64);
    create_clean("1", &others);
    let devices = [others.all(), disks.all()].concat();
    let heir = Server::spawn(disks.dir(), "heir.log", &mut takeover(&devices));
    heir.end().refused(&["vol0", "could not be started"]);
    has_taken_back(server, &disks);
}

#[test]
fn a_device_that_was_added_meanwhile_is_taken_over_as_well_and_another_place_to_listen_too() {
    let mut disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let configured = disks.all().to_vec();
    let server = Server::start(disks.dir(), &configured);
    let spare = disks.add(64);
    server.ctl(["add", "vol0", text(&spare)]).ok();
    let more = format!("unix:{}", text(&disks.path("more.sock")));
    let mut command = takeover(&configured);
    let first = format!("unix:{}", text(&disks.path("nbd.sock")));
    let mut heir =
        Server::spawn(disks.dir(), "heir.log", command.args(["--listen", &more, "--listen", &first]));
    heir.wait_log("more.sock\n");
    server.end().ok();
    let array = heir.array("vol0");
    assert_eq!(array["spares"][0]["device"], text(&spare), "{array:#}");
    RawClient::open(&disks.path("more.sock"), "vol0").unwrap();
    // Another one that listens at fewer places again.
    let mut last = Server::spawn(disks.dir(), "last.log", takeover(disks.all()).args(["--listen", &first]));
    last.wait_log("nbd+unix:///");
    heir.end().ok();
    assert!(!disks.path("more.sock").exists());
    last.stop();
}

#[test]
fn a_stop_that_is_asked_for_during_a_takeover_stops_whoever_serves_then() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    for attempt in 0..10 {
        let mut server = Server::start(disks.dir(), disks.all());
        let heir = Server::spawn(disks.dir(), "heir.log", &mut takeover(disks.all()));
        server.wait_log("takes over");
        server.signal(Signal::TERM);
        let told = server.end().ok().stderr;
        let (asked, done) = (told.find("stopping; a second signal"), told.find("has taken over"));
        if asked.is_none() || asked > done.or(Some(usize::MAX)) {
            println!("attempt {attempt}: too late, it was over already");
            heir.stop();
            continue;
        }
        heir.end().ok();
        assert!(!disks.path("nbd.sock").exists());
        let examined = raidctl(["examine", text(&disks.all()[0])]).ok().stdout;
        assert!(examined.contains("clean"), "{examined}");
        return;
    }
    panic!("never in time");
}
