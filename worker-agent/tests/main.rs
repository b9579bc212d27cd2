//! Tests of the worker agent with real processes.

mod supervisor;
