//! The tests that may run beside each other in one process, as modules of one binary: it compiles
//! and links in a fraction of the time that a binary per file takes. The others, which count what a
//! process holds or start themselves again, have a binary each.

#[path = "../support/mod.rs"]
mod support;

mod attempts;
mod calls;
mod checks;
mod deadlines;
mod endpoints;
mod goaway;
mod health;
mod http;
mod limits;
mod replays;
mod server;
mod server_authority;
mod server_ends;
mod server_readiness;
mod server_services;
mod server_unregistered;
mod sets;
mod status;
mod timed;
