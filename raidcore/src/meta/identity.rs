//! Names and numbers that identify: array, member, incarnation.

use crate::limits::MAX_NAME_BYTES;
use std::fmt;
use uuid::Uuid;

/// Identity of an array, given once when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArrayUuid(pub Uuid);

/// Identity of a device as a member of its array, given when it is created or added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberUuid(pub Uuid);

/// Identity of an incarnation: a stretch of an array's life with one set of members in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncarnationUuid(pub Uuid);

macro_rules! display_as_uuid {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}
display_as_uuid!(ArrayUuid, MemberUuid, IncarnationUuid);

/// Name of an array: 1 to 63 of `A-Z a-z 0-9 . _ -`, not beginning with `-` or `.`.
///
/// It is an export name, part of file names and an argument of commands: what would need quoting in one of
/// those, or look like an option or a hidden file, is not a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArrayName(String);

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name for an array: use 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 . _ -, not beginning with - or ."
)]
pub struct NameError(String);

impl ArrayName {
    /// Checks a name.
    ///
    /// ```
    /// use raidcore::meta::ArrayName;
    /// assert!(ArrayName::parse("vol0").is_ok());
    /// assert!(ArrayName::parse("-vol0").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<ArrayName, NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let well_formed = (1..=MAX_NAME_BYTES).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with(['-', '.']);
        match well_formed {
            true => Ok(ArrayName(text.to_owned())),
            false => Err(NameError(text.chars().take(MAX_NAME_BYTES + 1).collect())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ArrayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_need_quoting_or_look_like_options_are_refused() {
        let longest = "x".repeat(MAX_NAME_BYTES);
        for good in ["a", "vol0", "A.b_c-9", "_", &longest] {
            assert_eq!(ArrayName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", "a\0", &format!("{longest}x")] {
            assert!(ArrayName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
