//! A cloud on this machine: an interface of EC2 that answers as AWS does, the metadata service, and
//! machines that really run the user data that Terraform has made.
//!
//! [`Moto`] is the interface, [`Hypervisor`] looks at it and keeps one [`Machine`] for each instance of
//! a group: a network, a mount and a process namespace. Signatures are not checked by anybody here.

mod client;
mod cloud;
mod door;
mod downloads;
mod hypervisor;
mod imds;
mod machine;
mod moto;
mod network;
mod terraform;
mod volume;

pub use client::{Client, Credentials, Instance};
pub use cloud::{Cloud, DIALLED};
pub use door::Door;
pub use downloads::Downloads;
pub use hypervisor::{Boots, Hypervisor};
pub use imds::{Imds, Notice};
pub use machine::{Head, Machine, Place, cloud_config};
pub use moto::{ApiFault, Capacity, MACHINES, Moto};
pub use terraform::{
    Terraform, configure as configure_terraform, copy_modules, mirror, missing as missing_terraform,
};

use std::path::{Path, PathBuf};

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

/// Where the command line of AWS is that `.ci/cloud` has installed, and the interpreter that it runs in.
#[must_use]
pub fn command_line(source: &Path) -> (PathBuf, PathBuf) {
    let python = moto::python(source);
    (python.with_file_name("aws"), python)
}

fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
