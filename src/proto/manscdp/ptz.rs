//! PTZCmd: the eight-byte front-end command inside DeviceControl.
//! Standard: [GB/T28181-2022 A.3].
//! In: 16 hex digits. Out: `PtzCommand`; and back.
//! Invariants: what `encode` writes `decode` reads as the same value; opposite directions at once are refused.
//! Deviations: the address field is ignored, since the XML names the target; a wrong checksum may be let pass
//! (`ChecksumPolicy::Ignore`) for peers known to miscount.
//! Not here: mapping to camera protocols, the watchdog that stops a movement whose stop was lost.

/// What to do about wrong check digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumPolicy {
    /// Refuse the command.
    #[default]
    Verify,
    /// Take it.
    Ignore,
}

/// Why a PTZCmd is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PtzError {
    /// Not 16 hex digits; the number of characters.
    #[error("PTZCmd: {0} characters, or not hexadecimal: send 16 hex digits")]
    Form(usize),
    /// First byte is not A5.
    #[error("PTZCmd: begins with {0:02X}: begin with A5")]
    Lead(u8),
    /// Check nibble of byte 2, or the sum in byte 8.
    #[error("PTZCmd: checksum {found:02X} where {expected:02X} was due: correct the sender")]
    Checksum {
        /// What stood there.
        found: u8,
        /// What should have.
        expected: u8,
    },
    /// Left and right, or another opposite pair, at once.
    #[error("PTZCmd: opposite directions in code {0:02X}: set one")]
    Opposite(u8),
    /// A code the standard does not define.
    #[error("PTZCmd: unknown code {0:02X}: use one of A.3")]
    UnknownCode(u8),
    /// A number with a reserved value, such as preset 0.
    #[error("PTZCmd: code {0:02X} with the reserved number {1}: use another")]
    Reserved(u8, u8),
}

/// Pan direction, as the picture moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pan {
    /// Left.
    Left,
    /// Right.
    Right,
}

/// Tilt direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tilt {
    /// Up.
    Up,
    /// Down.
    Down,
}

/// Zoom direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zoom {
    /// Closer (tele).
    In,
    /// Wider.
    Out,
}

/// Focus direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    /// Near.
    Near,
    /// Far.
    Far,
}

/// Iris direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iris {
    /// Larger.
    Open,
    /// Smaller.
    Close,
}

/// What to do with a preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresetAction {
    /// Store the present position.
    Set,
    /// Go there.
    Call,
    /// Forget it.
    Delete,
}

/// A decoded command. Speeds are the wire's: pan, tilt, focus, iris 0-255, zoom 0-15, slow to fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PtzCommand {
    /// Start what is set, stop what is not; nothing set stops everything (also a cruise or a scan).
    Move {
        /// Horizontal axis.
        pan: Option<Pan>,
        /// Vertical axis.
        tilt: Option<Tilt>,
        /// Lens.
        zoom: Option<Zoom>,
        /// Horizontal speed.
        pan_speed: u8,
        /// Vertical speed.
        tilt_speed: u8,
        /// Zoom speed, 0-15.
        zoom_speed: u8,
    },
    /// Start or stop focus and iris.
    FocusIris {
        /// Focus.
        focus: Option<Focus>,
        /// Iris.
        iris: Option<Iris>,
        /// Focus speed.
        focus_speed: u8,
        /// Iris speed.
        iris_speed: u8,
    },
    /// A preset, 1-255.
    Preset {
        /// What to do.
        action: PresetAction,
        /// Which.
        number: u8,
    },
    /// Append a preset to a cruise.
    CruiseAdd {
        /// Cruise.
        group: u8,
        /// Preset 1-255.
        preset: u8,
    },
    /// Remove a preset from a cruise.
    CruiseRemove {
        /// Cruise.
        group: u8,
        /// Preset; `None` removes the whole cruise.
        preset: Option<u8>,
    },
    /// Speed of a cruise, 12 bits.
    CruiseSpeed {
        /// Cruise.
        group: u8,
        /// 0-4095.
        speed: u16,
    },
    /// Seconds to stay at each preset, 12 bits.
    CruiseDwell {
        /// Cruise.
        group: u8,
        /// 0-4095 s.
        seconds: u16,
    },
    /// Run a cruise; it ends with a `Move` of nothing.
    CruiseStart {
        /// Cruise.
        group: u8,
    },
    /// Run a scan; it ends with a `Move` of nothing.
    ScanStart {
        /// Scan.
        group: u8,
    },
    /// The present position is the scan's left bound.
    ScanLeft {
        /// Scan.
        group: u8,
    },
    /// The present position is the scan's right bound.
    ScanRight {
        /// Scan.
        group: u8,
    },
    /// Speed of a scan, 12 bits.
    ScanSpeed {
        /// Scan.
        group: u8,
        /// 0-4095.
        speed: u16,
    },
    /// An auxiliary switch; 1 is the wiper.
    Auxiliary {
        /// Switch number.
        switch: u8,
        /// On or off.
        on: bool,
    },
}

/// Byte 1.
const LEAD: u8 = 0xA5;
/// Byte 2: version 0 and the check nibble over byte 1.
const VERSION_AND_CHECK: u8 = 0x0F;

impl PtzCommand {
    /// The command that stops every movement.
    pub const STOP: PtzCommand =
        PtzCommand::Move { pan: None, tilt: None, zoom: None, pan_speed: 0, tilt_speed: 0, zoom_speed: 0 };

    /// Reads 16 hex digits, in either case.
    pub fn parse(text: &str, policy: ChecksumPolicy) -> Result<Self, PtzError> {
        let digits = text.trim().as_bytes();
        let mut frame = [0u8; 8];
        if digits.len() != 16 {
            return Err(PtzError::Form(digits.len()));
        }
        for (byte, pair) in frame.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |b: u8| (b as char).to_digit(16).ok_or(PtzError::Form(digits.len()));
            *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
        }
        Self::decode(frame, policy)
    }

    /// Reads eight bytes.
    pub fn decode(frame: [u8; 8], policy: ChecksumPolicy) -> Result<Self, PtzError> {
        let [lead, combined, _address, code, d1, d2, last, sum] = frame;
        if lead != LEAD {
            return Err(PtzError::Lead(lead));
        }
        if policy == ChecksumPolicy::Verify {
            let version = combined & 0xF0;
            let expected = version | (0xA + 0x5 + (version >> 4)) & 0x0F;
            if combined != expected {
                return Err(PtzError::Checksum { found: combined, expected });
            }
            let expected = checksum(&frame);
            if sum != expected {
                return Err(PtzError::Checksum { found: sum, expected });
            }
        }
        let high = last >> 4;
        let wide = u16::from(high) << 8 | u16::from(d2);
        let pair = |upper: u8, lower: u8| match (code & upper != 0, code & lower != 0) {
            (true, true) => Err(PtzError::Opposite(code)),
            (first, second) => Ok((first, second)),
        };
        let preset = || {
            if d2 == 0 { Err(PtzError::Reserved(code, d2)) } else { Ok(d2) }
        };
        Ok(match code {
            0x00..=0x3F => PtzCommand::Move {
                zoom: one_of(pair(0x20, 0x10)?, Zoom::Out, Zoom::In),
                tilt: one_of(pair(0x08, 0x04)?, Tilt::Up, Tilt::Down),
                pan: one_of(pair(0x02, 0x01)?, Pan::Left, Pan::Right),
                pan_speed: d1,
                tilt_speed: d2,
                zoom_speed: high,
            },
            0x40..=0x4F => PtzCommand::FocusIris {
                iris: one_of(pair(0x08, 0x04)?, Iris::Close, Iris::Open),
                focus: one_of(pair(0x02, 0x01)?, Focus::Near, Focus::Far),
                focus_speed: d1,
                iris_speed: d2,
            },
            0x81 => PtzCommand::Preset { action: PresetAction::Set, number: preset()? },
            0x82 => PtzCommand::Preset { action: PresetAction::Call, number: preset()? },
            0x83 => PtzCommand::Preset { action: PresetAction::Delete, number: preset()? },
            0x84 => PtzCommand::CruiseAdd { group: d1, preset: preset()? },
            0x85 => PtzCommand::CruiseRemove { group: d1, preset: (d2 != 0).then_some(d2) },
            0x86 => PtzCommand::CruiseSpeed { group: d1, speed: wide },
            0x87 => PtzCommand::CruiseDwell { group: d1, seconds: wide },
            0x88 => PtzCommand::CruiseStart { group: d1 },
            0x89 => match d2 {
                0 => PtzCommand::ScanStart { group: d1 },
                1 => PtzCommand::ScanLeft { group: d1 },
                2 => PtzCommand::ScanRight { group: d1 },
                _ => return Err(PtzError::Reserved(code, d2)),
            },
            0x8A => PtzCommand::ScanSpeed { group: d1, speed: wide },
            0x8C | 0x8D => PtzCommand::Auxiliary { switch: d1, on: code == 0x8C },
            _ => return Err(PtzError::UnknownCode(code)),
        })
    }

    /// Eight bytes, address 0. 12-bit values are cut to 12 bits, zoom speed to 4.
    pub fn encode(self) -> [u8; 8] {
        let wide = |code: u8, group: u8, value: u16| (code, group, value as u8, (value >> 8) as u8);
        let (code, d1, d2, high) = match self {
            PtzCommand::Move { pan, tilt, zoom, pan_speed, tilt_speed, zoom_speed } => {
                let code = match pan {
                    Some(Pan::Left) => 0x02,
                    Some(Pan::Right) => 0x01,
                    None => 0,
                } | match tilt {
                    Some(Tilt::Up) => 0x08,
                    Some(Tilt::Down) => 0x04,
                    None => 0,
                } | match zoom {
                    Some(Zoom::Out) => 0x20,
                    Some(Zoom::In) => 0x10,
                    None => 0,
                };
                (code, pan_speed, tilt_speed, zoom_speed)
            }
            PtzCommand::FocusIris { focus, iris, focus_speed, iris_speed } => {
                let code = match focus {
                    Some(Focus::Near) => 0x42,
                    Some(Focus::Far) => 0x41,
                    None => 0x40,
                } | match iris {
                    Some(Iris::Close) => 0x08,
                    Some(Iris::Open) => 0x04,
                    None => 0,
                };
                (code, focus_speed, iris_speed, 0)
            }
            PtzCommand::Preset { action, number } => {
                let code = match action {
                    PresetAction::Set => 0x81,
                    PresetAction::Call => 0x82,
                    PresetAction::Delete => 0x83,
                };
                (code, 0, number, 0)
            }
            PtzCommand::CruiseAdd { group, preset } => (0x84, group, preset, 0),
            PtzCommand::CruiseRemove { group, preset } => (0x85, group, preset.unwrap_or(0), 0),
            PtzCommand::CruiseSpeed { group, speed } => wide(0x86, group, speed),
            PtzCommand::CruiseDwell { group, seconds } => wide(0x87, group, seconds),
            PtzCommand::CruiseStart { group } => (0x88, group, 0, 0),
            PtzCommand::ScanStart { group } => (0x89, group, 0, 0),
            PtzCommand::ScanLeft { group } => (0x89, group, 1, 0),
            PtzCommand::ScanRight { group } => (0x89, group, 2, 0),
            PtzCommand::ScanSpeed { group, speed } => wide(0x8A, group, speed),
            PtzCommand::Auxiliary { switch, on } => (if on { 0x8C } else { 0x8D }, switch, 0, 0),
        };
        let mut frame = [LEAD, VERSION_AND_CHECK, 0, code, d1, d2, high << 4, 0];
        frame[7] = checksum(&frame);
        frame
    }

    /// `encode` as 16 upper-case hex digits.
    pub fn to_hex(self) -> String {
        self.encode().iter().map(|b| format!("{b:02X}")).collect()
    }
}

fn one_of<T>((first, second): (bool, bool), a: T, b: T) -> Option<T> {
    if first {
        Some(a)
    } else if second {
        Some(b)
    } else {
        None
    }
}

fn checksum(frame: &[u8; 8]) -> u8 {
    frame[..7].iter().fold(0u8, |sum, b| sum.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STILL: (Option<Pan>, Option<Tilt>, Option<Zoom>) = (None, None, None);

    fn moved(axes: (Option<Pan>, Option<Tilt>, Option<Zoom>), speeds: (u8, u8, u8)) -> PtzCommand {
        let ((pan, tilt, zoom), (pan_speed, tilt_speed, zoom_speed)) = (axes, speeds);
        PtzCommand::Move { pan, tilt, zoom, pan_speed, tilt_speed, zoom_speed }
    }

    fn lens(focus: Option<Focus>, iris: Option<Iris>, focus_speed: u8, iris_speed: u8) -> PtzCommand {
        PtzCommand::FocusIris { focus, iris, focus_speed, iris_speed }
    }

    fn vectors() -> Vec<(PtzCommand, &'static str)> {
        use PresetAction::*;
        use PtzCommand::*;
        vec![
            (moved(STILL, (0, 0, 0)), "A50F0000000000B4"),
            (moved((Some(Pan::Right), None, None), (0x40, 0, 0)), "A50F0001400000F5"),
            (moved((Some(Pan::Left), None, None), (0x40, 0, 0)), "A50F0002400000F6"),
            (moved((None, Some(Tilt::Up), None), (0, 0x40, 0)), "A50F0008004000FC"),
            (moved((Some(Pan::Left), Some(Tilt::Up), None), (0x40, 0x40, 0)), "A50F000A4040003E"),
            (moved((None, None, Some(Zoom::In)), (0, 0, 8)), "A50F001000008044"),
            (moved((None, None, Some(Zoom::Out)), (0, 0, 8)), "A50F002000008054"),
            (lens(None, None, 0, 0), "A50F0040000000F4"),
            (lens(Some(Focus::Far), None, 0x80, 0), "A50F004180000075"),
            (lens(Some(Focus::Near), None, 0x80, 0), "A50F004280000076"),
            (lens(None, Some(Iris::Open), 0, 0x80), "A50F004400800078"),
            (lens(None, Some(Iris::Close), 0, 0x80), "A50F00480080007C"),
            (Preset { action: Set, number: 5 }, "A50F00810005003A"),
            (Preset { action: Call, number: 5 }, "A50F00820005003B"),
            (Preset { action: Delete, number: 5 }, "A50F00830005003C"),
            (CruiseAdd { group: 1, preset: 5 }, "A50F00840105003E"),
            (CruiseRemove { group: 1, preset: Some(5) }, "A50F00850105003F"),
            (CruiseRemove { group: 1, preset: None }, "A50F00850100003A"),
            (CruiseSpeed { group: 1, speed: 0x12C }, "A50F0086012C1077"),
            (CruiseDwell { group: 1, seconds: 300 }, "A50F0087012C1078"),
            (CruiseStart { group: 1 }, "A50F00880100003D"),
            (ScanStart { group: 1 }, "A50F00890100003E"),
            (ScanLeft { group: 1 }, "A50F00890101003F"),
            (ScanRight { group: 1 }, "A50F008901020040"),
            (ScanSpeed { group: 1, speed: 0x20 }, "A50F008A0120005F"),
            (Auxiliary { switch: 1, on: true }, "A50F008C01000041"),
            (Auxiliary { switch: 1, on: false }, "A50F008D01000042"),
        ]
    }

    #[test]
    fn every_row_of_the_table() {
        for (command, hex) in vectors() {
            assert_eq!(PtzCommand::parse(hex, ChecksumPolicy::Verify), Ok(command), "{hex}");
            assert_eq!(command.to_hex(), hex);
        }
        assert_eq!(PtzCommand::STOP.to_hex(), "A50F0000000000B4");
        // combined: right, up, zoom out; and down alone
        let combined = moved((Some(Pan::Right), Some(Tilt::Up), Some(Zoom::Out)), (1, 2, 3));
        assert_eq!(combined.encode()[3], 0x29);
        assert_eq!(moved((None, Some(Tilt::Down), None), (0, 9, 0)).encode()[3], 0x04);
        assert_eq!(lens(Some(Focus::Near), Some(Iris::Close), 1, 2).encode()[3], 0x4A);
    }

    #[test]
    fn refused() {
        let parse = |t: &str| PtzCommand::parse(t, ChecksumPolicy::Verify);
        assert_eq!(parse("A50F0001400000F"), Err(PtzError::Form(15)));
        assert_eq!(parse("A50F0001400000F50"), Err(PtzError::Form(17)));
        assert_eq!(parse("A50F0001400000FG"), Err(PtzError::Form(16)));
        assert_eq!(parse(""), Err(PtzError::Form(0)));
        assert_eq!(parse("东东东东东A"), Err(PtzError::Form(16)));
        assert_eq!(parse("A50F0001400000F6"), Err(PtzError::Checksum { found: 0xF6, expected: 0xF5 }));
        assert_eq!(parse("A5000001400000E6"), Err(PtzError::Checksum { found: 0, expected: 0x0F }));
        assert_eq!(parse("B50F000140000005"), Err(PtzError::Lead(0xB5)));
        let decode = |code: u8, d2: u8| {
            PtzCommand::decode([LEAD, VERSION_AND_CHECK, 0, code, 0, d2, 0, 0], ChecksumPolicy::Ignore)
        };
        for code in [0x03, 0x0C, 0x30, 0x4C, 0x43] {
            assert_eq!(decode(code, 0), Err(PtzError::Opposite(code)));
        }
        for code in [0x50, 0x80, 0x8B, 0x8E, 0xFF] {
            assert_eq!(decode(code, 0), Err(PtzError::UnknownCode(code)));
        }
        assert_eq!(decode(0x81, 0), Err(PtzError::Reserved(0x81, 0)));
        assert_eq!(decode(0x89, 3), Err(PtzError::Reserved(0x89, 3)));
    }

    #[test]
    fn tolerated() {
        let right = moved((Some(Pan::Right), None, None), (0x40, 0, 0));
        assert_eq!(PtzCommand::parse(" a50f0001400000f5 ", ChecksumPolicy::Verify), Ok(right));
        assert_eq!(PtzCommand::parse("A50F000140000000", ChecksumPolicy::Ignore), Ok(right));
        // address 0x34D: low byte in byte 3, high nibble in byte 7
        assert_eq!(PtzCommand::parse("A50F4D0140000345", ChecksumPolicy::Verify), Ok(right));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn decoded_frames_encode_to_the_same_command(frame in any::<[u8; 8]>()) {
            let mut frame = frame;
            frame[0] = LEAD;
            if let Ok(command) = PtzCommand::decode(frame, ChecksumPolicy::Ignore) {
                prop_assert_eq!(PtzCommand::decode(command.encode(), ChecksumPolicy::Verify), Ok(command));
            }
        }
    }
}
