//! Whose credentials a place gets.
//!
//! Those of the request come first, for the one host that they are for. Then the files of logins, for the host and path
//! that their keys name: the namespace's for this image, the namespace's, the node's. They are read by each pull, as a
//! credential provider writes them just before it, and are not kept.

use std::path::{Path, PathBuf};

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
        let files = files(settings, namespace, reference);
        task::blocking(move || Self::read(files)).await
    }

    /// As [`Logins::load`], blocking.
    pub(in crate::image) fn read_for(
        settings: &Settings,
        namespace: Option<&str>,
        reference: &Reference,
    ) -> Result<Self, ImageError> {
        Self::read(files(settings, namespace, reference))
    }

    fn read(files: Vec<PathBuf>) -> Result<Self, ImageError> {
        let mut stamps = Stamps::default();
        let mut found = Vec::new();
        for path in files {
            let bad = |reason| ImageError::AuthFile { path: path.clone(), reason };
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
            None => self.find(endpoint).map_or(Login::Nothing, |(_, login)| login),
        }
    }

    /// The first file that has something for a place.
    pub(in crate::image) fn find(&self, endpoint: &Endpoint) -> Option<(&Path, Login)> {
        let found =
            self.0.iter().map(|(path, file)| (path.as_path(), file.login(&endpoint.host, &endpoint.repository)));
        let mut helper = None;
        for (path, login) in found {
            match login {
                Login::Entry(..) => return Some((path, login)),
                Login::Helper => helper = helper.or(Some((path, login))),
                Login::Nothing => {}
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
