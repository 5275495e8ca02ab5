//! Loops that are unrolled as text before a shader is parsed.
//!
//! WGSL has no way to ask for it, and drivers keep a matrix in memory when it lies in an array that a loop indexes. A loop is
//!
//! ```wgsl
//! //% for i in BLOCKS
//! sum_$i = coopMultiplyAdd(a_$i, b, sum_$i);
//! //% end
//! ```
//!
//! with `BLOCKS` among the counts, nested as deep as one likes. What is not well-formed stays as it is, and the front end refuses its `$`.

/// The source with each loop written out as often as `counts` says.
pub(super) fn unroll(source: &str, counts: &[(&str, u32)]) -> String {
    let lines = source.lines().collect::<Vec<_>>();
    let mut out = String::with_capacity(4 * source.len());
    expand(&lines, counts, &mut Vec::new(), &mut out);
    out
}

fn expand(lines: &[&str], counts: &[(&str, u32)], set: &mut Vec<(String, u32)>, out: &mut String) {
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let Some((name, count, body)) = head(line, counts).zip(body(&lines[at..])).map(|((n, c), b)| (n, c, b)) else {
            let line = set.iter().fold((*line).to_owned(), |line, (name, n)| line.replace(name, &n.to_string()));
            out.push_str(&line);
            out.push('\n');
            continue;
        };
        for n in 0..count {
            set.push((format!("${name}"), n));
            expand(body, counts, set, out);
            set.pop();
        }
        at += body.len() + 1;
    }
}

/// Variable and count of a line that begins a loop.
fn head<'a>(line: &'a str, counts: &[(&str, u32)]) -> Option<(&'a str, u32)> {
    let (name, count) = line.trim_start().strip_prefix("//% for ")?.split_once(" in ")?;
    counts.iter().find(|(known, _)| *known == count).map(|&(_, count)| (name, count))
}

/// The lines up to the end of the loop which they follow.
fn body<'a, 'b>(lines: &'a [&'b str]) -> Option<&'a [&'b str]> {
    let mut depth = 1;
    let end = lines.iter().position(|line| {
        let line = line.trim_start();
        depth += usize::from(line.starts_with("//% for "));
        depth -= usize::from(line == "//% end");
        depth == 0
    });
    end.map(|end| &lines[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_written_out_in_order() {
        let source = "a\n//% for i in N\n  b_$i\n  //% for j in M\n  c_$i_$j\n  //% end\n//% end\nd\n";
        let expected = "a\n  b_0\n  c_0_0\n  c_0_1\n  b_1\n  c_1_0\n  c_1_1\nd\n";
        assert_eq!(unroll(source, &[("M", 2), ("N", 2)]), expected);
        assert_eq!(unroll(source, &[("M", 2), ("N", 0)]), "a\nd\n");
    }

    #[test]
    fn what_is_no_loop_stays() {
        for source in ["//% for i in N\nx_$i\n", "//% for i in K\nx_$i\n//% end\n", "//% for i\n//% end\n"] {
            assert_eq!(unroll(source, &[("N", 2)]), source);
        }
    }
}
