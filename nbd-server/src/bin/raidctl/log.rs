//! The log on stderr, which nobody ever waits for.
//!
//! Who logs puts a line into a queue; a thread writes it. A terminal that was stopped, or a pipe that nobody reads,
//! holds up that thread and no other: above all not the reactor, which logs, too. When the queue is full, lines are
//! lost; where they are missing, the log says how many. What happened to arrays is in `raidctl events`, too.
//!
//! Invariants: the queue holds at most [`LOG_LINES`] lines of at most [`LOG_LINE_BYTES`]; lines keep their order;
//! `lost` of a line counts those between it and the line before.

use crate::failure::{Context, Failure, Outcome};
use nbd_server::limits::{LOG_END_TIMEOUT, LOG_LINE_BYTES, LOG_LINES};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;

/// The process's log.
static LOG: OnceLock<Queue> = OnceLock::new();

/// From now on what is logged goes to stderr as far as `filter` lets it, so that what a command prints can be piped.
pub fn start(filter: &str) -> Outcome<()> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!(
            "the log filter {filter:?} is not understood ({error}): say error, warn, info, debug or trace"
        ))
    })?;
    let queue = LOG.get_or_init(Queue::default);
    std::thread::Builder::new()
        .name("log".to_string())
        .spawn(move || queue.write_to(std::io::stderr()))
        .context("cannot start the thread that writes the log")?;
    tracing_subscriber::fmt()
        .with_writer(move || queue)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter)
        .init();
    Ok(())
}

/// To be called when the process ends: gives what is in the queue, and then the sentence, if there is one, some time to
/// be written. Later lines are not.
pub fn end(sentence: Option<&str>) {
    let line = sentence.map(|sentence| format!("raidctl: {sentence}\n"));
    match (LOG.get(), line) {
        (Some(queue), line) => queue.end(line, LOG_END_TIMEOUT),
        // There was no log yet, and so nothing that could have filled a pipe.
        (None, Some(line)) => eprint!("{line}"),
        (None, None) => {}
    }
}

/// Lines on their way to one writer.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// There is a line, or the end, or the writer is done.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    /// Lines lost since the last one in the queue.
    lost: u64,
    /// Nothing comes any more.
    is_closed: bool,
    /// Everything is written.
    is_done: bool,
}

struct Line {
    lost: u64,
    text: Vec<u8>,
}

impl Queue {
    /// Queues a line, or loses it.
    fn push(&self, text: &[u8]) {
        let mut state = self.state.lock();
        match state.is_closed || state.lines.len() >= LOG_LINES {
            true => state.lost += 1,
            false => state.push(cut(text)),
        }
        self.changed.notify_all();
    }

    /// Closes the queue behind a last line, and waits until everything is written, or no longer than `patience`.
    fn end(&self, last: Option<String>, patience: Duration) {
        let limit = Instant::now() + patience;
        let mut state = self.state.lock();
        if let Some(last) = last {
            state.push(last.into_bytes());
        }
        state.is_closed = true;
        self.changed.notify_all();
        while !state.is_done && !self.changed.wait_until(&mut state, limit).timed_out() {}
    }

    /// Writes what comes until the end.
    fn write_to(&self, mut out: impl Write) {
        while let Some(Line { lost, text }) = self.next() {
            let missing = match lost {
                0 => Vec::new(),
                lost => {
                    format!("raidctl: {lost} lines of the log were lost here: nobody read it\n").into_bytes()
                }
            };
            // Where the log cannot be written, there is nowhere to say so.
            drop(out.write_all(&[missing, text].concat()));
        }
        self.state.lock().is_done = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Line> {
        let mut state = self.state.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return Some(line);
            }
            if state.is_closed {
                let lost = std::mem::take(&mut state.lost);
                return (lost > 0).then(|| Line { lost, text: Vec::new() });
            }
            self.changed.wait(&mut state);
        }
    }
}

impl State {
    fn push(&mut self, text: Vec<u8>) {
        let lost = std::mem::take(&mut self.lost);
        self.lines.push_back(Line { lost, text });
    }
}

/// A line of bounded length.
fn cut(text: &[u8]) -> Vec<u8> {
    match text.get(..LOG_LINE_BYTES) {
        Some(front) if text.len() > LOG_LINE_BYTES => [&front[..LOG_LINE_BYTES - 4], b"...\n"].concat(),
        _ => text.to_vec(),
    }
}

/// The subscriber writes each line at once.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// Passes on what it is given, to somebody who takes it when he likes.
    struct Pipe(SyncSender<String>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(reader: &Receiver<String>) -> String {
        reader.iter().collect()
    }

    /// The server stopped after as many log lines as fit into the pipe that was its stderr.
    #[test]
    fn who_logs_never_waits_and_what_is_lost_is_counted_where_it_is_missing() {
        let queue = Queue::default();
        let (writer, reader) = sync_channel(0);
        std::thread::scope(|scope| {
            scope.spawn(|| queue.write_to(Pipe(writer)));
            // Nobody reads. One line may be with the thread.
            (0..3 * LOG_LINES).for_each(|i| queue.push(format!("{i}\n").as_bytes()));
            let first = reader.recv().unwrap();
            assert_eq!(first, "0\n");
            scope.spawn(|| queue.end(Some("raidctl: the end\n".into()), Duration::from_secs(60)));
            let rest = written(&reader);
            let kept = rest.lines().filter(|line| line.parse::<u64>().is_ok()).count();
            assert!((LOG_LINES - 1..=LOG_LINES).contains(&kept), "{kept}");
            let lost = 3 * LOG_LINES - 1 - kept;
            let end = format!(
                "\nraidctl: {lost} lines of the log were lost here: nobody read it\nraidctl: the end\n"
            );
            assert!(rest.ends_with(&end), "{rest:?}");
        });
    }

    #[test]
    fn the_end_waits_for_what_can_be_written_and_not_for_what_cannot() {
        let queue = Queue::default();
        queue.push(b"before\n");
        std::thread::scope(|scope| {
            let (writer, reader) = sync_channel(0);
            scope.spawn(|| queue.write_to(Pipe(writer)));
            queue.end(None, Duration::from_millis(1));
            queue.push(b"after\n");
            assert_eq!(
                written(&reader),
                "before\nraidctl: 1 lines of the log were lost here: nobody read it\n"
            );
        });
        queue.end(None, Duration::from_secs(3600));
        assert!(queue.state.lock().is_done);
    }

    #[test]
    fn no_line_is_longer_than_it_may_be() {
        assert_eq!(cut(b"short\n"), b"short\n");
        let long = cut(&[b'x'; 3 * LOG_LINE_BYTES]);
        assert!(long.len() == LOG_LINE_BYTES && long.ends_with(b"x...\n"));
    }
}
