//! Call arguments.

use std::sync::Arc;

use super::{Failure, value::Value};

/// Evaluated arguments.
#[derive(Debug, Default)]
pub struct Arguments {
    /// Positional arguments.
    pub positional: Vec<Value>,
    /// Keyword arguments.
    pub named: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    /// Returns the keyword argument `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.named.iter().find(|(of, _)| **of == *name).map(|(_, value)| value)
    }

    /// Binds the arguments to the given parameters, of which the first `required` must be present.
    pub fn bind<const N: usize>(
        &self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N], Failure> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(Failure::new(format!("{function}() takes at most {N} arguments ({given} given)")));
        }
        let mut bound = [const { None }; N];
        for (index, value) in self.positional.iter().enumerate() {
            bound[index] = Some(value.clone());
        }
        for (name, value) in &self.named {
            let index = names.iter().position(|of| **of == **name);
            let index = index.filter(|&index| bound[index].is_none()).ok_or_else(|| {
                Failure::new(format!("{function}() got an unexpected argument '{name}', or got it twice"))
            })?;
            bound[index] = Some(value.clone());
        }
        match bound[..required].iter().position(Option::is_none) {
            Some(index) => Err(Failure::new(format!("{function}() is missing an argument: '{}'", names[index]))),
            None => Ok(bound),
        }
    }
}
