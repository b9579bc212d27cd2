//! The one port: TLS, connections, authentication and what is served behind them.
//!
//! A caller puts its services into one [`axum::Router`], lets a [`Gate`] guard it, and hands it to
//! [`Server::run`]. Behind the gate every request carries the [`crate::auth::Identity`] of its
//! sender in its extensions.

mod gate;
mod server;
mod tls;

pub use gate::{Gate, OpenPath};
pub use server::{Counters, Error as ServerError, Options, Server, Stopped};
pub use tls::server_config;

#[cfg(test)]
mod tests;
