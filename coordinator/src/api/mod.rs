//! The one port: TLS, connections, authentication and what is served behind them.
//!
//! A caller puts its services into one [`axum::Router`], lets a [`Gate`] guard it, and hands it to
//! [`Server::run`]. Behind the gate every request carries the [`crate::auth::Identity`] of its
//! sender in its extensions.

pub mod agents;
mod by_session;
mod conflicts;
pub mod convert;
mod diff;
mod door;
mod event_text;
mod explain;
pub mod feed;
mod frames;
mod gate;
pub mod grants;
pub(crate) mod join;
pub(crate) mod limits;
mod log;
pub mod operator_service;
mod outbound;
mod places;
mod plan_reader;
pub mod plans;
pub mod pools;
pub(crate) mod program;
mod questions;
pub mod runs;
mod server;
mod slow;
pub mod status;
pub mod submit;
mod summaries;
mod tls;
mod tokens;
pub mod troubles;
pub mod usage;
pub mod view;
mod watch;
pub mod watch_route;
pub mod worker_service;

pub use gate::{Gate, OpenPath};
pub use server::{Counters, Error as ServerError, Options, Server, Stopped};
pub use tls::server_config;

#[cfg(test)]
mod tests;
