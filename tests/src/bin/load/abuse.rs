use anyhow::Result;
use crate::{AbuseMode, report::Report};
pub(crate) async fn run(_mode: &AbuseMode) -> Result<Report> { Ok(Report::new("abuse")) }
