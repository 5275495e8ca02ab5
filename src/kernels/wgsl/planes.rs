//! Weight formats as the shaders read them: a file's blocks repacked, bits unchanged, into planes of whole words.
//!
//! WGSL reads 32-bit words, and blocks of 18 or 34 bytes straddle them. So the quants of a row come first, in order of `k`, in rows padded with
//! zeros to whole blocks of 32 elements (a multiple of 16 bytes); scales, and the minima of Q4_1, lie in a plane of their own. `shaders/lib/weight_*`
//! are the other side of this layout.

use half::f16;

use crate::dtype::Dtype;

/// Elements that a row's length is padded to; also the block length of the quantised formats.
pub(super) const BLOCK: usize = 32;

/// Bytes of a row in each plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowBytes {
    /// The elements themselves; a multiple of 16.
    pub quants: usize,
    /// f16 scales, or pairs of f16 scale and minimum; 0 for formats without, else a multiple of 4.
    pub scales: usize,
}

impl RowBytes {
    pub fn new(format: Dtype, width: usize) -> Self {
        let blocks = width.div_ceil(BLOCK);
        match format {
            Dtype::F32 => Self { quants: blocks * 128, scales: 0 },
            Dtype::F16 | Dtype::Bf16 => Self { quants: blocks * 64, scales: 0 },
            Dtype::Q8_0 => Self { quants: blocks * 32, scales: blocks.div_ceil(2) * 4 },
            Dtype::Q4_0 => Self { quants: blocks * 16, scales: blocks.div_ceil(2) * 4 },
            Dtype::Q4_1 => Self { quants: blocks * 16, scales: blocks * 4 },
        }
    }

    pub fn total(self) -> usize {
        self.quants + self.scales
    }
}

/// Repacks one row of the file. `quants` and `scales` are a row of each plane, zeroed; what the row does not reach stays zero.
pub(super) fn repack(format: Dtype, row: &[u8], quants: &mut [u8], scales: &mut [u8]) {
    let blocks = row.chunks_exact(format.block_bytes());
    match format {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => quants[..row.len()].copy_from_slice(row),
        Dtype::Q8_0 => {
            let places = quants.chunks_exact_mut(32).zip(scales.chunks_exact_mut(2));
            for (block, (quants, scale)) in blocks.zip(places) {
                scale.copy_from_slice(&block[..2]);
                quants.copy_from_slice(&block[2..]);
            }
        }
        Dtype::Q4_0 => {
            let places = quants.chunks_exact_mut(16).zip(scales.chunks_exact_mut(2));
            for (block, (quants, scale)) in blocks.zip(places) {
                scale.copy_from_slice(&block[..2]);
                nibbles_in_order(&block[2..], quants);
            }
        }
        Dtype::Q4_1 => {
            let places = quants.chunks_exact_mut(16).zip(scales.chunks_exact_mut(4));
            for (block, (quants, scale_and_min)) in blocks.zip(places) {
                scale_and_min.copy_from_slice(&block[..4]);
                nibbles_in_order(&block[4..], quants);
            }
        }
    }
}

/// ggml's byte `j` holds elements `j` and `j + 16`; ours holds `2j` and `2j + 1`, low nibble first, so that eight neighbours share a word.
fn nibbles_in_order(ggml: &[u8], ours: &mut [u8]) {
    for j in 0..8 {
        let (a, b) = (ggml[2 * j], ggml[2 * j + 1]);
        ours[j] = (a & 15) | (b << 4);
        ours[j + 8] = (a >> 4) | (b & 0xf0);
    }
}

/// One row of the file as a row of the F32 plane.
pub(super) fn repack_as_f32(format: Dtype, row: &[u8], quants: &mut [u8]) {
    for (block, out) in row.chunks_exact(format.block_bytes()).zip(quants.chunks_mut(4 * format.block_len())) {
        for (i, out) in out.chunks_exact_mut(4).enumerate() {
            out.copy_from_slice(&element(format, block, i).to_le_bytes());
        }
    }
}

/// Element `i` of a block of the file.
fn element(format: Dtype, block: &[u8], i: usize) -> f32 {
    let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |start: usize| f32::from(if i < 16 { block[start + i] & 15 } else { block[start + i - 16] >> 4 });
    match format {
        Dtype::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        Dtype::F16 => half_at(0),
        Dtype::Bf16 => f32::from_bits(u32::from(u16::from_le_bytes([block[0], block[1]])) << 16),
        Dtype::Q8_0 => half_at(0) * f32::from(block[2 + i].cast_signed()),
        Dtype::Q4_0 => half_at(0) * (nibble(2) - 8.0),
        Dtype::Q4_1 => half_at(0).mul_add(nibble(4), half_at(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inverse of [`repack`].
    fn restore(format: Dtype, width: usize, quants: &[u8], scales: &[u8]) -> Vec<u8> {
        let mut row = Vec::new();
        for block in 0..width / format.block_len() {
            let scale = match format {
                Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 0,
                Dtype::Q8_0 | Dtype::Q4_0 => 2,
                Dtype::Q4_1 => 4,
            };
            row.extend_from_slice(&scales[scale * block..scale * (block + 1)]);
            let bytes = format.block_bytes() - scale;
            let quants = &quants[bytes * block..bytes * (block + 1)];
            if matches!(format, Dtype::Q4_0 | Dtype::Q4_1) {
                let nibble = |k: usize| (quants[k / 2] >> (4 * (k % 2))) & 15;
                row.extend((0..16).map(|j| nibble(j) | (nibble(j + 16) << 4)));
            } else {
                row.extend_from_slice(quants);
            }
        }
        row
    }

    fn noise(len: usize) -> Vec<u8> {
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
            for width in [32, 96, 576, 4, 100].into_iter().filter(|w| w % format.block_len() == 0) {
                let row = noise(format.bytes(width).unwrap());
                let bytes = RowBytes::new(format, width);
                assert!(bytes.quants.is_multiple_of(16) && bytes.scales.is_multiple_of(4));
                let (mut quants, mut scales) = (vec![0; bytes.quants], vec![0; bytes.scales]);
                repack(format, &row, &mut quants, &mut scales);
                assert_eq!(restore(format, width, &quants, &scales), row, "{format:?} {width}");
                let used = format.bytes(width).unwrap() - row.len() % 4;
                assert!(quants.iter().skip(used).all(|&byte| byte == 0), "{format:?} {width}: padding");
            }
        }
    }

    #[test]
    fn conversion_to_f32_is_exact() {
        let decode = |format, row: &[u8]| {
            let mut out = vec![0; 128];
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
