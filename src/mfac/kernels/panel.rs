//! Operands laid out for the tile: a matrix of n columns becomes strips of 24 columns, each strip
//! contiguous and k rows deep, the last one padded with zeros.
//!
//! Strip s holds element (row, column) at `strip(s)[row·24 + column − 24·s]`. Rows 96 bytes apart
//! keep clear of the cache conflicts of power-of-two strides, and the padding spares every kernel
//! its edge cases.

use super::tile::WIDTH;

/// The number of strips of `n` columns.
pub fn strips(n: usize) -> usize {
    n.div_ceil(WIDTH)
}

/// The length of the panels of a k×n matrix.
pub fn len(k: usize, n: usize) -> usize {
    strips(n) * WIDTH * k
}

/// Packs the k×n matrix whose row i is `rows[i·stride..][..n]`.
pub fn pack(rows: &[f32], stride: usize, k: usize, n: usize, panels: &mut [f32]) {
    let panels = &mut panels[..len(k, n)];
    for (s, strip) in panels.chunks_exact_mut(WIDTH * k.max(1)).enumerate() {
        let width = WIDTH.min(n - s * WIDTH);
        for (i, packed) in strip.chunks_exact_mut(WIDTH).enumerate() {
            let row = &rows[i * stride + s * WIDTH..][..width];
            packed[..width].copy_from_slice(row);
            packed[width..].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_strips_and_pads_with_zeros() {
        let (k, n, stride) = (3, 26, 30);
        let rows: Vec<f32> = (0..k * stride).map(|i| i as f32).collect();
        let mut panels = vec![f32::NAN; len(k, n)];
        pack(&rows, stride, k, n, &mut panels);
        for i in 0..k {
            for j in 0..strips(n) * WIDTH {
                let want = if j < n { rows[i * stride + j] } else { 0.0 };
                assert_eq!(panels[j / WIDTH * WIDTH * k + i * WIDTH + j % WIDTH], want);
            }
        }
    }
}
