//! Names of hosts, looked up with an end to the waiting.
//!
//! The system's resolver cannot be interrupted, so a thread waits for it, and whoever asks waits for the thread.
//!
//! Invariant: at most one such thread for each host and port. Who asks while it runs waits for the same answer: a
//! resolver that hangs costs one thread for each name, however often a connection is tried again.

use super::error::ClientError;
use crate::limits::MAX_ADDRESSES;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

/// Host and port.
type Name = (String, u16);

/// What the resolver said; its errors in words, for they are told to more than one.
type Found = Result<Vec<SocketAddr>, (ErrorKind, String)>;

/// The addresses of a host, at most [`MAX_ADDRESSES`]. Waits until `ends`.
pub(super) fn resolve(host: &str, port: u16, ends: Instant) -> Result<Vec<SocketAddr>, ClientError> {
    static RESOLVER: LazyLock<Arc<Resolver>> = LazyLock::new(Arc::default);
    let look_up = |name: &Name| {
        (name.0.as_str(), name.1).to_socket_addrs().map(|all| all.take(MAX_ADDRESSES).collect())
    };
    let found = RESOLVER.ask((host.to_owned(), port), ends, look_up);
    found.map_err(|source| ClientError::Resolve { host: host.to_owned(), source })
}

/// Who is being asked for.
#[derive(Default)]
struct Resolver {
    asked: Mutex<HashMap<Name, Arc<Question>>>,
}

#[derive(Default)]
struct Question {
    answer: Mutex<Option<Found>>,
    answered: Condvar,
}

impl Resolver {
    fn ask(
        self: &Arc<Resolver>,
        name: Name,
        ends: Instant,
        look_up: impl FnOnce(&Name) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        let question = self.question(name, look_up)?;
        let mut answer = question.answer.lock();
        loop {
            match &*answer {
                Some(Ok(found)) => return Ok(found.clone()),
                Some(Err((kind, said))) => return Err(io::Error::new(*kind, said.clone())),
                None if Instant::now() >= ends => return Err(ErrorKind::TimedOut.into()),
                None => {
                    question.answered.wait_until(&mut answer, ends);
                }
            }
        }
    }

    /// The question that is open for this name, or a new one.
    fn question(
        self: &Arc<Resolver>,
        name: Name,
        look_up: impl FnOnce(&Name) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Arc<Question>> {
        // Held until the question is in there: its thread takes it out.
        let mut asked = self.asked.lock();
        if let Some(question) = asked.get(&name) {
            return Ok(question.clone());
        }
        let question = Arc::new(Question::default());
        let (resolver, told, wanted) = (self.clone(), question.clone(), name.clone());
        let thread = move || {
            let found = look_up(&wanted).map_err(|error| (error.kind(), error.to_string()));
            resolver.asked.lock().remove(&wanted);
            *told.answer.lock() = Some(found);
            told.answered.notify_all();
        };
        std::thread::Builder::new().name("resolver".into()).spawn(thread)?;
        asked.insert(name, question.clone());
        Ok(question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Each attempt of a device to reach its server left a thread behind, for as long as the resolver hung.
    #[test]
    fn a_resolver_that_hangs_is_asked_once_however_often_it_is_tried() {
        let resolver = Arc::new(Resolver::default());
        let name = || ("host".to_owned(), 10809);
        let addr = SocketAddr::from(([127, 0, 0, 1], 10809));
        let (calls, called) = channel();
        let (release, held) = channel::<()>();
        let tell = calls.clone();
        let hang = move |_: &Name| {
            tell.send(()).unwrap();
            held.recv().unwrap();
            Ok(vec![addr])
        };
        let soon = || Instant::now() + Duration::from_millis(5);
        assert_eq!(resolver.ask(name(), soon(), hang).unwrap_err().kind(), ErrorKind::TimedOut);
        called.recv().unwrap();
        let again = |calls: &std::sync::mpsc::Sender<()>| {
            let tell = calls.clone();
            move |_: &Name| {
                tell.send(()).unwrap();
                Ok(vec![addr])
            }
        };
        for _ in 0..3 {
            let late = resolver.ask(name(), soon(), again(&calls)).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
        }
        let patient = Instant::now() + Duration::from_secs(60);
        assert_eq!(resolver.ask(("other".to_owned(), 1), patient, again(&calls)).unwrap(), [addr]);
        called.recv().unwrap();
        assert!(called.try_recv().is_err(), "one thread waits already");
        release.send(()).unwrap();
        assert_eq!(resolver.ask(name(), patient, again(&calls)).unwrap(), [addr]);
        assert!(resolver.asked.lock().is_empty());
    }
}
