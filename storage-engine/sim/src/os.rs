//! Time and randomness of the whole process: simulated once `begin` was called.
//!
//! Rust's standard library and every crate get both from the C library, whose functions are
//! replaced here when the program is linked.
#![expect(unsafe_code, reason = "the C library's functions are replaced")]

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

/// Wall-clock time at which every simulation begins: 2026-01-01.
const WALL_BEGIN_S: i64 = 1_767_225_600;

static SIMULATED: AtomicBool = AtomicBool::new(false);
/// Since the simulation began. It does not begin at zero: an `Instant` may be subtracted from.
static NOW_NS: AtomicU64 = AtomicU64::new(1_000_000_000_000);
static WALL_OFFSET_S: AtomicI64 = AtomicI64::new(0);
static RNG: Mutex<Option<StdRng>> = Mutex::new(None);

/// From now on nothing in this process depends on anything but `seed`.
pub fn begin(seed: u64) {
    *RNG.lock().unwrap_or_else(PoisonError::into_inner) = Some(StdRng::seed_from_u64(seed));
    SIMULATED.store(true, Ordering::SeqCst);
}

/// Time passes.
pub fn advance(by: Duration) {
    NOW_NS.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
}

/// The wall clocks jump; what measures durations does not.
pub fn jump_wall_clock(by_s: i64) {
    WALL_OFFSET_S.fetch_add(by_s, Ordering::SeqCst);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    let is_cpu = clock == libc::CLOCK_PROCESS_CPUTIME_ID || clock == libc::CLOCK_THREAD_CPUTIME_ID;
    if is_cpu || !SIMULATED.load(Ordering::SeqCst) {
        // SAFETY: the kernel checks both arguments.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as libc::c_int;
    }
    let now = NOW_NS.load(Ordering::SeqCst);
    let mut seconds = (now / 1_000_000_000) as i64;
    if clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_REALTIME_COARSE {
        seconds += WALL_BEGIN_S + WALL_OFFSET_S.load(Ordering::SeqCst);
    }
    let value = libc::timespec { tv_sec: seconds, tv_nsec: (now % 1_000_000_000) as i64 };
    // SAFETY: the caller of `clock_gettime` passes a place for the answer.
    unsafe { time.write(value) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize {
    let mut rng = RNG.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(rng) = &mut *rng else {
        // SAFETY: the kernel checks the arguments.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) } as isize;
    };
    if len > 0 {
        // SAFETY: the caller of `getrandom` passes a buffer of that length.
        rng.fill_bytes(unsafe { std::slice::from_raw_parts_mut(buffer, len) });
    }
    len as isize
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getentropy(buffer: *mut u8, len: usize) -> libc::c_int {
    // SAFETY: the caller of `getentropy` passes a buffer of that length.
    if unsafe { getrandom(buffer, len, 0) } == len as isize { 0 } else { -1 }
}
