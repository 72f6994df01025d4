//! The 20-digit code as the configuration holds it.
//!
//! Standard: [GB/T28181-2022 E.1]: centre 8, industry 2, type 3, network 1, serial 6 digits.
//! In: any string. Out: its parts, where it is well formed.
//! Invariants: none on construction, so that a wrong code is reported with its key; a loaded `Config` holds
//! well-formed codes only.
//! Not here: the protocol's own identifier type.

use std::fmt;

use super::units::{FromText, text_serde};

/// A code of 20 decimal digits [GB/T28181-2022 E.1]; the empty string where none was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Code20(String);

impl Code20 {
    /// Takes the text as it stands.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these are exactly 20 decimal digits.
    pub fn is_well_formed(&self) -> bool {
        self.0.len() == 20 && self.0.bytes().all(|b| b.is_ascii_digit())
    }

    /// Digits 1-6: province, city, county; empty where the code is not well formed.
    pub fn civil_code(&self) -> &str {
        self.part(0, 6)
    }

    /// Digits 1-8, the centre code; empty where the code is not well formed.
    pub fn centre(&self) -> &str {
        self.part(0, 8)
    }

    /// Digits 1-10, the SIP domain; empty where the code is not well formed.
    pub fn domain(&self) -> &str {
        self.part(0, 10)
    }

    /// Digits 11-13, the type; `None` where the code is not well formed.
    pub fn type_code(&self) -> Option<u16> {
        self.part(10, 13).parse().ok()
    }

    fn part(&self, from: usize, to: usize) -> &str {
        if self.is_well_formed() { &self.0[from..to] } else { "" }
    }
}

impl FromText for Code20 {
    const EXPECT: &'static str = "a 20-digit code in quotes";
    const FIX: &'static str = r#"write it as "34020000001320000001""#;

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::new(text))
    }
}

impl fmt::Display for Code20 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_serde!(Code20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_code() {
        let code = Code20::new("34020000581320000001");
        assert!(code.is_well_formed());
        assert_eq!(code.civil_code(), "340200");
        assert_eq!(code.centre(), "34020000");
        assert_eq!(code.domain(), "3402000058");
        assert_eq!(code.type_code(), Some(132));
    }

    #[test]
    fn a_wrong_code_has_no_parts() {
        for wrong in ["", "123", "3402000058132000000x", "３４020000581320000001", "340200005813200000011"] {
            let code = Code20::new(wrong);
            assert!(!code.is_well_formed(), "{wrong}");
            assert_eq!((code.domain(), code.type_code()), ("", None), "{wrong}");
        }
    }
}
