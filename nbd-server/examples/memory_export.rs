//! Serves a disk in memory: `memory_export tcp:127.0.0.1:10809 [SIZE_MIB]`, until its standard input ends.
//!
//! The smallest whole server, and the one to measure the protocol work alone with:
//! `nbdinfo nbd://127.0.0.1:10809`, `fio --ioengine=nbd --uri=nbd://127.0.0.1:10809 ...`.

use nbd_server::engine::Devices;
use nbd_server::export::{Export, ExportId};
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::ram::RamDisk;
use nbd_server::reactor::{Reactor, ReactorConfig};
use std::io::Read;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let addr: ListenAddr = args.next().as_deref().unwrap_or("tcp:127.0.0.1:10809").parse()?;
    let size_mib: usize = args.next().as_deref().unwrap_or("1024").parse()?;

    let listener = Listener::bind(&addr)?;
    println!("listening on {}", listener.addr());
    let reactor = Reactor::spawn(ReactorConfig::server(), |_io| Ok(Devices::new()))?;
    let handle = reactor.handle();
    handle.call(move |host| {
        let id = ExportId(1);
        let geometry = host.engine_mut().insert(id, Box::new(RamDisk::new(size_mib << 20)));
        let (name, description) = ("memory".to_owned(), "a disk in memory".to_owned());
        host.add_export(Export { id, name, description, geometry, byte_granular: true })?;
        host.add_listener(listener)
    })??;

    std::io::stdin().read_to_end(&mut Vec::new())?;
    let report = handle.stop(Duration::from_secs(5))?;
    reactor.join();
    println!("stopped: {report:?}");
    Ok(())
}
