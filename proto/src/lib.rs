//! The wire of Muster.
