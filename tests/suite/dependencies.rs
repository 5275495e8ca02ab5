//! What an application takes on with the library: crates, as `cargo tree` tells, and lines of its own.

use std::collections::BTreeSet;
use std::process::Command;

/// Names and versions of all crates that `args` bring to this machine, our own included.
fn crates(args: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap();
    let tree = ["tree", "--locked", "--edges", "normal", "--prefix", "none"];
    let output = Command::new(cargo).current_dir(env!("CARGO_MANIFEST_DIR")).args(tree).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn n_versions(crates: &BTreeSet<String>, name: &str) -> usize {
    crates.iter().filter(|c| c.split(' ').next() == Some(name)).count()
}

#[test]
fn the_library_alone_brings_fewer_than_150_crates() {
    let library = crates(&["--no-default-features"]);
    assert!(library.len() < 150, "{} crates: {library:#?}", library.len());
    let missing = ["clap", "ureq", "indicatif", "plotters"].map(|name| n_versions(&library, name));
    assert_eq!(missing, [0; 4], "what only the binary needs");
    let binary = crates(&[]);
    assert!(binary.is_superset(&library) && n_versions(&binary, "clap") == 1);
}

#[test]
fn the_window_brings_no_second_wgpu() {
    let window = crates(&["--package", "runahead-desktop"]);
    assert_eq!(["eframe", "wgpu", "naga"].map(|name| n_versions(&window, name)), [1; 3]);
    assert!(n_versions(&crates(&[]), "eframe") == 0, "the root package does without");
}

#[test]
fn hello_world_has_ten_lines() {
    let example = include_str!("../../examples/hello.rs");
    let (_, code) = example.split_once("\n\n").unwrap();
    assert!(code.lines().count() <= 10, "{code}");
    assert!(include_str!("../../README.md").contains(&format!("```rust\n{code}```")), "README.md shows another one");
}
