//! What stands for TLS in a build without the feature `tls`: types of which there are no values.

#![allow(missing_docs, reason = "the documentation is that of the build with TLS")]

use std::io::IoSlice;

#[derive(Clone, Debug)]
pub enum ServerTls {}

impl ServerTls {
    pub fn channel(&self) -> Result<Channel, TlsError> {
        match *self {}
    }
}

#[derive(Debug)]
pub enum Channel {}

impl Channel {
    pub fn feed(&mut self, _: &[u8]) -> Result<usize, TlsError> {
        match *self {}
    }
    pub fn plaintext(&mut self) -> &[u8] {
        match *self {}
    }
    pub fn received(&self) -> usize {
        match *self {}
    }
    pub fn consume(&mut self, _: usize) {
        match *self {}
    }
    pub fn write(&mut self, _: &[IoSlice<'_>]) -> usize {
        match *self {}
    }
    pub fn wants_write(&self) -> bool {
        match *self {}
    }
    pub fn take_ciphertext(&mut self, _: &mut [u8]) -> usize {
        match *self {}
    }
    pub fn close(&mut self) {
        match *self {}
    }
    pub fn has_closed(&self) -> bool {
        match *self {}
    }
    pub fn peer_has_closed(&self) -> bool {
        match *self {}
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsError {}
