//! P, the exclusive or, and Q, Linux's second parity: the fastest kernel that this processor has, chosen once while
//! running.
//!
//! One fused pass: every source is loaded once, the sum stays in registers, every result is stored once. Any
//! length and any alignment works; whole pages from the slab are fastest.
//!
//! - Never a non-temporal store: what was computed goes to a member next, and is wanted in the cache.
//! - Q is `D0 + 2 D1 + 4 D2 + ...` in the [field](multiply) of 0x11d; [`Word`] tells what of a stripe follows from what.
//! - Never an instruction the processor was not asked for: a [`Kernel`] exists only where it can run.
//!
//! ```
//! use raidcore::parity::{is_zero_xor, xor_into};
//!
//! let (a, b) = ([1u8, 2, 3], [4u8, 4, 4]);
//! let mut parity = [0; 3];
//! xor_into(&mut parity, &[&a, &b]);
//! assert_eq!(parity, [5, 6, 7]);
//! assert!(is_zero_xor(&[&a, &b, &parity]));
//! ```

mod field;
mod portable;
#[cfg(test)]
mod tests;
mod word;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_pq;

pub use field::{inverse, multiply, power};
pub use word::{Factors, Word};

use std::sync::OnceLock;

/// `dst` becomes the exclusive or of all `sources`; zeroes, if there are none.
///
/// Panics if a source is not as long as `dst`.
pub fn xor_into(dst: &mut [u8], sources: &[&[u8]]) {
    active().xor_into(dst, sources);
}

/// Each byte of `dst` becomes the exclusive or of itself and of all `sources`.
///
/// Panics if a source is not as long as `dst`.
pub fn xor_accumulate(dst: &mut [u8], sources: &[&[u8]]) {
    active().xor_accumulate(dst, sources);
}

/// True if the exclusive or of all `sources` is zero everywhere: a stripe's chunks with its parity, if it is
/// right. Stops at the first difference.
///
/// Panics if the sources differ in length.
pub fn is_zero_xor(sources: &[&[u8]]) -> bool {
    active().is_zero_xor(sources)
}

/// `p` becomes the exclusive or of all columns, `q` their sum with column `i` times the generator to the power of `i`:
/// RAID6's two parities, in one pass.
///
/// Panics if `p`, `q` and the columns differ in length.
pub fn pq_into(p: &mut [u8], q: &mut [u8], columns: &[&[u8]]) {
    active().pq_into(p, q, columns);
}

/// A buffer and the factor that it counts with in a sum.
pub type Scaled<'a> = (u8, &'a [u8]);

/// `dst` becomes the sum of the `terms`, each a factor and a source, in the field of Q.
///
/// Panics if a source is not as long as `dst`.
pub fn combine_into(dst: &mut [u8], terms: &[Scaled]) {
    active().combine_into(dst, terms);
}

/// The sum of the `terms` is added to `dst`.
///
/// Panics if a source is not as long as `dst`.
pub fn combine_accumulate(dst: &mut [u8], terms: &[Scaled]) {
    active().combine_accumulate(dst, terms);
}

/// The name of the kernel in use: "avx512-gfni", "avx512", "avx2-gfni", "avx2" or "portable".
pub fn kernel_name() -> &'static str {
    active().name()
}

/// All kernels this processor can run, the fastest first; the last one is portable. For tests and benches.
pub fn kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    #[cfg(target_arch = "x86_64")]
    kernels.extend(x86::detected());
    kernels.push(portable::KERNEL);
    kernels
}

/// One implementation.
#[derive(Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    /// Arguments: `dst`, `sources` of the same length, and whether the content of `dst` counts. Only callable on
    /// a processor that has the instructions, which is why kernels are handed out by detection alone.
    xor: unsafe fn(&mut [u8], &[&[u8]], bool),
    /// Arguments: sources of the same length.
    is_zero: unsafe fn(&[&[u8]]) -> bool,
    /// Arguments: P, Q and the columns, all of the same length.
    pq: unsafe fn(&mut [u8], &mut [u8], &[&[u8]]),
    /// Arguments: `dst`, factors and sources of the same length, and whether the content of `dst` counts.
    combine: unsafe fn(&mut [u8], &[Scaled], bool),
}

#[allow(unsafe_code)] // one of the three places: functions compiled for more than the baseline processor
impl Kernel {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// As [`xor_into`].
    pub fn xor_into(&self, dst: &mut [u8], sources: &[&[u8]]) {
        check(dst.len(), sources);
        // SAFETY: a kernel is handed out only where the processor has its instructions.
        unsafe { (self.xor)(dst, sources, false) }
    }

    /// As [`xor_accumulate`].
    pub fn xor_accumulate(&self, dst: &mut [u8], sources: &[&[u8]]) {
        check(dst.len(), sources);
        // SAFETY: as above.
        unsafe { (self.xor)(dst, sources, true) }
    }

    /// As [`is_zero_xor`].
    pub fn is_zero_xor(&self, sources: &[&[u8]]) -> bool {
        check(sources.first().map_or(0, |first| first.len()), sources);
        // SAFETY: as above.
        unsafe { (self.is_zero)(sources) }
    }

    /// As [`pq_into`].
    pub fn pq_into(&self, p: &mut [u8], q: &mut [u8], columns: &[&[u8]]) {
        check(p.len(), columns);
        check(p.len(), &[q]);
        // SAFETY: as above.
        unsafe { (self.pq)(p, q, columns) }
    }

    /// As [`combine_into`].
    pub fn combine_into(&self, dst: &mut [u8], terms: &[Scaled]) {
        check_terms(dst.len(), terms);
        // SAFETY: as above.
        unsafe { (self.combine)(dst, terms, false) }
    }

    /// As [`combine_accumulate`].
    pub fn combine_accumulate(&self, dst: &mut [u8], terms: &[Scaled]) {
        check_terms(dst.len(), terms);
        // SAFETY: as above.
        unsafe { (self.combine)(dst, terms, true) }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

fn active() -> &'static Kernel {
    static ACTIVE: OnceLock<Kernel> = OnceLock::new();
    ACTIVE.get_or_init(|| kernels()[0])
}

fn check(len: usize, sources: &[&[u8]]) {
    for source in sources {
        assert_eq!(source.len(), len, "parity over buffers of different lengths");
    }
}

fn check_terms(len: usize, terms: &[Scaled]) {
    terms.iter().for_each(|(_, source)| check(len, &[source]));
}
