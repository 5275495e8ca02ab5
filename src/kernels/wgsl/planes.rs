//! Weight formats as the shaders read them: a file's blocks repacked, bits unchanged, into planes of whole words.
//!
//! WGSL reads 32-bit words, and blocks of 18 or 34 bytes straddle them. So the quants of a row come first, in order of `k`, in rows padded with
//! zeros to whole blocks of 32 elements (a multiple of 16 bytes); scales and minima lie in a plane of their own, in words of whole blocks. Where
//! codes have 3, 5 or 6 bits, their low and high bits stay apart as in the file. `shaders/lib/weight_*` are the other side of this layout.
//! The planes take what the file takes, give or take 2%.

use crate::dtype::Dtype;
use crate::kernels::cpu;

/// Elements that a row's length is padded to; also the block length of the quantised formats without super-blocks.
pub(in crate::kernels) const BLOCK: usize = 32;

/// Bytes of a row in each plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) struct RowBytes {
    /// The elements themselves; a multiple of 16.
    pub quants: usize,
    /// Scales, minima and stray high bits; 0 for formats without, else a multiple of 4.
    pub scales: usize,
}

impl RowBytes {
    pub fn new(format: Dtype, width: usize) -> Self {
        let blocks = width.div_ceil(BLOCK);
        let bytes = |quants: usize, scales: usize| {
            let n = if format.block_len() > BLOCK { width.div_ceil(format.block_len()) } else { blocks };
            Self { quants: n * quants, scales: n * scales }
        };
        match format {
            Dtype::F32 => bytes(128, 0),
            Dtype::F16 | Dtype::Bf16 => bytes(64, 0),
            Dtype::Q8_0 => Self { scales: blocks.div_ceil(2) * 4, ..bytes(32, 0) },
            Dtype::Q4_0 | Dtype::Iq4Nl => Self { scales: blocks.div_ceil(2) * 4, ..bytes(16, 0) },
            Dtype::Q4_1 => bytes(16, 4),
            Dtype::Q5_0 => Self { scales: blocks.div_ceil(2) * 12, ..bytes(16, 0) },
            Dtype::Q5_1 => bytes(16, 8),
            Dtype::Q2K => bytes(64, 20),
            Dtype::Q3K => bytes(64 + 32, 16),
            Dtype::Q4K => bytes(128, 16),
            Dtype::Q5K => bytes(128 + 32, 16),
            Dtype::Q6K => bytes(128 + 64, 20),
        }
    }

    pub fn total(self) -> usize {
        self.quants + self.scales
    }
}

/// Repacks one row of the file. `quants` and `scales` are a row of each plane, all of which is written.
pub(in crate::kernels) fn repack(format: Dtype, row: &[u8], quants: &mut [u8], scales: &mut [u8]) {
    if RowBytes::new(format, BLOCK).scales == 0 {
        let (values, padding) = quants.split_at_mut(row.len());
        values.copy_from_slice(row);
        return padding.fill(0);
    }
    // An odd block leaves half of its words.
    let whole = scales.len().saturating_sub(12);
    scales[whole..].fill(0);
    // Bytes of a block, or super-block, in each plane.
    let bytes = RowBytes::new(format, 2 * format.block_len());
    let (q_bytes, s_bytes) = (bytes.quants / 2, bytes.scales / 2);
    for (i, block) in row.chunks_exact(format.block_bytes()).enumerate() {
        let q = &mut quants[i * q_bytes..(i + 1) * q_bytes];
        if format == Dtype::Q5_0 {
            // Three words for two blocks: the fifth bits of each, then both scales.
            let pair = &mut scales[i / 2 * 12..(i / 2 + 1) * 12];
            pair[4 * (i % 2)..][..4].copy_from_slice(&block[2..6]);
            pair[8 + 2 * (i % 2)..][..2].copy_from_slice(&block[..2]);
            in_order::<4, 16>(&block[6..], q);
        } else {
            repack_block(format, block, q, &mut scales[i * s_bytes..(i + 1) * s_bytes]);
        }
    }
}

/// Repacks a block of a format whose blocks have places of their own in both planes.
fn repack_block(format: Dtype, block: &[u8], q: &mut [u8], s: &mut [u8]) {
    match format {
        Dtype::Q8_0 => {
            s.copy_from_slice(&block[..2]);
            q.copy_from_slice(&block[2..]);
        }
        Dtype::Q4_0 | Dtype::Iq4Nl => {
            s.copy_from_slice(&block[..2]);
            in_order::<4, 16>(&block[2..], q);
        }
        Dtype::Q4_1 => {
            s.copy_from_slice(&block[..4]);
            in_order::<4, 16>(&block[4..], q);
        }
        Dtype::Q5_1 => {
            s[..4].copy_from_slice(&block[4..8]);
            s[4..].copy_from_slice(&block[..4]);
            in_order::<4, 16>(&block[8..], q);
        }
        Dtype::Q2K => {
            s[..16].copy_from_slice(&block[..16]);
            s[16..].copy_from_slice(&block[80..]);
            in_order::<2, 32>(&block[16..80], q);
        }
        Dtype::Q3K => {
            s[..14].copy_from_slice(&block[96..]);
            s[14..].fill(0);
            in_order::<2, 32>(&block[32..96], &mut q[..64]);
            bits_in_order(&block[..32], &mut q[64..]);
        }
        Dtype::Q4K => {
            scales_in_order(&block[..16], s);
            in_order::<4, 32>(&block[16..], q);
        }
        Dtype::Q5K => {
            scales_in_order(&block[..16], s);
            in_order::<4, 32>(&block[48..], &mut q[..128]);
            bits_in_order(&block[16..48], &mut q[128..]);
        }
        Dtype::Q6K => {
            s[..18].copy_from_slice(&block[192..]);
            s[18..].fill(0);
            in_order::<4, 64>(&block[..128], &mut q[..128]);
            in_order::<2, 32>(&block[128..192], &mut q[128..]);
        }
        // Rows without scales are copied whole, and pairs of Q5_0 blocks share words.
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Q5_0 => {}
    }
}

/// Codes of `BITS` bits: of each `RUN` bytes of ggml's, byte `l` holds elements `l`, `l + RUN`, `l + 2 RUN` …, low bits first; ours holds neighbours,
/// so that eight of them share a word.
fn in_order<const BITS: usize, const RUN: usize>(ggml: &[u8], ours: &mut [u8]) {
    let n = 8 / BITS;
    let mask = 0xffu8 >> (8 - BITS);
    for (ggml, ours) in ggml.as_chunks::<RUN>().0.iter().zip(ours.as_chunks_mut::<RUN>().0) {
        for i in 0..n {
            for t in 0..RUN / n {
                let codes = ggml[t * n..(t + 1) * n].iter().enumerate();
                ours[i * (RUN / n) + t] =
                    codes.fold(0, |byte, (u, q)| byte | (((q >> (BITS * i)) & mask) << (BITS * u)));
            }
        }
    }
}

/// [`in_order`] for one bit and runs of 32: eight bytes at a time, whose bits a product brings together in its highest byte.
fn bits_in_order(ggml: &[u8], ours: &mut [u8]) {
    for (ggml, ours) in ggml.as_chunks::<32>().0.iter().zip(ours.as_chunks_mut::<32>().0) {
        for (t, bytes) in ggml.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*bytes);
            for i in 0..8 {
                let bits = (word >> i) & 0x0101_0101_0101_0101;
                ours[4 * i + t] = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
            }
        }
    }
}

/// Scale and minimum factors of Q4_K and Q5_K stay; of eight scales and eight minima of 6 bits, which ggml packs in two ways, come first the low
/// nibbles, a byte for both, then the high bit pairs, a nibble for both.
fn scales_in_order(ggml: &[u8], ours: &mut [u8]) {
    // ggml's bytes hold the first four scales, the first four minima and the last four low nibbles of both; the high pairs of the last four stand
    // above the first four.
    let word = |i: usize| u32::from_le_bytes([ggml[i], ggml[i + 1], ggml[i + 2], ggml[i + 3]]);
    let (scales, least, last) = (word(4), word(8), word(12));
    let first = (scales & 0x0f0f_0f0f) | ((least & 0x0f0f_0f0f) << 4);
    let high = |shift: u32| {
        let nibbles = ((scales >> shift) & 0x0303_0303) | (((least >> shift) & 0x0303_0303) << 2);
        let [a, b, c, d] = nibbles.to_le_bytes();
        [a | (b << 4), c | (d << 4)]
    };
    ours[..4].copy_from_slice(&ggml[..4]);
    ours[4..8].copy_from_slice(&first.to_le_bytes());
    ours[8..12].copy_from_slice(&last.to_le_bytes());
    ours[12..14].copy_from_slice(&high(4));
    ours[14..16].copy_from_slice(&high(6));
}

/// One row of the file as a row of the F32 plane, all of which is written.
pub(super) fn repack_as_f32(format: Dtype, row: &[u8], quants: &mut [u8]) {
    let mut values = vec![0.0; row.len() / format.block_bytes() * format.block_len()];
    cpu::decode(format, row, &mut values);
    let (ours, padding) = quants.split_at_mut(4 * values.len());
    ours.copy_from_slice(bytemuck::cast_slice(&values));
    padding.fill(0);
}

#[cfg(test)]
pub(in crate::kernels) mod tests {
    use super::*;

    /// Codes in order, back to ggml's order.
    fn ggml_order(bits: usize, run: usize, ours: &[u8]) -> Vec<u8> {
        let n = 8 / bits;
        let code = |e: usize| (u32::from(ours[e / n]) >> (bits * (e % n))) & ((1 << bits) - 1);
        let byte = |at: usize| {
            let (group, l) = (at / run, at % run);
            (0..n).map(|i| code(group * run * n + run * i + l) << (bits * i)).sum::<u32>() as u8
        };
        (0..ours.len()).map(byte).collect()
    }

    /// The inverse of `scales_in_order`.
    fn ggml_scales(ours: &[u8]) -> Vec<u8> {
        let high = |j: usize| (ours[12 + j / 2] >> (4 * (j % 2))) & 15;
        let scale = |j: usize| (ours[4 + j] & 15) | ((high(j) & 3) << 4);
        let least = |j: usize| (ours[4 + j] >> 4) | ((high(j) >> 2) << 4);
        let mut bytes = ours[..4].to_vec();
        bytes.extend((0..4).map(|j| scale(j) | (scale(j + 4) >> 4 << 6)));
        bytes.extend((0..4).map(|j| least(j) | (least(j + 4) >> 4 << 6)));
        bytes.extend((4..8).map(|j| (scale(j) & 15) | (least(j) << 4)));
        bytes
    }

    /// Block `i` of the row from which [`repack`] made the planes.
    fn restore(format: Dtype, i: usize, quants: &[u8], scales: &[u8]) -> Vec<u8> {
        if format.block_len() == 1 {
            return quants[format.block_bytes() * i..format.block_bytes() * (i + 1)].to_vec();
        }
        let bytes = RowBytes::new(format, 2 * format.block_len());
        let (q, s) = (&quants[bytes.quants / 2 * i..], &scales[bytes.scales / 2 * i..]);
        match format {
            Dtype::Q8_0 => [&s[..2], &q[..32]].concat(),
            Dtype::Q4_0 | Dtype::Iq4Nl => [&s[..2], &ggml_order(4, 16, &q[..16])].concat(),
            Dtype::Q4_1 => [&s[..4], &ggml_order(4, 16, &q[..16])].concat(),
            Dtype::Q5_0 => {
                let pair = &scales[i / 2 * 12..];
                [&pair[8 + i % 2 * 2..][..2], &pair[i % 2 * 4..][..4], &ggml_order(4, 16, &q[..16])].concat()
            }
            Dtype::Q5_1 => [&s[4..8], &s[..4], &ggml_order(4, 16, &q[..16])].concat(),
            Dtype::Q2K => [&s[..16], &ggml_order(2, 32, &q[..64]), &s[16..20]].concat(),
            Dtype::Q3K => [&*ggml_order(1, 32, &q[64..96]), &ggml_order(2, 32, &q[..64]), &s[..14]].concat(),
            Dtype::Q4K => [ggml_scales(&s[..16]), ggml_order(4, 32, &q[..128])].concat(),
            Dtype::Q5K => {
                [ggml_scales(&s[..16]), ggml_order(1, 32, &q[128..160]), ggml_order(4, 32, &q[..128])].concat()
            }
            Dtype::Q6K => [&*ggml_order(4, 64, &q[..128]), &ggml_order(2, 32, &q[128..192]), &s[..18]].concat(),
            other => panic!("{other:?}"),
        }
    }

    /// Random bytes, whose f16 factors are mostly wild: numbers beyond f16 come of them, and numbers below it.
    pub(in crate::kernels) fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn every_format_comes_back_bit_for_bit() {
        for format in Dtype::ALL {
            for width in [32, 96, 576, 4, 100, 256, 768].into_iter().filter(|w| w % format.block_len() == 0) {
                let row = noise(format.bytes(width).unwrap());
                let bytes = RowBytes::new(format, width);
                assert!(bytes.quants.is_multiple_of(16) && bytes.scales.is_multiple_of(4));
                // Uploads repack one row where another one was before.
                let (mut quants, mut scales) = (vec![0xff; bytes.quants], vec![0xff; bytes.scales]);
                repack(format, &row, &mut quants, &mut scales);
                let (mut again, mut scales_again) = (vec![0; bytes.quants], vec![0; bytes.scales]);
                repack(format, &row, &mut again, &mut scales_again);
                assert!((&again, &scales_again) == (&quants, &scales), "{format:?} {width}: something was not written");
                let blocks = (0..width / format.block_len()).flat_map(|i| restore(format, i, &quants, &scales));
                assert_eq!(blocks.collect::<Vec<_>>(), row, "{format:?} {width}");
                assert!(bytes.total() <= row.len().max(64) * 103 / 100 + 128, "{format:?} {width}: {bytes:?}");
                let used = format.bytes(width).unwrap() - row.len() % 4;
                assert!(quants.iter().skip(used).all(|&byte| byte == 0), "{format:?} {width}: padding");
            }
        }
    }

    #[test]
    fn conversion_to_f32_is_exact() {
        let decode = |format, row: &[u8]| {
            let mut out = vec![0xff; 128];
            repack_as_f32(format, row, &mut out);
            out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<_>>()
        };
        let values = [1.0f32, -2.5, 1e6, 65519.0, 1.0 + 1.0 / 2048.0, 3.0e-8, 0.1];
        let row = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(decode(Dtype::F32, &row)[..8], [&values[..], &[0.0]].concat());
        assert_eq!(decode(Dtype::Bf16, &[0xc0, 0x3f, 0x80, 0xff])[..3], [1.5, f32::NEG_INFINITY, 0.0]);
        assert_eq!(decode(Dtype::F16, &[0x01, 0x80])[0], -(2.0f32.powi(-24)));

        let nibbles = (0..16).map(|j| j | ((15 - j) << 4)).collect::<Vec<u8>>();
        let nibble = |k: usize| if k < 16 { k as f32 } else { 31.0 - k as f32 };
        let expected = |scale: f32, least: f32| (0..32).map(|k| nibble(k) * scale + least).collect::<Vec<_>>();
        assert_eq!(decode(Dtype::Q4_1, &[&[0x00, 0x3c, 0x00, 0x38], &nibbles[..]].concat()), expected(1.0, 0.5));
        assert_eq!(decode(Dtype::Q4_0, &[&[0x00, 0x40], &nibbles[..]].concat()), expected(2.0, -16.0));
        let bytes = (0..32).map(|k: u8| k.wrapping_mul(8).wrapping_sub(128)).collect::<Vec<_>>();
        let expected = (0..32).map(|k| 0.5 * (8.0 * k as f32 - 128.0)).collect::<Vec<_>>();
        assert_eq!(decode(Dtype::Q8_0, &[&[0x00, 0x38], &bytes[..]].concat()), expected);
    }
}
