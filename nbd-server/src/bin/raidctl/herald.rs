//! The thread that puts what happened to the arrays into the log.

use crate::events::{EventRecord, Severity};
use crate::failure::{Context, Outcome};
use crate::house::Window;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A running herald.
pub struct Herald {
    /// Where it looks.
    pub window: Arc<Window>,
    /// What happened until this number, it has nothing to do with.
    begin: u64,
    thread: Option<JoinHandle<()>>,
}

impl Herald {
    /// Starts with the first event that happens from now on.
    pub fn start(window: Arc<Window>) -> Outcome<Herald> {
        let begin = window.events.last_seq();
        let thread = std::thread::Builder::new()
            .name("herald".to_string())
            .spawn({
                let window = Arc::clone(&window);
                move || {
                    let mut seen = begin;
                    while let Some(events) = window.events.wait_after(seen) {
                        for event in events {
                            seen = event.seq;
                            log(&event);
                        }
                    }
                }
            })
            .context("cannot start the thread that logs events")?;
        Ok(Herald { window, begin, thread: Some(thread) })
    }

    /// The array that was not marked clean when it was stopped, as a sentence.
    pub fn unclean(&self) -> Option<String> {
        let events = self.window.events.after(self.begin);
        let unclean =
            events.iter().find(|event| event.event == "Stopped" && event.severity == Severity::Critical)?;
        Some(format!("{}: {}", unclean.array, unclean.message))
    }

    /// Logs what is left and ends.
    pub fn finish(&mut self) {
        self.window.events.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that logs events panicked");
        }
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        self.finish();
    }
}

fn log(event: &EventRecord) {
    let EventRecord { event: name, array, message, .. } = event;
    match event.severity {
        Severity::Info => tracing::info!("{array}: {name}: {message}"),
        Severity::Warning => tracing::warn!("{array}: {name}: {message}"),
        Severity::Critical => tracing::error!("{array}: {name}: {message}"),
    }
}
