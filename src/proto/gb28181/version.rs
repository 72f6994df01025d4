//! Versions of the standard and what varies with them.
//! Standard: [GB/T28181-2022 annex I] for the header; the four texts for the rest.
//! In: `X-GB-Ver` or configuration. Out: `Profile`, asked by every writer.
//! Invariants: a profile is a plain value; two peers never share state through it.
//! Not here: what a peer negotiated (the link keeps its profile).

use super::charset::Charset;

/// An edition of the standard, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Version {
    /// 2011: `1.0`.
    V2011,
    /// 2011 with the amendment of 2014: `1.1`.
    V2011Amd,
    /// 2016: `2.0`. Also what an unknown peer is taken for.
    #[default]
    V2016,
    /// 2022: `3.0`.
    V2022,
}

impl Version {
    /// Reads the value of `X-GB-Ver`. A minor number we do not know counts as its major's; anything else is `None`.
    pub fn parse(header: &str) -> Option<Self> {
        let (major, minor) = header.trim().split_once('.').unwrap_or((header.trim(), "0"));
        let minor: u8 = minor.parse().ok()?;
        match major {
            "1" if minor == 0 => Some(Version::V2011),
            "1" => Some(Version::V2011Amd),
            "2" => Some(Version::V2016),
            "3" => Some(Version::V2022),
            _ => None,
        }
    }

    /// The value of `X-GB-Ver`.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V2011 => "1.0",
            Version::V2011Amd => "1.1",
            Version::V2016 => "2.0",
            Version::V2022 => "3.0",
        }
    }
}

/// Which elements a catalogue item carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CatalogSet {
    /// Direct children only. [GB/T28181-2011 A.2.1]
    Plain,
    /// Those and the `Info` block of the 2014 amendment and 2016.
    Info2016,
    /// The item of 2022.
    Full2022,
}

/// How to speak to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Profile {
    version: Version,
    charset: Charset,
}

impl Default for Profile {
    fn default() -> Self {
        Self::new(Version::default())
    }
}

impl Profile {
    /// The profile of a version with its own character set: GB 18030 from 2022 on, GB 2312 before.
    pub fn new(version: Version) -> Self {
        let charset = if version >= Version::V2022 { Charset::Gb18030 } else { Charset::Gb2312 };
        Self { version, charset }
    }

    /// The same with another character set.
    pub fn with_charset(self, charset: Charset) -> Self {
        Self { charset, ..self }
    }

    /// The version.
    pub fn version(self) -> Version {
        self.version
    }

    /// The character set bodies are written in.
    pub fn charset(self) -> Charset {
        self.charset
    }

    /// The value for `X-GB-Ver`.
    pub fn xgbver(self) -> &'static str {
        self.version.as_str()
    }

    fn is_2022(self) -> bool {
        self.version >= Version::V2022
    }

    /// Elements of a catalogue item.
    pub fn catalog_set(self) -> CatalogSet {
        match self.version {
            Version::V2011 => CatalogSet::Plain,
            Version::V2011Amd | Version::V2016 => CatalogSet::Info2016,
            Version::V2022 => CatalogSet::Full2022,
        }
    }

    /// Root element of a catalogue NOTIFY: 2011 sends a `Response`.
    pub fn catalog_notify_root(self) -> &'static str {
        if self.version == Version::V2011 { "Response" } else { "Notify" }
    }

    /// The `Event` header value of a catalogue subscription, for the subscriber. `{id}` is a number of ours.
    pub fn catalog_event(self, id: u32) -> String {
        if self.version == Version::V2011 { "presence".into() } else { format!("Catalog;id={id}") }
    }

    /// Element for free text: `Info`, since 2022 `ExtraInfo`.
    pub fn extension_element(self) -> &'static str {
        if self.is_2022() { "ExtraInfo" } else { "Info" }
    }

    /// Alarm methods of a query: concatenated, since 2022 joined with `/`. [GB/T28181-2022 A.2.4.7]
    pub fn join_alarm_methods(self, methods: &[u8]) -> String {
        let texts: Vec<String> = methods.iter().map(u8::to_string).collect();
        texts.join(if self.is_2022() { "/" } else { "" })
    }

    /// Element that asks a device for a key frame; 2011 has none, 2016 misspells it.
    pub fn key_frame_element(self) -> Option<&'static str> {
        match self.version {
            Version::V2011 | Version::V2011Amd => None,
            Version::V2016 => Some("IFameCmd"),
            Version::V2022 => Some("IFrameCmd"),
        }
    }

    /// True if the answer to SUBSCRIBE carries a `Response` body.
    pub fn subscribe_response_body(self) -> bool {
        !self.is_2022()
    }

    /// True if positions are reported as a list (2022), false for the flat form.
    pub fn mobile_position_list(self) -> bool {
        self.is_2022()
    }

    /// True if a preset answer counts its items in `SumNum`.
    pub fn preset_sum_num(self) -> bool {
        self.is_2022()
    }

    /// True if `s=Talk` exists.
    pub fn has_talk(self) -> bool {
        !self.is_2022()
    }

    /// True if media over TCP is part of the version. The 2014 amendment has it for downloads alone.
    pub fn has_tcp_media(self) -> bool {
        self.version >= Version::V2016
    }

    /// True if H.265 is part of the version.
    pub fn has_h265(self) -> bool {
        self.is_2022()
    }

    /// True if `a=streamnumber` selects a stream.
    pub fn has_stream_number(self) -> bool {
        self.is_2022()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values() {
        for (text, version) in [
            ("1.0", Some(Version::V2011)),
            ("1.1", Some(Version::V2011Amd)),
            (" 2.0 ", Some(Version::V2016)),
            ("3.0", Some(Version::V2022)),
            ("3", Some(Version::V2022)),
            ("3.1", Some(Version::V2022)),
            ("4.0", None),
            ("", None),
            ("3.x", None),
            ("2022", None),
        ] {
            assert_eq!(Version::parse(text), version, "{text:?}");
        }
        for v in [Version::V2011, Version::V2011Amd, Version::V2016, Version::V2022] {
            assert_eq!(Version::parse(v.as_str()), Some(v));
        }
        assert_eq!(Profile::default().version(), Version::V2016);
    }

    #[test]
    fn differences() {
        let old = Profile::new(Version::V2011);
        let mid = Profile::new(Version::V2016);
        let new = Profile::new(Version::V2022);
        assert_eq!((mid.charset(), new.charset()), (Charset::Gb2312, Charset::Gb18030));
        assert_eq!(mid.with_charset(Charset::Utf8).charset(), Charset::Utf8);
        assert_eq!((old.key_frame_element(), mid.key_frame_element()), (None, Some("IFameCmd")));
        assert_eq!(new.key_frame_element(), Some("IFrameCmd"));
        assert_eq!((mid.join_alarm_methods(&[1, 2]), new.join_alarm_methods(&[1, 2])), ("12".into(), "1/2".into()));
        assert_eq!((old.catalog_notify_root(), new.catalog_notify_root()), ("Response", "Notify"));
        assert_eq!((mid.extension_element(), new.extension_element()), ("Info", "ExtraInfo"));
        assert!(mid.subscribe_response_body() && !new.subscribe_response_body());
    }
}
