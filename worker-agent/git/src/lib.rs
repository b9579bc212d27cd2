//! worker-agent/git
