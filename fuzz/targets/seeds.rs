//! Writes the seeds of every target to its corpus.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    for target in hymba_fuzz::TARGETS {
        let folder = Path::new("corpus").join(target.name);
        fs::create_dir_all(&folder)?;
        for (i, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{i}")), seed)?;
        }
    }
    Ok(())
}
