//! Capabilities of a container's processes.

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::LinuxCapabilities;

use super::Asked;
use crate::security::{Cap, CapSet};

/// What a container has that asks for nothing: the set that Docker gave and that images have been written against. The
/// smaller sets of other runtimes break images that bind low ports after dropping root, or run `ping`.
const DEFAULT: [Cap; 14] = [
    Cap::AUDIT_WRITE,
    Cap::CHOWN,
    Cap::DAC_OVERRIDE,
    Cap::FOWNER,
    Cap::FSETID,
    Cap::KILL,
    Cap::MKNOD,
    Cap::NET_BIND_SERVICE,
    Cap::NET_RAW,
    Cap::SETFCAP,
    Cap::SETGID,
    Cap::SETPCAP,
    Cap::SETUID,
    Cap::SYS_CHROOT,
];

/// Why the capabilities cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapsError {
    #[error("capabilities.{field} {name:?}: no such capability")]
    Unknown { field: &'static str, name: String },
    #[error("capabilities.{field} {name:?}: the daemon itself does not hold {cap}, so it cannot give it")]
    NotHeld { field: &'static str, name: String, cap: Cap },
    #[error("capabilities.add_ambient_capabilities {name:?}: {cap} is dropped, or neither added nor a default")]
    AmbientOnly { name: String, cap: Cap },
}

/// The sets of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Bounding, permitted and effective alike.
    pub bounding: CapSet,
    pub ambient: CapSet,
}

impl Capabilities {
    /// The inheritable set stays empty (CVE-2022-29162 and its kin), but for ambient capabilities that the request names:
    /// the kernel raises none that is not inheritable.
    pub(super) fn to_oci(self) -> LinuxCapabilities {
        let mut caps = LinuxCapabilities::default();
        caps.set_bounding(Some(self.bounding.to_oci()))
            .set_effective(Some(self.bounding.to_oci()))
            .set_permitted(Some(self.bounding.to_oci()))
            .set_inheritable(Some(self.ambient.to_oci()))
            .set_ambient(Some(self.ambient.to_oci()));
        caps
    }
}

/// The request's additions and drops, upon the default set. `ALL` means all that the daemon holds, and goes before single
/// names; a name that is both added and dropped is dropped. A default that the daemon lacks is left out quietly.
pub(super) fn capabilities(asked: &Asked<'_>, held: CapSet) -> Result<Capabilities, CapsError> {
    let none = cri::Capability::default();
    let request = asked.security.capabilities.as_ref().unwrap_or(&none);
    let add = parse(&request.add_capabilities, "add_capabilities")?;
    let drop = parse(&request.drop_capabilities, "drop_capabilities")?;
    let mut set = DEFAULT.into_iter().collect::<CapSet>().intersection(held);
    if asked.privileged || add.iter().any(|one| one.cap.is_none()) {
        set = held;
    }
    if !asked.privileged {
        if drop.iter().any(|one| one.cap.is_none()) {
            set = CapSet::EMPTY;
        }
        for (name, cap) in add.iter().filter_map(|one| one.cap.map(|cap| (one.name, cap))) {
            if !held.contains(cap) {
                return Err(CapsError::NotHeld { field: "add_capabilities", name: name.to_owned(), cap });
            }
            set.insert(cap);
        }
        drop.iter().filter_map(|one| one.cap).for_each(|cap| set.remove(cap));
    }
    let ambient = ambient(request, held, set)?;
    Ok(Capabilities { bounding: set, ambient })
}

fn ambient(request: &cri::Capability, held: CapSet, set: CapSet) -> Result<CapSet, CapsError> {
    let mut ambient = CapSet::EMPTY;
    for one in parse(&request.add_ambient_capabilities, "add_ambient_capabilities")? {
        match one.cap {
            None => ambient = set,
            Some(cap) if !held.contains(cap) => {
                let field = "add_ambient_capabilities";
                return Err(CapsError::NotHeld { field, name: one.name.to_owned(), cap });
            }
            Some(cap) if !set.contains(cap) => {
                return Err(CapsError::AmbientOnly { name: one.name.to_owned(), cap });
            }
            Some(cap) => ambient.insert(cap),
        }
    }
    Ok(ambient)
}

struct Named<'a> {
    name: &'a str,
    /// `None` is `ALL`.
    cap: Option<Cap>,
}

fn parse<'a>(names: &'a [String], field: &'static str) -> Result<Vec<Named<'a>>, CapsError> {
    let one = |name: &'a String| match Cap::parse(name) {
        Some(cap) => Ok(Named { name, cap: Some(cap) }),
        None if name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL") => {
            Ok(Named { name, cap: None })
        }
        None => Err(CapsError::Unknown { field, name: name.chars().take(256).collect() }),
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(add: &[&str], drop: &[&str], ambient: &[&str], privileged: bool) -> Result<Capabilities, CapsError> {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let security = cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: strings(add),
                drop_capabilities: strings(drop),
                add_ambient_capabilities: strings(ambient),
            }),
            ..Default::default()
        };
        let mut held = CapSet::all();
        held.remove(Cap::SYS_RESOURCE);
        capabilities(&Asked { security: &security, sandbox_security: None, privileged }, held)
    }

    fn set(caps: &[Cap]) -> CapSet {
        caps.iter().copied().collect()
    }

    #[test]
    fn additions_and_drops_in_every_order() {
        let default: CapSet = set(&DEFAULT);
        let mut held = CapSet::all();
        held.remove(Cap::SYS_RESOURCE);
        let mut with_admin = default;
        with_admin.insert(Cap::SYS_ADMIN);
        let mut all_but_raw = held;
        all_but_raw.remove(Cap::NET_RAW);
        let mut no_raw = default;
        no_raw.remove(Cap::NET_RAW);
        let cases: [(&[&str], &[&str], CapSet); 9] = [
            (&[], &[], default),
            (&["SYS_ADMIN"], &[], with_admin),
            (&["cap_sys_admin"], &[], with_admin),
            (&[], &["NET_RAW"], no_raw),
            (&["ALL"], &[], held),
            (&[], &["ALL"], CapSet::EMPTY),
            (&["NET_RAW"], &["all"], set(&[Cap::NET_RAW])),
            (&["ALL"], &["CAP_NET_RAW"], all_but_raw),
            (&["NET_RAW"], &["NET_RAW"], no_raw),
        ];
        for (add, drop, want) in cases {
            assert_eq!(caps(add, drop, &[], false).unwrap().bounding, want, "+{add:?} -{drop:?}");
        }
        assert_eq!(caps(&[], &["ALL"], &[], true).unwrap().bounding, held, "privileged is all, whatever is dropped");
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        assert_eq!(
            caps(&["CAP_NEWCAP_2030"], &[], &[], false),
            Err(CapsError::Unknown { field: "add_capabilities", name: "CAP_NEWCAP_2030".into() })
        );
        assert!(matches!(caps(&[], &["BOGUS"], &[], false), Err(CapsError::Unknown { .. })));
        let error = caps(&["SYS_RESOURCE"], &[], &[], false).expect_err("was given").to_string();
        assert!(error.contains("SYS_RESOURCE") && error.contains("daemon"), "{error}");
    }

    #[test]
    fn cve_2022_29162_nothing_is_inheritable_but_what_is_asked_to_be_ambient() {
        for caps in [caps(&[], &[], &[], false), caps(&["ALL"], &[], &[], false), caps(&[], &[], &[], true)] {
            assert_eq!(caps.unwrap().to_oci().inheritable().as_ref().unwrap().len(), 0);
        }
        let asked = caps(&["NET_ADMIN"], &["ALL"], &["NET_ADMIN"], false).unwrap();
        assert_eq!(asked.to_oci().inheritable(), asked.to_oci().ambient());
        assert_eq!(asked.ambient, asked.bounding);
        assert!(matches!(caps(&[], &["ALL"], &["NET_RAW"], false), Err(CapsError::AmbientOnly { .. })));
    }
}
