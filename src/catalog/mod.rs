//! What exists: channels and areas, their state, and what each upper platform sees of them.
//!
//! `southbound` and `northbound` meet here and never import each other: southbound puts channels in with the handle
//! that pulls them, northbound reads snapshots. `view` is pure.

mod command;
mod directory;
mod view;

pub use command::{
    ChannelCommand, CommandAnswer, CommandError, CommandHandle, RecordControl, RecordEvent, RecordFacts, RecordRequest,
    RecordSession,
};
pub use directory::{Area, Channel, ChannelState, Directory, DirectoryHandle, DirectorySnapshot, Node};
pub use view::{NotShared, Share, View, ViewSpec, changes, shared_channel, view};
