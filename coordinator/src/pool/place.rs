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

use super::settings::{PoolKind, PoolSettings};
use super::{Surroundings, folder};
use crate::auth::make_private_folder;
use crate::engine;

/// File in a pool's folder that says where it is.
const PLACE: &str = "place";
/// Longer than any place that is written.
const PLACE_BYTES_MAX: u64 = 4_096;

/// Finds pools that have allocations elsewhere than their sections say, with a line for people for each;
/// forgets where those were that have none any more.
///
/// # Errors
/// The engine does not answer.
pub(super) async fn moved(
    pools: &BTreeMap<Arc<str>, PoolSettings>,
    around: &Surroundings,
) -> Result<BTreeMap<Arc<str>, String>, engine::Error> {
    let held = around.engine.query(|state, _| {
        let mut held: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        for allocation in state.allocations() {
            *held.entry(Arc::clone(&allocation.pool)).or_default() += 1;
        }
        held
    });
    let held = held.await?;
    let mut moved = BTreeMap::new();
    for (name, settings) in pools {
        let file = folder(&around.home, name).join(PLACE);
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
    Ok(moved)
}

/// Says that allocations are elsewhere. What was never noted, by a coordinator that did not do so yet, is
/// where the section says.
fn elsewhere(name: &str, count: usize, file: &Path, kind: &PoolKind) -> Option<String> {
    let (was, is) = match private_file::read_bounded(file, PLACE_BYTES_MAX) {
        Ok(was) => (String::from_utf8_lossy(&was).into_owned(), kind.place()),
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => (
            format!("{} cannot be read: {error}", file.display()),
            kind.place(),
        ),
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
