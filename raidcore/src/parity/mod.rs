//! Parity by exclusive or: the fastest kernel that this processor has, chosen once while running.
//!
//! One fused pass: every source is loaded once, the sum stays in registers, every result is stored once. Any
//! length and any alignment works; whole pages from the slab are fastest.
//!
//! - Never a non-temporal store: what was computed goes to a member next, and is wanted in the cache.
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

mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

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

/// The name of the kernel in use: "avx512", "avx2" or "portable".
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
