//! What the processes of a lease are given from their host, and what nobody may see of it.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::v1::Failure;

use super::hiding;
use super::runner::Runner;
use crate::document::TaskDocument;
use crate::failure::{chain, class, failure};
use crate::mask::Mask;
use crate::secrets::{self, Shortest, ValueFrom};

/// Variables of a lease's processes that are not in its document.
pub(super) struct Given {
    pub(super) values: BTreeMap<String, String>,
    /// Those of them whose values nobody may see.
    pub(super) masked: BTreeSet<String>,
    /// Values that are hidden likewise, and given to nobody.
    pub(super) unseen: Vec<String>,
}

impl Runner {
    /// Looks up the variables whose values come from this host: those for everything that runs, and
    /// `secrets` besides.
    pub(super) fn given(
        &self,
        task: &TaskDocument,
        secrets: &BTreeMap<String, ValueFrom>,
    ) -> Result<Given, Failure> {
        let own = |name: &str| std::env::var(name).ok();
        let listed = &self.site.secrets;
        let found = secrets::look_up(listed, own, &task.env_from, Shortest::Any).and_then(|env| {
            let mut values = secrets::look_up(listed, own, secrets, Shortest::Masked)?;
            values.extend(env);
            Ok(values)
        });
        let values =
            found.map_err(|error| failure(class::SECRET_UNAVAILABLE, &chain(&error), b""))?;
        let masked = values.keys().cloned().collect();
        Ok(Given {
            values,
            masked,
            unseen: Vec::new(),
        })
    }

    /// Hides what was given in everything that this lease tells, and all else that its task's agent is
    /// given: it may have written it into what is verified. What this worker does not have it cannot hide.
    pub(super) fn hide(&self, task: &TaskDocument, given: &mut Given) {
        let own = |name: &str| std::env::var(name).ok();
        let known = hiding::values(&self.site.secrets, &own, task);
        given.unseen.extend(known);
        let values = given
            .masked
            .iter()
            .filter_map(|name| given.values.get(name))
            .chain(&given.unseen);
        self.hidden.set(Mask::of(values.map(String::as_str)));
    }
}
