//! A thread's working memory: one allocation that grows to the largest need and stays.

/// A cache line, so that vectors never straddle two.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Floats without meaningful content, aligned to 64 bytes.
#[derive(Default)]
pub(super) struct Scratch(Vec<Line>);

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} lines", self.0.len())
    }
}

impl Scratch {
    /// Slices of these lengths, each aligned.
    pub fn slices<const N: usize>(&mut self, lens: [usize; N]) -> [&mut [f32]; N] {
        let total: usize = lens.iter().map(|len| len.div_ceil(16)).sum();
        if self.0.len() < total {
            self.0.resize(total, Line([0.0; 16]));
        }
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(&mut self.0);
        lens.map(|len| {
            let (here, behind) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(16));
            rest = behind;
            &mut here[..len]
        })
    }
}
