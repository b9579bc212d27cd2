//! The hosted repositories, opened once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_git::{Git, ObjectFormat, Repository};
use tokio::sync::Mutex;
use tonic::Status;

use super::refs::valid_component;
use super::repository::{self, HostedRepository};
use super::writers::Writers;
use crate::api::status;

/// All hosted repositories of a home; cheap to clone.
#[derive(Clone)]
pub struct Repositories {
    git: Git,
    home: Arc<Path>,
    open: Arc<Mutex<BTreeMap<String, Repository>>>,
    writers: Writers,
}

impl Repositories {
    /// Makes the set of repositories of a home.
    #[must_use]
    pub fn new(git: Git, home: PathBuf) -> Self {
        Self {
            git,
            writers: Writers::new(home.clone()),
            home: home.into(),
            open: Arc::default(),
        }
    }

    /// The home that they are in.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Who writes to them now.
    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Makes a repository, unless it is there.
    ///
    /// # Errors
    /// A name that cannot be used, or a disk that refuses.
    pub async fn ready(&self, name: &str, format: ObjectFormat) -> Result<Repository, Status> {
        let mut open = self.open.lock().await;
        if let Some(repository) = open.get(name) {
            return Ok(repository.clone());
        }
        let hosted = HostedRepository::open_or_init(&self.git, &self.home, name, format)
            .await
            .map_err(|error| status::internal(&error))?;
        let repository = hosted.repository().clone();
        open.insert(name.to_owned(), repository.clone());
        Ok(repository)
    }

    /// Opens a repository that is there.
    ///
    /// # Errors
    /// `NOT_FOUND` when it is not.
    pub async fn open(&self, name: &str) -> Result<Repository, Status> {
        let unknown = || Status::not_found(format!("no hosted repository {name:?}"));
        valid_component(name).map_err(|_| unknown())?;
        let mut open = self.open.lock().await;
        if let Some(repository) = open.get(name) {
            return Ok(repository.clone());
        }
        let folder = repository::folder(&self.home).join(format!("{name}.git"));
        let repository = Repository::open_bare(&self.git, &folder)
            .await
            .map_err(|_| unknown())?;
        open.insert(name.to_owned(), repository.clone());
        Ok(repository)
    }
}
