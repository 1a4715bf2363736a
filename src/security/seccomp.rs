//! Seccomp profiles in the OCI form: the built-in RuntimeDefault, and those that an administrator wrote.

mod localhost;
mod table;
#[cfg(test)]
mod tests;

pub use localhost::{LocalhostError, MAX_PROFILE_SIZE, parse_localhost};

use oci_spec::runtime::{
    Arch as OciArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

use super::caps::{Cap, CapSet};

/// A machine that cricket has a profile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    Aarch64,
    Riscv64,
    S390x,
    Ppc64le,
    Loongarch64,
}

impl Arch {
    /// The machine that this binary was built for; `None` when it is not one of the list.
    #[must_use]
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            "riscv64" => Some(Self::Riscv64),
            "s390x" => Some(Self::S390x),
            "powerpc64" => Some(Self::Ppc64le),
            "loongarch64" => Some(Self::Loongarch64),
            _ => None,
        }
    }

    /// The machine's own calling convention and those of the older machines whose programs its kernel runs. A convention
    /// that is not listed is killed or refused by the runtime, so leaving one out is safe.
    fn conventions(self) -> Vec<OciArch> {
        match self {
            Self::X86_64 => vec![OciArch::ScmpArchX86_64, OciArch::ScmpArchX86, OciArch::ScmpArchX32],
            Self::Aarch64 => vec![OciArch::ScmpArchAarch64, OciArch::ScmpArchArm],
            Self::Riscv64 => vec![OciArch::ScmpArchRiscv64],
            Self::S390x => vec![OciArch::ScmpArchS390x, OciArch::ScmpArchS390],
            Self::Ppc64le => vec![OciArch::ScmpArchPpc64le],
            Self::Loongarch64 => vec![OciArch::ScmpArchLoongarch64],
        }
    }

    fn own_calls(self) -> &'static str {
        match self {
            Self::X86_64 => table::X86,
            Self::Aarch64 => table::ARM,
            Self::Riscv64 => table::RISCV,
            Self::S390x => table::S390,
            Self::Ppc64le => table::PPC,
            Self::Loongarch64 => "",
        }
    }

    /// Where `clone(2)` takes its flags: s390 swaps the first two arguments.
    fn clone_flags_index(self) -> usize {
        if self == Self::S390x { 1 } else { 0 }
    }
}

/// The RuntimeDefault profile for a container that holds `caps`.
///
/// Unlisted calls fail with EPERM. `clone3` fails with ENOSYS for containers without CAP_SYS_ADMIN, since its flags lie
/// behind a pointer that no filter can follow; C libraries then use `clone`, whose flags are checked.
#[must_use]
pub fn default_profile(arch: Arch, caps: CapSet) -> LinuxSeccomp {
    let mut names: Vec<&str> = table::ALWAYS.iter().flat_map(|topic| topic.split_whitespace()).collect();
    names.extend(arch.own_calls().split_whitespace());
    for (cap, calls) in table::WITH_CAP {
        if caps.contains(*cap) {
            names.extend(calls.split_whitespace());
        }
    }
    names.sort_unstable();
    names.dedup();
    // First of all: for every rule about `socket` and its kin, libseccomp makes one that allows the same call through
    // `socketcall`, with whatever family. It does not when `socketcall` has a rule already. ENOSYS makes a C library that
    // tries `socketcall` go on to the separate calls, which every kernel since 4.3 has.
    let mut rules = vec![refuse(&["socketcall"], libc::ENOSYS, vec![]), allow(&names, vec![])];
    rules.extend(socket_rules());
    for value in table::PERSONALITIES {
        rules.push(allow(&["personality"], vec![equal(0, *value)]));
    }
    if !caps.contains(Cap::SYS_ADMIN) {
        rules.push(allow(&["clone"], vec![masked(arch.clone_flags_index(), table::CLONE_NEW_NAMESPACES, 0)]));
        rules.push(refuse(&["clone3"], libc::ENOSYS, vec![]));
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(errno(libc::EPERM)))
        .set_architectures(Some(arch.conventions()))
        .set_syscalls(Some(rules));
    profile
}

/// The rules of `socket(2)`. The kernel reads only the low 32 bits of the family, while a plain comparison in a filter
/// takes all 64: a program could set a high bit and walk past "not AF_ALG". So every rule masks the high half away.
/// Neighbouring families are allowed in aligned blocks, which keeps the filter short.
fn socket_rules() -> Vec<LinuxSyscall> {
    let mut rules = Vec::new();
    let mut family = 0;
    while family < table::FAMILIES_END {
        if table::DENIED_FAMILIES.contains(&family) {
            rules.push(refuse(&["socket"], libc::EAFNOSUPPORT, vec![masked(0, 0xffff_ffff, family)]));
            family += 1;
            continue;
        }
        let mut size = 1;
        while family % (size * 2) == 0 && block_allowed(family, size * 2) {
            size *= 2;
        }
        rules.push(allow(&["socket"], vec![masked(0, 0xffff_ffff & !(size - 1), family)]));
        family += size;
    }
    rules
}

fn block_allowed(first: u64, size: u64) -> bool {
    first + size <= table::FAMILIES_END && !table::DENIED_FAMILIES.iter().any(|f| (first..first + size).contains(f))
}

fn errno(number: i32) -> u32 {
    number.unsigned_abs()
}

fn allow(names: &[&str], args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow, None, args)
}

fn refuse(names: &[&str], number: i32, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActErrno, Some(errno(number)), args)
}

fn rule(
    names: &[&str],
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut syscall = LinuxSyscall::default();
    syscall
        .set_names(names.iter().map(|name| (*name).to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno_ret)
        .set_args(if args.is_empty() { None } else { Some(args) });
    syscall
}

fn equal(index: usize, value: u64) -> LinuxSeccompArg {
    argument(index, value, None, LinuxSeccompOperator::ScmpCmpEq)
}

/// `(argument & mask) == value`; the OCI form holds the mask in `value` and what it is compared with in `valueTwo`.
fn masked(index: usize, mask: u64, value: u64) -> LinuxSeccompArg {
    argument(index, mask, Some(value), LinuxSeccompOperator::ScmpCmpMaskedEq)
}

fn argument(index: usize, value: u64, value_two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    let builder = match value_two {
        Some(two) => builder.value_two(two),
        None => builder,
    };
    builder.build().expect("index, value and op are the only fields that must be set, and they are")
}
