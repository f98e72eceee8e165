//! The status for people. Pure: a report goes in, text comes out.

use crate::report::{ActionReport, ArrayReport, ErrorCounts, ListenReport, MemberReport, StatusReport};
use crate::size::Size;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use std::time::Duration;

/// The whole report.
pub fn status(report: &StatusReport) -> String {
    let mut parts: Vec<String> = report.arrays.iter().map(array).collect();
    if parts.is_empty() {
        parts.push("no arrays".to_string());
    }
    if !report.listen.is_empty() {
        parts.push(places(&report.listen));
    }
    parts.join("\n\n")
}

/// `listening at unix:/run/raidctl/nbd.sock, tcp:10.0.0.1:10809 (TLS required)`
fn places(listen: &[ListenReport]) -> String {
    let place = |ListenReport { address, tls }: &ListenReport| match tls.as_str() {
        "require" => format!("{address} (TLS required)"),
        "allow" => format!("{address} (TLS possible)"),
        _ => address.clone(),
    };
    format!("listening at {}", listen.iter().map(place).collect::<Vec<_>>().join(", "))
}

/// One array: a headline, what runs in the background, and a line per device.
pub fn array(array: &ArrayReport) -> String {
    let mut text = format!(
        "{}: {}, {}, {}, chunk {}",
        array.name,
        array.level,
        array.state,
        Size(array.size_bytes),
        Size(u64::from(array.chunk_bytes)),
    );
    if let Some(running) = &array.action {
        text.push_str(&format!("\n  {}", action(running)));
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["  SLOT", "DEVICE", "STATE", "ERRORS"]);
    for member in array.members.iter().chain(&array.spares) {
        table.add_row(row(member));
    }
    text.push('\n');
    text.push_str(&table.lines().map(|line| line.trim_end().to_string()).collect::<Vec<_>>().join("\n"));
    text
}

/// `rebuild 12.5 %, 1m 1s left`
pub fn action(action: &ActionReport) -> String {
    let left = match action.eta_s {
        Some(seconds) => format!(", {} left", humantime::format_duration(Duration::from_secs(seconds))),
        None => String::new(),
    };
    format!("{} {:.1} %{left}", action.kind, action.percent)
}

fn row(member: &MemberReport) -> [String; 4] {
    [
        format!("  {}", member.slot.map_or("-".to_string(), |slot| slot.to_string())),
        member.device.clone().unwrap_or_else(|| "-".to_string()),
        member.state.clone(),
        errors(member.errors),
    ]
}

fn errors(errors: ErrorCounts) -> String {
    match errors {
        ErrorCounts { read: 0, write: 0, timeout: 0 } => "none".to_string(),
        ErrorCounts { read, write, timeout } => format!("{read} read, {write} write, {timeout} timeout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn the_table_names_every_device_and_what_is_going_on() {
        let text = status(&samples::rebuilding());
        for part in [
            "vol0: raid5, degraded, 768M, chunk 64K",
            "rebuild 12.5 %, 1m 1s left",
            "/dev/loop4",
            "rebuilding",
            "missing",
            "faulty",
            "/dev/loop5",
            "listening at unix:/run/raidctl/nbd.sock",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_daemon_without_arrays_says_so() {
        assert_eq!(status(&StatusReport::default()), "no arrays");
    }
}
