//! Reads that are asked for ahead of time: what the next step packs comes into the second-level
//! cache while this step computes.
#![allow(unsafe_code, reason = "prefetch instructions, which access no memory")]

const LINE: usize = 64;

/// Pieces of bytes, one after another a step apart, to be read soon.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    piece: *const u8,
    /// Bytes from one piece to the next.
    stride: usize,
    /// Lines of a piece, and the one to ask for next.
    lines: usize,
    line: usize,
    /// Pieces left.
    pieces: usize,
}

impl Ahead {
    /// Nothing is to be read.
    pub fn none() -> Ahead {
        Ahead { piece: std::ptr::null(), stride: 0, lines: 0, line: 0, pieces: 0 }
    }

    /// `count` pieces of `len` bytes from the beginning of `bytes` on, `stride` bytes apart.
    pub fn new(bytes: &[u8], count: usize, stride: usize, len: usize) -> Ahead {
        // Where a piece begins in its line; not all begin alike if the stride is no whole number.
        let skewed = bytes.as_ptr() as usize % LINE;
        let piece = bytes.as_ptr().wrapping_sub(skewed);
        let lines = (skewed + len).div_ceil(LINE) + usize::from(!stride.is_multiple_of(LINE));
        Ahead { piece, stride, lines, line: 0, pieces: count }
    }

    /// The lines that are left.
    pub fn left(&self) -> usize {
        (self.pieces * self.lines).saturating_sub(self.line)
    }

    /// Asks for the next `count` lines.
    #[inline]
    pub fn ask(&mut self, count: usize) {
        for _ in 0..count.min(self.left()) {
            ask_for(self.piece.wrapping_add(self.line * LINE));
            self.line += 1;
            if self.line == self.lines {
                (self.line, self.pieces) = (0, self.pieces - 1);
                self.piece = self.piece.wrapping_add(self.stride);
            }
        }
    }
}

/// Asks for all of these numbers.
#[inline]
pub fn soon<T>(numbers: &[T]) {
    let start = numbers.as_ptr().cast::<u8>();
    for line in (0..size_of_val(numbers)).step_by(LINE) {
        ask_for(start.wrapping_add(line));
    }
}

/// Asks for the line at an address, which need not be one of this process.
#[inline(always)]
pub fn ask_for(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch is a hint that faults at no address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_asked_for_once() {
        let bytes = vec![0; 1000];
        let start = bytes.as_ptr().align_offset(LINE);
        assert_eq!(Ahead::new(&bytes[start..], 3, 320, 128).left(), 6);
        assert_eq!(Ahead::new(&bytes[start + 32..], 3, 320, 128).left(), 9);
        let mut ahead = Ahead::new(&bytes[start..], 3, 300, 128);
        assert_eq!(ahead.left(), 9);
        ahead.ask(5);
        assert_eq!(ahead.left(), 4);
        ahead.ask(100);
        assert_eq!(ahead.left(), 0);
        Ahead::none().ask(1);
    }
}
