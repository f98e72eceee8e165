//! Sockets that systemd has opened for us (sd_listen_fds(3)).
//!
//! Each must be a listening stream socket; one that is not is refused by its name. The one called `control` is the
//! control socket. The files of unix sockets are systemd's and stay.

use crate::control::socket::OwnedSocket;
use crate::failure::{Failure, Outcome};
use listenfd::ListenFd;
use nbd_server::listen::Listener;
use std::os::fd::OwnedFd;

/// The name (`FileDescriptorName=`) of the control socket.
const CONTROL: &str = "control";

/// What systemd has opened.
#[derive(Default)]
pub struct Activation {
    /// For clients.
    pub listen: Vec<Listener>,
    /// For control.
    pub control: Option<OwnedSocket>,
}

impl Activation {
    /// Takes the sockets out of the environment. To be called once, before there are threads.
    pub fn from_env() -> Outcome<Activation> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut given = ListenFd::from_env();
        let mut activation = Activation::default();
        for index in 0..given.len() {
            let name = names.get(index).copied().filter(|name| !name.is_empty()).unwrap_or("unknown");
            let refused = |why: &dyn std::fmt::Display| {
                Failure::new(format!(
                    "the socket {name} (number {index} of LISTEN_FDS) cannot be served: {why}; use ListenStream= in \
                     its .socket unit, with Accept=no"
                ))
            };
            let fd = take(&mut given, index).map_err(|error| refused(&error))?;
            match name {
                CONTROL => {
                    let socket = OwnedSocket::inherited(fd).map_err(|failure| refused(&failure))?;
                    activation.control = Some(socket);
                }
                _ => activation.listen.push(Listener::inherited(fd).map_err(|error| refused(&error))?),
            }
        }
        Ok(activation)
    }
}

fn take(given: &mut ListenFd, index: usize) -> std::io::Result<OwnedFd> {
    if let Ok(Some(unix)) = given.take_unix_listener(index) {
        return Ok(unix.into());
    }
    match given.take_tcp_listener(index)? {
        Some(tcp) => Ok(tcp.into()),
        None => Err(std::io::Error::other("it was taken already")),
    }
}
