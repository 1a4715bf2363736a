//! What a bundle must say differently for one runtime, and what it must not ask of it.
//!
//! `spec` writes one specification for all; the few places where a runtime reads it in its own way are here.

use oci_spec::runtime::Spec;

use super::{OciRuntime, RuntimeError};

impl OciRuntime {
    /// Fits a specification to this runtime.
    ///
    /// * The runtime specification has `shared` and `slave` for `rootfsPropagation`. runc and crun read those as flags of the
    ///   root mount alone, and want `rshared` and `rslave` for all that is below it; youki knows only the plain words and
    ///   means everything below.
    /// * youki takes `noNewPrivileges: false` for the flag being set, and loads the seccomp filter when it no longer may. Left
    ///   out, which means the same, it is loaded in time.
    /// * A runtime that was built without seccomp runs a container without its filter and says nothing of it, as youki does:
    ///   where that is known, a container that asks for a filter is refused instead.
    ///
    /// # Errors
    /// [`RuntimeError::Lacks`] naming what the runtime was built without.
    pub fn adapt(&self, id: &str, spec: &mut Spec) -> Result<(), RuntimeError> {
        let is_filtered = spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some());
        if is_filtered && self.features.without_seccomp {
            return Err(RuntimeError::Lacks { call: self.call("create", id), feature: "seccomp" });
        }
        if !self.features.version.starts_with("youki") {
            return Ok(());
        }
        if let Some(process) = spec.process_mut()
            && process.no_new_privileges() == Some(false)
        {
            process.set_no_new_privileges(None);
        }
        if let Some(linux) = spec.linux_mut() {
            let plain = match linux.rootfs_propagation().as_deref() {
                Some("rshared") => "shared",
                Some("rslave") => "slave",
                _ => return Ok(()),
            };
            linux.set_rootfs_propagation(Some(plain.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use oci_spec::runtime::{LinuxBuilder, LinuxSeccompAction, LinuxSeccompBuilder, ProcessBuilder, SpecBuilder};

    use super::*;
    use crate::runtime::RuntimeFeatures;
    use crate::runtime::cli::RuntimeSetup;

    fn runtime(version: &str, features: Option<&str>) -> OciRuntime {
        let setup = RuntimeSetup {
            handler: "fake".into(),
            program: PathBuf::from("/fake"),
            root: PathBuf::from("/none"),
            systemd_cgroup: false,
        };
        OciRuntime { setup, features: RuntimeFeatures::parse(version, features.map(str::as_bytes)) }
    }

    #[test]
    fn youki_gets_the_words_of_the_specification() {
        let process = ProcessBuilder::default().no_new_privileges(false).build().unwrap();
        for (version, given, wanted) in [
            ("youki version 0.7.0", "rslave", "slave"),
            ("youki version 0.7.0", "rshared", "shared"),
            ("youki version 0.7.0", "rprivate", "rprivate"),
            ("crun version 1.8.1", "rslave", "rslave"),
            ("runc version 1.1.5", "rshared", "rshared"),
        ] {
            let linux = LinuxBuilder::default().rootfs_propagation(given).build().unwrap();
            let mut spec = SpecBuilder::default().linux(linux).process(process.clone()).build().unwrap();
            runtime(version, None).adapt("x", &mut spec).unwrap();
            assert_eq!(spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some(wanted), "{version}");
            let flag = spec.process().as_ref().unwrap().no_new_privileges();
            assert_eq!(flag, (!version.starts_with("youki")).then_some(false), "{version}");
        }
    }

    #[test]
    fn no_container_runs_without_the_filter_it_asked_for() {
        let filter = LinuxSeccompBuilder::default().default_action(LinuxSeccompAction::ScmpActErrno).build().unwrap();
        let confined = LinuxBuilder::default().seccomp(filter).build().unwrap();
        let mut spec = SpecBuilder::default().linux(confined).build().unwrap();
        let without = r#"{"linux": {"seccomp": {"enabled": false}}}"#;
        let untold = r#"{"linux": {"seccomp": null}, "annotations": null, "potentiallyUnsafeConfigAnnotations": null}"#;
        for (version, features) in [("runc version 1.3.0", without), ("youki version: 0.7.0", untold)] {
            let error = runtime(version, Some(features)).adapt("x", &mut spec).unwrap_err();
            assert!(error.to_string().contains("seccomp"), "{error}");
        }
        let youki = runtime("youki version: 0.7.0\nlibseccomp: 2.5.4\n", Some(untold));
        assert!(youki.features.told);
        youki.adapt("x", &mut spec).unwrap();
        runtime("runc version 1.3.0", Some(r#"{"linux": {"seccomp": {"enabled": true}}}"#))
            .adapt("x", &mut spec)
            .unwrap();
        // A runtime that does not know the question (crun before 1.9) is not suspected.
        runtime("crun version 1.8.1", None).adapt("x", &mut spec).unwrap();
        let mut open = SpecBuilder::default().linux(LinuxBuilder::default().build().unwrap()).build().unwrap();
        open.linux_mut().as_mut().unwrap().set_seccomp(None);
        runtime("youki version 0.7.0", Some(without)).adapt("x", &mut open).unwrap();
    }
}
