//! Terraform on a copy of `terraform/`, offline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process::{Output, Program};

/// Where a mirror of providers is, if not at the usual place.
const VARIABLE: &str = "MUSTER_TERRAFORM_MIRROR";
const USUAL: &str = "/opt/tf-plugins";
const CONFIGURATION: &str = "terraform.rc";
/// An apply takes a minute against a stand-in: the provider itself waits between two looks.
const PATIENCE: Duration = Duration::from_secs(300);

/// The folder that holds the providers, if there is one on this machine.
#[must_use]
pub fn mirror() -> Option<PathBuf> {
    let mirror = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(USUAL), PathBuf::from);
    let provider = mirror.join("registry.terraform.io/hashicorp/aws");
    provider.is_dir().then_some(mirror)
}

/// Why Terraform cannot run modules here, if so.
#[must_use]
pub fn missing() -> Option<String> {
    if !super::has("terraform") {
        return Some("needs the program terraform".to_owned());
    }
    mirror().is_none().then(|| {
        format!("needs the AWS provider of Terraform in a mirror; {VARIABLE} names its folder")
    })
}

/// A copy of `terraform/` in which it is run.
#[derive(Debug)]
pub struct Terraform {
    folder: PathBuf,
    root: PathBuf,
}

impl Terraform {
    /// Copies everything and makes `module`, such as `examples/one-pool`, ready.
    ///
    /// # Errors
    /// Files cannot be written, or the provider is not there.
    pub fn new(source: &Path, folder: &Path, module: &str) -> Result<Self> {
        let root = folder.join("terraform");
        if !root.exists() {
            copy_modules(source, &root)?;
        }
        configure(folder)?;
        let terraform = Self {
            folder: folder.to_owned(),
            root: root.join(module),
        };
        terraform.run(&["init", "-input=false"])?.success()?;
        Ok(terraform)
    }

    /// Gives the folder of the module.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Says what the module's variables are.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn variables(&self, variables: &Value) -> Result<()> {
        let file = self.root.join("test.auto.tfvars.json");
        std::fs::write(file, variables.to_string())?;
        Ok(())
    }

    /// Runs a command to its end, whatever its exit code.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        words.insert(1, "-no-color".to_owned());
        Program::new(Path::new("terraform"), &self.root)
            .args(words)
            .var("HOME", &self.folder)
            .var("TF_CLI_CONFIG_FILE", self.folder.join(CONFIGURATION))
            .var("TF_IN_AUTOMATION", "1")
            .var("CHECKPOINT_DISABLE", "1")
            .var("AWS_ACCESS_KEY_ID", "test")
            .var("AWS_SECRET_ACCESS_KEY", "test")
            .var("AWS_EC2_METADATA_DISABLED", "true")
            .run(&self.folder, PATIENCE)
    }

    /// Makes what the module describes.
    ///
    /// # Errors
    /// It fails.
    pub fn apply(&self) -> Result<Output> {
        self.run(&["apply", "-auto-approve", "-input=false"])?
            .success()
    }

    /// Removes it.
    ///
    /// # Errors
    /// It fails.
    pub fn destroy(&self) -> Result<Output> {
        self.run(&["destroy", "-auto-approve", "-input=false"])?
            .success()
    }

    /// Gives an output.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn output(&self, name: &str) -> Result<Value> {
        let all = self.run(&["output", "-json"])?.success()?.json()?;
        let value = all.get(name).with_context(|| format!("no output {name}"))?;
        Ok(value["value"].clone())
    }
}

/// Writes the configuration with which Terraform stays offline, and gives the file's place: the value of
/// `TF_CLI_CONFIG_FILE`.
///
/// # Errors
/// There is no mirror, or the file cannot be written.
pub fn configure(folder: &Path) -> Result<PathBuf> {
    let mirror = mirror().context("no mirror of providers")?;
    let configuration = format!(
        "disable_checkpoint = true\nprovider_installation {{\n  filesystem_mirror {{\n    path = {mirror:?}\n  }}\n}}\n",
    );
    let file = folder.join(CONFIGURATION);
    std::fs::write(&file, configuration)?;
    Ok(file)
}

/// Copies `terraform/` of the repository, without what somebody's own run has left there.
///
/// # Errors
/// Files cannot be read or written.
pub fn copy_modules(source: &Path, to: &Path) -> Result<()> {
    copy(&source.join("terraform"), to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let left_out = name.to_string_lossy();
        // What somebody's own run has left there.
        if left_out.starts_with(".terraform") || left_out.contains(".tfstate") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(&name))?;
        } else {
            std::fs::copy(entry.path(), to.join(&name))?;
        }
    }
    Ok(())
}
