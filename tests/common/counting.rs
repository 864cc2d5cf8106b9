//! An allocator that counts, for tests of how work grows: what is copied, collected or read again and again shows in the
//! bytes that a thread asks for, on any machine and beside any other work.
#![allow(dead_code, reason = "each user needs a part of it")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(asked: usize, more: isize) {
    // A thread that ends has no counters any more.
    let _ = ASKED.try_with(|all| all.set(all.get() + asked));
    let _ = HELD.try_with(|held| {
        held.set(held.get() + more);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: everything is the system allocator's doing; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: the caller keeps to what this trait asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Bytes that this thread asked for.
pub struct Counted {
    /// All of them, one after the other.
    pub asked: usize,
    /// The most that it held at once, beyond what it held before.
    pub most: usize,
}

/// Counts what `work` takes.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, Counted) {
    let (asked, held) = (ASKED.get(), HELD.get());
    MOST.set(held);
    let done = work();
    let most = usize::try_from(MOST.get() - held).unwrap_or(0);
    (done, Counted { asked: ASKED.get() - asked, most })
}

/// Fails if what `work` takes for twice as many things is more than n log n allows, once and again; returns what it took last.
#[track_caller]
pub fn doubles(what: &str, first: usize, mut work: impl FnMut(usize)) -> Counted {
    let mut before = counted(|| work(first)).1;
    for (n, times) in [(2 * first, "twice"), (4 * first, "four times")] {
        let now = counted(|| work(n)).1;
        // log 2n / log n is 1.1 for the thousands of things that are counted here; vectors that grow double.
        let allowed = 2.3 * before.asked as f64 + 64e3;
        assert!(
            now.asked as f64 <= allowed,
            "{what}: {} bytes for {n}, {times} as many; {} before",
            now.asked,
            before.asked
        );
        before = now;
    }
    before
}
