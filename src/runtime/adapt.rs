//! What a bundle must say differently for one runtime, and what it must not ask of it.
//!
//! `spec` writes one specification for all; the few places where a runtime reads it in its own way are here.

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{OciRuntime, RuntimeError};

/// Where the cgroups are. On cgroup v1 that is a tmpfs of the runtime's making, with a hierarchy of the kernel's in each of
/// its folders.
const CGROUP_TREE: &str = "/sys/fs/cgroup";

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
    /// * On cgroup v1 the `ro` of the cgroup tree reaches the hierarchies and not the tmpfs that they are mounted in: a container
    ///   could fill that, and make folders beside the hierarchies. runc also makes the tmpfs read-only if it is listed among the
    ///   paths that are. crun (1.8.1, tried) must not be asked for that: it then mounts all of the tree a second time, before
    ///   it makes the hierarchies read-only, and the copy on top stays writable.
    ///
    /// # Errors
    /// [`RuntimeError::Lacks`] naming what the runtime was built without.
    pub fn adapt(&self, id: &str, spec: &mut Spec) -> Result<(), RuntimeError> {
        let is_filtered = spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some());
        if is_filtered && self.features.without_seccomp {
            return Err(RuntimeError::Lacks { call: self.call("create", id), feature: "seccomp" });
        }
        if self.features.version.starts_with("runc") {
            close_cgroup_tree(spec);
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

/// Adds the tmpfs to the read-only paths where the tree is a v1 one (on v2 there is a cgroup namespace) and is not to be
/// written to.
fn close_cgroup_tree(spec: &mut Spec) {
    let mounts = spec.mounts().iter().flatten();
    let mut trees = mounts.filter(|mount| mount.typ().as_deref() == Some("cgroup"));
    let closed = trees.any(|tree| tree.options().iter().flatten().any(|option| option == "ro"));
    let Some(linux) = spec.linux_mut().as_mut().filter(|_| closed) else { return };
    let v2 = linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    let mut paths = linux.readonly_paths().clone().unwrap_or_default();
    if !v2 && !paths.iter().any(|path| path == CGROUP_TREE) {
        paths.push(CGROUP_TREE.to_owned());
        linux.set_readonly_paths(Some(paths));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use oci_spec::runtime::{
        LinuxBuilder, LinuxNamespaceBuilder, LinuxSeccompAction, LinuxSeccompBuilder, MountBuilder, ProcessBuilder,
        SpecBuilder,
    };

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
    fn runc_closes_the_tree_of_cgroups_v1() {
        let tree = |access: &str| {
            let options = vec!["nosuid".to_owned(), access.to_owned()];
            vec![MountBuilder::default().destination(CGROUP_TREE).typ("cgroup").options(options).build().unwrap()]
        };
        let namespace = |kind| LinuxNamespaceBuilder::default().typ(kind).build().unwrap();
        let (v1, v2) = (LinuxNamespaceType::Pid, LinuxNamespaceType::Cgroup);
        for (version, access, kind, listed, want) in [
            ("runc version 1.1.5", "ro", v1, &["/proc/sys"][..], &["/proc/sys", CGROUP_TREE][..]),
            ("runc version 1.1.5", "ro", v1, &[CGROUP_TREE], &[CGROUP_TREE]),
            ("runc version 1.1.5", "rw", v1, &["/proc/sys"], &["/proc/sys"]),
            ("runc version 1.1.5", "ro", v2, &["/proc/sys"], &["/proc/sys"]),
            ("crun version 1.8.1", "ro", v1, &["/proc/sys"], &["/proc/sys"]),
            ("youki version 0.7.0", "ro", v1, &["/proc/sys"], &["/proc/sys"]),
        ] {
            let texts = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
            let linux = LinuxBuilder::default().namespaces(vec![namespace(kind)]).readonly_paths(texts(listed));
            let spec = SpecBuilder::default().linux(linux.build().unwrap()).mounts(tree(access)).build();
            let mut spec = spec.unwrap();
            runtime(version, None).adapt("x", &mut spec).unwrap();
            let paths = spec.linux().as_ref().unwrap().readonly_paths().clone();
            assert_eq!(paths, Some(texts(want)), "{version} {access} {kind:?}");
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
