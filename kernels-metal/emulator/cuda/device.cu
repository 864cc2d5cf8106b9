// The shaders on an NVIDIA GPU: memory, launches, and their timing, for src/cuda.rs. The generated source of the shaders
// is a file of its own, see build.sh.
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_map>

#include <cuda_runtime.h>

namespace {

struct Registered {
    const void *entry;
    size_t args_size;
};

std::unordered_map<std::string, Registered> &kernels() {
    static std::unordered_map<std::string, Registered> all;
    return all;
}

std::unordered_map<unsigned, const void *> &constants() {
    static std::unordered_map<unsigned, const void *> all;
    return all;
}

std::string problem;

int check(cudaError_t code, const char *doing) {
    if (code == cudaSuccess) return 0;
    if (problem.empty()) problem = std::string(doing) + ": " + cudaGetErrorString(code);
    return 1;
}

/// As in shim/cuda_threads.h.
struct ShimLaunch {
    void *buffers[12];
    alignas(16) unsigned char args[64];
};

} // namespace

struct ShimKernel {
    ShimKernel(const char *name, const void *entry, size_t args_size);
};
ShimKernel::ShimKernel(const char *name, const void *entry, size_t args_size) {
    kernels()[name] = {entry, args_size};
}

struct ShimConstant {
    ShimConstant(const void *symbol, unsigned index);
};
ShimConstant::ShimConstant(const void *symbol, unsigned index) {
    constants()[index] = symbol;
}

/// Reads all of `p`, sixteen bytes a thread at a time.
__global__ void read_all(const uint4 *p, size_t n, unsigned *out) {
    unsigned sum = 0;
    const size_t stride = size_t(gridDim.x) * blockDim.x;
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < n; i += 4 * stride) {
        const uint4 a = p[i], b = p[i + stride], c = p[i + 2 * stride], d = p[i + 3 * stride];
        sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < n; i += stride) sum += p[i].x ^ p[i].y ^ p[i].z ^ p[i].w;
    if (sum == 0x12345678) *out = sum;
}

extern "C" {

struct hymba_cuda_launch {
    const char *kernel;
    void *buffers[12];
    unsigned char args[64];
    size_t args_bytes;
    unsigned constants[10];
    unsigned groups[3];
    unsigned threads;
    size_t threadgroup_bytes;
};

/// What went wrong first, or an empty string; forgets it.
void hymba_cuda_problem(char *text, size_t bytes) {
    snprintf(text, bytes, "%s", problem.c_str());
    problem.clear();
}

int hymba_cuda_name(char *text, size_t bytes) {
    cudaDeviceProp properties;
    if (check(cudaGetDeviceProperties(&properties, 0), "cannot find a GPU")) return 1;
    snprintf(text, bytes, "%s", properties.name);
    return 0;
}

/// Memory of zeros, or null.
void *hymba_cuda_allocate(size_t bytes) {
    void *p = nullptr;
    if (check(cudaMalloc(&p, bytes > 0 ? bytes : 1), "cannot allocate") || check(cudaMemset(p, 0, bytes), "cannot clear"))
        return nullptr;
    return p;
}

void hymba_cuda_free(void *p) {
    cudaFree(p);
}

int hymba_cuda_upload(void *to, const void *from, size_t bytes) {
    return check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cannot upload");
}

int hymba_cuda_download(void *to, const void *from, size_t bytes) {
    return check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cannot download");
}

static int set_constants(const hymba_cuda_launch *l) {
    for (const auto &[index, symbol] : constants()) {
        const unsigned value = index < 10 ? l->constants[index] : 0;
        if (check(cudaMemcpyToSymbol(symbol, &value, sizeof value), "cannot set a constant")) return 1;
    }
    return 0;
}

static int launch(const hymba_cuda_launch *l, cudaStream_t stream) {
    const auto found = kernels().find(l->kernel);
    if (found == kernels().end() || found->second.args_size != l->args_bytes || l->args_bytes > 64) {
        if (problem.empty()) problem = std::string("no kernel ") + l->kernel + " with such arguments";
        return 1;
    }
    ShimLaunch parameters;
    std::memcpy(parameters.buffers, l->buffers, sizeof parameters.buffers);
    std::memcpy(parameters.args, l->args, l->args_bytes);
    void *pointers[] = {&parameters};
    return check(cudaLaunchKernel(found->second.entry, dim3(l->groups[0], l->groups[1], l->groups[2]), dim3(l->threads),
                                  pointers, l->threadgroup_bytes, stream),
                 l->kernel);
}

/// Launches and waits.
int hymba_cuda_run(const hymba_cuda_launch *l) {
    return set_constants(l) || launch(l, nullptr) || check(cudaDeviceSynchronize(), l->kernel);
}

/// Seconds that a launch after the other takes, of the best of `rounds` rounds through all; negative if it failed. All
/// have the constants of the first.
double hymba_cuda_time(const hymba_cuda_launch *launches, size_t n, int rounds) {
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cudaEvent_t start, end;
    if (set_constants(launches) || check(cudaStreamCreate(&stream), "stream") ||
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture"))
        return -1;
    for (size_t i = 0; i < n; i++)
        if (launch(&launches[i], stream)) return -1;
    if (check(cudaStreamEndCapture(stream, &graph), "capture") ||
        check(cudaGraphInstantiate(&ready, graph, 0), "graph") || check(cudaEventCreate(&start), "event") ||
        check(cudaEventCreate(&end), "event"))
        return -1;
    float best = -1;
    for (int round = 0; round < rounds + 1; round++) { // the first warms up
        float milliseconds;
        if (check(cudaEventRecord(start, stream), "event") || check(cudaGraphLaunch(ready, stream), "graph") ||
            check(cudaEventRecord(end, stream), "event") || check(cudaEventSynchronize(end), "event") ||
            check(cudaEventElapsedTime(&milliseconds, start, end), "event"))
            return -1;
        if (round > 0 && (best < 0 || milliseconds < best)) best = milliseconds;
    }
    cudaGraphExecDestroy(ready), cudaGraphDestroy(graph), cudaEventDestroy(start), cudaEventDestroy(end);
    cudaStreamDestroy(stream);
    return best / 1e3 / double(n);
}

/// Bytes a second that a plain kernel reads; negative if it failed.
double hymba_cuda_read_rate(size_t bytes) {
    uint4 *p = static_cast<uint4 *>(hymba_cuda_allocate(bytes));
    unsigned *out = static_cast<unsigned *>(hymba_cuda_allocate(4));
    cudaEvent_t start, end;
    if (p == nullptr || out == nullptr || check(cudaEventCreate(&start), "event") || check(cudaEventCreate(&end), "event"))
        return -1;
    float best = -1;
    for (int round = 0; round < 6; round++) {
        float milliseconds;
        cudaEventRecord(start);
        read_all<<<132 * 16, 512>>>(p, bytes / 16, out);
        cudaEventRecord(end);
        if (check(cudaEventSynchronize(end), "read") || check(cudaEventElapsedTime(&milliseconds, start, end), "event"))
            return -1;
        if (round > 0 && (best < 0 || milliseconds < best)) best = milliseconds;
    }
    cudaFree(p), cudaFree(out);
    return double(bytes) / (best / 1e3);
}

} // extern "C"
