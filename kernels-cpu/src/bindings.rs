// Made by bindgen from include/hymba_kernels.h: `cargo run -p hymba-bindings` regenerates it.

pub const HK_BLOCK: u32 = 32;
pub const HK_TILE_ROWS: u32 = 128;
pub const HK_KEYS_STRIDE: u32 = 24;
pub const HK_SCORES_STRIDE: u32 = 136;
pub const HK_CONV_TAPS: u32 = 8;
pub const HK_STREAMS: u32 = 4;
pub const HK_FEW_TOKENS: u32 = 8;
pub const HK_ROUND: u32 = 4608;
pub const HK_X8: u32 = 16;
pub const HK_TINY: f64 = 0.000000000000000000000000000001;
#[repr(u32)]
#[derive(Debug, Copy, Clone, Hash, PartialEq, Eq)]
pub enum hk_type {
    HK_F32 = 0,
    HK_F16 = 1,
    HK_BF16 = 2,
    HK_Q8_0 = 3,
    HK_Q8_0X8 = 19,
    HK_Q4_0 = 4,
    HK_Q4_0X8 = 20,
    HK_Q4_1 = 5,
    HK_Q4_1X8 = 21,
    HK_Q5_0 = 6,
    HK_Q5_0X8 = 22,
    HK_Q5_1 = 7,
    HK_Q5_1X8 = 23,
    HK_IQ4_NL = 8,
    HK_IQ4_NLX8 = 24,
    HK_MXFP4 = 9,
    HK_MXFP4X8 = 25,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_type_facts {
    pub plain: hk_type,
    pub packed: hk_type,
    pub scale_bytes: usize,
    pub code_bits: usize,
    pub has_min: ::core::ffi::c_int,
    pub has_fifth: ::core::ffi::c_int,
    pub zero_point: ::core::ffi::c_int,
    pub levels: *const i8,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_act {
    pub x: *const f32,
    pub stride: usize,
    pub q: *const i8,
    pub d: *const f32,
    pub offset: *const i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_kv_span {
    pub k: *const ::core::ffi::c_void,
    pub v: *const ::core::ffi::c_void,
    pub rows: usize,
    pub k_head_stride: usize,
    pub v_head_stride: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_kv_sequence {
    pub type_: hk_type,
    pub kv_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub spans: *const hk_kv_span,
    pub n_spans: usize,
    pub rows: usize,
    pub prefix: usize,
    pub tile_offset: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_attend_prefill {
    pub kv: hk_kv_sequence,
    pub tokens: usize,
    pub group: usize,
    pub q: *const f32,
    pub q_stride: usize,
    pub first: *const usize,
    pub end: *const usize,
    pub scale: f32,
    pub scratch: *mut f32,
    pub out: *mut f32,
    pub out_stride: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_attend_decode {
    pub kv: hk_kv_sequence,
    pub group: usize,
    pub q: *const f32,
    pub from: usize,
    pub to: usize,
    pub prefetch_end: usize,
    pub prefetched: ::core::ffi::c_int,
    pub scale: f32,
    pub scratch: *mut f32,
    pub max: *mut f32,
    pub sum: *mut f32,
    pub out: *mut f32,
    pub tile_stride: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_conv {
    pub u: *const f32,
    pub u_stride: usize,
    pub tokens: usize,
    pub channels: usize,
    pub taps: usize,
    pub weight: *const f32,
    pub bias: *const f32,
    pub state: *const f32,
    pub next: *mut f32,
    pub state_stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_scan {
    pub dt: *const f32,
    pub u: *const f32,
    pub gate: *const f32,
    pub dt_stride: usize,
    pub u_stride: usize,
    pub gate_stride: usize,
    pub b: *const f32,
    pub c: *const f32,
    pub bc_stride: usize,
    pub dt_bias: *const f32,
    pub d: *const f32,
    pub a: *const f32,
    pub h: *const f32,
    pub next: *mut f32,
    pub tokens: usize,
    pub channels: usize,
    pub states: usize,
    pub y: *mut f32,
    pub y_stride: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct hk_kernels {
    pub name: *const ::core::ffi::c_char,
    pub matmul: ::core::option::Option<
        unsafe extern "C" fn(
            type_: hk_type,
            w: *const ::core::ffi::c_void,
            rows: usize,
            cols: usize,
            x: *const hk_act,
            tokens: usize,
            y: *mut f32,
            y_stride: usize,
            accumulate: ::core::ffi::c_int,
        ),
    >,
    pub gemv: ::core::option::Option<
        unsafe extern "C" fn(
            type_: hk_type,
            w: *const *const ::core::ffi::c_void,
            rows: usize,
            cols: usize,
            prefetch_distance: usize,
            x: *const hk_act,
            tokens: usize,
            y: *const *mut f32,
            y_stride: usize,
            accumulate: ::core::ffi::c_int,
        ),
    >,
    pub quantize: ::core::option::Option<
        unsafe extern "C" fn(x: *const f32, n: usize, q: *mut i8, d: *mut f32, offset: *mut i32),
    >,
    pub rms_norm:
        ::core::option::Option<unsafe extern "C" fn(x: *const f32, gain: *const f32, eps: f32, n: usize, y: *mut f32)>,
    pub fuse: ::core::option::Option<
        unsafe extern "C" fn(
            a: *const f32,
            gain_a: *const f32,
            b: *const f32,
            gain_b: *const f32,
            eps: f32,
            n: usize,
            y: *mut f32,
        ),
    >,
    pub rope: ::core::option::Option<
        unsafe extern "C" fn(x: *mut f32, heads: usize, dim: usize, cos: *const f32, sin: *const f32),
    >,
    pub to_f16: ::core::option::Option<unsafe extern "C" fn(x: *const f32, n: usize, y: *mut u16)>,
    pub attend_prefill: ::core::option::Option<unsafe extern "C" fn(a: *const hk_attend_prefill)>,
    pub attend_decode: ::core::option::Option<unsafe extern "C" fn(a: *const hk_attend_decode)>,
    pub combine_partials: ::core::option::Option<
        unsafe extern "C" fn(
            max: *const f32,
            sum: *const f32,
            stride: usize,
            values: *const f32,
            values_stride: usize,
            n: usize,
            heads: usize,
            value_dim: usize,
            y: *mut f32,
        ),
    >,
    pub conv_silu: ::core::option::Option<unsafe extern "C" fn(a: *const hk_conv)>,
    pub scan: ::core::option::Option<unsafe extern "C" fn(a: *const hk_scan)>,
    pub silu_mul: ::core::option::Option<unsafe extern "C" fn(gate: *const f32, up: *const f32, n: usize, y: *mut f32)>,
    pub relu2: ::core::option::Option<unsafe extern "C" fn(x: *mut f32, n: usize)>,
    pub read:
        ::core::option::Option<unsafe extern "C" fn(p: *const ::core::ffi::c_void, n: usize, apart: usize) -> u64>,
    pub int8_rate: ::core::option::Option<unsafe extern "C" fn(rounds: usize) -> u32>,
    pub float_rate: ::core::option::Option<unsafe extern "C" fn(rounds: usize) -> f32>,
}
unsafe extern "C" {
    pub fn hk_facts(type_: hk_type) -> *const hk_type_facts;
}
unsafe extern "C" {
    pub fn hk_interleave(
        q: *const i8,
        d: *const f32,
        offset: *const i32,
        blocks: usize,
        tokens: usize,
        to_q: *mut i8,
        to_d: *mut f32,
        to_offset: *mut i32,
    );
}
unsafe extern "C" {
    pub fn hk_scalar() -> *const hk_kernels;
}
unsafe extern "C" {
    pub fn hk_avx2() -> *const hk_kernels;
}
unsafe extern "C" {
    pub fn hk_avxvnni() -> *const hk_kernels;
}
unsafe extern "C" {
    pub fn hk_avx512vnni() -> *const hk_kernels;
}
unsafe extern "C" {
    pub fn hk_avx512vbmi() -> *const hk_kernels;
}
unsafe extern "C" {
    pub fn hk_neon() -> *const hk_kernels;
}
unsafe extern "C" {
    pub fn hk_neon_dotprod() -> *const hk_kernels;
}
unsafe extern "C" {
    pub fn hk_neon_i8mm() -> *const hk_kernels;
}
