//! Annotations that reach the OCI runtime. A runtime takes orders by annotation (crun can be told to use another handler,
//! systemd to run a command), so none of a pod's gets there unless the operator named it for the handler.

use std::collections::HashMap;

use super::SpecInput;

/// Keys with these beginnings steer a runtime, the service manager or a checkpoint tool (`crun features` lists them as
/// potentially unsafe; CVE-2024-3154, CVE-2025-24965). A pattern like `*` does not let them through: it must begin so itself.
const STEERING: [&str; 6] =
    ["run.oci.", "krun.", "org.criu.", "org.systemd.property.", "module.wasm.image/", "io.kubernetes.cri."];

/// All forwarded annotations together, keys and values, in bytes (CVE-2021-43784).
const MAX_SIZE: usize = 256 * 1024;

/// The annotations are more than a runtime should be handed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    #[error("annotations: {size} bytes for the runtime, the limit is {MAX_SIZE}")]
    TooLarge { size: usize },
}

/// The pod's and the container's annotations that the handler allows; the container's win. `None` when there are none.
pub(super) fn forwarded(input: &SpecInput<'_>) -> Result<Option<HashMap<String, String>>, AnnotationError> {
    let patterns = &input.handler.allowed_annotations;
    let both = input.sandbox.annotations.iter().chain(&input.config.annotations);
    let kept: HashMap<String, String> =
        both.filter(|(key, _)| allowed(key, patterns)).map(|(key, value)| (key.clone(), value.clone())).collect();
    let size = kept.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_SIZE {
        return Err(AnnotationError::TooLarge { size });
    }
    Ok(Some(kept).filter(|kept| !kept.is_empty()))
}

/// A pattern is a whole key, byte for byte, or a beginning with `*` after it; there is no other form (CVE-2023-6476).
fn allowed(key: &str, patterns: &[String]) -> bool {
    let steering = STEERING.iter().find(|beginning| key.starts_with(**beginning));
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => key.starts_with(beginning) && steering.is_none_or(|family| beginning.starts_with(family)),
        None => key == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn cve_2023_6476_only_the_exact_forms_pass() {
        let exact = patterns(&["io.example/key"]);
        assert!(allowed("io.example/key", &exact));
        for key in
            ["io.example/key/ctr", "io.example/keyX", "io.example/key.", "IO.EXAMPLE/KEY", "io.example/key/../key"]
        {
            assert!(!allowed(key, &exact), "{key}");
        }
        let prefix = patterns(&["io.example/*"]);
        assert!(allowed("io.example/any", &prefix) && !allowed("io.exampleX/any", &prefix));
        assert!(!allowed("x", &[]) && !allowed("", &exact) && !allowed("x", &patterns(&[""])));
    }

    #[test]
    fn cve_2024_3154_no_pattern_lets_steering_through_by_accident() {
        for key in [
            "run.oci.handler",
            "run.oci.systemd.subgroup",
            "krun.ram_mib",
            "org.criu.config",
            "module.wasm.image/variant",
            "org.systemd.property.ExecStartPre",
            "io.kubernetes.cri.container-type",
        ] {
            for loose in ["*", "r*", "run.*", "org.*", "org.systemd.*", "o*", "k*", "m*", "io.*", "io.kubernetes.*"] {
                assert!(!allowed(key, &patterns(&[loose])), "{loose} let {key} through");
            }
            assert!(allowed(key, &patterns(&[key])), "{key} was named outright");
        }
        assert!(allowed("run.oci.handler", &patterns(&["run.oci.*"])));
    }

    proptest::proptest! {
        /// What passes is named byte for byte, or begins as a pattern does up to its star; nothing else is near enough.
        #[test]
        fn what_passes_was_named(
            key in "(run\\.oci\\.|org\\.|io\\.|a|b|\\*|/){0,5}",
            list in proptest::collection::vec("(run\\.oci\\.|org\\.|io\\.|a|b|\\*|/){0,4}\\*?", 0..4),
        ) {
            let named = list.iter().any(|pattern| {
                let whole = *pattern == key && !pattern.ends_with('*');
                whole || pattern.strip_suffix('*').is_some_and(|beginning| key.get(..beginning.len()) == Some(beginning))
            });
            let passes = allowed(&key, &list);
            proptest::prop_assert!(named || !passes, "{key} passed {list:?}");
            if passes && key.starts_with("run.oci.") {
                proptest::prop_assert!(list.iter().any(|pattern| pattern.starts_with("run.oci.")), "{key} passed {list:?}");
            }
        }
    }
}
