//! Linux capabilities by name and number, and sets of them.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr as _;

use oci_spec::runtime::Capability;

/// The kernel's capabilities in the order of their numbers (`linux/capability.h`), without the `CAP_` prefix.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// One capability that cricket knows, by its kernel number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cap(u8);

impl Cap {
    pub const CHOWN: Self = Self(0);
    pub const DAC_OVERRIDE: Self = Self(1);
    pub const DAC_READ_SEARCH: Self = Self(2);
    pub const FOWNER: Self = Self(3);
    pub const FSETID: Self = Self(4);
    pub const KILL: Self = Self(5);
    pub const SETGID: Self = Self(6);
    pub const SETUID: Self = Self(7);
    pub const SETPCAP: Self = Self(8);
    pub const NET_BIND_SERVICE: Self = Self(10);
    pub const NET_RAW: Self = Self(13);
    pub const SYS_MODULE: Self = Self(16);
    pub const SYS_RAWIO: Self = Self(17);
    pub const SYS_CHROOT: Self = Self(18);
    pub const SYS_PTRACE: Self = Self(19);
    pub const SYS_PACCT: Self = Self(20);
    pub const SYS_ADMIN: Self = Self(21);
    pub const SYS_BOOT: Self = Self(22);
    pub const SYS_NICE: Self = Self(23);
    pub const SYS_RESOURCE: Self = Self(24);
    pub const SYS_TIME: Self = Self(25);
    pub const SYS_TTY_CONFIG: Self = Self(26);
    pub const MKNOD: Self = Self(27);
    pub const AUDIT_WRITE: Self = Self(29);
    pub const SETFCAP: Self = Self(31);
    pub const SYSLOG: Self = Self(34);
    pub const PERFMON: Self = Self(38);
    pub const BPF: Self = Self(39);

    /// The capability of this name, in any case, with or without `CAP_`; `None` when cricket knows no such capability.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|known| *known == name)?;
        u8::try_from(number).ok().map(Self)
    }

    /// The name without its prefix.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    fn oci(self) -> Capability {
        Capability::from_str(self.name()).expect("every name of the table is one of oci-spec's: a test walks the table")
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP_{}", self.name())
    }
}

impl fmt::Debug for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct CapSet(u64);

impl CapSet {
    /// No capability.
    pub const EMPTY: Self = Self(0);

    /// Every capability that cricket knows.
    #[must_use]
    pub fn all() -> Self {
        Self((1 << NAMES.len()) - 1)
    }

    /// From the kernel's bit mask, as in the `Cap…` lines of `/proc/<pid>/status`. Bits that cricket has no name for are
    /// left out: an OCI runtime could not be told about them.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & Self::all().0)
    }

    #[must_use]
    pub fn contains(self, cap: Cap) -> bool {
        self.0 & (1 << cap.0) != 0
    }

    pub fn insert(&mut self, cap: Cap) {
        self.0 |= 1 << cap.0;
    }

    pub fn remove(&mut self, cap: Cap) {
        self.0 &= !(1 << cap.0);
    }

    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members, lowest number first.
    pub fn iter(self) -> impl Iterator<Item = Cap> {
        (0_u8..).take(NAMES.len()).map(Cap).filter(move |cap| self.contains(*cap))
    }

    /// As oci-spec's type.
    #[must_use]
    pub fn to_oci(self) -> HashSet<Capability> {
        self.iter().map(Cap::oci).collect()
    }
}

impl FromIterator<Cap> for CapSet {
    fn from_iter<I: IntoIterator<Item = Cap>>(caps: I) -> Self {
        let mut set = Self::EMPTY;
        for cap in caps {
            set.insert(cap);
        }
        set
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_to_oci_spec() {
        assert_eq!(CapSet::all().to_oci().len(), NAMES.len());
        for cap in CapSet::all().iter() {
            assert_eq!(serde_json::to_value(cap.oci()).unwrap(), cap.to_string());
        }
    }

    #[test]
    fn names_are_taken_in_any_case_and_with_or_without_the_prefix() {
        for text in ["NET_RAW", "CAP_NET_RAW", "net_raw", "cap_net_raw", "Cap_Net_Raw"] {
            assert_eq!(Cap::parse(text), Some(Cap::NET_RAW), "{text}");
        }
        for text in ["", "CAP_", "ALL", "CAP_CAP_NET_RAW", "NET_RAW ", "CAP_NEWCAP_2030", "13"] {
            assert_eq!(Cap::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_constants_name_what_they_say() {
        let named = [
            (Cap::SYS_ADMIN, "CAP_SYS_ADMIN"),
            (Cap::SYS_RESOURCE, "CAP_SYS_RESOURCE"),
            (Cap::AUDIT_WRITE, "CAP_AUDIT_WRITE"),
            (Cap::SETFCAP, "CAP_SETFCAP"),
            (Cap::BPF, "CAP_BPF"),
            (Cap::PERFMON, "CAP_PERFMON"),
            (Cap::SYSLOG, "CAP_SYSLOG"),
            (Cap::MKNOD, "CAP_MKNOD"),
            (Cap::SYS_TTY_CONFIG, "CAP_SYS_TTY_CONFIG"),
            (Cap::SYS_CHROOT, "CAP_SYS_CHROOT"),
            (Cap::SYS_PACCT, "CAP_SYS_PACCT"),
            (Cap::NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
        ];
        for (cap, name) in named {
            assert_eq!(cap.to_string(), name);
        }
    }

    #[test]
    fn unknown_kernel_bits_are_left_out() {
        assert_eq!(CapSet::from_bits(u64::MAX), CapSet::all());
    }
}
