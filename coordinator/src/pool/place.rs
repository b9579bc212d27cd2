//! Where the allocations of pools are.
//!
//! A provider's list tells what there is. One that is asked in another place, since a section's `kind` or
//! group was changed, lists nothing of what the pool had: that would count as gone, while it runs, and
//! costs, on. So each pool's place is kept beside its tokens from before its first order on.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use muster_connect::private_file;
use tracing::warn;

use super::folder;
use super::settings::{PoolKind, PoolSettings};
use crate::auth::make_private_folder;

/// File in a pool's folder that says where it is.
const PLACE: &str = "place";
/// Longer than any place that is written.
const PLACE_BYTES_MAX: u64 = 4_096;

/// Finds pools that have allocations elsewhere than their sections say, with a line for people for each;
/// forgets where those were that have none any more. `held` counts what each pool has.
pub(super) fn moved(
    pools: &BTreeMap<Arc<str>, PoolSettings>,
    held: &BTreeMap<Arc<str>, usize>,
    home: &Path,
) -> BTreeMap<Arc<str>, String> {
    let mut moved = BTreeMap::new();
    for (name, settings) in pools {
        let file = folder(home, name).join(PLACE);
        match held.get(name) {
            Some(count) => {
                let why = elsewhere(name, *count, &file, &settings.kind);
                moved.extend(why.map(|why| (Arc::clone(name), why)));
            }
            None => match std::fs::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    warn!(pool = &**name, error = %error, "cannot forget where a pool's allocations were");
                }
                _ => {}
            },
        }
    }
    moved
}

/// Says that allocations are elsewhere. What was never noted, by a coordinator that did not do so yet, is
/// where the section says.
fn elsewhere(name: &str, count: usize, file: &Path, kind: &PoolKind) -> Option<String> {
    let is = kind.place();
    let was = match private_file::read_bounded(file, PLACE_BYTES_MAX) {
        Ok(was) => String::from_utf8_lossy(&was).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => format!("{} cannot be read: {error}", file.display()),
    };
    (was != is).then(|| {
        let count = match count {
            1 => "an allocation".to_owned(),
            many => format!("{many} allocations"),
        };
        format!(
            "it has {count} of what its section was before ({was}; now {is}), which nobody lists or ends: \
             put back what it was, or `pool forget {name} --even-if-they-run` when they have ended; start \
             the coordinator again then"
        )
    })
}

/// Notes where a pool's allocations are; before it orders any.
///
/// # Errors
/// The file cannot be written: nothing may be ordered.
pub(super) fn note(home: &Path, pool: &str, place: &str) -> std::io::Result<()> {
    let file = folder(home, pool).join(PLACE);
    let known = private_file::read_bounded(&file, PLACE_BYTES_MAX);
    if known.is_ok_and(|known| known == place.as_bytes()) {
        return Ok(());
    }
    make_private_folder(&folder(home, pool))?;
    private_file::replace(&file, place.as_bytes())
}
