#include "memory.h"

#include <cstdio>
#include <cstring>
#include <vector>

namespace emulator {
namespace {

constexpr uint32_t DEVICE = 1, THREADGROUP = 2; // mem_flags
constexpr uint32_t NO_THREAD = ~0u;

/// The readers of a cell since its last write.
enum class Readers { None, Thread, Threadgroup, Everyone };

struct Region {
    uintptr_t from, to;
    bool writable;
    size_t cells; // index of its first cell, if it is writable
};

/// Logical time of an access: the numbers of barriers passed by the threadgroup and by the simdgroup.
struct Time {
    uint32_t group, simd;
};

/// The last writer and readers of a few bytes. Entries of earlier dispatches or threadgroups have another stamp.
struct Cell {
    uint64_t stamp;
    uint32_t writer, reader; // thread indices over all threadgroups; the last of several readers
    Readers readers;
    Time written, read;
};

constexpr size_t DEVICE_CELL = 2, THREADGROUP_CELL = 4; // bytes of a cell
constexpr size_t MAX_SIMDGROUPS = 32;

struct State {
    std::vector<Region> globals, regions;
    std::vector<Cell> device_cells, threadgroup_cells;
    uintptr_t stacks_from, stacks_to;
    uintptr_t shared_from, shared_to;
    uint64_t dispatches, threadgroups;
    uint32_t threadgroup, thread, simd; // the running thread
    Time device_time[MAX_SIMDGROUPS], threadgroup_time[MAX_SIMDGROUPS];
};

State &state() {
    static State s;
    return s;
}

/// Whether a barrier separates an access of thread `other` at `then` from one of thread `me` now.
bool ordered(uint32_t other, Time then, uint32_t me, Time now) {
    if (other == NO_THREAD || other == me) return true;
    if (other / 1024 != me / 1024) return false;
    return then.group != now.group || (other / 32 == me / 32 && then.simd != now.simd);
}

bool ordered_after_readers(const Cell &cell, uint32_t me, Time now) {
    switch (cell.readers) {
    case Readers::None: return true;
    case Readers::Thread: return ordered(cell.reader, cell.read, me, now);
    case Readers::Threadgroup: return cell.reader / 1024 == me / 1024 && cell.read.group != now.group;
    case Readers::Everyone: break;
    }
    return false;
}

void report_race(const char *what, uint32_t other, bool device) {
    char text[200];
    snprintf(text, sizeof text, "%s memory %s by thread %u of threadgroup number %u, without a barrier between",
             device ? "device" : "threadgroup", what, other % 1024, other / 1024);
    fail(text);
}

void touch(Cell &cell, uint64_t stamp, bool write, Time now, bool device) {
    const State &s = state();
    const uint32_t me = s.threadgroup * 1024 + s.thread;
    if (cell.stamp != stamp) {
        cell = {stamp, NO_THREAD, NO_THREAD, Readers::None, {}, {}};
        if (!device && !write) return fail("reads uninitialized threadgroup memory");
    }
    if (!ordered(cell.writer, cell.written, me, now)) {
        return report_race(write ? "is written after it was written" : "is read after it was written", cell.writer, device);
    }
    if (write) {
        if (!ordered_after_readers(cell, me, now)) return report_race("is written after it was read", cell.reader, device);
        cell.writer = me;
        cell.written = now;
        cell.readers = Readers::None;
        return;
    }
    if (cell.readers == Readers::None || (cell.readers == Readers::Thread && cell.reader == me)) {
        cell.readers = Readers::Thread;
    } else if (cell.readers != Readers::Everyone) {
        cell.readers = cell.reader / 1024 == me / 1024 ? Readers::Threadgroup : Readers::Everyone;
    }
    cell.reader = me;
    cell.read = now;
}

void check(const void *p, size_t n, bool write) {
    State &s = state();
    const uintptr_t from = reinterpret_cast<uintptr_t>(p), to = from + n;
    if (from >= s.stacks_from && to <= s.stacks_to) return;
    if (from >= s.shared_from && from < s.shared_to) {
        if (to > s.shared_to) return fail("reaches beyond the end of threadgroup memory");
        for (size_t i = (from - s.shared_from) / THREADGROUP_CELL; i * THREADGROUP_CELL < to - s.shared_from; i++) {
            touch(s.threadgroup_cells[i], s.threadgroups, write, s.threadgroup_time[s.simd], false);
        }
        return;
    }
    for (const Region &r : s.regions) {
        if (from < r.from || from >= r.to || (write && !r.writable)) continue;
        if (to > r.to) return fail("reaches beyond the end of a buffer");
        if (n == 16 && from % 16 != 0) return fail("16 bytes at an address that is not a multiple of 16");
        if (n == 8 && from % 8 != 0) return fail("8 bytes at an address that is not a multiple of 8");
        if (r.writable) {
            for (size_t i = (from - r.from) / DEVICE_CELL; i * DEVICE_CELL < to - r.from; i++) {
                touch(s.device_cells[r.cells + i], s.dispatches, write, s.device_time[s.simd], true);
            }
        }
        return;
    }
    if (!write) {
        for (const Region &r : s.globals) {
            if (from >= r.from && to <= r.to) return;
        }
    }
    fail(write ? "writes outside its writable buffers" : "reads outside its buffers");
}

} // namespace

void allow_global(const void *p, size_t bytes) {
    const uintptr_t from = reinterpret_cast<uintptr_t>(p);
    state().globals.push_back({from, from + bytes, false, 0});
}

void enter_dispatch(const hymba_emulator_dispatch &d, const char *stacks, size_t stacks_bytes) {
    State &s = state();
    s.dispatches++;
    s.stacks_from = reinterpret_cast<uintptr_t>(stacks);
    s.stacks_to = s.stacks_from + stacks_bytes;
    s.regions.clear();
    size_t cells = 0;
    for (const bool writable : {true, false}) { // of a buffer that is bound twice, the writable binding counts
        for (size_t i = 0; i < d.n_buffers; i++) {
            const hymba_emulator_buffer &b = d.buffers[i];
            if (b.memory == nullptr || (b.writable != 0) != writable) continue;
            const uintptr_t from = reinterpret_cast<uintptr_t>(b.memory);
            s.regions.push_back({from, from + b.bytes, writable, cells});
            if (writable) cells += b.bytes / DEVICE_CELL + 1;
        }
    }
    const uintptr_t args = reinterpret_cast<uintptr_t>(d.args);
    s.regions.push_back({args, args + d.args_bytes, false, 0});
    if (s.device_cells.size() < cells) s.device_cells.resize(cells);
}

void enter_threadgroup(uint32_t linear, char *memory, size_t bytes) {
    State &s = state();
    s.threadgroups++;
    s.threadgroup = linear;
    s.shared_from = reinterpret_cast<uintptr_t>(memory);
    s.shared_to = s.shared_from + bytes;
    std::memset(memory, 0xff, bytes); // NaN
    if (s.threadgroup_cells.size() < bytes / THREADGROUP_CELL + 1) {
        s.threadgroup_cells.resize(bytes / THREADGROUP_CELL + 1);
    }
    for (size_t i = 0; i < MAX_SIMDGROUPS; i++) s.device_time[i] = s.threadgroup_time[i] = {0, 0};
}

void enter_thread(const Position &position) {
    State &s = state();
    s.thread = position.thread_index;
    s.simd = position.thread_index / 32;
}

void pass_threadgroup_barrier(uint32_t flags) {
    State &s = state();
    for (size_t i = 0; i < MAX_SIMDGROUPS; i++) {
        if (flags & DEVICE) s.device_time[i].group++;
        if (flags & THREADGROUP) s.threadgroup_time[i].group++;
    }
}

void pass_simdgroup_barrier(size_t simdgroup, uint32_t flags) {
    State &s = state();
    if (flags & DEVICE) s.device_time[simdgroup].simd++;
    if (flags & THREADGROUP) s.threadgroup_time[simdgroup].simd++;
}

} // namespace emulator

// ---- the functions that instrumented code calls

using emulator::check;
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define ACCESS(n)                                                           \
    void __tsan_read##n(void *p) { check(p, n, false); }                    \
    void __tsan_write##n(void *p) { check(p, n, true); }                    \
    void __tsan_unaligned_read##n(void *p) { check(p, n, false); }          \
    void __tsan_unaligned_write##n(void *p) { check(p, n, true); }          \
    void __tsan_volatile_read##n(void *p) { check(p, n, false); }           \
    void __tsan_volatile_write##n(void *p) { check(p, n, true); }           \
    void __tsan_read_write##n(void *p) { check(p, n, false), check(p, n, true); } \
    void __tsan_unaligned_read_write##n(void *p) { check(p, n, false), check(p, n, true); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void *p, unsigned long n) { check(p, n, false); }
void __tsan_write_range(void *p, unsigned long n) { check(p, n, true); }
void *__tsan_memcpy(void *to, const void *from, unsigned long n) {
    check(from, n, false), check(to, n, true);
    return std::memcpy(to, from, n);
}
void *__tsan_memset(void *to, int value, unsigned long n) {
    check(to, n, true);
    return std::memset(to, value, n);
}
void *__tsan_memmove(void *to, const void *from, unsigned long n) {
    check(from, n, false), check(to, n, true);
    return std::memmove(to, from, n);
}
}
