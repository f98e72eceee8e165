//! Measures the ring: random 4 KiB reads of a file at queue depth 32, as CPU time and wall time per operation.
//!
//! `cargo run --release -p raidcore --example ring_speed -- FILE [direct|buffered] [SECONDS]`
//! The file is only read. It must hold at least a few MiB; a device or a file on tmpfs works as well.

use raidcore::buf::{BufList, Slab, SlabConfig};
use raidcore::dev::{BlockDev, Op, Request, Tag};
use raidcore::time::Clock;
use raidcore::uring::{File, OpenHow, Ring, RingConfig};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

const DEPTH: u64 = 32;
const BLOCK: u64 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: ring_speed FILE [direct|buffered] [SECONDS]")?;
    let direct = args.next().is_none_or(|how| how == "direct");
    let seconds = args.next().map_or(Ok(3), |text| text.parse())?;

    let slab = Slab::new(&SlabConfig::small())?;
    let ring = Ring::new(&RingConfig::default(), &Clock::monotonic(), &slab)?;
    println!("{}", ring.features());
    let mut file = File::open(Path::new(&path), &ring, OpenHow { direct, ..OpenHow::EXAMINE })?;
    if let Some(warning) = file.warning() {
        println!("{warning}");
    }
    let blocks = file.geometry().size_bytes / BLOCK;
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut read = |tag: Tag, bufs: BufList, file: &mut File| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let deadline = ring.clock().now() + Duration::from_secs(30);
        file.submit(Request { tag, op: Op::Read { offset: random % blocks * BLOCK, bufs }, deadline });
    };
    for tag in 0..DEPTH {
        read(Tag(tag), slab.alloc_list(BLOCK as usize)?, &mut file);
    }
    let (start, cpu_start) = (Instant::now(), cpu_time()?);
    let (mut operations, mut done) = (0u64, Vec::new());
    while start.elapsed() < Duration::from_secs(seconds) {
        ring.enter(None, true)?;
        file.reap(&mut done);
        for completion in done.drain(..) {
            completion.result?;
            operations += 1;
            read(completion.tag, completion.bufs, &mut file);
        }
    }
    let (wall, cpu) = (start.elapsed(), cpu_time()? - cpu_start);
    let per = |span: Duration| span.as_nanos() / u128::from(operations.max(1));
    println!(
        "{operations} reads: {} IOPS, {} ns wall and {} ns CPU each",
        u128::from(operations) * 1_000_000_000 / wall.as_nanos().max(1),
        per(wall),
        per(cpu)
    );
    Ok(())
}

/// CPU time of all threads of this process, in the kernel and out of it.
fn cpu_time() -> Result<Duration, Box<dyn Error>> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}
