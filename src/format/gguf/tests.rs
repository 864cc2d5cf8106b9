use std::path::Path;

use super::*;
use crate::format::{Blob, DType, packed::Packing};

fn parse(bytes: Vec<u8>) -> crate::Result<Gguf> {
    Gguf::parse("model.gguf", Blob::from_static(bytes.leak()))
}

#[track_caller]
fn refused(bytes: Vec<u8>, reason: &str) {
    let message = parse(bytes).err().expect(reason).to_string();
    assert!(message.starts_with("model.gguf: ") && message.contains(reason), "{message}");
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

/// Returns a file with these raw keys (type and value included), tensor entries, and 256 bytes of values.
fn file(keys: &[(&str, Vec<u8>)], tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes.extend(tensors.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + 256, 0);
    bytes
}

/// Returns a tensor entry; `dims` fastest first, as in the file.
fn entry(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn every_kind() -> Metadata {
    let mut meta = Metadata::default();
    meta.set("u32", 7u32);
    meta.set("u64", u64::MAX);
    meta.set("i32", -7i64);
    meta.set("i64", i64::MIN);
    meta.set("f32", 0.5f32);
    meta.set("f64", Value::Float(0.1));
    meta.set("bool", true);
    meta.set("string", "é");
    meta.set("u32s", vec![1u64, 2]);
    meta.set("u64s", vec![1u64, u64::MAX]);
    meta.set("i32s", vec![-1i64, 2]);
    meta.set("i64s", vec![-1i64, i64::MAX]);
    meta.set("f32s", vec![0.25f64, -1.0]);
    meta.set("f64s", vec![0.1f64]);
    meta.set("bools", vec![true, false]);
    meta.set("strings", vec!["".to_string(), "b".to_string()]);
    meta.set("nothing", Vec::<String>::new());
    meta
}

fn write(path: &Path, meta: Metadata, tensors: &[(&str, Vec<usize>, DType, Vec<u8>)]) {
    let list =
        tensors.iter().map(|(name, dims, dtype, _)| (name.to_string(), dims.clone(), *dtype, Packing::Plain)).collect();
    let layout = Layout::new(meta, list).unwrap();
    assert!(layout.slots.iter().all(|s| s.offset.is_multiple_of(ALIGNMENT as u64)));
    let mut writer = Writer::create(path, layout, false).unwrap();
    for (.., data) in tensors {
        data.chunks(5).for_each(|piece| writer.write(piece).unwrap());
    }
    writer.finish().unwrap();
}

#[test]
fn reads_what_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let a: Vec<u8> = (0..24).collect();
    let b: Vec<u8> = (0..72).collect();
    write(
        &path,
        every_kind(),
        &[("a", vec![2, 3], DType::F32, a.clone()), ("b", vec![2, 1, 64], DType::Q4_0, b.clone())],
    );
    let gguf = Gguf::open(&path).unwrap();
    let mut expected = every_kind();
    expected.set("general.alignment", 64u32);
    assert_eq!(gguf.metadata, expected);
    assert_eq!(gguf.bytes.len() as u64, path.metadata().unwrap().len());
    assert!(gguf.bytes.len().is_multiple_of(64));
    let tensor = |name| gguf.tensor(name).map(|t| (&t.dims[..], t.dtype, &t.data[..])).unwrap();
    assert_eq!(tensor("a"), (&[2, 3][..], DType::F32, &a[..]));
    assert_eq!(tensor("b"), (&[2, 1, 64][..], DType::Q4_0, &b[..]));
    assert!(gguf.tensor("c").is_none());
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    write(&path, every_kind(), &[("a", vec![16], DType::F32, vec![1; 64])]);
    let file = std::fs::read(&path).unwrap();
    for len in 0..file.len() {
        let message = parse(file[..len].to_vec()).err().expect("a cut file").to_string();
        assert!(message.contains("truncated") || len < 4, "{len}: {message}");
    }
}

#[test]
fn damage_to_any_byte_is_an_error_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    write(&path, every_kind(), &[("a", vec![16], DType::F32, vec![1; 64])]);
    let file = std::fs::read(&path).unwrap();
    for at in 0..file.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = file.clone();
            bytes[at] = value;
            let _ = parse(bytes);
        }
    }
}

#[test]
fn unfinished_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let layout = || Layout::new(Metadata::default(), vec![("a".into(), vec![4], DType::F32, Packing::Plain)]).unwrap();
    let mut writer = Writer::create(&path, layout(), false).unwrap();
    writer.write(&[0; 15]).unwrap();
    // Readers can open the file before it is complete.
    assert_eq!(Gguf::open(writer.temporary_path().unwrap()).unwrap().tensors.len(), 1);
    // Under its final name, the only one that users know.
    let back = writer.read_back().unwrap();
    assert_eq!((back.file, back.tensors.len()), (path.display().to_string(), 1));
    assert!(writer.finish().is_err());
    let mut writer = Writer::create(&path, layout(), false).unwrap();
    assert!(writer.write(&[0; 17]).is_err());
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn refuses_other_files() {
    refused(b"PK\x03\x04 something".to_vec(), "not a GGUF file");
    refused(b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "LFS");
    refused(b"GGUF\0\0\0\x03................".to_vec(), "big-endian");
    refused(b"GGUF\x02\0\0\0................".to_vec(), "version 2");
}

#[test]
fn refuses_impossible_counts_before_allocating() {
    let mut bytes = file(&[], &[]);
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(bytes, "tensors");
    let mut bytes = file(&[], &[]);
    bytes[16..24].copy_from_slice(&(1u64 << 60).to_le_bytes());
    refused(bytes, "keys");
    for kind in [0u32, 4, 7, 8, 12] {
        let array = [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(u64::MAX / 2).to_le_bytes()].concat();
        refused(file(&[("k", array)], &[]), "truncated");
    }
}

/// A byte in the file takes eight in memory.
#[test]
fn arrays_have_a_total_size_limit() {
    let array = |count: usize| {
        [&9u32.to_le_bytes()[..], &0u32.to_le_bytes(), &(count as u64).to_le_bytes(), &vec![1; count]].concat()
    };
    assert!(parse(file(&[("a", array(3 << 20)), ("b", array(1 << 20))], &[])).is_ok());
    refused(file(&[("a", array(3 << 20)), ("b", array((1 << 20) + 1))], &[]), "arrays of 4194305 items");
}

#[test]
fn refuses_bad_keys() {
    let one = [&4u32.to_le_bytes()[..], &1u32.to_le_bytes()].concat();
    refused(file(&[("k", one.clone()), ("k", one.clone())], &[]), "`k` appears twice");
    refused(file(&[("k", [&7u32.to_le_bytes()[..], &[2]].concat())], &[]), "neither 0 nor 1");
    refused(file(&[("k", 13u32.to_le_bytes().to_vec())], &[]), "unknown type 13");
    refused(file(&[("k", [&9u32.to_le_bytes()[..], &9u32.to_le_bytes(), &[0; 8]].concat())], &[]), "array of arrays");
    refused(file(&[("\u{1b}[2J", one.clone())], &[]), "unprintable");
    let broken = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0xc3, 0x28]].concat();
    refused(file(&[("k", broken)], &[]), "UTF-8");
    for alignment in [0u32, 4, 48, 1 << 17] {
        let value = [&4u32.to_le_bytes()[..], &alignment.to_le_bytes()].concat();
        refused(file(&[("general.alignment", value)], &[]), "general.alignment");
    }
}

#[test]
fn refuses_bad_tensors() {
    assert_eq!(parse(file(&[], &[entry("t", &[64], 0, 0)])).unwrap().tensors[0].dims, [64]);
    refused(file(&[], &[entry("t", &[8], 0, 0), entry("t", &[8], 0, 32)]), "`t` appears twice");
    refused(file(&[], &[entry("t", &[1, 1, 1, 1, 1], 0, 0)]), "5 dimensions");
    refused(file(&[], &[entry("t", &[], 0, 0)]), "0 dimensions");
    refused(file(&[], &[entry("t", &[8, 0], 0, 0)]), "dimension of 0");
    refused(file(&[], &[entry("t", &[1 << 40, 1 << 40], 0, 0)]), "larger than memory");
    refused(file(&[], &[entry("t", &[48], 8, 0)]), "multiple of the 32");
    refused(file(&[], &[entry("t", &[8], 0, 8)]), "alignment");
    refused(file(&[], &[entry("t", &[65], 0, 0)]), "truncated");
    refused(file(&[], &[entry("t", &[8], 0, u64::MAX - 31)]), "truncated");
    refused(file(&[], &[entry("t", &[16], 0, 0), entry("u", &[8], 0, 32)]), "`t` and `u` overlap");
    refused(file(&[], &[entry("t", &[256], 12, 0)]), "Q4_K (12)");
    let llama = [&8u32.to_le_bytes()[..], &text("llama")].concat();
    refused(file(&[("general.architecture", llama)], &[entry("t", &[256], 12, 0)]), "`llama`");
}
