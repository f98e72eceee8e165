//! `raidctl create`: checks everything, then writes superblocks and nothing else. No daemon is needed.

use crate::cli::CreateArgs;
use crate::devices::{Bench, Disk, refuse_signature, refuse_twins, uri_of};
use crate::failure::{Context, Failure, Outcome};
use crate::output::say;
use crate::size::Size;
use raidcore::layout::{Layout, LayoutSpec, Level};
use raidcore::meta::{self, Candidate, CreateParams, StoreError, Superblock};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Creates an array.
pub fn run(args: &CreateArgs) -> Outcome<()> {
    refuse_later_features(args)?;
    let layout = layout_spec(args)?;
    let superblocks = create(&Plan {
        name: args.name.clone(),
        layout,
        members: args.devices.clone(),
        spares: args.spares.clone(),
        assume_clean: args.assume_clean,
        force: args.force,
    })?;
    let Some(Superblock { array, .. }) = superblocks.first() else { return Ok(()) };
    let next = if array.resync.is_some() { "; it is brought into sync when it is served" } else { "" };
    say(format!(
        "{}: {} of {} devices{}, {}, chunk {}{next}",
        array.name,
        array.layout.level(),
        args.devices.len(),
        match args.spares.len() {
            0 => String::new(),
            1 => " and a spare".to_string(),
            count => format!(" and {count} spares"),
        },
        Size(array.size_bytes()),
        Size(u64::from(array.layout.chunk_bytes())),
    ))
}

/// An array to be, in the words of the command line.
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Its layout.
    pub layout: LayoutSpec,
    /// One device per slot.
    pub members: Vec<PathBuf>,
    /// Devices that wait.
    pub spares: Vec<PathBuf>,
    /// The members agree already.
    pub assume_clean: bool,
    /// Use devices that carry something.
    pub force: bool,
}

/// Claims and checks all devices, and only then writes to the first one.
pub fn create(plan: &Plan) -> Outcome<Vec<Superblock>> {
    // What can be known without touching a device is said first.
    Layout::new(plan.layout).map_err(Failure::new)?;
    let paths: Vec<PathBuf> = plan.members.iter().chain(&plan.spares).cloned().collect();
    refuse_twins(&paths)?;
    let bench = Bench::new()?;
    let mut disks: Vec<Disk> = paths.iter().map(|path| open(&bench, path)).collect::<Outcome<_>>()?;
    let mut candidates = paths
        .iter()
        .zip(&disks)
        .map(|(path, disk)| Candidate { name: path.display().to_string(), geometry: disk.geometry() });
    let members = candidates.by_ref().take(plan.members.len()).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let params = CreateParams {
        name: plan.name.clone(),
        layout: plan.layout,
        members,
        spares: candidates.collect(),
        assume_clean: plan.assume_clean,
        now_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
    };
    let mut superblocks = meta::plan_create(&params, Uuid::new_v4).map_err(Failure::new)?;
    if !plan.force {
        for (path, disk) in paths.iter().zip(&mut disks) {
            refuse_signature(disk, path, "use another device, or --force if its content may be lost")?;
        }
    }
    write_all(&paths, &mut disks, &mut superblocks, plan.force)?;
    read_back(&paths, &mut disks, &superblocks)?;
    Ok(superblocks)
}

fn open(bench: &Bench, path: &Path) -> Outcome<Disk> {
    if uri_of(path)?.is_none() && !path.exists() && !path.starts_with("/dev") {
        let name = path.display();
        return Err(Failure::new(format!(
            "{name}: does not exist; check the name, or make a file: truncate -s 1G {name}"
        )));
    }
    bench.claim(path, Instant::now())
}

/// Writes the superblocks. If a device fails, it and those before it lose theirs again, so that no half array is
/// found; where even that fails, the sentence says so.
fn write_all(
    paths: &[PathBuf],
    disks: &mut [Disk],
    superblocks: &mut [Superblock],
    force: bool,
) -> Outcome<()> {
    for at in 0..disks.len() {
        let disk = &mut disks[at];
        let wiped = if force { meta::wipe(disk) } else { Ok(()) };
        let stored = wiped.map_err(StoreError::from).and_then(|()| meta::store(disk, &mut superblocks[at]));
        let Err(error) = stored else { continue };
        let leftover = take_back(paths, &mut disks[..=at]);
        return Err(Failure::new(format!(
            "{}: cannot write the superblock ({error}); no array was created: replace the device{leftover}",
            paths[at].display()
        )));
    }
    Ok(())
}

/// Reads the superblocks back: under two names that cannot be compared, as URIs, there may be one disk, and a mirror of
/// one disk is none. Takes back what was written then.
fn read_back(paths: &[PathBuf], disks: &mut [Disk], superblocks: &[Superblock]) -> Outcome<()> {
    for at in 0..disks.len() {
        let name = paths[at].display();
        let trouble = match meta::load(&mut disks[at]).map(|loaded| loaded.superblock.own.member) {
            Ok(found) if found == superblocks[at].own.member => continue,
            Ok(found) => match superblocks.iter().position(|other| other.own.member == found) {
                Some(other) => format!("{name} is the same disk as {}", paths[other].display()),
                None => format!("{name}: somebody else writes to it"),
            },
            Err(error) => format!("{name}: cannot read back the superblock ({error})"),
        };
        let leftover = take_back(paths, disks);
        return Err(Failure::new(format!(
            "{trouble}; no array was created: name each disk once, and disks that nobody else uses{leftover}"
        )));
    }
    Ok(())
}

/// Erases superblocks; what to add to the message where that fails.
fn take_back(paths: &[PathBuf], disks: &mut [Disk]) -> String {
    let left: Vec<String> = paths
        .iter()
        .zip(disks)
        .filter_map(|(path, disk)| meta::erase(disk).err().map(|_| path.display().to_string()))
        .collect();
    match left.is_empty() {
        true => String::new(),
        false => {
            format!("; a superblock may be left on {}: create with --force overwrites it", left.join(" and "))
        }
    }
}

/// What is asked for, as numbers.
fn layout_spec(args: &CreateArgs) -> Outcome<LayoutSpec> {
    let level: Level = args.level.parse().map_err(Failure::new)?;
    let Size(chunk) = args.chunk.parse().context("--chunk")?;
    let chunk_bytes = u32::try_from(chunk)
        .map_err(|_| Failure::new(format!("--chunk {}: use a power of two from 4K to 16M", args.chunk)))?;
    let mut spec = LayoutSpec::new(level, args.devices.len(), chunk_bytes);
    if let Some(layout) = &args.layout {
        if level.parities() == 0 {
            return Err(Failure::new(format!(
                "--layout {layout} is for levels 5 and 6: leave it out for {level}"
            )));
        }
        spec.algorithm = layout.parse().map_err(Failure::new)?;
    }
    if let Some(copies) = args.copies {
        if level != Level::Raid10 {
            return Err(Failure::new(format!("--copies is for level 10: leave it out for {level}")));
        }
        spec.copies = copies as usize;
    }
    Ok(spec)
}

/// Refuses what later versions will know.
fn refuse_later_features(args: &CreateArgs) -> Outcome<()> {
    let refuse = |sentence: String| Err(Failure::new(sentence));
    match args.consistency.as_str() {
        "resync" => {}
        known @ ("log" | "bitmap") => {
            return refuse(format!("--consistency {known} is not in this version: use resync"));
        }
        other => return refuse(format!("unknown --consistency {other:?}: use resync")),
    }
    match args.checksums.as_str() {
        "off" => Ok(()),
        "on" => refuse("--checksums on is not in this version: use off".to_string()),
        other => refuse(format!("unknown --checksums {other:?}: use off")),
    }
}
