//! Licences of the dependencies, from cargo's own metadata.

/// What may be linked. Licences that are only allowed as one of several (CC0, Unlicense) are not named: the other one is.
const ALLOWED: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// A crate and the licence that it states.
pub struct Package {
    pub name: String,
    pub license: Option<String>,
}

/// All crates that a build for this kind of machine takes, tests included.
#[allow(clippy::disallowed_methods)] // cargo runs these tests, and sys::exec is the daemon's
pub fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").expect("cargo runs the tests");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| Package {
            name: format!("{} {}", package["name"].as_str().unwrap_or("?"), package["version"].as_str().unwrap_or("?")),
            license: package["license"].as_str().map(str::to_owned),
        })
        .collect()
}

/// Whether an SPDX expression can be met with allowed licences alone. A slash is an old way to write OR.
pub fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    either(&mut rest) == Some(true) && rest.is_empty()
}

fn either(rest: &mut &[&str]) -> Option<bool> {
    let mut met = both(rest)?;
    while rest.first() == Some(&"OR") {
        *rest = &rest[1..];
        met |= both(rest)?;
    }
    Some(met)
}

fn both(rest: &mut &[&str]) -> Option<bool> {
    let mut met = one(rest)?;
    while rest.first() == Some(&"AND") {
        *rest = &rest[1..];
        met &= one(rest)?;
    }
    Some(met)
}

fn one(rest: &mut &[&str]) -> Option<bool> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    if *first == "(" {
        let met = either(rest)?;
        let (close, after) = rest.split_first()?;
        *rest = after;
        return (*close == ")").then_some(met);
    }
    let mut license = (*first).to_owned();
    if let ["WITH", exception, after @ ..] = *rest {
        license = format!("{license} WITH {exception}");
        *rest = after;
    }
    Some(ALLOWED.contains(&license.as_str()))
}

#[test]
fn expressions_are_understood() {
    for (expression, allowed) in [
        ("MIT", true),
        ("MIT OR Apache-2.0", true),
        ("Apache-2.0 / MIT", true),
        ("MIT/Apache-2.0", true),
        ("Unlicense OR MIT", true),
        ("CC0-1.0 OR MIT-0 OR Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("ISC AND (Apache-2.0 OR ISC)", true),
        ("CC0-1.0", false),
        ("GPL-3.0-only", false),
        ("MIT AND GPL-3.0-only", false),
        ("MIT OR GPL-3.0-only AND Zlib", true),
        ("(MIT OR Zlib) AND MPL-2.0", false),
        ("GPL-2.0 WITH Classpath-exception-2.0", false),
        ("MIT OR", false),
        ("(MIT", false),
        ("MIT MIT", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression), allowed, "{expression}");
    }
}
