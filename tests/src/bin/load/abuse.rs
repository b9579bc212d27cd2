use crate::{AbuseMode, report::Report};
use anyhow::Result;
pub(crate) async fn run(_mode: &AbuseMode) -> Result<Report> {
    Ok(Report::new("abuse"))
}
