//! The laws of every backend, as tests.
