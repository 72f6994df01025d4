//! What the device does that it should not. Each switch is something that equipment in the field does.
//!
//! Standard: departures from [GB/T28181-2022 9, annexes A, C, M].
//! In: switches. Out: read by `answers`, `call`, `stream`, `subscription` at the moment they act.
//! Invariants: without a switch the device keeps to the standard; random faults come from the device's seed.
//! Not here: doing it.

/// All switches. Can be changed while the device runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Sends no keepalives.
    pub no_keepalive: bool,
    /// After an alarm of method 2, no other of that channel until it is reset. [GB/T28181-2022 9.4.1]
    pub latches_alarms: bool,
    /// Queries and controls hear their 200 and nothing more.
    pub no_answers: bool,
    /// Of catalogues.
    pub catalog: CatalogFaults,
    /// Of subscriptions.
    pub subscriptions: SubscriptionFaults,
    /// Of calls.
    pub call: CallFaults,
    /// Of media.
    pub media: MediaFaults,
}

/// Faults of catalogue answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CatalogFaults {
    /// The message in the middle is not sent.
    pub lost_message: bool,
    /// The first message is sent twice.
    pub duplicate_message: bool,
    /// The last message comes first.
    pub disorder: bool,
    /// SumNum counts one more than there is.
    pub wrong_sum_num: bool,
    /// SumNum is 0 although there are items.
    pub sum_num_zero: bool,
    /// `Num` says one more than the list has.
    pub num_mismatch: bool,
    /// ParentID is the channel's own code.
    pub parent_is_self: bool,
    /// Names have a bare `&`.
    pub bare_ampersand: bool,
    /// No XML declaration.
    pub no_declaration: bool,
    /// The declaration says UTF-8, the bytes are GB 2312.
    pub mislabelled: bool,
}

impl CatalogFaults {
    /// True if the text of a message has to be changed.
    pub(super) fn in_text(&self) -> bool {
        self.num_mismatch || self.bare_ampersand || self.no_declaration || self.mislabelled
    }
}

/// Faults of subscriptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionFaults {
    /// Answers every SUBSCRIBE with this status (405, 489).
    pub refuse: Option<u16>,
    /// Accepts, and never notifies.
    pub silent: bool,
}

/// Faults of calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallFaults {
    /// Answers every INVITE with this status.
    pub refuse: Option<u16>,
    /// INVITE gets no final answer (until it is cancelled).
    pub no_answer: bool,
    /// Answers with an SSRC of its own in place of the offer's.
    pub own_ssrc: bool,
    /// Ends a recording without MediaStatus.
    pub no_media_status: bool,
    /// Hangs up at the end of a recording, in place of waiting for the platform's BYE.
    pub bye_at_end: bool,
}

/// Faults of media. Percentages are of packets, 0 to 100.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MediaFaults {
    /// RTP has another SSRC than the answer.
    pub wrong_ssrc: bool,
    /// So many packets are followed by one of a stranger's SSRC.
    pub alien_percent: u8,
    /// So many packets are not sent.
    pub drop_percent: u8,
    /// So many packets come after the next one.
    pub reorder_percent: u8,
    /// So many packets are sent twice.
    pub duplicate_percent: u8,
    /// The stream map names another codec.
    pub wrong_psm: bool,
    /// No stream map.
    pub no_psm: bool,
    /// No system header.
    pub no_system_header: bool,
    /// Key pictures without parameter sets.
    pub no_parameter_sets: bool,
    /// All timestamps, of RTP and PS, stay what they were.
    pub frozen_timestamps: bool,
    /// Media over TCP framed as in RTSP, `$` and channel before the length.
    pub interleaved: bool,
    /// The call goes on, nothing is sent.
    pub mute: bool,
}
