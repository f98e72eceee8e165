//! What one client sees of the exports: those it may use, read-only where it may only read.
//!
//! Invariant: an export that the client may not use cannot be told from one that does not exist, by no option.

use crate::access::{Access, Peer, Rights};
use crate::export::{Export, ExportId, Exports};
use std::borrow::Cow;

/// The exports as one client sees them.
#[derive(Clone, Copy, Debug)]
pub struct Offers<'a> {
    exports: &'a Exports,
    /// `None` sees everything.
    peer: Option<&'a Peer>,
}

impl<'a> Offers<'a> {
    /// All exports, as they are.
    pub fn all(exports: &'a Exports) -> Offers<'a> {
        Offers { exports, peer: None }
    }

    /// What `peer` sees.
    pub fn to(peer: &'a Peer, exports: &'a Exports) -> Offers<'a> {
        Offers { exports, peer: Some(peer) }
    }

    /// The export a client asks for; the empty name is the only one it sees, if there is exactly one.
    pub fn find(&self, name: &str) -> Option<Cow<'a, Export>> {
        if name.is_empty() {
            let mut all = self.iter();
            return all.next().filter(|_| all.next().is_none());
        }
        // The name first: rules are many.
        let (export, access) = self.exports.with_access().find(|(export, _)| export.name == name)?;
        self.view(export, access)
    }

    /// The export of this number.
    pub fn by_id(&self, id: ExportId) -> Option<Cow<'a, Export>> {
        let (export, access) = self.exports.with_access().find(|(export, _)| export.id == id)?;
        self.view(export, access)
    }

    /// All of them, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = Cow<'a, Export>> {
        let offers = *self;
        self.exports.with_access().filter_map(move |(export, access)| offers.view(export, access))
    }

    fn view(&self, export: &'a Export, access: &Access) -> Option<Cow<'a, Export>> {
        let rights = self.peer.map_or(Some(Rights::ReadWrite), |peer| access.rights(peer))?;
        if rights == Rights::ReadWrite || export.geometry.read_only {
            return Some(Cow::Borrowed(export));
        }
        let mut export = export.clone();
        export.geometry.read_only = true;
        Some(Cow::Owned(export))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raidcore::dev::{BlockSize, Geometry};

    fn exports(rules: &[(&str, &[&str])]) -> Exports {
        let mut exports = Exports::new();
        for (id, (name, rules)) in rules.iter().enumerate() {
            let (id, name, description) = (ExportId(id as u32), name.to_string(), String::new());
            let geometry = Geometry::plain(1 << 20, BlockSize::B4096);
            exports.add(Export { id, name, description, geometry, byte_granular: true }).unwrap();
            let rules = rules.iter().map(|text| text.parse().unwrap()).collect();
            assert!(exports.set_access(id, Access::only(rules).unwrap()));
        }
        exports
    }

    #[test]
    fn a_client_sees_what_it_may_use_and_the_empty_name_is_the_only_one_of_them() {
        let exports =
            exports(&[("a", &["unix:user=1"]), ("b", &["unix:user=2", "unix:user=1:ro"]), ("c", &[])]);
        let seen = |uid: u32| {
            let peer = Peer::Unix { uid, gid: 0, pid: 1 };
            let offers = Offers::to(&peer, &exports);
            let list: Vec<_> = offers.iter().map(|e| (e.name.clone(), e.geometry.read_only)).collect();
            for export in exports.iter() {
                let listed = list.iter().any(|(name, _)| *name == export.name);
                assert_eq!(offers.find(&export.name).is_some(), listed);
                assert_eq!(offers.by_id(export.id).is_some(), listed);
            }
            (list, offers.find("").map(|export| export.name.clone()))
        };
        assert_eq!(seen(1), (vec![("a".into(), false), ("b".into(), true)], None));
        assert_eq!(seen(2), (vec![("b".into(), false)], Some("b".into())));
        assert_eq!(seen(3), (vec![], None));
        assert_eq!(Offers::all(&exports).iter().count(), 3);
        assert!(Offers::all(&exports).find("").is_none());
    }
}
