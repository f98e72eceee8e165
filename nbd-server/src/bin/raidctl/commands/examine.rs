//! `raidctl examine`: what is on one device. Reads only, also while the device is in use.

use crate::cli::ExamineArgs;
use crate::devices::{Bench, Disk};
use crate::failure::{Failure, Outcome};
use crate::output::{say, say_json};
use crate::size::Size;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use raidcore::meta::{self, LoadError, Loaded};
use raidcore::uring::OpenHow;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Shows what is on the device.
pub fn run(args: &ExamineArgs) -> Outcome<()> {
    let mut disk = Bench::new()?.open(&args.device, OpenHow::EXAMINE)?;
    let loaded = meta::load(&mut disk).map_err(|error| unknown(&mut disk, &args.device, &error))?;
    let report = ExamineReport::new(&args.device, &loaded);
    if args.json { say_json(&report) } else { say(report.text()) }
}

/// There is no superblock to show; what else is there helps to see which device this is.
fn unknown(disk: &mut Disk, path: &Path, error: &LoadError) -> Failure {
    let name = path.display();
    match meta::foreign_signature(disk) {
        Ok(Some(signature)) => Failure::new(format!("{name}: {error}; it carries {signature}")),
        _ => Failure::new(format!("{name}: {error}")),
    }
}

/// What `examine --json` prints.
#[derive(Serialize)]
struct ExamineReport {
    device: String,
    array: ArrayPart,
    /// Which member this device is.
    member_uuid: String,
    slot: Option<u8>,
    state: String,
    /// Copy A at the start, copy B at the end of the device.
    copies: [String; 2],
    sequence: u64,
    device_bytes: u64,
}

/// What this device knows of its array.
#[derive(Serialize)]
struct ArrayPart {
    name: String,
    uuid: String,
    level: String,
    layout: Option<String>,
    copies: Option<usize>,
    size_bytes: u64,
    chunk_bytes: u32,
    consistency: String,
    checksums: String,
    data_offset: u64,
    data_bytes: u64,
    created: String,
    updated: String,
    events: u64,
    clean: bool,
    resynced_bytes: Option<u64>,
    history: String,
    members: Vec<MemberPart>,
}

#[derive(Serialize)]
struct MemberPart {
    slot: Option<u8>,
    uuid: String,
    state: String,
    rebuilt_bytes: u64,
}

impl ExamineReport {
    fn new(device: &Path, loaded: &Loaded) -> ExamineReport {
        let own = loaded.superblock.own;
        let array = &loaded.superblock.array;
        let layout = array.layout;
        let this = array.member(own.member);
        let member = |member: &meta::Member| MemberPart {
            slot: member.slot.map(|slot| slot.0),
            uuid: member.uuid.to_string(),
            state: member.state.to_string(),
            rebuilt_bytes: member.rebuilt_bytes,
        };
        ExamineReport {
            device: device.display().to_string(),
            array: ArrayPart {
                name: array.name.to_string(),
                uuid: array.uuid.to_string(),
                level: layout.level().to_string(),
                layout: layout.parity_algorithm().map(|algorithm| algorithm.to_string()),
                copies: (layout.level() == raidcore::layout::Level::Raid10).then_some(layout.copies()),
                size_bytes: array.size_bytes(),
                chunk_bytes: layout.chunk_bytes(),
                consistency: array.consistency.to_string(),
                checksums: if array.checksums { "on" } else { "off" }.to_string(),
                data_offset: array.data_offset,
                data_bytes: array.data_bytes,
                created: time(array.created_ns),
                updated: time(array.updated_ns),
                events: array.events,
                clean: array.clean,
                resynced_bytes: array.resync,
                history: array.history.to_string(),
                members: array.members.iter().map(member).collect(),
            },
            member_uuid: own.member.to_string(),
            slot: this.and_then(|member| member.slot).map(|slot| slot.0),
            state: this.map_or("unknown".to_string(), |member| member.state.to_string()),
            copies: loaded.copies.map(|copy| copy.to_string()),
            sequence: own.sequence,
            device_bytes: own.device_bytes,
        }
    }

    fn text(&self) -> String {
        let array = &self.array;
        let place = self.slot.map_or("no slot".to_string(), |slot| format!("slot {slot}"));
        let layout = array.layout.as_deref().map(|layout| format!(", {layout}")).unwrap_or_default();
        let copies = array.copies.map(|copies| format!(", {copies} copies")).unwrap_or_default();
        let stopped = match (array.clean, array.resynced_bytes) {
            (true, None) => "clean".to_string(),
            (true, Some(_)) => "clean, not in sync yet".to_string(),
            (false, _) => "in use, or not stopped cleanly".to_string(),
        };
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header(["  SLOT", "STATE", "MEMBER"]);
        for member in &array.members {
            let slot = member.slot.map_or("-".to_string(), |slot| slot.to_string());
            let this = if member.uuid == self.member_uuid { " (this device)" } else { "" };
            table.add_row([format!("  {slot}"), member.state.clone(), format!("{}{this}", member.uuid)]);
        }
        [
            format!("{}: {place} of {}, {}", self.device, array.name, self.state),
            format!("  array    {}", array.uuid),
            format!(
                "  level    {}{layout}{copies}, {}, chunk {}",
                array.level,
                Size(array.size_bytes),
                Size(u64::from(array.chunk_bytes))
            ),
            format!("  created  {}, last change {}", array.created, array.updated),
            format!("  events   {}, {stopped}", array.events),
            format!("  copies   A {}, B {}", self.copies[0], self.copies[1]),
            format!("  data     at {} of {}", Size(array.data_offset), Size(self.device_bytes)),
            table.lines().map(|line| line.trim_end().to_string()).collect::<Vec<_>>().join("\n"),
        ]
        .join("\n")
    }
}

/// Nanoseconds since 1970 as RFC 3339, or the plain number if no calendar has it.
fn time(ns: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_nanos(ns);
    humantime::format_rfc3339_seconds(at).to_string()
}
