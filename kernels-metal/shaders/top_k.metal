// The greatest of many values. Run on slices of the values, then on what is left of the slices.

struct TopArgs {
    uint n, k, slice, given; // given: 1 if the indices are given, 0 if value i has index i
};

/// The k greatest of each slice in falling order, the lower index first among equals; index 0xffffffff where a slice
/// has less than k. k passes, each of which finds the next. Threadgroups: slices; `shared` holds a value and an index
/// for each simdgroup.
kernel void top_k(device const float *values [[buffer(0)]], device const uint *indices [[buffer(1)]],
                  device float *top [[buffer(2)]], device uint *top_indices [[buffer(3)]],
                  constant TopArgs &a [[buffer(4)]], threadgroup float *shared [[threadgroup(0)]],
                  uint3 group [[threadgroup_position_in_grid]], uint tid [[thread_index_in_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                  uint simds [[simdgroups_per_threadgroup]]) {
    threadgroup uint *shared_index = (threadgroup uint *)(shared + simds);
    const uint end = min(a.n, (group.x + 1) * a.slice);
    float last = INFINITY;
    uint last_index = 0;
    bool any = false; // has one been found?
    for (uint i = 0; i < a.k; i++) {
        float best = -INFINITY;
        uint best_index = 0xffffffff;
        for (uint j = group.x * a.slice + tid; j < end; j += 32 * simds) {
            const float v = values[j];
            const uint index = a.given != 0 ? indices[j] : j;
            const bool left = index != 0xffffffff && (!any || v < last || (v == last && index > last_index));
            if (left && (best_index == 0xffffffff || v > best || (v == best && index < best_index))) {
                best = v;
                best_index = index;
            }
        }
        for (ushort step = 16; step > 0; step /= 2) {
            const float v = simd_shuffle_xor(best, step);
            const uint index = simd_shuffle_xor(best_index, step);
            if (index != 0xffffffff &&
                (best_index == 0xffffffff || v > best || (v == best && index < best_index))) {
                best = v;
                best_index = index;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (lane == 0) {
            shared[simd] = best;
            shared_index[simd] = best_index;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        best_index = 0xffffffff;
        for (uint s = 0; s < simds; s++) {
            const float v = shared[s];
            const uint index = shared_index[s];
            if (index != 0xffffffff &&
                (best_index == 0xffffffff || v > best || (v == best && index < best_index))) {
                best = v;
                best_index = index;
            }
        }
        last = best;
        last_index = best_index;
        any = any || best_index != 0xffffffff;
        if (tid == 0) {
            top[group.x * a.k + i] = best_index == 0xffffffff ? -INFINITY : best;
            top_indices[group.x * a.k + i] = best_index;
        }
    }
}
