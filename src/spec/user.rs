//! Who the container's processes are: uid, primary gid, supplementary groups.
//!
//! Everything here but the request's own numbers is text that an image made. Two rules keep it from becoming root: text of
//! digits is a number and never a name, and a number that does not fit is an error and nothing else (CVE-2024-40635,
//! CVE-2026-46680). The image driver reads an image's `USER` with [`parse`], so that ImageStatus, from which the kubelet
//! judges `runAsNonRoot`, and the container always agree.

mod files;
#[cfg(test)]
mod tests;

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::User;

pub use files::MAX_FILE_SIZE;
use files::{group_named, groups_of, passwd_by_name, passwd_by_uid};

/// The highest id: what Kubernetes allows in a pod, and what fits the signed 32 bits that some file systems keep.
pub const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// Linux's `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65536;

/// A user or a group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ref {
    Id(u32),
    Name(String),
}

/// An image's `USER`: `user`, `user:group`, either part by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageUser {
    /// `None` when the image names nobody, which means root.
    pub user: Option<Ref>,
    pub group: Option<Ref>,
}

/// Why a container has no identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("{field} {value:?}: an id is a decimal number from 0 to {MAX_ID}, without sign or leading zeros")]
    Number { field: &'static str, value: String },
    #[error("{field} {value:?}: not a legal name")]
    Name { field: &'static str, value: String },
    #[error("image USER {value:?}: more than one colon")]
    Form { value: String },
    #[error("{field} {value:?}: the image's /etc/passwd has no such user")]
    NoUser { field: &'static str, value: String },
    #[error("{field} {value:?}: the image's /etc/group has no such group")]
    NoGroup { field: &'static str, value: String },
    #[error("run_as_user {uid} and run_as_username {name:?} are both given; only one may be")]
    Both { uid: i64, name: String },
    #[error("run_as_group {gid}: given without run_as_user or run_as_username")]
    GroupWithoutUser { gid: i64 },
    #[error("supplemental_groups_policy {value}: unknown")]
    Policy { value: i32 },
    #[error("{path}: {size} bytes, the limit is {MAX_FILE_SIZE}")]
    FileTooLarge { path: &'static str, size: usize },
    #[error("{count} supplementary groups, the kernel takes {MAX_GROUPS}")]
    TooManyGroups { count: usize },
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// The primary group first (else a negative permission of that group would not hold, CVE-2023-25173), then the
    /// request's, then the image's; none twice.
    pub groups: Vec<u32>,
}

impl Identity {
    pub(super) fn to_oci(&self) -> User {
        let mut user = User::default();
        user.set_uid(self.uid).set_gid(self.gid).set_additional_gids(Some(self.groups.clone()));
        user
    }

    pub(super) fn status(&self) -> cri::LinuxContainerUser {
        cri::LinuxContainerUser {
            uid: i64::from(self.uid),
            gid: i64::from(self.gid),
            supplemental_groups: self.groups.iter().copied().map(i64::from).collect(),
        }
    }
}

/// Reads an image's `USER`. A part that is empty counts as not given, as in `1000:`.
///
/// # Errors
/// [`UserError::Form`], [`UserError::Number`] and [`UserError::Name`]: text that could mean two things to two readers.
pub fn parse(text: &str) -> Result<ImageUser, UserError> {
    let (user, group) = match text.split_once(':') {
        None => (text, ""),
        Some((_, group)) if group.contains(':') => return Err(UserError::Form { value: shorten(text) }),
        Some(parts) => parts,
    };
    let part = |text: &str| if text.is_empty() { Ok(None) } else { reference(text, "image USER").map(Some) };
    Ok(ImageUser { user: part(user)?, group: part(group)? })
}

/// A number or a name, and never one for want of the other.
fn reference(text: &str, field: &'static str) -> Result<Ref, UserError> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let canonical = text.parse::<u32>().ok().filter(|id| *id <= MAX_ID && id.to_string() == text);
        return canonical.map(Ref::Id).ok_or_else(|| UserError::Number { field, value: shorten(text) });
    }
    // What some parser somewhere takes for a number (`-1`, `0x0`, `1e10`) is no name either.
    let numeric_start = text.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-');
    if numeric_start && text.bytes().all(|b| b.is_ascii_hexdigit() || b"xXoO._+-".contains(&b)) {
        return Err(UserError::Number { field, value: shorten(text) });
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-@+$\\".contains(&b);
    if text.is_empty() || text.len() > 256 || text.starts_with(['-', '+']) || !text.bytes().all(legal) {
        return Err(UserError::Name { field, value: shorten(text) });
    }
    Ok(Ref::Name(text.to_owned()))
}

fn shorten(text: &str) -> String {
    text.chars().take(256).collect()
}

/// An id of the request.
fn id(value: i64, field: &'static str) -> Result<u32, UserError> {
    let id = u32::try_from(value).ok().filter(|id| *id <= MAX_ID);
    id.ok_or_else(|| UserError::Number { field, value: value.to_string() })
}

struct Who {
    uid: u32,
    gid: u32,
    /// The name under which `/etc/group` lists the user's memberships.
    name: Option<String>,
}

/// The identity for a request and an image.
///
/// The user is the request's `run_as_user` or `run_as_username`, else the image's. The primary group is `run_as_group`,
/// else (only when the image's user is taken) the group of the image's `USER`, else that of the user in `/etc/passwd`,
/// else 0. An image's group does not go with another user: this is what the other runtimes do, and volumes are laid out
/// for it. The kubelet passes the uid of an image on as `run_as_user`.
///
/// # Errors
/// [`UserError`], naming the field and its value.
pub fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    image_user: &str,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<Identity, UserError> {
    let passwd = bounded("/etc/passwd", passwd)?;
    let group = bounded("/etc/group", group)?;
    let mut who = who(security, image_user, passwd, group)?;
    if let Some(asked) = &security.run_as_group {
        who.gid = id(asked.value, "run_as_group")?;
    }
    let mut groups = Groups::default();
    groups.add(who.gid);
    for asked in &security.supplemental_groups {
        groups.add(id(*asked, "supplemental_groups")?);
    }
    let policy = cri::SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy)
        .map_err(|_| UserError::Policy { value: security.supplemental_groups_policy })?;
    if let (cri::SupplementalGroupsPolicy::Merge, Some(name)) = (policy, &who.name) {
        groups_of(group, name).for_each(|gid| groups.add(gid));
    }
    if groups.list.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups { count: groups.list.len() });
    }
    Ok(Identity { uid: who.uid, gid: who.gid, groups: groups.list })
}

#[derive(Default)]
struct Groups {
    list: Vec<u32>,
    seen: std::collections::HashSet<u32>,
}

impl Groups {
    fn add(&mut self, gid: u32) {
        if self.seen.insert(gid) {
            self.list.push(gid);
        }
    }
}

fn who(
    security: &cri::LinuxContainerSecurityContext,
    image_user: &str,
    passwd: &[u8],
    group: &[u8],
) -> Result<Who, UserError> {
    let name = security.run_as_username.as_str();
    match (&security.run_as_user, name) {
        (Some(uid), name) if !name.is_empty() => Err(UserError::Both { uid: uid.value, name: shorten(name) }),
        (Some(uid), _) => Ok(by_id(id(uid.value, "run_as_user")?, passwd)),
        (None, "") => match &security.run_as_group {
            Some(gid) => Err(UserError::GroupWithoutUser { gid: gid.value }),
            None => of_image(image_user, passwd, group),
        },
        (None, name) => {
            let who = match reference(name, "run_as_username")? {
                // The contract: it must be in the image's /etc/passwd, a number too.
                Ref::Id(uid) => passwd_by_uid(passwd, uid),
                Ref::Name(name) => passwd_by_name(passwd, &name),
            };
            let entry = who.ok_or_else(|| UserError::NoUser { field: "run_as_username", value: shorten(name) })?;
            Ok(Who { uid: entry.uid, gid: entry.gid, name: Some(entry.name) })
        }
    }
}

fn of_image(text: &str, passwd: &[u8], group: &[u8]) -> Result<Who, UserError> {
    let parsed = parse(text)?;
    let mut who = match parsed.user {
        None => by_id(0, passwd),
        Some(Ref::Id(uid)) => by_id(uid, passwd),
        Some(Ref::Name(name)) => {
            let entry = passwd_by_name(passwd, &name);
            let entry = entry.ok_or_else(|| UserError::NoUser { field: "image USER", value: shorten(text) })?;
            Who { uid: entry.uid, gid: entry.gid, name: Some(entry.name) }
        }
    };
    match parsed.group {
        None => {}
        Some(Ref::Id(gid)) => who.gid = gid,
        Some(Ref::Name(name)) => {
            let gid = group_named(group, &name);
            who.gid = gid.ok_or_else(|| UserError::NoGroup { field: "image USER", value: shorten(text) })?;
        }
    }
    Ok(who)
}

fn by_id(uid: u32, passwd: &[u8]) -> Who {
    match passwd_by_uid(passwd, uid) {
        Some(entry) => Who { uid, gid: entry.gid, name: Some(entry.name) },
        None => Who { uid, gid: 0, name: None },
    }
}

fn bounded<'a>(path: &'static str, file: Option<&'a [u8]>) -> Result<&'a [u8], UserError> {
    match file {
        Some(bytes) if bytes.len() > MAX_FILE_SIZE => Err(UserError::FileTooLarge { path, size: bytes.len() }),
        Some(bytes) => Ok(bytes),
        None => Ok(&[]),
    }
}
