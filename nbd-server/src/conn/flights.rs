//! The requests of one connection that its device works on.
//!
//! A tag is the connection's number, the slot of the request and a generation that never repeats for a slot
//! while an older use of it could still be answered: a stray or doubled completion finds nothing.

use super::budget::Charge;
use super::long::Long;
use crate::proto::reply::RequestId;
use raidcore::dev::Tag;

/// What is needed to answer a request.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: RequestId,
    pub(super) kind: FlightKind,
    /// The memory of the request, given back when the answer is sent (read) or queued (others).
    pub(super) charge: Option<Charge>,
}

/// What the answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlightKind {
    /// The data: in one chunk, or without its holes.
    Read { len: u32, whole: bool },
    /// A plain success.
    Plain,
    /// The next piece, and a plain success after the last.
    Long(Long),
}

/// The table. At most 65536 slots.
#[derive(Debug, Default)]
pub(super) struct Flights {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    flight: Option<Flight>,
}

impl Flights {
    /// Requests in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Enters a request; its tag. The caller keeps the number of requests below the limit.
    pub(super) fn insert(&mut self, connection: u16, generation: u32, flight: Flight) -> Tag {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation, flight: None });
                (self.slots.len() - 1) as u16
            }
        };
        let slot = &mut self.slots[usize::from(index)];
        debug_assert!(slot.flight.is_none());
        slot.generation = generation;
        slot.flight = Some(flight);
        Tag(u64::from(connection) << 48 | u64::from(index) << 32 | u64::from(generation))
    }

    /// Takes the request of `tag` out.
    pub(super) fn remove(&mut self, tag: Tag) -> Option<Flight> {
        let index = (tag.0 >> 32) as u16;
        let slot = self.slots.get_mut(usize::from(index)).filter(|slot| slot.generation == tag.0 as u32)?;
        let flight = slot.flight.take()?;
        self.free.push(index);
        Some(flight)
    }
}

/// The number of the connection that a tag belongs to.
pub(crate) fn connection_of(tag: Tag) -> u16 {
    (tag.0 >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::reply::Cookie;

    #[test]
    fn a_tag_finds_its_request_once() {
        let id = |n| RequestId { cookie: Cookie(n), offset: 0 };
        let flight = |n| Flight { id: id(n), kind: FlightKind::Plain, charge: None };
        let mut flights = Flights::default();
        let first = flights.insert(7, 1, flight(10));
        let second = flights.insert(7, 2, flight(20));
        assert_eq!((connection_of(first), flights.len()), (7, 2));
        assert_eq!(flights.remove(first).map(|f| f.id), Some(id(10)));
        assert!(flights.remove(first).is_none());
        let third = flights.insert(7, 3, flight(30));
        assert!(flights.remove(first).is_none());
        assert_eq!(flights.remove(third).map(|f| f.id), Some(id(30)));
        assert_eq!(flights.remove(second).map(|f| f.id), Some(id(20)));
        assert_eq!(flights.len(), 0);
    }
}
