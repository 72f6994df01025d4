//! MANSCDP: the XML bodies of MESSAGE, SUBSCRIBE and NOTIFY.
//! Standard: [GB/T28181-2022 annex A], the same of 2016 and 2011.
//! In: body bytes (`request::parse`). Out: typed views (`request`, `catalog`, `notify`, `response`); bytes from writers.
//! Invariants: reading ignores element order, letter case and unknown elements; writing keeps the schema's order and
//! spelling, in the peer's version and character set.
//! Decision: a small element tree of our own stands between bytes and types. Vendors reorder, repeat, misspell and
//! break elements; a derived reader fails the whole body on the first of them, the tree loses one field.
//! Not here: playback control text (MANSRTSP), who may ask for what, which answers are due when.

pub mod assembly;
pub mod catalog;
pub mod notify;
mod pages;
pub mod policy;
pub mod ptz;
pub mod query;
pub mod record;
pub mod relay;
pub mod request;
pub mod response;
pub mod tree;
pub mod xml;

pub use assembly::{Assembly, AssemblyLimits, Chunk, Ending, Outcome, Progress};
pub use catalog::{CatalogChange, CatalogEvent, CatalogItem, ItemInfo, Status};
pub use policy::{CatalogPolicy, Policies};
pub use ptz::{ChecksumPolicy, PtzCommand, PtzError};
pub use record::{RecordItem, RecordKind, RecordResponse};
pub use relay::{RelayError, Respell};
pub use request::{
    ControlError, ControlKind, DeviceControl, Incoming, Query, QueryKind, RequestError, Root, device_control, parse,
};
pub use tree::{CatalogTree, ChannelPlan, Evidence};
pub use xml::{Element, XmlError, XmlWriter};

use super::gb28181::{DeviceId, Profile};

/// A body of the common form: root, CmdType, SN, DeviceID, then what `fill` writes. [GB/T28181-2022 A.1]
fn body(
    profile: Profile,
    root: &str,
    cmd_type: &str,
    sn: u32,
    device_id: &DeviceId,
    fill: impl FnOnce(&mut XmlWriter),
) -> Vec<u8> {
    let mut w = XmlWriter::new();
    w.open(root).text("CmdType", cmd_type).text("SN", sn).text("DeviceID", device_id);
    fill(&mut w);
    w.close(root);
    w.into_body(profile.charset())
}
