//! Flags for tools and context files, and the program that answers calls.

mod calls;
mod program;
mod results;

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use hymba::{
    Error,
    text::{ToolChoice, Tools},
};

use super::{
    ask,
    prompt::{read_file, read_text},
    usage::Usage,
};
pub use calls::{json, shown};
use program::Program;
pub use results::{Answers, ROUNDS};

/// Tools and contexts.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Tools")]
pub struct ToolArgs {
    /// Let the model call the functions in FILE, a JSON list in the format of OpenAI's `tools`
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Whether the model may or must call a tool: auto, none, required, or the name of a tool
    #[arg(long, value_name = "auto|none|required|NAME", requires = "tools")]
    tool_choice: Option<String>,
    /// Answer tool calls with the output of CMD. It is executed directly, without a shell, and receives the call as
    /// JSON on standard input
    #[arg(long, value_name = "CMD", requires = "tools")]
    tool_command: Option<String>,
    /// Run --tool-command without asking for confirmation
    #[arg(long, requires = "tool_command")]
    tool_yes: bool,
    /// Provide the text of FILE as context; repeatable
    #[arg(long, value_name = "FILE")]
    context_file: Vec<PathBuf>,
}

/// The contents of the files in [`ToolArgs`].
#[derive(Debug, Default)]
pub struct Resources {
    pub tools: Option<Tools>,
    pub choice: ToolChoice,
    pub contexts: Vec<String>,
}

impl ToolArgs {
    /// Fails if replies are constrained (`is_constrained`) and may also call tools.
    pub fn check(&self, is_constrained: bool) -> Result<(), Usage> {
        if is_constrained && self.tools.is_some() && self.tool_choice.as_deref() != Some("none") {
            let problem =
                "--tools cannot be combined with constrained output; omit one of them, or add --tool-choice none";
            return Err(Usage(problem.into()));
        }
        Ok(())
    }

    /// Whether no flag is given.
    pub fn is_empty(&self) -> bool {
        self.tools.is_none() && self.context_file.is_empty()
    }

    /// Reads the files.
    pub fn read(&self, cancel: &AtomicBool) -> anyhow::Result<Resources> {
        let read_tools = |path: &Path| Tools::parse(&read_text(path, cancel)?, &path.display().to_string());
        let tools = self.tools.as_deref().map(read_tools).transpose()?;
        let choice = self.tool_choice.as_deref().map(|word| ToolChoice::parse(word, tools.as_ref()));
        let choice = choice.transpose().map_err(|e| Usage(format!("--tool-choice: {e}")))?.unwrap_or_default();
        let contexts = self.context_file.iter().map(|path| read_file(path, cancel)).collect::<Result<_, _>>()?;
        Ok(Resources { tools, choice, contexts })
    }

    /// Returns the program that answers calls, if there is one. Fails if its command line is invalid, or if it needs
    /// confirmation and there is no user to ask.
    pub fn answers(&self) -> anyhow::Result<Option<Answers>> {
        let Some(command) = &self.tool_command else { return Ok(None) };
        let program = Program::new(command).map_err(|reason| Usage(format!("--tool-command: {reason}")))?;
        if !self.tool_yes && !ask::at_terminal() {
            let problem =
                "--tool-command: there is no terminal to confirm each run; add --tool-yes to skip the confirmation";
            return Err(Usage(problem.into()).into());
        }
        Ok(Some(Answers { program, yes: self.tool_yes }))
    }
}

/// Attributes `error` to a flag if it is about a tool's schema.
pub fn of_flag(error: Error) -> anyhow::Error {
    match error {
        Error::Constraint { .. } => Usage(format!("--tools: {error}")).into(),
        error => error.into(),
    }
}
