//! What a session remembers: KV rows, conv state, SSM state.
