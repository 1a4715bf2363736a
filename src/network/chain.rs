//! The plugins of a network called one after the other: ADD in order with each result handed on, DEL in reverse; and what
//! they can be asked beside: CHECK, STATUS, GC, VERSION.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::conf::{NetworkList, PluginConf, Version};
use super::plugin::{PluginError, Plugins, Target, Verb};
use super::result::{self, ResultError};
use crate::sys::namespaces::HeldNamespace;

/// Why a chain was not set up.
#[derive(Debug)]
pub struct AddFailure {
    /// So many plugins ran, from the first; the others cannot have done anything.
    pub ran: usize,
    /// The pod's network namespace is gone, and could not be put back: DEL has to do without.
    pub no_namespace: bool,
    pub error: AddError,
}

/// What a plugin did wrong in ADD.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error(transparent)]
    Plugin(PluginError),
    #[error("CNI plugin {plugin:?} printed a result that cannot be used: {reason}")]
    Result { plugin: String, reason: ResultError },
    #[error("CNI plugin {plugin:?} took away the pod's network namespace, {}", netns.display())]
    NamespaceTaken { plugin: String, netns: PathBuf },
}

/// Sets a pod's interface up, and returns the last plugin's result.
///
/// # Errors
/// The first plugin's that fails. The caller must undo with [`del`].
pub async fn add(
    plugins: &Plugins,
    list: &NetworkList,
    target: &Target<'_>,
    runtime: &Map<String, Value>,
) -> Result<Map<String, Value>, AddFailure> {
    let held = target.netns.and_then(|netns| HeldNamespace::open(netns).ok());
    let mut previous = None;
    for (index, plugin) in list.plugins.iter().enumerate() {
        let config = config(Verb::Add, list, plugin, previous.as_ref(), runtime);
        let said = plugins.call(Verb::Add, &plugin.kind, &config, Some(target)).await;
        let taken = held.as_ref().filter(|held| !held.is_pinned());
        let no_namespace = taken.is_some_and(|held| !put_back(held, &plugin.kind));
        let fail = |ran, error| AddFailure { ran, no_namespace, error };
        let result = said.and_then(|said| said.into_result(Verb::Add, &plugin.kind)).map_err(|error| {
            let ran = if error.never_ran() { index } else { index + 1 };
            fail(ran, AddError::Plugin(error))
        });
        let mut result = result?;
        if let Some(netns) = taken.and(target.netns) {
            let error = AddError::NamespaceTaken { plugin: plugin.kind.clone(), netns: netns.to_owned() };
            return Err(fail(index + 1, error));
        }
        result::normalise(&mut result, list.version)
            .map_err(|reason| fail(index + 1, AddError::Result { plugin: plugin.kind.clone(), reason }))?;
        previous = Some(result);
    }
    // A list has a plugin at least, so there is a result.
    Ok(previous.unwrap_or_default())
}

/// Pins the pod's network namespace again after a plugin took it away; false when that cannot be. Those that were called
/// before it find what they have to undo by what is inside: the bridge its rules by the pod's addresses.
fn put_back(held: &HeldNamespace, plugin: &str) -> bool {
    let done = held.pin_again();
    if let Err(error) = &done {
        let error = crate::telemetry::chain(error);
        tracing::warn!(plugin, error = %error, "a network namespace that a plugin took away cannot be put back");
    }
    done.is_ok()
}

/// Takes a pod's interface down: the plugins in reverse order.
///
/// A plugin that ran and failed ends it, since those before it give resources back (the address) that its leftovers (rules
/// that lead to the address) still use; the caller tries again. One whose program cannot be run would block that for ever,
/// so it is passed by. `ran` is the number of plugins that ADD ran: the others are called too, but what they say is of no
/// account, since they have nothing to undo.
///
/// # Errors
/// Every plugin that failed. What it could not undo is still there.
pub async fn del(
    plugins: &Plugins,
    list: &NetworkList,
    target: &Target<'_>,
    saved: &Saved<'_>,
    ran: usize,
) -> Result<(), Vec<PluginError>> {
    let previous = if list.version.del_has_result() { in_version(saved.result, list) } else { None };
    let mut errors = Vec::new();
    for (index, plugin) in list.plugins.iter().enumerate().rev() {
        let config = config(Verb::Del, list, plugin, previous.as_ref(), saved.runtime);
        let Err(error) = plugins.call(Verb::Del, &plugin.kind, &config, Some(target)).await else { continue };
        if index < ran && !error.knows_no_such_container() {
            let stop = !error.never_ran();
            errors.push(error);
            if stop {
                break;
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Asks the plugins whether the pod's interface is as ADD made it. The caller has seen to it that the list has CHECK.
///
/// # Errors
/// The first plugin's that says no.
pub async fn check(
    plugins: &Plugins,
    list: &NetworkList,
    target: &Target<'_>,
    saved: &Saved<'_>,
) -> Result<(), PluginError> {
    let previous = in_version(saved.result, list);
    for plugin in &list.plugins {
        let config = config(Verb::Check, list, plugin, previous.as_ref(), saved.runtime);
        plugins.call(Verb::Check, &plugin.kind, &config, Some(target)).await?;
    }
    Ok(())
}

/// ADD's result in the list's version: it has another one when the configuration has changed under the pod.
fn in_version(result: Option<&Map<String, Value>>, list: &NetworkList) -> Option<Map<String, Value>> {
    let mut result = result?.clone();
    result::normalise(&mut result, list.version).ok().map(|()| result)
}

/// The highest version of the list that all of its programs speak. Those that do not say what they speak are not counted.
///
/// # Errors
/// The program because of which there is none, or one that hangs.
pub async fn version(plugins: &Plugins, list: &NetworkList) -> Result<Version, PluginError> {
    let mut common = list.offered.clone();
    for program in list.programs() {
        // One that is missing is for STATUS to say.
        let said = match plugins.versions(program, list.version).await {
            Err(error) if error.never_ran() => continue,
            said => said?,
        };
        let Some(speaks) = said else { continue };
        let wanted: Vec<&str> = common.iter().map(|version| version.as_str()).collect();
        let wanted = wanted.join(" or ");
        common.retain(|version| speaks.iter().any(|spoken| spoken == version.as_str()));
        if common.is_empty() {
            let speaks = speaks.join(", ").chars().take(256).collect();
            return Err(PluginError::Versions { plugin: program.to_owned(), speaks, wanted });
        }
    }
    Ok(common.last().copied().unwrap_or(list.version))
}

/// What ADD was called with and what it gave, for DEL.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    pub runtime: &'a Map<String, Value>,
    pub result: Option<&'a Map<String, Value>>,
}

/// Asks every plugin whether it can set networks up; before version 1.1.0 only whether it speaks the list's version.
///
/// # Errors
/// The first plugin's that says no, or that does not answer.
pub async fn status(plugins: &Plugins, list: &NetworkList) -> Result<(), PluginError> {
    version(plugins, list).await?;
    for plugin in &list.plugins {
        if list.version.has_status_and_gc() {
            let config = config(Verb::Status, list, plugin, None, &Map::new());
            plugins.call(Verb::Status, &plugin.kind, &config, None).await?;
        } else {
            plugins.find(&plugin.kind)?;
        }
    }
    Ok(())
}

/// Tells every plugin which attachments are in use, so that it frees the others.
///
/// # Errors
/// Every plugin that failed; all were asked.
pub async fn gc(plugins: &Plugins, list: &NetworkList, valid: &[(String, String)]) -> Result<(), Vec<PluginError>> {
    let valid: Value = valid.iter().map(|(id, name)| serde_json::json!({"containerID": id, "ifname": name})).collect();
    let mut errors = Vec::new();
    for plugin in &list.plugins {
        let mut config = config(Verb::Gc, list, plugin, None, &Map::new());
        // The specification's key, and the one that libcni used before.
        config["cni.dev/valid-attachments"] = valid.clone();
        config["cni.dev/attachments"] = valid.clone();
        if let Err(error) = plugins.call(Verb::Gc, &plugin.kind, &config, None).await {
            errors.push(error);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What a plugin reads on its standard input.
fn config(
    verb: Verb,
    list: &NetworkList,
    plugin: &PluginConf,
    previous: Option<&Map<String, Value>>,
    runtime: &Map<String, Value>,
) -> Value {
    let mut config = plugin.object.clone();
    config.insert("name".into(), list.name.clone().into());
    config.insert("cniVersion".into(), list.version.as_str().into());
    // Keys that are the runtime's to set.
    config.retain(|key, _| key != "prevResult" && !key.starts_with("cni.dev/"));
    if list.version.hides_capabilities() && matches!(verb, Verb::Add | Verb::Check | Verb::Del) {
        config.remove("capabilities");
    }
    if let Some(previous) = previous {
        config.insert("prevResult".into(), Value::Object(previous.clone()));
    }
    let declared = runtime.iter().filter(|(capability, _)| plugin.capabilities.contains(*capability));
    let declared: Map<String, Value> = declared.map(|(key, value)| (key.clone(), value.clone())).collect();
    if !declared.is_empty() {
        config.insert("runtimeConfig".into(), Value::Object(declared));
    }
    Value::Object(config)
}
