//! A coordinator beside a cloud: with a pool whose group, role and user data Terraform has made.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use coordinator::auth::{Authenticator, CertificateAuthority};
use serde_json::{Value, json};

use super::{Client, Hypervisor, Moto, Place, REGION, Terraform};
use crate::cluster::Cluster;
use crate::wait::{SOON, until_true};

/// The coordinator's address as instances have it; nothing else is there.
pub const DIALLED: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 0, 1), 7733);

/// Everything but the coordinator; ended with its value, machines first.
#[derive(Debug)]
pub struct Cloud {
    /// Runs the instances.
    pub hypervisor: Hypervisor,
    /// The interface of EC2.
    pub moto: Moto,
    /// The applied example `pool-only`.
    pub terraform: Terraform,
    /// Name of the group.
    pub group: String,
    folder: PathBuf,
}

impl Cloud {
    /// Makes the pool `build` for a cluster whose coordinator does not run yet: the home gets its
    /// authority and the pool's configuration, with `settings` besides, and the coordinator the
    /// addresses of what stands in for AWS. `variables` are those of the example besides.
    ///
    /// # Errors
    /// Something does not start, or Terraform fails.
    pub fn beside(cluster: &mut Cluster, settings: &str, variables: &Value) -> Result<Self> {
        let source = cluster.programs().source.clone();
        let folder = cluster.folder().join("cloud");
        std::fs::create_dir(&folder)?;
        let moto = Moto::start(&source, &folder)?;
        let terraform = Terraform::new(&source, &folder, "examples/pool-only")?;
        let authority = CertificateAuthority::open(&cluster.home())?;
        std::fs::copy(
            authority.certificate_path(),
            terraform.root().join("ca.pem"),
        )?;
        let mut all = json!({
            "endpoint": moto.url(),
            "coordinator": format!("{}:{}", DIALLED.0, DIALLED.1),
            "ca_pem_file": "ca.pem",
            "coordinator_id": Authenticator::open(&cluster.home())?.home_id(),
            "ami_id": "ami-0a0b0c0d",
        });
        let (Some(all_variables), Some(more)) = (all.as_object_mut(), variables.as_object()) else {
            anyhow::bail!("variables are an object");
        };
        all_variables.extend(more.clone());
        terraform.variables(&all)?;
        terraform.apply()?;

        let section = terraform.output("config")?;
        let section = section.as_str().context("no section")?;
        let file = cluster.home().join("config.toml");
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, format!("{before}\n{section}{settings}\n"))?;
        let url = moto.url();
        let variables = [
            ("AWS_ENDPOINT_URL", url.as_str()),
            // Others than the tester's, who never meets a fault of the interface.
            ("AWS_ACCESS_KEY_ID", "coordinator"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", REGION),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        cluster.coordinator_variables(variables.map(|(name, value)| (name.into(), value.into())));
        let group = terraform.output("group")?;
        let group = group.as_str().context("no name of a group")?.to_owned();
        let place = Place {
            source,
            folder: folder.join("machines"),
            dialled: DIALLED,
            listens: (Ipv4Addr::LOCALHOST, cluster.port()).into(),
            head: None,
        };
        let hypervisor = Hypervisor::start(moto.client(), place);
        Ok(Self {
            hypervisor,
            moto,
            terraform,
            group,
            folder,
        })
    }

    /// Gives a client of the interface.
    #[must_use]
    pub fn client(&self) -> Client {
        self.moto.client()
    }

    /// Lists the group's instances that run for EC2.
    ///
    /// # Errors
    /// The interface does not answer.
    pub fn running(&self) -> Result<Vec<String>> {
        self.client().running(&self.group)
    }

    /// Removes everything with Terraform, and sees that nothing is left.
    ///
    /// # Errors
    /// Something is left.
    pub fn destroy(&self) -> Result<()> {
        self.terraform.destroy()?;
        ensure!(self.client().groups()?.is_empty(), "a group is left");
        let left = self.client().instances()?;
        let left: Vec<_> = left.iter().filter(|it| it.state != "terminated").collect();
        ensure!(left.is_empty(), "{left:?}");
        self.hypervisor.until_running(0)?;
        let machines = self.folder.join("machines");
        until_true("nothing of a machine runs any more", SOON, || {
            Ok(crate::traces::mentioning(&machines.to_string_lossy()).is_empty())
        })
    }

    /// Gives the end of what everything has printed, for a test that failed.
    #[must_use]
    pub fn story(&self) -> String {
        let (machines, moto) = (self.hypervisor.story(), self.moto.story());
        format!("{machines}\n--- moto\n{moto}")
    }
}
