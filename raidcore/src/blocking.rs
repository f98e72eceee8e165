//! A blocking handle for simple callers.
