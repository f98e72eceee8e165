//! What a test needs of the machine, and what happens where that is missing.
//!
//! A skipped test says so and why. With `CI=true` nothing may be skipped: there the missing thing is a failure.

use crate::shell;
use std::path::Path;
use std::sync::OnceLock;

/// Something not every machine has.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A program on the search path, or in one of the directories only root's path has.
    Program(&'static str),
    /// Loop devices, which take root and a kernel that lends them.
    LoopDevices,
    /// The right to make mount and process namespaces, in which a guest is boxed.
    Namespaces,
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Need::Program(name) => {
                (!on_path(name)).then(|| format!("no program {name}; ./test installs it where it may"))
            }
            Need::Namespaces => {
                // As tests/uml/umlrun does it.
                let root = rustix::process::geteuid().is_root();
                let user = if root { "" } else { "--map-root-user" };
                let tried = shell(&format!("unshare {user} --mount --pid --fork --mount-proc true"));
                (tried.code != Some(0)).then(|| format!("no namespaces here: {}", tried.stderr.trim()))
            }
            Need::LoopDevices => {
                static WORKS: OnceLock<bool> = OnceLock::new();
                let works = *WORKS.get_or_init(super::disks::LoopDevice::possible);
                (!works)
                    .then(|| "no loop devices here; they take root and the kernel's loop driver".to_string())
            }
        }
    }
}

pub(crate) fn on_path(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|dir| Path::new(dir).join(name).is_file())
}

/// Whether the test that calls this must be left out. Prints the reason.
///
/// # Panics
///
/// With `CI=true` in the environment, when something is missing.
pub fn skipped(needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return false;
    }
    let reason = missing.join("; ");
    let strict = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!strict, "nothing may be skipped with CI=true: {reason}");
    let test = std::thread::current().name().unwrap_or("test").to_string();
    println!("skipped: {test}: {reason}");
    true
}
