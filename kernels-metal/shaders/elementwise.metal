// Elementwise operations, one thread per value: rotary embedding, activations, copies. `position.x` is the column,
// `position.y` the token.

struct RopeArgs {
    uint heads, dim, stride;
};

/// Rotates the pairs (j, j + dim / 2) of each head, in place. cos and sin: [tokens, dim / 2]
kernel void rope(device float *x [[buffer(0)]], device const float *cosines [[buffer(1)]],
                 device const float *sines [[buffer(2)]], constant RopeArgs &a [[buffer(3)]],
                 uint3 position [[thread_position_in_grid]]) {
    const uint half_dim = a.dim / 2, head = position.x / half_dim, j = position.x % half_dim;
    if (head >= a.heads) return;
    device float *row = x + ulong(position.y) * a.stride + head * a.dim;
    const float c = cosines[position.y * half_dim + j], s = sines[position.y * half_dim + j];
    const float low = row[j], high = row[j + half_dim];
    row[j] = low * c - high * s;
    row[j + half_dim] = high * c + low * s;
}

struct MapArgs {
    uint cols, x_stride, y_stride;
};

/// y += bias
kernel void add_bias(device const float *bias [[buffer(0)]], device float *y [[buffer(1)]],
                     constant MapArgs &a [[buffer(2)]], uint3 position [[thread_position_in_grid]]) {
    if (position.x >= a.cols) return;
    y[ulong(position.y) * a.y_stride + position.x] += bias[position.x];
}

/// y = silu(x) * y
kernel void silu_mul(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                     constant MapArgs &a [[buffer(2)]], uint3 position [[thread_position_in_grid]]) {
    if (position.x >= a.cols) return;
    const float gate = x[ulong(position.y) * a.x_stride + position.x];
    y[ulong(position.y) * a.y_stride + position.x] *= silu(gate);
}

/// y = max(y, 0)^2
kernel void relu2(device float *y [[buffer(0)]], constant MapArgs &a [[buffer(1)]],
                  uint3 position [[thread_position_in_grid]]) {
    if (position.x >= a.cols) return;
    device float *p = y + ulong(position.y) * a.y_stride + position.x;
    const float v = max(*p, 0.0f);
    *p = v * v;
}

/// y = x as packed rows of the cache. Uses CACHE_HALF.
kernel void store_rows(device const float *x [[buffer(0)]], device uchar *y [[buffer(1)]],
                       constant MapArgs &a [[buffer(2)]], uint3 position [[thread_position_in_grid]]) {
    if (position.x >= a.cols) return;
    const float v = x[ulong(position.y) * a.x_stride + position.x];
    const ulong at = ulong(position.y) * a.cols + position.x;
    if (CACHE_HALF != 0) ((device half *)y)[at] = half(v);
    else ((device float *)y)[at] = v;
}

struct CopyArgs {
    uint n;
};

/// y = x, n units of two bytes.
kernel void copy(device const ushort *x [[buffer(0)]], device ushort *y [[buffer(1)]],
                 constant CopyArgs &a [[buffer(2)]], uint3 position [[thread_position_in_grid]]) {
    if (position.x < a.n) y[position.x] = x[position.x];
}

/// y = 0, n units of two bytes.
kernel void clear(device ushort *y [[buffer(0)]], constant CopyArgs &a [[buffer(1)]],
                  uint3 position [[thread_position_in_grid]]) {
    if (position.x < a.n) y[position.x] = 0;
}
