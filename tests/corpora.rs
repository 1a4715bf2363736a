//! The inputs that fuzzing kept, through the same checks that the fuzzer makes of them (`fuzz/`), without a fuzzer.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::type_complexity)] // a test
#![allow(missing_debug_implementations)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[global_allocator]
static HEAP: fuzz::heap::Counted = fuzz::heap::Counted;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

/// One test and not one for each target, since a target counts the bytes that the whole process holds. With CORPUS=folder
/// set, the inputs are taken from `folder/<target>`: what a run of the fuzzer has found.
#[test]
fn every_input_passes_and_every_target_is_complete() {
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&top().join("corpus")), targets, "fuzz/corpus has other folders than targets! has names");
    assert_eq!(
        names(&top().join("fuzz_targets")),
        targets,
        "fuzz/fuzz_targets has other files than targets! has names"
    );
    let manifest = std::fs::read_to_string(top().join("Cargo.toml")).unwrap();
    let corpus = std::env::var_os("CORPUS").map_or_else(|| top().join("corpus"), PathBuf::from);
    let mut size = 0;
    for (name, check) in fuzz::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/Cargo.toml has no [[bin]] for {name}");
        let target = std::fs::read_to_string(top().join("fuzz_targets").join(name).with_extension("rs")).unwrap();
        assert!(
            target.contains(&format!("cricket_fuzz::{name}::check")),
            "fuzz_targets/{name}.rs checks another target"
        );
        fuzz::heap::take_record();
        let mut count = 0;
        for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            size += input.len();
            count += 1;
            // Shown when it fails.
            println!("{}", path.display());
            check(&input);
        }
        println!("{name}: {count} inputs, at most {} bytes held", fuzz::heap::take_record());
        assert!(count > 0, "{} is empty", corpus.join(name).display());
    }
    assert!(size < 200 * 1024 || corpus != top().join("corpus"), "fuzz/corpus has {size} bytes; see cargo fuzz cmin");
}
