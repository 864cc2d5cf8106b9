//! An allocator that counts, for tests of complexity: repeated copies and collections show in the bytes that a thread
//! allocates, independently of the machine and of other load.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(allocated: usize, change: isize) {
    // The counters of a thread that ends are gone.
    let _ = ALLOCATED.try_with(|total| total.set(total.get() + allocated));
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: all calls are forwarded to the system allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: the caller upholds this trait's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Bytes that this thread allocated.
pub struct Allocations {
    /// Sum over all allocations.
    pub total: usize,
    /// Largest number of bytes in use at once, in addition to those in use before.
    pub peak: usize,
}

/// Counts the allocations of `work`.
pub fn count_allocations<T>(work: impl FnOnce() -> T) -> (T, Allocations) {
    let (allocated, live) = (ALLOCATED.get(), LIVE.get());
    PEAK.set(live);
    let done = work();
    let peak = usize::try_from(PEAK.get() - live).unwrap_or(0);
    (done, Allocations { total: ALLOCATED.get() - allocated, peak })
}

/// Asserts that the allocations of `work` grow at most by n log n when n doubles, twice; returns those of the last run.
#[track_caller]
pub fn assert_linear(what: &str, first: usize, mut work: impl FnMut(usize)) -> Allocations {
    let mut before = count_allocations(|| work(first)).1;
    for (n, times) in [(2 * first, "twice"), (4 * first, "four times")] {
        let now = count_allocations(|| work(n)).1;
        // log 2n / log n is 1.1 for the thousands of items here; growing vectors double their capacity.
        let allowed = 2.3 * before.total as f64 + 64e3;
        assert!(
            now.total as f64 <= allowed,
            "{what}: {} bytes for {n}, {times} as many; {} before",
            now.total,
            before.total
        );
        before = now;
    }
    before
}
