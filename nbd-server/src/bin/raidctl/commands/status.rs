//! `raidctl status`: a table, JSON, or a display that stays up to date.

use crate::cli::StatusArgs;
use crate::control::client::Client;
use crate::failure::Outcome;
use crate::output::{say, say_json, say_json_line};
use crate::report::{ActionReport, StatusReport};
use crate::table;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// The bar counts in tenths of a percent.
const BAR_LENGTH: u64 = 1000;

/// Shows the status.
pub fn run(args: &StatusArgs) -> Outcome<()> {
    let mut client = Client::connect(&args.control)?;
    let report = client.status(args.name.as_deref())?;
    match (args.watch, args.json) {
        (true, _) => watch(args, client, report),
        (false, true) => say_json(&report),
        (false, false) => say(table::status(&report)),
    }
}

/// Shows each report until the daemon goes, which is a normal end: somebody stopped it.
fn watch(args: &StatusArgs, mut client: Client, mut report: StatusReport) -> Outcome<()> {
    let mut display: Box<dyn Display> = if args.json {
        Box::new(Lines { last: None, show: |report| say_json_line(report) })
    } else if std::io::stdout().is_terminal() {
        Box::new(Screen::new())
    } else {
        Box::new(Lines { last: None, show: |report| say(table::status(report)) })
    };
    loop {
        display.show(&report)?;
        std::thread::sleep(WATCH_INTERVAL);
        match client.status(args.name.as_deref()) {
            Ok(next) => report = next,
            Err(end) => {
                drop(display);
                eprintln!("{}", end.sentence().unwrap_or("the daemon has stopped"));
                return Ok(());
            }
        }
    }
}

trait Display {
    fn show(&mut self, report: &StatusReport) -> Outcome<()>;
}

/// For pipes and files: prints a report when it differs from the last one.
struct Lines {
    last: Option<StatusReport>,
    show: fn(&StatusReport) -> Outcome<()>,
}

impl Display for Lines {
    fn show(&mut self, report: &StatusReport) -> Outcome<()> {
        if self.last.as_ref() == Some(report) {
            return Ok(());
        }
        self.last = Some(report.clone());
        (self.show)(report)
    }
}

/// For terminals: per array the table, and below it a bar while something runs in the background.
struct Screen {
    draw: MultiProgress,
    parts: Vec<(ProgressBar, ProgressBar)>,
}

impl Screen {
    fn new() -> Screen {
        Screen { draw: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()), parts: Vec::new() }
    }

    fn grow_to(&mut self, arrays: usize) {
        while self.parts.len() < arrays {
            let text = self.draw.add(ProgressBar::new(0).with_style(style("{msg}")));
            let bar = self.draw.add(ProgressBar::new(BAR_LENGTH).with_style(style("{msg}")));
            self.parts.push((text, bar));
        }
    }
}

impl Display for Screen {
    fn show(&mut self, report: &StatusReport) -> Outcome<()> {
        self.grow_to(report.arrays.len());
        for (index, (text, bar)) in self.parts.iter().enumerate() {
            let Some(array) = report.arrays.get(index) else {
                text.set_message("");
                bar.set_message("");
                continue;
            };
            let mut still = array.clone();
            still.action = None;
            text.set_message(table::array(&still));
            match &array.action {
                Some(action) => {
                    bar.set_style(style("  [{bar:40}] {msg}\n"));
                    bar.set_position(tenths(action));
                    bar.set_message(table::action(action));
                }
                None => {
                    bar.set_style(style("{msg}"));
                    bar.set_message("");
                }
            }
            text.tick();
            bar.tick();
        }
        Ok(())
    }
}

impl Drop for Screen {
    /// Leaves the last state on the screen.
    fn drop(&mut self) {
        for (text, bar) in &self.parts {
            text.abandon();
            bar.abandon();
        }
    }
}

fn tenths(action: &ActionReport) -> u64 {
    ((action.percent * 10.0) as u64).min(BAR_LENGTH)
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse is a mistake of ours; indicatif's own bar is good enough to see it.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
