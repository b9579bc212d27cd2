use super::arguments::Doctor;
use super::context::Context;
use super::error::{Exit, Result};
pub(crate) async fn doctor(_: &Context, _: Doctor) -> Result<Exit> {
    Ok(Exit::Success)
}
