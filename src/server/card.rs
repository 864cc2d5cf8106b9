//! Public information about the model.

/// Public information about the model.
pub struct ModelCard {
    /// Its id, followed by its aliases.
    pub names: Vec<String>,
    /// Start of the server, in seconds since 1970.
    pub created: u64,
    /// Context size of the training.
    pub trained_context: usize,
    /// Size of its file in bytes.
    pub bytes: usize,
}

impl ModelCard {
    /// Whether `name` is the id or an alias of the model.
    pub fn is(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}
