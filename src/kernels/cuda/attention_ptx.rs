//! The text of the attention kernel for NVIDIA's matrix instructions, in PTX: written out for one size of head, since registers cannot be indexed.
//!
//! A block of 128 threads takes [`ROWS`] query rows of one head, each of its four warps 32 of them, and walks over the keys in tiles of [`KEYS`]
//! from key 0 on (from the tile where a window begins). Queries stay in shared memory; K and V take turns: while scores are computed V arrives,
//! while probabilities are weighed the next K does (Dao, FlashAttention-2, 2023). Scores, probabilities and sums never leave the registers. A row
//! keeps its own maximum and sum, so that its bits depend on no other row.
//!
//! Shared memory holds rows of `2 * head_dim` bytes whose 16-byte chunks are permuted: chunk `c` of row `r` lies at `c ^ (r & 7)`, so that the
//! eight rows that `ldmatrix` reads at once lie in different banks.

use std::fmt::Write;

/// Query rows of a thread block.
pub const ROWS: u32 = 128;
/// Keys of a tile.
pub const KEYS: u32 = 64;
/// Threads of a block.
pub const THREADS: u32 = 128;
/// Sizes of a head that a kernel is written for.
pub const HEAD_DIMS: [u32; 2] = [64, 128];

/// Shared memory of a block in bytes: queries, one tile of K and one of V.
pub const fn shared_bytes(head_dim: u32) -> u32 {
    (ROWS + 2 * KEYS) * head_dim * 2
}

/// Blocks of 16 rows that a warp takes.
const ROW_BLOCKS: u32 = 2;
/// Blocks of 8 keys in a tile.
const KEY_BLOCKS: u32 = KEYS / 8;

const HEADER: &str = "
.version 7.0
.target sm_80
.address_size 64

.extern .shared .align 256 .b8 shared[];

// qkv and out begin at the first row; rows of qkv are row_bytes apart, rows of the cache kv_bytes, rows of out out_bytes.
.visible .entry attention(
    .param .u64 qkv, .param .u64 k, .param .u64 v, .param .u64 out,
    .param .u32 rows, .param .u32 position, .param .u32 group,
    .param .u32 row_bytes, .param .u32 kv_bytes, .param .u32 out_bytes,
    .param .f32 scale, .param .s32 window, .param .u32 dense_keys)
.maxntid 128, 1, 1
.minnctapersm 2
{
";

/// The module of one kernel, `attention`. Its grid is `[heads, blocks of rows]`; the last block, which has the most keys, starts first. `scale`
/// is the scores' factor times the logarithm of e to base 2, and positive.
pub fn source(head_dim: u32) -> String {
    let mut ptx = Ptx { text: HEADER.to_owned(), head_dim };
    ptx.registers();
    ptx.places();
    ptx.load_queries();
    ptx.bounds();
    ptx.load("k");
    ptx.line("cp.async.commit_group;");
    ptx.raw("NEXT:");
    ptx.arrive();
    ptx.load("v");
    ptx.line("cp.async.commit_group;");
    ptx.scores();
    ptx.arrive();
    ptx.next_keys();
    ptx.mask();
    ptx.soft_max();
    ptx.weigh();
    ptx.line("add.u32 %tile, %tile, 1;");
    ptx.line("setp.lt.u32 %p0, %tile, %end;");
    ptx.line("@%p0 bra NEXT;");
    ptx.store();
    ptx.line("ret;");
    ptx.raw("}");
    ptx.text
}

struct Ptx {
    text: String,
    head_dim: u32,
}

impl Ptx {
    fn raw(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn line(&mut self, line: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "    {line}");
    }

    /// Bytes of a row in shared memory.
    fn row_bytes(&self) -> u32 {
        2 * self.head_dim
    }

    /// 16-byte chunks of a row.
    fn chunks(&self) -> u32 {
        self.head_dim / 8
    }

    /// Rows that all threads together copy at a time, a chunk each.
    fn rows_at_once(&self) -> u32 {
        THREADS / self.chunks()
    }

    fn registers(&mut self) {
        let n_scores = ROW_BLOCKS * KEY_BLOCKS * 4;
        let n_out = ROW_BLOCKS * self.head_dim / 8 * 4;
        self.line(".reg .pred %p<8>;");
        self.line(&format!(".reg .f32 %s<{n_scores}>, %o<{n_out}>, %m<4>, %l<4>, %c<4>, %f<8>, %scale;"));
        self.line(&format!(".reg .b32 %a<8>, %b<4>, %pr<{}>;", n_scores / 2));
        self.line(".reg .u32 %r<16>, %thread, %lane, %row0, %rows, %position, %tile, %end, %last_key, %kv_bytes;");
        self.line(".reg .u32 %q_at, %k_at, %v_at, %copy, %copy_row, %at;");
        self.line(".reg .s32 %d<6>, %window, %first, %past;");
        self.line(".reg .u64 %rd<8>, %k, %v;");
    }

    /// Who a thread is, and where its parts of the tiles lie.
    fn places(&mut self) {
        let (row, chunks, queries) = (self.row_bytes(), self.chunks(), ROWS * self.row_bytes());
        let keys = KEYS * row;
        let text = format!(
            "mov.u32 %thread, %tid.x;
    and.b32 %lane, %thread, 31;
    ld.param.u32 %rows, [rows];
    ld.param.u32 %position, [position];
    ld.param.u32 %kv_bytes, [kv_bytes];
    ld.param.f32 %scale, [scale];
    ld.param.s32 %window, [window];
    mov.u32 %r0, %nctaid.y;
    mov.u32 %r1, %ctaid.y;
    sub.u32 %r0, %r0, %r1;
    sub.u32 %r0, %r0, 1;
    mul.lo.u32 %row0, %r0, {ROWS};
    // The chunk and the first row that a thread copies.
    rem.u32 %r1, %thread, {chunks};
    div.u32 %copy_row, %thread, {chunks};
    and.b32 %r2, %copy_row, 7;
    xor.b32 %r2, %r2, %r1;
    shl.b32 %r2, %r2, 4;
    mad.lo.u32 %copy, %copy_row, {row}, %r2;
    mov.u32 %r3, shared;
    add.u32 %copy, %copy, %r3;
    // The cache at this head and chunk.
    mov.u32 %r4, %ctaid.x;
    ld.param.u32 %r5, [group];
    div.u32 %r5, %r4, %r5;
    mul.lo.u32 %r5, %r5, {row};
    shl.b32 %r6, %r1, 4;
    add.u32 %r5, %r5, %r6;
    cvt.u64.u32 %rd0, %r5;
    ld.param.u64 %k, [k];
    ld.param.u64 %v, [v];
    cvta.to.global.u64 %k, %k;
    cvta.to.global.u64 %v, %v;
    add.u64 %k, %k, %rd0;
    add.u64 %v, %v, %rd0;
    // Queries: rows 0 to 15 by lane, the chunk by half warp.
    shr.u32 %r7, %lane, 4;
    and.b32 %r8, %lane, 15;
    and.b32 %r9, %lane, 7;
    xor.b32 %r10, %r7, %r9;
    shl.b32 %r10, %r10, 4;
    shr.u32 %r11, %thread, 5;
    shl.b32 %r11, %r11, 5;
    add.u32 %r11, %r11, %r8;
    mad.lo.u32 %q_at, %r11, {row}, %r10;
    add.u32 %q_at, %q_at, %r3;
    // V: keys 0 to 15 by lane, the chunk by half warp.
    mad.lo.u32 %v_at, %r8, {row}, %r10;
    add.u32 %v_at, %v_at, %r3;
    add.u32 %v_at, %v_at, {v_start};
    // K: keys 0 to 7 and 8 to 15 by half warp, the chunk by quarter.
    shl.b32 %r7, %r7, 3;
    add.u32 %r7, %r7, %r9;
    shr.u32 %r8, %lane, 3;
    and.b32 %r8, %r8, 1;
    xor.b32 %r8, %r8, %r9;
    shl.b32 %r8, %r8, 4;
    mad.lo.u32 %k_at, %r7, {row}, %r8;
    add.u32 %k_at, %k_at, %r3;
    add.u32 %k_at, %k_at, {queries};",
            v_start = queries + keys,
        );
        self.line(&text);
    }

    /// Rows past the last one repeat it: what becomes of them is not stored.
    fn load_queries(&mut self) {
        let row = self.row_bytes();
        let text = format!(
            "ld.param.u64 %rd0, [qkv];
    cvta.to.global.u64 %rd0, %rd0;
    ld.param.u32 %r0, [row_bytes];
    mul.lo.u32 %r5, %r4, {row};
    add.u32 %r5, %r5, %r6;
    cvt.u64.u32 %rd1, %r5;
    add.u64 %rd0, %rd0, %rd1;
    sub.u32 %r2, %rows, 1;
    add.u32 %r1, %row0, %copy_row;"
        );
        self.line(&text);
        let step = self.rows_at_once();
        for i in 0..ROWS / step {
            self.line(&format!("add.u32 %r3, %r1, {};", i * step));
            self.line("min.u32 %r3, %r3, %r2;");
            self.line("mul.wide.u32 %rd1, %r3, %r0;");
            self.line("add.u64 %rd1, %rd0, %rd1;");
            self.line(&format!("cp.async.cg.shared.global [%copy+{}], [%rd1], 16;", i * step * row));
        }
    }

    /// Which tiles have keys that a row of the block sees, or that are asked for; sums begin at zero.
    fn bounds(&mut self) {
        let text = format!(
            "add.u32 %r0, %position, %rows;
    add.u32 %r1, %position, %row0;
    add.u32 %r2, %r1, {ROWS};
    min.u32 %r2, %r2, %r0;
    ld.param.u32 %r3, [dense_keys];
    max.u32 %r2, %r2, %r3;
    max.u32 %r0, %r0, %r3;
    sub.u32 %last_key, %r0, 1;
    add.u32 %r2, %r2, {last};
    div.u32 %end, %r2, {KEYS};
    mov.s32 %first, %r1;
    add.s32 %past, %first, {last_row};
    sub.s32 %past, %past, %window;
    add.s32 %d0, %first, 1;
    sub.s32 %d0, %d0, %window;
    max.s32 %d0, %d0, 0;
    div.u32 %tile, %d0, {KEYS};",
            last = KEYS - 1,
            last_row = ROWS - 1,
        );
        self.line(&text);
        for i in 0..4 {
            // Finite, so that a row whose keys a window hides so far gives no NaN.
            self.line(&format!("mov.f32 %m{i}, 0fF149F2CA;"));
            self.line(&format!("mov.f32 %l{i}, 0f00000000;"));
        }
        for i in 0..ROW_BLOCKS * self.head_dim / 8 * 4 {
            self.line(&format!("mov.f32 %o{i}, 0f00000000;"));
        }
        // The tile after the current one is copied in advance.
        self.line(&format!("mul.lo.u32 %at, %tile, {KEYS};"));
    }

    /// Starts the copy of the tile of `K` or `V` that begins at key `%at`; keys past the last one repeat it, and the mask hides them.
    fn load(&mut self, matrix: &str) {
        let (step, row) = (self.rows_at_once(), self.row_bytes());
        let start = ROWS * row + if matrix == "v" { KEYS * row } else { 0 };
        self.line("add.u32 %r0, %at, %copy_row;");
        for i in 0..KEYS / step {
            self.line(&format!("add.u32 %r1, %r0, {};", i * step));
            self.line("min.u32 %r1, %r1, %last_key;");
            self.line("mul.wide.u32 %rd0, %r1, %kv_bytes;");
            self.line(&format!("add.u64 %rd0, %{matrix}, %rd0;"));
            self.line(&format!("cp.async.cg.shared.global [%copy+{}], [%rd0], 16;", start + i * step * row));
        }
    }

    /// All copies of all threads have arrived, and everybody is done with what comes to be overwritten.
    fn arrive(&mut self) {
        self.line("cp.async.wait_group 0;");
        self.line("bar.sync 0;");
    }

    fn next_keys(&mut self) {
        self.line("add.u32 %r2, %tile, 1;");
        self.line("setp.ge.u32 %p0, %r2, %end;");
        self.line(&format!("add.u32 %at, %at, {KEYS};"));
        self.line("@%p0 bra LOADED;");
        self.load("k");
        self.line("cp.async.commit_group;");
        self.raw("LOADED:");
    }

    /// S = Q K^T.
    fn scores(&mut self) {
        for i in 0..ROW_BLOCKS * KEY_BLOCKS * 4 {
            self.line(&format!("mov.f32 %s{i}, 0f00000000;"));
        }
        let row = self.row_bytes();
        for kk in 0..self.head_dim / 16 {
            self.line(&format!("xor.b32 %r0, %q_at, {};", kk << 5));
            self.line(&format!("xor.b32 %r1, %k_at, {};", kk << 5));
            for block in 0..ROW_BLOCKS {
                let a = four("a", 4 * block);
                let at = block * 16 * row;
                self.line(&format!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {a}, [%r0+{at}];"));
            }
            for pair in 0..KEY_BLOCKS / 2 {
                let b = four("b", 0);
                self.line(&format!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {b}, [%r1+{}];", pair * 16 * row));
                for block in 0..ROW_BLOCKS {
                    for half in 0..2 {
                        let s = four("s", (block * KEY_BLOCKS + 2 * pair + half) * 4);
                        self.multiply(&s, &four("a", 4 * block), 2 * half);
                    }
                }
            }
        }
    }

    fn multiply(&mut self, sums: &str, a: &str, b: u32) {
        self.line(&format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {sums}, {a}, {{%b{b}, %b{}}}, {sums};",
            b + 1
        ));
    }

    /// Hides later keys, and those that the window has passed. Skipped where a tile has neither.
    fn mask(&mut self) {
        let text = format!(
            "mul.lo.u32 %r0, %tile, {KEYS};
    add.u32 %r1, %r0, {last};
    setp.gt.s32 %p0, %r1, %first;
    setp.le.s32 %p1, %r0, %past;
    or.pred %p0, %p0, %p1;
    @!%p0 bra VISIBLE;
    // Distance from the thread's first key of the tile to its four rows.
    shr.u32 %r1, %thread, 5;
    shl.b32 %r1, %r1, 5;
    shr.u32 %r2, %lane, 2;
    add.u32 %r1, %r1, %r2;
    add.s32 %d0, %first, %r1;
    sub.s32 %d0, %d0, %r0;
    and.b32 %r2, %lane, 3;
    shl.b32 %r2, %r2, 1;
    sub.s32 %d0, %d0, %r2;
    add.s32 %d1, %d0, 8;
    add.s32 %d2, %d0, 16;
    add.s32 %d3, %d0, 24;",
            last = KEYS - 1,
        );
        self.line(&text);
        for block in 0..ROW_BLOCKS {
            for half in 0..2 {
                self.line(&format!("sub.s32 %d4, %d{}, %window;", 2 * block + half));
                for keys in 0..KEY_BLOCKS {
                    for e in 0..2 {
                        let s = (block * KEY_BLOCKS + keys) * 4 + 2 * half + e;
                        let key = keys * 8 + e;
                        self.line(&format!("setp.lt.s32 %p0, %d{}, {key};", 2 * block + half));
                        self.line(&format!("setp.ge.s32 %p1, %d4, {key};"));
                        self.line("or.pred %p0, %p0, %p1;");
                        self.line(&format!("selp.f32 %s{s}, 0fFF800000, %s{s}, %p0;"));
                    }
                }
            }
        }
        self.raw("VISIBLE:");
    }

    /// The registers of the scores of a row: rows are numbered by block and half.
    fn row_scores(row: u32) -> Vec<u32> {
        let (block, half) = (row / 2, row % 2);
        (0..KEY_BLOCKS).flat_map(|keys| [0, 1].map(|e| (block * KEY_BLOCKS + keys) * 4 + 2 * half + e)).collect()
    }

    /// New maxima, probabilities, and the factors by which sums so far shrink.
    fn soft_max(&mut self) {
        for row in 0..4 {
            let scores = Self::row_scores(row);
            self.line(&format!("max.f32 %f0, %s{}, %s{};", scores[0], scores[1]));
            for s in &scores[2..] {
                self.line(&format!("max.f32 %f0, %f0, %s{s};"));
            }
            for lane in [1, 2] {
                self.line(&format!("shfl.sync.bfly.b32 %f1, %f0, {lane}, 31, 0xffffffff;"));
                self.line("max.f32 %f0, %f0, %f1;");
            }
            // Maxima are kept scaled.
            self.line("mul.f32 %f0, %f0, %scale;");
            self.line(&format!("max.f32 %f0, %f0, %m{row};"));
            self.line(&format!("sub.f32 %f1, %m{row}, %f0;"));
            self.line(&format!("ex2.approx.ftz.f32 %c{row}, %f1;"));
            self.line(&format!("mov.f32 %m{row}, %f0;"));
            self.line("neg.f32 %f0, %f0;");
            self.line(&format!("mul.f32 %l{row}, %l{row}, %c{row};"));
            for s in &scores {
                self.line(&format!("fma.rn.f32 %s{s}, %s{s}, %scale, %f0;"));
                self.line(&format!("ex2.approx.ftz.f32 %s{s}, %s{s};"));
                self.line(&format!("add.f32 %l{row}, %l{row}, %s{s};"));
            }
        }
        // Once the maxima have settled, which is soon, all factors of a warp are 1.
        self.line("mov.f32 %f0, 0f3F800000;");
        self.line("setp.ne.f32 %p0, %c0, %f0;");
        for row in 1..4 {
            self.line(&format!("setp.ne.or.f32 %p0, %c{row}, %f0, %p0;"));
        }
        self.line("vote.sync.any.pred %p0, %p0, 0xffffffff;");
        self.line("@!%p0 bra SETTLED;");
        let n = self.head_dim / 8;
        for block in 0..ROW_BLOCKS {
            for i in 0..n {
                for e in 0..4 {
                    let o = (block * n + i) * 4 + e;
                    self.line(&format!("mul.f32 %o{o}, %o{o}, %c{};", 2 * block + e / 2));
                }
            }
        }
        self.raw("SETTLED:");
    }

    /// O += P V: the scores' registers, halved, are the left matrices.
    fn weigh(&mut self) {
        for i in 0..ROW_BLOCKS * KEY_BLOCKS * 2 {
            self.line(&format!("cvt.rn.f16x2.f32 %pr{i}, %s{}, %s{};", 2 * i + 1, 2 * i));
        }
        let (row, n) = (self.row_bytes(), self.head_dim / 8);
        for keys in 0..KEYS / 16 {
            for pair in 0..n / 2 {
                let b = four("b", 0);
                self.line(&format!("xor.b32 %r0, %v_at, {};", pair << 5));
                self.line(&format!("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {b}, [%r0+{}];", keys * 16 * row));
                for block in 0..ROW_BLOCKS {
                    let a = four("pr", (block * KEY_BLOCKS + 2 * keys) * 2);
                    for half in 0..2 {
                        let o = four("o", (block * n + 2 * pair + half) * 4);
                        self.multiply(&o, &a, 2 * half);
                    }
                }
            }
        }
    }

    fn store(&mut self) {
        for row in 0..4 {
            for lane in [1, 2] {
                self.line(&format!("shfl.sync.bfly.b32 %f0, %l{row}, {lane}, 31, 0xffffffff;"));
                self.line(&format!("add.f32 %l{row}, %l{row}, %f0;"));
            }
            self.line(&format!("rcp.rn.f32 %l{row}, %l{row};"));
        }
        let text = format!(
            "shr.u32 %r1, %thread, 5;
    shl.b32 %r1, %r1, 5;
    shr.u32 %r2, %lane, 2;
    add.u32 %r1, %r1, %r2;
    add.u32 %r1, %r1, %row0;
    and.b32 %r2, %lane, 3;
    shl.b32 %r2, %r2, 2;
    mov.u32 %r3, %ctaid.x;
    mad.lo.u32 %r2, %r3, {row}, %r2;
    cvt.u64.u32 %rd1, %r2;
    ld.param.u64 %rd0, [out];
    cvta.to.global.u64 %rd0, %rd0;
    add.u64 %rd0, %rd0, %rd1;
    ld.param.u32 %r4, [out_bytes];",
            row = self.row_bytes()
        );
        self.line(&text);
        self.line("mov.b32 %b1, 0x7bff7bff;");
        self.line("mov.b32 %b2, 0xfbfffbff;");
        let n = self.head_dim / 8;
        for row in 0..4 {
            let (block, half) = (row / 2, row % 2);
            self.line(&format!("add.u32 %r5, %r1, {};", 8 * row));
            self.line("setp.lt.u32 %p0, %r5, %rows;");
            self.line("mul.wide.u32 %rd1, %r5, %r4;");
            self.line("add.u64 %rd1, %rd0, %rd1;");
            for i in 0..n {
                let o = (block * n + i) * 4 + 2 * half;
                self.line(&format!("mul.f32 %f0, %o{o}, %l{row};"));
                self.line(&format!("mul.f32 %f1, %o{}, %l{row};", o + 1));
                // Probabilities are rounded to f16, their sum is not: a mean of the largest values may come out above them.
                self.line("cvt.rn.f16x2.f32 %b0, %f1, %f0;");
                self.line("min.f16x2 %b0, %b0, %b1;");
                self.line("max.f16x2 %b0, %b0, %b2;");
                self.line(&format!("@%p0 st.global.b32 [%rd1+{}], %b0;", 16 * i));
            }
        }
    }
}

/// Four registers in a row.
fn four(name: &str, first: u32) -> String {
    format!("{{%{name}{first}, %{name}{}, %{name}{}, %{name}{}}}", first + 1, first + 2, first + 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cuda::ptx_check::check;

    #[test]
    fn the_text_names_what_it_declares() {
        HEAD_DIMS.into_iter().for_each(|head_dim| check(&source(head_dim)));
    }

    #[test]
    fn each_tile_takes_the_multiplications_that_it_has() {
        for head_dim in HEAD_DIMS {
            let text = source(head_dim);
            // 16 x 8 x 16 each, for scores and for the weighing of values, of a warp's rows.
            let n = 2 * (ROWS / 4 / 16) * (KEYS / 8) * (head_dim / 16);
            assert_eq!(text.matches("mma.sync").count(), n as usize);
            // Two blocks on one multiprocessor.
            assert!(2 * shared_bytes(head_dim) <= 200 << 10);
        }
    }
}
