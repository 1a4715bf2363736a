//! The files that say where images come from and which may be pulled, as they are in force.
//!
//! Every pull looks whether one of them changed ([`Stamps`]) and reads them anew if so. A file that is bad leaves what was
//! in force before; it is named in the log once, and in the verbose Status until it is good.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::error::ImageError;
use super::policy::{self, Policy};
use super::reference::Reference;
use super::registries::{Notes, RegistriesError, Sources};
use super::registry::Clients;
use super::stamps::Stamps;
use crate::config::Image as ImageSettings;

/// Most namespaces with a policy of their own.
const MAX_POLICIES: usize = 4096;
const ENDING: &str = "json";

/// Everything that is read from files of others.
#[derive(Debug)]
pub(super) struct Rules {
    clients: Arc<Clients>,
    policies: ArcSwap<Policies>,
    /// Sentences about files that cannot be used.
    bad: ArcSwap<Vec<String>>,
    /// Sentences about keys that are not known, in files that are used.
    unknown: ArcSwap<Vec<String>>,
    /// Held while files are read.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sources: Sources,
    policy: PathBuf,
    policy_dir: PathBuf,
    stamps: Stamps,
}

/// A policy file, or why it cannot be used.
type Loaded = (Arc<Path>, Result<Policy, String>);

/// The policies of the node and of namespaces.
#[derive(Debug, Default)]
pub(super) struct Policies {
    node: Option<Loaded>,
    namespaces: BTreeMap<String, Loaded>,
}

impl Policies {
    /// The policy for pods of a namespace: its own, else the node's. `None`: anything may be pulled.
    ///
    /// # Errors
    /// [`ImageError::Policy`] when the file cannot be used: then nothing may.
    pub(super) fn of(
        &self,
        namespace: Option<&str>,
        reference: &Reference,
    ) -> Result<Option<(&Arc<Path>, &Policy)>, ImageError> {
        let own = namespace.and_then(|namespace| self.namespaces.get(namespace));
        let Some((path, policy)) = own.or(self.node.as_ref()) else { return Ok(None) };
        match policy {
            Ok(policy) => Ok(Some((path, policy))),
            Err(reason) => {
                let (reference, path) = (reference.to_string(), path.to_path_buf());
                Err(ImageError::Policy { reference, path, reason: reason.clone() })
            }
        }
    }
}

impl Rules {
    /// Reads all files for the first time.
    ///
    /// # Errors
    /// [`ImageError::Registries`] for a `registries.conf` that cannot be used: the rule that blocks may be in it.
    pub(super) fn open(config: &ImageSettings) -> Result<Self, ImageError> {
        let mut state = State::of(config);
        let mut notes = Notes::default();
        let mut stamps = Stamps::default();
        let registries = state.sources.load(None, &mut stamps, &mut notes)?;
        let policies = state.policies(&Policies::default(), &mut stamps, &mut notes.bad);
        state.stamps = stamps;
        let clients = Arc::new(Clients::new(config.certs_d.clone(), registries));
        notes.bad.extend(clients.environment().bad());
        let rules = Self {
            clients,
            policies: ArcSwap::from_pointee(policies),
            bad: ArcSwap::default(),
            unknown: ArcSwap::default(),
            state: Mutex::new(state),
        };
        rules.say(notes);
        Ok(rules)
    }

    pub(super) fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }

    pub(super) fn policies(&self) -> Arc<Policies> {
        self.policies.load_full()
    }

    /// Sentences about files that cannot be used now.
    pub(super) fn bad(&self) -> Arc<Vec<String>> {
        self.bad.load_full()
    }

    /// Sentences about keys that are not known and have no effect.
    pub(super) fn unknown(&self) -> Arc<Vec<String>> {
        self.unknown.load_full()
    }

    /// Reads the files anew if one of them changed. Blocks.
    pub(super) fn refresh(&self) {
        let mut state = self.locked();
        if state.stamps.changed() {
            // What is wrong is said by `read`.
            let _ = self.read(&mut state);
        }
    }

    /// Reads all files anew, from where the configuration says now. Blocks.
    ///
    /// # Errors
    /// [`ImageError::Registries`]: what was in force stays.
    pub(super) fn reload(&self, config: &ImageSettings) -> Result<(), ImageError> {
        let mut state = self.locked();
        *state = State::of(config);
        self.read(&mut state).map_err(ImageError::from)
    }

    fn read(&self, state: &mut State) -> Result<(), RegistriesError> {
        let (mut stamps, mut notes) = (Stamps::default(), Notes::default());
        let before = self.clients.registries();
        let loaded = state.sources.load(Some(&before), &mut stamps, &mut notes);
        notes.bad.extend(self.clients.environment().bad());
        self.policies.store(Arc::new(state.policies(&self.policies.load(), &mut stamps, &mut notes.bad)));
        let result = match loaded {
            Ok(registries) => {
                self.clients.reload(state.sources.certs_d.clone(), registries);
                Ok(())
            }
            Err(error) => {
                notes.bad.push(format!("{error}; the rules before stay in force"));
                Err(error)
            }
        };
        state.stamps = stamps;
        self.say(notes);
        tracing::info!("registries and policies were read again");
        result
    }

    fn say(&self, notes: Notes) {
        let Notes { bad, unknown } = notes;
        let (before, known) = (self.bad.load(), self.unknown.load());
        for note in bad.iter().filter(|note| !before.contains(note)) {
            tracing::error!("{note}");
        }
        for note in unknown.iter().filter(|note| !known.contains(note)) {
            tracing::warn!("{note}");
        }
        self.bad.store(Arc::new(bad));
        self.unknown.store(Arc::new(unknown));
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of(config: &ImageSettings) -> Self {
        Self {
            sources: Sources {
                conf: config.registries_conf.clone(),
                conf_dir: config.registries_conf_dir.clone(),
                certs_d: config.certs_d.clone(),
            },
            policy: config.signature_policy.clone(),
            policy_dir: config.signature_policy_dir.clone(),
            stamps: Stamps::default(),
        }
    }

    fn policies(&self, before: &Policies, stamps: &mut Stamps, notes: &mut Vec<String>) -> Policies {
        // The file of the default may be missing, as it belongs to other tools; one that was asked for may not.
        let required = self.policy != ImageSettings::default().signature_policy;
        let mut all = Policies {
            node: policy(&self.policy, required, before.node.as_ref(), stamps, notes),
            ..Policies::default()
        };
        let files = stamps.list(&self.policy_dir, MAX_POLICIES).unwrap_or_else(|error| {
            // A namespace whose policy cannot be seen would fall back to a wider one: then none may pull.
            let reason = format!("{}: cannot be read: {error}", self.policy_dir.display());
            notes.push(format!("{reason}; no image is pulled"));
            all.node = Some((self.policy_dir.as_path().into(), Err(reason)));
            Vec::new()
        });
        for path in files.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == ENDING)) {
            let Some(namespace) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            let before = before.namespaces.get(namespace);
            if let Some(loaded) = policy(&path, true, before, stamps, notes) {
                all.namespaces.insert(namespace.to_owned(), loaded);
            }
        }
        all
    }
}

/// Reads one policy. A bad one leaves what the same file said before; if it said nothing yet, it refuses all.
fn policy(
    path: &Path,
    required: bool,
    before: Option<&Loaded>,
    stamps: &mut Stamps,
    notes: &mut Vec<String>,
) -> Option<Loaded> {
    let parsed = match stamps.read(path) {
        Ok(None) if !required => return None,
        Ok(None) => Err("it is not there".to_owned()),
        Ok(Some(bytes)) => policy::parse(&bytes, &mut |key| {
            stamps.read(key).and_then(|found| found.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        }),
        Err(error) => Err(format!("cannot be read: {error}")),
    };
    let parsed = parsed.or_else(|reason| match before {
        Some((file, Ok(was))) if **file == *path => {
            notes.push(format!("{}: {reason}; what it said before stays in force", path.display()));
            Ok(was.clone())
        }
        _ => {
            notes.push(format!("{}: {reason}; images that it decides over are not pulled", path.display()));
            Err(reason)
        }
    });
    Some((path.into(), parsed))
}

/// A pod's namespace as a part of a file's name.
///
/// # Errors
/// [`ImageError::Namespace`]: it comes from a client, and must not lead out of a folder.
pub(super) fn check_namespace(namespace: &str) -> Result<(), ImageError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if namespace.len() <= 253 && namespace.bytes().all(word) && !namespace.starts_with('.') {
        return Ok(());
    }
    Err(ImageError::Namespace(namespace.chars().take(128).collect()))
}

/// What the policies say of a name, for people.
pub(super) fn explain(policies: &Policies, namespace: Option<&str>, reference: &Reference) -> (String, String) {
    match policies.of(namespace, reference) {
        Ok(None) => ("no policy".to_owned(), "anything may be pulled".to_owned()),
        Err(error) => ("no policy that can be used".to_owned(), error.to_string()),
        Ok(Some((path, policy))) => {
            let (scope, requirements) = policy.of(reference);
            let list: Vec<String> = requirements.iter().map(ToString::to_string).collect();
            let scope = if scope.is_empty() { "every registry" } else { scope };
            (format!("{}: {scope}", path.display()), list.join(", and "))
        }
    }
}
