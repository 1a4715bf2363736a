//! Writes layers byte by byte, so that also those that no tool would write can be had.

use std::io::Write as _;

use tar::Header;

/// A tar archive in the making.
#[derive(Clone, Default)]
pub(crate) struct Layer(pub Vec<u8>);

/// The fixed fields of an entry.
#[derive(Clone, Copy)]
pub(crate) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
}

impl Default for Attributes {
    /// Owned by whoever runs the test, so that it needs no privilege.
    fn default() -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { mode: 0o644, uid, gid, mtime: 1_500_000_000 }
    }
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends a header with these very bytes in it, and content padded to a block.
    pub(crate) fn raw(
        mut self,
        flag: u8,
        (name, link): (&[u8], &[u8]),
        size: u64,
        content: &[u8],
        attributes: Attributes,
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_mode(attributes.mode);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_mtime(attributes.mtime);
        header.set_size(size);
        let old = header.as_old_mut();
        old.linkflag = [flag];
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        self.block(header, content)
    }

    /// Appends a header as it is, with its checksum set, and content padded to a block.
    pub(crate) fn block(&mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        std::mem::take(self)
    }

    pub(crate) fn entry(self, flag: u8, name: &str, link: &str) -> Self {
        let mode = if flag == b'5' { 0o755 } else { 0o644 };
        self.raw(flag, (name.as_bytes(), link.as_bytes()), 0, b"", Attributes { mode, ..Attributes::default() })
    }

    pub(crate) fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        self.raw(b'0', (name.as_bytes(), b""), content.len() as u64, content, Attributes::default())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target)
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target)
    }

    /// A character device of root's.
    pub(crate) fn device(mut self, name: &str, (major, minor): (u32, u32)) -> Self {
        let mut header = Header::new_gnu();
        header.set_path(name).expect("a short name");
        header.set_entry_type(tar::EntryType::Char);
        header.set_mode(0o666);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_size(0);
        header.set_device_major(major).expect("a GNU header");
        header.set_device_minor(minor).expect("a GNU header");
        self.block(header, b"")
    }

    /// A pax header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            if length.to_string().len() > rest.to_string().len() {
                length = rest + length.to_string().len();
            }
            let _ = write!(data, "{length} {key}=");
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.pax_bytes(b'x', &data)
    }

    pub(crate) fn pax_bytes(self, flag: u8, data: &[u8]) -> Self {
        self.raw(flag, (b"pax", b""), data.len() as u64, data, Attributes::default())
    }

    /// The whole archive, with the two blocks of zeros.
    pub(crate) fn done(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// Numbers that look random and are the same each time.
pub(crate) struct Seeded(pub u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }
}
