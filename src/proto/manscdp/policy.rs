//! Names for what is tolerated in bodies of peers, and counts of it.
//! Standard: what each deviates from is [GB/T28181-2022 6.10, A.2.1, A.2.6, annex M].
//! In: notes of the readers (`xml`, `catalog`, `record`, `assembly`, `tree`). Out: `Policies`, counts by name.
//! Invariants: a sound body notes nothing; every reader notes what it applied, and only that; counts saturate.
//! Not here: the tolerances themselves.

use std::fmt;

macro_rules! policies {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// A deviation of a peer that is lived with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum CatalogPolicy {
            $($(#[$doc])* $name,)*
        }

        impl CatalogPolicy {
            /// All of them.
            pub const ALL: &'static [CatalogPolicy] = &[$(CatalogPolicy::$name,)*];

            /// The label for metrics and logs.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(CatalogPolicy::$name => $label,)*
                }
            }
        }

        const COUNT: usize = [$($label,)*].len();
    };
}

policies! {
    // ---- the text of a body ----
    /// The bytes are not in the character set the declaration names: the bytes are believed.
    CharsetMislabelled = "charset_mislabelled",
    /// No declaration names a character set, and the text needs one: guessed.
    CharsetUnlabelled = "charset_unlabelled",
    /// Bytes that are no character in any set: U+FFFD.
    BrokenCharacters = "broken_characters",
    /// Control characters: dropped.
    ControlCharacters = "control_characters",
    /// `&` or `<` that was not escaped: taken as text.
    BareMarkup = "bare_markup",
    /// End tags that do not match: the field is dropped, the rest is kept.
    BrokenNesting = "broken_nesting",
    // ---- one item ----
    /// No DeviceID, or one that is no code: the item is dropped (a recording counts as the asked device's).
    UnreadableId = "unreadable_id",
    /// A code that has not 2, 4, 6, 8 or 20 digits: kept as it is.
    OddIdLength = "odd_id_length",
    /// No name, or an empty one: empty.
    MissingName = "missing_name",
    /// A Status that is not ON or OFF: read by its meaning, or absent.
    StatusSpelling = "status_spelling",
    /// A Parental that is not 0 or 1: absent.
    OddParental = "odd_parental",
    /// The item names itself as parent: dropped from its parents.
    ParentIsSelf = "parent_is_self",
    /// A part of ParentID that is no code: dropped.
    UnreadableParent = "unreadable_parent",
    /// A ParentID of a length no code has: kept.
    OddParentLength = "odd_parent_length",
    /// The word null for no value: absent.
    NullWord = "null_word",
    /// A field of Info beside it: taken.
    FieldOutsideInfo = "field_outside_info",
    /// A coordinate of zero, or none: absent.
    EmptyCoordinate = "empty_coordinate",
    /// A number or a time that cannot be read: absent.
    UnreadableValue = "unreadable_value",
    // ---- a list in several messages ----
    /// No SumNum: the end is silence.
    MissingSumNum = "missing_sum_num",
    /// SumNum 0 and items: the end is silence.
    ZeroSumNum = "zero_sum_num",
    /// SumNum is not the same in all messages: the largest counts.
    SumNumDiffers = "sum_num_differs",
    /// More came than SumNum says: kept.
    SumNumTooSmall = "sum_num_too_small",
    /// Less came than SumNum says by the end of the wait: what came is the result.
    SumNumNotReached = "sum_num_not_reached",
    /// Num is not the number of items of its message: the items count.
    NumDiffers = "num_differs",
    /// An item came again unchanged in another message: counted once.
    RepeatedItem = "repeated_item",
    /// Two items under one id: the later one is kept.
    DuplicateId = "duplicate_id",
    /// A message came after the last one was due: taken.
    TrailingChunk = "trailing_chunk",
    /// More items, or more bytes, than are held: what is above the limit is dropped.
    OverLimit = "over_limit",
    // ---- the tree of a device ----
    /// The device lists itself: no part of its own tree.
    OwnItem = "own_item",
    /// The device lists itself and nothing else that can be played: it is its own channel.
    OwnChannel = "own_channel",
    /// No parent that is in the catalogue: put under the division, or the device.
    UnknownParent = "unknown_parent",
    /// Parents in a circle: opened at the smallest id.
    ParentLoop = "parent_loop",
    /// Nested deeper than is followed: put under the device.
    TooDeep = "too_deep",
    /// BusinessGroupID is not the group the item lies in: replaced.
    GroupDiffers = "group_differs",
}

impl fmt::Display for CatalogPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How often each policy was applied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Policies([u32; COUNT]);

impl Default for Policies {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

impl Policies {
    /// Counts one.
    pub fn note(&mut self, policy: CatalogPolicy) {
        self.note_many(policy, 1);
    }

    /// Counts several; none changes nothing.
    pub fn note_many(&mut self, policy: CatalogPolicy, times: usize) {
        let count = &mut self.0[policy as usize];
        *count = count.saturating_add(u32::try_from(times).unwrap_or(u32::MAX));
    }

    /// Counts one where it is so.
    pub(super) fn note_if(&mut self, so: bool, policy: CatalogPolicy) {
        self.note_many(policy, usize::from(so));
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Policies) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    /// How often.
    pub fn count(&self, policy: CatalogPolicy) -> u32 {
        self.0[policy as usize]
    }

    /// True if it was applied.
    pub fn has(&self, policy: CatalogPolicy) -> bool {
        self.count(policy) > 0
    }

    /// True if nothing had to be tolerated.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; COUNT]
    }

    /// Those that were applied, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (CatalogPolicy, u32)> + '_ {
        CatalogPolicy::ALL.iter().map(|p| (*p, self.count(*p))).filter(|(_, n)| *n > 0)
    }
}

/// `charset_mislabelled=1 null_word=3`.
impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (policy, count)) in self.iter().enumerate() {
            write!(f, "{}{policy}={count}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_said_once_and_counts_add_up() {
        let labels: std::collections::BTreeSet<_> = CatalogPolicy::ALL.iter().map(|p| p.as_str()).collect();
        assert_eq!(labels.len(), CatalogPolicy::ALL.len());
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        let mut counts = Policies::default();
        assert!(counts.is_empty());
        for policy in CatalogPolicy::ALL {
            counts.note(*policy);
            assert_eq!(counts.count(*policy), 1);
        }
        let mut twice = counts;
        twice.add(&counts);
        twice.note_many(CatalogPolicy::NullWord, usize::MAX);
        assert_eq!((twice.count(CatalogPolicy::TooDeep), twice.count(CatalogPolicy::NullWord)), (2, u32::MAX));
        let mut two = Policies::default();
        two.note_many(CatalogPolicy::NullWord, 3);
        two.note_if(true, CatalogPolicy::BareMarkup);
        two.note_if(false, CatalogPolicy::OwnItem);
        assert_eq!(two.to_string(), "bare_markup=1 null_word=3");
    }
}
