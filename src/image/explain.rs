//! What a pull would do, told without doing it.

use super::Inner;
use super::error::ImageError;
use super::pull::logins::Logins;
use super::reference::{Reference, Version};
use super::registries::proxy::Environment;
use super::registries::{Endpoint, Scheme};
use super::registry::auth_file::Login;
use super::rules;

/// What a pull of one name would do. A short name may stand for several, tried in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The full name.
    pub name: String,
    /// What decides over it: file, line and prefix; empty: nothing is configured.
    pub decided_by: String,
    /// Why nobody would be asked; empty when somebody would.
    pub refusal: String,
    pub steps: Vec<Step>,
    /// The policy's file and scope, and what it asks for.
    pub policy: (String, String),
}

/// One place that would be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub url: String,
    pub mirror: bool,
    /// File and line; empty for the registry of the name itself.
    pub place: String,
    /// Where its login is from; never the login.
    pub login: String,
    /// What is special about it, one phrase each.
    pub notes: Vec<String>,
}

pub(super) fn explain(inner: &Inner, text: &str, namespace: Option<&str>) -> Result<Vec<Explanation>, ImageError> {
    let names = inner.rules.clients().registries().names_to_pull(text)?;
    names.iter().map(|reference| one(inner, reference, namespace)).collect()
}

fn one(inner: &Inner, reference: &Reference, namespace: Option<&str>) -> Result<Explanation, ImageError> {
    let registries = inner.rules.clients().registries();
    let logins = Logins::read_for(&inner.settings.load(), namespace, reference)?;
    let decided_by = registries.decided_by(reference).map(|(prefix, place)| format!("{place} (prefix {prefix:?})"));
    let (steps, refusal) = match registries.endpoints(reference) {
        Ok(endpoints) => {
            let environment = inner.rules.clients().environment();
            let step = |endpoint: &Endpoint| step(endpoint, reference, &logins, &environment);
            (endpoints.iter().map(step).collect(), String::new())
        }
        Err(error) => (Vec::new(), error.to_string()),
    };
    Ok(Explanation {
        name: reference.to_string(),
        decided_by: decided_by.unwrap_or_default(),
        refusal,
        steps,
        policy: rules::explain(&inner.rules.policies(), namespace, reference),
    })
}

fn step(endpoint: &Endpoint, reference: &Reference, logins: &Logins, environment: &Environment) -> Step {
    let mut notes = Vec::new();
    let mut note = |holds: bool, text: &str| {
        if holds {
            notes.push(text.to_owned());
        }
    };
    note(endpoint.scheme == Scheme::Either, "plain http if https fails");
    note(endpoint.tls.unverified, "its certificate is not verified");
    note(!endpoint.tls.authorities.is_empty(), "authorities of its own");
    note(endpoint.tls.client.is_some(), "a client certificate of its own");
    note(!endpoint.headers.is_empty(), "headers of its own");
    let dial = endpoint.dial_timeout.map(|timeout| format!("{timeout:?} for a connection to stand (dial_timeout)"));
    note(dial.is_some(), dial.as_deref().unwrap_or_default());
    let scheme = if endpoint.scheme == Scheme::Http { "http" } else { "https" };
    let way = match &endpoint.proxy {
        Some(proxy) => format!("by the proxy {proxy}"),
        None => match environment.proxy(scheme, endpoint.address()) {
            Ok(proxy) => proxy.map(|proxy| format!("by the proxy {proxy}")).unwrap_or_default(),
            Err(why) => format!("its proxy cannot be used: {why}"),
        },
    };
    note(!way.is_empty(), &way);
    let by_tag = matches!(reference.version(), Version::Tag(_));
    note(by_tag && !endpoint.resolves, "not asked for tags, only for content");
    note(!endpoint.serves, "asked for the manifest only");
    let login = match logins.find(endpoint) {
        Login::Entry(source, _) => source,
        Login::Helper(source) => format!("none: {source} names a helper program, which is not run"),
        Login::Nothing => "none but that of the request".to_owned(),
    };
    let place = endpoint.place.as_ref().map(ToString::to_string).unwrap_or_default();
    Step { url: endpoint.shown(), mirror: endpoint.mirror, place, login, notes }
}
