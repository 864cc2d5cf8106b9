//! The results of `hymba bench` as tables and JSON.

use std::{fmt::Write, time::Duration};

use hymba::{
    backend::{Operation, Profile},
    engine::Roofline,
};
use serde_json::{Value, json};

use super::measure::{Results, Row, Test};
use crate::cli::json::JSON_VERSION;

/// Mean, sample deviation, minimum and maximum.
fn statistics(values: &[f64]) -> [f64; 4] {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [mean, variance.sqrt(), least, greatest]
}

/// Returns (name, seconds per run) for each operation, over the runs that count.
fn profile(row: &Row) -> Option<Vec<(&'static str, f64)>> {
    let profiles: Vec<_> = row.steady().into_iter().map(|run| run.profile.as_ref()).collect::<Option<_>>()?;
    let mean = |time: &dyn Fn(&(Profile, Duration)) -> Duration| {
        profiles.iter().map(|p| time(p).as_secs_f64()).sum::<f64>() / profiles.len() as f64
    };
    let parts = Operation::ALL.iter().enumerate().map(|(i, (_, name))| (*name, mean(&|p| p.0.operations[i])));
    Some(parts.chain([("sampling", mean(&|p| p.1)), ("waiting", mean(&|p| p.0.waiting))]).collect())
}

/// Returns the results as Markdown tables.
pub fn markdown(results: &Results) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "model: {} · kernels: {}\n", results.model, results.kernels);
    let _ = writeln!(out, "| test | threads | tok/s | min | % of limit | runs |\n|---|---|---|---|---|---|");
    for row in &results.rows {
        let [mean, deviation, least, _] = statistics(&row.values());
        let unit = if row.kind == Test::FirstToken { " ms" } else { "" };
        let share = row.share().map_or("".into(), |s| format!("{:.1} %", 100.0 * s));
        let _ = writeln!(
            out,
            "| {} | {} | {mean:.2} ± {deviation:.2}{unit} | {least:.2}{unit} | {share} | {}{} |",
            row.name(),
            row.threads,
            row.steady().len(),
            if row.is_unstable() { " !" } else { "" }
        );
    }
    if results.rows.iter().any(|r| matches!(r.kind, Test::Batch(_))) {
        let _ = writeln!(
            out,
            "\n| batched decode | threads | batch | tok/s total | tok/s per text |\n|---|---|---|---|---|"
        );
        for row in results.rows.iter().filter(|r| matches!(r.kind, Test::Batch(_))) {
            let ([mean, ..], texts) = (statistics(&row.values()), row.texts());
            let each = mean / texts as f64;
            let _ = writeln!(out, "| {} | {} | {texts} | {mean:.2} | {each:.2} |", row.name(), row.threads);
        }
    }
    let passes = || results.rows.iter().filter_map(|row| Some((row, row.pass_milliseconds()?)));
    if passes().next().is_some() {
        let _ =
            writeln!(out, "\n| decode segment | threads | ms per pass | relative to one token |\n|---|---|---|---|");
        for (row, time) in passes() {
            let same = |one: &&(&Row, f64)| (one.0.tokens, one.0.threads, one.0.depth) == (1, row.threads, row.depth);
            let one = passes().find(|one| same(&one)).map_or("".into(), |(_, one)| format!("{:.2}", time / one));
            let _ = writeln!(out, "| {} | {} | {time:.2} | {one} |", row.name(), row.threads);
        }
    }
    if results.rows.iter().any(|r| profile(r).is_some()) {
        let names: Vec<_> = Operation::ALL.iter().map(|o| o.1).chain(["sampling", "waiting"]).collect();
        let _ = writeln!(out, "\n| share of time | threads | {} |", names.join(" | "));
        let _ = writeln!(out, "|{}", "---|".repeat(names.len() + 2));
        for row in &results.rows {
            let Some(parts) = profile(row) else { continue };
            let runs = row.steady();
            let all = runs.iter().map(|r| r.time.as_secs_f64()).sum::<f64>() / runs.len() as f64;
            let cells: Vec<_> = parts.iter().map(|(_, s)| format!("{:.1} %", 100.0 * s / all)).collect();
            let _ = writeln!(out, "| {} | {} | {} |", row.name(), row.threads, cells.join(" | "));
        }
    }
    let _ = writeln!(out, "\n| limit | threads | before | after |\n|---|---|---|---|");
    for l in &results.limits {
        let [before, after] = [l.before, l.after].map(|l| [l.read_bytes, l.int8_macs, l.float_macs].map(|v| v / 1e9));
        for (i, name) in ["read, GB/s", "int8, GMAC/s", "f32, GMAC/s"].iter().enumerate() {
            let _ = writeln!(out, "| {name} | {} | {:.1} | {:.1} |", l.threads, before[i], after[i]);
        }
    }
    if results.rows.iter().any(|r| r.steady().len() < r.runs.len() || r.is_unstable()) {
        let _ = writeln!(
            out,
            "\nRuns during which the limit changed by more than 10 % are discarded: the machine was not idle. In rows marked ! it changed during every run."
        );
    }
    let cache = results.rows.iter().map(|r| r.cache_bytes).max().unwrap_or(0);
    let _ = write!(
        out,
        "\nweights read per token: {:.1} MB · cache: {:.1} MB, of which conv and SSM state {:.1} MB · loaded in {:.1} ms",
        results.weight_bytes as f64 / 1e6,
        cache as f64 / 1e6,
        results.state_bytes as f64 / 1e6,
        results.opening.as_secs_f64() * 1e3
    );
    if let Some(peak) = results.peak_memory {
        let _ = write!(out, " · peak memory: {:.1} MB", peak as f64 / 1e6);
    }
    out + "\n"
}

/// Returns the rows as CSV with a header.
pub fn csv(results: &Results) -> String {
    let mut out =
        "test,depth,threads,unit,mean,deviation,min,max,runs,share_of_limit,work_per_token,limit\n".to_owned();
    for row in &results.rows {
        let [mean, deviation, least, greatest] = statistics(&row.values());
        let unit = if row.kind == Test::FirstToken { "ms" } else { "tok/s" };
        let share = row.share().map_or(String::new(), |s| format!("{s:.4}"));
        let _ = writeln!(
            out,
            "{},{},{},{unit},{mean:.4},{deviation:.4},{least:.4},{greatest:.4},{},{share},{},{:.0}",
            row.name(),
            row.depth,
            row.threads,
            row.steady().len(),
            row.work_per_token,
            row.limit()
        );
    }
    out
}

/// Returns a row as a JSON object.
pub fn row_json(row: &Row) -> Value {
    let [mean, deviation, min, max] = statistics(&row.values());
    let numbers = json!({"mean": mean, "deviation": deviation, "min": min, "max": max, "runs": row.values()});
    let mut object = json!({
        "version": JSON_VERSION,
        "test": row.name(),
        "depth": row.depth,
        "threads": row.threads,
        "cache_bytes": row.cache_bytes,
        "runs_left_out": row.runs.len() - row.steady().len(),
        "unstable": row.is_unstable(),
    });
    if let Test::Batch(texts) = row.kind {
        object["texts"] = json!(texts);
    }
    if let Some(time) = row.pass_milliseconds() {
        object["pass_milliseconds"] = json!(time);
    }
    match row.kind {
        Test::FirstToken => object["milliseconds"] = numbers,
        _ => object["tokens_per_second"] = numbers,
    }
    match row.kind {
        Test::Decode => object["bytes_per_token"] = json!(row.work_per_token),
        _ => object["macs_per_token"] = json!(row.work_per_token),
    }
    if let Some(share) = row.share() {
        object["share_of_limit"] = json!(share);
        object["limit"] = json!(row.limit());
    }
    if let Some(parts) = profile(row) {
        object["profile_seconds"] = parts.into_iter().map(|(name, s)| (name.to_owned(), json!(s))).collect();
    }
    object
}

/// Returns all results as one JSON object.
pub fn json(results: &Results) -> Value {
    let limit = |threads: usize, depth: usize, when: &str, l: Roofline| {
        json!({
            "threads": threads, "depth": depth, "when": when, "read_bytes_per_second": l.read_bytes,
            "int8_macs_per_second": l.int8_macs, "float_macs_per_second": l.float_macs,
        })
    };
    let limits = results.limits.iter();
    let limits: Vec<_> = limits
        .flat_map(|l| [limit(l.threads, l.depth, "before", l.before), limit(l.threads, l.depth, "after", l.after)])
        .collect();
    json!({
        "version": JSON_VERSION,
        "program_version": env!("CARGO_PKG_VERSION"),
        "model": results.model,
        "kernels": results.kernels,
        "weight_bytes_per_token": results.weight_bytes,
        "state_bytes": results.state_bytes,
        "opening_seconds": results.opening.as_secs_f64(),
        "peak_memory_bytes": results.peak_memory,
        "limits": limits,
        "rows": results.rows.iter().map(row_json).collect::<Vec<_>>(),
    })
}
