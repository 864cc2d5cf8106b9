//! How the attention of one token is handed out. Its units, a tile of one KV head each, are numbered tile by tile; a task
//! has some that follow each other:
//!
//! ```text
//!            tile 0      tile 1      tile 2      tile 3
//! KV head  0 1 2 3 4 | 0 1 2 3 4 | 0 1 2 3 4 | 0 1 2 3 4
//! task     0           1         :   2           3          with two threads, of which the second begins at ':'
//! ```

use std::ops::Range;

/// Maximum number of tasks per thread: several, so that others can help a delayed thread.
const THREAD_TASKS: usize = 8;

/// Returns the boundaries of the tasks in units, including the end. `tiles`: the boundaries of the tiles in rows. Every
/// thread has the same number of tasks, and the same number of rows to within a unit; within a thread, tasks start at
/// tiles.
pub(super) fn cut(tiles: &[usize], heads: usize, threads: usize) -> Vec<usize> {
    let rows = tiles[tiles.len() - 1];
    let each = ((tiles.len() - 1) / threads).clamp(1, THREAD_TASKS);
    let tasks = threads * each;
    let nearest = |task: usize| {
        let place = rows * task; // in rows / tasks
        let tile = tiles.partition_point(|&begin| begin * tasks <= place) - 1;
        let Some(&end) = tiles.get(tile + 1) else { return tile * heads };
        let (before, whole) = (place - tiles[tile] * tasks, (end - tiles[tile]) * tasks);
        let step = if task.is_multiple_of(each) { 1 } else { heads };
        tile * heads + (2 * before * heads / step + whole) / (2 * whole) * step
    };
    let mut cuts: Vec<_> = (0..=tasks).map(nearest).collect();
    for i in 1..cuts.len() {
        cuts[i] = cuts[i].max(cuts[i - 1]); // the nearest tile may start before the thread does
    }
    cuts
}

/// Splits a range of units into kernel calls, each a range of tiles and of KV heads: all heads of whole tiles, some
/// heads of one tile.
pub(super) fn calls(units: Range<usize>, heads: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mut next = units.start;
    std::iter::from_fn(move || {
        let (tile, head) = (next / heads, next % heads);
        let left = units.end.checked_sub(next).filter(|&left| left > 0)?;
        let (tiles, heads) = if head == 0 && left >= heads {
            (tile..tile + left / heads, 0..heads)
        } else {
            (tile..tile + 1, head..heads.min(head + left))
        };
        next += tiles.len() * heads.len();
        Some((tiles, heads))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_every_unit_once_and_threads_as_much_as_others() {
        for tiles in
            [vec![0, 1], vec![0, 128, 140], vec![0, 128, 131, 259, 387, 515, 520], (0..70).map(|i| i * 128).collect()]
        {
            for (heads, threads) in [(1, 1), (1, 3), (5, 1), (5, 2), (5, 4), (3, 16)] {
                let cuts = cut(&tiles, heads, threads);
                let units = heads * (tiles.len() - 1);
                assert_eq!((cuts[0], cuts[cuts.len() - 1], (cuts.len() - 1) % threads), (0, units, 0));
                let of = |units| {
                    calls(units, heads).flat_map(|(tile, h)| tile.flat_map(move |t| h.clone().map(move |h| (t, h))))
                };
                let all: Vec<_> = cuts.windows(2).flat_map(|w| of(w[0]..w[1])).collect();
                assert_eq!(all, (0..units).map(|u| (u / heads, u % heads)).collect::<Vec<_>>());
                let each = (cuts.len() - 1) / threads;
                let work = |units| of(units).map(|(tile, _)| tiles[tile + 1] - tiles[tile]).sum::<usize>();
                let largest = tiles.windows(2).map(|t| t[1] - t[0]).max().unwrap_or(0);
                for thread in 0..threads {
                    let rows = work(cuts[thread * each]..cuts[(thread + 1) * each]);
                    let share = heads * tiles[tiles.len() - 1] / threads;
                    assert!(rows.abs_diff(share) <= largest + 1, "{tiles:?} {heads} {threads}: {rows}, {share}");
                }
            }
        }
    }
}
