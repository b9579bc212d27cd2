//! The hosted git remote: bare repositories served over HTTP, with fenced refs.

mod cgi;
pub mod conflicts;
pub mod fence;
pub mod hook;
pub mod host;
pub mod housekeeping;
pub mod merges;
pub mod mirror;
pub mod names;
pub mod pktline;
pub mod policy;
pub mod projection;
pub mod refs;
pub mod repositories;
pub mod repository;
mod rooms;
pub mod writers;
