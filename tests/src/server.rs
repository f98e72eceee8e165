//! The real `raidctl`, as a command and as a server in a process of its own.

use crate::{Finished, program, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest wait for a state that the server reaches by itself.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often a state is asked for. Nothing is awaited by this alone: each wait has its own condition.
const POLL: Duration = Duration::from_millis(20);

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The program under test: `RAIDCTL_BIN`, or the debug build, made once on demand.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("RAIDCTL_BIN") {
            return PathBuf::from(path);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "nbd-server", "--bin", "raidctl"]).current_dir(repository());
        assert!(build.status().unwrap().success(), "raidctl does not build");
        // This test's own binary is in target/debug/deps.
        let deps = std::env::current_exe().unwrap();
        deps.parent().and_then(Path::parent).unwrap().with_file_name("debug").join("raidctl")
    })
}

/// A command line of `raidctl` that can reach no server of the machine it runs on.
pub fn raidctl<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Finished {
    run(program(binary()).args(arguments).env("RAIDCTL_CONTROL", "/nonexistent/control.sock"))
}

/// The command of a new process that takes over, on the sockets that there are.
pub fn takeover(devices: &[PathBuf]) -> Command {
    let mut command = program(binary());
    command.args(["serve", "--takeover"]).args(devices);
    command
}

/// A server in a process of its own, killed on drop.
pub struct Server {
    child: Child,
    socket: PathBuf,
    control: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Serves `devices` on a unix socket in `dir`, and returns when clients can connect.
    ///
    /// # Panics
    ///
    /// When the server ends instead.
    pub fn start(dir: &Path, devices: &[PathBuf]) -> Server {
        Server::try_start(dir, devices).unwrap_or_else(|end| panic!("{end:#?}"))
    }

    /// As [`start`](Server::start), with further options of `serve`.
    pub fn start_with(dir: &Path, options: &[&str], devices: &[PathBuf]) -> Server {
        Server::serve(dir, options, devices).unwrap_or_else(|end| panic!("{end:#?}"))
    }

    /// Serves `devices`, or says how the server ended.
    pub fn try_start(dir: &Path, devices: &[PathBuf]) -> Result<Server, Finished> {
        Server::serve(dir, &[], devices)
    }

    fn serve(dir: &Path, options: &[&str], devices: &[PathBuf]) -> Result<Server, Finished> {
        let listen = format!("unix:{}", dir.join("nbd.sock").display());
        let words =
            ["serve", "--listen", &listen].into_iter().chain(options.iter().copied()).map(OsString::from);
        let arguments: Vec<OsString> = words.chain(devices.iter().map(OsString::from)).collect();
        Server::launch(dir, &arguments)
    }

    /// Runs any command line that makes raidctl listen on `dir`/nbd.sock.
    pub fn launch(dir: &Path, arguments: &[OsString]) -> Result<Server, Finished> {
        let mut server = Server::spawn(dir, "serve.log", program(binary()).args(arguments));
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = server.child.try_wait().unwrap() {
                return Err(server.finished(status.code()));
            }
            if UnixStream::connect(&server.socket).is_ok() && UnixStream::connect(&server.control).is_ok() {
                return Ok(server);
            }
            assert!(Instant::now() < end, "the server neither listens nor ends:\n{}", server.log());
            std::thread::sleep(POLL);
        }
    }

    /// Runs a command that becomes a server on `dir`/nbd.sock some time, and logs to a file in `dir`.
    pub fn spawn(dir: &Path, log: &str, command: &mut Command) -> Server {
        let (socket, control, log) = (dir.join("nbd.sock"), dir.join("control.sock"), dir.join(log));
        let output = File::create(&log).unwrap();
        command.env("RAIDCTL_CONTROL", &control).stdin(Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        Server { child: command.spawn().unwrap(), socket, control, log }
    }

    /// Has a new process take over from whoever serves in `dir`, and returns it when it serves.
    ///
    /// # Panics
    ///
    /// When it ends instead.
    pub fn take_over(dir: &Path, log: &str, devices: &[PathBuf]) -> Server {
        let mut server = Server::spawn(dir, log, takeover(devices).args(["--drain", "5s"]));
        server.wait_log("nbd+unix:///");
        assert!(server.is_running(), "{}", server.log());
        server
    }

    /// Waits until the server has logged something, or has ended.
    pub fn wait_log(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(text) && self.is_running() {
            assert!(Instant::now() < end, "there is no {text:?} in\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// True until the process has ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The NBD URI of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// The socket that exports are served on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the server has printed so far, both streams.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A command to this server.
    pub fn ctl<I: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Finished {
        run(program(binary()).args(arguments).env("RAIDCTL_CONTROL", &self.control))
    }

    /// `status --json` of one array.
    pub fn array(&self, name: &str) -> Value {
        let status = self.ctl(["status", "--json"]).ok();
        let value: Value =
            serde_json::from_str(&status.stdout).unwrap_or_else(|e| panic!("{e}: {status:#?}"));
        let arrays = value["arrays"].as_array().unwrap_or_else(|| panic!("no arrays in {value:#}"));
        let found = arrays.iter().find(|array| array["name"] == name);
        found.unwrap_or_else(|| panic!("no array {name} in {value:#}")).clone()
    }

    /// Size of an array's logical unit of the same name, in bytes.
    pub fn size_bytes(&self, name: &str) -> u64 {
        self.array(name)["lus"][0]["size_bytes"].as_u64().unwrap()
    }

    /// Waits until an array is as wanted, and returns its status.
    pub fn wait_for(&self, name: &str, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let array = self.array(name);
            if wanted(&array) {
                return array;
            }
            assert!(Instant::now() < end, "{name} is not {what}: {array:#}\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until no rebuild and no resync is going on.
    pub fn wait_idle(&self, name: &str) -> Value {
        self.wait_for(name, "idle", |array| array["action"].is_null())
    }

    /// Waits until every slot has a member in sync and nothing is going on.
    pub fn wait_whole(&self, name: &str) -> Value {
        self.wait_for(name, "whole", |array| {
            let mut members = array["members"].as_array().unwrap().iter();
            // A faulty device that has lost its slot stays listed until it is removed.
            let whole = members.all(|member| member["slot"].is_null() || member["state"] == "in_sync");
            whole && array["action"].is_null()
        })
    }

    /// The names of the events of an array since the server started, in order.
    pub fn events(&self, name: &str) -> Vec<String> {
        let events = self.ctl(["events", "--json"]).ok();
        let records = events.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let own = records.filter(|record| record["array"] == name);
        own.map(|record| record["event"].as_str().unwrap().to_string()).collect()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends a signal and returns how the server ended.
    pub fn end_with(self, signal: Signal) -> Finished {
        self.signal(signal);
        self.end()
    }

    /// Waits until the server ends by itself.
    pub fn end(mut self) -> Finished {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return self.finished(status.code());
            }
            assert!(Instant::now() < end, "the server does not end:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// A clean stop.
    pub fn stop(self) -> Finished {
        self.end_with(Signal::TERM).ok()
    }

    /// A crash.
    pub fn crash(self) {
        let end = self.end_with(Signal::KILL);
        assert_eq!(end.code, None, "{end:#?}");
    }

    fn finished(&self, code: Option<i32>) -> Finished {
        let log = self.log();
        Finished { command: "the server".into(), code, stdout: log.clone(), stderr: log }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let killed = self.child.kill().and_then(|()| self.child.wait());
            if std::thread::panicking() {
                eprintln!("the server's log (its end: {killed:?}):\n{}", self.log());
            }
        }
    }
}

/// The kind of action that an array's status says is going on.
pub fn running(array: &Value) -> Option<&str> {
    array["action"]["kind"].as_str()
}

/// The member on `device` in an array's status.
pub fn member<'a>(array: &'a Value, device: &Path) -> Option<&'a Value> {
    let name = device.to_str().unwrap();
    let mut members = array["members"].as_array().unwrap().iter();
    members.find(|member| member["device"] == name)
}

/// The state of the member on `device`; "absent" when no slot has this device.
pub fn member_state<'a>(array: &'a Value, device: &Path) -> &'a str {
    member(array, device).and_then(|member| member["state"].as_str()).unwrap_or("absent")
}
