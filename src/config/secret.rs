//! A secret: a string, `{ env = "NAME" }` or `{ file = "path" }`.
//!
//! In: one of the three forms. Out: the value, for the one place that needs it.
//! Invariants: never shown by `Debug`, `Display` or `Serialize`; wiped from memory when dropped. What the parsers
//! copied of an inline secret while reading is freed, not wiped; `{ file = … }` avoids that.
//! Not here: reading the variable or the file (`resolve.rs`).

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use zeroize::Zeroizing;

/// What stands where a secret would.
pub const MASK: &str = "********";

/// Where a secret's value is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the configuration itself.
    Inline,
    /// In an environment variable of this name.
    Env(String),
    /// In a file; a trailing line end is not part of the value.
    File(PathBuf),
}

/// A password or token. Two secrets are equal when value and source are, so that a reload sees a changed file.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    source: SecretSource,
    value: Zeroizing<String>,
}

impl Secret {
    /// A secret written in the configuration itself.
    pub fn inline(value: impl Into<String>) -> Self {
        Self { source: SecretSource::Inline, value: Zeroizing::new(value.into()) }
    }

    fn from_source(source: SecretSource) -> Self {
        Self { source, value: Zeroizing::default() }
    }

    /// Where the value is written down.
    pub fn source(&self) -> &SecretSource {
        &self.source
    }

    /// The value itself: hand it on, never print it.
    pub fn expose(&self) -> &str {
        &self.value
    }

    pub(super) fn fill(&mut self, value: Zeroizing<String>) {
        self.value = value;
    }

    pub(super) fn set_file(&mut self, path: PathBuf) {
        self.source = SecretSource::File(path);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (key, value) = match &self.source {
            SecretSource::Inline => return serializer.serialize_str(MASK),
            SecretSource::Env(name) => ("env", name.clone()),
            SecretSource::File(path) => ("file", path.display().to_string()),
        };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(key, &value)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretVisitor;
        impl<'de> Visitor<'de> for SecretVisitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"a string in quotes, { env = "NAME" } or { file = "path" }"#)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::inline(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
                // The text of this error holds no value: it may end on a screen.
                let wrong = || de::Error::custom(r#"must be { env = "NAME" } or { file = "path" }: name exactly one"#);
                let source = match map.next_entry::<String, String>() {
                    Ok(Some((key, value))) if key == "env" => SecretSource::Env(value),
                    Ok(Some((key, value))) if key == "file" => SecretSource::File(value.into()),
                    _ => return Err(wrong()),
                };
                match map.next_key::<String>() {
                    Ok(None) => Ok(Secret::from_source(source)),
                    _ => Err(wrong()),
                }
            }
        }
        deserializer.deserialize_any(SecretVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::inline("hunter2");
        let shown = format!("{secret:?} {secret} {}", serde_json::to_string(&secret).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn three_forms_and_no_fourth() {
        let read = |json| serde_json::from_str::<Secret>(json);
        assert_eq!(read(r#""x""#).unwrap(), Secret::inline("x"));
        assert_eq!(read(r#"{"env":"A"}"#).unwrap().source(), &SecretSource::Env("A".into()));
        assert_eq!(read(r#"{"file":"/a"}"#).unwrap().source(), &SecretSource::File("/a".into()));
        for wrong in ["5", "{}", r#"{"env":"A","file":"/a"}"#, r#"{"vault":"hunter2"}"#, r#"{"env":5}"#] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
