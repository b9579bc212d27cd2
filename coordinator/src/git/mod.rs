//! The hosted git remote: bare repositories served over HTTP, with fenced refs.

mod cgi;
pub mod hook;
pub mod host;
pub mod pktline;
pub mod policy;
pub mod refs;
pub mod repository;
