//! proto/connect
