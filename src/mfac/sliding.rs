//! The dynamic algorithm: F⁻¹x over a sliding window of the latest gradients.
//!
//! A ring of m rows holds G (rows not filled yet are zero, as in the published code), and the
//! triangular factor L of K = mλI + GGᵀ is kept in the order of their age. A new gradient g costs
//! one pass over G, s = Gg, and O(m²): a row leaves the factor by a rank-one *update* of what
//! follows it (Givens rotations, backward stable) and joins it at the end by a triangular solve.
//! F⁻¹x = (x − Gᵀ K⁻¹ G x)/λ. This replaces the paper's matrices D and B with their O(m³) rebuild,
//! and has no limit on m. Gram entries are f64 sums of what is stored, each computed once.

use std::io::{Read, Write};
use std::path::Path;

use super::dense;
use super::kernels::syrk;
use super::passes::{self, Sums};
use super::store::{GradientStore, Storage};
use crate::error::{Error, ErrorKind, Result, bail};

/// F⁻¹ = (λI + GᵀG/m)⁻¹ of the latest m gradients.
#[derive(Debug)]
pub struct Sliding {
    store: GradientStore,
    /// The row of each gradient in the window, oldest first.
    ages: Vec<usize>,
    /// GGᵀ, m×m, by rows of the store; meaningless where a row is not in the window.
    gram: Vec<f64>,
    damping: f64,
    factor: AgedFactor,
    /// Apart, as it is large and absent where nothing was computed yet.
    scratch: Option<Box<Scratch>>,
}

/// What a step computes in; once the window has been full, a step allocates nothing.
#[derive(Debug, Default)]
struct Scratch {
    /// The newest gradient, as stored.
    x: Vec<f64>,
    row: Vec<f32>,
    /// Gx by rows of the store, and m factors of the rows.
    products: Vec<f64>,
    factors: Vec<f64>,
    /// The same by age.
    aged: Vec<f64>,
    rotations: Vec<(f64, f64)>,
    passes: passes::Scratch,
}

impl Sliding {
    /// An empty window of `capacity` gradients of `dimension` weights with damping λ; `folder` as
    /// for [`GradientStore::new`].
    ///
    /// Errors: `Usage` for a capacity of 0 or a damping that is not positive and finite, `Memory`
    /// or `Io` when there is no room.
    pub fn new(
        capacity: usize,
        dimension: usize,
        damping: f64,
        storage: Storage,
        folder: Option<&Path>,
    ) -> Result<Sliding> {
        check_damping(damping)?;
        if capacity == 0 {
            bail!(Usage, "a window of 0 gradients has no curvature; keep at least one");
        }
        let store = GradientStore::new(capacity, dimension, storage, folder)?;
        let mut gram = Vec::new();
        let numbers = capacity.saturating_mul(capacity);
        gram.try_reserve_exact(numbers).map_err(|e| {
            let message = format!("the Gram matrix of {capacity} gradients does not fit in memory");
            Error::new(ErrorKind::Memory, message).with_source(e)
        })?;
        gram.resize(numbers, 0.0);
        let (ages, factor) = Default::default();
        Ok(Sliding { store, ages, gram, damping, factor, scratch: None })
    }

    /// m, the most gradients in the window.
    pub fn capacity(&self) -> usize {
        self.store.count()
    }

    /// d, the length of a gradient.
    pub fn dimension(&self) -> usize {
        self.store.dimension()
    }

    /// The gradients in the window.
    pub fn len(&self) -> usize {
        self.ages.len()
    }

    /// Whether the window holds no gradient.
    pub fn is_empty(&self) -> bool {
        self.ages.is_empty()
    }

    /// λ.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// The mean of the diagonal of 1/n Σ g gᵀ over the n gradients in the window; 0 without any.
    pub fn mean_diagonal(&self) -> f64 {
        let squares = self.ages.iter().map(|row| self.gram[row * (self.capacity() + 1)]);
        squares.sum::<f64>() / (self.len() * self.dimension()).max(1) as f64
    }

    /// Adds the newest gradient (d numbers), in place of the oldest if the window is full: one pass
    /// over G.
    ///
    /// Error `Numerics` for a gradient that is not finite; the window is then unchanged.
    pub fn push(&mut self, gradient: &[f32], threads: usize) -> Result<()> {
        self.enter(gradient, threads)
    }

    /// [`Sliding::push`] of many gradients, oldest first, of which the last m stay: products are
    /// taken once for all, which is much faster than one by one.
    ///
    /// Errors of kind `Numerics`: a gradient is not finite, or λ vanishes beside them; the window
    /// is then empty.
    pub fn extend<G: AsRef<[f32]>>(
        &mut self,
        gradients: impl IntoIterator<Item = G>,
        threads: usize,
    ) -> Result<()> {
        let mut ages = std::mem::take(&mut self.ages);
        self.factor = AgedFactor::default();
        for gradient in gradients {
            let row = if ages.len() < self.capacity() { free_row(&ages) } else { ages.remove(0) };
            self.store.set_row(row, gradient.as_ref())?;
            ages.push(row);
        }
        let half = passes::gram(self.store.all(), Sums::Double, threads);
        syrk::expand(self.capacity(), &half, 1.0, &mut self.gram);
        self.ages = ages;
        let factored = self.set_damping(self.damping);
        if factored.is_err() {
            self.ages.clear();
        }
        factored
    }

    /// [`Sliding::push`], then F⁻¹g of that gradient (as stored) to `out`: two passes over G.
    pub fn step(&mut self, gradient: &[f32], out: &mut [f32], threads: usize) -> Result<()> {
        self.enter(gradient, threads)?;
        let mut scratch = self.scratch.take().unwrap_or_default();
        self.finish(&mut scratch, out, threads);
        self.scratch = Some(scratch);
        Ok(())
    }

    /// Removes the gradient of age `index`, 0 being the oldest. Panics when there is none.
    pub fn remove(&mut self, index: usize) {
        self.ages.remove(index);
        self.factor.remove(index, &mut self.scratch.get_or_insert_default().rotations);
    }

    /// Replaces the gradient of age `index` (0 the oldest) by a newest one.
    ///
    /// Error `Numerics` for a gradient that is not finite; the window is then unchanged.
    pub fn replace(&mut self, index: usize, gradient: &[f32], threads: usize) -> Result<()> {
        let row = self.ages[index];
        self.store.set_row(row, gradient)?;
        self.join(row, Some(index), threads);
        Ok(())
    }

    /// F⁻¹x (d numbers) to `out`: two passes over G.
    pub fn apply(&self, x: &[f32], out: &mut [f32], threads: usize) {
        let mut scratch = Scratch::default();
        scratch.x.extend(x.iter().map(|&x| f64::from(x)));
        scratch.products.resize(self.capacity(), 0.0);
        let Scratch { x, products, passes, .. } = &mut scratch;
        passes::products(self.store.all(), x, products, passes, || (), threads);
        self.finish(&mut scratch, out, threads);
    }

    /// Replaces λ: the factor is made anew, O(m³).
    ///
    /// Errors: `Usage` for a λ that is not positive and finite, `Numerics` when it vanishes beside
    /// the gradients; the old λ then stays.
    pub fn set_damping(&mut self, damping: f64) -> Result<()> {
        check_damping(damping)?;
        let n = self.len();
        // GGᵀ/m in the order of age, so that the damping in messages is λ itself.
        let scale = 1.0 / self.capacity() as f64;
        let pair = |a: usize, b: usize| self.gram[self.ages[a] * self.capacity() + self.ages[b]];
        let gram: Vec<f64> = (0..n)
            .flat_map(|a| (0..n).map(move |b| (a, b)))
            .map(|(a, b)| scale * pair(a, b))
            .collect();
        let mut l = vec![0.0; n * n];
        dense::factor(&gram, n, damping, &mut l)?;
        self.factor = AgedFactor::from_columns(&l, n, (self.capacity() as f64).sqrt());
        self.damping = damping;
        Ok(())
    }

    /// Writes the state, from which [`Sliding::restore`] goes on with the same bits.
    pub fn save(&self, to: &mut dyn Write) -> std::io::Result<()> {
        to.write_all(MAGIC)?;
        for number in self.shape() {
            to.write_all(&number.to_le_bytes())?;
        }
        to.write_all(&(self.len() as u64).to_le_bytes())?;
        for &row in &self.ages {
            to.write_all(&(row as u64).to_le_bytes())?;
        }
        for number in std::iter::once(&self.damping).chain(&self.gram).chain(&self.factor.rows) {
            to.write_all(&number.to_le_bytes())?;
        }
        self.store.save(to)
    }

    /// Takes over a state that [`Sliding::save`] wrote for a window of the same capacity, dimension
    /// and storage.
    ///
    /// Errors of kind `Io`: the state is cut short, is of another shape, or makes no sense. The
    /// window is then empty.
    pub fn restore(&mut self, from: &mut dyn Read) -> Result<()> {
        self.ages.clear();
        self.factor = AgedFactor::default();
        let state = self.read_state(from);
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Io, format!("the saved M-FAC window cannot be used: {e}"))
                .with_source(e)
        };
        (self.ages, self.factor) = state.map_err(failed)?;
        Ok(())
    }

    fn read_state(&mut self, from: &mut dyn Read) -> std::io::Result<(Vec<usize>, AgedFactor)> {
        let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(invalid("it does not begin as one does"));
        }
        for number in self.shape() {
            if read_number(from)? != number {
                return Err(invalid("it is of another capacity, dimension or storage"));
            }
        }
        let len = read_number(from)? as usize;
        if len > self.capacity() {
            return Err(invalid("it holds more gradients than its capacity"));
        }
        let mut ages = Vec::with_capacity(len);
        for _ in 0..len {
            let row = read_number(from)? as usize;
            if row >= self.capacity() || ages.contains(&row) {
                return Err(invalid("its rows are not distinct"));
            }
            ages.push(row);
        }
        let damping = f64::from_bits(read_number(from)?);
        check_damping(damping).map_err(|_| invalid("its damping is not positive"))?;
        for number in &mut self.gram {
            *number = f64::from_bits(read_number(from)?);
        }
        let mut factor = AgedFactor { rows: vec![0.0; triangle(len)] };
        for number in &mut factor.rows {
            *number = f64::from_bits(read_number(from)?);
        }
        let positive = (0..len).all(|i| factor.rows[triangle(i) + i] > 0.0);
        if !positive || factor.rows.iter().any(|x| !x.is_finite()) {
            return Err(invalid("its factor is not one of a positive definite matrix"));
        }
        self.store.restore(from)?;
        self.damping = damping;
        Ok((ages, factor))
    }

    /// What a saved state must agree with.
    fn shape(&self) -> [u64; 3] {
        let storage = self.store.storage() as u64;
        [self.capacity() as u64, self.store.dimension() as u64, storage]
    }

    /// Puts the gradient into the window; leaves it as stored, and Gg, in the scratch.
    fn enter(&mut self, gradient: &[f32], threads: usize) -> Result<()> {
        let full = self.len() == self.capacity();
        let row = match full {
            true => self.ages[0],
            false => free_row(&self.ages),
        };
        self.store.set_row(row, gradient)?;
        self.join(row, full.then_some(0), threads);
        Ok(())
    }

    /// Makes the gradient that is stored in `row` the newest, in place of the one of age `leaver`;
    /// leaves it and Gg in the scratch.
    ///
    /// The factor forgets the one while G is multiplied by the other: both wait for memory.
    fn join(&mut self, row: usize, leaver: Option<usize>, threads: usize) {
        let (m, d) = (self.capacity(), self.store.dimension());
        let Sliding { store, ages, gram, damping, factor, scratch } = self;
        let Scratch { x, row: stored, products, aged, rotations, passes, .. } =
            &mut **scratch.get_or_insert_default();
        stored.resize(d, 0.0);
        x.clear();
        x.extend(store.all().row(row, 0..d, stored).iter().map(|&x| f64::from(x)));
        products.resize(m, 0.0);
        let forget = || leaver.into_iter().for_each(|age| factor.remove(age, rotations));
        passes::products(store.all(), x, products, passes, forget, threads);
        if let Some(age) = leaver {
            ages.remove(age);
        }
        for (other, &product) in products.iter().enumerate() {
            gram[row * m + other] = product;
            gram[other * m + row] = product;
        }
        aged.clear();
        aged.extend(ages.iter().map(|&other| products[other]));
        factor.append(aged, products[row], *damping * m as f64);
        ages.push(row);
    }

    /// (x − Gᵀ K⁻¹ p)/λ for the x of the scratch and its p = Gx by rows of the store.
    fn finish(&self, scratch: &mut Scratch, out: &mut [f32], threads: usize) {
        let Scratch { x, products, factors, aged, passes, .. } = scratch;
        aged.clear();
        aged.extend(self.ages.iter().map(|&row| products[row]));
        self.factor.solve(aged);
        factors.clear();
        factors.resize(self.capacity(), 0.0);
        self.ages.iter().zip(aged).for_each(|(&row, f)| factors[row] = *f);
        let (g, inverse) = (self.store.all(), 1.0 / self.damping);
        passes::combine_one(g, factors, out, passes, threads, |columns, sums, out| {
            for ((out, x), sum) in out.iter_mut().zip(&x[columns]).zip(sums) {
                *out = ((x - sum) * inverse) as f32;
            }
        });
    }
}

const MAGIC: &[u8; 16] = b"hone.sliding/1\0\n";

fn check_damping(damping: f64) -> Result<()> {
    if !(damping > 0.0 && damping.is_finite()) {
        bail!(Usage, "the damping must be positive and finite, not {damping}");
    }
    Ok(())
}

/// The first row that is not in use, for a window that is not full.
fn free_row(ages: &[usize]) -> usize {
    (0..).find(|row| !ages.contains(row)).expect("one of the first rows is free")
}

fn read_number(from: &mut dyn Read) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// L of K = LLᵀ by rows, packed, the oldest gradient first.
#[derive(Debug, Default)]
struct AgedFactor {
    rows: Vec<f64>,
}

/// The numbers in i rows of a packed triangle.
fn triangle(i: usize) -> usize {
    i * (i + 1) / 2
}

impl AgedFactor {
    /// scale·L, given by columns.
    fn from_columns(l: &[f64], n: usize, scale: f64) -> AgedFactor {
        let rows = (0..n).flat_map(|i| (0..=i).map(move |j| scale * l[j * n + i])).collect();
        AgedFactor { rows }
    }

    fn len(&self) -> usize {
        // triangle(n) numbers, so n is the root rounded down.
        (2 * self.rows.len()).isqrt()
    }

    /// Joins a gradient: `row` its products with those before it (spoiled), `square` with itself.
    fn append(&mut self, row: &mut [f64], square: f64, damping: f64) {
        for i in 0..row.len() {
            let l = &self.rows[triangle(i)..triangle(i + 1)];
            row[i] = (row[i] - dot(&l[..i], &row[..i])) / l[i];
        }
        // The Schur complement of mλI + GGᵀ is at least mλ; rounding may not take it below.
        let pivot = (square + damping - dot(row, row)).max(damping);
        self.rows.extend_from_slice(row);
        self.rows.push(pivot.sqrt());
    }

    /// Removes gradient k: the rows after it take up its column by rotations, kept in `rotations`.
    ///
    /// Row i moves to the place of row i − 1, whose numbers were read before. A rotation waits for
    /// the one before it in its row, so four rows go side by side.
    fn remove(&mut self, k: usize, rotations: &mut Vec<(f64, f64)>) {
        const SIDE: usize = 4;
        let n = self.len();
        rotations.clear();
        let mut first = k + 1;
        while first < n {
            let count = SIDE.min(n - first);
            let mut carried = [0.0; SIDE];
            for (r, carried) in carried.iter_mut().enumerate().take(count) {
                let (from, to) = (triangle(first + r), triangle(first + r - 1));
                *carried = self.rows[from + k];
                self.rows.copy_within(from..from + k, to);
            }
            if count == SIDE {
                // The five places that the four rows come from and go to.
                let place = |r: usize| triangle(first - 1 + r) + k;
                let at = [place(0), place(1), place(2), place(3), place(4)];
                for (j, &(cosine, sine)) in rotations.iter().enumerate() {
                    let l = [1, 2, 3, 4].map(|r| self.rows[at[r] + 1 + j]);
                    for r in 0..SIDE {
                        self.rows[at[r] + j] = cosine * l[r] + sine * carried[r];
                        carried[r] = cosine * carried[r] - sine * l[r];
                    }
                }
            }
            let done = if count == SIDE { rotations.len() } else { 0 };
            for (i, mut carried) in (first..first + count).zip(carried) {
                let (from, to) = (triangle(i), triangle(i - 1));
                for (j, &(cosine, sine)) in rotations.iter().enumerate().skip(done) {
                    let l = self.rows[from + k + 1 + j];
                    self.rows[to + k + j] = cosine * l + sine * carried;
                    carried = cosine * carried - sine * l;
                }
                let l = self.rows[from + i];
                let pivot = l.hypot(carried);
                self.rows[to + i - 1] = pivot;
                rotations.push((l / pivot, carried / pivot));
            }
            first += count;
        }
        self.rows.truncate(triangle(n - 1));
    }

    /// Solves LLᵀx = b in place.
    fn solve(&self, x: &mut [f64]) {
        for i in 0..x.len() {
            let l = &self.rows[triangle(i)..triangle(i + 1)];
            x[i] = (x[i] - dot(&l[..i], &x[..i])) / l[i];
        }
        for i in (0..x.len()).rev() {
            let l = &self.rows[triangle(i)..triangle(i + 1)];
            x[i] /= l[i];
            let (before, now) = x.split_at_mut(i);
            before.iter_mut().zip(l).for_each(|(x, l)| *x -= l * now[0]);
        }
    }
}

/// Four sums side by side: a single one would wait for each addition.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let tail: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a4.zip(b4) {
        for l in 0..4 {
            sums[l] += a[l] * b[l];
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mfac::tolerance::{
        Rng, assert_approximate, assert_exact, dense_inverse, hard_gradients, widen,
    };

    /// F⁻¹x from the rows (padded with zeros to m) by a dense inverse.
    fn reference(rows: &[&[f32]], m: usize, x: &[f32], damping: f64) -> Vec<f64> {
        let d = x.len();
        let mut g = rows.concat();
        g.resize(m * d, 0.0);
        let inverse = dense_inverse(&g, m, d, damping);
        inverse.chunks_exact(d).map(|row| dot(row, &widen(x))).collect()
    }

    fn applied(window: &Sliding, x: &[f32]) -> Vec<f64> {
        let mut out = vec![f32::NAN; x.len()];
        window.apply(x, &mut out, 2);
        widen(&out)
    }

    fn largest(x: &[f64]) -> f64 {
        x.iter().fold(0.0, |m, x| m.max(x.abs()))
    }

    #[test]
    fn the_window_slides_like_a_dense_inverse_of_its_rows() {
        let (m, d, damping) = (9, 40, 1e-3);
        let g = hard_gradients(30, d, 41);
        let row = |i: usize| &g[i * d..][..d];
        let x = Rng::new(42).normals(d);
        let mut window = Sliding::new(m, d, damping, Storage::F32, None).unwrap();
        let mut rows: Vec<&[f32]> = Vec::new();
        let check = |window: &Sliding, rows: &[&[f32]], damping: f64| {
            let want = reference(rows, m, &x, damping);
            assert_approximate(&applied(window, &x), &want, 1e-5, largest(&want));
        };
        check(&window, &rows, damping);
        assert_eq!(window.mean_diagonal(), 0.0);
        for i in 0..20 {
            let mut out = vec![f32::NAN; d];
            window.step(row(i), &mut out, 2).unwrap();
            rows.push(row(i));
            if rows.len() > m {
                rows.remove(0);
            }
            let want = reference(&rows, m, row(i), damping);
            assert_approximate(&widen(&out), &want, 1e-5, largest(&want));
            check(&window, &rows, damping);
        }
        for k in [3, 0, 6] {
            window.remove(k);
            rows.remove(k);
            check(&window, &rows, damping);
        }
        window.replace(2, row(25), 1).unwrap();
        rows.remove(2);
        rows.push(row(25));
        check(&window, &rows, damping);
        let squares: f64 = rows.iter().map(|row| dot(&widen(row), &widen(row))).sum();
        let mean = squares / (rows.len() * d) as f64;
        assert_approximate(&[window.mean_diagonal()], &[mean], 1e-12, mean);
        window.set_damping(0.3).unwrap();
        check(&window, &rows, 0.3);
        window.push(row(26), 1).unwrap();
        rows.push(row(26));
        check(&window, &rows, 0.3);
    }

    #[test]
    fn many_gradients_at_once_are_those_pushed_one_by_one() {
        let (m, d) = (10, 50);
        let g = hard_gradients(40, d, 45);
        let x = Rng::new(46).normals(d);
        let new = || Sliding::new(m, d, 1e-3, Storage::F16, None).unwrap();
        let (mut one, mut many) = (new(), new());
        for part in [0..4, 4..4, 4..9, 9..31, 31..40] {
            part.clone().for_each(|i| one.push(&g[i * d..][..d], 1).unwrap());
            many.extend(part.map(|i| &g[i * d..][..d]), 2).unwrap();
            let want = applied(&one, &x);
            assert_approximate(&applied(&many, &x), &want, 1e-6, largest(&want));
            assert_eq!(one.len(), many.len());
        }
        assert!(many.extend([[f32::NAN; 50]], 1).is_err() && many.is_empty());
    }

    #[test]
    fn a_hundred_thousand_steps_do_not_drift() {
        let (m, d, damping) = (16, 24, 1e-6);
        let mut rng = Rng::new(43);
        let base = rng.normals(d);
        let mut window = Sliding::new(m, d, damping, Storage::F32, None).unwrap();
        for _ in 0..100_000 {
            // Nearly parallel gradients, the hardest on the factor.
            let g: Vec<f32> = base.iter().map(|b| b + 1e-2 * rng.normal() as f32).collect();
            window.push(&g, 1).unwrap();
        }
        let slid = window.factor.rows.clone();
        window.set_damping(damping).unwrap();
        assert_approximate(&slid, &window.factor.rows, 1e-9, largest(&slid));
    }

    #[test]
    fn a_saved_window_goes_on_with_the_same_bits() {
        let (m, d) = (7, 33);
        let g = Rng::new(44).normals(30 * d);
        for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
            let mut window = Sliding::new(m, d, 1e-2, storage, None).unwrap();
            (0..12).for_each(|i| window.push(&g[i * d..][..d], 2).unwrap());
            window.remove(3);
            let mut saved = Vec::new();
            window.save(&mut saved).unwrap();
            let mut restored = Sliding::new(m, d, 5.0, storage, None).unwrap();
            restored.restore(&mut &saved[..]).unwrap();
            for i in 12..25 {
                window.push(&g[i * d..][..d], 2).unwrap();
                restored.push(&g[i * d..][..d], 1).unwrap();
                assert_exact(&applied(&restored, &g[..d]), &applied(&window, &g[..d]));
            }
            for cut in [0, 10, 39, 47, 60, saved.len() - 1] {
                let error = restored.restore(&mut &saved[..cut]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(restored.is_empty());
            }
            for at in [0, 16, 24, 32, 40, 50] {
                let mut broken = saved.clone();
                broken[at] ^= 0x80;
                assert_eq!(restored.restore(&mut &broken[..]).unwrap_err().kind(), ErrorKind::Io);
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let kind = |m, damping| Sliding::new(m, 3, damping, Storage::F32, None).unwrap_err().kind();
        assert_eq!(kind(0, 1.0), ErrorKind::Usage);
        assert_eq!(kind(2, 0.0), ErrorKind::Usage);
        assert_eq!(kind(2, f64::NAN), ErrorKind::Usage);
        assert_eq!(kind(usize::MAX, 1.0), ErrorKind::Memory);
        let mut window = Sliding::new(2, 3, 0.5, Storage::F32, None).unwrap();
        window.push(&[1.0, 2.0, 3.0], 1).unwrap();
        let before = applied(&window, &[1.0, 0.0, -1.0]);
        let error = window.push(&[1.0, f32::NAN, 0.0], 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerics);
        assert_eq!(window.set_damping(-1.0).unwrap_err().kind(), ErrorKind::Usage);
        assert_exact(&applied(&window, &[1.0, 0.0, -1.0]), &before);
    }
}
