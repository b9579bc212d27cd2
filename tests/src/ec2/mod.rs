//! A cloud on this machine: an interface of EC2 that answers as AWS does, the metadata service, and
//! machines that really run the user data that Terraform has made.
//!
//! [`Moto`] is the interface, [`Hypervisor`] looks at it and keeps one [`Machine`] for each instance of
//! a group: a network, a mount and a process namespace. Signatures are not checked by anybody here.

mod client;
mod cloud;
mod door;
mod hypervisor;
mod imds;
mod machine;
mod moto;
mod network;
mod terraform;

pub use client::{Client, Credentials, Instance};
pub use cloud::{Cloud, DIALLED};
pub use door::Door;
pub use hypervisor::{Boots, Hypervisor};
pub use imds::{Imds, Notice};
pub use machine::{Machine, Place, cloud_config};
pub use moto::{Capacity, Moto};
pub use terraform::{Terraform, mirror, missing as missing_terraform};

use std::path::Path;

/// Where all instances are.
pub const REGION: &str = "eu-west-1";
/// The one account there is.
pub const ACCOUNT: &str = "123456789012";

/// Why there can be no such cloud on this machine, if so.
#[must_use]
pub fn missing(source: &Path) -> Option<String> {
    moto::missing(source)
        .or_else(crate::hosts::missing)
        .or_else(|| {
            ["curl", "setpriv", "useradd"]
                .into_iter()
                .find(|program| !has(program))
                .map(|program| format!("needs the program {program}"))
        })
}

fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
