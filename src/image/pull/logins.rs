//! Whose credentials a place gets.
//!
//! Those of the request come first, for the one host that they are for. Then the files of logins, for the host and path
//! that their keys name: the namespace's for this image, the namespace's, the node's. They are read by each pull, as a
//! credential provider writes them just before it, and are not kept.

use std::path::PathBuf;

use super::super::Settings;
use super::super::error::ImageError;
use super::super::reference::Reference;
use super::super::registries::Endpoint;
use super::super::registry::auth::Credentials;
use super::super::registry::auth_file::{self, AuthFile, Login};
use super::super::stamps::Stamps;
use crate::task;

/// The files of logins that count for one pull.
#[derive(Debug)]
pub(in crate::image) struct Logins(Vec<(PathBuf, AuthFile)>);

impl Logins {
    /// Reads the files of a pull.
    ///
    /// # Errors
    /// [`ImageError::AuthFile`] for one that is there and cannot be used: going on without it would only end in a refusal
    /// that nobody understands.
    pub(super) async fn load(
        settings: &Settings,
        namespace: Option<&str>,
        reference: &Reference,
    ) -> Result<Self, ImageError> {
        let (files, name) = (files(settings, namespace, reference), reference.to_string());
        task::blocking(move || Self::read(files, &name)).await
    }

    /// As [`Logins::load`], blocking.
    pub(in crate::image) fn read_for(
        settings: &Settings,
        namespace: Option<&str>,
        reference: &Reference,
    ) -> Result<Self, ImageError> {
        Self::read(files(settings, namespace, reference), &reference.to_string())
    }

    fn read(files: Vec<PathBuf>, reference: &str) -> Result<Self, ImageError> {
        let mut stamps = Stamps::default();
        let mut found = Vec::new();
        for path in files {
            let bad = |reason| ImageError::AuthFile { reference: reference.to_owned(), path: path.clone(), reason };
            if let Some(bytes) = stamps.read(&path).map_err(|error| bad(format!("cannot be read: {error}")))? {
                let file = auth_file::parse(&bytes).map_err(bad)?;
                found.push((path, file));
            }
        }
        Ok(Self(found))
    }

    /// What a place is told.
    pub(super) fn login(&self, given: Option<&Credentials>, endpoint: &Endpoint) -> Login {
        match given.filter(|credentials| credentials.are_for(&endpoint.host)) {
            Some(credentials) => Login::Entry("the request".to_owned(), credentials.clone()),
            None => self.find(endpoint),
        }
    }

    /// What the first file that has something for a place has; one that only names a helper program counts less.
    pub(in crate::image) fn find(&self, endpoint: &Endpoint) -> Login {
        let mut helper = Login::Nothing;
        for (path, file) in &self.0 {
            match file.login(&endpoint.host, &endpoint.repository) {
                Login::Entry(key, credentials) => {
                    return Login::Entry(format!("{} ({key})", path.display()), credentials);
                }
                Login::Helper(by) if helper == Login::Nothing => {
                    helper = Login::Helper(format!("{} ({by})", path.display()));
                }
                Login::Helper(_) | Login::Nothing => {}
            }
        }
        helper
    }
}

fn files(settings: &Settings, namespace: Option<&str>, reference: &Reference) -> Vec<PathBuf> {
    let own = namespace.map(|namespace| auth_file::names_for(namespace, reference));
    let own = own.into_iter().flatten().map(|name| settings.auth_dir.join(name));
    own.chain([settings.auth_file.clone()]).collect()
}
