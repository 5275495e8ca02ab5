//! What can be said of PTX without its compiler: every register and label is declared, once.

use std::collections::{HashMap, HashSet};

/// Registers with their number, from `.reg .f32 %a<4>, %b;`.
fn declared(line: &str) -> Vec<(String, Option<u32>)> {
    let Some(list) = line.trim().strip_prefix(".reg ").and_then(|rest| rest.split_once(' ')) else { return Vec::new() };
    let names = list.1.trim_end_matches(';').split(',').map(str::trim);
    let name = |name: &str| match name.trim_end_matches('>').split_once('<') {
        Some((name, n)) => (name.to_owned(), n.parse().ok()),
        None => (name.to_owned(), None),
    };
    names.map(name).collect()
}

/// Words that begin with `%`, without the special registers' parts.
fn used(line: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| !(c.is_alphanumeric() || c == '_' || c == '%' || c == '.');
    line.split(word).filter(|w| w.starts_with('%')).map(|w| w.split('.').next().unwrap_or(w))
}

const SPECIAL: [&str; 4] = ["%tid", "%ctaid", "%nctaid", "%ntid"];

/// Panics with the first line that names what is not there.
pub fn check(ptx: &str) {
    let (mut registers, mut labels, mut jumps) = (HashMap::new(), HashSet::new(), HashSet::new());
    let mut depth = 0i32;
    for line in ptx.lines().filter(|line| !line.trim_start().starts_with("//")) {
        if line.contains(".entry") {
            registers.clear();
            labels.clear();
            jumps.clear();
        }
        for (name, n) in declared(line) {
            assert!(!SPECIAL.contains(&name.as_str()), "{line}");
            assert!(registers.insert(name, n).is_none(), "declared twice: {line}");
        }
        if !line.trim_start().starts_with(".reg") {
            for word in used(line).filter(|word| !SPECIAL.contains(word)) {
                let name = word.trim_end_matches(|c: char| c.is_ascii_digit());
                let number = word[name.len()..].parse::<u32>().ok();
                let known = registers.get(word).is_some_and(Option::is_none)
                    || registers.get(name).is_some_and(|n| n.zip(number).is_some_and(|(n, number)| number < n));
                assert!(known, "`{word}` is not declared: {line}");
            }
        }
        if let Some(label) = line.strip_suffix(':') {
            assert!(labels.insert(label.to_owned()), "twice: {line}");
        }
        if let Some((_, label)) = line.split_once("bra ") {
            jumps.insert(label.trim_end_matches(';').to_owned());
        }
        depth += line.matches('{').count() as i32 - line.matches('}').count() as i32;
        if line == "}" {
            assert!(depth == 0 && jumps == labels, "{jumps:?} {labels:?}");
        }
    }
    assert_eq!(depth, 0);
}
