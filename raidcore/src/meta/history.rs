//! The history of incarnations: how members that lived apart are told from members that merely slept.
//!
//! An incarnation is a stretch of an array's life with one set of members in sync. It begins with a fresh
//! random identity each time that set changes, and is written to the members that are left before a write is
//! acknowledged without the others. So if two members' histories part, each went on without the other: a split
//! brain. If one's history is the beginning of the other's, it slept: it is stale.
//!
//! Worked example, a mirror of A and B, both in `I0`, at event 50:
//! A is started alone: `A: I0@0 I1@51`, then 60 events. B comes back: `B: I0@0`, 50 events. B's last
//! incarnation is in A's history, and B's 50 is before the 51 at which A left it: B is stale.
//! If B had been started alone, too (`B: I0@0 I2@51`), neither would be the beginning of the other.

use super::identity::IncarnationUuid;
use std::fmt;

/// Most incarnations a superblock remembers; the oldest are forgotten first.
pub const HISTORY_ENTRIES: usize = 16;

/// One incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// Its identity.
    pub uuid: IncarnationUuid,
    /// The array's event counter in the first superblock that carried it.
    pub start_events: u64,
}

/// The last incarnations, oldest first.
///
/// Invariants: `1 <= len <= HISTORY_ENTRIES`; start events ascend strictly; identities are distinct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History(Vec<Incarnation>);

/// What one superblock is to another of the same array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both are in the same incarnation: the same members were in sync.
    Same,
    /// The first was left behind by the second, and has written nothing since.
    Ancestor,
    /// The first went its own way since.
    Diverged,
}

impl History {
    /// The history of a new array.
    pub fn beginning(first: Incarnation) -> History {
        History(vec![first])
    }

    /// From entries, oldest first; `None` if they break the invariants.
    pub fn from_entries(entries: Vec<Incarnation>) -> Option<History> {
        let ascending = entries.windows(2).all(|pair| pair[0].start_events < pair[1].start_events);
        let distinct = entries.iter().enumerate().all(|(i, a)| entries[..i].iter().all(|b| a.uuid != b.uuid));
        let fits = (1..=HISTORY_ENTRIES).contains(&entries.len());
        (ascending && distinct && fits).then_some(History(entries))
    }

    /// Oldest first.
    pub fn entries(&self) -> &[Incarnation] {
        &self.0
    }

    /// The current incarnation.
    pub fn last(&self) -> Incarnation {
        self.0[self.0.len() - 1]
    }

    /// Begins an incarnation. Panics if it does not begin after the current one.
    pub fn begin(&mut self, next: Incarnation) {
        assert!(next.start_events > self.last().start_events, "an incarnation begins after the last one");
        if self.0.len() == HISTORY_ENTRIES {
            self.0.remove(0);
        }
        self.0.push(next);
    }

    /// What a superblock with this history at event `events` is to one with the history `other`.
    ///
    /// A history whose last incarnation the other has forgotten counts as an ancestor if all its events lie
    /// before what the other remembers: left out as stale it does no harm, whatever it did.
    pub fn relation(&self, events: u64, other: &History) -> Relation {
        let last = self.last().uuid;
        match other.0.iter().position(|incarnation| incarnation.uuid == last) {
            Some(place) => match other.0.get(place + 1) {
                None => Relation::Same,
                Some(next) if events < next.start_events => Relation::Ancestor,
                Some(_) => Relation::Diverged,
            },
            None if other.0.len() == HISTORY_ENTRIES && events < other.0[0].start_events => {
                Relation::Ancestor
            }
            None => Relation::Diverged,
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, incarnation) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            let short: String = incarnation.uuid.to_string().chars().take(8).collect();
            write!(f, "{space}{short}@{}", incarnation.start_events)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn incarnation(id: u128, start_events: u64) -> Incarnation {
        Incarnation { uuid: IncarnationUuid(Uuid::from_u128(id)), start_events }
    }

    fn history(entries: &[(u128, u64)]) -> History {
        History::from_entries(entries.iter().map(|&(id, at)| incarnation(id, at)).collect()).unwrap()
    }

    #[test]
    fn who_slept_is_an_ancestor_and_who_was_written_alone_has_diverged() {
        let a = history(&[(1, 0), (2, 51)]);
        let slept = history(&[(1, 0)]);
        let alone = history(&[(1, 0), (3, 51)]);
        assert_eq!(slept.relation(50, &a), Relation::Ancestor);
        assert_eq!(slept.relation(51, &a), Relation::Diverged, "it went on in an incarnation the other left");
        assert_eq!(a.relation(60, &slept), Relation::Diverged);
        assert_eq!(
            (alone.relation(60, &a), a.relation(60, &alone)),
            (Relation::Diverged, Relation::Diverged)
        );
        assert_eq!(a.relation(3, &a), Relation::Same);
    }

    #[test]
    fn the_oldest_incarnation_is_forgotten_and_a_member_from_before_it_is_stale() {
        let mut long = history(&[(100, 0)]);
        for i in 1..=HISTORY_ENTRIES as u64 {
            long.begin(incarnation(u128::from(i), i * 10));
        }
        assert_eq!((long.entries().len(), long.entries()[0]), (HISTORY_ENTRIES, incarnation(1, 10)));
        let old = history(&[(100, 0)]);
        assert_eq!(old.relation(9, &long), Relation::Ancestor);
        assert_eq!(old.relation(10, &long), Relation::Diverged);
    }

    #[test]
    fn entries_out_of_order_or_doubled_or_too_many_are_no_history() {
        let of = |entries: &[(u128, u64)]| {
            History::from_entries(entries.iter().map(|&(id, at)| incarnation(id, at)).collect())
        };
        assert!(of(&[]).is_none());
        assert!(of(&[(1, 5), (2, 5)]).is_none());
        assert!(of(&[(1, 5), (1, 6)]).is_none());
        assert!(of(&(0..17).map(|i| (i, i as u64)).collect::<Vec<_>>()).is_none());
    }
}
