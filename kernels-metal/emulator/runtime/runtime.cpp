// Fibers, simdgroups and barriers.
#include "runtime.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "fiber.h"
#include "memory.h"

namespace emulator {
namespace {

constexpr size_t LANES = 32, MAX_THREADS = 1024, STACK = 128 << 10;

/// What a fiber waits for.
enum class Wait { None, Exchange, SimdBarrier, GroupBarrier, Done };

struct Fiber {
    void *stack_pointer;
    Position position;
    Wait wait;
    uint32_t operation; // of an exchange
    uint32_t flags;     // of a barrier
};

/// A lane's contribution to an exchange.
struct Slot {
    uint32_t word[4];
};

struct Simdgroup {
    Slot slots[2][LANES]; // of this exchange and the previous one, which other lanes may still read
    uint32_t turn;
};

struct Registered {
    Entry entry;
    size_t args_size;
};

std::unordered_map<std::string, Registered> &kernels() {
    static std::unordered_map<std::string, Registered> all;
    return all;
}

std::unordered_map<uint32_t, uint32_t *> &constants() {
    static std::unordered_map<uint32_t, uint32_t *> all;
    return all;
}

char *stacks; // MAX_THREADS stacks of STACK bytes
Fiber fibers[MAX_THREADS];
Simdgroup simdgroups[MAX_THREADS / LANES];
Fiber *current;
void *scheduler;
const Launch *launched;
std::string problem;

} // namespace

struct Launch {
    const hymba_emulator_dispatch *dispatch;
    Entry entry;
    std::vector<char> threadgroup_memory;
};

Kernel::Kernel(const char *name, Entry entry, size_t args_size) {
    kernels()[name] = {entry, args_size};
}

Constant::Constant(uint32_t *value, uint32_t index) {
    constants()[index] = value;
    allow_global(value, sizeof *value);
}

Table::Table(const void *values, size_t bytes) {
    allow_global(values, bytes);
}

const Position &position() {
    return current->position;
}

void *buffer(const Launch &launch, uint32_t index) {
    return index < launch.dispatch->n_buffers ? launch.dispatch->buffers[index].memory : nullptr;
}

const void *args(const Launch &launch) {
    return launch.dispatch->args;
}

void *threadgroup_memory(const Launch &launch) {
    return const_cast<char *>(launch.threadgroup_memory.data());
}

/// Returns to the scheduler until the condition of `wait` is met.
static void suspend(Wait wait) {
    current->wait = wait;
    hymba_fiber_switch(&current->stack_pointer, scheduler);
}

void fail(const std::string &what) {
    if (problem.empty()) {
        const Position &p = current->position;
        char where[200];
        snprintf(where, sizeof where, "threadgroup (%u, %u, %u), thread %u: ", p.group[0], p.group[1], p.group[2],
                 p.thread_index);
        problem = where + what;
    }
    hymba_fiber_switch(&current->stack_pointer, scheduler); // does not return
}

static Simdgroup &current_simdgroup() {
    return simdgroups[current->position.thread_index / LANES];
}

/// Exchanges `slot` with the other lanes; returns the slots of all lanes.
static const Slot *exchange(uint32_t operation, Slot slot) {
    Simdgroup &s = current_simdgroup();
    const uint32_t turn = s.turn;
    s.slots[turn % 2][current->position.lane] = slot;
    current->operation = operation;
    suspend(Wait::Exchange);
    return s.slots[turn % 2];
}

static uint32_t bits(float v) {
    uint32_t word;
    std::memcpy(&word, &v, 4);
    return word;
}

static float to_float(uint32_t word) {
    float v;
    std::memcpy(&v, &word, 4);
    return v;
}

float sum(float v) {
    const Slot *all = exchange(1, {{bits(v)}});
    float values[LANES];
    for (size_t i = 0; i < LANES; i++) values[i] = to_float(all[i].word[0]);
    for (size_t n = LANES / 2; n > 0; n /= 2)
        for (size_t i = 0; i < n; i++) values[i] += values[i + n];
    return values[0];
}

float maximum(float v) {
    const Slot *all = exchange(2, {{bits(v)}});
    float result = v;
    for (size_t i = 0; i < LANES; i++) result = std::fmax(result, to_float(all[i].word[0]));
    return result;
}

bool any(bool v) {
    const Slot *all = exchange(3, {{v}});
    bool result = false;
    for (size_t i = 0; i < LANES; i++) result = result || all[i].word[0] != 0;
    return result;
}

uint32_t shuffle_xor(uint32_t v, uint32_t mask) {
    const uint32_t lane = current->position.lane;
    return exchange(4, {{v}})[(lane ^ mask) % LANES].word[0];
}

void multiply(float a0, float a1, float b0, float b1, float &c0, float &c1) {
    const size_t row = current->position.lane / 4, col = current->position.lane % 4 * 2;
    const Slot *all = exchange(5, {{bits(a0), bits(a1), bits(b0), bits(b1)}});
    for (size_t k = 0; k < 8; k++) {
        const float a = to_float(all[row * 4 + k / 2].word[k % 2]);
        const Slot &b = all[k * 4 + col / 2];
        c0 += a * to_float(b.word[2]);
        c1 += a * to_float(b.word[3]);
    }
}

void threadgroup_barrier(uint32_t flags) {
    current->flags = flags;
    suspend(Wait::GroupBarrier);
}

void simdgroup_barrier(uint32_t flags) {
    current->flags = flags;
    suspend(Wait::SimdBarrier);
}

static void run_fiber() {
    launched->entry(*launched);
    suspend(Wait::Done);
}

/// Whether all of `n` fibers wait for the same condition; otherwise some would wait forever.
static bool converged(const Fiber *first, size_t n, const char *group) {
    for (size_t i = 1; i < n; i++) {
        const bool same = first[i].wait == first->wait &&
                          (first->wait != Wait::Exchange || first[i].operation == first->operation);
        if (!same) {
            problem = std::string("threads 0 and ") + std::to_string(i) + " of " + group +
                      " reached different barriers or simd_ operations, or one of them has ended";
            return false;
        }
    }
    return true;
}

/// Runs a simdgroup until it waits for its threadgroup, or has ended.
static void run_simdgroup(size_t index) {
    Fiber *lanes = fibers + index * LANES;
    do {
        for (size_t i = 0; i < LANES; i++) {
            current = lanes + i;
            current->wait = Wait::None;
            enter_thread(current->position);
            hymba_fiber_switch(&scheduler, current->stack_pointer);
            if (!problem.empty()) return;
        }
        if (!converged(lanes, LANES, "a simdgroup")) return;
        simdgroups[index].turn++;
        if (lanes->wait == Wait::SimdBarrier) pass_simdgroup_barrier(index, lanes->flags);
    } while (lanes->wait == Wait::Exchange || lanes->wait == Wait::SimdBarrier);
}

static void run_threadgroup(Launch &launch, const uint32_t group[3], uint32_t linear) {
    const uint32_t threads = launch.dispatch->threads;
    for (uint32_t i = 0; i < threads; i++) {
        fibers[i].position = {{group[0], group[1], group[2]}, i, threads, uint32_t(i % LANES)};
        fibers[i].stack_pointer = fiber_prepare(stacks + (i + 1) * STACK, run_fiber);
        fibers[i].wait = Wait::None;
    }
    enter_threadgroup(linear, launch.threadgroup_memory.data(), launch.threadgroup_memory.size());
    for (;;) {
        for (uint32_t s = 0; s < threads / LANES; s++) {
            run_simdgroup(s);
            if (!problem.empty()) return;
        }
        if (!converged(fibers, threads, "a threadgroup")) return;
        if (fibers->wait == Wait::Done) return;
        pass_threadgroup_barrier(fibers->flags);
    }
}

} // namespace emulator

extern "C" int hymba_emulator_run(const hymba_emulator_dispatch *d, char *error, size_t error_bytes) {
    using namespace emulator;
    problem.clear();
    const auto found = kernels().find(d->kernel);
    if (found == kernels().end()) problem = "no such kernel";
    else if (found->second.args_size != d->args_bytes) problem = "wrong size of the arguments";
    else if (d->threads == 0 || d->threads % LANES != 0 || d->threads > MAX_THREADS) problem = "invalid number of threads";
    else if (d->threadgroup_bytes > 32768) problem = "more than 32 KB of threadgroup memory";
    if (problem.empty()) {
        if (stacks == nullptr) {
            stacks = static_cast<char *>(std::malloc(MAX_THREADS * STACK));
            allow_global(fibers, sizeof fibers); // threads read their position there
        }
        for (const auto &[index, value] : constants()) *value = index < d->n_constants ? d->constants[index] : 0;
        Launch launch{d, found->second.entry, std::vector<char>(d->threadgroup_bytes)};
        launched = &launch;
        enter_dispatch(*d, stacks, MAX_THREADS * STACK);
        uint32_t linear = 0, group[3];
        for (group[2] = 0; group[2] < d->groups[2]; group[2]++)
            for (group[1] = 0; group[1] < d->groups[1]; group[1]++)
                for (group[0] = 0; group[0] < d->groups[0]; group[0]++)
                    if (problem.empty()) run_threadgroup(launch, group, linear++);
    }
    if (problem.empty()) return 0;
    snprintf(error, error_bytes, "kernel %s: %s", d->kernel, problem.c_str());
    return 1;
}
