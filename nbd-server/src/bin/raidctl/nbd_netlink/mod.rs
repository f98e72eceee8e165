//! The kernel's NBD driver, reached through generic netlink: its family `nbd`, as linux/nbd-netlink.h names it.
//!
//! [`Driver`] asks and is answered at once, for the kernel carries a request out while it is sent; [`LinkEvents`]
//! tells of connections that died. What the messages look like is the business of [`message`]; what to do about them
//! that of the callers. Of the sockets that are handed over the kernel takes references of its own.
//!
//! How the driver behaves, as read from its source and seen in a guest with Linux 6.1:
//! - A connection that fails is *dead*: it is announced, once, and its slot waits for a socket by `RECONFIGURE`, which
//!   fills dead slots only and silently ignores a socket for which there is none.
//! - While at least one connection lives, requests go there. With none they wait, as long as the dead-connection
//!   timeout says. Those that were under way on a dead one are sent again when their own timeout has passed.
//! - `RECONFIGURE` of a device that is disconnected, or that was connected under another identity since, is refused.

pub mod message;

use message::{Attributes, Incoming, Malformed, Received};
use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// The controller, which knows the numbers of the other families, and what is asked of it.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
mod controller {
    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
    pub const GROUPS: u16 = 7;
    pub const GROUP_NAME: u16 = 1;
    pub const GROUP_ID: u16 = 2;
}

/// Names and numbers of the family `nbd`.
const FAMILY: &str = "nbd";
const GROUP: &str = "nbd_mc_group";
mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
    pub const LINK_DEAD: u8 = 4;
    pub const STATUS: u8 = 5;
}
mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_BYTES: u16 = 3;
    pub const TIMEOUT_S: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_TIMEOUT_S: u16 = 8;
    pub const DEVICES: u16 = 9;
    pub const IDENTITY: u16 = 10;
    pub const SOCKET: u16 = 1;
    pub const SOCKET_FD: u16 = 1;
    pub const DEVICE_CONNECTED: u16 = 2;
}

/// Room for one receive; the kernel's messages are a page at most, and a list of devices is only asked for one.
const RECEIVE_BYTES: usize = 16 << 10;

/// Why the driver did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel has no such family: the module is not loaded.
    #[error("this kernel has no NBD driver loaded: load it with `modprobe nbd`")]
    NoModule,
    /// Refused.
    #[error("the kernel refuses to {verb} it: {errno}")]
    Refused {
        /// What was asked.
        verb: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// No netlink socket, or none that works.
    #[error("netlink does not work here: {0}")]
    Socket(#[from] io::Error),
    /// An answer that makes no sense.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// No answer.
    #[error("the kernel's NBD driver does not answer")]
    Silent,
}

impl DriverError {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            DriverError::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// What a device is to be.
#[derive(Debug)]
pub struct Connect<'a> {
    /// Its number; none leaves the choice to the kernel.
    pub index: Option<u32>,
    /// In bytes.
    pub size_bytes: u64,
    /// Its logical block: a power of two, 512 to the page size.
    pub block_bytes: u64,
    /// The export's transmission flags.
    pub flags: u16,
    /// How long one request may take before its connection is given up and it is sent again.
    pub request_timeout: Duration,
    /// How long requests wait while no connection lives, before they fail.
    pub dead_timeout: Duration,
    /// Shown in /sys/block/nbdX/backend, and wanted by each [`Driver::reconfigure`].
    pub identity: &'a str,
    /// Sockets on which the handshake is over.
    pub sockets: &'a [OwnedFd],
}

/// What is to change of a device; with nothing in it, whether it is still the one it was.
#[derive(Debug, Default)]
pub struct Change<'a> {
    /// The new size in bytes.
    pub size_bytes: Option<u64>,
    /// For the slots of dead connections.
    pub sockets: &'a [OwnedFd],
}

/// The driver, asked through a socket of its own.
pub struct Driver {
    socket: NlSocket,
    family: u16,
    group: u32,
    sequence: u32,
}

impl Driver {
    /// Finds the driver. [`DriverError::NoModule`] without it.
    pub fn open() -> Result<Driver, DriverError> {
        let socket = NlSocket::connect(NlFamily::Generic, None, Groups::empty())?;
        let mut driver = Driver { socket, family: CONTROLLER, group: 0, sequence: 0 };
        let wanted = Attributes::default().text(controller::FAMILY_NAME, FAMILY);
        let (family, group) = driver
            .ask("find", GET_FAMILY, &wanted, |found| {
                Ok((found.u16(controller::FAMILY_ID)?, group_in(&found.nested(controller::GROUPS)?)?))
            })
            .map_err(|error| match error.errno() {
                Some(Errno::NOENT) => DriverError::NoModule,
                _ => error,
            })?
            .ok_or(DriverError::Silent)?;
        (driver.family, driver.group) = (family, group);
        Ok(driver)
    }

    /// Makes a device, and returns its number.
    pub fn connect(&mut self, connect: &Connect<'_>) -> Result<u32, DriverError> {
        let mut wanted = Attributes::default();
        if let Some(index) = connect.index {
            wanted = wanted.u32(attribute::INDEX, index);
        }
        wanted = wanted
            .u64(attribute::SIZE_BYTES, connect.size_bytes)
            .u64(attribute::BLOCK_BYTES, connect.block_bytes)
            .u64(attribute::TIMEOUT_S, connect.request_timeout.as_secs())
            .u64(attribute::DEAD_TIMEOUT_S, connect.dead_timeout.as_secs())
            .u64(attribute::SERVER_FLAGS, connect.flags.into())
            .text(attribute::IDENTITY, connect.identity)
            .nested(attribute::SOCKETS, socket_list(connect.sockets));
        self.ask("connect", command::CONNECT, &wanted, |answer| answer.u32(attribute::INDEX))?
            .ok_or(DriverError::Silent)
    }

    /// Ends a device; what is in flight fails. It stays in use while it is open.
    pub fn disconnect(&mut self, index: u32) -> Result<(), DriverError> {
        let wanted = Attributes::default().u32(attribute::INDEX, index);
        self.ask("disconnect", command::DISCONNECT, &wanted, |_| Ok(())).map(drop)
    }

    /// Changes a device that was connected with `identity`. Refused with `EINVAL` if it no longer is.
    pub fn reconfigure(
        &mut self,
        index: u32,
        identity: &str,
        change: &Change<'_>,
    ) -> Result<(), DriverError> {
        let mut wanted =
            Attributes::default().u32(attribute::INDEX, index).text(attribute::IDENTITY, identity);
        if let Some(size_bytes) = change.size_bytes {
            wanted = wanted.u64(attribute::SIZE_BYTES, size_bytes);
        }
        if !change.sockets.is_empty() {
            wanted = wanted.nested(attribute::SOCKETS, socket_list(change.sockets));
        }
        self.ask("reconfigure", command::RECONFIGURE, &wanted, |_| Ok(())).map(drop)
    }

    /// True while a device is connected, or disconnected and still open.
    pub fn in_use(&mut self, index: u32) -> Result<bool, DriverError> {
        let wanted = Attributes::default().u32(attribute::INDEX, index);
        let in_use = self.ask("look at", command::STATUS, &wanted, |answer| {
            let devices = answer.nested(attribute::DEVICES)?;
            // A device that does not exist yet is in no list.
            devices.items().next().map_or(Ok(0), |device| device?.u8(attribute::DEVICE_CONNECTED))
        })?;
        Ok(in_use.unwrap_or(0) != 0)
    }

    /// Begins to listen for connections that die.
    pub fn link_events(&self) -> Result<LinkEvents, DriverError> {
        let socket = NlSocket::connect(NlFamily::Generic, None, Groups::empty())?;
        socket.add_mcast_membership(Groups::new_groups(&[self.group]))?;
        Ok(LinkEvents { socket, family: self.family })
    }

    /// Sends a request and reads what comes back: what `read` makes of the message in the answer, if there is one.
    fn ask<T>(
        &mut self,
        verb: &'static str,
        command: u8,
        wanted: &Attributes,
        read: impl Fn(&Received<'_>) -> Result<T, Malformed>,
    ) -> Result<Option<T>, DriverError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(message::request(self.family, command, self.sequence, wanted), Msg::empty())?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut told = None;
        loop {
            // The kernel has answered before `send` returned.
            let (len, _) =
                self.socket.recv(&mut buffer, Msg::DONTWAIT).map_err(|error| match error.kind() {
                    io::ErrorKind::WouldBlock => DriverError::Silent,
                    _ => DriverError::Socket(error),
                })?;
            for message in message::parse(buffer.get(..len).ok_or(Malformed)?)? {
                match message {
                    Incoming::Answer { sequence, errno: 0 } if sequence == self.sequence => return Ok(told),
                    Incoming::Answer { sequence, errno } if sequence == self.sequence => {
                        return Err(DriverError::Refused { verb, errno: Errno::from_raw_os_error(errno) });
                    }
                    Incoming::Message { attributes, .. } => told = Some(read(&attributes)?),
                    _ => {}
                }
            }
        }
    }
}

/// Connections that died, as they die.
pub struct LinkEvents {
    socket: NlSocket,
    family: u16,
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A connection of the device with this number died.
    Dead(u32),
    /// There were more than fit: any may have died.
    Lost,
}

impl LinkEvents {
    /// Waits for the next ones. For a thread of its own: nothing may ever come.
    pub fn wait(&self) -> Result<Vec<LinkEvent>, DriverError> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        let len = match self.socket.recv(&mut buffer, Msg::empty()) {
            Ok((len, _)) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                return Ok(vec![LinkEvent::Lost]);
            }
            Err(error) => return Err(error.into()),
        };
        let messages = message::parse(buffer.get(..len).ok_or(Malformed)?)?;
        Ok(messages.iter().filter_map(|message| link_event(message, self.family)).collect())
    }
}

fn link_event(message: &Incoming<'_>, nbd: u16) -> Option<LinkEvent> {
    match message {
        Incoming::Message { family, command: command::LINK_DEAD, attributes, .. } if *family == nbd => {
            Some(attributes.u32(attribute::INDEX).map_or(LinkEvent::Lost, LinkEvent::Dead))
        }
        Incoming::Overrun => Some(LinkEvent::Lost),
        _ => None,
    }
}

fn group_in(groups: &Received<'_>) -> Result<u32, Malformed> {
    for group in groups.items() {
        let group = group?;
        if group.text(controller::GROUP_NAME)? == GROUP {
            return group.u32(controller::GROUP_ID);
        }
    }
    Err(Malformed)
}

fn socket_list(sockets: &[OwnedFd]) -> Attributes {
    sockets.iter().fold(Attributes::default(), |list, socket| {
        // A descriptor is never negative.
        let fd = u32::try_from(socket.as_raw_fd()).unwrap_or(u32::MAX);
        list.nested(attribute::SOCKET, Attributes::default().u32(attribute::SOCKET_FD, fd))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8]) -> Vec<LinkEvent> {
        message::parse(bytes).unwrap().iter().filter_map(|message| link_event(message, 0x1c)).collect()
    }

    #[test]
    fn a_dead_link_is_told_with_its_device() {
        let index = Attributes::default().u32(attribute::INDEX, 3);
        assert_eq!(told(&message::request(0x1c, command::LINK_DEAD, 0, &index)), [LinkEvent::Dead(3)]);
        assert_eq!(told(&message::request(0x1c, command::STATUS, 0, &index)), []);
        assert_eq!(told(&message::request(0x1d, command::LINK_DEAD, 0, &index)), [], "another family");
        let nothing = Attributes::default();
        assert_eq!(told(&message::request(0x1c, command::LINK_DEAD, 0, &nothing)), [LinkEvent::Lost]);
    }

    #[test]
    fn the_group_is_found_among_others() {
        let group = |name: &str, id| {
            Attributes::default().text(controller::GROUP_NAME, name).u32(controller::GROUP_ID, id)
        };
        let groups = Attributes::default().nested(1, group("other", 4)).nested(2, group(GROUP, 40));
        let bytes = message::request(CONTROLLER, 1, 1, &Attributes::default().nested(7, groups));
        let messages = message::parse(&bytes).unwrap();
        let Incoming::Message { attributes, .. } = &messages[0] else { panic!("{messages:?}") };
        assert_eq!(group_in(&attributes.nested(7).unwrap()), Ok(40));
        assert_eq!(group_in(&Received::default()), Err(Malformed));
    }
}
