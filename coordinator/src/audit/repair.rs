//! Mends what an audit has found and can be mended.
