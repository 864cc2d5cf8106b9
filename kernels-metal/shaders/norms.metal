// RMS norms, with float sums.

struct NormArgs {
    uint cols, x_stride, y_stride;
    float eps;
};

/// y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * gain: one threadgroup per token. `shared`: one value per simdgroup.
kernel void rms_norm(device const float *x [[buffer(0)]], device const float *gain [[buffer(1)]],
                     device float *y [[buffer(2)]], constant NormArgs &a [[buffer(3)]],
                     threadgroup float *shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                     uint tid [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                     uint simd [[simdgroup_index_in_threadgroup]], uint simds [[simdgroups_per_threadgroup]]) {
    device const float *in = x + ulong(group.x) * a.x_stride;
    device float *out = y + ulong(group.x) * a.y_stride;
    float sum = 0.0f;
    for (uint i = tid; i < a.cols; i += 32 * simds) sum += in[i] * in[i];
    const float scale = precise::rsqrt(group_sum(sum, shared, lane, simd, simds) / float(a.cols) + a.eps);
    for (uint i = tid; i < a.cols; i += 32 * simds) out[i] = in[i] * scale * gain[i];
}

struct HeadNormArgs {
    uint dim, heads, tokens, stride;
    float eps;
};

/// RMS norm of each head of `dim` columns, in place: one simdgroup per head and token.
kernel void head_norm(device float *x [[buffer(0)]], device const float *gain [[buffer(1)]],
                      constant HeadNormArgs &a [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                      uint simds [[simdgroups_per_threadgroup]]) {
    const uint head = group.x * simds + simd;
    if (head >= a.heads) return; // uniform for a simdgroup
    device float *row = x + ulong(group.y) * a.stride + head * a.dim;
    float sum = 0.0f;
    for (uint i = lane; i < a.dim; i += 32) sum += row[i] * row[i];
    const float scale = precise::rsqrt(simd_sum(sum) / float(a.dim) + a.eps);
    for (uint i = lane; i < a.dim; i += 32) row[i] = row[i] * scale * gain[i];
}

struct FuseArgs {
    uint cols, a_stride, b_stride, y_stride;
    float eps;
};

/// y[t] = (rms_norm(a[t]; gain_a) + rms_norm(b[t]; gain_b)) / 2: one threadgroup per token. `shared`: one value per
/// simdgroup.
kernel void fuse(device const float *a [[buffer(0)]], device const float *gain_a [[buffer(1)]],
                 device const float *b [[buffer(2)]], device const float *gain_b [[buffer(3)]],
                 device float *y [[buffer(4)]], constant FuseArgs &args [[buffer(5)]],
                 threadgroup float *shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                 uint tid [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                 uint simd [[simdgroup_index_in_threadgroup]], uint simds [[simdgroups_per_threadgroup]]) {
    device const float *in_a = a + ulong(group.x) * args.a_stride;
    device const float *in_b = b + ulong(group.x) * args.b_stride;
    device float *out = y + ulong(group.x) * args.y_stride;
    float sum_a = 0.0f, sum_b = 0.0f;
    for (uint i = tid; i < args.cols; i += 32 * simds) {
        sum_a += in_a[i] * in_a[i];
        sum_b += in_b[i] * in_b[i];
    }
    const float n = float(args.cols);
    const float scale_a = 0.5f * precise::rsqrt(group_sum(sum_a, shared, lane, simd, simds) / n + args.eps);
    const float scale_b = 0.5f * precise::rsqrt(group_sum(sum_b, shared, lane, simd, simds) / n + args.eps);
    for (uint i = tid; i < args.cols; i += 32 * simds) {
        out[i] = in_a[i] * scale_a * gain_a[i] + in_b[i] * scale_b * gain_b[i];
    }
}
