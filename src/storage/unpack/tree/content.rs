//! The content of files: written as it arrives, with holes in the place of long runs of zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::super::UnpackError;
use super::super::archive::Archive;
use super::super::error::shown;
use super::Place;

/// Zeros that fill so much, at a multiple of it in the file, are left out: the file reads the same. Large enough that no file
/// is cut into crumbs. Where the stream is cut within such a block, its parts are looked at by themselves.
const HOLE: usize = 16 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

/// Writes the content of a plain file; gives the bytes that were written.
pub(super) fn copy(place: &Place<'_>, archive: &mut Archive<'_>, file: &File) -> Result<u64, UnpackError> {
    let (mut offset, mut written, mut ends) = (0, 0, 0);
    loop {
        let slice = archive.content()?;
        let length = slice.len();
        if length == 0 {
            break;
        }
        let (wrote, end) = write_but_zeros(file, slice, offset).map_err(|source| not_written(place, source))?;
        archive.took(length);
        offset += u64::try_from(length).expect("a slice is smaller than 2^64");
        (written, ends) = (written + wrote, if wrote > 0 { end } else { ends });
    }
    if ends < offset {
        file.set_len(offset).map_err(|source| not_written(place, source))?;
    }
    Ok(written)
}

/// Writes a sparse file's regions.
pub(super) fn copy_regions(
    place: &Place<'_>,
    archive: &mut Archive<'_>,
    file: &File,
    regions: &[(u64, u64)],
) -> Result<u64, UnpackError> {
    let mut written = 0;
    for &(mut offset, mut left) in regions {
        while left > 0 {
            let slice = archive.content()?;
            let length = slice.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if length == 0 {
                return Err(place.refused("its sparse map asks for more than it holds"));
            }
            file.write_all_at(&slice[..length], offset).map_err(|source| not_written(place, source))?;
            archive.took(length);
            let step = u64::try_from(length).expect("a slice is smaller than 2^64");
            (offset, left, written) = (offset + step, left - step, written + step);
        }
    }
    file.set_len(place.entry.size).map_err(|source| not_written(place, source))?;
    Ok(written)
}

/// Writes a slice at an offset, but for whole blocks of zeros. Gives the bytes written and where the last of them ends.
fn write_but_zeros(file: &File, slice: &[u8], offset: u64) -> io::Result<(u64, u64)> {
    let place = |at: usize| offset + u64::try_from(at).expect("a slice is smaller than 2^64");
    let (mut written, mut end) = (0, 0);
    let mut write = |from: usize, to: usize| {
        if from < to {
            file.write_all_at(&slice[from..to], place(from))?;
            written += place(to) - place(from);
            end = place(to);
        }
        io::Result::Ok(())
    };
    let block = u64::try_from(HOLE).expect("a small number");
    let (mut from, mut at) = (0, 0);
    while at < slice.len() {
        let into = usize::try_from(place(at) % block).expect("smaller than a block");
        let step = (HOLE - into).min(slice.len() - at);
        if slice[at..at + step] == ZEROS[..step] {
            write(from, at)?;
            from = at + step;
        }
        at += step;
    }
    write(from, slice.len())?;
    Ok((written, end))
}

fn not_written(place: &Place<'_>, source: io::Error) -> UnpackError {
    UnpackError::Write { name: shown(place.name.bytes()), operation: "its content cannot be written", source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;
    use std::os::unix::fs::MetadataExt as _;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is zero, and wherever the slices are cut, the file reads as what was written.
        #[test]
        fn a_file_reads_the_same(
            parts in prop::collection::vec((any::<bool>(), 1_usize..40_000), 1..12),
            cut in 1_usize..70_000,
        ) {
            let mut want = Vec::new();
            for (zero, length) in parts {
                want.resize(want.len() + length, if zero { 0 } else { 7 });
            }
            let mut file = tempfile::tempfile()?;
            let (mut offset, mut ends) = (0, 0);
            for slice in want.chunks(cut) {
                let (wrote, end) = write_but_zeros(&file, slice, offset)?;
                offset += slice.len() as u64;
                ends = if wrote > 0 { end } else { ends };
            }
            prop_assert!(ends <= offset);
            file.set_len(offset)?;
            let mut got = Vec::new();
            file.read_to_end(&mut got)?;
            prop_assert!(got == want);
        }
    }

    #[test]
    fn zeros_take_no_room() -> anyhow::Result<()> {
        let file = tempfile::tempfile()?;
        let mut content = vec![0; 1 << 20];
        content[500_000] = 1;
        assert_eq!(write_but_zeros(&file, &content, 0)?, (16 << 10, 507_904));
        assert!(file.metadata()?.blocks() * 512 <= 64 << 10, "{} blocks", file.metadata()?.blocks());
        Ok(())
    }
}
