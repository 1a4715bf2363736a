//! Generated layers, unpacked by us and by a model of the OCI rules kept in memory, which also knows whiteouts and replacement.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::storage::tests::builder::Seeded;
use crate::storage::tests::scan::Facts;

use super::*;

/// What a layer should look like on disk, by path.
#[derive(Default)]
struct Model {
    names: BTreeMap<String, usize>,
    inodes: Vec<Facts>,
}

type Attrs = BTreeMap<Vec<u8>, Vec<u8>>;

impl Model {
    fn kind(&self, path: &str) -> Option<char> {
        self.names.get(path).map(|at| if self.is_whiteout(*at) { 'w' } else { self.inodes[*at].kind })
    }

    fn is_whiteout(&self, at: usize) -> bool {
        self.inodes[at].kind == 'c' && self.inodes[at].device == 0
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.names.retain(|name, _| name != path && !name.starts_with(&below));
    }

    fn put(&mut self, path: &str, facts: Facts) {
        self.names.insert(path.to_owned(), self.inodes.len());
        self.inodes.push(facts);
    }

    fn set_opaque(&mut self, path: &str) {
        let at = self.names[path];
        self.inodes[at].xattrs.insert(OPAQUE.as_bytes().to_vec(), b"y".to_vec());
    }

    /// Whether an entry can have this path: each parent is a directory, missing, or a whiteout.
    fn allows(&self, path: &str) -> bool {
        parents(path).all(|parent| matches!(self.kind(parent), None | Some('d' | 'w')))
    }

    fn imply(&mut self, path: &str) {
        for parent in parents(path).map(str::to_owned).collect::<Vec<_>>() {
            let before = self.kind(&parent);
            if before != Some('d') {
                let own = Attributes::default();
                self.put(&parent, plain('d', Attributes { mode: 0o755, ..own }, None));
                if before == Some('w') {
                    self.set_opaque(&parent);
                }
            }
        }
    }

    fn directory(&mut self, path: &str, facts: Facts) {
        match self.kind(path) {
            Some('d') => {
                // The last entry counts alone (OCI image specification, "Representing Changes"). What whiteouts said stays.
                let at = self.names[path];
                let opaque = self.inodes[at].xattrs.remove_entry(OPAQUE.as_bytes());
                self.inodes[at] = facts;
                self.inodes[at].xattrs.extend(opaque);
            }
            before => {
                self.remove(path);
                self.put(path, facts);
                if before == Some('w') {
                    self.set_opaque(path);
                }
            }
        }
    }

    fn tree(&self) -> Tree {
        let mut first: HashMap<usize, PathBuf> = HashMap::new();
        // In the order of paths, as the scan has it.
        let names: BTreeMap<PathBuf, usize> = self.names.iter().map(|(name, at)| (name.into(), *at)).collect();
        let facts = |(name, at): (PathBuf, usize)| {
            let same_as = first.entry(at).or_insert_with(|| name.clone()).clone();
            (name, Facts { same_as, ..self.inodes[at].clone() })
        };
        names.into_iter().map(facts).collect()
    }
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(move |(at, _)| &path[..at])
}

fn plain(kind: char, attributes: Attributes, mtime: Option<(i64, i64)>) -> Facts {
    Facts {
        kind,
        mode: attributes.mode,
        owner: (attributes.uid, attributes.gid),
        mtime,
        content: Vec::new(),
        device: 0,
        same_as: PathBuf::new(),
        xattrs: BTreeMap::new(),
    }
}

/// The extended attribute `security.capability` (vfs_cap_data, revision 2): cap_net_bind_service, permitted and effective.
pub(super) const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access list that agrees with a mode, and lets the user 1000 read: version 2, then a tag, permissions and an id for each.
pub(super) fn access_list(mode: u32) -> Vec<u8> {
    let part = |shift: u32| u16::try_from(mode >> shift & 7).expect("three bits");
    // Owner, a user, owning group, mask, others (acl(5)).
    let entries = [
        (1, part(6), u32::MAX),
        (2, 4, 1000),
        (4, part(3), u32::MAX),
        (16, part(3), u32::MAX),
        (32, part(0), u32::MAX),
    ];
    let bytes = |(tag, allowed, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &allowed.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [2_u32.to_le_bytes().to_vec(), entries.into_iter().flat_map(bytes).collect()].concat()
}

/// What the generator may use.
#[derive(Clone, Copy)]
pub(super) struct Features {
    /// Whiteouts, and entries that replace others or imply directories: rules of OCI, not of tar.
    pub oci: bool,
    /// Whiteouts only, in folders that have an entry of their own: before, after and without an entry of that name.
    pub whiteouts: bool,
    /// What needs root.
    pub root: bool,
    /// Files with holes. umoci refuses them.
    pub sparse: bool,
    /// Access lists, of folders for what is made in them too. GNU tar takes no care of what they are passed on to.
    pub lists: bool,
}

pub(super) struct Generator {
    random: Seeded,
    features: Features,
    model: Model,
    layer: Layer,
}

impl Generator {
    pub(super) fn run(seed: u64, features: Features) -> (Vec<u8>, Tree) {
        let mut generator = Self { random: Seeded(seed), features, model: Model::default(), layer: Layer::new() };
        for _ in 0..40 {
            generator.step();
        }
        (generator.layer.done(), generator.model.tree())
    }

    fn path(&mut self) -> String {
        let names = ["a", "b", "c d", "\u{e9}", "e.conf", "f"];
        let depth = self.random.below(4) + 1;
        let mut path = String::new();
        for _ in 0..depth {
            let name =
                if self.random.below(40) == 0 { "long-".repeat(45) } else { (*self.random.pick(&names)).to_owned() };
            path = if path.is_empty() { name } else { format!("{path}/{name}") };
        }
        path
    }

    fn attributes(&mut self) -> Attributes {
        let own = Attributes::default();
        let ids = [0, 1, 1000, 65_534, 2_097_152, 4_000_000_000];
        let (uid, gid) =
            if self.features.root { (*self.random.pick(&ids), *self.random.pick(&ids)) } else { (own.uid, own.gid) };
        let modes = [0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0o6555, 0, 0o7777];
        let modes = if self.features.root { &modes[..] } else { &modes[..2] };
        Attributes { mode: *self.random.pick(modes), uid, gid, mtime: self.random.below(4_000_000_000) }
    }

    /// One entry, unless the path drawn is not possible.
    fn step(&mut self) {
        let path = self.path();
        let there = self.model.kind(&path);
        let implied = parents(&path).any(|parent| self.model.kind(parent) != Some('d'));
        let Features { oci, whiteouts, .. } = self.features;
        let kind = self.random.below(if oci || whiteouts { 12 } else { 9 });
        let again = matches!(kind, 3 | 4) && there == Some('d');
        let replaces = kind < 9 && !again && there.is_some() && !(whiteouts && there == Some('w'));
        if !self.model.allows(&path) || (!oci && (replaces || implied)) {
            if implied && there.is_none() && !oci {
                self.parent_of(&path);
            }
            return;
        }
        self.model.imply(&path);
        match kind {
            0..3 => self.file(&path),
            3 | 4 => self.directory(&path),
            5 => self.symlink(&path),
            6 | 7 => self.hard_link(&path),
            8 => self.special(&path),
            9 | 10 => self.whiteout(&path),
            _ => self.opaque(&path),
        }
    }

    /// An entry for the topmost missing parent, so that later entries find theirs.
    fn parent_of(&mut self, path: &str) {
        let missing = parents(path).find(|parent| self.model.kind(parent).is_none()).map(str::to_owned);
        if let Some(missing) = missing
            && self.model.allows(&missing)
        {
            self.directory(&missing);
        }
    }

    /// Writes the header, with pax records for what its fields do not hold and for attributes.
    fn emit(&mut self, (flag, path, link): (u8, &str, &str), content: &[u8], a: Attributes, xattrs: bool) -> Facts {
        let nanoseconds = if self.random.below(2) == 0 { Some(self.random.below(1_000_000_000)) } else { None };
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if let Some(nanoseconds) = nanoseconds {
            records.push(("mtime".to_owned(), format!("{}.{nanoseconds:09}", a.mtime).into_bytes()));
        }
        let mut facts = plain(' ', a, Some((i64::try_from(a.mtime).expect("small"), 0)));
        if let (Some((seconds, _)), Some(nanoseconds)) = (facts.mtime, nanoseconds) {
            facts.mtime = Some((seconds, i64::try_from(nanoseconds).expect("small")));
        }
        if xattrs {
            facts.xattrs = self.extended(flag, a.mode);
            let record = |name: &[u8]| format!("SCHILY.xattr.{}", String::from_utf8_lossy(name));
            records.extend(facts.xattrs.iter().map(|(name, value)| (record(name), value.clone())));
        }
        self.names(&mut records, path, link);
        let short = |name: &str| if name.len() > 99 { "short".to_owned() } else { name.to_owned() };
        let (short, short_link) = (short(path), short(link));
        let layer = std::mem::take(&mut self.layer);
        let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        let layer = if records.is_empty() { layer } else { layer.pax(&records) };
        let names = (short.as_bytes(), short_link.as_bytes());
        self.layer = layer.raw(flag, names, content.len() as u64, content, a);
        facts
    }

    /// Extended attributes for a file or a directory.
    fn extended(&mut self, flag: u8, mode: u32) -> Attrs {
        let mut drawn = Attrs::new();
        for (name, one_in) in [("user.some", 3), ("user.other", 6)] {
            if self.random.below(one_in) == 0 {
                let length = self.random.below(60) + 1;
                drawn.insert(name.into(), (0..length).map(|_| self.random.next().to_le_bytes()[0]).collect());
            }
        }
        if self.features.root && matches!(flag, b'0' | b'5') && self.random.below(4) == 0 {
            drawn.insert(b"security.capability".to_vec(), CAPABILITY.to_vec());
        }
        if self.features.root && self.random.below(8) == 0 {
            drawn.insert(b"trusted.some".to_vec(), b"x".to_vec());
        }
        if self.features.lists && self.random.below(5) == 0 {
            drawn.insert(b"system.posix_acl_access".to_vec(), access_list(mode));
        }
        if self.features.lists && flag == b'5' && self.random.below(5) == 0 {
            drawn.insert(b"system.posix_acl_default".to_vec(), access_list(0o750));
        }
        drawn
    }

    /// Says names that the header has no room for: in pax records, or in the older way of GNU tar.
    fn names(&mut self, records: &mut Vec<(String, Vec<u8>)>, path: &str, link: &str) {
        let gnu = records.is_empty() && self.random.below(2) == 0;
        for (name, key, flag) in [(path, "path", b'L'), (link, "linkpath", b'K')] {
            if name.len() > 99 && gnu {
                let name = [name.as_bytes(), b"\0"].concat();
                let names = (&b"././@LongLink"[..], &b""[..]);
                let layer = std::mem::take(&mut self.layer);
                self.layer = layer.raw(flag, names, name.len() as u64, &name, Attributes::default());
            } else if name.len() > 99 {
                records.push((key.to_owned(), name.as_bytes().to_vec()));
            }
        }
    }

    /// A file with up to three regions of data in it, as GNU tar writes those with holes: a hole at the end is an empty region.
    fn sparse(&mut self, path: &str) {
        let (mut regions, mut data, mut content) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.random.below(3) + 1 {
            content.resize(content.len() + *self.random.pick(&[0, 512, 4096, 50_000_usize.next_multiple_of(512)]), 0);
            let length = *self.random.pick(&[512, 1024, 8192]);
            let region: Vec<u8> = (0..length).map(|_| self.random.next().to_le_bytes()[0]).collect();
            regions.push((content.len() as u64, region.len() as u64));
            content.extend_from_slice(&region);
            data.extend(region);
        }
        let attributes = self.attributes();
        let facts = self.emit((b'S', path, ""), &data, attributes, true);
        let hole = *self.random.pick(&[0, 512, 100_000]);
        content.resize(content.len() + hole, 0);
        if hole > 0 {
            regions.push((content.len() as u64, 0));
        }
        let at = self.layer.0.len() - data.len() - 512;
        let mut header = tar::Header::from_byte_slice(&self.layer.0[at..at + 512]).clone();
        let gnu = header.as_gnu_mut().expect("a GNU header");
        gnu.set_real_size(content.len() as u64);
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(&regions) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        header.set_cksum();
        self.layer.0[at..at + 512].copy_from_slice(header.as_bytes());
        self.model.remove(path);
        self.model.put(path, Facts { kind: 'f', content, ..facts });
    }

    fn file(&mut self, path: &str) {
        if self.features.sparse && self.random.below(6) == 0 {
            return self.sparse(path);
        }
        let size = *self.random.pick(&[0, 1, 511, 512, 513, 5000]);
        let content: Vec<u8> = (0..size).map(|_| self.random.next().to_le_bytes()[0]).collect();
        let attributes = self.attributes();
        let facts = self.emit((b'0', path, ""), &content, attributes, true);
        self.model.remove(path);
        self.model.put(path, Facts { kind: 'f', content, ..facts });
    }

    fn directory(&mut self, path: &str) {
        let mut attributes = self.attributes();
        if !self.features.root {
            // Others than root need the right to go in.
            attributes.mode = 0o755;
        }
        let facts = self.emit((b'5', path, ""), b"", attributes, true);
        self.model.directory(path, Facts { kind: 'd', ..facts });
    }

    fn symlink(&mut self, path: &str) {
        let target = *self.random.pick(&["a", "../b", "/etc/passwd", "missing/../x", "e.conf"]);
        let attributes = self.attributes();
        let facts = self.emit((b'2', path, target), b"", attributes, false);
        self.model.remove(path);
        self.model.put(path, Facts { kind: 'l', mode: 0o777, content: target.as_bytes().to_vec(), ..facts });
    }

    fn hard_link(&mut self, path: &str) {
        let below = format!("{path}/");
        let targets: Vec<String> = self.model.names.keys().filter(|name| !name.starts_with(&below)).cloned().collect();
        let linkable = |name: &&String| matches!(self.model.kind(name), Some('f' | 'p' | 'c' | 'b'));
        let targets: Vec<&String> = targets.iter().filter(linkable).collect();
        if targets.is_empty() {
            return self.file(path);
        }
        let target = (*self.random.pick(&targets)).clone();
        // A link has no time or mode of its own; records for it would only blur the comparison.
        self.layer = {
            let mut records = Vec::new();
            self.names(&mut records, path, &target);
            let records: Vec<(&str, &[u8])> =
                records.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
            let layer = std::mem::take(&mut self.layer);
            let layer = if records.is_empty() { layer } else { layer.pax(&records) };
            let short = |name: &str| if name.len() > 99 { "short".to_owned() } else { name.to_owned() };
            let at = &self.model.inodes[self.model.names[&target]];
            let attributes = Attributes {
                mode: at.mode,
                uid: at.owner.0,
                gid: at.owner.1,
                mtime: u64::try_from(at.mtime.map_or(0, |time| time.0)).unwrap_or(0),
            };
            layer.raw(b'1', (short(path).as_bytes(), short(&target).as_bytes()), 0, b"", attributes)
        };
        if target != path {
            let at = self.model.names[&target];
            self.model.remove(path);
            self.model.names.insert(path.to_owned(), at);
        }
    }

    fn special(&mut self, path: &str) {
        let attributes = self.attributes();
        let kind = if self.features.root { *self.random.pick(b"346") } else { b'6' };
        let facts = self.emit((kind, path, ""), b"", attributes, false);
        // The device number goes into the header that was just written.
        let device = if kind == b'6' { 0 } else { rustix::fs::makedev(10, 229) };
        if kind != b'6' {
            let at = self.layer.0.len() - 512;
            let mut header = tar::Header::from_byte_slice(&self.layer.0[at..]).clone();
            header.set_device_major(10).expect("a GNU header");
            header.set_device_minor(229).expect("a GNU header");
            self.layer.0.truncate(at);
            self.layer = self.layer.block(header, b"");
        }
        let kind = match kind {
            b'3' => 'c',
            b'4' => 'b',
            _ => 'p',
        };
        self.model.remove(path);
        self.model.put(path, Facts { kind, device, ..facts });
    }

    fn whiteout(&mut self, path: &str) {
        let (parent, base) = path.rsplit_once('/').unwrap_or(("", path));
        let name = if parent.is_empty() { format!(".wh.{base}") } else { format!("{parent}/.wh.{base}") };
        self.layer = std::mem::take(&mut self.layer).pax(&[("path", name.as_bytes())]).file("short", "");
        match self.model.kind(path) {
            Some('d') => self.model.set_opaque(path),
            Some(_) => {}
            None => {
                // Made without a time of its own, and by whoever unpacks.
                let own = Attributes::default();
                self.model.put(path, plain('c', Attributes { mode: 0, ..own }, None));
            }
        }
    }

    fn opaque(&mut self, path: &str) {
        let Some((parent, _)) = path.rsplit_once('/') else { return };
        let name = format!("{parent}/.wh..wh..opq");
        self.layer = std::mem::take(&mut self.layer).pax(&[("path", name.as_bytes())]).file("short", "");
        self.model.set_opaque(parent);
    }
}

fn rebuilt(bench: &Bench) -> anyhow::Result<Vec<u8>> {
    let layer = Root::open(&bench.temp.path().join("work"))?;
    let mut all = Vec::new();
    let strict = |damage| Err(std::io::Error::other(damage));
    std::io::Read::read_to_end(&mut crate::storage::skeleton::Rebuilt::open(&layer, strict)?, &mut all)?;
    Ok(all)
}

/// Leaves the root itself out: no entry describes it.
pub(super) fn below_root(tree: Tree) -> Tree {
    tree.into_iter().filter(|(path, _)| !path.as_os_str().is_empty()).collect()
}

fn compare(seeds: std::ops::Range<u64>, features: Features) -> anyhow::Result<()> {
    for seed in seeds {
        let (layer, want) = Generator::run(seed, features);
        let bench = Bench::new()?;
        let parents = usize::try_from(seed % 4)?;
        let done =
            bench.unpack(parents, Compression::Gzip, &gzip(&layer)).map_err(|e| anyhow::anyhow!("{seed}: {e:?}"))?;
        let mut got = below_root(scan(&bench.diff())?);
        for whiteout in got.values_mut().filter(|facts| facts.kind == 'c' && facts.device == 0) {
            // Nobody ever sees its owner, which may come from a set-group-id directory, nor the access list.
            whiteout.owner = (0, 0);
            whiteout.mode = 0;
            whiteout.xattrs.clear();
        }
        let found = differences(&got, &want);
        anyhow::ensure!(found.is_empty(), "seed {seed}: {found:#?}");
        // All that is on disk, beside what is not of the layer: the folder itself, that of the tree, and its root.
        let all = scan(&bench.temp.path().join("work"))?;
        let names: std::collections::BTreeSet<_> = all.values().map(|facts| &facts.same_as).collect();
        assert_eq!(done.usage.inodes, names.len() as u64 - 2, "seed {seed}: inodes counted");
        anyhow::ensure!(rebuilt(&bench)? == layer, "seed {seed}: the archive is not what it was");
        let (at, digest) = (Root::open(&bench.temp.path().join("work"))?, Digest::of(&layer));
        let report = crate::storage::verify::verify(&at, &digest, &digest, &|| Ok(None))?;
        anyhow::ensure!(report.findings.is_empty(), "seed {seed}: damage in what nobody touched: {report:#?}");
    }
    Ok(())
}

#[test]
fn generated_layers_match_the_model() -> anyhow::Result<()> {
    compare(0..100, Features { oci: false, whiteouts: false, root: false, sparse: true, lists: false })
}

#[test]
#[ignore = "needs root"]
fn generated_layers_match_the_model_in_all_features() -> anyhow::Result<()> {
    let all = Features { oci: true, whiteouts: true, root: true, sparse: true, lists: true };
    in_memory(move || compare(0..cases(1500), all))
}

/// How many cases to generate; `CRICKET_UNPACK_CASES` is a factor in percent.
pub(super) fn cases(usual: u64) -> u64 {
    let percent = std::env::var("CRICKET_UNPACK_CASES").ok().and_then(|text| text.parse::<u64>().ok());
    usual * percent.unwrap_or(100) / 100
}

/// Runs with a `/tmp` of its own in memory, so that no disk is waited for.
pub(super) fn in_memory(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    crate::storage::tests::private(|| {
        crate::sys::mount::tmpfs(Path::new("/tmp"), 1 << 30, 0o1777, (0, 0))?;
        work()
    })
}
