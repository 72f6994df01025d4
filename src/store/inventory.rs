//! What registered devices taught: where they are bound, and what their catalogues hold under which code of ours.
//!
//! Invariants: an item of a device keeps its code for ever, whatever its device says later, because upper platforms
//! file pictures and rights under it; two items never have one code. Bindings are written in batches and may be lost
//! (the device registers again); codes are committed before they are shown.
//! Not here: what an item's state is (evidence, never a row).

use std::collections::HashSet;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::{StoreError, StoreHandle, mint};

/// Items of one device that are kept; a larger catalogue is refused whole.
pub const ITEMS_MAX: usize = 20_000;
/// Bytes of one item's text.
const ITEM_MAX: usize = 16 * 1024;
/// Bytes in an identifier of a device or an item.
const ID_MAX: usize = 32;

/// Where a device is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBinding {
    /// Its code.
    pub device: String,
    /// Its Contact.
    pub contact: String,
    /// The address it registered from.
    pub source: String,
    /// Our address it came to.
    pub local: String,
    /// `UDP`, `TCP`, `TLS`.
    pub transport: String,
    /// Unix milliseconds.
    pub expires_at: i64,
    /// Unix milliseconds.
    pub registered_at: i64,
    /// `X-GB-Ver`, if it sent one.
    pub version: Option<String>,
    /// `User-Agent`, if it sent one.
    pub user_agent: Option<String>,
}

/// An item of a device's catalogue to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    /// The device's own identifier of it.
    pub own_id: String,
    /// The code it would like: its own, where that is one of 20 digits.
    pub wish: Option<String>,
    /// Type digits of a code that is minted for it.
    pub type_code: u16,
    /// The item as XML.
    pub item: String,
}

/// A kept item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredItem {
    /// Its device.
    pub device: String,
    /// The device's identifier of it.
    pub own_id: String,
    /// Our code of it.
    pub code: String,
    /// The item as XML.
    pub item: String,
}

impl StoreHandle {
    /// Keeps bindings, replacing older ones of the same devices. Returns as soon as it is queued.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], [`StoreError::Closed`].
    pub fn keep_bindings(&self, bindings: Vec<StoredBinding>) -> Result<(), StoreError> {
        self.enqueue("bindings", move |conn| {
            let mut insert = conn.prepare_cached(
                "INSERT OR REPLACE INTO binding
                 (device, contact, source, local, transport, expires_at, registered_at, version, user_agent)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            for b in &bindings {
                insert.execute((
                    &b.device,
                    &b.contact,
                    &b.source,
                    &b.local,
                    &b.transport,
                    b.expires_at,
                    b.registered_at,
                    &b.version,
                    &b.user_agent,
                ))?;
            }
            Ok(())
        })
    }

    /// Forgets bindings. Returns as soon as it is queued.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], [`StoreError::Closed`].
    pub fn drop_bindings(&self, devices: Vec<String>) -> Result<(), StoreError> {
        self.enqueue("bindings that ended", move |conn| {
            let mut delete = conn.prepare_cached("DELETE FROM binding WHERE device = ?1")?;
            for device in &devices {
                delete.execute([device])?;
            }
            Ok(())
        })
    }

    /// All bindings that have not expired at `now` (Unix milliseconds); the others are forgotten.
    ///
    /// # Errors
    /// As for any request.
    pub async fn bindings(&self, now: i64) -> Result<Vec<StoredBinding>, StoreError> {
        self.transact(move |conn| {
            conn.execute("DELETE FROM binding WHERE expires_at <= ?1", [now])?;
            let mut rows = conn.prepare_cached(
                "SELECT device, contact, source, local, transport, expires_at, registered_at, version, user_agent
                 FROM binding ORDER BY device",
            )?;
            let found = rows.query_map([], |row| {
                Ok(StoredBinding {
                    device: row.get(0)?,
                    contact: row.get(1)?,
                    source: row.get(2)?,
                    local: row.get(3)?,
                    transport: row.get(4)?,
                    expires_at: row.get(5)?,
                    registered_at: row.get(6)?,
                    version: row.get(7)?,
                    user_agent: row.get(8)?,
                })
            })?;
            Ok(found.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Keeps a device's catalogue and tells the code of each item, in the order given. An item seen before keeps its
    /// code; a new one gets the code it wishes where nobody has it (`reserved` are codes of the configuration), else a
    /// minted one under `prefix` and `network`. With `whole`, items that are not among these are marked as gone.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for more than [`ITEMS_MAX`] items or a malformed one; as for any request.
    pub async fn keep_items(
        &self,
        device: &str,
        items: Vec<NewItem>,
        reserved: Arc<HashSet<String>>,
        (prefix, network): (String, u8),
        whole: bool,
        at: i64,
    ) -> Result<Vec<String>, StoreError> {
        if items.len() > ITEMS_MAX {
            return Err(StoreError::refused("items of one device", device, "at most 20000"));
        }
        if let Some(bad) = items.iter().find(|i| i.own_id.is_empty() || i.own_id.len() > ID_MAX) {
            return Err(StoreError::refused("identifier of an item", &bad.own_id, "1 to 32 bytes"));
        }
        if let Some(bad) = items.iter().find(|i| i.item.len() > ITEM_MAX) {
            return Err(StoreError::refused("text of an item", &bad.own_id, "at most 16 KiB"));
        }
        let device = device.to_owned();
        self.transact(move |conn| {
            let known: i64 = conn
                .prepare_cached("SELECT count(*) FROM device_item WHERE device = ?1")?
                .query_row([&device], |row| row.get(0))?;
            if known as usize + items.len() > 3 * ITEMS_MAX {
                return Err(StoreError::refused("items a device has ever had", &device, "at most 40000 besides these"));
            }
            let codes = items
                .iter()
                .map(|item| keep_item(conn, &device, item, &reserved, &prefix, network, at))
                .collect::<Result<Vec<_>, _>>()?;
            if whole {
                conn.execute(
                    "UPDATE device_item SET gone_at = ?2 WHERE device = ?1 AND gone_at IS NULL AND seen_at < ?2",
                    (&device, at),
                )?;
            }
            Ok(codes)
        })
        .await
    }

    /// Every item that is not gone, by device.
    ///
    /// # Errors
    /// As for any request.
    pub async fn items(&self) -> Result<Vec<StoredItem>, StoreError> {
        self.transact(|conn| {
            let mut rows = conn.prepare_cached(
                "SELECT device, own_id, code, item FROM device_item WHERE gone_at IS NULL ORDER BY device, own_id",
            )?;
            let found = rows.query_map([], |row| {
                Ok(StoredItem { device: row.get(0)?, own_id: row.get(1)?, code: row.get(2)?, item: row.get(3)? })
            })?;
            Ok(found.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn keep_item(
    conn: &Connection,
    device: &str,
    item: &NewItem,
    reserved: &HashSet<String>,
    prefix: &str,
    network: u8,
    at: i64,
) -> Result<String, StoreError> {
    let known: Option<String> = conn
        .prepare_cached("SELECT code FROM device_item WHERE device = ?1 AND own_id = ?2")?
        .query_row([device, &item.own_id], |row| row.get(0))
        .optional()?;
    if let Some(code) = known {
        conn.prepare_cached(
            "UPDATE device_item SET item = ?3, seen_at = ?4, gone_at = NULL WHERE device = ?1 AND own_id = ?2",
        )?
        .execute((device, &item.own_id, &item.item, at))?;
        return Ok(code);
    }
    let mut taken = conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM device_item WHERE code = ?1) OR EXISTS (SELECT 1 FROM minted_id WHERE code = ?1)",
    )?;
    let mut free = |code: &String| -> Result<bool, StoreError> {
        // A device may be its own channel.
        Ok((!reserved.contains(code) || code == device) && !taken.query_row([code], |row| row.get::<_, bool>(0))?)
    };
    let code = match &item.wish {
        Some(wish) if free(wish)? => wish.clone(),
        _ => {
            let key = format!("{device}/{}", item.own_id);
            let family = format!("{prefix}{:03}", item.type_code);
            // A device may have taken the next serial for itself before: minting goes on until one is free.
            let mut code = mint::mint(conn, "channel", &key, &family, network, at)?;
            let mut round = 0;
            while !free_of_items(conn, &code)? || reserved.contains(&code) {
                round += 1;
                code = mint::mint(conn, "channel", &format!("{key}#{round}"), &family, network, at)?;
            }
            code
        }
    };
    conn.prepare_cached("INSERT INTO device_item (device, own_id, code, item, seen_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((device, &item.own_id, &code, &item.item, at))?;
    Ok(code)
}

fn free_of_items(conn: &Connection, code: &str) -> Result<bool, StoreError> {
    Ok(conn
        .prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM device_item WHERE code = ?1)")?
        .query_row([code], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, StoreConfig};

    const NVR: &str = "34020000001180000001";
    const OTHER: &str = "34020000001180000002";
    const CAMERA: &str = "34020000001320000001";

    fn open(location: Location) -> StoreHandle {
        StoreHandle::open(&StoreConfig { location, site_id: "41130000582000000001".into(), created_at: 1 }).unwrap()
    }

    fn item(own_id: &str) -> NewItem {
        let wish = (own_id.len() == 20).then(|| own_id.to_owned());
        NewItem { own_id: own_id.into(), wish, type_code: 132, item: format!("<Item>{own_id}</Item>") }
    }

    async fn keep(store: &StoreHandle, device: &str, ids: &[&str], whole: bool, at: i64) -> Vec<String> {
        let items = ids.iter().map(|id| item(id)).collect();
        let reserved = HashSet::from(["41130000581320000001".to_owned()]);
        store.keep_items(device, items, Arc::new(reserved), ("4113000058".into(), 1), whole, at).await.unwrap()
    }

    #[tokio::test]
    async fn codes_are_kept_when_free_minted_when_not_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = || Location::File(folder.path().join("menshen.db"));
        let store = open(file());
        let first = keep(&store, NVR, &[CAMERA, "1", "41130000581320000001"], true, 10).await;
        assert_eq!(first[0], CAMERA);
        // No code of its own; then a code the configuration has: both are minted.
        assert_eq!(first[1..], ["41130000581321000001", "41130000581321000002"]);
        // Two recorders with one and the same channel code, as they leave the factory.
        let second = keep(&store, OTHER, &[CAMERA, "41130000581321000001"], true, 11).await;
        assert_eq!(second, ["41130000581321000003", "41130000581321000004"], "a minted code is nobody's wish");
        store.close(std::time::Duration::from_secs(5)).await.unwrap();
        let store = open(file());
        // The other one first: nothing changes.
        assert_eq!(keep(&store, OTHER, &[CAMERA], false, 20).await, ["41130000581321000003"]);
        assert_eq!(keep(&store, NVR, &["1", CAMERA], true, 21).await, ["41130000581321000001", CAMERA]);
        let left: Vec<_> = store.items().await.unwrap().into_iter().map(|i| (i.device, i.own_id)).collect();
        let of = |device: &str, id: &str| (device.to_owned(), id.to_owned());
        assert_eq!(left, [of(NVR, "1"), of(NVR, CAMERA), of(OTHER, CAMERA), of(OTHER, "41130000581321000001")]);
        // What was gone comes back under its code.
        assert_eq!(keep(&store, NVR, &["41130000581320000001"], false, 22).await, ["41130000581321000002"]);
        let too_long = NewItem { own_id: "x".repeat(33), ..item("1") };
        let refused = store.keep_items(NVR, vec![too_long], Arc::default(), ("4113000058".into(), 1), false, 1).await;
        assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn bindings_come_back_until_they_expire() {
        let store = open(Location::Memory);
        let binding = |device: &str, expires_at| StoredBinding {
            device: device.into(),
            contact: format!("sip:{device}@192.0.2.1:5060"),
            source: "192.0.2.1:5060".into(),
            local: "192.0.2.9:5060".into(),
            transport: "UDP".into(),
            expires_at,
            registered_at: 1,
            version: Some("3.0".into()),
            user_agent: None,
        };
        store.keep_bindings(vec![binding(NVR, 100), binding(OTHER, 200), binding(CAMERA, 300)]).unwrap();
        store.keep_bindings(vec![binding(NVR, 250)]).unwrap();
        store.drop_bindings(vec![CAMERA.into()]).unwrap();
        assert_eq!(store.bindings(150).await.unwrap(), [binding(NVR, 250), binding(OTHER, 200)]);
        assert_eq!(store.bindings(200).await.unwrap(), [binding(NVR, 250)]);
    }
}
