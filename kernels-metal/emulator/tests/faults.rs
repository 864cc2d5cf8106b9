//! The emulator detects faulty kernels. Without these tests, an emulator that checks nothing would let all others pass.

use bytemuck::bytes_of;
use hymba_kernels_metal::{Binding, Constants, Device, Dispatch};
use hymba_metal_emulator::Emulator;

/// Runs 64 threads of a kernel of `faults.metal` in each of `groups` threadgroups; returns the emulator's error.
fn run(kernel: &'static str, fault: u32, groups: u32, buffers: &[(usize, bool)]) -> Result<(), String> {
    let mut device = Emulator::default();
    let bindings: Vec<Binding> = buffers
        .iter()
        .map(|&(floats, writable)| {
            let buffer = device.allocate(4 * floats).unwrap();
            Binding { buffer, offset: 0, len: 4 * floats, writable }
        })
        .collect();
    let args = [64 * groups, fault];
    device.dispatch(&Dispatch {
        kernel,
        constants: Constants::default(),
        bindings: &bindings,
        args: bytes_of(&args),
        groups: [groups, 1, 1],
        threads: 64,
        threadgroup_bytes: 256,
    });
    device.finish().map_err(|e| e.to_string())
}

/// Asserts that the emulator reports `what` for this fault.
fn assert_found(kernel: &'static str, fault: u32, groups: u32, buffers: &[(usize, bool)], what: &str) {
    let found = run(kernel, fault, groups, buffers).expect_err(what);
    assert!(found.contains(what), "fault {fault} of {kernel}: {found}");
}

#[test]
fn finds_threadgroup_memory_races() {
    let buffers = [(64, false), (64, true)];
    run("faulty_neighbors", 0, 1, &buffers).unwrap();
    // threadgroups that write the same values of y
    assert_found("faulty_neighbors", 0, 2, &buffers, "device memory is written after it was written");
    assert_found("faulty_neighbors", 1, 1, &buffers, "uninitialized threadgroup memory");
    for fault in [2, 3, 4] {
        assert_found("faulty_neighbors", fault, 1, &buffers, "threadgroup memory");
    }
    assert_found("faulty_neighbors", 5, 1, &buffers, "without a barrier between");
}

#[test]
fn finds_out_of_bounds_accesses() {
    let buffers = [(128, false), (128, true)];
    run("faulty_bounds", 0, 2, &buffers).unwrap();
    assert_found("faulty_bounds", 1, 3, &[(128, false), (192, true)], "outside its buffers");
    assert_found("faulty_bounds", 2, 2, &buffers, "outside its buffers");
    assert_found("faulty_bounds", 3, 2, &buffers, "writes outside");
    assert_found("faulty_bounds", 4, 2, &buffers, "outside");
    assert_found("faulty_bounds", 5, 2, &buffers, "multiple of 16");
    assert_found("faulty_bounds", 6, 3, &[(192, false), (128, true)], "writes outside");
    assert_found("faulty_bounds", 7, 2, &buffers, "device memory is written after it was written");
    assert_found("faulty_bounds", 8, 1, &buffers, "device memory");
}

#[test]
fn finds_divergent_barriers() {
    let buffers = [(64, true)];
    run("faulty_barriers", 0, 1, &buffers).unwrap();
    for fault in [1, 2, 3] {
        assert_found("faulty_barriers", fault, 1, &buffers, "reached different");
    }
}

#[test]
fn rejects_unknown_kernels() {
    assert_found("no_such_kernel", 0, 1, &[], "no such kernel");
}
