//! Tests of the worker agent with real processes.

#[cfg(test)]
mod supervisor;
#[cfg(test)]
mod worker;
