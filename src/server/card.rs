//! What is published about the model.

/// What is published about the model.
pub struct ModelCard {
    /// Its id, and other names that requests may use.
    pub names: Vec<String>,
    /// When the server was started, in seconds since 1970.
    pub created: u64,
    /// Tokens that it was trained for.
    pub trained_context: usize,
    /// Bytes of its file.
    pub bytes: usize,
}

impl ModelCard {
    /// Whether a request may call the model so.
    pub fn is(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}
