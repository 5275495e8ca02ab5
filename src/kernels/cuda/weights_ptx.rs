//! The text of the kernels that make f16 of weights in other formats, in PTX: one for each format, from one table.
//!
//! They read the planes of `kernels/wgsl/planes.rs`, as `shaders/lib/weight_*.wgsl` do, and round as the tiles of `shaders/product_coop.wgsl`: numbers in
//! f32, which become f16 and saturate at 65504. Eight neighbours are a unit. Rows are whole runs of [`WIDTH_STEP`] elements or of a super-block, so that
//! a plane is one sequence of runs and a unit's number alone says where its bits are.

use std::fmt::Write;

use crate::dtype::Dtype;
use crate::kernels::wgsl::planes::RowBytes;

/// Threads of a block.
pub const THREADS: u32 = 256;

/// Elements of a unit, which is what a thread makes at a time.
pub const EIGHT: usize = 8;

/// Units that a thread loads before it makes numbers of them, by the letters of their registers. Llama-3-8B in Q4_K on an H200, 128 and 4,096 rows:
/// 17.7 and 118.9 ms; with one unit a thread 18.5 and 119.8; 114.2 in f16.
const UNITS: [&str; 4] = ["a", "b", "c", "d"];

/// Units of a block of threads.
pub const BLOCK_UNITS: usize = UNITS.len() * THREADS as usize;

/// What the width of a matrix is a multiple of: two blocks of 32 share a word of scales.
pub const WIDTH_STEP: usize = 64;

/// The name of a format's kernel, or `None` for f16.
pub fn name(format: Dtype) -> Option<String> {
    (format != Dtype::F16).then(|| format!("from_{}", format.name().to_lowercase()))
}

/// One module with the kernels of all formats.
pub fn source() -> String {
    let kernels = Dtype::ALL.into_iter().filter_map(|format| Some(kernel(&name(format)?, format)));
    ".version 7.0\n.target sm_80\n.address_size 64\n".to_owned() + &kernels.collect::<String>()
}

/// Where the bits of a number are.
struct Layout {
    /// Elements of a run, which has bytes of its own in both planes.
    run: usize,
    /// Bits of a code in the plane of quants, neighbours side by side from the run's first byte on.
    low: u32,
    /// Bits above those.
    high: Option<High>,
    /// What is taken off a code.
    zero: u32,
    scale: Scale,
}

#[derive(Clone, Copy, PartialEq)]
enum Plane {
    Quants,
    Scales,
}

struct High {
    plane: Plane,
    /// Bytes of the run before them.
    at: usize,
    bits: u32,
}

/// What a code is multiplied with, and what is added then.
enum Scale {
    /// An f16 for each block of 32, from byte `at` of the run on.
    Blocks { at: usize },
    /// Two f16, a scale and a minimum to add.
    AndLeast { at: usize },
    /// As `shaders/lib/scales_k.wgsl` reads them: scales and minima of 6 bits and a factor for either.
    Sixes,
    /// Q2_K: a byte of scale and minimum for each 16 elements.
    Nibbles,
    /// Q3_K: scales of 6 bits from -32 on.
    SignedSixes,
    /// Q6_K: scales of a byte.
    Bytes,
}

/// The formats whose elements are codes.
const fn layout(format: Dtype) -> Option<Layout> {
    const fn high(plane: Plane, at: usize, bits: u32) -> Option<High> {
        Some(High { plane, at, bits })
    }
    let (run, low, high, zero, scale) = match format {
        Dtype::Q8_0 => (64, 8, None, 128, Scale::Blocks { at: 0 }),
        Dtype::Q4_0 => (64, 4, None, 8, Scale::Blocks { at: 0 }),
        Dtype::Iq4Nl => (64, 4, None, 128, Scale::Blocks { at: 0 }),
        Dtype::Q4_1 => (32, 4, None, 0, Scale::AndLeast { at: 0 }),
        Dtype::Q5_0 => (64, 4, high(Plane::Scales, 0, 1), 16, Scale::Blocks { at: 8 }),
        Dtype::Q5_1 => (32, 4, high(Plane::Scales, 0, 1), 0, Scale::AndLeast { at: 4 }),
        Dtype::Q2K => (256, 2, None, 0, Scale::Nibbles),
        Dtype::Q3K => (256, 2, high(Plane::Quants, 64, 1), 4, Scale::SignedSixes),
        Dtype::Q4K => (256, 4, None, 0, Scale::Sixes),
        Dtype::Q5K => (256, 4, high(Plane::Quants, 128, 1), 0, Scale::Sixes),
        Dtype::Q6K => (256, 4, high(Plane::Quants, 128, 2), 32, Scale::Bytes),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => return None,
    };
    Some(Layout { run, low, high, zero, scale })
}

/// `out[8 i ..]` of the matrix's elements `8 i ..`, for `i` below `count`; both planes begin with the first of them. What stands in registers of a unit
/// has its letter at the end of the name: `~` in the texts below.
fn kernel(name: &str, format: Dtype) -> String {
    let mut text = format!(
        "
.visible .entry {name}(.param .u64 quants, .param .u64 scales, .param .u64 out, .param .u32 count)
.maxntid {THREADS}, 1, 1
{{
    .reg .b32 %most, %least;
    .reg .pred %p;
    .reg .u32 %i, %n, %last;
    .reg .u64 %quants, %scales, %out, %run, %at;
    .reg .b32 %t, %c, %s, %m, %h<4>;
"
    );
    text += &for_units(
        "    .reg .u32 %i~, %u~;\n    .reg .b32 %q~<2>, %high~, %k~<4>, %f~<8>;\n    .reg .b16 %half~<2>;\n",
    );
    let _ = write!(
        text,
        "    mov.b32 %most, 0x7bff7bff;
    mov.b32 %least, 0xfbfffbff;
    mov.u32 %n, %ctaid.x;
    mov.u32 %i, %tid.x;
    mad.lo.u32 %i, %n, {}, %i;
    ld.param.u32 %last, [count];
    setp.ge.u32 %p, %i, %last;
    @%p ret;
    sub.u32 %last, %last, 1;
    ld.param.u64 %quants, [quants];
    ld.param.u64 %scales, [scales];
    ld.param.u64 %out, [out];
    cvta.to.global.u64 %quants, %quants;
    cvta.to.global.u64 %scales, %scales;
    cvta.to.global.u64 %out, %out;
",
        BLOCK_UNITS
    );
    // A unit behind the last one is read as the last one, and not written.
    for (j, unit) in UNITS.into_iter().enumerate() {
        put(&mut text, &format!("add.u32 %i{unit}, %i, {};", j * THREADS as usize));
        put(&mut text, &format!("min.u32 %n, %i{unit}, %last;"));
        text += &loads(format).replace('~', unit);
    }
    for unit in UNITS {
        text += &numbers(format).replace('~', unit);
    }
    text += "    ret;\n}\n";
    text
}

/// A text for every unit of a thread.
fn for_units(text: &str) -> String {
    UNITS.map(|unit| text.replace('~', unit)).concat()
}

/// Appends an instruction.
fn put(text: &mut String, instruction: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "    {instruction}");
}

/// All that unit `%n` needs of memory.
fn loads(format: Dtype) -> String {
    let mut text = String::new();
    let Some(layout) = layout(format) else {
        let bytes = EIGHT * format.block_bytes();
        put(&mut text, &format!("mul.wide.u32 %at, %n, {bytes};"));
        put(&mut text, "add.u64 %at, %quants, %at;");
        text += if format == Dtype::F32 {
            "    ld.global.v4.b32 {%f~0, %f~1, %f~2, %f~3}, [%at];
    ld.global.v4.b32 {%f~4, %f~5, %f~6, %f~7}, [%at+16];
"
        } else {
            "    ld.global.v4.b32 {%f~1, %f~3, %f~5, %f~7}, [%at];\n"
        };
        return text;
    };
    let units = layout.run / EIGHT;
    let bytes = RowBytes::new(format, layout.run);
    put(&mut text, &format!("and.b32 %u~, %n, {};", units - 1));
    put(&mut text, &format!("shr.u32 %n, %n, {};", units.ilog2()));
    put(&mut text, &format!("mul.wide.u32 %run, %n, {};", bytes.quants));
    put(&mut text, "add.u64 %run, %quants, %run;");
    // Eight codes of `b` bits take `b` bytes.
    put(&mut text, &format!("mul.wide.u32 %at, %u~, {};", layout.low));
    put(&mut text, "add.u64 %at, %run, %at;");
    put(
        &mut text,
        match layout.low {
            2 => "ld.global.u16 %q~0, [%at];",
            4 => "ld.global.b32 %q~0, [%at];",
            _ => "ld.global.v2.b32 {%q~0, %q~1}, [%at];",
        },
    );
    let mut scales = format!("    mul.wide.u32 %run, %n, {};\n    add.u64 %run, %scales, %run;\n", bytes.scales);
    if let Some(High { plane, at, bits }) = layout.high {
        if plane == Plane::Scales {
            text += &std::mem::take(&mut scales);
        }
        put(&mut text, &format!("mul.wide.u32 %at, %u~, {bits};"));
        put(&mut text, "add.u64 %at, %run, %at;");
        put(&mut text, &format!("ld.global.u{} %high~, [%at+{at}];", 8 * bits));
    }
    text + &scales + &scale_loads(&layout.scale)
}

/// What a unit's scales need of the run at `%run`.
fn scale_loads(scale: &Scale) -> String {
    match scale {
        Scale::Blocks { at } => format!(
            "    shr.u32 %n, %u~, 2;
    mul.wide.u32 %at, %n, 2;
    add.u64 %at, %run, %at;
    ld.global.b16 %half~0, [%at+{at}];
"
        ),
        Scale::AndLeast { at } => format!("    ld.global.v2.b16 {{%half~0, %half~1}}, [%run+{at}];\n"),
        Scale::Sixes => "    ld.global.v4.b32 {%k~0, %k~1, %k~2, %k~3}, [%run];\n".to_owned(),
        Scale::Nibbles => "    shr.u32 %n, %u~, 1;
    cvt.u64.u32 %at, %n;
    add.u64 %at, %run, %at;
    ld.global.u8 %k~1, [%at];
    ld.global.v2.b16 {%half~0, %half~1}, [%run+16];
"
        .to_owned(),
        // Scale `j` has its low bits in a nibble of byte `j % 8`, and the high ones in a pair of byte `8 + j % 4`.
        Scale::SignedSixes => "    shr.u32 %u~, %u~, 1;
    and.b32 %n, %u~, 7;
    cvt.u64.u32 %at, %n;
    add.u64 %at, %run, %at;
    ld.global.u8 %k~0, [%at];
    and.b32 %n, %u~, 3;
    cvt.u64.u32 %at, %n;
    add.u64 %at, %run, %at;
    ld.global.u8 %k~1, [%at+8];
    ld.global.b16 %half~0, [%run+12];
"
        .to_owned(),
        Scale::Bytes => "    shr.u32 %n, %u~, 1;
    cvt.u64.u32 %at, %n;
    add.u64 %at, %run, %at;
    ld.global.s8 %k~0, [%at];
    ld.global.b16 %half~0, [%run+16];
"
        .to_owned(),
    }
}

/// The eight numbers of a unit that was loaded, to their place.
fn numbers(format: Dtype) -> String {
    let mut text = String::new();
    match (format, layout(format)) {
        (_, Some(layout)) => text += &from_codes(format, &layout),
        // The upper halves of numbers in f32.
        (Dtype::Bf16, _) => {
            for i in (0..EIGHT).step_by(2) {
                put(&mut text, &format!("shl.b32 %f~{i}, %f~{}, 16;", i + 1));
                put(&mut text, &format!("and.b32 %f~{0}, %f~{0}, 0xffff0000;", i + 1));
            }
        }
        _ => {}
    }
    for i in 0..4 {
        put(&mut text, &format!("cvt.rn.f16x2.f32 %h{i}, %f~{}, %f~{};", 2 * i + 1, 2 * i));
        put(&mut text, &format!("min.f16x2 %h{i}, %h{i}, %most;"));
        put(&mut text, &format!("max.f16x2 %h{i}, %h{i}, %least;"));
    }
    text + "    mul.wide.u32 %at, %i~, 16;
    add.u64 %at, %out, %at;
    setp.le.u32 %p, %i~, %last;
    @%p st.global.v4.b32 [%at], {%h0, %h1, %h2, %h3};
"
}

/// Eight codes, their scale `%s` and what is added, `%m`; then the numbers.
fn from_codes(format: Dtype, layout: &Layout) -> String {
    let mut text = scale(&layout.scale);
    if layout.low == 8 {
        // Turning the sign of a byte adds 128.
        put(&mut text, "xor.b32 %q~0, %q~0, 0x80808080;");
        put(&mut text, "xor.b32 %q~1, %q~1, 0x80808080;");
    }
    for i in 0..EIGHT as u32 {
        let (bit, mask) = (layout.low * i, (1 << layout.low) - 1);
        put(&mut text, &format!("shr.u32 %c, %q~{}, {};", bit / 32, bit % 32));
        put(&mut text, &format!("and.b32 %c, %c, {mask};"));
        if let Some(High { bits, .. }) = layout.high {
            put(&mut text, &format!("shr.u32 %t, %high~, {};", bits * i));
            put(&mut text, &format!("and.b32 %t, %t, {};", (1 << bits) - 1));
            put(&mut text, &format!("shl.b32 %t, %t, {};", layout.low));
            put(&mut text, "or.b32 %c, %c, %t;");
        }
        if format == Dtype::Iq4Nl {
            looked_up(&mut text);
        }
        number(&mut text, "%c", layout.zero);
        put(&mut text, &format!("fma.rn.f32 %f~{i}, %c, %s, %m;"));
    }
    text
}

/// A whole number below 2^23 as f32, less `zero`: in the low bits of 2^23 it is a number with it.
fn number(text: &mut String, register: &str, zero: u32) {
    put(text, &format!("or.b32 {register}, {register}, 0x4B000000;"));
    put(text, &format!("sub.f32 {register}, {register}, 0f{:08X};", 0x4B00_0000 + zero));
}

/// What a nibble of IQ4_NL stands for, with 128 added.
fn looked_up(text: &mut String) {
    // The table's bytes, four a word.
    *text += "    and.b32 %t, %c, 7;
    prmt.b32 %k~0, 0xbfad9881, 0xf6eaddcf, %t;
    prmt.b32 %k~1, 0x26190d01, 0x71594535, %t;
    setp.ge.u32 %p, %c, 8;
    selp.b32 %c, %k~1, %k~0, %p;
    xor.b32 %c, %c, 128;
    and.b32 %c, %c, 255;
";
}

/// `%s` and `%m` of what was loaded.
fn scale(scale: &Scale) -> String {
    let mut text = "    cvt.f32.f16 %s, %half~0;\n    mov.b32 %m, 0;\n".to_owned();
    match scale {
        Scale::Blocks { .. } => {}
        Scale::AndLeast { .. } => put(&mut text, "cvt.f32.f16 %m, %half~1;"),
        Scale::Sixes => {
            text = "    shr.u32 %n, %u~, 2;
    setp.ge.u32 %p, %n, 4;
    selp.b32 %k~1, %k~2, %k~1, %p;
    shl.b32 %t, %n, 2;
    shr.u32 %k~3, %k~3, %t;
    and.b32 %n, %n, 3;
    shl.b32 %n, %n, 3;
    shr.u32 %k~1, %k~1, %n;
    and.b32 %k~2, %k~1, 15;
    and.b32 %t, %k~3, 3;
    shl.b32 %t, %t, 4;
    or.b32 %k~2, %k~2, %t;
    shr.u32 %k~1, %k~1, 4;
    and.b32 %k~1, %k~1, 15;
    shr.u32 %k~3, %k~3, 2;
    and.b32 %t, %k~3, 3;
    shl.b32 %t, %t, 4;
    or.b32 %k~1, %k~1, %t;
    mov.b32 {%half~0, %half~1}, %k~0;
"
            .to_owned();
            factors(&mut text);
        }
        Scale::Nibbles => {
            text = "    and.b32 %k~2, %k~1, 15;\n    shr.u32 %k~1, %k~1, 4;\n".to_owned();
            factors(&mut text);
        }
        Scale::SignedSixes => {
            text += "    shr.u32 %t, %u~, 3;
    shl.b32 %t, %t, 2;
    shr.u32 %k~0, %k~0, %t;
    and.b32 %k~0, %k~0, 15;
    shr.u32 %t, %u~, 2;
    shl.b32 %t, %t, 1;
    shr.u32 %k~1, %k~1, %t;
    and.b32 %k~1, %k~1, 3;
    shl.b32 %k~1, %k~1, 4;
    or.b32 %k~0, %k~0, %k~1;
";
            number(&mut text, "%k~0", 32);
            put(&mut text, "mul.f32 %s, %s, %k~0;");
        }
        Scale::Bytes => text += "    cvt.rn.f32.s32 %k~0, %k~0;\n    mul.f32 %s, %s, %k~0;\n",
    }
    text
}

/// Scale and minimum from the factors `%half~0` and `%half~1` and the whole numbers `%k~2` and `%k~1`. The products are exact.
fn factors(text: &mut String) {
    number(text, "%k~2", 0);
    number(text, "%k~1", 0);
    *text += "    cvt.f32.f16 %s, %half~0;
    mul.f32 %s, %s, %k~2;
    cvt.f32.f16 %m, %half~1;
    mul.f32 %m, %m, %k~1;
    neg.f32 %m, %m;
";
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::kernels::cpu;
    use crate::kernels::cuda::{ptx_check, ptx_run};
    use crate::kernels::wgsl::planes::{repack, tests::noise};

    #[test]
    fn the_text_names_what_it_declares() {
        ptx_check::check(&source());
    }

    #[test]
    fn every_format_becomes_the_f16_next_to_its_numbers() {
        let source = source();
        for format in Dtype::ALL {
            let Some(name) = name(format) else { continue };
            for width in [WIDTH_STEP, 192, 576, 256, 768].into_iter().filter(|w| w % format.block_len() == 0) {
                let (rows, row_bytes) = (3, RowBytes::new(format, width));
                let file = noise(rows * format.bytes(width).unwrap());
                let mut want = vec![0.0; rows * width];
                let (mut quants, mut scales) = (vec![0; rows * row_bytes.quants], vec![0; rows * row_bytes.scales]);
                for (i, row) in file.chunks_exact(file.len() / rows).enumerate() {
                    cpu::decode(format, row, &mut want[i * width..][..width]);
                    let quants = &mut quants[i * row_bytes.quants..][..row_bytes.quants];
                    repack(format, row, quants, &mut scales[i * row_bytes.scales..][..row_bytes.scales]);
                }
                quants.resize(quants.len().next_multiple_of(16), 0);
                let at = quants.len() as u64;
                let mut memory = [quants, scales].concat();
                memory.resize(memory.len().next_multiple_of(16), 0);
                let out = memory.len();
                let count = rows * width / EIGHT;
                memory.resize(out + 2 * rows * width, 0xaa);
                memory.extend([0xaa; 32]);
                let params = [0, at, out as u64, count as u64];
                let threads = count.div_ceil(BLOCK_UNITS) * THREADS as usize;
                ptx_run::run(&source, &name, &params, &mut memory, threads);
                for (i, want) in want.iter().enumerate() {
                    let got = f16::from_le_bytes([memory[out + 2 * i], memory[out + 2 * i + 1]]);
                    let rounded = f16::from_f32(want.clamp(-65504.0, 65504.0));
                    assert!(got == rounded || want.is_nan(), "{format:?} {width} [{i}]: {got}, not {want}");
                }
                assert!(memory[out + 2 * rows * width..].iter().all(|&byte| byte == 0xaa), "{format:?} {width}");
            }
        }
    }
}
