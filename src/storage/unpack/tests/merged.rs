//! What every tool refuses.

use super::model::{by_umoci, in_memory, layout};
use super::*;

/// A link needs what it leads to: an archive that has it only later is refused by all.
#[test]
#[ignore = "needs root"]
fn a_hard_link_to_a_later_entry_is_refused_by_all() -> anyhow::Result<()> {
    in_memory(|| {
        let layer = Layer::new().hardlink("early", "late").file("late", "x").done();
        let bench = Bench::new()?;
        assert!(bench.unpack(OPEN_PARENTS, Compression::None, &layer).is_err());
        let (image, theirs) = (bench.temp.path().join("image"), bench.temp.path().join("theirs"));
        layout(&image, &[layer])?;
        assert!(by_umoci(&image, &theirs).is_err());
        Ok(())
    })
}
