//! `[[area]]`: a key area of the compound. Taken live.
//!
//! Not here: which camera belongs to it (`camera.rs`), which uplink sees it (`uplink.rs`, `share`).

use serde::{Deserialize, Serialize};

/// `[[area]]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Area {
    /// Short name that cameras and `share` use: lower-case letters, digits, `_`, `-`. Required.
    pub id: String,
    /// What kind of place it is.
    pub kind: AreaKind,
    /// The name people read. Required.
    pub name: String,
}

/// Kinds of key areas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AreaKind {
    /// 周界
    Perimeter,
    /// 出入口
    Entrance,
    /// 接待场所
    Reception,
    /// 信访接待场所
    PetitionReception,
    /// 设备机房
    PlantRoom,
    /// 监控中心
    MonitoringCentre,
    /// 办公楼
    OfficeBuilding,
    /// Any other place.
    #[default]
    Other,
}
