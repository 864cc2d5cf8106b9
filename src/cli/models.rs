//! `hymba models`: installed models.

use std::{io::Write, time::SystemTime};

use hymba::{
    format::gguf::Gguf,
    hub::{Installed, Store},
};
use indicatif::{DecimalBytes, HumanDuration};

use super::{model::OFFICIAL, named::find, terminal};

/// List, remove and locate installed models
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List installed models: name, type, size, context, last use
    List,
    /// Remove models; original downloads stay in the Hugging Face cache
    Rm {
        /// Names as in `list`, or abbreviated; NAME:TYPE if a model is installed in several types
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Print the path of a model
    Path {
        /// Name as in `list`, or abbreviated
        name: String,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let store = Store::from_env()?;
    match &args.action {
        None | Some(Action::List) => list(&store),
        Some(Action::Rm { names }) => {
            let models = names.iter().map(|name| find(&store, name)).collect::<anyhow::Result<Vec<_>>>()?;
            for model in models {
                model.remove()?;
                terminal::note(&format!("removed {}", model.name()));
            }
            Ok(())
        }
        Some(Action::Path { name }) => Ok(writeln!(terminal::out(), "{}", find(&store, name)?.path.display())?),
    }
}

fn list(store: &Store) -> anyhow::Result<()> {
    let models = store.list();
    if models.is_empty() {
        let folder = store.folder().display();
        terminal::note(&format!("no models are installed in {folder}; get one with `hymba pull {OFFICIAL}`"));
        return Ok(());
    }
    let head = ["NAME", "TYPE", "SIZE", "CONTEXT", "LAST USE"].map(str::to_owned);
    let rows = models.iter().map(row).collect::<anyhow::Result<Vec<_>>>()?;
    let rows: Vec<[String; 5]> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (a, b, c, d) = (width(0), width(1), width(2), width(3));
    let mut out = terminal::out();
    for [name, kind, size, context, used] in &rows {
        writeln!(out, "{name:<a$}  {kind:<b$}  {size:>c$}  {context:>d$}  {used}")?;
    }
    Ok(())
}

fn row(model: &Installed) -> anyhow::Result<[String; 5]> {
    let (size, used) = model.size_and_use()?;
    let context = match Gguf::open(&model.path) {
        Ok(gguf) => {
            // The rest of the width is for names.
            let uint = |key| gguf.metadata.uint(key);
            let meta = uint("hymba.meta_token_count").unwrap_or(0);
            uint("hymba.context_length").map_or("?".into(), |context| context.saturating_sub(meta).to_string())
        }
        Err(_) => "damaged".into(),
    };
    let ago = used.and_then(|used| SystemTime::now().duration_since(used).ok());
    let ago =
        ago.map_or(
            "?".into(),
            |ago| if ago.as_secs() < 60 { "now".into() } else { format!("{} ago", HumanDuration(ago)) },
        );
    Ok([model.repo.to_string(), model.kind.clone(), DecimalBytes(size).to_string(), context, ago])
}
