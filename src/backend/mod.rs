//! What the forward pass needs of a machine, and the CPU that provides it.
